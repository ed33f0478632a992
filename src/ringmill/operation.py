"""Operation, the unit of work; Task, an operation that calls a function; Outcome, the state of an operation.

The compiled base, _core/pool/operation.pyx, has the state and the waiting; this file has what concerns Python classes:
reserved names, copies, and Task.

May import `errors` and the compiled core.
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

#: Names that cannot be fields of an operation: its state, and the verbs, which may be overridden as methods.
STATE_NAMES = ("outcome", "error", "tries")
VERBS = ("wait", "done", "increment_try", "cancel", "check", "reset")


class Operation(OperationBase, ABC):
    """One unit of work: an object that carries its own input and output, and that can be waited for.

    Subclass it and add fields. `@dataclass(slots=True)` is best: with slots, making an operation costs about as much as
    making a plain object (see "What things cost" in the documentation). `@dataclass` and `@attrs.define` work too, and
    `super().__init__()` need not be called. Operations are never hashed or compared. The names `outcome`, `error`,
    `tries`, `wait`, `done`, `increment_try`, `cancel`, `check` and `reset` are reserved: a field of such a name is a
    TypeError when the class is made.

    `increment_try`, `wait` and `done` may be overridden to be notified; nothing depends on what an override does. They
    are looked up on the class. A copy, and an operation that is unpickled, is new.

    >>> from dataclasses import dataclass
    >>> @dataclass(slots=True)
    ... class Square(Operation):
    ...     number: int
    >>> Square(3).outcome
    <Outcome.PENDING: 'pending'>
    """

    __slots__: tuple[str, ...] = ()

    @property
    def __weakref__(self) -> Any:
        # The compiled base supports weak references without this property; attrs and others look for it to know that.
        return next(iter(weakref.getweakrefs(self)), None)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_fields(cls, STATE_NAMES, VERBS, OperationBase, "Operation")


# Pretends to have the slot, so that @dataclass(slots=True, weakref_slot=True) adds no second one (CPython 3.11 and
# 3.12).
Operation.__slots__ = ("__weakref__",)


def _refuse_fields(cls: type, state_names: tuple[str, ...], verbs: tuple[str, ...], base: type, kind: str) -> None:
    """Raises TypeError if a class, or a class mixed into it, has a field with a reserved name."""
    for owner in cls.__mro__:
        if owner is not cls:
            if base in owner.__mro__ or owner in base.__mro__:
                continue  # checked when it was made, or not the user's class
            if getattr(owner, "_is_protocol", False):
                continue  # a protocol describes an operation and adds no fields
        annotated = _annotations(owner)
        for name in (*state_names, *verbs):
            # A method is callable on the class; a slot, a property or a field's default is not.
            if name in annotated or (
                name in owner.__dict__ and (name in state_names or not callable(getattr(owner, name, None)))
            ):
                raise TypeError(f"{owner.__qualname__}.{name}: this name is reserved by {kind}: choose another one")


if sys.version_info >= (3, 14):
    import annotationlib

    def _annotations(cls: type) -> Mapping[str, Any]:
        """Returns the class's own annotations, unevaluated: they may refer to names that are defined later."""
        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)

else:

    def _annotations(cls: type) -> Mapping[str, Any]:
        """Returns the class's own annotations."""
        own: Mapping[str, Any] = cls.__dict__.get("__annotations__", {})  # noqa: RUF063  # they are evaluated here
        return own


class Task(Operation, Generic[R]):
    """An operation that calls `fn(*args, **kwargs)`. Run by a `TaskWorker`, or by a worker that calls `run`.

    What `fn` raises, KeyboardInterrupt and SystemExit included, becomes the task's error, and the outcome is FAILED; it
    never counts as a crash of the worker. `Retry` and `Reject` are passed on to the pool.

    Args:
        fn: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        TypeError: `fn` is not callable.

    >>> task = Task(pow, 2, 5)
    >>> task.run()
    >>> task.value
    32
    """

    __slots__ = ("args", "fn", "kwargs", "value")

    value: R  #: what `fn` returned; not set before

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
        """Calls the function, and stores what it returns or raises. To be called by a worker's `process`.

        Raises:
            Retry: The function raised it; likewise `Reject`.
        """
        try:
            self.value = self.fn(*self.args, **self.kwargs)
        except (Retry, Reject):
            raise
        except BaseException as error:
            self._fail(error)

    def result(self, timeout: float | None = None) -> R:
        """Waits until the task is done, and returns what the function returned, or raises what it raised.

        Blocks as `wait`. May be called from any thread.

        Args:
            timeout: Seconds to wait; None waits without limit.

        Returns:
            The function's return value.

        Raises:
            BaseException: What the function raised, as in `check`.
            TimeoutError: The task was not done in time.
            concurrent.futures.CancelledError: The task was cancelled.
        """
        self._wait(timeout)
        self.check()
        return self.value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits until the task is done, and returns what the function raised.

        Blocks as `wait`. May be called from any thread.

        Args:
            timeout: Seconds to wait; None waits without limit.

        Returns:
            The exception; None if the function returned.

        Raises:
            TimeoutError: The task was not done in time.
            concurrent.futures.CancelledError: The task was cancelled.
        """
        self._wait(timeout)
        if self.outcome is Outcome.CANCELLED:
            self.check()
        return self.error

    def __await__(self) -> Generator[Any, None, R]:  # type: ignore[override]  # of an operation: itself
        """Waits until the task is done; `await task` gives what the function returned, or raises what it raised."""
        yield from super().__await__()
        self.check()
        return self.value

    def __getstate__(self) -> object:
        """Returns the state without `value`: a copy is new."""
        state = super().__getstate__()
        if isinstance(state, tuple):
            fields, slots = state
            slots = dict(slots)  # not a comprehension: when memory is short, CPython 3.13 crashes in it
            slots.pop("value", None)
            return fields, slots
        return state

    def _wait(self, timeout: float | None) -> None:
        if not self.wait(timeout):
            raise TimeoutError(f"{describe(self)} was not done within {timeout} s")
