"""RingWatcher as a model, searched exhaustively: how a pool's sleeping workers learn of items in a wrapped RingBuffer.

A wrapped ring belongs to the user: a thread that puts into it knows nothing of the pool. On behalf of the workers a
RingWatcher is registered as a waiter in the ring's queue of getters (work_source.pyx); the workers themselves sleep in
the pool's queue, `idle`. A put that finds the watcher triggers it: the watcher is then disarmed, and one worker is
woken unless another is searching. A worker arms it again, under the pool's lock: before the check of the ring that may
be its last before it sleeps, and, while other workers sleep, before the check that a searcher owes when its search has
ended.

Why no worker sleeps while the ring has an item for it. The thread that arms the watcher checks the ring afterwards: an
item that was put before the watcher was registered is seen by that check, and one that is put later triggers it. A
thread that finds the watcher armed may rely on it: either the watcher is in the ring's queue; or it is being
triggered, and the thread that triggers it disarms it first and then reads the word of `idle`, which the relying thread
changed before. A trigger that wakes no worker, because one is searching, relies on that searcher's owed check, as any
wake-up does (test_model_park_wake.py). That check is made on behalf of the sleepers, so it arms the watcher too: the
item that triggered it may already have been taken by another reader of the ring, and then no other thread would arm
it. The same holds for a worker that was woken by the watcher and found other work before it came to the ring.

Why no watcher stays in the ring after its work source was removed. A watcher is armed under the pool's lock and while
its work source is linked; the thread that unlinks the source removes the watcher afterwards.

The first version armed the watcher where an item was taken, without the lock, and not for the owed check. This model
found both that a worker slept on (`owed_check_arms`), and that a watcher stayed, which keeps the pool alive
(`arms_on_claim`). If the owed check arms the watcher, it need not be armed where an item is taken.

States: the ring (number of items, closed), its queue of getters with the watcher and direct readers in it, `idle`, the
watcher's word, one inbox as well as the wrapped source, the places left in the stream's buffer, whether the source has
ended and is linked. Each access to them is a step; a section under a queue's lock is one step. The pool's lock is a
variable. Processing ends, or never ends: then the other threads must do the remaining work, since an operation may
wait for another.

In the final state: no worker is asleep while there is something that it could take, or while the watcher is disarmed
and the ring is open; no direct reader is asleep while there is an item; no watcher is in the ring of a source that was
unlinked; all items are accounted for.

The workers take turns over both sources together: where one of them found work, the next search begins after that
source.

Left out: that the wrapped source may be QUIET, where workers do not look, and that a trigger makes it READY again
(test_model_source_list.py; the core keeps a few sources READY, as both are here); slots (test_model_ring_slots.py);
retries, which wake a specific worker (test_model_retry.py); the check before a wait, which neither arms nor owes
anything (equivalent to `first_check_arms` inverted, which is no bug); how many operations a worker takes in its turn;
spinning, which is a search like that of a woken worker; the end of the pool (test_model_pool_end.py); items that are
not operations; more than one wrapped ring: watchers are independent of each other.
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
    """What the threads do. The defaults are the protocol; each one inverted is a bug, except the redundant one."""

    first_check_arms: bool = True  # the one before it begins to sleep; redundant
    last_check_arms: bool = True
    arms_before_check: bool = True
    owed_check_arms: bool = True  # the check that a searcher owes
    arms_on_claim: bool = False  # the first version: who takes an item arms the watcher, without the pool's lock
    disarms_before_notify: bool = True
    disarm_seq_cst: bool = True  # the store that disarms it
    grants_a_thread_too: bool = True  # the thread that triggers the watcher wakes a direct reader as well
    reader_wakes: bool = True
    work_needs_place: bool = True
    end_is_work: bool = True
    removal_disarms: bool = True


WATCHER = "watcher@"  # @: a Sleeper, which is granted without becoming a searcher
notify_idle = partial(wake, Sleeping(), "idle")
ORDERS = (("inbox", "source"), ("source", "inbox"))


# The watcher.


def arm() -> Thread:
    if not (yield Step("arms the watcher", partial(exchange_armed, 1))):
        yield under_lock("getters", "watcher begins to sleep", partial(begin_sleep, WATCHER, False))


def exchange_armed(wanted: int, m: Memory) -> int:
    was, m.armed = m.armed, wanted
    return int(was)


def trigger(rules: Rules) -> Thread:
    """RingWatcher.wake: it was granted, and is out of the ring's queue."""
    if not rules.disarms_before_notify:
        yield from notify_idle()
    yield Store("armed", 0, buffered=not rules.disarm_seq_cst)
    if rules.disarms_before_notify:
        yield from notify_idle()


def notify_ring(rules: Rules) -> Thread:
    """What follows a put: notify(not_empty)."""
    word = yield Load("getters")
    if word.sleepers and not word.searchers:
        sleeping = Sleeping(grants_a_thread_too=rules.grants_a_thread_too)
        granted = yield under_lock("getters", "grant", partial(grant, sleeping))
        while granted:
            if granted[0] == WATCHER:
                yield from trigger(rules)
            else:
                yield post(granted[0])
            granted = granted[1:]


def remove(rules: Rules) -> Thread:
    """PoolRun.remove, by a worker that finds the source exhausted or by a reader that closes the stream."""
    linked = yield Step("unlinks the source", unlink)
    if linked and rules.removal_disarms and (yield Step("disarms the watcher", partial(exchange_armed, 1))):
        yield under_lock("getters", "removes the watcher", partial(leave, WATCHER))


def unlink(m: Memory) -> Any:
    if m.lock:
        return BLOCKED
    linked, m.linked = m.linked, False
    return linked


# A worker.


def has_work(rules: Rules) -> Thread:
    """WorkSource.has_work. Its lock keeps workers from drawing meanwhile; that makes no difference here."""
    place = yield Step("looks for a place", lambda m: not m.ended and (m.places > 0 or not rules.work_needs_place))
    if place and (yield Load("items")):
        return True
    if not rules.end_is_work or not (yield Step("looks for the end", lambda m: m.closed and not m.ended)):
        return False
    return not (yield Load("items"))


def lock(m: Memory) -> Any:
    """Together with the first access under it: no other thread can tell them apart."""
    if m.lock:
        return BLOCKED
    m.lock = 1
    return m.linked, ORDERS[m.first], bool(m.inbox) if ORDERS[m.first][0] == "inbox" else m.ended


def next_source(rules: Rules, arms: bool, in_turn: bool) -> Thread:
    """A source with work, or ""; unlinks the wrapped one if it has ended. `in_turn`: the next one is first then."""
    while True:
        found, spent, at = "", False, 0
        linked, order, seen = yield Step("locks the pool, looks at the first", lock)
        while at < 2 and not found and not spent:
            if order[at] == "inbox":
                if seen if at == 0 else (yield Load("inbox")):
                    found = "inbox"
            elif linked:
                spent = seen if at == 0 else (yield Load("ended"))
                if not spent:
                    if arms and rules.arms_before_check:
                        yield from arm()
                    if (yield from has_work(rules)):
                        found = "source"
                    if arms and not rules.arms_before_check:
                        yield from arm()
            at += 1
        yield Step("unlocks the pool", partial(unlock, found if in_turn else ""))
        if not spent:
            return found
        yield from remove(rules)


def unlock(found: str, m: Memory) -> None:
    m.lock = 0
    if found:
        m.first = int(found == "inbox")


def claim(m: Memory) -> str:
    """WorkSource.claim, under the source's lock."""
    if m.ended:
        return ""
    if m.closed and not m.items:
        return "the end"
    if not m.places or not m.items:
        return ""
    m.items -= 1
    m.places -= 1
    m.drawn += 1
    return "source"


def claim_inbox(m: Memory) -> str:
    if not m.inbox:
        return ""
    m.inbox -= 1
    return "inbox"


def take(rules: Rules, arms: bool) -> Thread:
    """WorkerLoop.take: where the operation comes from that it took, or "" if there is none."""
    while True:
        found = yield from next_source(rules, arms, True)
        if not found:
            return ""
        got = yield Step(f"claims from the {found}", claim if found == "source" else claim_inbox)
        if got == "the end":
            yield Store("ended", True)
        elif got:
            if got == "source" and rules.arms_on_claim and (yield Load("idle")).sleepers:
                yield from arm()
                if (yield from has_work(rules)):
                    yield from notify_idle()
            return got


def any_work(rules: Rules) -> Thread:
    """The check that a searcher owes."""
    arms = rules.owed_check_arms and (yield Load("idle")).sleepers > 0
    return (yield from next_source(rules, arms, False))


def wait_for(rules: Rules, me: str, asleep: bool) -> Thread:
    """Sleeps until it has taken one; `asleep`: begins there."""
    searching = owes = False
    while True:
        got = "" if asleep else (yield from take(rules, rules.first_check_arms))
        if got:
            break
        if not asleep:
            yield under_lock("idle", "sleep on", partial(begin_sleep, me, searching))
            searching = False
            got = yield from take(rules, rules.last_check_arms)
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
    if (searching or owes) and (yield from any_work(rules)):
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
    m.ready += took == "source"
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
    """A blocking get by a thread that is no worker."""
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
    threads = tuple(node for node in w.nodes if node != WATCHER)
    return Waiting(0, w.searchers + len(threads)), (WATCHER in w.nodes, threads)


def closer(rules: Rules) -> Thread:
    """RingBuffer.close: threads are woken first, then the watcher is triggered."""
    yield Store("closed", True)
    triggers, nodes = yield under_lock("getters", "grant all", grant_all)
    while nodes:
        yield post(nodes[0])
        nodes = nodes[1:]
    if triggers:
        yield from trigger(rules)


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
            return f"asleep with an item available: {m.idle.nodes}"
        if serves and m.closed and not m.items:
            return f"asleep with a source that has ended: {m.idle.nodes}"
        if serves and not m.closed and WATCHER not in m.getters.nodes:
            return f"asleep, and the watcher is disarmed: {m.idle.nodes}"
    direct = {*m.getters.nodes} - {WATCHER}
    if direct and (m.items or m.closed):
        return f"a direct reader is asleep with an item available, or at the end: {direct}"
    if not m.linked and WATCHER in m.getters.nodes:
        return "a watcher is left in the ring of a source that was removed"
    unfinished -= {*m.idle.nodes} | direct
    if not m.ready:
        unfinished = frozenset(name for name in unfinished if name[0] != "R")
    if unfinished:
        return f"blocked without end, and not a sleeper: {', '.join(sorted(unfinished))}"
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
        "items": 0, "closed": False, "getters": Waiting(1, 0, (WATCHER,)) if asleep else Waiting(),
        "idle": Waiting(len(asleep), 0, asleep), "posted": frozenset(), "armed": int(bool(asleep)), "inbox": 0,
        "places": places, "ready": 0, "ended": False, "linked": True, "lock": 0, "first": 0,
        "put": 0, "drawn": 0, "direct": 0,
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
def test_no_worker_sleeps_while_a_wrapped_ring_has_an_item(scenario: str, places: int, at_least: int) -> None:
    assert_holds(search(Rules(), scenario, places), at_least)


@pytest.mark.parametrize(("scenario", "places", "at_least"), SCENARIOS + LONG_SCENARIOS * LONG)
def test_the_first_check_need_not_arm_the_watcher(scenario: str, places: int, at_least: int) -> None:
    assert_holds(search(Rules(first_check_arms=False), scenario, places), 0)


MISSED = "asleep with an item available"
DISARMED = "the watcher is disarmed"
LEFT = "a watcher is left"


@pytest.mark.parametrize(
    ("bug", "scenario", "places", "finding"),
    [
        pytest.param("last_check_arms", "w P g", 2, DISARMED, id="last-check-does-not-arm"),
        pytest.param("arms_before_check", "w P P", 2, MISSED, id="ring-not-checked-after-arming"),
        pytest.param("owed_check_arms", "W W P P", 2, DISARMED, id="woken-for-an-item-that-another-took"),
        pytest.param("disarms_before_notify", "W P P", 2, MISSED, id="notifies-before-it-disarms"),
        pytest.param("disarm_seq_cst", "w P P", 2, MISSED, id="disarming-buffered-past-the-check-for-sleepers"),
        pytest.param("grants_a_thread_too", "W P P G", 1, "direct reader is asleep", id="watcher-consumes-the-wake-up"),
        pytest.param("reader_wakes", "W P P R", 1, MISSED, id="reader-wakes-no-thread"),
        pytest.param("work_needs_place", "W P P", 1, "livelock", id="work-without-a-place"),
        pytest.param("end_is_work", "W X", 2, "source that has ended", id="end-of-the-source-is-no-work"),
        pytest.param("removal_disarms", "W C", 2, LEFT, id="removal-leaves-the-watcher"),
    ],
)
def test_each_bug_is_found(bug: str, scenario: str, places: int, finding: str) -> None:
    broken = search(replace(Rules(), **{bug: False}), scenario, places)
    assert_found(broken, finding, search(Rules(), scenario, places))


FIRST_VERSION = Rules(owed_check_arms=False, arms_on_claim=True)


@pytest.mark.parametrize(
    ("rules", "scenario", "finding"),
    [
        pytest.param(FIRST_VERSION, "W W P P", DISARMED, id="two-workers-and-two-items"),
        pytest.param(FIRST_VERSION, "W W D P g", DISARMED, id="other-work-and-another-reader"),
        pytest.param(Rules(arms_on_claim=True), "w P C", LEFT, id="armed-while-the-source-is-removed"),
    ],
)
def test_the_first_version_is_broken(rules: Rules, scenario: str, finding: str) -> None:
    report = search(rules, scenario)
    print(report)
    assert finding in (report.problem or "nothing"), str(report)
