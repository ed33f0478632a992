"""What one delivery of a hub costs, against a loop over as many queue.SimpleQueues.

broadcast      publisher --> hub --> 1, 8, 64 or 1,000 subscriptions of 256: the publisher's own time. It publishes in
               bursts of 200, which fit; they are read outside of the clock. The peer: for put in puts: put(item)
signal         publisher --> hub --> one of 8, in turn: likewise. The peer takes turns by itertools.cycle
end to end     publisher --> hub --> 8 or 64 subscriptions --> a reader thread each, until the last one has read all
  default      subscriptions of 256, "block": publisher and readers wait for each other, where SimpleQueue's never do
  roomy        room for all that is published: the publisher never waits, as with SimpleQueue

Times are per delivery. Items are integers made by the publisher.

    python benchmarks/bench_hub.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ringmill import Hub, Subscription

if TYPE_CHECKING or __package__:
    from .harness import Side, Suite, main
else:  # run as a script
    from harness import Side, Suite, main

FIRST = 1000  # the interpreter keeps small integers: the same objects again and again
BURST = 200  # items in a row that each subscription has room for


# The publisher's own time


def in_bursts(publish: Callable[[Iterable[int]], None], drain: Callable[[], None], burst: int, each: int) -> Side:
    """Times the publisher alone; an item is delivered to `each` subscribers."""

    def run(n: int) -> float:
        seconds = 0.0
        for _ in range(n // (burst * each)):
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


def bench_broadcast(suite: Suite, subscribers: int, target: float | None) -> None:
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

    unit = BURST * subscribers
    suite.compare(
        f"broadcast to {subscribers:,}: the publisher's own time", suite.scale(400_000, unit), "1 thread",
        {
            "Hub": in_bursts(broadcast, drain_subscriptions(subscriptions), BURST, subscribers),
            "SimpleQueues": in_bursts(loop, drain_queues(queues), BURST, subscribers),
        },
        targets={"SimpleQueues": (target, target)}, unit=unit, own_clock=True,
    )


def bench_signal(suite: Suite, subscribers: int) -> None:
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

    burst = BURST * subscribers
    suite.compare(
        f"signal to one of {subscribers}: the publisher's own time", suite.scale(400_000, burst), "1 thread",
        {
            "Hub": in_bursts(signal, drain_subscriptions(subscriptions), burst, 1),
            "SimpleQueues": in_bursts(loop, drain_queues(queues), burst, 1),
        },
        unit=burst, own_clock=True,
    )


# End to end


def bench_end_to_end(suite: Suite, subscribers: int, buffer: int | None) -> None:
    def by_hub(n: int) -> float:
        items = n // subscribers
        hub = Hub[int](buffer=items) if buffer is None else Hub[int](buffer=buffer)

        def publish() -> None:
            broadcast = hub.broadcast
            for item in range(FIRST, FIRST + items):
                broadcast(item)
            hub.close()

        def read(subscription: Subscription[int]) -> None:
            for _ in subscription:
                pass

        return with_readers(publish, read, [hub.subscribe() for _ in range(subscribers)])

    def by_queues(n: int) -> float:
        queues: list[SimpleQueue[int | None]] = [SimpleQueue() for _ in range(subscribers)]
        puts = [queue.put for queue in queues]

        def publish() -> None:
            for item in (*range(FIRST, FIRST + n // subscribers), None):
                for put in puts:
                    put(item)

        def read(queue: SimpleQueue[int | None]) -> None:
            get = queue.get
            while get() is not None:
                pass

        return with_readers(publish, read, queues)

    def with_readers(publish: Callable[[], None], read: Callable[[Any], None], ends: list[Any]) -> float:
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

    room = "roomy buffers" if buffer is None else f"buffers of {buffer}"
    suite.compare(
        f"broadcast to {subscribers}, {room}: end to end", suite.scale(160_000, subscribers),
        f"1 + {subscribers} threads", {"Hub": by_hub, "SimpleQueues": by_queues},
        targets={"SimpleQueues": (0.9, 0.9)}, unit=subscribers, own_clock=True,
    )


def run(suite: Suite) -> None:
    for subscribers, target in ((1, None), (8, 2), (64, 2), (1000, None)):
        bench_broadcast(suite, subscribers, target)
    bench_signal(suite, 8)
    for subscribers in (8, 64):
        for buffer in (256, None):
            bench_end_to_end(suite, subscribers, buffer)


if __name__ == "__main__":
    main("hub", __doc__ or "", run)
