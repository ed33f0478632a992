"""The calls of WorkerPool and of Stream.

The workers stand still while the call is made, unless it says otherwise, so that it is the call's own allocations that
fail.
"""

from __future__ import annotations

import contextlib
import contextvars
import decimal
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ringmill import (
    BrokenPool,
    Operation,
    Outcome,
    PoolNotRunning,
    RingBuffer,
    Task,
    TaskWorker,
    WorkerInitError,
    WorkerPool,
)
from tests.pools import check_at_rest
from tests.tools.out_of_memory.operations import Job, fails
from tests.tools.out_of_memory.trial import FAILED, Trial, alone, case, forks


class Gate(Operation):
    """Keeps its worker until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()


class Crash(Operation):
    """Breaks its worker."""


class JobWorker(TaskWorker):
    def process(self, op: Any) -> None:
        if isinstance(op, Gate):
            op.reached.set()
            op.opened.wait()
        elif isinstance(op, Crash):
            raise KeyboardInterrupt("to be a crash")
        elif isinstance(op, Task):
            op.run()


def over(pool: WorkerPool[Any]) -> None:
    """The pool ends, and its counts agree: all that was accepted has an outcome."""
    pool.shutdown()
    check_at_rest(pool.stats())


@contextlib.contextmanager
def standing(workers: int = 1, context: bool = False) -> Iterator[WorkerPool[Any]]:
    """A pool all of whose workers stand still until the block ends; then the pool does."""
    pool: WorkerPool[Any] = WorkerPool([JobWorker() for _ in range(workers)], queue_size=8, context=context)
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


def check_end(op: Operation, accepted: bool) -> None:
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
    worker = trial.watch(JobWorker())
    pool = trial.raising(RuntimeError, call=lambda: WorkerPool([worker], queue_size=2), or_not=True)  # "allocate lock"
    if pool in (FAILED, None):
        pool = WorkerPool([worker], queue_size=2)  # it belongs to no pool


@case
def pool_new_by_factory(trial: Trial) -> None:
    workers = [trial.watch(JobWorker()) for _ in range(3)]
    factory = iter(workers).__next__
    pool = trial.raising(RuntimeError, call=lambda: WorkerPool(factory, 3, queue_size=2), or_not=True)
    if pool in (FAILED, None):
        pool = WorkerPool(workers, queue_size=2)  # no pool has them
    assert pool.workers == tuple(workers)


@case
def pool_do(trial: Trial) -> None:
    op = Job(trial.thing())
    with standing() as pool:
        outcome = trial(pool.do, op)
    check_end(op, outcome is not FAILED)


variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")


@contextlib.contextmanager
def capturing() -> Iterator[WorkerPool[Any]]:
    """As `standing`, with the contexts of submitters, which have a variable and a decimal context."""
    variable.set(1)
    decimal.getcontext()
    with standing(context=True) as pool:
        yield pool


@case
@alone
def pool_do_context(trial: Trial) -> None:
    op = Job(trial.thing())
    with capturing() as pool:
        outcome = trial(pool.do, op)
    check_end(op, outcome is not FAILED)


@case
def pool_do_full(trial: Trial) -> None:
    op = Job(trial.thing())
    with standing() as pool:
        for _ in range(8):
            pool.do(Job())
        trial.raising(queue.Full, call=lambda: pool.do(op, timeout=0.0001))
    check_end(op, False)


@case
def pool_do_stopped(trial: Trial) -> None:
    op = Job(trial.thing())
    pool: WorkerPool[Any] = WorkerPool([JobWorker()])
    trial.raising(PoolNotRunning, call=lambda: pool.do(op))
    check_end(op, False)


def executing(trial: Trial, kind: Callable[[list[Any]], Any], pools: Callable[[], Any] = standing) -> None:
    ops = [Job(trial.thing()) for _ in range(3)]
    with pools() as pool:
        stream = trial(pool.execute, kind(ops))
    if stream is not FAILED:
        assert {*stream} == {*ops}
    elif ops[0].outcome is not Outcome.PENDING or not ops[0].cancel():
        for op in ops:  # accepted, and the stream could not be made: they are done, all of them
            check_end(op, True)
    else:
        for op in ops[1:]:
            check_end(op, False)


@case
def pool_execute(trial: Trial) -> None:
    executing(trial, list)


@case
@alone
def pool_execute_context(trial: Trial) -> None:
    executing(trial, list, capturing)


@case
def pool_execute_tuple(trial: Trial) -> None:
    executing(trial, tuple)


@case
def pool_execute_refused(trial: Trial) -> None:
    """The third is none, so the first two must be new again, whatever fails on the way back."""
    ops = [Job(trial.thing()) for _ in range(2)]
    refused = [*ops, 3]
    with standing() as pool:
        trial.raising(TypeError, call=lambda: pool.execute(refused))
    for op in ops:
        check_end(op, False)


def wrapping(
    trial: Trial, source: Callable[[list[Any]], Any], pools: Callable[[], Any] = standing, **options: Any
) -> None:
    ops = [Job(trial.thing()) for _ in range(3)]
    made = source(ops)
    with pools() as pool:
        stream = trial(pool.wrap, made, buffer=4, **options)
        if stream is not FAILED and isinstance(made, RingBuffer):
            made.close()
    if stream is not FAILED:
        with contextlib.suppress(PoolNotRunning):  # an iterable is drawn by its reader, who comes too late here
            got = list(stream)
            assert {*got} == {*ops}
    for op in ops:
        if op.outcome is Outcome.PENDING:
            check_end(op, False)


@case
def pool_wrap(trial: Trial) -> None:
    wrapping(trial, iter)


@case
def pool_wrap_ordered(trial: Trial) -> None:
    wrapping(trial, iter, ordered=True)


def filled(ops: list[Any]) -> RingBuffer[Any]:
    made: RingBuffer[Any] = RingBuffer(4)
    made.put_many(ops)
    return made


@case
def pool_wrap_ring(trial: Trial) -> None:
    wrapping(trial, filled)


@case
@alone
def pool_wrap_ring_context(trial: Trial) -> None:
    wrapping(trial, filled, capturing)


@case
def pool_cancel(trial: Trial) -> None:
    op = Job(trial.thing())
    with standing() as pool:
        pool.do(op)
        trial(op.cancel)
    check_end(op, True)


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
        check_end(op, True)


@case
def pool_shutdown_at_once_in_a_stream(trial: Trial) -> None:
    ops = [Job(trial.thing()) for _ in range(3)]
    with standing() as pool:
        stream = pool.execute(ops)
        trial(pool.shutdown, False, cancel_pending=True)
        pool.shutdown(False, cancel_pending=True)
        got = list(stream)  # they all come out, and it ends
    assert got == ops
    for op in ops:
        check_end(op, True)


@forks
@alone
def pool_breaks(trial: Trial) -> None:
    """The last worker is lost, and what is pending must not be."""
    ops = [Task(fails), *(Job(trial.thing()) for _ in range(3))]
    pool: WorkerPool[Any] = WorkerPool([JobWorker()], max_restarts=0)
    pool.start()
    gate = Gate()
    pool.do(gate)
    gate.reached.wait()
    pool.do(Crash())
    stream = pool.execute(ops)

    def crash() -> None:
        gate.opened.set()
        for op in ops:
            op.wait(20)

    trial(crash)
    gate.opened.set()
    assert {*stream} == {*ops}
    for op in ops:
        assert op.outcome is not Outcome.PENDING
        _ = op.error
    over(pool)


@forks
@alone
def pool_shutdown(trial: Trial) -> None:
    op = Job(trial.thing())
    pool: WorkerPool[Any] = WorkerPool([JobWorker(), JobWorker()])
    pool.start()
    gates = [Gate(), Gate()]  # as in pool_work
    for gate in gates:
        pool.do(gate)
    for gate in gates:
        gate.reached.wait()
    for gate in gates:
        gate.opened.set()
        gate.wait()
    pool.do(op)
    with contextlib.suppress(BrokenPool, RuntimeError):  # threading's own: "can't allocate lock"
        trial(pool.shutdown)
    over(pool)
    assert op.wait(20)


@case
def stream_reads(trial: Trial) -> None:
    ops = [Job(trial.thing()) for _ in range(5)]
    pool: WorkerPool[Any] = WorkerPool([JobWorker()])
    with pool:
        stream = pool.execute(ops)
        for op in ops:
            op.wait()
    got = [trial(stream.__next__), trial(stream.get), trial(stream.get_many, 2), trial(stream.get_many)]
    trial(lambda: (stream.ready, stream.total, stream.closed, repr(stream)))
    flat = [one for each in got if each is not FAILED for one in (each if isinstance(each, list) else [each])]
    assert flat + list(stream) == ops


def drawing(trial: Trial, pools: Callable[[], Any]) -> None:
    ops = [Job(trial.thing()) for _ in range(3)]
    with pools() as pool:
        stream = pool.wrap(iter(ops), buffer=8)
        with contextlib.suppress(queue.Empty):
            trial(stream.get, 0.0001)
    rest = []
    with contextlib.suppress(MemoryError, PoolNotRunning):  # what ends the source, that is what its reader gets
        for op in stream:  # those before the error count
            rest.append(op)
    for op in ops:
        assert rest.count(op) == (op.outcome is Outcome.SUCCEEDED)


@case
def stream_draws(trial: Trial) -> None:
    drawing(trial, standing)


@case
@alone
def stream_draws_context(trial: Trial) -> None:
    drawing(trial, capturing)


@case
def stream_close(trial: Trial) -> None:
    ops = [Job(trial.thing()) for _ in range(3)]
    with standing() as pool:
        stream = pool.execute(ops)
        trial(stream.close)
        stream.close()
    for op in ops:
        check_end(op, True)


@case
@alone
def pool_work(trial: Trial) -> None:
    """Everything may fail here, on the workers' threads too: an operation still comes to an end."""
    working(trial, False)


@case
@alone
def pool_work_context(trial: Trial) -> None:
    variable.set(1)
    decimal.getcontext()
    working(trial, True)


def working(trial: Trial, context: bool) -> None:
    ops = [Job(trial.thing()), Task(pow, 2, 5), Task(fails)]
    pool: WorkerPool[Any] = WorkerPool([JobWorker(), JobWorker()], max_restarts=None, restart_pause=0, context=context)
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
    pool: WorkerPool[Any] = WorkerPool([JobWorker(), JobWorker()])
    with pool:
        task = Task(lambda: outcome.append(trial(pool.do, op)))
        pool.do(task).wait()
        assert task.error is None
    over(pool)
    check_end(op, outcome[0] is not FAILED)


@forks
@alone
def pool_start(trial: Trial) -> None:
    pool: WorkerPool[Any] = WorkerPool([JobWorker(), JobWorker()])
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
            stream = trial(pool.wrap, iter(ops), drawn_by="thread")
        except RuntimeError:
            trial.failed = True
            stream = FAILED
    if stream is not FAILED:
        with contextlib.suppress(MemoryError, PoolNotRunning):
            list(stream)
