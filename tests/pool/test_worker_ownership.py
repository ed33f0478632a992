"""A worker belongs to one pool: the errors of a constructor that is refused, and what it does not do under its lock."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ringmill import Operation, Worker, WorkerPool
from tests.threads import LONG, run_threads


class JobWorker(Worker[Operation]):
    call: Callable[[], object] = staticmethod(lambda: None)

    def process(self, op: Operation) -> None: ...

    def __repr__(self) -> str:
        self.call()
        return "<a JobWorker>"


def make_a_pool() -> None:
    WorkerPool([JobWorker()])


@pytest.mark.parametrize("where", ["the same thread", "another thread"])
@pytest.mark.parametrize("twice", [False, True])
def test_the_repr_of_a_worker_may_make_pools(where: str, twice: bool) -> None:
    """It is the user's code, so no lock is held; it may even wait for another thread that makes one."""
    worker = JobWorker()
    worker.call = make_a_pool if where == "the same thread" else lambda: run_threads(make_a_pool)  # type: ignore[method-assign]
    if twice:
        with pytest.raises(ValueError, match="<a JobWorker> is listed twice"):
            WorkerPool([worker, worker])
        WorkerPool([worker])  # it was not taken
    else:
        pool = WorkerPool([worker])
        with pytest.raises(ValueError, match="<a JobWorker> belongs to another pool: <WorkerPool"):
            WorkerPool([worker])
        assert pool.workers == (worker,)


def test_the_repr_of_the_other_pool_may_make_pools() -> None:
    class Named(WorkerPool[Operation]):
        def __repr__(self) -> str:
            run_threads(make_a_pool)
            return "<Named>"

    worker = JobWorker()
    pool = Named([worker])
    with pytest.raises(ValueError, match="belongs to another pool: <Named>"):
        WorkerPool([worker])
    assert pool.workers


def test_a_refused_constructor_takes_none_of_its_workers() -> None:
    mine, free = JobWorker(), JobWorker()
    pool = WorkerPool([mine])
    for workers in ([free, mine], [mine, free], [free, free]):
        with pytest.raises(ValueError, match="workers"):
            WorkerPool(workers)
    assert WorkerPool([free]).workers == (free,)
    assert pool.workers == (mine,)


def test_a_worker_can_join_another_pool_when_its_pool_was_collected() -> None:
    worker = JobWorker()
    pool = WorkerPool([worker])
    gone = weakref.ref(pool)
    del pool
    assert gone() is None
    assert WorkerPool([worker]).workers == (worker,)


def test_of_several_that_claim_a_worker_at_once_one_gets_it() -> None:
    for _ in range(50):
        worker, pools = JobWorker(), []
        barrier = threading.Barrier(4)

        def claim(worker: JobWorker = worker, pools: list[Any] = pools, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait(LONG)
            try:
                pools.append(WorkerPool([worker]))
            except ValueError:
                return False
            return True

        assert sorted(run_threads(*[claim] * 4)) == [False, False, False, True]
