"""The work that pools are measured by: as little as there can be."""

from __future__ import annotations

from collections.abc import Iterator

from ringmill import Operation, Worker

BATCH = 1000  # operations of one execute
WORKERS = 4
BUFFER = 1000  # of a wrap


class Noop(Operation):
    """As small as an operation gets."""


class Idler(Worker[Noop]):
    def process(self, op: Noop) -> None:
        pass


def endless() -> Iterator[Noop]:
    while True:
        yield Noop()
