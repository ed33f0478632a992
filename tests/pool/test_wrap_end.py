"""The end of a wrap: an error in its source, a pool that stops, a source that blocks, shared and chained streams."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ringmill import (
    Closed,
    OperationReused,
    Outcome,
    PoolNotRunning,
    RingBuffer,
    Stream,
    WorkerPool,
)
from tests.pool.wrapping import Gated, Number, Quick, Source, wrap
from tests.pools import DRAWN_BY
from tests.threads import LONG, SHORT, run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


# The end that is none


@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("buffer", [1, 3, 100])
@pytest.mark.parametrize("kind", [ValueError, RuntimeError, StopAsyncIteration])
def test_an_error_in_the_source_comes_after_what_was_accepted(
    drawn_by: str, ordered: bool, buffer: int, kind: type[Exception]
) -> None:
    error = kind("in the source")
    with WorkerPool([Quick(), Quick()]) as pool:
        stream = wrap(pool, Source(7, error), drawn_by, buffer=buffer, ordered=ordered)
        got: list[int] = []
        with pytest.raises(kind) as caught:
            got.extend(op.number for op in stream)  # extend keeps what came before the error
        assert caught.value is error
        assert sorted(got) == list(range(7))
        with pytest.raises((kind, Closed, StopIteration)):
            next(stream)
        assert pool.do(Number(0)).wait(LONG)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_base_exception_of_the_reading_thread_is_raised_at_once_or_after(kind: type[BaseException]) -> None:
    with WorkerPool([Quick()]) as pool:
        stream = pool.wrap(Source(3, kind()), buffer=2)
        got = []
        with pytest.raises(kind):
            got.extend(stream)
        while True:  # nothing is lost by it
            try:
                got.append(stream.get(LONG))
            except (kind, Closed):
                break
        assert sorted(op.number for op in got) == [0, 1, 2]


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
@pytest.mark.parametrize("stranger", ["no operation", None, Number])
def test_a_source_that_gives_no_operation(drawn_by: str, stranger: Any) -> None:
    with WorkerPool([Quick()]) as pool:
        stream = wrap(pool, [Number(0), Number(1), stranger, Number(2)], drawn_by, buffer=2)
        got = []
        with pytest.raises(TypeError) as caught:
            got.extend(op.number for op in stream)
        assert repr(stranger) in str(caught.value)
        assert got == [0, 1]
        assert pool.stats().accepted == 2


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
def test_a_source_that_gives_a_used_operation(drawn_by: str) -> None:
    with WorkerPool([Quick()]) as pool:
        used = pool.do(Number(7))
        assert used.wait(LONG)
        later = Number(2)
        stream = wrap(pool, [Number(0), Number(1), used, later], drawn_by, buffer=2)
        got = []
        with pytest.raises(OperationReused):
            got.extend(op.number for op in stream)
        assert got == [0, 1]
        assert (used.runs, used.outcome) == (1, Outcome.SUCCEEDED)
        assert later.outcome is Outcome.PENDING
        assert pool.stats().accepted == 3


@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_a_source_that_gives_the_same_operation_twice_while_it_is_pending(drawn_by: str) -> None:
    worker = Gated()
    with WorkerPool([worker]) as pool:
        op = Number(0)
        stream = pool.wrap([op, op], buffer=2, drawn_by=drawn_by)
        with pytest.raises(queue.Empty):
            stream.get(SHORT)
        worker.gate.set()
        assert stream.get(LONG) is op
        with pytest.raises(OperationReused):
            stream.get(LONG)


@pytest.mark.parametrize("drawn_by", ["reader", "thread", "ring"])
@pytest.mark.parametrize("how", [{}, {"cancel_pending": True}])
def test_a_pool_that_stops_first_never_looks_like_the_end(drawn_by: str, how: dict[str, bool]) -> None:
    worker = Gated()
    pool = WorkerPool([worker])
    pool.start()
    ring = RingBuffer[Number](8)
    ring.put_many(map(Number, range(8)))
    stream = pool.wrap(ring, buffer=4) if drawn_by == "ring" else pool.wrap(Source(), buffer=4, drawn_by=drawn_by)
    with pytest.raises(queue.Empty):
        stream.get(SHORT)
    wait_until(lambda: pool.stats().running == 1)
    accepted = pool.stats().accepted
    pool.shutdown(wait=False, **how)
    worker.gate.set()
    pool.shutdown()
    got = []
    with pytest.raises(PoolNotRunning):
        got.extend(stream)
    assert accepted <= len(got) <= 4
    assert len(got) == pool.stats().accepted
    if drawn_by == "ring":
        assert len(ring) == 8 - len(got)  # what was not drawn is still the ring's
    for call in (lambda: stream.get(0), stream.get_many, lambda: next(stream)):
        with pytest.raises(PoolNotRunning):
            call()


def test_each_reader_raises_an_error_object_of_its_own() -> None:
    """Free-threaded CPython does not guard an exception that two threads raise at once."""
    pool = WorkerPool([Gated()])
    pool.start()
    streams = [pool.wrap(Source(), buffer=1) for _ in range(2)]
    pool.shutdown(wait=False, cancel_pending=True)

    def told(stream: Stream[Number]) -> PoolNotRunning:
        with pytest.raises(PoolNotRunning) as raised:
            stream.get(LONG)
        return raised.value

    errors = run_threads(*[lambda stream=stream: told(stream) for stream in streams * 2])
    assert len(set(map(id, errors))) == len(errors)
    assert len({str(error) for error in errors}) == 1


# Sources drawn by a thread of their own


def test_a_source_that_blocks_does_not_hold_up_what_is_done() -> None:
    numbers = queue.SimpleQueue[Number | None]()
    with WorkerPool([Quick()]) as pool:
        stream = pool.wrap(iter(numbers.get, None), drawn_by="thread")
        for number in range(5):
            with pytest.raises(queue.Empty):
                stream.get(timeout=0)
            numbers.put(Number(number))
            assert stream.get(LONG).number == number
        numbers.put(None)
        assert list(stream) == []


def test_a_source_that_blocks_for_ever_does_not_hold_up_shutdown() -> None:
    numbers = queue.SimpleQueue[Number | None]()
    pool = WorkerPool([Quick()])
    pool.start()
    stream = pool.wrap(iter(numbers.get, None), drawn_by="thread")
    numbers.put(Number(0))
    assert stream.get(LONG).number == 0
    pool.shutdown()
    with pytest.raises(PoolNotRunning):
        stream.get(LONG)
    late = Number(1)
    numbers.put(late)  # what it draws too late stays new
    wait_until(lambda: not any("-source" in thread.name for thread in threading.enumerate()))
    assert late.outcome is Outcome.PENDING
    with pool:
        assert pool.do(late).wait(LONG)


# Several readers, several pools


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
@pytest.mark.parametrize("buffer", [1, 3])
def test_readers_share_a_wrap(drawn_by: str, buffer: int, switch_interval: float) -> None:
    def source() -> Iterator[Number]:
        yield from map(Number, range(200))  # "generator already executing" if two readers drew at once

    with WorkerPool([Quick(), Quick()]) as pool:
        stream = wrap(pool, source(), drawn_by, buffer=buffer)
        shares = run_threads(*[lambda: list(stream), lambda: list(stream), lambda: read_many(stream)])
    assert sorted(op.number for share in shares for op in share) == list(range(200))


def read_many(stream: Stream[Number]) -> list[Number]:
    got: list[Number] = []
    while True:
        try:
            got += stream.get_many(2)
        except Closed:
            return got


def test_a_source_that_reads_its_own_stream_gets_an_error() -> None:
    def source() -> Iterator[Number]:
        yield Number(0)
        yield stream.get()

    with WorkerPool([Quick()]) as pool:
        stream = pool.wrap(source(), buffer=2)
        got = []
        with pytest.raises(RuntimeError, match="source"):
            got.extend(op.number for op in stream)
        assert got == [0]


def test_a_timeout_holds_while_another_reader_draws() -> None:
    entered, gate = threading.Event(), threading.Event()

    def source() -> Iterator[Number]:
        entered.set()
        assert gate.wait(LONG)
        yield Number(0)

    with WorkerPool([Quick()]) as pool:
        stream = pool.wrap(source())
        other = start_threads(lambda: list(stream))
        assert entered.wait(LONG)
        for call in (stream.get, stream.get_many):
            with pytest.raises(queue.Empty):
                call(timeout=SHORT)
        gate.set()
        assert [op.number for op in other.join()[0]] == [0]


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
@pytest.mark.parametrize("ordered", [False, True])
def test_pools_chain(drawn_by: str, ordered: bool) -> None:
    with WorkerPool([Quick(), Quick()], name="one") as one, WorkerPool([Quick(), Quick()], name="two") as two:
        first = wrap(one, Source(100), drawn_by, buffer=3, ordered=ordered)
        second = two.wrap(first, buffer=2, ordered=ordered, reset=True)
        came = list(second)
    got = [op.number for op in came]
    assert (got if ordered else sorted(got)) == list(range(100))
    assert all(op.runs == 2 and op.outcome is Outcome.SUCCEEDED for op in came)
    assert (one.stats().succeeded, two.stats().succeeded) == (100, 100)


def test_without_reset_a_chain_says_reused() -> None:
    with WorkerPool([Quick()]) as one, WorkerPool([Quick()]) as two, pytest.raises(OperationReused):
        list(two.wrap(one.wrap(Source(3))))


@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_an_error_of_the_source_is_raised_once(drawn_by: Any) -> None:
    error = ValueError("the source's own")
    with WorkerPool([Quick()]) as pool:
        stream = pool.wrap(Source(2, error), drawn_by=drawn_by)
        assert len(stream.get_many(1)) + len(stream.get_many(1)) == 2
        with pytest.raises(ValueError, match="the source's own") as raised:
            stream.get()
        assert raised.value is error
        assert raised.traceback[-1].name == "__next__"  # where it was raised first
        for _ in range(2):
            with pytest.raises(Closed):
                stream.get()
            assert list(stream) == []


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
def test_only_one_of_several_readers_gets_the_error_of_the_source(drawn_by: str) -> None:
    error = ValueError("the source's own")

    def read() -> list[BaseException]:
        try:
            for _ in stream:
                pass
        except BaseException as raised:
            return [raised]
        return []

    for _ in range(20):
        with WorkerPool([Quick(), Quick()]) as pool:
            if drawn_by == "ring":
                stream = wrap(pool, [Number(0), Number(1), "no operation"], drawn_by, buffer=2)
            else:
                stream = wrap(pool, Source(3, error), drawn_by, buffer=2)
            told = [one for each in run_threads(*[read] * 4) for one in each]
        assert [type(one) for one in told] == [TypeError if drawn_by == "ring" else ValueError]


def test_each_reader_raises_its_own_error_at_the_end_of_the_pool() -> None:
    def read() -> BaseException | None:
        try:
            for _ in stream:
                pass
        except PoolNotRunning as raised:
            return raised
        return None

    ring = RingBuffer[Number](4)
    with WorkerPool([Quick()]) as pool:
        stream = pool.wrap(ring)
        readers = start_threads(*[read] * 4)
        ring.put(Number(0))
        wait_until(lambda: pool.stats().succeeded == 1)
    told = readers.join()
    assert [type(error) for error in told] == [PoolNotRunning] * 4
    assert len(set(map(id, told))) == 4
    assert isinstance(read(), PoolNotRunning)  # and to those who come later
