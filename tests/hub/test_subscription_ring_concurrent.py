"""SubscriptionRing: references, re-entrant calls, and many threads on one ring."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from ringmill import SubscriptionRing
from tests.threads import run_threads


class Thing:
    """Something that can be weakly referenced and carry attributes."""


class Dying(Thing):
    """Calls `last_words` when it is dropped; what that raises would be a PytestUnraisableExceptionWarning, an error."""

    def __init__(self, last_words: Callable[[], Any]) -> None:
        self.last_words = last_words

    def __del__(self) -> None:
        self.last_words()


def ring_of(*items: Any) -> SubscriptionRing[Any]:
    ring = SubscriptionRing[Any]()
    for item in items:
        ring.add(item)
    return ring


@pytest.fixture
def eager_gc() -> Iterator[None]:
    """The collector runs at nearly every allocation."""
    before = gc.get_threshold()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*before)


# References


def test_references_end_where_they_began() -> None:
    one, two = Thing(), Thing()
    ring = SubscriptionRing[Thing]()
    before = sys.getrefcount(one)
    for _ in range(50):
        ring.add(one)
        ring.add(two)
        ring.add(one)
        assert one in ring
        ring.do(id)
        for call in (ring.take, ring.next, lambda: ring.current, lambda: list(ring)):
            call()
        assert sys.getrefcount(one) > before
        while ring.remove(one):
            ring.take()
            list(ring)
        assert sys.getrefcount(one) == before
        ring.remove(one)
        ring.remove(two)
    assert sys.getrefcount(one) == before


@pytest.mark.parametrize("walked", [False, True])
def test_a_removed_item_is_let_go_at_once(walked: bool) -> None:
    ring = ring_of(Thing(), Thing())
    if walked:
        list(ring)  # and the snapshot that was made for it is no owner any more
    reference = weakref.ref(ring.current)
    ring.remove(reference())
    gc.collect()
    assert reference() is None


def test_items_left_in_a_ring_are_released() -> None:
    things = [Thing() for _ in range(3)]
    references = [weakref.ref(thing) for thing in things]
    ring = ring_of(*things, *things)
    list(ring)
    ring.next()
    del things
    assert all(reference() is not None for reference in references)
    del ring
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]


def test_cycles_through_a_ring_are_collected() -> None:
    class Sub(SubscriptionRing[Any]):
        pass

    def by_item() -> Any:
        thing = Thing()
        thing.ring = ring_of(thing, thing)  # type: ignore[attr-defined]
        return thing

    def by_itself() -> Any:
        thing, ring = Thing(), SubscriptionRing[Any]()
        ring.add(ring)
        ring.add(thing)
        return thing

    def by_attribute() -> Any:
        ring = Sub()
        ring.me = ring  # type: ignore[attr-defined]
        return ring

    def by_snapshot() -> Any:
        thing = by_item()
        list(thing.ring)
        return thing

    def by_iterator() -> Any:
        thing = Thing()
        thing.walk = iter(ring_of(thing))  # type: ignore[attr-defined]
        return thing

    def by_two_rings() -> Any:
        thing, one = Thing(), SubscriptionRing[Any]()
        one.add(ring_of(one, thing))
        return thing

    def by_bound_method() -> Any:
        thing = Thing()
        thing.take = ring_of(thing).take  # type: ignore[attr-defined]
        return thing

    for make in (by_item, by_itself, by_attribute, by_snapshot, by_iterator, by_two_rings, by_bound_method):
        reference = weakref.ref(make())
        gc.collect()
        assert reference() is None, make.__name__


@pytest.mark.parametrize(
    "end", ["del ring", "last.add(ring); del ring, last; gc.collect()"], ids=["chain", "circle"]
)
def test_a_deep_chain_of_rings_is_dropped(end: str) -> None:
    """Each ring holds the next; to drop them must not take a stack frame for each, as it does not with lists."""
    script = f"""
import gc
from ringmill import SubscriptionRing
last = ring = SubscriptionRing()
for _ in range(200_000):
    following, ring = ring, SubscriptionRing()
    ring.add(following)
del following
{end}
print("dropped")
"""
    # A process of its own: what goes wrong here is the end of it.
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "dropped\n", "")


# Re-entrancy


def test_del_of_a_removed_item_uses_the_ring() -> None:
    seen: list[Any] = []

    def last_words() -> None:
        seen.append((len(ring), ring.current, ring.take(), list(ring), "b" in ring))
        assert ring.remove("b")
        ring.add("c")

    ring = ring_of(Dying(last_words), "b")
    list(ring)  # the snapshot owns it, too
    ring.remove(ring.current)
    gc.collect()
    assert seen == [(1, "b", "b", ["b"], True)]
    assert list(ring) == ["c"]


@pytest.mark.usefixtures("eager_gc")
def test_the_collector_runs_del_inside_any_call() -> None:
    """Cyclic garbage whose `__del__` changes the ring: it runs wherever a call allocates."""
    ring = ring_of("a", "b")
    deaths: list[bool] = []

    def last_words() -> None:
        ring.add("c")
        list(ring)
        deaths.append(ring.remove("c"))

    for _ in range(300):
        garbage: list[Any] = [Dying(last_words)]
        garbage.append(garbage)
        del garbage
        ring.add("d")
        assert "c" not in list(ring)
        assert ring.remove("d")
        assert "d" not in [ring.take(), ring.next(), ring.current]
    gc.collect()
    assert deaths == [True] * 300
    assert sorted(ring) == ["a", "b"]


# Many threads


@pytest.mark.stress
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_take_is_exact_under_concurrency(n: int, switch_interval: float) -> None:
    """k takes by many threads of n items: each item is taken floor(k/n) or ceil(k/n) times, the first ones more."""
    ring = ring_of(*range(n))
    for each in (0, 1, 500, 501, 502):

        def take(each: int = each) -> list[int]:
            return [ring.take() for _ in range(each)]

        first = ring.current
        counts = Counter(item for taken in run_threads(take, take, take) for item in taken)
        k = 3 * each
        assert [counts[(first + i) % n] for i in range(n)] == [k // n + (i < k % n) for i in range(n)]
        assert ring.current == (first + k) % n


@pytest.mark.stress
@pytest.mark.parametrize("n", [1, 2, 5])
def test_next_moves_on_by_one_each(n: int, switch_interval: float) -> None:
    """Each of k calls of next and take, from any thread, moves on by exactly one."""
    ring = ring_of(*range(n))

    def move(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(499):
            assert rng.choice([ring.next, ring.take])() in range(n)
            assert ring.current in range(n)

    run_threads(*[partial(move, i) for i in range(3)])
    assert ring.current == 3 * 499 % n


@pytest.mark.stress
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_each_occurrence_is_removed_once(copies: int, switch_interval: float) -> None:
    """Several threads remove the same items: as many calls say True as there were occurrences."""
    things = [Thing() for _ in range(60)]
    ring = ring_of(*things * copies)

    def remove(seed: int) -> int:
        mine = things.copy()
        random.Random(seed).shuffle(mine)
        removed = 0
        for thing in mine:
            while ring.remove(thing):
                removed += 1
        return removed

    assert sum(run_threads(*[partial(remove, i) for i in range(3)])) == 60 * copies
    assert (len(ring), ring.current, list(ring)) == (0, None, [])


class Churn:
    """A ring with items that stay, while threads add and remove others, walk, and take turns."""

    def __init__(self, stayers: int, rounds: int, seed: int) -> None:
        self.stayers = [f"stays {i}" for i in range(stayers)]
        self.ring = ring_of(*self.stayers)
        self.rounds = rounds
        self.seed = seed
        self.removed: list[weakref.ref[Thing]] = []

    def change(self, number: int) -> None:
        """Adds own items, some several times, and removes each exactly as often."""
        rng = random.Random(self.seed + number)
        mine: list[Thing] = []
        for _ in range(self.rounds):
            if rng.random() < 0.5 and len(mine) < 6:
                thing = rng.choice(mine) if mine and rng.random() < 0.4 else Thing()
                mine.append(thing)
                self.ring.add(thing)
            elif mine:
                thing = mine.pop(rng.randrange(len(mine)))
                assert thing in self.ring
                assert self.ring.remove(thing)
                self.removed.append(weakref.ref(thing))
        for thing in mine:
            assert self.ring.remove(thing)
        assert not any(thing in self.ring for thing in mine)

    def walk(self, number: int) -> None:
        """Each walk meets those that stay exactly once, in their order; others as often as they may be there."""
        order = {item: place for place, item in enumerate(self.stayers)}
        for _ in range(self.rounds):
            walked: list[Any] = []
            if number % 2:
                self.ring.do(walked.append)
            else:
                walked.extend(self.ring)
            places = [order[item] for item in walked if isinstance(item, str)]
            assert len(places) == len(order)
            if places:
                assert places == [*range(places[0], len(order)), *range(places[0])]
            assert max(Counter(map(id, walked)).values(), default=0) <= 6

    def take(self) -> list[Any]:
        return [self.ring.take() for _ in range(self.rounds)]


@pytest.mark.stress
@pytest.mark.parametrize("stayers", [0, 1, 3])
def test_churn(stayers: int, switch_interval: float, seed: int) -> None:
    """Adders, removers, walkers and takers at once: nothing lost, no turn of those that stay skipped or doubled."""
    for one in range(seed, seed + 4):
        churn = Churn(stayers, 120, one)
        results = run_threads(
            *[partial(churn.change, i) for i in range(3)],
            *[partial(churn.walk, i) for i in range(2)],
            churn.take,
            churn.take,
        )
        assert len(churn.ring) == stayers
        assert sorted(churn.ring) == churn.stayers
        # Where others are added and removed, the turns among those that stay go round as if they were alone.
        taken = Counter(item for turns in results[5:] for item in turns if isinstance(item, str))
        counts = [taken[item] for item in churn.stayers]
        assert not counts or (max(counts) - min(counts) <= 1 and counts == sorted(counts, reverse=True)), (counts, one)
        results.clear()
        gc.collect()
        assert [reference() for reference in churn.removed if reference() is not None] == []


@pytest.mark.stress
@pytest.mark.parametrize("copies", [1, 2])
def test_an_item_that_moves_is_seen_once_per_occurrence(copies: int, switch_interval: float) -> None:
    """One thread takes an item out and puts it back at the end, again and again; a walk sees one state, never two."""
    ring = ring_of(*"abc" * copies, *"x" * copies)
    (x,) = {item for item in ring if item == "x"}
    done: list[bool] = []

    def move() -> None:
        for _ in range(800):
            assert ring.remove(x)
            ring.add(x)
        done.append(True)

    def walk() -> set[int]:
        seen = set()
        while not done:
            counts = Counter(ring)
            assert counts["a"] == counts["b"] == counts["c"] == copies
            assert len(ring) in (4 * copies - 1, 4 * copies)
            seen.add(counts["x"])
        return seen

    _, *walked = run_threads(move, walk, walk)
    for seen in walked:
        assert seen <= {copies - 1, copies}
    assert sorted(ring) == sorted("abcx" * copies)


@pytest.mark.stress
def test_the_last_one_comes_and_goes(switch_interval: float) -> None:
    """Between empty and one: no call meets anything but that item or None, and the snapshot follows."""
    ring = SubscriptionRing[Thing]()
    thing = Thing()
    done: list[bool] = []

    def come_and_go() -> None:
        for _ in range(1500):
            ring.add(thing)
            assert len(ring) == 1
            assert ring.take() is thing
            assert list(ring) == [thing]
            assert ring.remove(thing)
            assert ring.current is None
            assert list(ring) == []
        done.append(True)

    def look() -> None:
        while not done:
            for found in (ring.current, ring.next(), ring.take(), *ring):
                assert found is None or found is thing

    run_threads(come_and_go, look, look)


@pytest.mark.usefixtures("eager_gc")
def test_del_changes_the_ring_from_many_threads() -> None:
    """Cyclic garbage whose `__del__` adds and removes: the collector runs it inside whatever call a thread is in."""
    ring = ring_of(*range(3))
    deaths: list[bool] = []

    def last_words() -> None:
        mine = Thing()
        ring.add(mine)
        deaths.append(ring.remove(mine))

    def work() -> None:
        for _ in range(100):
            garbage: list[Any] = [Dying(last_words)]
            garbage.append(garbage)
            del garbage
            mine = Thing()
            ring.add(mine)
            assert any(item is mine for item in ring)
            assert ring.remove(mine)
            ring.take()

    run_threads(work, work, work)
    gc.collect()
    assert deaths == [True] * 300
    assert sorted(ring) == [0, 1, 2]
