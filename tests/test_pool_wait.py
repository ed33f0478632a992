"""Waiting inside a worker for work of its own pool: allowed while another worker is left to do it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ringmill import Operation, Outcome, Worker, WorkerPool

LONG = 30.0  # seconds; reached only by a test that fails


class Number(Operation):
    def __init__(self, number: int) -> None:
        self.number = number


class Calling(Worker[Operation]):
    """Calls what the test wants to happen inside a worker."""

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self.call = call

    def process(self, op: Operation) -> None:
        self.call(op)


WAITS = [
    pytest.param(lambda pool, op: pool.do(op).wait(LONG), id="wait"),
    pytest.param(lambda pool, op: pool.execute([op]).get(LONG) is op, id="stream-get"),
    pytest.param(lambda pool, op: list(pool.execute([op])) == [op], id="stream-for"),
    pytest.param(lambda pool, op: pool.execute([op]).get_many(timeout=LONG) == [op], id="stream-get_many"),
    pytest.param(lambda pool, op: list(pool.wrap([op])) == [op], id="wrap"),
]


@pytest.mark.parametrize("wait", WAITS)
def test_the_last_worker_cannot_wait_for_its_own_pool(wait: Callable[[Any, Operation], bool]) -> None:
    child = Number(1)

    def process(op: Number) -> None:
        if op is not child:
            wait(pool, child)

    with WorkerPool([Calling(process)]) as pool:
        parent = pool.do(Number(0))
        assert parent.wait(LONG)
    assert (parent.outcome, type(parent.error)) == (Outcome.FAILED, RuntimeError)
    assert child.wait(LONG)  # accepted is accepted


@pytest.mark.parametrize("wait", WAITS)
def test_a_worker_may_wait_while_another_is_left(wait: Callable[[Any, Operation], bool]) -> None:
    child = Number(1)
    saw: list[bool] = []

    def process(op: Number) -> None:
        if op is not child:
            saw.append(wait(pool, child))

    with WorkerPool([Calling(process) for _ in range(2)]) as pool:
        for _ in range(3):
            assert pool.do(Number(0)).wait(LONG)
            child.reset()
    assert saw == [True] * 3


def test_of_workers_that_all_wait_the_last_is_refused() -> None:
    """Three workers wait for an operation that only a fourth could do."""
    child = Number(1)
    meet = threading.Barrier(3)
    refused: list[RuntimeError] = []

    def process(op: Number) -> None:
        if op is not child:
            meet.wait(LONG)
            try:
                assert child.wait(LONG)
            except RuntimeError as error:
                refused.append(error)
                raise

    with WorkerPool([Calling(process) for _ in range(3)]) as pool:
        stream = pool.execute([Number(0), Number(0), Number(0), child])
        outcomes = {id(op): op.outcome for op in stream}
    assert len(refused) == 1
    assert sorted(outcome.name for outcome in outcomes.values()) == ["FAILED"] + ["SUCCEEDED"] * 3
    assert outcomes[id(child)] is Outcome.SUCCEEDED


def test_a_look_is_no_wait() -> None:
    saw: list[Any] = []
    child = Number(1)

    def process(op: Number) -> None:
        if op.number:
            return
        saw.append(op.wait(0))
        pool.do(child)
        saw.append(child.wait(timeout=0))
        stream = pool.execute([Number(2)])
        try:
            stream.get(timeout=0)
        except queue.Empty:
            saw.append("empty")

    with WorkerPool([Calling(process)]) as pool:
        parent = pool.do(Number(0))
        assert parent.wait(LONG)
        parent.check()
        assert child.wait(LONG)
    assert saw == [False, False, "empty"]


def test_waiting_for_another_pool_is_nobodys_business() -> None:
    with WorkerPool([Calling(lambda op: None)], name="inner") as inner:
        came: list[int] = []

        def process(op: Number) -> None:
            came.extend(child.number for child in inner.execute([Number(3)]))

        with WorkerPool([Calling(process)], name="outer") as outer:
            assert outer.do(Number(0)).wait(LONG)
    assert came == [3]
