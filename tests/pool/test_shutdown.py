"""Shutdown drains, cancels, then gives up stuck workers; and what was in progress when it was called.

What is under way on streams: test_shutdown_streams.py. Ctrl-C and the end of the interpreter: test_shutdown_exit.py.
"""

from __future__ import annotations

import logging
import threading

import pytest

from ringmill import (
    Outcome,
    PoolNotRunning,
    Reject,
    Retry,
    RingBuffer,
    Stream,
)
from tests.pool.shutting_down import Gate, Job, JobWorker, endless, hold, read, start
from tests.pools import counts
from tests.threads import HOUR, LONG, SHORT, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class Interruptible(JobWorker):
    """Can be freed from outside."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate
        self.interrupted_from: list[int] = []

    def interrupt(self) -> None:
        self.interrupted_from.append(threading.get_ident())
        self.gate.opened.set()


def stuck_in_log(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for record in caplog.records if "stuck" in (text := record.getMessage())]


# Drain, and cancel what has not begun


def test_drain_finishes_retries_and_delays(gate: Gate) -> None:
    class Thrice(JobWorker):
        def process(self, op: Job) -> None:
            super().process(op)
            if op.tries < 2:
                raise Retry(delay=0.005 * op.tries)

    pool = start(Thrice(), Thrice())
    held = hold(pool, gate)
    jobs = [pool.do(Job()) for _ in range(10)]
    stream = pool.execute([Job() for _ in range(10)])
    drainer = start_threads(pool.shutdown)
    wait_until(lambda: "shutting down" in repr(pool))
    for call in (lambda: pool.do(Job()), lambda: pool.execute([Job()]), lambda: pool.wrap([Job()])):
        with pytest.raises(PoolNotRunning):
            call()
    gate.opened.set()
    assert drainer.join() == [[]]
    assert all((op.outcome, op.tries) == (Outcome.SUCCEEDED, 2) for op in [held, *jobs, *stream])


def test_cancel_pending_returns_all_that_had_not_begun_or_was_put_back(gate: Gate) -> None:
    """Queued by `do`, by `execute`, by a wrap, put back, delayed."""

    class Picky(JobWorker):
        def process(self, op: Job) -> None:
            if op in put_back:
                raise Reject
            super().process(op)

    put_back: list[Job] = []
    pool = start(Picky(), JobWorker())
    delayed = pool.do(Job(error=Retry(delay=HOUR)))
    wait_until(lambda: pool.stats().delayed == 1)
    held = [hold(pool, gate), hold(pool, gate)]
    put_back.append(queued := pool.do(Job()))
    batch = [Job() for _ in range(3)]
    stream = pool.execute(batch)
    drawn = endless(pool, "thread")
    wait_until(lambda: pool.stats().accepted == 1 + 2 + 1 + 3 + 4)
    shutter = start_threads(lambda: pool.shutdown(cancel_pending=True))
    wait_until(lambda: pool.stats().cancelled == 1 + 1 + 3 + 4)
    assert all(op.wait(LONG) for op in [delayed, queued, *batch])
    gate.opened.set()
    returned = shutter.join()[0]
    assert set(map(id, returned)) >= set(map(id, [delayed, queued, *batch]))
    assert len(returned) == len(set(map(id, returned))) == 9
    assert all(op.outcome is Outcome.CANCELLED for op in returned)
    assert all(op.outcome is Outcome.SUCCEEDED for op in held)
    assert sorted(map(id, stream)) == sorted(map(id, batch))
    with pytest.raises(PoolNotRunning):
        list(drawn)
    assert counts(pool.stats()) == {"succeeded": 2, "cancelled": 9}


def test_a_put_back_operation_is_cancelled_and_comes_out(gate: Gate) -> None:
    """It waits at the side for the one worker that may take it, which is busy."""

    class Picky(JobWorker):
        def process(self, op: Job) -> None:
            if op.gate is None:
                rejected.set()
                raise Reject
            super().process(op)

    rejected = threading.Event()
    pool = start(Picky(), Picky())
    hold(pool, gate)
    stream = pool.execute([op := Job()])
    assert rejected.wait(LONG)  # before that it is queued as well, where the idle worker is about to take it
    wait_until(lambda: pool.stats().queued == 1)
    assert op.cancel()
    assert stream.get(LONG) is op
    assert list(stream) == []
    gate.opened.set()
    assert pool.shutdown() == []
    assert counts(pool.stats()) == {"succeeded": 1, "cancelled": 1}


# The stuck


def test_only_the_stuck_are_named_and_interrupted(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """One that is idle is neither."""
    stubborn = Gate()
    freed, held, idle = Interruptible(gate), JobWorker(), Interruptible(Gate())
    freed.mine, held.mine, idle.mine = [gate], [stubborn], []
    pool = start(freed, held, idle)
    op, stuck = hold(pool, gate), hold(pool, stubborn)
    with caplog.at_level(logging.WARNING, "ringmill"):
        assert pool.shutdown(timeout=SHORT) == []
    assert freed.interrupted_from == [threading.get_ident()]  # from the thread that shuts down
    assert idle.interrupted_from == []
    assert op.wait(LONG)
    assert (op.outcome, stuck.outcome) == (Outcome.SUCCEEDED, Outcome.PENDING)
    texts = stuck_in_log(caplog)
    assert [text.split()[1] for text in texts] == ["mill-1"]
    assert "in process" in texts[0]  # with its stack
    stubborn.opened.set()
    assert pool.shutdown() == []
    assert stuck.outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupt_that_raises_stops_nothing(
    kind: type[BaseException], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(Interruptible):
        def interrupt(self) -> None:
            super().interrupt()
            raise kind("from interrupt")

    worker, other = Bad(gate), Bad(gate)
    pool = start(worker, other)
    op, second = hold(pool, gate), hold(pool, gate)
    pending = pool.do(Job())
    with caplog.at_level(logging.WARNING, "ringmill"):
        if kind is KeyboardInterrupt:  # on the main thread it is the program's
            with pytest.raises(KeyboardInterrupt, match="from interrupt"):
                pool.shutdown(timeout=SHORT)
        else:
            assert pool.shutdown(timeout=SHORT) == [pending]
    assert op.wait(LONG)
    assert second.wait(LONG)
    assert pending.outcome is Outcome.CANCELLED
    assert worker.interrupted_from == other.interrupted_from == [threading.get_ident()]
    logged = [record for record in caplog.records if record.exc_info and isinstance(record.exc_info[1], kind)]
    assert len(logged) == (0 if kind is KeyboardInterrupt else 2)
    assert pool.shutdown() == []
    assert worker.calls == ["init", "process", "cleanup"]


def test_no_worker_is_interrupted_before_the_timeout(gate: Gate) -> None:
    worker = Interruptible(gate)
    pool = start(worker)
    op = hold(pool, gate)
    shutter = start_threads(lambda: pool.shutdown(timeout=LONG))
    wait_until(lambda: "shutting down" in repr(pool))
    gate.opened.set()
    assert shutter.join() == [[]]
    assert (op.outcome, worker.interrupted_from) == (Outcome.SUCCEEDED, [])


def test_the_streams_of_a_stuck_operation_end_without_it(gate: Gate) -> None:
    pool = start()
    batch = [Job(gate), Job(), Job()]
    ordered = [Job(), Job()]
    streams: list[Stream[Job]] = [pool.execute(batch), pool.wrap(ordered, ordered=True, drawn_by="thread")]
    assert gate.reached.acquire(timeout=LONG)
    wait_until(lambda: pool.stats().accepted == 5)
    readers = start_threads(*[lambda stream=stream: read(stream) for stream in streams])
    assert sorted(map(id, pool.shutdown(timeout=SHORT))) == sorted(map(id, [*batch[1:], *ordered]))
    assert readers.join() == [batch[1:], ordered]
    with pytest.raises(PoolNotRunning):
        streams[0].get(LONG)
    assert batch[0].outcome is Outcome.PENDING
    gate.opened.set()
    assert batch[0].wait(LONG)
    assert batch[0].outcome is Outcome.SUCCEEDED
    with pytest.raises(PoolNotRunning):  # it does not come out any more
        streams[0].get(LONG)
    assert pool.shutdown() == []


def test_an_ordered_stream_shows_no_gap_where_the_stuck_operation_would_be(gate: Gate) -> None:
    pool = start(JobWorker(), JobWorker())
    jobs = [Job(), Job(gate), Job(), Job()]
    stream = pool.wrap(jobs, ordered=True, drawn_by="thread")
    assert all(op.wait(LONG) for op in [jobs[0], *jobs[2:]])
    assert pool.shutdown(timeout=SHORT) == []
    assert read(stream) == jobs[:1]
    assert [op.outcome is Outcome.SUCCEEDED for op in jobs] == [True, False, True, True]
    gate.opened.set()
    assert pool.shutdown() == []
    assert read(stream) == []


def test_start_is_refused_while_a_worker_is_stuck_and_its_late_result_is_discarded(gate: Gate) -> None:
    pool = start(JobWorker(), JobWorker())
    held = hold(pool, gate)
    assert pool.shutdown(timeout=0) == []
    with pytest.raises(RuntimeError, match="mill-"):
        pool.start(timeout=SHORT)
    with pytest.raises(PoolNotRunning):
        pool.do(Job())
    starter = start_threads(pool.start)  # without a timeout it waits
    gate.opened.set()
    starter.join()
    assert held.wait(LONG)
    with pool:
        assert counts(pool.stats()) == {}  # not of this run
        assert list(pool.execute([op := Job()])) == [op]
        assert counts(pool.stats()) == {"succeeded": 1}


@pytest.mark.parametrize("name", ["retry", "delay", "reject", "fail", "crash"])
def test_a_stuck_operation_ends_whatever_it_does_later(name: str, gate: Gate) -> None:
    """The other worker has left, so no worker could take what is put back."""
    errors = {"retry": Retry(), "delay": Retry(delay=HOUR), "reject": Reject(), "fail": ValueError()}
    pool = start(JobWorker(), JobWorker())
    held = hold(pool, gate, errors.get(name, SystemExit()))
    assert pool.shutdown(timeout=0) == []
    gate.opened.set()
    assert held.wait(LONG)
    assert held.outcome in (Outcome.FAILED, Outcome.CANCELLED)
    assert (held.error is None) == (held.outcome is Outcome.CANCELLED)
    assert pool.shutdown() == []
    stats = pool.stats()
    assert (stats.accepted, stats.failed + stats.cancelled) == (1, 1)


@pytest.mark.parametrize("how", ["execute", "reader", "thread", "ring"])
def test_a_stream_of_which_only_the_stuck_operation_is_left_ends(how: str, gate: Gate) -> None:
    """Its source is exhausted, and everything else has been read."""
    pool = start(JobWorker(), JobWorker())
    jobs = [Job(), Job(gate)]
    if how == "execute":
        stream = pool.execute(jobs)
    elif how == "ring":
        ring = RingBuffer[Job](2)
        ring.put_many(jobs)
        ring.close()
        stream = pool.wrap(ring)
    else:
        stream = pool.wrap(jobs, drawn_by=how)  # type: ignore[arg-type]
    assert stream.get(LONG) is jobs[0]
    reader = start_threads(lambda: read(stream))
    assert gate.reached.acquire(timeout=LONG)
    wait_until(lambda: stream.total == 2)
    for _ in range(3):
        assert pool.do(Job()).wait(LONG)  # the other worker has looked for more
    assert pool.shutdown(timeout=SHORT) == []
    assert reader.join() == [[]]
    with pytest.raises(PoolNotRunning):
        stream.get(LONG)
    gate.opened.set()
    assert pool.shutdown() == []
    assert jobs[1].outcome is Outcome.SUCCEEDED


def test_a_worker_stuck_in_cleanup_is_named(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    class Slow(JobWorker):
        def cleanup(self) -> None:
            assert gate.opened.wait(LONG)

    pool = start(Slow())
    op = pool.do(Job())
    with caplog.at_level(logging.WARNING, "ringmill"):
        assert pool.shutdown(timeout=0.2) == []
    assert op.outcome is Outcome.SUCCEEDED
    assert ["mill-0" in text and "in cleanup" in text for text in stuck_in_log(caplog)] == [True]
    gate.opened.set()
    assert pool.shutdown() == []
