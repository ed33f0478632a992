"""WorkerPool: stateful workers behind a queue. Stream: where finished operations come out.

May import `operation`, `worker`, `supervisor` and the compiled core.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
import weakref
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from . import at_exit
from ._core.platform import clock
from ._core.pool.context import copy_context
from ._core.pool.work_source import WorkSource
from ._core.ring.ring_buffer import MAX_CAPACITY, RingBuffer
from ._core.pool.stream import PoolBase, Stream, draw_on_thread
from ._core.waiting.wait_queue import check_threads
from .arguments import count, describe, seconds
from .errors import PoolNotRunning, WorkerInitError
from .blocking_call import BlockingCall, shield
from .operation import Operation
from .supervisor import Settings, Started, Supervisor
from .worker import Worker, check_worker, checked_retry_on

__all__ = ["PoolStats", "Stream", "WorkerPool", "WorkerStats"]

OpT = TypeVar("OpT", bound=Operation)


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What one worker has done in this run."""

    name: str
    running: int
    succeeded: int
    failed: int
    tries: int
    restarts: int


@dataclass(frozen=True, slots=True)
class PoolStats:
    """One consistent snapshot of a run: accepted = queued + running + delayed + succeeded + failed + cancelled.

    All but `queued`, `running` and `delayed` only grow.
    """

    accepted: int
    queued: int
    running: int
    delayed: int
    succeeded: int
    failed: int
    cancelled: int
    tries: int
    restarts: int
    workers: tuple[WorkerStats, ...]


class WorkerPool(PoolBase, Generic[OpT]):
    """A set of workers, alike or not, that read operations off one shared queue, each on a thread of its own.

    >>> from ringmill import Operation, Worker, WorkerPool
    >>> class Square(Operation):
    ...     def __init__(self, number):
    ...         self.number = number
    >>> class Squarer(Worker):
    ...     def process(self, op):
    ...         op.result = op.number**2
    >>> with WorkerPool([Squarer() for _ in range(4)]) as pool:
    ...     sorted(op.result for op in pool.execute(Square(n) for n in range(5)))
    [0, 1, 4, 9, 16]

    `queue_size`: how many operations may wait before `do` blocks. `max_tries`: how often `process` is called for one
    operation before it fails with `RetriesExhausted`; None is no limit. `backoff(tries)`: seconds before a failed try
    is repeated; None is at once. `max_restarts`: how many crashes of one worker within `restart_period` seconds are
    repaired; None is no limit. `restart_pause`: seconds before the second restart in a row, doubling up to 30.
    `context=True`: `process` and `handle_error` run in a copy of the submitter's context (contextvars), with a copy of
    its decimal context. Variables that `init` has set on the worker's thread, and that the submitter's context lacks,
    are set in the copy too; what `process` and `handle_error` set is discarded. By default they run in the context of
    the worker's thread, which is empty when the thread starts. For `wrap`, the submitter is the thread or task that
    draws the source; for a RingBuffer, the one that called `wrap`.

    All calls may be made from any thread. A pool can be started again after it was shut down.
    """

    def __init__(
        self,
        workers: Iterable[Worker[OpT]],
        *,
        queue_size: int = 1024,
        max_tries: int | None = 10,
        backoff: Callable[[int], float] | None = None,
        max_restarts: int | None = 5,
        restart_period: float = 60.0,
        restart_pause: float = 0.5,
        context: bool = False,
        name: str = "ringmill",
    ) -> None:
        if isinstance(workers, Worker):
            raise TypeError(f"workers must be an iterable of Workers, got one: {describe(workers)}")
        try:
            listed = [worker for worker in workers]  # noqa: C416 - list() leaks a list: see list_of in run.pyx
        except TypeError:
            raise TypeError(f"workers must be an iterable of Workers, got {describe(workers)}") from None
        if not listed:
            raise ValueError("workers must not be empty")
        known: set[type] = set()
        for worker in listed:
            if not isinstance(worker, Worker):
                raise TypeError(f"workers must be Workers, got {describe(worker)}")
            check_worker(worker, known)
            checked_retry_on(worker)
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {describe(name)}")
        if backoff is not None and not callable(backoff):
            raise TypeError(f"backoff must be callable or None, not {describe(backoff)}")
        if not isinstance(context, bool):
            raise TypeError(f"context must be True or False, not {describe(context)}")
        self._settings = Settings(
            name=name,
            queue_size=count("queue_size", queue_size, 1, MAX_CAPACITY),
            max_tries=None if max_tries is None else count("max_tries", max_tries, 1, optional=True),
            backoff=backoff,
            max_restarts=None if max_restarts is None else count("max_restarts", max_restarts, 0, optional=True),
            restart_period=seconds("restart_period", restart_period),
            restart_pause=seconds("restart_pause", restart_pause),
            context=context,
        )
        self._name = name
        self._run: Supervisor | None = None
        self._starting: Supervisor | None = None
        _claim(listed, self)
        self._workers: tuple[Worker[OpT], ...] = tuple(listed)
        _pools.add(self)

    @property
    def workers(self) -> tuple[Worker[OpT], ...]:
        """The workers, in the order in which they were given."""
        return self._workers

    @property
    def name(self) -> str:
        """The name that its threads and its log lines carry."""
        return self._name

    # ------------------------------------------------------------------------------------------------------------
    # start and end

    def start(self, timeout: float | None = None) -> None:
        """Starts each worker on its thread and returns when all are ready. Does nothing while the pool runs.

        When an `init` raises, those that came up are cleaned up, and `WorkerInitError` carries every cause; the pool is
        stopped then and may be started again. TimeoutError after `timeout` seconds (None: without limit): late inits
        are cleaned up. While a thread of an earlier run still lives it waits for it, up to `timeout`, then raises
        RuntimeError. `PoolNotRunning` once the main thread has ended; RuntimeError where gevent or eventlet has
        replaced threads by greenlets.
        """
        check_threads()
        limit = _limit(timeout)
        deadline = None if limit is None else clock.now() + limit
        runs = self._current(), self._starting
        if [run for run in runs if run is not None and run.core.is_own_thread()]:  # no generator: see stats
            raise RuntimeError(f"{describe(self)} cannot be started from one of its own workers")
        done = self._alone(self._start, deadline)
        if done is None:
            raise TimeoutError(f"{describe(self)} is being started by another thread, for {timeout} s by now")
        causes, late = done
        if causes:
            worker, error = causes[0]
            raise WorkerInitError(
                f"{len(causes)} of {len(self._workers)} workers did not come up; the first: {describe(worker)}: "
                f"{describe(error)}",
                causes,
            ) from error
        if late:
            raise TimeoutError(f"{describe(self)} was not ready within {timeout} s")

    def _start(self, deadline: float | None) -> Started:
        """What `start` does, by one thread at a time."""
        earlier = self._current()
        if earlier is not None:
            if earlier.verdict and earlier.core.is_open:
                return [], False
            if not earlier.join(deadline):
                stuck = ", ".join([thread.name for thread in earlier.alive()])
                raise RuntimeError(f"{describe(self)} cannot start: threads of an earlier run still live: {stuck}")
        if at_exit.has_begun():
            raise self._too_late()
        run = self._starting = Supervisor(self._workers, self._settings)
        try:
            causes, late = run.start(deadline)
        finally:
            self._run = run  # a shutdown that runs beside comes before this start
            self._starting = None
        if not causes and not late:
            try:
                in_time = at_exit.add(run)
                if in_time:
                    self._open(run.core)
            except BaseException:  # no memory, or Ctrl-C: nobody can use it, so it ends
                run.core.end_now()
                raise
            if not in_time:
                run.end(True, True, None)
                raise self._too_late()
            entering = BlockingCall.running_for(self)
            if entering is not None and not entering.keep():  # an `async with` that was cancelled
                run.end(False, True, None)  # before the next start, which begins a run of its own
        elif not late:
            run.join(None)
        return causes, late

    def _too_late(self) -> PoolNotRunning:
        return PoolNotRunning(f"{self!r} cannot be started: the interpreter is shutting down")

    def shutdown(
        self, wait: bool = True, *, cancel_pending: bool = False, timeout: float | None = None
    ) -> list[OpT]:
        """Accepts no new work, finishes what was accepted, cleans up the workers and joins their threads.

        Streams close after their last operation; wraps draw no more. `cancel_pending=True` ends what has not begun as
        CANCELLED and returns it. After `timeout` seconds, what is left is cancelled and returned, and the log names
        each worker that is still stuck, with its stack. `wait=False` returns at once; a later call can wait.
        Idempotent, quiet on a broken pool; afterwards `start()` works again. RuntimeError from one of the pool's own
        workers, unless `wait=False`. A KeyboardInterrupt on the main thread, also one in an operation's `done()` or in
        a worker's `interrupt()`, cancels what has not begun, and is raised when the rest is finished; a second one is
        raised at once.
        """
        limit = _limit(timeout)
        if timeout is not None and not wait:
            raise ValueError(f"timeout={describe(timeout)} needs wait=True")
        run = self._current()
        if run is None:
            return []
        if wait and run.core.is_own_thread():
            raise RuntimeError(f"a worker of {describe(self)} cannot wait for its own end: call shutdown(wait=False)")
        return run.end(wait, cancel_pending, limit)

    def __enter__(self) -> WorkerPool[OpT]:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run = self._current()
        if run is not None and kind is not None and issubclass(kind, KeyboardInterrupt):
            run.end(True, True, None, interrupted=True)
        else:
            self.shutdown(cancel_pending=kind is not None)

    async def __aenter__(self) -> WorkerPool[OpT]:
        """As `with`, without blocking the loop: workers are started, and ended, while other tasks run."""
        check_threads()  # before it waits for another thread
        start = BlockingCall(self.start, f"{self._name}-start", self)
        try:
            await start.result()
        except BaseException:
            if start.leave():
                self.shutdown(wait=False, cancel_pending=True)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A cancelled await cancels what has not begun, and is raised when the rest is finished.

        Where no thread can be started for it, the pool is ended first, and `shutdown` is called when it has.
        """
        run = self._current()
        if run is None or run.core.is_own_thread():
            self.__exit__(kind, error, trace)
            return
        try:
            end = BlockingCall(lambda: self.__exit__(kind, error, trace), f"{self._name}-shutdown")
        except (MemoryError, RuntimeError):
            await self._end_without_thread(run, kind is not None)
            self.__exit__(kind, error, trace)
            return
        try:
            await end.result()
        except BaseException:
            if not end.is_over:
                self.shutdown(wait=False, cancel_pending=True)
                with shield():
                    await end.result()
            raise

    async def _end_without_thread(self, run: Supervisor, cancel_pending: bool) -> None:
        try:
            run.end(False, cancel_pending, None)
            await run.wait_until_ended()
        except BaseException:
            if not run.core.threads.is_over:
                run.end(False, True, None)
                with shield():
                    await run.wait_until_ended()
            raise

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None and run.core.is_open:
            run.core.drain()  # before the warning, which may be an error
            warnings.warn(f"{describe(self)} was dropped while it ran", ResourceWarning, stacklevel=2, source=self)

    def _current(self) -> Supervisor | None:
        """The run that this process has started, if any: a run that was inherited through a fork is none."""
        run = self._run
        return None if run is None or run.core.is_inherited else run

    # ------------------------------------------------------------------------------------------------------------
    # work: `do`, `ado` and `execute` are compiled (_core/stream.pyx)

    if TYPE_CHECKING:

        def do(self, op: OpT, timeout: float | None = None) -> OpT: ...

        async def ado(self, op: OpT) -> OpT: ...

        def execute(self, ops: Iterable[OpT]) -> Stream[OpT]: ...

    def wrap(
        self,
        source: Iterable[OpT] | AsyncIterable[OpT] | RingBuffer[OpT],
        *,
        buffer: int = 1024,
        ordered: bool = False,
        drawn_by: Literal["reader", "thread"] = "reader",
        reset: bool = False,
    ) -> Stream[OpT]:
        """Streams a source through the workers; returns the `Stream` on which its operations come out.

        At most `buffer` operations are between source and reader, so a slow reader slows the source down, and an
        endless source needs no more memory than a short one. An iterable is drawn by the reading thread, lazily, one
        reader at a time: each read draws one for the one that it takes, and more while nothing is ready. With
        `drawn_by="thread"` a thread of its own draws it, for sources that block. A RingBuffer is drawn by the workers as
        items arrive. The stream closes when the source is exhausted, or closed, and all its operations are done; an
        exception in the source is raised once, by one reader, after what was accepted before it; the source is closed then
        (its `close()` or `aclose()` is called, if it has one). `ordered=True`: in the
        order of the source. `reset=True`: each operation that succeeded is reset as it is drawn, so that pools can be
        chained; one that failed or was cancelled before is not accepted, and comes out in its place as it is.

        An async iterable is drawn by the reading task, so the stream must be read by `async for` or `aget`. A read that
        draws waits for the source; where a source gives its next operation only in answer to a result, use `buffer=1`,
        or a RingBuffer that a task of yours fills.

        Never blocks. `PoolNotRunning` when the pool does not run. Safe from any thread.
        """
        size = count("buffer", buffer, 1, MAX_CAPACITY)
        if drawn_by not in ("reader", "thread"):
            raise ValueError(f"drawn_by must be 'reader' or 'thread', got {describe(drawn_by)}")
        run = self._current()
        if run is None:
            raise PoolNotRunning(f"{describe(self)} is not running: call start()")
        ready: RingBuffer[OpT] = RingBuffer(size)
        if isinstance(source, RingBuffer) and drawn_by == "reader":
            work_source = WorkSource(source, ready, ordered=ordered, external=True, resets=reset, context=copy_context())
            return self._wrap(run.core, work_source, None, False, reset)
        awaits = isinstance(source, AsyncIterable) and not isinstance(source, Iterable)
        if awaits and drawn_by == "thread":
            raise ValueError(
                f"drawn_by='thread' cannot draw an async iterable, which belongs to its loop: {describe(source)}"
            )
        iterator = aiter(source) if isinstance(source, AsyncIterable) and awaits else _iterator(source)
        if drawn_by == "reader":
            work_source = WorkSource(RingBuffer(size), ready, ordered=ordered, resets=reset)
            return self._wrap(run.core, work_source, iterator, True, reset, awaits)
        work_source = WorkSource(RingBuffer(size), ready, ordered=ordered, resets=reset, permits=RingBuffer(size))
        stream: Stream[OpT] = self._wrap(run.core, work_source, None, False, reset)
        threading.Thread(
            target=copy_context().run,
            args=(draw_on_thread, run.core, work_source, iterator, reset),
            name=f"{self._name}-source",
            daemon=True,
        ).start()
        return stream

    def stats(self) -> PoolStats:
        """Counts of the current run, or of the last one: one consistent snapshot. Costs a short lock."""
        run = self._current()
        if run is None:
            return PoolStats(0, 0, 0, 0, 0, 0, 0, 0, 0, ())
        total, rows = run.core.stats()
        names = [worker_loop.name for worker_loop in run.core.worker_loops]
        # A list, no generator: where memory is short, CPython 3.12 and 3.13 crash in one whose call fails.
        workers = [WorkerStats(name=name, **row) for name, row in zip(names, rows, strict=True)]
        return PoolStats(**total, workers=tuple(workers))

    def __repr__(self) -> str:
        run = getattr(self, "_run", None)
        state = "not started" if run is None else run.core.state
        workers = getattr(self, "_workers", ())
        counts = ""
        if run is not None and not run.core.is_inherited:
            total, _ = run.core.stats()
            counts = "".join([f", {total[what]} {what}" for what in ("queued", "running", "delayed") if total[what]])
        return f"<{type(self).__name__} {getattr(self, '_name', '?')!r} {state}, {len(workers)} workers{counts}>"


# ----------------------------------------------------------------------------------------------------------------
# the child of a fork

_pools: weakref.WeakSet[WorkerPool[Any]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Locks that a thread of the parent may have held are made anew; the core does the same for its own."""
    global _claims_lock
    _claims_lock = threading.RLock()
    at_exit.after_fork_in_child()
    for pool in list(_pools):
        pool._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# ----------------------------------------------------------------------------------------------------------------
# arguments

_claims: dict[int, tuple[weakref.ref[Worker[Any]], weakref.ref[WorkerPool[Any]]]] = {}
_claims_lock = threading.RLock()  # re-entrant: the collector may run a finalizer that makes a pool


def _claim(listed: list[Any], pool: WorkerPool[Any]) -> None:
    """Makes the workers the pool's, all or none. By identity: a worker need not be hashable.

    Under the lock no user's code is called, and nothing is dropped: messages and errors are made after it.
    """
    claims = []
    for worker in listed:
        # Called with the dead reference, which pop takes for its default; no inner function: where one cannot be
        # made for want of memory, 3.12 and 3.13 crash.
        forget = functools.partial(_claims.pop, id(worker))
        claims.append((weakref.ref(worker, forget), weakref.ref(pool)))
    seen: dict[int, None] = {}
    held: list[Any] = []  # what the claims refer to: it may be the last reference
    taken = owner = None
    with _claims_lock:
        for worker in listed:
            claim = _claims.get(id(worker))
            if claim is not None:
                held += [claim, claim[0](), claim[1]()]
                if held[-2] is worker and held[-1] is not None:
                    taken, owner = worker, held[-1]
                    break
            if id(worker) in seen:
                taken = worker
                break
            seen[id(worker)] = None
        else:
            for worker, claim in zip(listed, claims, strict=True):
                _claims[id(worker)] = claim
    if owner is not None:
        raise ValueError(f"workers: {describe(taken)} belongs to another pool: {describe(owner)}")
    if taken is not None:
        raise ValueError(f"workers: {describe(taken)} is listed twice")


def _limit(timeout: Any) -> float | None:
    """Seconds, or None for no limit, which infinity is as well."""
    if timeout is None:
        return None
    limit = seconds("timeout", timeout, optional=True)
    return limit if limit <= threading.TIMEOUT_MAX else None


def _iterator(source: Any) -> Iterator[Any]:
    try:
        return iter(source)
    except TypeError:
        raise TypeError(f"source must be an iterable or a RingBuffer, got {describe(source)}") from None
