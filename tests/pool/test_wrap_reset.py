"""`wrap(reset=True)`, which chains pools: operations that succeeded upstream go on, others pass through unchanged."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest

from ringmill import Operation, OperationReused, Outcome, RingBuffer, Stream, Worker, WorkerPool
from tests.threads import LONG, wait_until

DRAWN_BY = ["reader", "thread", "ring", "async"]


class Number(Operation):
    def __init__(self, number: int) -> None:
        self.number = number
        self.seen_by: list[str] = []


class Noting(Worker[Number]):
    def __init__(self, name: str) -> None:
        self.name = name

    def process(self, op: Number) -> None:
        op.seen_by.append(self.name)
        if self.name == "first" and op.number % 3 == 1:
            raise ValueError(op.number)


def upstream(count: int) -> list[Number]:
    """What a first pool has done: each third has succeeded, failed, been cancelled; in order."""
    ops = [Number(number) for number in range(count)]
    for op in ops[2::3]:
        op.cancel()
    with WorkerPool([Noting("first")]) as pool:
        for op in ops:
            if op.number % 3 != 2:
                pool.do(op).wait(LONG)
    return ops


def chain(pool: WorkerPool[Number], ops: Iterable[Any], drawn_by: str, **options: Any) -> Stream[Number]:
    if drawn_by == "ring":
        items = list(ops)
        ring = RingBuffer[Any](len(items) or 1)
        ring.put_many(items)
        ring.close()
        return pool.wrap(ring, reset=True, **options)
    if drawn_by == "async":
        return pool.wrap(each(ops), reset=True, **options)
    return pool.wrap(ops, drawn_by=drawn_by, reset=True, **options)  # type: ignore[arg-type]


async def each(ops: Iterable[Number]) -> AsyncIterator[Number]:
    for op in ops:
        yield op


def read_all(stream: Stream[Number], drawn_by: str) -> list[Number]:
    if drawn_by != "async":
        return list(stream)

    async def main() -> list[Number]:
        return [op async for op in stream]

    return asyncio.run(main())


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("buffer", [1, 2, 3, 1024])
@pytest.mark.parametrize("workers", [1, 3])
def test_operations_that_did_not_succeed_come_out_unchanged(
    drawn_by: str, ordered: bool, buffer: int, workers: int
) -> None:
    count = 30
    ops = upstream(count)
    before = {op.number: op.outcome for op in ops}
    with WorkerPool([Noting("second") for _ in range(workers)]) as pool:
        stream = chain(pool, ops, drawn_by, buffer=buffer, ordered=ordered)
        came = read_all(stream, drawn_by)
        stats = pool.stats()
        assert stream.total == count
    numbers = [op.number for op in came]
    assert (numbers if ordered else sorted(numbers)) == list(range(count))
    for op in came:
        kind = op.number % 3
        assert op.seen_by == [["first", "second"], ["first"], []][kind]
        assert op.outcome is [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.CANCELLED][kind]
        assert op.outcome is before[op.number]
        assert (type(op.error) is ValueError) == (kind == 1)
    assert (stats.accepted, stats.succeeded, stats.failed, stats.cancelled) == (count // 3, count // 3, 0, 0)


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
@pytest.mark.parametrize("ordered", [False, True])
def test_a_source_in_which_nothing_succeeded(drawn_by: str, ordered: bool) -> None:
    ops = [op for op in upstream(30) if op.outcome is not Outcome.SUCCEEDED]
    with WorkerPool([Noting("second")]) as pool:
        came = read_all(chain(pool, ops, drawn_by, buffer=2, ordered=ordered), drawn_by)
        assert pool.stats().accepted == 0
    assert [op.number for op in came] == [op.number for op in ops]


def test_pools_chained_lazily() -> None:
    with WorkerPool([Noting("first"), Noting("first")]) as one, WorkerPool([Noting("second")]) as two:
        came = list(two.wrap(one.wrap(map(Number, range(100)), ordered=True), reset=True, ordered=True))
    assert [op.number for op in came] == list(range(100))
    assert [op.seen_by for op in came[:2]] == [["first", "second"], ["first"]]
    assert [op.outcome is Outcome.FAILED for op in came] == [number % 3 == 1 for number in range(100)]


@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_those_that_pass_take_a_place_between_source_and_reader(drawn_by: str) -> None:
    drawn = 0

    def source() -> Iterator[Number]:
        nonlocal drawn
        for op in failed:
            drawn += 1
            yield op

    failed = [op for op in upstream(60) if op.outcome is Outcome.FAILED]
    with WorkerPool([Noting("second")]) as pool:
        stream = chain(pool, source(), drawn_by, buffer=3)
        for taken in range(1, 6):
            assert stream.get(LONG) is failed[taken - 1]
            if drawn_by == "thread":
                wait_until(lambda: drawn >= min(20, taken + 3))  # noqa: B023
            assert drawn <= taken + 3 + (drawn_by == "thread")
        stream.close()


def test_a_failed_operation_does_not_wait_for_a_worker() -> None:
    """Unordered, it comes out at once, though the only worker is held; in order it waits for those before it."""
    ops = upstream(2)
    gate = threading.Event()

    class Held(Worker[Number]):
        def process(self, op: Number) -> None:
            assert gate.wait(LONG)

    with WorkerPool([Held()]) as pool:
        stream = pool.wrap(ops, reset=True, drawn_by="thread")
        assert stream.get(LONG) is ops[1]
        gate.set()
        assert stream.get(LONG) is ops[0]
        assert list(stream) == []


@pytest.mark.parametrize("drawn_by", DRAWN_BY)
def test_a_pending_operation_is_refused(drawn_by: str) -> None:
    gate = threading.Event()

    class Held(Worker[Number]):
        def process(self, op: Number) -> None:
            assert gate.wait(LONG)

    with WorkerPool([Held()]) as one, WorkerPool([Noting("second")]) as two:
        pending = one.do(Number(0))
        stream = chain(two, [Number(1), pending], drawn_by)
        try:
            with pytest.raises(OperationReused):
                read_all(stream, drawn_by)
        finally:
            gate.set()
        assert pending.wait(LONG)
    assert pending.outcome is Outcome.SUCCEEDED


def test_the_error_of_an_operation_that_passes_through_counts_as_unread(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged when the operation is collected, as if it had come out of the first pool only."""
    gc.collect()  # what other tests have left
    with WorkerPool([Noting("second")]) as pool, caplog.at_level(logging.ERROR, "ringmill"):
        caplog.clear()
        ops = [op for op in upstream(4) if op.outcome is Outcome.FAILED]
        came = list(pool.wrap(ops, reset=True))
        assert came == ops
        gc.collect()
        assert not caplog.records
        del ops, came
        gc.collect()
    assert [record.getMessage() for record in caplog.records] == ["the error of a failed Number was never read"]
