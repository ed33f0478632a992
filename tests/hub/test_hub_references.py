"""References that a hub and its subscriptions hold and release; re-entrant calls from finalizers and callbacks."""

from __future__ import annotations

import contextlib
import gc
import queue
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringmill import Closed, Hub, Subscription
from tests.threads import run_threads

POLICIES = ["block", "drop_oldest", "drop_incoming", "latest", "raise"]
posix_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")


class Thing:
    """Something that can be weakly referenced and carry attributes."""


class Dying:
    """Calls `last_words` when it is dropped; what that raises would be a PytestUnraisableExceptionWarning, an error."""

    def __init__(self, last_words: Callable[[], Any]) -> None:
        self.last_words = last_words

    def __del__(self) -> None:
        self.last_words()


@pytest.fixture
def eager_gc() -> Iterator[None]:
    """The collector runs at nearly every allocation."""
    before = gc.get_threshold()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*before)


def drain(subscription: Subscription[Any]) -> list[Any]:
    """Takes what is there now; never blocks."""
    taken = []
    while True:
        try:
            taken.append(subscription.get_nowait())
        except (queue.Empty, Closed):
            return taken


# References


@pytest.mark.parametrize("policy", POLICIES)
def test_references_end_where_they_began(policy: Any) -> None:
    item = Thing()
    hub = Hub[Thing](buffer=2, overflow=policy)
    before = sys.getrefcount(item)

    def publish(hub: Hub[Thing]) -> None:
        for call in (hub.signal, hub.broadcast):
            with contextlib.suppress(queue.Full, Closed):
                call(item, 0)

    for _ in range(30):
        sub, other = hub.subscribe(), hub.subscribe()
        for _ in range(4):
            publish(hub)  # full from the second on
        assert sys.getrefcount(item) == before + len(sub) + len(other)
        sub.get()
        drain(sub)
        other.close()
        publish(hub)
        list(other)
        sub.close()
        list(sub)
        assert sys.getrefcount(item) == before
        publish(hub)  # to no subscriber
    sub = hub.subscribe()
    publish(hub)
    hub.close()
    publish(hub)
    assert sys.getrefcount(item) == before + len(sub)
    del hub, sub, other
    gc.collect()
    assert sys.getrefcount(item) == before


def test_a_subscription_that_left_is_let_go() -> None:
    hub = Hub[int]()
    subs = [hub.subscribe() for _ in range(3)]
    references = [weakref.ref(sub) for sub in subs]
    for i in range(4):
        hub.broadcast(i)
        hub.signal(i)
    subs.pop(1).close()
    hub.unsubscribe(subs.pop(0))
    gc.collect()
    assert [reference() for reference in references] == [None, None, subs[0]]


def test_a_dropped_hub_goes_and_its_subscriptions_stay_readable() -> None:
    hub = Hub[int]()
    reference = weakref.ref(hub)
    sub, other = hub.subscribe(), hub.subscribe()
    hub.broadcast(1)
    hub.broadcast(2)
    del hub
    gc.collect()
    assert reference() is None  # a subscription does not keep it
    assert sub.get() == 1
    assert "Subscription" in repr(sub)
    for each in (sub, other):
        each.close()
        assert each.closed
    assert (list(sub), list(other)) == ([2], [1, 2])


def test_cycles_through_a_hub_are_collected() -> None:
    def by_itself() -> Any:
        hub = Hub[Any]()
        hub.subscribe()
        hub.broadcast(hub)
        return hub

    def by_subscription() -> Any:
        hub = Hub[Any]()
        sub = hub.subscribe()
        hub.broadcast([sub, hub])
        return sub

    def by_item() -> Any:
        hub, thing = Hub[Any](), Thing()
        thing.sub = hub.subscribe()  # type: ignore[attr-defined]
        thing.publish = hub.broadcast  # type: ignore[attr-defined]
        hub.signal(thing)
        return thing

    def by_closed() -> Any:
        thing = by_item()
        thing.publish.__self__.close()
        return thing

    for make in (by_itself, by_subscription, by_item, by_closed):
        reference = weakref.ref(make())
        gc.collect()
        assert reference() is None, make.__name__


# Re-entrancy


@pytest.mark.parametrize("publish", ["signal", "broadcast"])
@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
@pytest.mark.parametrize("last_act", ["publish", "read", "leave", "subscribe", "close"])
def test_del_of_a_dropped_item_uses_the_hub(last_act: str, policy: Any, publish: str) -> None:
    """The item that overflows out is dropped inside the call; its `__del__` calls in again."""
    hub = Hub[Any](buffer=1, overflow=policy)
    sub = hub.subscribe()
    acts: dict[str, Callable[[], Any]] = {
        "publish": lambda: hub.signal("from del"),
        "read": lambda: drain(sub),
        "leave": sub.close,
        "subscribe": lambda: hub.subscribe().id,
        "close": hub.close,
    }
    said: list[Any] = []
    assert hub.broadcast(Dying(lambda: said.append(acts[last_act]()))) == 1
    try:
        taken = getattr(hub, publish)("new", timeout=0)
    except Closed:
        assert last_act == "close"
        taken = None
    gc.collect()
    assert len(said) == 1
    left = drain(sub)
    # The dying one was dropped, and counted. Each other is where its call said it is, or was dropped as well.
    assert set(left) <= {"new", "from del"}
    read = said[0] if last_act == "read" else []
    others = 1 + (last_act == "publish")
    if taken in (None, 0):
        others -= 1  # not to be taken any more: the subscription had ended, or its closing came first
        assert last_act in ("leave", "close")
    assert sub.dropped + len(left) + len(read) == 1 + others
    assert (sub.closed, hub.closed) == (last_act in ("leave", "close"), last_act == "close")


@pytest.mark.usefixtures("eager_gc")
@pytest.mark.parametrize("policy", ["drop_oldest", "drop_incoming", "latest", "raise"])
def test_del_publishes_from_many_threads(policy: Any) -> None:
    """Cyclic garbage whose `__del__` publishes and subscribes: the collector runs it inside whatever call runs."""
    hub = Hub[int](buffer=2, overflow=policy)
    sub = hub.subscribe()
    lock = threading.Lock()  # of the test's counter only; never held around a call of the hub
    counts = {"taken": 0, "read": 0, "refused": 0}
    deaths: list[tuple[str, int]] = []

    def publish(item: int) -> str:
        try:
            return "taken" if hub.signal(item, timeout=0) is not None else "refused"
        except queue.Full:
            return "refused"

    def last_words() -> None:
        with Hub[int]().subscribe() as passing:
            deaths.append((publish(-1), len(passing)))

    def work() -> None:
        mine = {"taken": 0, "read": 0, "refused": 0}
        for i in range(100):
            garbage: list[Any] = [Dying(last_words)]
            garbage.append(garbage)
            del garbage
            mine[publish(i)] += 1
            with contextlib.suppress(queue.Empty):
                sub.get_nowait()
                mine["read"] += 1
        with lock:
            for what, number in mine.items():
                counts[what] += number

    run_threads(work, work, work)
    gc.collect()
    answers = [answer for answer, _ in deaths]
    assert len(answers) == 300
    taken = counts["taken"] + answers.count("taken")
    refused = counts["refused"] + answers.count("refused")
    if policy == "drop_incoming":
        assert (sub.dropped, taken) == (refused, counts["read"] + len(sub))
    else:
        assert taken == counts["read"] + len(sub) + sub.dropped
        assert refused == 0 or policy == "raise"


class Interrupted(Exception):
    """Raised by the handler of a signal, as KeyboardInterrupt is."""


@posix_timers
@pytest.mark.parametrize("publish", ["signal", "broadcast"])
def test_a_handler_that_raises_ends_the_wait(publish: str) -> None:
    """As Ctrl-C does: no subscriber has the item, nothing is lost, and the hub goes on."""
    hub = Hub[Any](buffer=1)
    sub = hub.subscribe()
    hub.signal("old")
    item = Thing()
    before = sys.getrefcount(item)

    def handler(number: int, frame: object) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.03)
    try:
        with pytest.raises(Interrupted):
            getattr(hub, publish)(item)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert sys.getrefcount(item) == before
    assert drain(sub) == ["old"]
    assert getattr(hub, publish)("new", timeout=0) in (sub, 1)
    assert drain(sub) == ["new"]


@posix_timers
@pytest.mark.parametrize("act", ["read", "leave", "close"])
@pytest.mark.parametrize("publish", ["signal", "broadcast"])
def test_a_handler_ends_the_wait_that_it_interrupts(publish: str, act: str) -> None:
    """Only the handler that runs inside this wait does what it waits for."""
    hub = Hub[str](buffer=1)
    sub = hub.subscribe()
    hub.signal("old")
    acts: dict[str, Callable[[], Any]] = {"read": sub.get_nowait, "leave": sub.close, "close": hub.close}
    previous = signal.signal(signal.SIGALRM, lambda number, frame: acts[act]())
    signal.setitimer(signal.ITIMER_REAL, 0.03)
    try:
        try:
            taken = getattr(hub, publish)("new")
        except Closed:
            taken = Closed
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    if act == "read":
        assert taken in (sub, 1)
        assert drain(sub) == ["new"]
    else:
        assert taken in ((None, 0) if act == "leave" else (Closed, 0))
        assert list(sub) == ["old"]
