"""task_done and join, as in queue.Queue. CPython's own tests of them are run by test_queue_cpython.py."""

from __future__ import annotations

import functools
import os
import queue

import pytest

from ringmill import Closed, RingBuffer
from tests.threads import run_threads, start_threads


def take(ring: RingBuffer[int]) -> int:
    """Takes all that comes and says so each time; returns how many."""
    count = 0
    for _ in ring:
        ring.task_done()
        count += 1
    return count


@pytest.mark.parametrize("capacity", [1, 2, 3, 8])
def test_every_way_in_counts_and_only_task_done_counts_back(capacity: int) -> None:
    ring: RingBuffer[int] = RingBuffer(capacity)
    ring.join()
    for lap in range(10):
        ring.put(1)
        assert ring.unfinished_tasks == 1
        if capacity > 1:
            ring.put_nowait(2)
            ring.put_many([3] * (capacity - 2))
        assert ring.unfinished_tasks == capacity, lap
        with pytest.raises(queue.Full):
            ring.put_nowait(4)
        assert len(ring.get_many()) == capacity
        assert ring.unfinished_tasks == capacity
        for left in range(capacity - 1, -1, -1):
            ring.task_done()
            assert ring.unfinished_tasks == left
        ring.join()
        with pytest.raises(ValueError, match="called too many times"):
            ring.task_done()
        assert ring.unfinished_tasks == 0


def test_task_done_without_a_get() -> None:
    """As queue.Queue: it counts calls, not items."""
    ring: RingBuffer[int] = RingBuffer(2)
    ring.put(1)
    ring.task_done()
    ring.join()
    assert len(ring) == 1


def test_join_waits_for_the_last_task_and_wakes_all_joiners() -> None:
    ring: RingBuffer[int] = RingBuffer(4)
    ring.put_many([1, 2, 3])
    returned: list[int] = []
    waiting = start_threads(*[lambda: (ring.join(), returned.append(1))] * 3)
    for _ in range(2):
        ring.get()
        ring.task_done()
    ring.get()
    assert not returned
    ring.task_done()
    waiting.join()
    assert len(returned) == 3


def test_maxsize_and_is_shutdown_are_queues_names() -> None:
    ring: RingBuffer[int] = RingBuffer(7)
    assert ring.maxsize == ring.capacity == 7
    with pytest.raises(AttributeError):
        ring.maxsize = 8  # type: ignore[misc]
    assert not ring.is_shutdown
    ring.shutdown()
    assert ring.is_shutdown


def test_close_leaves_the_tasks_and_an_immediate_shutdown_ends_those_that_it_drops() -> None:
    ring: RingBuffer[int] = RingBuffer(4)
    ring.put_many([1, 2, 3])
    ring.get()
    waiting = start_threads(ring.join)
    ring.close()
    assert ring.unfinished_tasks == 3
    ring.shutdown(immediate=True)
    assert ring.unfinished_tasks == 1  # of the one that was taken
    ring.task_done()
    waiting.join()
    with pytest.raises(ValueError, match="too many"):
        ring.task_done()
    with pytest.raises(Closed):
        ring.get()


def test_an_immediate_shutdown_wakes_waiting_threads() -> None:
    ring: RingBuffer[int] = RingBuffer(4)
    ring.put_many([1, 2, 3])
    waiting = start_threads(ring.join, ring.join)
    ring.shutdown(immediate=True)
    waiting.join()


@pytest.mark.stress
def test_join_while_producers_and_consumers_run(switch_interval: float) -> None:
    """Each join returns, and after the last all have been counted; a lost wake-up would hang it."""


    def produce(ring: RingBuffer[int]) -> None:
        for number in range(400):
            ring.put(number)
            if number % 8 == 0:
                ring.join()  # another may have put meanwhile, and its items are waited for as well

    for capacity in (1, 2, 5):
        ring: RingBuffer[int] = RingBuffer(capacity)
        consumers = start_threads(*[functools.partial(take, ring)] * 2)
        run_threads(*[functools.partial(produce, ring)] * 2)
        ring.join()
        assert ring.unfinished_tasks == 0
        ring.close()
        assert sum(consumers.join()) == 800


@pytest.mark.stress
def test_task_done_by_many_is_never_counted_too_often(switch_interval: float) -> None:
    ring: RingBuffer[int] = RingBuffer(300)
    ring.put_many(range(300))

    def call(_: int) -> int:
        count = 0
        while True:
            try:
                ring.task_done()
            except ValueError:
                return count
            count += 1

    assert sum(run_threads(*[functools.partial(call, k) for k in range(4)])) == 300
    assert ring.unfinished_tasks == 0
    ring.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_join_in_the_child_of_a_fork() -> None:
    ring: RingBuffer[int] = RingBuffer(2)
    ring.put(1)
    waiting = start_threads(ring.join)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            joined = start_threads(ring.join)
            ring.task_done()
            joined.join()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ring.task_done()
    waiting.join()
