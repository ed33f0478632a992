"""The linearizability checker finds planted violations and nothing else; then it checks RingBuffer's own histories."""

from __future__ import annotations

import os
import random
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import combinations, count, permutations
from typing import Any

import pytest

from ringmill import Closed, RingBuffer
from tests.stress.linearizability import (
    Call,
    Event,
    LinearizabilityError,
    Recorder,
    Result,
    check,
    random_programs,
    record,
)

OK, FULL, EMPTY, CLOSED = Result


def put(thread: int, call: int, ret: int, item: Any, result: Result = OK) -> Event:
    return Event(thread, call, ret, "put", (item,), result)


def get(thread: int, call: int, ret: int, got: Any) -> Event:
    return Event(thread, call, ret, "get", *(((), got) if isinstance(got, Result) else ((got,), OK)))


def put_many(
    thread: int, call: int, ret: int, items: str, result: Result = OK, count: int = -1, rest: str = ""
) -> Event:
    if result is OK:
        return Event(thread, call, ret, "put_many", tuple(items), OK, len(items) if count < 0 else count)
    return Event(thread, call, ret, "put_many", tuple(items), result, count, tuple(rest))


def get_many(thread: int, call: int, ret: int, got: str, limit: int | None = None) -> Event:
    return Event(thread, call, ret, "get_many", tuple(got), limit=limit)


def close(thread: int, call: int, ret: int) -> Event:
    return Event(thread, call, ret, "close")


AB = [put(0, 0, 1, "a"), put(0, 2, 3, "b")]

# Each violation with its nearest innocent twin, so that a verdict has no other reason. A line for each history.
# fmt: off
VIOLATIONS: dict[str, tuple[int, list[Event], list[Event]]] = {
    "item lost": (2,
        [*AB, get(1, 4, 5, "b"), get(1, 6, 7, EMPTY)],
        [*AB, get(1, 4, 5, "a"), get(1, 6, 7, "b"), get(1, 8, 9, EMPTY)]),
    "item doubled": (2,
        [put(0, 0, 1, "a"), get(1, 2, 3, "a"), get(2, 4, 5, "a")],
        [put(0, 0, 1, "a"), get(1, 2, 3, "a"), get(2, 4, 5, EMPTY)]),
    "item doubled for two consumers at once": (2,
        [put(0, 0, 1, "a"), get(1, 2, 9, "a"), get(2, 3, 8, "a")],
        [put(0, 0, 1, "a"), get(1, 2, 9, "a"), get(2, 3, 8, EMPTY)]),
    "item out of nothing": (2,
        [put(0, 0, 1, "a"), get(1, 2, 3, "a"), get(1, 4, 5, "z")],
        [put(0, 0, 1, "a"), get(1, 2, 3, "a"), get(1, 4, 5, "z"), put(0, 5, 6, "z")]),
    "got before it was put": (2,
        [get(1, 0, 1, "a"), put(0, 2, 3, "a")],
        [get(1, 0, 2, "a"), put(0, 2, 3, "a")]),
    "reordered from one producer": (2,
        [*AB, get(1, 4, 5, "b"), get(1, 6, 7, "a")],
        [*AB, get(1, 4, 5, "a"), get(1, 6, 7, "b")]),
    "reordered from two producers, one after the other": (2,
        [put(0, 0, 2, "a"), put(1, 3, 4, "b"), get(2, 5, 6, "b"), get(2, 7, 8, "a")],
        [put(0, 0, 3, "a"), put(1, 3, 4, "b"), get(2, 5, 6, "b"), get(2, 7, 8, "a")]),
    "reordered for two consumers, one after the other": (2,
        [*AB, get(1, 4, 5, "b"), get(2, 6, 7, "a")],
        [*AB, get(1, 4, 6, "b"), get(2, 6, 7, "a")]),
    "Empty while a finished put is inside": (3,
        [put(0, 0, 9, "a"), put(1, 1, 2, "b"), get(2, 3, 4, EMPTY)],
        [put(0, 0, 9, "a"), put(1, 1, 3, "b"), get(2, 3, 4, EMPTY)]),
    "Empty after a wait that saw an item all along": (2,
        [put(0, 0, 1, "a"), get(1, 2, 50, EMPTY), get(2, 51, 52, "a")],
        [put(0, 0, 1, "a"), get(1, 2, 50, EMPTY), get(2, 50, 52, "a")]),
    "Full while there is room": (1,
        [put(0, 0, 1, "a"), get(1, 2, 3, "a"), put(0, 4, 5, "b", FULL)],
        [put(0, 0, 1, "a"), get(1, 2, 4, "a"), put(0, 4, 5, "b", FULL)]),
    "Full below capacity": (3,
        [*AB, put(1, 4, 5, "c", FULL)],
        [*AB, put(0, 4, 5, "c"), put(1, 6, 7, "d", FULL)]),
    "capacity exceeded": (1,
        [put(0, 0, 1, "a"), put(0, 2, 3, "b"), get(1, 4, 9, "a")],
        [put(0, 0, 1, "a"), put(0, 2, 4, "b"), get(1, 4, 9, "a")]),
    "put accepted after close": (2,
        [close(0, 0, 1), put(1, 2, 3, "a"), get(1, 4, 5, "a")],
        [close(0, 0, 2), put(1, 2, 3, "a"), get(1, 4, 5, "a")]),
    "put Closed before close": (2,
        [put(0, 0, 1, "a", CLOSED), close(1, 2, 3)],
        [put(0, 0, 2, "a", CLOSED), close(1, 2, 3)]),
    "put Full after close": (1,
        [put(0, 0, 1, "a"), close(0, 2, 3), put(1, 4, 5, "b", FULL)],
        [put(0, 0, 1, "a"), close(0, 2, 3), put(1, 4, 5, "b", CLOSED)]),
    "get Closed while an item remains": (2,
        [put(0, 0, 1, "a"), close(0, 2, 3), get(1, 4, 5, CLOSED), get(2, 6, 7, "a")],
        [put(0, 0, 1, "a"), close(0, 2, 3), get(1, 4, 5, CLOSED), get(2, 5, 7, "a")]),
    "get Closed before close": (2,
        [get(0, 0, 1, CLOSED), close(1, 2, 3)],
        [get(0, 0, 2, CLOSED), close(1, 2, 3)]),
    "get Empty after close": (2,
        [close(0, 0, 1), get(1, 2, 3, EMPTY)],
        [close(0, 0, 1), close(1, 0, 1), get(1, 2, 3, CLOSED)]),
    "put_many out of order": (2,
        [put_many(0, 0, 1, "ab"), get(1, 2, 3, "b"), get(1, 4, 5, "a")],
        [put_many(0, 0, 1, "ab"), get(1, 2, 3, "a"), get(1, 4, 5, "b")]),
    "put_many out of order around another producer": (3,
        [put_many(0, 0, 9, "ab"), put(1, 1, 2, "x"), get_many(2, 10, 11, "bxa")],
        [put_many(0, 0, 9, "ab"), put(1, 1, 2, "x"), get_many(2, 10, 11, "axb")]),
    "put_many above capacity": (2,
        [put_many(0, 0, 3, "abc"), get_many(1, 4, 5, "abc")],
        [put_many(0, 0, 4, "abc"), get_many(1, 4, 5, "abc")]),
    "put_many put after close": (1,
        [put_many(0, 0, 20, "abc", CLOSED, 2, "c"), close(1, 2, 3), get(2, 4, 5, "a"), get(2, 6, 7, "b")],
        [put_many(0, 0, 20, "abc", CLOSED, 2, "c"), close(1, 2, 4), get(2, 4, 5, "a"), get(2, 6, 7, "b")]),
    "put_many Full with room": (2,
        [put_many(0, 0, 9, "abc", FULL, 1, "bc"), get_many(1, 10, 11, "a")],
        [put_many(0, 0, 9, "abc", FULL, 2, "c"), get_many(1, 10, 11, "ab")]),
    "put_many Closed before close": (2,
        [put_many(0, 0, 2, "ab", CLOSED, 1, "b"), close(1, 3, 4)],
        [put_many(0, 0, 3, "ab", CLOSED, 1, "b"), close(1, 3, 4)]),
    "put_many counts one too few": (2,
        [put_many(0, 0, 9, "abc", CLOSED, 1, "bc"), close(1, 5, 6), get_many(1, 10, 11, "ab")],
        [put_many(0, 0, 9, "abc", CLOSED, 2, "c"), close(1, 5, 6), get_many(1, 10, 11, "ab")]),
    "put_many counts one too many": (2,
        [put_many(0, 0, 9, "abc", FULL, 2, "c"), get(1, 10, 11, "a"), get(1, 12, 13, EMPTY)],
        [put_many(0, 0, 9, "abc", FULL, 2, "c"), get(1, 10, 11, "a"), get(1, 12, 13, "b")]),
    "put_many keeps what it did not put": (2,
        [put_many(0, 0, 9, "abcd", FULL, 2, "d")],
        [put_many(0, 0, 9, "abcd", FULL, 2, "cd")]),
    "put_many gives back what it put": (2,
        [put_many(0, 0, 9, "abc", FULL, 2, "bc")],
        [put_many(0, 0, 9, "abc", FULL, 2, "c")]),
    "put_many fails though all went in": (2,
        [put_many(0, 0, 9, "ab", FULL, 2, "")],
        [put_many(0, 0, 9, "ab", OK)]),
    "put_many returns a wrong count": (2,
        [put_many(0, 0, 9, "ab", OK, 1)],
        [put_many(0, 0, 9, "ab", OK, 2)]),
    "get_many skips an item": (3,
        [put_many(0, 0, 1, "abc"), get_many(1, 2, 5, "ac"), get(2, 6, 7, "b")],
        [put_many(0, 0, 1, "abc"), get_many(1, 2, 5, "ac"), get(2, 5, 7, "b")]),
    "get_many out of order": (2,
        [put_many(0, 0, 1, "ab"), get_many(1, 2, 3, "ba")],
        [put_many(0, 0, 1, "ab"), get_many(1, 2, 3, "ab")]),
    "get_many above its limit": (2,
        [put_many(0, 0, 1, "ab"), get_many(1, 2, 3, "ab", limit=1)],
        [put_many(0, 0, 1, "ab"), get_many(1, 2, 3, "ab", limit=2)]),
    "get_many returns nothing": (2,
        [put_many(0, 0, 1, "ab"), get_many(1, 2, 3, "")],
        [put_many(0, 0, 1, "ab"), get_many(1, 2, 3, "a")]),
    "put ends in Empty": (2,
        [put(0, 0, 1, "a", EMPTY)],
        [get(0, 0, 1, EMPTY)]),
    "second close ends in Closed": (2,
        [close(0, 0, 1), replace(close(1, 2, 3), result=CLOSED)],
        [close(0, 0, 1), close(1, 2, 3)]),
}
# fmt: on


@pytest.mark.parametrize("name", VIOLATIONS)
def test_planted_violation(name: str) -> None:
    capacity, violation, _ = VIOLATIONS[name]
    with pytest.raises(LinearizabilityError, match="history"):
        check(violation, capacity)


@pytest.mark.parametrize("name", VIOLATIONS)
def test_innocent_twin(name: str) -> None:
    capacity, _, innocent = VIOLATIONS[name]
    check(innocent, capacity)


def test_empty_history() -> None:
    check([], 1)


def test_report_shows_the_longest_explanation_and_the_history() -> None:
    with pytest.raises(LinearizabilityError) as caught:
        check([*AB, get(1, 4, 5, "b"), put(2, 6, 7, "c", CLOSED)], 2)
    report = str(caught.value)
    assert "2 of 4 steps" in report
    assert "['a', 'b'] is inside, open" in report
    assert "4..5         thread 1: get() -> ['b']" in report
    assert "6..7         thread 2: put('c') -> Closed" in report


def test_overlap_within_a_thread_is_the_harness_at_fault() -> None:
    with pytest.raises(ValueError, match="one thing after another"):
        check([put(0, 0, 5, "a"), put(0, 4, 6, "b")], 2)


# ---- the search against the definition -------------------------------------------------------------------------------


class Model:
    """The sequential queue once more, written apart from the checker's."""

    def __init__(self, capacity: int) -> None:
        self.room = capacity
        self.inside: deque[Any] = deque()
        self.closed = False

    def do(self, event: Event) -> Event:
        """The same operation, with the result it has now."""
        match event.verb:
            case "close":
                self.closed = True
                return event
            case "get" if self.inside:
                self.room += 1
                return replace(event, items=(self.inside.popleft(),), result=OK)
            case "get":
                return replace(event, items=(), result=CLOSED if self.closed else EMPTY)
            case _:
                result = CLOSED if self.closed else OK if self.room else FULL
                if result is OK:
                    self.room -= 1
                    self.inside.append(event.items[0])
                return replace(event, result=result)


def explains(order: tuple[Event, ...], capacity: int) -> bool:
    """The definition, word for word: the order respects time, and gives the results that were recorded."""
    model = Model(capacity)
    return not any(b.ret < a.call for a, b in combinations(order, 2)) and all(
        model.do(event) == event for event in order
    )


def random_history(rng: random.Random, capacity: int) -> list[Event]:
    """Two operations on each of three threads, with results that are right or, every other time, one changed."""
    events = []
    for thread in range(3):
        times = sorted(rng.sample(range(12), 4))
        for call, ret in (times[:2], times[2:]):
            verb = rng.choice(["put", "put", "put", "get", "get", "get", "close"])
            events.append(Event(thread, call, ret, verb, (10 * thread + call,) if verb == "put" else ()))
    model = Model(capacity)
    events = [model.do(event) for event in sorted(events, key=lambda event: rng.uniform(event.call, event.ret))]
    n = rng.randrange(len(events))
    match events[n].verb if rng.random() < 0.5 else None:
        case "put":
            events[n] = replace(events[n], result=rng.choice([OK, FULL, CLOSED]))
        case "get":
            other = rng.choice([event for event in events if event.verb == "get"])
            events[n] = replace(events[n], items=other.items, result=rng.choice([other.result, EMPTY, CLOSED]))
            if events[n].result is not OK:
                events[n] = replace(events[n], items=())
    return events


def test_agrees_with_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    verdicts = Counter[bool]()
    for capacity in (1, 2) * 60:
        events = random_history(rng, capacity)
        expected = any(explains(order, capacity) for order in permutations(events))
        assert linearizable(events, capacity) == expected, events
        verdicts[expected] += 1
    assert min(verdicts[True], verdicts[False]) > 10, "one of the verdicts was hardly tried"


def linearizable(events: list[Event], capacity: int) -> bool:
    try:
        check(events, capacity)
    except LinearizabilityError:
        return False
    return True


def test_many_orders_few_configurations() -> None:
    """All operations overlap and the last get is wrong: without its memo the search would outlast the watchdog."""
    puts = [put(thread, 0, 0, 10 * thread + n) for thread in range(2) for n in range(8)]
    gets = [get(2 + n // 8, 0, 0, event.items[0]) for n, event in enumerate(puts)]
    check([*puts, *gets], 3)
    with pytest.raises(LinearizabilityError):
        check([*puts, *gets, get(4, 1, 1, 99)], 3)


# ---- the known ways to get a ring wrong, step by step ----------------------------------------------------------------


class SteppedRing:
    """The ring's protocol in slow motion: each `yield` lets another thread run, between two of them all is atomic.

    With a bug's name it is one of the rings that rules 3 and 4 of the core are about.
    """

    def __init__(self, capacity: int, bug: str = "") -> None:
        self.capacity = capacity
        self.bug = bug
        self.unit = 1 if bug == "sequence numbers at capacity 1" else 2  # 1: filled in this lap is free in the next
        self.slots: list[Any] = [None] * capacity
        self.stamps = [position * self.unit for position in range(capacity)]
        self.head = 0
        self.tail, self.closed = 0, False  # one word, but for the bug

    def put(self, item: Any) -> Generator[None, None, Result]:
        while not self.closed:
            tail = self.tail
            yield
            stamp = self.stamps[tail % self.capacity]
            yield
            if stamp == tail * self.unit:
                if self.tail == tail and (not self.closed or self.bug == "closed flag outside the tail"):
                    self.tail = tail + 1
                    yield
                    self.slots[tail % self.capacity] = item
                    self.stamps[tail % self.capacity] = tail * self.unit + 1
                    return OK
            elif self.head + self.capacity == tail or self.bug == "slot not ready means Empty or Full":
                return FULL
            yield
        return CLOSED

    def get(self) -> Generator[None, None, Any]:
        while True:
            head = self.head
            yield
            stamp = self.stamps[head % self.capacity]
            yield
            if stamp == head * self.unit + 1:
                if self.head == head:
                    self.head = head + 1
                    yield
                    item = self.slots[head % self.capacity]
                    self.stamps[head % self.capacity] = (head + self.capacity) * self.unit
                    return item
            elif self.tail == head or self.bug == "slot not ready means Empty or Full":
                if self.bug == "closed flag outside the tail":
                    yield
                return CLOSED if self.closed else EMPTY
            yield

    def close(self) -> Generator[None, None, Result]:
        self.closed = True
        return OK
        yield  # a generator, like its siblings


def in_turns(ring: SteppedRing, programs: list[list[Call]], rng: random.Random) -> list[Event]:
    """Runs each program as if on a thread of its own, in an order that `rng` decides step by step."""
    events: list[Event] = []
    clock = count()

    def run(thread: int, program: list[Call]) -> Iterator[None]:
        for verb, *arguments in program:
            call = next(clock)
            got = yield from getattr(ring, verb)(*arguments)
            ret = next(clock)
            events.append(
                get(thread, call, ret, got) if verb == "get" else Event(thread, call, ret, verb, tuple(arguments), got)
            )
            yield

    threads = [run(thread, program) for thread, program in enumerate(programs)]
    while threads:
        thread = rng.choice(threads)
        if next(thread, threads) is threads:
            threads.remove(thread)
    return events


PUT_A, PUT_B, PUT_C, GET, CLOSE = ("put", "a"), ("put", "b"), ("put", "c"), ("get",), ("close",)
BUGS: dict[str, tuple[int, list[list[Call]]]] = {
    "slot not ready means Empty or Full": (2, [[PUT_A], [PUT_B], [GET]]),
    "closed flag outside the tail": (2, [[PUT_A], [GET], [CLOSE]]),
    "sequence numbers at capacity 1": (1, [[PUT_A], [PUT_B]]),
}
SCHEDULES = 300


@pytest.mark.parametrize("bug", BUGS)
def test_finds_the_bugs_the_core_avoids(bug: str) -> None:
    capacity, programs = BUGS[bug]
    histories = (in_turns(SteppedRing(capacity, bug), programs, random.Random(n)) for n in range(SCHEDULES))
    assert not all(linearizable(events, capacity) for events in histories)


@pytest.mark.parametrize("bug", [*BUGS, "any"])
@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_accepts_the_protocol_without_them(bug: str, capacity: int) -> None:
    mixed: list[list[Call]] = [
        [PUT_A, GET, PUT_B],
        [GET, PUT_C, GET],
        [GET, CLOSE, GET, ("put", "d")],
        [("put", "e"), ("put", "f")],
    ]
    _, programs = BUGS.get(bug, (0, mixed))
    for n in range(SCHEDULES):
        check(in_turns(SteppedRing(capacity), programs, random.Random(n)), capacity)


# ---- RingBuffer ------------------------------------------------------------------------------------------------------

HISTORIES = int(os.environ.get("RINGMILL_HISTORIES") or 50)  # for each of 12 cases, and a tenth for 6 of long ones


@pytest.mark.stress
@pytest.mark.watchdog(120.0 + 0.1 * HISTORIES)
@pytest.mark.usefixtures("switch_interval")
@pytest.mark.parametrize("waits", ["timed", "untimed", "never"])
@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_ring_buffer_is_linearizable(capacity: int, waits: str, seed: int) -> None:
    for n in range(seed, seed + (max(1, HISTORIES // 10) if waits == "never" else HISTORIES)):
        events = record(RingBuffer(capacity), random_programs(n, waits), Closed)
        try:
            check(events, capacity)
        except LinearizabilityError as error:
            raise LinearizabilityError(f"RINGMILL_SEED={n}: {error}") from None


class Faulty:
    """A ring with one fault, once: it loses an item that it took, or gives an item that it gave already."""

    def __init__(self, ring: RingBuffer[Any], fault: str) -> None:
        self.ring = ring
        self.happened = False
        # pop is the atomic step by which one thread gets the fault
        self.lose = [True] if fault == "loses" else []
        self.keep = [True] if fault == "repeats" else []
        self.repeat: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ring, name)

    def put_nowait(self, item: Any) -> None:
        try:
            self.happened = self.lose.pop()
        except IndexError:
            self.ring.put_nowait(item)

    def get_nowait(self) -> Any:
        with suppress(IndexError):
            item = self.repeat.pop()
            self.happened = True
            return item
        item = self.ring.get_nowait()
        with suppress(IndexError):
            self.keep.pop()
            self.repeat.append(item)
        return item


def test_record_ends_with_an_empty_ring() -> None:
    events = record(RingBuffer(2), [[("put", 1)], [("put", 2)]], Closed)
    assert {event.items for event in events if event.verb == "put"} == {(1,), (2,)}
    assert sorted(event.items for event in events if event.thread == 2) == [(), (1,), (2,)]


@pytest.mark.parametrize("fault", ["loses", "repeats"])
def test_finds_a_fault_in_a_recorded_history(fault: str, seed: int) -> None:
    happened = 0
    for n in range(seed, seed + 10):
        ring = Faulty(RingBuffer(2), fault)
        events = record(ring, random_programs(n, "timed"), Closed)
        assert linearizable(events, 2) is not ring.happened, f"RINGMILL_SEED={n}"
        happened += ring.happened
    assert happened


def test_the_recorder_records_what_the_ring_returned() -> None:
    recorder = Recorder(RingBuffer(2), 7, Closed)
    recorder.call("get_nowait")
    recorder.call("put", 1)
    recorder.call("put_many", [2, 3, 4], 0.0)
    recorder.call("put_nowait", 5)
    recorder.call("get", True, 1.0)
    recorder.call("put_many", [6])
    recorder.call("close")
    recorder.call("put_many", [7, 8])
    recorder.call("get_many", 5)
    recorder.call("get", True, 1.0)
    assert [
        (event.verb, event.items, event.result, event.count, event.rest, event.limit) for event in recorder.events
    ] == [
        ("get_nowait", (), EMPTY, None, None, None),
        ("put", (1,), OK, None, None, None),
        ("put_many", (2, 3, 4), FULL, 1, (3, 4), None),
        ("put_nowait", (5,), FULL, None, None, None),
        ("get", (1,), OK, None, None, None),
        ("put_many", (6,), OK, 1, None, None),
        ("close", (), OK, None, None, None),
        ("put_many", (7, 8), CLOSED, 0, (7, 8), None),
        ("get_many", (2, 6), OK, None, None, 5),
        ("get", (), CLOSED, None, None, None),
    ]
    assert all(event.thread == 7 and event.call <= event.ret for event in recorder.events)
