"""Operations, workers and sources of the tests of `wrap`."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from ringmill import Operation, RingBuffer, Stream, Worker, WorkerPool
from tests.threads import LONG


class Number(Operation):
    def __init__(self, number: int) -> None:
        self.number = number
        self.runs = 0


class Quick(Worker[Number]):
    def process(self, op: Number) -> None:
        op.runs += 1
        if op.number < 0:
            raise ValueError(op.number)


class Gated(Worker[Number]):
    """Does nothing until the gate opens."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def process(self, op: Number) -> None:
        assert self.gate.wait(LONG)


class Source:
    """Counts up to a limit, or without one; knows how many were drawn, and whether it was told to stop."""

    def __init__(self, limit: int | None = None, error: BaseException | None = None) -> None:
        self.drawn = 0
        self.limit = limit
        self.error = error
        self.drawn_by: set[int] = set()

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> Number:
        self.drawn_by.add(threading.get_ident())
        if self.drawn == self.limit:
            if self.error is not None:
                raise self.error
            raise StopIteration
        self.drawn += 1
        return Number(self.drawn - 1)


def wrap(pool: WorkerPool[Number], source: Iterable[Any], drawn_by: str, **options: Any) -> Stream[Number]:
    """Wraps the source as one of the three kinds. A ring gets all of it, so it must end."""
    if drawn_by != "ring":
        return pool.wrap(source, drawn_by=drawn_by, **options)  # type: ignore[arg-type]
    items = list(source)
    ring = RingBuffer[Any](len(items) or 1)
    ring.put_many(items)
    ring.close()
    return pool.wrap(ring, **options)
