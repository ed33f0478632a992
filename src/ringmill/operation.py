"""Operation, the unit of work; Task, one that calls a function; Outcome, how one stands.

May import the compiled core, and nothing above.
"""

from __future__ import annotations

import sys
import weakref
from abc import ABC
from collections.abc import Callable, Generator, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

from ._core.pool.operation import OperationBase, Outcome
from .errors import Reject, Retry, describe

__all__ = ["Operation", "Outcome", "Task"]

P = ParamSpec("P")
R = TypeVar("R")

#: Names that are not fields of an operation: what the pool keeps, and the verbs, which may be overridden as methods.
KEPT = ("outcome", "error", "tries")
VERBS = ("wait", "done", "increment_try", "cancel", "check", "reset")


class Operation(OperationBase, ABC):
    """One unit of work: it carries its own input and output, and can be waited for.

    Subclass it and add fields; `super().__init__()` need not be called, and `@dataclass` and `@attrs.define` work:
    operations are never hashed or compared. `outcome`, `error`, `tries`, `wait`, `done`, `increment_try`, `cancel`,
    `check` and `reset` cannot be fields. The verbs `increment_try`, `wait` and `done` may be overridden, to be told;
    nothing depends on what an override does. They are looked up on the class. A copy or pickle arrives new.

    >>> class Square(Operation):
    ...     def __init__(self, number: int) -> None:
    ...         self.number = number
    >>> Square(3).outcome
    <Outcome.PENDING: 'pending'>
    """

    __slots__: tuple[str, ...] = ()

    @property
    def __weakref__(self) -> Any:
        # The compiled base takes weak references without it, but attrs and others know by it that a class does.
        return next(iter(weakref.getweakrefs(self)), None)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_fields(cls, KEPT, VERBS, OperationBase, "Operation")


# As if it had the slot: so that @dataclass(slots=True, weakref_slot=True) adds no second one (CPython 3.11 and 3.12).
Operation.__slots__ = ("__weakref__",)


def _refuse_fields(cls: type, kept: tuple[str, ...], verbs: tuple[str, ...], base: type, kind: str) -> None:
    """TypeError for a class that has a field of a reserved name, its own or that of a class mixed in."""
    for owner in cls.__mro__:
        if owner is not cls:
            if base in owner.__mro__ or owner in base.__mro__:
                continue  # checked when it was made, or none of the user's
            if getattr(owner, "_is_protocol", False):
                continue  # it describes what an operation has
        annotated = _annotations(owner)
        for name in (*kept, *verbs):
            # Of a method, the class gives a function; of a slot, a property or a field, what cannot be called.
            if name in annotated or (
                name in owner.__dict__ and (name in kept or not callable(getattr(owner, name, None)))
            ):
                raise TypeError(f"{owner.__qualname__}.{name}: the name is reserved by {kind}, choose another")


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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_fields(cls, (), ("run", "result", "exception"), Task, "Task")

    def __init__(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> None:
        if not callable(fn):
            raise TypeError(f"fn must be callable, got {describe(fn)}")
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

    def __getstate__(self) -> object:
        """As object's, without the value: a copy arrives new."""
        state = super().__getstate__()
        if isinstance(state, tuple):
            fields, slots = state
            slots = dict(slots)  # no comprehension: where memory is short, CPython 3.13 crashes in one
            slots.pop("value", None)
            return fields, slots
        return state

    def _wait(self, timeout: float | None) -> None:
        if not self.wait(timeout):
            raise TimeoutError(f"{describe(self)} was not done within {timeout} s")
