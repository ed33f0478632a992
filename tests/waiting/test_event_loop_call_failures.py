"""The call that wakes an event loop may fail: a signal handler raises, memory is short, the stack is full."""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio

from ringmill import Operation, OperationReused, RingBuffer, Worker, WorkerPool
from tests.loops import BACKENDS, Elsewhere, let_others_run, together
from tests.threads import run_threads, start_threads


class Custom(BaseException):
    """What a signal handler raises."""


def failing(call: Callable[..., Any], error: type[BaseException], times: int) -> Callable[..., Any]:
    """That call, which raises so many times before it works."""
    left = iter(range(times))

    def fail_first(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is not None:
            raise error
        return call(*args, **kwargs)

    return fail_first


# Eight attempts on the spot, then the interpreter is asked to make some more: ten is beyond the first.
@pytest.mark.parametrize(
    ("error", "times"),
    [(KeyboardInterrupt, 1), (KeyboardInterrupt, 7), (Custom, 1), (Custom, 7)]
    + [(error, times) for error in (MemoryError, RecursionError, RuntimeError) for times in (1, 10)],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_that_fails_for_a_time_loses_no_wakeup(
    backend: str, error: type[BaseException], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a signal handler raised reaches the thread that ran it."""
    ring: RingBuffer[int] = RingBuffer(1)
    ready = threading.Event()

    async def main() -> list[int]:
        if backend == "asyncio":
            loop: Any = asyncio.get_running_loop()
            monkeypatch.setattr(loop, "call_soon_threadsafe", failing(loop.call_soon_threadsafe, error, times))
        else:
            real = trio.lowlevel.TrioToken.run_sync_soon
            fails = failing(real, error, times)
            monkeypatch.setattr(trio.lowlevel.TrioToken, "run_sync_soon", lambda *args: fails(*args))
        _, got = await together(tell_when_it_sleeps, get_two)
        return got

    async def tell_when_it_sleeps() -> None:
        await let_others_run()
        ready.set()

    async def get_two() -> list[int]:
        return [await ring.aget(), await ring.aget()]

    elsewhere = Elsewhere(backend, main)
    ready.wait()
    raised: list[type[BaseException]] = []
    try:
        ring.put(1)
        for _ in range(1000):  # an asynchronous error comes between two bytecodes
            pass
    except (KeyboardInterrupt, Custom) as caught:
        raised.append(type(caught))
    ring.put(2)
    assert elsewhere.join() == [1, 2]
    assert raised == ([error] if not issubclass(error, Exception) else [])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the platform has no interval timer")
@pytest.mark.stress
def test_signals_while_a_loop_is_fed_are_raised_and_lose_no_item() -> None:
    ring: RingBuffer[int | None] = RingBuffer(4)

    async def main() -> list[int]:
        got = []
        while (item := await ring.aget()) is not None:
            got.append(item)
        return got

    raised = armed = False

    def handle(*_: Any) -> None:
        nonlocal raised
        if armed:
            raised = True
            raise Custom

    elsewhere = Elsewhere("asyncio", main)
    before = signal.signal(signal.SIGALRM, handle)
    caught = 0
    end = time.monotonic() + 2
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for item in itertools.count():
            try:
                armed = True
                ring.put(item, timeout=20)
                for _ in range(3):  # what a signal raised within may come late: between two bytecodes
                    pass
                armed = False
                assert not raised, "what a signal handler raised was swallowed"
            except Custom:
                armed = raised = False
                caught += 1
            except queue.Full:
                raise AssertionError(f"the loop sleeps, {len(ring)} items wait for it") from None
            if time.monotonic() > end:
                break
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    ring.put(None)
    got = elsewhere.join()
    assert got == sorted(set(got))
    assert caught


def test_a_keyboard_interrupt_while_a_loop_resumes_tasks_goes_through_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    ring: RingBuffer[int] = RingBuffer(1)
    loop = asyncio.new_event_loop()
    task = loop.create_task(ring.aget())
    loop.run_until_complete(asyncio.sleep(0))
    future = task._fut_waiter  # type: ignore[attr-defined]
    run_threads(lambda: ring.put(1))
    call_soon = loop.call_soon

    def call_soon_raises(*args: Any, **kwargs: Any) -> Any:
        if future.done() and not task.done():
            monkeypatch.setattr(loop, "call_soon", call_soon)
            raise KeyboardInterrupt
        return call_soon(*args, **kwargs)

    monkeypatch.setattr(loop, "call_soon", call_soon_raises)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is meant to be destroyed
    loop.close()
    assert ring.get(timeout=0) == 1


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="the platform sends no signals to threads")
def test_a_keyboard_interrupt_in_do_is_raised_though_the_operation_was_cancelled() -> None:
    gate = threading.Event()

    class Job(Operation): ...

    class Gated(Worker[Job]):
        def process(self, op: Job) -> None:
            gate.wait()

    op = Job()

    def cancel_and_send_sigint() -> None:
        while not is_pending(op):
            time.sleep(0.0005)
        assert op.cancel()
        os.kill(os.getpid(), signal.SIGINT)

    with WorkerPool([Gated()], queue_size=1) as pool:
        try:
            pool.do(Job())
            while not pool.stats().running:
                time.sleep(0.0005)
            pool.do(Job())
            thread = start_threads(cancel_and_send_sigint)
            with pytest.raises(KeyboardInterrupt):
                pool.do(op)
            thread.join()
        finally:
            gate.set()


def is_pending(op: Operation) -> bool:
    try:
        op.reset()
    except OperationReused:
        return True
    return False
