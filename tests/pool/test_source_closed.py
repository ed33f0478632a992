"""A source that ends with an error is closed; one whose reader has gone is referred to by the stream no more."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from ringmill import Operation, Outcome, Stream, Worker, WorkerPool
from tests.threads import LONG, wait_until


class Number(Operation):
    def __init__(self, number: int) -> None:
        self.number = number


class Quick(Worker[Number]):
    def process(self, op: Number) -> None:
        pass


class Source:
    """Gives `count` numbers, then what `last` says: raises it, or gives it."""

    def __init__(self, count: int, last: Any, closing: BaseException | None = None) -> None:
        self.left = count
        self.last = last
        self.closing = closing
        self.closed = 0

    def give(self) -> Any:
        self.left -= 1
        if self.left >= 0:
            return Number(self.left)
        if isinstance(self.last, BaseException):
            raise self.last
        return self.last

    def note_close(self) -> None:
        self.closed += 1
        if self.closing is not None:
            raise self.closing


class Iterable(Source):
    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.give()

    def close(self) -> None:
        self.note_close()


class AsyncIterable(Source):
    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return self.give()

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.note_close()


def make(pool: WorkerPool[Any], drawn_by: str, *args: Any) -> tuple[Any, Stream[Any]]:
    if drawn_by == "async":
        source: Any = AsyncIterable(*args)
        return source, pool.wrap(source, buffer=3)
    source = Iterable(*args)
    return source, pool.wrap(source, buffer=3, drawn_by=drawn_by)  # type: ignore[arg-type]


def read(stream: Stream[Any], drawn_by: str) -> tuple[int, list[Exception]]:
    """How many operations came, and what reading raised, until the stream ended."""
    count = 0
    errors: list[Exception] = []

    async def main() -> None:
        nonlocal count
        while len(errors) < 5:
            try:
                async for _ in stream:
                    count += 1
                return
            except Exception as error:
                errors.append(error)

    if drawn_by == "async":
        asyncio.run(main())
        return count, errors
    while len(errors) < 5:
        try:
            for _ in stream:
                count += 1
            break
        except Exception as error:
            errors.append(error)
    return count, errors


@pytest.mark.parametrize("drawn_by", ["reader", "thread", "async"])
@pytest.mark.parametrize("count", [0, 1, 10])
def test_a_source_that_raises_is_closed_once(drawn_by: str, count: int) -> None:
    error = OSError("the source")
    with WorkerPool([Quick()]) as pool:
        source, stream = make(pool, drawn_by, count, error)
        assert read(stream, drawn_by) == (count, [error])
        assert source.closed == 1


@pytest.mark.parametrize("drawn_by", ["reader", "thread", "async"])
def test_a_source_that_gives_no_operation_is_closed(drawn_by: str) -> None:
    with WorkerPool([Quick()]) as pool:
        source, stream = make(pool, drawn_by, 4, "no operation")
        count, errors = read(stream, drawn_by)
        assert count == 4
        assert [type(error) for error in errors] == [TypeError]
        assert source.closed == 1


@pytest.mark.parametrize("drawn_by", ["reader", "thread", "async"])
def test_what_closing_raises_is_logged(drawn_by: str, caplog: pytest.LogCaptureFixture) -> None:
    """The reader is told what the source raised, and that alone."""
    error = OSError("the source")
    with WorkerPool([Quick()]) as pool, caplog.at_level(logging.ERROR, "ringmill"):
        source, stream = make(pool, drawn_by, 2, error, ValueError("closing"))
        assert read(stream, drawn_by) == (2, [error])
    assert source.closed == 1
    assert ["raised while it was closed" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("drawn_by", ["reader", "thread", "async"])
def test_an_exhausted_source_is_not_closed(drawn_by: str) -> None:
    last = StopAsyncIteration() if drawn_by == "async" else StopIteration()
    with WorkerPool([Quick()]) as pool:
        source, stream = make(pool, drawn_by, 5, last)
        assert read(stream, drawn_by) == (5, [])
        assert source.closed == 0


@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_an_error_goes_through_chained_pools_and_closes_all_streams(drawn_by: Any) -> None:
    error = OSError("the source")
    with WorkerPool([Quick()]) as one, WorkerPool([Quick()]) as two, WorkerPool([Quick()]) as three:
        source = Iterable(7, error)
        first = one.wrap(source, buffer=2, drawn_by=drawn_by)
        second = two.wrap(first, buffer=2, reset=True, drawn_by=drawn_by)
        third = three.wrap(second, buffer=2, reset=True, drawn_by=drawn_by)
        assert read(third, drawn_by) == (7, [error])
        assert source.closed == 1
        assert [first.closed, second.closed, third.closed] == [True] * 3


@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_a_reader_that_closes_the_last_stream_ends_the_ones_before_it(drawn_by: Any) -> None:
    """The stream refers to its source no more: no thread reads the first one, so its work is cancelled, its source
    dropped.
    """
    ended = threading.Event()

    def source() -> Iterator[Number]:
        try:
            number = 0
            while True:
                yield Number(number)
                number += 1
        finally:
            ended.set()

    with WorkerPool([Quick()]) as one, WorkerPool([Quick()]) as two:
        stream = two.wrap(one.wrap(source(), buffer=3, drawn_by=drawn_by), buffer=2, reset=True)
        assert next(stream).outcome is Outcome.SUCCEEDED
        stream.close()
        # Polled: free-threaded, what another thread drops lives until its maker, this thread, attaches again.
        wait_until(ended.is_set)

        def all_have_ended() -> bool:
            stats = [pool.stats() for pool in (one, two)]
            return all(each.accepted == each.succeeded + each.cancelled for each in stats)

        wait_until(all_have_ended)
        assert list(stream) == []


def test_a_stream_that_is_closed_while_its_source_is_drawn_drops_it_afterwards() -> None:
    drawing = threading.Event()
    closed = threading.Event()

    class Blocking(Iterable):
        def give(self) -> Any:
            drawing.set()
            assert closed.wait(LONG)
            return Number(0)

    with WorkerPool([Quick()]) as pool:
        source = Blocking(1, None)
        gone = weakref.ref(source)
        stream = pool.wrap(source)
        del source
        reader = threading.Thread(target=list, args=(stream,))
        reader.start()
        assert drawing.wait(LONG)
        stream.close()
        closed.set()
        reader.join()
        gc.collect()
        assert gone() is None


def test_a_source_that_somebody_else_refers_to_is_not_closed_with_the_stream() -> None:
    with WorkerPool([Quick()]) as pool:
        source = Iterable(10, StopIteration())
        with pool.wrap(source, buffer=2) as stream:
            next(stream)
        assert source.closed == 0
        assert next(source).number >= 0
