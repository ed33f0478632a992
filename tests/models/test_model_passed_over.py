"""Ready items as a model, searched exhaustively: how a hub's ring passes over full mailboxes and learns of room again.

`signal` searches the set `ready` of the mailboxes that may have room (subscription_ring.pyx). A publisher that finds a
mailbox full passes it over: under the ring's lock it sets the mailbox's flag `passed_over`, checks for room again, and
takes the mailbox out of the set if there still is none. If there is room, it clears the flag, and puts the mailbox into
the set, from where another publisher may have taken it. A thread that takes an item reads the flag afterwards; if it is
1, it puts the mailbox back into the set, under the lock.

Why no room is forgotten. The flag and the mailbox's head are a store and a load on each side, all sequentially
consistent: either the second check sees that an item was taken, or the thread that took it sees the flag.

Why no search misses room of which its caller can know. The second check and the change of the set are in one section
under the lock, and so is the search. So when a search finds the mailbox missing, it was full at some moment, and every
call that has taken an item since then is still under way: those that are over have put it back.

States: one mailbox among others that stay full, with the number of free places; its flag, the set, the lock. Each
access is a step, but a section is one step if no thread can look into it.

Checked: a search that finds no room, though room was there from its beginning to its end by the count of the calls that
had returned when it began, is refused. In the final state, a mailbox with room is in the set, and the flag is 1 exactly
if the mailbox is not; all items are accounted for.

Left out: slots (test_model_ring_slots.py); turns, and the other mailboxes, which are independent of this one; closing
and unsubscribing, which take the mailbox out of the ring for good; forks, after which the set is whole.
"""

from __future__ import annotations

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
)


@dataclass(frozen=True)
class Rules:
    """What the threads do. The defaults are the protocol; each one inverted is a bug, except the last."""

    checks_again: bool = True  # before it takes the mailbox out of the set
    checks_under_lock: bool = True  # else after the change of the set, which it takes back
    check_sets_ready: bool = True  # if it finds room: another publisher may have passed it over before
    flag_before_check: bool = True
    flag_seq_cst: bool = True
    reads_flag_after_taking: bool = True
    reader_sets_ready: bool = True
    drop_sets_ready: bool = False  # the publisher that drops the oldest item; redundant, as it fills the place again


def lock(m: Memory) -> Any:
    if m.lock:
        return BLOCKED
    m.lock = 1
    return None


def set_ready(m: Memory) -> Any:
    """A section under the lock."""
    if m.lock:
        return BLOCKED
    m.ready, m.passed_over = True, 0
    return None


# A publisher.


def offer(m: Memory) -> bool:
    if not m.room:
        return False
    m.room -= 1
    m.put += 1
    return True


def search(began_after: int, m: Memory) -> Any:
    """next_ready: a section under the lock."""
    if m.lock:
        return BLOCKED
    if not m.ready and m.put - began_after < m.capacity:
        raise ViolationError("the search misses room that was there all the time")
    return m.ready


def pass_over(rules: Rules) -> Thread:
    yield Step("locks the ring", lock)
    if rules.flag_before_check:
        yield Store("passed_over", 1, buffered=not rules.flag_seq_cst)
    if rules.checks_again and rules.checks_under_lock and (yield Load("room")):
        if rules.check_sets_ready:
            yield Store("ready", True)
        yield Store("passed_over", 0)
    else:
        if not rules.flag_before_check:
            yield Store("passed_over", 1)
        yield Store("ready", False)
    yield Store("lock", 0)
    if rules.checks_again and not rules.checks_under_lock and (yield Load("room")):
        yield Step("sets it ready again", set_ready)


def signaller(rules: Rules, policy: str) -> Thread:
    began_after = yield Load("returned")
    while (yield Step("searches", partial(search, began_after))):
        if (yield Step("offers", offer)):
            return
        yield from pass_over(rules)
    if policy == "drop_oldest":
        while not (yield Step("offers", offer)):
            dropped = yield Step("takes the oldest", take)
            if dropped and rules.drop_sets_ready and (yield Load("passed_over")):
                yield Step("sets it ready", set_ready)


def broadcaster(rules: Rules) -> Thread:
    yield Step("offers", offer)


# A reader.


def take(m: Memory) -> bool:
    if m.room == m.capacity:
        return False
    m.room += 1
    m.taken += 1
    return True


def get(rules: Rules) -> Thread:
    flag = 0 if rules.reads_flag_after_taking else (yield Load("passed_over"))
    if not (yield Step("takes", take)):
        return
    if rules.reads_flag_after_taking:
        flag = yield Load("passed_over")
    if flag and rules.reader_sets_ready:
        yield Step("sets it ready", set_ready)
    yield Step("returns", returns)


def returns(m: Memory) -> None:
    m.returned += 1


def calls(rules: Rules, letters: str) -> Thread:
    """s signals, d signals and drops the oldest if there is no room, b broadcasts, g gets."""
    while letters:
        if letters[0] == "g":
            yield from get(rules)
        elif letters[0] == "b":
            yield from broadcaster(rules)
        else:
            yield from signaller(rules, "drop_oldest" if letters[0] == "d" else "raise")
        letters = letters[1:]


# What must hold.


def at_rest(m: Memory, unfinished: frozenset[str]) -> str | None:
    if unfinished:
        return f"blocked without end: {', '.join(sorted(unfinished))}"
    if m.room and not m.ready:
        return "a mailbox with room stays passed over"
    if m.passed_over == m.ready or m.lock:
        return f"left: passed_over {m.passed_over}, ready {m.ready}, lock {m.lock}"
    if m.put != m.taken + m.capacity - m.room:
        return f"{m.put} were put, {m.taken} taken, {m.capacity - m.room} are left"
    return None


@cache
def explored(rules: Rules, scenario: str, capacity: int, empty: bool = False) -> Report:
    """Each word is a thread's calls, one after the other. The mailbox is full at first, unless `empty`."""
    items = 0 if empty else capacity
    memory: dict[str, Any] = {
        "capacity": capacity, "room": capacity - items, "put": items, "taken": 0, "returned": 0, "passed_over": 0,
        "ready": True, "lock": 0,
    }
    threads: dict[str, ThreadFunction] = {
        f"{word}.{number}": partial(calls, rules, word) for number, word in enumerate(scenario.split())
    }
    return explore(memory, threads, at_rest=at_rest)


SCENARIOS = [
    ("s g", 1, 20),
    ("s gs", 1, 50),
    ("ss gg", 1, 100),
    ("ss gs", 1, 100),
    ("s s gs", 1, 500),
    ("s gs gs", 1, 1_000),
    ("ss gs g", 2, 500),
    ("d gs g", 1, 500),
    ("d d gs", 1, 500),
    ("d d g", 2, 300),
    ("sb gs g", 1, 300),
    ("s b gs gs", 2, 1_000),
]


@pytest.mark.parametrize("drop_sets_ready", [False, True])
@pytest.mark.parametrize(("scenario", "capacity", "at_least"), SCENARIOS)
def test_no_room_is_missed_or_forgotten(scenario: str, capacity: int, at_least: int, drop_sets_ready: bool) -> None:
    assert_holds(explored(Rules(drop_sets_ready=drop_sets_ready), scenario, capacity), at_least)


@pytest.mark.parametrize(("scenario", "capacity"), [("ss g", 1), ("sss gs g", 2), ("d s gs", 1)])
def test_the_same_from_an_empty_mailbox(scenario: str, capacity: int) -> None:
    assert_holds(explored(Rules(), scenario, capacity, empty=True), 50)


FORGOTTEN = "stays passed over"
MISSED = "misses room"


@pytest.mark.parametrize(
    ("bug", "scenario", "finding"),
    [
        pytest.param("checks_again", "s g", FORGOTTEN, id="no-second-check"),
        pytest.param("checks_under_lock", "s gs", MISSED, id="second-check-after-the-change-of-the-set"),
        pytest.param("check_sets_ready", "s s g", FORGOTTEN, id="second-check-leaves-it-out-of-the-set"),
        pytest.param("flag_before_check", "s g", FORGOTTEN, id="flag-after-the-second-check"),
        pytest.param("flag_seq_cst", "s g", FORGOTTEN, id="flag-buffered-past-the-second-check"),
        pytest.param("reads_flag_after_taking", "s g", FORGOTTEN, id="flag-read-before-taking"),
        pytest.param("reader_sets_ready", "s g", FORGOTTEN, id="reader-does-not-set-it-ready"),
    ],
)
def test_each_bug_is_found(bug: str, scenario: str, finding: str) -> None:
    broken = explored(replace(Rules(), **{bug: False}), scenario, 1)
    assert_found(broken, finding, explored(Rules(), scenario, 1))
