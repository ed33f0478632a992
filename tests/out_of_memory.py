"""One public call, over and over, while one of its allocations fails: the first, the second, and so on.

`python tests/out_of_memory.py CALL N` runs it with allocation k failing alone, and with the SPELL from k on failing,
for k below N, and prints the figures as JSON. A crash, a hang or a failed check ends the process with a status.
test_memory_errors.py runs it; it has a process of its own because the hooks of `_testcapi` are the process's.

A case is a function that makes what the call needs, makes the call by `trial(function, ...)`, and checks what it
left. Whatever it makes by `trial.thing()` must be gone when the case is over.
"""

from __future__ import annotations

import _testcapi
import contextlib
import faulthandler
import gc
import json
import logging
import os
import pickle
import queue
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, InvalidStateError
from typing import Any

from ringmill import (
    BrokenPool,
    Closed,
    Hub,
    Operation,
    Outcome,
    PoolNotRunning,
    RingBuffer,
    Subscription,
    Task,
    TaskWorker,
    WorkerInitError,
    WorkerPool,
)
from ringmill._core.subscription_ring import SubscriptionRing

WATCHDOG = 20.0  # seconds without a new case
# A shortage without end is CPython's to lose: in 3.13 a `with` whose code lies beyond 256 bytes of its function needs
# an integer to enter its exception handler, and tries again and again while it gets none.
SPELL = 100
# What CPython itself raises, in Python code, where a frame object could not be made for a traceback.
CPYTHONS_OWN = "error return without exception set"
FAILED = object()  # what a call gives that raised MemoryError
FORKED = 2.0  # seconds that a forked case gets before its stacks are looked at


class Thing:
    """An item that is watched."""


class Trial:
    """One case: which allocations fail, what came of it, and the things that must be gone at its end."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.failed = False
        self.refs: list[weakref.ref[Any]] = []

    def thing(self) -> Any:
        thing = Thing()
        self.watch(thing)
        return thing

    def watch(self, thing: Any) -> Any:
        self.refs.append(weakref.ref(thing))
        return thing

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Makes the call while the allocations fail. Returns what it returns; FAILED if it raised MemoryError."""
        _testcapi.set_nomemory(self.start, self.stop)
        try:
            return function(*args, **kwargs)
        except MemoryError:
            self.failed = True
            return FAILED
        except SystemError as error:
            _testcapi.remove_mem_hooks()
            if str(error) != CPYTHONS_OWN:
                raise
            self.failed = True
            return FAILED
        finally:
            _testcapi.remove_mem_hooks()

    def raising(self, *expected: type[BaseException], call: Callable[[], Any], or_not: bool = False) -> Any:
        """The same for a call that is to raise one of those (None then), if it has the memory to; or may, `or_not`."""
        try:
            result = self(call)
        except expected:
            return None
        assert or_not or result is FAILED, result
        return result


CASES: dict[str, Callable[[Trial], None]] = {}
excused: list[str] = []  # hangs of CPython's
FORKS: set[str] = set()  # cases that start threads: each runs in a process of its own


ALONE: set[str] = set()  # cases in which allocations fail one by one only


def case(function: Callable[[Trial], None]) -> Callable[[Trial], None]:
    CASES[function.__name__] = function
    return function


def alone(function: Callable[[Trial], None]) -> Callable[[Trial], None]:
    """Threads run Python code meanwhile: in a spell, a thread cannot even call the function that would report it."""
    ALONE.add(function.__name__)
    return function


def forks(function: Callable[[Trial], None]) -> Callable[[Trial], None]:
    FORKS.add(function.__name__)
    return case(function)


# ----------------------------------------------------------------------------------------------------------------
# RingBuffer

def works(ring: RingBuffer[Any]) -> None:
    """The ring still holds as many as it should, in order."""
    while len(ring):
        ring.get_nowait()
    for k in range(ring.capacity):
        ring.put_nowait(k)
    assert ring.full()
    assert [ring.get_nowait() for _ in range(ring.capacity)] == [*range(ring.capacity)]
    assert ring.empty()


@case
def ring_new(trial: Trial) -> None:
    ring = trial(RingBuffer, 3)
    if ring is not FAILED:
        works(ring)


def putting(trial: Trial, put: str, *args: Any) -> None:
    ring: RingBuffer[Any] = RingBuffer(2)
    item = trial.thing()
    outcome = trial(getattr(ring, put), item, *args)
    assert len(ring) == (outcome is not FAILED)
    if outcome is not FAILED:
        assert ring.get_nowait() is item
    works(ring)


@case
def ring_put(trial: Trial) -> None:
    putting(trial, "put", True, 0.001)


@case
def ring_put_nowait(trial: Trial) -> None:
    putting(trial, "put_nowait")


@case
def ring_put_full(trial: Trial) -> None:
    ring: RingBuffer[Any] = RingBuffer(1)
    first, second = trial.thing(), trial.thing()
    ring.put(first)
    trial.raising(queue.Full, call=lambda: ring.put(second, timeout=0.0001))
    assert ring.get_nowait() is first
    works(ring)


@case
def ring_put_closed(trial: Trial) -> None:
    ring: RingBuffer[Any] = RingBuffer(1)
    item = trial.thing()
    ring.close()
    trial.raising(Closed, call=lambda: ring.put_nowait(item))
    assert len(ring) == 0


def getting(trial: Trial, get: str, *args: Any) -> None:
    ring: RingBuffer[Any] = RingBuffer(2)
    item = trial.thing()
    ring.put(item)
    got = trial(getattr(ring, get), *args)
    assert got is item or (got is FAILED and ring.get_nowait() is item)
    works(ring)


@case
def ring_get(trial: Trial) -> None:
    getting(trial, "get", True, 0.001)


@case
def ring_get_nowait(trial: Trial) -> None:
    getting(trial, "get_nowait")


@case
def ring_next(trial: Trial) -> None:
    getting(trial, "__next__")


@case
def ring_get_empty(trial: Trial) -> None:
    ring: RingBuffer[Any] = RingBuffer(1)
    trial.raising(queue.Empty, call=lambda: ring.get(timeout=0.0001))
    works(ring)


@case
def ring_get_closed(trial: Trial) -> None:
    ring: RingBuffer[Any] = RingBuffer(1)
    ring.close()
    trial.raising(Closed, call=ring.get)


def putting_many(trial: Trial, kind: Callable[[list[Any]], Any], capacity: int) -> None:
    ring: RingBuffer[Any] = RingBuffer(capacity)
    items = [trial.thing() for _ in range(3)]
    source = kind(items)
    try:
        count = trial(ring.put_many, source, 0.0001)
    except queue.Full as full:
        count, rest = full.count, full.rest
    else:
        rest = []
    if count is not FAILED:
        assert rest == items[count : count + len(rest)]
    inside = [ring.get_nowait() for _ in range(len(ring))]
    assert inside == items[: len(inside)]
    assert count is FAILED or count == len(inside)
    works(ring)


@case
def ring_put_many_list(trial: Trial) -> None:
    putting_many(trial, list, 3)


@case
def ring_put_many_tuple(trial: Trial) -> None:
    putting_many(trial, tuple, 3)


@case
def ring_put_many_iterator(trial: Trial) -> None:
    putting_many(trial, iter, 3)


@case
def ring_put_many_list_full(trial: Trial) -> None:
    putting_many(trial, list, 1)


@case
def ring_put_many_iterator_full(trial: Trial) -> None:
    putting_many(trial, iter, 1)


def getting_many(trial: Trial, limit: int | None) -> None:
    ring: RingBuffer[Any] = RingBuffer(3)
    items = [trial.thing() for _ in range(3)]
    ring.put_many(items)
    got = trial(ring.get_many, limit)
    got = [] if got is FAILED else got
    assert got + [ring.get_nowait() for _ in range(len(ring))] == items
    works(ring)


@case
def ring_get_many(trial: Trial) -> None:
    getting_many(trial, None)


@case
def ring_get_many_two(trial: Trial) -> None:
    getting_many(trial, 2)


@case
def ring_get_many_waiting(trial: Trial) -> None:
    """It waits, and two come at once: a signal handler puts them."""
    ring: RingBuffer[Any] = RingBuffer(2)
    items = [trial.thing(), trial.thing()]

    put_in = 0

    def put(*_: Any) -> None:
        nonlocal put_in
        for item in items:
            ring.put_nowait(item)
            put_in += 1

    signal.signal(signal.SIGALRM, put)
    signal.setitimer(signal.ITIMER_REAL, 0.0003)
    got = trial(ring.get_many)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    got = [] if got is FAILED else got
    got += [ring.get_nowait() for _ in range(len(ring))]
    assert got == items[: len(got)], "the first was lost"
    assert len(got) == 2 or (trial.failed and len(got) < 2), got  # the handler itself may have failed
    assert len(got) == put_in, "one was lost"
    works(ring)


@case
def ring_close(trial: Trial) -> None:
    ring: RingBuffer[Any] = RingBuffer(2)
    item = trial.thing()
    ring.put(item)
    if trial(ring.close) is not FAILED:
        assert ring.closed
    ring.close()
    assert list(ring) == [item]


@case
def ring_shutdown(trial: Trial) -> None:
    ring: RingBuffer[Any] = RingBuffer(2)
    ring.put(trial.thing())
    trial(ring.shutdown, immediate=True)
    ring.shutdown(immediate=True)
    assert list(ring) == []


@case
def ring_observations(trial: Trial) -> None:
    ring: RingBuffer[Any] = RingBuffer(2)
    ring.put(trial.thing())
    trial(lambda: (len(ring), ring.qsize(), ring.empty(), ring.full(), ring.capacity, ring.closed, repr(ring)))
    works(ring)


# ----------------------------------------------------------------------------------------------------------------
# SubscriptionRing

def circle(trial: Trial) -> tuple[SubscriptionRing[Any], list[Any]]:
    ring: SubscriptionRing[Any] = SubscriptionRing()
    things = [trial.thing() for _ in range(3)]
    for thing in things:
        ring.add(thing)
    return ring, things


@case
def circle_new(trial: Trial) -> None:
    ring = trial(SubscriptionRing)
    assert ring is FAILED or len(ring) == 0


@case
def circle_add(trial: Trial) -> None:
    ring, things = circle(trial)
    more = trial.thing()
    if trial(ring.add, more) is not FAILED:
        things.append(more)
    assert list(ring) == things
    assert len(ring) == len(things)


@case
def circle_remove(trial: Trial) -> None:
    ring, things = circle(trial)
    if trial(ring.remove, things[1]) is not FAILED:
        del things[1]
    assert list(ring) == things
    assert len(ring) == len(things)


@case
def circle_turn(trial: Trial) -> None:
    ring, things = circle(trial)
    turned = trial(lambda: (ring.current, ring.next(), ring.take(), len(ring), things[0] in ring))
    assert turned is FAILED or turned == (things[0], things[1], things[1], 3, True)
    assert sorted(map(id, ring)) == sorted(map(id, things))


@case
def circle_walk(trial: Trial) -> None:
    ring, things = circle(trial)
    walked = trial(lambda: list(ring))
    assert walked is FAILED or walked == things
    trial(ring.do, id)
    assert list(ring) == things


# ----------------------------------------------------------------------------------------------------------------
# Hub and Subscription

@case
def hub_new(trial: Trial) -> None:
    hub = trial(Hub, buffer=2)
    if hub is not FAILED:
        assert hub.signal(1) is None


@case
def hub_subscribe(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=2)
    sub = trial(hub.subscribe)
    # One that was not returned may not be in the ring: nobody would read it, and a "block" would wait for ever.
    assert len(hub) == (sub is not FAILED)
    assert hub.broadcast(1) == (sub is not FAILED)


@case
def hub_unsubscribe(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=2)
    sub = hub.subscribe()
    item = trial.thing()
    hub.broadcast(item)
    trial(hub.unsubscribe, sub)
    hub.unsubscribe(sub)
    sub.close()
    assert len(hub) == 0
    assert list(sub) == [item]


@case
def hub_signal(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=1)
    subs = [hub.subscribe(), hub.subscribe()]
    item = trial.thing()
    to = trial(hub.signal, item)
    if to is not FAILED:
        assert to in subs
        assert to.get_nowait() is item
    assert sum(map(len, subs)) == 0
    assert hub.broadcast(None) == 2


def full_hub(trial: Trial, overflow: Any) -> tuple[Hub[Any], list[Subscription[Any]], Any]:
    hub: Hub[Any] = Hub(buffer=1, overflow=overflow)
    subs = [hub.subscribe(), hub.subscribe()]
    old = trial.thing()
    hub.broadcast(old)
    return hub, subs, old


@case
def hub_signal_full(trial: Trial) -> None:
    hub, subs, old = full_hub(trial, "block")
    item = trial.thing()
    trial.raising(queue.Full, call=lambda: hub.signal(item, timeout=0.0001))
    assert [sub.get_nowait() for sub in subs] == [old, old]
    assert hub.broadcast(None) == 2


@case
def hub_signal_drop_oldest(trial: Trial) -> None:
    hub, subs, old = full_hub(trial, "drop_oldest")
    item = trial.thing()
    to = trial(hub.signal, item)
    got = [sub.get_nowait() for sub in subs]
    assert got.count(item) == (to is not FAILED)
    assert got.count(old) == 1 + (to is FAILED)


@case
def hub_broadcast(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=1)
    subs = [hub.subscribe(), hub.subscribe()]
    item = trial.thing()
    count = trial(hub.broadcast, item)
    got = [sub.get_nowait() for sub in subs if len(sub)]
    assert got == [item] * len(got)
    assert count is FAILED or count == len(got) == 2
    assert hub.broadcast(None) == 2


@case
def hub_broadcast_full(trial: Trial) -> None:
    hub, subs, old = full_hub(trial, "block")
    item = trial.thing()
    trial.raising(queue.Full, call=lambda: hub.broadcast(item, timeout=0.0001))
    assert [sub.get_nowait() for sub in subs] == [old, old]


@case
def hub_broadcast_drop_oldest(trial: Trial) -> None:
    hub, subs, old = full_hub(trial, "drop_oldest")
    item = trial.thing()
    count = trial(hub.broadcast, item)
    got = [sub.get_nowait() for sub in subs]
    assert got.count(item) + got.count(old) == 2
    assert count is FAILED or got.count(item) == count == 2
    assert sum(sub.dropped for sub in subs) == got.count(item)


@case
def hub_close(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=2)
    subs = [hub.subscribe(), hub.subscribe()]
    item = trial.thing()
    hub.broadcast(item)
    trial(hub.close)
    hub.close()
    assert hub.closed
    assert [list(sub) for sub in subs] == [[item], [item]]


@case
def subscription_reads(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=4)
    sub = hub.subscribe()
    items = [trial.thing() for _ in range(4)]
    for item in items:
        hub.broadcast(item)
    got = [trial(sub.get), trial(sub.get_nowait), trial(sub.__next__), trial(sub.get_many)]
    flat = [one for each in got if each is not FAILED for one in (each if isinstance(each, list) else [each])]
    assert flat + [sub.get_nowait() for _ in range(len(sub))] == items


@case
def subscription_close(trial: Trial) -> None:
    hub: Hub[Any] = Hub(buffer=4)
    sub = hub.subscribe()
    trial(sub.close)
    sub.close()
    assert sub.closed
    assert len(hub) == 0


# ----------------------------------------------------------------------------------------------------------------
# Operation and Task

class Job(Operation):
    def __init__(self, thing: Any = None) -> None:
        self.thing = thing


@case
def task_new(trial: Trial) -> None:
    task = trial(Task, pow, 2, 5)
    if task is not FAILED:
        task.run()
        assert task.value == 32


def fails() -> None:
    raise ValueError("it was to fail")


@case
def task_run(trial: Trial) -> None:
    task = Task(pow, 2, 5)
    trial(task.run)
    task.run()
    assert task.value == 32


@case
def task_run_failing(trial: Trial) -> None:
    trial(Task(fails).run)


@case
def operation_wait(trial: Trial) -> None:
    op = Job(trial.thing())
    waited = trial(op.wait, 0.0001)
    assert waited in (FAILED, False)
    op.done()
    assert op.wait()


@case
def operation_done(trial: Trial) -> None:
    op = Job(trial.thing())
    trial(op.done)
    op.done()
    assert op.wait()


@case
def operation_cancel(trial: Trial) -> None:
    op = Job(trial.thing())
    trial(op.cancel)
    op.cancel()
    assert op.outcome is Outcome.CANCELLED
    assert op.wait()


@case
def operation_check(trial: Trial) -> None:
    op = Job(trial.thing())
    trial.raising(InvalidStateError, call=op.check)
    op.cancel()
    trial.raising(CancelledError, call=op.check)


@case
def operation_reset(trial: Trial) -> None:
    op = Job(trial.thing())
    op.cancel()
    trial(op.reset)
    op.reset()
    assert op.outcome is Outcome.PENDING
    assert not op.wait(0)


@case
def operation_observations(trial: Trial) -> None:
    op = Job(trial.thing())
    trial(lambda: (op.outcome, op.error, op.tries, repr(op)))
    with contextlib.suppress(pickle.PickleError):  # what pickle makes of some
        copied = trial(lambda: pickle.loads(pickle.dumps(Task(pow, 2, 3))))
        assert copied is FAILED or copied.args == (2, 3)


# ----------------------------------------------------------------------------------------------------------------
# WorkerPool and Stream. The workers stand still while the call is made, unless it says otherwise, so that it is the
# call's own allocations that fail.

class Gate(Operation):
    """Keeps its worker until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()


class Hand(TaskWorker):
    def process(self, op: Any) -> None:
        if isinstance(op, Gate):
            op.reached.set()
            op.opened.wait()
        elif isinstance(op, Task):
            op.run()


def over(pool: WorkerPool[Any], *, lost: int = 0) -> None:
    """The pool ends, and its books agree: all that was accepted has an outcome."""
    pool.shutdown()
    stats = pool.stats()
    assert stats.queued == stats.running == stats.delayed == 0, stats
    assert stats.accepted == stats.succeeded + stats.failed + stats.cancelled, stats


@contextlib.contextmanager
def standing(workers: int = 1) -> Iterator[WorkerPool[Any]]:
    """A pool all of whose workers stand still until the block ends; then the pool does."""
    pool: WorkerPool[Any] = WorkerPool([Hand() for _ in range(workers)], queue_size=8)
    pool.start()
    gates = [Gate() for _ in range(workers)]
    for gate in gates:
        pool.do(gate)
    for gate in gates:
        gate.reached.wait()
    try:
        yield pool
    finally:
        for gate in gates:
            gate.opened.set()
    over(pool)


def settled(op: Operation, accepted: bool) -> None:
    """It is finished if it was accepted, and new otherwise: to be used again."""
    if accepted:
        assert op.wait(20)
        assert op.outcome in (Outcome.SUCCEEDED, Outcome.CANCELLED)
    else:
        assert op.outcome is Outcome.PENDING
        assert not op.wait(0)
        assert op.cancel()


@case
def pool_new(trial: Trial) -> None:
    hand = trial.watch(Hand())
    pool = trial.raising(RuntimeError, call=lambda: WorkerPool([hand], queue_size=2), or_not=True)  # "allocate lock"
    if pool in (FAILED, None):
        pool = WorkerPool([hand], queue_size=2)  # it belongs to nobody


@case
def pool_do(trial: Trial) -> None:
    op = Job(trial.thing())
    with standing() as pool:
        outcome = trial(pool.do, op)
    settled(op, outcome is not FAILED)


@case
def pool_do_full(trial: Trial) -> None:
    op = Job(trial.thing())
    with standing() as pool:
        for _ in range(8):
            pool.do(Job())
        trial.raising(queue.Full, call=lambda: pool.do(op, timeout=0.0001))
    settled(op, False)


@case
def pool_do_stopped(trial: Trial) -> None:
    op = Job(trial.thing())
    pool: WorkerPool[Any] = WorkerPool([Hand()])
    trial.raising(PoolNotRunning, call=lambda: pool.do(op))
    settled(op, False)


@case
def pool_execute(trial: Trial) -> None:
    ops = [Job(trial.thing()) for _ in range(3)]
    with standing() as pool:
        stream = trial(pool.execute, ops)
    if stream is not FAILED:
        assert {*stream} == {*ops}
    elif ops[0].outcome is not Outcome.PENDING or not ops[0].cancel():
        for op in ops:  # accepted, and the stream could not be made: they are done, all of them
            settled(op, True)
    else:
        for op in ops[1:]:
            settled(op, False)


@case
def pool_execute_refused(trial: Trial) -> None:
    """The third is none, so the first two must be new again, whatever fails on the way back."""
    ops = [Job(trial.thing()) for _ in range(2)]
    with standing() as pool:
        trial.raising(TypeError, call=lambda: pool.execute([*ops, 3]))
    for op in ops:
        settled(op, False)


def wrapping(trial: Trial, source: Callable[[list[Any]], Any], **options: Any) -> None:
    ops = [Job(trial.thing()) for _ in range(3)]
    made = source(ops)
    with standing() as pool:
        stream = trial(pool.wrap, made, buffer=4, **options)
        if stream is not FAILED and isinstance(made, RingBuffer):
            made.close()
    if stream is not FAILED:
        with contextlib.suppress(PoolNotRunning):  # an iterable is drawn by its reader, who comes too late here
            got = list(stream)
            assert {*got} == {*ops}
    for op in ops:
        if op.outcome is Outcome.PENDING:
            settled(op, False)


@case
def pool_wrap(trial: Trial) -> None:
    wrapping(trial, iter)


@case
def pool_wrap_ordered(trial: Trial) -> None:
    wrapping(trial, iter, ordered=True)


@case
def pool_wrap_ring(trial: Trial) -> None:
    def ring(ops: list[Any]) -> RingBuffer[Any]:
        made: RingBuffer[Any] = RingBuffer(4)
        made.put_many(ops)
        return made

    wrapping(trial, ring)


@case
def pool_cancel(trial: Trial) -> None:
    op = Job(trial.thing())
    with standing() as pool:
        pool.do(op)
        trial(op.cancel)
    settled(op, True)


@case
def pool_stats(trial: Trial) -> None:
    with standing() as pool:
        trial(pool.stats)
        trial(repr, pool)


@case
def pool_shutdown_at_once(trial: Trial) -> None:
    ops = [Job(trial.thing()) for _ in range(2)]
    with standing() as pool:
        for op in ops:
            pool.do(op)
        trial(pool.shutdown, False, cancel_pending=True)
    for op in ops:
        settled(op, True)


@forks
@alone
def pool_shutdown(trial: Trial) -> None:
    op = Job(trial.thing())
    pool: WorkerPool[Any] = WorkerPool([Hand(), Hand()])
    pool.start()
    pool.do(op)
    with contextlib.suppress(BrokenPool, RuntimeError):  # threading's own: "can't allocate lock"
        trial(pool.shutdown)
    over(pool)
    assert op.wait(20)


@case
def stream_reads(trial: Trial) -> None:
    ops = [Job(trial.thing()) for _ in range(5)]
    pool: WorkerPool[Any] = WorkerPool([Hand()])
    with pool:
        stream = pool.execute(ops)
        for op in ops:
            op.wait()
    got = [trial(stream.__next__), trial(stream.get), trial(stream.get_many, 2), trial(stream.get_many)]
    trial(lambda: (len(stream), stream.total, stream.closed, repr(stream)))
    flat = [one for each in got if each is not FAILED for one in (each if isinstance(each, list) else [each])]
    assert flat + list(stream) == ops


@case
def stream_draws(trial: Trial) -> None:
    ops = [Job(trial.thing()) for _ in range(3)]
    with standing() as pool:
        stream = pool.wrap(iter(ops), buffer=8)
        with contextlib.suppress(queue.Empty):
            trial(stream.get, 0.0001)
    rest = []
    with contextlib.suppress(MemoryError, PoolNotRunning):  # what ends the source, that is what its reader gets
        rest = list(stream)
    for op in ops:
        assert rest.count(op) == (op.outcome is Outcome.SUCCEEDED)


@case
def stream_close(trial: Trial) -> None:
    ops = [Job(trial.thing()) for _ in range(3)]
    with standing() as pool:
        stream = pool.execute(ops)
        trial(stream.close)
        stream.close()
    for op in ops:
        settled(op, True)


@case
@alone
def pool_work(trial: Trial) -> None:
    """Everything may fail here, on the workers' threads too: an operation still comes to an end."""
    ops = [Job(trial.thing()), Task(pow, 2, 5), Task(fails)]
    pool: WorkerPool[Any] = WorkerPool([Hand(), Hand()], max_restarts=None, restart_pause=0)
    pool.start()
    gates = [Gate(), Gate()]  # both workers have come up, beyond threading's own locks
    for gate in gates:
        pool.do(gate)
    for gate in gates:
        gate.reached.wait()
    for gate in gates:
        gate.opened.set()
        gate.wait()
    accepted: list[Any] = []

    def work() -> None:
        for op in ops:
            pool.do(op)
            accepted.append(op)
            op.wait(5)

    with contextlib.suppress(BrokenPool, PoolNotRunning):
        trial(work)
    over(pool)
    for op in ops[: len(accepted)]:
        assert op.wait(20)
        assert op.outcome is not Outcome.PENDING
        _ = op.error


@case
def pool_do_from_a_worker(trial: Trial) -> None:
    op = Job(trial.thing())
    outcome: list[Any] = []
    pool: WorkerPool[Any] = WorkerPool([Hand(), Hand()])
    with pool:
        task = Task(lambda: outcome.append(trial(pool.do, op)))
        pool.do(task).wait()
        assert task.error is None
    over(pool)
    settled(op, outcome[0] is not FAILED)


@forks
@alone
def pool_start(trial: Trial) -> None:
    pool: WorkerPool[Any] = WorkerPool([Hand(), Hand()])
    try:
        trial(pool.start)
    except (WorkerInitError, RuntimeError):  # "can't start new thread"
        trial.failed = True
    pool.shutdown()
    pool.start()
    assert pool.do(Job()).wait(20)
    over(pool)


@forks
@alone
def pool_wrap_thread(trial: Trial) -> None:
    ops = [Job() for _ in range(3)]  # a Thread that could not start may stay in CPython's list of those that do
    with standing() as pool:
        try:
            stream = trial(pool.wrap, iter(ops), feed="thread")
        except RuntimeError:
            trial.failed = True
            stream = FAILED
    if stream is not FAILED:
        with contextlib.suppress(MemoryError, PoolNotRunning):
            list(stream)


# ----------------------------------------------------------------------------------------------------------------

def one(name: str, start: int, stop: int) -> bool:
    """Runs one case; returns whether an allocation failed in a way that the caller saw."""
    trial = Trial(start, stop)
    CASES[name](trial)
    refs, failed = trial.refs, trial.failed
    del trial
    if any(ref() is not None for ref in refs):
        gc.collect()
        left = [ref() for ref in refs if ref() is not None]
        assert not left, f"{len(left)} things are left"
    return failed


DIED = "a thread died in threading.py"


def died(hooked: Any) -> None:
    trace = hooked.exc_traceback
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_filename.endswith("threading.py"):
        print(DIED, file=sys.stderr)
    sys.excepthook(hooked.exc_type, hooked.exc_value, hooked.exc_traceback)


def one_forked(name: str, start: int, stop: int) -> bool:
    """The same in a child. Excused are hangs in CPython's own threading.py, which is not made for this: Thread.start
    waits for ever for a thread that found no memory before it said that it runs; a `with` that finds none between
    taking a Condition's lock and its body leaves that lock taken; and a thread that dies in there, before the first
    line of ours, is waited for by shutdown."""
    reading, writing = os.pipe()
    faulthandler.cancel_dump_traceback_later()  # its thread's lock would be taken for ever in the child
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            os.dup2(writing, 2)
            threading.excepthook = died
            faulthandler.dump_traceback_later(FORKED, exit=True)
            status = 10 + one(name, start, stop)
            faulthandler.cancel_dump_traceback_later()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 1 and "Timeout" in told:
        excused.append(f"{name} {start} {stop}")
        last = told.rpartition("most recent call first")[2].splitlines()
        main = [line.split(", line ") for line in last if "File" in line]
        inside = [(file.rpartition("/")[2].strip('"'), rest.split(" in ")[1]) for file, rest in main]
        locked = inside[0] in (("threading.py", "__enter__"), ("threading.py", "_acquire_restore"))
        if locked or ("threading.py", "start") in inside[:4] or DIED in told:
            return True
    assert status in (10, 11), f"{name} {start} {stop}: status {status}\n{told}"
    return status == 11


def main(name: str, limit: int) -> None:
    logging.getLogger("ringmill").addHandler(logging.NullHandler())
    logging.getLogger("ringmill").propagate = False
    logging.raiseExceptions = False
    unraisable: list[str] = []

    def unraised(hooked: Any) -> None:
        unraisable.append(f"{hooked.exc_type.__name__}: {hooked.err_msg}: {hooked.object!r}")

    def escaped(hooked: Any) -> None:
        unraisable.append(f"{hooked.exc_type.__name__} out of {hooked.thread}")

    one(name, 1 << 20, 1 << 20)  # nothing fails; and what is made once, is made
    one(name, 1 << 20, 1 << 20)
    sys.unraisablehook, threading.excepthook = unraised, escaped
    gc.collect()
    gc.freeze()
    run = one_forked if name in FORKS else one
    cases = failed = 0
    for start in range(limit):
        for stop in (start + 1,) if name in ALONE else (start + 1, start + SPELL):
            faulthandler.dump_traceback_later(WATCHDOG, exit=True)
            try:
                failed += run(name, start, stop)
            except BaseException:
                print(f"{name}: allocations {start} to {stop} failed", file=sys.stderr)
                raise
            cases += 1
    faulthandler.cancel_dump_traceback_later()
    strange = sorted({line for line in unraisable if not line.startswith("MemoryError")})
    figures = {"cases": cases, "failed": failed, "unraisable": len(unraisable), "excused": len(excused)}
    print(json.dumps(figures | {"strange": strange}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
