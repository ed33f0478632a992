"""Random sequences of start, do, execute, wrap, cancel, crash, retry, reject, shutdown, compared with a simple model.

The model knows only what the contract says: whether the pool accepts, which operations it has accepted, and what each
may have become. Workers run at the same time, so it never says when.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringmill import (
    BrokenPool,
    Operation,
    OperationReused,
    Outcome,
    PoolNotRunning,
    Reject,
    RetriesExhausted,
    Retry,
    Stream,
    Unroutable,
    Worker,
    WorkerPool,
)
from tests.threads import LONG, wait_until

WORKERS, MAX_TRIES = 2, 3

#: What may happen to an operation each time that it is processed, until it ends.
WORDS = ["succeed", "fail", "retry", "delay", "reject", "crash"]


class Job(Operation):
    def __init__(self, script: list[str]) -> None:
        self.script = script
        self.turn = 0
        self.ends: list[Outcome] = []

    def done(self) -> None:
        self.ends.append(self.outcome)
        super().done()


class Actor(Worker[Job]):
    def process(self, op: Job) -> None:
        word = op.script[op.turn] if op.turn < len(op.script) else "succeed"
        op.turn += 1
        match word:
            case "fail":
                raise LookupError("as asked")
            case "retry":
                raise Retry
            case "delay":
                raise Retry(delay=0.001)
            case "reject":
                raise Reject
            case "crash":
                raise GeneratorExit("as asked")

    def handle_error(self, error: BaseException, op: Job) -> None:
        pass


def possible_end(script: list[str]) -> tuple[Outcome, type[BaseException] | None, int]:
    """What becomes of it if it is not cancelled and all workers live: outcome, error, tries."""
    tries = rejected = 0
    for word in script:
        match word:
            case "succeed":
                break
            case "fail":
                return Outcome.FAILED, LookupError, tries
            case "crash":
                return Outcome.FAILED, GeneratorExit, tries
            case "reject":
                rejected += 1
                if rejected == WORKERS:
                    return Outcome.FAILED, Unroutable, tries
            case _:
                tries += 1
                if tries == MAX_TRIES:
                    return Outcome.FAILED, RetriesExhausted, tries
    return Outcome.SUCCEEDED, None, tries


class PoolMachine(RuleBasedStateMachine):
    scripts = st.lists(st.sampled_from(WORDS), max_size=4)

    @initialize(queue_size=st.sampled_from([1, 2, 8]))
    def create(self, queue_size: int) -> None:
        self.threads = set(threading.enumerate())
        self.pool: WorkerPool[Job] = WorkerPool(
            [Actor() for _ in range(WORKERS)],
            queue_size=queue_size,
            max_tries=MAX_TRIES,
            max_restarts=None,
            restart_pause=0,
        )
        self.accepts = False
        self.run: list[Job] = []  # accepted in this run
        self.spare: list[Job] = []  # refused: still new
        self.finished: list[Job] = []
        self.cancelled: set[int] = set()  # those of which cancel() or shutdown() said so
        self.maybe_cancelled: set[int] = set()  # their stream was closed
        self.streams: list[tuple[Stream[Job], list[Job], list[Job]]] = []  # what is to come out, what came

    def make(self, script: list[str]) -> Job:
        """A new operation, or one that was refused: that one is new, too."""
        return self.spare.pop() if self.spare else Job(script)

    # ------------------------------------------------------------------------------------------------------------

    @rule()
    def start(self) -> None:
        if not self.accepts:
            self.check_end_of_run()
            self.pool.start()
            self.run = []
            self.cancelled.clear()  # by id: theirs may be taken by new ones
            self.maybe_cancelled.clear()
            self.accepts = True
        else:
            self.pool.start()  # does nothing

    @rule(script=scripts)
    def do(self, script: list[str]) -> None:
        op = self.make(script)
        if self.accepts:
            assert self.pool.do(op, timeout=LONG) is op
            self.run.append(op)
        else:
            with pytest.raises(PoolNotRunning):
                self.pool.do(op)
            assert op.outcome is Outcome.PENDING
            self.spare.append(op)

    @rule(some=st.lists(scripts, max_size=6))
    def execute(self, some: list[list[str]]) -> None:
        jobs = [self.make(script) for script in some]
        if self.accepts:
            self.streams.append((self.pool.execute(jobs), jobs, []))
            self.run += jobs
        else:
            with pytest.raises(PoolNotRunning):
                self.pool.execute(jobs)
            self.spare += jobs

    @rule(some=st.lists(scripts, max_size=6), drawn_by=st.sampled_from(["reader", "thread"]), ordered=st.booleans())
    def wrap(self, some: list[list[str]], drawn_by: Any, ordered: bool) -> None:
        """A finite one, read to its end."""
        jobs = [self.make(script) for script in some]
        if self.accepts:
            came = list(self.pool.wrap(jobs, buffer=2, drawn_by=drawn_by, ordered=ordered))
            assert came == jobs if ordered else sorted(map(id, came)) == sorted(map(id, jobs))
            assert all(op.wait(0) for op in jobs)
            self.run += jobs
        else:
            with pytest.raises(PoolNotRunning):
                self.pool.wrap(jobs)
            self.spare += jobs

    @precondition(lambda self: self.run)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        op = data.draw(st.sampled_from(self.run), "which")
        if op.cancel():
            assert op.wait(0)
            assert id(op) not in self.cancelled
            self.cancelled.add(id(op))
            assert not op.cancel()

    @precondition(lambda self: self.run)
    @rule(data=st.data())
    def reuse(self, data: st.DataObject) -> None:
        """Whatever stands in the way: it is pending, or it was not reset."""
        op = data.draw(st.sampled_from(self.run), "which")
        with pytest.raises(OperationReused if self.accepts else PoolNotRunning):
            self.pool.do(op)

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), count=st.integers(1, 4))
    def read(self, data: st.DataObject, count: int) -> None:
        stream, jobs, came = data.draw(st.sampled_from(self.streams), "which")
        for _ in range(min(count, len(jobs) - len(came))):
            came.append(stream.get(LONG))
            assert came[-1].wait(0)

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        stream, jobs, _ = entry = data.draw(st.sampled_from(self.streams), "which")
        stream.close()
        self.maybe_cancelled |= set(map(id, jobs))
        self.streams.remove(entry)

    @rule(wait=st.booleans())
    def shutdown(self, wait: bool) -> None:
        assert self.pool.shutdown(wait=wait) == []
        self.accepts = False

    @rule(wait=st.booleans())
    def shutdown_and_cancel(self, wait: bool) -> None:
        ended = self.pool.shutdown(wait=wait, cancel_pending=True)
        self.accepts = False
        for op in ended:
            assert (op.outcome, op.wait(0)) == (Outcome.CANCELLED, True)
            assert id(op) not in self.cancelled
            assert op in self.run
            self.cancelled.add(id(op))

    # ------------------------------------------------------------------------------------------------------------

    @invariant()
    def the_books_add_up(self) -> None:
        if not hasattr(self, "pool"):
            return
        stats = self.pool.stats()
        parts = [stats.queued, stats.running, stats.delayed, stats.succeeded, stats.failed, stats.cancelled]
        assert all(part >= 0 for part in parts)
        assert (sum(parts), stats.accepted) == (len(self.run), len(self.run))
        assert stats.running <= WORKERS

    def check_end_of_run(self) -> None:
        """The run is over: every operation has one end, came out of its stream once, and the counts say so."""
        assert self.pool.shutdown() == []
        for stream, jobs, came in self.streams:
            came += stream
            assert sorted(map(id, came)) == sorted(map(id, jobs))
        self.streams = []
        for op in self.run:
            assert op.wait(0)
            assert op.ends == [op.outcome]
            self.check_end(op)
        stats = self.pool.stats()
        outcomes = Counter(op.outcome for op in self.run)
        assert (stats.accepted, stats.queued, stats.running, stats.delayed) == (len(self.run), 0, 0, 0)
        assert stats.succeeded == outcomes[Outcome.SUCCEEDED]
        assert stats.failed == outcomes[Outcome.FAILED]
        assert stats.cancelled == outcomes[Outcome.CANCELLED]
        assert stats.tries == sum(op.tries for op in self.run)
        assert all(op.outcome is Outcome.PENDING for op in self.spare)
        wait_until(lambda: set(threading.enumerate()) <= self.threads)  # one that draws a source may end a moment later

    def check_end(self, op: Job) -> None:
        if op.outcome is Outcome.CANCELLED:
            assert id(op) in self.cancelled or id(op) in self.maybe_cancelled
            assert op.error is None
            return
        assert id(op) not in self.cancelled
        outcome, error, tries = possible_end(op.script)
        assert not isinstance(op.error, BrokenPool)
        assert (op.outcome, op.tries) == (outcome, tries), (op.script, op.error)
        assert op.error is None if error is None else isinstance(op.error, error)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.check_end_of_run()


logging.getLogger("ringmill").addHandler(logging.NullHandler())

TestPoolMachine = pytest.mark.stress(PoolMachine.TestCase)
TestPoolMachine.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
