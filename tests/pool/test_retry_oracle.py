"""Many workers that retry, reject, come and leave, against an account of which worker may take an operation."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from ringmill import Operation, Outcome, Reject, Retry, Unroutable, Worker, WorkerPool
from tests.pools import check_at_rest
from tests.threads import LONG, run_threads

pytestmark = [pytest.mark.usefixtures("no_thread_is_left"), pytest.mark.stress]

STAYING = 40  # the workers with these numbers never leave


class Job(Operation):
    """What it was through, which only the worker that has it writes.

    Attributes:
        rejected: The workers that rejected it.
        tried: The workers that tried it, since all had.
        may_have_tried: A larger set, where workers come and leave: perhaps not all had.
    """

    def __init__(self, seed: int, tries: int) -> None:
        self.random = random.Random(seed)
        self.left = tries
        self.rejected: set[int] = set()
        self.tried: set[int] = set()
        self.may_have_tried: set[int] = set()
        self.wrong: list[str] = []
        self.told = 0

    def done(self) -> None:
        self.told += 1
        super().done()


class Judge(Worker[Job]):
    """Notes each operation that it should not have got. `exact`: all workers stay."""

    def __init__(self, number: int, exact: bool) -> None:
        self.number = number
        self.exact = exact

    def others(self, op: Job, tried: set[int]) -> set[int]:
        """The workers that stay and may take it before one of those that tried it may."""
        return set(range(STAYING)) - op.rejected - tried - {self.number}

    def process(self, op: Job) -> None:
        if self.number in op.rejected:
            op.wrong.append(f"{self.number} has rejected it")
        if self.number in op.tried and self.others(op, op.tried if self.exact else op.may_have_tried):
            op.wrong.append(f"{self.number} has tried it, and others have not: {sorted(op.tried)}")
        if op.random.random() < 0.2:
            op.rejected.add(self.number)
            raise Reject
        if not op.left:
            return
        op.left -= 1
        op.tried.add(self.number)
        op.may_have_tried.add(self.number)
        if not self.others(op, op.may_have_tried):
            op.tried = {self.number}
            if self.exact:
                op.may_have_tried = {self.number}
        raise Retry(delay=op.random.choice([None, None, 0.0003]))


@pytest.mark.parametrize("turn", range(5))
@pytest.mark.parametrize("resizes", [False, True])
@pytest.mark.parametrize("tries", [3, 60])
def test_only_workers_that_may_take_an_operation_get_it(tries: int, resizes: bool, turn: int, seed: int) -> None:
    rng = random.Random(seed + turn)
    made: list[Judge] = []

    def make() -> Judge:
        made.append(Judge(len(made), not resizes))
        return made[-1]

    jobs = [Job(rng.randrange(2**32), rng.randrange(tries + 1)) for _ in range(400 if tries < 10 else 60)]
    chosen = rng.sample(jobs, len(jobs) // 4)
    with WorkerPool(make, 50 if resizes else STAYING, max_tries=None) as pool:
        stream = pool.execute(jobs)
        over = threading.Event()

        def read() -> list[Any]:
            try:
                return list(stream)
            finally:
                over.set()

        def cancel() -> list[bool]:
            answers = []
            for job in chosen:
                answers.append(job.cancel())
                over.wait(0.0002)
            return answers

        def resize() -> None:
            own = random.Random(seed)
            while resizes and not over.is_set():
                pool.resize(own.randrange(STAYING, 51))

        came, answers, _ = run_threads(read, cancel, resize)
        assert sorted(map(id, came)) == sorted(map(id, jobs))
        for job in jobs:
            assert job.wait(LONG)
            assert not job.wrong, job.wrong
            assert job.told == 1
            if job.outcome is Outcome.FAILED:
                assert isinstance(job.error, Unroutable)
                assert set(range(STAYING)) <= job.rejected
            elif job.outcome is Outcome.SUCCEEDED:
                assert job.left == 0
        cancelled = [job for job in jobs if job.outcome is Outcome.CANCELLED]
        assert cancelled == [job for job in jobs if job in {c for c, a in zip(chosen, answers, strict=True) if a}]
        stats = pool.stats()
    check_at_rest(stats)
    assert (stats.accepted, stats.cancelled) == (len(jobs), len(cancelled))
