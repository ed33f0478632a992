"""The calls of Hub and of Subscription."""

from __future__ import annotations

import queue
from typing import Any

from ringmill import Hub, Subscription
from tests.tools.out_of_memory.trial import FAILED, Trial, case


@case
def hub_new(trial: Trial) -> None:
    hub = trial(Hub, buffer=2)
    if hub is not FAILED:
        assert hub.signal(1) is None


@case
def hub_subscribe(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=2)
    sub = trial(hub.subscribe)
    # One that was not returned may not be in the ring: no subscriber would read it, and a "block" would wait forever.
    assert len(hub) == (sub is not FAILED)
    assert hub.broadcast(1) == (sub is not FAILED)


@case
def hub_unsubscribe(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=2)
    sub = hub.subscribe()
    item = trial.thing()
    hub.broadcast(item)
    trial(hub.unsubscribe, sub)
    hub.unsubscribe(sub)
    sub.close()
    assert len(hub) == 0
    assert list(sub) == [item]


@case
def hub_drop(trial: Trial) -> None:
    """A subscription that is dropped ends without any memory, and what waits or is read next is told."""
    hub: Hub[Any] = Hub(buffer=1)
    held = [hub.subscribe(), hub.subscribe()]
    item = trial.thing()
    hub.broadcast(item)
    trial(held.clear)
    held.clear()
    assert len(hub) == 0
    assert hub.broadcast(None, timeout=0) == 0
    assert hub.signal(None, timeout=0) is None


@case
def hub_signal(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=1)
    subs = [hub.subscribe(), hub.subscribe()]
    item = trial.thing()
    to = trial(hub.signal, item)
    if to is not FAILED:
        assert to in subs
        assert to.get_nowait() is item
    assert sum(map(len, subs)) == 0
    assert hub.broadcast(None) == 2


def full_hub(trial: Trial, overflow: Any) -> tuple[Hub[Any], list[Subscription[Any]], Any]:
    hub: Hub[Any] = Hub(buffer=1, overflow=overflow)
    subs = [hub.subscribe(), hub.subscribe()]
    old = trial.thing()
    hub.broadcast(old)
    return hub, subs, old


@case
def hub_signal_full(trial: Trial) -> None:
    hub, subs, old = full_hub(trial, "block")
    item = trial.thing()
    trial.raising(queue.Full, call=lambda: hub.signal(item, timeout=0.0001))
    assert [sub.get_nowait() for sub in subs] == [old, old]
    assert hub.broadcast(None) == 2


@case
def hub_signal_drop_oldest(trial: Trial) -> None:
    hub, subs, old = full_hub(trial, "drop_oldest")
    item = trial.thing()
    to = trial(hub.signal, item)
    got = [sub.get_nowait() for sub in subs]
    assert got.count(item) == (to is not FAILED)
    assert got.count(old) == 1 + (to is FAILED)


@case
def hub_broadcast(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=1)
    subs = [hub.subscribe(), hub.subscribe()]
    item = trial.thing()
    count = trial(hub.broadcast, item)
    got = [sub.get_nowait() for sub in subs if len(sub)]
    assert got == [item] * len(got)
    assert count is FAILED or count == len(got) == 2
    assert hub.broadcast(None) == 2


@case
def hub_broadcast_full(trial: Trial) -> None:
    hub, subs, old = full_hub(trial, "block")
    item = trial.thing()
    trial.raising(queue.Full, call=lambda: hub.broadcast(item, timeout=0.0001))
    assert [sub.get_nowait() for sub in subs] == [old, old]


@case
def hub_broadcast_drop_oldest(trial: Trial) -> None:
    hub, subs, old = full_hub(trial, "drop_oldest")
    item = trial.thing()
    count = trial(hub.broadcast, item)
    got = [sub.get_nowait() for sub in subs]
    assert got.count(item) + got.count(old) == 2
    assert count is FAILED or got.count(item) == count == 2
    assert sum(sub.dropped for sub in subs) == got.count(item)


@case
def hub_close(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=2)
    subs = [hub.subscribe(), hub.subscribe()]
    item = trial.thing()
    hub.broadcast(item)
    trial(hub.close)
    hub.close()
    assert hub.closed
    assert [list(sub) for sub in subs] == [[item], [item]]


@case
def subscription_reads(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=4)
    sub = hub.subscribe()
    items = [trial.thing() for _ in range(4)]
    for item in items:
        hub.broadcast(item)
    got = [trial(sub.get), trial(sub.get_nowait), trial(sub.__next__), trial(sub.get_many)]
    flat = [one for each in got if each is not FAILED for one in (each if isinstance(each, list) else [each])]
    assert flat + [sub.get_nowait() for _ in range(len(sub))] == items


@case
def subscription_close(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=4)
    sub = hub.subscribe()
    trial(sub.close)
    sub.close()
    assert sub.closed
    assert len(hub) == 0
