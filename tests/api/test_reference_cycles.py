"""Reference cycles through each owned reference that Cython does not traverse itself are collected.

The rings' and hubs' own are in test_ring_buffer_references and test_hub_references.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ringmill import Operation, RingBuffer, Task, Worker, WorkerPool
from ringmill._core.pool.operation import OperationBase
from tests.threads import LONG, wait_until


class Op(Operation):
    pass


class Bare(OperationBase):
    """Of the compiled type itself, without Operation."""


class Gated(Worker[Operation]):
    def __init__(self) -> None:
        self.gate = threading.Event()

    def process(self, op: Operation) -> None:
        assert self.gate.wait(LONG)


def collected(probe: weakref.ref[Any]) -> bool:
    for _ in range(4):
        gc.collect()
    return probe() is None


def give_up(*coroutines: Coroutine[Any, Any, Any], close: bool = True) -> None:
    """Runs tasks in a loop until they wait, and leaves them there forever."""
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(coroutine) for coroutine in coroutines]
    for _ in range(5):
        loop.run_until_complete(asyncio.sleep(0))
    for task in tasks:
        assert not task.done()
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is meant to be destroyed
    if close:
        loop.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("close", [False, True])
def test_tasks_that_wait_to_read_a_stream(close: bool) -> None:
    """The ready ring's wait queue owns them, each owns the stream; the pool's run refers to the ring until it ends."""
    worker = Gated()
    with WorkerPool([worker]) as pool:

        def make() -> weakref.ref[Any]:
            stream = pool.wrap(iter([Op()]), buffer=1)
            give_up(stream.aget(), stream.aget(), stream.aget(), close=close)
            return weakref.ref(stream)

        probe = make()
        worker.gate.set()
        wait_until(lambda: pool.stats().running == 0)
    assert collected(probe)


def test_a_task_that_reads_a_stream() -> None:
    """The pool may still wake it, so it keeps the stream while that runs; not after."""
    worker = Gated()
    with WorkerPool([worker]) as pool:

        def make() -> weakref.ref[Any]:
            stream = pool.wrap(RingBuffer[Op](1))
            give_up(stream.aget(), stream.aget())
            return weakref.ref(stream)

        probe = make()
    assert collected(probe)


def test_an_object_from_a_source_that_is_no_operation() -> None:
    """WorkSource.bad_item: the work source owns it, and it may own the stream."""

    class Stranger:
        stream: Any

        def __repr__(self) -> str:
            return "<a stranger>"

    with WorkerPool([Gated()]) as pool:

        def make() -> weakref.ref[Any]:
            ring = RingBuffer[Any](1)
            stranger = Stranger()
            stranger.stream = stream = pool.wrap(ring)
            ring.put(stranger)
            wait_until(lambda: stream.closed)
            return weakref.ref(stranger)

        assert collected(make())


@pytest.mark.parametrize("make", [Op, lambda: Task(len, ()), Bare])
def test_tasks_that_await_an_operation(make: Callable[[], Any]) -> None:
    """OperationBase.waiters, in each of the compiled types: the operation is known to those that wait for it only."""

    def wait() -> weakref.ref[Any]:
        op = make()

        async def waits() -> None:
            await op

        give_up(waits(), waits())
        return weakref.ref(op)

    assert collected(wait())


def test_a_task_that_waits_to_put_what_owns_it() -> None:
    """aput: no reference for the slot is held while it waits."""

    class Item:
        ring: Any

    def make() -> weakref.ref[Any]:
        item = Item()
        item.ring = ring = RingBuffer[Any](1)
        ring.put(None)
        give_up(ring.aput(item))
        return weakref.ref(item)

    assert collected(make())


def test_a_task_that_waits_to_submit_what_owns_it() -> None:
    """ado: likewise. The pool is full; it may still wake the task, so it keeps that while it runs."""

    class Owning(Op):
        loop_task: Any

    worker = Gated()
    with WorkerPool([worker], queue_size=1) as pool:
        try:

            def make() -> weakref.ref[Any]:
                op = Owning()
                coroutine = pool.ado(op)
                op.loop_task = coroutine
                give_up(coroutine)
                return weakref.ref(op)

            pool.do(Op())
            wait_until(lambda: pool.stats().running == 1)
            pool.do(Op())
            probe = make()
        finally:
            worker.gate.set()
    assert collected(probe)
