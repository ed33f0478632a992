"""Paths by how operations get into a pool, and how they come out: `do`, `execute`, `wrap`, their streams."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

from ringmill import Outcome, PoolNotRunning, RingBuffer
from tests.pools import check_at_rest
from tests.tools.out_of_memory.jobs import (
    Act,
    Gate,
    Hand,
    Job,
    each,
    fails,
    finish,
    ok,
    pool_of,
    rejects,
    retries,
)
from tests.tools.out_of_memory.shortage import LIMIT, Read, Shortage, attempt, path, read, threads_of, wait_for


@path
def do(trial: Shortage) -> None:
    pool = pool_of(trial)
    pool.start()
    trial.live = True
    ops = each(trial, ok)

    def section() -> None:
        trial.at("submit")
        pool.do(ops[0])
        wait_for(ops)

    attempt(trial, section)
    finish(trial, pool, ops)


@path
def do_full(trial: Shortage) -> None:
    """It waits for room, which a worker makes."""
    pool = pool_of(trial, 1, queue_size=1)
    pool.start()
    trial.live = True
    gate, second, third = Gate(trial), Job(trial, ok), Job(trial, retries)
    pool.do(gate)
    gate.await_worker()
    pool.do(second)
    begins = threading.Event()

    def opens() -> None:
        begins.wait(0.01)
        gate.open()

    opener = threading.Thread(target=opens)
    opener.start()

    def section() -> None:
        trial.at("submit")
        pool.do(third, LIMIT)
        wait_for([third])

    attempt(trial, section)
    opener.join()
    gate.open()
    finish(trial, pool, [gate, second, third])


@path
def do_from_a_worker(trial: Shortage) -> None:
    pool = pool_of(trial, 1)
    pool.start()
    trial.live = True
    inner = each(trial, ok, retries)

    def submits(hand: Hand, op: Job) -> None:
        trial.at("process")
        for other in inner:
            pool.do(other)

    outer = Job(trial, submits)

    def section() -> None:
        pool.do(outer)
        outer.wait(LIMIT)
        for op in inner:
            op.wait(0.05)

    attempt(trial, section)
    finish(trial, pool, [outer, *inner])


@path
def wait_in_a_worker(trial: Shortage) -> None:
    """A worker waits for what another one does; or is told that no worker is left to do it."""
    pool = pool_of(trial, 2)
    pool.start()
    trial.live = True
    inner = each(trial, ok, ok, fails)

    def waits(hand: Hand, op: Any) -> None:
        trial.at("process")
        if op.inner.outcome is Outcome.PENDING:
            pool.do(op.inner)
            op.inner.wait()

    outer: list[Any] = each(trial, waits, waits, waits)
    for op, other in zip(outer, inner, strict=True):
        op.inner = other
    stream = pool.execute(outer)
    attempt(trial, lambda: wait_for(outer))
    read(stream, outer)
    finish(trial, pool, [*outer, *inner])


@path
def executes_refused(trial: Shortage) -> None:
    pool = pool_of(trial)
    pool.start()
    trial.live = True
    ops = each(trial, ok, ok)
    refused = [*ops, 3]

    def section() -> None:
        trial.at("submit")
        pool.execute(refused)

    attempt(trial, section, TypeError)
    assert not finish(trial, pool, ops)


def wrapping(
    trial: Shortage, source: Callable[[list[Any]], Any], *acts: Act, ordered: bool = False, **options: Any
) -> None:
    pool = pool_of(trial)
    pool.start()
    trial.live = True
    ops = each(trial, *acts)
    came = Read(2 * len(ops))
    made = source(ops)
    stream: list[Any] = [None]

    def section() -> None:
        trial.at("wrap")
        stream[0] = pool.wrap(made, buffer=2, ordered=ordered, **options)  # noqa: F821 - it is deleted after this
        trial.at("read")
        came.all(stream[0])

    attempt(trial, section, LookupError, PoolNotRunning)
    if stream[0] is not None:
        came.rest(stream[0])
    del made, section
    stream.clear()
    accepted = finish(trial, pool, ops)
    came.check([op for op in accepted if op in came.items] if came.count == 0 else accepted, ordered)


@path
def wrap_reader(trial: Shortage) -> None:
    wrapping(trial, iter, ok, fails, retries, ok, rejects)


@path
def wrap_ordered(trial: Shortage) -> None:
    wrapping(trial, iter, retries, ok, fails, retries, ok, ordered=True)


@path
def wrap_thread(trial: Shortage) -> None:
    wrapping(trial, iter, ok, fails, retries, ok, drawn_by="thread")
    trial.refs.clear()  # CPython keeps a thread that could not start (faults.py: kept), and that holds them


def filled(ops: list[Any]) -> RingBuffer[Any]:
    made: RingBuffer[Any] = RingBuffer(8)
    made.put_many(ops)
    made.close()
    return made


@path
def wrap_ring(trial: Shortage) -> None:
    wrapping(trial, filled, ok, fails, retries, ok)


@path
def wrap_ring_ordered(trial: Shortage) -> None:
    wrapping(trial, filled, retries, fails, ok, ok, ordered=True)


@path
def wrap_source_raises(trial: Shortage) -> None:
    """In a list iterator's place stands a class: CPython crashes in a generator that finds no memory."""

    class Source:
        def __init__(self, ops: list[Any]) -> None:
            self.ops = list(ops)

        def __iter__(self) -> Source:
            return self

        def __next__(self) -> Any:
            trial.at("source")
            if not self.ops:
                raise LookupError("the source")
            return self.ops.pop(0)

        def close(self) -> None:
            trial.at("close of the source")

    wrapping(trial, Source, ok, retries)


@path
def chain(trial: Shortage) -> None:
    """What failed upstream comes out untouched."""
    first, second = pool_of(trial, name="first"), pool_of(trial, name="second")
    first.start()
    second.start()
    trial.live = True
    ops = each(trial, ok, fails, ok, fails)
    came = Read(2 * len(ops))
    streams: list[Any] = [None, None]

    def section() -> None:
        trial.at("wrap")
        streams[0] = first.execute(ops)
        streams[1] = second.wrap(streams[0], buffer=2, ordered=True, reset=True)
        trial.at("read")
        came.all(streams[1])

    attempt(trial, section)
    if streams[1] is not None:
        came.rest(streams[1])
    left = Read(2 * len(ops))
    if streams[0] is not None:
        left.rest(streams[0])
    for pool in (first, second):
        pool.shutdown()
        stats = pool.stats()
        check_at_rest(stats)
        assert not threads_of(pool.name)
        if pool is first:
            assert stats.accepted in (0, len(ops))
            assert stats.failed >= stats.accepted // 2
    got = [*came.items[: came.count], *left.items[: left.count]]
    assert len({id(op) for op in got}) == len(got), "one came out twice"
    for op in got:
        assert op.outcome in (Outcome.SUCCEEDED, Outcome.FAILED), op
        assert op.act is ok or op.outcome is Outcome.FAILED, "a failure became a success"


@path
def stream_closed(trial: Shortage) -> None:
    reader_is_gone(trial, "close")


@path
def stream_dropped(trial: Shortage) -> None:
    reader_is_gone(trial, "drop")


def reader_is_gone(trial: Shortage, how: str) -> None:
    pool = pool_of(trial, 1)
    pool.start()
    trial.live = True
    gate = Gate(trial)
    ops = each(trial, ok, retries, fails)
    pool.do(gate)
    gate.await_worker()
    held: list[Any] = [pool.wrap(iter(ops), buffer=8)]
    with contextlib.suppress(queue.Empty):
        held[0].get(0.001)

    def section() -> None:
        trial.at("reader")
        if how == "close":
            held[0].close()
        else:
            held[0] = None
        gate.open()
        gate.wait(LIMIT)

    attempt(trial, section)
    if held[0] is not None:
        held[0].close()
    held.clear()
    gate.open()
    assert len(finish(trial, pool, [gate, *ops])) == 4
