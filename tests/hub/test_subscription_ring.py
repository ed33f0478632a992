"""The contract of SubscriptionRing, as far as one thread can check it."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import typing
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ringmill import SubscriptionRing


class Thing:
    """Neither hashable nor comparable."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __hash__(self) -> int:
        raise AssertionError("hashed")

    def __bool__(self) -> bool:
        raise AssertionError("taken for a truth value")


def ring_of(*items: Any) -> SubscriptionRing[Any]:
    ring = SubscriptionRing[Any]()
    for item in items:
        ring.add(item)
    return ring


def same(found: typing.Iterable[Any], expected: typing.Iterable[Any]) -> bool:
    """Whether the very same objects are in both, in order."""
    return [id(item) for item in found] == [id(item) for item in expected]


# The list and the current position


def test_empty() -> None:
    ring = SubscriptionRing[Thing]()
    thing = Thing()
    for _ in range(2):  # new, and emptied
        assert (ring.current, ring.next(), ring.take(), len(ring), list(ring)) == (None, None, None, 0, [])
        assert not ring.remove(thing)
        assert thing not in ring
        ring.do(lambda item: pytest.fail("there is nothing to call it for"))
        ring.add(thing)
        assert ring.remove(thing)


def test_take_and_next_go_round() -> None:
    ring = ring_of(*"abc")
    assert ring.current == "a"
    assert [ring.take() for _ in range(7)] == list("abcabca")
    assert ring.current == "b"
    assert [ring.next() for _ in range(4)] == list("cabc")
    assert ring.current == "c"
    assert list(ring) == list("cab")  # from current
    assert ring.current == "c"  # which a walk does not move


def test_do_calls_for_each_once_from_current() -> None:
    ring = ring_of(*"abcd")
    ring.next()
    seen: list[str] = []
    assert ring.do(seen.append) is None
    assert seen == list("bcda")
    assert ring.current == "b"


def test_do_stops_where_the_function_raises() -> None:
    ring = ring_of(*"abc")
    seen: list[str] = []

    def fail_at_second(item: str) -> None:
        seen.append(item)
        if len(seen) == 2:
            raise LookupError(item)

    with pytest.raises(LookupError, match="b"):
        ring.do(fail_at_second)
    assert seen == ["a", "b"]
    assert list(ring) == list("abc")


@pytest.mark.parametrize("items", ["", "abc"])
@pytest.mark.parametrize("fn", [5, None, "fn"])
def test_do_of_what_cannot_be_called(items: str, fn: Any) -> None:
    ring = ring_of(*items)
    with pytest.raises(TypeError) as caught:
        ring.do(fn)
    assert "fn" in str(caught.value)
    assert repr(fn) in str(caught.value)


def test_an_item_is_added_at_the_end_wherever_current_is() -> None:
    ring = ring_of(*"abc")
    ring.next()
    ring.add("d")
    assert list(ring) == list("bcda")  # before the head, "a"
    assert ring.current == "b"
    assert len(ring) == 4


@pytest.mark.parametrize(
    ("turns", "removed", "left"),
    [
        (0, 0, [1, 2, 3]),  # the head and the current
        (0, 3, [0, 1, 2]),  # the last one
        (1, 0, [1, 2, 3]),  # the head, not the current
        (1, 1, [2, 3, 0]),  # the current, not the head
        (3, 3, [0, 1, 2]),  # the current is the last one: the head is next
        (3, 0, [3, 1, 2]),  # the head, while the last one is current
        (2, 1, [2, 3, 0]),  # just before the current
    ],
)
def test_remove(turns: int, removed: int, left: list[int]) -> None:
    things = [Thing(str(i)) for i in range(4)]
    ring = ring_of(*things)
    for _ in range(turns):
        ring.next()
    assert ring.remove(things[removed]) is True
    assert ring.current is things[left[0]]
    assert same(ring, [things[i] for i in left])
    assert (len(ring), things[removed] in ring) == (3, False)
    assert ring.remove(things[removed]) is False
    assert same([ring.take() for _ in range(4)], [things[i] for i in [*left, left[0]]])
    # The head is where it should be: the next one is added before it.
    last = Thing("last")
    ring.add(last)
    while ring.current is not last:
        ring.next()
    assert ring.next() is things[min(left)]


def test_removing_all_then_adding_begins_anew() -> None:
    things = [Thing(name) for name in "abc"]
    ring = ring_of(*things)
    ring.next()
    for place in (1, 2, 0):
        assert ring.remove(things[place])
    assert (len(ring), ring.current, list(ring)) == (0, None, [])
    ring.add(things[2])
    ring.add(things[0])
    assert len(ring) == 2
    assert ring.current is things[2]
    assert same(ring, [things[2], things[0]])


def test_duplicates_go_first_occurrence_first() -> None:
    one, two = Thing("one"), Thing("two")
    ring = ring_of(one, two, one, two, one)
    assert len(ring) == 5
    assert ring.remove(one)
    assert same(ring, [two, one, two, one])
    assert ring.remove(one)
    assert same(ring, [two, two, one])
    assert one in ring
    assert ring.remove(one)
    assert one not in ring
    assert not ring.remove(one)
    assert same(ring, [two, two])


def test_the_first_occurrence_is_counted_from_the_head_not_from_current() -> None:
    one, two, three = Thing("one"), Thing("two"), Thing("three")
    ring = ring_of(one, two, one, three)
    ring.next()
    assert ring.remove(one)
    assert same(ring, [two, one, three])


def test_items_are_never_compared_hashed_or_tested() -> None:
    one, two = Thing("one"), Thing("two")
    ring = ring_of(one, two)
    assert one in ring
    assert ring.current is one
    assert ring.take() is one
    assert ring.next() is one
    assert ring.remove(one)
    assert one not in ring
    assert ring.current is two


def test_equal_items_are_not_the_same_item() -> None:
    first, second = [1], [1]
    ring = ring_of(first)
    assert first == second
    assert second not in ring
    assert not ring.remove(second)
    ring.add(second)
    assert ring.remove(second)
    assert same(ring, [first])


@pytest.mark.parametrize("item", [None, 0, "", (), float("nan"), NotImplemented, int, [], {}])
def test_any_object_is_an_item(item: Any) -> None:
    other = Thing("other")
    ring = ring_of(item, other)
    assert ring.current is item
    assert ring.take() is item
    assert ring.next() is item
    assert item in ring
    assert ring.remove(item)
    assert same(ring, [other])


def test_the_ring_may_change_while_it_is_walked() -> None:
    before, after = [Thing(name) for name in "abcd"], [Thing(name) for name in "ABCD"]
    ring = ring_of(*before)
    seen = []
    for item, other in zip(ring, after, strict=True):
        seen.append(item)
        assert ring.remove(item)
        ring.add(other)
    assert same(seen, before)
    assert same(ring, after)
    seen = []

    def change(item: Thing) -> None:
        seen.append(item)
        for other in after:
            ring.remove(other)
        ring.add(item)

    ring.do(change)
    assert same(seen, after)
    assert same(ring, after[-1:])


def test_iteration_keeps_the_subscriptions_it_has_not_reached() -> None:
    ring = ring_of(*[Thing(name) for name in "abc"])
    walk = iter(ring)
    while len(ring):
        ring.remove(ring.current)
    gc.collect()
    assert [item.name for item in walk] == list("abc")


def test_two_walks_are_independent() -> None:
    ring = ring_of(*"ab")
    assert [(one, two) for one in ring for two in ring] == [("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")]


# The class


def test_generic_alias_repr_and_truth() -> None:
    alias = SubscriptionRing[int]
    assert typing.get_origin(alias) is SubscriptionRing
    assert typing.get_args(alias) == (int,)
    ring = ring_of(*"abc")
    assert "SubscriptionRing" in repr(ring)
    assert "3" in repr(ring)
    assert "'a'" in repr(ring)


def test_init_called_again_changes_nothing() -> None:
    ring = ring_of(*"abc")
    ring.next()
    ring.__init__()  # type: ignore[misc]
    assert list(ring) == list("bca")


def test_subclass_with_its_own_init() -> None:
    class Named(SubscriptionRing[str]):
        def __init__(self, name: str) -> None:
            self.name = name

    ring = Named(name="named")
    ring.add("a")
    assert (ring.name, ring.current) == ("named", "a")
    assert "Named" in repr(ring)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_ring_is_not_copied(duplicate: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="SubscriptionRing"):
        duplicate(ring_of(*"abc"))


def test_init_takes_no_items() -> None:
    for arguments in (("a",), (["a", "b"],), (None,)):
        with pytest.raises(TypeError):
            SubscriptionRing(*arguments)


@pytest.mark.parametrize("n", [7, 8, 9, 16, 17, 3000])
def test_any_number_of_items_is_found_and_removed(n: int) -> None:
    """Around the sizes at which the hash table grows, with every third item in the ring twice, and one very often."""
    often = Thing("often")
    things = [Thing(str(i)) for i in range(n)]
    items = [item for i, thing in enumerate(things) for item in ([thing, often] if i % 3 else [thing, things[i // 2]])]
    ring = ring_of(*items)
    assert same(ring, items)
    rng = random.Random(n)
    left = items.copy()
    for item in rng.sample(items, len(items) // 2):
        assert ring.remove(item)
        del left[next(place for place, other in enumerate(left) if other is item)]
    assert len(ring) == len(left)
    assert {id(item) for item in items if item in ring} == {id(item) for item in left}
    assert same(ring, left)  # the current one is the head, as it always was
    for item in left:
        assert ring.remove(item)
    assert not any(item in ring for item in items)
    assert (len(ring), ring.current) == (0, None)


# Against a plain list


class AgainstAList(RuleBasedStateMachine):
    """Random calls, each compared with a list and an index into it. There are few items, hence many duplicates."""

    things = tuple(Thing(name) for name in "vwxyz")
    some = st.integers(0, len(things) - 1).map(things.__getitem__)

    def __init__(self) -> None:
        super().__init__()
        self.ring = SubscriptionRing[Thing]()
        self.items: list[Thing] = []
        self.at = 0

    def current(self) -> Thing | None:
        return self.items[self.at] if self.items else None

    def move(self) -> None:
        if self.items:
            self.at = (self.at + 1) % len(self.items)

    @rule(item=some)
    def add(self, item: Thing) -> None:
        self.ring.add(item)
        self.items.append(item)

    @rule(item=some)
    def remove(self, item: Thing) -> None:
        places = [place for place, other in enumerate(self.items) if other is item]
        assert self.ring.remove(item) is bool(places)
        if places:
            del self.items[places[0]]
            if places[0] < self.at:
                self.at -= 1
            if self.at == len(self.items):
                self.at = 0

    @rule()
    def next(self) -> None:
        self.move()
        assert self.ring.next() is self.current()

    @rule()
    def take(self) -> None:
        assert self.ring.take() is self.current()
        self.move()

    @rule()
    def walk(self) -> None:
        expected = self.items[self.at :] + self.items[: self.at]
        assert same(self.ring, expected)
        seen: list[Thing] = []
        self.ring.do(seen.append)
        assert same(seen, expected)

    @invariant()
    def agrees(self) -> None:
        assert self.ring.current is self.current()
        assert len(self.ring) == len(self.items)
        for thing in self.things:
            assert (thing in self.ring) is any(thing is item for item in self.items)


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, database=None)
