"""SourceList as a model, searched exhaustively: where workers look, and how they learn of work in other sources.

A source is READY, QUIET or SPENT (source_list.pyx). Workers look at READY ones only. A worker that finds nothing in a
READY source, under the pool's lock, writes QUIET into its place, and looks once more; if there is something now, it
writes READY again. A thread that publishes something in a source (an item, the room that a read makes) reads the place
afterwards, and if that is QUIET makes the source READY, under the lock; then it notifies the workers. Of what is put
into a wrapped ring the RingWatcher learns (test_model_ring_watcher.py): a worker arms it before that second look, and
where it is woken, it is disarmed, then makes the source READY, then notifies.

Why no work is overlooked. Both sides write first and read then, and all four accesses are sequentially consistent: so
the worker's second look sees what was published, or the publisher reads QUIET. The publisher makes the source READY
before it notifies, so a worker that it wakes, and a searcher that it relies on, looks at the source after that. For a
ring: wherever a source is QUIET, the watcher is in the ring's queue or is being triggered; the thread that triggers it
disarms it before it makes the source READY, and the worker that makes the source QUIET after that arms it anew.

Why no source stays that has ended. The thread that ends it makes it READY afterwards, if it was QUIET, and wakes no
worker: the next worker that looks finds it spent. This holds also for a worker that ends a ring's source while its turn
lasts, without a look at the list: another one may make the source QUIET at that moment. A stream that is dropped makes
its source SPENT and wakes a worker, since what is left is to be cancelled. Under the lock only sources that are linked
are moved: one that was removed is not made READY again.

States: an inbox; a source that is drawn (its items, whether it is closed, whether its stream was dropped); a source
that is a ring (the same, the places left in its stream's buffer, whether it has ended, its queue of getters, the
watcher's word); the place of both; `idle`. Each access is a step; a section under a queue's lock is one step. The
pool's lock is a variable. No source without work is kept READY (the core keeps up to eight). A worker takes from the
source of its last operation without a look at the list, while its turn lasts. Processing ends, or never ends.

In the final state: no worker is asleep while there is something that it could take, or while a dropped stream's source
is left; a source that has ended is removed, or is READY or SPENT for the next look, and not QUIET; the watcher is in
the ring of a source that is QUIET, and not in the ring of one that was removed; no source that was removed is in a
list; all items are accounted for.

Left out: the order in which sources take turns; counting the work that waits, which is a look like any other; the user
who takes the last item of a closed ring while the stream has no room, which the next read finds out; what
test_model_ring_watcher.py leaves out.
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
)
from tests.models.test_model_park_wake import Rules as Sleeping
from tests.models.test_model_park_wake import Waiting as Queue
from tests.models.test_model_park_wake import begin_sleep, grant, leave, stop_searching, under_lock, wake


@dataclass(frozen=True)
class Rules:
    """What the threads do. The defaults are the protocol; each one inverted is a bug, except the redundant ones."""

    looks_again: bool = True  # after it has written QUIET
    quiet_before_second_look: bool = True
    quiet_seq_cst: bool = True  # that store
    found_makes_ready: bool = True  # the second look found something: READY again
    arms_before_second_look: bool = True
    announces_after_publishing: bool = True
    publishes_seq_cst: bool = True  # the item; with one publisher
    announcement_makes_ready: bool = True
    ready_before_notify: bool = True
    room_is_announced: bool = True  # by a read of the stream
    only_quiet_becomes_ready: bool = True  # checked under the lock
    disarms_before_ready: bool = True  # the watcher
    watcher_makes_ready: bool = True
    watcher_forgets_removed: bool = True
    end_makes_ready: bool = True
    closed_before_work: bool = True  # the order of the two loads in a look
    drop_makes_spent: bool = True
    drop_notifies: bool = True
    drop_ends: bool = True  # a worker ends the source, and cancels what is left
    removal_disarms: bool = True
    look_sees_drop: bool = True  # redundant: the thread that drops the stream makes the source SPENT
    claimer_makes_ready: bool = True  # a worker whose turn it is, and that ends the source without a look at the list
    few_stay_ready: bool = False  # no bug: a source without work may also stay READY, as one of a few does


UNLINKED, QUIET, READY, SPENT = "unlinked", "quiet", "ready", "spent"
WATCHER = "watcher@"  # @: a Sleeper, which is granted without becoming a searcher
DRAWN, RING = "drawn", "ring"
notify_idle = partial(wake, Sleeping(), "idle")


# The list.


def make_ready(rules: Rules, source: str) -> Step:
    """PoolRun.make_ready, and the section of ring_changed."""

    def run(m: Memory) -> Any:
        if m.lock:
            return BLOCKED
        if getattr(m, f"{source}_place") == QUIET or not rules.only_quiet_becomes_ready:
            setattr(m, f"{source}_place", READY)
        return None

    return Step(f"makes the {source} READY", run)


def announce(rules: Rules, source: str) -> Thread:
    if not rules.ready_before_notify:
        yield from notify_idle()
    if rules.announcement_makes_ready and (yield Load(f"{source}_place")) == QUIET:
        yield make_ready(rules, source)
    if rules.ready_before_notify:
        yield from notify_idle()


def drop(rules: Rules, source: str) -> Thread:
    """PoolRun.drop, when the stream is gone."""
    yield Store(f"{source}_dropped", True)
    if rules.drop_makes_spent:
        yield Step(f"makes the {source} SPENT", partial(make_spent, source))
    if rules.drop_notifies:
        yield from notify_idle()


def make_spent(source: str, m: Memory) -> Any:
    if m.lock:
        return BLOCKED
    if getattr(m, f"{source}_place") != UNLINKED:
        setattr(m, f"{source}_place", SPENT)
    return None


# The watcher.


def arm() -> Thread:
    if not (yield Step("arms the watcher", partial(exchange_armed, 1))):
        yield under_lock("getters", "watcher begins to sleep", partial(begin_sleep, WATCHER, False))


def exchange_armed(wanted: int, m: Memory) -> int:
    was, m.armed = m.armed, wanted
    return int(was)


def trigger(rules: Rules) -> Thread:
    """RingWatcher.wake: it was granted, and is out of the ring's queue."""
    if rules.disarms_before_ready:
        yield Store("armed", 0)
    if rules.watcher_makes_ready:
        yield Step("the watcher makes the ring READY", partial(ring_changed, rules))
    yield from notify_idle()
    if not rules.disarms_before_ready:
        yield Store("armed", 0)


def ring_changed(rules: Rules, m: Memory) -> Any:
    if m.lock:
        return BLOCKED
    if m.ring_place == QUIET or (m.ring_place == UNLINKED and not rules.watcher_forgets_removed):
        m.ring_place = READY
    return None


def notify_ring(rules: Rules) -> Thread:
    """What follows a put into the ring: notify(not_empty)."""
    word = yield Load("getters")
    if word.sleepers and not word.searchers:
        granted = yield under_lock("getters", "grant", partial(grant, Sleeping()))
        if granted:
            yield from trigger(rules)


# A worker.


def look(rules: Rules, source: str, arms: bool) -> Thread:
    """One look of SourceList.look_at: "work", "spent" or "nothing"."""
    if rules.look_sees_drop and (yield Load(f"{source}_dropped")):
        return SPENT
    if source == RING:
        if (yield Load("ring_ended")):
            return SPENT
        if arms:
            yield from arm()
        return "work" if (yield from ring_has_work()) else "nothing"
    closed = False
    if rules.closed_before_work:
        closed = yield Load("drawn_closed")
    if (yield Load("drawn_items")):
        return "work"
    if not rules.closed_before_work:
        closed = yield Load("drawn_closed")
    return SPENT if closed else "nothing"


def ring_has_work() -> Thread:
    """WorkSource.has_work. Its lock keeps workers from drawing meanwhile; that makes no difference here."""
    if (yield Step("looks for a place", lambda m: not m.ring_ended and m.places > 0)) and (yield Load("ring_items")):
        return True
    if not (yield Step("looks for the end", lambda m: m.ring_closed and not m.ring_ended)):
        return False
    return not (yield Load("ring_items"))


STAYS_OR_NOT = Choice((Step("it stays READY", lambda m: True), Step("it becomes QUIET", lambda m: False)))


def look_at(rules: Rules, source: str, watch: bool) -> Thread:
    """SourceList.look_at: whether it has work."""
    place = f"{source}_place"
    seen = yield from look(rules, source, watch)
    if seen == "nothing" and rules.few_stay_ready and (yield STAYS_OR_NOT):
        return False
    if seen == "nothing":
        if rules.quiet_before_second_look:
            yield Store(place, QUIET, buffered=not rules.quiet_seq_cst)
        if rules.looks_again:
            seen = yield from look(rules, source, rules.arms_before_second_look)
        if source == RING and seen == "nothing" and not (rules.looks_again and rules.arms_before_second_look):
            yield from arm()
        if not rules.quiet_before_second_look:
            yield Store(place, QUIET if seen == "nothing" else READY)
        elif seen == "work" and rules.found_makes_ready:
            yield Store(place, READY)
    if seen == SPENT:
        yield Store(place, SPENT)
    return seen == "work"


def lock(sources: tuple[str, ...], m: Memory) -> Any:
    """The READY sources. Their places are written under the lock only."""
    if m.lock:
        return BLOCKED
    m.lock = 1
    return ("inbox", *(source for source in sources if getattr(m, f"{source}_place") == READY))


def unlock(sources: tuple[str, ...], m: Memory) -> bool:
    m.lock = 0
    return any(getattr(m, f"{source}_place") == SPENT for source in sources)


def next_source(rules: Rules, sources: tuple[str, ...], watch: bool) -> Thread:
    """PoolRun.next_source: a source with work, or ""; removes those that are spent."""
    while True:
        found = ""
        ready = yield Step("locks the pool", partial(lock, sources))
        while ready and not found:
            if ready[0] == "inbox":
                has_work = (yield Load("inbox")) > 0
            else:
                has_work = yield from look_at(rules, ready[0], watch)
            found = ready[0] if has_work else ""
            ready = ready[1:]
        ready, has_work = (), False
        spent = yield Step("unlocks the pool", partial(unlock, sources))
        if spent:
            yield from remove_spent(rules, sources)
        if found or not spent:
            return found


def remove_spent(rules: Rules, sources: tuple[str, ...]) -> Thread:
    while True:
        source = yield Step("takes a spent one", partial(first_spent, sources))
        if not source:
            return
        if (yield Load(f"{source}_dropped")) and rules.drop_ends:
            yield from end_abandoned(source)
        yield from remove(rules, source)


def first_spent(sources: tuple[str, ...], m: Memory) -> Any:
    if m.lock:
        return BLOCKED
    spent = [source for source in sources if getattr(m, f"{source}_place") == SPENT]
    return spent[0] if spent else ""


def end_abandoned(source: str) -> Thread:
    if source == RING:
        yield Store("ring_ended", True)
        return
    yield Store("drawn_closed", True)
    yield Step("cancels what is left", cancel_drawn)


def cancel_drawn(m: Memory) -> None:
    m.drawn_ended += m.drawn_items
    m.drawn_items = 0


def remove(rules: Rules, source: str) -> Thread:
    """PoolRun.remove: by a worker, or by a reader that closes the stream or has come to its end."""
    linked = yield Step(f"unlinks the {source}", partial(unlink, source))
    if source != RING or not linked or not rules.removal_disarms:
        return
    if (yield Step("disarms the watcher", partial(exchange_armed, 1))):
        yield under_lock("getters", "removes the watcher", partial(leave, WATCHER))


def unlink(source: str, m: Memory) -> Any:
    if m.lock:
        return BLOCKED
    linked = getattr(m, f"{source}_place") != UNLINKED
    setattr(m, f"{source}_place", UNLINKED)
    m.removed |= {source}
    return linked


def claim(source: str, m: Memory) -> str:
    """WorkSource.claim."""
    if source == "inbox":
        m.inbox, got = max(0, m.inbox - 1), m.inbox > 0
        return source if got else ""
    if source == DRAWN:
        if not m.drawn_items:
            return ""
        m.drawn_items -= 1
        m.drawn_ended += 1
        return source
    if m.ring_ended:
        return ""
    if m.ring_closed and not m.ring_items:
        return "the end"
    if not m.places or not m.ring_items:
        return ""
    m.ring_items -= 1
    m.places -= 1
    m.ring_drawn += 1
    return source


def take_from(rules: Rules, source: str) -> Thread:
    got = yield Step(f"claims from the {source}", partial(claim, source))
    if got == "the end":
        yield Store("ring_ended", True)
        if rules.claimer_makes_ready:
            yield make_ready(rules, RING)
        return ""
    return got


def take(rules: Rules, sources: tuple[str, ...], watch: bool, mine: str) -> Thread:
    """WorkerLoop.take: where the operation comes from that it took, or "" if there is none. `mine`: its turn."""
    if mine:
        got = yield from take_from(rules, mine)
        if got:
            return got
    while True:
        found = yield from next_source(rules, sources, watch)
        if not found:
            return ""
        got = yield from take_from(rules, found)
        if got:
            return got


def wait_for(rules: Rules, sources: tuple[str, ...], me: str, asleep: bool, mine: str) -> Thread:
    """Sleeps until it has taken one; `asleep`: begins there."""
    searching = owes = False
    while True:
        got = "" if asleep else (yield from take(rules, sources, False, mine))
        mine = ""
        if got:
            break
        if not asleep:
            yield under_lock("idle", "sleep on", partial(begin_sleep, me, searching))
            searching = False
            got = yield from take(rules, sources, True, "")
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
    if searching or owes:
        watch = (yield Load("idle")).sleepers > 0
        if (yield from next_source(rules, sources, watch)):
            yield from notify_idle()
    return got


def worker(rules: Rules, sources: tuple[str, ...], me: str, asleep: bool) -> Thread:
    got = ""
    while True:
        got = yield from wait_for(rules, sources, me, asleep, got)
        asleep = False
        if not (yield Choice((Step("processing", partial(finish, got)), Step("processing", never)))):
            return


def finish(took: str, m: Memory) -> bool:
    m.ready += took == RING
    return True


def never(m: Memory) -> bool:
    return False


# The others. Each is one letter of a scenario.


def draw(rules: Rules) -> Thread:
    """d: the reader, or the thread, draws an item."""
    if not rules.announces_after_publishing:
        yield from announce(rules, DRAWN)
    if not rules.publishes_seq_cst:
        yield Step("counts", count_drawn)
        yield Store("drawn_items", 1, buffered=True)
        published = True
    else:
        published = yield Step("publishes an item", publish_drawn)
    if published and rules.announces_after_publishing:
        yield from announce(rules, DRAWN)


def count_drawn(m: Memory) -> None:
    m.drawn_put += 1


def publish_drawn(m: Memory) -> bool:
    if m.drawn_closed:
        return False
    m.drawn_items += 1
    m.drawn_put += 1
    return True


def end_drawing(rules: Rules) -> Thread:
    """e: the source that is drawn is exhausted, or has raised."""
    yield Store("drawn_closed", True)
    if rules.end_makes_ready:
        yield make_ready(rules, DRAWN)


def drop_drawn(rules: Rules) -> Thread:
    """x: its stream is dropped."""
    yield from drop(rules, DRAWN)


def close_drawn(rules: Rules) -> Thread:
    """c: its stream is closed."""
    yield from end_abandoned(DRAWN)
    yield from remove(rules, DRAWN)
    yield from notify_idle()


def put(rules: Rules) -> Thread:
    """P: the user puts an item into the ring."""
    if (yield Step("puts", put_item)):
        yield from notify_ring(rules)


def put_item(m: Memory) -> bool:
    if m.ring_closed:
        return False
    m.ring_items += 1
    m.ring_put += 1
    return True


def get(rules: Rules) -> Thread:
    """G: the user gets an item, if there is one."""
    yield Step("gets at once", get_item)


def get_item(m: Memory) -> None:
    if m.ring_items:
        m.ring_items -= 1
        m.ring_direct += 1


def close_ring(rules: Rules) -> Thread:
    """E: the user closes the ring: its end as a source."""
    yield Store("ring_closed", True)
    if (yield under_lock("getters", "grant all", grant_all)):
        yield from trigger(rules)


def grant_all(w: Queue) -> tuple[Queue, bool]:
    return Queue(0, w.searchers), bool(w.nodes)


def read(rules: Rules) -> Thread:
    """R: a read of the ring's stream makes room."""
    yield Step("reads", read_one)
    if rules.room_is_announced:
        yield from announce(rules, RING)
    else:
        yield from notify_idle()


def read_one(m: Memory) -> Any:
    if not m.ready:
        return BLOCKED
    m.ready -= 1
    m.places += 1
    return None


def drop_ring(rules: Rules) -> Thread:
    """X: the ring's stream is dropped."""
    yield from drop(rules, RING)


def close_stream(rules: Rules) -> Thread:
    """C: the ring's stream is closed."""
    yield from end_abandoned(RING)
    yield from remove(rules, RING)
    yield from notify_idle()


def submit(rules: Rules) -> Thread:
    """I: an operation is put into the inbox."""
    yield Step("submits", submit_one)
    yield from notify_idle()


def submit_one(m: Memory) -> None:
    m.inbox += 1


ACTIONS = {
    "d": draw, "e": end_drawing, "x": drop_drawn, "c": close_drawn, "P": put, "G": get, "E": close_ring, "R": read,
    "X": drop_ring, "C": close_stream, "I": submit,
}


def actor(rules: Rules, letters: str) -> Thread:
    while letters:
        yield from ACTIONS[letters[0]](rules)
        letters = letters[1:]


# What must hold.


def invariant(m: Memory) -> str | None:
    if m.idle.searchers not in (0, 1) or m.getters.searchers:
        return f"searchers: {m.idle}, {m.getters}"
    for source in m.removed:
        if getattr(m, f"{source}_place") != UNLINKED:
            return f"the {source} was removed, and is in a list"
    return None


def complaint_of_drawn(m: Memory) -> str | None:
    if m.drawn_put != m.drawn_ended + m.drawn_items:
        return f"{m.drawn_put} were drawn, {m.drawn_ended} ended, {m.drawn_items} are left"
    if m.drawn_place == UNLINKED:
        return "removed with an item left" if m.drawn_items else None
    if m.idle.nodes and m.drawn_dropped:
        return f"asleep with a stream that was dropped: {m.idle.nodes}"
    if m.idle.nodes and m.drawn_items:
        return f"asleep with an item available: {m.idle.nodes}"
    if m.drawn_place == QUIET and (m.drawn_items or m.drawn_closed or m.drawn_dropped):
        return "quiet with work, or an end"
    return None


def complaint_of_ring(m: Memory) -> str | None:
    if m.ring_put != m.ring_drawn + m.ring_direct + m.ring_items:
        return f"{m.ring_put} were put, {m.ring_drawn} drawn, {m.ring_direct} taken directly, {m.ring_items} are left"
    if m.ring_place == UNLINKED:
        return "a watcher is left in the ring of a source that was removed" if m.getters.nodes else None
    at_its_end = m.ring_closed and not m.ring_items and not m.ring_ended
    if m.idle.nodes and m.ring_dropped:
        return f"asleep with a stream that was dropped: {m.idle.nodes}"
    if m.idle.nodes and not m.ring_ended and ((m.places and m.ring_items) or at_its_end):
        return f"asleep with an item available, or the end: {m.idle.nodes}"
    if m.ring_place == QUIET and (m.ring_ended or m.ring_dropped or at_its_end or (m.places and m.ring_items)):
        return "quiet with work, or an end"
    if (m.ring_place == QUIET or m.idle.nodes) and not m.ring_closed and not m.ring_ended and not m.getters.nodes:
        return f"the watcher is disarmed, and the source is {m.ring_place}"
    return None


def at_rest(sources: tuple[str, ...], m: Memory, unfinished: frozenset[str]) -> str | None:
    if m.idle.nodes and m.inbox:
        return f"asleep with an item available: {m.idle.nodes}"
    complaints = [complaint_of_drawn(m) if source == DRAWN else complaint_of_ring(m) for source in sources]
    for complaint in complaints:
        if complaint:
            return complaint
    unfinished -= {*m.idle.nodes}
    if not m.ready:
        unfinished = frozenset(name for name in unfinished if "R" not in name)
    if unfinished:
        return f"blocked without end, and not a sleeper: {', '.join(sorted(unfinished))}"
    if m.posted or m.idle.searchers:
        return f"left: {m.posted}, {m.idle}"
    return None


@cache
def search(rules: Rules, scenario: str, places: int = 2) -> Report:
    """W works, asleep at first, when all have looked: the sources are QUIET; w works, awake at first. The other words
    are threads, which do what their letters say: see ACTIONS. There are the sources that these concern."""
    words = scenario.split()
    asleep = tuple(f"W.{i}" for i, word in enumerate(words) if word == "W")
    letters = {letter for word in words for letter in word}
    sources = ((DRAWN,) if letters & {*"dexc"} else ()) + ((RING,) if letters & {*"PGERXC"} else ())
    quiet = bool(asleep)
    memory: dict[str, Any] = {
        "lock": 0, "inbox": 0, "idle": Queue(len(asleep), 0, asleep), "posted": frozenset(), "removed": frozenset(),
        "getters": Queue(1, 0, (WATCHER,)) if quiet and RING in sources else Queue(), "armed": int(quiet),
        "drawn_place": QUIET if quiet else READY, "drawn_items": 0, "drawn_closed": False, "drawn_dropped": False,
        "drawn_put": 0, "drawn_ended": 0,
        "ring_place": QUIET if quiet else READY, "ring_items": 0, "ring_closed": False, "ring_dropped": False,
        "ring_ended": False, "places": places, "ready": 0, "ring_put": 0, "ring_drawn": 0, "ring_direct": 0,
    }
    threads: dict[str, ThreadFunction] = {}
    for i, word in enumerate(words):
        me = f"{word}.{i}"
        if word in ("W", "w"):
            threads[me] = partial(worker, rules, sources, me, word == "W")
        else:
            threads[me] = partial(actor, rules, word)
    return explore(memory, threads, invariant=invariant, at_rest=partial(at_rest, sources))


DRAWN_SCENARIOS = [
    ("w d d", 2, 4_000),
    ("w dde", 2, 1_500),
    ("w d d e", 2, 10_000),
    ("w d x", 2, 3_000),
    ("w d e x", 2, 5_000),
    ("w dx I", 2, 3_000),
    ("W W d d", 2, 1_000),
    ("W W d x", 2, 1_000),
    ("W w d e", 2, 7_000),
    ("w w de", 2, 30_000),
    ("w w dx", 2, 100_000),
]
RING_SCENARIOS = [
    ("w P P", 2, 9_000),
    ("w PP RR", 1, 10_000),
    ("w PE G R", 1, 5_000),
    ("w P G P", 2, 30_000),
    ("w P E", 2, 8_000),
    ("w P X", 2, 4_000),
    ("w P C", 2, 5_000),
    ("w E C", 2, 1_000),
    ("w P E X", 2, 20_000),
    ("W W P P", 2, 20_000),
    ("W W PE", 2, 3_000),
    ("W w PE", 2, 100_000),
    ("w d P", 2, 10_000),
]
LONG_SCENARIOS = [
    ("w w d d", 2, 400_000),
    ("w w d c", 2, 200_000),
    ("w w PE", 2, 400_000),
    ("w w P C", 2, 400_000),
    ("w w P X", 2, 500_000),
    ("W w P G d", 2, 300_000),
]
LONG = bool(os.environ.get("RINGMILL_LONG"))


@pytest.mark.parametrize(
    ("scenario", "places", "at_least"), DRAWN_SCENARIOS + RING_SCENARIOS + LONG_SCENARIOS * LONG
)
def test_no_worker_sleeps_while_a_quiet_source_has_work(scenario: str, places: int, at_least: int) -> None:
    assert_holds(search(Rules(), scenario, places), at_least)


@pytest.mark.parametrize(
    ("scenario", "places", "at_least"),
    [("w d d", 2, 4_000), ("w d e x", 2, 5_000), ("w d P", 2, 10_000), ("w P G P", 2, 30_000), ("w PP RR", 1, 10_000),
     ("w P E X", 2, 20_000), ("W W P P", 2, 20_000)],
)  # fmt: skip
def test_a_source_without_work_may_also_stay_ready(scenario: str, places: int, at_least: int) -> None:
    assert_holds(search(Rules(few_stay_ready=True), scenario, places), at_least)


@pytest.mark.parametrize("scenario", ["w d x", "W W d x", "w P X", "W W P X"])
def test_a_look_need_not_see_that_the_stream_was_dropped(scenario: str) -> None:
    assert_holds(search(Rules(look_sees_drop=False), scenario), 0)


MISSED = "asleep with an item available"
DROPPED = "asleep with a stream that was dropped"
LOST = "quiet with work, or an end"
DISARMED = "the watcher is disarmed"
REVIVED = "was removed, and is in a list"


@pytest.mark.parametrize(
    ("bug", "scenario", "places", "finding"),
    [
        pytest.param("looks_again", "w d", 2, MISSED, id="no-second-look"),
        pytest.param("looks_again", "w P", 2, MISSED, id="no-second-look-at-a-ring"),
        pytest.param("quiet_before_second_look", "w d", 2, MISSED, id="place-written-after-the-second-look"),
        pytest.param("quiet_before_second_look", "w PP R", 1, MISSED, id="place-written-after-the-second-look-room"),
        pytest.param("quiet_seq_cst", "w d", 2, MISSED, id="place-buffered-past-the-second-look"),
        pytest.param("found_makes_ready", "W W d d", 2, MISSED, id="found-work-and-stays-quiet"),
        pytest.param("arms_before_second_look", "w P", 2, MISSED, id="watcher-armed-after-the-second-look"),
        pytest.param("announces_after_publishing", "w d", 2, MISSED, id="announced-before-it-is-published"),
        pytest.param("publishes_seq_cst", "w d", 2, MISSED, id="publication-buffered-past-the-look-at-the-place"),
        pytest.param("announcement_makes_ready", "W d", 2, MISSED, id="announcement-only-notifies"),
        pytest.param("ready_before_notify", "W d", 2, MISSED, id="notifies-before-it-is-ready"),
        pytest.param("room_is_announced", "w PP R", 1, MISSED, id="room-is-not-announced"),
        pytest.param("only_quiet_becomes_ready", "w d c", 2, REVIVED, id="removed-source-made-ready"),
        pytest.param("disarms_before_ready", "w P G", 2, DISARMED, id="ready-before-the-watcher-is-disarmed"),
        pytest.param("watcher_makes_ready", "W P", 2, MISSED, id="watcher-only-notifies"),
        pytest.param("watcher_forgets_removed", "W P C", 2, REVIVED, id="watcher-of-a-removed-source"),
        pytest.param("end_makes_ready", "w e", 2, LOST, id="end-of-a-quiet-source"),
        pytest.param("closed_before_work", "w de", 2, "item left", id="looks-for-work-before-the-end"),
        pytest.param("drop_makes_spent", "W x", 2, DROPPED, id="drop-only-flags"),
        pytest.param("drop_makes_spent", "W X", 2, DROPPED, id="drop-only-flags-a-ring"),
        pytest.param("drop_notifies", "W x", 2, DROPPED, id="drop-wakes-no-worker"),
        pytest.param("drop_ends", "W dx", 2, "item left", id="dropped-source-removed-with-an-item"),
        pytest.param("removal_disarms", "W C", 2, "watcher is left", id="removal-leaves-the-watcher"),
        pytest.param("claimer_makes_ready", "W w PE", 2, LOST, id="ended-by-a-worker-on-its-turn"),
    ],
)
def test_each_bug_is_found(bug: str, scenario: str, places: int, finding: str) -> None:
    broken = search(replace(Rules(), **{bug: False}), scenario, places)
    assert_found(broken, finding, search(Rules(), scenario, places))
