"""RetryQueue: entries that are inserted at its head and further back."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from ringmill import Outcome, PoolExecutor, Unroutable, WorkerPool
from tests.pool.test_retry_routing import Actor, Gate, Job, held, make_workers
from tests.threads import LONG


@pytest.mark.parametrize("taken", [0, 1, 57, 58, 59, 200])
def test_operations_without_an_eligible_worker_end_whatever_was_taken_before(taken: int) -> None:
    """Some were taken at the head, others wait there, and those that end stand behind them and between them."""
    actors = make_workers("ab")
    holding = Gate(None)
    before, kept, lost = [Job() for _ in range(taken)], [Job() for _ in range(7)], [Job(wanted="b") for _ in range(5)]

    def submit(_: Actor) -> None:
        for job in [*lost, *before, Job(holding), *kept]:
            pool.do(job)  # from a worker: to the list

    with WorkerPool(actors, max_restarts=0) as pool:
        with held(pool, "b", SystemExit()) as gate:
            pool.do(Job(submit))
            assert holding.reached.wait(LONG)  # `a` has rejected five, done those before, and sits in this one
            gate.opened.set()  # `b` is lost
            assert all(job.wait(LONG) and isinstance(job.error, Unroutable) for job in lost)
            assert all(job.outcome is Outcome.PENDING for job in kept)
            holding.opened.set()
            assert all(job.wait(LONG) for job in kept)
        stats = pool.stats()
    assert [job for job in actors[0].order if job in kept] == kept
    assert stats.failed == len(lost) + 1
    assert stats.succeeded == taken + len(kept) + 2


def test_the_queue_keeps_no_memory_of_entries_that_were_taken() -> None:
    def call() -> None:
        for _ in range(300):
            for future in [executor.submit(int) for _ in range(100)]:
                future.result(LONG)

    with PoolExecutor(1) as executor:
        call()
        gc.collect()
        tracemalloc.start()
        try:
            call()
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < 100_000  # a word for each call would be more than twice that
        finally:
            tracemalloc.stop()
