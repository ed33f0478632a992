"""Shutdown while streams are open, repeated shutdown, and shutdown from places where it is an error."""

from __future__ import annotations

import gc
import itertools
import queue
import threading
from typing import Any

import pytest

from ringmill import (
    Outcome,
    PoolNotRunning,
)
from tests.pool.shutting_down import Gate, Job, JobWorker, endless, hold, read, start
from tests.pools import DRAWN_BY, counts
from tests.threads import LONG, SHORT, run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


# What is under way


@pytest.mark.parametrize("how", [{}, {"cancel_pending": True}, {"timeout": 0}], ids=str)
@pytest.mark.parametrize("drawn_by", DRAWN_BY)
def test_wraps_in_flight_end_and_lose_nothing(drawn_by: str, how: dict[str, Any], gate: Gate) -> None:
    pool = start(JobWorker(), JobWorker())
    streams = [endless(pool, drawn_by) for _ in range(3)]
    first = [stream.get(LONG) for stream in streams]
    readers = start_threads(*[lambda stream=stream: read(stream) for stream in streams])
    wait_until(lambda: pool.stats().succeeded > 100)
    pool.shutdown(**how)
    rest = readers.join()
    stats = pool.stats()
    pool.shutdown()
    assert len(first) + sum(map(len, rest)) == stats.accepted  # each came out once
    came = [*first, *itertools.chain(*rest)]
    assert len(set(map(id, came))) == len(came)
    assert all(op.outcome in (Outcome.SUCCEEDED, Outcome.CANCELLED) for op in came)
    for stream in streams:
        with pytest.raises(PoolNotRunning):
            stream.get(0)


@pytest.mark.parametrize("how", [{}, {"cancel_pending": True}, {"timeout": LONG}], ids=str)
@pytest.mark.parametrize("drawn_by", DRAWN_BY)
def test_a_stream_that_is_not_read_delays_nothing(drawn_by: str, how: dict[str, Any]) -> None:
    pool = start(JobWorker(), JobWorker())
    streams = [endless(pool, drawn_by, buffer) for buffer in (1, 4)]
    if drawn_by == "reader":
        for stream in streams:
            stream.get(LONG)
    else:
        wait_until(lambda: pool.stats().succeeded == 5)  # both are full
    batch = pool.execute([Job() for _ in range(50)])
    pool.shutdown(**how)
    assert len(list(batch)) == 50
    stats = pool.stats()
    assert stats.succeeded + stats.cancelled == stats.accepted
    assert sum(len(read(stream)) for stream in streams) == stats.accepted - 50 - (2 if drawn_by == "reader" else 0)


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
def test_the_reader_is_gone(drawn_by: str) -> None:
    with start(JobWorker(), JobWorker()) as pool:
        for count, op in enumerate(endless(pool, drawn_by)):
            assert op.outcome is Outcome.SUCCEEDED
            if count == 20:
                break
    stats = pool.stats()
    assert stats.accepted == stats.succeeded + stats.cancelled
    assert 21 <= stats.accepted <= 21 + 4


def test_a_source_that_blocks_for_ever() -> None:
    source = queue.SimpleQueue[Job | None]()
    pool = start(JobWorker())
    stream = pool.wrap(iter(source.get, None), drawn_by="thread")
    reader = start_threads(lambda: read(stream))
    source.put(Job())
    wait_until(lambda: pool.stats().succeeded == 1)
    assert pool.shutdown() == []
    assert len(reader.join()[0]) == 1
    source.put(late := Job())  # what it gives in the end no stream takes
    wait_until(lambda: not any("-source" in thread.name for thread in threading.enumerate()))
    assert late.outcome is Outcome.PENDING


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
def test_a_stream_that_is_closed_while_the_pool_drains(drawn_by: str, gate: Gate) -> None:
    pool = start(JobWorker())
    hold(pool, gate)
    stream = endless(pool, drawn_by, buffer=2)
    if drawn_by == "thread":
        wait_until(lambda: pool.stats().accepted == 3)
    batch = pool.execute(jobs := [Job() for _ in range(3)])
    drainer = start_threads(pool.shutdown)
    wait_until(lambda: "shutting down" in repr(pool))
    stream.close()
    batch.close()
    assert all(op.wait(LONG) and op.outcome is Outcome.CANCELLED for op in jobs)
    gate.opened.set()
    assert drainer.join() == [[]]
    stats = pool.stats()
    assert (stats.succeeded, stats.cancelled) == (1, stats.accepted - 1)


def test_all_that_is_left_is_cancelled_one_by_one_while_the_pool_drains(gate: Gate) -> None:
    pool = start(JobWorker())
    hold(pool, gate)
    jobs = [pool.do(Job()) for _ in range(5)]
    drainer = start_threads(pool.shutdown)
    wait_until(lambda: "shutting down" in repr(pool))
    assert all(op.cancel() and op.wait(0) for op in jobs)
    gate.opened.set()
    assert drainer.join() == [[]]
    assert counts(pool.stats()) == {"succeeded": 1, "cancelled": 5}


# Again, from elsewhere


@pytest.mark.parametrize("cancel", [False, True])
def test_without_waiting_and_then_from_several_threads(cancel: bool, gate: Gate) -> None:
    pool = start(JobWorker())
    hold(pool, gate)
    jobs = [pool.do(Job()) for _ in range(4)]
    first = pool.shutdown(wait=False, cancel_pending=cancel)
    assert first == (jobs if cancel else [])
    assert "shutting down" in repr(pool)
    several = start_threads(*[pool.shutdown] * 4, lambda: pool.shutdown(cancel_pending=cancel))
    gate.opened.set()
    assert several.join() == [[]] * 5
    assert all(op.outcome is (Outcome.CANCELLED if cancel else Outcome.SUCCEEDED) for op in jobs)
    assert pool.shutdown() == []


def test_concurrent_shutdown_timeouts_return_each_remaining_operation_once(gate: Gate) -> None:
    pool = start(JobWorker())
    hold(pool, gate)
    jobs = [pool.do(Job()) for _ in range(30)]
    shares = run_threads(*[lambda: pool.shutdown(timeout=SHORT)] * 4)
    assert sorted(id(op) for share in shares for op in share) == sorted(map(id, jobs))
    gate.opened.set()
    assert pool.shutdown() == []


@pytest.mark.parametrize("how", [{}, {"timeout": 1}, {"cancel_pending": True}], ids=str)
def test_shutdown_from_inside_a_worker_is_an_error_and_not_a_deadlock(how: dict[str, Any]) -> None:
    class Leaver(JobWorker):
        def process(self, op: Job) -> None:
            pool.shutdown(**how)

    pool = start(Leaver())
    op = pool.do(Job())
    assert op.wait(LONG)
    assert type(op.error) is RuntimeError
    with pytest.raises(RuntimeError):
        op.check()
    assert "' running, " in repr(pool)  # nothing has changed
    pool.shutdown()


@pytest.mark.parametrize("where", ["here", "in a worker"])
def test_from_del(where: str) -> None:
    """Of an object that owns the pool, collected anywhere; on a worker's own thread it must not wait."""

    class Owner:
        def __init__(self, wait: bool) -> None:
            self.cycle = self
            self.wait = wait

        def __del__(self) -> None:
            self.returned = pool.shutdown(wait=self.wait)
            ended.set()

    class Collector(JobWorker):
        def process(self, op: Job) -> None:
            super().process(op)
            if where == "in a worker":
                owners.clear()
                gc.collect()

    ended = threading.Event()
    owners: list[Owner] = []
    pool = start(Collector())
    owners.append(Owner(wait=where == "here"))
    jobs = [pool.do(Job()) for _ in range(3)] if where == "here" else [pool.do(Job())]
    if where == "here":
        owners.clear()
        gc.collect()
    assert ended.wait(LONG)
    assert pool.shutdown() == []
    assert all(op.outcome is Outcome.SUCCEEDED for op in jobs)
