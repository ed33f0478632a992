"""Workers, items and sources for the tests of `WorkerPool.map` and `WorkerPool.call`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio

from ringmill import PoolStats, Worker, WorkerPool

LONG = 30.0  # seconds; reached only by a test that fails
SHORT = 0.02  # seconds; a time limit that is meant to pass
HOUR = 3600.0  # seconds; a delay that no test waits for

COUNTED = ("queued", "running", "delayed", "succeeded", "failed", "cancelled")


class Square(Worker[Any]):
    """Returns the square of a number; raises ValueError for a negative one."""

    def process(self, item: Any) -> Any:
        if item < 0:
            raise ValueError(item)
        return item * item


class Caller(Worker[Any]):
    """Calls the item and returns what it returns."""

    def process(self, item: Any) -> Any:
        return item()


class Gated(Worker[Any]):
    """Processes one item for each permit and returns it; raises it if it is an exception."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.seen: list[Any] = []

    def process(self, item: Any) -> Any:
        self.seen.append(item)
        self.begun.release()
        assert self.permits.acquire(timeout=LONG)
        if isinstance(item, BaseException):
            raise item
        return item


class Hold:
    """An item for Caller: holds its worker until it is released; then returns the value, or raises it."""

    def __init__(self, value: Any = "held") -> None:
        self.value = value
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> Any:
        self.reached.set()
        assert self.opened.wait(LONG)
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value

    async def until_reached(self) -> None:
        """Waits in a task. No thread is used for it: trio would keep that for ten seconds."""
        while not self.reached.is_set():
            await anyio.sleep(0.0005)

    def release(self) -> None:
        self.opened.set()


class Give:
    """An item for Caller: returns the value, or raises it if it is an exception."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value

    def __repr__(self) -> str:
        return f"Give({self.value!r})"


class Source:
    """Counts from 0 up to a limit, or without one; records how many were drawn, by which threads, and its close."""

    def __init__(self, limit: int | None = None, error: BaseException | None = None) -> None:
        self.drawn = 0
        self.limit = limit
        self.error = error
        self.drawn_by: set[int] = set()
        self.closed = 0

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> int:
        self.drawn_by.add(threading.get_ident())
        if self.drawn == self.limit:
            if self.error is not None:
                raise self.error
            raise StopIteration
        self.drawn += 1
        return self.drawn - 1

    def close(self) -> None:
        self.closed += 1


def counts(stats: PoolStats) -> dict[str, int]:
    """The counters of the places that an item can be in, without those that are 0."""
    return {name: value for name in COUNTED if (value := getattr(stats, name))}


def is_conserved(stats: PoolStats) -> bool:
    """Law 1, which each snapshot must obey."""
    return stats.accepted == sum(getattr(stats, name) for name in COUNTED)


def stems_from(error: BaseException, original: BaseException) -> bool:
    """Whether an error is an item's, as it is or as the cause of the RuntimeError that stands for it."""
    if type(error) is RuntimeError and type(original) is not RuntimeError:
        error = error.__cause__ or error
    return type(error) is type(original) and error.args == original.args


def read_each(read: Callable[[], Any], *ends: type[BaseException]) -> list[Any]:
    """Calls `read` until it raises one of the ends; each result, or the error in its place."""
    came: list[Any] = []
    while True:
        try:
            came.append(read())
        except ends:
            return came
        except BaseException as error:
            came.append(error)


@contextmanager
def held(pool: WorkerPool[Any], count: int = 1) -> Iterator[list[Hold]]:
    """So many workers of a pool of Callers are busy until the body ends or releases them."""
    holds = [Hold() for _ in range(count)]
    results = pool.map(holds)
    try:
        for hold in holds:
            assert hold.reached.wait(LONG)
        yield holds
    finally:
        for hold in holds:
            hold.release()
        list(results)
