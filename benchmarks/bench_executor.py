"""What a call costs through ringmill's concurrent.futures executor, against the standard one.

map            list of 1,000 --> PoolExecutor(4).map(function, list) --> read to the end
submit         one call --> PoolExecutor(4) --> future.result(), then the next
burst          1,000 calls --> PoolExecutor(4) --> result() of each of 1,000 futures
queueing       calls --> PoolExecutor(4), all of whose threads wait; the time of `submit` alone
  baseline     the same calls of ThreadPoolExecutor(4); ThreadPool's and pebble's, which are like it, are in bench_pool

to_thread      asyncio.to_thread in a loop whose default executor is PoolExecutor(4): one at a time, by 100 tasks, or
               all in one gather
  baselines    ThreadPoolExecutor(4) as the default; hypertile.to_thread, where it is installed; an executor that calls
               at once, in the thread of the loop: what is left then is asyncio's own. Below each: what an executor adds
               to that, ours over ThreadPoolExecutor's

The function does nothing and is written in Python.

    python benchmarks/bench_executor.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ringmill import PoolExecutor

if TYPE_CHECKING or __package__:
    from .harness import Side, Suite, main
    from .peers import hypertile
else:  # run as a script
    from harness import Side, Suite, main
    from peers import hypertile

BATCH = 1000
WORKERS = 4


def nothing(_: object) -> None:
    pass


def mapped(executor: Executor) -> Side:
    def run(n: int) -> None:
        for _ in range(n // BATCH):
            for _ in executor.map(nothing, range(BATCH)):
                pass

    return run


def one_at_a_time(executor: Executor) -> Side:
    def run(n: int) -> None:
        submit = executor.submit
        for number in range(n):
            submit(nothing, number).result()

    return run


def burst(executor: Executor) -> Side:
    def run(n: int) -> None:
        submit = executor.submit
        for _ in range(n // BATCH):
            for future in [submit(nothing, number) for number in range(BATCH)]:
                future.result()

    return run


def queueing(executor_class: Callable[[int], Executor]) -> Side:
    def run(n: int) -> float:
        go_on = threading.Event()
        with executor_class(WORKERS) as executor:
            submit = executor.submit
            for _ in range(WORKERS):
                submit(go_on.wait)
            begun = time.perf_counter()
            for number in range(n):
                submit(nothing, number)
            seconds = time.perf_counter() - begun
            go_on.set()
        return seconds

    return run


# asyncio

ToThread = Callable[[Callable[[object], None], int], Awaitable[object]]
Shape = Callable[[ToThread, int], Awaitable[object]]


class InlineExecutor(ThreadPoolExecutor):
    """Calls at once, on the thread of the caller."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


async def by_one(to_thread: ToThread, n: int) -> None:
    for number in range(n):
        await to_thread(nothing, number)


async def by_tasks(to_thread: ToThread, n: int) -> None:
    await asyncio.gather(*[by_one(to_thread, n // 100) for _ in range(100)])


async def by_gather(to_thread: ToThread, n: int) -> None:
    await asyncio.gather(*[to_thread(nothing, number) for number in range(n)])


def awaited(executor_class: Callable[[int], ThreadPoolExecutor], shape: Shape, to_thread: ToThread, unit: int) -> Side:
    """Times all but the first round, for which threads may have to be started."""

    async def run(n: int) -> float:
        asyncio.get_running_loop().set_default_executor(executor_class(WORKERS))
        await shape(to_thread, unit)
        begun = time.perf_counter()
        for _ in range(n // unit):
            await shape(to_thread, unit)
        return time.perf_counter() - begun

    return lambda n: asyncio.run(run(n))


def bench_to_thread(suite: Suite) -> None:
    unit = 100 if suite.tiny else 4000
    for title, shape in (("one at a time", by_one), ("100 tasks", by_tasks), (f"gather of {unit:,}", by_gather)):
        sides = {
            "PoolExecutor": awaited(PoolExecutor, shape, asyncio.to_thread, unit),
            "ThreadPoolExecutor": awaited(ThreadPoolExecutor, shape, asyncio.to_thread, unit),
            "calls at once": awaited(InlineExecutor, shape, asyncio.to_thread, unit),
        }
        if hypertile:
            sides["hypertile.to_thread"] = awaited(InlineExecutor, shape, hypertile.to_thread, unit)
        result = suite.compare(
            f"asyncio.to_thread, {title}", suite.scale(3 * unit, unit), f"{WORKERS} workers and a loop", sides,
            unit=unit, own_clock=True,
        )
        ours, theirs, inline = [result.medians[name] for name in list(sides)[:3]]
        share = (ours - inline) / (theirs - inline) if theirs > inline else float("nan")
        suite.measure(
            f"asyncio.to_thread, {title}: what the executor adds", "the share of what ThreadPoolExecutor adds",
            {"PoolExecutor": share}, "at most 0.33",
        )


def run(suite: Suite) -> None:
    with PoolExecutor(max_workers=WORKERS) as ours, ThreadPoolExecutor(max_workers=WORKERS) as theirs:
        for title, n, unit, side, target in (
            (f"PoolExecutor.map of {BATCH:,}", 50_000, BATCH, mapped, (2, 2)),
            ("submit().result(), one at a time", 5000, 1, one_at_a_time, (2, 2)),
            (f"submit of {BATCH:,}, then their results", 50_000, BATCH, burst, (None, None)),
        ):
            suite.compare(
                title, suite.scale(n, unit), f"{WORKERS} workers and a caller",
                {"PoolExecutor": side(ours), "ThreadPoolExecutor": side(theirs)},
                targets={"ThreadPoolExecutor": target}, unit=unit,
            )
    suite.compare(
        "submit while all threads are busy", suite.scale(200_000), f"{WORKERS} workers and a caller",
        {"PoolExecutor": queueing(PoolExecutor), "ThreadPoolExecutor": queueing(ThreadPoolExecutor)}, own_clock=True,
    )
    bench_to_thread(suite)


if __name__ == "__main__":
    main("executor", __doc__ or "", run)
