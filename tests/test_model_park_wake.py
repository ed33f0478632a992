"""Sleep and wake, as a model that is searched whole: waiter.pyx and the ring's blocking calls, without the ring's slots.

Why no wake-up is lost. A getter that finds the ring empty first makes itself a sleeper (writes the word), then looks at the
ring once more; a putter first claims (writes the tail), then looks at the word. All four accesses are sequentially
consistent, so at least one of the two sees the other: the getter sees the item and takes itself off the list, or the putter
sees the sleeper.

Why it is enough to wake one, and only when nobody is searching. "Searching" is a debt: the one who is woken, or is granted a
wake-up while it leaves, owes a look at the ring *after* it has stopped searching. It pays in one of three ways: it goes back
to sleep (it becomes a sleeper and stops searching in one step, and then looks); it takes an item (it stops searching, then
looks, and wakes the next if there is more); it gives up (the same, without an item). So a putter that skips the wake-up
because somebody is searching knows that this somebody will look later than the putter's claim. And a grant is given under
the lock, which asks again whether there is a sleeper and no searcher; so two wakers never make two searchers.

Why a close strands nobody. The closed bit is set in the tail word before all sleepers are popped. A getter that was on
the list by then is woken; one that comes later looks after that, and sees the bit. After a close nobody stays asleep, so
the searchers that it makes owe nothing to anyone. Why a close loses no item: the bit is in the word that puts claim, so no
claim follows it, and who sees "closed and empty" has seen the last item go.

Putters that wait for room do the same on a second queue, with "room" for "item".

The ring is its two counters here, each try is one step; test_models.py searches the slots, and shows that a try is one
step. A section under the queue's lock is one step, too, except where `spelled_out`: nobody else sees what is between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest

from tests.explorer import BLOCKED, Choice, Load, Memory, Report, Step, Store, Thread, ThreadFunction, Violation, explore


@dataclass(frozen=True)
class Rules:
    """What the threads do. As it stands, the protocol; all but `fine` turned over are bugs."""

    looks_before_parking: bool = True
    searcher_looks_before_parking: bool = True
    last_look_sees_closed: bool = True
    leaver_takes_grant: bool = True  # who leaves and was granted meanwhile is a searcher, and ends its search
    leaver_drains_semaphore: bool = True
    leaver_passes_on: bool = True
    taker_passes_on: bool = True
    stops_search_before_looking: bool = True
    grant_asks_again: bool = True
    close_wakes_all: bool = True
    closed_bit_in_tail: bool = True
    fine: bool = False  # each load and store is a step of its own, the lock is a variable, its release is buffered
    word_seq_cst: bool = True  # fine only: the stores to the word
    claim_seq_cst: bool = True  # with one putter only: its claim in the tail word


class Waiting(NamedTuple):
    """A WaitQueue: the word, and the list that it counts."""

    sleepers: int = 0
    searchers: int = 0
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """One end of the ring: what gets and puts do differently."""

    verb: str
    waits: str  # the queue it sleeps on
    wakes: str  # the queue whose sleepers its success may wake
    possible: Callable[[int, int], bool]  # head word, tail word -> is there an item (room)?


CAPACITY = 1
GET = Side("get", "not_empty", "not_full", lambda head, tail: tail >> 1 > head)
PUT = Side("put", "not_full", "not_empty", lambda head, tail: (tail >> 1) - head < CAPACITY)


def is_closed(m: Memory) -> bool:
    return bool(m.tail & 1 or m.flag)


def attempt(rules: Rules, side: Side) -> Thread:
    """Tries once: "done", "closed" or "no". The tail word is twice the count, plus the closed bit."""
    if side is PUT and not rules.claim_seq_cst:
        yield Store("tail", (yield Load("tail")) + 2, buffered=True)
        return "done"
    if side is PUT and (yield Load("flag")):
        return "closed"
    if not rules.fine:
        return (yield Step(side.verb, partial(attempt_at_once, side)))
    while True:
        if side is GET:  # the position that this side claims is read first
            head = yield Load("head")
            tail = yield Load("tail")
        else:
            tail = yield Load("tail")
            head = yield Load("head")
        if side is PUT and tail & 1:
            return "closed"
        if not side.possible(head, tail):
            return "closed" if tail & 1 else "no"
        if (yield Step(f"{side.verb} claims", partial(claim, side, head, tail))):
            return "done"


def attempt_at_once(side: Side, m: Memory) -> str:
    if m.tail & 1 and side is PUT:
        return "closed"
    if not side.possible(m.head, m.tail):
        return "closed" if is_closed(m) else "no"
    claim(side, m.head, m.tail, m)
    return "done"


def claim(side: Side, head: int, tail: int, m: Memory) -> bool:
    """The compare-and-swap."""
    if (m.head if side is GET else m.tail) != (head if side is GET else tail):
        return False
    if side is GET:
        m.head += 1
    else:
        m.tail += 2
    return True


def look(rules: Rules, side: Side, *, closed_counts: bool) -> Thread:
    """Is there an item (room)? For a last look before sleep, a close is as good a reason to stay awake."""
    if not rules.fine:
        return (
            yield Step(
                f"looks for {side.verb}", lambda m: side.possible(m.head, m.tail) or (closed_counts and is_closed(m))
            )
        )
    head = yield Load("head")
    tail = yield Load("tail")
    return side.possible(head, tail) or (closed_counts and bool(tail & 1))


def section(rules: Rules, queue: str, label: str, edit: Callable[[Waiting], tuple[Waiting, Any]]) -> Thread:
    """Changes a wait queue under its lock."""
    if not rules.fine:
        return (yield Step(f"{label} {queue}", partial(apply, queue, edit)))
    yield Step(f"locks {queue} to {label}", partial(acquire, f"{queue}_lock"))
    changed, result = edit((yield Load(queue)))
    yield Store(queue, changed, buffered=not rules.word_seq_cst)
    yield Store(f"{queue}_lock", 0, buffered=True)
    return result


def apply(queue: str, edit: Callable[[Waiting], tuple[Waiting, Any]], m: Memory) -> Any:
    changed, result = edit(getattr(m, queue))
    setattr(m, queue, changed)
    return result


def acquire(lock: str, m: Memory) -> Any:
    if getattr(m, lock):
        return BLOCKED
    setattr(m, lock, 1)
    return None


def post(me: str) -> Step:
    """Releases a thread's semaphore: the waker's last touch of it."""

    def run(m: Memory) -> None:
        if me in m.posted:
            raise Violation(f"the semaphore of {me} is released twice")
        m.posted |= {me}

    return Step(f"wakes {me}", run)


def park(me: str) -> Step:
    def run(m: Memory) -> Any:
        if me not in m.posted:
            return BLOCKED
        m.posted -= {me}
        return "woken"

    return Step("parked", run)


def timeout() -> Step:
    return Step("parked", lambda m: "timeout")


# The edits under the lock.


def begin_sleep(me: str, stop_searching: bool, w: Waiting) -> tuple[Waiting, None]:
    if me in w.nodes:
        raise Violation(f"{me} is on the list already")
    return Waiting(w.sleepers + 1, w.searchers - stop_searching, (*w.nodes, me)), None


def leave(me: str, w: Waiting) -> tuple[Waiting, bool]:
    if me not in w.nodes:
        return w, False
    return Waiting(w.sleepers - 1, w.searchers, tuple(node for node in w.nodes if node != me)), True


def stop_searching(w: Waiting) -> tuple[Waiting, None]:
    return w._replace(searchers=w.searchers - 1), None


def grant(ask_again: bool, w: Waiting) -> tuple[Waiting, str | None]:
    if ask_again and not (w.sleepers > 0 and w.searchers == 0):
        return w, None
    return Waiting(w.sleepers - 1, w.searchers + 1, w.nodes[1:]), w.nodes[0] if w.nodes else None


def grant_everyone(w: Waiting) -> tuple[Waiting, tuple[str, ...]]:
    return Waiting(0, w.searchers + len(w.nodes)), w.nodes


def grant_first(w: Waiting) -> tuple[Waiting, tuple[str, ...]]:
    return Waiting(len(w.nodes[1:]), w.searchers + len(w.nodes[:1]), w.nodes[1:]), w.nodes[:1]


# The threads.


def wake(rules: Rules, queue: str) -> Thread:
    """Wakes one sleeper if there is one and nobody is searching."""
    word = yield Load(queue)
    if word.sleepers > 0 and word.searchers == 0:
        woken = yield from section(rules, queue, "grant", partial(grant, rules.grant_asks_again))
        if woken is not None:
            yield post(woken)


def end_search(rules: Rules, side: Side, passes_on: bool) -> Thread:
    """Stops searching, then looks whether there is something for the next one."""
    more = False
    if passes_on and not rules.stops_search_before_looking:
        more = yield from look(rules, side, closed_counts=False)
    yield from section(rules, side.waits, "stop searching", stop_searching)
    if passes_on and rules.stops_search_before_looking:
        more = yield from look(rules, side, closed_counts=False)
    if more:
        yield from wake(rules, side.waits)


def cancel_sleep(rules: Rules, side: Side, me: str) -> Thread:
    """Leaves the list; True if a wake-up was granted meanwhile: then the thread is a searcher."""
    left = yield from section(rules, side.waits, "leave", partial(leave, me))
    if left:
        return False
    if rules.leaver_drains_semaphore:
        yield park(me)
    return rules.leaver_takes_grant


def operate(rules: Rules, side: Side, me: str, patient: bool) -> Thread:
    """One blocking get or put: "done", "closed", or "timeout" where not patient."""
    searching = False
    while True:
        got = yield from attempt(rules, side)
        if got != "no":
            if searching:
                yield from end_search(rules, side, rules.taker_passes_on)
            if got == "done":
                yield from wake(rules, side.wakes)
            return got
        looks = rules.looks_before_parking and (rules.searcher_looks_before_parking or not searching)
        yield from section(rules, side.waits, "sleep on", partial(begin_sleep, me, searching))
        searching = False
        if looks and (yield from look(rules, side, closed_counts=rules.last_look_sees_closed)):
            searching = yield from cancel_sleep(rules, side, me)
            continue
        if (yield park(me) if patient else Choice((park(me), timeout()))) == "woken":
            searching = True
            continue
        if (yield from cancel_sleep(rules, side, me)):
            yield from end_search(rules, side, rules.leaver_passes_on)
        return "timeout"


def caller(rules: Rules, side: Side, me: str, patient: bool, rounds: int | None) -> Thread:
    """Calls `rounds` times, or until closed; counts what it got."""
    done = 0
    while rounds is None or done < rounds:
        got = yield from operate(rules, side, me, patient)
        yield Step("returns", partial(account, side, got))
        if got == "closed":
            return
        done += 1


def account(side: Side, got: str, m: Memory) -> None:
    """Ghost state: no thread looks at it."""
    if got == "done":
        m.returned = (m.returned[0] + (side is GET), m.returned[1] + (side is PUT))
    if got == "closed" and side is GET:
        m.end_seen = True


def closer(rules: Rules) -> Thread:
    def set_bit(m: Memory) -> None:
        m.tail |= 1

    if rules.closed_bit_in_tail:
        yield Step("sets the closed bit", set_bit)
    else:
        yield Store("flag", True)
    yield from wake_all(rules, "not_empty")
    yield from wake_all(rules, "not_full")


def wake_all(rules: Rules, queue: str) -> Thread:
    nodes = yield from section(rules, queue, "grant all", grant_everyone if rules.close_wakes_all else grant_first)
    while nodes:
        yield post(nodes[0])
        nodes = nodes[1:]


# What must hold.


def invariant(m: Memory) -> str | None:
    for queue, w in (("not_empty", m.not_empty), ("not_full", m.not_full)):
        if w.sleepers != len(w.nodes):
            return f"{queue} counts {w.sleepers} sleepers and lists {w.nodes}"
        if w.searchers < 0 or (w.searchers > 1 and not is_closed(m)):
            return f"{queue} has {w.searchers} searchers"
    return None


def at_rest(m: Memory, unfinished: frozenset[str]) -> str | None:
    """Asleep is right only on a ring that is open and has nothing for the sleeper."""
    for side, w in ((GET, m.not_empty), (PUT, m.not_full)):
        if w.nodes and is_closed(m):
            return f"asleep on a closed ring: {w.nodes}"
        if w.nodes and side.possible(m.head, m.tail):
            return f"lost wake-up: {side.verb} is possible, and nobody wakes {w.nodes}"
        if w.searchers:
            return f"{w.searchers} still count as searching on {side.waits}"
        unfinished -= {*w.nodes}
    if unfinished:
        return f"blocked for ever, and no sleeper: {', '.join(sorted(unfinished))}"
    if m.posted:
        return f"semaphores left released: {sorted(m.posted)}"
    if m.returned != (m.head, m.tail >> 1):
        return f"calls returned {m.returned}, the ring counted {(m.head, m.tail >> 1)}"
    if m.end_seen and m.head != m.tail >> 1:
        return "lost item: a getter saw the end, then an item went in"
    return None


MEMORY: Mapping[str, Any] = {
    "head": 0,
    "tail": 0,
    "flag": False,
    "not_empty": Waiting(),
    "not_full": Waiting(),
    "not_empty_lock": 0,
    "not_full_lock": 0,
    "posted": frozenset(),
    "returned": (0, 0),
    "end_seen": False,
}


def search(rules: Rules, cast: str) -> Report:
    """Explores a cast: G a get, P a put; digits: so many calls each; * until closed; ? may time out; X a close."""
    threads: dict[str, ThreadFunction] = {}
    for i, word in enumerate(cast.split()):
        me = f"{word}.{i}"
        if word == "X":
            threads[me] = partial(closer, rules)
        else:
            rounds = None if "*" in word else int(word[1:].rstrip("?") or 1)
            threads[me] = partial(caller, rules, GET if word[0] == "G" else PUT, me, "?" not in word, rounds)
    return explore(MEMORY, threads, invariant=invariant, at_rest=at_rest)
