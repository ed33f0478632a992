"""`wrap`: the source is drawn lazily, at most `buffer` items ahead of the reader, to its end."""

from __future__ import annotations

import gc
import itertools
import queue
import random
import threading
import weakref
from collections.abc import Generator, Iterator

import pytest

from ringmill import (
    Closed,
    PoolNotRunning,
    RingBuffer,
    Worker,
    WorkerPool,
)
from tests.pool.wrapping import Gated, Number, Quick, Source, wrap
from tests.pools import DRAWN_BY
from tests.threads import LONG, SHORT, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


# All of the source, each once


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("buffer", [1, 2, 3, 1024])
@pytest.mark.parametrize("workers", [1, 3])
def test_all_of_the_source_comes_out_once(drawn_by: str, ordered: bool, buffer: int, workers: int) -> None:
    with WorkerPool([Quick() for _ in range(workers)], queue_size=1) as pool:
        for count in (0, 1, 2, 50):
            stream = wrap(pool, Source(count), drawn_by, buffer=buffer, ordered=ordered)
            came = list(stream)
            got = [op.number for op in came]
            assert (got if ordered else sorted(got)) == list(range(count))
            assert all(op.runs == 1 and op.wait(0) for op in came)
            assert stream.total == count
            assert list(stream) == []
            with pytest.raises(Closed):
                stream.get()


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
def test_failed_ones_come_out_too(drawn_by: str) -> None:
    with WorkerPool([Quick(), Quick()]) as pool:
        came = list(wrap(pool, map(Number, [3, -1, 4, -5]), drawn_by, buffer=2, ordered=True))
    assert [(op.number, op.outcome.name) for op in came] == [
        (3, "SUCCEEDED"),
        (-1, "FAILED"),
        (4, "SUCCEEDED"),
        (-5, "FAILED"),
    ]


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
def test_the_order_of_finishing_and_the_order_of_the_source(drawn_by: str) -> None:
    """Each even operation is held back until the odd one after it has finished."""
    finished = [threading.Event() for _ in range(20)]

    class Swapping(Worker[Number]):
        def process(self, op: Number) -> None:
            if op.number % 2 == 0:
                assert finished[op.number + 1].wait(LONG)

    class Told(Number):
        def done(self) -> None:
            super().done()
            finished[self.number].set()

    for ordered in (False, True):
        with WorkerPool([Swapping(), Swapping()]) as pool:
            got = [op.number for op in wrap(pool, map(Told, range(20)), drawn_by, buffer=4, ordered=ordered)]
        assert sorted(got) == list(range(20))
        if ordered:
            assert got == list(range(20))
        else:
            # An even one may overtake in the moment between done() and the stream, so not all need be swapped.
            assert got != list(range(20))
        for event in finished:
            event.clear()


# Lazily, and never more than the buffer


def test_a_reader_draws_when_it_reads() -> None:
    with WorkerPool([Quick(), Quick()]) as pool:
        source = Source()
        stream = pool.wrap(source, buffer=1)
        assert source.drawn == 0
        for count in range(1, 6):
            assert stream.get(LONG).number == count - 1
            assert source.drawn == count
        assert [op.number for op in stream.get_many(timeout=LONG)] == [5]
        assert source.drawn == 6
        with pytest.raises(ValueError, match="max"):
            stream.get_many(max=0)
        assert source.drawn == 6
        assert source.drawn_by == {threading.get_ident()}


@pytest.mark.parametrize("buffer", [1, 2, 3, 7])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_never_more_than_the_buffer_is_between_source_and_reader(
    buffer: int, ordered: bool, drawn_by: str, switch_interval: float, seed: int
) -> None:
    rng = random.Random(seed)
    returned = 0
    most = 0

    def source() -> Iterator[Number]:
        nonlocal most
        for number in range(150):
            most = max(most, number + 1 - returned)
            yield Number(number)

    with WorkerPool([Quick(), Quick()]) as pool:
        stream = pool.wrap(source(), buffer=buffer, ordered=ordered, drawn_by=drawn_by)
        while True:
            try:
                if rng.random() < 0.5:
                    stream.get()
                    returned += 1
                else:
                    returned += len(stream.get_many(max=1))
            except Closed:
                break
    assert returned == 150
    # The reader's own thread draws before it takes. Another may draw for what the reader has in hand, uncounted.
    assert most <= buffer + (drawn_by == "thread")


@pytest.mark.parametrize("buffer", [1, 2, 5])
@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_a_reader_that_stops_stops_the_source(buffer: int, drawn_by: str) -> None:
    with WorkerPool([Quick(), Quick()]) as pool:
        source = Source()
        stream = pool.wrap(source, buffer=buffer, drawn_by=drawn_by)
        for _ in range(3):
            stream.get(LONG)
        if drawn_by == "thread":
            wait_until(lambda: source.drawn == 3 + buffer)
        wait_until(lambda: pool.stats().succeeded == pool.stats().accepted)
        drawn = source.drawn
        assert drawn <= 3 + buffer
        assert pool.stats().accepted <= 3 + buffer
        assert len(list(pool.execute([Number(0)]))) == 1  # the pool is not held up by it
        assert source.drawn == drawn
        stream.close()


def test_a_worker_never_waits_for_a_reader() -> None:
    """Streams that no thread reads are full; the only worker goes on with other work."""
    with WorkerPool([Quick()]) as pool:
        ring = RingBuffer[Number](10)
        ring.put_many(map(Number, range(10)))
        streams = [
            pool.wrap(Source(), buffer=1, drawn_by="thread"),
            pool.wrap(ring, buffer=1),
            pool.execute(map(Number, range(10))),
        ]
        wait_until(lambda: [stream.ready for stream in streams] == [1, 1, 10])
        assert pool.do(Number(0)).wait(LONG)
        assert len(ring) == 9
        for stream in streams:
            stream.close()


# An endless source


@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_an_endless_source_is_left_by_break_and_read_on(drawn_by: str) -> None:
    with WorkerPool([Quick(), Quick()]) as pool:
        stream = pool.wrap(Source(), buffer=3, ordered=True, drawn_by=drawn_by)
        for op in stream:
            if op.number == 10:
                break
        for op in stream:
            if op.number == 20:
                break
        assert op.number == 20
        assert stream.get().number == 21
        stream.close()
        assert list(stream) == []


@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_break_inside_with_over_an_endless_source_ends(drawn_by: str) -> None:
    source = Source()
    with WorkerPool([Quick()]) as pool:
        stream = pool.wrap(source, buffer=2, drawn_by=drawn_by)
        for op in stream:
            if op.number >= 5:
                break
    drawn = source.drawn
    with pytest.raises(PoolNotRunning):
        list(stream)
    assert source.drawn == drawn


@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_close_stops_drawing_and_cancels_pending_operations(drawn_by: str) -> None:
    source = Source()
    worker = Gated()
    with WorkerPool([worker]) as pool:
        stream = pool.wrap(source, buffer=4, drawn_by=drawn_by)
        with pytest.raises(queue.Empty):
            stream.get(SHORT)  # draws up to the buffer, meanwhile
        wait_until(lambda: source.drawn == 4 and pool.stats().running == 1)
        stream.close()
        worker.gate.set()
        wait_until(lambda: pool.stats().cancelled == 3)
        assert list(stream) == []
        with pytest.raises(Closed):
            stream.get()
    assert source.drawn == 4
    assert (pool.stats().accepted, pool.stats().succeeded) == (4, 1)


@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_dropping_the_stream_closes_it(drawn_by: str) -> None:
    ended = threading.Event()
    made: list[weakref.ref[Number]] = []

    def source() -> Generator[Number, None, None]:
        try:
            for number in itertools.count():
                op = Number(number)
                made.append(weakref.ref(op))
                yield op
                del op
        finally:
            ended.set()

    worker = Gated()
    with WorkerPool([worker]) as pool:
        stream = pool.wrap(source(), buffer=4, drawn_by=drawn_by)
        with pytest.raises(queue.Empty):
            stream.get(SHORT)
        wait_until(lambda: len(made) == 4 and pool.stats().running == 1)
        del stream
        worker.gate.set()

        def is_over() -> bool:
            gc.collect()
            stats = pool.stats()
            return ended.is_set() and stats.accepted == stats.succeeded + stats.cancelled == len(made)

        wait_until(is_over)
        wait_until(lambda: all(reference() is None for reference in made))
        assert len(made) <= 5
