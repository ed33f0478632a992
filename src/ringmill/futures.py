"""PoolExecutor: the interface of `concurrent.futures.Executor` on a WorkerPool.

Each call is an operation (executor_calls.py). It goes into the retry queue of the run, which is unbounded and keeps the
order, so that `submit` never blocks.

May import `pool`, `executor_calls`, `operation` and the compiled core.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from ._core.platform import clock
from ._core.pool.call_results import map_calls
from ._core.pool.operation import OperationBase
from ._core.pool.run import PoolRun
from .arguments import count, describe, seconds
from .errors import BrokenPool, PoolNotRunning
from .executor_calls import ExecutorState, ExecutorWorker, SubmittedCall
from .pool import WorkerPool

__all__ = ["PoolExecutor"]

_numbers = itertools.count()
_processors = getattr(os, "process_cpu_count", os.cpu_count)
BEGIN_TIMEOUT = 1.0  # seconds in which a free thread surely takes a call, unless all threads wait for calls

P = ParamSpec("P")
R = TypeVar("R")


class PoolExecutor(Executor):
    """A `concurrent.futures.Executor` whose calls cost a fraction of those of `ThreadPoolExecutor`.

    It behaves as `ThreadPoolExecutor`: when `initializer` raises, pending and later calls raise a `BrokenExecutor`;
    when the executor is dropped, pending calls are done, then its threads end; at interpreter exit, pending calls are
    done (after Ctrl-C only those that have begun). The differences: all threads start at the first submission, and each
    calls `initializer` before its first call; a call that waits for another one, when no thread would be left to run
    that, raises RuntimeError; in the child of a fork, `submit` raises RuntimeError.

    All methods may be called from any thread, `submit` and `map` also from the executor's own threads. As a context
    manager the executor is shut down at the end of the body.

    Args:
        max_workers: The number of threads, from 1; None: the number of processors plus 4, at most 32.
        thread_name_prefix: The prefix of the threads' names.
        initializer: Called by each thread before its first call.
        initargs: The arguments of `initializer`.
        context: Whether calls run in a copy of their submitter's context, as in a `WorkerPool`; by default they run in
            the context of their thread, as in `ThreadPoolExecutor`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `max_workers` is less than 1.

    >>> from ringmill import PoolExecutor
    >>> with PoolExecutor(max_workers=4) as executor:
    ...     executor.submit(pow, 2, 8).result()
    ...     list(executor.map(abs, [-1, -2, -3]))
    256
    [1, 2, 3]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        context: bool = False,
    ) -> None:
        if max_workers is None:
            max_workers = min(32, (_processors() or 1) + 4)
        else:
            workers = count("max_workers", max_workers, None, optional=True)
            if workers <= 0:
                raise ValueError(f"max_workers must be greater than 0, got {describe(max_workers)}")
            max_workers = workers
        if not isinstance(thread_name_prefix, str):
            raise TypeError(f"thread_name_prefix must be a string, not {describe(thread_name_prefix)}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable or None, not {describe(initializer)}")
        try:
            initargs = tuple(initargs)
        except TypeError:
            raise TypeError(f"initargs must be an iterable, not {describe(initargs)}") from None
        if not isinstance(context, bool):
            raise TypeError(f"context must be True or False, not {describe(context)}")
        name = thread_name_prefix or f"PoolExecutor-{next(_numbers)}"
        self._max_workers = max_workers
        self._context = context
        self._executor_state = ExecutorState(initializer, initargs, context)
        self._pool = _Pool(
            [ExecutorWorker(self._executor_state, f"{name}_{index}") for index in range(max_workers)],
            name,
        )
        self._core: PoolRun | None = None
        self._closed = False

    # ------------------------------------------------------------------------------------------------------------
    # calls

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Submits the call `fn(*args, **kwargs)` to the executor's threads.

        Never blocks, however many calls are pending. May be called from any thread.

        Args:
            fn: The function.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            The future of the call. What the function raises, KeyboardInterrupt and SystemExit included, is its
            exception.

        Raises:
            RuntimeError: The executor was shut down, the interpreter is shutting down, or this is the child of a fork.
            BrokenPool: The initializer has failed. It is a `BrokenExecutor`.
        """
        core = self._core
        if core is None:
            core = self._start()
        call = SubmittedCall(self._executor_state, fn, args, kwargs)
        future: Future[R] = call.future
        try:
            core.submit(call, self._context)
        except (PoolNotRunning, BrokenPool) as error:
            raise self._refusal(error) from None
        return future

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Calls `fn` concurrently with the items of the iterables, as the built-in `map` does one after another.

        Draws the iterables; does not wait for results, which the iterator does. May be called from any thread.

        Args:
            fn: The function, with one parameter for each iterable.
            iterables: The arguments. They are drawn to the end of the shortest one.
            timeout: Seconds from now, after which the iterator raises TimeoutError; None: no limit.
            chunksize: Has no effect; `ProcessPoolExecutor` has the parameter.
            buffersize: The number of calls that may be submitted whose results have not been taken; None draws the
                iterables to their end at once.

        Returns:
            An iterator of the results, in the order of the arguments. It raises what a call raised, in its place. When
            it ends early, calls that have not begun are cancelled.

        Raises:
            RuntimeError: As `submit`.
            BrokenPool: As `submit`.
            ValueError: `buffersize` is less than 1.
        """
        if buffersize is not None:
            size = count("buffersize", buffersize, None, optional=True)
            if size < 1:
                raise ValueError(f"buffersize must be None or > 0, got {describe(buffersize)}")
            buffersize = size
        if type(self).submit is not PoolExecutor.submit:  # an override must see all calls
            more: dict[str, Any] = {} if buffersize is None else {"buffersize": buffersize}
            return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize, **more)
        limit = None if timeout is None else max(0.0, seconds("timeout", timeout, optional=True, negative=True))
        core = self._core
        if core is None:
            core = self._start()
        executor = weakref.ref(self)  # the iterator does not keep the executor alive
        try:
            return map_calls(core, self._executor_state, fn, iterables, limit, buffersize, executor, self._context)
        except (PoolNotRunning, BrokenPool) as error:
            raise self._refusal_of(error) from None

    def _refusal_of(self, error: Exception) -> Exception:
        """Returns what to raise for an error: a refusal of the pool's by the executor's words, any other as it is."""
        return self._refusal(error) if isinstance(error, (PoolNotRunning, BrokenPool)) else error

    # ------------------------------------------------------------------------------------------------------------
    # start and end

    def _start(self) -> PoolRun:
        """Starts the threads, at the first submission, so that an executor that is not used costs none."""
        if self._closed:
            raise self._refusal(None)
        try:
            self._pool.start()
        except PoolNotRunning:
            raise self._refusal(None) from None  # the main thread has ended
        run = self._pool._run
        assert run is not None
        self._executor_state.run = weakref.ref(run)
        if self._closed:  # `shutdown` may have been called before there was a run to end
            self._pool.shutdown(wait=False)
            raise self._refusal(None)
        self._core = run.core
        return run.core

    def _refusal(self, error: Exception | None) -> Exception:
        """Returns the error for a call that is not accepted, with `ThreadPoolExecutor`'s messages."""
        core = self._core
        if self._executor_state.broken is not None:
            return self._executor_state.broken_error()
        if isinstance(error, BrokenPool) or (error is not None and core is not None and core.is_inherited):
            return error
        if self._closed:
            return RuntimeError("cannot schedule new futures after shutdown")
        return RuntimeError("cannot schedule new futures after interpreter shutdown")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accepts no more calls, and waits until the pending calls are done and the threads have ended.

        Idempotent. May be called from any thread. A KeyboardInterrupt on the main thread, also one in a callback,
        cancels the calls that have not begun, and is raised once the others are finished; a second one is raised at
        once.

        Args:
            wait: Whether to wait.
            cancel_futures: Whether to cancel the calls that have not begun, once each free thread has begun one.

        Raises:
            RuntimeError: Called with `wait=True` from one of the executor's own threads; all but the wait is done.
        """
        self._closed = True
        run = self._pool._current()
        if run is None:
            return
        own = run.core.is_own_thread()
        try:
            if cancel_futures:
                self._await_begin()
        except KeyboardInterrupt:
            run.end(wait and not own, True, None, after_keyboard_interrupt=True)
            raise
        run.end(wait and not own, cancel_futures, None)
        if wait and own:
            self._pool.shutdown()  # RuntimeError

    def _await_begin(self) -> None:
        """Waits briefly, so that free threads begin the calls that they are about to take: those are not cancelled."""
        deadline = clock.now() + BEGIN_TIMEOUT
        pause = OperationBase()
        while clock.now() < deadline:
            stats = self._pool.stats()
            if not stats.queued or stats.running >= self._max_workers:
                return
            pause.wait(0.0005)  # in the core: a test may have replaced `time.sleep`

    def __repr__(self) -> str:
        stats = self._pool.stats()
        state = "shut down" if self._closed else "broken" if self._executor_state.broken is not None else "open"
        return f"<PoolExecutor {state}, {self._max_workers} workers, {stats.queued} pending, {stats.running} running>"

    # Private attributes of ThreadPoolExecutor that programs read all the same.

    @property
    def _threads(self) -> set[threading.Thread]:
        run = self._pool._run
        return set() if run is None else set(run.threads)

    @property
    def _broken(self) -> str | bool:
        return False if self._executor_state.broken is None else str(self._executor_state.broken)

    @property
    def _shutdown(self) -> bool:
        return self._closed


class _Pool(WorkerPool[Any]):
    """A pool that may be dropped while it runs: its threads end when the pending calls are done.

    Calls begin in the order in which they were submitted, whether by `submit` or by `map`.
    """

    def __init__(self, workers: list[ExecutorWorker], name: str) -> None:
        # queue_size: not used, since calls go into the retry queue
        super().__init__(workers, queue_size=1, max_restarts=None, name=name)
        self._settings = dataclasses.replace(self._settings, first_come=True)

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None and run.core.is_open:
            run.core.drain()
