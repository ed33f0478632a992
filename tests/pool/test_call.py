"""`WorkerPool.call` and `acall`: one item, its result or its error, in time or not at all."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import gc
import queue
import random
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from fractions import Fraction
from typing import Any

import anyio
import pytest

from ringmill import (
    BrokenPool,
    Closed,
    Operation,
    Outcome,
    PoolNotRunning,
    Reject,
    RetriesExhausted,
    Retry,
    Task,
    Unroutable,
    Worker,
    WorkerPool,
)
from tests.loops import BACKENDS, Elsewhere, let_others_run, run_loop, together
from tests.pool.items import LONG, SHORT, Caller, Give, Hold, Square, counts, held, stems_from
from tests.threads import run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def pool_of(count: int = 1, kind: type[Worker[Any]] = Caller, **settings: Any) -> WorkerPool[Any]:
    return WorkerPool([kind() for _ in range(count)], **settings)


class Job(Operation):
    """An operation among the items."""

    def __call__(self) -> None:
        pass


Calls = Callable[[WorkerPool[Any], Any], Any]


def call(pool: WorkerPool[Any], item: Any) -> Any:
    return pool.call(item)


def timed(pool: WorkerPool[Any], item: Any) -> Any:
    return pool.call(item, timeout=LONG)


def acall(pool: WorkerPool[Any], item: Any) -> Any:
    async def main() -> Any:
        return await pool.acall(item)

    return asyncio.run(main())


def acall_trio(pool: WorkerPool[Any], item: Any) -> Any:
    async def main() -> Any:
        return await pool.acall(item)

    return run_loop("trio", main)


each = pytest.mark.parametrize("how", [call, timed, acall, acall_trio])


# Results


@each
def test_the_result_is_what_process_returned(how: Calls) -> None:
    with pool_of(2) as pool:
        for value in (None, 3, "text", [1, 2], int, ValueError("a value"), Ellipsis):
            assert how(pool, lambda value=value: value) is value
        assert counts(pool.stats()) == {"succeeded": 7}


@each
def test_any_object_may_be_an_item(how: Calls) -> None:
    class Same(Worker[Any]):
        def process(self, item: Any) -> Any:
            return item

    with pool_of(1, Same) as pool:
        for item in (None, 0, "", (), [], Operation, Job, StopIteration(), ValueError("a value"), NotImplemented):
            assert how(pool, item) is item


def test_calls_from_several_threads(seed: int) -> None:
    def many(rng: random.Random) -> int:
        for _ in range(100):
            number = rng.randrange(1000)
            assert pool.call(number, *rng.choice([(), (LONG,)])) == number * number
        return 100

    with pool_of(2, Square, queue_size=1) as pool:
        rngs = [random.Random(seed + k) for k in range(4)]
        assert run_threads(*[lambda rng=rng: many(rng) for rng in rngs]) == [100] * 4
        assert pool.stats().accepted == pool.stats().succeeded == 400


@pytest.mark.parametrize("backend", BACKENDS)
def test_calls_from_several_tasks(backend: str) -> None:
    async def main() -> None:
        async with pool_of(2, Square, queue_size=1) as pool:

            async def one(number: int) -> int:
                return await pool.acall(number)

            came = await together(*[lambda number=number: one(number) for number in range(100)])  # type: ignore[misc]
            assert came == [number * number for number in range(100)]

    run_loop(backend, main)


def test_acall_does_not_block_its_loop() -> None:
    async def main() -> None:
        hold = Hold()
        with pool_of(1, queue_size=1) as pool:
            tasks = [asyncio.ensure_future(pool.acall(item)) for item in (hold, *map(Give, range(5)))]
            while not hold.reached.is_set():
                await asyncio.sleep(0.001)
            await let_others_run()
            hold.release()
            assert await asyncio.gather(*tasks) == ["held", 0, 1, 2, 3, 4]

    asyncio.run(main())


# Errors


@each
@pytest.mark.parametrize(
    "error", [ValueError("one"), KeyError("two"), RuntimeError("three"), OSError(2, "four"), CancelledError("five")]
)
def test_an_error_is_raised(how: Calls, error: Exception) -> None:
    with pool_of() as pool:
        with pytest.raises(type(error)) as caught:
            how(pool, Give(error))
        assert caught.value.args == error.args
        assert "process" in [entry.name for entry in caught.traceback]
        assert counts(pool.stats()) == {"failed": 1}
        assert how(pool, Give("next")) == "next"


@each
@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, queue.Empty, queue.Full, Closed, TimeoutError])
def test_an_error_of_the_item_is_never_taken_for_another(how: Calls, kind: type[Exception]) -> None:
    """A StopIteration out of a coroutine would be its return: that comes out as RuntimeError."""
    error = kind("of the item")
    with pool_of() as pool:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each kind, checked below
            how(pool, Give(error))
        assert stems_from(caught.value, error)
        if kind is StopIteration:
            assert type(caught.value) is RuntimeError
        assert counts(pool.stats()) == {"failed": 1}


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_crash_is_raised_and_the_worker_restarts(kind: type[BaseException]) -> None:
    with pool_of() as pool:
        with pytest.raises(kind) as caught:
            pool.call(Give(kind("crash")))
        assert caught.value.args == ("crash",)
        assert pool.call(Give("next")) == "next"
        assert pool.stats().restarts == 1


@each
def test_retries(how: Calls) -> None:
    left = [Retry("first"), Retry("second", delay=0.001)]

    def flaky() -> str:
        if left:
            raise left.pop()
        return "third"

    with pool_of(2) as pool:
        assert how(pool, flaky) == "third"
        assert pool.stats().tries == 2
        assert counts(pool.stats()) == {"succeeded": 1}


@each
def test_retries_that_are_exhausted(how: Calls) -> None:
    errors = [Retry(f"try {k}") for k in range(3)]
    left = errors[::-1]

    def failing() -> None:
        raise left.pop()

    with pool_of(2, max_tries=3) as pool:
        with pytest.raises(RetriesExhausted) as caught:
            how(pool, failing)
        assert caught.value.__cause__ is errors[-1]
        assert pool.stats().tries == 3
        assert counts(pool.stats()) == {"failed": 1}


@each
def test_rejected_by_all_workers(how: Calls) -> None:
    with pool_of(3) as pool:
        with pytest.raises(Unroutable):
            how(pool, Give(Reject()))
        assert pool.stats().tries == 0


def test_handle_error_is_given_the_item() -> None:
    class Telling(Caller):
        def handle_error(self, error: BaseException, op: Any) -> None:
            told.append((error, op))

    told: list[Any] = []
    item = Give(ValueError("one"))
    with pool_of(1, Telling) as pool, pytest.raises(ValueError, match="one"):
        pool.call(item)
    assert told == [(item.value, item)]


def test_an_error_is_not_kept_after_the_call() -> None:
    class OwnError(Exception):
        pass

    def fail() -> weakref.ref[BaseException]:
        try:
            pool.call(failing)
        except OwnError as error:
            return weakref.ref(error)
        raise AssertionError("it did not fail")

    def failing() -> None:
        raise OwnError

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    with pool_of() as pool:
        gone = fail()
        wait_until(is_gone)


# An Operation


@each
@pytest.mark.parametrize("operation", [Job, lambda: Task(int)], ids=["Operation", "Task"])
def test_an_operation_is_refused_by_name(how: Calls, operation: Callable[[], Operation]) -> None:
    op = operation()
    with pool_of() as pool:
        with pytest.raises(TypeError, match=r"\b(do|ado)\b"):
            how(pool, op)
        assert pool.stats().accepted == 0
    assert op.outcome is Outcome.PENDING


# Timeouts


@pytest.mark.parametrize("timeout", [0, 0.0, SHORT, decimal.Decimal("0.01"), Fraction(1, 100)])
def test_an_item_that_has_not_begun_in_time_is_cancelled(timeout: Any) -> None:
    ran: list[int] = []
    with pool_of() as pool, held(pool) as (hold,):
        with pytest.raises(TimeoutError):
            pool.call(lambda: ran.append(1), timeout=timeout)
        assert counts(pool.stats()) == {"running": 1, "cancelled": 1}
        hold.release()
        assert pool.call(Give("next")) == "next"
    assert ran == []
    assert counts(pool.stats()) == {"succeeded": 2, "cancelled": 1}


def test_the_result_of_an_item_that_has_begun_is_discarded() -> None:
    class Value:
        pass

    def make() -> Value:
        reached.set()
        assert opened.wait(LONG)
        value = Value()
        references.append(weakref.ref(value))
        return value

    reached, opened = threading.Event(), threading.Event()
    references: list[weakref.ref[Value]] = []

    def is_gone() -> bool:
        gc.collect()
        return references[0]() is None

    with pool_of() as pool:
        caller = start_threads(lambda: timed_out(pool, make))
        assert reached.wait(LONG)
        assert caller.join() == [True]
        assert counts(pool.stats()) == {"running": 1}  # it is left alone
        opened.set()
        wait_until(lambda: counts(pool.stats()) == {"succeeded": 1})
        wait_until(is_gone)


def timed_out(pool: WorkerPool[Any], item: Any) -> bool:
    """The timeout must be long enough for the item to begin, which the test waits for."""
    try:
        pool.call(item, timeout=0.2)
    except TimeoutError:
        return True
    return False


def test_an_error_that_nobody_waits_for_any_more_breaks_nothing() -> None:
    hold = Hold(ValueError("late"))
    with pool_of() as pool:
        assert timed_out(pool, hold)
        hold.release()
        assert pool.call(Give("next")) == "next"
        wait_until(lambda: pool.stats().running == 0)
        assert pool.stats().failed <= 1


def test_the_timeout_bounds_waiting_for_room_too() -> None:
    """TimeoutError, not queue.Full, which is `do`'s; the item has not been accepted."""
    with pool_of(1, queue_size=1) as pool, held(pool):
        queued = pool.do(Job())
        for timeout in (0, SHORT):
            with pytest.raises(TimeoutError):
                pool.call(Give(1), timeout=timeout)
        assert counts(pool.stats()) == {"running": 1, "queued": 1}
        assert queued.cancel()


def test_a_retry_that_is_delayed_beyond_the_timeout_is_cancelled() -> None:
    def later() -> None:
        ran.append(1)
        raise Retry(delay=3600)

    ran: list[int] = []
    with pool_of() as pool:
        with pytest.raises(TimeoutError):
            pool.call(later, timeout=0.05)
        if ran:  # else it had not begun
            wait_until(lambda: counts(pool.stats()) == {"cancelled": 1})
        assert pool.call(Give("next")) == "next"
    assert len(ran) <= 1


@pytest.mark.parametrize(
    ("timeout", "kind"), [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)]
)
def test_bad_timeouts(timeout: Any, kind: type[Exception]) -> None:
    with pool_of() as pool:
        with pytest.raises(kind, match="timeout"):
            pool.call(Give(1), timeout=timeout)
        assert pool.stats().accepted == 0


@pytest.mark.parametrize("timeout", [None, float("inf"), threading.TIMEOUT_MAX * 2, pytest.param(10**400, id="huge")])
def test_no_limit(timeout: Any) -> None:
    with pool_of() as pool:
        assert pool.call(Give(1), timeout=timeout) == 1
        assert pool.call(Give(1), timeout) == 1


# Waiting for room


def test_a_call_waits_for_room() -> None:
    with pool_of(1, queue_size=1) as pool, held(pool) as (hold,):
        callers = start_threads(*[lambda n=n: pool.call(Give(n)) for n in range(4)])
        wait_until(lambda: pool.stats().queued == 1)
        hold.release()
        assert callers.join() == [0, 1, 2, 3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_acall_waits_for_room_without_blocking_the_loop(backend: str) -> None:
    async def main() -> None:
        async with pool_of(1, queue_size=1) as pool:
            hold = Hold()
            results = pool.map([hold])
            await hold.until_reached()

            async def one(number: int) -> int:
                return await pool.acall(Give(number))

            async def release() -> None:
                await let_others_run()
                assert pool.stats().queued <= 1
                hold.release()

            came = await together(*[lambda n=n: one(n) for n in range(5)], release)  # type: ignore[misc]
            assert came[:5] == [0, 1, 2, 3, 4]
            assert list(results) == ["held"]

    run_loop(backend, main)


# A cancelled await


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queue_size", [1, 10])
def test_cancelling_the_await_cancels_an_item_that_has_not_begun(backend: str, queue_size: int) -> None:
    """Also one that waits for room in the queue."""
    ran: list[int] = []

    async def main() -> None:
        hold = Hold()
        async with pool_of(1, queue_size=queue_size) as pool:
            results = pool.map([hold])
            await hold.until_reached()
            async with anyio.create_task_group() as group:
                for number in range(3):
                    group.start_soon(pool.acall, lambda number=number: ran.append(number))
                await let_others_run()
                group.cancel_scope.cancel()
            stats = pool.stats()
            assert (stats.queued, stats.running) == (0, 1)
            assert stats.cancelled == stats.accepted - 1
            hold.release()
            assert await pool.acall(Give("next")) == "next"
            assert list(results) == ["held"]

    run_loop(backend, main)
    assert ran == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelling_the_await_of_an_item_that_has_begun_discards_its_result(backend: str) -> None:
    async def main() -> None:
        hold = Hold()
        async with pool_of() as pool:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.acall, hold)
                await hold.until_reached()
                group.cancel_scope.cancel()
            assert counts(pool.stats()) == {"running": 1}
            hold.release()
            assert await pool.acall(Give("next")) == "next"
            assert counts(pool.stats()) == {"succeeded": 2}

    run_loop(backend, main)


def test_wait_for_is_the_timeout_of_acall() -> None:
    async def main() -> None:
        with pool_of() as pool, held(pool) as (hold,):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(pool.acall(Give(1)), SHORT)
            assert counts(pool.stats()) == {"running": 1, "cancelled": 1}
            hold.release()

    asyncio.run(main())


def test_cancellations_race_with_results(seed: int) -> None:
    """Whatever the moment: each item is accounted for, and the next call gets its own result."""
    rng = random.Random(seed)

    async def main(pool: WorkerPool[Any]) -> int:
        ended = 0
        for number in range(200):
            task = asyncio.ensure_future(pool.acall(number))
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            task.cancel()
            try:
                assert await task == number * number
                ended += 1
            except asyncio.CancelledError:
                pass
        assert await pool.acall(7) == 49
        return ended

    with pool_of(2, Square, queue_size=1) as pool:
        ended = asyncio.run(main(pool))
        wait_until(lambda: pool.stats().accepted == pool.stats().succeeded + pool.stats().cancelled)
        assert pool.stats().succeeded >= ended + 1


# The pool ends


@each
def test_a_pool_that_does_not_run(how: Calls) -> None:
    pool = pool_of()
    with pytest.raises(PoolNotRunning):
        how(pool, Give(1))
    with pool:
        assert how(pool, Give(1)) == 1
    with pytest.raises(PoolNotRunning):
        how(pool, Give(1))


@each
def test_a_broken_pool(how: Calls) -> None:
    """The crash is raised by the call whose item it was; the pool is lost with its only worker."""
    pool = pool_of(max_restarts=0)
    pool.start()
    with pytest.raises((SystemExit, BrokenPool)):
        pool.call(Give(SystemExit()))
    wait_until(lambda: "broken" in repr(pool))
    with pytest.raises(BrokenPool):
        how(pool, Give(1))
    pool.shutdown()


@pytest.mark.parametrize("how", [call, timed, acall])
def test_breakage_while_a_call_waits(how: Calls) -> None:
    pool = pool_of(max_restarts=0, queue_size=4)
    pool.start()
    hold = Hold(SystemExit())
    results = pool.map([hold])
    assert hold.reached.wait(LONG)

    def told() -> BrokenPool:
        with pytest.raises(BrokenPool) as caught:
            how(pool, Give(1))
        return caught.value

    callers = start_threads(*[told] * 3)
    wait_until(lambda: pool.stats().queued == 3)
    hold.release()
    assert len(set(map(id, callers.join()))) == 3  # each has an exception object of its own
    with pytest.raises((SystemExit, BrokenPool)):
        next(results)
    pool.shutdown()
    assert counts(pool.stats()) == {"failed": 4}


@pytest.mark.parametrize("how", [call, timed, acall])
def test_a_shutdown_that_cancels_what_is_pending(how: Calls) -> None:
    pool = pool_of()
    pool.start()
    item = Give("never")

    def told() -> bool:
        with pytest.raises(CancelledError):
            how(pool, item)
        return True

    with held(pool) as (hold,):
        caller = start_threads(told)
        wait_until(lambda: pool.stats().queued == 1)
        assert pool.shutdown(wait=False, cancel_pending=True) == [item]
        assert caller.join() == [True]
        hold.release()
    pool.shutdown()


@pytest.mark.parametrize("how", [call, timed, acall])
def test_a_shutdown_finishes_what_was_accepted(how: Calls) -> None:
    pool = pool_of()
    pool.start()
    with held(pool) as (hold,):
        caller = start_threads(lambda: how(pool, Give("in time")))
        wait_until(lambda: pool.stats().queued == 1)
        pool.shutdown(wait=False)
        hold.release()
        assert caller.join() == ["in time"]
    pool.shutdown()


def test_a_call_that_waits_for_room_when_the_pool_ends() -> None:
    pool = pool_of(1, queue_size=1)
    pool.start()

    def told() -> str:
        try:
            return str(pool.call(Give("done")))
        except PoolNotRunning:
            return "refused"

    with held(pool) as (hold,):
        callers = start_threads(told, told, told)
        wait_until(lambda: pool.stats().queued == 1)
        pool.shutdown(wait=False)
        wait_until(lambda: sum(thread.is_alive() for thread in callers.threads) == 1)
        hold.release()
        assert sorted(callers.join()) == ["done", "refused", "refused"]
    pool.shutdown()


# From a worker of the pool


def call_in_worker(pool: WorkerPool[Any]) -> Any:
    return pool.call(Give("child"))


def acall_in_worker(pool: WorkerPool[Any]) -> Any:
    return acall(pool, Give("child"))


@pytest.mark.parametrize("inner", [call_in_worker, acall_in_worker])
def test_the_last_worker_cannot_call_its_own_pool(inner: Callable[[WorkerPool[Any]], Any]) -> None:
    with pool_of() as pool:
        with pytest.raises(RuntimeError, match="worker"):
            pool.call(lambda: inner(pool))
        assert pool.call(Give("next")) == "next"


@pytest.mark.parametrize("inner", [call_in_worker, acall_in_worker])
def test_a_worker_may_call_its_own_pool_while_another_is_left(inner: Callable[[WorkerPool[Any]], Any]) -> None:
    with pool_of(2) as pool:
        for _ in range(3):
            assert pool.call(lambda: inner(pool)) == "child"


def test_a_chain_of_calls_uses_all_workers_but_is_refused_one_more() -> None:
    def nested(depth: int) -> int:
        return 0 if depth == 0 else 1 + pool.call(lambda: nested(depth - 1))

    with pool_of(3) as pool:
        assert pool.call(lambda: nested(2)) == 2
        with pytest.raises(RuntimeError, match="worker"):
            pool.call(lambda: nested(3))
        # The one that came to wait last was refused, of whatever depth; the others go on, and need a worker.
        wait_until(lambda: pool.stats().running == pool.stats().queued == 0)
        assert pool.call(lambda: nested(2)) == 2


def test_a_call_with_a_timeout_from_the_last_worker_times_out() -> None:
    ran: list[int] = []

    def parent() -> str:
        try:
            pool.call(lambda: ran.append(1), timeout=SHORT)
        except TimeoutError:
            return "timed out"
        return "done"

    with pool_of() as pool:
        assert pool.call(parent) == "timed out"
        assert counts(pool.stats()) == {"succeeded": 1, "cancelled": 1}
    assert ran == []


def test_a_call_from_a_worker_does_not_wait_for_room() -> None:
    """`do` from the pool's own workers bypasses the bound; so does a call, or two workers could block each other."""
    with pool_of(2, queue_size=1) as pool, held(pool) as (hold,):
        hold_other = Hold()

        def parent() -> list[str]:
            assert hold_other.opened.wait(LONG)
            return [pool.call(Give("child")) for _ in range(2)]

        caller = start_threads(lambda: pool.call(parent))
        wait_until(lambda: pool.stats().running == 2)
        queued = pool.do(Job())  # the queue is full
        hold_other.release()
        wait_until(lambda: pool.stats().queued == 2)
        hold.release()
        assert caller.join() == [["child", "child"]]
        assert queued.wait(LONG)


def test_a_call_of_another_pool() -> None:
    with pool_of() as inner, pool_of() as outer:
        assert outer.call(lambda: inner.call(Give("inner"))) == "inner"


# The rest


def test_process_runs_in_the_context_of_the_caller() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    with pool_of(1, context=True) as pool:
        variable.set("the caller's")
        assert pool.call(variable.get) == "the caller's"

        async def main() -> str:
            variable.set("the task's")
            return str(await pool.acall(variable.get))

        assert asyncio.run(main()) == "the task's"
        assert pool.call(lambda: variable.set("discarded")) is not None
        assert pool.call(variable.get) == "the caller's"


def test_nothing_is_kept_after_a_call() -> None:
    class Value:
        pass

    class Same(Worker[Any]):
        def process(self, item: Any) -> Any:
            references.append(weakref.ref(item))
            result = Value()
            references.append(weakref.ref(result))
            return result

    references: list[weakref.ref[Any]] = []

    def is_gone() -> bool:
        gc.collect()
        return all(reference() is None for reference in references)

    with pool_of(1, Same) as pool:
        pool.call(Value())
        assert acall(pool, Value()) is not None
        assert len(references) == 4
        wait_until(is_gone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loops_on_several_threads(backend: str) -> None:
    async def main() -> list[int]:
        async def one(number: int) -> int:
            return await pool.acall(number)

        return await together(*[lambda number=number: one(number) for number in range(30)])  # type: ignore[misc]

    with pool_of(2, Square) as pool:
        loops = [Elsewhere(backend, main) for _ in range(3)]
        assert [loop.join() for loop in loops] == [[number * number for number in range(30)]] * 3


def test_acall_is_a_coroutine_function_as_ado() -> None:
    """What asyncio.create_task and trio's start_soon take."""

    async def main() -> None:
        with pool_of() as pool:
            made: Awaitable[Any] = pool.acall(Give(1))
            assert asyncio.iscoroutine(made)
            assert await asyncio.create_task(made) == 1

    asyncio.run(main())
