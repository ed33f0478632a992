"""Operations that hold their workers, and the pools and streams of the tests of `shutdown`."""

from __future__ import annotations

import contextlib
import itertools
import threading
from typing import Any

from ringmill import Operation, PoolNotRunning, Reject, RingBuffer, Stream, Worker, WorkerPool
from tests.threads import LONG


class Job(Operation):
    """Succeeds, or holds its worker until the gate opens and then raises `error`, if any."""

    def __init__(self, gate: Gate | None = None, error: BaseException | None = None) -> None:
        self.gate = gate
        self.error_then = error


class Gate:
    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.opened = threading.Event()


class JobWorker(Worker[Job]):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.mine: list[Gate] | None = None  # whose gates it takes; None: all

    def init(self) -> None:
        self.calls.append("init")

    def process(self, op: Job) -> None:
        if self.mine is not None and op.gate not in self.mine:
            raise Reject
        self.calls.append("process")
        if op.gate is not None:
            op.gate.reached.release()
            assert op.gate.opened.wait(LONG)
        if op.error_then is not None:
            raise op.error_then

    def handle_error(self, error: BaseException, op: Job) -> None:
        pass

    def cleanup(self) -> None:
        self.calls.append("cleanup")


def start(*workers: JobWorker, **settings: Any) -> WorkerPool[Job]:
    pool: WorkerPool[Job] = WorkerPool(workers or [JobWorker()], name="mill", **settings)
    pool.start()
    return pool


def hold(pool: WorkerPool[Job], gate: Gate, error: BaseException | None = None) -> Job:
    """One worker is busy until the gate opens."""
    op = pool.do(Job(gate, error))
    assert gate.reached.acquire(timeout=LONG)
    return op


def endless(pool: WorkerPool[Job], drawn_by: str, buffer: int = 4) -> Stream[Job]:
    """A wrap whose source always has more."""
    if drawn_by == "ring":
        ring = RingBuffer[Job](1000)
        ring.put_many(Job() for _ in range(1000))
        return pool.wrap(ring, buffer=buffer)
    return pool.wrap((Job() for _ in itertools.count()), buffer=buffer, drawn_by=drawn_by)  # type: ignore[arg-type]


def read(stream: Stream[Job]) -> list[Job]:
    """All of a stream that may end with PoolNotRunning."""
    came = []
    with contextlib.suppress(PoolNotRunning):
        came.extend(stream)
    return came
