"""Many threads on one hub publish, read, subscribe and unsubscribe; every item is accounted for exactly once."""

from __future__ import annotations

import contextlib
import queue
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import pytest

from ringmill import Closed, Hub, Subscription
from tests.threads import run_threads, start_threads, wait_until

Item = tuple[int, int]  # publisher, number: rising by one for each publisher


def assert_without_gaps(items: list[Item], publishers: int) -> None:
    """What one subscription got of each publisher is a stretch of what that published, in order, none missing."""
    for publisher in range(publishers):
        numbers = [number for one, number in items if one == publisher]
        assert not numbers or numbers == list(range(numbers[0], numbers[0] + len(numbers))), (publisher, numbers)


# Signals


@pytest.mark.stress
@pytest.mark.parametrize("subscribers", [1, 2, 3])
def test_signals_of_many_threads_go_round_exactly(subscribers: int, switch_interval: float) -> None:
    """With room everywhere k signals reach n subscribers floor(k/n) or ceil(k/n) times each, none twice or never."""
    hub = Hub[Item](buffer=1000)
    subs = [hub.subscribe() for _ in range(subscribers)]

    def publish(publisher: int) -> list[Any]:
        return [hub.signal((publisher, number)) for number in range(101)]

    takers = Counter(chain.from_iterable(run_threads(*[partial(publish, i) for i in range(3)])))
    k = 3 * 101
    assert [takers[sub] for sub in subs] == [k // subscribers + (i < k % subscribers) for i in range(subscribers)]
    assert [len(sub) for sub in subs] == [takers[sub] for sub in subs]
    hub.close()
    got = [list(sub) for sub in subs]
    for items in got:
        for publisher in range(3):
            assert [item for item in items if item[0] == publisher] == sorted(
                item for item in items if item[0] == publisher
            )
    assert sorted(chain.from_iterable(got)) == [(publisher, number) for publisher in range(3) for number in range(101)]


@pytest.mark.stress
@pytest.mark.parametrize("buffer", [1, 2, 3])
def test_signals_reach_exactly_one_reader(buffer: int, switch_interval: float) -> None:
    """Tiny buffers, so that publishers pass over full ones and wait: the taker that signal names is who reads it."""
    hub = Hub[Item](buffer=buffer)
    subs = [hub.subscribe() for _ in range(3)]

    def publish(publisher: int) -> list[tuple[int, Item]]:
        taken = []
        for number in range(150):
            taker = hub.signal((publisher, number))
            assert taker is not None
            taken.append((taker.id, (publisher, number)))
        return taken

    readers = start_threads(*[partial(list, sub) for sub in subs])
    taken = list(chain.from_iterable(run_threads(*[partial(publish, i) for i in range(3)])))
    hub.close()
    got = readers.join()
    assert sorted((sub.id, item) for sub, items in zip(subs, got, strict=True) for item in items) == sorted(taken)
    assert Counter(item for _, item in taken) == Counter((p, n) for p in range(3) for n in range(150))
    for items in got:
        for publisher in range(3):
            numbers = [number for one, number in items if one == publisher]
            assert numbers == sorted(numbers)


@pytest.mark.stress
def test_signal_never_meets_the_policy_while_one_has_room(switch_interval: float) -> None:
    """However the turn moves under it by other publishers: "if none has room" is not true here."""
    for _ in range(3):
        hub = Hub[int](buffer=1)
        stuck = [hub.subscribe(overflow=policy) for policy in ("raise", "drop_incoming", "drop_oldest", "latest") * 5]
        assert hub.broadcast(-1) == 20
        roomy = hub.subscribe(buffer=4 * 400)

        def publish(hub: Hub[int] = hub, roomy: Subscription[int] = roomy) -> None:
            for i in range(400):
                assert hub.signal(i) is roomy

        run_threads(publish, publish, publish, publish)
        assert len(roomy) == 4 * 400
        assert [(sub.dropped, len(sub)) for sub in stuck] == [(0, 1)] * 20


def test_a_signal_that_waits_takes_the_room_that_comes() -> None:
    """Publishers wait at full subscriptions; each read lets exactly one of them go on."""
    for _ in range(30):
        hub = Hub[str](buffer=1)
        only = hub.subscribe()
        hub.signal("old")
        started = start_threads(*[lambda hub=hub: hub.signal("new")] * 3)
        assert [only.get(timeout=60) for _ in range(4)] == ["old", "new", "new", "new"]
        assert started.join() == [only] * 3
        assert len(only) == 0


# Slow subscribers


def test_a_slow_subscriber_delays_only_publishers_that_wait_for_it() -> None:
    """One publisher waits in a broadcast: others subscribe, leave, publish elsewhere and are told Full, at once."""
    hub = Hub[str](buffer=4)
    before = hub.subscribe()
    slow = hub.subscribe(buffer=1)
    after = hub.subscribe()
    assert hub.broadcast("old") == 3
    started = start_threads(lambda: hub.broadcast("waits"))
    wait_until(lambda: len(before) == len(after) == 2)  # everyone that has room has got it: what is left is to wait
    for i in range(50):
        with hub.subscribe(buffer=1) as passing:
            assert len(hub) == 4
            with pytest.raises(queue.Full) as caught:
                hub.broadcast(f"{i}", timeout=0)
            assert passing.get_nowait() == f"{i}"
            assert caught.value.count == 3  # type: ignore[attr-defined]
            assert hub.signal("one") in (before, after, passing)
            assert not passing.closed
        assert before.get_many()[-1] in (f"{i}", "one")
        after.get_many()
    assert started.threads[0].is_alive()
    assert slow.get() == "old"
    assert slow.get(timeout=60) == "waits"
    assert started.join() == [3]


def test_a_broadcast_delivers_to_all_with_room_before_it_waits() -> None:
    for place in range(3):
        hub = Hub[str](buffer=1)
        subs = [hub.subscribe() for _ in range(3)]
        hub.broadcast("old")
        quick = [sub for i, sub in enumerate(subs) if i != place]
        for sub in quick:
            sub.get()
        started = start_threads(partial(hub.broadcast, "new"))
        assert [sub.get(timeout=60) for sub in quick] == ["new", "new"]  # none waits for the slow one
        assert [subs[place].get(timeout=60) for _ in range(2)] == ["old", "new"]
        assert started.join() == [3]


def test_a_broadcast_is_seen_in_ring_order(switch_interval: float) -> None:
    """While one publishes, a reader that looks from the end to the beginning never sees more behind than before."""
    hub = Hub[int](buffer=2000)
    subs = [hub.subscribe() for _ in range(4)]
    done: list[bool] = []

    def publish() -> None:
        for i in range(2000):
            assert hub.broadcast(i) == 4
        done.append(True)

    def look() -> None:
        while not done:
            lengths = [len(sub) for sub in reversed(subs)]
            assert lengths == sorted(lengths)

    run_threads(publish, look)


# Leaving and closing


@pytest.mark.parametrize("publish", ["signal", "broadcast"])
@pytest.mark.parametrize("end", ["leave", "close"])
def test_blocked_publishers_continue_when_a_subscription_ends(end: str, publish: str) -> None:
    """Asleep already or still on the way there: a closed hub says Closed, and one that left is passed by."""
    for _ in range(40):
        hub = Hub[str](buffer=1)
        sub = hub.subscribe()
        hub.signal("old")
        entered: list[bool] = []

        def wait(hub: Hub[str] = hub, entered: list[bool] = entered) -> Any:
            entered.append(True)
            try:
                return getattr(hub, publish)("new")
            except Closed:
                return Closed

        started = start_threads(*[wait] * 3)
        wait_until(lambda entered=entered: len(entered) == 3)
        if end == "leave":
            assert hub.unsubscribe(sub)
            assert started.join() == [None if publish == "signal" else 0] * 3  # no subscriber is left
        else:
            hub.close()
            for answer in started.join():
                assert answer in ((Closed,) if publish == "signal" else (Closed, 0))
        assert list(sub) == ["old"]


def test_a_blocked_signal_goes_to_the_next_subscriber_when_its_subscriber_leaves() -> None:
    for _ in range(40):
        hub = Hub[str](buffer=1)
        subs = [hub.subscribe() for _ in range(3)]
        hub.broadcast("old")
        started = start_threads(*[lambda hub=hub: hub.signal("new")] * 2)
        leaving, also, stays = subs
        assert hub.unsubscribe(leaving)
        assert hub.unsubscribe(also)
        # Whichever of the three they had been waiting for, it is the one that stays now.
        assert [stays.get(timeout=60) for _ in range(3)] == ["old", "new", "new"]
        assert started.join() == [stays, stays]
        assert list(leaving) == list(also) == ["old"]


@pytest.mark.stress
@pytest.mark.parametrize("publish", ["signal", "broadcast"])
def test_items_taken_before_the_hub_closes_are_read(publish: str, switch_interval: float, seed: int) -> None:
    """At a random moment: what the calls said was taken is what the readers got, the last one included."""
    for one in range(seed, seed + 15):
        rng = random.Random(one)
        hub = Hub[Item](buffer=rng.randint(1, 3))
        subs = [hub.subscribe() for _ in range(rng.randint(1, 3))]

        def write(publisher: int, hub: Hub[Item] = hub) -> int:
            taken = number = 0
            try:
                while True:
                    answer = getattr(hub, publish)((publisher, number))
                    taken += answer if isinstance(answer, int) else answer is not None
                    number += 1
            except Closed:
                return taken

        def close(hub: Hub[Item] = hub, subs: list[Subscription[Item]] = subs, moment: int = rng.randrange(200)) -> int:
            for _ in range(moment):
                len(subs[0])
            hub.close()
            return 0

        results = run_threads(*[partial(write, i) for i in range(2)], close, *[partial(list, sub) for sub in subs])
        got = results[3:]
        assert sum(map(len, got)) == sum(results[:3]), one
        for items in got:
            assert max(Counter(items).values(), default=1) == 1
            if publish == "broadcast":
                assert_without_gaps(items, 2)
        assert all(sub.closed for sub in subs)


@pytest.mark.stress
def test_subscribing_while_the_hub_closes(switch_interval: float) -> None:
    """Each subscriber sees its subscription end; none is left in a closed hub."""
    for _ in range(15):
        hub = Hub[int]()
        begun: list[bool] = []

        def subscribe(hub: Hub[int] = hub, begun: list[bool] = begun) -> list[Subscription[int]]:
            mine: list[Subscription[int]] = []
            try:
                while True:
                    mine.append(hub.subscribe(buffer=1))
                    begun.append(True)
            except Closed:
                return mine

        def close(hub: Hub[int] = hub, begun: list[bool] = begun) -> list[Subscription[int]]:
            wait_until(lambda: len(begun) > 3)
            hub.close()
            return []

        subs = list(chain.from_iterable(run_threads(subscribe, subscribe, close)))
        assert all(sub.closed and list(sub) == [] for sub in subs)
        assert len(hub) == 0
        assert len({sub.id for sub in subs}) == len(subs)


@pytest.mark.stress
def test_each_subscription_is_ended_by_one_of_many(switch_interval: float) -> None:
    hub = Hub[int](buffer=1)
    subs = [hub.subscribe() for _ in range(200)]

    def leave(seed: int) -> int:
        mine = subs.copy()
        random.Random(seed).shuffle(mine)
        return sum(hub.unsubscribe(sub) for sub in mine)

    assert sum(run_threads(*[partial(leave, i) for i in range(3)])) == 200
    assert len(hub) == 0
    assert all(sub.closed for sub in subs)


def test_ids_are_unique_among_threads() -> None:
    hub = Hub[int](buffer=1)

    def subscribe() -> list[Subscription[int]]:
        return [hub.subscribe() for _ in range(1000)]

    subs = list(chain.from_iterable(run_threads(*[subscribe] * 4)))
    assert len({sub.id for sub in subs}) == len(hub) == 4000


# Churn


@pytest.mark.stress
@pytest.mark.parametrize("buffer", [1, 3])
def test_a_remaining_subscriber_misses_nothing(buffer: int, switch_interval: float, seed: int) -> None:
    """Thousands come and go meanwhile, some with items unread; each of those got a stretch without a gap."""
    hub = Hub[Item](buffer=buffer)
    stays = hub.subscribe()
    done: list[bool] = []

    def publish(publisher: int) -> int:
        total = 0
        for number in range(200):
            total += hub.broadcast((publisher, number))
        done.append(True)
        return total

    def come_and_go(number: int) -> int:
        rng = random.Random(seed + number)
        read = 0
        while len(done) < 2:
            sub = hub.subscribe(buffer=rng.randint(1, 3))
            items: list[Item] = []
            for _ in range(rng.randrange(3)):
                with contextlib.suppress(queue.Empty):
                    items += sub.get_many(rng.choice([None, 1]), timeout=rng.choice([0, 1e-4]))
            assert hub.unsubscribe(sub)
            items += sub  # which ends
            assert_without_gaps(items, 2)
            read += len(items)
        return read

    reader = start_threads(lambda: list(stays))
    results = run_threads(partial(publish, 0), partial(publish, 1), *[partial(come_and_go, i) for i in range(2)])
    hub.close()
    (got,) = reader.join()
    assert sorted(got) == [(publisher, number) for publisher in range(2) for number in range(200)]
    assert_without_gaps(got, 2)
    # Each delivery that the publishers counted was read by a subscriber, and no other.
    assert sum(results[:2]) == len(got) + sum(results[2:])


@pytest.mark.stress
def test_thousands_come_and_go(switch_interval: float) -> None:
    """A fixed number of visits, however fast the publisher is: it publishes until the last visitor has left."""
    hub = Hub[int](buffer=4)
    stays = hub.subscribe()
    left: list[bool] = []

    def publish() -> int:
        number = 0
        while len(left) < 2:
            assert hub.broadcast(number) >= 1
            number += 1
        hub.close()
        return number

    def visit() -> None:
        for _ in range(1500):
            sub = hub.subscribe(buffer=1)
            sub.close()
            assert len(list(sub)) <= 1
        left.append(True)

    number, got, *_ = run_threads(publish, lambda: list(stays), visit, visit)
    assert got == list(range(number))


@pytest.mark.stress
def test_signals_while_others_come_and_go(switch_interval: float, seed: int) -> None:
    """Each signal that was taken is read exactly once by its taker, also where that left with it unread."""
    hub = Hub[Item](buffer=2)
    done: list[bool] = []

    def publish(publisher: int) -> list[tuple[int, Item]]:
        taken = []
        for number in range(250):
            taker = hub.signal((publisher, number))
            if taker is not None:
                taken.append((taker.id, (publisher, number)))
        done.append(True)
        return taken

    def come_and_go(number: int) -> list[tuple[int, Item]]:
        rng = random.Random(seed + number)
        read: list[tuple[int, Item]] = []
        while len(done) < 2:
            with hub.subscribe() as sub:
                for _ in range(rng.randrange(4)):
                    with contextlib.suppress(queue.Empty):
                        read.append((sub.id, sub.get(timeout=rng.choice([0, 1e-4]))))
            read += [(sub.id, item) for item in sub]
        return read

    results = run_threads(partial(publish, 0), partial(publish, 1), *[partial(come_and_go, i) for i in range(3)])
    taken, read = chain(*results[:2]), chain(*results[2:])
    assert sorted(taken) == sorted(read)


@pytest.mark.parametrize("call", [lambda sub: sub.get(), lambda sub: sub.get_many(), lambda sub: next(sub, Closed)])
@pytest.mark.parametrize("end", ["leave", "close"])
def test_waiting_readers_wake_when_the_subscription_ends(call: Callable[[Any], Any], end: str) -> None:
    for _ in range(30):
        hub = Hub[int]()
        sub = hub.subscribe()
        entered: list[bool] = []

        def read(sub: Subscription[int] = sub, entered: list[bool] = entered) -> Any:
            entered.append(True)
            try:
                return call(sub)
            except Closed:
                return Closed

        started = start_threads(*[read] * 3)
        wait_until(lambda entered=entered: len(entered) == 3)
        if end == "leave":
            sub.close()
        else:
            hub.close()
        assert started.join() == [Closed] * 3


def test_signal_that_is_overtaken_by_close_says_so() -> None:
    """The hub had a subscriber until it was closed, so None, for no subscriber, would be wrong."""
    for _ in range(1_000):
        hub: Hub[str] = Hub(buffer=1, overflow="latest")
        sub = hub.subscribe()

        def publish(hub: Hub[str] = hub) -> bool:
            try:
                while hub.signal("x") is not None:
                    pass
            except Closed:
                return True
            return False

        assert run_threads(publish, hub.close)[0]
        assert sub.closed  # and it was alive until then: a subscription that is dropped ends
