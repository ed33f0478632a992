"""A KeyboardInterrupt on the main thread inside a user's hook is raised by the call that the main thread made.

Raised once what that call began is complete. On any other thread it is logged.

pytest runs tests on the main thread; whatever a hook raises, the test sees where it comes out.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed
from typing import Any

import pytest

from ringmill import Operation, Outcome, PoolExecutor, Retry, Stream, Worker, WorkerPool
from tests.threads import LONG, SHORT, run_threads, start_threads, wait_until


@pytest.fixture(autouse=True, scope="module")
def operations_of_earlier_tests_are_collected() -> None:
    """Otherwise the errors that those tests left unread are logged during these, which check the log."""
    gc.collect()


def by_raise() -> None:
    raise KeyboardInterrupt("from the hook")


def by_signal() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(params=[by_raise, by_signal], ids=["raise", "signal"], autouse=True)
def interrupt(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield request.param
    signal.signal(signal.SIGINT, before)


class Job(Operation):
    """Interrupts the thread that ends it, if it is to."""

    def __init__(self, interrupt: Callable[[], None] | None = None) -> None:
        self.interrupt = interrupt
        self.told = 0

    def done(self) -> None:
        self.told += 1
        if self.interrupt is not None:
            self.interrupt()


class Gated(Worker[Job]):
    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.calls: list[str] = []

    def process(self, op: Job) -> None:
        self.begun.set()
        assert self.gate.wait(LONG)

    def cleanup(self) -> None:
        self.calls.append("cleanup")


class Running:
    """A pool whose worker is held by one operation, with others behind it; the second one interrupts."""

    def __init__(self, interrupt: Callable[[], None], interrupting: int = 1) -> None:
        self.worker = Gated()
        self.pool: WorkerPool[Job] = WorkerPool([self.worker])
        self.pool.start()
        self.held = self.pool.do(Job())
        assert self.worker.begun.wait(LONG)
        self.jobs = [Job(interrupt if 1 <= number <= interrupting else None) for number in range(5)]

    def submit(self) -> None:
        for op in self.jobs:
            self.pool.do(op)

    def open_once_cancelled(self) -> Any:
        def open_gate() -> None:
            wait_until(lambda: all(op.outcome is Outcome.CANCELLED and op.told for op in self.jobs))
            assert self.held.outcome is Outcome.PENDING
            self.worker.gate.set()

        return start_threads(open_gate)

    def check_cancelled(self) -> None:
        assert [op.outcome for op in self.jobs] == [Outcome.CANCELLED] * 5
        assert [op.told for op in self.jobs] == [1] * 5
        assert all(op.wait(0) for op in self.jobs)
        assert self.held.outcome is Outcome.SUCCEEDED
        stats = self.pool.stats()
        assert (stats.accepted, stats.succeeded, stats.cancelled, stats.running) == (6, 1, 5, 0)


def nothing_is_left_over() -> None:
    """What was raised once is not raised by a later call."""
    assert Job().cancel()


@pytest.mark.parametrize("state", ["new", "queued", "delayed"])
def test_cancel(state: str, interrupt: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    class Later(Worker[Job]):
        def process(self, op: Job) -> None:
            raise Retry(delay=3600)

    running = Running(interrupt)
    op = Job(interrupt)
    later = WorkerPool([Later()])
    with later:
        if state == "queued":
            running.pool.do(op)
        elif state == "delayed":
            later.do(op)
            wait_until(lambda: later.stats().delayed == 1)
        with pytest.raises(KeyboardInterrupt):
            op.cancel()
        assert (op.outcome, op.told) == (Outcome.CANCELLED, 1)
        assert op.wait(0)
        assert not op.cancel()
    running.worker.gate.set()
    running.pool.shutdown()
    nothing_is_left_over()
    assert not caplog.records


@pytest.mark.parametrize("interrupting", [1, 4])
def test_shutdown_that_cancels(interrupting: int, interrupt: Callable[[], None]) -> None:
    """Raised when all are cancelled and the one that runs is finished, as if it had come while shutdown waited."""
    running = Running(interrupt, interrupting)
    running.submit()
    opener = running.open_once_cancelled()
    with pytest.raises(KeyboardInterrupt):
        running.pool.shutdown(cancel_pending=True)
    opener.join()
    running.check_cancelled()
    assert running.worker.calls == ["cleanup"]
    assert running.pool.shutdown() == []
    nothing_is_left_over()


def test_shutdown_that_does_not_wait(interrupt: Callable[[], None]) -> None:
    running = Running(interrupt)
    running.submit()
    with pytest.raises(KeyboardInterrupt):
        running.pool.shutdown(wait=False, cancel_pending=True)
    running.worker.gate.set()
    assert running.pool.shutdown() == []
    running.check_cancelled()


def test_shutdown_that_runs_out_of_time(interrupt: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    """The last rung is taken all the same: those that are stuck are named."""
    running = Running(interrupt)
    running.submit()
    with caplog.at_level(logging.WARNING, "ringmill"), pytest.raises(KeyboardInterrupt):
        running.pool.shutdown(timeout=SHORT)
    assert [op.outcome for op in running.jobs] == [Outcome.CANCELLED] * 5
    assert ["is stuck" in record.getMessage() for record in caplog.records] == [True]
    running.worker.gate.set()
    assert running.pool.shutdown() == []
    running.check_cancelled()


def test_leaving_the_body_by_an_error(interrupt: Callable[[], None]) -> None:
    running = Running(interrupt)
    running.submit()
    opener = running.open_once_cancelled()
    with pytest.raises(KeyboardInterrupt), running.pool:
        raise ValueError
    opener.join()
    running.check_cancelled()


def test_a_second_one_stops_the_waiting(interrupt: Callable[[], None]) -> None:
    """The first left the body; the second comes out of a done(): the worker is still held when it is raised."""
    running = Running(interrupt)
    running.submit()
    with pytest.raises(KeyboardInterrupt) as caught, running.pool:
        raise KeyboardInterrupt("in the body")
    assert caught.value.args != ("in the body",)
    assert [op.outcome for op in running.jobs] == [Outcome.CANCELLED] * 5
    assert running.held.outcome is Outcome.PENDING
    running.worker.gate.set()
    running.pool.shutdown()
    running.check_cancelled()


@pytest.mark.parametrize("kind", ["execute", "wrap"])
@pytest.mark.parametrize("end", ["close", "with", "aclose"])
def test_a_stream_that_is_closed(kind: str, end: str, interrupt: Callable[[], None]) -> None:
    running = Running(interrupt)
    stream: Stream[Job]
    if kind == "execute":
        stream = running.pool.execute(running.jobs)
    else:
        stream = running.pool.wrap(running.jobs, drawn_by="thread")
        wait_until(lambda: running.pool.stats().accepted == 6)
    ends: dict[str, Callable[[], object]] = {
        "close": stream.close,
        "with": lambda: stream.__exit__(None, None, None),
        "aclose": lambda: asyncio.run(stream.aclose()),
    }
    with pytest.raises(KeyboardInterrupt):
        ends[end]()
    assert stream.closed
    assert [*stream] == []
    running.worker.gate.set()
    running.pool.shutdown()
    running.check_cancelled()


def test_an_operation_is_cancelled_in_the_done_of_another(interrupt: Callable[[], None]) -> None:
    """The inner call raises into the outer done(), and so on: nothing is lost on the way."""
    inner = Job(interrupt)

    class Outer(Job):
        def done(self) -> None:
            super().done()
            inner.cancel()
            raise AssertionError("the inner call raises")

    jobs: list[Job] = [Outer(), Job()]
    worker = Gated()
    pool = WorkerPool([worker])
    pool.start()
    pool.do(Job())
    assert worker.begun.wait(LONG)
    stream = pool.execute(jobs)
    with pytest.raises(KeyboardInterrupt):
        stream.close()
    assert [op.outcome for op in (inner, *jobs)] == [Outcome.CANCELLED] * 3
    assert [op.told for op in (inner, *jobs)] == [1] * 3
    worker.gate.set()
    pool.shutdown()


def test_the_interrupt_of_a_worker(interrupt: Callable[[], None]) -> None:
    """All workers that are stuck are interrupted before it is raised."""

    class Stubborn(Gated):
        def interrupt(self) -> None:
            self.gate.set()
            interrupt()

    workers = [Stubborn() for _ in range(3)]
    pool = WorkerPool(workers)
    pool.start()
    ops = [pool.do(Job()) for _ in range(3)]
    assert all(worker.begun.wait(LONG) for worker in workers)
    with pytest.raises(KeyboardInterrupt):
        pool.shutdown(timeout=SHORT)
    assert all(op.wait(LONG) for op in ops)
    assert pool.shutdown() == []
    nothing_is_left_over()


def test_a_logging_handler(interrupt: Callable[[], None]) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            interrupt()

    def fail() -> None:
        raise ValueError

    handler = Handler()
    logger = logging.getLogger("ringmill")
    logger.addHandler(handler)
    try:
        op = Job(fail)
        with pytest.raises(KeyboardInterrupt):
            op.cancel()
        assert op.wait(0)
    finally:
        logger.removeHandler(handler)


def test_a_keyboard_interrupt_on_another_thread_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Whether a worker ends the operation or some thread cancels it."""
    op = Job(by_raise)
    running = Running(by_raise)
    running.submit()
    assert run_threads(op.cancel, lambda: len(running.pool.shutdown(wait=False, cancel_pending=True))) == [True, 5]
    running.worker.gate.set()
    running.pool.shutdown()
    running.check_cancelled()
    nothing_is_left_over()
    assert ["done() raised" in record.getMessage() for record in caplog.records] == [True, True]
    caplog.clear()
    running.pool.start()
    op = running.pool.do(Job(by_raise))
    assert op.wait(LONG)
    running.pool.shutdown()
    assert ["done() raised" in record.getMessage() for record in caplog.records] == [True]


# Futures


def held_executor() -> tuple[PoolExecutor, threading.Event]:
    gate, begun = threading.Event(), threading.Event()
    executor = PoolExecutor(1)

    def hold() -> None:
        begun.set()
        assert gate.wait(LONG)

    executor.submit(hold)
    assert begun.wait(LONG)
    return executor, gate


def test_a_callback_as_futures_are_cancelled_by_shutdown(interrupt: Callable[[], None]) -> None:
    executor, gate = held_executor()
    futures = [executor.submit(int) for _ in range(5)]
    told: list[Future[int]] = []
    for future in futures:
        future.add_done_callback(told.append)
    futures[1].add_done_callback(lambda _: interrupt())
    futures[1].add_done_callback(told.append)
    opener = start_threads(lambda: wait_until(lambda: len(told) == 6) or gate.set())  # type: ignore[func-returns-value]
    with pytest.raises(KeyboardInterrupt):
        executor.shutdown(cancel_futures=True)
    opener.join()
    assert all(future.cancelled() for future in futures)
    assert set(as_completed(futures, LONG)) == set(futures)
    assert told == [futures[0], futures[1], futures[1], *futures[2:]]
    assert not any(thread.is_alive() for thread in executor._threads)


@pytest.mark.parametrize("end", ["cancel", "set_result", "set_exception"])
def test_a_callback_of_a_future_that_the_main_thread_ends(end: str, interrupt: Callable[[], None]) -> None:
    """All its callbacks are called first."""
    executor, gate = held_executor()
    future = executor.submit(int)
    told: list[Future[int]] = []
    for callback in (told.append, lambda _: interrupt(), told.append, lambda _: interrupt(), told.append):
        future.add_done_callback(callback)
    ends: dict[str, Callable[[], object]] = {
        "cancel": future.cancel,
        "set_result": functools.partial(future.set_result, 1),
        "set_exception": functools.partial(future.set_exception, ValueError()),
    }
    with pytest.raises(KeyboardInterrupt):
        ends[end]()
    assert future.done()
    assert told == [future] * 3
    gate.set()
    executor.shutdown()


# Signals at any moment


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Sends the main thread a signal after so many seconds, whose handler raises KeyboardInterrupt."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("no interval timers here")

    def handle(number: int, frame: object) -> None:
        alarms.append(number)
        raise KeyboardInterrupt

    def start(seconds: float) -> None:
        alarms.clear()
        signal.setitimer(signal.ITIMER_REAL, seconds)

    old = signal.signal(signal.SIGALRM, handle)
    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


alarms: list[int] = []  # those whose handler has run; that may be a moment after the timer has run out


def alarm_has_come() -> bool:
    return bool(alarms)


def is_cancelled(op: Operation) -> bool:
    return op.outcome is Outcome.CANCELLED


def open_when(gate: threading.Event, predicate: Callable[[], bool]) -> None:
    wait_until(predicate)
    gate.set()


@pytest.mark.stress
def test_a_signal_at_any_moment_of_an_executor_s_shutdown_that_cancels(
    seed: int, alarm: Callable[[float], None]
) -> None:
    """Whenever it comes, every future is cancelled, and every callback is called once."""
    interrupted = 0
    for number in range(100):
        executor, gate = held_executor()
        futures = [executor.submit(int) for _ in range(200)]
        told: list[Future[int]] = []
        for future in futures:
            future.add_done_callback(told.append)
        opener = start_threads(functools.partial(open_when, gate, futures[-1].cancelled))
        try:
            alarm(1e-6 + (seed + number * 7919) % 4000 * 1e-6)
            executor.shutdown(cancel_futures=True)
            wait_until(alarm_has_come)
        except KeyboardInterrupt:
            interrupted += 1
        executor.shutdown(cancel_futures=True)  # it may have come before the first
        opener.join()
        assert all(future.cancelled() for future in futures)
        assert sorted(map(id, told)) == sorted(map(id, futures))
    assert interrupted


@pytest.mark.stress
def test_a_signal_at_any_moment_of_a_shutdown_that_cancels(seed: int, alarm: Callable[[float], None]) -> None:
    """Whenever it comes, every operation has ended with its done() called at most once, and the pool is shut down."""
    interrupted = 0
    for number in range(100):
        worker = Gated()
        pool = WorkerPool([worker])
        pool.start()
        jobs = [Job() for _ in range(100)]
        pool.do(Job())
        for op in jobs:
            pool.do(op)
        assert worker.begun.wait(LONG)
        opener = start_threads(functools.partial(open_when, worker.gate, functools.partial(is_cancelled, jobs[-1])))
        try:
            alarm(1e-6 + (seed + number * 7919) % 1000 * 1e-6)
            pool.shutdown(cancel_pending=True)
            wait_until(alarm_has_come)
        except KeyboardInterrupt:
            interrupted += 1
        pool.shutdown(cancel_pending=True)
        opener.join()
        assert [op.outcome for op in jobs] == [Outcome.CANCELLED] * 100
        assert all(op.wait(0) and op.told <= 1 for op in jobs)
        assert sum(op.told for op in jobs) >= 99  # one may have been left by the interrupt before its first line
        assert pool.stats().cancelled == 100
    assert interrupted
