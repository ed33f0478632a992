"""Paths by how `process` ends: it returns, fails, retries, rejects, crashes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from ringmill import Reject, Retry, Task, TaskWorker, WorkerPool
from tests.tools.out_of_memory.jobs import (
    Alike,
    Broken,
    Crash,
    Gate,
    Hand,
    Handling,
    Job,
    Raises,
    Told,
    crashes,
    each,
    fails,
    finish,
    never_ends,
    odd,
    odd_retry,
    ok,
    pool_of,
    rejects,
    rejects_first,
    retries,
    retries_late,
    retries_on,
    runs,
)
from tests.tools.out_of_memory.shortage import Shortage, Waiter, attempt, path, read, wait_for


@path
def returns(trial: Shortage) -> None:
    runs(trial, each(trial, ok, ok), pool_of(trial))


@path
def returns_something(trial: Shortage) -> None:
    def something(hand: Hand, op: Job) -> Any:
        op.trial.at("process")
        return 1

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs(trial, each(trial, something, something), pool_of(trial))


@path
def raises(trial: Shortage) -> None:
    runs(trial, each(trial, fails, ok), pool_of(trial))


@path
def raises_told(trial: Shortage) -> None:
    runs(trial, each(trial, fails, ok, kind=Told), pool_of(trial, kind=Handling))


@path
def retry(trial: Shortage) -> None:
    runs(trial, each(trial, retries, ok), pool_of(trial))


@path
def retry_told(trial: Shortage) -> None:
    runs(trial, each(trial, retries, retries, kind=Told), pool_of(trial))


@path
def retry_verbs_raise(trial: Shortage) -> None:
    runs(trial, each(trial, retries, ok, kind=Raises), pool_of(trial, 1))


@path
def retry_alone(trial: Shortage) -> None:
    runs(trial, each(trial, retries, retries), pool_of(trial, 1))


@path
def retry_alike(trial: Shortage) -> None:
    runs(trial, each(trial, retries, ok), pool_of(trial, 3, Alike))


@path
def retry_delayed(trial: Shortage) -> None:
    runs(trial, each(trial, retries_late, retries_late), pool_of(trial))


@path
def retry_delayed_told(trial: Shortage) -> None:
    runs(trial, each(trial, retries_late, kind=Told), pool_of(trial, 1))


@path
def retry_backoff(trial: Shortage) -> None:
    def backoff(tries: int) -> float:
        trial.at("backoff")
        return 0.001

    runs(trial, each(trial, retries, retries), pool_of(trial, backoff=backoff))


@path
def retry_backoff_raises(trial: Shortage) -> None:
    def backoff(tries: int) -> float:
        trial.at("backoff")
        raise ValueError("backoff")

    runs(trial, each(trial, retries, ok), pool_of(trial, kind=Handling, backoff=backoff))


@path
def retry_on(trial: Shortage) -> None:
    runs(trial, each(trial, retries_on, retries_on), pool_of(trial))


@path
def retry_exhausted(trial: Shortage) -> None:
    runs(trial, each(trial, never_ends, ok), pool_of(trial, kind=Handling, max_tries=2))


@path
def retry_odd(trial: Shortage) -> None:
    runs(trial, each(trial, odd_retry, odd), pool_of(trial))


@path
def reject(trial: Shortage) -> None:
    runs(trial, each(trial, rejects_first, rejects_first), pool_of(trial))


@path
def reject_by_all(trial: Shortage) -> None:
    runs(trial, each(trial, rejects, ok), pool_of(trial, kind=Handling))


@path
def handle_error_raises(trial: Shortage) -> None:
    runs(trial, each(trial, fails, ok), pool_of(trial, kind=Broken))


@path
def crash(trial: Shortage) -> None:
    runs(trial, each(trial, crashes, ok, crashes, ok), pool_of(trial))


@path
def crash_told(trial: Shortage) -> None:
    runs(trial, each(trial, crashes, ok, kind=Told), pool_of(trial, 1))


@path
def crash_of_the_last(trial: Shortage) -> None:
    """It breaks the pool, and what is pending fails."""
    pool = pool_of(trial, 1, max_restarts=0)
    pool.start()
    trial.live = True
    gate = Gate(trial)
    ops = each(trial, crashes, ok, retries, fails)
    pool.do(gate)
    gate.await_worker()
    stream = pool.execute(ops)
    waiter = Waiter(ops[-1])

    def section() -> None:
        gate.open()
        wait_for(ops)

    attempt(trial, section)
    gate.open()
    read(stream, ops)
    finish(trial, pool, [gate, *ops], [waiter])


def retiring(trial: Shortage, delay: float) -> None:
    """Retries wait for a worker, and that crashes for the last time."""
    pool = pool_of(trial, 2, max_restarts=0)
    pool.start()
    trial.live = True
    gates = [Gate(trial), Gate(trial)]
    for gate in gates:
        pool.do(gate)
        gate.await_worker()

    def goes_over(hand: Hand, op: Job) -> None:
        if op.tries < 1:
            raise Retry(delay=delay)

    def ends_worker(hand: Hand, op: Job) -> None:
        trial.at("process")
        raise Crash

    ops = each(trial, goes_over, rejects_first, ends_worker, goes_over)
    stream = pool.execute(ops)

    def section() -> None:
        for gate in gates:
            gate.open()
        wait_for(ops)

    attempt(trial, section)
    for gate in gates:
        gate.open()
    read(stream, ops)
    finish(trial, pool, [*gates, *ops])


@path
def retired_worker(trial: Shortage) -> None:
    retiring(trial, 0.0)


@path
def retired_worker_delayed(trial: Shortage) -> None:
    retiring(trial, 0.001)


@path
def init_fails_at_restart(trial: Shortage) -> None:
    class Late(Hand):
        inits = 0

        def init(self) -> None:
            self.inits += 1
            if self.inits == 2 and not self.trial.over:
                self.trial.at("init")
                raise ValueError("init")

    runs(trial, each(trial, crashes, ok, ok), pool_of(trial, 1, Late))


class Runs(TaskWorker):
    retry_on = OSError

    def __init__(self, trial: Shortage) -> None:
        self.trial = trial

    def process(self, op: Any) -> None:
        if isinstance(op, Task):
            op.run()
        else:
            op.act(self, op)


def task_pool(trial: Shortage, **options: Any) -> WorkerPool[Any]:
    return WorkerPool([Runs(trial), Runs(trial)], restart_pause=0, max_restarts=None, **options)


def tasks(trial: Shortage, *functions: Callable[[], Any]) -> list[Any]:
    return [trial.watch(Task(function)) for function in functions]


@path
def task(trial: Shortage) -> None:
    def fine() -> int:
        trial.at("task")
        return 1

    def failing() -> None:
        trial.at("failing task")
        raise ValueError("it was to fail")

    runs(trial, tasks(trial, fine, failing), task_pool(trial))


@path
def task_retries(trial: Shortage) -> None:
    tries = itertools.count()

    def again() -> None:
        if next(tries) < 1:
            trial.at("task")
            raise Retry

    def again_by_kind() -> None:
        trial.at("second task")
        if next(tries) < 4:
            raise OSError("it was to be retried")

    def never() -> None:
        trial.at("rejecting task")
        raise Reject

    runs(trial, tasks(trial, again, again_by_kind, never), task_pool(trial))


@path
def task_crashes(trial: Shortage) -> None:
    def leaves() -> None:
        trial.at("task")
        raise SystemExit

    runs(trial, tasks(trial, leaves, int), task_pool(trial))


@path
def context(trial: Shortage) -> None:
    runs(trial, each(trial, retries, fails, ok), pool_of(trial, kind=Handling, context=True))
