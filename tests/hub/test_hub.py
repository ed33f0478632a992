"""The contract of Hub and Subscription, as far as one thread can check it."""

from __future__ import annotations

import gc
import math
import queue
from collections.abc import Callable
from typing import Any

import pytest

from ringmill import Closed, Hub, Subscription

POLICIES = ["block", "drop_oldest", "drop_incoming", "latest", "raise"]
OPEN_ENDED = [10**6, 1e9, math.inf]


class Dying:
    """Calls `last_words` when it is dropped; what that raises would be a PytestUnraisableExceptionWarning, an error."""

    def __init__(self, last_words: Callable[[], Any]) -> None:
        self.last_words = last_words

    def __del__(self) -> None:
        self.last_words()


def drain(subscription: Subscription[Any]) -> list[Any]:
    """Takes what is there now; never blocks."""
    taken = []
    while True:
        try:
            taken.append(subscription.get_nowait())
        except (queue.Empty, Closed):
            return taken


def full(hub: Hub[Any], *policies: Any) -> list[Subscription[Any]]:
    """Subscriptions with room for one, which is taken by "old"."""
    subscriptions = [hub.subscribe(buffer=1, overflow=policy) for policy in policies]
    assert hub.broadcast("old", timeout=0) == len(hub)
    return subscriptions


# No subscriber


def test_an_empty_hub_delivers_to_no_subscriber() -> None:
    hub = Hub[str]()
    for _ in range(3):  # new, and after the last one has left
        for timeout in (None, 0, 1e-6, *OPEN_ENDED):
            assert hub.signal("a", timeout) is None
            assert hub.broadcast("a", timeout=timeout) == 0
        assert (len(hub), hub.closed) == (0, False)
        only = hub.subscribe()
        assert hub.unsubscribe(only)
    assert list(only) == []


def test_a_hub_is_true_though_empty() -> None:
    hub = Hub[str]()
    assert hub
    assert hub.subscribe()


# Signal


def test_signal_goes_round() -> None:
    hub = Hub[int]()
    subscriptions = [hub.subscribe() for _ in range(3)]
    assert [hub.signal(i) for i in range(7)] == [subscriptions[i % 3] for i in range(7)]
    late = hub.subscribe()  # at the end: before the first
    assert [hub.signal(i) for i in range(7, 11)] == [subscriptions[1], subscriptions[2], late, subscriptions[0]]
    assert [drain(subscription) for subscription in subscriptions] == [[0, 3, 6, 10], [1, 4, 7], [2, 5, 8]]
    assert drain(late) == [9]


def test_signal_passes_over_the_full_ones_whatever_their_policy() -> None:
    hub = Hub[str]()
    subscriptions = full(hub, *POLICIES)
    roomy = hub.subscribe(buffer=20)
    for i in range(20):
        assert hub.signal(f"new {i}") is roomy
    assert [subscription.dropped for subscription in subscriptions] == [0] * 5
    assert [drain(subscription) for subscription in subscriptions] == [["old"]] * 5
    assert drain(roomy) == [f"new {i}" for i in range(20)]


def test_after_a_pass_the_turn_is_the_next_ones() -> None:
    hub = Hub[int](buffer=1)
    one, two, three = (hub.subscribe() for _ in range(3))
    assert [hub.signal(0), hub.signal(1)] == [one, two]
    one.get()
    assert hub.signal(2) is three
    assert hub.signal(3) is one
    three.get()
    assert hub.signal(4) is three  # past two
    one.get()
    two.get()
    assert hub.signal(5) is one


def test_when_all_are_full_the_next_ones_policy_decides() -> None:
    for policy in POLICIES:
        for others in POLICIES:
            hub = Hub[str]()
            decides, *rest = full(hub, policy, others, others)
            if policy in ("block", "raise"):
                with pytest.raises(queue.Full):
                    hub.signal("new", timeout=0.001)
                expected: tuple[int, list[str]] = (0, ["old"])
            elif policy == "drop_incoming":
                assert hub.signal("new") is None
                expected = (1, ["old"])
            else:
                assert hub.signal("new") is decides
                expected = (1, ["new"])
            assert (decides.dropped, drain(decides)) == expected
            assert [(subscription.dropped, drain(subscription)) for subscription in rest] == [(0, ["old"])] * 2


@pytest.mark.parametrize("timeout", [0, 0.0, 1e-9, 0.002])
def test_a_signal_that_blocks_is_full_after_its_timeout(timeout: float) -> None:
    hub = Hub[str]()
    only, other = full(hub, "block", "block")
    for _ in range(2):
        with pytest.raises(queue.Full):
            hub.signal("new", timeout=timeout)
        with pytest.raises(queue.Full):
            hub.signal("new", timeout)
    assert (drain(only), drain(other)) == (["old"], ["old"])
    assert hub.signal("newer", timeout=timeout) in (only, other)


# Broadcast


def test_broadcast_reaches_all_and_counts_them() -> None:
    hub = Hub[int]()
    subscriptions = []
    for i in range(5):
        assert hub.broadcast(i) == i
        subscriptions.append(hub.subscribe())
    assert [drain(subscription) for subscription in subscriptions] == [[1, 2, 3, 4], [2, 3, 4], [3, 4], [4], []]


def test_broadcast_does_not_move_the_turn() -> None:
    hub = Hub[int]()
    one, two = hub.subscribe(), hub.subscribe()
    assert hub.signal(0) is one
    assert hub.broadcast(1) == 2
    assert hub.signal(2) is two
    assert (drain(one), drain(two)) == ([0, 1], [1, 2])


def test_broadcast_to_full_ones_follows_each_policy() -> None:
    hub = Hub[str]()
    subscriptions = full(hub, *POLICIES)
    roomy = hub.subscribe()
    with pytest.raises(queue.Full) as caught:
        hub.broadcast("new", timeout=0)
    assert caught.value.count == 3  # type: ignore[attr-defined]
    assert [subscription.dropped for subscription in subscriptions] == [0, 1, 1, 1, 0]
    assert [drain(subscription) for subscription in subscriptions] == [["old"], ["new"], ["old"], ["new"], ["old"]]
    assert drain(roomy) == ["new"]


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("policy", ["raise", "block"])
def test_broadcast_raises_after_the_others_got_theirs(policy: str, place: int) -> None:
    """Wherever the one that has no room is, before or after those that have and those that drop."""
    hub = Hub[str]()
    policies = ["drop_oldest", "drop_incoming", "latest"]
    policies.insert(place, policy)
    subscriptions = full(hub, *policies)
    roomy = [hub.subscribe() for _ in range(2)]
    with pytest.raises(queue.Full) as caught:
        hub.broadcast("new", timeout=0.001)
    assert caught.value.count == 4  # type: ignore[attr-defined]
    got = {subscription.overflow: drain(subscription) for subscription in subscriptions}
    assert got == {policy: ["old"], "drop_oldest": ["new"], "drop_incoming": ["old"], "latest": ["new"]}
    assert [drain(subscription) for subscription in roomy] == [["new"], ["new"]]


def test_broadcast_raises_once_for_many_and_raise_does_not_wait() -> None:
    hub = Hub[str](buffer=1, overflow="raise")
    subscriptions = [hub.subscribe() for _ in range(3)]
    assert hub.broadcast("old") == 3
    subscriptions[1].get()
    with pytest.raises(queue.Full) as caught:
        hub.broadcast("new")  # without a timeout: it would wait forever
    assert caught.value.count == 1  # type: ignore[attr-defined]
    assert [drain(subscription) for subscription in subscriptions] == [["old"], ["new"], ["old"]]


def test_the_slow_ones_are_served_in_ring_order() -> None:
    """What drop_oldest drops tells when it was that one's turn."""
    order: list[int] = []
    hub = Hub[Any](buffer=1, overflow="drop_oldest")
    subscriptions = [hub.subscribe() for _ in range(4)]
    for number, _ in enumerate(subscriptions):
        assert hub.signal(Dying(lambda number=number: order.append(number))) is subscriptions[number]
    assert hub.unsubscribe(subscriptions.pop(0))
    assert hub.broadcast("new") == 3
    gc.collect()
    assert [number for number in order if number] == [1, 2, 3]


# Unsubscribing and closing


@pytest.mark.parametrize("end", [lambda hub, sub: hub.unsubscribe(sub), lambda hub, sub: sub.close() is None])
def test_delivered_items_stay_readable_after_unsubscribe(end: Callable[[Hub[int], Subscription[int]], bool]) -> None:
    hub = Hub[int]()
    one, two = hub.subscribe(), hub.subscribe()
    for i in range(4):
        hub.broadcast(i)
    assert next(one) == 0
    assert not one.closed
    assert end(hub, one)
    assert (one.closed, two.closed, len(hub), len(one)) == (True, False, 1, 3)
    assert hub.broadcast(4) == 1
    assert hub.signal(5) is two
    assert one.get() == 1
    assert list(one) == [2, 3]
    for get in (one.get, one.get_nowait, one.get_many, lambda: one.get(timeout=0)):
        with pytest.raises(Closed):
            get()
    assert next(one, "end") == "end"
    assert drain(two) == [0, 1, 2, 3, 4, 5]
    assert hub.unsubscribe(one) is False
    one.close()
    assert (hub.unsubscribe(two), hub.unsubscribe(two), len(hub)) == (True, False, 0)


@pytest.mark.parametrize("leaves", [0, 1, 2])
def test_unsubscribing_keeps_the_turn_of_the_others(leaves: int) -> None:
    hub = Hub[int]()
    subscriptions = [hub.subscribe() for _ in range(3)]
    assert hub.signal(0) is subscriptions[0]
    assert hub.unsubscribe(subscriptions[leaves])
    left = [subscriptions[i] for i in (1, 2, 0) if i != leaves]
    assert [hub.signal(i) for i in range(1, 5)] == left * 2


def test_the_subscription_of_another_hub_stays() -> None:
    hub, other = Hub[int](), Hub[int]()
    here, there = hub.subscribe(), other.subscribe()
    assert hub.unsubscribe(there) is False
    assert not there.closed
    assert other.broadcast(1) == 1
    assert hub.broadcast(2) == 1
    assert (drain(here), drain(there)) == ([2], [1])


def test_ids_are_never_used_again() -> None:
    hub, other = Hub[int](), Hub[int]()
    ids = []
    for _ in range(100):
        subscriptions = [hub.subscribe(), other.subscribe(), hub.subscribe()]
        ids += [subscription.id for subscription in subscriptions]
        subscriptions.pop(1).close()
        hub.unsubscribe(subscriptions.pop(0))
        del subscriptions  # its address may be the next one's
    ids.append(Hub[int]().subscribe().id)
    assert len(set(ids)) == len(ids) == 301
    subscription = hub.subscribe()
    with pytest.raises(AttributeError):
        subscription.id = 1  # type: ignore[misc]


def test_unsubscribe_removes_the_given_subscription() -> None:
    hub = Hub[int]()
    one, two = hub.subscribe(), hub.subscribe()
    hub.unsubscribe(one)
    three = hub.subscribe()
    hub.unsubscribe(three)
    assert (one.closed, two.closed, three.closed) == (True, False, True)
    assert hub.signal(1) is two


@pytest.mark.parametrize("times", [1, 2])
def test_close_ends_all_subscriptions_after_their_delivered_items(times: int) -> None:
    hub = Hub[int](buffer=3)
    subscriptions = [hub.subscribe() for _ in range(3)]
    hub.broadcast(1)
    hub.signal(2)
    for _ in range(times):
        assert hub.close() is None
    assert (hub.closed, len(hub)) == (True, 0)
    assert all(subscription.closed for subscription in subscriptions)
    for call in (lambda: hub.signal(3), lambda: hub.broadcast(3), hub.subscribe, lambda: hub.signal(3, timeout=0)):
        with pytest.raises(Closed):
            call()
    assert not hub.unsubscribe(subscriptions[0])
    assert [list(subscription) for subscription in subscriptions] == [[1, 2], [1], [1]]


def test_context_managers_close() -> None:
    with Hub[int]() as hub:
        with hub.subscribe() as one:
            assert hub.broadcast(1) == 1
        two = hub.subscribe()
        assert (one.closed, two.closed, hub.broadcast(2)) == (True, False, 1)
        with pytest.raises(LookupError), hub.subscribe() as three:
            raise LookupError
        assert three.closed
    assert hub.closed
    assert (list(one), list(two), list(three)) == ([1], [2], [])
    with pytest.raises(LookupError), Hub[int]() as hub:
        raise LookupError
    assert hub.closed


# Subscription


def test_the_ways_to_read() -> None:
    hub = Hub[int](buffer=20)
    sub = hub.subscribe()
    for i in range(12):
        hub.broadcast(i)
    assert len(sub) == 12
    assert (sub.get(), sub.get(1.0), sub.get(timeout=0), sub.get_nowait(), next(sub)) == (0, 1, 2, 3, 4)
    assert iter(sub) is not None
    assert (sub.get_many(2), sub.get_many(max=1, timeout=0), sub.get_many()) == ([5, 6], [7], [8, 9, 10, 11])
    assert len(sub) == 0
    for get in (sub.get_nowait, lambda: sub.get(0), lambda: sub.get(timeout=1e-6), lambda: sub.get_many(timeout=0)):
        with pytest.raises(queue.Empty):
            get()
    assert not sub.closed


@pytest.mark.parametrize("item", [None, math.nan, False, "", (), object(), StopIteration(), queue.Empty, Closed("x")])
def test_any_object_is_an_item(item: Any) -> None:
    hub = Hub[Any]()
    sub = hub.subscribe(overflow="raise")
    assert hub.signal(item) is sub
    assert hub.broadcast(item) == 1
    assert sub.get() is item
    assert next(sub) is item


@pytest.mark.parametrize("buffer", [1, 2, 3, 5, 64])
def test_the_buffer_is_exact(buffer: int) -> None:
    for hub, arguments in [(Hub[int](buffer=buffer), {}), (Hub[int](buffer=7), {"buffer": buffer})]:
        sub = hub.subscribe(**arguments)
        for i in range(buffer):
            assert hub.signal(i, timeout=0) is sub
        with pytest.raises(queue.Full):
            hub.signal(-1, timeout=0)
        assert drain(sub) == list(range(buffer))


def test_latest_keeps_one_whatever_the_buffer() -> None:
    hub = Hub[int](buffer=5, overflow="latest")
    for arguments in ({}, {"buffer": 3}):
        sub = hub.subscribe(**arguments)
        for i in range(4):
            assert hub.broadcast(i) == 1
            assert len(sub) == 1
        assert (drain(sub), sub.dropped) == ([3], 3)
        sub.close()


def test_subscribe_overrides_the_hubs_defaults() -> None:
    hub = Hub[int](buffer=1, overflow="drop_oldest")
    default, other = hub.subscribe(), hub.subscribe(2, "drop_incoming")
    for i in range(4):
        hub.broadcast(i)
    assert (drain(default), default.dropped) == ([3], 3)
    assert (drain(other), other.dropped) == ([0, 1], 2)
    assert len([Hub[int]().subscribe() for _ in range(2)]) == 2
    roomy = Hub[int]()
    sub = roomy.subscribe()
    assert [roomy.signal(i, timeout=0) for i in range(256)] == [sub] * 256  # the defaults: 256, "block"
    with pytest.raises(queue.Full):
        roomy.signal(256, timeout=0)


def test_reprs_show_the_state() -> None:
    hub = Hub[int](buffer=7, overflow="drop_oldest")
    seen = [repr(hub)]
    sub = hub.subscribe()
    seen.append(repr(hub))
    texts = [repr(sub)]
    for i in range(9):
        hub.broadcast(i)
    texts.append(repr(sub))
    hub.close()
    texts.append(repr(sub))
    seen.append(repr(hub))
    assert len(set(seen)) == len(set(texts)) == 3
    assert all("Hub" in text for text in seen)
    assert all("Subscription" in text and str(sub.id) in text and "drop_oldest" in text for text in texts)
    assert "2 dropped" in texts[1]
    assert "closed" in seen[-1]
    assert "closed" in texts[-1]
