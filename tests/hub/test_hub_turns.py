"""`signal` goes to the first subscription from the current one on that has room, however many are full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import random
import threading
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import pytest

from ringmill import Hub, Subscription
from ringmill.hub import Overflow
from tests.threads import LONG, run_threads

POLICIES: list[Overflow] = ["block", "drop_oldest", "drop_incoming", "latest", "raise"]


class Circle:
    """What a hub promises to one thread, as plain lists; a subscription is known by its number."""

    def __init__(self) -> None:
        self.circle: list[int] = []  # from the head on
        self.at = 0  # the index of the current one
        self.policies: list[str] = []
        self.sizes: list[int] = []
        self.items: list[list[Any]] = []

    def subscribe(self, size: int, policy: str) -> None:
        self.circle.append(len(self.items))
        self.sizes.append(1 if policy == "latest" else size)
        self.policies.append(policy)
        self.items.append([])

    def unsubscribe(self, number: int) -> None:
        place = self.circle.index(number)
        del self.circle[place]
        self.at -= place < self.at
        if self.at == len(self.circle):
            self.at = 0

    def has_room(self, number: int) -> bool:
        return len(self.items[number]) < self.sizes[number]

    def by_policy(self, number: int, item: Any) -> str:
        """What becomes of the item: "taken", "dropped", or "full" for queue.Full."""
        if not self.has_room(number):
            if self.policies[number] in ("block", "raise"):
                return "full"
            if self.policies[number] == "drop_incoming":
                return "dropped"
            self.items[number].pop(0)
        self.items[number].append(item)
        return "taken"

    def signal(self, item: Any) -> int | str | None:
        """The number of the one that took it; None if it was dropped, or there is none; "full" for queue.Full."""
        if not self.circle:
            return None
        turns = self.circle[self.at :] + self.circle[: self.at]
        chosen = next(filter(self.has_room, turns), turns[0])
        self.at = (self.circle.index(chosen) + 1) % len(self.circle)
        return {"taken": chosen, "dropped": None, "full": "full"}[self.by_policy(chosen, item)]

    def broadcast(self, item: Any) -> int | str:
        outcomes = [self.by_policy(number, item) for number in self.circle]
        return "full" if "full" in outcomes else outcomes.count("taken")


def outcome(publish: Callable[[Any, float], Any], item: Any) -> Any:
    try:
        return publish(item, 0)
    except queue.Full:
        return "full"


@pytest.mark.parametrize("most", [1, 2, 5, 80])
def test_turns_are_those_of_a_plain_list(most: int, seed: int) -> None:
    """Random calls of one thread, on a hub and on a plain model of it, with up to so many subscriptions."""
    for one in range(seed, seed + 8):
        compare_with_a_plain_list(most, random.Random(one), one)


def compare_with_a_plain_list(most: int, rng: random.Random, seed: int) -> None:
    hub, plain = Hub[int](), Circle()
    subs: list[Subscription[int]] = []

    def subscribe() -> None:
        size, policy = rng.randint(1, 3), rng.choice(POLICIES)
        plain.subscribe(size, policy)
        subs.append(hub.subscribe(size, policy))

    for _ in range(rng.randint(0, most)):
        subscribe()
    for item in range(600):
        what = rng.random()
        if what < 0.6:
            taker = outcome(hub.signal, item)
            got = subs.index(taker) if isinstance(taker, Subscription) else taker
            assert got == plain.signal(item), (seed, item)
        elif what < 0.9 and subs:
            number = rng.randrange(len(subs))
            if plain.items[number]:
                if rng.random() < 0.5:
                    assert subs[number].get_nowait() == plain.items[number].pop(0)
                else:
                    assert subs[number].get_many(2) == plain.items[number][:2]
                    del plain.items[number][:2]
        elif what < 0.92:
            assert outcome(hub.broadcast, item) == plain.broadcast(item), (seed, item)
        elif what < 0.96 and len(plain.circle) < most:
            subscribe()
        elif plain.circle:
            number = rng.choice(plain.circle)
            plain.unsubscribe(number)
            assert hub.unsubscribe(subs[number])
    assert [sub.get_many() if len(sub) else [] for sub in subs] == plain.items, seed


# The set has levels of 64, 4,096 and 262,144 places: at the borders of its words.
@pytest.mark.parametrize("count", [1, 63, 64, 65, 129, 4_097, 5_000])
def test_the_only_one_with_room_is_found_wherever_it_is(count: int, seed: int) -> None:
    hub = Hub[str](buffer=1, overflow="drop_incoming")
    subs = [hub.subscribe() for _ in range(count)]
    assert hub.broadcast("old") == count
    dropped = 0
    rng = random.Random(seed)
    borders = [place for place in (0, 1, 62, 63, 64, 65, 127, 128, 4_095, 4_096, count - 1) if place < count]
    for place in borders + [rng.randrange(count) for _ in range(30)]:
        for _ in range(rng.randrange(3)):  # the turn moves on by one with each
            assert hub.signal("dropped") is None
            dropped += 1
        assert subs[place].get_nowait() in ("old", "new")
        assert hub.signal("new") is subs[place]
    assert sum(sub.dropped for sub in subs) == dropped


def test_a_hub_that_shrinks_and_grows_keeps_the_turns() -> None:
    """Places are numbered anew several times meanwhile, and some subscriptions stay passed over."""
    hub = Hub[int](buffer=1, overflow="raise")
    full = [hub.subscribe() for _ in range(5)]
    assert hub.broadcast(0) == 5
    with pytest.raises(queue.Full):
        hub.signal(0)
    for count in (1, 10, 100, 300, 3):
        others = [hub.subscribe() for _ in range(count)]
        assert {hub.signal(number) for number in range(count)} == set(others)
        with pytest.raises(queue.Full):
            hub.signal(0)
        assert full[3].get() == 0
        assert hub.signal(0) is full[3]
        if count % 2:
            for other in others:
                other.close()
        del others  # ends the rest
        assert len(hub) == 5


# Each way to take an item


async def anext_of(sub: Subscription[str]) -> str:
    return await anext(aiter(sub))


TAKES: dict[str, Callable[[Subscription[str]], Any]] = {
    "get": lambda sub: sub.get(),
    "get with a timeout": lambda sub: sub.get(timeout=LONG),
    "get_nowait": lambda sub: sub.get_nowait(),
    "get_many": lambda sub: sub.get_many(),
    "get_many of one": lambda sub: sub.get_many(1),
    "iteration": lambda sub: next(iter(sub)),
    "aget": lambda sub: asyncio.run(sub.aget()),
    "async iteration": lambda sub: asyncio.run(anext_of(sub)),
}


@pytest.mark.parametrize("take", TAKES)
def test_room_is_known_however_the_item_was_taken(take: str) -> None:
    hub = Hub[str](buffer=2, overflow="raise")
    subs = [hub.subscribe() for _ in range(4)]
    for _ in range(2):
        hub.broadcast("old")
    for sub in subs[2], subs[0], subs[2], subs[3]:
        with pytest.raises(queue.Full):
            hub.signal("new")  # passes over all
        took = TAKES[take](sub)
        taken = len(took) if isinstance(took, list) else 1
        assert [hub.signal("new") for _ in range(taken)] == [sub] * taken


def test_room_is_known_after_a_wait() -> None:
    """The item that a waiting reader gets has been in a full buffer for a moment."""

    hub = Hub[int](buffer=1)
    subs = [hub.subscribe() for _ in range(3)]

    def publish() -> None:
        for number in range(300):
            assert hub.signal(number, timeout=LONG) is not None
        hub.close()

    _, *got = run_threads(publish, lambda: list(subs[0]), lambda: [*subs[1]], partial(drain_by_tasks, subs[2]))
    assert sorted(chain(*got)) == list(range(300))


def drain_by_tasks(sub: Subscription[int]) -> list[int]:
    async def drain() -> list[int]:
        return [item async for item in sub]

    return asyncio.run(drain())


def test_what_a_dropped_item_publishes_finds_no_room_of_its_own() -> None:
    """drop_oldest: the place of the dropped item belongs to the new one, which is there by then."""

    class Publishing:
        def __del__(self) -> None:
            came.extend([len(oldest), hub.signal("from __del__")])

    hub = Hub[Any](buffer=1, overflow="drop_incoming")
    oldest, other = hub.subscribe(overflow="drop_oldest"), hub.subscribe()
    came: list[Any] = []
    assert (hub.signal(Publishing()), hub.signal("full")) == (oldest, other)
    assert hub.signal("new") is oldest
    assert came == [1, None]  # it was the turn of `other`
    assert (oldest.dropped, other.dropped) == (1, 1)
    assert (oldest.get(), other.get()) == ("new", "full")


# Many threads


def assert_room_is_known(hub: Hub[Any], subs: list[Subscription[Any]]) -> None:
    """At rest: as many signals as there are places go to those that have them, and one more to none."""
    places = sum(sub.buffer - len(sub) for sub in subs)
    takers = [hub.signal("last", timeout=0) for _ in range(places)]
    assert all(taker is not None for taker in takers)
    assert [len(sub) for sub in subs] == [sub.buffer for sub in subs]
    with contextlib.suppress(queue.Full):
        assert hub.signal("none", timeout=0) is None


@pytest.mark.stress
@pytest.mark.parametrize("count", [1, 3, 70])
def test_no_room_is_forgotten(count: int, switch_interval: float, seed: int) -> None:
    """Publishers find tiny buffers full, readers empty them; afterwards each place is found, and each item is there."""
    for one in range(seed, seed + 10):
        hub = Hub[tuple[int, int]](buffer=1, overflow="raise")
        subs = [hub.subscribe(buffer=1 + number % 2) for number in range(count)]

        def publish(publisher: int, hub: Hub[tuple[int, int]] = hub) -> list[tuple[int, int]]:
            taken = []
            for number in range(400):
                with contextlib.suppress(queue.Full):
                    assert hub.signal((publisher, number)) is not None
                    taken.append((publisher, number))
            return taken

        def read(rng: random.Random, subs: list[Subscription[Any]] = subs) -> list[tuple[int, int]]:
            got: list[Any] = []
            for _ in range(600):
                sub = rng.choice(subs)
                with contextlib.suppress(queue.Empty):
                    if rng.random() < 0.5:
                        got.append(sub.get_nowait())
                    else:
                        got += sub.get_many(timeout=0)
            return got

        results = run_threads(
            *[partial(publish, number) for number in range(2)],
            *[partial(read, random.Random(one + number)) for number in range(2)],
        )
        left = [item for sub in subs if len(sub) for item in sub.get_many()]
        assert sorted(chain(*results[:2])) == sorted([*chain(*results[2:]), *left]), one
        assert_room_is_known(hub, subs)


@pytest.mark.stress
def test_a_reader_that_has_read_finds_its_own_room(switch_interval: float) -> None:
    """All else is full: a signal after the own get never meets the policy of another."""
    hub = Hub[int](buffer=1, overflow="raise")
    stuck = [hub.subscribe() for _ in range(70)]
    mine = [hub.subscribe() for _ in range(3)]
    assert hub.broadcast(-1) == 73

    def read_and_publish(number: int) -> int:
        total = 0
        for item in range(5_000):
            total += len(mine[number].get_many(timeout=LONG))  # what comes may be another thread's
            assert hub.signal(item) in mine
        return total

    assert sum(run_threads(*[partial(read_and_publish, number) for number in range(3)])) == 15_000
    assert [len(sub) for sub in mine] == [1] * 3
    assert [len(sub) for sub in stuck] == [1] * 70
    assert_room_is_known(hub, stuck + mine)


@pytest.mark.stress
def test_room_made_while_its_subscription_is_passed_over_is_known() -> None:
    """Rounds of a publisher and a reader without pauses; after each, a free place is found at once."""
    hub = Hub[int](buffer=1, overflow="raise")
    stuck = [hub.subscribe() for _ in range(70)]
    read_in = hub.subscribe()
    assert hub.broadcast(0) == 71
    together = threading.Barrier(2, timeout=LONG)

    def publish() -> None:
        for _ in range(300):
            together.wait()
            for _ in range(100):
                with contextlib.suppress(queue.Full):
                    hub.signal(1)
            together.wait()
            if not len(read_in):
                assert hub.signal(2) is read_in

    def read() -> None:
        for _ in range(300):
            together.wait()
            for _ in range(100):
                with contextlib.suppress(queue.Empty):
                    read_in.get_nowait()
            together.wait()

    run_threads(publish, read)
    assert [len(sub) for sub in stuck] == [1] * 70


@pytest.mark.stress
def test_turns_while_subscriptions_come_and_go(switch_interval: float, seed: int) -> None:
    """Every signal that was taken is read from the subscription that took it, also after that has ended."""
    hub = Hub[tuple[int, int]](buffer=1, overflow="raise")
    stays = [hub.subscribe() for _ in range(40)]
    done: list[bool] = []

    def publish(publisher: int) -> list[Any]:
        taken = []
        for number in range(500):
            with contextlib.suppress(queue.Full):
                taker = hub.signal((publisher, number))
                if taker is not None:
                    taken.append((taker.id, (publisher, number)))
        done.append(True)
        return taken

    def read(rng: random.Random) -> list[Any]:
        got = []
        while len(done) < 2:
            sub = rng.choice(stays)
            with contextlib.suppress(queue.Empty):
                got.append((sub.id, sub.get_nowait()))
        return got

    def come_and_go(rng: random.Random) -> list[Any]:
        got: list[Any] = []
        while len(done) < 2:
            subs = [hub.subscribe() for _ in range(rng.randint(1, 30))]
            rng.shuffle(subs)
            for sub in subs:
                with contextlib.suppress(queue.Empty):
                    got.append((sub.id, sub.get_nowait()))
                sub.close()
                got += [(sub.id, item) for item in sub]
        return got

    results = run_threads(
        *[partial(publish, number) for number in range(2)],
        *[partial(read, random.Random(seed + number)) for number in range(2)],
        *[partial(come_and_go, random.Random(seed + number)) for number in range(2)],
    )
    left = [(sub.id, item) for sub in stays if len(sub) for item in sub.get_many()]
    assert sorted(chain(*results[:2])) == sorted([*chain(*results[2:]), *left])
    assert len(hub) == 40
    assert_room_is_known(hub, stays)


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # "is multi-threaded"
def test_room_that_a_thread_of_the_parent_was_making_is_known_in_the_child() -> None:
    """The fork finds a reader between its get and its report of it: it wakes a task that waits for room."""
    taken, forked = threading.Event(), threading.Event()

    class Loop(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            if threading.current_thread().name == "test-reader":
                taken.set()
                assert forked.wait(LONG)
            return super().call_soon_threadsafe(*args, **kwargs)

    hub = Hub[str](buffer=1, overflow="raise")
    waited_in, other = hub.subscribe(overflow="block"), hub.subscribe()
    assert hub.broadcast("old") == 2
    waits = threading.Event()

    async def publish() -> Any:
        task = asyncio.ensure_future(hub.asignal("new"))
        await asyncio.sleep(0)
        waits.set()
        return await task

    def run_loop() -> Any:
        loop = Loop()
        try:
            return loop.run_until_complete(publish())
        finally:
            loop.close()

    took: list[Any] = []
    publisher = threading.Thread(target=lambda: took.append(run_loop()), daemon=True)
    reader = threading.Thread(target=lambda: took.append(waited_in.get()), name="test-reader", daemon=True)
    publisher.start()
    assert waits.wait(LONG)
    reader.start()
    assert taken.wait(LONG)
    pid = os.fork()
    if pid == 0:
        try:
            assert hub.signal("in the child") is waited_in
            assert (waited_in.get_nowait(), other.get_nowait()) == ("in the child", "old")
            assert {hub.signal("more"), hub.signal("more")} == {waited_in, other}
            os._exit(0)
        finally:
            os._exit(1)
    forked.set()
    assert os.waitpid(pid, 0)[1] == 0
    reader.join(LONG)
    publisher.join(LONG)
    assert sorted(map(str, took)) == sorted([str(waited_in), "old"])
