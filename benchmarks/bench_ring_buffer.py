"""What one item costs on its way through a ring buffer, against the queues of the standard library and of others.

one thread     put_nowait, get_nowait, and again: the queue is never longer than one item
batches        put_many of 1,000 and get_many, on one thread; the peers item by item
threads        producers --> ring of 1,024 or 8,192 --> consumers; 1 and 1, 4 and 4; put and get, which block
  bounded      queue.Queue, culsans.Queue (its synchronous side), aiologic.Queue: of the same capacity
  unbounded    queue.SimpleQueue, aiologic.SimpleQueue, ft_utils' ConcurrentQueue: their producers never wait, and their
               memory is not limited

The baseline is SimpleQueue. Items are integers made by the producer, so that each is an object of its own, as real
items are.

    python benchmarks/bench_ring_buffer.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringmill import RingBuffer

if TYPE_CHECKING or __package__:
    from .harness import Side, Suite, in_threads, main
    from .peers import Verbs, queues
else:  # run as a script
    from harness import Side, Suite, in_threads, main
    from peers import Verbs, queues

BATCH = 1000
FIRST = 1000  # the interpreter keeps small integers: the same objects again and again

# One of so many operations, for those that are slower by more.
FEWER = {"Queue": 5, "culsans.Queue": 10, "aiologic.Queue": 10, "ft_utils.ConcurrentQueue": 10}
FEWER_IN_THREADS = {"aiologic.Queue": 20}  # which hands over from thread to thread for each item


def bench_one_thread(suite: Suite) -> None:
    def through(queue: Verbs) -> Side:
        def run(n: int) -> None:
            put, get = queue.put_nowait, queue.get_nowait
            for item in range(FIRST, FIRST + n):
                put(item)
                get()

        return run

    suite.compare(
        "put_nowait and get_nowait", suite.scale(200_000), "1 thread",
        {name: through(make()) for name, make in queues(1024, 1).items()},
        targets={"SimpleQueue": (1.2, 1.0)}, fewer=FEWER,
    )


def bench_batches(suite: Suite) -> None:
    items = list(range(FIRST, FIRST + BATCH))

    def in_batches(n: int) -> None:
        for _ in range(n // BATCH):
            ring.put_many(items)
            ring.get_many()

    def one_by_one(queue: Verbs) -> Side:
        def run(n: int) -> None:
            put, get = queue.put_nowait, queue.get_nowait
            for _ in range(n // BATCH):
                for item in items:
                    put(item)
                for _ in items:
                    get()

        return run

    ring: RingBuffer[int] = RingBuffer(BATCH)
    peers = {name: one_by_one(make()) for name, make in queues(BATCH, 1).items() if name != "RingBuffer"}
    suite.compare(
        f"put_many and get_many of {BATCH:,}, the peers item by item", suite.scale(500_000, BATCH), "1 thread",
        {"RingBuffer": in_batches, **peers},
        targets={"SimpleQueue": (6, 6)}, fewer=FEWER, unit=BATCH,
    )


def bench_threads(
    suite: Suite, pairs: int, capacity: int, targets: dict[str, tuple[float | None, float | None]]
) -> None:
    names = queues(capacity, 2 * pairs)

    def through(name: str) -> Side:
        def run(n: int) -> float:
            queue = names[name]()
            each = n // pairs

            def produce() -> None:
                put = queue.put
                for item in range(FIRST, FIRST + each):
                    put(item)

            def consume() -> None:
                get = queue.get
                for _ in range(each):
                    get()

            return in_threads(*[produce] * pairs, *[consume] * pairs)

        return run

    who = "1 producer and 1 consumer" if pairs == 1 else f"{pairs} producers and {pairs} consumers"
    suite.compare(
        f"{who}, capacity {capacity:,}", suite.scale(200_000, pairs), f"{2 * pairs} threads",
        {name: through(name) for name in names},
        targets=targets, fewer=FEWER_IN_THREADS, unit=pairs, own_clock=True,
    )


def run(suite: Suite) -> None:
    bench_one_thread(suite)
    bench_batches(suite)
    bench_threads(suite, 1, 1024, {"SimpleQueue": (0.7, 1.0), "Queue": (15, 15)})
    bench_threads(suite, 1, 8192, {"SimpleQueue": (1.0, 1.2)})
    bench_threads(suite, 4, 1024, {"Queue": (15, 15)})
    bench_threads(suite, 4, 8192, {})


if __name__ == "__main__":
    main("ring_buffer", __doc__ or "", run)
