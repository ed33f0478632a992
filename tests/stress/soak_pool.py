"""A soak of WorkerPool: each accepted operation ends once, and the counters agree, while everything fails at random.

`python tests/stress/soak_pool.py SECONDS [SEED]` runs rounds, each a pool of other workers, limits and queue size,
and three callers who hand over by `do`, `ado`, `execute` and `wrap`, of iterables, async iterables and rings, and
cancel some. Operations succeed, fail, are retried, delayed, rejected, crash their worker or find it broken, hand over
others from within and wait for them; `init` fails at times; readers share a stream, or leave early; the pool is shut
down at a random moment, in a random manner, or breaks. A round accounts for every operation by what its caller saw:
accepted or refused, done() once, out of its stream once, an outcome; and the sums against `stats()`. On a GIL build
the switch interval is a microsecond. Prints the figures, and the seed of a round that differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from ringmill import (
    BrokenPool,
    Closed,
    Operation,
    Outcome,
    PoolNotRunning,
    Reject,
    Retry,
    RingBuffer,
    Stream,
    Worker,
    WorkerInitError,
    WorkerPool,
)
from tests.stress.soak_ring import soak
from tests.threads import run_threads, start_threads

CALLERS = 3
WORDS = ["succeed"] * 8 + ["retry", "retry", "delay", "reject", "fail", "fail", "crash", "broken", "more", "wait"]
ENDED = (PoolNotRunning, BrokenPool)


class Crash(BaseException):
    """Out of process: the worker restarts."""


class Leave(Exception):
    """Out of the body of `with`."""


class Job(Operation):
    """What is to happen to it, a word for each time that it is processed; then it succeeds."""

    def __init__(self, script: list[str]) -> None:
        self.script = script
        self.processed = 0
        self.told: list[Outcome] = []
        self.children: list[Job] = []  # handed over, and accepted, while it was processed

    def done(self) -> None:
        self.told.append(self.outcome)
        super().done()


class Actor(Worker[Job]):
    """Does to an operation what its script says."""

    pool: WorkerPool[Job]

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.begun = self.ended = 0

    def init(self) -> None:
        self.begun += 1
        if self.rng.random() < 0.05:
            raise OSError("init fails now and then")

    def process(self, op: Job) -> None:
        turn = op.processed
        op.processed += 1
        match op.script[turn] if turn < len(op.script) else "succeed":
            case "retry":
                raise Retry
            case "delay":
                raise Retry(delay=0.001)
            case "reject":
                raise Reject
            case "fail":
                raise ValueError("as asked")
            case "broken":
                raise LookupError("and the worker with it")
            case "crash":
                raise Crash
            case "more" | "wait" as word:
                child = Job(self.rng.choices(["succeed", "retry", "fail", "more"], k=2))
                with contextlib.suppress(*ENDED):
                    self.pool.do(child)
                    op.children.append(child)
                    if word == "wait":
                        with contextlib.suppress(RuntimeError):  # no worker would be left
                            child.wait()

    def handle_error(self, error: BaseException, op: Job) -> None:
        if isinstance(error, LookupError):
            raise OSError("broken")

    def cleanup(self) -> None:
        self.ended += 1


@dataclass
class Batch:
    """What was handed over by one call, and what its caller saw of it."""

    jobs: list[Job]
    came: list[Job] = field(default_factory=list)  # out of the stream
    accepted: bool | None = None  # None: those that a wrap drew are accepted, unless the pool ended at that moment
    ordered: bool = False
    ended: bool = False  # the stream was read to its end, or to the error that said that the pool has ended
    complete: bool = False  # and it was the end of the source


class Caller:
    """Hands operations over until it has had its turns, or the pool ends."""

    def __init__(self, pool: WorkerPool[Job], rng: random.Random) -> None:
        self.pool = pool
        self.rng = rng
        self.batches: list[Batch] = []

    def make(self) -> Job:
        return Job(self.rng.choices(WORDS, k=self.rng.randrange(4)))

    def batch(self, count: int) -> Batch:
        batch = Batch([self.make() for _ in range(count)])
        self.batches.append(batch)
        return batch

    def run(self) -> None:
        ways = [self.do, self.execute, self.wrap, self.wrap_a_ring, self.in_a_loop]
        for _ in range(self.rng.randrange(1, 40)):
            try:
                self.rng.choice(ways)()
            except ENDED:
                if self.rng.random() < 0.3:
                    return

    def cancel_some(self, batch: Batch) -> None:
        for job in batch.jobs:
            if self.rng.random() < 0.2:
                job.cancel()

    def do(self) -> None:
        batch = self.batch(1)
        batch.accepted = False
        with contextlib.suppress(queue.Full):
            self.pool.do(batch.jobs[0], self.rng.choice([0, 1e-6, 1e-3, None]))
            batch.accepted = True
            self.cancel_some(batch)
            if self.rng.random() < 0.3:
                assert batch.jobs[0].wait()

    def execute(self) -> None:
        batch = self.batch(self.rng.randrange(20))
        batch.accepted = False
        stream = self.pool.execute(batch.jobs)
        batch.accepted = True
        self.cancel_some(batch)
        self.read(stream, batch)

    def wrap(self) -> None:
        batch = self.batch(0)
        count = self.rng.randrange(20)

        def source() -> Iterator[Job]:
            for _ in range(count):
                batch.jobs.append(self.make())
                yield batch.jobs[-1]

        self.read_wrap(source(), batch, drawn_by=self.rng.choice(["reader", "thread"]))

    def wrap_a_ring(self) -> None:
        batch = self.batch(self.rng.randrange(8))
        ring = RingBuffer[Job](8)
        ring.put_many(batch.jobs)
        ring.close()
        self.read_wrap(ring, batch)

    def read_wrap(self, source: Any, batch: Batch, **settings: Any) -> None:
        batch.ordered = self.rng.random() < 0.5
        stream = self.pool.wrap(source, buffer=self.rng.randrange(1, 5), ordered=batch.ordered, **settings)
        self.read(stream, batch)

    def read(self, stream: Stream[Job], batch: Batch) -> None:
        leave_after = self.rng.randrange(20) if self.rng.random() < 0.2 else None
        if leave_after is None and self.rng.random() < 0.2:
            parts = [Batch([]), Batch([])]
            run_threads(*[lambda part=part: self.read_alone(stream, part, None) for part in parts])
            batch.came = parts[0].came + parts[1].came
            batch.ended, batch.complete = parts[0].ended, parts[0].complete
        else:
            self.read_alone(stream, batch, leave_after)

    def read_alone(self, stream: Stream[Job], batch: Batch, leave_after: int | None) -> None:
        many = self.rng.random() < 0.3
        try:
            while leave_after is None or len(batch.came) < leave_after:
                if many:
                    batch.came += stream.get_many(self.rng.choice([None, 1, 3]))
                else:
                    batch.came.append(stream.get())
            if self.rng.random() < 0.5:
                stream.close()  # otherwise it is dropped
        except Closed:
            batch.ended = batch.complete = True
        except ENDED:
            batch.ended = True

    def in_a_loop(self) -> None:
        asyncio.run(self.some_tasks())

    async def some_tasks(self) -> None:
        tasks = [asyncio.ensure_future(self.rng.choice([self.ado, self.ado, self.awrap])()) for _ in range(4)]
        for _ in range(self.rng.randrange(4)):
            await asyncio.sleep(0)
        if self.rng.random() < 0.3:
            tasks[0].cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, (asyncio.CancelledError, *ENDED)):
                raise result

    async def ado(self) -> None:
        batch = self.batch(1)
        batch.accepted = False
        await self.pool.ado(batch.jobs[0])
        batch.accepted = True
        await batch.jobs[0]

    async def awrap(self) -> None:
        batch = self.batch(0)

        async def source() -> AsyncIterator[Job]:
            for _ in range(5):
                batch.jobs.append(self.make())
                yield batch.jobs[-1]
                await asyncio.sleep(0)

        try:
            async for job in self.pool.wrap(source(), buffer=2):
                batch.came.append(job)
            batch.ended = batch.complete = True
        except ENDED:
            batch.ended = True


def check(batch: Batch, stuck: int) -> list[Job]:
    """Returns those that were accepted.

    Streams that a timeout ended are without what so many workers had in hand, and, in order, what comes behind that.
    """
    accepted = [job for job in batch.jobs if job.outcome is not Outcome.PENDING]
    if batch.accepted is not None:
        assert len(accepted) == (len(batch.jobs) if batch.accepted else 0), "accepted, or refused"
    if batch.complete:
        assert len(accepted) == len(batch.jobs), "drawn to the end of the source, and not accepted"
    for job in family(batch.jobs):
        assert job.told == ([] if job.outcome is Outcome.PENDING else [job.outcome]), "done(), once, after the outcome"
        assert job.outcome is not Outcome.PENDING or not job.processed, "processed, and not accepted"
    came = Counter(map(id, batch.came))
    assert all(count == 1 for count in came.values()), "it came out twice"
    assert came.keys() <= set(map(id, accepted)), "it came out, and has no outcome"
    if batch.ended:
        missing = [job for job in accepted if id(job) not in came]
        allowed = 0 if batch.complete or not stuck else len(missing) if batch.ordered else stuck
        assert len(missing) <= allowed, f"did not come out: {missing}, {stuck=}, {batch}"
    return family(accepted)


def family(jobs: list[Job]) -> list[Job]:
    """With those that were handed over from within."""
    return [*jobs, *(each for job in jobs for each in family(job.children))]


def one_round(seed: int) -> Counter[str]:
    """Returns figures. Raises AssertionError on a difference."""
    rng = random.Random(seed)
    workers = [Actor(random.Random(rng.random())) for _ in range(rng.choice([1, 2, 4]))]
    restarts = rng.choice([0, 2, 8, None, None])
    pool = WorkerPool[Job](
        workers,
        queue_size=rng.choice([1, 3, 64]),
        max_tries=rng.choice([1, 3, None]),
        max_restarts=restarts,
        restart_pause=0.0 if restarts is None else 1e-4,  # which doubles with each crash
    )
    for worker in workers:
        worker.pool = pool
    callers = [Caller(pool, random.Random(rng.random())) for _ in range(CALLERS)]
    how = rng.choice(["finish", "cancel", "timeout", "raise", "after them"])
    cancelled: list[Job] = []
    accepted: list[Job] = []
    try:
        with contextlib.suppress(Leave), pool:
            calls = start_threads(*[caller.run for caller in callers])
            try:
                if how == "after them":
                    calls.join()
                time.sleep(rng.random() * 0.02)  # a random moment
                match how:
                    case "finish":
                        pool.shutdown()
                    case "cancel":
                        cancelled = pool.shutdown(cancel_pending=True)
                    case "timeout":
                        cancelled = pool.shutdown(timeout=0.001)
                    case "raise":
                        raise Leave
            finally:
                if how != "raise":
                    calls.join()
        calls.join()
    except WorkerInitError:
        return Counter(rounds=1)
    pool.shutdown()
    for caller in callers:
        for batch in caller.batches:
            accepted += check(batch, len(workers) if how == "timeout" else 0)
    stats = pool.stats()
    outcomes = Counter(job.outcome for job in accepted)
    booked = {
        Outcome.SUCCEEDED: stats.succeeded,
        Outcome.FAILED: stats.failed,
        Outcome.CANCELLED: stats.cancelled,
    }
    assert {outcome: outcomes[outcome] for outcome in booked} == booked, "the counts do not agree"
    assert stats.accepted == len(accepted)
    assert stats.tries == sum(job.tries for job in accepted)
    assert (stats.queued, stats.running, stats.delayed) == (0, 0, 0)
    assert all(job.outcome is Outcome.CANCELLED for job in cancelled)
    assert len(set(map(id, cancelled))) == len(cancelled)
    assert all(worker.begun == worker.ended for worker in workers), "cleanup(), once after each init()"
    return Counter(
        rounds=1,
        accepted=len(accepted),
        failed=stats.failed,
        cancelled=stats.cancelled,
        restarts=stats.restarts,
        refused=sum(
            job.outcome is Outcome.PENDING for caller in callers for each in caller.batches for job in each.jobs
        ),
    )


if __name__ == "__main__":
    logging.disable()
    soak(one_round)
