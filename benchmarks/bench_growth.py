"""How cost grows with the number of operations and of workers: not at all, if all is well.

operations     10^3 to 10^7 --> [pool: 4 workers, process() does nothing] --> stream; by execute of one list of all of
               them, and by wrap of a generator, buffer 1,000
  plain loop   as many, made and processed in a loop: over a list, to compare with execute; over a generator, with wrap
workers        1,000 operations, time and again --> [pool: 1 to 256 workers] --> stream; by execute
  plain loop   as many
memory         10^7 operations --> [wrap, buffer 1,000] --> read one by one: how far the peak of the resident memory
               grows; and what an operation takes that waits in a queue: ringmill's, a list, SimpleQueue,
               ThreadPoolExecutor
idle           64 workers with nothing to do, ThreadPoolExecutor's, and a process without any: processor time per
               second

The target of a curve is that its ratio stays within 15 %: from the lowest to the highest point. --quick ends at 10^5
operations (memory: 10^6).

    python benchmarks/bench_growth.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ringmill import WorkerPool

if TYPE_CHECKING or __package__:
    from .harness import Comparison, Side, Suite, main
    from .probes import IDLE, QUEUED
    from .work import BATCH, BUFFER, WORKERS, Idler, Noop, endless
else:  # run as a script
    from harness import Comparison, Side, Suite, main
    from probes import IDLE, QUEUED
    from work import BATCH, BUFFER, WORKERS, Idler, Noop, endless

LEAST = 100_000  # operations in one timing: fewer are done several times over


def by_execute(pool: WorkerPool[Noop], size: int) -> dict[str, Side]:
    process = Idler().process

    def execute(n: int) -> None:
        for _ in range(n // size):
            for _op in pool.execute([Noop() for _ in range(size)]):
                pass

    def plain(n: int) -> None:
        for _ in range(n // size):
            for op in [Noop() for _ in range(size)]:
                process(op)

    return {"execute": execute, "plain loop": plain}


def by_wrap(pool: WorkerPool[Noop], size: int) -> dict[str, Side]:
    process = Idler().process

    def wrap(n: int) -> None:
        for _ in range(n // size):
            for _op in pool.wrap(islice(endless(), size), buffer=BUFFER):  # to its end: nothing drawn is thrown away
                pass

    def plain(n: int) -> None:
        for _ in range(n // size):
            for op in islice(endless(), size):
                process(op)

    return {"wrap": wrap, "plain loop": plain}


def spread(suite: Suite, name: str, points: list[Comparison]) -> None:
    """How far apart the ratios of a curve are."""
    ratios = [point.ratios["plain loop"] for point in points]
    suite.measure(
        f"{name}: the highest ratio over the lowest", "%, above one",
        {next(iter(points[0].rounds)): (max(ratios) / min(ratios) - 1) * 100}, "at most 15",
    )


def bench_operations(suite: Suite) -> None:
    sizes = [10**3, 10**4, 10**5] if suite.share > 1 else [10**3, 10**4, 10**5, 10**6, 10**7]
    with WorkerPool([Idler() for _ in range(WORKERS)]) as pool:
        for how, sides in (("execute of one list", by_execute), ("wrap, buffer 1,000", by_wrap)):
            name = f"{how}: ratio to the plain loop, by operations"
            points = []
            for size in sizes[:1] if suite.tiny else sizes:
                rounds = 3 if size >= 10**6 else None  # a long one is even enough in itself
                points.append(suite.compare(
                    f"{how}, {size:,} operations", suite.scale(LEAST, size), f"{WORKERS} workers and a reader",
                    sides(pool, size), unit=size, rounds=rounds, curve=(name, "operations", size),
                ))
            spread(suite, name, points)


def bench_workers(suite: Suite) -> None:
    name = f"execute of {BATCH:,}: ratio to the plain loop, by workers"
    counts = [1, 2] if suite.tiny else [1, 16, 256] if suite.share > 1 else [1, 2, 4, 16, 64, 256]
    points = []
    for count in counts:
        with WorkerPool([Idler() for _ in range(count)]) as pool:
            points.append(suite.compare(
                f"execute of {BATCH:,}, workers: {count}", suite.scale(LEAST, BATCH), f"{count} + a reader",
                by_execute(pool, BATCH), unit=BATCH, curve=(name, "workers", count),
            ))
    spread(suite, name, points)


def probe(*arguments: object) -> float | None:
    command = [sys.executable, str(Path(__file__).parent / "probes.py"), *map(str, arguments)]
    value: float | None = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return value


def bench_memory(suite: Suite) -> None:
    n = 10**7 if suite.share == 1 else 10**6 if not suite.tiny else 1000
    grown = probe("wrap", n)
    if grown is None:
        suite.skip("memory: this system does not say how much a process uses")
        return
    suite.measure(
        f"wrap of {n:,} operations, buffer {BUFFER:,}: growth of the peak of resident memory", "KiB",
        {"wrap": grown / 1024}, "constant memory",
    )
    n = suite.scale(300_000)
    values = {side: probe("queued", side, n) for side in (QUEUED[:1] if suite.tiny else QUEUED)}
    suite.measure(
        f"memory of each of {n:,} queued operations, itself included", "bytes",
        {side: value for side, value in values.items() if value is not None},
    )


def bench_idle(suite: Suite) -> None:
    seconds = 0.1 if suite.tiny else 1.0 if suite.share > 1 else 10.0
    workers = 64
    values = {side: probe("idle", side, workers, seconds) for side in (IDLE[:1] if suite.tiny else IDLE)}
    suite.measure(
        f"{workers} idle workers, for {seconds:g} s: processor time", "ms per second",
        {side: value / seconds * 1e3 for side, value in values.items() if value is not None}, "none measurable",
    )


def run(suite: Suite) -> None:
    bench_operations(suite)
    bench_workers(suite)
    bench_memory(suite)
    bench_idle(suite)


if __name__ == "__main__":
    main("growth", __doc__ or "", run)
