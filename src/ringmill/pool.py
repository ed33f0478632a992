"""WorkerPool: stateful workers that share one queue. PoolStats, WorkerStats: the counters of a run.

Checks arguments, starts and ends runs (supervisor.py), and makes the streams of `wrap`. The calls that every operation
goes through (`do`, `ado`, `execute`) are compiled, in _core/pool/pool_base.pyx.

May import `operation`, `stream`, `worker`, `worker_factory`, `supervisor` and the compiled core.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
import weakref
from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from . import arguments, at_exit
from ._core.platform import clock
from ._core.pool.context import copy_context
from ._core.pool.pool_base import PoolBase
from ._core.pool.stream import draw_on_thread
from ._core.pool.work_source import WorkSource
from ._core.ring.ring_buffer import MAX_CAPACITY, RingBuffer
from ._core.waiting.wait_queue import check_threads
from .arguments import count, describe, seconds
from .blocking_call import BlockingCall, shield
from .errors import PoolNotRunning, WorkerInitError
from .operation import Operation
from .stream import Results, Stream, iterator_of
from .supervisor import Settings, Started, Supervisor
from .worker import Worker
from .worker_factory import list_workers, make_workers

__all__ = ["PoolStats", "Stream", "WorkerPool", "WorkerStats"]

WorkT = TypeVar("WorkT")  # of operations or items
OpT = TypeVar("OpT", bound=Operation)

DRAWN_AHEAD = 1024  # items of a map, where the caller does not say


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """The counters of one worker in one run. All but `running` only grow.

    Attributes:
        name: The name of the worker's thread.
        running: 1 while it runs an operation, otherwise 0.
        succeeded: The number of operations that succeeded.
        failed: The number of operations that failed.
        tries: The number of failed tries.
        restarts: The number of times the worker was restarted.
    """

    name: str
    running: int
    succeeded: int
    failed: int
    tries: int
    restarts: int


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The counters of one run, as one consistent snapshot. All but `queued`, `running` and `delayed` only grow.

    accepted = queued + running + delayed + succeeded + failed + cancelled

    Attributes:
        accepted: The number of operations that the pool has accepted.
        queued: The number of operations that wait in a queue.
        running: The number of operations that a worker runs now.
        delayed: The number of operations that wait for the time of their retry.
        succeeded: The number of operations that succeeded.
        failed: The number of operations that failed.
        cancelled: The number of operations that were cancelled.
        tries: The number of failed tries.
        restarts: The number of times a worker was restarted.
        workers: The same for each worker, by number; those that were lost or have left keep theirs.
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


class WorkerPool(PoolBase, Generic[WorkT]):
    """A set of workers that share one queue, each on a thread of its own.

    The workers need not be of one class. As a context manager, `with` or `async with`, the pool starts and is shut
    down; if the body raises, the work that has not begun is cancelled. A pool can be started again after it was shut
    down. All methods may be called from any thread.

    Args:
        workers: An iterable of Workers; or a Worker class, or another factory of no arguments, such as
            `lambda: Client(url)`, which is called `count` times here, on this thread. Restarts and a second `start` use
            the same objects. A Worker belongs to one pool.
        count: The number of workers to make, from 1. None: as many as there are processors that this process may use.
            Only with a class or a factory.
        queue_size: The number of operations that can wait before `do` blocks, from 1.
        max_tries: How often `process` is called for one operation before it fails with `RetriesExhausted`; None: no
            limit.
        backoff: Called as `backoff(tries)`; returns the seconds to wait before an operation is tried again. None: at
            once. `exponential` makes one.
        max_restarts: How many crashes of one worker within `restart_period` are repaired; after one more, the worker is
            lost. None: no limit. When the last worker is lost, the pool is broken.
        restart_period: Seconds.
        restart_pause: Seconds before the second restart in a row; doubles with each further one, up to 30. The first
            restart is immediate.
        context: Whether `process` and `handle_error` run in a copy of the submitter's context (contextvars), with a
            copy of its decimal context. Variables that `init` set on the worker's thread, and that the submitter's
            context lacks, are set in the copy too. What `process` and `handle_error` set is discarded. For `wrap`, the
            submitter is the thread or task that draws the source; for a RingBuffer, the thread that called `wrap`. By
            default workers run in the context of their thread, which is empty when the thread starts.
        name: The prefix of thread names and log messages.

    Raises:
        TypeError: An argument has the wrong type, the factory needs arguments or returned something else than a Worker,
            or a worker's method is a coroutine function or a generator function.
        ValueError: An argument is out of range, there are no workers, a worker is listed or returned twice, or it
            belongs to another pool.
        BaseException: What the iterable or the factory raised. No worker belongs to the pool then.

    >>> from dataclasses import dataclass
    >>> from ringmill import Operation, Worker, WorkerPool
    >>> @dataclass(slots=True)
    ... class Square(Operation):
    ...     number: int
    ...     result: int = 0
    >>> class Squarer(Worker):
    ...     def process(self, op):
    ...         op.result = op.number**2
    >>> with WorkerPool(Squarer, 4) as pool:
    ...     sorted(op.result for op in pool.execute(Square(n) for n in range(5)))
    [0, 1, 4, 9, 16]
    """

    @overload
    def __init__(
        self,
        workers: Iterable[Worker[WorkT]],
        count: None = None,
        *,
        queue_size: int = 1024,
        max_tries: int | None = 10,
        backoff: Callable[[int], float] | None = None,
        max_restarts: int | None = 5,
        restart_period: float = 60.0,
        restart_pause: float = 0.5,
        context: bool = False,
        name: str = "ringmill",
    ) -> None: ...

    @overload
    def __init__(
        self,
        workers: Callable[[], Worker[WorkT]],
        count: int | None = None,
        *,
        queue_size: int = 1024,
        max_tries: int | None = 10,
        backoff: Callable[[int], float] | None = None,
        max_restarts: int | None = 5,
        restart_period: float = 60.0,
        restart_pause: float = 0.5,
        context: bool = False,
        name: str = "ringmill",
    ) -> None: ...

    def __init__(
        self,
        workers: Iterable[Worker[WorkT]] | Callable[[], Worker[WorkT]],
        count: int | None = None,
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
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {describe(name)}")
        if backoff is not None and not callable(backoff):
            raise TypeError(f"backoff must be callable or None, not {describe(backoff)}")
        if not isinstance(context, bool):
            raise TypeError(f"context must be True or False, not {describe(context)}")
        self._settings = Settings(
            name=name,
            queue_size=arguments.count("queue_size", queue_size, 1, MAX_CAPACITY),
            max_tries=None if max_tries is None else arguments.count("max_tries", max_tries, 1, optional=True),
            backoff=backoff,
            max_restarts=(
                None if max_restarts is None else arguments.count("max_restarts", max_restarts, 0, optional=True)
            ),
            restart_period=seconds("restart_period", restart_period),
            restart_pause=seconds("restart_pause", restart_pause),
            context=context,
        )
        listed, factory = list_workers(workers, count)  # after the other checks, since a factory may open connections
        self._name = name
        self._run: Supervisor | None = None
        self._starting: Supervisor | None = None
        _claim(listed, self)
        self._factory = factory
        self._workers: tuple[Worker[WorkT], ...] = tuple(listed)
        _pools.add(self)

    @property
    def workers(self) -> tuple[Worker[WorkT], ...]:
        """The workers, in the order in which they were given or made."""
        return self._workers

    @property
    def name(self) -> str:
        """The pool's name: the prefix of thread names and log messages."""
        return self._name

    # ------------------------------------------------------------------------------------------------------------
    # start and end

    def start(self, timeout: float | None = None) -> None:
        """Starts each worker on a thread of its own and calls its `init`. Does nothing while the pool runs.

        Blocks until every `init` has returned, and first until the threads of an earlier run have ended. If it raises,
        the workers that have started are cleaned up, the pool is stopped, and it may be started again. May be called
        from any thread but the pool's own workers.

        Args:
            timeout: Seconds to wait; None waits without limit.

        Raises:
            WorkerInitError: An `init` raised; `causes` lists each such worker with its exception.
            TimeoutError: The workers were not ready in time, or another thread is still starting the pool.
            RuntimeError: Threads of an earlier run are still alive after `timeout`; or it was called from a worker of
                this pool; or gevent or eventlet has replaced threads by greenlets.
            PoolNotRunning: The interpreter is shutting down.
        """
        check_threads()
        limit = _limit(timeout)
        deadline = None if limit is None else clock.now() + limit
        runs = self._current(), self._starting
        if [run for run in runs if run is not None and run.core.is_own_thread()]:  # no generator: see stats
            raise RuntimeError(f"{describe(self)} cannot be started from one of its own workers")
        done = self._alone(self._start, deadline)
        if done is None:
            raise TimeoutError(f"{describe(self)}: another thread is still starting it after {timeout} s")
        causes, late = done
        if causes:
            raise _init_error(causes, len(self._workers)) from causes[0][1]
        if late:
            raise TimeoutError(f"{describe(self)} was not ready within {timeout} s")

    def _start(self, deadline: float | None) -> Started:
        """The body of `start`, called by one thread at a time."""
        earlier = self._current()
        if earlier is not None:
            if earlier.verdict and earlier.core.is_open:
                return [], False
            if not earlier.join(deadline):
                stuck = ", ".join([thread.name for thread in earlier.alive()])
                raise RuntimeError(f"{describe(self)} cannot start: threads of an earlier run are still alive: {stuck}")
        if at_exit.has_begun():
            raise self._too_late()
        run = self._starting = Supervisor(self._workers, self._settings)
        try:
            causes, late = run.start(deadline)
        finally:
            self._run = run  # a concurrent shutdown until here counts as one before this start
            self._starting = None
        if not causes and not late:
            try:
                in_time = at_exit.add(run)
                if in_time:
                    self._open(run.core)
            except BaseException:  # no memory, or Ctrl-C: the run cannot be used, so it ends
                run.core.end_now()
                raise
            if not in_time:
                run.end(True, True, None)
                raise self._too_late()
            entering = BlockingCall.running_for(self)
            if entering is not None and not entering.keep():  # an `async with` that was cancelled
                run.end(False, True, None)  # before a next start begins another run
        elif not late:
            run.join(None)
        return causes, late

    def resize(self, count: int) -> None:
        """Changes the number of workers of a pool that was made with a Worker class or a factory.

        More: calls the factory here, on this thread, and starts the new workers. Blocks until each `init` has returned;
        if one raises, the new workers are cleaned up, and the pool keeps its size. Fewer: returns at once; the workers
        that were made last leave, each when it has ended what it runs and been cleaned up. If all others wait for work
        of this pool, a worker stays until that is done. Workers that were lost do not count: they are replaced.

        A worker's number, in its thread's name, is not used again in the run; `stats` keeps the counters of workers
        that have left. If the pool does not run, the change applies from the next `start` on. May be called from any
        thread but the pool's own workers; concurrent calls, and `start`, take effect one after the other.

        Args:
            count: The number of workers, from 1.

        Raises:
            TypeError: The pool was made with a list of workers; or as the constructor, about what the factory returned.
            ValueError: `count` is less than 1; or as the constructor.
            WorkerInitError: An `init` raised; `causes` lists each such worker with its exception.
            RuntimeError: It was called from one of the pool's own workers.
            PoolNotRunning: The pool was shut down meanwhile. The size is as before.
            BrokenPool: The pool is broken. The size is as before.
            BaseException: What the factory raised. The size is as before.
        """
        number = arguments.count("count", count, 1)
        if self._factory is None:
            raise TypeError(
                f"{describe(self)} was made with a list of workers: only a pool made with a Worker class or a factory, "
                "such as WorkerPool(Client, 4), can be resized"
            )
        runs = self._current(), self._starting
        if [run for run in runs if run is not None and run.core.is_own_thread()]:
            raise RuntimeError(f"{describe(self)} cannot be resized from one of its own workers")
        causes = self._alone(functools.partial(self._resize, number), None)
        if causes:
            raise _init_error(causes, len(causes)) from causes[0][1]

    def _resize(self, number: int, deadline: float | None) -> list[tuple[Worker[Any], BaseException]]:
        """The body of `resize`, called by one thread at a time; returns the causes of a failure."""
        assert self._factory is not None
        run = self._current()
        if run is not None and run.core.is_broken:
            raise run.core.refusal()
        if run is not None and not (run.verdict and run.core.is_open):
            run = None
        lost = {id(worker) for worker in run.lost()} if run is not None else set()
        workers = [worker for worker in self._workers if id(worker) not in lost]
        kept, leaving = workers[:number], workers[number:]
        made: list[Worker[WorkT]] = []
        if len(kept) < number:
            made = make_workers(self._factory, number - len(kept), self._workers)
            _claim(made, self)
            if run is not None:
                check_threads()
                causes = run.add_workers(made)
                if causes is None:
                    raise run.core.refusal()
                if causes:
                    return causes
        self._workers = (*kept, *made)
        if run is not None and leaving:
            run.dismiss(leaving)
        return []

    def _too_late(self) -> PoolNotRunning:
        return PoolNotRunning(f"{self!r} cannot be started: the interpreter is shutting down")

    def shutdown(self, wait: bool = True, *, cancel_pending: bool = False, timeout: float | None = None) -> list[WorkT]:
        """Ends the run: accepts no new work, finishes the accepted work, cleans up the workers and joins their threads.

        Streams end after their last operation; wraps draw no more. Blocks until all threads have ended, unless
        `wait=False`. Idempotent; raises nothing on a broken pool; afterwards `start()` works again. May be called from
        any thread.

        A KeyboardInterrupt on the main thread, also one in an operation's `done()` or in a worker's `interrupt()`,
        cancels the work that has not begun, and is raised when the rest is finished. A second one is raised at once.

        Args:
            wait: Whether to wait for the end. With False it returns at once; a later call can wait.
            cancel_pending: Whether operations that have not begun end as CANCELLED instead of being run.
            timeout: Seconds to wait; None waits without limit. Then the operations that are left are cancelled,
                `interrupt` is called for each worker that still runs one, and the log names these workers with their
                stacks.

        Returns:
            The operations that were cancelled.

        Raises:
            RuntimeError: Called with `wait=True` from one of the pool's own workers.
            ValueError: `timeout` is given with `wait=False`.
        """
        # _limit may be None already: an owner's __del__ may shut its pool down as the modules are torn down
        limit = None if timeout is None else _limit(timeout)
        if timeout is not None and not wait:
            raise ValueError(f"timeout={describe(timeout)} needs wait=True")
        run = self._current()
        if run is None:
            return []
        if wait and run.core.is_own_thread():
            raise RuntimeError(f"a worker of {describe(self)} cannot wait for its own end: call shutdown(wait=False)")
        return run.end(wait, cancel_pending, limit)

    def __enter__(self) -> WorkerPool[WorkT]:
        """Starts the pool; returns it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shuts the pool down and waits; if the body raised, cancels the work that has not begun."""
        run = self._current()
        if run is not None and kind is not None and issubclass(kind, KeyboardInterrupt):
            run.end(True, True, None, after_keyboard_interrupt=True)
        else:
            self.shutdown(cancel_pending=kind is not None)

    async def __aenter__(self) -> WorkerPool[WorkT]:
        """Starts the pool without blocking the event loop; returns it."""
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
        """Shuts the pool down without blocking the event loop; if the body raised, cancels the work that has not begun.

        A cancellation of this await cancels the work that has not begun, and is raised when the rest is finished. If no
        thread can be started to wait in, the run is ended first, and `shutdown` is called when it has ended.
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
            message = f"{describe(self)} was dropped while it was running: call shutdown(), or use `with`"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    def _current(self) -> Supervisor | None:
        """The current or last run that this process started; None for one that was inherited through a fork."""
        run = self._run
        return None if run is None or run.core.is_inherited else run

    # ------------------------------------------------------------------------------------------------------------
    # work: `do`, `ado` and `execute` are compiled (_core/pool/pool_base.pyx)

    if TYPE_CHECKING:

        def do(self: WorkerPool[OpT], op: OpT, timeout: float | None = None) -> OpT: ...

        async def ado(self: WorkerPool[OpT], op: OpT) -> OpT: ...

        def execute(self: WorkerPool[OpT], ops: Iterable[OpT]) -> Stream[OpT]: ...

    def wrap(
        self: WorkerPool[OpT],
        source: Iterable[OpT] | AsyncIterable[OpT] | RingBuffer[OpT],
        *,
        buffer: int = 1024,
        ordered: bool = False,
        drawn_by: Literal["reader", "thread"] = "reader",
        reset: bool = False,
    ) -> Stream[OpT]:
        """Streams a source of operations through the workers.

        Never blocks; may be called from any thread. At most `buffer` operations are between source and reader, so a
        slow reader slows the source down, and an endless source needs no more memory than a short one.

        An iterable is drawn lazily by the reading thread, one reader at a time: each read draws one operation to
        replace the one that it takes, and more while nothing is ready. An async iterable is drawn by the reading task,
        so the stream must be read by `async for` or `aget`. A RingBuffer is drawn by the workers as items arrive. A
        read that draws waits for the source; if the source gives its next operation only in answer to a result, use
        `buffer=1`, or a RingBuffer that another task or thread fills.

        Args:
            source: An iterable or async iterable of new operations, or a RingBuffer.
            buffer: The largest number of operations between source and reader, from 1.
            ordered: Whether operations come out in the order of the source, instead of the order in which they end.
            drawn_by: "reader", or "thread" to draw the source on a thread of its own, for sources that block.
            reset: Whether each operation that has succeeded is reset as it is drawn, so that pools can be chained. One
                that failed or was cancelled is not accepted, and comes out in its place as it is.

        Returns:
            The `Stream` on which the operations come out. It ends when the source is exhausted or closed and all its
            operations have ended. An exception of the source is raised once, to one reader, after all that was accepted
            before; the source is closed then, by its `close()` or `aclose()` if it has one.

        Raises:
            PoolNotRunning: The pool does not run.
            TypeError: The source is neither iterable nor a RingBuffer.
            ValueError: `buffer` or `drawn_by` is out of range, or a thread would have to draw an async iterable.
        """
        size = count("buffer", buffer, 1, MAX_CAPACITY)
        if drawn_by not in ("reader", "thread"):
            raise ValueError(f"drawn_by must be 'reader' or 'thread', got {describe(drawn_by)}")
        run = self._current()
        if run is None:
            raise PoolNotRunning(f"{describe(self)} is not running: call start()")
        ready: RingBuffer[OpT] = RingBuffer(size)
        if isinstance(source, RingBuffer) and drawn_by == "reader":
            work_source = WorkSource(
                source, ready, ordered=ordered, external=True, resets=reset, context=copy_context()
            )
            return self._wrap(run.core, work_source, None, False, reset)
        awaits = isinstance(source, AsyncIterable) and not isinstance(source, Iterable)
        if awaits and drawn_by == "thread":
            raise ValueError(
                f"drawn_by='thread' cannot draw an async iterable, which belongs to its loop: {describe(source)}"
            )
        iterator = aiter(source) if isinstance(source, AsyncIterable) and awaits else iterator_of(source)
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

    def map(
        self,
        items: Iterable[WorkT] | AsyncIterable[WorkT],
        *,
        ordered: bool = True,
        buffer: int | None = None,
        errors: Literal["raise", "return", "skip"] = "raise",
    ) -> Results[Any]:
        """Has the workers process each item, and gives what `process` returned.

        Never blocks; may be called from any thread. An exact list or tuple, and a range of up to 10^7 integers, is
        accepted as a whole, and costs no object for each item; its references are copied. Any other iterable, and every
        one if `buffer` is given, is drawn lazily by the reading thread or task, as by `wrap`. The next item goes to
        whichever worker is free. Between two items a worker serves the pool's other sources in turn.

        Retries, `Reject`, `handle_error` and restarts are as for operations. With `context=True` the items run in the
        context of the caller of this method.

        Args:
            items: The items: any objects but Operations.
            ordered: Whether results come in the order of the items, instead of the order in which they end.
            buffer: The largest number of items that are drawn ahead of the reader, from 1. None: 1,024, where the items
                are drawn.
            errors: What a read does with an item's exception: "raise" raises it in the place of the result, and the
                next read goes on; "return" gives the exception object; "skip" leaves it out.

        Returns:
            The `Results`. They end when all items have ended. An exception of the iterable is raised once, to one
            reader, after the results of all that was drawn before; the iterable is closed then.

        Raises:
            PoolNotRunning: The pool does not run.
            BrokenPool: The pool is broken.
            TypeError: `items` is not iterable, or a list, tuple or range of it contains an Operation.
            ValueError: `buffer` or `errors` is out of range.
        """
        size = DRAWN_AHEAD if buffer is None else count("buffer", buffer, 1, MAX_CAPACITY, optional=True)
        if errors not in ("raise", "return", "skip"):
            raise ValueError(f"errors must be 'raise', 'return' or 'skip', got {describe(errors)}")
        ordered = bool(ordered)
        if buffer is None and type(items) in (list, tuple, range):
            results = self._map(items, None, False, ordered, 0, errors)
            if results is not None:
                return results
        awaits = isinstance(items, AsyncIterable) and not isinstance(items, Iterable)
        iterator = aiter(items) if isinstance(items, AsyncIterable) and awaits else iterator_of(items, "items")
        return self._map(items, iterator, awaits, ordered, size, errors)

    def stats(self) -> PoolStats:
        """Returns the counters of the current or the last run, as one consistent snapshot.

        Never blocks, but holds a lock for a time that grows with the number of workers. May be called from any thread.

        Returns:
            The counters; all 0 if the pool has never been started.
        """
        run = self._current()
        if run is None:
            return PoolStats(0, 0, 0, 0, 0, 0, 0, 0, 0, ())
        total, rows = run.core.stats()
        # A list, not a generator: when memory is short, CPython 3.12 and 3.13 crash in a generator whose call fails.
        workers = [WorkerStats(**row) for row in rows]
        return PoolStats(**total, workers=tuple(workers))

    def __repr__(self) -> str:
        run = getattr(self, "_run", None)
        state = "not started" if run is None else run.core.state
        workers = getattr(self, "_workers", ())
        counts = ""
        if run is not None and not run.core.is_inherited:
            total, _ = run.core.stats()
            counts = "".join([f", {total[key]} {key}" for key in ("queued", "running", "delayed") if total[key]])
        return f"<{type(self).__name__} {getattr(self, '_name', '?')!r} {state}, {len(workers)} workers{counts}>"


# ----------------------------------------------------------------------------------------------------------------
# the child of a fork

_pools: weakref.WeakSet[WorkerPool[Any]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Replaces the locks that a thread of the parent may have held; the core does the same with its own."""
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
    """Records that the workers belong to the pool, all or none. By identity: a worker need not be hashable.

    Under the lock no user code is called and no reference is dropped: errors and their messages are made after it.
    """
    claims = []
    for worker in listed:
        # Called with the dead reference, which pop takes for its default. Not an inner function: CPython 3.12 and 3.13
        # crash if there is no memory to make one.
        forget = functools.partial(_claims.pop, id(worker))
        claims.append((weakref.ref(worker, forget), weakref.ref(pool)))
    seen: dict[int, None] = {}
    held: list[Any] = []  # objects that the claims refer to: this may be the last reference
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


def _init_error(causes: list[tuple[Worker[Any], BaseException]], count: int) -> WorkerInitError:
    worker, error = causes[0]
    return WorkerInitError(
        f"{len(causes)} of {count} workers failed to start; the first: {describe(worker)}: {describe(error)}", causes
    )


def _limit(timeout: Any) -> float | None:
    """Returns the seconds, or None for no limit: for None, infinity, and more than a lock can wait."""
    if timeout is None:
        return None
    limit = seconds("timeout", timeout, optional=True)
    return limit if limit <= threading.TIMEOUT_MAX else None
