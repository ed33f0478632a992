"""What a call costs through ringmill's concurrent.futures executor, against the standard one.

map            list of 1,000 --> PoolExecutor(4).map(function, list) --> read to the end
submit         one call --> PoolExecutor(4) --> future.result(), then the next
burst          1,000 calls --> PoolExecutor(4) --> result() of each of 1,000 futures
  baseline     the same calls of ThreadPoolExecutor(4); ThreadPool's and pebble's, which are like it, are in bench_pool

The function does nothing and is written in Python.

    python benchmarks/bench_executor.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

from ringmill import PoolExecutor

if TYPE_CHECKING or __package__:
    from .harness import Side, Suite, main
else:  # run as a script
    from harness import Side, Suite, main

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


if __name__ == "__main__":
    main("executor", __doc__ or "", run)
