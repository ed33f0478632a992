"""`clear`: what it drops and counts, whom it wakes, and what finalizers and other threads may do meanwhile."""

from __future__ import annotations

import contextlib
import queue
import random
import signal
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from ringmill import Closed, RingBuffer, WorkerPool
from tests.loops import BACKENDS, let_others_run, run_loop
from tests.pool.wrapping import Number, Quick
from tests.threads import LONG, run_threads, start_threads, wait_until


class Item:
    """Calls `last_words` when it is dropped; what that raises would be a PytestUnraisableExceptionWarning, an error."""

    def __init__(self, last_words: Callable[[], Any] = int) -> None:
        self.last_words = last_words

    def __del__(self) -> None:
        self.last_words()


@pytest.mark.parametrize("capacity", [1, 2, 3, 300])
def test_it_drops_what_is_there_and_says_how_many(capacity: int) -> None:
    ring: RingBuffer[Item] = RingBuffer(capacity)
    assert ring.clear() == 0
    for count in (1, capacity // 2, capacity, capacity):  # the places wrap around
        items = [Item() for _ in range(count)]
        references = [weakref.ref(item) for item in items]
        ring.put_many(items)
        del items
        assert ring.clear() == count
        assert [reference() for reference in references] == [None] * count
        assert (len(ring), ring.empty(), ring.full(), ring.closed, ring.unfinished_tasks) == (0, True, False, False, 0)
        assert ring.clear() == 0
        with pytest.raises(queue.Empty):
            ring.get_nowait()
    first = Item()
    ring.put_nowait(first)
    assert ring.get_nowait() is first


def test_it_drops_only_the_rings_reference() -> None:
    item = Item()
    ring: RingBuffer[Item] = RingBuffer(5)
    before = sys.getrefcount(item)
    ring.put_many([item] * 5)
    assert ring.clear() == 5
    assert sys.getrefcount(item) == before


@pytest.mark.parametrize("shut", [RingBuffer.close, RingBuffer.shutdown])
def test_a_closed_ring_stays_closed_and_is_drained(shut: Callable[[RingBuffer[int]], None]) -> None:
    ring: RingBuffer[int] = RingBuffer(4)
    ring.put_many([1, 2, 3])
    shut(ring)
    assert ring.get() == 1
    assert ring.clear() == 2
    assert (len(ring), ring.closed, ring.unfinished_tasks) == (0, True, 1)
    with pytest.raises(Closed):
        ring.get()
    with pytest.raises(Closed):
        ring.put(4)
    assert list(ring) == []
    assert ring.clear() == 0


# Unfinished tasks


def test_dropped_items_are_no_unfinished_tasks_and_taken_ones_still_are() -> None:
    ring: RingBuffer[int] = RingBuffer(4)
    ring.put_many(range(4))
    assert ring.get() == 0
    joined: list[int] = []
    joining = start_threads(*[lambda: (ring.join(), joined.append(1))] * 2)
    assert ring.clear() == 3
    assert ring.unfinished_tasks == 1
    assert not joined
    ring.task_done()
    joining.join()
    assert len(joined) == 2
    with pytest.raises(ValueError, match="too many"):
        ring.task_done()


def test_join_returns_when_the_last_unfinished_task_is_dropped() -> None:
    ring: RingBuffer[int] = RingBuffer(4)
    ring.put_many(range(4))
    joining = start_threads(ring.join, ring.join)
    assert ring.clear() == 4
    joining.join()
    assert ring.unfinished_tasks == 0


def test_tasks_that_were_finished_before_they_were_taken_are_not_counted_twice() -> None:
    """As the immediate shutdown of queue.Queue: the count does not go below zero."""
    ring: RingBuffer[int] = RingBuffer(4)
    ring.put_many(range(4))
    for _ in range(3):
        ring.task_done()
    assert ring.clear() == 4
    assert ring.unfinished_tasks == 0
    ring.put(1)
    assert ring.unfinished_tasks == 1


# Waiters


@pytest.mark.parametrize("capacity", [1, 3])
def test_it_wakes_as_many_putters_as_there_is_room_for(capacity: int) -> None:
    ring: RingBuffer[int] = RingBuffer(capacity)
    ring.put_many([0] * capacity)
    putting = start_threads(*[lambda: ring.put(1, timeout=LONG)] * (2 * capacity))
    dropped = 0
    while dropped < 2 * capacity:  # the zeros, and half of the ones: the rest of them fits
        dropped += ring.clear()
    putting.join()
    assert ring.clear() == 3 * capacity - dropped


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_wakes_tasks_that_wait_for_room(backend: str) -> None:
    async def main() -> None:
        ring: RingBuffer[str] = RingBuffer(2)
        ring.put_many(["old", "old"])
        async with anyio.create_task_group() as group:
            for name in "abc":
                group.start_soon(ring.aput, name)
                await let_others_run()
            assert ring.clear() == 2
            await let_others_run(10)
            assert sorted(ring.get_many()) == ["a", "b"]  # trio resumes tasks in any order
        assert ring.get_many() == ["c"]

    run_loop(backend, main)


def test_the_stream_of_a_ring_that_is_cleared_and_closed_ends() -> None:
    """The workers leave to the ring what the stream has no room for, and sleep; they find the end nevertheless."""
    for close_first in (False, True):
        ring: RingBuffer[Number] = RingBuffer(10)
        ops = [Number(number) for number in range(10)]
        with WorkerPool([Quick(), Quick()]) as pool:
            stream = pool.wrap(ring, buffer=2)
            ring.put_many(ops)
            wait_until(lambda stream=stream: stream.ready == 2)
            if close_first:
                ring.close()
            assert ring.clear() == 8
            ring.close()
            assert sorted(op.number for op in stream) == [0, 1]
        assert [op.runs for op in ops] == [1] * 2 + [0] * 8


# Re-entrancy


def test_an_item_that_is_put_by_a_finalizer_stays_and_the_call_ends() -> None:
    ring: RingBuffer[Any] = RingBuffer(2)
    ring.put_many([Item(lambda: ring.put_nowait(Item(lambda: ring.put_nowait("last")))) for _ in range(2)])
    assert ring.clear() == 2
    assert ring.unfinished_tasks == 2
    assert ring.clear() == 2
    assert ring.get_many() == ["last", "last"]


def test_an_item_that_takes_the_place_of_one_that_another_reader_took_stays() -> None:
    ring: RingBuffer[Any] = RingBuffer(3)
    said: list[Any] = []

    def refill() -> None:
        said.append(ring.get_many())
        ring.put_many(["new"] * 3)

    ring.put_many([Item(refill), 1, 2])
    assert ring.clear() == 1
    assert said == [[1, 2]]
    assert ring.get_many() == ["new"] * 3


def test_a_finalizer_finds_room_and_a_task_less_and_may_use_the_ring() -> None:
    ring: RingBuffer[Any] = RingBuffer(3)
    found: list[Any] = []

    def look() -> None:
        found.append((len(ring), ring.unfinished_tasks, ring.full()))
        found.append(ring.clear())  # drops the two others, whose finalizers find nothing to drop
        if not ring.unfinished_tasks:
            ring.join()  # returns

    ring.put_many([Item(look) for _ in range(3)])
    assert ring.clear() == 1
    assert found == [(2, 2, False), (1, 1, False), (0, 0, False), 0, 1, 1]


def test_a_finalizer_may_close_the_ring() -> None:
    ring: RingBuffer[Any] = RingBuffer(3)
    ring.put_many([Item(ring.close) for _ in range(3)])
    assert ring.clear() == 3
    assert (ring.closed, list(ring)) == (True, [])


def test_a_weak_reference_callback_may_clear_the_ring() -> None:
    ring: RingBuffer[Any] = RingBuffer(3)
    ring.put_many([1, 2, 3])
    said: list[int] = []
    item = Item()
    reference = weakref.ref(item, lambda _: said.append(ring.clear()))
    del item
    assert said == [3]
    assert reference() is None


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
@pytest.mark.parametrize("capacity", [1, 3])
def test_a_signal_handler_clears_the_ring(capacity: int) -> None:
    """It runs between any two bytecodes of the main thread and inside its waits: each item is taken or dropped once."""
    ring: RingBuffer[int] = RingBuffer(capacity)
    fired: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: fired.append(ring.clear()))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    put = got = 0
    try:
        while len(fired) < 200:
            ring.put(put)  # where the ring is full, the handler makes room
            put += 1
            if put % 3 == 0:
                with contextlib.suppress(queue.Empty):
                    got += len(ring.get_many(timeout=0))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert put == got + sum(fired) + len(ring)
    assert ring.unfinished_tasks == got + len(ring)


# With other threads


@pytest.mark.stress
@pytest.mark.watchdog(60)
@pytest.mark.parametrize("capacity", [1, 2, 7])
@pytest.mark.parametrize("consumers", [0, 2])
def test_each_item_is_taken_once_or_dropped_once(
    capacity: int, consumers: int, seed: int, switch_interval: float
) -> None:
    producers, each = 3, 300
    ring: RingBuffer[Item] = RingBuffer(capacity)
    dead: list[tuple[int, int]] = []
    ended = threading.Event()

    def make(producer: int, number: int) -> Item:
        item = Item(lambda: dead.append((producer, number)))
        item.key = (producer, number)  # type: ignore[attr-defined]
        return item

    def produce(producer: int) -> None:
        rng = random.Random(seed + producer)
        number = 0
        while number < each:
            count = min(each - number, rng.choice([1, 1, 3]))
            batch = [make(producer, number + k) for k in range(count)]
            if rng.random() < 0.5:
                assert ring.put_many(batch) == count
            else:
                for item in batch:
                    ring.put(item)
            number += count

    def consume() -> list[tuple[int, int]]:
        taken = []
        for item in ring:
            taken.append(item.key)  # type: ignore[attr-defined]
            ring.task_done()
        return taken

    def clear() -> int:
        dropped = 0
        while not ended.is_set():
            dropped += ring.clear()
            time.sleep(0)  # lets others have the GIL
        return dropped

    clearing = start_threads(clear, clear)
    consuming = start_threads(*[consume] * consumers) if consumers else None
    run_threads(*[lambda k=k: produce(k) for k in range(producers)])
    ring.join()  # returns: each item has been taken and reported, or dropped
    ring.close()
    ended.set()
    dropped = sum(clearing.join())
    taken = consuming.join() if consuming else []
    assert dropped + sum(map(len, taken)) == producers * each
    assert ring.unfinished_tasks == 0
    assert len(ring) == 0
    for mine in taken:  # in the order of each producer
        for producer in range(producers):
            numbers = [number for maker, number in mine if maker == producer]
            assert numbers == sorted(numbers)
    counts = Counter(key for mine in taken for key in mine)
    assert max(counts.values(), default=1) == 1
    # A free-threaded build may drop an item of another thread a moment later, on that thread.
    wait_until(lambda: len(dead) == producers * each)
    assert len(set(dead)) == producers * each
