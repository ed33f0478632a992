"""Every exception that ringmill raises, and the two signals a worker raises.

`queue.Full`, `queue.Empty` and `TimeoutError` are the standard ones and are used as they are.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any

from .arguments import describe as describe
from .arguments import seconds

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
    """The root of ringmill's own exceptions.

    They can be copied and pickled, subclasses with an `__init__` of any signature included: it is not called again. A
    subclass's `__getnewargs__`, `__getnewargs_ex__` and `__getstate__` are honoured, as in other objects. `__notes__`
    travel; `__cause__`, `__context__` and the traceback do not, as with all exceptions.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        names: dict[str, Any] = {}
        standard: Any = super().__reduce__()
        arguments: tuple[Any, ...] = standard[1]  # an OSError's are more than `args`
        given = arguments
        if hasattr(self, "__getnewargs_ex__"):
            given, names = self.__getnewargs_ex__()
        elif hasattr(self, "__getnewargs__"):
            given = self.__getnewargs__()
        fields: dict[str, Any] = {}  # what a built-in base keeps outside of `args` and `__dict__`: an ImportError's name
        if len(standard) > 2 and isinstance(standard[2], dict):
            for name, value in standard[2].items():
                if name not in self.__dict__:
                    fields[name] = value
        return _made_again, (type(self), arguments, given, names, fields), self.__getstate__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:  # of a subclass with slots
            state, slots = state
            for name, value in slots.items():
                setattr(self, name, value)
        super().__setstate__(state)


def _made_again(
    cls: type[BaseException],
    arguments: tuple[Any, ...],
    given: tuple[Any, ...],
    names: dict[str, Any],
    fields: dict[str, Any],
) -> BaseException:
    """An exception as it was when it was pickled, but for its state. The interpreter's own `__init__` sets `args`."""
    error: BaseException = cls.__new__(cls, *given, **names)
    builtin: Any = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
    builtin.__init__(error, *arguments)
    for name, value in fields.items():
        object.__setattr__(error, name, value)
    return error


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that was made by Python code


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
    """`start` failed because a worker's `init` raised; `causes` lists each worker with its exception.

    In a copy they are the same objects. In a pickle, a worker or an exception that cannot be pickled, or not be
    unpickled, is replaced: a worker by its description, a string, and an exception by a RingmillError that has the
    description as its message.
    """

    def __init__(self, message: str, causes: Iterable[tuple[Worker[Any], BaseException]]) -> None:
        super().__init__(message)
        self.causes: list[tuple[Worker[Any], BaseException]] = _Causes(causes)


class _Causes(list[Any]):
    """The causes of a WorkerInitError, which may hold what cannot be copied, such as a worker's connection."""

    def __deepcopy__(self, memo: object) -> _Causes:
        return _Causes(self)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _unpickled_causes, ([(_pickled(worker), _pickled(error)) for worker, error in self],)


def _pickled(value: object) -> tuple[bytes | None, str]:
    """The value, pickled on its own, unless it cannot be, and its description."""
    import pickle  # seldom needed

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
            pass  # its class cannot be imported here, for instance
    return otherwise(description)


class OperationReused(RingmillError, ValueError):
    """The operation is pending, or it is finished and was not `reset()`."""


class Unroutable(RingmillError):
    """Every worker of the pool has rejected the operation."""


class RetriesExhausted(RingmillError):
    """The operation was tried `max_tries` times; `__cause__` is the last error."""


class Retry(RingmillError):
    """Raised by `Worker.process`: failed this time, try again.

    `delay`, in seconds, says when at the earliest, and goes before the pool's `backoff`. None: at once, or as `backoff`
    says.
    """

    delay: float | None = None  # of a subclass whose `__init__` does not call this one

    def __init__(self, *args: object, delay: float | None = None) -> None:
        super().__init__(*args)
        self.delay = None if delay is None else seconds("delay", delay, optional=True)


class Reject(RingmillError):
    """Raised by `Worker.process`: this operation is not for this worker, hand it to another."""
