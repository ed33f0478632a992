"""What one item costs on its way through a ring buffer, against the queues of the standard library.

one thread     put_nowait, get_nowait, and again: the queue is never longer than one item
batches        put_many of 1,000 and get_many, on one thread; the peers item by item
threads        producers --> ring of 1,024 or 8,192 --> consumers; 1 and 1, 4 and 4; put and get, which block
  Queue        bounded as the ring is
  SimpleQueue  unbounded: its producers never wait, and its memory is not limited

Items are integers made by the producer, so that each is an object of its own, as real items are.

    python benchmarks/bench_ring_buffer.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Queue, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from ringmill import RingBuffer

if TYPE_CHECKING or __package__:
    from .harness import Suite, open_suite
else:  # run as a script
    from harness import Suite, open_suite

BATCH = 1000
FIRST = 1000  # the interpreter keeps small integers: the same objects again and again


class Fifo(Protocol):
    def put(self, item: Any) -> None: ...
    def get(self) -> Any: ...
    def put_nowait(self, item: Any) -> None: ...
    def get_nowait(self) -> Any: ...


def bench_one_thread(suite: Suite) -> None:
    n = suite.scale(200_000)

    def through(fifo: Fifo) -> Callable[[], None]:
        def run() -> None:
            put, get = fifo.put_nowait, fifo.get_nowait
            for item in range(FIRST, FIRST + n):
                put(item)
                get()

        return run

    suite.compare(
        "put_nowait and get_nowait", n, "1 thread",
        {
            "RingBuffer(1024)": through(RingBuffer(1024)),
            "SimpleQueue": through(SimpleQueue()),
            "Queue(1024)": through(Queue(1024)),
        },
    )


def bench_batches(suite: Suite) -> None:
    batches = suite.scale(500)
    items = list(range(FIRST, FIRST + BATCH))

    def in_batches() -> None:
        for _ in range(batches):
            ring.put_many(items)
            ring.get_many()

    def one_by_one(fifo: Fifo) -> Callable[[], None]:
        def run() -> None:
            put, get = fifo.put_nowait, fifo.get_nowait
            for _ in range(batches):
                for item in items:
                    put(item)
                for _ in items:
                    get()

        return run

    ring: RingBuffer[int] = RingBuffer(BATCH)
    suite.compare(
        f"put_many and get_many of {BATCH:,}, the peers item by item", batches * BATCH, "1 thread",
        {
            "RingBuffer": in_batches,
            "SimpleQueue": one_by_one(SimpleQueue()),
            "Queue": one_by_one(Queue(BATCH)),
        },
    )


def bench_threads(suite: Suite, pairs: int, capacity: int) -> None:
    each = suite.scale(200_000) // pairs

    def through(make: Callable[[], Fifo]) -> Callable[[], None]:
        def run() -> None:
            fifo = make()
            barrier = threading.Barrier(2 * pairs)

            def produce() -> None:
                put = fifo.put
                barrier.wait()
                for item in range(FIRST, FIRST + each):
                    put(item)

            def consume() -> None:
                get = fifo.get
                barrier.wait()
                for _ in range(each):
                    get()

            threads = [threading.Thread(target=role) for role in (produce, consume) for _ in range(pairs)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        return run

    suite.compare(
        f"{pairs} producers and {pairs} consumers, capacity {capacity:,}" if pairs > 1
        else f"1 producer and 1 consumer, capacity {capacity:,}",
        each * pairs, f"{2 * pairs} threads",
        {
            "RingBuffer": through(lambda: RingBuffer(capacity)),
            "SimpleQueue": through(SimpleQueue),
            "Queue": through(lambda: Queue(capacity)),
        },
    )


def main() -> None:
    suite = open_suite("ring_buffer", __doc__ or "")
    bench_one_thread(suite)
    bench_batches(suite)
    for pairs in (1, 4):
        for capacity in (1024, 8192):
            bench_threads(suite, pairs, capacity)
    suite.finish()


if __name__ == "__main__":
    main()
