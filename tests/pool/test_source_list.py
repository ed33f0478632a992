"""Pools with more streams than workers look at: those without work are QUIET until something is brought to them.

A pool goes on looking at up to eight sources without work (source_list.pyx). A `Crowd` has more streams than that, and
its `settle` gives each of them an item, one after the other: whatever else the pool has open is QUIET afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import queue
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import anyio
import pytest

from ringmill import (
    BrokenPool,
    Operation,
    Outcome,
    PoolExecutor,
    PoolNotRunning,
    Retry,
    RingBuffer,
    Stream,
    Worker,
    WorkerPool,
)
from tests.loops import BACKENDS, run_loop, together
from tests.pools import Gate, check_at_rest
from tests.threads import HOUR, LONG, SHORT, run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

MANY = 12  # streams: more than the pool goes on looking at
TURN = 32  # operations that a worker takes from one source before it looks at the next
END = object()  # after the last item in a queue


class Script:
    """What is processed: how often it was, and what happens then."""

    def __init__(self, step: Callable[[], Any] | None = None) -> None:
        self.step = step
        self.runs = 0
        self.begun = threading.Event()

    def run(self) -> None:
        self.runs += 1
        self.begun.set()
        if self.step is not None:
            self.step()


class Job(Script, Operation):
    """For `do`, `execute` and `wrap`."""


class Item(Script):
    """For `map`: its result is the item itself."""


class Runner(Worker[Any]):
    def process(self, op: Any) -> Any:
        op.run()
        return op if isinstance(op, Item) else None


def raising(error: BaseException) -> Callable[[], Any]:
    def step() -> None:
        raise error

    return step


class Channel:
    """A stream of one of the KINDS, into which items are brought one at a time.

    Attributes:
        given: What was brought.
        came: What came out.
    """

    def __init__(self, pool: WorkerPool[Any], kind: str, room: int = 1) -> None:
        self.kind = kind
        self.given: list[Any] = []
        self.came: list[Any] = []
        self.queue = queue.SimpleQueue[Any]()
        self.ring = RingBuffer[Any](room)
        self.stream: Any
        if kind == "ring":
            self.stream = pool.wrap(self.ring, buffer=room)
        elif kind == "map":
            self.stream = pool.map(iter(self.queue.get, END), buffer=room)
        else:
            drawn_by: Any = "thread" if kind == "thread" else "reader"
            self.stream = pool.wrap(iter(self.queue.get, END), buffer=room, drawn_by=drawn_by)

    def give(self, step: Callable[[], Any] | None = None) -> Any:
        """Brings one; for those that a reader draws, it is there for the next read."""
        given = Item(step) if self.kind == "map" else Job(step)
        self.given.append(given)
        if self.kind == "ring":
            self.ring.put(given, timeout=LONG)
        else:
            self.queue.put(given)
        return given

    def take(self) -> Any:
        came = self.stream.get(LONG)
        self.came.append(came)
        return came

    def send(self) -> None:
        """One item, from its source through a worker to its reader."""
        given = self.give()
        assert self.take() is given

    def end(self) -> None:
        """The source ends; and with it the stream."""
        self.ring.close()
        self.queue.put(END)
        assert list(self.stream) == []
        self.check()

    def check(self) -> None:
        """Each item ran once, and came out once."""
        assert sorted(map(id, self.came)) == sorted(map(id, self.given))
        assert all(given.runs == 1 for given in self.given)


KINDS = ["reader", "context", "thread", "ring", "map"]


def make_pool(kind: str, workers: int, **options: Any) -> WorkerPool[Any]:
    """`context`: a pool whose operations carry their submitter's context, which a reader accepts in another way."""
    return WorkerPool([Runner() for _ in range(workers)], context=kind == "context", **options)


class Crowd:
    """Streams that are there so that others are QUIET."""

    def __init__(self, pool: WorkerPool[Any]) -> None:
        self.channels = [Channel(pool, "ring") for _ in range(MANY)]

    def settle(self) -> None:
        for channel in self.channels:
            channel.send()

    def end(self) -> None:
        for channel in self.channels:
            channel.end()


@contextlib.contextmanager
def crowded(workers: int = 1, kind: str = "", **options: Any) -> Iterator[tuple[WorkerPool[Any], Crowd]]:
    """A pool that has a Crowd."""
    with make_pool(kind, workers, **options) as pool:
        crowd = Crowd(pool)
        crowd.settle()
        yield pool, crowd
        crowd.end()
    check_at_rest(pool.stats())


def look_around(pool: WorkerPool[Any]) -> None:
    """Workers look at all sources where they look at all: more operations than they take in their turns."""
    for _ in range(TURN * (len(pool.workers) + 1)):
        assert pool.do(Job()).wait(LONG)


def count_objects(*names: str) -> int:
    gc.collect()
    return sum(type(thing).__name__ in names for thing in gc.get_objects())


def sources() -> int:
    """How many sources of work there are, of all pools; some of an earlier test may go a moment later."""
    return count_objects("WorkSource", "ItemSource")


# Items that trickle


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_one_item_at_a_time_through_many_streams(
    kind: str, workers: int, seed: int, switch_interval: float
) -> None:
    rng = random.Random(seed)
    with make_pool(kind, workers) as pool:
        bounds = [rng.choice([1, 2]) if kind in ("ring", "thread") else 1 for _ in range(2 * MANY)]
        channels = [Channel(pool, kind, bound) for bound in bounds]
        for _ in range(4):
            rng.shuffle(channels)
            for channel in channels:
                channel.send()
            assert pool.stats().accepted == sum(len(channel.given) for channel in channels)
        for channel in channels:
            channel.end()
        assert pool.stats().accepted == pool.stats().succeeded == 4 * len(channels)


@pytest.mark.parametrize("workers", [1, 3])
def test_one_item_at_a_time_by_several_threads(workers: int, seed: int, switch_interval: float) -> None:
    """Each thread has streams of all kinds of its own, and submits to the queue between."""
    rounds = 30

    def feed_some(pool: WorkerPool[Any], number: int) -> None:
        rng = random.Random(seed + number)
        channels = [Channel(pool, kind) for kind in ("reader", "thread", "ring", "map")]
        for _ in range(rounds):
            rng.choice(channels).send()
            if rng.random() < 0.3:
                assert pool.do(Job()).wait(LONG)
        for channel in channels:
            channel.end()

    with make_pool("", workers) as pool:
        run_threads(*[lambda number=number: feed_some(pool, number) for number in range(4)])
        check_at_rest(pool.stats())


@pytest.mark.parametrize("kind", ["ring", "thread"])
def test_several_readers_of_each_stream(kind: str, seed: int, switch_interval: float) -> None:
    """Items are brought by several threads; each goes to one of two readers."""
    each = 20
    with make_pool(kind, 2) as pool:
        channels = [Channel(pool, kind) for _ in range(MANY)]

        def bring(number: int) -> None:
            rng = random.Random(seed + number)
            turns = channels * each
            rng.shuffle(turns)
            for channel in turns:
                channel.give()

        readers = start_threads(*[lambda f=channel: list(f.stream) for channel in channels for _ in range(2)])
        run_threads(*[lambda number=number: bring(number) for number in range(2)])
        for channel in channels:
            channel.ring.close()
            channel.queue.put(END)
        shares = readers.join()
        for number, channel in enumerate(channels):
            channel.came = shares[2 * number] + shares[2 * number + 1]
            assert len(channel.came) == 2 * each
            channel.check()


def test_room_that_a_read_makes_is_room_for_the_next_item() -> None:
    with crowded() as (pool, crowd):
        channel = Channel(pool, "ring")
        first = channel.give()
        assert first.wait(LONG)  # the stream is full now
        second = channel.give()
        crowd.settle()
        assert channel.take() is first
        assert second.wait(LONG)  # no thread reads, or puts
        assert channel.take() is second
        channel.end()


@pytest.mark.parametrize("read", [Stream.get_many, lambda stream: [next(stream)], lambda stream: [stream.get()]])
def test_each_way_of_reading_makes_room(read: Callable[[Any], list[Any]]) -> None:
    with crowded() as (pool, crowd):
        channel = Channel(pool, "ring", 2)
        for _ in range(3):
            ops = [channel.give(), channel.give()]
            assert all(op.wait(LONG) for op in ops)
            ops += [channel.give(), channel.give()]
            crowd.settle()
            while ops:
                came = read(channel.stream)
                channel.came += came
                assert all(op in ops for op in came)
                ops = [op for op in ops if op not in came]
                assert all(op.wait(LONG) for op in ops[:1])
        channel.end()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["wrap", "map"])
@pytest.mark.parametrize("awaits", [False, True])
def test_tasks_read_many_streams(kind: str, awaits: bool, backend: str) -> None:
    """Each draws one item at a time, from an iterable or an async one."""
    each = 10
    make: Any = Job if kind == "wrap" else Item
    given = [[make() for _ in range(each)] for _ in range(MANY)]

    async def one_by_one(items: list[Any]) -> AsyncIterator[Any]:
        for item in items:
            await anyio.lowlevel.checkpoint()
            yield item

    async def read(pool: WorkerPool[Any], items: list[Any]) -> list[Any]:
        source: Any = one_by_one(items) if awaits else iter(items)
        stream: Any = pool.wrap(source, buffer=1) if kind == "wrap" else pool.map(source, buffer=1)
        return [result async for result in stream]

    async def main() -> list[list[Any]]:
        with anyio.fail_after(LONG), make_pool("", 2) as pool:
            return await together(*[lambda items=items: read(pool, items) for items in given])

    assert run_loop(backend, main) == given
    assert all(item.runs == 1 for items in given for item in items)


def test_tasks_of_a_ring_make_room() -> None:
    async def main() -> None:
        with crowded() as (pool, crowd):
            channel = Channel(pool, "ring")
            first = channel.give()
            assert first.wait(LONG)
            second = channel.give()
            crowd.settle()
            channel.came.append(await channel.stream.__anext__())
            assert second.wait(LONG)
            third = channel.give()
            crowd.settle()
            channel.came.append(await channel.stream.aget())
            assert third.wait(LONG)
            channel.take()
            channel.end()

    asyncio.run(main())


# Executors


class Maps:
    """Maps of an executor, of which each read draws one call; those without calls are QUIET."""

    def __init__(self, executor: PoolExecutor, called: Callable[[Any], Any]) -> None:
        self.queues = [queue.SimpleQueue[Any]() for _ in range(2 * MANY)]
        for number, given in enumerate(self.queues):
            given.put((number, 0))
        self.executor = executor
        self.results = [executor.map(called, iter(given.get, END), buffersize=1) for given in self.queues]
        self.counts = [0] * len(self.queues)

    def next(self, number: int) -> None:
        """Draws the next call of that map, and reads the result of the one before."""
        self.queues[number].put((number, self.counts[number] + 1))
        assert next(self.results[number]) == (number, self.counts[number])
        self.counts[number] += 1

    def settle(self) -> None:
        """With one thread: it looks at all of them after each call, and goes on looking at the last seven."""
        for number in range(len(self.queues)):
            self.next(number)
            self.executor.submit(int).result(LONG)

    def end(self) -> None:
        for number, (given, results) in enumerate(zip(self.queues, self.results, strict=True)):
            given.put(END)
            assert list(results) == [(number, self.counts[number])]


@pytest.mark.parametrize("workers", [1, 3])
def test_calls_are_drawn_one_at_a_time_for_many_maps(workers: int, seed: int, switch_interval: float) -> None:
    called: list[Any] = []

    def call(item: Any) -> Any:
        called.append(item)
        return item

    rng = random.Random(seed)
    with PoolExecutor(workers) as executor:
        maps = Maps(executor, call)
        for _ in range(150):
            maps.next(rng.randrange(len(maps.queues)))
        maps.end()
    assert sorted(called) == [(n, k) for n, count in enumerate(maps.counts) for k in range(count + 1)]


def test_a_map_may_be_drawn_while_its_calls_run() -> None:
    """Each item is called before the next one is drawn; more than there are in the first part."""
    done = [threading.Event() for _ in range(100)]

    def draw() -> Iterator[int]:
        for number, event in enumerate(done):
            yield number
            assert event.wait(LONG)
            maps.next(number % len(maps.queues))

    def call(number: int) -> int:
        done[number].set()
        return number

    with PoolExecutor(2) as executor:
        maps = Maps(executor, lambda item: item)
        assert list(executor.map(call, draw())) == list(range(100))
        maps.end()


def test_an_executor_begins_what_becomes_ready_in_the_order_of_its_coming(seed: int) -> None:
    """Calls of maps that had none before, and of `submit`, while the only thread is busy."""
    begun: list[Any] = []

    def call(item: Any) -> Any:
        begun.append(item)
        return item

    rng = random.Random(seed)
    with PoolExecutor(1) as executor:
        maps = Maps(executor, call)
        maps.settle()
        gate = Gate()
        executor.submit(gate)
        assert gate.reached.wait(LONG)
        begun.clear()
        numbers = list(range(len(maps.queues) - 7))
        rng.shuffle(numbers)
        expected: list[Any] = []
        for number in numbers:
            expected.append((number, maps.counts[number] + 1))
            maps.next(number)
            if rng.random() < 0.5:
                expected.append(("submitted", number))
                executor.submit(call, expected[-1])
        gate.opened.set()
        executor.submit(int).result(LONG)
        assert begun == expected
        maps.end()


# Ends


def draw_and_settle(first: Any, crowd: Crowd) -> Iterator[Any]:
    """An iterable that ends only when its source is QUIET. Its first item is not ready before."""
    going_on = threading.Event()
    first.step = lambda: going_on.wait(LONG)
    yield first
    going_on.set()
    crowd.settle()


async def draw_and_settle_async(first: Any, crowd: Crowd) -> AsyncIterator[Any]:
    for item in draw_and_settle(first, crowd):
        yield item


@pytest.mark.parametrize("kind", ["reader", "thread", "map", "async wrap", "async map"])
def test_a_source_that_ends_while_it_is_quiet_is_removed(kind: str) -> None:
    """Its reader takes all that comes, and does not come back for the end."""

    def read() -> None:
        first: Any = Item() if "map" in kind else Job()
        source: Any = (draw_and_settle_async if "async" in kind else draw_and_settle)(first, crowd)
        if "map" in kind:
            stream: Any = pool.map(source, buffer=2)
        else:
            stream = pool.wrap(source, buffer=2, drawn_by="thread" if kind == "thread" else "reader")
        if "async" in kind:
            assert asyncio.run(stream.aget()) is first
        else:
            assert stream.get(LONG) is first
        wait_until(lambda: stream.closed)

    with crowded() as (pool, crowd):
        before = sources()
        read()
        look_around(pool)
        wait_until(lambda: sources() <= before)


def test_a_map_of_an_executor_that_ends_while_it_is_quiet_is_removed() -> None:
    def draw() -> Iterator[int]:
        yield 0
        yield 1
        maps.settle()

    with PoolExecutor(1) as executor:
        maps = Maps(executor, lambda item: item)
        maps.settle()
        before = sources()
        results: Any = executor.map(abs, draw(), buffersize=1)
        assert next(results) == 0
        assert next(results) == 1
        del results
        for _ in range(3):
            executor.submit(int).result(LONG)
        wait_until(lambda: sources() <= before)
        maps.end()


def test_a_ring_that_is_closed_ends_its_stream() -> None:
    """With no reader, and no other work."""

    def close_one() -> weakref.ref[Any]:
        channel = Channel(pool, "ring")
        channel.send()
        crowd.settle()
        channel.ring.close()
        wait_until(lambda: bool(channel.stream.closed))
        assert channel.stream.total == 1
        return weakref.ref(channel.ring)

    with crowded(2) as (pool, crowd):
        before = sources()
        gone = close_one()
        look_around(pool)
        wait_until(lambda: sources() <= before and gone() is None)


@pytest.mark.parametrize("kind", ["reader", "thread", "ring", "map"])
@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_quiet_stream_that_is_left_is_removed(kind: str, how: str) -> None:
    """The pool is idle, and no other work comes."""
    with crowded(2) as (pool, crowd):
        before, watchers = sources(), count_objects("RingWatcher")
        channel = Channel(pool, kind)
        channel.send()
        if kind == "thread":
            given = channel.give()  # the thread that draws waits for room now, and not for the source
            assert given.wait(LONG)
        crowd.settle()
        time.sleep(SHORT)  # long enough that the workers sleep, where the fault would show; right in any case
        ring = channel.ring
        if how == "close":
            channel.stream.close()
        del channel
        wait_until(lambda: sources() <= before)
        wait_until(lambda: count_objects("RingWatcher") <= watchers)  # though the ring is there
        assert not ring.closed


@pytest.mark.parametrize("kind", ["reader", "map"])
def test_what_is_pending_in_a_dropped_stream_is_cancelled(kind: str) -> None:
    with crowded() as (pool, crowd):
        before = sources()
        channel = Channel(pool, kind, 3)
        crowd.settle()
        gate = Gate()
        held = pool.do(Job(gate))
        assert gate.reached.wait(LONG)
        given = [channel.give() for _ in range(3)]
        for _ in given:
            with pytest.raises(queue.Empty):
                channel.stream.get(0)  # draws one
        accepted = pool.stats().accepted
        with contextlib.nullcontext() if kind == "reader" else pytest.warns(ResourceWarning):
            del channel
            gc.collect()
        # It is to be removed; until then it counts.
        assert (pool.stats().accepted, pool.stats().queued, pool.stats().running) == (accepted, 3, 1)
        gate.opened.set()
        assert held.wait(LONG)
        wait_until(lambda: sources() <= before)
        assert (pool.stats().accepted, pool.stats().cancelled) == (accepted, 3)
        assert all(item.runs == 0 for item in given)
        if kind == "reader":
            assert all(op.outcome is Outcome.CANCELLED for op in given)


def test_retries_of_a_dropped_stream_are_cancelled() -> None:
    """Their delay runs, and the pool is idle."""
    with crowded() as (pool, crowd):
        before = sources()
        channel = Channel(pool, "reader", 2)
        given = [channel.give(raising(Retry(delay=HOUR))) for _ in range(2)]
        for op in given:
            with pytest.raises(queue.Empty):
                channel.stream.get(0)
            assert op.begun.wait(LONG)
        wait_until(lambda: pool.stats().delayed == 2)
        crowd.settle()
        del channel
        assert all(op.wait(LONG) for op in given)
        assert all(op.outcome is Outcome.CANCELLED for op in given)
        wait_until(lambda: sources() <= before)


def test_more_streams_are_dropped_at_once_than_a_worker_removes_at_a_time() -> None:
    with crowded() as (pool, crowd):
        before = sources()
        gate = Gate()
        pool.do(Job(gate))
        assert gate.reached.wait(LONG)
        channels = [Channel(pool, "ring") for _ in range(200)]
        rings = [channel.ring for channel in channels]
        del channels
        batch = pool.execute([Job() for _ in range(TURN)])
        gate.opened.set()
        assert len(list(batch)) == TURN
        del batch
        wait_until(lambda: sources() <= before)
        wait_until(lambda: count_objects("RingWatcher") <= MANY)
        assert not any(ring.closed for ring in rings)
        crowd.settle()


# The end of the pool


def end_by_shutdown(pool: WorkerPool[Any]) -> None:
    pool.shutdown()


def end_by_cancelling(pool: WorkerPool[Any]) -> None:
    pool.shutdown(cancel_pending=True)


def end_by_breaking(pool: WorkerPool[Any]) -> None:
    with contextlib.suppress(SystemExit, BrokenPool):
        pool.do(Job(raising(SystemExit("broken on purpose")))).wait(LONG)
    wait_until(lambda: "broken" in repr(pool))


@pytest.mark.parametrize("end", [end_by_shutdown, end_by_cancelling, end_by_breaking])
@pytest.mark.parametrize("kind", ["ring", "thread", "reader", "map"])
def test_quiet_streams_end_with_their_pool(
    end: Callable[[WorkerPool[Any]], None], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    # pytest would keep the crash, whose traceback refers to the pool
    caplog.set_level(logging.CRITICAL + 1, "ringmill")
    error = BrokenPool if end is end_by_breaking else PoolNotRunning

    def read(channel: Channel, entered: threading.Barrier) -> bool:
        entered.wait(LONG)
        with pytest.raises(error):
            channel.stream.get(LONG)
        return True

    def play() -> list[RingBuffer[Any]]:
        pool = make_pool(kind, 1, max_restarts=0)
        pool.start()
        channels = [Channel(pool, kind) for _ in range(MANY)]
        for channel in channels:
            channel.send()
        entered = threading.Barrier(MANY + 1)
        readers = start_threads(*[lambda channel=channel: read(channel, entered) for channel in channels])
        entered.wait(LONG)
        ender = start_threads(lambda: end(pool))
        if kind != "ring":  # their readers, or threads, wait for their sources
            wait_until(lambda: all(channel.stream.total is not None for channel in channels))  # they have been ended
            for channel in channels:
                channel.queue.put(Item() if kind == "map" else Job())
        assert readers.join() == [True] * MANY
        ender.join()
        pool.shutdown()
        check_at_rest(pool.stats())
        assert pool.stats().succeeded == MANY
        return [channel.ring for channel in channels]

    before = sources()
    rings = play()
    wait_until(lambda: sources() <= before)
    wait_until(lambda: not count_objects("RingWatcher"))
    assert not any(ring.closed for ring in rings)


@pytest.mark.parametrize("end", [end_by_shutdown, end_by_cancelling])
def test_pending_items_of_streams_that_were_quiet(end: Callable[[WorkerPool[Any]], None]) -> None:
    pool = make_pool("", 1)
    pool.start()
    channels = [Channel(pool, kind) for kind in ("reader", "map") for _ in range(MANY)]
    for channel in channels:
        channel.send()
    gate = Gate()
    held = pool.do(Job(gate))
    assert gate.reached.wait(LONG)
    pending = []
    for channel in channels:
        pending.append(channel.give())
        with pytest.raises(queue.Empty):
            channel.stream.get(0)
    runs = 1 if end is end_by_shutdown else 0
    ender = start_threads(lambda: end(pool))
    if runs:
        wait_until(lambda: all(channel.stream.total is not None for channel in channels))
    else:
        wait_until(lambda: pool.stats().cancelled == len(channels))
    gate.opened.set()
    ender.join()
    assert held.outcome is Outcome.SUCCEEDED
    assert [item.runs for item in pending] == [runs] * len(pending)
    stats = pool.stats()
    check_at_rest(stats)
    assert (stats.accepted, stats.cancelled) == (2 * len(channels) + 1, (1 - runs) * len(channels))
    for channel, item in zip(channels, pending, strict=True):
        if runs or channel.kind == "reader":
            assert channel.stream.get(LONG) is item
        error = PoolNotRunning if runs or channel.kind == "reader" else CancelledError
        with pytest.raises(error):
            channel.stream.get(LONG)


def test_workers_that_come_and_go() -> None:
    with WorkerPool(Runner, 1) as pool:
        channels = [Channel(pool, kind) for kind in KINDS for _ in range(3)]
        for count in (1, 3, 2, 4, 1):
            pool.resize(count)
            for channel in channels:
                channel.send()
        for channel in channels:
            channel.end()


# Turns


@pytest.mark.parametrize("workers", [1, 2])
def test_no_source_waits_for_more_than_a_turn_of_each_other(workers: int) -> None:
    """Twenty batches that are longer than a turn; and a stream that was QUIET, and gets an item while they run."""
    busy, length = 20, 4 * TURN
    begun: list[int] = []
    with crowded(workers) as (pool, crowd):
        channel = Channel(pool, "ring")
        channel.send()
        crowd.settle()
        gates = [Gate() for _ in range(workers)]
        for gate in gates:
            pool.do(Job(gate))
        assert all(gate.reached.wait(LONG) for gate in gates)
        ops = [[Job(lambda number=number: begun.append(number)) for _ in range(length)] for number in range(busy)]
        middle = Gate()
        ops[5][TURN // 2].step = middle
        streams = [pool.execute(batch) for batch in ops]
        for gate in gates:
            gate.opened.set()
        assert middle.reached.wait(LONG)
        channel.give(lambda: begun.append(-1))
        at = len(begun)  # with two workers, the other one may have begun it already
        middle.opened.set()
        channel.take()
        assert all(len(list(stream)) == length for stream in streams)
        channel.end()
    assert begun.count(-1) == 1
    between = begun[at : begun.index(-1)]
    assert max(map(between.count, range(busy))) <= TURN * workers * 2
    # And among those that are busy: between two turns of one, each other one has so many operations at most.
    if workers == 1:
        for number in range(busy):
            places = [place for place, which in enumerate(begun) if which == number]
            for one, two in itertools.pairwise(places):
                assert two - one == 1 or max(map(begun[one:two].count, range(busy))) <= TURN


# Random schedules


@pytest.mark.stress
@pytest.mark.watchdog(60)
@pytest.mark.parametrize("workers", [1, 3])
def test_streams_come_and_go_at_random(workers: int, seed: int, switch_interval: float) -> None:
    """Items are brought, streams end, are closed, dropped, and opened, by several threads; all is accounted for."""
    def play(pool: WorkerPool[Any], number: int) -> None:
        rng = random.Random(seed + number)
        kinds = ["reader", "ring", "map", "thread"]
        channels = [Channel(pool, rng.choice(kinds)) for _ in range(MANY)]
        for _ in range(200):
            at = rng.randrange(len(channels))
            channel = channels[at]
            chance = rng.random()
            if chance < 0.8:
                channel.send()
            elif chance < 0.87:
                channel.end()
                channels[at] = Channel(pool, rng.choice(kinds))
            elif chance < 0.94:
                channel.stream.close()
                channel.queue.put(END)
                channel.check()
                channels[at] = Channel(pool, rng.choice(kinds))
            else:
                if not channel.came:
                    channel.send()  # a map that is dropped unread is warned of
                channel.queue.put(END)
                channel.check()
                del channel
                channels[at] = Channel(pool, rng.choice(kinds))
        for channel in channels:
            channel.end()

    before = sources()
    with make_pool("", workers) as pool:
        run_threads(*[lambda number=number: play(pool, number) for number in range(3)])
        look_around(pool)
        wait_until(lambda: sources() <= before + 1)
        check_at_rest(pool.stats())
