"""Every exception that ringmill defines, and the two signals that a worker raises: Retry and Reject.

`queue.Full`, `queue.Empty` and `TimeoutError` are used as they are.

May import `arguments` and `standard_executor`.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .arguments import describe as describe
from .arguments import seconds
from .standard_executor import BrokenThreadPool

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


class RingmillError(Exception):
    """The base class of ringmill's exceptions.

    They can be copied and pickled, also subclasses whose `__init__` has another signature: it is not called again. A
    subclass's `__getnewargs__`, `__getnewargs_ex__` and `__getstate__` are honoured. `__notes__` are copied;
    `__cause__`, `__context__` and the traceback are not, as with all exceptions.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        names: dict[str, Any] = {}
        standard: Any = super().__reduce__()
        arguments: tuple[Any, ...] = standard[1]  # of an OSError, they are more than `args`
        given = arguments
        if hasattr(self, "__getnewargs_ex__"):
            given, names = self.__getnewargs_ex__()
        elif hasattr(self, "__getnewargs__"):
            given = self.__getnewargs__()
        # what a built-in base stores outside `args` and `__dict__`, such as the name of an ImportError
        fields: dict[str, Any] = {}
        if len(standard) > 2 and isinstance(standard[2], dict):
            for name, value in standard[2].items():
                if name not in self.__dict__:
                    fields[name] = value
        return _recreate, (type(self), arguments, given, names, fields), self.__getstate__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:  # a subclass with slots
            state, slots = state
            for name, value in slots.items():
                setattr(self, name, value)
        super().__setstate__(state)


def _recreate(
    cls: type[BaseException],
    arguments: tuple[Any, ...],
    given: tuple[Any, ...],
    names: dict[str, Any],
    fields: dict[str, Any],
) -> BaseException:
    """Returns a pickled exception, without its state. Calls the built-in base's `__init__`, which sets `args`."""
    error: BaseException = cls.__new__(cls, *given, **names)
    builtin: Any = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
    builtin.__init__(error, *arguments)
    for name, value in fields.items():
        object.__setattr__(error, name, value)
    return error


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by Python code


if sys.version_info >= (3, 13):
    _ShutDown = queue.ShutDown
else:

    class _ShutDown(Exception):
        """Takes the place of queue.ShutDown, which is new in CPython 3.13."""


class Closed(RingmillError, _ShutDown):
    """The ring, subscription, stream or hub is closed, and nothing is left in it.

    From CPython 3.13 on it is a `queue.ShutDown`.

    Raised by `RingBuffer.put_many` it has two more attributes: `count`, the number of items that were put, and `rest`,
    the list of items that were drawn from the iterable and not put.
    """


class PoolNotRunning(RingmillError, RuntimeError):
    """The pool has not been started, was shut down, or belongs to the parent of a fork."""


class BrokenPool(RingmillError, BrokenThreadPool):
    """The pool has lost its last worker. Pending operations have failed with this error, and later calls raise it."""


class WorkerInitError(RingmillError):
    """`WorkerPool.start` failed because the `init` of a worker raised.

    A copy has the same causes. In a pickle, a worker or exception that cannot be pickled or unpickled is replaced: a
    worker by its description, a string; an exception by a RingmillError with the description as its message.

    Args:
        message: The message.
        causes: The value of the attribute `causes`: a list of pairs, each a worker and the exception that its `init`
            raised.
    """

    def __init__(self, message: str, causes: Iterable[tuple[Worker[Any], BaseException]]) -> None:
        super().__init__(message)
        self.causes: list[tuple[Worker[Any], BaseException]] = _Causes(causes)


class _Causes(list[Any]):
    """The causes of a WorkerInitError. They may refer to objects that cannot be copied, such as a connection."""

    def __deepcopy__(self, memo: object) -> _Causes:
        return _Causes(self)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _unpickled_causes, ([(_pickled(worker), _pickled(error)) for worker, error in self],)


def _pickled(value: object) -> tuple[bytes | None, str]:
    """Returns the pickled value, or None if it cannot be pickled, and its description."""
    import pickle  # here, since it is rarely needed

    try:
        return pickle.dumps(value), describe(value)
    except Exception:
        return None, describe(value)


def _unpickled_causes(pairs: list[tuple[tuple[bytes | None, str], tuple[bytes | None, str]]]) -> _Causes:
    return _Causes([(_unpickled(worker, str), _unpickled(error, RingmillError)) for worker, error in pairs])


def _unpickled(packed: tuple[bytes | None, str], otherwise: type) -> Any:
    import pickle

    data, description = packed
    if data is not None:
        try:
            return pickle.loads(data)
        except Exception:
            pass  # for example, its class cannot be imported here
    return otherwise(description)


class OperationReused(RingmillError, ValueError):
    """The operation is pending, or has ended and was not reset: call `reset()` first."""


class Unroutable(RingmillError):
    """Every worker of the pool has rejected the operation."""


class RetriesExhausted(RingmillError):
    """The operation was tried `max_tries` times; `__cause__` is the error of the last try."""


class Retry(RingmillError):
    """Raised by `Worker.process`: this try failed, try the operation again.

    Args:
        args: As for any exception.
        delay: The least number of seconds before the next try, instead of the pool's `backoff`. None: as `backoff`
            says, or at once without a `backoff`.

    Raises:
        TypeError: `delay` is not a number.
        ValueError: `delay` is negative or NaN.
    """

    delay: float | None = None  # the default for a subclass whose `__init__` does not call this one

    def __init__(self, *args: object, delay: float | None = None) -> None:
        super().__init__(*args)
        self.delay = None if delay is None else seconds("delay", delay, optional=True)


class Reject(RingmillError):
    """Raised by `Worker.process`: this worker does not take the operation; give it to another worker."""
