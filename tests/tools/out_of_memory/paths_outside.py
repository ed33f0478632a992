"""Paths of an event loop's tasks, of the executor, and of hubs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import CancelledError, wait
from typing import Any

from ringmill import BrokenPool, Closed, Hub, PoolExecutor, RingBuffer, WorkerInitError
from tests.tools.out_of_memory.jobs import Gate, each, fails, finish, ok, pool_of, retries
from tests.tools.out_of_memory.shortage import LIMIT, Read, Shortage, attempt, path, threads_of, wait_for


@path
def awaited(trial: Shortage) -> None:
    """A task awaits the operations while a worker has no memory: that loses none."""
    pool = pool_of(trial, 1)
    pool.start()
    trial.live = True
    gate = Gate(trial)
    ops = each(trial, ok, fails, retries)
    pool.do(gate)
    gate.await_worker()
    stream = pool.execute(ops)
    came = Read(2 * len(ops))

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.01, gate.open)
        await ops[0]
        async for op in stream:
            came.items[came.count] = op
            came.count += 1

    async def limited() -> None:
        await asyncio.wait_for(main(), 2.0)

    # asyncio's own errors:
    attempt(trial, lambda: asyncio.run(limited()), RuntimeError, SystemError, AttributeError, TimeoutError)
    gate.open()
    wait_for(ops)
    came.rest(stream)
    # Not that all came out: a future of asyncio loses a callback (faults.py: future), a coroutine its result, for want
    # of memory on the loop's thread.
    assert len({id(op) for op in came.items[: came.count]}) == came.count
    assert {id(op) for op in came.items[: came.count]} <= {id(op) for op in ops}
    finish(trial, pool, [gate, *ops])


def executor_ends(trial: Shortage, executor: PoolExecutor, futures: list[Any]) -> None:
    trial.end()
    for future in futures:
        if future is not None:
            with contextlib.suppress(MemoryError, ValueError, CancelledError, BrokenPool):
                future.result(LIMIT)
            assert future.done()
    executor.shutdown()
    assert not threads_of("memory"), threads_of("memory")


@path
def submits(trial: Shortage) -> None:
    executor = PoolExecutor(2, "memory")
    executor.submit(int).result(LIMIT)

    def fine() -> int:
        trial.at("call")
        return 1

    def failing() -> None:
        trial.at("failing call")
        raise ValueError("it was to fail")

    def tells(future: Any) -> None:
        trial.at("callback")

    futures: list[Any] = [None] * 3

    def section() -> None:
        trial.at("submit")
        for index, function in enumerate((fine, failing, fine)):
            futures[index] = executor.submit(function)
            futures[index].add_done_callback(tells)
        for future in futures:
            with contextlib.suppress(ValueError):
                future.result(LIMIT)

    attempt(trial, section)
    executor_ends(trial, executor, futures)


@path
def submits_first(trial: Shortage) -> None:
    """Its threads start with the first call."""
    executor = PoolExecutor(2, "memory")
    futures: list[Any] = [None]

    def section() -> None:
        trial.at("submit")
        futures[0] = executor.submit(int)
        futures[0].result(LIMIT)

    attempt(trial, section, BrokenPool, WorkerInitError)
    executor_ends(trial, executor, futures)


@path
def submits_and_cancels(trial: Shortage) -> None:
    executor = PoolExecutor(1, "memory")
    gate = threading.Event()
    first = executor.submit(gate.wait, LIMIT)
    futures = [executor.submit(int) for _ in range(3)]

    def section() -> None:
        trial.at("cancel")
        futures[1].cancel()
        executor.shutdown(False, cancel_futures=True)

    attempt(trial, section)
    gate.set()
    executor_ends(trial, executor, [first, *futures])


@path
def maps(trial: Shortage) -> None:
    executor = PoolExecutor(2, "memory")
    executor.submit(int).result(LIMIT)
    got: list[Any] = [None]

    def works(x: int) -> int:
        trial.at("call")
        return x

    def section() -> None:
        trial.at("map")
        results = executor.map(works, [1, 2, 3, 4])
        trial.at("read")
        got[0] = list(results)

    attempt(trial, section)
    assert got[0] in (None, [1, 2, 3, 4])
    executor_ends(trial, executor, [])


@path
def waited_futures(trial: Shortage) -> None:
    executor = PoolExecutor(2, "memory")
    gate, begins = threading.Event(), threading.Event()
    executor.submit(int).result(LIMIT)

    def works() -> int:
        gate.wait(LIMIT)
        trial.at("call")
        return 1

    def opens() -> None:
        begins.wait(0.01)
        gate.set()

    futures = [executor.submit(works) for _ in range(2)]
    opener = threading.Thread(target=opens)
    opener.start()
    # Not without a limit: CPython's waiter may find no memory to set its event, after it has counted the future.
    attempt(trial, lambda: wait(futures, 1.0))
    opener.join()
    executor_ends(trial, executor, futures)


@path
def hub_drops_a_subscription(trial: Shortage) -> None:
    """A broadcast waits for a subscription that is dropped meanwhile."""
    hub: Hub[Any] = Hub(buffer=1)
    held: list[Any] = [hub.subscribe(), hub.subscribe()]
    hub.broadcast(1)
    kept = held[0]
    over = RingBuffer[None](1)

    def publishes() -> None:
        try:
            hub.broadcast(2, timeout=LIMIT)
        except (MemoryError, SystemError):
            pass
        finally:
            over.close()

    publisher = threading.Thread(target=publishes)
    publisher.start()
    threading.Event().wait(0.005)

    def section() -> None:
        trial.at("drop")
        held.clear()
        kept.get(timeout=LIMIT)
        over.get(timeout=LIMIT)

    attempt(trial, section, Closed)
    held.clear()
    if len(kept):
        kept.get_nowait()
    publisher.join(LIMIT)
    assert not publisher.is_alive()
    assert len(hub) == 1
    while len(kept):
        kept.get_nowait()
    assert hub.broadcast(3, timeout=LIMIT) == 1
    assert kept.get_nowait() == 3
