"""The user's code runs inside ringmill, in finalizers, hooks and sources, and calls it: no deadlock, nothing lost.

And what calls come from odd places: hooks of a restart, a pool whose start failed, a worker that reads its own stream.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringmill import (
    BrokenPool,
    Closed,
    Operation,
    OperationReused,
    Outcome,
    PoolNotRunning,
    Retry,
    RingBuffer,
    Stream,
    Worker,
    WorkerInitError,
    WorkerPool,
)
from tests.pools import Gate, Step, perform
from tests.threads import HOUR, LONG, SHORT, run_threads, start_threads, wait_until

pytestmark = [pytest.mark.watchdog(60), pytest.mark.usefixtures("no_thread_is_left")]


class Job(Operation):
    """What is to happen to it when it is processed."""

    def __init__(self, step: Step = None) -> None:
        self.step = step


class JobWorker(Worker[Job]):
    def __init__(self, init: Callable[[], Any] = int, cleanup: Callable[[], Any] = int) -> None:
        self.comes_up, self.cleans_up = init, cleanup

    def init(self) -> None:
        self.comes_up()

    def process(self, op: Job) -> None:
        perform(op.step)

    def handle_error(self, error: BaseException, op: Job) -> None:
        pass

    def cleanup(self) -> None:
        self.cleans_up()


def hold(pool: WorkerPool[Job], error: BaseException | None = None) -> tuple[Job, Gate]:
    gate = Gate(error)
    op = pool.do(Job(gate))
    assert gate.reached.wait(LONG)
    return op, gate


def kind_of(call: Callable[[], Any]) -> type[BaseException] | None:
    """What a call raises, if anything."""
    try:
        call()
    except Exception as error:
        return type(error)
    return None


# Finalizers


@pytest.mark.parametrize("where", ["put aside", "delayed", "in a batch", "queued"])
def test_finalizers_of_operations_that_end_with_the_pool_may_ask_the_pool(where: str) -> None:
    """The pool held the last reference to each of them."""
    gone: list[tuple[int, bool]] = []

    class Mortal(Job):
        def __del__(self) -> None:
            stats = pool.stats()
            gone.append((stats.accepted, self.cancel()))

    def fill() -> None:
        for _ in range(3):
            if where == "in a batch":
                pool.execute([Mortal()])
            else:
                pool.do(Mortal(Retry(delay=HOUR) if where == "delayed" else None))

    def fill_and_crash() -> None:
        fill()
        raise SystemExit

    pool: WorkerPool[Job] = WorkerPool([JobWorker()], max_restarts=0)
    pool.start()
    if where == "put aside":
        crashing = pool.do(Job(fill_and_crash))
    elif where == "delayed":
        fill()
        wait_until(lambda: pool.stats().delayed == 3)
        crashing = pool.do(Job(SystemExit()))
    else:
        crashing, gate = hold(pool, SystemExit())
        fill()
        gate.opened.set()
    assert crashing.wait(LONG)
    assert pool.shutdown() == []
    assert isinstance(crashing.error, SystemExit)
    gc.collect()  # a Retry's traceback leads to the operation that holds it
    wait_until(lambda: len(gone) == 3)
    assert gone == [(4, False)] * 3
    assert pool.stats().failed == 4


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_the_finalizer_of_a_sources_error_may_close_the_stream(end: str) -> None:
    """The error waits in the stream for what was accepted before it; the pool ends first, with an error of its own."""

    class Boom(Exception):
        def __del__(self) -> None:
            self.args[0]()

    gate = Gate()

    def source() -> Iterator[Job]:
        yield Job(gate)
        raise Boom(lambda: streams[0].close())

    pool: WorkerPool[Job] = WorkerPool([JobWorker()])
    pool.start()
    streams = [pool.wrap(source())]
    assert kind_of(lambda: streams[0].get(SHORT)) is queue.Empty
    assert gate.reached.wait(LONG)
    if end == "close":
        streams[0].close()
    assert pool.shutdown(timeout=0) == []
    gate.opened.set()
    assert pool.shutdown() == []
    kinds = [kind_of(lambda: streams[0].get(LONG)).__name__ for _ in range(2)]
    assert kinds[-1] in ("Boom", "Closed")
    del pool
    streams[0].close()
    gc.collect()


def test_the_error_of_a_source_is_not_replaced_when_a_worker_is_stuck() -> None:
    gate = Gate()

    def source() -> Iterator[Job]:
        yield Job(gate)
        raise LookupError("the source's own")

    pool: WorkerPool[Job] = WorkerPool([JobWorker()])
    pool.start()
    stream = pool.wrap(source(), drawn_by="thread")
    assert gate.reached.wait(LONG)
    wait_until(lambda: stream.total == 1)
    assert pool.shutdown(timeout=0) == []
    with pytest.raises(LookupError):
        stream.get(LONG)
    gate.opened.set()
    pool.shutdown()


# Wake-ups of a ring


def test_the_pool_with_room_is_woken_if_two_pools_read_one_ring(switch_interval: float) -> None:
    """A full stream's pool must not swallow the wake-up of the other's."""
    ring = RingBuffer[Job](1)
    with WorkerPool([JobWorker()]) as full, WorkerPool([JobWorker()]) as other:
        first = Job()
        ring.put(first)
        blocked = full.wrap(ring, buffer=1)
        assert first.wait(LONG)
        stream = other.wrap(ring, buffer=1)
        for _ in range(50):
            op = Job()
            ring.put(op, timeout=LONG)
            assert stream.get(LONG) is op
        ring.close()
        assert list(stream) == []
        assert list(blocked) == [first]


@pytest.mark.stress
def test_bells_getters_that_time_out_and_close_race(seed: int, switch_interval: float) -> None:
    """The wait queue of a ring holds threads and ring watchers in any order when the ring is closed."""
    until = time.monotonic() + 0.3
    with WorkerPool([JobWorker()]) as one, WorkerPool([JobWorker()]) as two:
        for lap in itertools.count(seed % 1000):
            if time.monotonic() > until:
                break
            ring = RingBuffer[Job](2)
            streams = [pool.wrap(ring, buffer=2) for pool in (one, two)]
            got: list[Job] = []

            def get(ring: RingBuffer[Job] = ring, got: list[Job] = got, lap: int = lap) -> None:
                while True:
                    kind = kind_of(lambda: got.append(ring.get(timeout=0.0001 * (lap % 4))))
                    if kind is Closed:
                        return

            def put(ring: RingBuffer[Job] = ring, lap: int = lap) -> int:
                ops = [Job() for _ in range(lap % 5)]
                ring.put_many(ops, timeout=LONG)
                ring.close()
                return len(ops)

            *_, count = run_threads(get, get, put)
            came = [op for stream in streams for op in stream]
            assert len({id(op) for op in came + got}) == len(came + got) == count


@pytest.mark.parametrize("name", ["text", "no repr", "used"])
def test_removing_an_invalid_item_from_a_ring_wakes_a_waiting_putter(name: str) -> None:
    """The worker that takes it ends the stream, and has taken it nonetheless."""

    class Nameless:
        def __repr__(self) -> str:
            raise ValueError("no name")

    used = Job()
    assert used.cancel()
    bad = {"text": "bad", "no repr": Nameless(), "used": used}[name]
    with WorkerPool([JobWorker(), JobWorker()]) as pool:
        for _ in range(20):
            ring = RingBuffer[Any](1)
            ring.put(bad)
            op = Job()
            putter = start_threads(lambda ring=ring, op=op: ring.put(op, timeout=LONG))
            stream = pool.wrap(ring)
            with pytest.raises((TypeError, OperationReused)):
                stream.get(LONG)
            putter.join()
            assert ring.get_nowait() is op  # no pool has it, and it is new
            assert op.outcome is Outcome.PENDING


# Nothing is kept


@pytest.mark.parametrize("end", ["broken", "given up", "shut down"])
def test_the_ring_of_a_pool_that_has_ended_does_not_keep_it(end: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "ringmill")  # pytest keeps what is logged, the pool included
    ring = RingBuffer[Job](4)
    worker = JobWorker()
    pool: WorkerPool[Job] = WorkerPool([worker], max_restarts=0)
    pool.start()
    stream = pool.wrap(ring)
    for _ in range(20):
        assert pool.do(Job()).wait(LONG)  # and the worker looks for more, and sleeps
    if end == "broken":
        op = pool.do(Job(SystemExit()))
        assert op.wait(LONG)
        assert isinstance(op.error, SystemExit)
        del op
    elif end == "given up":
        op, gate = hold(pool)
        assert pool.shutdown(timeout=0) == []
        gate.opened.set()
        assert op.wait(LONG)
        del op, gate
    pool.shutdown()
    gone = [weakref.ref(thing) for thing in (worker, pool)]
    del worker, pool, stream

    def all_gone() -> bool:
        gc.collect()
        return all(reference() is None for reference in gone)

    wait_until(all_gone)
    ring.put(Job())
    ring.close()


# Hooks that call the pool


def test_operations_submitted_by_init_at_a_restart_do_not_wait_for_room() -> None:
    """The queue is full, and this is the worker that would empty it."""
    handed: list[Job] = []
    inits: list[None] = []

    def init() -> None:
        inits.append(None)
        if len(inits) > 1:
            handed.extend(pool.do(Job()) for _ in range(3))

    pool: WorkerPool[Job] = WorkerPool([JobWorker(init)], queue_size=1)
    with pool:
        lost, gate = hold(pool, SystemExit())
        queued = pool.do(Job())  # it is full
        gate.opened.set()
        assert queued.wait(LONG)
        assert isinstance(lost.error, SystemExit)
        assert len(handed) == 3
        assert all(op.wait(LONG) and op.check() is op for op in handed)
    assert pool.stats().restarts == 1


@pytest.mark.parametrize("hook", ["init", "cleanup"])
def test_hooks_of_a_restart_cannot_wait_for_the_pool(hook: str) -> None:
    kinds: list[type[BaseException] | None] = []
    armed = threading.Event()

    def visit() -> None:
        if armed.is_set():
            armed.clear()
            own = pool.do(Job())
            kinds.extend(kind_of(call) for call in (own.wait, pool.execute([Job()]).get, pool.shutdown, pool.start))
            kinds.append(kind_of(lambda: pool.shutdown(timeout=0)))

    pool: WorkerPool[Job] = WorkerPool([JobWorker(init=visit) if hook == "init" else JobWorker(cleanup=visit)])
    with pool:
        armed.set()
        lost = pool.do(Job(SystemExit()))
        assert lost.wait(LONG)
        assert isinstance(lost.error, SystemExit)
        assert pool.do(Job()).wait(LONG)
        assert kinds == [RuntimeError] * 5


@pytest.mark.parametrize("run", ["first", "second"])
def test_init_cannot_start_its_own_pool(run: str) -> None:
    kinds: list[type[BaseException] | None] = []

    def init() -> None:
        if armed.is_set():
            kinds.append(kind_of(lambda: pool.start(timeout=1)))

    armed = threading.Event()
    pool: WorkerPool[Job] = WorkerPool([JobWorker(init)])
    if run == "second":
        with pool:
            pass
    armed.set()
    with pool:
        assert pool.do(Job()).wait(LONG)
    assert kinds == [RuntimeError]


def test_init_and_cleanup_of_a_start_find_no_running_pool() -> None:
    kinds: list[tuple[str, type[BaseException] | None]] = []

    def visit(hook: str) -> None:
        for call in (lambda: pool.do(Job()), lambda: pool.execute([Job()]), lambda: pool.wrap([])):
            kinds.append((hook, kind_of(call)))

    pool: WorkerPool[Job] = WorkerPool([JobWorker(lambda: visit("init"), lambda: visit("cleanup"))])
    for _ in range(2):
        with pool:
            assert pool.do(Job()).wait(LONG)
        assert kinds == [("init", PoolNotRunning)] * 3 + [("cleanup", PoolNotRunning)] * 3
        kinds.clear()


# A pool whose start failed


@pytest.mark.parametrize("earlier", [False, True], ids=["never ran", "ran before"])
def test_a_pool_whose_start_failed_is_not_running(earlier: bool) -> None:
    good = threading.Event()

    def init() -> None:
        if not good.is_set():
            raise ValueError("in init")

    pool: WorkerPool[Job] = WorkerPool([JobWorker(init), JobWorker()])
    if earlier:
        good.set()
        with pool:
            pass
        good.clear()
    with pytest.raises(WorkerInitError):
        pool.start()
    ring = RingBuffer[Job](1)
    ring.put(op := Job())
    calls: list[Callable[[], Any]] = [
        lambda: pool.wrap([]),
        lambda: pool.wrap([op]),
        lambda: pool.wrap([op], drawn_by="thread"),
        lambda: pool.wrap(ring),
        lambda: pool.do(op),
        lambda: pool.execute([op]),
        lambda: pool.execute([]),
    ]
    assert [kind_of(call) for call in calls] == [PoolNotRunning] * len(calls)
    assert (op.outcome, len(ring)) == (Outcome.PENDING, 1)
    assert pool.stats().accepted == 0
    assert pool.shutdown() == []
    good.set()
    with pool:
        assert pool.do(op).wait(LONG)


@pytest.mark.stress
def test_wrap_races_with_start_and_shutdown(switch_interval: float) -> None:
    fails = threading.Event()

    def init() -> None:
        if fails.is_set():
            raise ValueError("in init")

    pool: WorkerPool[Job] = WorkerPool([JobWorker(init)])
    stop = threading.Event()

    def wrap() -> int:
        came = 0
        while not stop.is_set():
            with contextlib.suppress(PoolNotRunning, BrokenPool):
                came += len(list(pool.wrap([Job()])))
        return came

    wrappers = start_threads(wrap, wrap)
    try:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            with pool:
                assert pool.do(Job()).wait(LONG)
            fails.set()
            with pytest.raises(WorkerInitError):
                pool.start()
            fails.clear()
    finally:
        stop.set()
        wrappers.join()


# Readers


READS: list[Any] = [
    pytest.param(lambda stream: stream.get(), id="get"),
    pytest.param(lambda stream: stream.get_many(), id="get_many"),
    pytest.param(next, id="next"),
]


@pytest.mark.parametrize("read", READS)
def test_a_worker_that_reads_the_stream_of_its_own_operation(read: Callable[[Stream[Job]], Any]) -> None:
    """A worker is one more reader. It cannot wait for its own work; it may take operations that are ready."""
    with WorkerPool([JobWorker()]) as pool:
        taken: list[Job] = []

        def step() -> None:
            found = read(stream)
            taken.extend(found if isinstance(found, list) else [found])

        jobs = [Job(step), Job(step)]
        stream: Stream[Job] = pool.wrap(iter(jobs))
        came = list(stream)
        assert sorted(map(id, came + taken)) == sorted(map(id, jobs))
        assert isinstance(jobs[0].error, RuntimeError)
        assert jobs[1].error is None if taken else isinstance(jobs[1].error, RuntimeError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError])
@pytest.mark.parametrize("buffer", [1, 3, 10])
@pytest.mark.parametrize("most", [None, 2])
def test_get_many_loses_nothing_when_the_source_raises(
    kind: type[BaseException], buffer: int, most: int | None
) -> None:
    ops = [Job() for _ in range(6)]

    def source() -> Iterator[Job]:
        yield from ops
        raise kind

    with WorkerPool([JobWorker()]) as pool:
        stream = pool.wrap(source(), buffer=buffer)
        came: list[Job] = []
        raised = 0
        while True:
            try:
                came += stream.get_many(most, LONG) if came else [stream.get(LONG)]
            except kind:
                raised += 1
                assert raised <= 2  # at once, if it is no Exception, and at the end
                if len(came) == len(ops):
                    break
            except Closed:
                break
            else:
                assert pool.do(Job()).wait(LONG)  # what it drew is ready, so that the next call takes several
        assert raised
        assert came == ops


@pytest.mark.stress
@pytest.mark.parametrize("kind", [None, ValueError])
def test_readers_by_lot_and_one_by_one_share_a_source(
    kind: type[Exception] | None, seed: int, switch_interval: float
) -> None:
    until = time.monotonic() + 0.3
    with WorkerPool([JobWorker()]) as pool:
        while time.monotonic() < until:
            ops = [Job() for _ in range(25 + seed % 5)]

            def source(ops: list[Job] = ops) -> Iterator[Job]:
                yield from ops
                if kind is not None:
                    raise kind

            stream = pool.wrap(source(), buffer=1 + seed % 7)

            def read(many: bool, stream: Stream[Job] = stream) -> list[Job]:
                came: list[Job] = []
                while True:
                    try:
                        came += stream.get_many() if many else [stream.get()]
                    except (Closed, ValueError):
                        return came

            results = run_threads(*[lambda many=many: read(many) for many in (True, True, False)])
            came = [op for result in results for op in result]
            assert sorted(map(id, came)) == sorted(map(id, ops))
