"""Waiting inside a worker for work of its own pool is allowed while another worker is left to do it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ringmill import BrokenPool, Operation, Outcome, PoolExecutor, Task, Worker, WorkerPool
from tests.loops import BACKENDS, let_others_run, run_loop, together
from tests.threads import LONG, wait_until


class Number(Operation):
    def __init__(self, number: int) -> None:
        self.number = number


class Calling(Worker[Operation]):
    """Calls what the test wants to happen inside a worker."""

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self.call = call

    def process(self, op: Operation) -> None:
        self.call(op)


def await_in_a_loop(pool: Any, op: Operation) -> bool:
    async def main() -> bool:
        return await pool.do(op) is op

    return asyncio.run(main())


def aget_in_a_loop(pool: Any, op: Operation) -> bool:
    async def main() -> bool:
        return await pool.execute([op]).aget() is op

    return asyncio.run(main())


WAITS = [
    pytest.param(lambda pool, op: pool.do(op).wait(), id="wait"),
    pytest.param(lambda pool, op: pool.execute([op]).get() is op, id="stream-get"),
    pytest.param(lambda pool, op: list(pool.execute([op])) == [op], id="stream-for"),
    pytest.param(lambda pool, op: pool.execute([op]).get_many() == [op], id="stream-get_many"),
    pytest.param(lambda pool, op: list(pool.wrap([op])) == [op], id="wrap"),
    pytest.param(await_in_a_loop, id="await"),
    pytest.param(aget_in_a_loop, id="stream-aget"),
]


def stream_get(pool: Any, op: Operation, seconds: float) -> bool:
    """`get` that says whether something came in time."""
    try:
        return pool.execute([op]).get(seconds) is op
    except queue.Empty:
        return False


def task_result(pool: Any, op: Operation, seconds: float) -> bool:
    task = Task(lambda: None)
    try:
        pool.do(task).result(seconds)
    except TimeoutError:
        return False
    return True


TIMED_WAITS = [
    pytest.param(lambda pool, op, seconds: pool.do(op).wait(seconds), id="wait"),
    pytest.param(stream_get, id="stream-get"),
    pytest.param(task_result, id="task-result"),
]


@pytest.mark.parametrize("wait", WAITS)
def test_the_last_worker_cannot_wait_for_its_own_pool(wait: Callable[[Any, Operation], bool]) -> None:
    child = Number(1)

    def process(op: Number) -> None:
        if op is not child:
            wait(pool, child)

    with WorkerPool([Calling(process)]) as pool:
        parent = pool.do(Number(0))
        assert parent.wait(LONG)
    assert (parent.outcome, type(parent.error)) == (Outcome.FAILED, RuntimeError)
    assert child.wait(LONG)  # accepted is accepted


@pytest.mark.parametrize("wait", WAITS)
def test_a_worker_may_wait_while_another_is_left(wait: Callable[[Any, Operation], bool]) -> None:
    child = Number(1)
    saw: list[bool] = []

    def process(op: Number) -> None:
        if op is not child:
            saw.append(wait(pool, child))

    with WorkerPool([Calling(process) for _ in range(2)]) as pool:
        for _ in range(3):
            assert pool.do(Number(0)).wait(LONG)
            child.reset()
    assert saw == [True] * 3


@pytest.mark.parametrize("wait", TIMED_WAITS)
def test_a_wait_with_a_timeout_ends_by_itself(wait: Callable[[Any, Operation, float], bool]) -> None:
    """The only worker waits for its own pool with a timeout: no RuntimeError, it times out."""
    saw: list[bool] = []

    def process(op: Any) -> None:
        if isinstance(op, Number) and op.number == 0:
            saw.append(wait(pool, Number(1), 0.05))

    with WorkerPool([Calling(process)]) as pool:
        parent = pool.do(Number(0))
        assert parent.wait(LONG)
        parent.check()
    assert saw == [False]


@pytest.mark.parametrize("wait", TIMED_WAITS)
def test_a_wait_with_a_timeout_succeeds_with_another_worker(wait: Callable[[Any, Operation, float], bool]) -> None:
    saw: list[bool] = []

    def process(op: Any) -> None:
        if isinstance(op, Task):
            op.run()
        elif op.number == 0:
            saw.append(wait(pool, Number(1), LONG))

    with WorkerPool([Calling(process) for _ in range(2)]) as pool:
        parent = pool.do(Number(0))
        assert parent.wait(LONG)
        parent.check()
    assert saw == [True]


def test_a_worker_that_waits_with_a_timeout_is_left_to_the_others() -> None:
    """One waits with a timeout, so another may wait without one: the first comes back and does its work."""
    waiting = threading.Event()
    children = [Number(1), Number(2)]

    def process(op: Number) -> None:
        if op.number == 10:
            waiting.set()
            assert not Number(99).wait(0.01)
            never.wait(0.2)
        elif op.number == 20:
            assert waiting.wait(LONG)
            assert pool.do(children[0]).wait()

    never = Number(3)
    with WorkerPool([Calling(process) for _ in range(2)]) as pool:
        first, second = pool.do(Number(10)), pool.do(Number(20))
        pool.do(never)
        for op in (first, second, never, children[0]):
            assert op.wait(LONG)
            op.check()


def test_of_workers_that_all_wait_the_last_is_refused() -> None:
    """Three workers wait for an operation that only a fourth could do."""
    child = Number(1)
    meet = threading.Barrier(3)
    refused: list[RuntimeError] = []

    def process(op: Number) -> None:
        if op is not child:
            meet.wait(LONG)
            try:
                assert child.wait()
            except RuntimeError as error:
                refused.append(error)
                raise

    with WorkerPool([Calling(process) for _ in range(3)]) as pool:
        stream = pool.execute([Number(0), Number(0), Number(0), child])
        outcomes = {id(op): op.outcome for op in stream}
    assert len(refused) == 1
    assert sorted(outcome.name for outcome in outcomes.values()) == ["FAILED"] + ["SUCCEEDED"] * 3
    assert outcomes[id(child)] is Outcome.SUCCEEDED


def test_a_look_is_no_wait() -> None:
    saw: list[Any] = []
    child = Number(1)

    def process(op: Number) -> None:
        if op.number:
            return
        saw.append(op.wait(0))
        pool.do(child)
        saw.append(child.wait(timeout=0))
        stream = pool.execute([Number(2)])
        try:
            stream.get(timeout=0)
        except queue.Empty:
            saw.append("empty")

    with WorkerPool([Calling(process)]) as pool:
        parent = pool.do(Number(0))
        assert parent.wait(LONG)
        parent.check()
        assert child.wait(LONG)
    assert saw == [False, False, "empty"]


def test_waiting_for_another_pool_is_allowed() -> None:
    with WorkerPool([Calling(lambda op: None)], name="inner") as inner:
        came: list[int] = []

        def process(op: Number) -> None:
            came.extend(child.number for child in inner.execute([Number(3)]))

        with WorkerPool([Calling(process)], name="outer") as outer:
            assert outer.do(Number(0)).wait(LONG)
    assert came == [3]


# Several waits of one worker


class Gate(Operation):
    """What an operation does is given with it."""

    def __init__(self, act: Callable[[], Any] | None = None) -> None:
        self.act = act


def act(op: Gate) -> None:
    if op.act is not None:
        op.act()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_worker_counts_as_waiting_until_all_that_its_tasks_await_has_come(backend: str) -> None:
    """One worker's loop awaits two operations. When the first has come, the other worker must not wait as well."""
    refused: list[RuntimeError] = []
    both_wait, first_came = threading.Event(), threading.Event()

    def parent() -> None:
        first, blocker, second = Gate(lambda: both_wait.wait(LONG)), Gate(wait_as_well), Gate()
        for op in (first, blocker, second):
            pool.do(op)

        async def await_first() -> None:
            await first
            first_came.set()

        async def await_second() -> None:
            await second

        async def tell() -> None:
            await let_others_run()
            both_wait.set()

        run_loop(backend, lambda: together(await_first, await_second, tell))

    def wait_as_well() -> None:
        assert first_came.wait(LONG)
        try:
            pool.do(Gate()).wait()
        except RuntimeError as error:
            refused.append(error)

    with WorkerPool([Calling(act) for _ in range(2)]) as pool:
        op = pool.do(Gate(parent))
        assert op.wait(LONG)
        op.check()
    assert len(refused) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_other_worker_waits_before_the_loop_has_seen_that_the_first_has_come(backend: str) -> None:
    """The loop is busy meanwhile: what has come to one of its tasks does not free the worker for other work."""
    refused: list[RuntimeError] = []
    refusal = threading.Event()

    def parent() -> None:
        first, blocker, second = Gate(lambda: may_begin.wait(LONG)), Gate(wait_as_well), Gate()
        for op in (first, blocker, second):
            pool.do(op)

        async def await_one(op: Gate) -> None:
            await op

        async def busy() -> None:
            await let_others_run()
            may_begin.set()
            assert refusal.wait(LONG)  # blocks the loop

        async def wait_for_first() -> None:
            await await_one(first)

        async def wait_for_second() -> None:
            await await_one(second)

        run_loop(backend, lambda: together(wait_for_first, wait_for_second, busy))

    def wait_as_well() -> None:
        try:
            pool.do(Gate()).wait()
        except RuntimeError as error:
            refused.append(error)
        finally:
            refusal.set()

    may_begin = threading.Event()

    with WorkerPool([Calling(act) for _ in range(2)]) as pool:
        op = pool.do(Gate(parent))
        assert op.wait(LONG)
        op.check()
    assert len(refused) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_awaits_of_one_worker_are_done_by_another(backend: str) -> None:
    """As many tasks as you like may wait, while one worker is left; and the worker is free again when all have come."""
    children = [Gate() for _ in range(300)]

    def parent() -> None:
        async def one(op: Gate) -> None:
            assert await pool.do(op) is op

        run_loop(backend, lambda: together(*[lambda op=op: one(op) for op in children]))  # type: ignore[misc]

    with WorkerPool([Calling(act) for _ in range(2)]) as pool:
        op = pool.do(Gate(parent))
        assert op.wait(LONG)
        op.check()
        # Both are free: each may wait for the other's work in turn.
        for _ in range(4):
            last = pool.do(Gate(lambda: pool.do(Gate()).wait()))
            assert last.wait(LONG)
            last.check()


def test_a_task_that_is_left_behind_does_not_count() -> None:
    """A worker keeps its loop, with a task in it that waits for an operation, from one call of process to the next."""
    loop = asyncio.new_event_loop()
    held = threading.Event()
    blocked = Gate(lambda: held.wait(LONG))

    def leave_a_task() -> None:
        pool.do(never)  # the other worker is held, so it is queued

        async def main() -> None:
            tasks.append(asyncio.ensure_future(waits()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        async def waits() -> None:
            await never

        loop.run_until_complete(main())

    never = Gate()
    tasks: list[Any] = []
    with WorkerPool([Calling(act) for _ in range(2)]) as pool:
        pool.do(blocked)
        wait_until(lambda: pool.stats().running == 1)
        first = pool.do(Gate(leave_a_task))  # by the other worker
        assert first.wait(LONG)
        first.check()
        held.set()
        for _ in range(4):
            op = pool.do(Gate(lambda: pool.do(Gate()).wait()))
            assert op.wait(LONG)
            op.check()
    for task in tasks:
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()


def test_an_await_that_is_cancelled_counts_no_more() -> None:
    """One worker's loop gives up on an operation: it is free again for what the other waits for."""
    gave_up = threading.Event()
    child = Gate()

    def parent() -> None:
        unreachable = pool.do(Gate(lambda: gave_up.wait(LONG)))

        async def main() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(_await(unreachable), 0.02)

        asyncio.run(main())
        gave_up.set()

    async def _await(op: Gate) -> None:
        await op

    with WorkerPool([Calling(act) for _ in range(2)]) as pool:
        op = pool.do(Gate(parent))
        assert op.wait(LONG)
        op.check()
        last = pool.do(Gate(lambda: pool.do(child).wait()))
        assert last.wait(LONG)
        last.check()
    assert child.outcome is Outcome.SUCCEEDED


# Operations that wait for each other, though there are workers enough


def test_an_operation_cannot_wait_for_itself() -> None:
    ops: list[Gate] = []
    with WorkerPool([Calling(act) for _ in range(3)]) as pool:
        ops.append(Gate(lambda: ops[0].wait()))
        pool.do(ops[0])
        assert ops[0].wait(LONG)
    assert isinstance(ops[0].error, RuntimeError)


def test_an_operation_may_wait_for_itself_with_a_timeout() -> None:
    saw: list[bool] = []
    ops: list[Gate] = []
    with WorkerPool([Calling(act)]) as pool:
        ops.append(Gate(lambda: saw.append(ops[0].wait(0.01))))
        assert pool.do(ops[0]).wait(LONG)
    assert saw == [False]


@pytest.mark.parametrize("length", [2, 3, 5])
@pytest.mark.parametrize("tasks", [False, True])
def test_a_circle_of_operations_that_wait_for_each_other_is_refused_once(length: int, tasks: bool) -> None:
    """Each runs, on a worker of its own, and waits for the next; spare workers do not help."""
    meet = threading.Barrier(length)
    refused: list[RuntimeError] = []

    def wait_for(index: int) -> None:
        meet.wait(LONG)
        other = ops[(index + 1) % length]
        try:
            if tasks:
                asyncio.run(await_both(other))
            else:
                other.wait()
        except RuntimeError as error:
            refused.append(error)

    async def await_both(op: Gate) -> None:
        async def one(awaited: Gate) -> None:
            await awaited

        await asyncio.gather(one(op), one(pool.do(Gate())))

    ops = [Gate(lambda index=index: wait_for(index)) for index in range(length)]  # type: ignore[misc]
    with WorkerPool([Calling(act) for _ in range(length + 2)]) as pool:
        for op in ops:
            pool.do(op)
        for op in ops:
            assert op.wait(LONG)
            op.check()
    assert len(refused) == 1


def test_a_chain_of_waits_is_no_circle() -> None:
    """Depth first: each waits for the next, and there is a worker more than there are waits."""
    depth = 6

    def go(left: int) -> None:
        if left:
            op = pool.do(Gate(lambda: go(left - 1)))
            assert op.wait()
            op.check()

    with WorkerPool([Calling(act) for _ in range(depth + 1)]) as pool:
        for _ in range(10):
            op = pool.do(Gate(lambda: go(depth)))
            assert op.wait(LONG)
            op.check()


# When workers are lost


class Dying(Worker[Gate]):
    def process(self, op: Gate) -> None:
        act(op)


def die() -> None:
    raise SystemExit


def test_the_pool_lives_while_its_last_worker_waits_with_a_timeout() -> None:
    waits, lost = threading.Event(), threading.Event()
    child = Gate()

    def parent() -> None:
        waits.set()
        assert pool.do(child).wait(0.3) is False

    def dies() -> None:
        assert waits.wait(LONG)
        lost.set()
        die()

    pool = WorkerPool([Dying() for _ in range(2)], max_restarts=0)
    pool.start()
    pool.do(Gate(dies))
    op = pool.do(Gate(parent))
    assert op.wait(LONG)
    op.check()
    assert lost.is_set()
    later = pool.do(Gate())
    assert later.wait(LONG)
    assert later.check() is later
    assert child.wait(LONG)
    pool.shutdown()


@pytest.mark.parametrize("kind", ["thread", "tasks"])
def test_the_pool_is_broken_when_all_that_are_left_wait_without_a_timeout(kind: str) -> None:
    """The one that could have done it is lost: the wait ends, since its operation fails with BrokenPool."""
    waits = threading.Event()
    child, other = Gate(), Gate()
    outcomes: list[Any] = []

    def parent() -> None:
        pool.do(child)
        pool.do(other)
        waits.set()
        if kind == "thread":
            child.wait()
            assert other.wait(LONG)
        else:
            asyncio.run(await_both())
        outcomes.extend([child.error, other.error])

    async def await_both() -> None:
        async def one(op: Gate) -> None:
            await op

        await asyncio.gather(one(child), one(other))

    def dies() -> None:
        assert waits.wait(LONG)
        wait_until(lambda: is_waiting(pool))
        die()

    pool = WorkerPool([Dying() for _ in range(2)], max_restarts=0)
    pool.start()
    pool.do(Gate(dies))
    op = pool.do(Gate(parent))
    assert op.wait(LONG)
    assert [type(error) for error in outcomes] == [BrokenPool, BrokenPool]
    assert outcomes[0] is not outcomes[1]
    with pytest.raises(BrokenPool):
        pool.do(Gate())
    pool.shutdown()


def is_waiting(pool: WorkerPool[Any]) -> bool:
    """Whether the worker is in its wait, as far as can be seen: it submitted, and a moment passed."""
    run = pool._run
    assert run is not None
    return bool(run.core._count_waiting())


# Executors


def test_a_future_may_be_waited_for_with_a_timeout_inside_its_own_executor() -> None:
    def job() -> list[str]:
        said = []
        for wait in (lambda f: f.result(timeout=0.02), lambda f: f.exception(timeout=0.02)):
            future = executor.submit(pow, 2, 3)
            try:
                wait(future)
            except TimeoutError:
                said.append("timed out")
            future.cancel()
        results = executor.map(abs, [-1], timeout=0.02)
        try:
            next(results)
        except TimeoutError:
            said.append("timed out")
        return said

    with PoolExecutor(1) as executor:
        assert executor.submit(job).result(LONG) == ["timed out"] * 3


def test_a_future_waited_for_without_a_timeout_by_the_last_thread_is_refused() -> None:
    with PoolExecutor(1) as executor:
        future = executor.submit(lambda: executor.submit(pow, 2, 3).result())
        with pytest.raises(RuntimeError, match="no worker is left"):
            future.result(LONG)
