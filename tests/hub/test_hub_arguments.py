"""Bad arguments of Hub and Subscription are refused by name before anything has changed; unusual valid ones work."""

from __future__ import annotations

import copy
import math
import pickle
import queue
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import pytest

from ringmill import Closed, Hub, Subscription


def drain(subscription: Subscription[Any]) -> list[Any]:
    """Takes what is there now; never blocks."""
    taken = []
    while True:
        try:
            taken.append(subscription.get_nowait())
        except (queue.Empty, Closed):
            return taken


class Index:
    """An integer by `__index__` alone, as numpy's are; RingBuffer takes it."""

    def __index__(self) -> int:
        return 2


class Policy(StrEnum):
    DROP_OLDEST = "drop_oldest"


def assert_names(error: BaseException, argument: str, value: object) -> None:
    assert argument in str(error)
    assert repr(value) in str(error)


@pytest.mark.parametrize("buffer", [0, -1, -(2**70), 1.5, 2.0, 2**62, 2**100, "3", [3], math.nan, True])
def test_bad_buffer(buffer: Any) -> None:
    hub = Hub[int]()
    for call in (lambda: Hub(buffer=buffer), lambda: hub.subscribe(buffer), lambda: hub.subscribe(buffer=buffer)):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert_names(caught.value, "buffer", buffer)
    assert len(hub) == 0
    with pytest.raises(TypeError, match="buffer"):
        Hub(buffer=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("overflow", ["", "Block", "drop", "block ", b"block", 1, [], ["block"], {}, object, math.nan])
def test_bad_overflow(overflow: Any) -> None:
    hub = Hub[int]()
    for call in (
        lambda: Hub(overflow=overflow),
        lambda: hub.subscribe(overflow=overflow),
        lambda: hub.subscribe(1, overflow),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert_names(caught.value, "overflow", overflow)
    assert len(hub) == 0
    with pytest.raises((TypeError, ValueError), match="overflow"):
        Hub(overflow=None)  # type: ignore[arg-type]


def test_a_buffer_may_be_any_integer() -> None:
    hub = Hub[int](buffer=Index())  # type: ignore[arg-type]
    for arguments in ({}, {"buffer": Index()}):
        with hub.subscribe(**arguments) as sub:  # type: ignore[arg-type]
            assert [hub.signal(i, timeout=0) for i in range(2)] == [sub, sub]
            with pytest.raises(queue.Full):
                hub.signal(2, timeout=0)


def test_an_overflow_may_be_any_str() -> None:
    hub = Hub[int](overflow=Policy.DROP_OLDEST, buffer=1)  # type: ignore[arg-type]
    sub = hub.subscribe()
    assert [hub.broadcast(i) for i in range(2)] == [1, 1]
    assert (drain(sub), sub.dropped) == ([1], 1)


@pytest.mark.parametrize("timeout", [-1, -0.001, -math.inf, math.nan, "1", b"1", [1], object])
@pytest.mark.parametrize("subscribers", [0, 1])
def test_bad_timeout(timeout: Any, subscribers: int) -> None:
    hub = Hub[int]()
    subs = [hub.subscribe() for _ in range(subscribers)]
    other = Hub[int]().subscribe()
    for call in (
        lambda: hub.signal(1, timeout),
        lambda: hub.broadcast(1, timeout),
        lambda: other.get(timeout),
        lambda: other.get_many(None, timeout),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert_names(caught.value, "timeout", timeout)
    assert [drain(sub) for sub in subs] == [[]] * subscribers


@pytest.mark.parametrize("most", [0, -1, "1", 1.5, [1]])
def test_bad_max(most: Any) -> None:
    hub = Hub[str]()
    sub = hub.subscribe()
    hub.signal("kept")
    with pytest.raises((TypeError, ValueError)) as caught:
        sub.get_many(most)
    assert_names(caught.value, "max", most)
    assert drain(sub) == ["kept"]


@pytest.mark.parametrize("subscription", [None, 1, "a", object(), Hub(), Subscription])
def test_unsubscribing_an_object_that_is_no_subscription(subscription: Any) -> None:
    hub = Hub[int]()
    sub = hub.subscribe()
    with pytest.raises(TypeError) as caught:
        hub.unsubscribe(subscription)
    assert_names(caught.value, "subscription", subscription)
    assert len(hub) == 1
    assert not sub.closed


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_hubs_and_subscriptions_are_not_copied(duplicate: Callable[[Any], Any]) -> None:
    hub = Hub[int]()
    for each in (hub, hub.subscribe()):
        with pytest.raises(TypeError):
            duplicate(each)


def test_init_called_again_loses_nothing() -> None:
    hub = Hub[int](buffer=2)
    sub = hub.subscribe()
    hub.signal(1)
    hub.__init__(buffer=9)  # type: ignore[misc]
    assert hub.signal(2) is sub
    assert (len(hub), drain(sub)) == (1, [1, 2])
    hub.close()
    hub.__init__()  # type: ignore[misc]
    assert hub.closed
