"""Measures what one of many takes, in a process of its own, and prints it as JSON; bench_scale.py runs it.

    python benchmarks/footprints.py KIND N     [bytes of resident memory, bytes of virtual memory], for each of N

KIND is a key of KINDS. Where the system does not say how much a process uses, null is printed.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ringmill import Hub, Operation, PoolExecutor, Retry, RingBuffer, Worker, WorkerPool

if TYPE_CHECKING or __package__:
    from .scale_retries import FAR, Budget, ForB, Waiting, nothing
    from .work import Idler, Noop, endless
else:  # run as a script
    from scale_retries import FAR, Budget, ForB, Waiting, nothing
    from work import Idler, Noop, endless


class Pair(Operation):
    """An operation with two fields, in slots."""

    __slots__ = ("number", "result")

    def __init__(self) -> None:
        self.number = self.result = 0


class Gate(Worker[Operation]):
    """Holds the first operation that it gets until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def process(self, op: Operation) -> None:
        self.opened.wait()


Add = Callable[[int], Any]  # adds so many; what it returns is kept until the end


@contextmanager
def queued(submit: Callable[[WorkerPool[Operation], int], object]) -> Iterator[Add]:
    """Operations queue behind a busy worker; the queue has room for as many."""
    gates: list[Gate] = []
    pools: list[WorkerPool[Operation]] = []

    def add(n: int) -> object:
        gates.append(Gate())
        pools.append(WorkerPool([gates[-1]], queue_size=n + 1))
        pools[-1].start()
        pools[-1].do(Noop())
        return submit(pools[-1], n)

    try:
        yield add
    finally:
        for pool, gate in zip(pools, gates, strict=True):
            pool.shutdown(wait=False, cancel_pending=True)
            gate.opened.set()
            pool.shutdown()


@contextmanager
def alone(operation_class: Callable[[], Operation]) -> Iterator[Add]:
    yield lambda n: [operation_class() for _ in range(n)]


def by_do() -> Any:
    def submit(pool: WorkerPool[Operation], n: int) -> None:
        for _ in range(n):
            pool.do(Pair())

    return queued(submit)


def by_execute() -> Any:
    return queued(lambda pool, n: pool.execute(Pair() for _ in range(n)))


@contextmanager
def workers() -> Iterator[Add]:
    pools: list[WorkerPool[Noop]] = []

    def add(n: int) -> None:
        pools.append(WorkerPool([Idler() for _ in range(n)]))
        pools[-1].start()

    yield add
    for pool in pools:
        pool.shutdown()


@contextmanager
def threads() -> Iterator[Add]:
    stopped = threading.Event()
    running = threading.Semaphore(0)
    made: list[threading.Thread] = []

    def live() -> None:
        running.release()
        stopped.wait()

    def add(n: int) -> None:
        made.extend([threading.Thread(target=live) for _ in range(n)])
        for thread in made[-n:]:
            thread.start()
        for _ in range(n):
            running.acquire()

    yield add
    stopped.set()
    for thread in made:
        thread.join()


@contextmanager
def streams(make: Callable[[WorkerPool[Any]], Any]) -> Iterator[Add]:
    with WorkerPool([Idler()]) as pool:
        yield lambda n: [make(pool) for _ in range(n)]
        pool.shutdown(cancel_pending=True)


@contextmanager
def subscriptions(buffer: int | None) -> Iterator[Add]:
    hub = Hub[int]()
    yield lambda n: [hub.subscribe(buffer) for _ in range(n)]
    hub.close()


@contextmanager
def retries(is_delayed: bool) -> Iterator[Add]:
    waiting = Waiting(10**5, Budget(0.0), (lambda: Retry(delay=FAR)) if is_delayed else Retry, 1, is_delayed)
    try:
        yield lambda n: Budget(60.0).fill(n, waiting.add)
    finally:
        waiting.close()


@contextmanager
def calls(executor_class: Callable[[int], ThreadPoolExecutor]) -> Iterator[Add]:
    executor = executor_class(1)
    gate = threading.Event()
    executor.submit(gate.wait)
    try:
        yield lambda n: [executor.submit(nothing) for _ in range(n)]
    finally:
        gate.set()
        executor.shutdown(cancel_futures=True)


class Kind(NamedTuple):
    title: str
    make: Callable[[], Any]
    n: int  # so many are enough


KINDS = {
    "alone": Kind("an operation with two slots that is not submitted, in a list", lambda: alone(Pair), 50_000),
    "do": Kind("such an operation, queued by do", by_do, 50_000),
    "execute": Kind("such an operation, queued by execute", by_execute, 50_000),
    "fields": Kind("an operation without fields that is not submitted, in a list", lambda: alone(ForB), 50_000),
    "delayed": Kind("such an operation, its retry delayed", lambda: retries(True), 20_000),
    "waiting": Kind("such an operation, its retry waiting for a worker", lambda: retries(False), 10_000),
    "worker": Kind("an idle worker", workers, 300),
    "thread": Kind("a plain thread", threads, 300),
    "wrap": Kind("an open wrap, buffer 1,024", lambda: streams(lambda pool: pool.wrap(endless())), 1000),
    "small wrap": Kind("an open wrap, buffer 4", lambda: streams(lambda pool: pool.wrap(endless(), buffer=4)), 5000),
    "ring": Kind(
        "an open wrap of a ring, both buffers 4",
        lambda: streams(lambda pool: pool.wrap(RingBuffer(4), buffer=4)), 5000,
    ),
    "map": Kind(
        "an open map, buffer 1,024", lambda: streams(lambda pool: pool.map(itertools.count())), 1000,
    ),
    "small map": Kind(
        "an open map, buffer 4", lambda: streams(lambda pool: pool.map(itertools.count(), buffer=4)), 5000,
    ),
    "subscription": Kind("a subscription, buffer 256", lambda: subscriptions(None), 2000),
    "small subscription": Kind("a subscription, buffer 4", lambda: subscriptions(4), 5000),
    "call": Kind("a pending call of PoolExecutor", lambda: calls(PoolExecutor), 20_000),
    "standard call": Kind("a pending call of ThreadPoolExecutor", lambda: calls(ThreadPoolExecutor), 20_000),
}  # fmt: skip


def used() -> tuple[int, int] | None:
    """Bytes of resident and of virtual memory; None where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmSize"].split()[0]) * 1024


def each(kind: str, n: int) -> tuple[float, float] | None:
    with KINDS[kind].make() as add:
        held = [add(max(1, n // 100))]  # what the first ones need once
        gc.collect()
        before = used()
        held.append(add(n))
        gc.collect()
        after = used()
        held.clear()
    if before is None or after is None:
        return None
    return (after[0] - before[0]) / n, (after[1] - before[1]) / n


if __name__ == "__main__":
    print(json.dumps(each(sys.argv[1], int(sys.argv[2]))))
