"""Submitting operations, alone or as a batch: accepted, refused, failed, rejected, waited for."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest

from ringmill import (
    Operation,
    OperationReused,
    Outcome,
    PoolNotRunning,
    Reject,
    RetriesExhausted,
    Retry,
    Task,
    TaskWorker,
    Unroutable,
    Worker,
    WorkerPool,
)
from tests.threads import LONG, SHORT, run_threads, start_threads, wait_until


class Number(Operation):
    def __init__(self, number: int) -> None:
        self.number = number
        self.result: int | None = None


class Squarer(Worker[Number]):
    """Squares numbers; negative ones are errors."""

    def __init__(self) -> None:
        self.handled: list[tuple[BaseException, Number]] = []

    def process(self, op: Number) -> None:
        if op.number < 0:
            raise ValueError(op.number)
        op.result = op.number**2

    def handle_error(self, error: BaseException, op: Number) -> None:
        self.handled.append((error, op))


class Gated(Worker[Number]):
    """Begins an operation, says so, and ends it when the gate opens."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)

    def process(self, op: Number) -> None:
        self.begun.release()
        assert self.gate.wait(LONG)
        op.result = op.number**2


class Calling(Worker[Operation]):
    """Calls what the test wants to happen inside a worker."""

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self.call = call

    def process(self, op: Operation) -> None:
        self.call(op)


@pytest.fixture
def gated() -> Iterator[tuple[WorkerPool[Number], Gated]]:
    """A pool of one worker, which is busy, with room for one more operation."""
    worker = Gated()
    pool = WorkerPool([worker], queue_size=1)
    pool.start()
    pool.do(Number(0))
    assert worker.begun.acquire(timeout=LONG)
    yield pool, worker
    worker.gate.set()
    pool.shutdown()


# do


def test_do_returns_the_operation() -> None:
    with WorkerPool([Squarer()]) as pool:
        op = Number(7)
        assert pool.do(op) is op
        assert op.wait(LONG)
        assert (op.outcome, op.error, op.tries, op.result) == (Outcome.SUCCEEDED, None, 0, 49)
        assert op.check() is op


@pytest.mark.parametrize("callers", [1, 4])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("queue_size", [1, 2, 64])
def test_each_operation_is_done_once(queue_size: int, workers: int, callers: int, switch_interval: float) -> None:
    ran: list[int] = []
    with WorkerPool([Calling(lambda op: ran.append(op.number)) for _ in range(workers)], queue_size=queue_size) as pool:

        def call(caller: int) -> list[Operation]:
            return [pool.do(Number(50 * caller + k)) for k in range(50)]

        ops = [op for part in run_threads(*[lambda k=k: call(k) for k in range(callers)]) for op in part]
        assert all(op.wait(LONG) for op in ops)
    assert sorted(ran) == list(range(50 * callers))
    assert all(op.outcome is Outcome.SUCCEEDED for op in ops)


@pytest.mark.parametrize("timeout", [0, SHORT])
def test_do_says_full_and_the_operation_stays_new(gated: tuple[WorkerPool[Number], Gated], timeout: float) -> None:
    pool, worker = gated
    waiting = pool.do(Number(1), timeout)
    refused = Number(2)
    for _ in range(2):
        with pytest.raises(queue.Full):
            pool.do(refused, timeout=timeout)
    assert refused.outcome is Outcome.PENDING
    assert pool.stats().accepted == 2
    worker.gate.set()
    assert waiting.wait(LONG)
    assert pool.do(refused).wait(LONG)
    assert refused.result == 4


def test_do_waits_for_room(gated: tuple[WorkerPool[Number], Gated]) -> None:
    pool, worker = gated
    callers = start_threads(*[lambda: pool.do(Number(3), timeout=LONG)] * 4)
    wait_until(lambda: pool.stats().accepted == 2)  # one of them found room
    worker.gate.set()
    assert [op.wait(LONG) and op.result for op in callers.join()] == [9] * 4


@pytest.mark.parametrize("how", [{}, {"cancel_pending": True}])
def test_a_thread_blocked_in_do_when_the_pool_stops_keeps_its_operation(how: dict[str, bool]) -> None:
    worker = Gated()
    pool = WorkerPool([worker], queue_size=1)
    pool.start()
    pool.do(Number(0))
    assert worker.begun.acquire(timeout=LONG)
    pool.do(Number(0))
    ops = [Number(number) for number in range(4)]
    entered = threading.Semaphore(0)

    def call(op: Number) -> type[BaseException] | None:
        entered.release()
        try:
            pool.do(op)
        except PoolNotRunning as error:
            return type(error)
        return None

    callers = start_threads(*[lambda op=op: call(op) for op in ops])
    for _ in ops:
        assert entered.acquire(timeout=LONG)
    pool.shutdown(wait=False, **how)
    assert callers.join() == [PoolNotRunning] * 4
    worker.gate.set()
    pool.shutdown()
    assert all(op.outcome is Outcome.PENDING for op in ops)
    assert pool.stats().accepted == 2
    with pool:
        assert all(pool.do(op).wait(LONG) for op in ops)
    assert [op.result for op in ops] == [0, 1, 4, 9]


def test_do_from_a_worker_never_blocks() -> None:
    """Every worker submits more than the queue holds, while callers outside keep it full."""
    children = [[Number(number) for number in range(50)] for _ in range(4)]
    parents = [Number(1000 + k) for k in range(4)]

    def process(op: Number) -> None:
        op.result = op.number
        if op.number >= 1000:
            for child in children[op.number - 1000]:
                assert pool.do(child) is child

    with WorkerPool([Calling(process) for _ in range(2)], queue_size=1) as pool:
        outside = run_threads(*[lambda k=k: [pool.do(op) for op in (parents[k], Number(k))] for k in range(4)])
        assert all(op.wait(LONG) for op in [*parents, *chain(*outside, *children)])
    assert pool.stats().succeeded == 4 + 4 + 200


def test_an_operation_submitted_by_a_worker_after_shutdown_is_refused() -> None:
    gate = threading.Event()
    child = Number(1)
    refused: list[type[BaseException]] = []

    def process(op: Number) -> None:
        assert gate.wait(LONG)
        for call in (lambda: pool.do(child), lambda: pool.execute([child]), lambda: pool.wrap([child])):
            try:
                call()
            except PoolNotRunning as error:
                refused.append(type(error))

    pool = WorkerPool([Calling(process)])
    pool.start()
    parent = pool.do(Number(0))
    pool.shutdown(wait=False)
    gate.set()
    pool.shutdown()
    assert refused == [PoolNotRunning] * 3
    assert (parent.outcome, child.outcome) == (Outcome.SUCCEEDED, Outcome.PENDING)
    assert child.cancel()  # no pool has it


# execute


@pytest.mark.parametrize("count", [0, 1, 2, 3, 500])
@pytest.mark.parametrize("workers", [1, 4])
def test_execute_yields_each_once_and_ends(count: int, workers: int) -> None:
    with WorkerPool([Squarer() for _ in range(workers)], queue_size=1) as pool:
        ops = [Number(number if number % 7 else -1) for number in range(count)]
        stream = pool.execute(ops)
        assert stream.total == count
        came = list(stream)
        assert list(stream) == []
    assert sorted(map(id, came)) == sorted(map(id, ops))
    for op in ops:
        if op.number < 0:
            assert (op.outcome, type(op.error)) == (Outcome.FAILED, ValueError)
        else:
            assert (op.outcome, op.result) == (Outcome.SUCCEEDED, op.number**2)


def test_execute_takes_any_iterable() -> None:
    with WorkerPool([Squarer()]) as pool:
        assert sorted(op.result or 0 for op in pool.execute(Number(k) for k in range(4))) == [0, 1, 4, 9]
        assert [op.result for op in pool.execute({1: Number(2)}.values())] == [4]
        with pytest.raises(ZeroDivisionError):
            pool.execute(Number(1 // k) for k in (1, 0))
        assert pool.stats().accepted == 5


def test_execute_is_not_bounded_and_does_not_block(gated: tuple[WorkerPool[Number], Gated]) -> None:
    pool, worker = gated
    stream = pool.execute([Number(k) for k in range(100)])
    assert pool.stats().accepted == 101
    assert pool.do(Number(1), timeout=0).outcome is Outcome.PENDING  # the queue has its own room
    worker.gate.set()
    assert [op.number for op in stream] == list(range(100))


def spoil_with_a_stranger(pool: WorkerPool[Number], ops: list[Any]) -> type[Exception]:
    ops.insert(len(ops) // 2, "stranger")
    return TypeError


def spoil_with_a_duplicate(pool: WorkerPool[Number], ops: list[Any]) -> type[Exception]:
    ops.append(ops[0])
    return OperationReused


def spoil_with_a_finished_one(pool: WorkerPool[Number], ops: list[Any]) -> type[Exception]:
    ops.append(Number(0))
    ops[-1].cancel()
    return OperationReused


def spoil_with_a_pending_one(pool: WorkerPool[Number], ops: list[Any]) -> type[Exception]:
    ops.append(pool.do(Number(0)))
    return OperationReused


@pytest.mark.parametrize(
    "spoil", [spoil_with_a_stranger, spoil_with_a_duplicate, spoil_with_a_finished_one, spoil_with_a_pending_one]
)
def test_execute_accepts_all_or_none(
    spoil: Callable[[WorkerPool[Number], list[Any]], type[Exception]], gated: tuple[WorkerPool[Number], Gated]
) -> None:
    pool, worker = gated
    good = [Number(k) for k in range(5)]
    bad: list[Any] = list(good)
    kind = spoil(pool, bad)
    accepted = pool.stats().accepted
    with pytest.raises(kind):
        pool.execute(bad)
    assert pool.stats().accepted == accepted
    assert all(op.outcome is Outcome.PENDING for op in good)
    worker.gate.set()
    assert [op.result for op in pool.execute(good)] == [0, 1, 4, 9, 16]  # they had stayed new


def test_two_threads_submit_the_same_operations_and_each_is_accepted_once(seed: int, switch_interval: float) -> None:
    ran: list[int] = []
    with WorkerPool([Calling(lambda op: ran.append(op.number)) for _ in range(2)]) as pool:
        for lap in range(30):
            ops = [Number(k) for k in range(6)]

            def batch(number: int, ops: list[Number] = ops, lap: int = lap) -> list[Any]:
                mixed = ops[:]
                random.Random(seed + lap * 10 + number).shuffle(mixed)
                try:
                    return list(pool.execute(mixed))
                except OperationReused:
                    return []

            results = run_threads(lambda: batch(0), lambda: batch(1), lambda: batch(2))
            assert sorted(map(len, results)) in ([0, 0, 0], [0, 0, 6])  # all or none; each may meet another's
            assert sorted(ran) == (list(range(6)) if any(results) else [])
            ran.clear()


# Failures


def test_a_failure_is_recorded_then_handled_then_done() -> None:
    handled_before_done: list[bool] = []

    class Failing(Number):
        def done(self) -> None:
            handled_before_done.append(any(op is self for _, op in worker.handled))

    worker = Squarer()
    with WorkerPool([worker]) as pool:
        ops = list(pool.execute([Failing(-1), Failing(2), Failing(-3)]))
    assert [op.number for op in ops] == [-1, 2, -3]
    assert [op.outcome for op in ops] == [Outcome.FAILED, Outcome.SUCCEEDED, Outcome.FAILED]
    assert handled_before_done == [True, False, True]
    assert [op for _, op in worker.handled] == [ops[0], ops[2]]
    for error, op in worker.handled:
        assert op.error is error
        assert isinstance(error, ValueError)
        assert error.args == (op.number,)
        names, at = [], error.__traceback__
        while at is not None:
            names.append(at.tb_frame.f_code.co_name)
            at = at.tb_next
        assert "process" in names
        with pytest.raises(ValueError, match=str(op.number)) as caught:
            op.check()
        assert caught.value is error


def test_a_failure_counts_no_try_and_is_not_repeated() -> None:
    ran: list[Operation] = []

    def process(op: Operation) -> None:
        ran.append(op)
        raise KeyError("gone")

    with WorkerPool([Calling(process) for _ in range(3)]) as pool:
        (op,) = pool.execute([Number(0)])
    assert len(ran) == 1
    assert (op.tries, type(op.error)) == (0, KeyError)


def test_retries_until_max_tries() -> None:
    ran: list[int] = []

    def process(op: Number) -> None:
        ran.append(op.tries)
        raise Retry("once more")

    with WorkerPool([Calling(process)], max_tries=4) as pool:
        (op,) = pool.execute([Number(0)])
    assert ran == [0, 1, 2, 3]
    assert (op.outcome, op.tries) == (Outcome.FAILED, 4)
    assert isinstance(op.error, RetriesExhausted)
    assert isinstance(op.error.__cause__, Retry)
    assert pool.stats().tries == 4


def test_the_pool_of_tasks() -> None:
    with WorkerPool([TaskWorker(), TaskWorker()]) as pool:
        tasks = [Task(divmod, 7, k) for k in range(4)]
        assert len(list(pool.execute(tasks))) == 4
    assert [task.result(0) for task in tasks[1:]] == [(7, 0), (3, 1), (2, 1)]
    assert isinstance(tasks[0].exception(0), ZeroDivisionError)
    assert pool.stats().restarts == 0


# Workers that differ


def test_a_rejected_operation_goes_to_a_worker_that_takes_it() -> None:
    class Picky(Worker[Number]):
        def __init__(self, remainder: int) -> None:
            self.remainder = remainder
            self.took: list[int] = []

        def process(self, op: Number) -> None:
            if op.number % 3 != self.remainder:
                raise Reject
            self.took.append(op.number)

    workers = [Picky(0), Picky(1), Picky(1)]
    with WorkerPool(workers, queue_size=2) as pool:
        ops = list(pool.execute([Number(k) for k in range(60)]))
    assert len(ops) == 60
    assert sorted(workers[0].took) == list(range(0, 60, 3))
    assert sorted(workers[1].took + workers[2].took) == list(range(1, 60, 3))
    for op in ops:
        assert op.tries == 0
        if op.number % 3 == 2:
            assert isinstance(op.error, Unroutable)
        else:
            assert op.outcome is Outcome.SUCCEEDED
    stats = pool.stats()
    assert (stats.succeeded, stats.failed, stats.tries) == (40, 20, 0)
