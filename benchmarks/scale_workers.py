"""What bench_scale.py measures with: pools and executors that have N workers.

Each context manager yields a Setup, as those of scale_retries.py do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ringmill import Operation, PoolExecutor, Reject, Retry, Worker, WorkerPool

if TYPE_CHECKING or __package__:
    from .harness import Sample, one_by_one
    from .scale_retries import FAR, Budget, Setup, nothing
    from .work import Idler, Noop
else:  # run as a script
    from harness import Sample, one_by_one
    from scale_retries import FAR, Budget, Setup, nothing
    from work import Idler, Noop


PAUSE = 0.002  # seconds between two cancels


class TwoTries(Operation):
    """Fails once, and succeeds in its second try."""


class TwoWorkers(Operation):
    """The first worker rejects it."""

    def __init__(self) -> None:
        self.was_rejected = False


class Once(Worker[Any]):
    """Returns items."""

    def process(self, op: Any) -> Any:
        if type(op) is TwoTries:
            if not op.tries:
                raise Retry
        elif type(op) is TwoWorkers:
            if not op.was_rejected:
                op.was_rejected = True
                raise Reject
        elif not isinstance(op, Operation):
            return op
        return None


class OnceWithEqual(Once):
    """Defines what is the default."""

    def equal(self, other: Worker[Any]) -> bool:
        return self is other


@contextmanager
def idle_workers(size: int, budget: Budget) -> Iterator[Setup]:
    """N workers without work."""

    def execute(pool: WorkerPool[Any], op_class: type[Operation]) -> Sample:
        return lambda n: one_by_one(lambda: list(pool.execute([op_class()])), n)

    with WorkerPool([Once() for _ in range(size)]) as pool, WorkerPool([OnceWithEqual() for _ in range(size)]) as equal:
        yield Setup(size, {
            "idle workers: execute of one": execute(pool, Noop),
            "idle workers: do and wait": lambda n: one_by_one(lambda: pool.do(Noop()).wait(), n),
            "idle workers: map of one": lambda n: one_by_one(lambda: list(pool.map([0])), n),
            "idle workers: execute of one that is retried once": execute(pool, TwoTries),
            "idle workers that define equal: execute of one that is retried once": execute(equal, TwoTries),
            "idle workers: execute of one that is rejected once": execute(pool, TwoWorkers),
        })  # fmt: skip


@contextmanager
def busy_threads(size: int, budget: Budget) -> Iterator[Setup]:
    """An executor of which N threads are busy; one more is free, and there could be others."""
    gate = threading.Event()
    begun = threading.Semaphore(0)

    def hold() -> None:
        begun.release()
        gate.wait()

    executor = PoolExecutor(size + 8)
    try:
        for _ in range(size):
            executor.submit(hold)
        for _ in range(size):
            begun.acquire()
        yield Setup(size, {
            "busy threads of an executor, one free: submit and result":
                lambda n: one_by_one(lambda: executor.submit(nothing).result(), n),
        })  # fmt: skip
    finally:
        gate.set()
        executor.shutdown()


@contextmanager
def resized(size: int, budget: Budget) -> Iterator[Setup]:
    """N idle workers; one more is added, and dismissed."""
    with WorkerPool(Idler, size) as pool:

        def resize() -> None:
            pool.resize(size + 1)
            pool.resize(size)

        yield Setup(size, {"idle workers: resize by one, and back": lambda n: one_by_one(resize, n)})


# ---------------------------------------------------------------------------------------------------------------
# start, and the end


def start(size: int) -> Sample:
    def sample(_: int) -> list[float]:
        pool = WorkerPool([Idler() for _ in range(size)])
        begun = time.perf_counter()
        pool.start()
        seconds = time.perf_counter() - begun
        pool.shutdown()
        return [seconds / size]

    return sample


def stop(size: int) -> Sample:
    def sample(_: int) -> list[float]:
        pool = WorkerPool([Idler() for _ in range(size)])
        pool.start()
        begun = time.perf_counter()
        pool.shutdown()
        return [(time.perf_counter() - begun) / size]

    return sample


def start_threads(size: int) -> Sample:
    """Plain threads, until each has begun."""

    def sample(_: int) -> list[float]:
        running = threading.Semaphore(0)
        stopped = threading.Event()

        def live() -> None:
            running.release()
            stopped.wait()

        begun = time.perf_counter()
        threads = [threading.Thread(target=live) for _ in range(size)]
        for thread in threads:
            thread.start()
        for _ in range(size):
            running.acquire()
        seconds = time.perf_counter() - begun
        stopped.set()
        for thread in threads:
            thread.join()
        return [seconds / size]

    return sample


# ---------------------------------------------------------------------------------------------------------------
# cancel, of operations of a pool that has been told to end


class Other(Operation):
    """Is neither held nor delayed."""


class Hold(Worker[Operation]):
    """Is busy until the end, or has every operation wait for a delay that does not end."""

    def __init__(self, delays: bool) -> None:
        self.delays = delays
        self.busy = threading.Event()
        self.gate = threading.Event()

    def process(self, op: Operation) -> None:
        if type(op) is not Noop:
            return
        if self.delays:
            raise Retry(delay=FAR)
        self.busy.set()
        self.gate.wait()


def cancel_while_draining(workers: int, delays: bool) -> Sample:
    """Behind N busy workers, or, with `delays`, next to N idle ones, which wait again by the next cancel: see PAUSE."""

    def sample(n: int) -> list[float]:
        held = [Hold(delays) for _ in range(workers)]
        pool: WorkerPool[Operation] = WorkerPool(held)
        pool.start()
        try:
            for _ in range(0 if delays else workers):
                pool.do(Noop())
            for worker in [] if delays else held:
                worker.busy.wait()
            ops = [pool.do(Noop()) for _ in range(n)]
            while delays and pool.stats().delayed < n:
                pool.do(Other()).wait()
            pool.shutdown(wait=False)
            left = iter(ops)
            return one_by_one(lambda: next(left).cancel(), n, before=lambda: time.sleep(PAUSE), seconds=1.0)
        finally:
            for worker in held:
                worker.gate.set()
            pool.shutdown(cancel_pending=True)

    return sample
