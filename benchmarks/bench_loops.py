"""What one item costs on its way to or from an event loop (asyncio), against the queues that are made for that.

thread to loop         a thread: put  --> queue of 1,024 --> a task: await get
loop to thread         a task: await put --> queue of 1,024 --> a thread: get
within one loop        a task: await put --> queue of 1,024 --> another task: await get
loop to loop           a task: await put --> queue of 1,024 --> a task of another thread's loop: await get
one at a time          a thread puts one, a task gets it and puts one back, and so on
  peers                janus.Queue (one loop, and threads); culsans.Queue and aiologic.Queue (any loops, and threads);
                       within one loop also asyncio.Queue, which knows no threads

    python benchmarks/bench_loops.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ringmill import RingBuffer

if TYPE_CHECKING or __package__:
    from .harness import Side, Suite, main
    from .peers import aiologic, culsans, janus
else:  # run as a script
    from harness import Side, Suite, main
    from peers import aiologic, culsans, janus

CAPACITY = 1024
FIRST = 1000  # as in bench_ring_buffer
SLOW = {"janus.Queue": 4, "culsans.Queue": 4, "aiologic.Queue": 8}


class Both(NamedTuple):
    """A queue's calls, for threads and for tasks."""

    put: Callable[[Any], object]
    get: Callable[[], Any]
    aput: Callable[[Any], Awaitable[object]]
    aget: Callable[[], Awaitable[Any]]


def ring() -> Both:
    queue: RingBuffer[int] = RingBuffer(CAPACITY)
    return Both(queue.put, queue.get, queue.aput, queue.aget)


def two_sided(queue: Any) -> Both:
    return Both(queue.sync_q.put, queue.sync_q.get, queue.async_q.put, queue.async_q.get)


def aiologic_queue() -> Both:
    queue = aiologic.Queue(maxsize=CAPACITY)
    return Both(queue.green_put, queue.green_get, queue.async_put, queue.async_get)


def asyncio_queue() -> Both:
    queue: asyncio.Queue[int] = asyncio.Queue(CAPACITY)
    return Both(queue.put_nowait, queue.get_nowait, queue.put, queue.get)


def queues(*, loops: int, threads: bool) -> dict[str, Callable[[], Both]]:
    """What makes the queues that serve so many loops, the ring buffer first. Called within a loop."""
    makers: dict[str, Callable[[], Both]] = {"RingBuffer": ring}
    if janus and loops == 1:
        makers["janus.Queue"] = lambda: two_sided(janus.Queue(CAPACITY))
    if culsans:
        makers["culsans.Queue"] = lambda: two_sided(culsans.Queue(CAPACITY))
    if aiologic:
        makers["aiologic.Queue"] = aiologic_queue
    if loops == 1 and not threads:
        makers["asyncio.Queue"] = asyncio_queue
    return makers


def put_all(put: Callable[[Any], object], n: int) -> None:
    for item in range(FIRST, FIRST + n):
        put(item)


def get_all(get: Callable[[], Any], n: int) -> None:
    for _ in range(n):
        get()


async def aput_all(aput: Callable[[Any], Awaitable[object]], n: int) -> None:
    for item in range(FIRST, FIRST + n):
        await aput(item)


async def aget_all(aget: Callable[[], Awaitable[Any]], n: int) -> None:
    for _ in range(n):
        await aget()


async def with_thread(thread: threading.Thread, task: Awaitable[None]) -> float:
    """Runs a thread and a task, from the first's start to the last's end; in seconds."""
    began = time.perf_counter()
    thread.start()
    await task
    await asyncio.to_thread(thread.join)
    return time.perf_counter() - began


def thread_to_loop(make: Callable[[], Both]) -> Side:
    async def run(n: int) -> float:
        queue = make()
        return await with_thread(threading.Thread(target=put_all, args=(queue.put, n)), aget_all(queue.aget, n))

    return lambda n: asyncio.run(run(n))


def loop_to_thread(make: Callable[[], Both]) -> Side:
    async def run(n: int) -> float:
        queue = make()
        return await with_thread(threading.Thread(target=get_all, args=(queue.get, n)), aput_all(queue.aput, n))

    return lambda n: asyncio.run(run(n))


def within_one_loop(make: Callable[[], Both]) -> Side:
    async def run(n: int) -> float:
        queue = make()
        began = time.perf_counter()
        await asyncio.gather(aput_all(queue.aput, n), aget_all(queue.aget, n))
        return time.perf_counter() - began

    return lambda n: asyncio.run(run(n))


def loop_to_loop(make: Callable[[], Both]) -> Side:
    async def run(n: int) -> float:
        queue = make()
        other = threading.Thread(target=lambda: asyncio.run(aput_all(queue.aput, n)))
        return await with_thread(other, aget_all(queue.aget, n))

    return lambda n: asyncio.run(run(n))


def one_at_a_time(make: Callable[[], Both]) -> Side:
    async def run(n: int) -> float:
        there, back = make(), make()

        def ask() -> None:
            for item in range(FIRST, FIRST + n):
                there.put(item)
                back.get()

        async def answer() -> None:
            for _ in range(n):
                await back.aput(await there.aget())

        return await with_thread(threading.Thread(target=ask), answer())

    return lambda n: asyncio.run(run(n))


def run(suite: Suite) -> None:
    for title, n, side, makers, threads in (
        ("a thread to a loop", 100_000, thread_to_loop, queues(loops=1, threads=True), "1 thread and a loop"),
        ("a loop to a thread", 100_000, loop_to_thread, queues(loops=1, threads=True), "1 thread and a loop"),
        ("within one loop", 100_000, within_one_loop, queues(loops=1, threads=False), "2 tasks"),
        ("a loop to a loop", 100_000, loop_to_loop, queues(loops=2, threads=False), "2 loops"),
        ("one at a time, thread and loop", 2_000, one_at_a_time, queues(loops=1, threads=True), "1 thread and a loop"),
    ):
        suite.compare(
            title, suite.scale(n), threads, {name: side(make) for name, make in makers.items()},
            targets={"janus.Queue": (1, 1), "culsans.Queue": (1, 1)}, own_clock=True,
            fewer=SLOW if n > 10_000 else None,
        )


if __name__ == "__main__":
    main("loops", __doc__ or "", run)
