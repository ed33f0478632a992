"""Objects of the user's whose every attribute may raise: operations end, waits return, streams end, messages are made.

The code of the pool must look at exceptions by their type alone, never by `__class__`, `__traceback__`, `__cause__` or
a method that their class, or its metaclass, may have replaced.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import pickle
import threading
from abc import ABCMeta
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from ringmill import Closed, Operation, Outcome, PoolExecutor, Retry, RingmillError, Worker, WorkerPool
from ringmill.arguments import count, describe, seconds
from tests.threads import LONG


def raises(*_: object) -> Any:
    raise LookupError("odd")


class OddClass(Exception):
    """isinstance() looks at this attribute, and raises what it raises."""

    __class__ = property(raises)  # type: ignore[assignment]


class OddTraceback(Exception):
    __traceback__ = property(raises)  # type: ignore[assignment]
    with_traceback = raises


class OddCause(Exception):
    __cause__ = property(raises)  # type: ignore[assignment]
    __context__ = property(raises)  # type: ignore[assignment]


ODD = (OddClass, OddTraceback, OddCause)


class Hidden(ABCMeta):
    """A metaclass that raises for the names in `hides`, once a class has been made."""

    hides: tuple[str, ...] = ()

    def __getattribute__(cls, name: str) -> Any:
        if name in Hidden.hides:
            raise LookupError(name)
        return super().__getattribute__(name)


class Job(Operation):
    """Calls a function; its done() raises `raises`, if there is one."""

    def __init__(self, call: Callable[[], object] | None = None, raises: type[BaseException] | None = None) -> None:
        self.call = call
        self.raises = raises
        self.ends = 0

    def done(self) -> None:
        self.ends += 1
        if self.raises is not None:
            raise self.raises


class HiddenJob(Job, metaclass=Hidden):
    pass


class Hand(Worker[Any]):
    def process(self, op: Job) -> None:
        if op.call is not None:
            op.call()


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def hide() -> Iterator[Callable[..., None]]:
    def set_hidden(*names: str) -> None:
        Hidden.hides = names

    yield set_hidden
    Hidden.hides = ()


def cancel(pool: WorkerPool[Any], op: Job) -> None:
    op.cancel()


def cancel_queued(pool: WorkerPool[Any], op: Job) -> None:
    begun, go_on = threading.Event(), threading.Event()
    pool.do(Job(lambda: (begun.set(), go_on.wait(LONG))))
    assert begun.wait(LONG)
    pool.do(op)
    op.cancel()
    go_on.set()


def cancel_all(pool: WorkerPool[Any], op: Job) -> None:
    begun, go_on = threading.Event(), threading.Event()
    pool.do(Job(lambda: (begun.set(), go_on.wait(LONG))))
    assert begun.wait(LONG)
    pool.do(op)
    assert pool.shutdown(wait=False, cancel_pending=True) == [op]
    go_on.set()


def run(pool: WorkerPool[Any], op: Job) -> None:
    pool.do(op)


ENDS = (cancel, cancel_queued, cancel_all, run)


def assert_ended(pool: WorkerPool[Any], op: Job) -> None:
    assert Operation.wait(op, LONG)
    assert op.outcome is not Outcome.PENDING
    pool.shutdown(timeout=LONG)
    stats = pool.stats()
    assert stats.accepted == stats.succeeded + stats.failed + stats.cancelled
    assert stats.restarts == 0


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("error", ODD)
def test_an_odd_exception_out_of_done_keeps_no_thread_waiting(
    end: Callable[[WorkerPool[Any], Job], None], error: type[BaseException]
) -> None:
    pool = WorkerPool([Hand()])
    pool.start()
    op = Job(raises=error)
    end(pool, op)
    assert_ended(pool, op)
    assert op.ends == 1


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("names", [("done",), ("__qualname__", "__name__"), ("__mro__",), ("__dict__",)])
def test_a_metaclass_that_raises_keeps_no_thread_waiting(
    end: Callable[[WorkerPool[Any], Job], None], names: tuple[str, ...], hide: Callable[..., None]
) -> None:
    pool = WorkerPool([Hand()])
    pool.start()
    op = HiddenJob(raises=ValueError)
    hide(*names)
    try:
        end(pool, op)
    finally:
        hide()
    hide(*names)
    assert Operation.wait(op, LONG)
    hide()
    assert_ended(pool, op)


@pytest.mark.usefixtures("quiet")
def test_increment_try_of_a_class_whose_name_cannot_be_had(hide: Callable[..., None]) -> None:
    class Counting(HiddenJob):
        def increment_try(self) -> None:
            raise ValueError

    tries = iter([Retry()])

    def fail_once() -> None:
        for error in tries:
            raise error

    with WorkerPool([Hand()]) as pool:
        op = Counting(fail_once)
        hide("__qualname__", "__name__")
        pool.do(op)
        assert Operation.wait(op, LONG)
        hide()
        assert op.outcome is Outcome.SUCCEEDED  # what the override raises is logged, and no more


@pytest.mark.parametrize("error", ODD)
def test_a_repr_that_raises_an_odd_exception(error: type[BaseException]) -> None:
    class Bad:
        def __repr__(self) -> str:
            raise error

    assert "Bad object at" in describe(Bad())


# ----------------------------------------------------------------------------------------------------------------
# sources


class Source:
    """Gives two operations, then raises; no generator, in which StopIteration and its like become RuntimeError."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error
        self.left = 2

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> Job:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return Job()


@pytest.mark.parametrize("error", [*ODD, Closed])
@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
@pytest.mark.parametrize("ordered", [False, True])
def test_what_a_source_raises_comes_out_once(error: type[BaseException], drawn_by: Any, ordered: bool) -> None:
    with WorkerPool([Hand()]) as pool:
        stream = pool.wrap(Source(error), drawn_by=drawn_by, ordered=ordered)
        assert all(isinstance(stream.get(LONG), Job) for _ in range(2))
        with pytest.raises(BaseException) as raised:  # noqa: PT011 - the type is checked below
            stream.get(LONG)
        assert type(raised.value) is error
        with pytest.raises(Closed):
            stream.get(LONG)


def test_stop_async_iteration_of_a_source_is_not_the_end() -> None:
    async def read(stream: AsyncIterator[Job]) -> None:
        read = 0
        with pytest.raises(RuntimeError, match="StopAsyncIteration"):  # noqa: PT012
            async for _ in stream:
                read += 1
        assert read == 2

    with WorkerPool([Hand()]) as pool:
        asyncio.run(read(pool.wrap(Source(StopAsyncIteration))))


# ----------------------------------------------------------------------------------------------------------------
# futures, numbers


@pytest.mark.parametrize("error", ODD)
def test_a_future_raises_an_odd_exception(error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    with PoolExecutor(1) as executor:
        future = executor.submit(fail)
        for _ in range(3):
            with pytest.raises(BaseException) as raised:  # noqa: PT011 - the type is checked below
                future.result(LONG)
            assert type(raised.value) is error
        assert executor.submit(int).result(LONG) == 0


class Number:
    """Every way to a number raises."""

    __float__ = __index__ = raises


class Described(Number):
    """As numpy's numbers, it says what it is; or raises."""

    dtype = property(raises)


class OddFloat(float):
    __float__ = __bool__ = __lt__ = __gt__ = raises  # type: ignore[assignment]


class Overflowing:
    """Too large, it says, but it cannot be compared."""

    def __float__(self) -> float:
        raise OverflowError


@pytest.mark.parametrize("value", [Number(), Described(), OddFloat(1.0), Overflowing()])
def test_a_number_that_raises_is_a_bad_argument(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^limit must be a number of seconds, not ") as raised:
        seconds("limit", value)
    assert raised.value.__cause__ is not None
    with pytest.raises(TypeError, match=r"^size must be an integer, not "):
        count("size", value, 1)


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_what_is_no_fault_of_an_argument_is_raised_as_it_is(error: type[Exception]) -> None:
    class Short:
        def __float__(self) -> float:
            raise error

        def __index__(self) -> int:
            raise error

    with pytest.raises(error):
        seconds("limit", Short())
    with pytest.raises(error):
        count("size", Short(), 1)


@pytest.mark.parametrize("value", [Number(), Described(), OddFloat(1.0), Overflowing()])
@pytest.mark.parametrize("how", ["delay", "backoff"])
def test_a_delay_that_raises_fails_its_operation(value: Any, how: str) -> None:
    def fail() -> None:
        error = Retry()
        if how == "delay":
            error.delay = value
        raise error

    with WorkerPool([Hand()], backoff=lambda tries: value) as pool:
        op = pool.do(Job(fail))
        assert Operation.wait(op, LONG)
        assert isinstance(op.error, TypeError)
        assert "must be a number of seconds" in str(op.error)
        assert op.error.__cause__ is not None
        assert pool.stats().restarts == 0


def test_a_backoff_that_raises_the_error_itself_makes_no_cycle() -> None:
    """An error that is its own cause sends code that follows the causes round without end."""
    error = ConnectionError("the one")

    def fail(*_: object) -> Any:
        raise error

    class Flaky(Hand):
        retry_on = ConnectionError

    with WorkerPool([Flaky()], backoff=fail) as pool:
        op = pool.do(Job(fail))
        assert Operation.wait(op, LONG)
        assert op.error is error
        assert error.__cause__ is None


# ----------------------------------------------------------------------------------------------------------------
# copies


class NotThere(RingmillError, ImportError):
    pass


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_copy_keeps_what_import_error_holds_outside_of_its_arguments(again: Callable[[Any], Any]) -> None:
    error = NotThere("no such module", name="spam", path="/eggs")
    error.extra = 1  # type: ignore[attr-defined]
    copied = again(error)
    assert type(copied) is NotThere
    assert (copied.args, copied.name, copied.path, copied.extra) == (error.args, "spam", "/eggs", 1)


# ----------------------------------------------------------------------------------------------------------------
# a process that has not run


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that hides what kind of function it wraps."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


class Coroutines(Worker[Any]):
    @plain
    async def process(self, op: Job) -> None:
        raise AssertionError


class Generators(Worker[Any]):
    @plain
    def process(self, op: Job) -> Iterator[None]:
        yield


class AsyncGenerators(Worker[Any]):
    @plain
    async def process(self, op: Job) -> AsyncIterator[None]:
        yield


@pytest.mark.parametrize("worker", [Coroutines, Generators, AsyncGenerators])
def test_a_decorated_process_that_does_not_run_fails_its_operations(worker: type[Worker[Any]]) -> None:
    with WorkerPool([worker()]) as pool:
        op = pool.do(Job())
        assert Operation.wait(op, LONG)
        assert op.outcome is Outcome.FAILED
        assert isinstance(op.error, TypeError)
        assert f"{worker.__name__}.process returned" in str(op.error)
        assert pool.stats().restarts == 0
