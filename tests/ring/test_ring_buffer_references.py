"""References that a ring holds and releases, and calls from finalizers, callbacks and signal handlers."""

from __future__ import annotations

import gc
import itertools
import queue
import random
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringmill import Closed, RingBuffer
from tests.threads import run_threads

posix_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")


class Thing:
    """Something that can be weakly referenced and carry attributes."""


class Dying:
    """Calls `last_words` when it is dropped; what that raises would be a PytestUnraisableExceptionWarning, an error."""

    def __init__(self, last_words: Callable[[], Any]) -> None:
        self.last_words = last_words

    def __del__(self) -> None:
        self.last_words()


@pytest.fixture
def eager_gc() -> Iterator[None]:
    """The collector runs at nearly every allocation."""
    before = gc.get_threshold()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*before)


def quiet(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except (queue.Full, queue.Empty, Closed) as error:
        return type(error)


# References


def test_references_end_where_they_began() -> None:
    item = Thing()
    ring = RingBuffer[Thing](3)
    before = sys.getrefcount(item)
    for _ in range(50):
        ring.put(item)
        ring.get()
        ring.put_nowait(item)
        ring.get_nowait()
        ring.put_many([item, item])
        ring.get_many()
        ring.put_many(iter([item, item]))
        ring.get_many(1)
        next(iter(ring))
        for timeout in (0, 1e-6):
            quiet(ring.put_many, [item] * 5, timeout)  # Full, with count and rest
            quiet(ring.put, item, True, timeout)
            quiet(ring.put_nowait, item)
            ring.get_many()
            quiet(ring.get, True, timeout)
            quiet(ring.get_many, None, timeout)
    assert sys.getrefcount(item) == before
    ring.put_many([item, item, item])
    assert sys.getrefcount(item) == before + 3
    ring.close()
    quiet(ring.put, item)
    quiet(ring.put_many, [item] * 5)
    assert sys.getrefcount(item) == before + 3
    list(ring)
    assert sys.getrefcount(item) == before


def test_references_end_where_they_began_after_threads() -> None:
    item = Thing()
    ring = RingBuffer[Thing](2)
    before = sys.getrefcount(item)

    def produce() -> None:
        for _ in range(200):
            ring.put(item)
        ring.put_many([item] * 100)

    def consume() -> int:
        return sum(1 for _ in range(100) if ring.get() is item) + sum(len(ring.get_many(1)) for _ in range(200))

    assert run_threads(produce, consume, produce, consume) == [None, 300, None, 300]
    gc.collect()  # the frames of the threads are gone, whatever kept them
    assert sys.getrefcount(item) == before


@pytest.mark.parametrize("end", ["drop", "shutdown", "drain"])
def test_items_left_in_a_ring_are_released(end: str) -> None:
    ring = RingBuffer[Thing](5)
    for _ in range(7):  # the indexes have wrapped
        ring.put(Thing())
        ring.get()
    things = [Thing() for _ in range(3)]
    references = [weakref.ref(thing) for thing in things]
    ring.put_many(things)
    del things
    assert all(reference() is not None for reference in references)
    if end == "drop":
        del ring
    elif end == "shutdown":
        ring.shutdown(immediate=True)
    else:
        ring.close()
        for _ in ring:
            pass
        del _
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]


def test_an_item_that_is_taken_is_not_kept_by_its_slot() -> None:
    ring = RingBuffer[Thing](3)
    for take in (ring.get, ring.get_nowait, ring.get_many, lambda: next(iter(ring))):
        thing = Thing()
        reference = weakref.ref(thing)
        ring.put(thing)
        del thing
        take()
        assert reference() is None


def test_cycles_through_a_ring_are_collected() -> None:
    class Sub(RingBuffer[Any]):
        pass

    def by_item() -> Thing:
        ring, thing = RingBuffer[Any](2), Thing()
        thing.ring = ring  # type: ignore[attr-defined]
        ring.put(thing)
        return thing

    def by_itself() -> Thing:
        ring, thing = RingBuffer[Any](2), Thing()
        ring.put_many([ring, thing])
        return thing

    def by_attribute() -> Sub:
        ring = Sub(2)
        ring.me = ring  # type: ignore[attr-defined]
        return ring

    def by_two_rings() -> Thing:
        one, two, thing = RingBuffer[Any](1), RingBuffer[Any](2), Thing()
        one.put(two)
        two.put_many([one, thing])
        return thing

    def by_iterator() -> Thing:
        ring, thing = RingBuffer[Any](2), Thing()
        thing.iterator = iter(ring)  # type: ignore[attr-defined]
        ring.put(thing)
        return thing

    def by_bound_method() -> Thing:
        ring, thing = RingBuffer[Any](2), Thing()
        thing.put = ring.put  # type: ignore[attr-defined]
        ring.put(thing)
        ring.close()
        return thing

    for make in (by_item, by_itself, by_attribute, by_two_rings, by_iterator, by_bound_method):
        reference = weakref.ref(make())
        gc.collect()
        assert reference() is None, make.__name__


@pytest.mark.parametrize(
    "end", ["del ring", "chain[0].put(ring); del ring, chain; gc.collect()"], ids=["chain", "circle"]
)
def test_a_deep_chain_of_rings_is_dropped(end: str) -> None:
    """Each ring holds the next; to drop them must not take a stack frame for each, as it does not with lists."""
    script = f"""
import gc
from ringmill import RingBuffer
ring = RingBuffer(2)
chain = [ring]
for _ in range(200_000):
    following, ring = ring, RingBuffer(2)
    ring.put(following)
del following
chain[1:] = ()
{end}
print("dropped")
"""
    # A process of its own: what goes wrong here is the end of it.
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "dropped\n", "")


def test_a_ring_that_is_used_survives_the_collector() -> None:
    ring = RingBuffer[Any](3)
    ring.put_many([ring, [ring], Thing()])
    gc.collect()
    assert len(ring) == 3
    first, second, third = ring.get_many()
    assert first is ring
    assert second == [ring]
    assert isinstance(third, Thing)


# Re-entrancy


def test_del_of_a_dropped_item_uses_the_ring() -> None:
    """Items are dropped by shutdown, by the collector and by a failing put; each time `__del__` calls in again."""
    said: list[Any] = []

    def last_words() -> None:
        taken = quiet(ring.get_nowait)  # while shutdown drops one item, the next may still be there
        said.append((quiet(ring.put_nowait, 0), taken if isinstance(taken, int | type) else "another", ring.closed))
        ring.close()

    ring = RingBuffer[Any](3)
    ring.put_many([Dying(last_words) for _ in range(3)])
    ring.shutdown(immediate=True)
    assert [(put, closed) for put, _, closed in said] == [(Closed, True)] * 3
    assert {taken for _, taken, _ in said} <= {"another", Closed}
    assert (len(ring), ring.empty(), ring.closed) == (0, True, True)

    said.clear()
    ring = RingBuffer[Any](2)
    ring.put_many([1, 2])
    with pytest.raises(queue.Full):
        ring.put_nowait(Dying(last_words))
    gc.collect()
    assert said == [(None, 1, False)]
    assert ring.closed
    assert ring.get() == 2


def test_del_of_an_item_in_a_cycle_uses_the_ring() -> None:
    said: list[Any] = []

    def make() -> None:
        ring = RingBuffer[Any](2)
        dying = Dying(lambda: said.append((quiet(ring.put_nowait, 1), quiet(ring.put_nowait, 2), len(ring))))
        ring.put(dying)

    make()
    gc.collect()
    assert said == [(None, queue.Full, 2)]


def test_del_that_refills_the_ring_it_was_taken_from() -> None:
    """The reference to a taken item is dropped after its slot was released, so its `__del__` finds room."""
    ring = RingBuffer[Any](1)
    said: list[Any] = []
    for take in (ring.get, ring.get_nowait, lambda: ring.get_many()[0], lambda: next(iter(ring))):
        ring.put(Dying(lambda: said.append(quiet(ring.put_nowait, "heir"))))
        take()
        assert ring.get() == "heir"
    assert said == [None] * 4


def test_weakref_callbacks_use_the_ring() -> None:
    ring = RingBuffer[Any](2)
    said: list[Any] = []
    thing = Thing()
    reference = weakref.ref(thing, lambda _: ring.put_nowait("gone"))
    del thing
    assert ring.get() == "gone"

    thing = Thing()
    reference = weakref.ref(thing, lambda _: said.append((quiet(ring.put_nowait, 1), quiet(ring.get_nowait))))
    ring.put(thing)
    del thing
    ring.shutdown(immediate=True)
    assert said == [(Closed, Closed)]
    assert reference() is None


@pytest.mark.usefixtures("eager_gc")
def test_gc_callbacks_use_the_ring() -> None:
    """What the collector runs, where CPython lets it run (up to 3.11: inside any allocation), may use the same ring."""
    ring = RingBuffer[Any](2)
    put: list[Any] = []  # what each put gave: lists, as `count += call()` reads the count before the call
    got: list[Any] = []

    def callback(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            put.append(quiet(ring.put_nowait, (None,)))
        else:
            got.append(quiet(ring.get_nowait))

    gc.callbacks.append(callback)
    try:
        for i in range(100):
            put.append(quiet(ring.put_nowait, (i,)))
            taken = quiet(ring.get_many, 2, 0)
            got += taken if isinstance(taken, list) else ()
            try:
                put += [None] * ring.put_many(((i, j) for j in range(3)), timeout=0)
            except queue.Full as full:
                put += [None] * full.count  # type: ignore[attr-defined]
            got.append(quiet(ring.get_nowait))
            gc.collect()
    finally:
        gc.callbacks.remove(callback)
    assert put.count(None) == sum(isinstance(item, tuple) for item in got) + len(ring)


@posix_timers
@pytest.mark.parametrize("capacity", [1, 3])
def test_signal_handlers_use_the_ring(capacity: int, seed: int) -> None:
    """Handlers run between any two bytecodes of the main thread and inside its waits; none loses or doubles an item."""
    rng = random.Random(seed)
    ring = RingBuffer[int](capacity)
    put: list[int] = []
    got: list[int] = []
    fired: list[int] = []
    numbers = itertools.count(1)  # one step of C: handlers interrupt one another, too

    def handler(number: int, frame: object) -> None:
        item = -next(numbers)
        fired.append(item)
        if quiet(ring.put_nowait, item) is None:
            put.append(item)
        taken = quiet(ring.get_nowait)
        if isinstance(taken, int):
            got.append(taken)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for i in range(1, 10**9):
            if quiet(ring.put, i, True, rng.choice([0, 1e-3])) is None:
                put.append(i)
            taken = quiet(ring.get, True, rng.choice([0, 1e-3]))
            if isinstance(taken, int):
                got.append(taken)
            if len(fired) >= 200:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    ring.close()
    got += ring
    assert sorted(got) == sorted(put)


@posix_timers
@pytest.mark.parametrize("handled", ["put", "close", "get"])
def test_a_signal_handler_ends_the_wait_it_interrupts(handled: str) -> None:
    """The main thread waits, and only the handler that runs inside this wait does what it waits for."""
    ring = RingBuffer[str](1)
    handlers = {"put": lambda: ring.put_nowait("new"), "close": ring.close, "get": ring.get_nowait}
    before = signal.signal(signal.SIGALRM, lambda number, frame: handlers[handled]())
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        if handled == "put":
            assert ring.get() == "new"
        elif handled == "close":
            with pytest.raises(Closed):
                ring.get()
        else:
            ring.put("old")
            ring.put("new")
            assert ring.get() == "new"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("eager_gc")
def test_del_uses_the_ring_from_many_threads() -> None:
    """Cyclic garbage whose `__del__` puts: the collector runs it inside whatever call a thread is just in."""
    ring = RingBuffer[int](2)
    lock = threading.Lock()  # of the test's counter only; never held around a call of the ring
    counts = {"put": 0, "got": 0}

    def count(what: str, number: int) -> None:
        with lock:
            counts[what] += number

    def work() -> None:
        put = got = 0
        for i in range(150):
            garbage = [Dying(lambda: deaths.append(quiet(ring.put_nowait, 0)))]
            garbage.append(garbage)  # type: ignore[arg-type]
            del garbage
            put += quiet(ring.put, i, True, 0) is None
            got += isinstance(quiet(ring.get, True, 0), int)
        count("put", put)
        count("got", got)

    deaths: list[Any] = []
    run_threads(work, work, work)
    gc.collect()
    assert len(deaths) == 3 * 150
    assert counts["put"] + deaths.count(None) == counts["got"] + len(ring)


def test_a_wait_under_trio_leaves_nothing_behind() -> None:
    """Found by `pytest --leaks`: what trio calls to cancel it was a closure in a cycle that no collector saw."""
    trio = pytest.importorskip("trio")
    testing = pytest.importorskip("trio.testing")

    async def main() -> None:
        ring = RingBuffer[int](1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ring.aget)
            await testing.wait_all_tasks_blocked()
            ring.put(1)

    def kept() -> int:
        gc.collect()
        return sum(type(o).__name__ in ("LoopWait", "LoopSleeper") for o in gc.get_objects())

    before = kept()
    for _ in range(20):
        trio.run(main)
    assert kept() <= before
