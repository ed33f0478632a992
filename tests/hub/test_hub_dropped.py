"""A subscription that is dropped ends, however it is dropped; one in which a thread or task waits does not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from ringmill import Closed, Hub, Subscription
from tests.loops import BACKENDS, let_others_run, run_loop
from tests.threads import run_threads, start_threads, wait_until


class Thing:
    """Something that can be weakly referenced and carry attributes."""


def asleep(hub: Hub[Any], calls: int = 1) -> None:
    """Gives publishers that were just started the time to fall asleep; nothing depends on whether they have."""
    for _ in range(50 * calls):
        repr(hub)


# Dropped


def test_len_says_so_at_once() -> None:
    hub = Hub[int]()
    subs = [hub.subscribe() for _ in range(3)]
    for left in (2, 1, 0):
        subs.pop(left // 2)
        assert len(hub) == left
        assert repr(hub) == f"<Hub open, {left} subscriptions>"
        assert hub.broadcast(left) == left


@pytest.mark.parametrize("policy", ["block", "drop_oldest", "drop_incoming", "latest", "raise"])
def test_a_loop_that_is_left_ends_its_subscription(policy: Any) -> None:
    hub = Hub[int](buffer=1, overflow=policy)

    def first() -> int:
        for item in hub.subscribe():
            return item
        raise AssertionError

    for number in range(20):
        reader = start_threads(first)
        wait_until(lambda: len(hub) == 1)
        assert hub.broadcast(number) == 1
        assert reader.join() == [number]
        assert len(hub) == 0
        assert hub.broadcast(-1) == 0
        assert hub.signal(-1) is None


def test_signals_go_to_those_that_are_left() -> None:
    hub = Hub[int](buffer=10)
    kept, dropped = hub.subscribe(), hub.subscribe()
    assert (hub.signal(0), hub.signal(1)) == (kept, dropped)
    del dropped
    assert [hub.signal(number) for number in range(2, 8)] == [kept] * 6
    assert kept.get_many() == [0, *range(2, 8)]


def test_an_iterator_keeps_its_subscription_alive_and_ends_it() -> None:
    hub = Hub[int]()
    sub = hub.subscribe()
    walk = iter(sub)
    del sub
    assert hub.broadcast(1) == 1
    assert next(walk) == 1
    del walk
    assert len(hub) == 0


def test_unread_items_go_with_it() -> None:
    hub = Hub[Thing]()
    sub = hub.subscribe()
    item = Thing()
    reference = weakref.ref(item)
    hub.broadcast(item)
    del item
    assert reference() is not None
    del sub
    gc.collect()
    assert reference() is None


def test_what_the_collector_finds_ends() -> None:
    """An item that refers to the subscription it is in; a subscription that refers to itself; two in a ring."""

    def by_item(hub: Hub[Any]) -> None:
        thing = Thing()
        thing.sub = hub.subscribe()  # type: ignore[attr-defined]
        assert hub.broadcast(thing) == 1

    def by_signal(hub: Hub[Any]) -> None:
        sub = hub.subscribe()
        hub.signal([sub])

    def by_attribute(hub: Hub[Any]) -> None:
        sub = hub.subscribe()
        sub.itself = sub  # type: ignore[attr-defined]

    def by_each_other(hub: Hub[Any]) -> None:
        one, two = hub.subscribe(), hub.subscribe()
        assert hub.broadcast((one, two)) == 2

    def by_iterator(hub: Hub[Any]) -> None:
        sub = hub.subscribe()
        hub.broadcast(item for item in sub)

    for make in (by_item, by_signal, by_attribute, by_each_other, by_iterator):
        hub = Hub[Any](buffer=3)
        stays = hub.subscribe()
        stays.close()
        make(hub)
        references = [weakref.ref(each) for each in gc.get_objects() if type(each) is Subscription and not each.closed]
        assert len(references) >= len(hub) > 0
        gc.collect()
        gc.collect()
        assert len(hub) == 0, make.__name__
        assert not any(reference() for reference in references)
        assert hub.broadcast("new", timeout=0) == 0
        assert hub.signal("new", timeout=0) is None


def test_referenced_subscriptions_stay() -> None:
    """The collector leaves a subscription alone that is in a cycle and in use."""
    hub = Hub[Any](buffer=4)
    sub = hub.subscribe()
    assert hub.broadcast([sub]) == 1
    for _ in range(3):
        gc.collect()
    assert (len(hub), sub.closed, len(sub)) == (1, False, 1)
    assert hub.broadcast("new") == 1
    assert sub.get()[0] is sub
    assert sub.get() == "new"


@pytest.mark.parametrize("how", ["thread", "collector"])
def test_another_thread_drops_a_subscription_while_items_are_published(how: str) -> None:
    hub = Hub[Any](buffer=2, overflow="drop_oldest")
    stays = hub.subscribe(buffer=10_000)
    done: list[bool] = []

    def publish() -> int:
        number = 0
        while len(done) < 2:
            if hub.signal(number) is not None and hub.broadcast(number) >= 1:
                number += 1
            with contextlib.suppress(queue.Empty):
                stays.get_many(timeout=0)
        return number

    def visit() -> None:
        for _ in range(300):
            sub = hub.subscribe()
            if how == "collector":
                sub.itself = sub  # type: ignore[attr-defined]
            with contextlib.suppress(queue.Empty):
                sub.get_nowait()
            del sub
            if how == "collector":
                gc.collect(0)
        done.append(True)

    run_threads(publish, publish, visit, visit)
    gc.collect()
    assert len(hub) == 1


# A publisher that waits for it


@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("publish", ["signal", "broadcast"])
def test_a_waiting_publisher_goes_on(publish: str, cyclic: bool) -> None:
    """Asleep already or still on the way there. With a cycle, only the collector can find it."""
    for _ in range(20):
        hub = Hub[Any](buffer=1)
        sub = hub.subscribe()
        hub.signal([sub] if cyclic else "old")
        started = start_threads(*[lambda hub=hub: getattr(hub, publish)("new")] * 2)
        asleep(hub)
        del sub
        while cyclic and len(hub):
            gc.collect()
        assert started.join() == [None if publish == "signal" else 0] * 2
        assert len(hub) == 0


def test_a_waiting_signal_goes_to_the_next_one() -> None:
    for _ in range(20):
        hub = Hub[str](buffer=1)
        subs = [hub.subscribe() for _ in range(3)]
        hub.broadcast("old")
        started = start_threads(*[lambda hub=hub: hub.signal("new")] * 2)
        asleep(hub)
        stays = subs.pop()
        subs.clear()
        assert [stays.get(timeout=60) for _ in range(3)] == ["old", "new", "new"]
        assert started.join() == [stays, stays]


def test_a_waiting_broadcast_counts_those_that_are_left() -> None:
    for _ in range(20):
        hub = Hub[str](buffer=1)
        subs = [hub.subscribe() for _ in range(3)]
        hub.broadcast("old")
        started = start_threads(lambda hub=hub: hub.broadcast("new"))
        asleep(hub)
        subs.pop(1)
        assert [sub.get(timeout=60) for sub in subs for _ in range(2)] == ["old", "new"] * 2
        assert started.join() == [2]


@pytest.mark.parametrize("publish", ["signal", "broadcast"])
def test_the_publisher_made_the_subscription(publish: str) -> None:
    """Free-threaded, what a thread made and another dropped waits for the maker, which is asleep here."""
    for make in (lambda sub: (sub,), lambda sub: ([sub],)):
        hub = Hub[str](buffer=1)
        arguments = make(hub.subscribe())
        hub.signal("old")
        begun = threading.Event()

        def reader(held: Any, begun: threading.Event = begun) -> None:
            begun.wait()
            asleep(Hub())  # then the thread ends, and drops its arguments

        thread = threading.Thread(target=reader, args=arguments)
        del arguments
        thread.start()
        begun.set()
        assert getattr(hub, publish)("new") in (None, 0)
        thread.join()
        assert len(hub) == 0


@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("publish", ["asignal", "abroadcast"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_publisher_that_awaits_room_goes_on(backend: str, publish: str, cyclic: bool) -> None:
    async def main() -> None:
        hub: Hub[Any] = Hub(buffer=1)
        sub = hub.subscribe()
        hub.signal([sub] if cyclic else "old")
        answers = []

        async def send() -> None:
            answers.append(await getattr(hub, publish)("new"))

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await let_others_run()
            assert answers == []
            del sub
            gc.collect()
            assert len(hub) == 0
        assert answers == [None if publish == "asignal" else 0]

    run_loop(backend, main)


# A subscription that is waited in


def test_a_thread_that_waits_keeps_it() -> None:
    hub = Hub[int](buffer=1)
    calls: list[Callable[[], Any]] = [
        lambda: hub.subscribe().get(),
        lambda: hub.subscribe().get(timeout=60),
        lambda: hub.subscribe().get_many(),
        lambda: next(iter(hub.subscribe())),
        lambda: [*hub.subscribe()],
    ]
    for call in calls:
        started = start_threads(call)
        wait_until(lambda: len(hub) == 1)
        gc.collect()
        assert len(hub) == 1
        assert hub.broadcast(5) == 1
        if call is calls[-1]:
            assert hub.broadcast(6, timeout=60) == 1
            hub.close()
            assert started.join() == [[5, 6]]
        else:
            assert started.join() in ([5], [[5]])
        assert len(hub) == 0


def test_a_get_that_times_out_lets_go_of_it() -> None:
    hub = Hub[int]()
    with pytest.raises(queue.Empty):
        hub.subscribe().get(timeout=0.01)
    assert len(hub) == 0


def test_a_waiting_task_keeps_a_subscription_alive() -> None:
    """asyncio refers weakly to a task that waits: what will wake it, the hub's mailbox, is all that keeps it."""

    async def main() -> None:
        hub: Hub[Any] = Hub(buffer=2)
        got: list[Any] = []

        async def read() -> None:
            async for item in hub.subscribe():
                got.append(item)

        async def read_one() -> None:
            got.append(await hub.subscribe().aget())

        for reader in (read, read_one):
            asyncio.get_running_loop().create_task(reader())
            await asyncio.sleep(0)
            while len(hub) < 1:
                await asyncio.sleep(0)
            for number in range(3):
                gc.collect()
                assert await hub.abroadcast(number) == (number == 0 or reader is read)
                await asyncio.sleep(0)
            if reader is read:
                hub.close()
                await asyncio.sleep(0)
                hub = Hub(buffer=2)
        assert got == [0, 1, 2, 0]
        assert len(hub) == 0

    asyncio.run(main())


def test_a_hub_that_is_dropped_wakes_the_task_that_waits_in_it() -> None:
    async def main() -> None:
        ended: list[str] = []

        async def read(hub: Hub[Any]) -> None:
            sub = hub.subscribe()
            del hub
            ended.extend([item async for item in sub])
            ended.append("ended")

        hub: Hub[Any] = Hub()
        task = asyncio.ensure_future(read(hub))
        await asyncio.sleep(0)
        hub.broadcast("item")
        del hub
        await task
        assert ended == ["item", "ended"]

    asyncio.run(main())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cancelled_reader_lets_go_of_it(backend: str) -> None:
    async def main() -> None:
        hub: Hub[Any] = Hub(buffer=1)

        async def read() -> None:
            async for _ in hub.subscribe():
                raise AssertionError

        async def read_one() -> None:
            await hub.subscribe().aget()

        for reader in (read, read_one):
            async with anyio.create_task_group() as group:
                group.start_soon(reader)
                while not len(hub):
                    await anyio.sleep(0)
                await let_others_run()
                assert len(hub) == 1
                group.cancel_scope.cancel()
            gc.collect()  # the cancellation's traceback
            assert len(hub) == 0

    run_loop(backend, main)


# Subclasses, finalizers, the interpreter's end


def test_the_del_of_a_subclass_is_called_once_and_does_not_prevent_the_end() -> None:
    called: list[tuple[bool, int]] = []

    class Reader(Subscription[int]):
        def __del__(self) -> None:
            called.append((self.closed, len(hub)))

    hub = Hub[int](buffer=3)
    reader = Reader(2, "block", hub)
    assert (reader.buffer, reader.overflow, len(hub)) == (2, "block", 1)
    assert hub.signal(1) is reader
    del reader
    assert called == [(False, 1)]
    assert len(hub) == 0
    reader = Reader(2, "block", hub)
    hub.signal(reader)  # type: ignore[arg-type]
    del reader
    gc.collect()
    assert len(called) == 2
    assert len(hub) == 0


def test_a_subscription_resurrected_by_its_del_stays_subscribed() -> None:
    saved: list[Any] = []

    class Reader(Subscription[int]):
        def __del__(self) -> None:
            saved.append(self)

    hub = Hub[int]()
    reader = Reader(2, "block", hub)
    del reader
    assert hub.broadcast(1) == len(hub) == 1
    assert saved[0].get() == 1
    assert hub.signal(2) is saved[0]
    saved.clear()  # __del__ runs once
    assert len(hub) == 0


def test_del_of_a_partly_made_object() -> None:
    """A finalizer gets the object, though its constructor failed."""
    seen: list[Any] = []

    class Reader(Subscription[int]):
        def __del__(self) -> None:
            seen.append((self.closed, len(self), self.dropped, self.buffer, self.id, repr(self), list(self)))
            self.close()
            for call in (self.get, self.get_nowait, self.get_many):
                with pytest.raises(Closed):
                    call()
            for again in (hub._add, hub.unsubscribe):
                with contextlib.suppress(ValueError):
                    assert not again(self)

    hub = Hub[int]()
    bad = ((0, "block", hub), (1, "no policy", hub), (1, "block", None), (1, None, hub), (None, "block", hub))
    for arguments in bad:
        with pytest.raises((TypeError, ValueError)):
            Reader(*arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Reader()  # type: ignore[call-arg]
    gc.collect()
    assert len(seen) == 6
    assert len(hub) == 0


@pytest.mark.parametrize("with_super", [False, True])
def test_the_del_of_a_hub_does_not_prevent_its_end(with_super: bool) -> None:
    class Bus(Hub[int]):
        def __del__(self) -> None:
            if with_super:
                super().__del__()

    bus = Bus()
    sub = bus.subscribe()
    bus.broadcast(1)
    started = start_threads(lambda: list(sub))
    del bus
    gc.collect()
    assert started.join() == [[1]]
    assert sub.closed
    sub.close()


def test_a_hub_subclass_need_not_call_init() -> None:
    class Bus(Hub[int]):
        def __init__(self, name: str) -> None:
            self.name = name

    bus = Bus("name")
    sub = bus.subscribe()
    assert (sub.buffer, sub.overflow, bus.broadcast(1), sub.get()) == (256, "block", 1, 1)


def test_a_subscription_outlives_its_hub() -> None:
    hub = Hub[Any]()
    subs = [hub.subscribe() for _ in range(3)]
    hub.broadcast(hub)  # a cycle, by the items
    hub.broadcast("last")
    reference = weakref.ref(hub)
    del hub
    subs.pop()
    assert len(subs[0]) == 2
    assert subs[0].get() is reference()
    subs[1].get()
    gc.collect()
    assert reference() is None
    assert [list(sub) for sub in subs] == [["last"], ["last"]]
    del subs


@pytest.mark.parametrize(
    "code",
    [
        "sub = hub.subscribe(); hub.broadcast(1)",
        "sub = hub.subscribe(); hub.broadcast([sub, hub]); del hub",
        "import threading; threading.Thread(target=lambda: list(hub.subscribe()), daemon=True).start()",
        "import atexit; sub = hub.subscribe(); atexit.register(lambda: (sub.close(), hub.close()))",
        "import threading; sub = hub.subscribe(); hub.broadcast(1)\n"
        "threading.Thread(target=hub.broadcast, args=(2,), daemon=True).start()",
        "class S(Subscription):\n    def __del__(self): self.close(); len(self); repr(self)\nsub = S(1, 'block', hub)",
    ],
)
def test_at_the_interpreters_end(code: str) -> None:
    script = f"from ringmill import Hub, Subscription\nhub = Hub(buffer=1)\n{code}\n"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stderr) == (0, "")


# Containers, and arguments


def test_in_does_not_consume() -> None:
    hub = Hub[int]()
    sub = hub.subscribe()
    hub.broadcast(1)
    with pytest.raises(TypeError, match=r"Subscription.*would take items"):
        1 in sub  # noqa: B015
    with pytest.raises(TypeError):
        sub in hub  # type: ignore[operator]  # noqa: B015
    assert len(sub) == 1


def test_a_subscription_made_by_its_class_is_subscribed() -> None:
    hub = Hub[int]()
    sub: Subscription[int] = Subscription(3, "drop_oldest", hub)
    assert hub.signal(1) is sub
    sub.__init__(3, "drop_oldest", hub)  # type: ignore[misc]
    assert len(hub) == 1
    with pytest.raises(ValueError, match="of this hub"):
        Hub[int]()._add(sub)
    for call in (hub._add, hub._remove):
        with pytest.raises(TypeError):
            call(None)  # type: ignore[arg-type]
    hub.close()
    for hub_again in (hub, None, 5):
        with pytest.raises((Closed, TypeError)):
            Subscription(3, "block", hub_again)  # type: ignore[arg-type]
