"""The plain items of a `map` as models, searched exhaustively: item_source.pyx.

Three parts, each with what the code does between two accesses that another thread could come between as one step.

Sources that are accepted as a whole. Workers claim positions from `front` in shares, keep the rest of a share in their
spans, and steal the back half of another's span. Promised: each position is begun or cancelled exactly once; a worker
that reads front == end and then open_spans == 0 is right for good: at that instant each position has been claimed to be
begun or cancelled. So it may sleep or forget the source. If it reads more, the positions may be on their way into a
span; then it looks again until their owner has stored the span. A source whose stream was dropped is cancelled and then
unlinked, after which no worker looks at it: so a canceller may not end while a position is on its way. The first
version did (`canceller_waits`): it saw no span and no position at `front`, the positions came into a span later, and no
worker took them.

Sources that are drawn. One thread adds items, workers claim one at a time, in order. Promised: a worker gets the item
of the position that it has claimed, though the entry is used again as soon as others have been read; each item that was
accepted is begun or cancelled once, and each that was not stays with the drawer; each outcome is read once, with its
item, and no entry is overwritten before it was read; in order where that is asked for.

Outcomes and readers. Readers sleep in a queue (test_model_park_wake.py). Promised: no reader sleeps while the outcome
at `head` is there, or at the end; each outcome is read once. A read takes the spin lock `reading`, clears the entry and
then moves `head`. A searcher's owed check takes that lock as well: the first version did not (`check_is_locked`). It
read `head`, then an entry that another reader had just cleared, and reported that nothing was ready, although the next
outcome was there; so it woke no reader. Reading `head` once more is not enough, since the other may not have moved it.

Sizes of shares are parameters: the protocol does not depend on them. A release store goes through a store buffer.
Left out: the records of items that are tried again; `abort`; awaited reads, which attempt and check as threads do; the
turn of the reader that draws (test_model_ring_watcher.py has a drawer of the same kind).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pytest

from tests.models.model_checker import (
    BLOCKED,
    Load,
    Memory,
    Report,
    Step,
    Store,
    Thread,
    ThreadFunction,
    ViolationError,
    assert_found,
    assert_holds,
    explore,
    park,
    post,
)
from tests.models.test_model_park_wake import Rules as Sleeping
from tests.models.test_model_park_wake import Waiting, begin_sleep, leave, stop_searching, under_lock, wake

LONG = pytest.mark.skipif(not os.environ.get("RINGMILL_LONG"), reason="takes 5 to 20 seconds; RINGMILL_LONG=1 runs it")

# ----------------------------------------------------------------------------------------------------------------
# Sources that are accepted as a whole.

Span = tuple[int, int]


@dataclass(frozen=True)
class Claiming:
    """How positions are claimed. The defaults are the protocol; each one inverted is a bug."""

    length: int = 4
    workers: int = 2
    divisor: int = 1  # a share is what is left, divided by this
    raises_before_claim: bool = True
    raises_before_steal: bool = True
    lowers_after_claim: bool = True
    failed_claim_lowers: bool = True
    failed_steal_lowers: bool = True
    owner_lowers: bool = True
    thief_lowers: bool = True
    canceller_lowers: bool = True
    front_first: bool = True  # has_work reads `front`, then `open_spans`
    owner_claims_by_exchange: bool = True  # else by a load and a store, like the next three
    front_by_exchange: bool = True
    thief_claims_by_exchange: bool = True
    canceller_claims_by_exchange: bool = True
    canceller_waits: bool = True  # while a span is open; the first version did not
    canceller_takes_spans: bool = True

    def share(self, left: int) -> int:
        return max(1, left // self.divisor)


def settle(name: str, positions: range, m: Memory) -> None:
    """Ghost state: these are begun, or cancelled, at the instant of the exchange."""
    for position in positions:
        if position not in m.left:
            raise ViolationError(f"position {position} is {name} twice")
    m.left -= {*positions}


def exchange(name: str, seen: Any, wanted: Any, settled: range, atomic: bool, m: Memory) -> bool:
    """A compare-exchange, or, where that is a bug, a store."""
    if atomic and getattr(m, name) != seen:
        return False
    setattr(m, name, wanted)
    settle("settled", settled, m)
    return True


def swap(name: str, seen: Any, wanted: Any, settled: range, atomic: bool) -> Step:
    return Step(f"{name}: {seen} becomes {wanted}", partial(exchange, name, seen, wanted, settled, atomic))


def add(count: int) -> Step:
    def run(m: Memory) -> None:
        m.open_spans += count
        if not 0 <= m.open_spans <= 6:
            raise ViolationError(f"open_spans is {m.open_spans}")

    return Step("raises open_spans" if count > 0 else "lowers open_spans", run)


def claim(rules: Claiming, me: int) -> Thread:
    """claim_item (and claim_own): whether it has got one."""
    seen = yield Load(f"span{me}")
    while seen[0] < seen[1]:
        last = seen[0] + 1 == seen[1]
        if last and rules.owner_lowers and not rules.lowers_after_claim:
            yield add(-1)
        settled = range(seen[0], seen[0] + 1)
        if (yield swap(f"span{me}", seen, (seen[0] + 1, seen[1]), settled, rules.owner_claims_by_exchange)):
            if last and rules.owner_lowers and rules.lowers_after_claim:
                yield add(-1)
            return True
        if last and rules.owner_lowers and not rules.lowers_after_claim:
            yield add(1)
        seen = yield Load(f"span{me}")
    front = yield Load("front")
    while front < rules.length:
        share = rules.share(rules.length - front)
        if share > 1 and rules.raises_before_claim:
            yield add(1)
        if (yield swap("front", front, front + share, range(front, front + 1), rules.front_by_exchange)):
            if share > 1:
                if not rules.raises_before_claim:
                    yield add(1)
                yield Store(f"span{me}", (front + 1, front + share), buffered=True)
            return True
        if share > 1 and rules.raises_before_claim and rules.failed_claim_lowers:
            yield add(-1)
        front = yield Load("front")
    return (yield from steal(rules, me))


def steal(rules: Claiming, me: int) -> Thread:
    """steal_span: the back half of another worker's span."""
    k = 1
    while k < rules.workers:
        if not (yield Load("open_spans")):
            return False
        victim = (me + k) % rules.workers
        seen = yield Load(f"span{victim}")
        while seen[0] < seen[1]:
            share = (seen[1] - seen[0] + 1) // 2
            begin = seen[1] - share
            rest = (seen[0], begin)
            if share > 1 and rules.raises_before_steal:
                yield add(1)
            if (yield swap(f"span{victim}", seen, rest, range(begin, begin + 1), rules.thief_claims_by_exchange)):
                if rest[0] == rest[1] and rules.thief_lowers:
                    yield add(-1)
                if share > 1:
                    if not rules.raises_before_steal:
                        yield add(1)
                    yield Store(f"span{me}", (begin + 1, begin + share), buffered=True)
                return True
            if share > 1 and rules.raises_before_steal and rules.failed_steal_lowers:
                yield add(-1)
            seen = yield Load(f"span{victim}")
        k += 1
    return False


def end_all(rules: Claiming) -> Thread:
    """end_items, with claim_span: cancels what no worker has begun."""
    while True:
        lowest, found, k = -1, (0, 0), 0
        while k < rules.workers and rules.canceller_takes_spans:
            seen = yield Load(f"span{k}")
            if seen[0] < seen[1] and (lowest < 0 or seen < found):
                lowest, found = k, seen
            seen = None
            k += 1
        if lowest >= 0:
            got = yield swap(f"span{lowest}", found, (0, 0), range(*found), rules.canceller_claims_by_exchange)
            if got and rules.canceller_lowers:
                yield add(-1)
            continue
        front = yield Load("front")
        if front < rules.length:
            yield swap("front", front, rules.length, range(front, rules.length), rules.front_by_exchange)
            front = None
            continue
        front = None
        if not rules.canceller_waits or not (yield Load("open_spans")):
            return


def conclude(name: str, absent: int, m: Memory) -> bool:
    """Whether there is more; the end must be that for good."""
    if getattr(m, name) != absent:
        return True
    if m.left:
        raise ViolationError(f"a worker sees no work while {sorted(m.left)} are unclaimed")
    return False


def has_work(rules: Claiming) -> Thread:
    if rules.front_first:
        if (yield Load("front")) < rules.length:
            return True
        return (yield Step("looks at open_spans", partial(conclude, "open_spans", 0)))
    if (yield Load("open_spans")):
        return True
    return (yield Step("looks at front", partial(conclude, "front", rules.length)))


def worker(rules: Claiming, me: int, slow: bool) -> Thread:
    """Until it has seen the end; `slow`: its first item never ends."""
    while (yield Load("linked")):
        if (yield Load("abandoned")):
            yield from end_all(rules)
            yield Store("linked", False)
            return
        if not (yield from has_work(rules)):
            return
        while (yield from claim(rules, me)):
            if slow:
                return
            if (yield Load("abandoned")):
                break


def abandon() -> Thread:
    """Stream.__del__."""
    yield Store("abandoned", True)


def all_settled(m: Memory, unfinished: frozenset[str]) -> str | None:
    if unfinished:
        return f"blocked: {', '.join(sorted(unfinished))}"
    if m.left and not m.all_slow:
        return f"left: {sorted(m.left)}"
    if m.open_spans and not m.left:
        return f"open_spans is {m.open_spans} at the end"
    return None


@cache
def search_claims(rules: Claiming, scenario: str) -> Report:
    """W works, S works and never ends its first item, C cancels (shutdown), A drops the stream."""
    words = scenario.split()
    workers = [word for word in words if word in "WS"]
    rules = replace(rules, workers=len(workers))
    memory: dict[str, Any] = {
        "front": 0, "open_spans": 0, "abandoned": False, "linked": True, "left": frozenset(range(rules.length)),
        "all_slow": "W" not in workers and "C" not in words,
    }
    memory |= {f"span{k}": (0, 0) for k in range(rules.workers)}
    threads: dict[str, ThreadFunction] = {
        f"{word}.{k}": partial(worker, rules, k, word == "S") for k, word in enumerate(workers)
    }
    if "C" in words:
        threads["C"] = partial(end_all, rules)
    if "A" in words:
        threads["A"] = abandon
    return explore(memory, threads, at_rest=all_settled)


@pytest.mark.parametrize(
    ("scenario", "length", "divisor", "at_least"),
    [
        ("W W", 5, 1, 5_000),
        ("W W", 5, 2, 2_000),
        ("S W", 5, 1, 1_000),
        ("S W W", 3, 1, 100_000),
        pytest.param("W W W", 3, 1, 200_000, marks=LONG),
        pytest.param("S W W", 4, 1, 300_000, marks=LONG),
        ("W W C", 3, 1, 40_000),
        pytest.param("W W C", 4, 1, 100_000, marks=LONG),
        ("W W C", 4, 2, 40_000),
        ("S W A", 4, 1, 4_000),
        ("W W A", 4, 1, 15_000),
    ],
)
def test_each_position_is_begun_or_cancelled_once(scenario: str, length: int, divisor: int, at_least: int) -> None:
    assert_holds(search_claims(Claiming(length, divisor=divisor), scenario), at_least)


TWICE, NO_WORK, LIVELOCK, LEFT = "settled twice", "sees no work", "livelock", "left: "


@pytest.mark.parametrize(
    ("bug", "scenario", "length", "finding"),
    [
        pytest.param("raises_before_claim", "W W", 3, NO_WORK, id="raises-after-the-claim"),
        pytest.param("raises_before_steal", "W W", 4, NO_WORK, id="raises-after-the-steal"),
        pytest.param("lowers_after_claim", "W W", 3, NO_WORK, id="lowers-before-the-claim"),
        pytest.param("failed_claim_lowers", "W W", 3, LIVELOCK, id="failed-claim-keeps-open_spans"),
        pytest.param("failed_steal_lowers", "W W", 4, LIVELOCK, id="failed-steal-keeps-open_spans"),
        pytest.param("owner_lowers", "W W", 3, LIVELOCK, id="owner-does-not-lower"),
        pytest.param("thief_lowers", "W W", 3, LIVELOCK, id="thief-does-not-lower"),
        pytest.param("canceller_lowers", "W W C", 3, LIVELOCK, id="canceller-does-not-lower"),
        pytest.param("front_first", "W W", 3, NO_WORK, id="open_spans-read-before-front"),
        pytest.param("owner_claims_by_exchange", "W W", 3, TWICE, id="owner-claims-by-a-store"),
        pytest.param("front_by_exchange", "W W", 2, TWICE, id="front-moved-by-a-store"),
        pytest.param("thief_claims_by_exchange", "W W", 3, TWICE, id="thief-claims-by-a-store"),
        pytest.param("canceller_claims_by_exchange", "W W C", 3, TWICE, id="canceller-claims-by-a-store"),
        pytest.param("canceller_waits", "W W A", 3, LEFT, id="canceller-misses-positions-on-their-way"),
        pytest.param("canceller_takes_spans", "S W A", 3, LIVELOCK, id="canceller-takes-no-spans"),
    ],
)
def test_each_bug_of_the_claims_is_found(bug: str, scenario: str, length: int, finding: str) -> None:
    rules = Claiming(length)
    broken = search_claims(replace(rules, **{bug: False}), scenario)
    assert_found(broken, finding, search_claims(rules, scenario))


# ----------------------------------------------------------------------------------------------------------------
# Sources that are drawn.


@dataclass(frozen=True)
class Drawing:
    """How items are added, claimed and published. The defaults are the protocol; each one inverted is a bug."""

    items: int = 3
    bound: int = 1
    ordered: bool = True  # no bug
    reads_before_claim: bool = True  # the worker reads the entry; else after the exchange
    claims_by_exchange: bool = True
    asks_for_room: bool = True
    puts_by_exchange: bool = True  # else by a store, which may undo the closed bit
    writes_before_publishing: bool = True  # put_item: the entry, then the tail
    counts_by_exchange: bool = True  # end_with: the total is what the tail was as it was closed
    stores_item_first: bool = True  # publish: the item, then the outcome
    places_by_increment: bool = True  # unordered: fetch_add of ended_count
    clears_before_head: bool = True
    takes_item_before_head: bool = True

    @property
    def entries(self) -> int:
        length = 1
        while length < self.bound:
            length *= 2
        return length


CLOSED = 1 << 8


def refused(m: Memory) -> None:
    m.refused += 1


def drawer(rules: Drawing) -> Thread:
    """put_item, while there is room."""
    position = 0
    while position < rules.items:
        if rules.asks_for_room:
            yield Step("waits for room", partial(wait_for_room, rules.bound))
        tail = yield Load("tail")
        while True:
            if tail & CLOSED:
                yield Step("is refused", refused)
                break
            entry = tail % rules.entries
            if rules.writes_before_publishing:
                yield Store(f"input{entry}", position, buffered=True)
            if (yield Step("moves tail", partial(move_tail, rules, tail))):
                if not rules.writes_before_publishing:
                    yield Store(f"input{entry}", position, buffered=True)
                break
            tail = yield Load("tail")
        position += 1


def wait_for_room(bound: int, m: Memory) -> Any:
    return None if m.tail & CLOSED or m.tail - m.head < bound else BLOCKED


def move_tail(rules: Drawing, tail: int, m: Memory) -> bool:
    if rules.puts_by_exchange and m.tail != tail:
        return False
    m.tail = tail + 1
    return True


def claim_drawn(rules: Drawing, verb: str) -> Thread:
    """claim_item and claim_span: the position, or -1. The entry must be that position's."""
    seen = yield Load("front")
    while seen < ((yield Load("tail")) & ~CLOSED):
        entry, found = seen % rules.entries, -1
        if rules.reads_before_claim:
            found = yield Load(f"input{entry}")
        if (yield Step(f"{verb} {seen}", partial(move_front, rules, seen))):
            if not rules.reads_before_claim:
                found = yield Load(f"input{entry}")
            yield Step(f"has item {found}", partial(check_item, seen, found))
            return seen
        seen = yield Load("front")
    return -1


def move_front(rules: Drawing, seen: int, m: Memory) -> bool:
    if rules.claims_by_exchange and m.front != seen:
        return False
    m.front = seen + 1
    settle("settled", range(seen, seen + 1), m)
    return True


def check_item(position: int, found: int, m: Memory) -> None:
    if found != position:
        raise ViolationError(f"wrong item: position {position} has item {found}")


def publish_drawn(rules: Drawing, position: int) -> Thread:
    place = position
    if not rules.ordered and rules.places_by_increment:
        place = yield Step("takes a place", take_place)
    elif not rules.ordered:
        place = yield Load("ended_count")
        yield Store("ended_count", place + 1)
    entry = place % rules.entries
    if rules.stores_item_first:
        yield Step(f"stores item {position}", partial(fill, f"used{entry}", position))
    yield Step(f"stores outcome {position}", partial(fill, f"outcome{entry}", position))
    if not rules.stores_item_first:
        yield Step(f"stores item {position}", partial(fill, f"used{entry}", position))


def take_place(m: Memory) -> int:
    m.ended_count += 1
    return int(m.ended_count) - 1


def fill(name: str, value: int, m: Memory) -> None:
    if getattr(m, name) is not None:
        raise ViolationError(f"{name} is overwritten before it was read")
    setattr(m, name, value)


def drawn_worker(rules: Drawing) -> Thread:
    while True:
        position = yield from claim_drawn(rules, "claims")
        if position >= 0:
            yield from publish_drawn(rules, position)
        elif not (yield Step("waits for work", wait_for_item)):
            return


def wait_for_item(m: Memory) -> Any:
    """Sleeps until there is an item, or the source is closed and has none."""
    if m.front < m.tail & ~CLOSED:
        return True
    return False if m.tail & CLOSED else BLOCKED


def drawn_canceller(rules: Drawing) -> Thread:
    while (position := (yield from claim_drawn(rules, "cancels"))) >= 0:
        yield from publish_drawn(rules, position)


def drawn_closer(rules: Drawing) -> Thread:
    """end_with; wakes a reader where all has been read, which here waits for that itself."""
    if rules.counts_by_exchange:
        count = yield Step("closes", close_tail)
    else:
        count = (yield Load("tail")) & ~CLOSED
        yield Step("closes", close_tail)
    yield Store("total", count)


def close_tail(m: Memory) -> int:
    count = m.tail & ~CLOSED
    m.tail |= CLOSED
    return int(count)


def drawn_reader(rules: Drawing) -> Thread:
    """take_if, by one reader."""
    while True:
        head = yield Load("head")
        entry = head % rules.entries
        outcome = yield Step("waits for an outcome", partial(wait_for_outcome, entry))
        if outcome is None:
            return
        if rules.clears_before_head:
            yield Store(f"outcome{entry}", None, buffered=True)
        if rules.takes_item_before_head:
            yield Step(f"reads {outcome}", partial(read_item, rules, head, entry, outcome))
        yield Store("head", head + 1)
        if not rules.clears_before_head:
            yield Store(f"outcome{entry}", None, buffered=True)
        if not rules.takes_item_before_head:
            yield Step(f"reads {outcome}", partial(read_item, rules, head, entry, outcome))


def wait_for_outcome(entry: int, m: Memory) -> Any:
    outcome = getattr(m, f"outcome{entry}")
    if outcome is not None:
        return outcome
    return None if m.head == m.total else BLOCKED


def read_item(rules: Drawing, head: int, entry: int, outcome: int, m: Memory) -> None:
    used = getattr(m, f"used{entry}")
    setattr(m, f"used{entry}", None)
    if used != outcome:
        raise ViolationError(f"wrong item: the outcome of {outcome} comes with item {used}")
    if rules.ordered and outcome != head:
        raise ViolationError(f"wrong order: outcome {outcome} is read in place {head}")
    if outcome in m.read:
        raise ViolationError(f"outcome {outcome} is read twice")
    m.read |= {outcome}


def all_read(rules: Drawing, m: Memory, unfinished: frozenset[str]) -> str | None:
    if unfinished:
        return f"blocked: {', '.join(sorted(unfinished))}"
    if len(m.read) + m.refused != rules.items or m.total != len(m.read):
        return f"lost: {sorted(m.read)} were read, {m.refused} refused, the total is {m.total}"
    return None


@cache
def search_drawn(rules: Drawing, scenario: str) -> Report:
    """W works, C cancels, X closes at any time; D, always there, draws, and R reads. Without X the drawer closes."""
    memory: dict[str, Any] = {
        "tail": 0, "front": 0, "head": 0, "total": -1, "ended_count": 0, "refused": 0,
        "left": frozenset(range(rules.items)), "read": frozenset(),
    }
    for k in range(rules.entries):
        memory |= {f"input{k}": None, f"used{k}": None, f"outcome{k}": None}
    kinds: dict[str, Callable[[Drawing], Thread]] = {"W": drawn_worker, "C": drawn_canceller, "X": drawn_closer}
    threads: dict[str, ThreadFunction] = {"D": partial(draw_and_close if "X" not in scenario else drawer, rules)}
    threads |= {f"{word}.{k}": partial(kinds[word], rules) for k, word in enumerate(scenario.split())}
    threads["R"] = partial(drawn_reader, rules)
    return explore(memory, threads, at_rest=partial(all_read, rules))


def draw_and_close(rules: Drawing) -> Thread:
    yield from drawer(rules)
    yield from drawn_closer(rules)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(
    ("scenario", "items", "bound", "at_least"),
    [
        ("W W", 3, 1, 30_000),
        ("W W", 3, 2, 80_000),
        ("W W X", 2, 1, 30_000),
        ("W C X", 2, 2, 40_000),
        ("W C", 3, 2, 50_000),
        ("W", 6, 3, 1_000),
        pytest.param("W W X", 3, 2, 250_000, marks=LONG),
        pytest.param("W C X", 3, 2, 150_000, marks=LONG),
    ],
)
def test_no_entry_is_overwritten(scenario: str, items: int, bound: int, ordered: bool, at_least: int) -> None:
    assert_holds(search_drawn(Drawing(items, bound, ordered), scenario), at_least)


def test_in_order_an_entry_may_be_read_after_the_claim() -> None:
    """It is not used again before its own outcome was read."""
    assert_holds(search_drawn(Drawing(3, 2, reads_before_claim=False), "W W"), 50_000)


WRONG_ITEM, OVERWRITTEN, LOST = "wrong item", "overwritten", "lost: "


@pytest.mark.parametrize(
    ("bug", "scenario", "items", "bound", "ordered", "finding"),
    [
        pytest.param("reads_before_claim", "W W", 3, 2, False, WRONG_ITEM, id="entry-read-after-the-claim"),
        pytest.param("claims_by_exchange", "W W", 2, 2, True, TWICE, id="claimed-by-a-store"),
        pytest.param("asks_for_room", "W", 3, 1, True, WRONG_ITEM, id="drawn-without-room"),
        pytest.param("puts_by_exchange", "W X", 2, 2, True, LOST, id="the-closed-bit-is-undone"),
        pytest.param("writes_before_publishing", "W", 2, 1, True, WRONG_ITEM, id="published-before-written"),
        pytest.param("counts_by_exchange", "W X", 2, 2, True, LOST, id="total-read-before-the-close"),
        pytest.param("stores_item_first", "W", 2, 2, True, WRONG_ITEM, id="outcome-stored-before-the-item"),
        pytest.param("places_by_increment", "W W", 2, 2, False, OVERWRITTEN, id="two-outcomes-in-one-place"),
        pytest.param("clears_before_head", "W", 2, 1, True, OVERWRITTEN, id="head-moved-before-the-entry-is-cleared"),
        pytest.param("takes_item_before_head", "W", 2, 1, True, OVERWRITTEN, id="head-moved-before-the-item-is-taken"),
    ],
)
def test_each_bug_of_the_entries_is_found(
    bug: str, scenario: str, items: int, bound: int, ordered: bool, finding: str
) -> None:
    rules = Drawing(items, bound, ordered)
    assert_found(search_drawn(replace(rules, **{bug: False}), scenario), finding, search_drawn(rules, scenario))


# ----------------------------------------------------------------------------------------------------------------
# Outcomes and readers.


@dataclass(frozen=True)
class Reading:
    """How readers wait, take and notify. The defaults are the protocol; each one inverted is a bug."""

    total: int = 3
    total_known: bool = True  # else a thread closes the source later; no bug
    publish_notifies: bool = True
    notifies_after_outcome: bool = True
    outcome_seq_cst: bool = True
    attempts_registered: bool = True  # a waiter attempts again after it has registered
    owed_check: bool = True
    check_is_locked: bool = True  # the first version did not lock
    check_reads_head_again: bool = False  # where it does not lock: not enough
    takes_under_lock: bool = True
    last_wakes_others: bool = True
    head_before_total: bool = True  # a reader moves `head`, then reads `total`
    head_seq_cst: bool = True
    total_before_head: bool = True  # end_with writes `total`, then reads `head`
    end_notifies: bool = True


def publisher(rules: Reading, places: tuple[int, ...]) -> Thread:
    k = 0
    while k < len(places):
        if not rules.notifies_after_outcome:
            yield from wake(Sleeping(), "readers")
        yield Store(f"outcome{places[k]}", True, buffered=not rules.outcome_seq_cst)
        if rules.publish_notifies and rules.notifies_after_outcome:
            yield from wake(Sleeping(), "readers")
        k += 1


def lock_reading(rules: Reading, m: Memory) -> Any:
    """Together with the first access under it."""
    if rules.takes_under_lock:
        if m.reading:
            return BLOCKED
        m.reading = 1
    return m.head


def notify_all() -> Thread:
    granted = yield under_lock("readers", "grant all", grant_all)
    while granted:
        yield post(granted[0])
        granted = granted[1:]


def grant_all(w: Waiting) -> tuple[Waiting, tuple[str, ...]]:
    return Waiting(0, w.searchers + len(w.nodes)), w.nodes


def take(rules: Reading, fast: bool) -> Thread:
    """take_if, or take_result: "done", "shut" or ""."""
    head = yield Step("locks reading, loads head", partial(lock_reading, rules))
    got, total = "", -2
    if fast and head >= rules.total - 1:
        pass
    elif not fast and head == (yield Load("total")):
        got = "shut"
    elif (yield Load(f"outcome{head}")):
        got = "done"
        yield Store(f"outcome{head}", False, buffered=True)
        if not fast and not rules.head_before_total:
            total = yield Load("total")
        yield Step(f"takes {head}", partial(took, head))
        yield Store("head", head + 1, buffered=not rules.head_seq_cst)
    if rules.takes_under_lock:
        yield Store("reading", 0, buffered=True)
    if got == "done" and not fast:
        if rules.head_before_total:
            total = yield Load("total")
        if head + 1 == total and rules.last_wakes_others:
            yield from notify_all()
    return got


def took(head: int, m: Memory) -> None:
    """Ghost state."""
    if head in m.read:
        raise ViolationError(f"outcome {head} is read twice")
    m.read |= {head}


def has_ready(rules: Reading) -> Thread:
    if rules.check_is_locked:
        head = yield Step("locks reading, loads head", partial(lock_reading, rules))
        ready = head == (yield Load("total")) or (yield Load(f"outcome{head}"))
        if rules.takes_under_lock:
            yield Store("reading", 0, buffered=True)
        return ready
    head, seen = (yield Load("head")), -1
    while head != seen:
        seen = head
        if seen == (yield Load("total")) or (yield Load(f"outcome{seen}")):
            return True
        if rules.check_reads_head_again:
            head = yield Load("head")
    return False


def read(rules: Reading, me: str) -> Thread:
    """A blocking read: take, then wait_for."""
    searching = owes = False
    while True:
        got = yield from take(rules, False)
        if got:
            break
        yield under_lock("readers", "sleep on", partial(begin_sleep, me, searching))
        searching = False
        got = (yield from take(rules, False)) if rules.attempts_registered else ""
        if got:
            searching = not (yield under_lock("readers", "leave", partial(leave, me)))
            if searching:
                yield park(me)
            break
        owes = False
        yield park(me)
        searching = owes = True
    if searching:
        yield under_lock("readers", "stop searching", stop_searching)
    if (searching or owes) and rules.owed_check and (yield from has_ready(rules)):
        yield from wake(Sleeping(), "readers")
    return got


def reader(rules: Reading, me: str, count: int) -> Thread:
    while count:
        if (yield from read(rules, me)) == "shut":
            return
        count -= 1


def fast_reader(rules: Reading) -> Thread:
    """Reads once, where a result is ready, without the queue."""
    yield from take(rules, True)


def closer(rules: Reading) -> Thread:
    """end_with, of a source that gave as many."""
    head = -1
    if not rules.total_before_head:
        head = yield Load("head")
    yield Store("total", rules.total)
    if rules.total_before_head:
        head = yield Load("head")
    if head == rules.total and rules.end_notifies:
        yield from notify_all()


def rested(m: Memory, unfinished: frozenset[str]) -> str | None:
    if m.readers.nodes:
        if m.head == m.total:
            return f"asleep at the end: {m.readers.nodes}"
        if getattr(m, f"outcome{m.head}"):
            return f"asleep with an outcome that is ready: {m.readers.nodes}"
    if unfinished - {*m.readers.nodes}:
        return f"blocked: {', '.join(sorted(unfinished))}"
    if m.posted or m.readers.searchers:
        return f"left: {m.posted}, {m.readers}"
    if m.read != {*range(m.head)}:
        return f"read {m.read}, and head is {m.head}"
    return None


@cache
def search_reads(rules: Reading, scenario: str) -> Report:
    """P with the places that it publishes in this order; R with the number of its reads, a when it reads all; F."""
    memory: dict[str, Any] = {
        "head": 0, "total": rules.total if rules.total_known else -1, "reading": 0, "readers": Waiting(),
        "posted": frozenset(), "read": frozenset(),
    }
    memory |= {f"outcome{k}": False for k in range(rules.total + 1)}
    threads: dict[str, ThreadFunction] = {}
    for k, word in enumerate(scenario.split()):
        me = f"{word}.{k}"
        if word[0] == "P":
            threads[me] = partial(publisher, rules, tuple(map(int, word[1:])))
        elif word[0] == "R":
            threads[me] = partial(reader, rules, me, 9 if word[1:] == "a" else int(word[1:]))
        else:
            threads[me] = partial(fast_reader, rules)
    if not rules.total_known:
        threads["X"] = partial(closer, rules)
    return explore(memory, threads, at_rest=rested)


@pytest.mark.parametrize(
    ("scenario", "total", "known", "at_least"),
    [
        ("Ra P01", 2, True, 500),
        ("Ra Ra P10", 2, True, 20_000),
        ("Ra Ra P0", 1, False, 60_000),
        ("R1 Ra P01", 2, False, 150_000),
        ("R1 R1 P0 P1", 2, True, 40_000),
        ("R1 R1 F P10", 2, True, 50_000),
        ("R1 R1 F P012", 3, True, 80_000),
    ],
)
def test_no_reader_sleeps_while_an_outcome_is_ready(scenario: str, total: int, known: bool, at_least: int) -> None:
    assert_holds(search_reads(Reading(total, known), scenario), at_least)


@pytest.mark.parametrize("redundant", ["last_wakes_others", "head_before_total", "head_seq_cst"])
@pytest.mark.parametrize("scenario", ["Ra Ra P0", "R1 Ra P0"])
def test_the_owed_check_covers_the_wakeup_at_the_last_read(redundant: str, scenario: str) -> None:
    """Only because it takes the lock: it sees the end where it was preceded by the last read."""
    assert_holds(search_reads(replace(Reading(1, False), **{redundant: False}), scenario), 30_000)


ASLEEP, AT_END = "asleep with", "asleep at the end"


@pytest.mark.parametrize(
    ("bug", "scenario", "total", "known", "finding"),
    [
        pytest.param("publish_notifies", "R1 P0", 1, True, ASLEEP, id="publish-does-not-notify"),
        pytest.param("notifies_after_outcome", "R1 P0", 1, True, ASLEEP, id="notifies-before-the-outcome"),
        pytest.param("outcome_seq_cst", "R1 P0", 1, True, ASLEEP, id="outcome-not-seq_cst"),
        pytest.param("attempts_registered", "R1 P0", 1, True, ASLEEP, id="no-attempt-after-registering"),
        pytest.param("owed_check", "R1 R1 P01", 2, True, ASLEEP, id="no-owed-check"),
        pytest.param("check_is_locked", "R1 R1 F P012", 3, True, ASLEEP, id="owed-check-without-the-lock"),
        pytest.param("takes_under_lock", "R1 R1 P01", 2, True, "twice", id="takes-without-the-lock"),
        pytest.param("total_before_head", "Ra Ra P0", 1, False, AT_END, id="head-compared-before-total-is-written"),
        pytest.param("end_notifies", "Ra P0", 1, False, AT_END, id="the-end-wakes-no-reader"),
    ],
)
def test_each_bug_of_the_reads_is_found(bug: str, scenario: str, total: int, known: bool, finding: str) -> None:
    rules = Reading(total, known)
    assert_found(search_reads(replace(rules, **{bug: False}), scenario), finding, search_reads(rules, scenario))


def test_an_owed_check_that_reads_head_again_is_not_enough() -> None:
    rules = Reading(3)
    broken = search_reads(replace(rules, check_is_locked=False, check_reads_head_again=True), "R1 R1 F P012")
    assert_found(broken, ASLEEP, search_reads(rules, "R1 R1 F P012"))
