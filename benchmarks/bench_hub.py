"""What one delivery of a hub costs, against a loop over as many queue.SimpleQueues.

broadcast      publisher --> hub --> 1, 8, 64 or 1,000 subscriptions of 256: the publisher's own time. It publishes in
               bursts of 200, which fit; they are read outside of the clock. The peer: for put in puts: put(item)
signal         publisher --> hub --> one of 8, in turn: likewise. The peer takes turns by itertools.cycle
end to end     publisher --> hub --> 8 or 64 subscriptions --> a reader thread each, until the last one has read all
  Hub            subscriptions of 256, "block": publisher and readers wait for each other
  Hub, roomy     room for all that is published: the publisher never waits, as with SimpleQueue
ring           SubscriptionRing with 1, 100 or 10,000 items, against a list, a position and a lock

Times are per delivery (ring: per call, or per item of a walk). Items are integers made by the publisher.

    python benchmarks/bench_hub.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any

from ringmill import Hub, Subscription, SubscriptionRing

if __package__:
    from .harness import Comparison, Suite, open_suite, show
else:
    from harness import Comparison, Suite, open_suite, show

FIRST = 1000  # the interpreter keeps small integers: the same objects again and again
BURST = 200  # items in a row that each subscription has room for
Timed = Callable[[], float]


def compare_timed(suite: Suite, title: str, n: int, threads: str, sides: dict[str, Timed]) -> None:
    """As `Suite.compare`, but each side takes its own time and returns it, in seconds, for `n` operations."""
    rounds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for side in sides.values():
        side()
    for number in range(suite.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            rounds[name].append(sides[name]() / n * 1e6)
    result = Comparison(title, n, threads, rounds)
    suite.results.append(result)
    show(result)


# The publisher's own time


def in_bursts(publish: Callable[[Iterable[int]], None], drain: Callable[[], None], bursts: int, burst: int) -> Timed:
    def run() -> float:
        seconds = 0.0
        for _ in range(bursts):
            items = range(FIRST, FIRST + burst)
            begun = time.perf_counter()
            publish(items)
            seconds += time.perf_counter() - begun
            drain()
        return seconds

    return run


def drain_subscriptions(subscriptions: list[Subscription[int]]) -> Callable[[], None]:
    def drain() -> None:
        for subscription in subscriptions:
            while len(subscription):
                subscription.get_many()

    return drain


def drain_queues(queues: list[SimpleQueue[int]]) -> Callable[[], None]:
    def drain() -> None:
        for queue in queues:
            while queue.qsize():
                queue.get_nowait()

    return drain


def bench_broadcast(suite: Suite, subscribers: int) -> None:
    bursts = max(1, suite.scale(400_000) // (BURST * subscribers))
    hub = Hub[int]()
    subscriptions = [hub.subscribe() for _ in range(subscribers)]
    queues: list[SimpleQueue[int]] = [SimpleQueue() for _ in range(subscribers)]
    puts = [queue.put for queue in queues]

    def broadcast(items: Iterable[int]) -> None:
        publish = hub.broadcast
        for item in items:
            publish(item)

    def loop(items: Iterable[int]) -> None:
        for item in items:
            for put in puts:
                put(item)

    compare_timed(
        suite, f"broadcast to {subscribers:,}: the publisher's own time", bursts * BURST * subscribers, "1 thread",
        {
            "Hub": in_bursts(broadcast, drain_subscriptions(subscriptions), bursts, BURST),
            "SimpleQueues": in_bursts(loop, drain_queues(queues), bursts, BURST),
        },
    )


def bench_signal(suite: Suite, subscribers: int) -> None:
    burst = BURST * subscribers
    bursts = suite.scale(400_000) // burst
    hub = Hub[int]()
    subscriptions = [hub.subscribe() for _ in range(subscribers)]
    queues: list[SimpleQueue[int]] = [SimpleQueue() for _ in range(subscribers)]
    turns = itertools.cycle([queue.put for queue in queues])

    def signal(items: Iterable[int]) -> None:
        publish = hub.signal
        for item in items:
            publish(item)

    def loop(items: Iterable[int]) -> None:
        for item in items:
            next(turns)(item)

    compare_timed(
        suite, f"signal to one of {subscribers}: the publisher's own time", bursts * burst, "1 thread",
        {
            "Hub": in_bursts(signal, drain_subscriptions(subscriptions), bursts, burst),
            "SimpleQueues": in_bursts(loop, drain_queues(queues), bursts, burst),
        },
    )


# End to end


def bench_end_to_end(suite: Suite, subscribers: int) -> None:
    items = suite.scale(160_000) // subscribers

    def with_readers(read: Callable[[Any], None], ends: list[Any], publish: Callable[[], None]) -> float:
        started = threading.Barrier(len(ends) + 1)

        def reader(end: Any) -> None:
            started.wait()
            read(end)

        threads = [threading.Thread(target=reader, args=(end,)) for end in ends]
        for thread in threads:
            thread.start()
        started.wait()
        begun = time.perf_counter()
        publish()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begun

    def by_hub(buffer: int) -> Timed:
        def run() -> float:
            hub = Hub[int](buffer=buffer)

            def publish() -> None:
                broadcast = hub.broadcast
                for item in range(FIRST, FIRST + items):
                    broadcast(item)
                hub.close()

            def read(subscription: Subscription[int]) -> None:
                for _ in subscription:
                    pass

            return with_readers(read, [hub.subscribe() for _ in range(subscribers)], publish)

        return run

    def by_queues() -> float:
        queues: list[SimpleQueue[int | None]] = [SimpleQueue() for _ in range(subscribers)]
        puts = [queue.put for queue in queues]

        def publish() -> None:
            for item in (*range(FIRST, FIRST + items), None):
                for put in puts:
                    put(item)

        def read(queue: SimpleQueue[int | None]) -> None:
            get = queue.get
            while get() is not None:
                pass

        return with_readers(read, queues, publish)

    compare_timed(
        suite, f"end to end, {subscribers} readers", items * subscribers, f"1 + {subscribers} threads",
        {"Hub": by_hub(256), "Hub, roomy": by_hub(items), "SimpleQueues": by_queues},
    )


# SubscriptionRing


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
    calls = suite.scale(100_000 if size <= 100 else 1000)
    walks = max(1, suite.scale(500_000) // max(size, 10))
    fresh = max(1, suite.scale(200_000) // max(size, 10))

    def add_and_remove(ring: Any) -> Callable[[], None]:
        def run() -> None:
            add, remove = ring.add, ring.remove
            for _ in range(calls):
                add(extra)
                remove(extra)

        return run

    def take(ring: Any) -> Callable[[], None]:
        def run() -> None:
            turn = ring.take
            for _ in range(100 * calls if size > 100 else calls):
                turn()

        return run

    def walk(ring: Any) -> Callable[[], None]:
        def run() -> None:
            for _ in range(walks):
                for _ in ring:
                    pass

        return run

    def change_and_snapshot(ring: Any) -> Callable[[], None]:
        def run() -> None:
            for _ in range(fresh):
                ring.add(extra)
                iter(ring)
                ring.remove(extra)

        return run

    def compare(what: str, n: int, side: Callable[[Any], Callable[[], None]]) -> None:
        suite.compare(
            f"ring of {size:,}: {what}", n, "1 thread", {"SubscriptionRing": side(ring), "list, lock": side(peer)}
        )

    compare("add and remove at the end, a pair", calls, add_and_remove)
    compare("take", 100 * calls if size > 100 else calls, take)
    compare("walk the snapshot, an item", walks * size, walk)
    compare("add, make the snapshot, remove; an item", fresh * (size + 1), change_and_snapshot)


def main() -> None:
    suite = open_suite("hub", __doc__ or "")
    for subscribers in (1, 8, 64, 1000):
        bench_broadcast(suite, subscribers)
    bench_signal(suite, 8)
    for subscribers in (8, 64):
        bench_end_to_end(suite, subscribers)
    for size in (1, 100, 10_000):
        bench_ring(suite, size)
    suite.finish()


if __name__ == "__main__":
    main()
