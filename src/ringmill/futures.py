"""PoolExecutor: `concurrent.futures`' way to call functions, on a WorkerPool.

Each call is an operation (calls.py). It goes to the side list of the pool's core, which has no bound and keeps the
order, so nothing here blocks.

May import `pool`, `calls`, `operation` and the compiled core.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from typing import Any, ParamSpec, TypeVar

from ._core.platform import clock
from ._core.pool.run import PoolRun
from ._core.pool.operation import OperationBase
from .arguments import count, describe, seconds
from .executor_calls import SubmittedCall, ExecutorState, ExecutorWorker, MapCall
from .errors import BrokenPool, PoolNotRunning
from .operation import Outcome
from .pool import WorkerPool

__all__ = ["PoolExecutor"]

_numbers = itertools.count()
_processors = getattr(os, "process_cpu_count", os.cpu_count)
LONGEST_BEGINNING = 1.0  # seconds in which a free thread surely takes a call, unless all threads wait for calls

P = ParamSpec("P")
R = TypeVar("R")


class PoolExecutor(Executor):
    """A `concurrent.futures.Executor` whose calls cost a fraction of `ThreadPoolExecutor`'s.

    >>> from ringmill import PoolExecutor
    >>> with PoolExecutor(max_workers=4) as executor:
    ...     executor.submit(pow, 2, 8).result()
    ...     list(executor.map(abs, [-1, -2, -3]))
    256
    [1, 2, 3]

    The arguments are `ThreadPoolExecutor`'s, and so is what happens when `initializer` raises (later calls raise a
    `BrokenExecutor`, pending futures get it), when the executor is dropped (pending calls are done, then its threads
    end), and at interpreter exit (pending calls are done; after Ctrl-C, only those that have begun). `max_workers=None`
    is the number of processors and 4, at most 32. `context=True`: calls run in a copy of the submitter's context, as those of
    a `WorkerPool`; by default in the context of their thread, as in `ThreadPoolExecutor`. Different from `ThreadPoolExecutor`: all threads start at the first
    submission, and each calls `initializer` before its first call; a call that waits for another one, where no thread
    is left to do that, raises RuntimeError; in the child of a fork `submit` raises RuntimeError.

    All calls may be made from any thread, and `submit` and `map` from the executor's own.
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
            queue_size=1,  # nothing goes there
            max_restarts=None,
            name=name,
        )
        self._core: PoolRun | None = None
        self._closed = False

    # ------------------------------------------------------------------------------------------------------------
    # calls

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Has `fn(*args, **kwargs)` called by a thread of the executor; returns the future of it.

        Never blocks, however many calls are pending. What the function raises, `KeyboardInterrupt` and its like
        included, is the future's exception. RuntimeError after `shutdown`, after the end of the interpreter has begun,
        and in the child of a fork; `BrokenPool`, a `BrokenExecutor`, once the initializer has failed.
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
        """Calls `fn` with the items of the iterables, side by side; returns an iterator of the results, in their order.

        `timeout`: seconds from now, after which the iterator raises TimeoutError. What a call raises, the iterator
        raises in its turn. When the iterator ends early, what has not begun is cancelled. `buffersize`: how many calls
        may be submitted whose results have not been taken; None draws the iterables to their end at once. `chunksize`
        is there for `ProcessPoolExecutor` and does nothing. Raises as `submit`.
        """
        if buffersize is not None:
            size = count("buffersize", buffersize, None, optional=True)
            if size < 1:
                raise ValueError(f"buffersize must be None or > 0, got {describe(buffersize)}")
            buffersize = size
        if type(self).submit is not PoolExecutor.submit:  # whoever overrides it wants to see all calls
            more: dict[str, Any] = {} if buffersize is None else {"buffersize": buffersize}
            return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize, **more)
        limit = None if timeout is None else seconds("timeout", timeout, optional=True, negative=True)
        deadline = None if limit is None else clock.now() + limit
        source = zip(*iterables, strict=False)
        items: deque[MapCall[R]] = deque()
        for args in source if buffersize is None else itertools.islice(source, buffersize):
            self._submit_map_call(items, fn, args)
        if buffersize is None:
            return _results(items, deadline, None)
        executor = weakref.ref(self)  # the iterator keeps no executor alive

        def submit_next() -> None:
            owner = executor()
            args = next(source, None) if owner is not None else None
            if owner is not None and args is not None:
                owner._submit_map_call(items, fn, args)

        return _results(items, deadline, submit_next)

    def _submit_map_call(self, items: deque[MapCall[R]], fn: Callable[..., R], args: tuple[Any, ...]) -> None:
        core = self._core
        if core is None:
            core = self._start()
        item = MapCall(self._executor_state, fn, args)
        try:
            core.submit(item, self._context)
        except (PoolNotRunning, BrokenPool) as error:
            raise self._refusal(error) from None
        items.append(item)

    # ------------------------------------------------------------------------------------------------------------
    # start and end

    def _start(self) -> PoolRun:
        """Starts the threads, at the first submission: an executor that is not used costs none."""
        if self._closed:
            raise self._refusal(None)
        try:
            self._pool.start()
        except PoolNotRunning:
            raise self._refusal(None) from None  # the main thread has ended
        run = self._pool._run
        assert run is not None
        self._executor_state.run = weakref.ref(run)
        if self._closed:  # it may have come before there was anything to shut down
            self._pool.shutdown(wait=False)
            raise self._refusal(None)
        self._core = run.core
        return run.core

    def _refusal(self, error: Exception | None) -> Exception:
        """Why a call is not taken, in the words of `ThreadPoolExecutor`."""
        core = self._core
        if self._executor_state.broken is not None:
            return self._executor_state.broken_error()
        if isinstance(error, BrokenPool) or (error is not None and core is not None and core.is_inherited):
            return error
        if self._closed:
            return RuntimeError("cannot schedule new futures after shutdown")
        return RuntimeError("cannot schedule new futures after interpreter shutdown")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more calls. Waits until those that are pending are done and the threads have ended, if `wait`.

        `cancel_futures`: what has not begun is cancelled, once each thread that is free has begun one. Idempotent. One
        of the executor's own threads cannot wait for its end: RuntimeError, after the rest of this. A KeyboardInterrupt
        on the main thread, also one in a callback, cancels what has not begun, and is raised once what has is finished;
        a second one is raised at once.
        """
        self._closed = True
        run = self._pool._current()
        if run is None:
            return
        own = run.core.is_own_thread()
        try:
            if cancel_futures:
                self._let_begin()
        except KeyboardInterrupt:
            run.end(wait and not own, True, None, interrupted=True)
            raise
        run.end(wait and not own, cancel_futures, None)
        if wait and own:
            self._pool.shutdown()  # RuntimeError

    def _let_begin(self) -> None:
        """A call that a free thread was about to begin has not been left for want of a thread: for a moment, waits."""
        deadline = clock.now() + LONGEST_BEGINNING
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

    # What programs look at in a ThreadPoolExecutor, though they should not.

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


def _results(items: deque[MapCall[R]], deadline: float | None, submit_next: Callable[[], None] | None) -> Iterator[R]:
    """The results, in the order of the items. It holds no result, and no item whose turn has come."""
    try:
        while items:
            if submit_next is not None:
                submit_next()
            yield _take(items.popleft(), deadline)
    finally:
        for item in items:
            item.cancel()


def _take(item: MapCall[R], deadline: float | None) -> R:
    try:
        if not item.wait(None if deadline is None else max(0.0, deadline - clock.now())):
            raise TimeoutError
        if item.raised is not None:
            raise item.raised
        if item.outcome is not Outcome.SUCCEEDED:
            raise item.error or (item.executor_state.broken_error() if item.executor_state.broken is not None else CancelledError())
        value = item.value
        del item.value  # the worker may hold the item for a moment yet
        return value
    except BaseException:
        item.cancel()
        raise
    finally:
        del item  # the error's traceback holds this frame


class _Pool(WorkerPool[Any]):
    """A pool that may be dropped while it runs: its threads end when what is pending is done."""

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None and run.core.is_open:
            run.core.drain()
