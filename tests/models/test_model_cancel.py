"""Cancelling against taking, as a model that is searched exhaustively: an operation's state word, and orphans.

Why each submission of an operation has one outcome, comes out of its stream once, and only after its done(). `begin`
and `cancel` leave QUEUED by compare-and-swap on one word, so only one of them succeeds. The canceller calls done()
and leaves the place in the ring to the worker that claims it. That worker checks, under the pool's lock, whether
done() has been called: if so it emits the operation, else it leaves an orphan; the canceller looks for the orphan
under the same lock, after its done(). So one of the two sees the other, and emits. A canceller that is so slow that
the next submission has already been cancelled leaves the orphan of that submission alone until it is done. (The first
version did not, and this model found it: `orphan_only_of_a_done_life`.) PLACED stays set until a worker has passed the
place; a reset is refused until then, so that a place never stands for a later submission.

Why no waiter sleeps through done(): it sets WAITED and reads RELEASED in one read-modify-write, under the lock under
which it joins the list; the releaser sets RELEASED and reads WAITED in one, then takes the list under that lock.
"""

from __future__ import annotations

from collections.abc import Callable
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
    Thread,
    ThreadFunction,
    ViolationError,
    assert_found,
    assert_holds,
    explore,
    park,
)


@dataclass(frozen=True)
class Rules:
    """What the threads do. As it stands, the protocol; each turned over is a bug."""

    begin_by_cas: bool = True  # else: a load and a store
    cancel_by_cas: bool = True
    canceller_looks_for_orphan: bool = True
    claimer_asks_for_done: bool = True  # else it emits at once
    claimer_asks_under_lock: bool = True  # in one with leaving the orphan
    orphan_looked_for_after_done: bool = True
    orphan_only_of_a_done_life: bool = True  # else a slow canceller of one life takes the orphan of the next
    reset_asks_for_place: bool = True
    waiter_asks_in_one: bool = True  # WAITED and RELEASED in one read-modify-write
    waiter_joins_under_lock: bool = True  # in one with that
    releaser_asks_in_one: bool = True
    release_keeps_to_its_life: bool = True  # tell() names the phase that it ends


class Word(NamedTuple):
    phase: str = "new"  # queued, running, succeeded, cancelled
    released: bool = False
    waited: bool = False
    placed: bool = False
    life: int = 0  # ghost state: no thread looks at it


def change(label: str, edit: Callable[[Word], Word | None]) -> Step:
    """A loop of compare-and-swap, as the one step in which it succeeds; returns what was there, or None."""

    def run(m: Memory) -> Word | None:
        seen: Word = m.word
        wanted = edit(seen)
        if wanted is None:
            return None
        note_change(m, seen, wanted)
        return seen

    return Step(label, run)


def note_change(m: Memory, seen: Word, wanted: Word) -> None:
    """Ghost state: which life got which outcome."""
    if wanted.phase in ("succeeded", "cancelled") and seen.phase != wanted.phase:
        m.outcomes = (*m.outcomes, (seen.life, wanted.phase))
    if wanted.released and not seen.released and wanted.phase not in ("succeeded", "cancelled"):
        raise ViolationError("a life was released before its outcome")
    m.word = wanted


def put(label: str, wanted: Word) -> Step:
    def run(m: Memory) -> None:
        note_change(m, m.word, wanted)

    return Step(label, run)


def emit(life: int) -> Step:
    def run(m: Memory) -> None:
        m.emitted = (*m.emitted, life)
        if life not in m.released:
            raise ViolationError("it came out of its stream before its done()")

    return Step("emits", run)


def unplace() -> Step:
    return change("its place is passed", lambda w: w._replace(placed=False))


# The threads.

def take_waiters(m: Memory) -> None:
    m.posted = m.posted | {*m.waiters}
    m.waiters = ()


def release(rules: Rules, phase: str, life: int) -> Thread:
    """done(): sets RELEASED, if the operation is still what it was, and wakes who waits."""
    if rules.releaser_asks_in_one:
        seen = yield Step("releases", partial(set_released, rules.release_keeps_to_its_life, phase, life))
    else:
        seen = yield Load("word")
        yield Step("releases", partial(set_released, False, phase, life))
    if seen is not None and seen.waited:
        yield Step("wakes who waits", take_waiters)


def set_released(asks: bool, phase: str, life: int, m: Memory) -> Word | None:
    seen: Word = m.word
    m.released = m.released | {life}
    if (asks and seen.phase != phase) or seen.released:
        return None
    note_change(m, seen, seen._replace(released=True))
    return seen


def leave_orphan(asks: bool, life: int, m: Memory) -> str:
    if asks and m.word.released:
        return "done"
    m.orphans = (*m.orphans, life)
    return "left"


def worker(rules: Rules) -> Thread:
    """Claims places until there will be none: begins what it finds there and ends it, or passes it."""
    while True:
        life = yield Step("claims a place", claim)
        if life == 0:
            return
        if rules.begin_by_cas:
            began = yield change(
                "begins", lambda w: w._replace(phase="running", placed=False) if w.phase == "queued" else None
            )
        else:
            began = yield Load("word")
            if began.phase == "queued":
                yield put("begins", began._replace(phase="running", placed=False))
            else:
                began = None
        if began is not None:
            yield Step("runs it", partial(check_life, life))
            yield change("ends it", lambda w: w._replace(phase="succeeded"))
            yield from release(rules, "succeeded", life)
            yield emit(life)
            continue
        if not rules.claimer_asks_for_done:
            found = "done"
        elif rules.claimer_asks_under_lock:
            found = yield Step("asks whether it is done", partial(leave_orphan, True, life))
        else:
            found = "done" if (yield Load("word")).released else "left"
            if found == "left":
                yield Step("leaves an orphan", partial(leave_orphan, False, life))
        if found == "done":
            yield unplace()
            yield emit(life)


def claim(m: Memory) -> Any:
    if m.places:
        first, *rest = m.places
        m.places = tuple(rest)
        return first
    return 0 if m.over else BLOCKED


def check_life(life: int, m: Memory) -> None:
    if m.life != life:
        raise ViolationError("the place of one life began the next")


def take_orphan(asks: bool, m: Memory) -> int:
    if not m.orphans or (asks and not m.word.released):
        return 0
    life, *rest = m.orphans
    m.orphans = tuple(rest)
    return int(life)


def canceller(rules: Rules) -> Thread:
    """One cancel(), which ends a queued operation or does nothing."""
    def cancelled(w: Word) -> Word | None:
        return w._replace(phase="cancelled") if w.phase == "queued" else None

    if rules.cancel_by_cas:
        seen = yield change("cancels", cancelled)
    else:
        seen = yield Load("word")
        if seen.phase != "queued":
            return
        yield put("cancels", seen._replace(phase="cancelled"))
    if seen is None:
        return
    orphan = 0
    take = partial(take_orphan, rules.orphan_only_of_a_done_life and rules.orphan_looked_for_after_done)
    if not rules.orphan_looked_for_after_done:
        orphan = yield Step("looks for the orphan", take)
    yield from release(rules, "cancelled", seen.life)
    if rules.orphan_looked_for_after_done and rules.canceller_looks_for_orphan:
        orphan = yield Step("looks for the orphan", take)
    if orphan:
        yield unplace()
        yield emit(orphan)


def accept(m: Memory) -> bool:
    if m.word.phase != "new":
        return False
    m.life += 1
    m.word = m.word._replace(phase="queued", placed=True, life=m.life)
    return True


def place(m: Memory) -> None:
    m.places = (*m.places, m.life)


def finish(m: Memory) -> None:
    m.over = True


def join_list(me: str, m: Memory) -> None:
    m.waiters = (*m.waiters, me)


def ask_and_join(me: str, m: Memory) -> bool:
    released = bool(m.word.released)
    m.word = m.word._replace(waited=True)
    if not released:
        join_list(me, m)
    return released


def ask_nothing_and_join(me: str, m: Memory) -> None:
    set_waited(m)
    join_list(me, m)


def set_waited(m: Memory) -> bool:
    released = bool(m.word.released)
    m.word = m.word._replace(waited=True)
    return released


def wait(rules: Rules, me: str) -> Thread:
    while True:
        if rules.waiter_asks_in_one and rules.waiter_joins_under_lock:
            released = yield Step("joins, or sees that it is done", partial(ask_and_join, me))
        elif rules.waiter_asks_in_one:
            released = yield Step("waits, or sees that it is done", set_waited)
            if not released:
                yield Step("joins", partial(join_list, me))
        else:
            released = (yield Load("word")).released
            if not released:
                yield Step("joins", partial(ask_nothing_and_join, me))
        if released:
            return
        yield park(me)


def new_life(asks: bool, m: Memory) -> bool:
    w: Word = m.word
    if w.phase not in ("succeeded", "cancelled") or (asks and w.placed):
        return False
    m.word = Word(waited=w.waited and not w.released)
    return True


def user(rules: Rules, lives: int, waits: bool) -> Thread:
    """Hands it over, waits for it, resets it and hands it over again; says at the end that nothing more comes."""
    left = lives
    while left:
        left -= 1
        if not (yield Step("accepts it", accept)):
            break
        yield Step("places it", place)
        if waits:
            yield from wait(rules, "user")
        if left and not (yield Step("resets it", partial(new_life, rules.reset_asks_for_place))):
            break
    yield Step("no more", finish)


def waiter(rules: Rules, me: str) -> Thread:
    yield from wait(rules, me)


MEMORY: dict[str, Any] = {
    "word": Word(), "places": (), "orphans": (), "waiters": (), "posted": frozenset(), "over": False,
    "life": 0, "outcomes": (), "released": frozenset(), "emitted": (),
}


def at_rest(m: Memory, unfinished: frozenset[str]) -> str | None:
    if unfinished:
        return f"waits forever: {', '.join(sorted(unfinished))}"
    lives = [*range(1, m.life + 1)]
    if sorted(life for life, _ in m.outcomes) != lives:
        return f"lives {lives} had the outcomes {m.outcomes}"
    if sorted(m.emitted) != lives:
        return f"of lives {lives}, these came out: {m.emitted}"
    return None


@cache
def search(rules: Rules, scenario: str) -> Report:
    """U submits once and waits, u does not, 2 and n do so twice; W works, C cancels, A waits."""
    threads: dict[str, ThreadFunction] = {}
    for i, word in enumerate(scenario.split()):
        me = f"{word}.{i}"
        threads[me] = {
            "U": partial(user, rules, 1, True), "u": partial(user, rules, 1, False), "2": partial(user, rules, 2, True),
            "n": partial(user, rules, 2, False),
            "W": partial(worker, rules), "C": partial(canceller, rules), "A": partial(waiter, rules, me),
        }[word]
    return explore(MEMORY, threads, at_rest=at_rest)


@pytest.mark.parametrize(
    ("scenario", "at_least"),
    [
        ("U W C", 100),
        ("u W C C A", 1_000),
        ("2 W C", 300),
        ("2 W C C", 3_000),
        ("2 W W C", 2_000),
        ("2 W C A", 1_000),
        ("n W C", 100),
    ],
)
def test_each_life_ends_once_and_comes_out_once(scenario: str, at_least: int) -> None:
    assert_holds(search(Rules(), scenario), at_least)


@pytest.mark.parametrize(
    ("bug", "scenario", "finding"),
    [
        pytest.param("begin_by_cas", "u W C", "had the outcomes", id="begin-by-load-and-store"),
        pytest.param("cancel_by_cas", "u W C", "had the outcomes", id="cancel-by-load-and-store"),
        pytest.param("canceller_looks_for_orphan", "U W C", "came out", id="no-thread-takes-the-orphan"),
        pytest.param("claimer_asks_for_done", "U W C", "before its done", id="emits-before-done"),
        pytest.param("claimer_asks_under_lock", "U W C", "came out", id="orphan-left-after-the-look"),
        pytest.param("orphan_looked_for_after_done", "U W C", "came out", id="looks-for-the-orphan-before-done"),
        pytest.param("orphan_only_of_a_done_life", "2 W C C", "before its done", id="orphan-of-the-next-life"),
        pytest.param("reset_asks_for_place", "2 W C", "place of one life", id="reset-in-its-place"),
        pytest.param("waiter_asks_in_one", "U W", "waits forever", id="waiter-looks-then-joins"),
        pytest.param("waiter_joins_under_lock", "U W", "waits forever", id="waiter-joins-after-its-lock"),
        pytest.param("releaser_asks_in_one", "U W", "waits forever", id="releaser-looks-then-releases"),
        pytest.param("release_keeps_to_its_life", "n W", "released before its outcome", id="releases-the-next-life"),
    ],
)
def test_each_bug_is_found(bug: str, scenario: str, finding: str) -> None:
    assert_found(search(replace(Rules(), **{bug: False}), scenario), finding, search(Rules(), scenario))
