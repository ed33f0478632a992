"""aput, aget and `async for` of a RingBuffer: under asyncio and trio, in several event loops, together with threads."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import gc
import queue
import random
import signal
import sys
import threading
import weakref
from typing import Any

import anyio
import pytest

from ringmill import Closed, RingBuffer
from tests.loops import BACKENDS, Elsewhere, let_others_run, run_loop, together
from tests.threads import start_threads, wait_until

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def test_available_items_are_taken_at_once(backend: str) -> None:
    async def main() -> None:
        ring: RingBuffer[int | None] = RingBuffer(2)
        await ring.aput(1)
        await ring.aput(None)
        assert ring.full()
        assert await ring.aget() == 1
        assert await ring.aget() is None

    run_loop(backend, main)


def test_waiting_tasks_are_served_in_the_order_of_their_coming(backend: str) -> None:
    async def main() -> None:
        ring: RingBuffer[int] = RingBuffer(1)
        got: list[tuple[str, int]] = []

        async def take(name: str) -> None:
            got.append((name, await ring.aget()))

        async with anyio.create_task_group() as group:
            for name in "abc":
                group.start_soon(take, name)
                await let_others_run()
            for number in range(3):
                await ring.aput(number)
                await let_others_run(10)
        assert got == [("a", 0), ("b", 1), ("c", 2)]

    run_loop(backend, main)


def test_a_full_ring_makes_a_putter_wait(backend: str) -> None:
    async def main() -> None:
        ring: RingBuffer[int] = RingBuffer(1)
        ring.put(0)
        done = anyio.Event()

        async def put() -> None:
            await ring.aput(1)
            done.set()

        async with anyio.create_task_group() as group:
            group.start_soon(put)
            await let_others_run()
            assert not done.is_set()
            assert len(ring) == 1
            assert await ring.aget() == 0
            await done.wait()
        assert await ring.aget() == 1

    run_loop(backend, main)


def test_close_ends_waiting_putters_and_iteration_after_the_last_item(backend: str) -> None:
    async def main() -> None:
        ring: RingBuffer[int] = RingBuffer(1)
        ring.put(0)
        raised: list[type[BaseException]] = []

        async def put() -> None:
            with pytest.raises(Closed):
                await ring.aput(1)
            raised.append(Closed)

        async with anyio.create_task_group() as group:
            group.start_soon(put)
            group.start_soon(put)
            await let_others_run()
            ring.close()
        assert raised == [Closed, Closed]
        assert [item async for item in ring] == [0]
        with pytest.raises(Closed):
            await ring.aget()
        with pytest.raises(Closed):
            await ring.aput(2)

    run_loop(backend, main)


def test_close_wakes_every_waiting_getter(backend: str) -> None:
    async def main() -> None:
        ring: RingBuffer[int] = RingBuffer(1)

        async def drain() -> list[int]:
            return [item async for item in ring]

        async def close() -> None:
            await let_others_run()
            ring.close()

        assert await together(*[drain] * 10, close) == [[]] * 10 + [None]

    run_loop(backend, main)


def test_without_a_loop_waiting_is_an_error_and_nothing_is_lost(backend: str) -> None:
    ring: RingBuffer[int] = RingBuffer(1)
    waiting = ring.aget()
    with pytest.raises(RuntimeError, match="no asyncio or trio event loop"):
        waiting.send(None)
    ring.put(1)
    ready = ring.aget()
    with pytest.raises(StopIteration) as stop:
        ready.send(None)
    assert stop.value.value == 1


def test_a_put_of_another_thread_wakes_a_task(backend: str) -> None:
    ring: RingBuffer[int] = RingBuffer(1)
    back: RingBuffer[int] = RingBuffer(1)

    async def main() -> None:
        for number in range(200):
            assert await ring.aget() == number
            await back.aput(number)

    def play() -> None:
        for number in range(200):
            ring.put(number)
            assert back.get() == number

    player = start_threads(play)
    run_loop(backend, main)
    player.join()


def test_a_put_from_a_signal_handler_wakes_a_sleeping_loop(backend: str) -> None:
    """The signal is repeated, since one that comes just before the loop's select does not end that: nothing of ours."""
    if sys.platform == "win32":
        pytest.skip("no pthread_kill")
    ring: RingBuffer[int] = RingBuffer(1)
    taken = threading.Event()

    def put(*_: object) -> None:
        with contextlib.suppress(queue.Full):
            ring.put_nowait(1)

    def send() -> None:
        while not taken.wait(0.002):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)  # the one to wake

    async def main() -> None:
        for _ in range(20):
            taken.clear()
            sender = start_threads(send)
            assert await ring.aget() == 1
            taken.set()
            sender.join()
            while not ring.empty():
                ring.get_nowait()

    before = signal.signal(signal.SIGUSR1, put)
    try:
        run_loop(backend, main)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_put_from_a_finalizer_wakes_a_task(backend: str) -> None:
    ring: RingBuffer[int] = RingBuffer(4)

    class Loud:
        def __del__(self) -> None:
            ring.put_nowait(1)

    async def main() -> None:
        async def make() -> None:
            await let_others_run()
            loud: Any = Loud()
            loud.itself = loud
            del loud
            gc.collect()

        async def take() -> int:
            return await ring.aget()

        assert (await together(take, make))[0] == 1

    run_loop(backend, main)


@pytest.mark.parametrize(("producers", "consumers"), [(1, 1), (3, 3)])
@pytest.mark.parametrize("capacity", [1, 2, 64])
def test_tasks_of_several_loops_and_threads_share_a_ring(
    backend: str, capacity: int, producers: int, consumers: int, seed: int
) -> None:
    """Half of either side are threads, the others are tasks of a loop each, one of the other library."""
    each = 300
    rng = random.Random(seed)
    ring: RingBuffer[tuple[int, int]] = RingBuffer(capacity)
    kinds = [rng.choice(["thread", "asyncio", "trio", backend]) for _ in range(producers + consumers)]

    def put_all(producer: int) -> None:
        for number in range(each):
            ring.put((producer, number))

    async def aput_all(producer: int) -> None:
        for number in range(each):
            await ring.aput((producer, number))

    async def aget_all() -> list[tuple[int, int]]:
        return [item async for item in ring]

    def begin(kind: str, here: Any, there: Any) -> Any:
        return start_threads(here) if kind == "thread" else Elsewhere(kind, there)

    takers = [begin(kind, lambda: list(ring), aget_all) for kind in kinds[producers:]]
    givers = [
        begin(kind, functools.partial(put_all, n), functools.partial(aput_all, n))
        for n, kind in enumerate(kinds[:producers])
    ]
    for giver in givers:
        giver.join()
    ring.close()
    taken = [taker.join() for taker in takers]
    taken = [part[0] if kind == "thread" else part for part, kind in zip(taken, kinds[producers:], strict=True)]
    for part in taken:
        for producer in range(producers):
            own = [number for who, number in part if who == producer]
            assert own == sorted(own), "one producer's items came out of order"
    count = collections.Counter(item for part in taken for item in part)
    assert count == {(producer, number): 1 for producer in range(producers) for number in range(each)}


@pytest.mark.parametrize("capacity", [1, 3])
def test_cancelled_awaits_lose_no_item_and_no_wakeup(backend: str, capacity: int, seed: int) -> None:
    """Thousands of gets and puts, each cancelled after a few steps of the loop, at random, while a thread runs, too."""
    rng = random.Random(seed)
    ring: RingBuffer[int] = RingBuffer(capacity)
    total = 1_500
    put: list[int] = []
    got: list[int] = []
    cancelled = 0
    by_thread: list[int] = []

    async def cancel_soon(scope: anyio.CancelScope, steps: int) -> None:
        await let_others_run(steps)
        scope.cancel()

    async def main() -> None:
        nonlocal cancelled
        numbers = iter(range(total))

        async def put_some() -> None:
            nonlocal cancelled
            for number in numbers:
                while True:
                    async with anyio.create_task_group() as group:
                        done = False
                        group.start_soon(cancel_soon, group.cancel_scope, rng.randrange(4))
                        await ring.aput(number)
                        done = True
                        group.cancel_scope.cancel()
                    if done:
                        put.append(number)
                        break
                    cancelled += 1

        async def get_some() -> None:
            nonlocal cancelled
            while True:
                item = -1
                over = False
                async with anyio.create_task_group() as group:
                    group.start_soon(cancel_soon, group.cancel_scope, rng.randrange(4))
                    try:
                        item = await ring.aget()
                    except Closed:
                        over = True
                    group.cancel_scope.cancel()
                if over:
                    return
                if item >= 0:
                    got.append(item)
                else:
                    cancelled += 1

        async def put_and_close() -> None:
            await together(put_some, put_some, put_some)
            ring.close()

        await together(put_and_close, get_some, get_some)

    def get_beside() -> None:
        by_thread.extend(ring)

    thread = start_threads(get_beside)
    run_loop(backend, main)
    thread.join()
    assert sorted(put) == list(range(total))
    assert sorted(got + by_thread) == list(range(total))
    assert cancelled > total // 10


def test_a_granted_task_that_is_cancelled_passes_the_wakeup_on(backend: str) -> None:
    """The task is first in the list; its loop is kept busy until a thread stands behind it, then it is cancelled."""
    ring: RingBuffer[int] = RingBuffer(1)
    got: list[int] = []

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(ring.aget)
            await let_others_run()
            thread = start_threads(lambda: got.append(ring.get()))
            wait_until(lambda: bool(sys._current_frames().get(thread.threads[0].ident or 0)))
            putter = start_threads(lambda: ring.put(7))  # grants the task, whose loop is busy: here
            putter.join()
            group.cancel_scope.cancel()
        thread.join()

    run_loop(backend, main)
    assert got == [7]


def test_the_snapshot_of_a_cancelled_task_is_unchanged(backend: str) -> None:
    async def main() -> None:
        ring: RingBuffer[int] = RingBuffer(2)
        with anyio.move_on_after(0):
            await ring.aget()
        ring.put(1)
        ring.put(2)
        with anyio.move_on_after(0):
            await ring.aput(3)
        assert len(ring) == 2
        assert ring.get_many() == [1, 2]

    run_loop(backend, main)


def test_a_thread_gets_the_item_for_which_a_closed_loop_was_woken(backend: str) -> None:
    if backend == "trio":
        pytest.skip("trio's run does not end before its tasks have")
    ring: RingBuffer[int] = RingBuffer(1)
    loop = asyncio.new_event_loop()
    task = loop.create_task(ring.aget())
    loop.run_until_complete(asyncio.sleep(0))
    thread = start_threads(ring.get)
    task._log_destroy_pending = False  # it is meant to be destroyed
    loop.close()
    ring.put(5)
    assert thread.join() == [5]


def test_a_destroyed_task_passes_the_wakeup_on(backend: str) -> None:
    """It was woken, and its loop never ran again."""
    if backend == "trio":
        pytest.skip("trio's run does not end before its tasks have")
    ring: RingBuffer[int] = RingBuffer(1)
    loop = asyncio.new_event_loop()
    task = loop.create_task(ring.aget())
    loop.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False  # it is meant to be destroyed
    thread = start_threads(ring.get)
    putter = start_threads(lambda: ring.put(5))  # from another thread: not resolved at once
    putter.join()
    loop.close()
    del task, loop
    gc.collect()
    assert thread.join() == [5]


def test_a_ring_that_only_its_waiting_task_knows_is_collected(backend: str) -> None:
    if backend == "trio":
        pytest.skip("trio's tasks are known to their run")

    async def main() -> None:
        ring: RingBuffer[int] = RingBuffer(1)
        gone = weakref.ref(ring)
        task = asyncio.get_running_loop().create_task(wait_on(ring))
        await let_others_run()
        task._log_destroy_pending = False  # it is meant to be destroyed
        del ring, task
        gc.collect()
        assert gone() is None

    async def wait_on(ring: RingBuffer[int]) -> None:
        await ring.aget()

    asyncio.run(main())


def test_waiting_leaves_no_references(backend: str) -> None:
    item = object()

    async def main() -> None:
        ring: RingBuffer[object] = RingBuffer(1)
        for _ in range(3):
            with anyio.move_on_after(0):
                await ring.aget()
            await ring.aput(item)
            with anyio.move_on_after(0):
                await ring.aput(item)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await ring.aput(item)
            assert await ring.aget() is item

    run_loop(backend, main)
    gc.collect()
    before = sys.getrefcount(item)
    run_loop(backend, main)
    gc.collect()
    assert sys.getrefcount(item) == before
