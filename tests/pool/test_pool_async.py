"""`async with` a pool, and streams read by tasks: execute; wrap of iterables, async iterables and rings."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from ringmill import (
    Closed,
    Operation,
    Outcome,
    PoolNotRunning,
    RingBuffer,
    Stream,
    Task,
    TaskWorker,
    Worker,
    WorkerInitError,
    WorkerPool,
)
from tests.loops import BACKENDS, Elsewhere, let_others_run, run_loop, together
from tests.threads import start_threads

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


class Number(Operation):
    def __init__(self, number: int) -> None:
        self.number = number


class Doubler(Worker[Number]):
    def process(self, op: Number) -> None:
        op.number *= 2


def numbers(count: int) -> Iterator[Number]:
    for number in range(count):
        yield Number(number)


async def anumbers(count: int) -> AsyncIterator[Number]:
    for number in range(count):
        if number % 3 == 0:
            await anyio.lowlevel.checkpoint()
        yield Number(number)


def pool_of(count: int = 2, **settings: Any) -> WorkerPool[Number]:
    return WorkerPool([Doubler() for _ in range(count)], **settings)


# ----------------------------------------------------------------------------------------------------------------
# start and end


def test_async_with_starts_and_ends_without_blocking_the_loop(backend: str) -> None:
    """`init` and `cleanup` each wait for a task of the loop: a blocked loop would hang."""
    let_in, let_out = threading.Event(), threading.Event()
    seen: list[str] = []

    class Slow(Worker[Number]):
        def init(self) -> None:
            let_in.wait()
            seen.append("init")

        def process(self, op: Number) -> None: ...

        def cleanup(self) -> None:
            let_out.wait()
            seen.append("cleanup")

    async def main() -> None:
        async def use() -> None:
            async with WorkerPool([Slow()]) as pool:
                seen.append("body")
                pool.do(Number(1))
            seen.append("left")

        async def open_doors() -> None:
            await let_others_run()
            let_in.set()
            while "body" not in seen:
                await anyio.sleep(0.001)
            await let_others_run()
            let_out.set()

        await together(use, open_doors)

    run_loop(backend, main)
    assert seen == ["init", "body", "cleanup", "left"]


def test_an_exception_in_the_body_cancels_what_is_pending(backend: str) -> None:
    gate = threading.Event()
    ops = [Number(n) for n in range(5)]

    class Gated(Worker[Number]):
        def process(self, op: Number) -> None:
            gate.wait()

    async def fail() -> None:
        async with WorkerPool([Gated()]) as pool:
            for op in ops:
                await pool.ado(op)
            while pool.stats().running == 0:
                await anyio.sleep(0.001)
            threading.Timer(0.01, gate.set).start()
            raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await fail()

    run_loop(backend, main)
    assert [op.outcome for op in ops] == [Outcome.SUCCEEDED] + [Outcome.CANCELLED] * 4


def test_a_cancelled_start_leaves_no_pool_running(backend: str) -> None:
    let_in = threading.Event()
    cleaned = threading.Event()

    class Slow(Worker[Number]):
        def init(self) -> None:
            let_in.wait()

        def process(self, op: Number) -> None: ...

        def cleanup(self) -> None:
            cleaned.set()

    async def main() -> None:
        pool = WorkerPool([Slow()])
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(cancel, scope)
                async with pool:
                    raise AssertionError("the start was cancelled")
        assert scope.cancelled_caught
        let_in.set()
        await anyio.to_thread.run_sync(cleaned.wait)
        with pytest.raises(PoolNotRunning):
            pool.do(Number(1))

    async def cancel(scope: anyio.CancelScope) -> None:
        await let_others_run()
        scope.cancel()

    run_loop(backend, main)


def test_a_start_after_a_cancelled_one_is_a_run_of_its_own(backend: str) -> None:
    """The cancelled one ends before the next begins; whatever its thread does then, it ends no other."""
    let_in, begun, second = threading.Event(), threading.Event(), threading.Event()

    class Slow(Worker[Number]):
        def init(self) -> None:
            begun.set()
            let_in.wait()

        def process(self, op: Number) -> None: ...

    class Late(WorkerPool[Number]):
        def shutdown(self, *args: Any, **kwargs: Any) -> list[Number]:
            if threading.current_thread() is left[0]:
                second.wait()
            return super().shutdown(*args, **kwargs)

    left: list[threading.Thread] = []
    pool = Late([Slow()])

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(cancel, scope)
                async with pool:
                    raise AssertionError("the start was cancelled")
        started = start_threads(pool.start)
        let_in.set()
        await anyio.to_thread.run_sync(started.join)
        second.set()
        await anyio.to_thread.run_sync(left[0].join)
        assert await pool.do(Number(1))
        pool.shutdown()

    async def cancel(scope: anyio.CancelScope) -> None:
        await anyio.to_thread.run_sync(begun.wait)
        left.extend(thread for thread in threading.enumerate() if thread.name.endswith("-start"))
        scope.cancel()

    run_loop(backend, main)


def test_a_shutdown_of_the_users_that_raises_is_raised(backend: str) -> None:
    class Loud(WorkerPool[Number]):
        def shutdown(self, *args: Any, **kwargs: Any) -> list[Number]:
            super().shutdown(*args, **kwargs)
            raise ZeroDivisionError

    class Louder(WorkerPool[Number]):
        def __exit__(self, *args: Any) -> None:
            super().__exit__(*args)
            raise ZeroDivisionError

    async def main() -> None:
        for kind in (Loud, Louder):
            with anyio.fail_after(30), pytest.raises(ZeroDivisionError):
                async with kind([Doubler()]):
                    pass

    run_loop(backend, main)


def test_a_failed_start_leaves_no_cycle(backend: str) -> None:
    class Bad(Worker[Number]):
        def init(self) -> None:
            raise ZeroDivisionError

        def process(self, op: Number) -> None: ...

    async def main() -> None:
        error = await failed()
        gone = weakref.ref(error)
        del error
        with anyio.fail_after(30):  # free-threaded, what the thread that started it made goes when that has ended
            while gone() is not None:
                await anyio.sleep(0.001)

    async def failed() -> WorkerInitError:
        try:
            async with WorkerPool([Bad()]):
                raise AssertionError("it did not come up")
        except WorkerInitError as raised:
            return raised

    gc.disable()
    try:
        run_loop(backend, main)
    finally:
        gc.enable()


def test_cancelled_while_it_ends_cancels_what_has_not_begun_and_waits_for_the_rest(backend: str) -> None:
    gate, begun = threading.Event(), threading.Event()
    ops = [Number(n) for n in range(5)]

    class Gated(Worker[Number]):
        def process(self, op: Number) -> None:
            begun.set()
            gate.wait()

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group, WorkerPool([Gated()]) as pool:
                for op in ops:
                    pool.do(op)
                begun.wait()
                group.start_soon(cancel, scope, pool)
        assert scope.cancelled_caught
        assert not pool.stats().running

    async def cancel(scope: anyio.CancelScope, pool: WorkerPool[Number]) -> None:
        await let_others_run()
        scope.cancel()
        with anyio.CancelScope(shield=True):
            while ops[-1].outcome is Outcome.PENDING:
                await anyio.sleep(0.001)
        assert pool.stats().running
        gate.set()

    run_loop(backend, main)
    assert [op.outcome for op in ops] == [Outcome.SUCCEEDED] + [Outcome.CANCELLED] * 4


def test_async_with_in_a_worker_of_its_own_is_refused(backend: str) -> None:
    def use(pool: WorkerPool[Task[Any]]) -> None:
        async def main() -> None:
            await pool.__aexit__(None, None, None)

        run_loop(backend, main)

    with WorkerPool([TaskWorker()]) as pool:
        task = pool.do(Task(use, pool))
        assert isinstance(task.exception(), RuntimeError)


# ----------------------------------------------------------------------------------------------------------------
# streams


def test_execute_is_read_by_async_for(backend: str) -> None:
    async def main() -> None:
        async with pool_of() as pool:
            assert sorted([op.number async for op in pool.execute(numbers(100))]) == [2 * n for n in range(100)]
            assert [op async for op in pool.execute([])] == []
            stream = pool.execute(numbers(1))
            assert (await stream.aget()).number == 0
            with pytest.raises(Closed):
                await stream.aget()

    run_loop(backend, main)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("buffer", [1, 2, 7])
def test_wrap_of_an_async_iterable(backend: str, buffer: int, ordered: bool) -> None:
    async def main() -> None:
        drawn = 0
        taken: list[int] = []

        async def source() -> AsyncIterator[Number]:
            nonlocal drawn
            async for op in anumbers(200):
                drawn += 1
                assert drawn - len(taken) <= buffer + 1
                yield op

        async with pool_of(3) as pool:
            async for op in pool.wrap(source(), buffer=buffer, ordered=ordered):
                taken.append(op.number)
        assert (taken if ordered else sorted(taken)) == [2 * n for n in range(200)]

    run_loop(backend, main)


def test_wrap_of_an_iterable_is_read_by_async_for(backend: str) -> None:
    async def main() -> None:
        async with pool_of() as pool:
            for drawn_by in ("reader", "thread"):
                stream = pool.wrap(numbers(100), buffer=3, drawn_by=drawn_by)  # type: ignore[arg-type]
                assert sorted([op.number async for op in stream]) == [2 * n for n in range(100)]

    run_loop(backend, main)


def test_pools_chain(backend: str) -> None:
    async def main() -> None:
        async with pool_of() as first, pool_of() as second:
            stream = second.wrap(first.wrap(anumbers(50), buffer=4), buffer=4, reset=True)
            assert sorted([op.number async for op in stream]) == [4 * n for n in range(50)]

    run_loop(backend, main)


def test_wrap_of_a_ring_that_tasks_fill(backend: str) -> None:
    async def main() -> None:
        ring: RingBuffer[Number] = RingBuffer(2)

        async def fill() -> None:
            for op in numbers(100):
                await ring.aput(op)
            ring.close()

        async with pool_of() as pool:

            async def read() -> list[int]:
                return sorted([op.number async for op in pool.wrap(ring, buffer=3)])

            assert (await together(read, fill))[0] == [2 * n for n in range(100)]

    run_loop(backend, main)


def test_several_tasks_and_threads_share_a_stream(backend: str) -> None:
    with pool_of() as pool:
        stream = pool.wrap(numbers(600), buffer=5)

        async def read() -> list[int]:
            return [op.number async for op in stream]

        async def read_twice() -> list[int]:
            first, second = await together(read, read)
            return [*first, *second]

        loops = [Elsewhere(kind, read_twice) for kind in BACKENDS]
        threads = start_threads(lambda: [op.number for op in stream])
        parts = [loop.join() for loop in loops] + threads.join()
    assert sorted(itertools.chain(*parts)) == [2 * n for n in range(600)]


def test_several_tasks_share_a_stream_over_an_async_source(backend: str) -> None:
    async def main() -> None:
        async with pool_of() as pool:
            stream = pool.wrap(anumbers(300), buffer=4)

            async def read() -> list[int]:
                return [op.number async for op in stream]

            parts = await together(*[read] * 4)
        assert sorted(itertools.chain(*parts)) == [2 * n for n in range(300)]

    run_loop(backend, main)


def test_a_source_that_raises_ends_the_stream_with_its_error(backend: str) -> None:
    async def broken() -> AsyncIterator[Number]:
        yield Number(1)
        yield Number(2)
        raise ZeroDivisionError

    async def main() -> None:
        taken: list[int] = []

        async def read(stream: Stream[Number]) -> None:
            async for op in stream:
                taken.append(op.number)

        async with pool_of() as pool:
            with pytest.raises(ZeroDivisionError):
                await read(pool.wrap(broken()))
        assert sorted(taken) == [2, 4]

    run_loop(backend, main)


def test_an_object_that_is_no_operation_ends_the_stream(backend: str) -> None:
    async def wrong() -> AsyncIterator[Any]:
        yield Number(1)
        yield "two"

    async def main() -> None:
        async with pool_of() as pool:
            stream = pool.wrap(wrong())
            assert (await stream.aget()).number == 2
            with pytest.raises(TypeError, match="the source must give Operations"):
                await stream.aget()

    run_loop(backend, main)


def test_a_blocking_read_of_an_async_source_is_refused(backend: str) -> None:
    async def main() -> None:
        async with pool_of() as pool:
            stream = pool.wrap(anumbers(3))
            with pytest.raises(TypeError, match="async for"):
                next(stream)
            with pytest.raises(TypeError, match="async for"):
                stream.get(timeout=0)
            with pytest.raises(TypeError, match="async for"):
                stream.get_many()
            assert len([op async for op in stream]) == 3
            with pytest.raises(ValueError, match="drawn_by"):
                pool.wrap(anumbers(3), drawn_by="thread")

    run_loop(backend, main)


def test_a_read_cancelled_while_it_draws_loses_nothing_of_a_source_that_goes_on(backend: str) -> None:
    class Source:
        def __init__(self) -> None:
            self.given = 0
            self.door = anyio.Event()

        def __aiter__(self) -> Source:
            return self

        async def __anext__(self) -> Number:
            if self.given == 3:
                await self.door.wait()
            if self.given == 6:
                raise StopAsyncIteration
            self.given += 1
            return Number(self.given)

    async def main() -> None:
        source = Source()
        taken: list[int] = []
        async with pool_of(1) as pool:
            stream = pool.wrap(source, buffer=10, ordered=True)
            for _ in range(20):
                with anyio.move_on_after(0.001):
                    taken.append((await stream.aget()).number)
            source.door.set()
            taken += [op.number async for op in stream]
        assert taken == [2, 4, 6, 8, 10, 12]

    run_loop(backend, main)


def test_a_generator_ended_by_a_cancelled_read_does_not_look_complete(backend: str) -> None:
    async def endless() -> AsyncIterator[Number]:
        yield Number(1)
        await anyio.sleep_forever()

    async def main() -> None:
        async with pool_of() as pool:
            stream = pool.wrap(endless(), buffer=1)
            assert (await stream.aget()).number == 2
            with anyio.move_on_after(0.01):
                await stream.aget()
            with pytest.raises(RuntimeError, match="ended by a read that was cancelled"):
                await stream.aget()

    run_loop(backend, main)


def test_cancelled_reads_lose_no_operation(backend: str, seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        taken: list[int] = []
        async with pool_of(2) as pool:
            stream = pool.wrap(numbers(1_000), buffer=3)
            over = False
            while not over:
                async with anyio.create_task_group() as group:
                    group.start_soon(cancel_soon, group.cancel_scope, rng.randrange(5))
                    try:
                        taken.append((await stream.aget()).number)
                    except Closed:
                        over = True
                    group.cancel_scope.cancel()
        assert sorted(taken) == [2 * n for n in range(1_000)]

    async def cancel_soon(scope: anyio.CancelScope, steps: int) -> None:
        await let_others_run(steps)
        scope.cancel()

    run_loop(backend, main)


def test_a_source_that_iterates_its_own_stream_gets_an_error(backend: str) -> None:
    async def main() -> None:
        streams: list[Any] = []

        async def own() -> AsyncIterator[Number]:
            yield Number(1)
            yield await streams[0].aget()

        async with pool_of() as pool:
            streams.append(pool.wrap(own(), buffer=1))
            with pytest.raises(RuntimeError, match="reads that stream"):
                async for _ in streams[0]:
                    pass

    run_loop(backend, main)


def test_leaving_a_stream_closes_its_async_source(backend: str) -> None:
    closed: list[str] = []

    async def source() -> AsyncIterator[Number]:
        try:
            while True:
                yield Number(1)
        finally:
            await anyio.lowlevel.checkpoint()
            closed.append("source")

    async def main() -> None:
        async with pool_of() as pool:
            async with pool.wrap(source(), buffer=2) as stream:
                assert (await stream.aget()).number == 2
            assert closed == ["source"]
            assert stream.closed
            async with pool.execute(numbers(3)) as batch:
                pass
            assert batch.closed

    run_loop(backend, main)


def test_a_stream_whose_pool_stops_ends_with_that(backend: str) -> None:
    async def main() -> None:
        async with pool_of() as pool:
            stream = pool.wrap(anumbers(1_000), buffer=2)
            await stream.aget()
        with pytest.raises(PoolNotRunning):
            async for _ in stream:
                pass

    run_loop(backend, main)
