"""Threads that fail to start, that run although `start` raised, or that end early: no thread waits for them.

That is what threading.py does where memory is short, and what happens then in our own code. Made here by hand, at each
place in turn; test_out_of_memory.py fails the allocations themselves.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from ringmill import BrokenPool, Operation, Outcome, Worker, WorkerInitError, WorkerPool
from ringmill.supervisor import Supervisor
from tests.threads import LONG, wait_until

pytestmark = [
    pytest.mark.watchdog(60),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),  # they die of what we raise
]


class Job(Operation):
    def __init__(self, error: BaseException | None = None) -> None:
        self.error_to_raise = error


class JobWorker(Worker[Job]):
    def __init__(self) -> None:
        self.inits = 0
        self.cleanups = 0

    def init(self) -> None:
        self.inits += 1

    def process(self, op: Job) -> None:
        if op.error_to_raise is not None:
            raise op.error_to_raise

    def cleanup(self) -> None:
        self.cleanups += 1


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "SLICE", 0.02)


def works_again(pool: WorkerPool[Job], workers: list[JobWorker]) -> None:
    """After its failed start: it ends, every init was cleaned up, and it can be started and used."""
    pool.shutdown()
    assert [worker.cleanups for worker in workers] == [worker.inits for worker in workers]
    with pool:
        for op in [Job() for _ in range(10)]:
            assert pool.do(op).wait(LONG)
    assert pool.stats().succeeded == 10
    assert [worker.cleanups for worker in workers] == [worker.inits for worker in workers]


def fail_thread(monkeypatch: pytest.MonkeyPatch, which: int, begins: bool) -> None:
    """The start of that thread of the pool raises, once; `begins`: the thread has been started all the same."""
    started = 0
    start = threading.Thread.start

    def start_or_raise(thread: threading.Thread) -> None:
        nonlocal started
        if not thread.name.startswith("ringmill"):
            start(thread)
            return
        started += 1
        if started != which or begins:
            start(thread)
        if started == which:
            raise MemoryError

    monkeypatch.setattr(threading.Thread, "start", start_or_raise)


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_thread_whose_start_raises(which: int, begins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [JobWorker() for _ in range(3)]
    pool = WorkerPool(workers)
    fail_thread(monkeypatch, which, begins)
    with pytest.raises(MemoryError):
        pool.start()
    works_again(pool, workers)


def test_a_thread_that_begins_after_its_start_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    may_begin = threading.Event()
    ended = []
    run = threading.Thread.run

    def run_later(thread: threading.Thread) -> None:
        if thread.name == "ringmill-1":
            may_begin.wait(LONG)
        run(thread)
        ended.append(thread.name)

    monkeypatch.setattr(threading.Thread, "run", run_later)
    workers = [JobWorker() for _ in range(2)]
    pool = WorkerPool(workers)
    fail_thread(monkeypatch, 2, True)
    with pytest.raises(MemoryError):
        pool.start()
    waiter = threading.Timer(0.1, may_begin.set)  # the shutdown joins it
    waiter.start()
    pool.shutdown()
    waiter.join()
    wait_until(lambda: {"ringmill-0", "ringmill-1"} <= set(ended))
    assert workers[1].inits == 0  # no thread would have called its cleanup
    works_again(pool, workers)


@pytest.mark.parametrize("place", ["thread", "policy"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_thread_that_ends_before_it_reports(which: int, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [JobWorker() for _ in range(2)]
    pool = WorkerPool(workers)
    with monkeypatch.context() as patch:
        run, live = threading.Thread.run, Supervisor._live

        def broken_run(thread: threading.Thread) -> None:
            if thread.name == f"ringmill-{which}":
                raise MemoryError
            run(thread)

        def broken_live(run: Supervisor, worker_loop: Any) -> None:
            if worker_loop.index == which:
                raise MemoryError
            live(run, worker_loop)

        if place == "thread":
            patch.setattr(threading.Thread, "run", broken_run)
        else:
            patch.setattr(Supervisor, "_live", broken_live)
        with pytest.raises(WorkerInitError) as raised:
            pool.start()
    assert [worker for worker, _ in raised.value.causes] == [workers[which]]
    works_again(pool, workers)


def test_a_start_that_failed_to_report_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [JobWorker() for _ in range(2)]
    pool = WorkerPool(workers)
    announce = Supervisor._announce
    announced = []

    def announce_later(run: Supervisor, verdict: bool) -> None:
        announced.append(verdict)
        if len(announced) == 1:
            raise MemoryError
        announce(run, verdict)

    monkeypatch.setattr(Supervisor, "_announce", announce_later)
    fail_thread(monkeypatch, 2, False)
    with pytest.raises(MemoryError):
        pool.start()
    assert announced == [False]
    pool.start()  # the run that could not begin is not taken for one that has
    assert pool.do(Job()).wait(LONG)
    works_again(pool, workers)


def test_the_last_worker_fails_to_report_its_retirement(monkeypatch: pytest.MonkeyPatch) -> None:
    def retire(run: Supervisor, worker_loop: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Supervisor, "_retire", retire)
    pool = WorkerPool([JobWorker()], max_restarts=0)
    pool.start()
    ops = [Job(KeyboardInterrupt("a crash")), *(Job() for _ in range(5))]
    stream = pool.execute(ops)
    assert [*stream] == ops
    assert [op.outcome for op in ops] == [Outcome.FAILED] * 6
    assert isinstance(ops[0].error, KeyboardInterrupt)
    assert {type(op.error) for op in ops[1:]} == {BrokenPool}
    with pytest.raises(BrokenPool):
        pool.do(Job())
    pool.shutdown()
    assert pool.stats().failed == 6


def test_a_last_thread_that_cannot_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A joiner does it then."""

    def no_memory(run: Supervisor) -> str:
        if threading.current_thread() in run.threads:
            raise MemoryError
        return "the run"

    monkeypatch.setattr(Supervisor, "__repr__", no_memory)
    workers = [JobWorker() for _ in range(2)]
    pool = WorkerPool(workers)
    pool.start()
    run = pool._run
    assert run is not None
    pool.shutdown(wait=False)
    wait_until(lambda: not run.alive())
    assert not run.core.threads.await_over(0)
    works_again(pool, workers)


@pytest.mark.parametrize("raised", [None, ZeroDivisionError, asyncio.CancelledError])
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_async_with_ends_the_pool_though_no_thread_can_be_started_for_it(
    raised: type[BaseException] | None, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was accepted is finished, or cancelled after an error; the loop is not blocked meanwhile."""
    start = threading.Thread.start
    gate, begun, calls = threading.Event(), threading.Event(), []

    class Held(JobWorker):
        def process(self, op: Job) -> None:
            begun.set()
            assert gate.wait(LONG)

    class Told(WorkerPool[Job]):
        def shutdown(self, *args: Any, **kwargs: Any) -> list[Job]:
            calls.append("shutdown")
            return super().shutdown(*args, **kwargs)

    def start_or_raise(thread: threading.Thread) -> None:
        if thread.name.endswith("-shutdown"):
            raise error
        start(thread)

    workers = [Held()]
    pool = Told(workers)
    ops = [Job() for _ in range(3)]

    async def main() -> None:
        async with pool:
            for op in ops:
                pool.do(op)
            while not begun.is_set():
                await asyncio.sleep(0.001)
            monkeypatch.setattr(threading.Thread, "start", start_or_raise)
            asyncio.get_running_loop().call_later(0.05, gate.set)
            if raised is not None:
                raise raised

    if raised is None:
        asyncio.run(main())
    else:
        with pytest.raises(raised):
            asyncio.run(main())
    rest = Outcome.SUCCEEDED if raised is None else Outcome.CANCELLED
    assert [op.outcome for op in ops] == [Outcome.SUCCEEDED, rest, rest]
    assert workers[0].cleanups == 1
    assert calls == ["shutdown"]
    run = pool._run
    assert run is not None
    assert not run.alive()


def test_async_with_that_is_cancelled_as_it_ends_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not begun is cancelled, and the cancellation goes on when the rest is finished."""
    gate, begun = threading.Event(), threading.Event()

    class Held(JobWorker):
        def process(self, op: Job) -> None:
            begun.set()
            assert gate.wait(LONG)

    start = threading.Thread.start

    def start_or_raise(thread: threading.Thread) -> None:
        if thread.name.endswith("-shutdown"):
            raise RuntimeError("can't start new thread")
        start(thread)

    pool = WorkerPool([Held()])
    ops = [Job() for _ in range(3)]

    async def use() -> None:
        async with pool:
            for op in ops:
                pool.do(op)
            while not begun.is_set():
                await asyncio.sleep(0.001)

    async def main() -> None:
        task = asyncio.create_task(use())
        while "shutting down" not in repr(pool):
            await asyncio.sleep(0.001)
        task.cancel()
        while ops[-1].outcome is Outcome.PENDING:
            await asyncio.sleep(0.001)
        assert not task.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(threading.Thread, "start", start_or_raise)
    asyncio.run(main())
    assert [op.outcome for op in ops] == [Outcome.SUCCEEDED, Outcome.CANCELLED, Outcome.CANCELLED]
