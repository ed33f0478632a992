"""Bells, as a model that is searched whole: how a pool's workers hear of items in a RingBuffer that was wrapped.

A wrapped ring is the user's: who puts into it knows nothing of the pool. In the workers' stead a bell sleeps in the
ring's queue of getters (work_source.pyx); the workers sleep in the pool's queue, `idle`. A put that finds the bell rings
it: the bell is off from then on, and one worker is woken, unless one searches. It is armed again by a worker, under
the pool's lock: before the look at the ring that may be its last before sleep, and, while others sleep, before the
look that a searcher owes when its search has ended.

Why no worker sleeps beside an item. Who arms the bell looks at the ring after that, so an item that came before the
bell was there is seen by that look, and one that comes later rings it. Who finds the bell armed may rely on it:
either it is in the ring's queue; or it is being rung, and whoever rings it switches it off, then reads the word of
`idle`, which the one who relied on it had changed before. A ring that wakes nobody, because one searches, relies on
that searcher's debt, as any wake-up does (test_model_park_wake.py). That look is in the sleepers' stead, so it arms
the bell too: what rang may be gone by then, taken by another reader of the ring, and then nobody else would arm it.
So does the look of a worker that was woken by the bell and found other work before it came to the ring.

Why no bell stays in the ring of a feed that has gone. A bell is armed under the pool's lock and while its feed is
linked; who unlinks the feed takes it out after that.

The first version armed the bell where an item was taken, without the lock, and not for the debt. This model found
both that a worker slept on (`debt_arms`), and that a bell stayed, which keeps the pool alive (`watches`). Armed for
the debt, the bell need not be armed where an item is taken.

States: the ring (how many items, closed), its queue of getters with the bell and direct readers in it, `idle`, the
bell's word, one inbox beside the feed, the places that the stream's buffer has left, whether the feed has ended and
is linked. Each access to them is a step; a section under a queue's lock is one. The pool's lock is a variable.
Processing ends, or never does: then the others must do what is left, since an operation may wait for another.

At rest: no worker is asleep beside something that it could take, or with the bell off while the ring is open; no
direct reader is asleep beside an item; no bell is in the ring of a feed that was unlinked; all items are accounted
for.

Left out: slots (test_model_ring_slots.py), retries, which wake by name (test_model_retry.py), the look before a wait,
which neither arms nor owes (as `first_look_arms` turned over, which is no bug), turns, spinning, which is a search
like that of one that was woken, the end of the pool (test_model_pool_end.py), items that are no operations, more than
one wrapped ring: their bells know nothing of each other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

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
    assert_found,
    assert_holds,
    explore,
    park,
    post,
)
from tests.models.test_model_park_wake import Rules as Sleeping
from tests.models.test_model_park_wake import Waiting, begin_sleep, grant, leave, stop_searching, under_lock, wake


@dataclass(frozen=True)
class Rules:
    """What the threads do. As it stands, the protocol; each turned over is a bug, but for the one that is redundant."""

    first_look_arms: bool = True  # the one before it begins to sleep; redundant
    last_look_arms: bool = True
    arms_before_looking: bool = True
    debt_arms: bool = True  # the look that a searcher owes
    watches: bool = False  # the first version: who takes an item arms the bell, without the pool's lock
    off_before_notify: bool = True
    off_seq_cst: bool = True  # the store of it
    grants_a_thread_too: bool = True  # who rings the bell wakes a direct reader as well
    reader_wakes: bool = True
    work_needs_place: bool = True
    end_is_work: bool = True
    removal_disarms: bool = True


BELL = "bell@"  # @: a Sleeper, which is granted without becoming a searcher
notify_idle = partial(wake, Sleeping(), "idle")
ORDER = ("inbox", "feed")


# The bell.


def arm() -> Thread:
    if not (yield Step("arms the bell", partial(exchange_bell, 1))):
        yield under_lock("getters", "bell begins to sleep", partial(begin_sleep, BELL, False))


def exchange_bell(wanted: int, m: Memory) -> int:
    was, m.bell = m.bell, wanted
    return int(was)


def ring(rules: Rules) -> Thread:
    """RingWatcher.wake: it was granted, and is out of the ring's queue."""
    if not rules.off_before_notify:
        yield from notify_idle()
    yield Store("bell", 0, buffered=not rules.off_seq_cst)
    if rules.off_before_notify:
        yield from notify_idle()


def notify_ring(rules: Rules) -> Thread:
    """What follows a put: notify(not_empty)."""
    word = yield Load("getters")
    if word.sleepers and not word.searchers:
        sleeping = Sleeping(grants_a_thread_too=rules.grants_a_thread_too)
        granted = yield under_lock("getters", "grant", partial(grant, sleeping))
        while granted:
            if granted[0] == BELL:
                yield from ring(rules)
            else:
                yield post(granted[0])
            granted = granted[1:]


def remove(rules: Rules) -> Thread:
    """Core.remove, by a worker that finds the feed spent or by a reader that closes the stream."""
    linked = yield Step("unlinks the feed", unlink)
    if linked and rules.removal_disarms and (yield Step("disarms the bell", partial(exchange_bell, 1))):
        yield under_lock("getters", "takes the bell out", partial(leave, BELL))


def unlink(m: Memory) -> Any:
    if m.lock:
        return BLOCKED
    linked, m.linked = m.linked, False
    return linked


# A worker.


def has_work(rules: Rules) -> Thread:
    """Feed.has_work. Its lock keeps workers from drawing meanwhile; that makes no difference here."""
    place = yield Step("looks for a place", lambda m: not m.ended and (m.places > 0 or not rules.work_needs_place))
    if place and (yield Load("items")):
        return True
    if not rules.end_is_work or not (yield Step("looks for the end", lambda m: m.closed and not m.ended)):
        return False
    return not (yield Load("items"))


def lock(first: str, m: Memory) -> Any:
    """With the first access under it: nobody can tell them apart."""
    if m.lock:
        return BLOCKED
    m.lock = 1
    return m.linked, bool(m.inbox) if first == "inbox" else m.ended


def next_feed(rules: Rules, arms: bool, order: tuple[str, ...]) -> Thread:
    """A feed with work, or None; unlinks the wrapped one if it has ended."""
    while True:
        found, spent, at = "", False, 0
        linked, seen = yield Step(f"locks the pool, looks at the {order[0]}", partial(lock, order[0]))
        while at < 2 and not found and not spent:
            if order[at] == "inbox":
                if seen if at == 0 else (yield Load("inbox")):
                    found = "inbox"
            elif linked:
                spent = seen if at == 0 else (yield Load("ended"))
                if not spent:
                    if arms and rules.arms_before_looking:
                        yield from arm()
                    if (yield from has_work(rules)):
                        found = "feed"
                    if arms and not rules.arms_before_looking:
                        yield from arm()
            at += 1
        yield Store("lock", 0)
        if not spent:
            return found
        yield from remove(rules)


def claim(m: Memory) -> str:
    """Feed.claim, under the feed's lock."""
    if m.ended:
        return ""
    if m.closed and not m.items:
        return "the end"
    if not m.places or not m.items:
        return ""
    m.items -= 1
    m.places -= 1
    m.drawn += 1
    return "feed"


def claim_inbox(m: Memory) -> str:
    if not m.inbox:
        return ""
    m.inbox -= 1
    return "inbox"


def take(rules: Rules, arms: bool) -> Thread:
    """WorkerLoop.take: where the operation comes from that it took, or "" if there is none."""
    while True:
        found = yield from next_feed(rules, arms, ORDER)
        if not found:
            return ""
        got = yield Step(f"claims from the {found}", claim if found == "feed" else claim_inbox)
        if got == "the end":
            yield Store("ended", True)
        elif got:
            if got == "feed" and rules.watches and (yield Load("idle")).sleepers:
                yield from arm()
                if (yield from has_work(rules)):
                    yield from notify_idle()
            return got


def any_work(rules: Rules, took: str) -> Thread:
    """The look that a searcher owes; it begins behind the feed that it took from."""
    arms = rules.debt_arms and (yield Load("idle")).sleepers > 0
    return (yield from next_feed(rules, arms, ORDER if took == "feed" else ORDER[::-1]))


def wait_for(rules: Rules, me: str, asleep: bool) -> Thread:
    """Sleeps until it has taken one; `asleep`: begins there."""
    searching = owes = False
    while True:
        got = "" if asleep else (yield from take(rules, rules.first_look_arms))
        if got:
            break
        if not asleep:
            yield under_lock("idle", "sleep on", partial(begin_sleep, me, searching))
            searching = False
            got = yield from take(rules, rules.last_look_arms)
            if got:
                searching = not (yield under_lock("idle", "leave", partial(leave, me)))
                if searching:  # it was granted
                    yield park(me)
                break
        asleep = owes = False
        yield park(me)
        searching = owes = True
    if searching:
        yield under_lock("idle", "stop searching", stop_searching)
    if (searching or owes) and (yield from any_work(rules, got)):
        yield from notify_idle()
    return got


def worker(rules: Rules, me: str, asleep: bool) -> Thread:
    while True:
        got = yield from wait_for(rules, me, asleep)
        asleep = False
        if not (yield Choice((Step("processing", partial(finish, got)), Step("processing", never)))):
            return
        got = ""


def finish(took: str, m: Memory) -> bool:
    m.ready += took == "feed"
    return True


def never(m: Memory) -> bool:
    return False


# The others.


def putter(rules: Rules) -> Thread:
    if (yield Step("puts", put)):
        yield from notify_ring(rules)


def put(m: Memory) -> bool:
    if m.closed:
        return False
    m.items += 1
    m.put += 1
    return True


def doer(rules: Rules) -> Thread:
    yield Step("does", do)
    yield from notify_idle()


def do(m: Memory) -> None:
    m.inbox += 1


def get(m: Memory) -> str:
    if m.items:
        m.items -= 1
        m.direct += 1
        return "done"
    return "closed" if m.closed else ""


def direct_reader(rules: Rules) -> Thread:
    yield Step("gets at once", get)


def direct_sleeper(rules: Rules, me: str) -> Thread:
    """A blocking get beside the workers."""
    searching = owes = False
    while True:
        got = yield Step("gets", get)
        if got:
            break
        yield under_lock("getters", "sleep on", partial(begin_sleep, me, searching))
        searching = False
        got = yield Step("gets", get)
        if got:
            searching = not (yield under_lock("getters", "leave", partial(leave, me)))
            if searching:
                yield park(me)
            break
        owes = False
        yield park(me)
        searching = owes = True
    if searching:
        yield under_lock("getters", "stop searching", stop_searching)
    if (searching or owes) and (yield Load("items")):
        yield from notify_ring(rules)


def grant_all(w: Waiting) -> tuple[Waiting, tuple[bool, tuple[str, ...]]]:
    threads = tuple(node for node in w.nodes if node != BELL)
    return Waiting(0, w.searchers + len(threads)), (BELL in w.nodes, threads)


def closer(rules: Rules) -> Thread:
    """RingBuffer.close: threads are woken first, then the bell."""
    yield Store("closed", True)
    rings, nodes = yield under_lock("getters", "grant all", grant_all)
    while nodes:
        yield post(nodes[0])
        nodes = nodes[1:]
    if rings:
        yield from ring(rules)


def reader(rules: Rules) -> Thread:
    """Reads one from the stream, which makes a place."""
    yield Step("reads", read)
    if rules.reader_wakes:
        yield from notify_idle()


def read(m: Memory) -> Any:
    if not m.ready:
        return BLOCKED
    m.ready -= 1
    m.places += 1
    return None


def leaver(rules: Rules) -> Thread:
    """Stream.close."""
    yield Store("ended", True)
    yield from remove(rules)
    yield from notify_idle()


# What must hold.


def invariant(m: Memory) -> str | None:
    if m.idle.searchers not in (0, 1) or m.getters.searchers not in (0, 1):
        return f"searchers: {m.idle}, {m.getters}"
    return None


def at_rest(m: Memory, unfinished: frozenset[str]) -> str | None:
    serves = m.linked and not m.ended
    if m.idle.nodes:
        if m.inbox or (serves and m.places and m.items):
            return f"asleep beside an item: {m.idle.nodes}"
        if serves and m.closed and not m.items:
            return f"asleep beside a source that has ended: {m.idle.nodes}"
        if serves and not m.closed and BELL not in m.getters.nodes:
            return f"asleep, and the bell is off: {m.idle.nodes}"
    direct = {*m.getters.nodes} - {BELL}
    if direct and (m.items or m.closed):
        return f"a direct reader is asleep beside an item or the end: {direct}"
    if not m.linked and BELL in m.getters.nodes:
        return "a bell is left in the ring of a feed that has gone"
    unfinished -= {*m.idle.nodes} | direct
    if not m.ready:
        unfinished = frozenset(name for name in unfinished if name[0] != "R")
    if unfinished:
        return f"blocked for ever, and no sleeper: {', '.join(sorted(unfinished))}"
    if m.posted or m.idle.searchers or m.getters.searchers:
        return f"left: {m.posted}, {m.idle}, {m.getters}"
    if m.put != m.drawn + m.direct + m.items:
        return f"{m.put} were put, {m.drawn} drawn, {m.direct} taken directly, {m.items} are left"
    return None


@cache
def search(rules: Rules, scenario: str, places: int = 2) -> Report:
    """W works, asleep at first, w awake; P puts, D does, g gets at once, G sleeps for an item; X closes the ring;
    R reads from the stream, C closes it."""
    asleep = tuple(f"W.{i}" for i, word in enumerate(scenario.split()) if word == "W")
    memory: dict[str, Any] = {
        "items": 0, "closed": False, "getters": Waiting(1, 0, (BELL,)) if asleep else Waiting(),
        "idle": Waiting(len(asleep), 0, asleep), "posted": frozenset(), "bell": int(bool(asleep)), "inbox": 0,
        "places": places, "ready": 0, "ended": False, "linked": True, "lock": 0, "put": 0, "drawn": 0, "direct": 0,
    }
    threads: dict[str, ThreadFunction] = {}
    for i, word in enumerate(scenario.split()):
        me = f"{word}.{i}"
        threads[me] = {
            "W": partial(worker, rules, me, True), "w": partial(worker, rules, me, False),
            "P": partial(putter, rules), "D": partial(doer, rules), "g": partial(direct_reader, rules),
            "G": partial(direct_sleeper, rules, me), "X": partial(closer, rules), "R": partial(reader, rules),
            "C": partial(leaver, rules),
        }[word]
    return explore(memory, threads, invariant=invariant, at_rest=at_rest)


SCENARIOS = [
    ("w P P", 2, 4_000),
    ("w P P R", 1, 20_000),
    ("w P G", 1, 5_000),
    ("w w P", 2, 10_000),
    ("W W P P", 2, 10_000),
    ("W W P P g", 2, 30_000),
    ("W W D P g", 2, 30_000),
    ("W w P C", 2, 20_000),
    ("W w X C", 2, 10_000),
]
LONG_SCENARIOS = [
    ("w W P P", 2, 100_000),
    ("w W D P g", 2, 200_000),
    ("w W P X", 2, 100_000),
    ("w w P C", 2, 200_000),
]
LONG = bool(os.environ.get("RINGMILL_LONG"))


@pytest.mark.parametrize(("scenario", "places", "at_least"), SCENARIOS + LONG_SCENARIOS * LONG)
def test_no_worker_sleeps_beside_an_item_of_a_wrapped_ring(scenario: str, places: int, at_least: int) -> None:
    assert_holds(search(Rules(), scenario, places), at_least)


@pytest.mark.parametrize(("scenario", "places", "at_least"), SCENARIOS + LONG_SCENARIOS * LONG)
def test_the_first_look_need_not_arm_the_bell(scenario: str, places: int, at_least: int) -> None:
    assert_holds(search(Rules(first_look_arms=False), scenario, places), 0)


BESIDE = "asleep beside an item"
BELL_OFF = "the bell is off"
LEFT = "a bell is left"


@pytest.mark.parametrize(
    ("bug", "scenario", "places", "finding"),
    [
        pytest.param("last_look_arms", "w P g", 2, BELL_OFF, id="last-look-does-not-arm"),
        pytest.param("arms_before_looking", "w P P", 2, BESIDE, id="bell-not-looked-behind"),
        pytest.param("debt_arms", "W W P P", 2, BELL_OFF, id="woken-for-an-item-that-another-took"),
        pytest.param("off_before_notify", "W P P", 2, BESIDE, id="notifies-then-switches-off"),
        pytest.param("off_seq_cst", "w P P", 2, BESIDE, id="off-buffered-past-the-look-at-the-sleepers"),
        pytest.param("grants_a_thread_too", "W P P G", 1, "direct reader is asleep", id="bell-swallows-the-wake-up"),
        pytest.param("reader_wakes", "W P P R", 1, BESIDE, id="reader-wakes-nobody"),
        pytest.param("work_needs_place", "W P P", 1, "livelock", id="work-without-a-place"),
        pytest.param("end_is_work", "W X", 2, "source that has ended", id="end-of-the-source-is-no-work"),
        pytest.param("removal_disarms", "W C", 2, LEFT, id="removal-leaves-the-bell"),
    ],
)
def test_each_bug_is_found(bug: str, scenario: str, places: int, finding: str) -> None:
    broken = search(replace(Rules(), **{bug: False}), scenario, places)
    assert_found(broken, finding, search(Rules(), scenario, places))


@pytest.mark.parametrize(
    ("rules", "scenario", "finding"),
    [
        pytest.param(Rules(debt_arms=False, watches=True), "W W P P", BELL_OFF, id="two-workers-and-two-items"),
        pytest.param(Rules(debt_arms=False, watches=True), "W W D P g", BELL_OFF, id="other-work-and-another-reader"),
        pytest.param(Rules(watches=True), "w P C", LEFT, id="armed-while-the-feed-goes"),
    ],
)
def test_the_first_version_is_broken(rules: Rules, scenario: str, finding: str) -> None:
    report = search(rules, scenario)
    print(report)
    assert finding in (report.problem or "nothing"), str(report)
