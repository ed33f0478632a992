"""Stream: each operation comes out once, to any number of readers, until the end; and a reader that stops."""

from __future__ import annotations

import gc
import queue
import random
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from ringmill import Closed, Operation, Outcome, Stream, Worker, WorkerPool
from tests.threads import LONG, SHORT, run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class Number(Operation):
    def __init__(self, number: int) -> None:
        self.number = number


class Gated(Worker[Number]):
    """Does one operation for each permit."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def process(self, op: Number) -> None:
        self.begun.release()
        assert self.permits.acquire(timeout=LONG)
        if op.number < 0:
            raise ValueError(op.number)


@pytest.fixture
def worker() -> Gated:
    return Gated()


@pytest.fixture
def pool(worker: Gated) -> Iterator[WorkerPool[Number]]:
    """A pool of one worker, so that operations finish in the order in which they were given, when permitted."""
    with WorkerPool([worker]) as pool:
        yield pool
        worker.permits.release(10_000)


def numbers(count: int) -> list[Number]:
    return [Number(number) for number in range(count)]


def test_an_iterator_that_ends(pool: WorkerPool[Number], worker: Gated) -> None:
    worker.permits.release(3)
    stream = pool.execute(numbers(3))
    assert iter(stream) is stream
    assert [next(stream).number for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)
        with pytest.raises(Closed):
            stream.get()
        with pytest.raises(Closed):
            stream.get(timeout=0)
        with pytest.raises(Closed):
            stream.get_many()


def test_failed_ones_come_out_too(pool: WorkerPool[Number], worker: Gated) -> None:
    worker.permits.release(3)
    assert [(op.number, op.outcome.name) for op in pool.execute(map(Number, (1, -1, 2)))] == [
        (1, "SUCCEEDED"),
        (-1, "FAILED"),
        (2, "SUCCEEDED"),
    ]


def test_cancelled_ones_come_out_too(pool: WorkerPool[Number], worker: Gated) -> None:
    ops = numbers(4)
    stream = pool.execute(ops)
    assert worker.begun.acquire(timeout=LONG)
    assert not ops[0].cancel()  # it runs
    assert ops[2].cancel()
    worker.permits.release(3)
    came = list(stream)
    assert sorted(op.number for op in came) == [0, 1, 2, 3]
    assert [op.outcome is Outcome.CANCELLED for op in ops] == [False, False, True, False]


def test_a_batch_of_cancelled_ones_ends(pool: WorkerPool[Number], worker: Gated) -> None:
    pool.do(Number(0))
    ops = numbers(3)
    stream = pool.execute(ops)
    assert all(op.cancel() for op in ops)
    worker.permits.release(1)
    assert sorted(op.number for op in stream) == [0, 1, 2]


# get and get_many


@pytest.mark.parametrize("call", [Stream.get, Stream.get_many])
@pytest.mark.parametrize("timeout", [0, SHORT])
def test_a_timeout_takes_nothing(
    pool: WorkerPool[Number], worker: Gated, call: Callable[..., Any], timeout: float
) -> None:
    stream = pool.execute(numbers(2))
    for _ in range(2):
        with pytest.raises(queue.Empty):
            call(stream, timeout=timeout)
    worker.permits.release(2)
    assert stream.get(LONG).number == 0
    assert stream.get(timeout=LONG).number == 1


def test_get_waits(pool: WorkerPool[Number], worker: Gated) -> None:
    stream = pool.execute(numbers(2))
    reader = start_threads(lambda: (stream.get().number, stream.get(timeout=LONG).number))
    worker.permits.release(2)
    assert reader.join() == [(0, 1)]


def test_get_many_takes_what_is_ready(pool: WorkerPool[Number], worker: Gated) -> None:
    stream = pool.execute(numbers(8))
    worker.permits.release(5)
    wait_until(lambda: stream.ready == 5)
    assert [op.number for op in stream.get_many(max=2)] == [0, 1]
    assert [op.number for op in stream.get_many(1, LONG)] == [2]
    assert [op.number for op in stream.get_many()] == [3, 4]
    reader = start_threads(stream.get_many)
    worker.permits.release(1)
    assert [op.number for op in reader.join()[0]] == [5]  # it waits for the first only
    worker.permits.release(2)
    wait_until(lambda: stream.ready == 2)
    assert [op.number for op in stream.get_many(max=1000)] == [6, 7]


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda stream: stream.get(timeout=-1), ValueError, ["timeout", "-1"]),
        (lambda stream: stream.get(timeout="1"), TypeError, ["timeout", "'1'"]),
        (lambda stream: stream.get_many(timeout=-1), ValueError, ["timeout", "-1"]),
        (lambda stream: stream.get_many(max=0), ValueError, ["max", "0"]),
        (lambda stream: stream.get_many(max=-3), ValueError, ["max", "-3"]),
        (lambda stream: stream.get_many(max=1.5), TypeError, ["max", "1.5"]),
        (lambda stream: stream.get_many(max="2"), TypeError, ["max", "'2'"]),
    ],
)
def test_bad_arguments(
    pool: WorkerPool[Number],
    worker: Gated,
    call: Callable[[Stream[Number]], Any],
    kind: type[Exception],
    words: list[str],
) -> None:
    stream = pool.execute(numbers(1))
    worker.permits.release(1)
    wait_until(lambda: stream.ready == 1)
    with pytest.raises(kind) as caught:
        call(stream)
    assert [word for word in words if word not in str(caught.value)] == []
    assert [op.number for op in stream] == [0]


# What it says of itself


def test_total_len_and_repr(pool: WorkerPool[Number], worker: Gated) -> None:
    stream = pool.execute(numbers(3))
    assert (stream.total, stream.ready) == (3, 0)
    texts = {repr(stream)}
    worker.permits.release(2)
    wait_until(lambda: stream.ready == 2)
    texts.add(repr(stream))
    stream.get()
    assert (stream.total, stream.ready) == (3, 1)
    texts.add(repr(stream))
    worker.permits.release(1)
    assert len(list(stream)) == 2
    assert (stream.total, stream.ready) == (3, 0)
    texts.add(repr(stream))
    assert len(texts) == 4  # each of these states reads differently
    assert all("Stream" in text and "3" in text for text in texts)


def test_total_of_a_wrap_is_known_at_its_end(pool: WorkerPool[Number], worker: Gated) -> None:
    worker.permits.release(3)
    stream = pool.wrap(numbers(3), buffer=2)
    assert stream.total is None
    assert stream.get(LONG).number == 0
    assert [op.number for op in stream] == [1, 2]
    assert stream.total == 3


def test_an_empty_stream_is_true(pool: WorkerPool[Number]) -> None:
    """`if stream:` asks whether there is one, not whether something is ready: that would be a race."""
    assert pool.execute([])
    assert pool.execute([]).total == 0


# Readers


@pytest.mark.parametrize("readers", [2, 4])
@pytest.mark.parametrize("workers", [1, 3])
def test_readers_share_the_operations(readers: int, workers: int, seed: int, switch_interval: float) -> None:
    class Quick(Worker[Number]):
        def process(self, op: Number) -> None:
            pass

    def read(stream: Stream[Number], rng: random.Random) -> list[Number]:
        mine: list[Number] = []
        while True:
            try:
                match rng.randrange(4):
                    case 0:
                        mine.append(stream.get())
                    case 1:
                        mine += stream.get_many(rng.randrange(1, 4))
                    case 2:
                        mine.append(next(stream))
                    case 3:
                        mine.append(stream.get(timeout=0))
            except queue.Empty:
                continue
            except (Closed, StopIteration):
                return mine

    with WorkerPool([Quick() for _ in range(workers)]) as pool:
        for lap in range(10):
            ops = numbers(60)
            stream = pool.execute(ops)
            rngs = [random.Random(seed + 100 * lap + k) for k in range(readers)]
            shares = run_threads(*[lambda s=stream, rng=rng: read(s, rng) for rng in rngs])
            assert sorted(op.number for share in shares for op in share) == list(range(60))


def test_all_readers_wake_at_the_end(pool: WorkerPool[Number], worker: Gated) -> None:
    stream = pool.execute(numbers(1))
    readers = start_threads(*[lambda: list(stream)] * 5)
    worker.permits.release(1)
    assert sorted(map(len, readers.join())) == [0, 0, 0, 0, 1]


def test_breaking_off_does_nothing(pool: WorkerPool[Number], worker: Gated) -> None:
    worker.permits.release(6)
    stream = pool.execute(numbers(6))
    for op in stream:
        if op.number == 2:
            break
    assert [op.number for op in stream] == [3, 4, 5]


# The reader goes


@pytest.mark.parametrize("how", ["close", "with", "with an error", "twice"])
def test_close_cancels_what_has_not_begun(pool: WorkerPool[Number], worker: Gated, how: str) -> None:
    ops = numbers(5)
    stream = pool.execute(ops)
    other = pool.execute(numbers(2))
    assert worker.begun.acquire(timeout=LONG)
    if how == "close":
        stream.close()
    elif how == "with":
        with stream as entered:
            assert entered is stream
    elif how == "with an error":
        with pytest.raises(KeyError), stream:
            raise KeyError
    else:
        stream.close()
        stream.close()
    assert [op.outcome for op in ops] == [Outcome.PENDING] + [Outcome.CANCELLED] * 4
    assert all(op.wait(0) for op in ops[1:])
    worker.permits.release(3)
    assert ops[0].wait(LONG)
    assert ops[0].outcome is Outcome.SUCCEEDED  # what had begun is finished
    with pytest.raises(Closed):
        stream.get(LONG)
    assert list(stream) == []
    assert [op.number for op in other] == [0, 1]  # no other stream's work is touched


def test_close_of_a_finished_stream(pool: WorkerPool[Number], worker: Gated) -> None:
    worker.permits.release(2)
    ops = numbers(2)
    stream = pool.execute(ops)
    assert all(op.wait(LONG) for op in ops)
    stream.close()
    assert [op.outcome for op in ops] == [Outcome.SUCCEEDED] * 2
    with pytest.raises(Closed):
        stream.get()


def test_close_wakes_blocked_readers(pool: WorkerPool[Number], worker: Gated) -> None:
    stream = pool.execute(numbers(2))
    readers = start_threads(*[lambda: list(stream)] * 3)
    assert worker.begun.acquire(timeout=LONG)
    stream.close()
    assert readers.join() == [[], [], []]


def test_dropping_a_stream_of_a_batch_cancels_nothing(pool: WorkerPool[Number], worker: Gated) -> None:
    """`pool.execute(ops)` alone is a way to say: do these."""
    ops = numbers(3)
    pool.execute(ops)
    worker.permits.release(3)
    assert all(op.wait(LONG) for op in ops)
    assert [op.outcome for op in ops] == [Outcome.SUCCEEDED] * 3


def test_reading_and_dropping_a_stream_runs_no_python_code_on_the_readers_thread() -> None:
    """A KeyboardInterrupt that is raised in a callback, or a finalizer, is printed and lost."""

    class Plain(Operation):
        pass

    class Idle(Worker[Plain]):
        def process(self, op: Plain) -> None:
            pass

    def note(frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    called: list[str] = []
    with WorkerPool([Idle()]) as pool:
        before = sys.getprofile()
        gc.collect()
        gc.disable()  # what it collects is not ours, and may have finalizers
        sys.setprofile(note)
        try:
            for _ in range(200):
                for _op in pool.execute([Plain(), Plain()]):
                    pass
        finally:
            sys.setprofile(before)
            gc.enable()
    assert called == []


def test_close_races_with_workers_and_readers(seed: int, switch_interval: float) -> None:
    class Quick(Worker[Number]):
        def process(self, op: Number) -> None:
            ran.append(op)

    with WorkerPool([Quick(), Quick()]) as pool:
        for lap in range(40):
            ran: list[Number] = []
            ops = numbers(20)
            stream = pool.execute(ops)
            limit = random.Random(seed + lap).randrange(20)

            def close(stream: Stream[Number] = stream, limit: int = limit, ran: list[Number] = ran) -> None:
                wait_until(lambda: len(ran) >= limit)
                stream.close()

            read, _ = run_threads(lambda s=stream: list(s), close)
            assert all(op.wait(LONG) for op in ops)
            assert len({id(op) for op in read}) == len(read)
            done = [op for op in ops if op.outcome is Outcome.SUCCEEDED]
            assert sorted(map(id, ran)) == sorted(map(id, done))  # cancelled means that it never ran
            assert {op.outcome for op in ops} <= {Outcome.SUCCEEDED, Outcome.CANCELLED}
    stats = pool.stats()
    assert (stats.accepted, stats.queued, stats.running) == (800, 0, 0)
