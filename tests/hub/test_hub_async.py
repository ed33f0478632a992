"""asignal, abroadcast, and subscriptions that are read by tasks."""

from __future__ import annotations

import queue

import anyio
import pytest

from ringmill import Closed, Hub
from tests.loops import BACKENDS, Elsewhere, let_others_run, run_loop, together
from tests.threads import start_threads

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def test_tasks_and_threads_read_broadcast_items(backend: str) -> None:
    hub: Hub[int] = Hub(buffer=2)
    subscriptions = [hub.subscribe() for _ in range(4)]

    async def read_two() -> list[list[int]]:
        async def read(k: int) -> list[int]:
            return [item async for item in subscriptions[k]]

        return await together(lambda: read(0), lambda: read(1))

    async def publish() -> None:
        for number in range(300):
            assert await hub.abroadcast(number) == 4
        hub.close()

    readers = Elsewhere(backend, read_two)
    threads = start_threads(lambda: list(subscriptions[2]), lambda: list(subscriptions[3]))
    run_loop("trio" if backend == "asyncio" else "asyncio", publish)
    assert readers.join() + threads.join() == [list(range(300))] * 4


def test_asignal_goes_to_the_next_in_turn_and_awaits_room(backend: str) -> None:
    async def main() -> None:
        hub: Hub[int] = Hub(buffer=1)
        first, second = hub.subscribe(), hub.subscribe()
        assert await hub.asignal(1) is first
        assert await hub.asignal(2) is second
        sent = anyio.Event()

        async def send() -> None:
            assert await hub.asignal(3) is first
            sent.set()

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await let_others_run()
            assert not sent.is_set()
            assert await first.aget() == 1
            await sent.wait()
        assert await first.aget() == 3

    run_loop(backend, main)


def test_policies_that_do_not_wait(backend: str) -> None:
    async def main() -> None:
        hub: Hub[int] = Hub(buffer=1)
        latest = hub.subscribe(overflow="latest")
        dropping = hub.subscribe(overflow="drop_incoming")
        assert await hub.abroadcast(1) == 2
        assert await hub.abroadcast(2) == 1
        assert (await latest.aget(), await dropping.aget()) == (2, 1)
        latest.close()
        assert await hub.asignal(3) is dropping
        assert await hub.asignal(4) is None
        dropping.close()
        assert await hub.asignal(5) is None
        raising = hub.subscribe(overflow="raise")
        assert await hub.abroadcast(6) == 1
        assert not raising.closed
        with pytest.raises(queue.Full) as full:
            await hub.abroadcast(7)
        assert full.value.count == 0  # type: ignore[attr-defined]
        with pytest.raises(queue.Full):
            await hub.asignal(8)

    run_loop(backend, main)


def test_a_publisher_that_awaits_room_is_let_go_when_the_subscriber_leaves(backend: str) -> None:
    async def main() -> None:
        hub: Hub[int] = Hub(buffer=1)
        slow, other = hub.subscribe(), hub.subscribe()
        assert await hub.abroadcast(1) == 2
        assert other.get() == 1

        async def leave() -> None:
            await let_others_run()
            slow.close()

        async def publish() -> int:
            return await hub.abroadcast(2)

        assert (await together(publish, leave))[0] == 1
        assert [item async for item in slow] == [1]
        hub.close()
        for call in (hub.abroadcast, hub.asignal):
            with pytest.raises(Closed):
                await call(3)

    run_loop(backend, main)


def test_a_cancelled_publisher_has_delivered_to_those_that_had_room(backend: str) -> None:
    async def main() -> None:
        hub: Hub[int] = Hub(buffer=1)
        slow, quick = hub.subscribe(), hub.subscribe(buffer=9)
        await hub.abroadcast(1)
        async with anyio.create_task_group() as group:
            group.start_soon(hub.abroadcast, 2)
            while len(quick) < 2:
                await anyio.sleep(0)
            group.cancel_scope.cancel()
        assert quick.get_many() == [1, 2]
        assert await slow.aget() == 1
        assert len(slow) == 0
        with anyio.move_on_after(0):
            await slow.aget()
        await hub.abroadcast(3)
        assert await slow.aget() == 3

    run_loop(backend, main)
