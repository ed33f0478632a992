"""Sleeping and waking: timeouts, wake-ups that are passed on, garbage collection and fork while threads wait."""

from __future__ import annotations

import gc
import os
import queue
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from ringmill import Closed, RingBuffer
from tests.threads import Started, run_threads, start_threads, wait_until

# Timeouts


@pytest.mark.parametrize("timeout", [0, 1e-6, 1e-3, 0.02])
def test_waits_of_many_threads_time_out(timeout: float) -> None:
    empty, full = RingBuffer[int](2), RingBuffer[int](2)
    full.put_many([1, 2])

    def getter() -> None:
        with pytest.raises(queue.Empty):
            empty.get(timeout=timeout)
        with pytest.raises(queue.Empty):
            empty.get_many(timeout=timeout)

    def putter() -> None:
        with pytest.raises(queue.Full):
            full.put(3, timeout=timeout)
        with pytest.raises(queue.Full) as caught:
            full.put_many([3, 4], timeout=timeout)
        assert caught.value.count == 0  # type: ignore[attr-defined]

    run_threads(*[getter, putter] * 4)
    assert empty.empty()
    assert full.get_many() == [1, 2]
    # The waits that ended left nothing behind that would eat a wake-up.
    started = start_threads(empty.get, lambda: full.put_many([5, 6, 7]))
    empty.put(4)
    assert [full.get() for _ in range(3)] == [5, 6, 7]
    assert started.join() == [4, 3]


# Wake-ups


def in_rounds(ring: RingBuffer[Any], rounds: int, *functions: Callable[[int], None]) -> None:
    """Calls each function on a thread of its own once a round, and begins a round when all are back from the last.

    Nothing comes along after a round's work is done, so one whose wake-up was lost sleeps on, and fails the test.
    """
    gate = threading.Barrier(len(functions), timeout=30)

    def run(function: Callable[[int], None]) -> None:
        try:
            for i in range(rounds):
                gate.wait()
                function(i)
            gate.wait()
        except BaseException:
            gate.abort()
            raise

    started = start_threads(*[partial(run, function) for function in functions[1:]])
    try:
        run(functions[0])
    except threading.BrokenBarrierError:
        state = repr(ring)
        ring.close()  # wakes the one that sleeps
        for thread in started.threads:
            thread.join()
        errors = [error for error in started.errors if not isinstance(error, (threading.BrokenBarrierError, Closed))]
        raise errors[0] if errors else AssertionError(f"a thread sleeps in spite of {state}") from None
    started.join()


def spin(count: int) -> None:
    """Passes some time without giving the processor, or the GIL, away."""
    for _ in range(count):
        pass


@pytest.mark.stress
@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_no_wake_up_is_lost_at_the_end_of_a_burst(capacity: int, switch_interval: float, seed: int) -> None:
    """Short bursts of three putters and three getters that want exactly what is put, and then it is quiet."""
    ring = RingBuffer[int](capacity)
    received: list[int] = []

    def put_share(who: int, i: int) -> None:
        rng = random.Random(seed + 10 * i + who)
        spin(rng.choice([0, 0, 10, 300]))
        first = 3 * (3 * i + who)
        call = rng.randrange(3)
        if call == 0:
            assert ring.put_many([first, first + 1, first + 2]) == 3
        elif call == 1:
            assert ring.put_many(iter([first, first + 1, first + 2])) == 3
        else:
            for item in range(first, first + 3):
                ring.put(item)

    def get_share(who: int, i: int) -> None:
        rng = random.Random(seed + 10 * i + who)
        spin(rng.choice([0, 0, 10, 300]))
        share: list[int] = []
        while len(share) < 3:
            call = rng.randrange(3)
            if call == 0:
                share.append(ring.get())
            elif call == 1:
                share.append(next(iter(ring)))
            else:
                share += ring.get_many(3 - len(share))
        received.extend(share)

    in_rounds(ring, 100, *[partial(put_share, who) for who in range(3)], *[partial(get_share, who) for who in range(3)])
    assert sorted(received) == list(range(900))


@pytest.mark.stress
@pytest.mark.parametrize("side", ["getters", "putters"])
@pytest.mark.parametrize("impatient", [1, 3])
def test_a_waiter_that_leaves_passes_its_wake_up_on(
    side: str, impatient: int, switch_interval: float, seed: int
) -> None:
    """One waits without a limit, others time out just when as many items (or free slots) come as there are
    waiters. The wake-ups may go to those that leave, and these may take one each or none: one is left for the one that
    stays, and no thread comes later to wake it."""
    waiters = impatient + 1
    ring = RingBuffer[int](waiters)

    def wait(timeout: float | None) -> None:
        try:
            if side == "getters":
                ring.get(timeout=timeout)
            else:
                ring.put(0, timeout=timeout)
        except (queue.Empty, queue.Full):
            assert timeout is not None

    def stay(i: int) -> None:
        if i % 2:
            spin(random.Random(seed + i).choice([0, 0, 100, 1000]))
            wait(None)

    def leave(who: int, i: int) -> None:
        if i % 2:
            wait(random.Random(seed + 100 * i + who).choice([0, 1e-6, 1e-4, 1e-3]))

    def serve(i: int) -> None:
        if i % 2 == 0:  # between two rounds, when no thread waits
            while len(ring):
                ring.get_nowait()
            if side == "putters":
                ring.put_many([0] * waiters)
            return
        spin(random.Random(seed + i).choice([0, 10, 1000, 10000, 20000]))
        for _ in range(waiters):
            if side == "getters":
                ring.put_nowait(0)
            else:
                ring.get_nowait()

    in_rounds(ring, 300, serve, stay, *[partial(leave, who) for who in range(impatient)])


@pytest.mark.stress
def test_mixed_timeouts_under_traffic(switch_interval: float, seed: int) -> None:
    """Readers that look in with all kinds of timeouts, and one item after the other: each is read before the next is
    put, so that one which sits there unread while the readers sleep stops the test."""
    ring = RingBuffer[int](2)
    received: list[int] = []

    def read(who: int) -> None:
        rng = random.Random(seed + who)
        while True:
            try:
                received.append(ring.get(timeout=rng.choice([0, 1e-6, 1e-3, None])))
            except queue.Empty:
                pass
            except Closed:
                return

    started = start_threads(*[lambda who=who: read(who) for who in range(4)])
    for i in range(300):
        ring.put(i)
        wait_until(lambda i=i: len(received) == i + 1)
    ring.close()
    started.join()
    assert received == list(range(300))


# The collector


@pytest.mark.stress
def test_garbage_collection_while_full_and_empty_rings_are_used(switch_interval: float) -> None:
    """A collector that stops the world must find every waiting thread detached, and every slot traversable."""
    full, empty = RingBuffer[Any](2), RingBuffer[Any](3)
    moved = threading.Semaphore(0)

    def produce() -> None:
        for i in range(400):
            full.put([full, i])  # garbage in a cycle through the ring

    def move() -> None:
        for _ in range(400):
            empty.put(full.get())

    def consume() -> int:
        total = 0
        for item in empty:
            total += item[1]
            moved.release()
        return total

    def collect() -> None:
        # One collection for every sixteen items: collecting without a pause keeps everybody else stopped (users of
        # queue.Queue too), for seconds at a time.
        for number in range(800):
            moved.acquire()
            if number % 16 == 0:
                gc.collect()

    collector = start_threads(collect)
    sums = start_threads(consume, consume)
    run_threads(produce, move, produce, move)
    empty.close()
    assert sum(sums.join()) == 2 * sum(range(400))
    collector.join()


# Fork


def wait_until_parked(started: Started) -> None:
    """Waits until the threads use no processor time any more, where a thread's clock can be read; elsewhere it
    returns at once, and what follows meets them on their way to sleep."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in started.threads if thread.ident]

    def idle() -> bool:
        before = [time.clock_gettime_ns(clock) for clock in clocks]
        time.sleep(0.02)
        return before == [time.clock_gettime_ns(clock) for clock in clocks]

    wait_until(idle)


def fork_and_check(child: Callable[[], None]) -> None:
    """Runs `child` in a forked process; what it raises is printed there, and fails the test here."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(20)  # the watchdog thread is the parent's; a child that hangs is killed
            child()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    _, code = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(code) == 0


def use(ring: RingBuffer[Any]) -> None:
    """Every kind of call on a ring that is empty and open, waits between threads included."""
    capacity = ring.capacity
    for i in range(2 * capacity + 1):
        ring.put(i)
        assert ring.get() == i
    with pytest.raises(queue.Empty):
        ring.get(timeout=0.001)
    ring.put_many(range(capacity))
    with pytest.raises(queue.Full):
        ring.put(-1, timeout=0.001)
    assert ring.get_many() == list(range(capacity))
    got, _ = run_threads(lambda: [ring.get() for _ in range(50)], lambda: ring.put_many(range(50)))
    assert got == list(range(50))
    waiting = start_threads(partial(list, ring))
    ring.close()
    assert waiting.join() == [[]]


posix_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
forks_beside_threads = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@posix_fork
@forks_beside_threads
def test_fork_while_getters_wait() -> None:
    ring = RingBuffer[int](2)
    getters = start_threads(ring.get, partial(ring.get, timeout=60), partial(ring.get_many, 1))
    wait_until_parked(getters)
    fork_and_check(lambda: use(ring))
    assert len(ring) == 0
    for item in (1, 2, 3):
        ring.put(item)
    first, second, some = getters.join()
    assert sorted([first, second, *some]) == [1, 2, 3]
    use(ring)


@posix_fork
@forks_beside_threads
def test_fork_while_putters_wait() -> None:
    ring = RingBuffer[int](2)
    ring.put_many([-1, -2])
    putters = start_threads(partial(ring.put, 1), partial(ring.put, 2, timeout=60), partial(ring.put_many, [3, 3]))
    wait_until_parked(putters)

    def child() -> None:
        assert ring.get_many() == [-1, -2]
        assert ring.empty()  # the threads that were to put more are the parent's
        use(ring)

    fork_and_check(child)
    assert len(ring) == 2
    received = [ring.get() for _ in range(6)]
    putters.join()
    assert received[:2] == [-1, -2]
    assert sorted(received[2:]) == [1, 2, 3, 3]
    use(ring)


@posix_fork
@forks_beside_threads
def test_a_child_of_a_child_that_closes_leaves_its_parents_alone() -> None:
    ring = RingBuffer[int](1)
    getter = start_threads(ring.get)
    wait_until_parked(getter)

    def child() -> None:
        own = start_threads(ring.get)
        wait_until_parked(own)
        fork_and_check(ring.close)
        assert not ring.closed
        ring.put(1)
        assert own.join() == [1]

    fork_and_check(child)
    ring.put(2)
    assert getter.join() == [2]
