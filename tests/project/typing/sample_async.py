"""A typed use of ringmill's async side, for `mypy --strict` and pyright; not run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, assert_type

from ringmill import (
    Hub,
    Operation,
    Results,
    RingBuffer,
    Stream,
    Subscription,
    Task,
    TaskWorker,
    Worker,
    WorkerPool,
)


@dataclass(slots=True)
class Fetch(Operation):
    url: str


class Fetcher(Worker[Fetch]):
    def process(self, op: Fetch) -> None:
        print(op.url)


async def urls() -> AsyncIterator[Fetch]:
    yield Fetch("a")


async def use() -> None:
    ring: RingBuffer[int] = RingBuffer(8)
    await ring.aput(1)
    assert_type(await ring.aget(), int)
    async for item in ring:
        assert_type(item, int)

    async with WorkerPool([Fetcher()]) as pool:
        assert_type(pool, WorkerPool[Fetch])
        op = await pool.ado(Fetch("a"))
        assert_type(op, Fetch)
        assert_type(await op, Fetch)
        stream = pool.wrap(urls())
        assert_type(stream, Stream[Fetch])
        async for fetch in stream:
            assert_type(fetch, Fetch)
        assert_type(await stream.aget(), Fetch)
        async with pool.wrap(urls()) as opened:
            assert_type(opened, Stream[Fetch])

    async with WorkerPool([TaskWorker()]) as tasks:
        task = Task(len, "abc")
        await tasks.ado(task)
        assert_type(await task, int)

    hub: Hub[str] = Hub()
    subscription = hub.subscribe()
    assert_type(subscription, Subscription[str])
    assert_type(await hub.asignal("a"), Subscription[str] | None)
    assert_type(await hub.abroadcast("b"), int)
    assert_type(await subscription.aget(), str)
    assert_type(subscription.get(), str)
    assert_type(subscription.get_many(), list[str])
    async for text in subscription:
        assert_type(text, str)
    for text in subscription:
        assert_type(text, str)


class Measurer(Worker[Any]):
    def process(self, op: str) -> int:
        return len(op)


async def texts() -> AsyncIterator[str]:
    yield "a"


async def use_items() -> None:
    async with WorkerPool(Measurer, 2) as pool:
        results = pool.map(texts(), buffer=8)
        assert_type(results, Results[Any])
        async for result in results:
            assert_type(result, Any)
        named: Results[int] = pool.map(["a"])
        async for length in named:
            assert_type(length, int)
        assert_type(await named.aget(), int)
        async with pool.map(pool.map(texts())) as opened:
            assert_type(opened, Results[Any])
            await opened.aclose()
        one: int = await pool.acall("a")
        assert_type(await pool.acall("a"), Any)
        print(one)


async def misuse(pool: WorkerPool[Fetch], ring: RingBuffer[int], hub: Hub[str]) -> None:
    await pool.ado("not an operation")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ring.aput("three")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await hub.asignal(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
