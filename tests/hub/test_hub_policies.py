"""Each overflow policy is exact under concurrency: each published item is read, left, dropped or refused, exactly once.

Two publishers, each with a rising series of numbers, a reader, and buffers of one to three items, so that nearly every
item meets a full buffer, or one that is about to be.
"""

from __future__ import annotations

import contextlib
import queue
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from ringmill import Closed, Hub, Subscription
from tests.threads import run_threads, start_threads

Item = tuple[int, int]  # publisher, number: rising by one for each publisher

PUBLISHERS = 2
SEEDS = 3

tiny_buffers = pytest.mark.parametrize("buffer", [1, 2, 3])
both_calls = pytest.mark.parametrize("publish", ["signal", "broadcast"])


class Publisher:
    """Publishes `count` items by one call; keeps the account of which were taken, and which were refused."""

    def __init__(self, hub: Hub[Item], number: int, count: int, call: str, timeout: float | None = None) -> None:
        self.call: Callable[..., Any] = getattr(hub, call)
        self.number, self.count, self.timeout = number, count, timeout
        self.taken: list[Item] = []
        self.untaken: list[Item] = []  # no subscriber took it, and the call said so
        self.refused: list[Item] = []  # queue.Full
        self.counts = 0  # how many those calls said took it

    def run(self) -> None:
        for number in range(self.count):
            item = (self.number, number)
            try:
                taken = self.call(item, timeout=self.timeout)
            except queue.Full as error:
                self.counts += getattr(error, "count", 0)
                self.refused.append(item)
            else:
                (self.taken if taken else self.untaken).append(item)


class Reader:
    """Reads, by any of the calls, until the subscription has ended; now and then it lets the others go ahead."""

    def __init__(self, sub: Subscription[Item], seed: int) -> None:
        self.sub = sub
        self.rng = random.Random(seed)

    def run(self) -> list[Item]:
        read: list[Item] = []
        try:
            while True:
                try:
                    call = self.rng.randrange(5)
                    if call == 0:
                        read.append(self.sub.get())
                    elif call == 1:
                        read.append(self.sub.get(timeout=1e-4))
                    elif call == 2:
                        read.append(self.sub.get_nowait())
                    elif call == 3:
                        read += self.sub.get_many(self.rng.choice([None, 1, 2]), timeout=1e-4)
                    else:
                        read.append(next(self.sub))
                except queue.Empty:
                    pass
        except (Closed, StopIteration):
            return read


class Run:
    """One hub with one subscription, read meanwhile by `readers` threads; what is left is read at the end."""

    def __init__(
        self, policy: Any, buffer: int, publish: str, seed: int, *, readers: int = 1, count: int = 200,
        timeout: float | None = None,
    ) -> None:
        self.seed = seed
        hub = Hub[Item](buffer=buffer, overflow=policy)
        self.sub = hub.subscribe()
        self.publishers = [Publisher(hub, i, count, publish, timeout) for i in range(PUBLISHERS)]
        started = start_threads(*[Reader(self.sub, seed + i).run for i in range(readers)]) if readers else None
        run_threads(*[publisher.run for publisher in self.publishers])
        self.dropped_by_then = self.sub.dropped
        hub.close()
        self.reads: list[list[Item]] = started.join() if started else []
        self.left = list(self.sub)
        self.dropped = self.sub.dropped
        assert self.dropped == self.dropped_by_then, seed  # closing and reading drop nothing
        assert len(self.left) <= buffer, seed
        self.taken = [item for publisher in self.publishers for item in publisher.taken]
        self.untaken = [item for publisher in self.publishers for item in publisher.untaken]
        self.refused = [item for publisher in self.publishers for item in publisher.refused]
        assert not any(publisher.counts for publisher in self.publishers), seed
        assert len(self.taken) + len(self.untaken) + len(self.refused) == PUBLISHERS * count, seed
        self.came_out = [item for read in self.reads for item in read] + self.left
        assert max(Counter(self.came_out).values(), default=1) == 1, seed
        for items in (*self.reads, self.left):
            assert_rising(items)
        if readers == 1:
            assert_rising(self.came_out)


def assert_rising(items: list[Item]) -> None:
    """What one reader saw of each publisher came in the order of publication."""
    for publisher in range(PUBLISHERS):
        numbers = [number for one, number in items if one == publisher]
        assert numbers == sorted(numbers)


def last_of_each(count: int = 200) -> list[Item]:
    return [(publisher, count - 1) for publisher in range(PUBLISHERS)]


# Each policy with one reader, and with two


@pytest.mark.stress
@both_calls
@tiny_buffers
@pytest.mark.parametrize("readers", [1, 2])
def test_drop_oldest(readers: int, buffer: int, publish: str, switch_interval: float, seed: int) -> None:
    """dropped + read + left = published, all were taken, and what came last of all is not what was dropped."""
    for one in range(seed, seed + SEEDS):
        run = Run("drop_oldest", buffer, publish, one, readers=readers)
        assert (run.untaken, run.refused) == ([], []), one
        assert run.dropped + len(run.came_out) == PUBLISHERS * 200, one
        # Which of the publishers ended last is unknown; but one did.
        assert set(run.came_out) & set(last_of_each()), one


@pytest.mark.stress
@both_calls
@tiny_buffers
def test_drop_oldest_unread_keeps_the_newest(buffer: int, publish: str, switch_interval: float, seed: int) -> None:
    """Full at the end, with an unbroken end of what each publisher published."""
    for one in range(seed, seed + SEEDS):
        run = Run("drop_oldest", buffer, publish, one, readers=0)
        assert len(run.left) == buffer, one
        assert run.dropped == PUBLISHERS * 200 - buffer, one
        assert run.left[-1] in last_of_each(), one
        for publisher in range(PUBLISHERS):
            numbers = [number for who, number in run.left if who == publisher]
            assert numbers == list(range(200 - len(numbers), 200)), one


@pytest.mark.stress
@both_calls
@pytest.mark.parametrize("readers", [0, 1, 2])
def test_latest(readers: int, publish: str, switch_interval: float, seed: int) -> None:
    """Keeps one, the newest, whatever buffer the hub has."""
    for one in range(seed, seed + SEEDS):
        run = Run("latest", 3, publish, one, readers=readers)
        assert (run.untaken, run.refused) == ([], []), one
        assert run.dropped + len(run.came_out) == PUBLISHERS * 200, one
        assert len(run.left) <= 1, one
        if readers == 0:
            assert len(run.left) == 1, one
        if readers < 2:
            assert run.came_out[-1] in last_of_each(), one
        assert set(run.came_out) & set(last_of_each()), one


@pytest.mark.stress
@both_calls
@tiny_buffers
@pytest.mark.parametrize("readers", [0, 1, 2])
def test_drop_incoming(readers: int, buffer: int, publish: str, switch_interval: float, seed: int) -> None:
    """What the call says was taken is what comes out; what was not is counted."""
    for one in range(seed, seed + SEEDS):
        run = Run("drop_incoming", buffer, publish, one, readers=readers)
        assert run.refused == [], one
        assert run.dropped == len(run.untaken), one
        assert Counter(run.came_out) == Counter(run.taken), one
        if readers == 0:
            assert len(run.left) == buffer, one
            assert {number for _, number in run.left} <= set(range(buffer)), one  # the first ones


@pytest.mark.stress
@both_calls
@tiny_buffers
@pytest.mark.parametrize("readers", [0, 1, 2])
def test_raise(readers: int, buffer: int, publish: str, switch_interval: float, seed: int) -> None:
    """The publisher is told at once, and what it was not told about comes out."""
    for one in range(seed, seed + SEEDS):
        run = Run("raise", buffer, publish, one, readers=readers)
        assert (run.untaken, run.dropped) == ([], 0), one
        assert Counter(run.came_out) == Counter(run.taken), one
        if readers == 0:
            assert len(run.left) == buffer, one


@pytest.mark.stress
@both_calls
@tiny_buffers
@pytest.mark.parametrize("readers", [1, 2])
def test_block(readers: int, buffer: int, publish: str, switch_interval: float, seed: int) -> None:
    """All are delivered, each once, in order."""
    for one in range(seed, seed + SEEDS):
        run = Run("block", buffer, publish, one, readers=readers)
        assert (run.untaken, run.refused, run.dropped) == ([], [], 0), one
        assert Counter(run.came_out) == Counter((p, n) for p in range(PUBLISHERS) for n in range(200)), one


@pytest.mark.stress
@both_calls
@tiny_buffers
@pytest.mark.parametrize("timeout", [0, 1e-4])
def test_block_with_a_timeout(timeout: float, buffer: int, publish: str, switch_interval: float, seed: int) -> None:
    """An item whose publisher was told Full is nowhere, all others come out."""
    for one in range(seed, seed + SEEDS):
        run = Run("block", buffer, publish, one, timeout=timeout)
        assert (run.untaken, run.dropped) == ([], 0), one
        assert Counter(run.came_out) == Counter(run.taken), one


# All of them on one hub


@pytest.mark.stress
@pytest.mark.parametrize("buffer", [1, 3])
def test_all_policies_on_one_hub(buffer: int, switch_interval: float, seed: int) -> None:
    """Each subscription keeps its own account, and what the broadcasts return is the sum of what was taken."""
    policies: list[Any] = ["block", "drop_oldest", "drop_incoming", "latest", "raise"]
    count = 150
    for one in range(seed, seed + SEEDS):
        hub = Hub[Item](buffer=buffer)
        subs = [hub.subscribe(overflow=policy) for policy in policies]

        def publish(publisher: int, hub: Hub[Item] = hub) -> tuple[int, int]:
            taken = raised = 0
            for number in range(count):
                try:
                    taken += hub.broadcast((publisher, number))
                except queue.Full as error:
                    raised += 1
                    taken += error.count  # type: ignore[attr-defined]
            return taken, raised

        readers = start_threads(*[Reader(sub, one + i).run for i, sub in enumerate(subs)])
        results = run_threads(*[partial(publish, i) for i in range(PUBLISHERS)])
        hub.close()
        got = readers.join()
        taken, raised = (sum(numbers) for numbers in zip(*results, strict=True))
        total = PUBLISHERS * count
        for items in got:
            assert_rising(items)
            assert max(Counter(items).values(), default=1) == 1, one
        block, drop_oldest, drop_incoming, latest, refusing = (
            (len(items), sub.dropped) for items, sub in zip(got, subs, strict=True)
        )
        assert block == (total, 0), one
        assert sum(drop_oldest) == sum(drop_incoming) == sum(latest) == total, one
        assert refusing == (total - raised, 0), one
        assert taken == 3 * total + drop_incoming[0] + refusing[0], one


# Leaving in the middle


@pytest.mark.stress
@tiny_buffers
@pytest.mark.parametrize("policy", ["block", "drop_oldest", "drop_incoming", "latest"])
def test_leaving_in_the_middle(policy: Any, buffer: int, switch_interval: float, seed: int) -> None:
    """At a random moment, while another one stays: what was taken by then was read, is left or was dropped."""
    count = 100
    for one in range(seed, seed + 4 * SEEDS):
        hub = Hub[Item](buffer=buffer)
        stays = hub.subscribe()
        leaves = hub.subscribe(overflow=policy)

        def publish(publisher: int, hub: Hub[Item] = hub) -> int:
            return sum(hub.broadcast((publisher, number)) for number in range(count))

        def leave(hub: Hub[Item] = hub, sub: Subscription[Item] = leaves, moment: int = one % 60) -> list[Item]:
            read: list[Item] = []
            while len(read) + sub.dropped < moment:
                with contextlib.suppress(queue.Empty):
                    read.append(sub.get(timeout=1e-4))
            assert hub.unsubscribe(sub)
            return read + list(sub)

        reader = start_threads(partial(list, stays))
        *taken, read = run_threads(*[partial(publish, i) for i in range(PUBLISHERS)], leave)
        hub.close()
        (got,) = reader.join()
        assert sorted(got) == [(publisher, number) for publisher in range(PUBLISHERS) for number in range(count)], one
        assert_rising(read)
        assert len(got) + len(read) + (leaves.dropped if policy in ("drop_oldest", "latest") else 0) == sum(taken), one
