"""Tasks, and errors of operations: recorded, raised on request, logged once if they were never read."""

from __future__ import annotations

import gc
import logging
import pickle
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, InvalidStateError
from typing import Any

import pytest

from ringmill import Operation, Outcome, Reject, Retry, Task, TaskWorker, Unroutable, Worker, WorkerPool
from tests.threads import LONG, SHORT, start_threads, wait_until


def throw(error: BaseException | type[BaseException]) -> None:
    raise error


# Tasks


def test_a_task_returns_what_its_function_returns() -> None:
    with WorkerPool([TaskWorker()]) as pool:
        task = pool.do(Task(divmod, 7, 2))
        assert task.result() == (3, 1)
        assert task.result(timeout=0) == (3, 1)
        assert task.exception() is None
        assert task.check() is task
        assert pool.do(Task(dict, a=1, self=2, fn=3)).result(LONG) == {"a": 1, "self": 2, "fn": 3}
        assert pool.do(Task(list)).result(LONG) == []
        assert pool.do(Task(lambda: None)).result(LONG) is None


@pytest.mark.parametrize("fn", [None, 3, "print", []])
def test_a_function_must_be_callable(fn: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Task(fn)
    assert "fn" in str(caught.value)
    assert repr(fn) in str(caught.value)


def test_timeouts_and_cancelling() -> None:
    gate, begun = threading.Event(), threading.Event()

    def hold() -> str:
        begun.set()
        assert gate.wait(LONG)
        return "held"

    with WorkerPool([TaskWorker()]) as pool:
        task, other = pool.do(Task(hold)), pool.do(Task(str))
        assert begun.wait(LONG)
        for call in (task.result, task.exception):
            for timeout in (0, SHORT):
                with pytest.raises(TimeoutError):
                    call(timeout)
            with pytest.raises(ValueError, match="timeout"):
                call(-1)
            with pytest.raises(TypeError, match="timeout"):
                call("1")
        waiters = start_threads(other.result, other.exception)
        assert other.cancel()
        with pytest.raises(CancelledError):
            waiters.join()
        for call in (other.result, other.exception, other.check):
            with pytest.raises(CancelledError):
                call()
        gate.set()
        assert task.result(LONG) == "held"


def test_a_task_released_early_has_no_result() -> None:
    task = Task(str)
    task.done()
    for call in (task.result, task.check):
        with pytest.raises(InvalidStateError):
            call()


@pytest.mark.parametrize(
    "kind", [ValueError, StopIteration, KeyboardInterrupt, SystemExit, MemoryError, RecursionError]
)
def test_what_a_function_raises_is_the_tasks_error_and_no_crash(kind: type[BaseException]) -> None:
    error = kind("in the function")
    with WorkerPool([TaskWorker()], max_restarts=0) as pool:
        task = Task(throw, error)
        assert list(pool.execute([task])) == [task]
        assert task.outcome is Outcome.FAILED
        assert task.error is error
        assert task.exception() is error
        for call in (task.result, task.check):
            with pytest.raises(kind) as caught:
                call()
            assert caught.value is (error if call == task.result else caught.value)
            assert call == task.result or caught.value.__cause__ is error
            assert "throw" in [entry.name for entry in caught.traceback]
        assert pool.stats().restarts == 0
        assert pool.do(Task(abs, -3)).result(LONG) == 3  # the worker lives


def test_the_error_of_a_task_is_passed_to_handle_error() -> None:
    class Telling(TaskWorker):
        def handle_error(self, error: BaseException, op: Task[Any]) -> None:
            told.append((error, op, op.outcome))

    told: list[tuple[BaseException, Task[Any], Outcome]] = []
    with WorkerPool([Telling()]) as pool:
        task = pool.do(Task(throw, KeyError("x")))
        assert task.wait(LONG)
    assert told == [(task.error, task, Outcome.PENDING)]


def test_retry_and_reject_pass_through() -> None:
    calls: list[int] = []

    def third_time() -> str:
        calls.append(len(calls))
        if len(calls) < 3:
            raise Retry
        return "lucky"

    with WorkerPool([TaskWorker()]) as pool:
        task = pool.do(Task(third_time))
        assert task.result(LONG) == "lucky"
        assert (task.tries, len(calls)) == (2, 3)
        rejected = pool.do(Task(throw, Reject))
        assert isinstance(rejected.exception(LONG), Unroutable)


def test_a_task_can_be_reset_and_run_again() -> None:
    numbers = iter([ValueError("first"), None, ValueError("third")])

    def step() -> str:
        error = next(numbers)
        if error is not None:
            raise error
        return "good"

    task = Task(step)
    with WorkerPool([TaskWorker()]) as pool:
        assert str(pool.do(task).exception(LONG)) == "first"
        task.reset()
        assert pool.do(task).result(LONG) == "good"
        assert task.error is None
        task.reset()
        assert str(pool.do(task).exception(LONG)) == "third"


@pytest.mark.parametrize("done", [False, True])
def test_tasks_pickle_and_arrive_new(done: bool) -> None:
    task = Task(int, "ff", base=16)
    with WorkerPool([TaskWorker()]) as pool:
        if done:
            assert pool.do(task).result(LONG) == 255
        other = pickle.loads(pickle.dumps(task))
        assert other.outcome is Outcome.PENDING
        assert pool.do(other).result(LONG) == 255


def test_tasks_release_their_references() -> None:
    class Thing:
        pass

    thing = Thing()
    reference = weakref.ref(thing)
    with WorkerPool([TaskWorker()]) as pool:
        assert pool.do(Task(lambda held: None, thing)).result(LONG) is None
        failed = pool.do(Task(lambda held: throw(ValueError()), thing))
        assert failed.exception(LONG) is not None
        del thing, failed

        def is_gone() -> bool:
            gc.collect()
            return reference() is None

        wait_until(is_gone)


# An error that was not read


class Failing(Worker[Operation]):
    def process(self, op: Operation) -> None:
        raise ValueError("unheard")


class Heeding(Failing):
    def handle_error(self, error: BaseException, op: Operation) -> None:
        pass


class Plain(Operation):
    pass


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "ringmill" and record.exc_info]


def collect(reference: weakref.ref[Any]) -> None:
    def is_gone() -> bool:
        gc.collect()
        return reference() is None

    wait_until(is_gone)


MAKERS: list[Any] = [
    pytest.param(Failing, Plain, id="operation"),
    pytest.param(TaskWorker, lambda: Task(throw, ValueError("unheard")), id="task"),
]


@pytest.mark.parametrize(("worker", "make"), MAKERS)
@pytest.mark.parametrize("how", ["do", "execute", "wrap"])
def test_an_unseen_error_is_logged_once(
    worker: Callable[[], Worker[Any]], make: Callable[[], Operation], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with WorkerPool([worker()]) as pool:
        op = make()
        name = type(op).__qualname__
        if how == "do":
            pool.do(op)
        else:
            assert list(getattr(pool, how)([op])) == [op]
        assert op.wait(LONG)
        assert op.outcome is Outcome.FAILED  # to ask for the outcome is not to look at the error
        assert logged(caplog) == []
        del op
        wait_until(lambda: gc.collect() >= 0 and len(logged(caplog)) > 0)
    gc.collect()
    (record,) = logged(caplog)
    assert name in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "unheard"
    assert record.exc_info[2] is not None


@pytest.mark.parametrize("look", ["error", "check"])
def test_an_error_that_was_looked_at_is_not_logged(look: str, caplog: pytest.LogCaptureFixture) -> None:
    with WorkerPool([Failing()]) as pool:
        op = pool.do(Plain())
        assert op.wait(LONG)
        if look == "error":
            assert op.error is not None
        else:
            with pytest.raises(ValueError, match="unheard"):
                op.check()
        reference = weakref.ref(op)
        del op
        collect(reference)
    assert logged(caplog) == []


@pytest.mark.parametrize("look", ["result", "exception"])
def test_the_error_of_a_task_that_was_asked_for_is_not_logged(look: str, caplog: pytest.LogCaptureFixture) -> None:
    with WorkerPool([TaskWorker()]) as pool:
        task = pool.do(Task(throw, ValueError("heard")))
        if look == "result":
            with pytest.raises(ValueError, match="heard"):
                task.result(LONG)
        else:
            assert task.exception(LONG) is not None
        del task
        gc.collect()
    gc.collect()
    assert logged(caplog) == []


def test_an_error_that_the_worker_handles_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with WorkerPool([Heeding()]) as pool:
        op = pool.do(Plain())
        assert op.wait(LONG)
        reference = weakref.ref(op)
        del op
        collect(reference)
    assert logged(caplog) == []


class Counting(logging.Handler):
    """Keeps no record, since a record holds the traceback, and that the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def test_an_unseen_error_that_reset_forgets_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = Counting()
    monkeypatch.setattr(logging.getLogger("ringmill"), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("ringmill"), "propagate", False)
    with WorkerPool([Failing()]) as pool:
        op = pool.do(Plain())
        assert op.wait(LONG)
        op.reset()
        reference = weakref.ref(op)
        del op
        collect(reference)
    assert handler.count == 1


def test_a_cancelled_operation_has_no_error_to_be_seen(caplog: pytest.LogCaptureFixture) -> None:
    op = Plain()
    assert op.cancel()
    reference = weakref.ref(op)
    del op
    collect(reference)
    assert logged(caplog) == []
