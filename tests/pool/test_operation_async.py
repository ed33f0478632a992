"""`await op` by tasks of several event loops and by threads; `ado` with a full queue."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError

import anyio
import pytest

from ringmill import Operation, OperationReused, Outcome, PoolNotRunning, Task, TaskWorker, Worker, WorkerPool
from tests.loops import BACKENDS, Elsewhere, let_others_run, run_loop, together
from tests.threads import start_threads

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


class Job(Operation):
    def __init__(self, number: int = 0) -> None:
        self.number = number


class Gated(Worker[Job]):
    """Each operation waits at the gate."""

    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate
        self.begun = threading.Event()

    def process(self, op: Job) -> None:
        self.begun.set()
        self.gate.wait()
        op.number += 1


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_await_gives_the_operation_when_it_is_done(backend: str, gate: threading.Event) -> None:
    async def main() -> None:
        with WorkerPool([Gated(gate)]) as pool:
            op = pool.do(Job(1))

            async def open_gate() -> None:
                await let_others_run()
                assert op.outcome is Outcome.PENDING
                gate.set()

            async def wait() -> Job:
                return await op

            results = await together(wait, wait, open_gate)
            assert results[:2] == [op, op]
            assert op.number == 2
            assert await op is op  # done already

    run_loop(backend, main)


def test_threads_and_tasks_of_several_loops_wait_for_one_operation(backend: str, gate: threading.Event) -> None:
    with WorkerPool([Gated(gate)]) as pool:
        op = pool.do(Job())
        arrived = threading.Barrier(7)

        async def wait() -> Outcome:
            arrived.wait()
            return (await op).outcome

        def wait_in_thread() -> bool:
            arrived.wait()
            return op.wait()

        loops = [Elsewhere(kind, wait) for kind in ("asyncio", "trio", backend)]
        threads = start_threads(*[wait_in_thread] * 3)
        arrived.wait()
        gate.set()
        assert [loop.join() for loop in loops] == [Outcome.SUCCEEDED] * 3
        assert threads.join() == [True] * 3


def test_a_task_gives_its_result_or_raises(backend: str) -> None:
    async def main() -> None:
        with WorkerPool([TaskWorker()]) as pool:
            assert await pool.do(Task(len, "abc")) == 3
            with pytest.raises(ValueError, match="invalid literal"):
                await (await pool.ado(Task(int, "x")))
            cancelled = Task(len, "abc")
            cancelled.cancel()
            with pytest.raises(CancelledError):
                await cancelled

    run_loop(backend, main)


def test_a_failed_operation_is_given_and_does_not_raise(backend: str) -> None:
    class Failing(Worker[Job]):
        def process(self, op: Job) -> None:
            raise ValueError(op.number)

    async def main() -> None:
        with WorkerPool([Failing()]) as pool:
            op = await pool.do(Job(3))
            assert op.outcome is Outcome.FAILED
            assert isinstance(op.error, ValueError)

    run_loop(backend, main)


def test_a_cancelled_await_leaves_the_operation_alone(backend: str, gate: threading.Event) -> None:
    async def main() -> None:
        with WorkerPool([Gated(gate)]) as pool:
            op = pool.do(Job())
            for _ in range(50):
                with anyio.move_on_after(0):
                    await op
            assert op.outcome is Outcome.PENDING
            gate.set()
            assert (await op).outcome is Outcome.SUCCEEDED

    run_loop(backend, main)


def test_a_worker_that_awaits_its_own_pools_work_gets_an_error(backend: str) -> None:
    errors: list[BaseException] = []

    def process(pool: WorkerPool[Task[None]]) -> None:
        async def main() -> None:
            inner: Task[int] = Task(len, "abc")
            pool.do(inner)
            try:
                await inner
            except RuntimeError as error:
                errors.append(error)

        run_loop(backend, main)

    with WorkerPool([TaskWorker()]) as pool:
        pool.do(Task(process, pool)).result()
    assert "no worker is left" in str(errors[0])


def test_an_operation_that_only_its_waiting_task_knows_is_collected(backend: str) -> None:
    if backend == "trio":
        pytest.skip("trio's tasks are known to their run")

    async def wait_for(op: Job) -> None:
        await op

    async def main() -> None:
        op = Job()
        gone = weakref.ref(op)
        task = asyncio.get_running_loop().create_task(wait_for(op))
        await let_others_run()
        task._log_destroy_pending = False  # it is meant to be destroyed
        del op, task
        gc.collect()
        assert gone() is None

    asyncio.run(main())


def test_ado_waits_for_room_and_the_loop_goes_on(backend: str, gate: threading.Event) -> None:
    async def main() -> None:
        worker = Gated(gate)
        with WorkerPool([worker], queue_size=1) as pool:
            await pool.ado(Job())
            worker.begun.wait()
            await pool.ado(Job())  # fills the queue
            handed = anyio.Event()

            async def submit() -> None:
                op = Job(5)
                assert await pool.ado(op) is op
                handed.set()

            async with anyio.create_task_group() as group:
                group.start_soon(submit)
                await let_others_run()
                assert not handed.is_set()
                gate.set()
                await handed.wait()

    run_loop(backend, main)


def test_a_cancelled_ado_leaves_the_operation_new(backend: str, gate: threading.Event) -> None:
    async def main() -> None:
        worker = Gated(gate)
        with WorkerPool([worker], queue_size=1) as pool:
            pool.do(Job())
            worker.begun.wait()
            pool.do(Job())
            late = Job()
            for _ in range(20):
                with anyio.move_on_after(0):
                    await pool.ado(late)
            stats = pool.stats()
            assert (stats.accepted, stats.queued) == (2, 1)
            gate.set()
            await (await pool.ado(late))
            assert late.number == 1

    run_loop(backend, main)


def test_ado_that_waits_when_the_pool_stops_is_refused(backend: str, gate: threading.Event) -> None:
    async def main() -> None:
        worker = Gated(gate)
        pool = WorkerPool([worker], queue_size=1)
        pool.start()
        pool.do(Job())
        worker.begun.wait()
        pool.do(Job())
        late = Job()

        async def submit() -> None:
            with pytest.raises(PoolNotRunning):
                await pool.ado(late)

        async def stop() -> None:
            await let_others_run()
            pool.shutdown(wait=False)

        await together(submit, stop)
        gate.set()
        pool.shutdown()
        assert late.outcome is Outcome.PENDING
        late.reset()  # new: does nothing

    run_loop(backend, main)


def test_ado_checks_its_argument(backend: str) -> None:
    async def main() -> None:
        pool = WorkerPool([TaskWorker()])
        with pytest.raises(PoolNotRunning):
            await pool.ado(Task(len, "a"))
        with pool:
            with pytest.raises(TypeError, match="op must be an Operation"):
                await pool.ado("a")  # type: ignore[type-var]
            done = pool.do(Task(len, "a"))
            await done
            with pytest.raises(OperationReused):
                await pool.ado(done)

    run_loop(backend, main)


def test_a_cancelled_ado_is_cancelled_though_its_operation_was_too(backend: str, gate: threading.Event) -> None:
    late = Job()

    async def main() -> None:
        async with WorkerPool([Gated(gate)], queue_size=1) as pool:
            pool.do(Job())
            while pool.stats().running == 0:
                await anyio.sleep(0.001)
            pool.do(Job())
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(hand_over, pool)
                    await let_others_run()
                    assert late.cancel()
                    scope.cancel()
            gate.set()

    async def hand_over(pool: WorkerPool[Job]) -> None:
        await pool.ado(late)
        raise AssertionError("the cancellation was lost")

    run_loop(backend, main)
    assert late.outcome is Outcome.CANCELLED


def test_a_woken_waiter_returns_true_although_the_operation_was_reset(backend: str, gate: threading.Event) -> None:
    """Tasks and threads: none of them waits for a life that may never be."""
    woken: list[str] = []

    async def main() -> None:
        with WorkerPool([Gated(gate)]) as pool:
            op = pool.do(Job())

            async def wait(name: str) -> None:
                assert await op is op
                woken.append(name)
                if len(woken) == 1:
                    op.reset()

            async with anyio.create_task_group() as group:
                for name in "abc":
                    group.start_soon(wait, name)
                await let_others_run()
                gate.set()

    run_loop(backend, main)
    assert sorted(woken) == ["a", "b", "c"]


def test_a_waiting_task_of_a_worker_is_destroyed_elsewhere(backend: str, gate: threading.Event) -> None:
    """The worker that it made wait is one that takes work again."""
    if backend == "trio":
        pytest.skip("trio's run does not end before its tasks have")
    kept: list[asyncio.Task[Job]] = []
    awaited = Job()

    async def wait() -> Job:
        return await awaited

    def leave_a_task_behind() -> None:
        loop = asyncio.new_event_loop()
        kept.append(loop.create_task(wait()))
        loop.run_until_complete(asyncio.sleep(0))
        kept[0]._log_destroy_pending = False  # type: ignore[attr-defined]  # it is meant to be destroyed
        loop.close()

    class Both(Worker[Operation]):
        def process(self, op: Operation) -> None:
            if isinstance(op, Task):
                op.run()
            else:
                gate.wait()

    with WorkerPool([Both(), Both()]) as pool:
        try:
            pool.do(awaited)
            pool.do(Task(leave_a_task_behind)).result()
            assert len(kept) == 1
            kept.clear()
            gc.collect()
            # It may wait once more: not counted as one that waits already, and told that no worker is left for it.
            started = threading.Event()
            inner = Job()

            def wait_again() -> None:
                started.set()
                pool.do(inner).wait()

            last = pool.do(Task(wait_again))
            started.wait()
        finally:
            gate.set()
        last.result()
    assert inner.outcome is Outcome.SUCCEEDED
