"""A worker that crashes is cleaned up and restarted on its thread, after growing pauses, until it is retired.

When the last one is retired, the pool is broken: law 3, nothing waits forever.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ringmill import (
    BrokenPool,
    Closed,
    Operation,
    Outcome,
    Reject,
    Retry,
    RingBuffer,
    Worker,
    WorkerPool,
)
from tests.pools import counts
from tests.threads import HOUR, LONG, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class Boom(BaseException):
    """Not an Exception: a crash."""


CRASHES = [KeyboardInterrupt, SystemExit, GeneratorExit, Boom]

Step = BaseException | Callable[["Diary"], Any] | None


class Job(Operation):
    """What is to happen to it, one step for each time that it is processed."""

    def __init__(self, *script: Step) -> None:
        self.script = script
        self.turn = 0


class Diary(Worker[Job]):
    """Writes down what was called, when, and on which thread."""

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.calls: list[str] = []
        self.times: list[tuple[str, float]] = []
        self.threads: set[int] = set()
        self.bad_inits = 0  # so many of the next ones raise
        self.on_error: BaseException | None = None
        self.on_cleanup: BaseException | None = None

    def note(self, what: str) -> None:
        self.calls.append(what)
        self.times.append((what, time.monotonic()))
        self.threads.add(threading.get_ident())

    def init(self) -> None:
        self.note("init")
        if self.bad_inits:
            self.bad_inits -= 1
            raise ValueError("init")

    def process(self, op: Job) -> None:
        self.note("process")
        step = op.script[op.turn] if op.turn < len(op.script) else None
        op.turn += 1
        if isinstance(step, BaseException):
            raise step
        if step is not None:
            step(self)

    def handle_error(self, error: BaseException, op: Job) -> None:
        self.note("handle_error")
        if self.on_error is not None:
            raise self.on_error

    def cleanup(self) -> None:
        self.note("cleanup")
        if self.on_cleanup is not None:
            raise self.on_cleanup


def crash(pool: WorkerPool[Job], times: int = 1) -> list[Job]:
    """One after the other: each is taken when a worker is up again."""
    jobs = [Job(Boom(k)) for k in range(times)]
    for op in jobs:
        assert pool.do(op).wait(LONG)
        assert isinstance(op.error, (Boom, BrokenPool))
    return jobs


# A crash


@pytest.mark.parametrize("kind", CRASHES)
def test_a_crash_fails_its_operation_and_the_worker_comes_up_again(kind: type[BaseException]) -> None:
    worker, error = Diary(), kind("crash")
    with WorkerPool([worker]) as pool:
        stream = pool.execute([op := Job(error), later := Job()])
        assert list(stream) == [op, later]
        assert (op.outcome, op.error, op.tries) == (Outcome.FAILED, error, 0)
        assert error.__traceback__ is not None
        assert later.outcome is Outcome.SUCCEEDED
        stats = pool.stats()
        assert (counts(stats), stats.restarts, stats.workers[0].restarts) == ({"succeeded": 1, "failed": 1}, 1, 1)
    assert worker.calls == ["init", "process", "cleanup", "init", "process", "cleanup"]  # and no handle_error
    assert len(worker.threads) == 1


@pytest.mark.parametrize("kind", [ValueError, MemoryError, RecursionError])
def test_an_exception_is_not_a_crash(kind: type[Exception]) -> None:
    worker = Diary()
    with WorkerPool([worker], max_restarts=0) as pool:
        op = pool.do(Job(kind()))
        assert op.wait(LONG)
        assert isinstance(op.error, kind)
    assert worker.calls == ["init", "process", "handle_error", "cleanup"]


@pytest.mark.parametrize("kind", [ValueError, RecursionError, *CRASHES])
@pytest.mark.parametrize("how", ["failed", "exhausted", "unroutable"])
def test_an_error_from_handle_error_restarts_the_worker_and_the_operation_keeps_its_own_error(
    kind: type[BaseException], how: str
) -> None:
    worker = Diary()
    worker.on_error = kind("from handle_error")
    own = {"failed": ValueError("own"), "exhausted": Retry("own"), "unroutable": Reject("own")}[how]
    with WorkerPool([worker], max_tries=1) as pool:
        op = pool.do(Job(own))
        assert op.wait(LONG)
        assert op.outcome is Outcome.FAILED
        assert own in (op.error, op.error.__cause__ if op.error else None)
        assert pool.do(Job()).wait(LONG)
        assert pool.stats().restarts == 1
    assert worker.calls == ["init", "process", "handle_error", "cleanup", "init", "process", "cleanup"]
    assert len(worker.threads) == 1


@pytest.mark.parametrize("kind", [ValueError, *CRASHES])
def test_an_error_out_of_cleanup_is_logged_and_stops_nothing(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    worker = Diary()
    worker.on_cleanup = kind("from cleanup")
    pool = WorkerPool([worker])
    with caplog.at_level(logging.WARNING, "ringmill"):
        pool.start()
        crash(pool)
        assert pool.do(Job()).wait(LONG)
        assert pool.shutdown() == []
    assert worker.calls == ["init", "process", "cleanup", "init", "process", "cleanup"]
    logged = [record for record in caplog.records if record.exc_info and record.exc_info[1] is worker.on_cleanup]
    assert len(logged) == 2
    with pool:  # and again
        assert pool.do(Job()).wait(LONG)


def test_the_crash_and_its_operation_are_released_after_the_restart(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "ringmill")  # pytest keeps what is logged, errors included
    with WorkerPool([Diary()]) as pool:
        op = crash(pool)[0]
        gone = [weakref.ref(op), weakref.ref(op.error)]
        assert isinstance(gone[1](), Boom)
        del op
        assert pool.do(Job()).wait(LONG)

        def all_gone() -> bool:
            gc.collect()
            return all(reference() is None for reference in gone)

        wait_until(all_gone)


# How soon


def test_the_first_restart_is_immediate_and_a_pause_is_left_at_shutdown() -> None:
    worker = Diary()
    with WorkerPool([worker], restart_pause=HOUR) as pool:
        crash(pool, 2)  # the second can only run because there is no pause after the first
        # Now it pauses. What it is to do is cancelled, so that the pool can end, and it ends without another init.
        pending = pool.do(Job())
        assert pool.shutdown(cancel_pending=True) == [pending]
    assert worker.calls == ["init", "process", "cleanup"] * 2


@pytest.mark.parametrize("way", ["cancel", "cancel_pending", "timeout"])
def test_a_pause_ends_when_nothing_is_left_to_do(way: str) -> None:
    worker = Diary()
    pool = WorkerPool([worker], restart_pause=HOUR)
    pool.start()
    crash(pool, 2)
    pending = pool.do(Job())
    drainer = start_threads(pool.shutdown)
    wait_until(lambda: "shutting down" in repr(pool))
    if way == "cancel":
        assert pending.cancel()
    elif way == "cancel_pending":
        assert pool.shutdown(cancel_pending=True) == [pending]
    else:
        assert pool.shutdown(timeout=0) == [pending]
    drainer.join()
    assert pending.outcome is Outcome.CANCELLED
    assert worker.calls == ["init", "process", "cleanup"] * 2


def test_pauses_grow(caplog: pytest.LogCaptureFixture) -> None:
    worker = Diary()
    with caplog.at_level(logging.WARNING, "ringmill"), WorkerPool([worker], restart_pause=0.01) as pool:
        crash(pool, 5)
        assert pool.do(Job()).wait(LONG)
    ends = [when for what, when in worker.times if what == "cleanup"][:5]
    begins = [when for what, when in worker.times if what == "init"][1:]
    pauses = [begin - end for begin, end in zip(begins, ends, strict=True)]
    wanted = [0, 0.01, 0.02, 0.04, 0.08]
    assert all(pause >= least for pause, least in zip(pauses, wanted, strict=True)), pauses
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.endswith(f"{least:g} s") for text, least in zip(said, wanted, strict=True)] == [True] * 5, said


def test_pauses_grow_to_half_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ringmill"), WorkerPool([Diary()], restart_pause=HOUR) as pool:
        crash(pool, 2)
        wait_until(lambda: len(caplog.records) == 2)
    assert caplog.records[1].getMessage().endswith(" 30 s")


def last_for(seconds: float) -> Callable[[Diary], None]:
    """A crash, of a worker that has been up for so long."""

    def step(worker: Diary) -> None:
        begun = max(when for what, when in worker.times if what == "init")
        while time.monotonic() < begun + seconds:
            time.sleep(0.001)
        raise Boom

    return step


def test_a_worker_that_lasts_a_period_is_forgiven() -> None:
    period = 0.03
    worker = Diary()
    with WorkerPool([worker], restart_pause=HOUR, restart_period=period, max_restarts=1) as pool:
        for _ in range(5):  # neither a pause, nor too many in a period
            assert pool.do(Job(last_for(1.5 * period))).wait(LONG)
        last = pool.do(Job())
        assert last.wait(LONG)
        assert (last.outcome, pool.stats().restarts) == (Outcome.SUCCEEDED, 5)


# How often


@pytest.mark.parametrize("max_restarts", [0, 1, 3])
def test_one_crash_more_than_max_restarts_retires(max_restarts: int) -> None:
    worker = Diary()
    pool = WorkerPool([worker], max_restarts=max_restarts, restart_pause=0)
    pool.start()
    jobs = crash(pool, max_restarts + 1)
    assert [type(op.error) for op in jobs] == [Boom] * len(jobs)
    wait_until(lambda: "broken" in repr(pool))
    with pytest.raises(BrokenPool):
        pool.do(Job())
    stats = pool.stats()
    assert (counts(stats), stats.restarts) == ({"failed": max_restarts + 1}, max_restarts)
    assert pool.shutdown() == []
    assert worker.calls == ["init", "process", "cleanup"] * (max_restarts + 1)


def test_without_a_limit_a_worker_is_never_retired() -> None:
    with WorkerPool([Diary()], max_restarts=None, restart_pause=0) as pool:
        crash(pool, 200)
        op = pool.do(Job())
        assert op.wait(LONG)
        assert (op.outcome, pool.stats().restarts) == (Outcome.SUCCEEDED, 200)


def test_each_worker_is_counted_on_its_own() -> None:
    """Two that crash five times between them, three restarts each."""
    first, second = Diary("a"), Diary("b")
    with WorkerPool([first, second], max_restarts=3, restart_pause=0) as pool:
        both = threading.Barrier(2)

        def together(_: Diary) -> None:
            both.wait(LONG)  # so that each worker has one
            raise Boom

        for _ in range(3):
            jobs = [pool.do(Job(together)) for _ in range(2)]
            assert all(op.wait(LONG) and isinstance(op.error, Boom) for op in jobs)
        wait_until(lambda: [row.restarts for row in pool.stats().workers] == [3, 3])
        crash(pool)  # retires one of them
        wait_until(lambda: first.calls.count("cleanup") == 4 or second.calls.count("cleanup") == 4)
        assert all(op.outcome is Outcome.SUCCEEDED for op in pool.execute([Job() for _ in range(20)]))
        assert sorted(row.restarts for row in pool.stats().workers) == [3, 3]


@pytest.mark.parametrize(("bad_inits", "max_restarts", "broken"), [(2, 3, False), (3, 3, True), (40, None, False)])
def test_an_init_that_fails_counts_as_a_restart(bad_inits: int, max_restarts: int | None, broken: bool) -> None:
    worker = Diary()
    pool = WorkerPool([worker], max_restarts=max_restarts, restart_pause=0)
    pool.start()
    worker.bad_inits = bad_inits
    crash(pool)
    if broken:
        wait_until(lambda: "broken" in repr(pool))
    else:
        op = pool.do(Job())
        assert op.wait(LONG)
        assert (op.outcome, pool.stats().restarts) == (Outcome.SUCCEEDED, bad_inits + 1)
    pool.shutdown()
    assert worker.calls.count("cleanup") == worker.calls.count("init") == bad_inits + (1 if broken else 2)
    assert len(worker.threads) == 1


# Logging


def test_log_messages(caplog: pytest.LogCaptureFixture) -> None:
    workers = [Diary("a"), Diary("b")]
    with caplog.at_level(logging.DEBUG, "ringmill"):
        pool = WorkerPool(workers, name="mill", max_restarts=1, restart_pause=0)
        pool.start()
        crash(pool, 3)  # one restarts and is retired, or both restart, and one is retired
        crash(pool)  # the fourth retires the other one, which was the last
        wait_until(lambda: "broken" in repr(pool))
        pool.shutdown()
    ours = [record for record in caplog.records if record.name == "ringmill"]
    texts = [record.getMessage() for record in ours]
    assert len([text for text in texts if "started" in text]) == 2
    assert len([text for text in texts if "restarts in" in text]) == 2
    assert sorted(text.split()[1] for text in texts if "retired" in text) == ["mill-0", "mill-1"]
    assert len([record for record in ours if "broken" in record.getMessage() and "mill" in record.getMessage()]) == 1
    restarted = [record for record in ours if "restarts in" in record.getMessage()]
    assert all(record.exc_info and isinstance(record.exc_info[1], Boom) for record in restarted)
    assert all("mill-" in record.getMessage() for record in restarted)


def test_the_log_says_nothing_about_operations(caplog: pytest.LogCaptureFixture) -> None:
    scripts: list[list[Step]] = [[], [ValueError()], [Retry()] * 2, [Reject()], [Reject()] * 2, [Retry(delay=0.001)]]
    with caplog.at_level(logging.DEBUG, "ringmill"), WorkerPool([Diary("a"), Diary("b")]) as pool:
        for script in scripts:
            assert len(list(pool.execute([Job(*script) for _ in range(50)]))) == 50
        delayed = pool.do(Job(Retry(delay=HOUR)))
        wait_until(lambda: pool.stats().delayed == 1)
        assert delayed.cancel()
    assert len(caplog.records) <= 2  # both have started


# Broken


def test_every_operation_and_stream_ends_when_the_pool_breaks() -> None:
    held, opened = threading.Event(), threading.Event()

    def hold(_: Diary) -> None:
        held.set()
        assert opened.wait(LONG)
        raise Boom

    pool = WorkerPool([Diary()], max_restarts=0, queue_size=3)
    pool.start()
    delayed = pool.do(Job(Retry(delay=HOUR)))
    wait_until(lambda: pool.stats().delayed == 1)
    culprit = pool.do(Job(hold))
    assert held.wait(LONG)
    queued = [pool.do(Job()) for _ in range(3)]
    batch = [Job() for _ in range(5)]
    stream = pool.execute(batch)
    ring = RingBuffer[Job](4)
    ring.put_many(ringed := [Job() for _ in range(4)])
    endless = [
        pool.wrap(Job() for _ in range(10**9)),
        pool.wrap((Job() for _ in range(10**9)), buffer=2, drawn_by="thread"),
        pool.wrap(ring, buffer=2),
    ]
    wait_until(lambda: pool.stats().accepted == 1 + 1 + 3 + 5 + 2)  # the thread has drawn two
    reader = start_threads(lambda: endless[0].get(LONG))
    wait_until(lambda: pool.stats().accepted > 12)  # it has drawn, and waits for what it has drawn
    blocked = [Job() for _ in range(3)]

    def call(op: Job) -> None:
        with pytest.raises(BrokenPool):
            pool.do(op)

    callers = start_threads(*[lambda op=op: call(op) for op in blocked])
    opened.set()
    callers.join()
    assert isinstance(reader.join()[0].error, BrokenPool)
    for op in [delayed, *queued, *batch]:
        assert op.wait(LONG)
        assert op.outcome is Outcome.FAILED
        assert isinstance(op.error, BrokenPool)
    assert isinstance(culprit.error, Boom)
    assert sorted(map(id, stream)) == sorted(map(id, batch))  # complete, so it ends as it would
    with pytest.raises(Closed):
        stream.get(0)
    for endless_stream in endless:
        came = []
        with pytest.raises(BrokenPool):
            came.extend(endless_stream)
        with pytest.raises(BrokenPool):
            endless_stream.get_many()
        assert all(isinstance(op.error, BrokenPool) for op in came)
    assert all(op.outcome is Outcome.PENDING for op in [*blocked, *ringed])
    assert len(ring) == 4  # what was not drawn is still the ring's
    stats = pool.stats()
    assert stats.accepted == stats.failed
    assert counts(stats) == {"failed": stats.accepted}
    for call in (
        lambda: pool.do(Job()),
        lambda: pool.do(Job(), timeout=0),
        lambda: pool.execute([Job()]),
        lambda: pool.execute([]),
        lambda: pool.wrap([Job()]),
        lambda: pool.wrap(ring),
        lambda: pool.wrap([Job()], drawn_by="thread"),
    ):
        with pytest.raises(BrokenPool, match="ringmill"):
            call()
    for how in ({}, {"cancel_pending": True}, {"timeout": 0}, {"wait": False}, {}):
        assert pool.shutdown(**how) == []  # type: ignore[arg-type]
    with pool:  # a new run
        assert all(op.outcome is Outcome.SUCCEEDED for op in pool.execute(blocked))


def test_the_body_of_a_with_may_end_though_the_pool_is_broken() -> None:
    with WorkerPool([Diary()], max_restarts=0) as pool:
        crash(pool)
        wait_until(lambda: "broken" in repr(pool))


def test_a_pool_breaks_while_it_drains() -> None:
    held, opened = threading.Event(), threading.Event()

    def hold(_: Diary) -> None:
        held.set()
        assert opened.wait(LONG)
        raise Boom

    pool = WorkerPool([Diary()], max_restarts=0)
    pool.start()
    stream = pool.execute(jobs := [Job(hold), Job(), Job()])
    assert held.wait(LONG)
    drainer = start_threads(pool.shutdown)
    wait_until(lambda: "shutting down" in repr(pool))
    opened.set()
    assert drainer.join() == [[]]
    assert [type(op.error) for op in jobs] == [Boom, BrokenPool, BrokenPool]
    with pytest.raises(BrokenPool) as first:
        jobs[1].check()
    with pytest.raises(BrokenPool) as second:
        jobs[2].check()
    assert first.value is not second.value  # each operation's own
    assert len(list(stream)) == 3
