"""Retries and the single searcher, as a model that is searched exhaustively, on the wait queue's protocol.

A retry is for certain workers. The thread that queues one appends it under the pool's lock and writes the count, then
wakes the first sleeping worker that may take it (notify_matching), whether or not another is searching: the searcher
may be a worker that may not take it, so the rule of the single searcher does not apply. If no eligible worker sleeps,
each of them is awake, and reads the count before it sleeps; that check comes after begin_sleep, so it is seen by the
thread that walked the list before. An operation that any worker may take follows the plain rule: one is woken unless
one searches.

Cursors. A worker does not look twice at a retry that is not for it. A worker that tried it may take it while the others
wait for work of the pool. So the thread of a worker that begins to wait raises the review, under the pool's lock, which
sends all cursors back to the first, if a retry is queued that it might have taken itself; and then wakes all. A thread
that queues a retry asks under that lock, after it has queued it, whether those that tried it may take it; if the other
worker begins to wait after that, it finds the retry in the queue.

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

    wakes_matching: bool = True  # else as any item: one, unless one searches
    publishes_before_waking: bool = True
    looks_aside_before_parking: bool = True  # the last look sees the count
    last_look_after_begin_sleep: bool = True
    count_seq_cst: bool = True  # the store of the count
    ends_wake_all: bool = True
    wait_raises_review: bool = True  # else those that have passed over a retry do not look at it again
    review_wakes_all: bool = True
    reviews_before_waking: bool = True
    asks_after_queueing: bool = True  # whether those that tried it may take it
    cursors_move_back: bool = True  # those behind a retry that leaves the queue


class Aside(NamedTuple):
    """Who may take it, and who may if all of those wait."""

    workers: frozenset[str]
    tried: frozenset[str] = frozenset()


class Cursor(NamedTuple):
    """How many of the first retries a worker has passed over, in which review."""

    worker: str
    review: int
    passed: int


edit = partial(under_lock, "idle")
notify = partial(wake, Sleeping(), "idle")  # one, unless one searches


def grant_matching(eligible: frozenset[str], w: Waiting) -> tuple[Waiting, str | None]:
    found = [name for name in w.nodes if name in eligible]
    if not found:
        return w, None
    return leave(found[0], w)[0]._replace(searchers=w.searchers + 1), found[0]


# A worker.

def take(rules: Rules, me: str, sees_aside: bool) -> Thread:
    """One attempt: "retry", "item", "end" or "no". Its parts are one step where nothing can come between."""
    got = yield Step("looks aside", partial(take_retry_for, rules, me) if sees_aside else not_aside)
    return got if got is not None else (yield Step("takes", take_item))


def not_aside(m: Memory) -> None:
    pass


def take_retry_for(rules: Rules, me: str, m: Memory) -> str | None:
    """The count is read without the lock: while it is 0, no worker looks at the list."""
    if not m.count:
        return None
    own = [cursor for cursor in m.cursors if cursor.worker == me and cursor.review == m.review]
    k = own[0].passed if own else 0
    while k < len(m.side) and me not in takers(m, m.side[k]):
        k += 1
    cursors = [*(cursor for cursor in m.cursors if cursor.worker != me), Cursor(me, m.review, k)]
    if k < len(m.side):
        m.side = m.side[:k] + m.side[k + 1 :]
        m.count = len(m.side)
        m.done += 1
        if rules.cursors_move_back:
            cursors = [cursor._replace(passed=cursor.passed - (cursor.passed > k)) for cursor in cursors]
        m.cursors = tuple(sorted(cursors))
        return "retry"
    m.cursors = tuple(sorted(cursors))
    return None


def takers(m: Memory, record: Aside) -> frozenset[str]:
    return record.workers if record.workers - m.waiting else record.workers | record.tried


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
            got = yield from take(rules, me, True)
            if got != "no":
                break
            if not rules.last_look_after_begin_sleep:
                got = yield from take(rules, me, rules.looks_aside_before_parking)
                if got != "no":
                    break
            yield edit("begins to sleep", partial(begin_sleep, me, searching))
            searching = False
            if rules.last_look_after_begin_sleep:
                got = yield from take(rules, me, rules.looks_aside_before_parking)
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

def retrier(rules: Rules, record: Aside) -> Thread:
    eligible = record.workers
    if record.tried and not rules.asks_after_queueing:
        eligible = yield Step("asks who may take it", partial(takers_of, record))
    if not rules.publishes_before_waking:
        yield from wake_eligible(rules, eligible)
    if rules.count_seq_cst:
        yield Step("puts one aside", partial(put_aside, True, record))
    else:
        size = yield Step("puts one aside", partial(put_aside, False, record))
        yield Store("count", size, buffered=True)
    if record.tried and rules.asks_after_queueing:
        eligible = yield Step("asks who may take it", partial(takers_of, record))
    if rules.publishes_before_waking:
        yield from wake_eligible(rules, eligible)


def takers_of(record: Aside, m: Memory) -> frozenset[str]:
    return takers(m, record)


def put_aside(counts: bool, record: Aside, m: Memory) -> int:
    m.side = (*m.side, record)
    if counts:
        m.count = len(m.side)
    return len(m.side)


def wake_eligible(rules: Rules, eligible: frozenset[str]) -> Thread:
    if not rules.wakes_matching:
        yield from notify()
        return
    # A load first, as the lock's own read is: a worker that is not in the list then is awake, and looks.
    if (yield Load("idle")).nodes:
        woken = yield edit("grants a match", partial(grant_matching, eligible))
        if woken is not None:
            yield post(woken)


def waiter(rules: Rules, me: str) -> Thread:
    """A worker that begins to wait in `process`, until all that is queued is done."""
    if not rules.reviews_before_waking:
        yield from wake_everyone()
    deferred = yield Step("begins to wait", partial(begin_wait, me, rules.wait_raises_review))
    if deferred and rules.review_wakes_all and rules.reviews_before_waking:
        yield from wake_everyone()


def begin_wait(me: str, raises_review: bool, m: Memory) -> bool:
    deferred = any(me in record.workers for record in m.side)
    m.waiting |= {me}
    m.review += deferred and raises_review
    return deferred


def wake_everyone() -> Thread:
    woken = yield edit("grants all", grant_everyone)
    while woken:
        yield post(woken[0])
        woken = woken[1:]


def putter() -> Thread:
    yield Step("puts", put_item)
    yield from notify()


def put_item(m: Memory) -> None:
    m.items += 1


def ender(rules: Rules, total: int) -> Thread:
    yield Step("waits for the work to be done", lambda m: None if m.done == total else BLOCKED)
    yield Store("over", True)
    if rules.ends_wake_all:
        yield from wake_everyone()
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
    """`work`: p puts an item; a word of workers puts a retry aside for those, after a slash those that tried it.

    -X: the worker X, which is busy, begins to wait.
    """
    memory: dict[str, Any] = {
        "idle": Waiting(), "posted": frozenset(), "side": (), "count": 0, "items": 0, "done": 0, "over": False,
        "cursors": (), "review": 0, "waiting": frozenset(),
    }  # fmt: skip
    threads: dict[str, ThreadFunction] = {name: partial(worker, rules, name) for name in workers}
    total = 0
    for i, word in enumerate(work.split()):
        if word.startswith("-"):
            threads[f"{word}.{i}"] = partial(waiter, rules, word[1:])
            continue
        total += 1
        first, _, tried = word.partition("/")
        record = Aside(frozenset(first), frozenset(tried))
        threads[f"{word}.{i}"] = putter if word == "p" else partial(retrier, rules, record)
    threads["end"] = partial(ender, rules, total)
    return explore(memory, threads, at_rest=at_rest)


@pytest.mark.parametrize(
    ("workers", "work", "at_least"),
    [
        ("A", "A", 200),
        ("A", "A p", 2_000),
        ("AB", "A", 5_000),
        ("AB", "A p", 100_000),
        ("A", "W/A -W", 300),
        ("A", "W/A W/A -W", 3_000),
        ("A", "W/A p -W", 3_000),
        ("AB", "W/A -W", 5_000),
        ("A", "VW/A -W -V", 3_000),
    ],
)
def test_no_eligible_worker_sleeps_while_a_retry_is_queued(workers: str, work: str, at_least: int) -> None:
    assert_holds(search(Rules(), workers, work), at_least)


@pytest.mark.parametrize(
    ("bug", "workers", "work", "finding"),
    [
        pytest.param("wakes_matching", "AB", "A", "lost wake-up", id="wakes-any-thread"),
        pytest.param("publishes_before_waking", "AB", "A", "lost wake-up", id="wakes-then-publishes"),
        pytest.param("looks_aside_before_parking", "AB", "A", "lost wake-up", id="last-look-blind-to-retries"),
        pytest.param("last_look_after_begin_sleep", "AB", "A", "lost wake-up", id="looks-then-begins-to-sleep"),
        pytest.param("count_seq_cst", "AB", "A", "lost wake-up", id="count-buffered-past-the-look-at-the-list"),
        pytest.param("ends_wake_all", "AB", "p", "waits forever", id="the-end-wakes-one"),
        pytest.param("wait_raises_review", "A", "W/A -W", "lost wake-up", id="cursors-stay-when-another-waits"),
        pytest.param("review_wakes_all", "A", "W/A -W", "lost wake-up", id="a-review-wakes-none"),
        pytest.param("reviews_before_waking", "A", "W/A -W", "lost wake-up", id="wakes-then-reviews"),
        pytest.param("asks_after_queueing", "A", "W/A -W", "lost wake-up", id="asks-then-queues"),
        pytest.param("cursors_move_back", "AB", "B A", "lost wake-up", id="cursors-stay-when-one-before-them-is-taken"),
    ],
)
def test_each_bug_is_found(bug: str, workers: str, work: str, finding: str) -> None:
    assert_found(search(replace(Rules(), **{bug: False}), workers, work), finding, search(Rules(), workers, work))
