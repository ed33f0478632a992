"""`wrap` of a RingBuffer: workers, asleep or awake, draw items as they arrive, while other threads read it too."""

from __future__ import annotations

import contextlib
import gc
import queue
import random
import threading
import time
from collections.abc import Callable

import pytest

from ringmill import Closed, Outcome, PoolNotRunning, RingBuffer, Stream, Worker, WorkerPool
from tests.pool.wrapping import Gated, Number, Quick
from tests.threads import LONG, SHORT, run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def stagger(rng: random.Random) -> None:
    """Lets others go first, now and then: not at all, for a moment, or long enough that workers go to sleep."""
    chance = rng.random()
    if chance < 0.1:
        time.sleep(rng.choice([0, 0.0001, 0.001]))


def account(ops: list[Number], came: list[Number], direct: list[Number]) -> None:
    """Each came out of the stream, and ran once, or was taken by a direct reader, and is new."""
    assert sorted(map(id, [*came, *direct])) == sorted(map(id, ops))
    assert all((op.runs, op.outcome) == (1, Outcome.SUCCEEDED) for op in came)
    assert all((op.runs, op.outcome) == (0, Outcome.PENDING) for op in direct)


# As items arrive


def test_workers_draw_as_items_arrive() -> None:
    ring = RingBuffer[Number](2)
    with WorkerPool([Quick(), Quick()]) as pool:
        stream = pool.wrap(ring, ordered=True)
        for number in range(50):
            op = Number(number)
            ring.put(op, timeout=LONG)
            assert op.wait(LONG)  # no thread reads
        assert len(ring) == 0
        assert [stream.get(LONG).number for _ in range(50)] == list(range(50))
        with pytest.raises(queue.Empty):
            stream.get(timeout=SHORT)
        ring.close()
        assert list(stream) == []
        assert stream.total == 50


@pytest.mark.parametrize("buffer", [1, 2, 5])
@pytest.mark.parametrize("ordered", [False, True])
def test_no_more_is_drawn_than_the_buffer(buffer: int, ordered: bool) -> None:
    ring = RingBuffer[Number](20)
    ring.put_many(map(Number, range(20)))
    with WorkerPool([Quick(), Quick(), Quick()]) as pool:
        stream = pool.wrap(ring, buffer=buffer, ordered=ordered)
        for read in range(20):
            ready = min(buffer, 20 - read)
            wait_until(lambda ready=ready: stream.ready == ready)
            assert len(ring) == 20 - read - ready
            assert pool.stats().accepted == read + ready
            stream.get(timeout=0)
        ring.close()
        assert list(stream) == []


def test_items_left_by_a_full_stream_go_to_direct_readers() -> None:
    ring = RingBuffer[Number](10)
    ops = [Number(number) for number in range(10)]
    with WorkerPool([Quick(), Quick()]) as pool:
        stream = pool.wrap(ring, buffer=2)
        ring.put_many(ops)
        wait_until(lambda: stream.ready == 2)
        direct = [ring.get_nowait() for _ in range(8)]
        ring.close()
        account(ops, list(stream), direct)


def test_a_direct_reader_that_sleeps_in_the_ring_gets_its_share(switch_interval: float) -> None:
    """Workers may not take what the stream has no place for, so they must not swallow the wake-up either."""
    ring = RingBuffer[Number](1)
    with WorkerPool([Quick(), Quick()]) as pool:
        stream = pool.wrap(ring, buffer=1)
        first = Number(0)
        ring.put(first)
        assert first.wait(LONG)  # the stream is full now
        for number in range(1, 50):
            reader = start_threads(lambda: ring.get(timeout=LONG))
            op = Number(number)
            ring.put(op, timeout=LONG)
            assert reader.join() == [op]
        ring.close()
        account([first], list(stream), [])


# Random schedules


@pytest.mark.stress
@pytest.mark.watchdog(60)
@pytest.mark.parametrize("capacity", [1, 2, 3])
@pytest.mark.parametrize("direct_readers", [0, 1, 2])
@pytest.mark.parametrize("ordered", [False, True])
def test_each_item_comes_out_once(
    capacity: int, direct_readers: int, ordered: bool, seed: int, switch_interval: float
) -> None:
    per_putter = 40
    ring = RingBuffer[Number](capacity)
    ops = [[Number(per_putter * putter + k) for k in range(per_putter)] for putter in range(2)]

    def put(mine: list[Number], rng: random.Random) -> None:
        for op in mine:
            stagger(rng)
            ring.put(op, timeout=LONG)

    def read_ring(rng: random.Random) -> list[Number]:
        taken: list[Number] = []
        while True:
            stagger(rng)
            try:
                taken.append(ring.get(timeout=rng.choice([None, 0, 0.001])))
            except queue.Empty:
                continue
            except Closed:
                return taken

    def read(stream: Stream[Number], rng: random.Random) -> list[Number]:
        came: list[Number] = []
        for op in stream:
            came.append(op)
            stagger(rng)
        return came

    with WorkerPool([Quick() for _ in range(3)]) as pool:
        stream = pool.wrap(ring, buffer=random.Random(seed).choice([1, 2, 7]), ordered=ordered)
        readers = start_threads(
            lambda: read(stream, random.Random(seed)),
            *[lambda k=k: read_ring(random.Random(seed + 10 + k)) for k in range(direct_readers)],
        )
        run_threads(*[lambda k=k: put(ops[k], random.Random(seed + 20 + k)) for k in range(2)])
        ring.close()
        came, *direct = readers.join()
    account([op for mine in ops for op in mine], came, [op for share in direct for op in share])
    if ordered:
        for putter in range(2):
            numbers = [op.number for op in came if op.number // per_putter == putter]
            assert numbers == sorted(numbers)


@pytest.mark.stress
def test_two_pools_share_a_ring(seed: int, switch_interval: float) -> None:
    ring = RingBuffer[Number](2)
    ops = [Number(number) for number in range(200)]
    with WorkerPool([Quick(), Quick()]) as one, WorkerPool([Quick()]) as two:
        streams = [one.wrap(ring, buffer=1), one.wrap(ring, buffer=3), two.wrap(ring, buffer=2)]
        readers = start_threads(*[lambda s=stream: list(s) for stream in streams])
        rng = random.Random(seed)
        for op in ops:
            stagger(rng)
            ring.put(op, timeout=LONG)
        ring.close()
        account(ops, [op for share in readers.join() for op in share], [])


@pytest.mark.stress
@pytest.mark.parametrize("capacity", [1, 3])
def test_a_ring_closed_at_any_moment_loses_nothing(capacity: int, seed: int, switch_interval: float) -> None:
    with WorkerPool([Quick(), Quick()]) as pool:
        for lap in range(60):
            rng = random.Random(seed + lap)
            ring = RingBuffer[Number](capacity)
            stream = pool.wrap(ring, buffer=rng.choice([1, 2, 5]), ordered=rng.random() < 0.5)
            after = rng.randrange(20)
            in_it: list[list[Number]] = [[], []]
            kept: list[list[Number]] = [[], []]

            def put(
                k: int,
                ring: RingBuffer[Number] = ring,
                in_it: list[list[Number]] = in_it,
                kept: list[list[Number]] = kept,
            ) -> None:
                for number in range(20):
                    op = Number(number)
                    try:
                        ring.put(op)
                        in_it[k].append(op)
                    except Closed:
                        kept[k].append(op)

            def close(
                ring: RingBuffer[Number] = ring, in_it: list[list[Number]] = in_it, after: int = after
            ) -> None:
                wait_until(lambda: sum(map(len, in_it)) >= after)
                ring.close()

            came = run_threads(
                lambda s=stream: list(s), lambda put=put: put(0), lambda put=put: put(1), close
            )[0]
            account(in_it[0] + in_it[1], came, [])
            assert all(op.outcome is Outcome.PENDING for op in kept[0] + kept[1])
            assert stream.total == len(came)


# Ends


@pytest.mark.parametrize("how", ["close", "drop", "shutdown"])
def test_a_wrap_that_is_left_leaves_the_ring_to_others(how: str) -> None:
    ring = RingBuffer[Number](10)
    ops = [Number(number) for number in range(10)]
    pool = WorkerPool([Quick(), Quick()])
    with pool:
        stream = pool.wrap(ring, buffer=2)
        ring.put_many(ops[:5])
        wait_until(lambda: stream.ready == 2)
        if how == "close":
            stream.close()
        elif how == "shutdown":
            pool.shutdown()
            pool.start()
        else:
            del stream
            gc.collect()
        # The pool still works, and has looked for work since; it took nothing from the ring.
        assert len(list(pool.execute([Number(0) for _ in range(5)]))) == 5
        ring.put_many(ops[5:])
        assert len(list(pool.execute([Number(0) for _ in range(5)]))) == 5
        assert len(ring) == 8
        assert not ring.closed
        assert sorted(op.number for op in pool.wrap(drained(ring))) == sorted(
            op.number for op in ops if op.runs == 1 and op.outcome is Outcome.SUCCEEDED and op not in ops[:2]
        )


def drained(ring: RingBuffer[Number]) -> list[Number]:
    return [ring.get_nowait() for _ in range(len(ring))]


@pytest.mark.parametrize("reset", [False, True])
def test_the_same_ring_goes_round(reset: bool) -> None:
    """A reader puts each operation back into the ring that it came from, three times."""
    ring = RingBuffer[Number](8)
    ring.put_many(map(Number, range(5)))
    with WorkerPool([Quick(), Quick()]) as pool:
        stream = pool.wrap(ring, buffer=2, reset=reset)
        came = 0
        for op in stream:
            came += 1
            if op.runs < 3:
                if not reset:
                    op.reset()
                ring.put(op)
            elif came == 15:
                ring.close()
    assert came == 15
    assert pool.stats().succeeded == 15


def test_a_closed_and_empty_ring_is_an_empty_source() -> None:
    ring = RingBuffer[Number](1)
    ring.close()
    with WorkerPool([Quick()]) as pool:
        for buffer in (1, 2, 1024):
            stream = pool.wrap(ring, buffer=buffer)
            assert list(stream) == []
            assert stream.total == 0


def test_the_end_is_seen_though_the_stream_is_full() -> None:
    ring = RingBuffer[Number](2)
    with WorkerPool([Quick()]) as pool:
        stream = pool.wrap(ring, buffer=1)
        op = Number(0)
        ring.put(op)
        assert op.wait(LONG)
        ring.close()  # dry, closed, and no place free
        assert pool.do(Number(1)).wait(LONG)
        assert list(stream) == [op]


def test_a_ring_may_be_fed_by_a_thread_too() -> None:
    ring = RingBuffer[Number](3)
    with WorkerPool([Quick(), Quick()]) as pool:
        stream = pool.wrap(ring, drawn_by="thread", buffer=2)
        putter = start_threads(lambda: (ring.put_many(map(Number, range(40))), ring.close()))
        assert sorted(op.number for op in stream) == list(range(40))
        putter.join()


class Needs(Number):
    """Ends when another operation has ended."""

    def __init__(self, other: Number) -> None:
        super().__init__(0)
        self.other = other
        self.begun = threading.Event()


class Meeting(Worker[Number]):
    def process(self, op: Number) -> None:
        if isinstance(op, Needs):
            op.begun.set()
            assert op.other.wait(LONG)


def test_a_worker_hears_of_an_item_though_another_reader_took_the_one_before() -> None:
    """A put triggers the ring watcher while a searcher goes to other work, and another reader takes the item."""
    ring = RingBuffer[Number](2)
    with WorkerPool([Meeting(), Meeting()]) as pool:
        stream = pool.wrap(ring)
        for _ in range(20):
            time.sleep(SHORT)  # long enough that both are asleep, where the fault would show; right in any case
            second = Number(1)
            first = pool.do(Needs(second))
            ring.put(Number(2))
            with contextlib.suppress(queue.Empty):
                ring.get_nowait()
            assert first.begun.wait(LONG)
            ring.put(second)
            assert first.wait(LONG)
            assert first.check() is first
        ring.close()
        assert [op.outcome for op in stream] == [Outcome.SUCCEEDED] * stream.total


@pytest.mark.parametrize("call", [Stream.get, Stream.get_many, next, list])
def test_shutdown_wakes_threads_that_wait_for_a_ring(call: Callable[[Stream[Number]], object]) -> None:
    ring = RingBuffer[Number](1)
    pool = WorkerPool([Quick()])
    pool.start()
    stream = pool.wrap(ring)
    entered = threading.Event()

    def read() -> type[BaseException] | None:
        entered.set()
        try:
            call(stream)
        except PoolNotRunning as error:
            return type(error)
        return None

    reader = start_threads(read)
    assert entered.wait(LONG)
    pool.shutdown()
    assert reader.join() == [PoolNotRunning]


def test_a_cancelled_operation_in_the_ring_is_refused() -> None:
    """It is finished before the pool accepts it, so it is a used one; those before it come out."""
    ring = RingBuffer[Number](3)
    ops = [Number(number) for number in range(3)]
    assert ops[1].cancel()
    ring.put_many(ops)
    ring.close()
    worker = Gated()
    with WorkerPool([worker]) as pool:
        stream = pool.wrap(ring)
        worker.gate.set()
        assert next(stream) is ops[0]
        with pytest.raises(ValueError, match="reset"):
            next(stream)
    assert ops[2].outcome is Outcome.PENDING
