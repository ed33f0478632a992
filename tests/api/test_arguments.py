"""All calls accept and refuse numbers in the same way; error messages quote an object whatever its repr does."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import queue
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any
from unittest import mock

import pytest

from ringmill import (
    Hub,
    Operation,
    OperationReused,
    PoolExecutor,
    Reject,
    Retry,
    RingBuffer,
    RingmillError,
    Task,
    TaskWorker,
    Worker,
    WorkerPool,
)
from ringmill.errors import describe
from ringmill.worker import checked_retry_on

np: Any
try:
    import numpy as np
except ImportError:  # has no wheel for each version that ringmill has one for
    np = None

REALS: list[Any] = [0, 0.01, Decimal("0.01"), Fraction(1, 100), -0.0]
NOT_REALS: list[Any] = [True, "1", b"1", 1j, [1], object, Decimal("NaN"), Decimal("sNaN"), math.nan]
NEGATIVES: list[Any] = [-1, -0.5, Decimal("-0.1"), Fraction(-1, 3), -math.inf, -(10**400), Fraction(-(10**400))]
INTEGERS: list[Any] = [2]
NOT_INTEGERS: list[Any] = [True, 2.0, Decimal(2), "2", -1, [2]]
if np is not None:
    REALS += [np.float64(0.01), np.float32(0.01), np.float16(0.01), np.longdouble(0.01), np.int64(0), np.uint8(0)]
    REALS += [np.array(0.01), np.array(0)]
    NOT_REALS += [
        np.True_,
        np.array(True),
        np.str_("1"),
        np.complex128(1),
        np.array([1.0]),
        np.array([]),
        np.array(None),
    ]
    NOT_REALS += [np.timedelta64(1, "s"), np.datetime64("2020-01-01"), np.float32("nan")]
    NEGATIVES += [np.float32(-1)]
    INTEGERS += [np.int64(2), np.uint8(2), np.array(2)]
    NOT_INTEGERS += [np.True_, np.array(True), np.float64(2), np.array([2])]

SECONDS: dict[str, Callable[[Any], Any]] = {
    "ring.get": lambda value: RingBuffer[int](1).get(timeout=value),
    "ring.get_many": lambda value: RingBuffer[int](1).get_many(timeout=value),
    "hub.signal": lambda value: Hub[int]().signal(1, timeout=value),
    "op.wait": lambda value: Task(len, "").wait(timeout=value),
    "task.result": lambda value: Task(len, "").result(timeout=value),
    "start": lambda value: _pool().start(timeout=value),
    "shutdown": lambda value: _pool().shutdown(timeout=value),
    "restart_period": lambda value: _pool(restart_period=value),
    "restart_pause": lambda value: _pool(restart_pause=value),
    "delay": lambda value: Retry(delay=value),
    "do": lambda value: _do(value),
}
NAMES = {"restart_period": "restart_period", "restart_pause": "restart_pause", "delay": "delay"}
COUNTS: dict[str, Callable[[Any], Any]] = {
    "capacity": lambda value: RingBuffer(value),
    "maxsize": lambda value: RingBuffer(maxsize=value),
    "max": lambda value: _filled().get_many(value),
    "queue_size": lambda value: _pool(queue_size=value),
    "max_tries": lambda value: _pool(max_tries=value),
    "max_restarts": lambda value: _pool(max_restarts=value),
    "buffer": lambda value: Hub(buffer=value),
    "max_workers": lambda value: PoolExecutor(max_workers=value),
    "buffersize": lambda value: PoolExecutor(1).map(len, [], buffersize=value),
}


def _pool(**more: Any) -> Any:
    return _Quiet([TaskWorker()], **more)


class _Quiet(WorkerPool[Any]):
    def __del__(self) -> None:
        if getattr(self, "_run", None) is not None:
            self.shutdown()


def _filled() -> RingBuffer[int]:
    ring: RingBuffer[int] = RingBuffer(3)
    ring.put_many([1, 2])
    return ring


def _do(timeout: Any) -> None:
    with WorkerPool([TaskWorker()]) as pool:
        pool.do(Task(len, ""), timeout)


def attempt(call: Callable[[Any], Any], value: Any) -> None:
    with contextlib.suppress(TimeoutError, queue.Empty):
        call(value)


class Real:
    """A number by `__float__` alone."""

    def __float__(self) -> float:
        return 0.01


@pytest.mark.parametrize("call", SECONDS.values(), ids=SECONDS)
@pytest.mark.parametrize("value", [*REALS, Real()], ids=repr)
def test_seconds_are_any_real_number(call: Callable[[Any], Any], value: Any) -> None:
    attempt(call, value)


@pytest.mark.parametrize("where", SECONDS)
@pytest.mark.parametrize("value", NOT_REALS + NEGATIVES, ids=repr)
def test_other_seconds_are_refused_by_name(where: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        SECONDS[where](value)
    assert NAMES.get(where, "timeout") in str(caught.value)
    assert describe(value) in str(caught.value)


@pytest.mark.parametrize("value", [math.inf, 10**400, Fraction(10**400), Decimal("1e400"), 1e300])
def test_infinity_is_no_limit(value: Any) -> None:
    ring: RingBuffer[int] = RingBuffer(1)
    ring.put(1, timeout=value)
    assert ring.get(timeout=value) == 1
    pool = WorkerPool([TaskWorker()], restart_period=value, restart_pause=value)
    pool.start(value)
    task = pool.do(Task(len, ""), value)
    assert task.wait(value)
    assert task.result(value) == 0
    pool.shutdown(timeout=value)
    assert Retry(delay=value).delay == math.inf or value == 1e300
    with PoolExecutor(1) as executor:
        assert executor.submit(len, "").result(value) == 0
        assert list(executor.map(len, [""], timeout=value)) == [0]


@pytest.mark.parametrize("value", [*NEGATIVES, 0, Fraction(0)])
def test_a_future_waits_for_negative_seconds_as_for_none(value: Any) -> None:
    with PoolExecutor(1) as executor:
        ring: RingBuffer[int] = RingBuffer(1)
        future = executor.submit(ring.get)
        with pytest.raises(TimeoutError):
            future.result(value)
        ring.put(1)
        assert future.result(30) == 1


class Index:
    def __index__(self) -> int:
        return 2


@pytest.mark.parametrize("call", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("value", [*INTEGERS, Index()], ids=repr)
def test_counts_are_anything_with_an_index(call: Callable[[Any], Any], value: Any) -> None:
    call(value)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", NOT_INTEGERS, ids=repr)
def test_other_counts_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        COUNTS[name](value)
    assert name in str(caught.value)
    assert describe(value) in str(caught.value)


# What a message quotes


class Text(str):
    def __len__(self) -> int:
        raise ValueError

    def __getitem__(self, key: Any) -> str:
        raise ValueError

    def __format__(self, spec: str) -> str:
        raise ValueError


def _reprs() -> list[Any]:
    def raising(error: BaseException) -> Callable[[object], str]:
        def text(self: object) -> str:
            raise error

        return text

    return [
        raising(ValueError("no")), raising(SystemExit()), raising(RecursionError()), lambda self: "x" * 10**6,
        lambda self: 3, lambda self: Text("y" * 1000), lambda self: Text("short"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", _reprs())
def test_no_repr_replaces_an_error_or_makes_it_long(text: Any) -> None:
    class Odd(Operation):
        __repr__ = text

    class OddRing(RingBuffer[int]):
        __repr__ = text

    assert len(describe(Odd())) <= 200
    assert type(describe(Odd())) is str
    cancelled = Odd()
    cancelled.cancel()
    ring = OddRing(1)
    ring.close()
    pool = _pool()
    pool.start()
    calls: list[tuple[type[BaseException], Callable[[], Any]]] = [
        (OperationReused, lambda: pool.do(cancelled)),
        (OperationReused, lambda: pool.execute([cancelled])),
        (OperationReused, lambda: list(pool.wrap([cancelled]))),
        (TypeError, lambda: pool.do(Odd)),
        (Exception, cancelled.check),
        (Exception, Odd().check),
        (RingmillError, lambda: ring.put(1)),
        (RingmillError, lambda: ring.get()),
        (TypeError, lambda: RingBuffer(Odd())),
        (TypeError, lambda: Task(Odd())),  # type: ignore[arg-type]
        (TypeError, lambda: Retry(delay=Odd())),  # type: ignore[arg-type]
        (TypeError, lambda: ring.get(timeout=Odd())),  # type: ignore[arg-type]
        (TypeError, lambda: WorkerPool(Odd())),  # type: ignore[arg-type]
        (TypeError, lambda: WorkerPool([Odd()])),  # type: ignore[list-item]
        (TypeError, lambda: Hub(buffer=Odd())),  # type: ignore[arg-type]
        (TypeError, lambda: PoolExecutor(initializer=Odd())),  # type: ignore[arg-type]
    ]
    for kind, call in calls:
        with pytest.raises(kind) as caught:
            call()
        assert not isinstance(caught.value, (SystemExit, RecursionError))
        assert len(str(caught.value)) < 400


def test_a_keyboard_interrupt_within_a_repr_is_raised() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        describe(Odd())
    with PoolExecutor(1) as executor:
        assert "Odd object at" in executor.submit(describe, Odd()).result(30)


# What a pool checks of its workers


async def _coroutine(self: Any = None, *args: Any) -> None: ...


def _generator(self: Any = None, *args: Any) -> Any:
    yield


async def _async_generator(self: Any = None, *args: Any) -> Any:
    yield


class _AsyncCall:
    async def __call__(self, *args: Any) -> None: ...


def _sync(function: Any) -> Any:
    """A decorator that runs a coroutine: what it gives is a plain function, whatever it wraps."""

    @functools.wraps(function)
    def run(self: Any, *args: Any) -> None:
        function(self, *args).close()

    return run


@pytest.mark.parametrize("name", ["process", "init", "handle_error", "cleanup", "equal", "interrupt"])
@pytest.mark.parametrize(
    "method",
    [
        _coroutine, _generator, _async_generator, staticmethod(_coroutine), classmethod(_generator),
        functools.partialmethod(_coroutine, 1), functools.partial(_generator, 1), _AsyncCall(), mock.AsyncMock(),
        functools.partial(functools.partial(_async_generator)), functools.partial(_AsyncCall()), 3,
    ],
    ids=repr,
)  # fmt: skip
def test_a_method_that_would_not_run_is_refused_when_the_pool_is_made(name: str, method: Any) -> None:
    class Odd(TaskWorker):
        pass

    if not isinstance(method, functools.partial):  # which is to become a descriptor
        setattr(Odd, name, method)
        with pytest.raises(TypeError, match=rf"Odd\.{name}"):
            WorkerPool([TaskWorker(), Odd()])
    if isinstance(method, (staticmethod, classmethod, functools.partialmethod)):
        return
    worker = TaskWorker()
    setattr(worker, name, method)  # of the one alone
    with pytest.raises(TypeError, match=rf"TaskWorker\.{name}"):
        WorkerPool([TaskWorker(), worker])


@pytest.mark.parametrize("process", [lambda self, op: op.run(), mock.Mock(), mock.MagicMock(), _sync(_coroutine)])
def test_any_other_callable_is_a_method(process: Any) -> None:
    class Odd(Worker[Any]):
        pass

    Odd.process = process  # type: ignore[method-assign]
    Odd.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    WorkerPool([Odd()])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((), ()),
        (ConnectionError, (ConnectionError,)),
        ((OSError, ValueError), (OSError, ValueError)),
        (RingmillError, (RingmillError,)),
        (Exception, (Exception,)),
    ],
)
def test_retry_on_is_a_class_or_a_tuple(value: Any, expected: Any) -> None:
    class Trying(TaskWorker):
        retry_on = value

    WorkerPool([Trying()])
    assert checked_retry_on(Trying()) == expected


@pytest.mark.parametrize(
    "value",
    [
        Retry, (Reject,), (OSError, Retry), BaseException, KeyboardInterrupt, (SystemExit,), "OSError", ["OSError"],
        [OSError], {OSError}, None, (None,), (OSError, (ValueError,)), OSError("x"), (OSError("x"),), 3, int, (int,),
        list[int], type("Again", (Retry,), {}),
    ],
    ids=repr,
)  # fmt: skip
def test_other_retry_ons_are_refused_when_the_pool_is_made(value: Any) -> None:
    class Trying(TaskWorker):
        retry_on = value

    worker = TaskWorker()
    worker.retry_on = value
    for one in (Trying(), worker):
        with pytest.raises(TypeError, match="retry_on") as caught:
            WorkerPool([TaskWorker(), one])
        assert type(one).__qualname__ in str(caught.value)
        assert describe(value) in str(caught.value)


# Rings and streams


class Named(RingBuffer[Any]):
    def __init__(self, name: str, size: int, *more: Any, key: Any = None) -> None:
        self.name = name
        super().__init__(size)


class Unmade(RingBuffer[Any]):
    def __init__(self, *args: Any) -> None:
        pass


def test_a_subclass_has_an_init_of_its_own() -> None:
    ring = Named("a", 2, 3, 4, key=5)
    ring.put_many("xy")
    assert (ring.name, ring.capacity, ring.full(), ring.get_many()) == ("a", 2, True, ["x", "y"])
    with pytest.raises(ValueError, match="capacity"):
        Named("a", 0)


def test_the_capacity_has_two_names() -> None:
    assert RingBuffer(capacity=4).capacity == RingBuffer(maxsize=4).maxsize == RingBuffer(4).maxsize == 4
    with pytest.raises(TypeError, match="missing argument: capacity, or maxsize"):
        RingBuffer()  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="maxsize is another name for capacity"):
        RingBuffer(4, maxsize=4)  # type: ignore[call-overload]
    for name in ("capacity", "maxsize"):
        for value in (0, -1):
            with pytest.raises(ValueError, match=f"^{name} must be from 1 .* got {value}: there is no unbounded ring"):
                RingBuffer(**{name: value})


@pytest.mark.parametrize("ring", [Unmade(1, 2), RingBuffer.__new__(RingBuffer), Named.__new__(Named, 3)])
def test_a_ring_that_was_not_initialized_says_so(ring: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: ring.put(1), lambda: ring.put_nowait(1), ring.get, ring.get_nowait, lambda: ring.put_many([1]),
        lambda: ring.put_many(iter([1])), ring.get_many, ring.close, ring.shutdown, lambda: ring.shutdown(True),
        ring.clear,
        ring.task_done, ring.join, ring.qsize, ring.empty, ring.full, lambda: len(ring), lambda: ring.closed,
        lambda: ring.is_shutdown, lambda: ring.maxsize, lambda: ring.unfinished_tasks, lambda: list(ring),
        lambda: ring.aput(1).send(None), lambda: ring.aget().send(None), lambda: ring.__anext__().send(None),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(RuntimeError, match=r"super\(\).__init__\(capacity\)"):
            call()
    assert "not initialized" in repr(ring)
    with WorkerPool([TaskWorker()]) as pool, pytest.raises(RuntimeError, match="not been initialized"):
        pool.wrap(ring)
    sound: RingBuffer[int] = RingBuffer(1)  # is none the worse for it
    sound.put_nowait(1)
    assert sound.get_nowait() == 1
    RingBuffer.__init__(ring, 2)  # late
    ring.put(1)
    assert (ring.capacity, ring.get(), ring.closed) == (2, 1, False)


def test_an_init_that_failed_may_be_called_again() -> None:
    ring = RingBuffer.__new__(RingBuffer)
    with pytest.raises(ValueError, match="capacity"):
        ring.__init__(0)  # type: ignore[misc]
    ring.__init__(1)  # type: ignore[misc]
    ring.put(1)
    assert ring.full()


def test_in_consumes_nothing() -> None:
    ring: RingBuffer[int] = RingBuffer(3)
    ring.put_many([1, 2])
    for what in (1, 3, None):
        with pytest.raises(TypeError, match="consume"):
            what in ring  # noqa: B015
        with pytest.raises(TypeError, match="consume"):
            what not in ring  # noqa: B015
    assert ring.get_many() == [1, 2]
    with WorkerPool([TaskWorker()]) as pool:
        tasks = [Task(len, ""), Task(len, "a")]
        for stream in (pool.execute(tasks[:1]), pool.wrap(tasks[1:])):
            with pytest.raises(TypeError, match="consume"):
                tasks[0] in stream  # noqa: B015
            assert len(list(stream)) == 1


def test_the_length_of_a_stream_is_its_total_or_unknown() -> None:
    with WorkerPool([TaskWorker()]) as pool:
        stream = pool.execute([Task(len, "") for _ in range(5)])
        assert (len(stream), stream.total, bool(stream), operator.length_hint(stream)) == (5, 5, True, 5)
        next(stream)
        assert len(stream) == 5
        assert len(list(stream)) == 4
        assert (len(stream), stream.ready) == (5, 0)
        endless = pool.wrap(iter([Task(len, "")]))
        with pytest.raises(TypeError, match="not known"):
            len(endless)
        assert (bool(endless), operator.length_hint(endless, 7)) == (True, 7)
        assert len(list(endless)) == 1
        assert len(endless) == 1
