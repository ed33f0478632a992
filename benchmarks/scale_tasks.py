"""What bench_scale.py measures with: tasks of an event loop, of which N wait for operations.

    a worker's process --> asyncio.run --> N tasks that wait for operations of the worker's own pool
                                       --> one more, timed

Each context manager yields a Setup, as those of scale_retries.py do.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ringmill import Operation, Reject, Retry, Worker, WorkerPool

if TYPE_CHECKING or __package__:
    from .harness import FEWEST, Sample, one_by_one
    from .scale_retries import FAR, B, Budget, ForB, Setup
    from .work import Noop
else:  # run as a script
    from harness import FEWEST, Sample, one_by_one
    from scale_retries import FAR, B, Budget, ForB, Setup
    from work import Noop

SECONDS = 0.3  # of a round


class Loop(Operation):
    """Has its worker run an event loop until it is stopped."""

    def __init__(self) -> None:
        self.ready = threading.Event()

    async def main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.stopped = asyncio.Event()
        self.ready.set()
        await self.stopped.wait()

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine on the loop; called by another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()


class Looping(Worker[Operation]):
    """Runs event loops; refuses what is for B; tries others twice."""

    def __init__(self, refusal: Callable[[], BaseException]) -> None:
        self.refusal = refusal

    def process(self, op: Operation) -> None:
        if type(op) is Loop:
            asyncio.run(op.main())
        elif type(op) is ForB:
            raise self.refusal()
        elif type(op) is Noop and not op.tries:
            raise Retry


async def done(op: Operation) -> None:
    await op


@contextmanager
def awaiting(size: int, budget: Budget, delays: bool) -> Iterator[Setup]:
    """N tasks of an event loop, which a worker runs inside process, wait for operations of the same pool.

    Those wait for a delay that does not end, or for B, which is busy.
    """
    b = B()
    loopers = [Looping((lambda: Retry(delay=FAR)) if delays else Reject) for _ in range(3)]
    pool: WorkerPool[Operation] = WorkerPool([*loopers, *([] if delays else [b])], queue_size=2 * size + 1024)
    loop = Loop()
    which = "delayed" if delays else "rejected"
    tasks: list[asyncio.Task[None]] = []

    async def add(count: int) -> None:
        tasks.extend([asyncio.ensure_future(done(pool.do(ForB()))) for _ in range(count)])
        await asyncio.sleep(0)  # each has begun to wait

    async def wait(n: int) -> list[float]:
        times: list[float] = []
        end = time.perf_counter() + SECONDS
        while len(times) < n and (len(times) < FEWEST or time.perf_counter() < end):
            begun = time.perf_counter()
            await pool.do(Noop())
            times.append(time.perf_counter() - begun)
        return times

    async def stop() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        loop.stopped.set()

    with pool:
        if not delays:
            pool.do(ForB())
            b.busy.wait()
        pool.do(loop)
        loop.ready.wait()
        try:
            yield Setup(budget.fill(size, lambda n: loop.call(add(n))), {
                f"tasks of a worker wait, what they wait for is {which}: one more operation is awaited there":
                    lambda n: loop.call(wait(n)),
                f"tasks of a worker wait, what they wait for is {which}: execute of one that is retried once":
                    lambda n: one_by_one(lambda: list(pool.execute([Noop()])), n),
            })  # fmt: skip
        finally:
            loop.call(stop())
            pool.shutdown(wait=False, cancel_pending=True)
            b.gate.set()


def cancel_waiters(size: int) -> Sample:
    """N tasks await one operation; each is cancelled."""

    async def run() -> float:
        op = ForB()
        tasks = [asyncio.ensure_future(done(op)) for _ in range(size)]
        await asyncio.sleep(0)  # each has begun to wait
        begun = time.perf_counter()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return time.perf_counter() - begun

    return lambda _: [asyncio.run(run()) / size]
