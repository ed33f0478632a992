"""Retries and the single searcher, as a model that is searched exhaustively, on the wait queue's protocol.

A retry is for certain workers. The thread that queues one appends it under the pool's lock and writes the count, then
wakes one sleeping worker that may take it, by name, whether or not another is searching: the searcher may be a worker
that may not take it, so the rule of the single searcher does not apply. If no eligible worker sleeps, each of them is
awake, and reads the count before it sleeps; that check comes after begin_sleep, so it is seen by the thread that
walked the list before. An operation that any worker may take follows the plain rule: one is woken unless one searches.

A worker that is woken for its retry and finds it taken is a searcher like any other, and owes the check of a
searcher. A worker comes back for its next operation by itself, so here that check only keeps the others busy; for
threads that do not come back, test_model_park_wake.py shows why it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

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
    assert_found,
    assert_holds,
    explore,
    park,
    post,
)
from tests.models.test_model_close import grant_everyone
from tests.models.test_model_park_wake import Rules as Sleeping
from tests.models.test_model_park_wake import Waiting, begin_sleep, leave, stop_searching, under_lock, wake


@dataclass(frozen=True)
class Rules:
    """What the threads do. As it stands, the protocol; each turned over is a bug."""

    wakes_by_name: bool = True  # else as any item: one, unless one searches
    publishes_before_waking: bool = True
    looks_aside_before_parking: bool = True  # the last look sees the count
    last_look_after_begin_sleep: bool = True
    count_seq_cst: bool = True  # the store of the count
    ends_wake_all: bool = True


class Aside(NamedTuple):
    """Who may take it."""

    workers: frozenset[str]


edit = partial(under_lock, "idle")
notify = partial(wake, Sleeping(), "idle")  # one, unless one searches


def grant_by_name(name: str, w: Waiting) -> tuple[Waiting, str | None]:
    left, found = leave(name, w)
    return (left._replace(searchers=w.searchers + 1), name) if found else (w, None)


# A worker.

def take(me: str, sees_aside: bool) -> Thread:
    """One attempt: "retry", "item", "end" or "no". Its parts are one step where nothing can come between."""
    got = yield Step("looks aside", partial(take_retry_for, me) if sees_aside else not_aside)
    return got if got is not None else (yield Step("takes", take_item))


def not_aside(m: Memory) -> None:
    pass


def take_retry_for(me: str, m: Memory) -> str | None:
    """The count is read without the lock: while it is 0, no worker looks at the list."""
    for k, record in enumerate(m.side if m.count else ()):
        if me in record.workers:
            m.side = m.side[:k] + m.side[k + 1 :]
            m.count = len(m.side)
            m.done += 1
            return "retry"
    return None


def take_item(m: Memory) -> str:
    if m.items:
        m.items -= 1
        m.done += 1
        return "item"
    return "end" if m.over else "no"


def worker(rules: Rules, me: str) -> Thread:
    """Works until the pool ends: wait_for in a loop, with take as its attempt."""
    while True:
        searching = owes = False
        while True:
            got = yield from take(me, True)
            if got != "no":
                break
            if not rules.last_look_after_begin_sleep:
                got = yield from take(me, rules.looks_aside_before_parking)
                if got != "no":
                    break
            yield edit("begins to sleep", partial(begin_sleep, me, searching))
            searching = False
            if rules.last_look_after_begin_sleep:
                got = yield from take(me, rules.looks_aside_before_parking)
                if got != "no":
                    granted = not (yield edit("leaves", partial(leave, me)))
                    if granted:
                        yield park(me)
                        searching = True
                        granted = False
                    break
            owes = False
            got = ""  # as if it were not there: it makes no two states of one
            yield park(me)
            searching = owes = True
        if searching:
            yield edit("ends its search", stop_searching)
        if (searching or owes) and (yield Step("looks for more", lambda m: bool(m.items or m.count))):
            yield from notify()
        if got == "end":
            return
        got = ""


# Those who give them work. The last of them ends the pool, when all is done.

def retrier(rules: Rules, eligible: tuple[str, ...]) -> Thread:
    if not rules.publishes_before_waking:
        yield from wake_eligible(rules, eligible)
    if rules.count_seq_cst:
        yield Step("puts one aside", partial(put_aside, True, frozenset(eligible)))
    else:
        size = yield Step("puts one aside", partial(put_aside, False, frozenset(eligible)))
        yield Store("count", size, buffered=True)
    if rules.publishes_before_waking:
        yield from wake_eligible(rules, eligible)


def put_aside(counts: bool, eligible: frozenset[str], m: Memory) -> int:
    m.side = (*m.side, Aside(eligible))
    if counts:
        m.count = len(m.side)
    return len(m.side)


def wake_eligible(rules: Rules, eligible: tuple[str, ...]) -> Thread:
    if not rules.wakes_by_name:
        yield from notify()
        return
    k = 0
    while k < len(eligible):
        # A load first, as the lock's own read is: a worker that is not in the list then is awake, and looks.
        if eligible[k] in (yield Load("idle")).nodes:
            woken = yield edit("grants by name", partial(grant_by_name, eligible[k]))
            if woken is not None:
                yield post(woken)
                return
        k += 1


def putter() -> Thread:
    yield Step("puts", put_item)
    yield from notify()


def put_item(m: Memory) -> None:
    m.items += 1


def ender(rules: Rules, total: int) -> Thread:
    yield Step("waits for the work to be done", lambda m: None if m.done == total else BLOCKED)
    yield Store("over", True)
    if rules.ends_wake_all:
        woken = yield edit("grants all", grant_everyone)
        while woken:
            yield post(woken[0])
            woken = woken[1:]
    else:
        yield from notify()


def at_rest(m: Memory, unfinished: frozenset[str]) -> str | None:
    if m.side or m.items:
        return f"lost wake-up: {len(m.side)} aside, {m.items} in the queue, asleep: {m.idle.nodes}"
    if unfinished:
        return f"waits forever: {', '.join(sorted(unfinished))}"
    if m.posted or m.idle != Waiting():
        return f"left: {m.posted}, {m.idle}"
    return None


@cache
def search(rules: Rules, workers: str, work: str) -> Report:
    """`work`: p puts an item; a word of workers puts a retry aside for those."""
    memory: dict[str, Any] = {
        "idle": Waiting(), "posted": frozenset(), "side": (), "count": 0, "items": 0, "done": 0, "over": False,
    }
    threads: dict[str, ThreadFunction] = {name: partial(worker, rules, name) for name in workers}
    for i, word in enumerate(work.split()):
        threads[f"{word}.{i}"] = putter if word == "p" else partial(retrier, rules, tuple(word))
    threads["end"] = partial(ender, rules, len(work.split()))
    return explore(memory, threads, at_rest=at_rest)


@pytest.mark.parametrize(
    ("workers", "work", "at_least"),
    [
        ("A", "A", 200),
        ("A", "A p", 2_000),
        ("AB", "A", 5_000),
        ("AB", "A p", 100_000),
    ],
)
def test_no_eligible_worker_sleeps_while_a_retry_is_queued(workers: str, work: str, at_least: int) -> None:
    assert_holds(search(Rules(), workers, work), at_least)


@pytest.mark.parametrize(
    ("bug", "workers", "work", "finding"),
    [
        pytest.param("wakes_by_name", "AB", "A", "lost wake-up", id="wakes-any-thread"),
        pytest.param("publishes_before_waking", "AB", "A", "lost wake-up", id="wakes-then-publishes"),
        pytest.param("looks_aside_before_parking", "AB", "A", "lost wake-up", id="last-look-blind-to-retries"),
        pytest.param("last_look_after_begin_sleep", "AB", "A", "lost wake-up", id="looks-then-begins-to-sleep"),
        pytest.param("count_seq_cst", "AB", "A", "lost wake-up", id="count-buffered-past-the-look-at-the-list"),
        pytest.param("ends_wake_all", "AB", "p", "waits forever", id="the-end-wakes-one"),
    ],
)
def test_each_bug_is_found(bug: str, workers: str, work: str, finding: str) -> None:
    assert_found(search(replace(Rules(), **{bug: False}), workers, work), finding, search(Rules(), workers, work))
