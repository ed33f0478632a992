"""What `map`, `call` and `execute` cost for plain items, payloads and operations with fields, against doing without.

PoolExecutor.map  list of integers --> PoolExecutor(4).map(abs, list) --> list
  comprehension   [abs(x) for x in list]
  others          ThreadPoolExecutor.map; ThreadPool.map, in chunks of its own choice and of one item; joblib's threads;
                  spdl's pipeline
map               list of integers --> [pool: 4 workers, process(x) returns abs(x)] --> list
  comprehension   [process(x) for x in list]
lazily            generator --> [the same pool, buffer 1,000] --> list; likewise over the generator
arithmetic        list of integers --> [pool: 2 workers, process() is about 1 us or 20 us of Python] --> list
payloads          bytes --> PoolExecutor(2).map(zlib.crc32 of 64 KiB, or SHA-256 of what takes about 1 ms) --> list:
                  functions that release the GIL
async for         list of integers --> [pool: 4 workers] --> async for, in one task of asyncio
  to_thread       [await asyncio.to_thread(process, x) for x in list]; hypertile's gather_to_thread
acall             await pool.acall(x), then the next; asyncio.to_thread and hypertile.to_thread likewise
execute, wrap     operations with two fields, with slots and without, and empty ones: made within the time that is taken
  plain loop      for each of as many plain objects with the same fields, declared in the same way: process(it)

The integers are 1,000 and above, for which abs returns what it is given; or -1,000 and below, where each result is a
new object.

    python benchmarks/bench_map.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count, islice
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any

from ringmill import PoolExecutor, WorkerPool

if TYPE_CHECKING or __package__:
    from .harness import Side, Suite, main
    from .map_work import (
        DICT,
        EMPTY,
        FIRST,
        PAYLOAD,
        SLOTS,
        Absolute,
        Arithmetic,
        Function,
        Kind,
        LoopAbsolute,
        digest,
        payload_of,
        turns_of,
    )
    from .peers import hypertile, joblib, spdl
    from .work import BATCH, BUFFER, WORKERS
else:  # run as a script
    from harness import Side, Suite, main
    from map_work import (
        DICT,
        EMPTY,
        FIRST,
        PAYLOAD,
        SLOTS,
        Absolute,
        Arithmetic,
        Function,
        Kind,
        LoopAbsolute,
        digest,
        payload_of,
        turns_of,
    )
    from peers import hypertile, joblib, spdl
    from work import BATCH, BUFFER, WORKERS

LONG = 100_000  # items of a long list
PAIR = 2  # workers, where there is work to do
SLOW = {"ThreadPoolExecutor.map": 20, "ThreadPool.map, chunksize=1": 20, "joblib, threading": 20, "spdl": 200}

# Lists of items


def integers(size: int, negative: bool = False) -> list[int]:
    numbers = range(FIRST, FIRST + size)
    return [-number for number in numbers] if negative else list(numbers)


def again(n: int, size: int, through: Callable[[], object]) -> None:
    for _ in range(n // size):
        through()


def others(stack: ExitStack, function: Function, items: list[Any], workers: int, everyone: bool) -> dict[str, Side]:
    """What else maps a function over a list in threads. Everyone, or what the standard library has."""
    size = len(items)
    executor = stack.enter_context(ThreadPoolExecutor(workers))
    threads = stack.enter_context(ThreadPool(workers))
    sides: dict[str, Side] = {
        "ThreadPoolExecutor.map": lambda n: again(n, size, lambda: list(executor.map(function, items))),
        "ThreadPool.map": lambda n: again(n, size, lambda: threads.map(function, items)),
    }
    if everyone:
        sides["ThreadPool.map, chunksize=1"] = lambda n: again(n, size, lambda: threads.map(function, items, 1))
    if everyone and joblib:
        parallel = stack.enter_context(joblib.Parallel(workers, backend="threading"))
        delayed = joblib.delayed(function)
        sides["joblib, threading"] = lambda n: again(n, size, lambda: parallel(delayed(item) for item in items))
    if everyone and spdl and size == BATCH:
        sides["spdl"] = lambda n: again(n, size, lambda: by_spdl(function, items, workers))
    return sides


def by_spdl(function: Function, items: list[Any], workers: int) -> list[Any]:
    builder = spdl.PipelineBuilder().add_source(items).pipe(function, concurrency=workers, output_order="input")
    pipeline = builder.add_sink().build(num_threads=workers)
    with pipeline.auto_stop():
        return list(pipeline)


def bench_executor(suite: Suite, size: int, n: int, negative: bool = False) -> None:
    items = integers(size, negative)

    def by_map(n: int) -> None:
        for _ in range(n // size):
            list(ours.map(abs, items))

    def comprehension(n: int) -> None:
        for _ in range(n // size):
            [abs(item) for item in items]

    with ExitStack() as stack:
        ours = stack.enter_context(PoolExecutor(WORKERS))
        sides: dict[str, Side] = {"PoolExecutor.map": by_map, "comprehension": comprehension}
        if not negative:
            sides |= others(stack, abs, items, WORKERS, everyone=size == BATCH or suite.share == 1)
        suite.compare(
            f"PoolExecutor.map(abs) of {size:,}{' negative' if negative else ''}", suite.scale(n, size),
            f"{WORKERS} workers and a reader", sides, unit=size, fewer=SLOW,
            targets={"comprehension": (0.35, 0.45)} if size == BATCH else None,
            rounds=3 if size > BATCH else None,  # of which some take seconds
        )  # fmt: skip


def bench_list(suite: Suite, size: int, n: int) -> None:
    items = integers(size)
    process = LoopAbsolute().process

    def by_map(n: int) -> None:
        for _ in range(n // size):
            list(pool.map(items))

    def comprehension(n: int) -> None:
        for _ in range(n // size):
            [process(item) for item in items]

    with ExitStack() as stack:
        pool = stack.enter_context(WorkerPool(Absolute, WORKERS))
        sides: dict[str, Side] = {"map": by_map, "comprehension": comprehension}
        if size == BATCH:
            sides |= others(stack, process, items, WORKERS, everyone=False)
        suite.compare(
            f"map of {size:,}, process calls abs", suite.scale(n, size), f"{WORKERS} workers and a reader", sides,
            unit=size, fewer=SLOW,
            targets={
                "comprehension": (0.45, 0.6), "ThreadPoolExecutor.map": (140, 130), "ThreadPool.map": (2, 2),
            } if size == BATCH else {"comprehension": (0.65, 0.65)},
        )  # fmt: skip


def bench_lazily(suite: Suite) -> None:
    process = LoopAbsolute().process

    def by_map(n: int) -> None:
        list(pool.map((number for number in range(FIRST, FIRST + n)), buffer=BUFFER))

    def comprehension(n: int) -> None:
        [process(item) for item in (number for number in range(FIRST, FIRST + n))]

    with WorkerPool(Absolute, WORKERS) as pool:
        suite.compare(
            f"map of a generator, buffer {BUFFER:,}, process calls abs", suite.scale(LONG),
            f"{WORKERS} workers and a reader", {"map": by_map, "comprehension": comprehension},
            targets={"comprehension": (0.4, 0.4)},
        )


# Items that are work


def bench_arithmetic(suite: Suite, microseconds: int, size: int, target: tuple[float | None, float | None]) -> None:
    turns = turns_of(microseconds * 1e-6)
    process = Arithmetic(turns).process
    items = integers(size)

    def by_map(n: int) -> None:
        for _ in range(n // size):
            list(pool.map(items))

    def comprehension(n: int) -> None:
        for _ in range(n // size):
            [process(item) for item in items]

    with ExitStack() as stack:
        pool = stack.enter_context(WorkerPool(lambda: Arithmetic(turns), PAIR))
        sides = {"map": by_map, "comprehension": comprehension}
        threads = stack.enter_context(ThreadPool(PAIR))
        sides["ThreadPool.map"] = lambda n: again(n, size, lambda: threads.map(process, items))
        suite.compare(
            f"map of {size:,}, each about {microseconds} us of Python", suite.scale(size, size), f"{PAIR} workers",
            sides, unit=size, targets={"comprehension": target},
        )


def bench_payloads(suite: Suite, title: str, function: Function, payloads: list[bytes]) -> None:
    size = len(payloads)

    def by_map(n: int) -> None:
        for _ in range(n // size):
            list(ours.map(function, payloads))

    def comprehension(n: int) -> None:
        for _ in range(n // size):
            [function(payload) for payload in payloads]

    with ExitStack() as stack:
        ours = stack.enter_context(PoolExecutor(PAIR))
        suite.compare(
            f"PoolExecutor.map of {size:,}, {title}", suite.scale(size, size), f"{PAIR} workers",
            {"PoolExecutor.map": by_map, "comprehension": comprehension,
             **others(stack, function, payloads, PAIR, everyone=True)},
            unit=size,
        )  # fmt: skip


# asyncio


def in_loop(through: Callable[[], Awaitable[object]], size: int) -> Side:
    """Times all but the first, for which threads may have to be started, in one event loop."""

    async def run(n: int) -> float:
        await through()
        begun = time.perf_counter()
        for _ in range(n // size):
            await through()
        return time.perf_counter() - begun

    return lambda n: asyncio.run(run(n))


def bench_async_for(suite: Suite) -> None:
    size = 4 if suite.tiny else 4000
    items = integers(size)
    process = LoopAbsolute().process

    async def by_map() -> list[int]:
        return [result async for result in pool.map(items)]

    async def comprehension() -> list[int]:
        return [process(item) for item in items]

    async def by_to_thread() -> list[int]:
        return [await asyncio.to_thread(process, item) for item in items]

    async def by_hypertile() -> Any:
        return await hypertile.gather_to_thread(process, items)

    with WorkerPool(Absolute, WORKERS) as pool:
        sides = {"async for": by_map, "comprehension": comprehension, "asyncio.to_thread": by_to_thread}
        if hypertile:
            sides["hypertile"] = by_hypertile
        suite.compare(
            f"async for over map of {size:,}, process calls abs", suite.scale(20 * size, size),
            f"{WORKERS} workers and a loop", {name: in_loop(side, size) for name, side in sides.items()},
            targets={"hypertile": (1.5, None)}, fewer={"asyncio.to_thread": 20}, unit=size, own_clock=True,
        )


def bench_acall(suite: Suite) -> None:
    process = LoopAbsolute().process

    async def by_acall() -> None:
        for item in items:
            await pool.acall(item)

    async def by_to_thread() -> None:
        for item in items:
            await asyncio.to_thread(process, item)

    async def by_hypertile() -> None:
        for item in items:
            await hypertile.to_thread(process, item)

    items = integers(suite.scale(2000))
    with WorkerPool(Absolute, WORKERS) as pool:
        sides = {"acall": by_acall, "asyncio.to_thread": by_to_thread}
        if hypertile:
            sides["hypertile.to_thread"] = by_hypertile
        suite.compare(
            "await acall, one item at a time", len(items), f"{WORKERS} workers and a loop",
            {name: in_loop(side, len(items)) for name, side in sides.items()},
            targets={"asyncio.to_thread": (2, 4)}, own_clock=True,
        )


# Operations


def bench_execute(suite: Suite, kind: Kind, target: tuple[float | None, float | None]) -> None:
    make, plain, process = kind.make, kind.plain, kind.process

    def execute(n: int) -> None:
        for _ in range(n // BATCH):
            for _op in pool.execute([make(number) for number in range(BATCH)]):
                pass

    def plain_loop(n: int) -> None:
        for _ in range(n // BATCH):
            for item in [plain(number) for number in range(BATCH)]:
                process(item)

    with WorkerPool(kind.worker, WORKERS) as pool:
        suite.compare(
            f"execute of {BATCH:,} operations {kind.name}", suite.scale(LONG, BATCH), f"{WORKERS} workers and a reader",
            {"execute": execute, "plain loop": plain_loop}, unit=BATCH, targets={"plain loop": target},
        )


def bench_wrap(suite: Suite, kind: Kind, target: tuple[float | None, float | None]) -> None:
    process = kind.process

    def endless(make: Function) -> Iterator[Any]:
        return (make(number) for number in count())

    def wrap(n: int) -> None:
        with pool.wrap(endless(kind.make), buffer=BUFFER) as stream:
            for _op in islice(stream, n):
                pass

    def plain_loop(n: int) -> None:
        for item in islice(endless(kind.plain), n):
            process(item)

    with WorkerPool(kind.worker, WORKERS) as pool:
        suite.compare(
            f"wrap of operations {kind.name}, buffer {BUFFER:,}", suite.scale(LONG), f"{WORKERS} workers and a reader",
            {"wrap": wrap, "plain loop": plain_loop}, targets={"plain loop": target},
        )


def run(suite: Suite) -> None:
    long = BATCH if suite.tiny else LONG
    bench_executor(suite, BATCH, 200_000)
    bench_executor(suite, BATCH, 200_000, negative=True)
    if not suite.tiny:
        bench_executor(suite, LONG, 1_000_000)
    bench_list(suite, BATCH, 200_000)
    if not suite.tiny:
        bench_list(suite, LONG, 1_000_000)
    bench_lazily(suite)
    bench_arithmetic(suite, 1, long, (0.9, 1.6))
    bench_arithmetic(suite, 20, 2 if suite.tiny else 2000, (None, 1.9))
    payloads = [bytes([index % 256]) * PAYLOAD for index in range(2 if suite.tiny else 500)]
    bench_payloads(suite, "zlib.crc32 of 64 KiB", zlib.crc32, payloads)
    bench_payloads(suite, "SHA-256 of about 1 ms", digest, [payload_of(1e-3)] * (2 if suite.tiny else 100))
    bench_async_for(suite)
    bench_acall(suite)
    bench_execute(suite, SLOTS, (0.6, 0.95))
    bench_execute(suite, DICT, (0.33, 0.65))
    bench_execute(suite, EMPTY, (None, None))
    bench_wrap(suite, SLOTS, (0.55, 0.7))
    bench_wrap(suite, DICT, (None, None))


if __name__ == "__main__":
    main("map", __doc__ or "", run)
