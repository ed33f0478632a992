"""Worker, the stateful processor of operations, and TaskWorker, which runs Tasks.

May import `operation`, and nothing above.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, Generic, TypeVar

from .errors import Reject, Retry, describe
from .operation import Operation, Task

__all__ = ["TaskWorker", "Worker"]

OpT = TypeVar("OpT", bound=Operation)


class Worker(ABC, Generic[OpT]):
    """A stateful processor of operations, living on one thread of its own.

    Only `process` must be written. The pool calls all of these on the worker's own thread, so a connection opened in
    `init` can be used in `process`: `init`, then `process` for one operation after another, then `cleanup`. A worker
    belongs to one pool.

    >>> class Doubler(Worker):
    ...     def process(self, op):
    ...         op.number *= 2
    """

    #: Exceptions of `process` that mean: failed this time, try again. As if it had raised `Retry`. A subclass of
    #: Exception, or a tuple of them; not `Retry` or `Reject`.
    retry_on: type[Exception] | tuple[type[Exception], ...] = ()

    def init(self) -> None:
        """Called before the first operation, and after each restart."""

    @abstractmethod
    def process(self, op: OpT) -> None:
        """Does the work. What it returns is ignored; what it raises decides what happens to the operation.

        `Retry`, or an exception of `retry_on`: failed this time, put it back for another worker; counts a try.
        `Reject`: not mine, hand it to a worker that has not rejected it; counts no try. Any other `Exception`: failed
        for good. Any other `BaseException`: failed for good, and the worker has crashed; it is cleaned up and
        restarted.
        """

    def handle_error(self, error: BaseException, op: OpT) -> None:
        """Called after an operation failed for good, before its `done()`; not after a crash.

        What it raises means that the worker is broken: it is restarted; the operation keeps its error.
        """

    def equal(self, other: Worker[Any]) -> bool:
        """Whether the other worker would do no better with an operation that this one failed. Default: only itself.

        Asked on this worker's thread; must be constant during a run.
        """
        return self is other

    def cleanup(self) -> None:
        """Called once after each `init`, also after one that raised. What it raises is logged."""

    def interrupt(self) -> None:
        """Called when `shutdown(timeout=)` has run out while this worker still runs an operation. Default: nothing.

        The one method that is called from another thread, the one that shuts down: make `process` return soon, by
        closing its socket, say.
        """


class TaskWorker(Worker[Task[Any]]):
    """Runs Tasks."""

    def process(self, op: Task[Any]) -> None:
        op.run()


# ----------------------------------------------------------------------------------------------------------------
# what a pool checks when it is made

_METHODS = ("init", "process", "handle_error", "equal", "cleanup", "interrupt")


def check_worker(worker: Worker[Any], known: set[type]) -> None:
    """TypeError for a method that would not run when a pool's thread calls it: a coroutine's or a generator's.

    Args:
        known: Classes whose functions have been found good; a class is added to them.
    """
    cls = type(worker)
    own = getattr(worker, "__dict__", ())
    if cls in known and True not in [name in own for name in _METHODS]:  # no generator: see WorkerPool.stats
        return
    for name in _METHODS:
        method = getattr(worker, name)
        if not callable(method):
            raise TypeError(f"{cls.__qualname__}.{name} must be a method, not {describe(method)}")
        kind = _returns(method)
        if kind is not None:
            raise TypeError(
                f"{cls.__qualname__}.{name} is {kind}, which would not run: a pool calls it on a thread, as a "
                "plain function"
            )
    if False not in [inspect.isfunction(getattr(cls, name, None)) for name in _METHODS]:
        known.add(cls)


def _returns(method: Any) -> str | None:
    """What kind of function it is that does not run when it is called, as far as can be seen; or None."""
    while isinstance(method, functools.partial):
        method = method.func
    for function in (method, getattr(type(method), "__call__", None)):  # noqa: B004  # to look at it
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
    """The worker's `retry_on`, as a tuple; TypeError unless it is a subclass of Exception, or a tuple of them."""
    given: Any = worker.retry_on
    kinds = tuple(given) if isinstance(given, tuple) else (given,)
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, (Retry, Reject)):
            raise TypeError(
                f"{type(worker).__qualname__}.retry_on must be a subclass of Exception, or a tuple of them, other than "
                f"Retry and Reject; got {describe(given)}"
            )
    return kinds
