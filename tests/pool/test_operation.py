"""An operation alone and in a pool: fields, outcome, error, waiting."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, InvalidStateError
from dataclasses import dataclass
from typing import Any

import pytest

from ringmill import Operation, OperationReused, Outcome, Retry, Worker, WorkerPool
from tests.pool.operations import ERRORS, Data, Filled, Plain, Script, Slotted, raising, run
from tests.threads import LONG, SHORT, run_threads, start_threads, wait_until


@dataclass(frozen=True)
class Frozen(Operation):
    number: int


class Unhashable(Operation):
    """Equal to everything, which says nothing."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __bool__(self) -> bool:
        raise AssertionError("asked whether it is true")

    __hash__ = None  # type: ignore[assignment]


MAKERS: list[Callable[[], Operation]] = [
    Plain,
    Operation,
    lambda: Filled(1),
    lambda: Data(1),
    lambda: Slotted(1),
    lambda: Frozen(1),
    Unhashable,
]


@pytest.fixture
def held() -> Iterator[tuple[WorkerPool[Any], Script]]:
    """A pool whose one worker holds on to its operation until the gate opens."""
    worker = Script()
    worker.gate.clear()
    with WorkerPool([worker]) as pool:
        yield pool, worker
        worker.gate.set()


# Subclasses


@pytest.mark.parametrize("make", MAKERS)
def test_any_subclass_goes_through_a_pool(make: Callable[[], Operation]) -> None:
    op = make()
    assert (op.outcome, op.error, op.tries) == (Outcome.PENDING, None, 0)
    assert run(op).check() is op
    assert (op.outcome, op.error, op.tries) == (Outcome.SUCCEEDED, None, 0)
    op.reset()
    run(op, raising(ValueError("no")))
    assert (op.outcome, type(op.error)) == (Outcome.FAILED, ValueError)
    assert type(op).__qualname__ in repr(op)


@pytest.mark.parametrize("make", MAKERS)
def test_any_subclass_goes_through_streams(make: Callable[[], Operation]) -> None:
    ops = [make() for _ in range(5)]
    with WorkerPool([Script(), Script()]) as pool:
        assert sorted(map(id, pool.execute(ops))) == sorted(map(id, ops))
        assert sorted(map(id, pool.wrap(ops, reset=True, ordered=True))) == sorted(map(id, ops))
        with pytest.raises(OperationReused):
            pool.execute(ops)


@pytest.mark.parametrize("name", ["outcome", "error", "tries"])
@pytest.mark.parametrize("how", ["annotation", "attribute", "property", "method", "slot"])
def test_reserved_names_are_no_fields(name: str, how: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "annotation": {"__annotations__": {name: int}},
        "attribute": {name: 3},
        "property": {name: property(lambda self: 3)},
        "method": {name: lambda self: 3},
        "slot": {"__slots__": (name,)},
    }
    with pytest.raises(TypeError, match=name):
        type("Spoilt", (Operation,), bodies[how])


def create(body: str) -> Any:
    """A class statement without this file's __future__ import: from 3.14 on, annotations are kept as a function."""
    names: dict[str, Any] = {"Operation": Operation, "dataclass": dataclass, "__name__": "created"}
    exec(compile(f"class Created(Operation):\n    {body}", "created", "exec", dont_inherit=True), names)
    return names["Created"]


@pytest.mark.parametrize("name", ["outcome", "error", "tries"])
@pytest.mark.parametrize("body", ["{}: int", "{}: int = 3", "{} = 3", "def {}(self): pass", "{}: 'Later'"])
def test_reserved_names_are_no_fields_of_a_class_statement(name: str, body: str) -> None:
    with pytest.raises(TypeError, match=name):
        create(body.format(name))


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated at once")
def test_a_field_may_be_annotated_with_a_later_name() -> None:
    assert create("parent: Created").__annotations__["parent"]
    assert create("other: 'Later'")().outcome is Outcome.PENDING
    with pytest.raises(TypeError, match="error"):
        create("error: Later")
    create("other: Later")


@pytest.mark.parametrize("name", ["outcome", "error", "tries"])
@pytest.mark.parametrize("make", [Plain, lambda: Data(1), lambda: Slotted(1)])
def test_reserved_names_cannot_be_assigned(name: str, make: Callable[[], Operation]) -> None:
    op = make()
    with pytest.raises(AttributeError):
        setattr(op, name, 3)
    with pytest.raises(AttributeError):
        delattr(op, name)
    assert (op.outcome, op.error, op.tries) == (Outcome.PENDING, None, 0)


# wait and done


def test_wait_times_out_and_any_number_may_wait(held: tuple[WorkerPool[Any], Script]) -> None:
    pool, worker = held
    op = Plain()
    assert not op.wait(0)
    assert not op.wait(timeout=SHORT)
    pool.do(op)
    assert not op.wait(0)
    assert not op.wait(SHORT)
    waiters = start_threads(*[lambda: op.wait(LONG), lambda: op.wait(), lambda: op.wait(SHORT / 10)] * 6)
    wait_until(lambda: sum(thread.is_alive() for thread in waiters.threads) == 12)
    worker.gate.set()
    assert waiters.join() == [True, True, False] * 6
    assert op.wait()
    assert op.wait(0)


def test_wait_for_an_operation_that_is_submitted_later() -> None:
    op = Plain()
    waiters = start_threads(*[op.wait] * 4)
    run(op)
    assert waiters.join() == [True] * 4


@pytest.mark.parametrize(
    ("timeout", "kind"), [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), ([], TypeError)]
)
def test_bad_timeouts(timeout: Any, kind: type[Exception]) -> None:
    for op in (Plain(), run(Plain())):
        with pytest.raises(kind) as caught:
            op.wait(timeout)
        assert "timeout" in str(caught.value)
        assert repr(timeout) in str(caught.value)


@pytest.mark.parametrize("timeout", [1e300, float("inf"), 10**30])
def test_a_long_timeout_is_no_limit(held: tuple[WorkerPool[Any], Script], timeout: float) -> None:
    pool, worker = held
    op = pool.do(Plain())
    waiter = start_threads(lambda: op.wait(timeout))
    worker.gate.set()
    assert waiter.join() == [True]


def test_done_early_releases_and_sets_no_outcome(held: tuple[WorkerPool[Any], Script]) -> None:
    pool, worker = held
    op = Plain()
    pool.do(op)
    waiters = start_threads(*[op.wait] * 3)
    run_threads(*[op.done] * 4)
    op.done()
    assert waiters.join() == [True] * 3
    assert op.wait()
    assert op.outcome is Outcome.PENDING
    with pytest.raises(InvalidStateError):
        op.check()
    with pytest.raises(OperationReused):
        pool.do(op)
    worker.gate.set()
    wait_until(lambda: op.outcome is Outcome.SUCCEEDED)
    op.done()
    assert op.outcome is Outcome.SUCCEEDED


def test_waiters_with_timeouts_race_with_done(seed: int, switch_interval: float) -> None:
    with WorkerPool([Script(), Script()]) as pool:
        for lap in range(40):
            ops = [Plain() for _ in range(4)]
            rng = random.Random(seed + lap)
            limits = [rng.choice([None, 0, 1e-5, 1e-4, LONG]) for _ in range(8)]

            def wait(limit: float | None, ops: list[Plain] = ops) -> list[bool]:
                return [op.wait(limit) for op in ops]

            def submit(ops: list[Plain] = ops) -> None:
                for op in ops:
                    pool.do(op)

            results = run_threads(submit, *[lambda w=wait, limit=limit: w(limit) for limit in limits])
            for limit, waited in zip(limits, results[1:], strict=True):
                assert all(waited) or limit not in (None, LONG)
            assert all(op.wait() for op in ops)


# Overridden verbs are notifications


def test_verbs_that_forget_super_break_nothing() -> None:
    told: list[str] = []

    class Forgetful(Operation):
        def increment_try(self) -> None:
            told.append("increment_try")

        def done(self) -> None:
            told.append("done")

        def wait(self, timeout: float | None = None) -> bool:
            told.append("wait")
            return False

    def process(op: Operation) -> None:
        if op.tries < 2:
            raise Retry

    op = Forgetful()
    with WorkerPool([Script(process)]) as pool:
        stream = pool.execute([op])
        waiter = start_threads(lambda: Operation.wait(op, LONG))
        assert list(stream) == [op]
        assert waiter.join() == [True]
    assert (op.outcome, op.tries) == (Outcome.SUCCEEDED, 2)
    assert told == ["increment_try", "increment_try", "done"]


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("script", [[], ["retry"], ["retry", "fail"]])
def test_verbs_that_raise_are_logged_and_break_nothing(
    kind: type[BaseException], script: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(Operation):
        def increment_try(self) -> None:
            raise kind("in increment_try")

        def done(self) -> None:
            raise kind("in done")

    class Scripted(Worker[Bad]):
        def process(self, op: Bad) -> None:
            word = script[op.tries] if op.tries < len(script) else ""
            if word == "retry":
                raise Retry
            if word:
                raise ValueError

        def handle_error(self, error: BaseException, op: Bad) -> None:
            pass

    with WorkerPool([Scripted()]) as pool:
        ops = [Bad() for _ in range(3)]
        stream = pool.execute(ops)
        assert all(op.wait(LONG) for op in ops)
        assert len(list(stream)) == 3
        assert pool.stats().restarts == 0
    expected = Outcome.FAILED if "fail" in script else Outcome.SUCCEEDED
    assert [op.outcome for op in ops] == [expected] * 3
    assert [op.tries for op in ops] == [script.count("retry")] * 3
    logged = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert logged.count("in done") == 3
    assert logged.count("in increment_try") == 3 * script.count("retry")


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_done_that_raises_does_not_break_cancel(kind: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Operation):
        def done(self) -> None:
            raise kind

    op = Bad()
    assert op.cancel()
    assert op.wait(0)
    assert op.outcome is Outcome.CANCELLED
    assert len(caplog.records) == 1


def test_a_keyboard_interrupt_in_done_is_raised_by_cancel_on_the_main_thread_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Bad(Operation):
        def done(self) -> None:
            raise KeyboardInterrupt

    op = Bad()
    with pytest.raises(KeyboardInterrupt):
        op.cancel()
    assert op.wait(0)
    assert op.outcome is Outcome.CANCELLED
    assert not caplog.records
    assert not op.cancel()
    other = Bad()
    assert run_threads(other.cancel) == [True]
    assert len(caplog.records) == 1
    assert Bad().outcome is Outcome.PENDING
    assert not op.cancel()  # nothing is left over for a later call


# cancel


def test_cancel_a_new_one() -> None:
    op = Plain()
    waiter = start_threads(op.wait)
    assert op.cancel()
    assert waiter.join() == [True]
    assert op.outcome is Outcome.CANCELLED
    assert not op.cancel()
    with WorkerPool([Script()]) as pool, pytest.raises(OperationReused):
        pool.do(op)


def test_cancel_queued_running_and_finished(held: tuple[WorkerPool[Any], Script]) -> None:
    pool, worker = held
    running = pool.do(Plain())
    assert worker.begun.wait(LONG)
    queued = pool.do(Plain())
    waiter = start_threads(queued.wait)
    assert not running.cancel()
    assert queued.cancel()
    assert waiter.join() == [True]
    assert not queued.cancel()
    worker.gate.set()
    assert running.wait(LONG)
    assert not running.cancel()
    assert (running.outcome, queued.outcome) == (Outcome.SUCCEEDED, Outcome.CANCELLED)


def test_cancel_a_delayed_one() -> None:
    def process(op: Operation) -> None:
        raise Retry(delay=3600)

    with WorkerPool([Script(process)]) as pool:
        op = Plain()
        stream = pool.execute([op])
        wait_until(lambda: pool.stats().delayed == 1)
        assert op.cancel()
        assert stream.get(LONG) is op
    assert (op.outcome, op.tries) == (Outcome.CANCELLED, 1)


def test_cancels_race_with_workers(seed: int, switch_interval: float) -> None:
    ran: list[int] = []
    with WorkerPool([Script(lambda op: ran.append(id(op))) for _ in range(2)]) as pool:
        for lap in range(30):
            ops = [Plain() for _ in range(10)]
            stream = pool.execute(ops)

            def cancel(ops: list[Plain] = ops, rng: random.Random | None = None, lap: int = lap) -> list[int]:
                order = ops[:]
                random.Random(seed + lap).shuffle(order)
                return [id(op) for op in order if op.cancel()]

            one, two = run_threads(cancel, cancel)
            assert sorted(map(id, stream)) == sorted(map(id, ops))
            assert sorted([*one, *two, *ran]) == sorted(map(id, ops))  # each was cancelled once or ran once
            ran.clear()
            assert all((op.outcome is Outcome.CANCELLED) == (id(op) in {*one, *two}) for op in ops)


# check and reset


def test_check_in_each_state(held: tuple[WorkerPool[Any], Script]) -> None:
    pool, worker = held
    new, failing, succeeding, cancelled = Plain(), Plain(), Plain(), Plain()
    error = ValueError("no")
    worker.do = lambda op: raising(error)(op) if op is failing else None
    with pytest.raises(InvalidStateError):
        new.check()
    pool.do(failing)
    assert worker.begun.wait(LONG)
    pool.do(succeeding)
    pool.do(cancelled).cancel()
    for pending in (failing, succeeding):
        with pytest.raises(InvalidStateError):
            pending.check()
    worker.gate.set()
    assert failing.wait(LONG)
    assert succeeding.wait(LONG)
    assert succeeding.check() is succeeding
    with pytest.raises(CancelledError):
        cancelled.check()
    lengths = []
    raised: list[ValueError] = []
    for _ in range(3):
        with pytest.raises(ValueError, match="no") as caught:
            failing.check()
        raised.append(caught.value)
        lengths.append(len(caught.traceback))
    assert raised[0] is error
    assert len(set(map(id, raised))) == 3  # each an object of its own
    assert all(later.__cause__ is error for later in raised[1:])
    assert len(set(lengths)) == 1  # the traceback does not grow with each look


def test_reset_in_each_state(held: tuple[WorkerPool[Any], Script]) -> None:
    pool, worker = held
    op = Filled(7)
    op.reset()  # new already
    assert op.outcome is Outcome.PENDING
    pool.do(op)
    assert worker.begun.wait(LONG)
    queued = pool.do(Filled(8))
    for pending in (op, queued):
        with pytest.raises(OperationReused):
            pending.reset()
    worker.do = raising(ValueError("no"))
    worker.gate.set()
    assert op.wait(LONG)
    assert queued.wait(LONG)
    assert isinstance(op.error, ValueError)
    with pytest.raises(OperationReused):
        pool.do(op)
    op.reset()
    assert (op.outcome, op.error, op.tries, op.number) == (Outcome.PENDING, None, 0, 7)
    assert not op.wait(0)
    worker.do = None
    assert pool.do(op).wait(LONG)
    assert op.outcome is Outcome.SUCCEEDED
    op.reset()
    assert op.cancel()
    op.reset()
    assert pool.do(op).wait(LONG)
    assert op.outcome is Outcome.SUCCEEDED
    assert isinstance(queued.error, ValueError)


def test_tries_are_new_after_reset() -> None:
    op = Plain()
    for _ in range(2):
        with WorkerPool([Script(raising(Retry))], max_tries=3) as pool:
            assert pool.do(op).wait(LONG)
        assert op.tries == 3
        assert op.error is not None
        op.reset()
