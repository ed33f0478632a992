"""Closing a ring, as a model that is searched exhaustively, on the sleep/wake protocol of test_model_park_wake.py.

Why a close leaves no thread asleep. The closed bit is set in the tail word before all sleepers are popped. A getter
that was on the list by then is woken; one that comes later looks after that, and sees the bit. After a close no thread
stays asleep, so the searchers that it makes need not check. Why a close loses no item: the bit is in the word that
puts claim, so no claim follows it, and who sees "closed and empty" has seen the last item go.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.models.model_checker import Memory, Step, Store, Thread, assert_found, assert_holds, post
from tests.models.test_model_park_wake import Rules, Waiting, search, section


def grant_everyone(w: Waiting) -> tuple[Waiting, tuple[str, ...]]:
    return Waiting(0, w.searchers + len(w.nodes)), w.nodes


def grant_first(w: Waiting) -> tuple[Waiting, tuple[str, ...]]:
    return Waiting(len(w.nodes[1:]), w.searchers + len(w.nodes[:1]), w.nodes[1:]), w.nodes[:1]


def closer(rules: Rules) -> Thread:
    def set_bit(m: Memory) -> None:
        m.tail |= 1

    if not rules.closed_bit_in_tail:
        yield Store("flag", True)
    elif rules.closes_before_waking:
        yield Step("sets the closed bit", set_bit)
    yield from wake_all(rules, "not_empty")
    yield from wake_all(rules, "not_full")
    if not rules.closes_before_waking:
        yield Step("sets the closed bit", set_bit)


def wake_all(rules: Rules, queue: str) -> Thread:
    nodes = yield from section(rules, queue, "grant all", grant_everyone if rules.close_wakes_all else grant_first)
    while nodes:
        yield post(nodes[0])
        nodes = nodes[1:]


@pytest.mark.parametrize(
    ("scenario", "capacity", "at_least"),
    [
        ("G* G* P X", 1, 20_000),
        ("G* P P? X", 1, 30_000),
        ("G P P2 X", 1, 30_000),
        ("G? P? P X", 1, 10_000),
        ("G* P2 X", 2, 1_000),
        ("G^* G^* P X", 1, 20_000),
    ],
)
def test_close_leaves_no_thread_asleep_and_loses_nothing(scenario: str, capacity: int, at_least: int) -> None:
    assert_holds(search(Rules(), scenario, capacity, closer), at_least)


@pytest.mark.parametrize(("scenario", "at_least"), [("G* P X", 7_000), ("P X P", 3_000)])
def test_the_same_with_every_access_a_step_of_its_own(scenario: str, at_least: int) -> None:
    assert_holds(search(Rules(fine=True), scenario, 1, closer), at_least)


ASLEEP = "asleep on a closed ring"


@pytest.mark.parametrize(
    ("bug", "scenario", "finding"),
    [
        pytest.param("closed_bit_in_tail", "G* P X", "lost item", id="closed-flag-outside-the-tail"),
        pytest.param("close_wakes_all", "G G X", ASLEEP, id="close-wakes-one-get"),
        pytest.param("close_wakes_all", "P P P X", ASLEEP, id="close-wakes-one-put"),
        pytest.param("last_look_sees_closed", "G* X", ASLEEP, id="last-look-of-a-get-blind-to-close"),
        pytest.param("last_look_sees_closed", "P P X", ASLEEP, id="last-look-of-a-put-blind-to-close"),
        pytest.param("looks_before_parking", "G* X", ASLEEP, id="no-look-before-parking"),
        pytest.param("closes_before_waking", "G* X", ASLEEP, id="wakes-then-closes"),
    ],
)
def test_each_bug_is_found(bug: str, scenario: str, finding: str) -> None:
    broken = search(replace(Rules(), **{bug: False}), scenario, 1, closer)
    assert_found(broken, finding, search(Rules(), scenario, 1, closer))
