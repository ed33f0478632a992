"""Sleeping and waking, as a model that is searched exhaustively: wait_queue.pyx and the ring's blocking calls.

Why no wake-up is lost. A getter that finds the ring empty first registers as a sleeper (writes the word), then checks
the ring again; a putter first claims a slot (writes the tail), then reads the word. All four accesses are
sequentially consistent, so at least one of the two sees the other: the getter sees the item and leaves the queue, or
the putter sees the sleeper.

Why it is enough to wake one thread, and only if no thread is searching. A searcher owes a check: a putter that skips
the wake-up because another thread is searching relies on that searcher checking the ring later than the putter's
claim, *after* it has stopped counting as a searcher, and acting on what it sees. A thread that is woken, or that is
granted a wake-up while it leaves, owes such a check. The check is done when it finds nothing, or finds something and
wakes the next thread. A searcher that goes back to sleep becomes a sleeper and stops searching in one step, then
checks the ring; if it sees items and so does not sleep, the check is still owed: it takes one item, and has to check
for others before it returns, although it is no longer a searcher. (The first version of the protocol forgot that, and
this model found it: `debt_outlives_sleep`.) A grant is given under the lock, where the waker checks again that there
is a sleeper and no searcher; so two wakers never make two searchers.

A task of an event loop (@; @@ is another loop) is granted without becoming a searcher, since its loop may run it late
or never (!: the loop may stop at any moment while the task waits). So nothing relies on it: a putter that finds no
searcher grants the first thread, and also the first task of each loop; but of the loops only those whose first task
began to wait before that thread, if there is one. If the putter stopped at the first task, a thread behind it would
sleep although there is an item (`grants_a_thread_too`), and so would a task of another loop (`grants_each_loop`). A
task owes the check of any granted waiter, whether it takes something or leaves. Until its loop resumes it, it is
`pending`, and no other task of that loop is granted: so its check comes after that has ended. A task that was granted
but found nothing returns to its place in the queue: in this model to the front or to the end, so nothing depends on
the order.

On a GIL build a sleeper may spin before it blocks (^): one per queue, which a waker grants before the first. A thread
that sees its grant while it spins takes the semaphore as if it had blocked. So nothing above changes, provided that
the waiter that counts as spinning is in the list.

Putters that wait for room do the same on a second queue, with "room" for "item".

The ring is reduced to its two counters here; test_model_ring_slots.py searches the slots, and shows that a try takes
effect at one instant. So a try is one step, and so is a section under a queue's lock, since no other thread sees its
intermediate states. With `fine`, both are split into single accesses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import pytest

from tests.models.model_checker import (
    BLOCKED,
    Choice,
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
    debt_outlives_sleep: bool = True  # a searcher whose last look kept it awake still has to look for more
    stops_search_before_looking: bool = True
    grant_asks_for_sleeper: bool = True  # again, under the lock
    grant_asks_for_searcher: bool = True
    grants_a_thread_too: bool = True  # also where a task is first in line
    grants_each_loop: bool = True
    pending_ends_before_look: bool = True
    leaver_ends_pending: bool = True  # before it passes the wake-up on
    spinner_is_forgotten: bool = True  # when it leaves the list
    spinner_is_queued: bool = True  # as it begins to spin: not granted before
    close_wakes_all: bool = True
    closes_before_waking: bool = True
    closed_bit_in_tail: bool = True
    fine: bool = False  # each load and store is a step of its own, the lock is a variable, its release is buffered
    word_seq_cst: bool = True  # fine only: the stores to the word
    claim_seq_cst: bool = True  # with one putter only: its claim in the tail word


class Waiting(NamedTuple):
    """A WaitQueue: the word, and the list that it counts."""

    sleepers: int = 0
    searchers: int = 0
    nodes: tuple[str, ...] = ()
    spinner: str | None = None
    awake: bool = False  # the spinner, still
    pending: tuple[str, ...] = ()  # tasks that were granted and not resumed yet, while others of their loops wait

    def without(self, me: str, rules: Rules) -> Waiting:
        forgotten = self.spinner == me and rules.spinner_is_forgotten
        nodes = tuple(node for node in self.nodes if node != me)
        return self._replace(
            sleepers=self.sleepers - 1,
            nodes=nodes,
            pending=tuple(task for task in self.pending if any(loop_of(task) == loop_of(node) for node in nodes)),
            spinner=None if forgotten else self.spinner,
            awake=self.awake and not forgotten,
        )


class Side(NamedTuple):
    """One end of the ring: what gets and puts do differently."""

    gets: bool
    capacity: int

    @property
    def verb(self) -> str:
        return "get" if self.gets else "put"

    @property
    def waits(self) -> str:
        """The queue that this side sleeps on, and the other's success wakes."""
        return "not_empty" if self.gets else "not_full"

    @property
    def wakes(self) -> str:
        return "not_full" if self.gets else "not_empty"

    def possible(self, head: int, tail: int) -> bool:
        """Whether there is an item (room)."""
        return tail >> 1 > head if self.gets else (tail >> 1) - head < self.capacity


def is_closed(m: Memory) -> bool:
    return bool(m.tail & 1 or m.flag)


def attempt(rules: Rules, side: Side) -> Thread:
    """Tries once: "done", "closed" or "no". The tail word is twice the count, plus the closed bit."""
    if not side.gets and not rules.claim_seq_cst:
        yield Store("tail", (yield Load("tail")) + 2, buffered=True)
        return "done"
    if not side.gets and (yield Load("flag")):
        return "closed"
    if not rules.fine:
        return (yield Step(side.verb, partial(attempt_at_once, side)))
    while True:
        if side.gets:  # the position that this side claims is read first
            head = yield Load("head")
            tail = yield Load("tail")
        else:
            tail = yield Load("tail")
            head = yield Load("head")
        if not side.gets and tail & 1:
            return "closed"
        if not side.possible(head, tail):
            return "closed" if tail & 1 else "no"
        if (yield Step(f"{side.verb} claims", partial(claim, side, head, tail))):
            return "done"


def attempt_at_once(side: Side, m: Memory) -> str:
    if m.tail & 1 and not side.gets:
        return "closed"
    if not side.possible(m.head, m.tail):
        return "closed" if is_closed(m) else "no"
    claim(side, m.head, m.tail, m)
    return "done"


def claim(side: Side, head: int, tail: int, m: Memory) -> bool:
    """The compare-and-swap."""
    if (m.head if side.gets else m.tail) != (head if side.gets else tail):
        return False
    if side.gets:
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
        return (yield under_lock(queue, label, edit))
    yield Step(f"locks {queue} to {label}", partial(acquire, f"{queue}_lock"))
    changed, result = edit((yield Load(queue)))
    yield Store(queue, changed, buffered=not rules.word_seq_cst)
    yield Store(f"{queue}_lock", 0, buffered=True)
    return result


def under_lock(queue: str, label: str, edit: Callable[[Waiting], tuple[Waiting, Any]]) -> Step:
    def run(m: Memory) -> Any:
        changed, result = edit(getattr(m, queue))
        setattr(m, queue, changed)
        return result

    return Step(f"{label} {queue}", run)


def acquire(lock: str, m: Memory) -> Any:
    if getattr(m, lock):
        return BLOCKED
    setattr(m, lock, 1)
    return None


TIME_OUT = Step("time", lambda m: "out")
GO_ON = Step("time", lambda m: "goes on")
STOPS = Step("its loop", lambda m: "stops")
NEVER_RUNS = Step("its loop", lambda m: BLOCKED)


# The edits under the lock.


def begin_sleep(me: str, stop_searching: bool, w: Waiting, front: bool = False) -> tuple[Waiting, None]:
    if me in w.nodes:
        raise ViolationError(f"{me} is on the list already")
    nodes = (me, *w.nodes) if front else (*w.nodes, me)
    return w._replace(sleepers=w.sleepers + 1, searchers=w.searchers - stop_searching, nodes=nodes), None


def make_spinner(me: str, rules: Rules, w: Waiting) -> tuple[Waiting, bool]:
    """Unless another spins, or it is granted already."""
    spins = not w.awake and (me in w.nodes or not rules.spinner_is_queued)
    return (w._replace(spinner=me, awake=True) if spins else w), spins


def stop_spinning(me: str, w: Waiting) -> tuple[Waiting, None]:
    return w._replace(awake=w.awake and w.spinner != me), None


def leave(me: str, w: Waiting, rules: Rules = Rules()) -> tuple[Waiting, bool]:
    if me in w.nodes:
        return w.without(me, rules), True
    return (end_pending(me, w)[0] if rules.leaver_ends_pending else w), False


def end_pending(me: str, w: Waiting) -> tuple[Waiting, None]:
    return w._replace(pending=tuple(task for task in w.pending if task != me)), None


def start_search(w: Waiting) -> tuple[Waiting, bool]:
    return (w, False) if w.searchers else (w._replace(searchers=1), True)


def stop_searching(w: Waiting) -> tuple[Waiting, None]:
    return w._replace(searchers=w.searchers - 1), None


def grant(rules: Rules, w: Waiting) -> tuple[Waiting, tuple[str, ...]]:
    """Those that are woken: a thread, and a task of each loop that is in line before it."""
    if (rules.grant_asks_for_sleeper and w.sleepers == 0) or (rules.grant_asks_for_searcher and w.searchers > 0):
        return w, ()
    if not w.nodes:
        return w.without("", rules)._replace(searchers=w.searchers + 1), ()
    threads = [node for node in w.nodes if not is_task(node)]
    thread = w.spinner if w.awake else threads[0] if threads else None
    if thread and thread not in w.nodes:
        raise ViolationError(f"grants {thread}, which does not sleep")
    before = w.nodes[: w.nodes.index(thread)] if thread else w.nodes
    heads: dict[str, str] = {}
    for node in before:
        if is_task(node):
            heads.setdefault(loop_of(node), node)
    tasks = tuple(task for loop, task in heads.items() if loop not in map(loop_of, w.pending))
    if not rules.grants_each_loop:
        tasks = tasks[:1]
    granted = (thread, *tasks) if thread and (rules.grants_a_thread_too or not tasks) else tasks
    for node in granted:
        w = w.without(node, rules)._replace(searchers=w.searchers + (not is_task(node)))
        if is_task(node) and any(is_task(other) and loop_of(other) == loop_of(node) for other in w.nodes):
            w = w._replace(pending=(*w.pending, node))
    return w, granted


def is_task(me: str) -> bool:
    return "@" in me


def loop_of(me: str) -> str:
    return "".join(mark for mark in me if mark in "@!")


def may_stop(me: str) -> bool:
    return "!" in me


# The threads.


def wake(rules: Rules, queue: str) -> Thread:
    """Wakes a thread, and a task of each loop, if one sleeps and no thread is searching."""
    word = yield Load(queue)
    if word.sleepers > 0 and word.searchers == 0:
        woken = yield from section(rules, queue, "grant", partial(grant, rules))
        while woken:
            yield post(woken[0])
            woken = woken[1:]


def pass_on(rules: Rules, side: Side) -> Thread:
    """Looks whether there is something for the next sleeper, and wakes it."""
    if (yield from look(rules, side, closed_counts=False)):
        yield from wake(rules, side.waits)


def end_search_and_check(rules: Rules, side: Side, searching: bool, owes: bool) -> Thread:
    """Ends a search, and makes the check that is due; every thread that returns from a blocking call does this."""
    if owes and not rules.stops_search_before_looking:
        yield from pass_on(rules, side)
    if searching:
        yield from section(rules, side.waits, "stop searching", stop_searching)
    if owes and rules.stops_search_before_looking:
        yield from pass_on(rules, side)


def sleep(rules: Rules, side: Side, me: str, patient: bool) -> Thread:
    """Until it is "woken"; or, where not patient, "out" of time."""
    ends = (park(me),) if patient else (park(me), TIME_OUT)
    got = None
    if "^" in me and (yield under_lock(side.waits, "spins on", partial(make_spinner, me, rules))):
        got = yield Choice((*ends, under_lock(side.waits, "stops spinning on", partial(stop_spinning, me))))
    return got or (yield Choice(ends))


def cancel_sleep(rules: Rules, side: Side, me: str) -> Thread:
    """Leaves the list; True if a wake-up was granted meanwhile: then the thread is a searcher."""
    left = yield from section(rules, side.waits, "leave", partial(leave, me, rules=rules))
    if left:
        return False
    if rules.leaver_drains_semaphore:
        yield park(me)
    return rules.leaver_takes_grant


def operate(rules: Rules, side: Side, me: str, patient: bool, spins: bool) -> Thread:
    """One blocking get or put: "done", "closed", or "timeout" where not patient."""
    searching = False  # counted as a searcher in the word
    if spins:  # a search that no sleep went before; what it spins for is in the steps of the others
        searching = yield from section(rules, side.waits, "spin on", start_search)
    owes = searching  # a waker may have skipped a wake-up because of this thread, and it has not looked since
    while True:
        got = yield from attempt(rules, side)
        if got != "no":
            yield from end_search_and_check(rules, side, searching, owes and rules.taker_passes_on)
            if got == "done":
                yield from wake(rules, side.wakes)
            return got
        looks = rules.looks_before_parking and (rules.searcher_looks_before_parking or not searching)
        yield from section(rules, side.waits, "sleep on", partial(begin_sleep, me, searching))
        searching = False
        if looks and (yield from look(rules, side, closed_counts=rules.last_look_sees_closed)):
            searching = yield from cancel_sleep(rules, side, me)
            owes = searching or (owes and rules.debt_outlives_sleep)
            if patient or (yield Choice((GO_ON, TIME_OUT))) == "goes on":
                continue
        else:
            owes = False  # paid: it looked, and there was nothing
            if (yield from sleep(rules, side, me, patient)) == "woken":
                searching = owes = True
                continue
            searching = owes = yield from cancel_sleep(rules, side, me)
        yield from end_search_and_check(rules, side, searching, owes and rules.leaver_passes_on)
        return "timeout"


def queue_up(rules: Rules, side: Side, me: str, again: bool) -> Thread:
    """At the end; or, where it was granted and found nothing, at its place, which may be anywhere."""
    if not again or rules.fine:
        yield from section(rules, side.waits, "sleep on", partial(begin_sleep, me, False))
        return
    yield Choice(
        (
            under_lock(side.waits, "sleep on", partial(begin_sleep, me, False)),
            under_lock(side.waits, "sleep first on", partial(begin_sleep, me, False, front=True)),
        )
    )


def suspend(me: str, patient: bool) -> Thread:
    """Until its loop runs it: "woken", or "out" of time. A loop that stops runs nothing any more."""
    ends = (park(me),) if patient else (park(me), TIME_OUT)
    got = yield Choice((*ends, STOPS) if may_stop(me) else ends)
    if got == "stops":
        yield NEVER_RUNS
    return got


def operate_in_task(rules: Rules, side: Side, me: str, patient: bool) -> Thread:
    """One awaited get or put: as `operate`, where a cancelled await is a timeout."""
    owes = False  # granted, and has not looked since
    queued = False
    again = False
    while True:
        got = yield from attempt(rules, side)
        if got == "no" and not queued:
            yield from queue_up(rules, side, me, again)
            queued, owes, again = True, False, True
            if rules.looks_before_parking:
                continue  # the last look is an attempt
        if got == "no":
            queued = False
            if (yield from suspend(me, patient)) == "woken":
                owes = True
                if rules.pending_ends_before_look:
                    yield from section(rules, side.waits, "resumed on", partial(end_pending, me))
                continue
            owes = not (yield from section(rules, side.waits, "leave", partial(leave, me, rules=rules)))
            got = "timeout"
        elif queued:
            owes = not (yield from section(rules, side.waits, "leave", partial(leave, me, rules=rules)))
            queued = False
        else:
            yield from end_search_and_check(rules, side, False, owes and rules.taker_passes_on)
            if got == "done":
                yield from wake(rules, side.wakes)
            return got
        if owes:
            yield park(me)  # what is posted finds no task; here it is taken away, so that the model can be at rest
        passes_on = rules.leaver_passes_on if got == "timeout" else rules.taker_passes_on
        yield from end_search_and_check(rules, side, False, owes and passes_on)
        if got == "done":
            yield from wake(rules, side.wakes)
        return got


def caller(rules: Rules, side: Side, me: str, patient: bool, spins: bool, rounds: int | None) -> Thread:
    """Calls `rounds` times, or until closed; counts what it got."""
    done = 0
    while rounds is None or done < rounds:
        if is_task(me):
            got = yield from operate_in_task(rules, side, me, patient)
        else:
            got = yield from operate(rules, side, me, patient, spins)
        yield Step("returns", partial(account, side, got))
        if got == "closed":
            return
        done += 1


def account(side: Side, got: str, m: Memory) -> None:
    """Ghost state: no thread looks at it."""
    if got == "done":
        m.returned = (m.returned[0] + side.gets, m.returned[1] + (not side.gets))
    if got == "closed" and side.gets:
        m.end_seen = True


# What must hold.


def invariant(m: Memory) -> str | None:
    for queue, w in (("not_empty", m.not_empty), ("not_full", m.not_full)):
        if w.sleepers != len(w.nodes):
            return f"{queue} counts {w.sleepers} sleepers and lists {w.nodes}"
        if w.searchers < 0 or (w.searchers > 1 and not is_closed(m)):
            return f"{queue} has {w.searchers} searchers"
        if w.spinner is not None and w.spinner not in w.nodes:
            return f"{queue} takes {w.spinner} for a sleeper that spins"
    return None


def at_rest(m: Memory, unfinished: frozenset[str]) -> str | None:
    """Asleep is right only on a ring that is open and has nothing for the sleeper."""
    for side, w in ((Side(True, m.capacity), m.not_empty), (Side(False, m.capacity), m.not_full)):
        able = [node for node in w.nodes if not may_stop(node)]  # at rest a loop that may stop has stopped
        if able and is_closed(m):
            return f"asleep on a closed ring: {able}"
        if able and side.possible(m.head, m.tail):
            return f"lost wake-up: {side.verb} is possible, and no thread wakes {able}"
        if w.searchers:
            return f"{w.searchers} still count as searching on {side.waits}"
        unfinished -= {*w.nodes}
    unfinished = frozenset(name for name in unfinished if not may_stop(name))
    if unfinished:
        return f"blocked forever, and no sleeper: {', '.join(sorted(unfinished))}"
    left = sorted(name for name in m.posted if not may_stop(name))
    if left:
        return f"semaphores left released: {left}"
    if m.returned != (m.head, m.tail >> 1):
        return f"calls returned {m.returned}, the ring counted {(m.head, m.tail >> 1)}"
    if m.end_seen and m.head != m.tail >> 1:
        return "lost item: a getter saw the end, then an item went in"
    return None


MEMORY: dict[str, Any] = {
    "capacity": 1,
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


@cache
def search(rules: Rules, scenario: str, capacity: int, closer: Callable[[Rules], Thread] | None = None) -> Report:
    """Explores a scenario: G gets, P puts; digits: so many calls; * until closed; ~ spins first, as a searcher; ^ as a
    sleeper; ? times out; @ a task, @@ one of another loop, @! of a loop that may stop; X closes."""
    threads: dict[str, ThreadFunction] = {}
    for i, word in enumerate(scenario.split()):
        me = f"{word}.{i}"
        if closer is not None and word == "X":
            threads[me] = partial(closer, rules)
        else:
            rounds = None if "*" in word else int(word[1:].strip("~^?@!") or 1)
            side = Side(word[0] == "G", capacity)
            threads[me] = partial(caller, rules, side, me, "?" not in word, "~" in word, rounds)
    return explore(MEMORY | {"capacity": capacity}, threads, invariant=invariant, at_rest=at_rest)


@pytest.mark.parametrize(
    ("scenario", "capacity", "at_least"),
    [
        ("G G P P", 1, 30_000),
        ("G G P P", 2, 10_000),
        ("G G2 P3", 2, 10_000),
        ("G? G P? P", 1, 50_000),
        ("G? G2 P2", 1, 10_000),
        ("G G~ P2", 2, 3_000),
        ("G G~? P~2", 1, 10_000),
        ("G@ G@ P P", 1, 10_000),
        ("G@ G P P@", 1, 10_000),
        ("G@? G P@? P", 1, 10_000),
        ("G@? G@ P2", 2, 3_000),
        ("G@ G~ P2", 2, 1_000),
        ("G^ G^ P P", 1, 30_000),
        ("G^ G^? P^2", 1, 10_000),
        ("G^ G2 P3", 2, 10_000),
        ("G^? G@ P2", 2, 3_000),
        ("G@! G P P", 1, 10_000),
        ("G@! G@@ P P", 1, 10_000),
        ("G@! G@! G P2", 2, 5_000),
        ("G@! G@@ G P2", 2, 10_000),
        ("G@! G? G P2", 2, 10_000),
        ("G P@! P P", 1, 10_000),
        ("G@! G^ P2", 2, 3_000),
        ("G@! G~ P2", 2, 2_000),
        ("G@!? G@@? G P", 1, 5_000),
        ("G@ G@ P3", 3, 1_000),
        ("G@? G@ G P2", 2, 10_000),
        ("G@ G@ G@@ P2", 2, 10_000),
    ],
)
def test_no_thread_sleeps_while_there_is_an_item_or_room(scenario: str, capacity: int, at_least: int) -> None:
    assert_holds(search(Rules(), scenario, capacity), at_least)


@pytest.mark.parametrize(
    ("scenario", "at_least"),
    [
        ("G P", 200),
        ("G? P", 300),
        ("G2 P2", 2_000),
        ("G? G P", 10_000),
        ("G G P2", 30_000),
        ("G@ P@", 100),
        ("G@? G P", 3_000),
        ("G@! G P", 1_000),
        ("G@! G@@ P", 1_000),
        ("G@ G@ P2", 1_000),
    ],
)
def test_the_same_with_every_access_a_step_of_its_own(scenario: str, at_least: int) -> None:
    assert_holds(search(Rules(fine=True), scenario, 1), at_least)


LOST = "lost wake-up"


@pytest.mark.parametrize(
    ("bug", "scenario", "capacity", "finding"),
    [
        pytest.param("looks_before_parking", "G P", 1, LOST, id="no-look-before-parking"),
        pytest.param("looks_before_parking", "P P G", 1, LOST, id="no-look-before-parking-put"),
        pytest.param("searcher_looks_before_parking", "G2 P2", 1, LOST, id="last-searcher-parks-without-looking"),
        pytest.param("leaver_takes_grant", "G? P", 1, "still count as searching", id="leaver-drops-the-baton"),
        pytest.param(
            "leaver_drains_semaphore", "G? P", 1, "semaphores left", id="leaver-leaves-its-semaphore-released"
        ),
        pytest.param("leaver_passes_on", "G? G P", 1, LOST, id="search-given-up-without-a-look"),
        pytest.param("looks_before_parking", "G@ P", 1, LOST, id="task-sleeps-without-a-look"),
        pytest.param("leaver_passes_on", "G@? G@ P", 1, LOST, id="cancelled-task-does-not-pass-it-on"),
        pytest.param("grants_a_thread_too", "G@! G P", 1, LOST, id="thread-behind-a-stopped-loop"),
        pytest.param("grants_a_thread_too", "P@! P P G", 1, LOST, id="putter-behind-a-stopped-loop"),
        pytest.param("grants_each_loop", "G@! G@@ P", 1, LOST, id="loop-behind-a-stopped-loop"),
        pytest.param("pending_ends_before_look", "G@ G@ P2", 2, LOST, id="resumed-task-counts-as-pending-still"),
        pytest.param("leaver_ends_pending", "G@? G@ P", 1, LOST, id="cancelled-task-counts-as-pending-still"),
        pytest.param("taker_passes_on", "G@ G~ P3", 3, LOST, id="woken-task-takes-one-and-looks-for-no-more"),
        pytest.param("taker_passes_on", "G G P2", 1, LOST, id="woken-takes-one-and-looks-for-no-more"),
        pytest.param("debt_outlives_sleep", "G G2 P3", 2, LOST, id="kept-awake-searcher-looks-for-no-more"),
        pytest.param("debt_outlives_sleep", "G G~ P2", 2, LOST, id="kept-awake-spinner-looks-for-no-more"),
        pytest.param("stops_search_before_looking", "G G P2", 1, LOST, id="looks-then-stops-searching"),
        pytest.param(
            "grant_asks_for_sleeper", "G P", 1, "counts -1 sleepers", id="grant-without-asking-again-no-sleeper"
        ),
        pytest.param(
            "grant_asks_for_searcher", "G G P P", 2, "2 searchers", id="grant-without-asking-again-two-searchers"
        ),
        pytest.param("spinner_is_forgotten", "G^? G P2", 1, "for a sleeper that spins", id="spinner-left-and-counts"),
        pytest.param("spinner_is_queued", "G^ G P2", 1, "for a sleeper that spins", id="spinner-granted-before"),
        pytest.param("word_seq_cst", "G P", 1, LOST, id="waiter-word-buffered-past-the-look"),
        pytest.param("claim_seq_cst", "G P", 1, LOST, id="claim-buffered-past-the-look-at-the-word"),
    ],
)
def test_each_bug_is_found(bug: str, scenario: str, capacity: int, finding: str) -> None:
    right = Rules(fine=bug in ("word_seq_cst", "claim_seq_cst"))
    assert_found(search(replace(right, **{bug: False}), scenario, capacity), finding, search(right, scenario, capacity))
