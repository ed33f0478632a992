"""What bench_scale.py measures with: pools that have N open streams.

    N streams that do nothing --> [pool: 2 workers] <-- one operation, timed

Each context manager yields a Setup, as those of scale_retries.py do.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ringmill import Operation, PoolExecutor, RingBuffer, Stream, Worker, WorkerPool

if TYPE_CHECKING or __package__:
    from .harness import Sample, one_by_one
    from .scale_retries import Budget, Setup, nothing
    from .work import Idler, Noop, endless
else:  # run as a script
    from harness import Sample, one_by_one
    from scale_retries import Budget, Setup, nothing
    from work import Idler, Noop, endless

SMALL = 4  # the buffer of a stream
TICK = 0.001  # seconds between two looks of the thread that is to notice a freeze


class Echo(Worker[Any]):
    """Returns items."""

    def process(self, op: Any) -> Any:
        return None if isinstance(op, Operation) else op


def of_pool(pool: WorkerPool[Any], streams: str) -> dict[str, Sample]:
    return {
        f"{streams}: execute of one": lambda n: one_by_one(lambda: list(pool.execute([Noop()])), n),
        f"{streams}: do and wait": lambda n: one_by_one(lambda: pool.do(Noop()).wait(), n),
    }


@contextmanager
def idle_wraps(size: int, budget: Budget) -> Iterator[Setup]:
    """N wraps of generators, from which nothing has been read."""
    with WorkerPool([Idler(), Idler()]) as pool:
        streams: list[Stream[Noop]] = []
        reached = budget.fill(size, lambda n: streams.extend([pool.wrap(endless(), buffer=SMALL) for _ in range(n)]))
        yield Setup(reached, of_pool(pool, "wraps that are not read"))
        pool.shutdown(cancel_pending=True)


@contextmanager
def full_wraps(size: int, budget: Budget) -> Iterator[Setup]:
    """N wraps of generators, whose buffers are full of operations that have ended."""
    with WorkerPool([Idler(), Idler()]) as pool:
        streams: list[Stream[Noop]] = []

        def add(count: int) -> None:
            for _ in range(count):
                streams.append(pool.wrap(endless(), buffer=SMALL))
                streams[-1].get()

        reached = budget.fill(size, add)
        yield Setup(reached, of_pool(pool, "wraps whose buffers are full of results"))
        pool.shutdown(cancel_pending=True)


@contextmanager
def idle_maps(size: int, budget: Budget) -> Iterator[Setup]:
    """N maps of generators, from which nothing has been read."""
    with WorkerPool([Echo(), Echo()]) as pool:
        streams: list[Any] = []
        reached = budget.fill(
            size, lambda n: streams.extend([pool.map(itertools.count(), buffer=SMALL) for _ in range(n)])
        )
        samples = of_pool(pool, "maps that are not read")
        samples["maps that are not read: call"] = lambda n: one_by_one(lambda: pool.call(0), n)
        yield Setup(reached, samples)
        pool.shutdown(cancel_pending=True)


@contextmanager
def rings(size: int, budget: Budget) -> Iterator[Setup]:
    """N wraps of rings that are empty. At least one, into which an operation is put."""
    with WorkerPool([Idler(), Idler()]) as pool:
        sources: list[RingBuffer[Noop]] = []
        streams: list[Stream[Noop]] = []

        def add(count: int) -> None:
            for _ in range(count):
                sources.append(RingBuffer(SMALL))
                streams.append(pool.wrap(sources[-1], buffer=SMALL))

        reached = budget.fill(size, add)
        turns = itertools.cycle(range(0, reached, max(1, reached // 97)))  # neither the first only nor the last

        def through() -> None:
            turn = next(turns)
            sources[turn].put(Noop())
            streams[turn].get()

        samples = of_pool(pool, "wraps of rings")
        samples["wraps of rings: put into one of them, until it comes out"] = lambda n: one_by_one(through, n)
        yield Setup(reached, samples)
        pool.shutdown(cancel_pending=True)


@contextmanager
def executor_maps(size: int, budget: Budget) -> Iterator[Setup]:
    """N maps of an executor, with a buffer that is full."""
    with PoolExecutor(2) as executor:
        results: list[Iterator[int]] = []

        def add(count: int) -> None:
            results.extend([executor.map(abs, itertools.count(), buffersize=SMALL) for _ in range(count)])

        reached = budget.fill(size, add)
        yield Setup(reached, {
            "maps of an executor that are not read: submit and result":
                lambda n: one_by_one(lambda: executor.submit(nothing).result(), n),
        })  # fmt: skip
        executor.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------------------------------------------
# the end of many streams


class FreezeWatch:
    """A thread that looks at the clock every TICK: how much longer than that it took at most."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self) -> None:
        last = time.perf_counter()
        while not self.stopped.wait(TICK):
            now = time.perf_counter()
            self.longest = max(self.longest, now - last - TICK)
            last = now

    def __enter__(self) -> FreezeWatch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()


def end_half(size: int, by_closing: bool, freezes: dict[int, float], budget: float) -> Sample:
    """Ends every other one of N wraps; the time for each of those, until the worker has forgotten all of them.

    The time of two operations, each of which the one worker reaches after a look at all streams, is in it.
    """

    def sample(_: int) -> list[float]:
        with WorkerPool([Idler()]) as pool:
            streams: list[Stream[Noop] | None] = []
            reached = Budget(budget).fill(
                size, lambda n: streams.extend([pool.wrap(endless(), buffer=SMALL) for _ in range(n)])
            )
            list(pool.execute([Noop()]))
            with FreezeWatch() as watch:
                begun = time.perf_counter()
                for k in range(0, reached, 2):
                    if by_closing:
                        stream = streams[k]
                        assert stream is not None
                        stream.close()
                    else:
                        streams[k] = None
                for _turn in range(2):
                    list(pool.execute([Noop()]))
                seconds = time.perf_counter() - begun
            freezes[size] = max(freezes.get(size, 0.0), watch.longest)
            pool.shutdown(cancel_pending=True)
        return [seconds / len(range(0, reached, 2))]

    return sample


def shut_down(size: int, budget: float) -> Sample:
    """Shuts down a pool that has N open wraps; the time for each."""

    def sample(_: int) -> list[float]:
        with WorkerPool([Idler()]) as pool:
            streams: list[Stream[Noop]] = []
            reached = Budget(budget).fill(
                size, lambda n: streams.extend([pool.wrap(endless(), buffer=SMALL) for _ in range(n)])
            )
            begun = time.perf_counter()
            pool.shutdown()
            return [(time.perf_counter() - begun) / reached]

    return sample
