"""Operation, the unit of work; Task, one that calls a function; Outcome, how one stands.

May import the compiled core, and nothing above.
"""

from __future__ import annotations

import sys
from abc import ABC
from collections.abc import Callable, Generator, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

from ._core.operation import OperationBase, Outcome
from .errors import Reject, Retry

__all__ = ["Operation", "Outcome", "Task"]

P = ParamSpec("P")
R = TypeVar("R")

RESERVED = ("outcome", "error", "tries")


class Operation(OperationBase, ABC):
    """One unit of work: it carries its own input and output, and can be waited for.

    Subclass it and add fields; `super().__init__()` need not be called, and a `@dataclass` works: operations are
    never hashed or compared. `outcome`, `error` and `tries` cannot be fields. The verbs `increment_try`, `wait` and
    `done` may be overridden, to be told; nothing depends on what an override does.

    >>> class Square(Operation):
    ...     def __init__(self, number: int) -> None:
    ...         self.number = number
    >>> Square(3).outcome
    <Outcome.PENDING: 'pending'>
    """

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in RESERVED:
            if name in cls.__dict__ or name in _annotations(cls):
                raise TypeError(f"{cls.__qualname__}.{name}: the name is reserved by Operation, choose another")


if sys.version_info >= (3, 14):
    import annotationlib

    def _annotations(cls: type) -> Mapping[str, Any]:
        """The class's own annotations, unevaluated: they may name what comes later."""
        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)

else:

    def _annotations(cls: type) -> Mapping[str, Any]:
        """The class's own annotations."""
        own: Mapping[str, Any] = cls.__dict__.get("__annotations__", {})  # noqa: RUF063  # they are evaluated here
        return own


class Task(Operation, Generic[R]):
    """An operation that calls `fn(*args, **kwargs)`; run by a `TaskWorker`, or by a worker that calls `run`.

    What `fn` raises, `KeyboardInterrupt` and its like included, becomes the task's error, and the outcome is FAILED; it
    is no crash of the worker. `Retry` and `Reject` pass through to the pool.

    >>> task = Task(pow, 2, 5)
    >>> task.run()
    >>> task.value
    32
    """

    __slots__ = ("args", "fn", "kwargs", "value")

    value: R  #: what `fn` returned, once it did

    def __init__(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> None:
        if not callable(fn):
            raise TypeError(f"fn must be callable, got {fn!r}")
        self.fn: Callable[..., R] = fn
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs

    def run(self) -> None:
        """Calls the function and keeps what it returns or raises. For the worker's `process`."""
        try:
            self.value = self.fn(*self.args, **self.kwargs)
        except (Retry, Reject):
            raise
        except BaseException as error:
            self._fail(error)

    def result(self, timeout: float | None = None) -> R:
        """Waits, at most `timeout` seconds, and returns what the function returned, or raises what it raised.

        TimeoutError if it is not done in time; `concurrent.futures.CancelledError` if it was cancelled.
        """
        self._wait(timeout)
        self.check()
        return self.value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits, at most `timeout` seconds, and returns what the function raised, or None. Raises as `result`."""
        self._wait(timeout)
        if self.outcome is Outcome.CANCELLED:
            self.check()
        return self.error

    def __await__(self) -> Generator[Any, None, R]:  # type: ignore[override]  # of an operation: itself
        """Waits until the task is done, and gives what the function returned, or raises what it raised."""
        yield from super().__await__()
        self.check()
        return self.value

    def _wait(self, timeout: float | None) -> None:
        if not self.wait(timeout):
            raise TimeoutError(f"{self!r} was not done within {timeout} s")
