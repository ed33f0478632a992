"""A pool's counters agree with those of its callers, order is kept, and nothing is held in the end.

Law 1: accepted = queued + running + delayed + succeeded + failed + cancelled, at every moment. `queued` is derived from
the others, so that sum alone could not go wrong: what can is that a part of it is negative, goes back, runs ahead of
what callers have handed over, or lags behind what workers have done. That is what is compared here.
"""

from __future__ import annotations

import gc
import random
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringmill import Operation, Outcome, PoolStats, Reject, Retry, RingBuffer, Stream, Worker, WorkerPool
from tests.threads import LONG, run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


PARTS = ("queued", "running", "delayed", "succeeded", "failed", "cancelled")
GROWING = ("accepted", "succeeded", "failed", "cancelled", "tries", "restarts")


class Job(Operation):
    """What is to happen to it, one word for each time that it is processed; then it succeeds."""

    def __init__(self, *script: str, ledger: Ledger | None = None) -> None:
        self.script = script
        self.ledger = ledger
        self.seen_by: list[int] = []

    def done(self) -> None:
        super().done()
        if self.ledger is not None:
            self.ledger.done.append(self.outcome)


class Ledger:
    """The callers' own accounts. Lists, since appending is atomic and their length only grows."""

    def __init__(self) -> None:
        self.before: list[None] = []  # about to be handed over
        self.after: list[None] = []  # handed over
        self.entered: list[None] = []  # process called
        self.done: list[Outcome] = []


class Actor(Worker[Job]):
    """Does to an operation what its script says."""

    def __init__(self, index: int = 0) -> None:
        self.index = index

    def process(self, op: Job) -> None:
        turn = len(op.seen_by)
        op.seen_by.append(self.index)
        if op.ledger is not None:
            op.ledger.entered.append(None)
        word = op.script[turn] if turn < len(op.script) else "succeed"
        if word == "retry":
            raise Retry
        if word == "delay":
            raise Retry(delay=0.001)
        if word == "reject":
            raise Reject
        if word == "fail":
            raise ValueError("as asked")

    def handle_error(self, error: BaseException, op: Job) -> None:
        pass


def figures(stats: PoolStats) -> dict[str, int]:
    return {name: getattr(stats, name) for name in (*PARTS, "accepted")}


def expect(**nonzero: int) -> dict[str, int]:
    return {**dict.fromkeys((*PARTS, "accepted"), 0), **nonzero}


# Law 1 at rest


def test_the_books_before_and_after() -> None:
    pool = WorkerPool([Actor(), Actor()])
    assert figures(pool.stats()) == expect()
    with pool:
        assert figures(pool.stats()) == expect()
        list(pool.execute([Job() for _ in range(5)]))
        assert figures(pool.stats()) == expect(accepted=5, succeeded=5)
    assert figures(pool.stats()) == expect(accepted=5, succeeded=5)
    with pool:
        assert figures(pool.stats()) == expect()  # a new run, new counts


def test_every_part_of_the_books_in_turn() -> None:
    begun, gate = threading.Semaphore(0), threading.Event()

    class Gated(Actor):
        def process(self, op: Job) -> None:
            if op.script == ("gate",):
                begun.release()
                assert gate.wait(LONG)
            elif op.script == ("later",):
                raise Retry(delay=3600)
            else:
                super().process(op)

    with WorkerPool([Gated()]) as pool:
        assert pool.do(Job()).wait(LONG)
        assert pool.do(Job("fail")).wait(LONG)
        assert figures(pool.stats()) == expect(accepted=2, succeeded=1, failed=1)
        later = pool.do(Job("later"))
        wait_until(lambda: pool.stats().delayed == 1)
        assert figures(pool.stats()) == expect(accepted=3, succeeded=1, failed=1, delayed=1)
        assert pool.stats().tries == 1
        running = pool.do(Job("gate"))
        assert begun.acquire(timeout=LONG)
        queued = [pool.do(Job()) for _ in range(3)]
        assert figures(pool.stats()) == expect(accepted=7, succeeded=1, failed=1, delayed=1, running=1, queued=3)
        assert later.cancel()
        assert figures(pool.stats()) == expect(accepted=7, succeeded=1, failed=1, cancelled=1, running=1, queued=3)
        gate.set()
        assert all(op.wait(LONG) for op in [running, *queued])
        assert figures(pool.stats()) == expect(accepted=7, succeeded=5, failed=1, cancelled=1)


def test_a_cancelled_operation_is_counted_before_its_outcome_is_seen() -> None:
    begun, gate = threading.Event(), threading.Event()

    class Gated(Worker[Job]):
        def process(self, op: Job) -> None:
            begun.set()
            assert gate.wait(LONG)

    with WorkerPool([Gated()]) as pool:
        pool.do(Job())
        assert begun.wait(LONG)
        waiting = [pool.do(Job()) for _ in range(3)]
        assert waiting[1].cancel()
        counted = figures(pool.stats())
        gate.set()
        assert counted == expect(accepted=4, running=1, queued=2, cancelled=1)


@pytest.mark.parametrize("workers", [1, 4])
def test_the_books_agree_with_the_callers_at_rest(workers: int, seed: int, switch_interval: float) -> None:
    """The moment that all are done, not a moment later."""
    rng = random.Random(seed)
    pool = WorkerPool([Actor(k) for k in range(workers)], queue_size=3)
    with pool:
        for _ in range(10):
            jobs = [Job(*rng.choices(["retry", "delay", "fail", "succeed"], k=rng.randrange(4))) for _ in range(30)]
            before = pool.stats()
            stream = pool.execute(jobs[:15])
            for job in jobs[15:]:
                pool.do(job)
            cancelled = sum(job.cancel() for job in rng.sample(jobs, 5))
            assert all(job.wait(LONG) for job in jobs)
            assert len(list(stream)) == 15
            if cancelled:
                wait_until(lambda before=before: pool.stats().queued == 0)  # see the test of cancellation above
            after = pool.stats()
            outcomes = Counter(job.outcome for job in jobs)
            grown = {name: getattr(after, name) - getattr(before, name) for name in GROWING}
            assert grown == {
                "accepted": 30,
                "succeeded": outcomes[Outcome.SUCCEEDED],
                "failed": outcomes[Outcome.FAILED],
                "cancelled": outcomes[Outcome.CANCELLED],
                "tries": sum(job.tries for job in jobs),
                "restarts": 0,
            }
            assert outcomes[Outcome.CANCELLED] == cancelled
            assert (after.queued, after.running, after.delayed) == (0, 0, 0)
    total = pool.stats()
    for name in ("succeeded", "failed", "running", "tries", "restarts"):
        assert sum(getattr(row, name) for row in total.workers) == getattr(total, name)


# Law 1 all the time


def watch(pool: WorkerPool[Job], ledger: Ledger, workers: int, ended: threading.Event) -> int:
    """Asserts law 1 until the end; returns how often."""
    looks = 0
    last = dict.fromkeys(GROWING, 0)
    while not ended.is_set() or not looks:
        after, done = len(ledger.after), Counter(ledger.done[:])
        stats = pool.stats()
        before, entered = len(ledger.before), len(ledger.entered)
        now = {name: getattr(stats, name) for name in GROWING}
        where = (now, last, after, before, entered, done)
        assert stats.accepted == sum(getattr(stats, name) for name in PARTS), where
        assert all(getattr(stats, name) >= 0 for name in PARTS), where
        assert all(now[name] >= last[name] for name in GROWING), where
        assert stats.running <= workers, where
        assert after <= stats.accepted <= before, where
        assert stats.succeeded + stats.failed <= entered, where
        assert stats.tries <= entered, where
        assert done[Outcome.SUCCEEDED] <= stats.succeeded, where
        assert done[Outcome.FAILED] <= stats.failed, where
        last = now
        looks += 1
    return looks


@pytest.mark.stress
@pytest.mark.parametrize("queue_size", [1, 64])
def test_law_1_holds_all_the_time(queue_size: int, seed: int, switch_interval: float) -> None:
    workers, callers, rounds = 3, 3, 25
    ledger = Ledger()
    ended = threading.Event()
    jobs: list[list[Job]] = [[] for _ in range(callers)]
    came: list[list[Job]] = [[] for _ in range(callers)]
    words = ["retry", "delay", "reject", "fail", "succeed", "succeed"]

    def call(pool: WorkerPool[Job], index: int) -> None:
        rng = random.Random(seed + index)

        def make() -> Job:
            job = Job(*rng.choices(words, k=rng.randrange(4)), ledger=ledger)
            jobs[index].append(job)
            ledger.before.append(None)
            return job

        def draw(count: int) -> Iterator[Job]:
            for _ in range(count):
                yield make()

        for _ in range(rounds):
            batch: list[Job] = []
            stream: Stream[Job] | None = None
            match rng.randrange(5):
                case 0:
                    batch = [make() for _ in range(rng.randrange(1, 8))]
                    stream = pool.execute(batch)
                case 1:
                    count = rng.randrange(8)
                    batch = list(pool.wrap(draw(count), buffer=rng.randrange(1, 4), ordered=rng.random() < 0.5))
                    came[index] += batch
                case 2:
                    count = rng.randrange(8)
                    batch = list(pool.wrap(draw(count), buffer=rng.randrange(1, 4), drawn_by="thread"))
                    came[index] += batch
                case 3:
                    batch = [pool.do(make()) for _ in range(rng.randrange(1, 4))]
                case 4:
                    ring = RingBuffer[Job](8)
                    ring.put_many(draw(rng.randrange(8)))
                    ring.close()
                    batch = list(pool.wrap(ring, buffer=rng.randrange(1, 4), ordered=rng.random() < 0.5))
                    came[index] += batch
            ledger.after.extend([None] * len(batch))
            if rng.random() < 0.3 and batch:
                rng.choice(batch).cancel()
            if stream is not None:
                came[index] += stream
            else:
                for job in batch:
                    assert job.wait(LONG)
                    if job not in came[index]:
                        came[index].append(job)

    with WorkerPool([Actor(k) for k in range(workers)], queue_size=queue_size, max_tries=None) as pool:
        watcher = start_threads(lambda: watch(pool, ledger, workers, ended))
        try:
            run_threads(*[lambda k=k: call(pool, k) for k in range(callers)])
        finally:
            ended.set()
        assert watcher.join()[0] > 0
    for mine, out in zip(jobs, came, strict=True):
        assert sorted(map(id, out)) == sorted(map(id, mine))  # each once
    outcomes = Counter(job.outcome for mine in jobs for job in mine)
    stats = pool.stats()
    total = sum(map(len, jobs))
    assert figures(stats) == expect(
        accepted=total,
        succeeded=outcomes[Outcome.SUCCEEDED],
        failed=outcomes[Outcome.FAILED],
        cancelled=outcomes[Outcome.CANCELLED],
    )
    assert len(ledger.done) == total  # done() once each
    assert Counter(ledger.done) == outcomes


# Law 2: counted, then the outcome, then done(), then the stream


@pytest.mark.parametrize("script", [(), ("fail",), ("retry",), ("retry", "fail")])
def test_counted_then_outcome_then_done_then_stream(script: tuple[str, ...]) -> None:
    saw: list[tuple[int, Outcome, bool, int]] = []
    started = threading.Event()
    streams: list[Stream[Job]] = []

    class Telling(Job):
        def done(self) -> None:
            assert started.wait(LONG)
            stats = pool.stats()
            saw.append((stats.succeeded + stats.failed, self.outcome, self.wait(0), streams[0].ready))
            super().done()

    # One worker and no reader, so that each number is exact.
    with WorkerPool([Actor()]) as pool:
        ops = [Telling(*script) for _ in range(4)]
        streams.append(pool.execute(ops))
        started.set()
        assert all(op.wait(LONG) for op in ops)
        wait_until(lambda: streams[0].ready == 4)
        assert len(list(streams[0])) == 4
    outcome = Outcome.FAILED if "fail" in script else Outcome.SUCCEEDED
    assert saw == [(k + 1, outcome, False, k) for k in range(4)]


def test_an_operation_is_counted_before_its_waiters_and_readers_see_it(switch_interval: float) -> None:
    with WorkerPool([Actor(), Actor()]) as pool:

        def read(stream: Stream[Job]) -> None:
            for op in stream:
                assert op.outcome is not Outcome.PENDING
                assert op.wait(0)
                read_so_far.append(None)
                count = len(read_so_far)
                stats = pool.stats()
                assert stats.succeeded + stats.failed >= count

        read_so_far: list[None] = []
        stream = pool.execute([Job("fail") if k % 3 else Job() for k in range(200)])
        run_threads(lambda: read(stream), lambda: read(stream))
        assert len(read_so_far) == 200


# References


class Thing:
    """Something that can be weakly referenced."""


def all_gone(references: list[weakref.ref[Any]]) -> bool:
    gc.collect()
    return all(reference() is None for reference in references)


USES: list[Any] = [
    pytest.param(lambda pool, ops: [pool.do(op).wait(LONG) for op in ops], id="do"),
    pytest.param(lambda pool, ops: list(pool.execute(ops)), id="execute"),
    pytest.param(lambda pool, ops: pool.execute(ops).get(LONG), id="execute, one read"),
    pytest.param(lambda pool, ops: list(pool.wrap(ops, buffer=2)), id="wrap"),
    pytest.param(lambda pool, ops: list(pool.wrap(ops, buffer=2, ordered=True)), id="wrap, ordered"),
    pytest.param(lambda pool, ops: pool.wrap(ops, buffer=2).get(LONG), id="wrap, one read"),
    pytest.param(lambda pool, ops: list(pool.wrap(ops, buffer=2, drawn_by="thread")), id="wrap, thread"),
    pytest.param(lambda pool, ops: pool.wrap(ops, drawn_by="thread").close(), id="wrap, thread, closed"),
]


@pytest.mark.parametrize("script", [(), ("fail",), ("retry",), ("delay",)])
@pytest.mark.parametrize("use", USES)
def test_a_running_pool_releases_ended_operations(use: Callable[..., Any], script: tuple[str, ...]) -> None:
    thing = Thing()
    before = sys.getrefcount(thing)
    with WorkerPool([Actor(), Actor()]) as pool:
        ops = [Job(*script) for _ in range(6)]
        for op in ops:
            op.thing = thing  # type: ignore[attr-defined]
        references = [weakref.ref(op) for op in ops]
        use(pool, ops)
        del op, ops
        wait_until(lambda: all_gone(references))
        wait_until(lambda: sys.getrefcount(thing) == before)  # what it held goes after its weak references
        assert pool.stats().running == 0


def test_errors_are_let_go_with_their_operation() -> None:
    """An error holds its traceback, that the frame, and the frame the operation."""

    class Lost(Exception):  # one of ours, since a built-in one cannot be weakly referenced
        pass

    class Failing(Worker[Job]):
        def process(self, op: Job) -> None:
            error = Lost(op)
            references.append(weakref.ref(error))
            raise error

        def handle_error(self, error: BaseException, op: Job) -> None:
            pass

    references: list[weakref.ref[Any]] = []
    with WorkerPool([Failing()]) as pool:
        for op in pool.execute([Job() for _ in range(5)]):
            assert isinstance(op.error, Lost)
            references.append(weakref.ref(op))
        del op
        wait_until(lambda: all_gone(references))
        assert len(references) == 10


def test_pools_workers_and_streams_are_collected() -> None:
    worker = Actor()
    pool = WorkerPool([worker])
    with pool:
        stream = pool.execute([Job() for _ in range(3)])
        assert len(list(stream)) == 3
        wrapped = pool.wrap([Job() for _ in range(3)])
        assert len(list(wrapped)) == 3
    references = [weakref.ref(thing) for thing in (worker, pool)]
    del worker, pool, stream, wrapped
    wait_until(lambda: all_gone(references))
