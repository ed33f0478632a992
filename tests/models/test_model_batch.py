"""put_many and get_many together with single puts and gets, as two models that are searched exhaustively.

The slots (try_put_many, try_get_many of ring.pxd). A batch claims several positions by one compare-and-swap, then
fills or empties their slots one after the other. A claim says nothing of the slots: the getter of the lap before
may not have left one, the putter may not have filled it. So each slot is waited for: its owner has made its claim
and is some instructions from its stamp. Single puts and gets, which look at the stamp before they claim, need no
such wait.

How many there are is known from both cursors, not from the stamps. A put_many reads the tail, then the head: where
the head is one lap behind, the ring was full at that moment. Where the head is not one lap behind, what it calls
room is room, since the head only grows, and the compare-and-swap asks whether the tail stands where it stood. A
get_many keeps the tail that it saw first, and takes nothing behind it; where the head has come to that tail before
it has taken anything, it reads the tail again, after the head: equal, and the ring was empty at that moment.

Each thread makes some calls; the history of calls and results must be that of a queue on which a batch is a row of
single puts (gets), each at a moment of its own between the batch's beginning and its end, in order. At rest no thread
spins.

put_many also asks whether the head has passed the tail that it read ("a stale tail"). That question is redundant,
and a test shows it: without it the ring does the same. Where the head has passed, the tail has moved on, so the
compare-and- swap fails and all is read again, whatever was computed in between; and that is never "no room": with
the head d positions past the tail, room comes out as capacity + d in one lap, and more than a lap otherwise.

Who is told (put_many and get_many of ring_buffer.pyx, on the wait queues of test_model_park_wake.py). A batch tells
the other side once for each claim, however many it claimed, and before it waits for room itself. Who is woken by
that takes what it wants, looks for more and wakes the next: the debt of that model. Here the ring is its two
counters.

Left out: what is in one step there (a section under a queue's lock), timeouts (test_model_park_wake.py),
references, the list that get_many makes beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
    ViolationError,
    assert_found,
    assert_holds,
    explore,
)
from tests.models.test_model_close import closer
from tests.models.test_model_park_wake import MEMORY, Rules, Side, at_rest, invariant, operate, wake
from tests.models.test_model_park_wake import caller as single
from tests.models.test_model_ring_slots import WRONG, Ring, claim, close, get, linearizable, put, sequential

WORD = 1 << 64


@dataclass(frozen=True)
class Batching(Ring):
    """The batches as they should be; each field turned over is a bug, but for the one that is redundant."""

    most: int = 128  # slots that one claim takes at most
    put_waits_for_slot: bool = True
    get_waits_for_slot: bool = True
    put_asks_for_room: bool = True  # else it claims as many as it has
    put_reads_tail_first: bool = True
    put_asks_for_closed: bool = True
    put_asks_for_stale_tail: bool = True  # redundant
    get_asks_for_items: bool = True  # else it claims as many as it wants
    get_sees_passed_tail: bool = True  # else: only one that the head has come to
    get_asks_tail_again: bool = True  # else: empty by the tail that it saw first
    get_keeps_first_tail: bool = True  # else it takes what has come since

    def after(self, word: int, count: int) -> int:
        index = self.index(word) + count
        return word + count if index < self.capacity else word + count + self.lap - self.capacity

    def between(self, head: int, tail: int) -> int:
        count = (tail - head) % WORD
        return count if tail // self.lap == head // self.lap else (count - self.lap + self.capacity) % WORD


def wait_for_stamp(slot: int, wanted: int) -> Step:
    return Step(f"waits for slot {slot}", lambda m: None if getattr(m, f"stamp{slot}") == wanted else BLOCKED)


def put_many(ring: Batching, items: tuple[str, ...]) -> Thread:
    """try_put_many: what stopped it, or "done"; and how many it has put."""
    done = 0
    while done < len(items):
        head = -1
        if not ring.put_reads_tail_first:
            head = yield Load("head")
        word = yield Load("tail")
        if ring.put_asks_for_closed and (word & 1 or (not ring.bit_in_tail and (yield Load("flag")))):
            return "closed", done
        tail = word >> 1
        if ring.put_reads_tail_first:
            head = yield Load("head")
        if ring.put_asks_for_stale_tail and head > tail:
            continue
        room = (ring.capacity - ring.between(head, tail)) % WORD
        if room == 0:
            return "full", done
        claimed = min(room if ring.put_asks_for_room else WORD, len(items) - done, ring.most)
        if not (yield from claim(ring, "tail", word, ring.after(tail, claimed) << 1 | word & 1)):
            continue
        head = word = room = -1  # as if they were not there: they make no two states of one
        while claimed:
            slot = ring.index(tail)
            if ring.put_waits_for_slot:
                yield wait_for_stamp(slot, tail)
            if ring.writes_before_publishing:
                yield Store(f"slot{slot}", items[done])
            yield Store(f"stamp{slot}", tail + 1)
            if not ring.writes_before_publishing:
                yield Store(f"slot{slot}", items[done])
            tail = ring.following(tail)
            claimed -= 1
            done += 1
    return "done", done


def too_many(m: Memory) -> None:
    raise ViolationError("a get_many took more than was there when it began to take")


def get_many(ring: Batching, count: int) -> Thread:
    """try_get_many: "done" and the items; or "empty" or "closed", and none."""
    taken: tuple[str, ...] = ()
    end = -1  # ghost state: the tail that it had seen when it began to take
    limit = yield Load("tail")
    while len(taken) < count:
        head = yield Load("head")
        if not ring.get_keeps_first_tail:
            limit = yield Load("tail")
        tail = limit >> 1
        if head >= tail if ring.get_sees_passed_tail else head == tail:
            if taken:
                break
            if ring.get_asks_tail_again:
                limit = yield Load("tail")
            if limit >> 1 == head or not ring.get_asks_tail_again:
                closed = limit & 1 if ring.bit_in_tail else (yield Load("flag"))
                return "closed" if closed else "empty", ()
            continue
        there = ring.between(head, tail) if ring.get_asks_for_items else WORD
        claimed = min(there, count - len(taken), ring.most)
        if not (yield from claim(ring, "head", head, ring.after(head, claimed))):
            continue
        if not taken:
            end = tail
        tail = there = -1
        while claimed:
            slot = ring.index(head)
            if head >= end:
                yield Step("takes more", too_many)
            if ring.get_waits_for_slot:
                yield wait_for_stamp(slot, head + 1)
            if not ring.reads_before_releasing:
                yield Store(f"stamp{slot}", head + ring.lap)
            taken += ((yield Load(f"slot{slot}")),)
            if ring.reads_before_releasing:
                yield Store(f"stamp{slot}", head + ring.lap)
            head = ring.following(head)
            claimed -= 1
    return "done", taken


def named(call: str, count: int) -> tuple[str, ...]:
    """The items of a call."""
    return tuple(f"{call}{k}" for k in range(count))


def caller(ring: Batching, me: str, calls: tuple[str, ...]) -> Thread:
    """Makes the calls, and notes when each began and what it returned."""
    i = 0
    while i < len(calls):
        kind, count = calls[i][0], int(calls[i][1:] or 1)
        items = named(f"{me}{i}", count)
        if kind == "P":
            yield Note(("call", me, kind, items), with_next=True)
            result = yield from put_many(ring, items)
        elif kind == "G":
            yield Note(("call", me, kind, count), with_next=True)
            result = yield from get_many(ring, count)
        else:
            yield Note(("call", me, kind, items[0]), with_next=True)
            result = yield from put(ring, items[0]) if kind == "p" else get(ring) if kind == "g" else close(ring)
        yield Note(("return", me, result))
        i += 1


def outcomes(
    capacity: int, items: tuple[str, ...], closed: bool, call: str, left: Any, done: Any = ()
) -> Iterator[tuple[Any, tuple[Any, ...], tuple[str, ...], bool]]:
    """What a call may do next on a queue that is touched by one at a time: a batch, with its next item."""
    if call == "P":
        result, then, _ = sequential(capacity, items, closed, "p", left[0])
        put_before = done or 0
        if result != "done":
            yield (result, put_before), (), items, closed
        elif len(left) == 1:
            yield ("done", put_before + 1), (), then, closed
        else:
            yield None, ("P", left[1:], put_before + 1), then, closed
    elif call == "G":
        result, then, _ = sequential(capacity, items, closed, "g", "")
        if done:
            yield ("done", done), (), items, closed  # it stops when it has some
        elif not items:
            yield (result, ()), (), items, closed
        if items and left == 1:
            yield ("done", (*done, result)), (), then, closed
        elif items:
            yield None, ("G", left - 1, (*done, result)), then, closed
    else:
        result, then, then_closed = sequential(capacity, items, closed, call, left)
        yield result, (), then, then_closed


@cache
def search(ring: Batching, calls: str) -> Report:
    """Explores a scenario, its threads divided by |: P3 puts three at once, G3 takes three, p and g one, x closes."""
    memory: dict[str, Any] = {"head": 0, "tail": 0, "flag": 0, "log": ()}
    for i in range(ring.capacity):
        memory |= {f"stamp{i}": i, f"slot{i}": "nothing"}
    threads: dict[str, ThreadFunction] = {}
    for name, words in zip("ABCD", calls.split("|"), strict=False):
        threads[name] = partial(caller, ring, name, tuple(words.split()))

    def at_the_end(m: Memory, unfinished: frozenset[str]) -> str | None:
        if unfinished:
            return f"spins forever: {', '.join(sorted(unfinished))}"
        return None if linearizable(ring.capacity, m.log, outcomes) else f"{WRONG}: {m.log}"

    return explore(memory, threads, at_rest=at_the_end)


SCENARIOS = [
    (1, 128, "P2 | g g", 500),
    (2, 128, "P3 | G2 g", 800),
    (2, 1, "P2 | p | G2", 20_000),
    (2, 128, "P2 | p | G3", 10_000),
    (2, 128, "P2 P2 | G2", 400),
    (3, 2, "P3 | G3 | p", 30_000),
    (2, 128, "p p | G2 | g", 30_000),
    (2, 128, "P2 | G2 | x", 500),
    (1, 128, "P2 | p | G1 | x", 20_000),
    (3, 128, "P2 P2 | G2 G2", 4_000),
]


@pytest.mark.parametrize(("capacity", "most", "calls", "at_least"), SCENARIOS)
def test_a_batch_is_a_row_of_single_calls(capacity: int, most: int, calls: str, at_least: int) -> None:
    assert_holds(search(Batching(capacity, most=most), calls), at_least)


@pytest.mark.parametrize(("capacity", "most", "calls", "at_least"), SCENARIOS)
def test_the_question_for_a_stale_tail_is_redundant(capacity: int, most: int, calls: str, at_least: int) -> None:
    assert_holds(search(Batching(capacity, most=most, put_asks_for_stale_tail=False), calls), at_least)


SPINS = "spins forever"


@pytest.mark.parametrize(
    ("bug", "capacity", "calls", "finding"),
    [
        pytest.param("put_waits_for_slot", 1, "p P1 | g", WRONG, id="put_many-does-not-wait-for-the-slot"),
        pytest.param("get_waits_for_slot", 1, "p | G1", WRONG, id="get_many-does-not-wait-for-the-slot"),
        pytest.param("put_asks_for_room", 2, "P3 | g", SPINS, id="put_many-claims-more-than-there-is-room"),
        pytest.param("put_reads_tail_first", 2, "p P1 | g p", WRONG, id="put_many-reads-the-head-first"),
        pytest.param("put_asks_for_closed", 2, "P2 | x", WRONG, id="put_many-does-not-ask-for-the-closed-bit"),
        pytest.param("bit_in_tail", 2, "P2 | g | x", WRONG, id="closed-flag-outside-the-tail"),
        pytest.param("get_asks_for_items", 2, "p | G2", "took more", id="get_many-claims-more-than-there-is"),
        pytest.param("get_sees_passed_tail", 2, "p | g | G1", "took more", id="get_many-claims-behind-the-tail"),
        pytest.param("get_asks_tail_again", 2, "p p | g | G1", WRONG, id="get_many-empty-by-the-tail-it-saw-first"),
        pytest.param("get_keeps_first_tail", 2, "p p | G2", "took more", id="get_many-takes-what-has-come-since"),
        pytest.param("claims_by_cas", 2, "P2 | p", SPINS, id="claim-by-load-and-store"),
        pytest.param("claims_by_cas", 2, "P2 G2 | g", SPINS, id="claim-of-the-head-by-load-and-store"),
        pytest.param("writes_before_publishing", 2, "P2 | g", WRONG, id="published-before-written"),
        pytest.param("reads_before_releasing", 1, "p P1 | G1", WRONG, id="released-before-read"),
    ],
)
def test_each_bug_of_the_slots_is_found(bug: str, capacity: int, calls: str, finding: str) -> None:
    ring = Batching(capacity)
    assert_found(search(replace(ring, **{bug: False}), calls), finding, search(ring, calls))


# ----------------------------------------------------------------------------------------------------------------
# Who is told.


@dataclass(frozen=True)
class Telling:
    """Whom a batch tells; each turned over is a bug."""

    put_tells: bool = True
    get_tells: bool = True
    tells_before_it_waits: bool = True  # else when it is through


def claim_many(side: Side, count: int, m: Memory) -> tuple[str, int]:
    """The batch without waiting, as one step; it puts (takes) as many as it can."""
    if m.tail & 1 and not side.gets:
        return "closed", 0
    done = 0
    while done < count and side.possible(m.head, m.tail):
        m.head, m.tail = (m.head + 1, m.tail) if side.gets else (m.head, m.tail + 2)
        done += 1
    return ("done" if done == count else "no"), done


def count_moved(side: Side, done: int, m: Memory) -> None:
    """Ghost state, as in test_model_park_wake.py."""
    m.returned = (m.returned[0] + done * side.gets, m.returned[1] + done * (not side.gets))


def put_all(rules: Rules, telling: Telling, side: Side, me: str, left: int) -> Thread:
    """RingBuffer.put_many of a list: what there is room for, then one that waits, and so on."""
    silent = False  # owes the others a word
    while left:
        got, done = yield Step("puts many", partial(claim_many, side, left))
        left -= done
        yield Step("counts", partial(count_moved, side, done))
        if done and telling.put_tells and telling.tells_before_it_waits:
            yield from wake(rules, side.wakes)
        silent = silent or done > 0
        if got == "no":
            got = yield from operate(rules, side, me, True, False)
            if got == "done":
                left -= 1
                yield Step("counts", partial(count_moved, side, 1))
        if got == "closed":
            break
    if silent and telling.put_tells and not telling.tells_before_it_waits:
        yield from wake(rules, side.wakes)


def take_some(rules: Rules, telling: Telling, side: Side, me: str, most: int) -> Thread:
    """RingBuffer.get_many: takes what is there; where there is nothing, waits for one, then takes what is there."""
    got, done = yield Step("takes many", partial(claim_many, side, most))
    if not done:
        got = yield from operate(rules, side, me, True, False)
        if got == "closed":
            return
        yield Step("counts", partial(count_moved, side, 1))
        got, done = yield Step("takes many", partial(claim_many, side, most - 1))
    yield Step("counts", partial(count_moved, side, done))
    if done and telling.get_tells:
        yield from wake(rules, side.wakes)


@cache
def search_telling(rules: Rules, telling: Telling, scenario: str, capacity: int) -> Report:
    """B3 puts three at once, M3 takes up to three; G and P as in test_model_park_wake.py; X closes."""
    threads: dict[str, ThreadFunction] = {}
    for i, word in enumerate(scenario.split()):
        me, count = f"{word}.{i}", int(word[1:] or 1)
        if word[0] == "X":
            threads[me] = partial(closer, rules)
        elif word[0] == "B":
            threads[me] = partial(put_all, rules, telling, Side(False, capacity), me, count)
        elif word[0] == "M":
            threads[me] = partial(take_some, rules, telling, Side(True, capacity), me, count)
        else:
            threads[me] = partial(single, rules, Side(word[0] == "G", capacity), me, True, False, count)
    return explore(MEMORY | {"capacity": capacity}, threads, invariant=invariant, at_rest=at_rest)


@pytest.mark.parametrize(
    ("scenario", "capacity", "at_least"),
    [
        ("G G B2", 2, 900),
        ("G G B3", 2, 1_000),
        ("P P B2 M3", 2, 90_000),
        ("B2 B2 M2", 1, 30_000),
        ("B3 M2 X", 2, 2_000),
        ("G B2 M2", 1, 1_000),
    ],
)
def test_one_word_for_a_batch_is_enough(scenario: str, capacity: int, at_least: int) -> None:
    assert_holds(search_telling(Rules(), Telling(), scenario, capacity), at_least)


LOST = "lost wake-up"


@pytest.mark.parametrize(
    ("bug", "scenario", "capacity"),
    [
        pytest.param("put_tells", "G B2", 2, id="put_many-notifies-no-thread"),
        pytest.param("get_tells", "B2 P M2", 2, id="get_many-notifies-no-thread"),
        pytest.param("tells_before_it_waits", "B3 G G", 2, id="put_many-tells-when-it-is-through"),
        pytest.param("taker_passes_on", "G G B2", 2, id="the-one-who-is-told-tells-no-other"),
        pytest.param("taker_passes_on", "B2 P P M2", 2, id="the-putter-who-is-told-tells-no-other"),
    ],
)
def test_each_bug_of_the_telling_is_found(bug: str, scenario: str, capacity: int) -> None:
    rules, telling = Rules(), Telling()
    if hasattr(rules, bug):
        broken = search_telling(replace(rules, **{bug: False}), telling, scenario, capacity)
    else:
        broken = search_telling(rules, replace(telling, **{bug: False}), scenario, capacity)
    assert_found(broken, LOST, search_telling(rules, telling, scenario, capacity))
