"""A pool starts, ends and starts again: which hooks run, when, on which thread, and the state after each end."""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from ringmill import Operation, Outcome, PoolNotRunning, Retry, Worker, WorkerInitError, WorkerPool
from tests.threads import LONG, SHORT, run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class Job(Operation):
    def __init__(self, number: int = 0) -> None:
        self.number = number


class Diary(Worker[Job]):
    """Writes down what was called, and on which thread."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads: set[int] = set()

    def note(self, what: str) -> None:
        self.calls.append(what)
        self.threads.add(threading.get_ident())

    def init(self) -> None:
        self.note("init")

    def process(self, op: Job) -> None:
        self.note("process")
        if op.number < 0:
            raise ValueError(op.number)

    def handle_error(self, error: BaseException, op: Job) -> None:
        self.note("handle_error")

    def cleanup(self) -> None:
        self.note("cleanup")


class Gated(Diary):
    """Begins an operation, says so, and ends it when the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)

    def process(self, op: Job) -> None:
        self.note("process")
        self.begun.release()
        assert self.gate.wait(LONG)


class Broken(Diary):
    """Cannot come up while it has an error."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self.error = error

    def init(self) -> None:
        super().init()
        if self.error is not None:
            raise self.error


class Hanging(Diary):
    """Comes up when the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.gate = threading.Event()

    def init(self) -> None:
        super().init()
        self.entered.set()
        assert self.gate.wait(LONG)


# Start


def test_start_shutdown_and_start_again() -> None:
    worker = Diary()
    pool = WorkerPool([worker])
    for run in range(1, 4):
        worker.threads.clear()
        pool.start()
        assert worker.calls[-1] == "init"  # ready means that init has returned
        assert pool.do(Job()).wait(LONG)
        assert pool.shutdown() == []
        assert worker.calls == ["init", "process", "cleanup"] * run
        assert len(worker.threads) == 1
        assert threading.get_ident() not in worker.threads


def test_start_and_shutdown_are_idempotent() -> None:
    worker = Diary()
    pool = WorkerPool([worker])
    assert pool.shutdown() == []
    pool.start()
    pool.start()
    assert pool.shutdown() == []
    assert pool.shutdown() == []
    assert pool.shutdown(wait=False) == []
    assert pool.shutdown(timeout=LONG, cancel_pending=True) == []
    assert worker.calls == ["init", "cleanup"]


@pytest.mark.parametrize("threads", [2, 8])
def test_start_from_many_threads_comes_up_once(threads: int, switch_interval: float) -> None:
    workers = [Diary() for _ in range(3)]
    pool = WorkerPool(workers)

    def start() -> list[list[str]]:
        pool.start()
        return [worker.calls[:] for worker in workers]

    try:
        # A thread that returns from start finds every worker ready.
        assert run_threads(*[start] * threads) == [[["init"]] * 3] * threads
    finally:
        pool.shutdown()


def test_concurrent_shutdowns_return_each_cancelled_operation_once(switch_interval: float) -> None:
    worker = Gated()
    pool = WorkerPool([worker])
    pool.start()
    running = pool.do(Job())
    assert worker.begun.acquire(timeout=LONG)
    pending = [pool.do(Job(number)) for number in range(20)]
    ends = start_threads(*[lambda: pool.shutdown(cancel_pending=True)] * 4)
    try:
        assert all(op.wait(LONG) for op in pending)
    finally:
        worker.gate.set()
    cancelled = [op for part in ends.join() for op in part]
    assert sorted(op.number for op in cancelled) == list(range(20))
    assert running.outcome is Outcome.SUCCEEDED
    assert worker.calls == ["init", "process", "cleanup"]


def test_starts_and_shutdowns_race(seed: int, switch_interval: float) -> None:
    workers = [Diary() for _ in range(2)]
    pool = WorkerPool(workers)
    done: list[Job] = []

    def live(number: int) -> Callable[[], None]:
        rng = random.Random(seed + number)

        def run() -> None:
            for _ in range(15):
                if rng.random() < 0.5:
                    pool.start()
                else:
                    pool.shutdown(wait=rng.random() < 0.5)
                try:
                    done.append(pool.do(Job()))
                except PoolNotRunning:
                    continue

        return run

    try:
        run_threads(*map(live, range(4)))
    finally:
        pool.shutdown()
    assert all(op.outcome is Outcome.SUCCEEDED for op in done)
    assert sum(worker.calls.count("process") for worker in workers) == len(done)
    for worker in workers:
        assert [call for call in worker.calls if call != "process"] == ["init", "cleanup"] * worker.calls.count("init")


def test_every_hook_runs_on_the_workers_own_thread() -> None:
    worker = Diary()
    with WorkerPool([worker]) as pool:
        for number in (1, -1, 2):
            pool.do(Job(number)).wait(LONG)
    assert worker.calls == ["init", "process", "process", "handle_error", "process", "cleanup"]
    assert len(worker.threads) == 1


def test_a_sqlite_connection_lives_with_its_worker() -> None:
    """sqlite3 itself refuses to be used on another thread than the one that connected."""
    saved: list[tuple[str, int]] = []

    class Writer(Worker[Job]):
        def init(self) -> None:
            self.connection = sqlite3.connect(":memory:")
            self.connection.execute("CREATE TABLE seen (what TEXT, number INTEGER)")

        def process(self, op: Job) -> None:
            if op.number % 5 == 0:
                raise ValueError(op.number)
            self.connection.execute("INSERT INTO seen VALUES ('good', ?)", [op.number])

        def handle_error(self, error: BaseException, op: Job) -> None:
            self.connection.execute("INSERT INTO seen VALUES ('bad', ?)", [op.number])

        def cleanup(self) -> None:
            saved.extend(self.connection.execute("SELECT what, number FROM seen"))
            self.connection.close()

    with WorkerPool([Writer() for _ in range(3)]) as pool:
        stream = pool.execute(Job(number) for number in range(50))
        assert len(list(stream)) == 50
    assert Counter(saved) == Counter(("bad" if number % 5 == 0 else "good", number) for number in range(50))


# A start that fails


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, MemoryError, RecursionError])
def test_failed_inits_are_all_named_and_all_is_cleaned_up(kind: type[BaseException]) -> None:
    good, bad = [Diary(), Diary()], [Broken(kind("one")), Broken(kind("two"))]
    workers: list[Diary] = [good[0], bad[0], bad[1], good[1]]
    pool = WorkerPool(workers)
    with pytest.raises(WorkerInitError) as caught:
        pool.start()
    causes = {id(worker): error for worker, error in caught.value.causes}
    assert causes == {id(worker): worker.error for worker in bad}
    for worker in workers:
        assert worker.calls == ["init", "cleanup"]
        assert len(worker.threads) == 1
    with pytest.raises(PoolNotRunning):
        pool.do(Job())
    assert pool.shutdown() == []
    for worker in bad:
        worker.error = None
    with pool:
        assert len(list(pool.execute([Job() for _ in range(8)]))) == 8
    for worker in workers:
        assert worker.calls[:3] == ["init", "cleanup", "init"]
        assert worker.calls.count("cleanup") == 2


def test_a_hanging_init_times_out_and_is_cleaned_up_when_it_ends() -> None:
    good, hanging = Diary(), Hanging()
    pool = WorkerPool([good, hanging])
    with pytest.raises(TimeoutError):
        pool.start(timeout=SHORT)
    assert hanging.entered.is_set()
    wait_until(lambda: good.calls == ["init", "cleanup"])  # it does not wait for the other
    with pytest.raises(PoolNotRunning):
        pool.do(Job())
    with pytest.raises(RuntimeError):
        pool.start(timeout=SHORT)
    assert hanging.calls == ["init"]
    hanging.gate.set()
    pool.start(timeout=LONG)  # waits for the earlier thread
    assert hanging.calls == ["init", "cleanup", "init"]
    assert pool.do(Job()).wait(LONG)
    pool.shutdown()
    assert good.calls.count("init") == good.calls.count("cleanup") == 2
    assert hanging.calls.count("cleanup") == 2


def test_start_without_timeout_waits_for_an_earlier_run() -> None:
    worker = Hanging()
    pool = WorkerPool([worker])
    with pytest.raises(TimeoutError):
        pool.start(timeout=0)
    starting = start_threads(pool.start)
    assert worker.entered.wait(LONG)
    worker.gate.set()
    starting.join()
    assert worker.calls == ["init", "cleanup", "init"]
    pool.shutdown()


def test_a_concurrent_start_waits_no_longer_than_its_timeout() -> None:
    worker = Hanging()
    pool = WorkerPool([worker])
    starting = start_threads(pool.start, pool.start)
    assert worker.entered.wait(LONG)
    for timeout in (0, SHORT):
        with pytest.raises(TimeoutError, match="another thread"):
            pool.start(timeout=timeout)
    worker.gate.set()
    starting.join()
    assert worker.calls == ["init"]
    pool.shutdown()


# Shutdown


def test_shutdown_finishes_what_was_accepted() -> None:
    worker = Gated()
    pool = WorkerPool([worker])
    pool.start()
    ops = [pool.do(Job(number)) for number in range(10)]
    stream = pool.execute([Job(number) for number in range(10)])
    assert pool.shutdown(wait=False) == []
    for call in (lambda: pool.do(Job()), lambda: pool.execute([Job()]), lambda: pool.wrap([Job()])):
        with pytest.raises(PoolNotRunning):
            call()
    worker.gate.set()
    assert pool.shutdown() == []
    assert all(op.outcome is Outcome.SUCCEEDED for op in ops)
    assert [op.number for op in stream] == list(range(10))


def test_cancel_pending_returns_what_had_not_begun() -> None:
    worker = Gated()
    pool = WorkerPool([worker])
    pool.start()
    stream = pool.execute([Job(number) for number in range(6)])
    assert worker.begun.acquire(timeout=LONG)
    alone = pool.do(Job(6))
    cancelled = pool.shutdown(wait=False, cancel_pending=True)
    assert sorted(op.number for op in cancelled) == [1, 2, 3, 4, 5, 6]
    assert all(op.outcome is Outcome.CANCELLED and op.wait(0) for op in cancelled)
    assert alone in cancelled
    worker.gate.set()
    came = list(stream)
    assert sorted(op.number for op in came) == list(range(6))
    assert [op.outcome for op in came if op.number == 0] == [Outcome.SUCCEEDED]
    assert pool.shutdown(cancel_pending=True) == []
    assert worker.calls == ["init", "process", "cleanup"]


def test_a_stuck_worker_does_not_hold_up_a_shutdown_with_timeout(caplog: pytest.LogCaptureFixture) -> None:
    worker = Gated()
    pool = WorkerPool([worker], name="mill")
    pool.start()
    stuck = pool.do(Job())
    assert worker.begun.acquire(timeout=LONG)
    pending = [pool.do(Job(number)) for number in range(3)]
    stream = pool.execute([Job(number) for number in range(3, 6)])
    with caplog.at_level(logging.WARNING, "ringmill"):
        returned = pool.shutdown(timeout=SHORT)
    assert sorted(op.number for op in returned if op is not stuck) == list(range(6))
    assert all(op.outcome is Outcome.CANCELLED for op in pending)
    assert sorted(op.number for op in stream) == [3, 4, 5]
    thread = next(thread for thread in threading.enumerate() if thread.ident in worker.threads)
    lines = [record.getMessage() for record in caplog.records if thread.name in record.getMessage()]
    assert len(lines) == 1
    assert "in process" in lines[0]  # its stack
    with pytest.raises(RuntimeError):
        pool.start(timeout=SHORT)
    worker.gate.set()
    assert pool.shutdown() == []
    assert worker.calls == ["init", "process", "cleanup"]
    assert stuck.wait(LONG)
    assert stuck.outcome is not Outcome.PENDING
    with pool:
        assert pool.do(Job()).wait(LONG)


def test_a_worker_cannot_wait_for_its_own_end() -> None:
    caught: list[BaseException] = []

    class Leaver(Worker[Job]):
        def process(self, op: Job) -> None:
            try:
                pool.shutdown()
            except BaseException as error:
                caught.append(error)
            assert pool.shutdown(wait=False) == []

    pool = WorkerPool([Leaver(), Diary()])
    pool.start()
    ops = []
    try:
        while True:
            ops.append(pool.do(Job()))
    except PoolNotRunning:
        pool.shutdown()
    assert [type(error) for error in caught] == [RuntimeError] * len(caught)
    assert caught
    assert all(op.outcome is Outcome.SUCCEEDED for op in ops)


# The context manager


def test_leaving_the_body_finishes_the_work() -> None:
    worker = Diary()
    with WorkerPool([worker]) as pool:
        ops = [pool.do(Job(number)) for number in range(30)]
    assert all(op.outcome is Outcome.SUCCEEDED for op in ops)
    with pytest.raises(PoolNotRunning):
        pool.do(Job())


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_body_cancels_what_has_not_begun(kind: type[BaseException]) -> None:
    worker = Gated()
    pool = WorkerPool([worker])
    ops: list[Job] = []
    raised = kind("in the body")

    def body() -> None:
        with pool:
            ops.extend(pool.do(Job(number)) for number in range(5))
            assert worker.begun.acquire(timeout=LONG)
            raise raised

    def open_gate() -> None:
        wait_until(lambda: len(ops) == 5 and all(op.outcome is Outcome.CANCELLED for op in ops[1:]))
        worker.gate.set()

    opener = start_threads(open_gate)
    with pytest.raises(kind) as caught:
        body()
    opener.join()
    assert caught.value is raised
    assert [op.outcome for op in ops] == [Outcome.SUCCEEDED] + [Outcome.CANCELLED] * 4
    assert worker.calls == ["init", "process", "cleanup"]


def test_a_timer_ends_with_its_pool() -> None:
    class Later(Worker[Job]):
        def process(self, op: Job) -> None:
            if not op.tries:
                raise Retry(delay=SHORT)

    with WorkerPool([Later()]) as pool:
        op = pool.do(Job())
    assert (op.outcome, op.tries) == (Outcome.SUCCEEDED, 1)
