"""Every exception that ringmill raises, and the two signals a worker raises.

`queue.Full`, `queue.Empty` and `TimeoutError` are the standard ones and are used as they are.
"""

from __future__ import annotations

import queue
import sys
import threading
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .worker import Worker

__all__ = [
    "BrokenPool",
    "Closed",
    "OperationReused",
    "PoolNotRunning",
    "Reject",
    "RetriesExhausted",
    "Retry",
    "RingmillError",
    "Unroutable",
    "WorkerInitError",
]


#: How many characters of a `repr` a message quotes.
QUOTED = 200


def describe(value: object) -> str:
    """How a message quotes a user's object: its `repr`, at most 200 characters of it.

    Whatever that `repr` does, this returns: where it raises, the type and address are named instead. Only a
    KeyboardInterrupt on the main thread is raised, since it is meant for the program. Runs user code, so no lock may be
    held.
    """
    try:
        text = repr(value)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        text = object.__repr__(value)
    # A subclass of str may be returned, with methods of its own: str's are called.
    if str.__len__(text) <= QUOTED:
        return str.__str__(text)
    return str.__getitem__(text, slice(QUOTED - 3)) + "..."


class RingmillError(Exception):
    """The root of ringmill's own exceptions."""


if sys.version_info >= (3, 13):
    _ShutDown = queue.ShutDown
else:

    class _ShutDown(Exception):
        """Stands in for queue.ShutDown, which is new in CPython 3.13."""


class Closed(RingmillError, _ShutDown):
    """The ring, stream or hub is closed, and nothing is left in it. A `queue.ShutDown`, from CPython 3.13 on.

    Raised by `RingBuffer.put_many`, it carries `count`, how many items went in, and `rest`, those that were drawn
    from the iterable and did not.
    """


class PoolNotRunning(RingmillError, RuntimeError):
    """The pool has not been started, or has been shut down, or was inherited through a fork."""


class BrokenPool(RingmillError, BrokenExecutor):
    """The pool lost its last worker; what was pending has failed with this error."""


class WorkerInitError(RingmillError):
    """`start` failed because a worker's `init` raised; `causes` lists each worker with its exception."""

    def __init__(self, message: str, causes: list[tuple[Worker[Any], BaseException]]) -> None:
        super().__init__(message)
        self.causes = causes


class OperationReused(RingmillError, ValueError):
    """The operation is pending, or it is finished and was not `reset()`."""


class Unroutable(RingmillError):
    """Every worker of the pool has rejected the operation."""


class RetriesExhausted(RingmillError):
    """The operation was tried `max_tries` times; `__cause__` is the last error."""


class Retry(RingmillError):
    """Raised by `Worker.process`: failed this time, try again.

    `delay`, in seconds, says when at the earliest, and goes before the pool's `backoff`.
    """

    def __init__(self, *args: object, delay: float | None = None) -> None:
        super().__init__(*args)
        if delay is not None:
            if isinstance(delay, bool) or not isinstance(delay, (int, float)):
                raise TypeError(f"delay must be a number of seconds or None, not {delay!r}")
            if not delay >= 0:
                raise ValueError(f"delay must not be negative, got {delay!r}")
        self.delay = delay


class Reject(RingmillError):
    """Raised by `Worker.process`: this operation is not for this worker, hand it to another."""
