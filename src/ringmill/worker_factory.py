"""The workers of a pool: those of an iterable, or those that a Worker class or a factory makes. Each is checked.

What is given is told apart in this order: a single Worker is refused; a Worker class is a factory, also if its
metaclass makes it iterable; whatever else can be iterated is an iterable; whatever else can be called is a factory.

Claims no worker: the pool does that when all have been made (pool.py).

May import `arguments` and `worker`.
"""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from .arguments import count as checked_count
from .arguments import describe
from .worker import Worker, check_worker, checked_retry_on, kind_of_function

__all__ = ["Factory", "list_workers", "make_workers"]

Factory = Callable[[], Any]

WANTED = "workers must be an iterable of Workers, or a Worker class or a factory of no arguments"


def list_workers(workers: Any, count: Any) -> tuple[list[Worker[Any]], Factory | None]:
    """Returns the workers of a pool, as `WorkerPool` was given them, and the factory that made them, if one did.

    Args:
        workers: An iterable of Workers, a Worker class, or a factory of no arguments.
        count: How often the class or the factory is called, from 1; None: once for each processor. Must be None for an
            iterable.

    Raises:
        TypeError: An argument has the wrong type, the factory returned something else than a Worker, or a method of a
            worker would not run when it is called.
        ValueError: There are no workers, `count` is out of range, or the factory returned a worker twice.
        BaseException: What the iterable or the factory raised, unchanged.
    """
    if isinstance(workers, Worker):
        raise TypeError(
            f"{WANTED}; got a single Worker: {describe(workers)}: put it into a list, or pass its class and a count"
        )
    number = None if count is None else checked_count("count", count, 1, optional=True)
    cls = _worker_class(workers)
    iterator = _iterator(workers) if cls is None else None
    if iterator is not None:
        if number is not None:
            raise TypeError(
                f"count={describe(count)} is for a Worker class or a factory, but workers is an iterable: "
                f"{describe(workers)}: leave count out"
            )
        return _listed(iterator), None
    if not callable(workers):
        raise TypeError(f"{WANTED}; got {describe(workers)}")
    abstract = sorted(getattr(cls, "__abstractmethods__", ()))
    if abstract:
        raise TypeError(f"workers: {describe(workers)} is abstract: define {', '.join(abstract)} in a subclass")
    return make_workers(workers, _processors() if number is None else number, ()), workers


def _worker_class(workers: Any) -> type | None:
    """Returns the Worker class that this is, or of which it is a generic alias (`Client[Fetch]`); None if neither."""
    cls: Any = workers if issubclass(type(workers), type) else typing.get_origin(workers)
    return cls if issubclass(type(cls), type) and issubclass(cls, Worker) else None


def _iterator(workers: Any) -> Iterator[Any] | None:
    try:
        iterator: Iterator[Any] = iter(workers)
    except TypeError:
        return None
    return iterator


def _processors() -> int:
    """The number of processors that this process may use, as far as the system tells."""
    if hasattr(os, "process_cpu_count"):  # from 3.13 on
        number: int | None = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        number = len(os.sched_getaffinity(0))
    else:
        number = os.cpu_count()
    return number or 1


def _listed(iterator: Iterator[Any]) -> list[Worker[Any]]:
    listed = [worker for worker in iterator]  # noqa: C416 - list() can leak a list: see list_of in run.pyx
    if not listed:
        raise ValueError("workers must not be empty")
    known: set[type] = set()
    for worker in listed:
        if not isinstance(worker, Worker):
            hint = "" if _worker_class(worker) is None else ": a class; did you mean to call it?"
            raise TypeError(f"workers must be Workers, got {describe(worker)}{hint}")
        check_worker(worker, known)
        checked_retry_on(worker)
    return listed


# ----------------------------------------------------------------------------------------------------------------
# factories


def make_workers(factory: Factory, number: int, others: Iterable[Worker[Any]]) -> list[Worker[Any]]:
    """Calls the factory so many times; `others`: workers that it made before. Raises as `list_workers`."""
    kind = kind_of_function(factory)
    if kind is not None:
        raise TypeError(f"workers: {describe(factory)} is {kind}: a factory is a plain function that returns a Worker")
    made: list[Worker[Any]] = []
    seen: dict[int, None] = {id(worker): None for worker in others}  # by identity: a worker need not be hashable
    known: set[type] = set()
    for _ in range(number):
        try:
            worker = factory()
        except TypeError as error:
            call = _call_with_arguments(factory, error)
            if call is None:
                raise
            raise TypeError(
                f"workers: {describe(factory)} is called without arguments, but {error}: pass a factory that gives "
                f"them, such as `lambda: {call}`"
            ) from error
        if not isinstance(worker, Worker):
            raise TypeError(f"workers: {describe(factory)} must return a Worker, but returned {_refused(worker)}")
        if id(worker) in seen:
            raise ValueError(
                f"workers: {describe(factory)} returned {describe(worker)} twice: it must make a new one at each call"
            )
        check_worker(worker, known)
        checked_retry_on(worker)
        seen[id(worker)] = None
        made.append(worker)
    return made


def _refused(result: object) -> str:
    """Describes what a factory returned instead of a Worker, and says what the user may have meant."""
    text = describe(result)
    if issubclass(type(result), Coroutine):
        result.close()  # type: ignore[attr-defined]  # or Python warns that it was never awaited
        return f"{text}, which has not run: a factory is a plain function"
    if _worker_class(result) is not None:
        return f"{text}: a class; did you mean to call it?"
    if isinstance(result, (list, tuple)):
        return f"{text}: return one Worker, or pass the list itself to WorkerPool"
    return text


def _call_with_arguments(factory: Callable[..., Any], error: TypeError) -> str | None:
    """Returns the call that gives a factory the arguments that it lacks; None if the TypeError is not about those.

    The error is about the arguments of this very call if it was raised in the frame that made it, and the factory's
    signature has parameters without defaults. The signature alone does not tell: it may be that of a function that a
    decorator has wrapped, and whose arguments the decorator gives.
    """
    trace = error.__traceback__
    if type(error) is not TypeError or trace is None or trace.tb_next is not None:
        return None
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # it has no signature
        return None
    arguments = []
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD
        ):  # fmt: skip
            by_name = parameter.kind is parameter.KEYWORD_ONLY
            arguments.append(f"{parameter.name}={parameter.name}" if by_name else parameter.name)
    if not arguments:
        return None
    name = getattr(factory, "__name__", None)
    if not isinstance(name, str) or not name.isidentifier():  # a lambda, or a functools.partial
        name = "factory"
    return f"{name}({', '.join(arguments)})"
