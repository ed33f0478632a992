"""Worker, the stateful processor of operations, and TaskWorker, which runs Tasks.

May import `operation`, and nothing above.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

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

    #: Exceptions of `process` that mean: failed this time, try again. As if it had raised `Retry`.
    retry_on: tuple[type[BaseException], ...] = ()

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
