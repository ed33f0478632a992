"""What a subscription ring costs, against a list, a position and a lock.

add, remove    one item at the end of 1, 100 or 10,000, put in and taken out
take           the current item, and on to the next
walk           one thread reads every item, from the snapshot that the ring keeps
snapshot       add --> the next walk begins, with a snapshot made anew --> remove

    python benchmarks/bench_subscription_ring.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ringmill import SubscriptionRing

if TYPE_CHECKING or __package__:
    from .harness import Side, Suite, main
else:  # run as a script
    from harness import Side, Suite, main


class LockedList:
    """The simplest peer: a list, a position and a lock."""

    def __init__(self, items: Iterable[object]) -> None:
        self.items = list(items)
        self.at = 0
        self.lock = threading.Lock()

    def add(self, item: object) -> None:
        with self.lock:
            self.items.append(item)

    def remove(self, item: object) -> None:
        with self.lock:
            place = self.items.index(item)
            del self.items[place]
            if place < self.at:
                self.at -= 1
            if self.at == len(self.items):
                self.at = 0

    def take(self) -> object:
        with self.lock:
            item = self.items[self.at]
            self.at = (self.at + 1) % len(self.items)
            return item

    def __iter__(self) -> Any:
        with self.lock:
            return iter(self.items[self.at :] + self.items[: self.at])


def bench_ring(suite: Suite, size: int) -> None:
    items = [object() for _ in range(size)]
    extra = object()
    ring = SubscriptionRing[object]()
    for item in items:
        ring.add(item)
    peer = LockedList(items)

    def add_and_remove(ring: Any) -> Side:
        def run(n: int) -> None:
            add, remove = ring.add, ring.remove
            for _ in range(n):
                add(extra)
                remove(extra)

        return run

    def take(ring: Any) -> Side:
        def run(n: int) -> None:
            turn = ring.take
            for _ in range(n):
                turn()

        return run

    def walk(ring: Any) -> Side:
        def run(n: int) -> None:
            for _ in range(n // size):
                for _ in ring:
                    pass

        return run

    def change_and_snapshot(ring: Any) -> Side:
        def run(n: int) -> None:
            for _ in range(n // (size + 1)):
                ring.add(extra)
                iter(ring)
                ring.remove(extra)

        return run

    def compare(what: str, n: int, side: Callable[[Any], Side], unit: int = 1) -> None:
        sides = {"SubscriptionRing": side(ring), "list, lock": side(peer)}
        suite.compare(f"ring of {size:,}: {what}", suite.scale(n, unit), "1 thread", sides, unit=unit)

    compare("add and remove at the end, a pair", 100_000 if size <= 100 else 1000, add_and_remove)
    compare("take", 100_000, take)
    compare("walk the snapshot, an item", 500_000 if size > 1 else 50_000, walk, size)
    compare("add, make the snapshot, remove; an item", 200_000 if size > 1 else 20_000, change_and_snapshot, size + 1)


def run(suite: Suite) -> None:
    for size in (1, 100, 10_000):
        bench_ring(suite, size)


if __name__ == "__main__":
    main("subscription_ring", __doc__ or "", run)
