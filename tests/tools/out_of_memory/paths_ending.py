"""Paths of operations that are cancelled, and of pools that start and end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from ringmill import Closed, Reject, Retry, RingBuffer, WorkerInitError, WorkerPool
from tests.tools.out_of_memory.jobs import (
    Gate,
    Hand,
    Job,
    Told,
    each,
    fails,
    finish,
    ok,
    pool_of,
    retries,
    retries_late,
    stands,
)
from tests.tools.out_of_memory.shortage import LIMIT, Shortage, Waiter, attempt, path, read, wait_for


@path
def cancel_queued(trial: Shortage) -> None:
    pool = pool_of(trial, 1)
    pool.start()
    trial.live = True
    gate = Gate(trial)
    pool.do(gate)
    gate.await_worker()
    ops = each(trial, ok, ok, kind=Told)
    stream = pool.execute(ops)
    waiter = Waiter(ops[0])

    def section() -> None:
        trial.at("cancel")
        ops[0].cancel()
        gate.open()
        wait_for(ops)

    attempt(trial, section)
    gate.open()
    read(stream, ops)
    finish(trial, pool, [gate, *ops], [waiter])


@path
def cancel_retried(trial: Shortage) -> None:
    """It waits for the other worker, which stands still."""
    pool = pool_of(trial, 2)
    pool.start()
    trial.live = True
    gate, turned = Gate(trial), RingBuffer[None](2)

    def turns(hand: Hand, op: Job) -> None:
        if hand.index == gates_hand[0]:
            return
        if not turned.full():
            turned.put_nowait(None)
        raise Reject

    gates_hand: list[int] = []

    def stands_here(hand: Hand, op: Any) -> None:
        gates_hand.append(hand.index)
        stands(hand, op)

    gate.act = stands_here
    pool.do(gate)
    gate.await_worker()
    op = Job(trial, turns)
    stream = pool.execute([op])
    turned.get(timeout=LIMIT)
    waiter = Waiter(op)

    def section() -> None:
        trial.at("cancel")
        op.cancel()
        gate.open()
        wait_for([op])

    attempt(trial, section)
    gate.open()
    read(stream, [op])
    finish(trial, pool, [gate, op], [waiter])


def delayed_op(trial: Shortage, pool: WorkerPool[Any], kind: type[Job] = Job) -> tuple[Job, Any]:
    tried = RingBuffer[None](1)
    trial.quiet = True

    def waits_long(hand: Hand, op: Job) -> None:
        if op.tries < 1:
            tried.put_nowait(None)
            raise Retry(delay=3600)

    op = kind(trial, waits_long)
    stream = pool.execute([op])
    tried.get(timeout=LIMIT)
    while pool.stats().delayed == 0:
        threading.Event().wait(0.001)
    trial.quiet = False
    return op, stream


@path
def cancel_delayed(trial: Shortage) -> None:
    pool = pool_of(trial, 1)
    pool.start()
    trial.live = True
    op, stream = delayed_op(trial, pool, Told)
    waiter = Waiter(op)

    def section() -> None:
        trial.at("cancel")
        op.cancel()

    attempt(trial, section)
    op.cancel()
    read(stream, [op])
    finish(trial, pool, [op], [waiter])


@path
def cancel_while_claimed(trial: Shortage) -> None:
    """A worker claims its place while its done() has not returned: an orphan."""
    pool = pool_of(trial, 1)
    pool.start()
    trial.live = True
    gate = Gate(trial)
    told, go_on = RingBuffer[None](1), RingBuffer[None](1)

    class Slow(Job):
        def done(self) -> None:
            told.put_nowait(None)
            with contextlib.suppress(Closed):
                go_on.get(timeout=LIMIT)
            trial.at("done")
            super().done()

    pool.do(gate)
    gate.await_worker()
    op, after = Slow(trial, ok), Job(trial, ok)
    stream = pool.execute([op, after])
    canceller = threading.Thread(target=op.cancel)
    canceller.start()
    told.get(timeout=LIMIT)

    def section() -> None:
        gate.open()
        after.wait(LIMIT)
        go_on.close()
        op.wait(LIMIT)

    attempt(trial, section)
    gate.open()
    go_on.close()
    canceller.join()
    read(stream, [op, after])
    finish(trial, pool, [gate, op, after])


def shutting(trial: Shortage, how: Callable[[WorkerPool[Any]], Any]) -> None:
    pool = pool_of(trial, 2)
    pool.start()
    trial.live = True
    later, later_stream = delayed_op(trial, pool)
    gates = [Gate(trial), Gate(trial)]
    for gate in gates:
        pool.do(gate)
        gate.await_worker()
    ops = each(trial, ok, retries, fails, retries_late)
    stream = pool.execute(ops)
    waiter = Waiter(ops[1])

    def section() -> None:
        trial.at("shutdown")
        how(pool)
        for gate in gates:
            gate.open()
        later.cancel()
        wait_for(ops)

    attempt(trial, section)
    for gate in gates:
        gate.open()
    later.cancel()
    read(stream, ops)
    read(later_stream, [later])
    finish(trial, pool, [*gates, later, *ops], [waiter])


@path
def shutdown_without_waiting(trial: Shortage) -> None:
    shutting(trial, lambda pool: pool.shutdown(False))


@path
def shutdown_cancels(trial: Shortage) -> None:
    shutting(trial, lambda pool: pool.shutdown(False, cancel_pending=True))


@path
def shutdown_timeout(trial: Shortage) -> None:
    shutting(trial, lambda pool: pool.shutdown(timeout=0.001))


@path
def shutdown_waits(trial: Shortage) -> None:
    pool = pool_of(trial, 2)
    pool.start()
    trial.live = True
    ops = each(trial, ok, retries, fails)
    stream = pool.execute(ops)

    def section() -> None:
        trial.at("shutdown")
        pool.shutdown()

    attempt(trial, section)
    read(stream, ops)
    finish(trial, pool, ops)


@path
def exits(trial: Shortage) -> None:
    """What the hook at the end of the program does."""
    from ringmill import at_exit

    pool = pool_of(trial, 1)
    pool.start()
    trial.live = True
    later, later_stream = delayed_op(trial, pool)
    ops = each(trial, retries, retries_late, fails)
    stream = pool.execute(ops)

    def section() -> None:
        trial.at("exit")
        at_exit._at_exit()

    attempt(trial, section)
    at_exit._at_exit()
    read(stream, ops)
    read(later_stream, [later])
    at_exit._begun = at_exit._ended = False
    finish(trial, pool, [*ops, later])


@path
def starts(trial: Shortage) -> None:
    pool = pool_of(trial, 2)
    trial.live = True

    def section() -> None:
        trial.at("start")
        pool.start()

    attempt(trial, section, WorkerInitError)
    pool.shutdown()
    pool.start()
    op = pool.do(Job(trial, ok))
    finish(trial, pool, [op])


@path
def starts_and_init_fails(trial: Shortage) -> None:
    failing = [True]

    class Fails(Hand):
        def init(self) -> None:
            if failing[0] and self.index == 1:
                self.trial.at("init")
                raise ValueError("init")

    pool = pool_of(trial, 2, Fails)
    attempt(trial, pool.start, WorkerInitError)
    failing[0] = False
    pool.shutdown()
    pool.start()
    op = pool.do(Job(trial, ok))
    finish(trial, pool, [op])
