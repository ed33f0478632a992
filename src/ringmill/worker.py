"""Worker, the stateful processor of operations and items; TaskWorker, which runs Tasks; the checks of a pool's workers.

May import `operation` and `errors`.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, Generic, TypeVar

from .errors import Reject, Retry, describe
from .operation import Task

__all__ = ["TaskWorker", "Worker"]

WorkT = TypeVar("WorkT")  # of operations or items


class Worker(ABC, Generic[WorkT]):
    """A stateful processor of operations and items, with a thread of its own.

    Only `process` must be defined. The pool calls `init`, then `process` for one operation or item after another, then
    `cleanup`, all on the worker's own thread, so that a connection opened in `init` can be used in `process`. Only
    `interrupt` is called from another thread. A worker belongs to one pool.

    `process` returns the result of an item of `WorkerPool.map` or `WorkerPool.call`. An operation keeps its result in
    its fields.

    >>> class Doubler(Worker):
    ...     def process(self, number):
    ...         return 2 * number
    >>> class InPlaceDoubler(Worker):
    ...     def process(self, op):
    ...         op.number *= 2
    """

    #: Exceptions of `process` that count as `Retry`: the operation or item is tried again. A subclass of Exception
    #: other than `Retry` and `Reject`, or a tuple of such classes. Checked when the pool is made.
    retry_on: type[Exception] | tuple[type[Exception], ...] = ()

    def init(self) -> None:
        """Called before the first operation and after each restart. If it raises, `WorkerPool.start` does too."""

    @abstractmethod
    def process(self, op: WorkT, /) -> Any:
        """Does the work of one operation or item. If it returns, the operation or item has succeeded.

        Args:
            op: The operation; or the item, as it was given to `WorkerPool.map` or `WorkerPool.call`.

        Returns:
            For an item, the result. For an operation None: another value is dropped, with a RuntimeWarning once per
            class.

        Raises:
            Retry: The try failed: the operation or item goes back to the queue, for another worker if there is one, and
                one try is counted. An exception of `retry_on` does the same.
            Reject: This worker does not take the operation or item: it is given to a worker that has not rejected it.
                No try is counted. Rejected by all workers, it fails with `Unroutable`.
            Exception: Any other one: the operation or item fails for good.
            BaseException: Any other one is a crash: the operation or item fails for good, and the worker is cleaned up
                and restarted.
        """

    def handle_error(self, error: BaseException, op: WorkT, /) -> None:
        """Called after an operation or item has failed for good, before its end is reported. Not called after a crash.

        The end is reported by the operation's `done()`, or by the result of `map` or `call`. If this method raises, the
        worker counts as crashed and is restarted; the error of the operation or item stays what `process` raised.

        Args:
            error: What `process` raised, or `RetriesExhausted` or `Unroutable`.
            op: The operation or the item.
        """

    def equal(self, other: Worker[Any]) -> bool:
        """Whether another worker is equivalent to this one for retries. Default: identity.

        A retried operation goes to a worker that is not equal to those that have tried it, as long as such a worker is
        alive. Called on this worker's thread; must be constant during a run.

        Args:
            other: A worker of the same pool.

        Returns:
            Whether an operation that failed here would be expected to fail there as well.
        """
        return self is other

    def cleanup(self) -> None:
        """Called once after each `init`, also after an `init` that raised. What it raises is logged."""

    def interrupt(self) -> None:
        """Makes a running `process` return early. Default: does nothing.

        Called when the `timeout` of `WorkerPool.shutdown` has passed while this worker still runs an operation. The
        only method that is called from another thread, the one that calls `shutdown`. It may close a socket, for
        example.
        """


class TaskWorker(Worker[Task[Any]]):
    """A worker that runs Tasks: `process` calls `Task.run`."""

    def process(self, op: Task[Any], /) -> None:
        """Calls `op.run()`.

        Args:
            op: The task.
        """
        op.run()


# ----------------------------------------------------------------------------------------------------------------
# checks that a pool makes when it is created

_METHODS = ("init", "process", "handle_error", "equal", "cleanup", "interrupt")


def check_worker(worker: Worker[Any], known: set[type]) -> None:
    """Raises TypeError if a method would not run when it is called: a coroutine function or a generator function.

    Args:
        worker: The worker to check.
        known: Classes that need no further check; the worker's class is added if all its methods are plain functions.
    """
    cls = type(worker)
    own = getattr(worker, "__dict__", ())
    # Loops instead of comprehensions, which would need cells: CPython 3.11 leaks the arguments of a call for whose
    # cells there is no memory.
    if cls in known:
        for name in _METHODS:
            if name in own:
                break
        else:
            return
    for name in _METHODS:
        method = getattr(worker, name)
        if not callable(method):
            raise TypeError(f"{cls.__qualname__}.{name} must be a method, not {describe(method)}")
        kind = kind_of_function(method)
        if kind is not None:
            raise TypeError(
                f"{cls.__qualname__}.{name} is {kind}, which would not run: a pool calls it on a thread, as a "
                "plain function"
            )
    for name in _METHODS:
        if not inspect.isfunction(getattr(cls, name, None)):
            return
    known.add(cls)


def kind_of_function(method: Any) -> str | None:
    """Returns the kind of a function that does not run when it is called, if that can be detected; None for others."""
    while isinstance(method, functools.partial):
        method = method.func
    for function in (method, getattr(type(method), "__call__", None)):  # noqa: B004  # inspected, not called
        if inspect.iscoroutinefunction(function):
            return "a coroutine function (async def)"
        if inspect.isasyncgenfunction(function):
            return "an async generator function"
        if inspect.isgeneratorfunction(function):
            return "a generator function"
    return None


def refuse_unstarted(worker: Worker[Any], name: str, result: object) -> None:
    """TypeError for what a method returned if that is a coroutine or a generator: nothing has run yet.

    A decorator may hide from `check_worker` what kind of function it wraps.
    """
    kind = type(result)
    if issubclass(kind, (Coroutine, Generator, AsyncGenerator)):
        if not issubclass(kind, AsyncGenerator):
            result.close()  # type: ignore[attr-defined]  # or Python warns that it was never awaited
        raise TypeError(
            f"{type(worker).__qualname__}.{name} returned {describe(result)}, which has not run: a pool calls it on a "
            "thread, as a plain function"
        )


def checked_retry_on(worker: Worker[Any]) -> tuple[type[Exception], ...]:
    """Returns the worker's `retry_on` as a tuple. TypeError unless it is a subclass of Exception or a tuple of them."""
    given: Any = worker.retry_on
    kinds = tuple(given) if isinstance(given, tuple) else (given,)
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, (Retry, Reject)):
            raise TypeError(
                f"{type(worker).__qualname__}.retry_on must be a subclass of Exception, or a tuple of them, other than "
                f"Retry and Reject; got {describe(given)}"
            )
    return kinds
