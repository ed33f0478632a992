"""The end of a pool, as a model that is searched exhaustively: DRAINING, sealed, ENDING.

Why a draining pool ends, and not before its work is done. A shutdown first stops the pool from accepting (phase), then
ends the work sources, so that the number of accepted operations no longer changes, and records that (sealed); then it
wakes all workers. From then on a worker that finds no work compares the counters: if every accepted operation has
ended, it sets ENDING and wakes all. The worker that ends the last operation looks for the next one afterwards, so some
worker compares after the last operation has ended. A thread that ends an operation other than on a worker (a cancel,
the end of a delay) wakes workers, because none may be awake.

Before `sealed` the number of accepted operations may still change, so no worker compares.
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
    assert_found,
    assert_holds,
    explore,
    park,
)


@dataclass(frozen=True)
class Rules:
    """What the threads do. As it stands, the protocol; each turned over is a bug."""

    seals_after_sources: bool = True  # else at once, while operations may still be accepted
    asks_for_seal: bool = True
    shutdown_wakes_all: bool = True
    counts_last_look: bool = True  # the count is part of the look after begin_sleep
    ending_wakes_all: bool = True
    canceller_wakes: bool = True


def take(m: Memory) -> str | None:
    if m.queue:
        m.queue -= 1
        return "op"
    return "leave" if m.phase == "ending" else None


def begin_sleep(me: str, m: Memory) -> None:
    m.asleep |= {me}


def leave_list(me: str, m: Memory) -> bool:
    """True: it was woken meanwhile, and the wake-up is consumed."""
    woken = me not in m.asleep
    m.asleep -= {me}
    m.posted -= {me}
    return woken


def wake_all(m: Memory) -> None:
    m.posted |= m.asleep
    m.asleep = frozenset()


def wake_one(m: Memory) -> None:
    if m.asleep:
        first = min(m.asleep)
        m.asleep -= {first}
        m.posted |= {first}


def count_ended(m: Memory) -> None:
    m.ended += 1


def end(m: Memory) -> None:
    m.phase = "ending"


def ends(rules: Rules) -> Thread:
    """PoolRun.should_end: whether workers leave now, which this finds out."""
    phase = yield Load("phase")
    if phase == "ending":
        return True
    if phase != "draining" or (rules.asks_for_seal and not (yield Load("sealed"))):
        return False
    ended = yield Load("ended")
    if ended < (yield Load("accepted")):
        return False
    yield Step("sets ENDING", end)
    if rules.ending_wakes_all:
        yield Step("wakes all", wake_all)
    return True


def attempt(rules: Rules, counts: bool) -> Thread:
    got = yield Step("takes", take)
    if got is None and counts and (yield from ends(rules)):
        return "leave"
    return got


def worker(rules: Rules, me: str) -> Thread:
    while True:
        got = yield from attempt(rules, True)
        if got is None:
            yield Step("begins to sleep", partial(begin_sleep, me))
            got = yield from attempt(rules, rules.counts_last_look)
            if got is None:
                yield park(me)
                got = yield from attempt(rules, True)
            else:
                yield Step("leaves the list", partial(leave_list, me))
        if got == "leave":
            return
        if got == "op":
            yield Step("ends an operation", count_ended)
        got = None


def putter() -> Thread:
    """do(): refused once the phase forbids it, or the inbox is closed."""
    if (yield Load("phase")) != "open":
        return
    if (yield Step("puts", put)):
        yield Step("wakes one", wake_one)


def put(m: Memory) -> bool:
    if m.shut:
        return False
    m.queue += 1
    m.accepted += 1
    return True


def shut_inbox(m: Memory) -> None:
    m.shut = True


def drain(m: Memory) -> None:
    m.phase = "draining"


def shutdown(rules: Rules) -> Thread:
    yield Step("sets DRAINING", drain)
    if rules.seals_after_sources:
        yield Step("ends the sources", shut_inbox)
        yield Store("sealed", True)
    else:
        yield Store("sealed", True)
        yield Step("ends the sources", shut_inbox)
    if rules.shutdown_wakes_all:
        yield Step("wakes all", wake_all)


def canceller(rules: Rules) -> Thread:
    """Ends one whose delay runs: accepted, in no queue, and ended by no worker."""
    yield Step("ends an operation", count_ended)
    if rules.canceller_wakes and (yield Load("phase")) != "open":
        yield Step("wakes all", wake_all)


def at_rest(m: Memory, unfinished: frozenset[str]) -> str | None:
    if unfinished:
        return f"waits forever: {', '.join(sorted(unfinished))}"
    if m.queue or m.ended != m.accepted:
        return f"ended with {m.queue} in the queue, {m.ended} of {m.accepted} ended"
    return None


@cache
def search(rules: Rules, scenario: str) -> Report:
    """W works, P puts, S shuts down, C cancels one whose delay runs."""
    words = scenario.split()
    memory: dict[str, Any] = {
        "phase": "open", "sealed": False, "shut": False, "queue": 0, "accepted": words.count("C"), "ended": 0,
        "asleep": frozenset(), "posted": frozenset(),
    }
    threads: dict[str, ThreadFunction] = {}
    for i, word in enumerate(words):
        threads[f"{word}.{i}"] = {
            "W": partial(worker, rules, f"{word}.{i}"), "P": putter, "S": partial(shutdown, rules),
            "C": partial(canceller, rules),
        }[word]
    return explore(memory, threads, at_rest=at_rest)


@pytest.mark.parametrize(
    ("scenario", "at_least"),
    [
        ("W P S", 200),
        ("W W P S", 3_000),
        ("W P P S", 500),
        ("W W C S", 2_000),
        ("W P C S", 1_000),
        ("W W P C S", 20_000),
    ],
)
def test_a_draining_pool_ends_when_all_operations_have_ended(scenario: str, at_least: int) -> None:
    assert_holds(search(Rules(), scenario), at_least)


@pytest.mark.parametrize(
    ("bug", "scenario", "finding"),
    [
        pytest.param("seals_after_sources", "W P S", "ended with", id="sealed-before-the-sources-end"),
        pytest.param("asks_for_seal", "W P S", "ended with", id="counts-while-some-come-in"),
        pytest.param("shutdown_wakes_all", "W S", "waits forever", id="shutdown-wakes-no-thread"),
        pytest.param("counts_last_look", "W W S", "waits forever", id="last-look-without-the-count"),
        pytest.param("ending_wakes_all", "W W P S", "waits forever", id="the-last-one-leaves-alone"),
        pytest.param("canceller_wakes", "W C S", "waits forever", id="a-cancel-wakes-no-thread"),
    ],
)
def test_each_bug_is_found(bug: str, scenario: str, finding: str) -> None:
    assert_found(search(replace(Rules(), **{bug: False}), scenario), finding, search(Rules(), scenario))


# ----------------------------------------------------------------------------------------------------------------
# Fork: the queues of a child belong to the parent's epoch, may be torn, and their lock may be held by none.

@dataclass(frozen=True)
class ForkRules:
    """What the threads of a child do with a queue that they inherited; each turned over is a bug."""

    claims_by_cas: bool = True  # one thread resets it
    others_wait: bool = True  # while it is being reset
    forgets_the_lock: bool = True  # whose holder stayed in the parent
    forgets_the_word: bool = True  # a searcher of the parent's will never look


def reset(rules: ForkRules) -> Thread:
    seen = yield Load("epoch")
    while seen != 2:
        if rules.claims_by_cas:
            mine = seen == 1 and (yield Step("claims the reset", claim_reset))
        else:
            mine = seen == 1
            if mine:
                yield Store("epoch", 0)
        if mine:
            if rules.forgets_the_word:
                yield Store("word", (0, 0))
            if rules.forgets_the_lock:
                yield Store("lock", 0)
            yield Store("node", "")
            yield Store("epoch", 2)
            return
        if not rules.others_wait:
            return
        yield Step("waits for the reset", lambda m: None if m.epoch == 2 else BLOCKED)
        seen = yield Load("epoch")


def claim_reset(m: Memory) -> bool:
    if m.epoch != 1:
        return False
    m.epoch = 0
    return True


def locked(rules: ForkRules, label: str, edit: Any) -> Thread:
    yield from reset(rules)
    yield Step("locks", take_lock)
    result = yield Step(label, edit)
    yield Store("lock", 0)
    return result


def take_lock(m: Memory) -> Any:
    if m.lock:
        return BLOCKED
    m.lock = 1
    return None


def child_sleeps(m: Memory) -> None:
    m.word = (m.word[0] + 1, m.word[1])
    m.node = "getter"


def child_leaves(m: Memory) -> bool:
    if m.node != "getter":
        return True
    m.word, m.node = (m.word[0] - 1, m.word[1]), ""
    return False


def child_grants(m: Memory) -> bool:
    if m.node != "getter" or m.word[1]:
        return False
    m.word, m.node = (m.word[0] - 1, m.word[1] + 1), ""
    return True


def child_getter(rules: ForkRules) -> Thread:
    if (yield Load("item")):
        return
    yield from locked(rules, "sleeps", child_sleeps)
    if (yield Load("item")) and not (yield from locked(rules, "leaves", child_leaves)):
        return
    yield Step("parked", lambda m: None if m.posted else BLOCKED)


def child_putter(rules: ForkRules) -> Thread:
    yield Store("item", True)
    sleepers, searchers = yield Load("word")
    if searchers and (yield Load("epoch")) == 2:  # one of the parent's will not look
        return
    if (sleepers or searchers) and (yield from locked(rules, "grants", child_grants)):
        yield Store("posted", True)


def search_child(rules: ForkRules, inherited: tuple[int, int], lock: int) -> Report:
    memory = {"epoch": 1, "word": inherited, "lock": lock, "node": "", "item": False, "posted": False}
    return explore(memory, {"getter": partial(child_getter, rules), "putter": partial(child_putter, rules)})


INHERITED = [((0, 0), 0), ((1, 0), 0), ((0, 1), 0), ((1, 1), 1), ((0, 0), 1), ((0, 1), 1)]


@pytest.mark.parametrize(("word", "lock"), INHERITED)
def test_a_child_process_can_use_every_queue_it_inherits(word: tuple[int, int], lock: int) -> None:
    assert_holds(search_child(ForkRules(), word, lock), 30)


@pytest.mark.parametrize(
    "bug", [pytest.param(name, id=name.replace("_", "-")) for name in ForkRules.__dataclass_fields__]
)
def test_each_bug_of_a_child_is_found(bug: str) -> None:
    reports = [search_child(replace(ForkRules(), **{bug: False}), word, lock) for word, lock in INHERITED]
    problems = [report.problem for report in reports if report.problem]
    print(problems)
    assert problems
