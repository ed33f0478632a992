"""The ring's slots and its closed bit, as a model that is searched exhaustively, and a naive ring that fails.

Why the ring is a queue (each call takes effect at one instant between its beginning and its end). A position is
claimed by a compare-and-swap on the tail (head) word; that is the instant of a put (get) that succeeds, since claims
are numbered, and each item is read from the slot that its number names. The slot's stamp says whose turn it is: the
putter of lap n, its getter, the putter of lap n + 1. So no thread reads what is not written, or overwrites what
is not read.

A get says "empty" when it has read the head, then found the slot's stamp unpublished, then read a tail equal to that
head. The head never passes the tail, so at the instant of the last read both were equal: the ring was empty then. The
stamp alone does not say that: its putter may have claimed the slot and stopped, while a later put has finished in the
next slot. "Full" is the same the other way round: the tail is read first, and a head one lap behind it was there from
that instant on. A slot that is claimed and not yet published (released) is neither, and the caller spins until one of
the words it saw has changed.

The closed bit is in the tail word, so no claim succeeds after it, and the get that says "closed" has read the bit and
the count of items in one instant.

Why the plain sequence-number ring is not a queue: it asks the slot's number only. It says "empty" while a finished
put is inside, "full" when there is room, and at capacity 1 the number that says "published" equals the one that says
"free for the next putter", so that an unread item is overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest

from tests.models.model_checker import (
    BLOCKED,
    Load,
    Memory,
    Note,
    Report,
    Step,
    Store,
    Thread,
    ThreadFunction,
    assert_found,
    assert_holds,
    explore,
)


@dataclass(frozen=True)
class Ring:
    """The ring as it should be; each field turned over is another ring."""

    capacity: int
    plain: bool = (
        False  # Vyukov's: a position is a plain count, a stamp is a sequence number, and only stamps are asked
    )
    empty_asks_tail: bool = True
    full_asks_head: bool = True
    claims_by_cas: bool = True  # else: a load and a store
    writes_before_publishing: bool = True
    reads_before_releasing: bool = True
    bit_in_tail: bool = True

    @property
    def lap(self) -> int:
        """One lap of positions: a power of two above the capacity, so that index and lap are bit fields."""
        return self.capacity if self.plain else 1 << self.capacity.bit_length()

    def index(self, position: int) -> int:
        return position % self.lap

    def following(self, position: int) -> int:
        if self.index(position) + 1 < self.capacity:
            return position + 1
        return position - self.index(position) + self.lap


def compare_and_swap(name: str, old: int, new: int) -> Step:
    def run(m: Memory) -> bool:
        if getattr(m, name) != old:
            return False
        setattr(m, name, new)
        return True

    return Step(f"claims {name} = {new}", run)


def spin(word: str, seen: int, stamp: str, seen_stamp: int) -> Step:
    """Spins until one of the two has changed: the rounds in between change nothing, and are left out."""
    return Step("spins", lambda m: BLOCKED if (getattr(m, word), getattr(m, stamp)) == (seen, seen_stamp) else None)


def claim(ring: Ring, name: str, old: int, new: int) -> Thread:
    if ring.claims_by_cas:
        return (yield compare_and_swap(name, old, new))
    yield Store(name, new)
    return True


def put(ring: Ring, item: str) -> Thread:
    """put_nowait: "done", "full" or "closed". The tail word is twice the position, plus the closed bit."""
    if not ring.bit_in_tail and (yield Load("flag")):
        return "closed"
    while True:
        word = yield Load("tail")
        if word & 1:
            return "closed"
        tail = word >> 1
        slot = ring.index(tail)
        stamp = yield Load(f"stamp{slot}")
        if stamp == tail:
            if (yield from claim(ring, "tail", word, ring.following(tail) << 1)):
                if ring.writes_before_publishing:
                    yield Store(f"slot{slot}", item)
                yield Store(f"stamp{slot}", tail + 1)
                if not ring.writes_before_publishing:
                    yield Store(f"slot{slot}", item)
                return "done"
        elif ring.plain:
            if stamp < tail:
                return "full"
        elif stamp + ring.lap == tail + 1:
            if not ring.full_asks_head or (yield Load("head")) + ring.lap == tail:
                return "full"
            yield spin("tail", word, f"stamp{slot}", stamp)
        else:
            yield spin("tail", word, f"stamp{slot}", stamp)


def get(ring: Ring) -> Thread:
    """get_nowait: the item, "empty" or "closed"."""
    while True:
        head = yield Load("head")
        slot = ring.index(head)
        stamp = yield Load(f"stamp{slot}")
        if stamp == head + 1:
            if (yield from claim(ring, "head", head, ring.following(head))):
                if not ring.reads_before_releasing:
                    yield Store(f"stamp{slot}", head + ring.lap)
                item = yield Load(f"slot{slot}")
                if ring.reads_before_releasing:
                    yield Store(f"stamp{slot}", head + ring.lap)
                return item
        elif ring.plain:
            if stamp < head + 1:
                return "empty"
        elif stamp == head:
            if not ring.empty_asks_tail:
                return "empty"
            tail = yield Load("tail")
            if tail >> 1 == head:
                closed = tail & 1 if ring.bit_in_tail else (yield Load("flag"))
                return "closed" if closed else "empty"
            yield spin("head", head, f"stamp{slot}", stamp)
        else:
            yield spin("head", head, f"stamp{slot}", stamp)


def close(ring: Ring) -> Thread:
    def run(m: Memory) -> None:
        m.tail |= 1

    if ring.bit_in_tail:
        yield Step("sets the closed bit", run)
    else:
        yield Store("flag", 1)
    return "done"


def caller(ring: Ring, me: str, calls: str) -> Thread:
    """Makes one call for each letter, and notes when it began and what it returned; items are numbered by thread."""
    i = 0
    while i < len(calls):
        item = f"{me}{i}" if calls[i] == "p" else ""
        yield Note(("call", me, calls[i], item), with_next=True)
        result = yield from put(ring, item) if calls[i] == "p" else get(ring) if calls[i] == "g" else close(ring)
        yield Note(("return", me, result))
        i += 1


# The queue that the ring has to look like.


def sequential(
    capacity: int, items: tuple[str, ...], closed: bool, call: str, item: str
) -> tuple[str, tuple[str, ...], bool]:
    """What a call returns on a queue that is touched by one at a time, and what it leaves."""
    if call == "x":
        return "done", items, True
    if call == "p":
        if closed:
            return "closed", items, closed
        return ("full", items, closed) if len(items) == capacity else ("done", (*items, item), closed)
    if items:
        return items[0], items[1:], closed
    return "closed" if closed else "empty", items, closed


# What a call may do next on such a queue: its result, or None and the call that is left of it; and the queue after it.
Outcomes = Callable[..., Iterable[tuple[Any, tuple[Any, ...], tuple[str, ...], bool]]]


def at_once(capacity: int, items: tuple[str, ...], closed: bool, call: str, item: str) -> Iterable[Any]:
    result, then_items, then_closed = sequential(capacity, items, closed, call, item)
    return [(result, (), then_items, then_closed)]


@cache
def linearizable(capacity: int, history: tuple[Any, ...], outcomes: Outcomes = at_once) -> bool:
    """Whether the calls can be put in an order that agrees with time and with `outcomes` (Wing and Gong's search).

    `pending` are the calls that have begun and not taken effect; one has to before it returns.
    """

    @cache
    def possible(
        at: int, pending: frozenset[Any], effects: frozenset[Any], items: tuple[str, ...], closed: bool
    ) -> bool:
        if at == len(history):
            return True
        kind, who, *rest = history[at]
        if kind == "call":
            return possible(at + 1, pending | {(who, *rest)}, effects, items, closed)
        if (who, rest[0]) in effects and possible(at + 1, pending, effects - {(who, rest[0])}, items, closed):
            return True
        for begun in pending:
            for result, left, *then in outcomes(capacity, items, closed, *begun[1:]):
                if result is None:
                    now = pending - {begun} | {(begun[0], *left)}
                    if possible(at, now, effects, *then):
                        return True
                elif possible(at, pending - {begun}, effects | {(begun[0], result)}, *then):
                    return True
        return False

    return possible(0, frozenset(), frozenset(), (), False)


def search(ring: Ring, *threads: str) -> Report:
    """Explores one thread for each word; its letters are its calls: p(ut), g(et), x (close)."""
    memory: dict[str, Any] = {"head": 0, "tail": 0, "flag": 0, "log": ()}
    for i in range(ring.capacity):
        memory |= {f"stamp{i}": i, f"slot{i}": "nothing"}
    functions: Mapping[str, ThreadFunction] = {
        name: partial(caller, ring, name, calls) for name, calls in zip("ABCD", threads, strict=False)
    }

    def at_rest(m: Memory, unfinished: frozenset[str]) -> str | None:
        if unfinished:
            return f"spins forever: {', '.join(sorted(unfinished))}"
        return None if linearizable(ring.capacity, m.log) else f"no queue does this: {m.log}"

    return explore(memory, functions, at_rest=at_rest)


@pytest.mark.parametrize("capacity", [1, 2])
@pytest.mark.parametrize(
    ("threads", "at_least"),
    [
        ("pp gg", 1_000),
        ("p p gg", 15_000),
        ("pp g g", 20_000),
        ("pg pg", 1_500),
        ("p p g x", 15_000),
        ("pp gg x", 5_000),
    ],
)
def test_ring_is_a_linearizable_bounded_queue(capacity: int, threads: str, at_least: int) -> None:
    assert_holds(search(Ring(capacity), *threads.split()), at_least)


WRONG = "no queue does this"


@pytest.mark.parametrize(
    ("bug", "capacity", "threads", "finding"),
    [
        pytest.param("empty_asks_tail", 2, "p pg", WRONG, id="empty-by-the-stamp-alone"),
        pytest.param("full_asks_head", 2, "ppgp g", WRONG, id="full-by-the-stamp-alone"),
        pytest.param("claims_by_cas", 2, "p p gg", WRONG, id="claim-by-load-and-store"),
        pytest.param("writes_before_publishing", 2, "p g", WRONG, id="published-before-written"),
        pytest.param("reads_before_releasing", 1, "pp g", WRONG, id="released-before-read"),
        pytest.param("bit_in_tail", 2, "p g x", WRONG, id="closed-flag-outside-the-tail"),
    ],
)
def test_each_bug_is_found(bug: str, capacity: int, threads: str, finding: str) -> None:
    calls = threads.split()
    assert_found(search(Ring(capacity, **{bug: False}), *calls), finding, search(Ring(capacity), *calls))


@pytest.mark.parametrize(
    ("capacity", "threads", "history"),
    [
        pytest.param(
            2,
            "p pg",
            "'B0'), ('return', 'B', 'done'), ('call', 'B', 'g', ''), ('return', 'B', 'empty')",
            id="empty-with-a-finished-put-inside",
        ),
        pytest.param(2, "ppgp g", "('return', 'A', 'full')", id="full-with-room"),
        pytest.param(
            1,
            "pp",
            "'A0'), ('return', 'A', 'done'), ('call', 'A', 'p', 'A1'), ('return', 'A', 'done')",
            id="capacity-1-overwrites",
        ),
    ],
)
def test_plain_sequence_number_ring_is_no_queue(capacity: int, threads: str, history: str) -> None:
    calls = threads.split()
    assert_found(search(Ring(capacity, plain=True), *calls), history, search(Ring(capacity), *calls))


# The explorer itself.


def store_then_load(mine: str, others: str, result: str, buffered: bool) -> Thread:
    yield Store(mine, 1, buffered=buffered)
    yield Store(result, (yield Load(others)))


@pytest.mark.parametrize("buffered", [False, True])
def test_explorer_shows_a_store_passed_by_a_load_only_where_stores_are_buffered(buffered: bool) -> None:
    report = explore(
        {"x": 0, "y": 0, "r": None, "s": None},
        {
            "first": partial(store_then_load, "x", "y", "r", buffered),
            "second": partial(store_then_load, "y", "x", "s", buffered),
        },
        at_rest=lambda m, unfinished: "neither saw the other" if (m.r, m.s) == (0, 0) else None,
    )
    assert report.problem == ("neither saw the other" if buffered else None)


def lock(name: str) -> Step:
    def run(m: Memory) -> Any:
        if getattr(m, name):
            return BLOCKED
        setattr(m, name, 1)
        return None

    return Step(f"locks {name}", run)


def lock_both(first: str, second: str) -> Thread:
    yield lock(first)
    yield lock(second)
    yield Store(second, 0)
    yield Store(first, 0)


def test_explorer_finds_a_deadlock_by_a_shortest_trace() -> None:
    report = explore({"x": 0, "y": 0}, {"xy": partial(lock_both, "x", "y"), "yx": partial(lock_both, "y", "x")})
    assert report.problem == "blocked forever: xy, yx"
    assert report.trace == ["xy: locks x", "yx: locks y"]


def test_explorer_finds_a_livelock() -> None:
    def poll() -> Thread:
        while not (yield Load("x")):
            pass

    assert "livelock" in (explore({"x": 0}, {"poller": poll}).problem or "")
    assert explore({"x": 1}, {"poller": poll}).problem is None


def test_model_checker_refuses_a_loop_whose_iterator_it_cannot_see() -> None:
    def count() -> Thread:
        for i in range(2):
            yield Store("x", i)

    with pytest.raises(TypeError, match="use while"):
        explore({"x": 0}, {"counter": count})
