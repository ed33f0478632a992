"""Results of `WorkerPool.map`: their readers, their end, what they say of themselves, and what they keep alive."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import queue
import random
import subprocess
import sys
import textwrap
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest

import ringmill
from ringmill import Closed, PoolNotRunning, Worker, WorkerPool
from tests.loops import BACKENDS, Elsewhere, let_others_run, run_loop, together
from tests.pool.items import (
    LONG,
    SHORT,
    Caller,
    Gated,
    Give,
    Hold,
    Source,
    Square,
    counts,
    is_conserved,
)
from tests.threads import run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

both = pytest.mark.parametrize("kind", [list, iter], ids=["list", "iterator"])

Kind = Callable[[Any], Any]


def squares(count: int) -> list[int]:
    return [number * number for number in range(count)]


def pool_of(count: int = 2, kind: type[Worker[Any]] = Square, **settings: Any) -> WorkerPool[Any]:
    return WorkerPool([kind() for _ in range(count)], **settings)


# An iterator


@both
@pytest.mark.parametrize("ordered", [True, False])
def test_an_iterator_that_ends(kind: Kind, ordered: bool) -> None:
    with pool_of(1) as pool:
        results = pool.map(kind(range(3)), ordered=ordered)
        assert iter(results) is results
        assert [next(results) for _ in range(3)] == [0, 1, 4]
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(results)
            for call in (results.get, lambda: results.get(timeout=0), results.get_many):
                with pytest.raises(Closed):
                    call()


# get and get_many


@pytest.mark.parametrize("call", ["get", "get_many"])
@pytest.mark.parametrize("timeout", [0, SHORT])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_timeout_takes_nothing(call: str, timeout: float, ordered: bool) -> None:
    worker = Gated()
    with WorkerPool([worker]) as pool:
        results = pool.map([0, 1], ordered=ordered)
        for _ in range(2):
            with pytest.raises(queue.Empty):
                getattr(results, call)(timeout=timeout)
        worker.permits.release(2)
        assert results.get(LONG) == 0
        assert results.get(timeout=LONG) == 1


def test_get_waits() -> None:
    worker = Gated()
    with WorkerPool([worker]) as pool:
        results = pool.map([0, 1])
        reader = start_threads(lambda: (results.get(), results.get(timeout=LONG)))
        worker.permits.release(2)
        assert reader.join() == [(0, 1)]


@pytest.mark.parametrize("ordered", [True, False])
def test_get_many_takes_what_is_ready(ordered: bool) -> None:
    worker = Gated()
    with WorkerPool([worker]) as pool:
        results = pool.map(list(range(8)), ordered=ordered)
        worker.permits.release(5)
        wait_until(lambda: results.ready == 5)
        assert results.get_many(max=2) == [0, 1]
        assert results.get_many(1, LONG) == [2]
        assert results.get_many() == [3, 4]
        reader = start_threads(results.get_many)
        worker.permits.release(1)
        assert reader.join() == [[5]]  # it waits for the first only
        worker.permits.release(2)
        wait_until(lambda: results.ready == 2)
        assert results.get_many(max=1000) == [6, 7]
        with pytest.raises(Closed):
            results.get_many()


@pytest.mark.parametrize("read", ["next", "get", "get_many", "aget"])
@pytest.mark.parametrize("most", [None, 2, 3, 100])
def test_get_many_gives_results_up_to_the_first_error_and_raises_that_on_the_next_read(
    read: str, most: int | None
) -> None:
    with pool_of(1) as pool:
        results = pool.map([1, 2, -3, 4, -5, -6])
        wait_until(lambda: pool.stats().failed == 3 and results.ready >= 2)
        wait_until(lambda: counts(pool.stats()) == {"succeeded": 3, "failed": 3})
        assert results.get_many(max=most) == [1, 4]
        calls: dict[str, Callable[[], Any]] = {
            "next": results.__next__,
            "get": results.get,
            "get_many": results.get_many,
            "aget": lambda: asyncio.run(aget(results)),
        }
        for expected in (-3, 16, -5, -6):
            if expected < 0:
                with pytest.raises(ValueError, match=str(expected)):
                    calls[read]()
            else:
                assert results.get_many() == [expected]
        with pytest.raises(Closed):
            results.get_many()


async def aget(results: Any) -> Any:
    return await results.aget()


@pytest.mark.parametrize("errors", ["return", "skip"])
def test_get_many_without_raising(errors: str) -> None:
    with pool_of(1) as pool:
        results = pool.map([1, -2, 3, -4], errors=errors)
        came: list[Any] = []
        with contextlib.suppress(Closed):
            while True:
                share = results.get_many(timeout=LONG)
                assert share
                came += share
        assert [value if isinstance(value, int) else type(value) for value in came] == (
            [1, 9] if errors == "skip" else [1, ValueError, 9, ValueError]
        )


@pytest.mark.parametrize("read", ["get", "get_many"])
def test_a_read_with_a_timeout_of_skipped_items_times_out(read: str) -> None:
    """Items that are left out do not count as something that came."""
    with pool_of(2, Caller) as pool:
        hold = Hold()
        results = pool.map([*[Give(ValueError())] * 5, hold], errors="skip")
        wait_until(lambda: pool.stats().failed == 5)
        with pytest.raises(queue.Empty):
            getattr(results, read)(timeout=SHORT)
        hold.release()
        assert list(results) == ["held"]


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda results: results.get(timeout=-1), ValueError, ["timeout", "-1"]),
        (lambda results: results.get(timeout="1"), TypeError, ["timeout", "'1'"]),
        (lambda results: results.get_many(timeout=-1), ValueError, ["timeout", "-1"]),
        (lambda results: results.get_many(max=0), ValueError, ["max", "0"]),
        (lambda results: results.get_many(max=-3), ValueError, ["max", "-3"]),
        (lambda results: results.get_many(max=1.5), TypeError, ["max", "1.5"]),
        (lambda results: results.get_many(max="2"), TypeError, ["max", "'2'"]),
    ],
)
@pytest.mark.parametrize("source", [list, iter], ids=["list", "iterator"])
def test_bad_arguments(call: Callable[[Any], Any], kind: Any, words: list[str], source: Kind) -> None:
    with pool_of() as pool:
        results = pool.map(source([3]))
        with pytest.raises(kind) as caught:
            call(results)
        assert [word for word in words if word not in str(caught.value)] == []
        assert list(results) == [9]


# What it says of itself


def test_total_ready_len_and_repr() -> None:
    worker = Gated()
    with WorkerPool([worker]) as pool:
        results = pool.map([0, 1, 2])
        assert (results.total, len(results), results.ready) == (3, 3, 0)
        texts = {repr(results)}
        worker.permits.release(2)
        wait_until(lambda: results.ready == 2)
        texts.add(repr(results))
        results.get()
        assert (results.total, len(results), results.ready) == (3, 3, 1)
        texts.add(repr(results))
        worker.permits.release(1)
        assert len(list(results)) == 2
        assert (results.total, len(results), results.ready) == (3, 3, 0)
        texts.add(repr(results))
        assert len(texts) == 4  # each of these states reads differently
        assert all("Results" in text and "3" in text for text in texts)


@pytest.mark.parametrize("items", [[], (), range(0), [1, 2], (1, 2, 3), range(7)], ids=repr)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("errors", ["raise", "return"])
def test_total_of_a_sequence(items: Any, ordered: bool, errors: str) -> None:
    with pool_of() as pool:
        results = pool.map(items, ordered=ordered, errors=errors)
        assert results.total == len(results) == len(items)
        list(results)
        assert results.total == len(items)


def test_total_of_a_source_is_known_at_its_end() -> None:
    with pool_of() as pool:
        results = pool.map(iter([1, 2, 3]), buffer=2)
        assert results.total is None
        with pytest.raises(TypeError):
            len(results)
        assert results.get(LONG) == 1
        assert list(results) == [4, 9]
        assert results.total == len(results) == 3


def test_a_stream_is_true_and_cannot_be_searched() -> None:
    """As for Stream: `if results:` would be a race, and `in` would consume what it passes."""
    with pool_of() as pool:
        for results in (pool.map([]), pool.map(iter([])), pool.map([1]), pool.map([1], errors="skip")):
            assert bool(results) is True
            with pytest.raises(TypeError):
                1 in results  # noqa: B015 - the search is the test
            list(results)
            assert bool(results) is True


def test_results_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError):
        ringmill.Results()


# Several readers


@pytest.mark.parametrize("readers", [2, 4])
@both
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
def test_each_result_goes_to_one_of_the_readers(
    readers: int, kind: Kind, ordered: bool, errors: str, seed: int
) -> None:
    """Of each reader, in the order of the items if `ordered`."""

    def read(results: Any, rng: random.Random) -> list[int]:
        mine: list[Any] = []
        while True:
            try:
                match rng.randrange(4):
                    case 0:
                        mine.append(results.get())
                    case 1:
                        mine += results.get_many(rng.randrange(1, 4))
                    case 2:
                        mine.append(next(results))
                    case 3:
                        mine.append(results.get(timeout=0))
            except queue.Empty:
                continue
            except (Closed, StopIteration):
                return mine
            except ValueError as error:
                mine.append(error)

    items = [number if number % 5 else -number - 1 for number in range(100)]
    expected = sorted(items if errors != "skip" else [number for number in items if number >= 0])
    with pool_of(3, Signed) as pool:
        for lap in range(3):
            results = pool.map(kind(items), ordered=ordered, errors=errors, buffer=7 if kind is iter else None)
            rngs = [random.Random(seed + 100 * lap + k) for k in range(readers)]
            shares = run_threads(*[lambda s=results, rng=rng: read(s, rng) for rng in rngs])
            shares = [[v.args[0] if isinstance(v, ValueError) else v for v in share] for share in shares]
            assert sorted(number for share in shares for number in share) == expected
            if ordered and errors != "raise":  # an error that get_many left may be raised to another reader, later
                assert all(share == sorted(share, key=abs) for share in shares)


class Signed(Worker[Any]):
    """Gives the number back; raises it if it is negative."""

    def process(self, item: int) -> int:
        if item < 0:
            raise ValueError(item)
        return item


def test_a_source_is_drawn_by_one_reader_at_a_time() -> None:
    def source() -> Iterator[int]:
        yield from range(300)  # "generator already executing" if two readers drew at once

    with pool_of() as pool:
        for ordered in (True, False):
            results = pool.map(source(), buffer=3, ordered=ordered)
            shares = run_threads(*[lambda results=results: list(results)] * 4)
            assert sorted(number for share in shares for number in share) == squares(300)


def test_the_error_of_a_source_is_raised_to_one_of_its_readers() -> None:
    def read(results: Any) -> list[BaseException]:
        try:
            for _ in results:
                pass
        except BaseException as raised:
            return [raised]
        return []

    for _ in range(10):
        with pool_of() as pool:
            results = pool.map(Source(3, ZeroDivisionError()), buffer=2)
            told = [one for each in run_threads(*[lambda results=results: read(results)] * 4) for one in each]
        assert [type(one) for one in told] == [ZeroDivisionError]


def test_all_readers_wake_at_the_end() -> None:
    worker = Gated()
    with WorkerPool([worker]) as pool:
        results = pool.map([7])
        readers = start_threads(*[lambda: list(results)] * 5)
        worker.permits.release(1)
        assert sorted(readers.join()) == [[], [], [], [], [7]]


def test_each_reader_raises_an_end_of_its_own() -> None:
    """Free-threaded CPython does not guard an exception that two threads raise at once."""

    def read(results: Any) -> PoolNotRunning:
        with pytest.raises(PoolNotRunning) as caught:
            for _ in results:
                pass
        return caught.value

    with pool_of() as pool:
        results = pool.map(itertools.count(), buffer=2)
        results.get()
    errors = run_threads(*[lambda: read(results)] * 4)
    assert len(set(map(id, errors))) == 4


def test_a_timeout_holds_while_another_reader_draws() -> None:
    entered, gate = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        entered.set()
        assert gate.wait(LONG)
        yield 3

    with pool_of() as pool:
        results = pool.map(source())
        other = start_threads(lambda: list(results))
        assert entered.wait(LONG)
        for call in (results.get, results.get_many):
            with pytest.raises(queue.Empty):
                call(timeout=SHORT)
        gate.set()
        assert other.join() == [[9]]


# Tasks


@pytest.mark.parametrize("backend", BACKENDS)
@both
def test_tasks_and_threads_share_a_stream(backend: str, kind: Kind) -> None:
    with pool_of() as pool:
        results = pool.map(kind(range(300)))

        async def read() -> list[int]:
            return [value async for value in results]

        async def read_twice() -> list[int]:
            first, second = await together(read, read)
            return [*first, *second]

        loops = [Elsewhere(name, read_twice) for name in BACKENDS]
        threads = start_threads(lambda: list(results))
        parts = [loop.join() for loop in loops] + threads.join()
    assert sorted(itertools.chain(*parts)) == squares(300)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tasks_share_an_async_source(backend: str) -> None:
    async def source() -> AsyncIterator[int]:
        for number in range(200):
            await anyio.lowlevel.checkpoint()
            yield number

    async def main() -> None:
        async with pool_of() as pool:
            results = pool.map(source(), buffer=4)

            async def read() -> list[int]:
                return [value async for value in results]

            parts = await together(*[read] * 4)
        assert sorted(itertools.chain(*parts)) == squares(200)

    run_loop(backend, main)


@pytest.mark.parametrize("backend", BACKENDS)
@both
def test_aget(backend: str, kind: Kind) -> None:
    async def main() -> None:
        async with pool_of() as pool:
            results = pool.map(kind([1, -2, 3]))
            assert await results.aget() == 1
            with pytest.raises(ValueError, match="-2"):
                await results.aget()
            assert await results.aget() == 9
            for _ in range(2):
                with pytest.raises(Closed):
                    await results.aget()

    run_loop(backend, main)


@pytest.mark.parametrize("backend", BACKENDS)
@both
@pytest.mark.parametrize("ordered", [True, False])
def test_cancelled_reads_lose_no_result(backend: str, kind: Kind, ordered: bool, seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        taken: list[int] = []
        async with pool_of() as pool:
            results = pool.map(kind(range(200)), ordered=ordered, buffer=3 if kind is iter else None)
            over = False
            while not over:
                async with anyio.create_task_group() as group:
                    group.start_soon(cancel_soon, group.cancel_scope, rng.randrange(5))
                    try:
                        taken.append(await results.aget())
                    except Closed:
                        over = True
                    group.cancel_scope.cancel()
        assert sorted(taken) == squares(200)

    async def cancel_soon(scope: anyio.CancelScope, times: int) -> None:
        await let_others_run(times)
        scope.cancel()

    run_loop(backend, main)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_waiting_task_does_not_block_its_loop(backend: str) -> None:
    async def main() -> None:
        async with pool_of(1, Caller) as pool:
            hold = Hold()
            results = pool.map([hold, Give(1)])
            seen: list[str] = []

            async def read() -> list[Any]:
                came = [value async for value in results]
                seen.append("read")
                return came

            async def release() -> None:
                await hold.until_reached()
                await let_others_run()
                seen.append("released")
                hold.release()

            assert (await together(read, release))[0] == ["held", 1]
            assert seen == ["released", "read"]

    run_loop(backend, main)


# The reader goes


@pytest.mark.filterwarnings("ignore:the results of a map were dropped unread")
@pytest.mark.parametrize("how", ["close", "with", "with an error", "twice", "async with", "drop"])
@pytest.mark.parametrize("ordered", [True, False])
def test_close_cancels_what_has_not_begun(how: str, ordered: bool) -> None:
    worker = Gated()
    with WorkerPool([worker]) as pool:
        results: Any = pool.map(list(range(5)), ordered=ordered)
        other = pool.map([100, 101])
        assert worker.begun.acquire(timeout=LONG)
        if how == "close":
            results.close()
        elif how == "with":
            with results as entered:
                assert entered is results
            del entered
        elif how == "with an error":
            with pytest.raises(KeyError), results:
                raise KeyError
        elif how == "async with":

            async def main() -> None:
                async with results as entered:
                    assert entered is results

            asyncio.run(main())
            del main
        elif how == "twice":
            results.close()
            results.close()
        else:
            del results
            gc.collect()
        if how != "drop":  # one that is dropped is ended by a worker, between two items
            wait_until(lambda: counts(pool.stats()) == {"running": 1, "queued": 2, "cancelled": 4})
        worker.permits.release(3)
        if how != "drop":
            for call in (results.get, lambda: results.get(LONG), results.get_many):
                with pytest.raises(Closed):
                    call()
            assert list(results) == []
        assert list(other) == [100, 101]  # no other work is touched
    assert worker.seen == [0, 100, 101]
    assert counts(pool.stats()) == {"succeeded": 3, "cancelled": 4}


@pytest.mark.filterwarnings("ignore:the results of a map were dropped unread")
@pytest.mark.parametrize("how", ["close", "drop"])
@pytest.mark.parametrize("buffer", [1, 4])
def test_close_stops_drawing_and_gives_up_the_source(how: str, buffer: int) -> None:
    """Whether `close()` calls that of the source at once is left open; nothing holds the source afterwards."""
    ended = threading.Event()
    drawn: list[int] = []

    def source() -> Iterator[int]:
        try:
            for number in itertools.count():
                drawn.append(number)
                yield number
        finally:
            ended.set()

    worker = Gated()
    with WorkerPool([worker]) as pool:
        results: Any = pool.map(source(), buffer=buffer)
        with pytest.raises(queue.Empty):
            results.get(SHORT)  # draws up to the buffer, meanwhile
        wait_until(lambda: pool.stats().running == 1)
        count = len(drawn)
        assert count <= buffer
        if how == "close":
            results.close()
            assert list(results) == []
        del results
        gc.collect()
        worker.permits.release(1)
        wait_until(lambda: is_at_rest(pool))
        wait_until(ended.is_set)
    assert len(drawn) == count
    assert worker.seen == [0]


def test_close_of_a_finished_stream_drops_what_was_not_read() -> None:
    with pool_of() as pool:
        results = pool.map([1, 2, 3])
        wait_until(lambda: results.ready == 3)
        results.close()
        with pytest.raises(Closed):
            results.get()
        assert counts(pool.stats()) == {"succeeded": 3}


@both
def test_close_wakes_blocked_readers(kind: Kind) -> None:
    worker = Gated()
    with WorkerPool([worker]) as pool:
        results = pool.map(kind([0, 1]))
        readers = start_threads(*[lambda: list(results)] * 3)
        assert worker.begun.acquire(timeout=LONG)
        results.close()
        try:
            assert readers.join() == [[], [], []]
        finally:
            worker.permits.release(2)


@both
def test_breaking_off_does_nothing_by_itself(kind: Kind) -> None:
    with pool_of() as pool:
        results = pool.map(kind(range(6)))
        for value in results:
            if value == 4:
                break
        assert list(results) == [9, 16, 25]


@both
def test_breaking_off_a_loop_that_holds_the_last_reference_closes_the_stream(kind: Kind) -> None:
    """The reader of `for result in pool.map(...)` that leaves the loop leaves no work behind."""
    worker = Gated()
    with WorkerPool([worker]) as pool:
        worker.permits.release(3)

        def read() -> None:
            for value in pool.map(kind(range(100))):
                if value == 2:
                    break

        read()
        gc.collect()
        worker.permits.release(100)
        wait_until(lambda: is_at_rest(pool))
        stats = pool.stats()
        assert stats.succeeded <= 4
        assert stats.cancelled == stats.accepted - stats.succeeded


def is_at_rest(pool: WorkerPool[Any]) -> bool:
    stats = pool.stats()
    return stats.accepted == stats.succeeded + stats.failed + stats.cancelled


def test_a_map_that_is_not_kept_is_given_up() -> None:
    """`pool.map(items)` alone does not say "do these": dropping the last reference closes the stream."""
    with pool_of(1, Caller) as pool:
        hold = Hold()
        first = pool.map([hold])
        assert hold.reached.wait(LONG)
        ran: list[int] = []
        with pytest.warns(ResourceWarning, match="dropped unread, which cancels its items"):
            pool.map([lambda: ran.append(1)] * 10)
        hold.release()
        assert list(first) == ["held"]
        wait_until(lambda: counts(pool.stats()) == {"succeeded": 1, "cancelled": 10})
    assert ran == []


def test_close_races_with_workers_and_readers(seed: int, switch_interval: float) -> None:
    class Counting(Worker[Any]):
        def process(self, item: Any) -> Any:
            ran.append(item)
            return item

    accepted = 0
    with pool_of(2, Counting) as pool:
        for lap in range(30):
            ran: list[int] = []
            items = list(range(20))
            accepted += 20
            results = pool.map(items, ordered=bool(lap % 2))
            limit = random.Random(seed + lap).randrange(20)

            def close(results: Any = results, limit: int = limit, ran: list[int] = ran) -> None:
                wait_until(lambda: len(ran) >= limit)
                results.close()

            read, _ = run_threads(lambda results=results: list(results), close)
            wait_until(lambda: is_at_rest(pool))
            assert len(set(read)) == len(read)
            assert set(read) <= set(ran)
            assert len(set(ran)) == len(ran)
            if lap % 2:
                assert read == list(range(len(read)))
            assert pool.stats().succeeded + pool.stats().cancelled == accepted


# Workers of the pool that use it


def for_loop(pool: WorkerPool[Any], items: Any) -> list[Any]:
    return list(pool.map(items))


def get_loop(pool: WorkerPool[Any], items: Any) -> list[Any]:
    results = pool.map(items)
    return read_or_raise(results.get)


def get_many_loop(pool: WorkerPool[Any], items: Any) -> list[Any]:
    results = pool.map(items)
    return [value for share in read_or_raise(results.get_many) for value in share]


def unordered(pool: WorkerPool[Any], items: Any) -> list[Any]:
    return sorted(pool.map(items, ordered=False))


def async_for(pool: WorkerPool[Any], items: Any) -> list[Any]:
    async def main() -> list[Any]:
        return [value async for value in pool.map(items)]

    return asyncio.run(main())


def read_or_raise(read: Callable[[], Any]) -> list[Any]:
    came = []
    with contextlib.suppress(Closed):
        while True:
            came.append(read())
    return came


READS = [for_loop, get_loop, get_many_loop, unordered, async_for]


@pytest.mark.filterwarnings("ignore:the results of a map were dropped unread")
@pytest.mark.parametrize("read", READS)
@both
def test_the_last_worker_cannot_read_a_map_of_its_own_pool(kind: Kind, read: Callable[..., Any]) -> None:
    with pool_of(1, Caller) as pool:
        with pytest.raises(RuntimeError, match="worker"):
            pool.call(lambda: read(pool, kind([Give(1), Give(2)])))
        assert pool.call(Give("next")) == "next"
        wait_until(lambda: is_at_rest(pool))


@pytest.mark.parametrize("read", READS)
@both
def test_a_worker_may_read_a_map_of_its_own_pool_while_another_is_left(kind: Kind, read: Callable[..., Any]) -> None:
    with pool_of(2, Caller) as pool:
        for _ in range(3):
            assert pool.call(lambda: read(pool, kind(list(map(Give, range(20)))))) == list(range(20))


def test_a_worker_may_read_with_a_timeout_or_look() -> None:
    def parent() -> list[str]:
        said = []
        results = pool.map([Give(1)])
        for seconds in (0, SHORT):
            try:
                results.get(timeout=seconds)
            except queue.Empty:
                said.append("empty")
        kept.append(results)
        return said

    kept: list[Any] = []
    with pool_of(1, Caller) as pool:
        assert pool.call(parent) == ["empty", "empty"]
        assert list(kept.pop()) == [1]


def test_a_map_made_in_a_worker_is_read_elsewhere() -> None:
    with pool_of(1, Caller) as pool:
        results = pool.call(lambda: pool.map([Give(1), Give(2)]))
        assert list(results) == [1, 2]


def test_maps_within_maps() -> None:
    """Each item of the outer map reads an inner one: with a worker more than outer items at once, there is no wait."""
    with pool_of(3, Caller) as pool:
        outer = [lambda k=k: sum(pool.map([Give(k), Give(k)])) for k in range(10)]
        results = pool.map(outer, buffer=2)
        assert list(results) == [2 * k for k in range(10)]


# Pipelines


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("buffer", [1, 3, None])
def test_pools_chain(ordered: bool, buffer: int | None) -> None:
    with pool_of(2, name="one") as one, pool_of(2, name="two") as two:
        first = one.map(range(100), buffer=buffer, ordered=ordered)
        second = two.map(first, buffer=buffer, ordered=ordered)
        came = list(second)
        assert (came if ordered else sorted(came)) == [number**4 for number in range(100)]
        assert (one.stats().succeeded, two.stats().succeeded) == (100, 100)


def test_a_pipeline_is_lazy_end_to_end() -> None:
    source = Source()
    with pool_of(2, name="one") as one, pool_of(2, name="two") as two:
        second = two.map(one.map(source, buffer=2), buffer=2)
        assert [second.get(LONG) for _ in range(10)] == [number**4 for number in range(10)]
        assert source.drawn <= 10 + 2 + 2
        second.close()
        del second
        gc.collect()
        wait_until(lambda: is_at_rest(one) and is_at_rest(two))
        assert source.drawn <= 10 + 2 + 2


def test_a_pipeline_of_one_pool() -> None:
    with pool_of(2) as pool:
        assert list(pool.map(pool.map(range(30), buffer=3), buffer=3)) == [number**4 for number in range(30)]


@pytest.mark.parametrize("upstream", [list, iter])
def test_a_failed_item_upstream_ends_a_pipeline_that_raises(upstream: Kind) -> None:
    """Downstream it is the error of a source: what was drawn before comes out, then the error, once; then the end."""
    with pool_of(2, name="one") as one, pool_of(2, name="two") as two:
        results = two.map(one.map(upstream([1, 2, -3, 4])))
        came: list[int] = []
        with pytest.raises(ValueError, match="-3"):
            came.extend(results)
        assert came == [1, 16]
        assert list(results) == []
        with pytest.raises(Closed):
            results.get()
        wait_until(lambda: is_at_rest(one))


def test_failed_items_pass_through_a_pipeline_that_returns() -> None:
    class Checked(Worker[Any]):
        def process(self, item: Any) -> Any:
            return item if isinstance(item, Exception) else item * item

    with pool_of(2) as one, pool_of(2, Checked) as two:
        came = list(two.map(one.map([1, 2, -3, 4], errors="return"), errors="return"))
        assert [came[0], came[1], came[3]] == [1, 16, 256]
        assert isinstance(came[2], ValueError)


def test_failed_items_are_left_out_of_a_pipeline_that_skips() -> None:
    with pool_of(2) as one, pool_of(2) as two:
        assert list(two.map(one.map([1, -2, -3, 4, -5], errors="skip"))) == [1, 256]
        assert list(two.map(one.map(iter([-1] * 10), errors="skip", buffer=2), buffer=1)) == []


def test_an_upstream_pool_that_ends_never_looks_like_the_end() -> None:
    with pool_of(2) as two:
        with pool_of(2) as one:
            results = two.map(one.map(itertools.count(), buffer=2), buffer=2)
            assert results.get(LONG) == 0
        came: list[int] = []
        with pytest.raises(PoolNotRunning):
            came.extend(results)
        assert came == [number**4 for number in range(1, 1 + len(came))]


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, queue.Empty, Closed])
def test_an_upstream_error_that_looks_like_the_end(error: type[Exception]) -> None:
    with pool_of(2, Caller) as one, pool_of(2) as two:
        results = two.map(one.map([Give(1), Give(error("of the item")), Give(2)]))
        came: list[int] = []
        with pytest.raises((error, RuntimeError)):
            came.extend(results)
        assert came == [1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_async_pipeline(backend: str) -> None:
    async def source() -> AsyncIterator[int]:
        for number in range(50):
            await anyio.lowlevel.checkpoint()
            yield number

    async def main() -> None:
        async with pool_of() as one, pool_of() as two:
            results = two.map(one.map(source(), buffer=4), buffer=4)
            assert [value async for value in results] == [number**4 for number in range(50)]

    run_loop(backend, main)


# What is kept alive


class Value:
    """Something that can be weakly referenced."""


class Maker(Worker[Any]):
    """Returns, or raises, a new object for each item."""

    def __init__(self, references: list[weakref.ref[Any]], fails: bool = False) -> None:
        self.references = references
        self.fails = fails

    def process(self, item: Any) -> Any:
        if self.fails:
            error = OwnError()
            self.references.append(weakref.ref(error))
            raise error
        value = Value()
        self.references += [weakref.ref(value), weakref.ref(item)]
        return value


class OwnError(Exception):
    pass


def made(kind: Kind, count: int, *more: Any) -> Any:
    """New Values, then more: a list of them, or a generator."""
    source = itertools.chain((Value() for _ in range(count)), more)
    return list(source) if kind is list else source


def all_gone(references: list[weakref.ref[Any]]) -> bool:
    gc.collect()
    return all(reference() is None for reference in references)


@both
@pytest.mark.parametrize("ordered", [True, False])
def test_items_and_results_are_kept_no_longer_than_needed(kind: Kind, ordered: bool) -> None:
    """What has been read is kept neither by the stream, nor by the pool, nor by a worker that waits."""
    references: list[weakref.ref[Any]] = []
    with WorkerPool([Maker(references), Maker(references)]) as pool:
        # A generator keeps nothing of what it has given; the iterator of a list would keep the list.
        results = pool.map(made(kind, 10), ordered=ordered)
        for _ in range(5):
            results.get(LONG)
        if kind is list:
            wait_until(lambda: results.ready == 5)
        rest = results.get_many(max=4, timeout=LONG)
        while len(rest) < 4:
            rest += results.get_many(max=4 - len(rest), timeout=LONG)
        del rest
        results.get(LONG)
        wait_until(lambda: len(references) == 20 and all_gone(references))
        assert list(results) == []


@both
@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
def test_errors_are_kept_no_longer_than_needed(kind: Kind, errors: str) -> None:
    references: list[weakref.ref[Any]] = []
    with WorkerPool([Maker(references, fails=True)]) as pool:
        results = pool.map(kind([1, 2, 3]), errors=errors)
        read_each_and_drop(results)
        wait_until(lambda: len(references) == 3 and all_gone(references))
        del results


def read_each_and_drop(results: Any) -> None:
    while True:
        try:
            results.get()
        except Closed:
            return
        except OwnError:
            pass


@both
def test_an_item_is_released_while_others_are_still_to_come(kind: Kind) -> None:
    """The list that `map` has copied gives each item up when it has been processed and its result read."""
    references: list[weakref.ref[Any]] = []
    opened = threading.Event()

    class Last(Maker):
        def process(self, item: Any) -> Any:
            if item == "last":
                assert opened.wait(LONG)
                return item
            return super().process(item)

    with WorkerPool([Last(references)]) as pool:
        results = pool.map(made(kind, 5, "last"))
        try:
            for _ in range(5):
                results.get(LONG)
            wait_until(lambda: len(references) == 10 and all_gone(references))
        finally:
            opened.set()
        assert list(results) == ["last"]


def test_close_drops_items_and_results() -> None:
    class Held(Worker[Any]):
        def process(self, item: Any) -> Any:
            if item is None:
                reached.set()
                assert opened.wait(LONG)
                return None
            return Value()

    reached, opened = threading.Event(), threading.Event()
    with WorkerPool([Held()]) as pool:
        items: list[Any] = [None, *(Value() for _ in range(5))]
        references = [weakref.ref(item) for item in items[1:]]
        results = pool.map(items)
        assert reached.wait(LONG)
        items.clear()
        results.close()
        try:
            wait_until(lambda: all_gone(references))
        finally:
            opened.set()


def test_a_cycle_through_a_stream_is_collected() -> None:
    references: list[weakref.ref[Any]] = []
    with WorkerPool([Maker(references)]) as pool:

        class Owner:
            def __init__(self) -> None:
                self.results = pool.map(self.source(), buffer=2)
                self.results.get(LONG)

            def source(self) -> Iterator[Any]:
                while self is not None:
                    yield Value()

        owner = Owner()
        gone = weakref.ref(owner)
        del owner
        wait_until(lambda: all_gone([gone, *references]))


def test_results_keep_no_pool_from_being_dropped() -> None:
    """A stream of a pool that was shut down can be read without it."""
    pool = pool_of()
    with pool:
        results = pool.map([1, 2, 3])
    gone = weakref.ref(pool)
    del pool
    wait_until(lambda: all_gone([gone]))
    assert list(results) == [1, 4, 9]


# Conservation


@both
def test_each_snapshot_of_the_counters_adds_up(kind: Kind, switch_interval: float) -> None:
    tried: set[int] = set()

    class Mixed(Worker[Any]):
        retry_on = Retry_

        def process(self, item: int) -> int:
            if item % 7 == 0 and item <= 350 and item not in tried:
                tried.add(item)
                raise Retry_
            if item % 5 == 0:
                raise ValueError(item)
            return item

    over = threading.Event()

    def watch() -> int:
        snapshots = 0
        last = (0, 0, 0)
        while not over.is_set():
            stats = pool.stats()
            assert is_conserved(stats)
            now = (stats.accepted, stats.succeeded, stats.failed)
            assert all(before <= after for before, after in zip(last, now, strict=True))
            last = now
            snapshots += 1
        return snapshots

    with pool_of(3, Mixed) as pool:
        watcher = start_threads(watch)
        try:
            came = list(pool.map(kind(range(1, 1001)), errors="skip"))
            stats = pool.stats()
        finally:
            over.set()
        assert watcher.join()[0] > 0
    assert came == [number for number in range(1, 1001) if number % 5]
    # Exact when the last result has come out: each is counted before that (law 2).
    assert (stats.accepted, stats.succeeded, stats.failed, stats.cancelled) == (1000, 800, 200, 0)
    assert (stats.queued, stats.running, stats.delayed) == (0, 0, 0)
    assert stats.tries == 50
    assert sum(worker.succeeded for worker in stats.workers) == 800
    assert sum(worker.failed for worker in stats.workers) == 200


class Retry_(Exception):  # noqa: N801 - named in retry_on
    pass


@both
@pytest.mark.parametrize("ordered", [True, False])
def test_a_result_is_counted_before_it_comes_out(kind: Kind, ordered: bool) -> None:
    with pool_of(2) as pool:
        for number, _ in enumerate(pool.map(kind(range(100)), ordered=ordered, buffer=None), 1):
            assert pool.stats().succeeded >= number


# Fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_has_no_pool_and_the_parent_goes_on() -> None:
    worker = Gated()
    with WorkerPool([worker]) as pool:
        streams = [
            pool.map([0, 1]),
            pool.map([2, 3], ordered=False),
            pool.map(range(4, 6)),
            pool.map(iter([6, 7])),
            pool.map([8], errors="skip"),
        ]
        assert worker.begun.acquire(timeout=LONG)

        def body() -> None:
            calls: list[Callable[[], Any]] = [
                lambda: pool.map([1]),
                lambda: pool.map(iter([1])),
                lambda: pool.call(1),
                lambda: pool.call(1, timeout=0),
                lambda: asyncio.run(acall()),
                *[stream.get for stream in streams],
                *[lambda stream=stream: stream.get(timeout=0.01) for stream in streams],
                *[stream.get_many for stream in streams],
                *[stream.__next__ for stream in streams],
                *[lambda stream=stream: asyncio.run(aget(stream)) for stream in streams],
            ]
            for number, call in enumerate(calls):
                try:
                    result = call()
                except PoolNotRunning:
                    continue
                raise AssertionError(f"call {number} returned {result!r}")

        async def acall() -> Any:
            return await pool.acall(1)

        assert in_child(body) == ""
        worker.permits.release(100)
        assert [sorted(stream) for stream in streams] == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
        assert pool.call(9) == 9
    assert pool.stats().accepted == pool.stats().succeeded == 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_can_map_with_a_pool_of_its_own() -> None:
    with pool_of() as pool:
        assert list(pool.map([1, 2])) == [1, 4]

        def body() -> None:
            with pool_of() as own:
                assert list(own.map(range(50))) == squares(50)
                assert own.call(3) == 9

        assert in_child(body) == ""
        assert list(pool.map([3])) == [9]


def in_child(body: Callable[[], None]) -> str:
    """Runs `body` in a fork of this process; returns what it raised there, or nothing."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads, that is the point
        child = os.fork()
    if child == 0:
        try:
            body()
            text = ""
        except BaseException as error:
            text = f"{error!r} at line {error.__traceback__.tb_next.tb_lineno if error.__traceback__ else 0}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return text


# The end of the interpreter


def run_program(text: str) -> tuple[list[str], str]:
    """What a program of its own says, and what it complains of."""
    prelude = """
        import atexit, itertools, os, sys, threading, time
        from ringmill import *

        def say(text):
            os.write(1, f"{text}\\n".encode())

        class Slow(Worker):
            def process(self, item):
                time.sleep(0.001)
                say(f"did {item}")
                return item

        pool = WorkerPool([Slow(), Slow()])
        pool.start()
    """
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(prelude) + textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=2 * LONG,
        check=False,
        cwd=os.getcwd(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\n")[:-1], done.stderr


def test_exit_finishes_what_was_accepted_before_the_program_s_own_hooks() -> None:
    said, errors = run_program("""
        atexit.register(say, "hook")
        results = pool.map(list(range(20)))
        @atexit.register
        def read():
            say(f"read {list(results)}")
    """)
    assert errors == ""
    assert sorted(said[:20]) == sorted(f"did {number}" for number in range(20))
    assert said[20:] == [f"read {list(range(20))}", "hook"]


def test_exit_with_a_source_that_is_not_exhausted() -> None:
    said, errors = run_program("""
        results = pool.map(itertools.count(), buffer=3)
        say(f"read {results.get()}")
        @atexit.register
        def read():
            try:
                for _ in results:
                    pass
            except PoolNotRunning as error:
                say(type(error).__name__)
            for call in (lambda: pool.map([1]), lambda: pool.call(1)):
                try:
                    call()
                except PoolNotRunning as error:
                    say(type(error).__name__)
    """)
    assert errors == ""
    assert "read 0" in said
    assert said[-3:] == ["PoolNotRunning"] * 3
    assert len([line for line in said if line.startswith("did")]) <= 4


def test_exit_while_another_thread_reads_or_calls() -> None:
    said, errors = run_program("""
        def read():
            count = 0
            try:
                for _ in pool.map(itertools.count(), buffer=4):
                    count += 1
                    started.set()
            except PoolNotRunning:
                say("reader ended")
            finally:
                started.set()
        def call():
            try:
                while True:
                    pool.call("call")
            except PoolNotRunning:
                say("caller ended")
        started = threading.Event()
        threads = [threading.Thread(target=target) for target in (read, call)]
        for thread in threads:
            thread.start()
        started.wait()
    """)
    assert errors == ""
    assert {"reader ended", "caller ended"} <= set(said)
