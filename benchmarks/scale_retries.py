"""What bench_scale.py measures with: pools in which N operations wait for a worker that is busy, or for a delay.

    N operations --> A: Reject or Retry --> [they wait for B] --> B: busy until the end
    one operation, that A may run       --> A                                             timed

Each context manager yields a Setup. A pool is filled within a time limit: where each operation costs more the more
there are, N may be less than was asked for.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from ringmill import Operation, PoolExecutor, Reject, Retry, Stream, Worker, WorkerPool

if TYPE_CHECKING or __package__:
    from .harness import Sample, one_by_one
    from .work import Noop
else:  # run as a script
    from harness import Sample, one_by_one
    from work import Noop

CHUNK = 200  # operations that are added between two looks at the clock
NO_MATTER = 60.0  # seconds: a limit that is not reached
SHORT = 1e-6  # seconds: over before the wait is
FAR = 3600.0  # seconds: a delay that does not end


class Setup(NamedTuple):
    """So many others are there, and what is timed among them, by its name."""

    size: int
    samples: dict[str, Sample]


class Budget:
    """The time that a set-up may take."""

    def __init__(self, seconds: float) -> None:
        self.end = time.perf_counter() + seconds

    def fill(self, size: int, add: Callable[[int], object], chunk: int = CHUNK) -> int:
        """Calls `add` with how many to add, until there are `size` of them or the time is over; returns how many."""
        reached = 0
        while reached < size and (not reached or time.perf_counter() < self.end):
            count = min(chunk, size - reached)
            add(count)
            reached += count
        return reached


Make = Callable[[int, Budget], Any]  # a context manager that yields a Setup


class ForB(Operation):
    """Only B finishes it."""


class Nested(Operation):
    """Has its worker submit an operation to its own pool and wait for it, with a time limit, so many times."""

    def __init__(self, pool: WorkerPool[Operation], n: int) -> None:
        self.pool = pool
        self.n = n
        self.times: list[float] = []

    def run(self) -> None:
        self.times = one_by_one(lambda: self.pool.do(Noop()).wait(NO_MATTER), self.n)


class A(Worker[Operation]):
    """Refuses what is for B by raising a given exception, and runs the rest."""

    def __init__(self, refusal: Callable[[], BaseException]) -> None:
        self.refusal = refusal
        self.refused = threading.Semaphore(0)

    def process(self, op: Operation) -> None:
        if type(op) is ForB:
            self.refused.release()
            raise self.refusal()
        if type(op) is Nested:
            op.run()


class B(Worker[Operation]):
    """Busy with the first operation that is for it; takes no other."""

    def __init__(self) -> None:
        self.busy = threading.Event()
        self.gate = threading.Event()

    def process(self, op: Operation) -> None:
        if type(op) is not ForB:
            raise Reject
        self.busy.set()
        self.gate.wait()


class Waiting:
    """A pool of A's and, unless a delay is what the operations wait for, of B."""

    def __init__(self, size: int, budget: Budget, refusal: Callable[[], BaseException], refusers: int, delayed: bool):
        self.refusers = [A(refusal) for _ in range(refusers)]
        self.b = B()
        # Operations that wait to be tried again count as queued, and `do` is to find room.
        workers: list[Worker[Operation]] = [*self.refusers, *([] if delayed else [self.b])]
        self.pool: WorkerPool[Operation] = WorkerPool(workers, queue_size=2 * size + 1024)
        self.pool.start()
        try:
            if not delayed:
                self.pool.do(ForB())
                self.b.busy.wait()
                self.forget_refusals()
            self.size = budget.fill(size, self.add)
        except BaseException:
            self.close()
            raise

    def forget_refusals(self) -> None:
        """Those of the operation that B is busy with."""
        for a in self.refusers:
            while a.refused.acquire(blocking=False):
                pass

    def add(self, count: int) -> None:
        for _ in range(count):
            self.pool.do(ForB())
        self.await_refusals(count)

    def await_refusals(self, count: int) -> None:
        """Until each A has refused so many, and what it refused waits."""
        for a in self.refusers:
            for _ in range(count):
                a.refused.acquire()
        for _ in self.refusers:
            self.pool.do(Noop()).wait()

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_pending=True)
        self.b.gate.set()
        self.pool.shutdown()

    # what is timed

    def execute(self, n: int) -> list[float]:
        return one_by_one(lambda: list(self.pool.execute([Noop()])), n)

    def do(self, n: int) -> list[float]:
        return one_by_one(lambda: self.pool.do(Noop()).wait(), n)

    def nested(self, n: int) -> list[float]:
        op = Nested(self.pool, n)
        self.pool.do(op).wait()
        op.check()
        return op.times

    def cancel(self, n: int) -> list[float]:
        """Of one more that waits, until it has come out of its stream."""
        one: list[tuple[ForB, Stream[Operation]]] = []

        def before() -> None:
            op = ForB()
            one[:] = [(op, self.pool.execute([op]))]
            self.await_refusals(1)

        def cancel() -> None:
            op, stream = one[0]
            op.cancel()
            stream.get()

        return one_by_one(cancel, n, before=before)

    def close_stream(self, n: int) -> list[float]:
        """Of one more that waits: its stream is closed."""
        streams: list[Stream[Operation]] = []

        def before() -> None:
            streams[:] = [self.pool.execute([ForB()])]
            self.await_refusals(1)

        return one_by_one(lambda: streams[0].close(), n, before=before)


@contextmanager
def rejected(size: int, budget: Budget) -> Iterator[Setup]:
    """A has rejected N operations; B is busy."""
    waiting = Waiting(size, budget, Reject, 1, False)
    try:
        yield Setup(waiting.size, {
            "rejected by the other worker: execute of one": waiting.execute,
            "rejected by the other worker: do and wait": waiting.do,
            "rejected by the other worker: cancel of one more, until it comes out": waiting.cancel,
            "rejected by the other worker: close of the stream of one more": waiting.close_stream,
        })  # fmt: skip
    finally:
        waiting.close()


@contextmanager
def tried(size: int, budget: Budget) -> Iterator[Setup]:
    """A has tried N operations, which B, busy, is to try next."""
    waiting = Waiting(size, budget, Retry, 1, False)
    try:
        yield Setup(waiting.size, {
            "tried by the other worker: execute of one": waiting.execute,
            "tried by the other worker: do and wait": waiting.do,
        })  # fmt: skip
    finally:
        waiting.close()


@contextmanager
def nested(size: int, budget: Budget) -> Iterator[Setup]:
    """Two A's have rejected N operations: one waits for what the other does."""
    waiting = Waiting(size, budget, Reject, 2, False)
    try:
        yield Setup(waiting.size, {"inside process: do and wait with a timeout": waiting.nested})
    finally:
        waiting.close()


@contextmanager
def delayed(size: int, budget: Budget) -> Iterator[Setup]:
    """A has tried N operations, whose delays do not end."""
    waiting = Waiting(size, budget, lambda: Retry(delay=FAR), 1, True)
    try:
        yield Setup(waiting.size, {
            "delayed: execute of one": waiting.execute,
            "delayed: cancel of one more, until it comes out": waiting.cancel,
            "delayed: close of the stream of one more": waiting.close_stream,
        })  # fmt: skip
    finally:
        waiting.close()


# ---------------------------------------------------------------------------------------------------------------
# tasks of an event loop


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
        end = time.perf_counter() + 0.3
        while len(times) < n and (len(times) < 3 or time.perf_counter() < end):
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


# ---------------------------------------------------------------------------------------------------------------
# an executor


def nothing() -> None:
    pass


@contextmanager
def pending(size: int, budget: Budget, answers: int) -> Iterator[Setup]:
    """N calls are pending in an executor of two threads; one thread runs a call that waits for another call.

    `answers`: how many times the call of the other thread can be waited for.
    """
    executor = PoolExecutor(2)
    orders: SimpleQueue[Callable[[], list[float]] | None] = SimpleQueue()
    results: SimpleQueue[list[float]] = SimpleQueue()
    go_on = threading.Semaphore(0)
    gate = threading.Event()

    def serve() -> None:
        while (order := orders.get()) is not None:
            results.put(order())

    def ask(order: Callable[[], list[float]]) -> list[float]:
        orders.put(order)
        return results.get()

    def wait_briefly(future: Future[None]) -> None:
        with suppress(TimeoutError):
            future.result(SHORT)

    def submitted(n: int) -> list[float]:
        def order() -> list[float]:
            future = executor.submit(nothing)
            return one_by_one(lambda: wait_briefly(future), n)

        return ask(order)

    def answered(n: int) -> list[float]:
        def answer() -> None:
            go_on.release()
            next(waiting).result()

        return ask(lambda: one_by_one(answer, n))

    try:
        executor.submit(serve)
        waiting = iter([executor.submit(go_on.acquire) for _ in range(answers)])
        executor.submit(gate.wait)

        def add(count: int) -> None:
            for _ in range(count):
                executor.submit(nothing)

        yield Setup(budget.fill(size, add), {
            "inside a call: a wait for a call that does not begin": submitted,
            "inside a call: a wait for the call that another thread runs": answered,
        })  # fmt: skip
    finally:
        for _ in range(answers):
            go_on.release()
        gate.set()
        orders.put(None)
        executor.shutdown(cancel_futures=True)
