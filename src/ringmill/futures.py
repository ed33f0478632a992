"""PoolExecutor: a `concurrent.futures.ThreadPoolExecutor` on a WorkerPool.

Each call is an operation (executor_calls.py). It goes into the retry queue of the run, which is unbounded and keeps the
order, so that `submit` never blocks. The base class gives its name to isinstance, and nothing else: its attributes are
here, its `submit` is called where a program has replaced it.

May import `pool`, `executor_calls`, `executor_queue`, `standard_executor`, `operation` and the compiled core.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

from ._core.platform import clock
from ._core.pool.call_results import map_calls
from ._core.pool.operation import OperationBase
from ._core.pool.run import PoolRun
from .arguments import count, describe, seconds
from .errors import BrokenPool, PoolNotRunning
from .executor_calls import ExecutorState, ExecutorWorker, ForeignCall, SubmittedCall
from .executor_queue import CallQueue
from .pool import WorkerPool
from .standard_executor import ThreadPoolExecutor, original_submit

__all__ = ["PoolExecutor"]

_processors = getattr(os, "process_cpu_count", os.cpu_count)
BEGIN_TIMEOUT = 1.0  # seconds in which a free thread surely takes a call, unless all threads wait for calls

P = ParamSpec("P")
R = TypeVar("R")


class PoolExecutor(ThreadPoolExecutor):
    """A `concurrent.futures.ThreadPoolExecutor` whose calls cost a fraction of what they cost there.

    It behaves as its base class, also as the default executor of asyncio: a thread starts when a call comes and all
    threads are busy, up to `max_workers`; when `initializer` raises, pending and later calls raise a
    `BrokenExecutor`; when the executor is dropped, pending calls are done, then its threads end; at interpreter exit,
    pending calls are done (after Ctrl-C only those that have begun). The differences: each thread calls `initializer`
    before its first call; a call that waits for another one, when no thread would be left to run that, raises
    RuntimeError; in the child of a fork, `submit` raises RuntimeError.

    The base class's private attributes answer truthfully: `_threads`, `_work_queue.qsize()`, `_broken`, and so on. A
    subclass cannot bring a queue of its own, or start threads itself: TypeError. If a program has replaced
    `ThreadPoolExecutor.submit`, in order to see all calls, it is called for the calls of this class, too.

    All methods may be called from any thread, `submit` and `map` also from the executor's own threads. As a context
    manager the executor is shut down at the end of the body.

    Args:
        max_workers: The largest number of threads, from 1; None: the number of processors plus 4, at most 32.
        thread_name_prefix: The prefix of the threads' names; by default as in the base class.
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
        # Not the base class's __init__, whose attributes are made here: most of them are properties below.
        limit = min(32, (_processors() or 1) + 4) if max_workers is None else _checked_max_workers(max_workers)
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
        base: Any = ThreadPoolExecutor
        self._thread_name_prefix = thread_name_prefix or f"ThreadPoolExecutor-{base._counter()}"
        self._initializer = initializer  # type: ignore[assignment]  # the stub has no result but None
        self._initargs = initargs
        self._idle_semaphore = threading.Semaphore(0)
        self._shutdown_lock = threading.Lock()
        if hasattr(ThreadPoolExecutor, "prepare_context"):  # from CPython 3.14 on
            kind: Any = type(self)
            self._create_worker_context, self._resolve_work_item_task = kind.prepare_context(initializer, initargs)
        self._context = context
        self._executor_state = ExecutorState(initializer, initargs, context)
        self._pool = _Pool(self._executor_state, self._thread_name_prefix)
        self._core: PoolRun | None = None
        self._max_workers = limit
        self._closed = False
        self._call_queue = CallQueue(weakref.ref(self))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, instead in _NOT_TO_REPLACE.items():
            if name in cls.__dict__:
                raise TypeError(f"{cls.__qualname__}.{name}: a PoolExecutor does not use it: {instead}")

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
        if ThreadPoolExecutor.submit is not original_submit:  # a program that traces calls has replaced it
            return ThreadPoolExecutor.submit(self, fn, *args, **kwargs)  # in the end it calls _work_queue.put
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

    def _submit_foreign(self, item: Any) -> None:
        """Submits a work item of the base class; called by its `submit`."""
        core = self._core
        if core is None:
            core = self._start()
        try:
            core.submit(ForeignCall(self._executor_state, item), self._context)
        except (PoolNotRunning, BrokenPool) as error:
            raise self._refusal(error) from None

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
        # An override must see all calls, and so must a replacement of the base class's `submit`.
        if type(self).submit is not PoolExecutor.submit or ThreadPoolExecutor.submit is not original_submit:
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
        core = self._core
        while core is not None and clock.now() < deadline:
            stats = self._pool.stats()
            if not stats.queued or stats.running >= core.worker_count:
                return
            pause.wait(0.0005)  # in the core: a test may have replaced `time.sleep`

    @property
    def pending(self) -> int:
        """The number of calls that have not begun; a snapshot."""
        return self._pool.stats().queued

    def __repr__(self) -> str:
        stats = self._pool.stats()
        state = "shut down" if self._closed else "broken" if self._executor_state.broken is not None else "open"
        return f"<PoolExecutor {state}, {self._max_workers} workers, {stats.queued} pending, {stats.running} running>"

    # ------------------------------------------------------------------------------------------------------------
    # private attributes of ThreadPoolExecutor that programs read all the same: properties here, of types that the stub
    # of the base class does not have (type: ignore)

    @property
    def _threads(self) -> set[threading.Thread]:  # type: ignore[override]
        run = self._pool._run
        return set() if run is None else {thread for thread in list(run.threads) if thread.ident is not None}

    @property
    def _max_workers(self) -> int:
        return self._limit

    @_max_workers.setter
    def _max_workers(self, value: int) -> None:
        """Programs assign it in order to have more threads, or to have no more."""
        self._limit = _checked_max_workers(value)
        self._pool.set_max_workers(min(self._limit, sys.maxsize))

    @property
    def _broken(self) -> str | bool:  # type: ignore[override]
        return False if self._executor_state.broken is None else str(self._executor_state.broken_error())

    @property
    def _shutdown(self) -> bool:  # type: ignore[override]
        return self._closed

    @property  # type: ignore[override]
    def _work_queue(self) -> CallQueue:
        return self._call_queue

    @_work_queue.setter
    def _work_queue(self, value: object) -> None:
        raise TypeError(
            f"{type(self).__qualname__}._work_queue cannot be replaced by {describe(value)}: "
            f"{_NOT_TO_REPLACE['_work_queue']}"
        )

    def _adjust_thread_count(self) -> None:
        """Called by the base class's `submit`. The pool has started a thread already, if one was needed."""

    def _initializer_failed(self) -> None:
        """Called by nothing: ExecutorState.break_down does what it does in the base class."""


#: What a subclass may not define, and what to use in its place.
_NOT_TO_REPLACE = {
    "_work_queue": "calls begin in the order of `submit`; for another order, hold them back before `submit`, or use a "
    "WorkerPool with `wrap` and a source of your own",
    "_adjust_thread_count": "threads start by themselves, up to max_workers; use max_workers, or WorkerPool.resize",
    "_initializer_failed": "catch the error in the initializer itself",
}


def _checked_max_workers(value: Any) -> int:
    workers = count("max_workers", value, None, optional=True)
    if workers <= 0:
        raise ValueError(f"max_workers must be greater than 0, got {describe(value)}")
    return workers


class _Pool(WorkerPool[Any]):
    """A pool that may be dropped while it runs: its threads end when the pending calls are done.

    It starts with one worker, for the first call, and adds others up to the number that it is told. Calls begin in the
    order in which they were submitted, whether by `submit` or by `map`.
    """

    def __init__(self, executor_state: ExecutorState, name: str) -> None:
        make_worker = functools.partial(ExecutorWorker, executor_state)
        # queue_size: not used, since calls go into the retry queue
        super().__init__([make_worker()], queue_size=1, max_restarts=None, name=name)
        self._settings = dataclasses.replace(
            self._settings,
            first_come=True,
            make_worker=make_worker,
            separator="_",
        )

    def set_max_workers(self, number: int) -> None:
        """Workers are added up to that number from now on, in the run and in the next one; none leaves."""
        self._settings = dataclasses.replace(self._settings, max_workers=number)
        if self._run is not None:
            self._run.core.set_max_workers(number)

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None and run.core.is_open:
            run.core.drain()
