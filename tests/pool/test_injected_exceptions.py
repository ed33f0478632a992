"""An exception raised at any line of ringmill's Python code on a worker's thread: nothing is lost, nothing hangs.

A tracer raises it, as a debugger does that quits; `PyThreadState_SetAsyncExc` and the lack of memory do the same at
other places. For each line that a worker's thread executes, with a `process` that returns, fails, retries, rejects
and crashes: every operation ends, once; the counts agree; the pool works on, or says that it is broken; `shutdown`
returns; every `init` has its `cleanup`; no lock is left locked.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import ringmill
from ringmill import BrokenPool, Operation, Outcome, Reject, Retry, Task, Worker, WorkerPool
from tests.threads import LONG, wait_until

OURS = str(Path(ringmill.__file__).parent)

pytestmark = pytest.mark.watchdog(300)


class Job(Operation):
    def __init__(self, what: str) -> None:
        self.what = what
        self.ends = 0

    def done(self) -> None:
        self.ends += 1
        super().done()


class Injected(Exception):
    pass


class Quit(BaseException):
    """As a debugger's, or SystemExit."""


class JobWorker(Worker[Any]):
    retry_on = ConnectionError

    def __init__(self) -> None:
        self.inits = self.cleanups = 0

    def init(self) -> None:
        self.inits += 1

    def process(self, op: Any) -> None:
        if isinstance(op, Task):
            op.run()
        elif op.what == "fails":
            raise ValueError(op.what)
        elif op.what == "retries":
            if op.tries < 2:
                raise Retry
        elif op.what == "delays":
            if op.tries < 1:
                raise Retry(delay=0.0001)
        elif op.what == "retry_on":
            raise ConnectionError
        elif op.what == "rejects":
            raise Reject
        elif op.what == "crashes":
            raise SystemExit
        elif op.what == "odd":
            raise Odd

    def handle_error(self, error: BaseException, op: Any) -> None:
        pass

    def cleanup(self) -> None:
        self.cleanups += 1


class Odd(Exception):
    """Every attribute that code may look at raises."""

    def __getattribute__(self, name: str) -> Any:
        raise LookupError(name)


KINDS = ("returns", "fails", "retries", "delays", "retry_on", "rejects", "crashes", "odd", "task fails", "task retries")


def make(kind: str) -> Any:
    if kind.startswith("task"):
        error = ConnectionError if kind == "task retries" else ValueError

        def fn() -> None:
            raise error

        return Task(fn)
    return Job(kind)


class Tracer:
    """Raises `error` when the worker's threads come to their `number`-th line of ringmill's Python code; or at every
    execution of that line from then on (`stubborn`)."""

    def __init__(self, number: int, error: type[BaseException], stubborn: bool) -> None:
        self.counter = itertools.count(1)
        self.number = number
        self.error = error
        self.stubborn = stubborn
        self.place: tuple[Any, int] | None = None

    def __call__(self, frame: FrameType, event: str, arg: object) -> Tracer | None:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line":
            place = (frame.f_code, frame.f_lineno)
            if self.place is None:
                if next(self.counter) >= self.number:
                    self.place = place
                    raise self.error(f"at line {frame.f_lineno} of {frame.f_code.co_qualname}")
            elif self.stubborn and place == self.place:
                raise self.error(f"again at line {frame.f_lineno} of {frame.f_code.co_qualname}")
        return self


@pytest.fixture
def quiet() -> Iterator[None]:
    # The hooks of pytest run Python code, where the next exception may arrive.
    logging.disable(logging.CRITICAL)
    hook, unraisable_hook = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda _: None  # type: ignore[assignment]
    sys.unraisablehook = lambda _: None
    yield
    gc.collect()  # unread errors are logged when they are collected: here, not in the next test
    threading.excepthook, sys.unraisablehook = hook, unraisable_hook
    logging.disable(logging.NOTSET)


def run_traced(kind: str, number: int, error: type[BaseException], stubborn: bool, restarts: int) -> bool:
    """One pool with one tracer; returns whether the tracer came to raise."""
    workers = [JobWorker(), JobWorker()]
    pool = WorkerPool(workers, max_tries=3, max_restarts=restarts, restart_pause=0)
    tracer = Tracer(number, error, stubborn)
    threading.settrace(tracer)  # type: ignore[arg-type]
    try:
        pool.start()
    except ringmill.WorkerInitError:
        assert tracer.place is not None
        assert [worker.cleanups for worker in workers] == [worker.inits for worker in workers]
        return True
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
    ops: list[Any] = [make("returns"), make(kind), make("returns")]
    try:
        stream = pool.execute(ops)
    except BrokenPool:
        assert tracer.place is not None
        ops, out = [], []
    else:
        out = list(stream)
    assert sorted(map(id, out)) == sorted(map(id, ops))  # each comes out, once
    assert all(op.outcome in (Outcome.SUCCEEDED, Outcome.FAILED) for op in ops)
    assert all(op.wait(LONG) for op in ops)
    assert all(op.ends == 1 for op in ops if isinstance(op, Job))
    for op in ops:
        if op.outcome is Outcome.FAILED:
            assert op.error is not None
    stats = pool.stats()
    pool.shutdown(timeout=LONG)
    assert stats.accepted == stats.succeeded + stats.failed == len(ops)
    assert not pool._run.alive()  # type: ignore[union-attr]
    assert [worker.cleanups for worker in workers] == [worker.inits for worker in workers]
    with pool:  # nothing that the next run needs is left locked
        assert pool.do(Job("returns")).wait(LONG)
    return tracer.place is not None


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("error", "stubborn"), [(Injected, False), (Quit, False), (Injected, True), (Quit, True)])
def test_at_each_line(kind: str, error: type[BaseException], stubborn: bool) -> None:
    number = 1
    while run_traced(kind, number, error, stubborn, restarts=3):
        number += 1
    assert number > 20  # the tracer saw our lines


@pytest.mark.usefixtures("quiet")
def test_exceptions_injected_into_a_worker_that_works(seed: int) -> None:
    """PyThreadState_SetAsyncExc, which comes between any two bytecodes."""
    workers = [JobWorker(), JobWorker()]
    pool = WorkerPool(workers, max_tries=3, max_restarts=None, restart_pause=0)
    pool.start()
    stop = threading.Event()
    inject: Callable[[int, Any], int] = lambda ident, what: ctypes.pythonapi.PyThreadState_SetAsyncExc(  # noqa: E731
        ctypes.c_ulong(ident), ctypes.py_object(what)
    )

    def inject_all_the_time() -> None:
        for error in itertools.cycle([Injected, Quit]):
            for thread in pool._run.threads:  # type: ignore[union-attr]
                if thread.is_alive():  # the identity of one that has ended may be that of a new thread, the timer's
                    inject(thread.ident or 0, error)
            if stop.wait(0.0005):
                return

    injector = threading.Thread(target=inject_all_the_time)
    injector.start()
    try:
        for _ in range(100):
            ops = [make(kind) for kind in KINDS]
            assert sorted(map(id, pool.execute(ops))) == sorted(map(id, ops))
            assert all(op.outcome in (Outcome.SUCCEEDED, Outcome.FAILED) for op in ops)
    finally:
        stop.set()
        injector.join()
    wait_until(lambda: pool.stats().running == 0)
    stats = pool.stats()
    assert stats.accepted == stats.succeeded + stats.failed == 100 * len(KINDS)
    pool.shutdown(timeout=LONG)
    assert not pool._run.alive()  # type: ignore[union-attr]


