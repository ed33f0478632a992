"""Tasks wait in an event loop that is stopped or blocked: it delays no thread and no other event loop."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import gc
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import anyio
import pytest

from ringmill import Closed, Hub, Operation, RingBuffer, Worker, WorkerPool
from tests.loops import BACKENDS, Elsewhere, StoppedLoop, let_others_run, make_idle_loop, run_loop, together
from tests.threads import start_threads, wait_until

IDLE = ("stopped", *BACKENDS)
SECONDS = 30.0


class Job(Operation):
    def __init__(self, gate: threading.Event | None = None) -> None:
        self.gate = gate


class Gated(Worker[Job]):
    def process(self, op: Job) -> None:
        if op.gate is not None:
            op.gate.wait()


class Case(NamedTuple):
    """Threads or tasks wait, and `publish` brings what one of them can take."""

    in_task: Callable[[], Awaitable[Any]]
    in_thread: Callable[[], Any]
    publish: Callable[[], Any]


def get_from_ring() -> Iterator[Case]:
    ring: RingBuffer[int] = RingBuffer(4)
    yield Case(ring.aget, ring.get, lambda: ring.put(1))


def get_many_from_ring() -> Iterator[Case]:
    ring: RingBuffer[int] = RingBuffer(4)
    yield Case(ring.__anext__, ring.get_many, lambda: ring.put_many([1]))


def put_into_ring() -> Iterator[Case]:
    ring: RingBuffer[int] = RingBuffer(1)
    ring.put(0)
    yield Case(lambda: ring.aput(1), lambda: ring.put(1), ring.get)


def put_many_into_ring() -> Iterator[Case]:
    ring: RingBuffer[int] = RingBuffer(1)
    ring.put(0)
    yield Case(lambda: ring.aput(1), lambda: ring.put_many([1]), ring.get_many)


def read_subscription() -> Iterator[Case]:
    hub: Hub[int] = Hub(buffer=1)
    subscription = hub.subscribe()
    yield Case(subscription.aget, subscription.get, lambda: hub.broadcast(1))


def broadcast() -> Iterator[Case]:
    hub: Hub[int] = Hub(buffer=1)
    subscription = hub.subscribe()
    hub.broadcast(0)
    yield Case(lambda: hub.abroadcast(1), lambda: hub.broadcast(1), subscription.get)


def signal() -> Iterator[Case]:
    hub: Hub[int] = Hub(buffer=1)
    subscription = hub.subscribe()
    hub.broadcast(0)
    yield Case(lambda: hub.asignal(1), lambda: hub.signal(1), subscription.get)


def do() -> Iterator[Case]:
    gate = threading.Event()
    with WorkerPool([Gated()], queue_size=1) as pool:
        try:
            pool.do(Job(gate))
            wait_until(lambda: pool.stats().running == 1)
            pool.do(Job(gate))
            yield Case(lambda: pool.ado(Job()), lambda: pool.do(Job()), gate.set)
        finally:
            gate.set()


def read_stream(make: Callable[[WorkerPool[Job], list[Job]], Any]) -> Iterator[Case]:
    gate = threading.Event()
    with WorkerPool([Gated(), Gated()]) as pool:
        try:
            stream = make(pool, [Job(gate), Job(gate)])
            yield Case(stream.aget, stream.get, gate.set)
        finally:
            gate.set()
            stream.close()


def wrap_of_ring(pool: WorkerPool[Job], ops: list[Job]) -> Any:
    ring: RingBuffer[Job] = RingBuffer(4)
    ring.put_many(ops)
    return pool.wrap(ring)


CASES: list[Callable[[], Iterator[Case]]] = [
    get_from_ring, get_many_from_ring, put_into_ring, put_many_into_ring, read_subscription, broadcast, signal, do,
]  # fmt: skip
STREAMS: dict[str, Callable[[WorkerPool[Job], list[Job]], Any]] = {
    "execute": lambda pool, ops: pool.execute(ops),
    "wrap": lambda pool, ops: pool.wrap(iter(ops)),
    "wrap_with_one_place": lambda pool, ops: pool.wrap(iter(ops), buffer=1),
    "wrap_of_ring": wrap_of_ring,
}
EVERY = [pytest.param(case, id=case.__name__) for case in CASES] + [
    pytest.param(functools.partial(read_stream, make), id=f"read_stream_{name}") for name, make in STREAMS.items()
]


@pytest.fixture(params=EVERY)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield from request.param()


def wait_until_asleep(thread: threading.Thread) -> None:
    """Until it uses no processor time any more, where a thread's clock can be read."""
    if not hasattr(time, "pthread_getcpuclockid") or thread.ident is None:
        return
    clock = time.pthread_getcpuclockid(thread.ident)

    def idle() -> bool:
        before = time.clock_gettime_ns(clock)
        time.sleep(0.02)
        return before == time.clock_gettime_ns(clock)

    wait_until(idle)


def assert_ends(thread: threading.Thread) -> None:
    thread.join(SECONDS)
    assert not thread.is_alive(), "it sleeps, though what it waits for is there"


@pytest.mark.parametrize("kind", IDLE)
def test_a_thread_takes_an_item_although_tasks_of_an_idle_loop_are_first_in_line(kind: str, case: Case) -> None:
    idle = make_idle_loop(kind, case.in_task)
    waiting = start_threads(case.in_thread)
    wait_until_asleep(waiting.threads[0])
    case.publish()
    assert_ends(waiting.threads[0])
    waiting.join()
    idle.end()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", IDLE)
def test_another_event_loop_takes_available_items(kind: str, backend: str, case: Case) -> None:
    idle = make_idle_loop(kind, case.in_task)
    waits = threading.Event()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(case.in_task)
            await let_others_run(10)
            waits.set()

    elsewhere = Elsewhere(backend, main)
    waits.wait()
    case.publish()
    assert_ends(elsewhere.thread)
    elsewhere.join()
    idle.end()


@pytest.mark.parametrize("kind", IDLE)
def test_a_pool_that_reads_a_ring_takes_what_a_task_of_an_idle_loop_waits_for(kind: str) -> None:
    ring: RingBuffer[Job] = RingBuffer(4)
    idle = make_idle_loop(kind, ring.aget)
    with WorkerPool([Gated()]) as pool, pool.wrap(ring) as stream:
        for _ in range(3):
            ring.put(Job())
            stream.get(timeout=SECONDS)
    idle.end()


@pytest.mark.parametrize("kind", IDLE)
def test_a_loop_that_runs_again_goes_on(kind: str) -> None:
    """Its tasks were notified and find nothing; they wait on, and take what comes then, in their order."""
    ring: RingBuffer[int] = RingBuffer(4)
    order: list[int] = []

    async def take(who: int) -> int:
        item = await ring.aget()
        order.append(who)
        return item

    idle = make_idle_loop(kind, *[functools.partial(take, who) for who in range(3)])
    for number in range(5):
        waiting = start_threads(ring.get)
        wait_until_asleep(waiting.threads[0])
        ring.put(number)
        assert_ends(waiting.threads[0])
        assert waiting.join() == [number]

    def put_more() -> None:
        for number in range(5, 8):
            ring.put(number)
            wait_until(ring.empty)

    putter = start_threads(put_more)
    assert sorted(idle.go_on()) == [5, 6, 7]
    putter.join()
    if kind != "trio":  # which runs its tasks in no particular order
        assert order == [0, 1, 2]


def test_tasks_notified_without_an_item_keep_their_place() -> None:
    """Four of six tasks are notified; a thread takes all items. Then the loop serves the tasks in their order."""
    ring: RingBuffer[int] = RingBuffer(8)
    order: list[int] = []

    async def take(who: int) -> None:
        await ring.aget()
        order.append(who)

    stopped = StoppedLoop(*[functools.partial(take, who) for who in range(6)])
    start_threads(lambda: [ring.put(number) for number in range(4)]).join()
    assert [ring.get_nowait() for _ in range(4)] == [0, 1, 2, 3]
    stopped.loop.run_until_complete(let_others_run(10))
    assert order == []

    async def put_more() -> None:
        for number in range(6):
            ring.put(number)
            await let_others_run(10)

    stopped.loop.run_until_complete(put_more())
    assert order == list(range(6))
    stopped.end()


def test_a_loop_that_is_closed_with_notified_tasks_keeps_nothing() -> None:
    ring: RingBuffer[int] = RingBuffer(4)
    stopped = StoppedLoop(*[ring.aget] * 3)
    for task in stopped.tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # they are meant to be destroyed
    start_threads(lambda: ring.put(0)).join()
    assert ring.get() == 0
    stopped.loop.close()
    waiting = start_threads(ring.get)
    wait_until_asleep(waiting.threads[0])
    ring.put(1)
    assert_ends(waiting.threads[0])
    del stopped, task
    gc.collect()
    waiting = start_threads(ring.get)
    wait_until_asleep(waiting.threads[0])
    ring.put(2)
    assert_ends(waiting.threads[0])
    assert waiting.join() == [2]


def test_a_stopped_loop_of_this_very_thread_does_not_delay_the_one_that_runs() -> None:
    ring: RingBuffer[int] = RingBuffer(4)
    stopped = StoppedLoop(ring.aget)

    async def main() -> int:
        task = asyncio.ensure_future(ring.aget())
        await let_others_run()
        ring.put(1)
        return await asyncio.wait_for(task, SECONDS)

    assert run_loop("asyncio", main) == 1
    stopped.end()


def test_a_ring_and_notified_tasks_of_a_stopped_loop_are_collected() -> None:
    """The chain of a ReadyQueue, a cycle of raw pointers, is visible to the garbage collector."""

    class Item:
        """Marks the loop that goes with it."""

    ring: RingBuffer[int] = RingBuffer(4)
    stopped = StoppedLoop(ring.aget, ring.aget)
    for task in stopped.tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    start_threads(functools.partial(ring.put_many, [1]), functools.partial(ring.put, 2)).join()
    gone: list[Any] = []
    gone.append(weakref.ref(ring))
    stopped.loop.marks = Item()  # type: ignore[attr-defined]
    gone.append(weakref.ref(stopped.loop.marks))  # type: ignore[attr-defined]
    stopped.loop.close()
    del ring, stopped, task
    gc.collect()
    gc.collect()
    assert [mark() for mark in gone] == [None, None]


def test_ready_operations_are_read_while_the_source_blocks() -> None:
    """One reader is in the source; what is ready meanwhile is the other's."""
    inside, go_on = threading.Event(), threading.Event()
    first = Job()

    def source() -> Iterator[Job]:
        yield first
        inside.set()
        go_on.wait()

    gate = threading.Event()
    first.gate = gate
    with WorkerPool([Gated()]) as pool:
        stream = pool.wrap(source())
        drawing = start_threads(lambda: list(stream))
        inside.wait()
        waiting = start_threads(stream.get)
        wait_until_asleep(waiting.threads[0])
        gate.set()
        assert_ends(waiting.threads[0])
        go_on.set()
        assert waiting.join() == [first]
        assert drawing.join() == [[]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ready_operations_are_read_while_the_source_awaits_in_a_stopped_loop(backend: str) -> None:
    gate = threading.Event()
    first = Job(gate)

    async def source() -> AsyncIterator[Job]:
        yield first
        await asyncio.Event().wait()

    with WorkerPool([Gated()]) as pool:
        stream = pool.wrap(source())
        stopped = StoppedLoop(stream.aget)
        waits = threading.Event()

        async def read() -> Job:
            results = await together(stream.aget, tell)
            return results[0]

        async def tell() -> None:
            await let_others_run()
            waits.set()

        elsewhere = Elsewhere(backend, read)
        waits.wait()
        gate.set()
        assert_ends(elsewhere.thread)
        assert elsewhere.join() is first
        stopped.end()


def test_waiting_readers_draw_when_another_reader_makes_room() -> None:
    """With one place each reader that takes one goes away, and one of those that wait draws the next."""
    with WorkerPool([Gated()]) as pool:
        stream = pool.wrap((Job() for _ in range(40)), buffer=1)
        threads = start_threads(*[stream.get] * 20)
        for thread in threads.threads:
            assert_ends(thread)
        assert len({id(op) for op in threads.join()}) == 20
        for op in stream:
            op.check()


@pytest.mark.stress
@pytest.mark.parametrize("capacity", [1, 3])
@pytest.mark.parametrize("kind", IDLE)
def test_threads_and_loops_share_a_ring_while_other_loops_are_idle(kind: str, capacity: int, seed: int) -> None:
    """All items come out, each once, while one loop does not run; it is released in the middle and at the end."""
    total = 600
    rng = random.Random(seed)
    ring: RingBuffer[int] = RingBuffer(capacity)
    late: list[int] = []

    async def take_one() -> None:
        with contextlib.suppress(Closed):
            late.append(await ring.aget())

    async def take_all() -> list[int]:
        return [item async for item in ring]

    idle = make_idle_loop(kind, *[take_one] * 10)
    takers = [Elsewhere(backend, take_all) for backend in BACKENDS]
    threads = start_threads(*[lambda: list(ring)] * 2)
    numbers = list(range(total))
    half = rng.randrange(total // 4, total // 2)

    def put(part: list[int]) -> None:
        for number in part:
            ring.put(number)
            if rng.random() < 0.1:
                wait_until(ring.empty)

    start_threads(functools.partial(put, numbers[:half:2]), functools.partial(put, numbers[1:half:2])).join()
    wait_until(ring.empty)  # though it does not run
    if isinstance(idle, StoppedLoop):
        idle.loop.run_until_complete(let_others_run(3))  # it runs for a moment only
    start_threads(functools.partial(put, numbers[half::2]), functools.partial(put, numbers[half + 1 :: 2])).join()
    wait_until(ring.empty)
    ring.close()
    taken = [item for taker in takers for item in taker.join()] + [item for part in threads.join() for item in part]
    idle.go_on()
    assert collections.Counter(taken + late) == collections.Counter(numbers)


@pytest.mark.stress
@pytest.mark.parametrize("kind", IDLE)
def test_threads_and_loops_put_into_a_full_ring_while_other_loops_are_idle(kind: str, seed: int) -> None:
    """As above, the other way round: room is found while one loop does not run."""
    each = 150
    ring: RingBuffer[tuple[str, int]] = RingBuffer(1)
    ring.put(("first", 0))

    async def put_one(number: int) -> None:
        await ring.aput(("idle", number))

    async def aput_all(name: str) -> None:
        for number in range(each):
            await ring.aput((name, number))

    def put_all(name: str) -> None:
        for number in range(each):
            ring.put((name, number))

    idle = make_idle_loop(kind, *[functools.partial(put_one, number) for number in range(5)])
    putters = [Elsewhere(backend, functools.partial(aput_all, backend)) for backend in BACKENDS]
    threads = start_threads(*[functools.partial(put_all, f"thread-{n}") for n in range(2)])
    taken = [ring.get(timeout=SECONDS) for _ in range(4 * each + 1)]
    for putter in putters:
        putter.join()
    threads.join()
    rest = start_threads(lambda: [ring.get(timeout=SECONDS) for _ in range(5)])
    idle.go_on()
    taken += rest.join()[0]
    names = [*BACKENDS, "thread-0", "thread-1"]
    wanted = {(name, number) for name in names for number in range(each)} | {("idle", n) for n in range(5)}
    assert collections.Counter(taken) == collections.Counter(wanted | {("first", 0)})
    for name in names:
        own = [number for who, number in taken if who == name]
        assert own == sorted(own)
