"""PoolExecutor: submit and the futures. CPython's own tests are run by test_futures_cpython.py."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import random
import re
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError, as_completed, wait
from typing import Any

import pytest

from ringmill import Operation, PoolExecutor, Reject, Retry
from ringmill.executor_calls import SubmittedCall
from tests.threads import LONG, run_threads, start_threads, wait_until


def double(number: int) -> int:
    return 2 * number


def fail(error: BaseException) -> None:
    raise error


class Held:
    """Holds the threads of an executor in calls of their own until the block is left."""

    def __init__(self, executor: Executor, threads: int) -> None:
        self.executor = executor
        self.threads = threads
        self.gate = threading.Event()

    def __enter__(self) -> Held:
        begun = threading.Barrier(self.threads + 1)

        def hold() -> None:
            begun.wait(LONG)
            self.gate.wait()

        self.futures = [self.executor.submit(hold) for _ in range(self.threads)]
        begun.wait(LONG)
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0, got 0"),
        ({"max_workers": -3}, ValueError, "max_workers must be greater than 0, got -3"),
        ({"max_workers": "4"}, TypeError, "max_workers must be an integer or None, not '4'"),
        ({"max_workers": 2.0}, TypeError, "max_workers must be an integer or None, not 2.0"),
        ({"max_workers": True}, TypeError, "max_workers must be an integer or None, not True"),
        ({"thread_name_prefix": 3}, TypeError, "thread_name_prefix must be a string, not 3"),
        ({"initializer": "init"}, TypeError, "initializer must be a callable or None, not 'init'"),
        ({"initializer": print, "initargs": 3}, TypeError, "initargs must be an iterable, not 3"),
        ({"context": 1}, TypeError, "context must be True or False, not 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        PoolExecutor(**arguments)


def test_context_is_for_keywords_only() -> None:
    with pytest.raises(TypeError):
        PoolExecutor(1, "", None, (), False)  # type: ignore[misc]


def test_an_object_that_is_not_callable_fails_in_its_future() -> None:
    with PoolExecutor(1) as executor:
        assert isinstance(executor.submit(3).exception(LONG), TypeError)  # type: ignore[arg-type]


def test_an_executor_that_is_not_used_starts_no_thread() -> None:
    before = threading.active_count()
    with PoolExecutor(3):
        assert threading.active_count() == before


def test_the_names_of_threads() -> None:
    with PoolExecutor(2, "mill") as executor, Held(executor, 2):
        names = {thread.name for thread in threading.enumerate()}
    assert {"mill_0", "mill_1"} <= names
    with PoolExecutor(1) as executor:
        name = executor.submit(lambda: threading.current_thread().name).result(LONG)
    assert re.fullmatch(r"ThreadPoolExecutor-\d+_0", name)  # as in the standard class


# submit


def test_submit_never_blocks_and_keeps_the_order() -> None:
    done: list[int] = []
    with PoolExecutor(1) as executor:
        with Held(executor, 1):
            futures = [executor.submit(done.append, number) for number in range(20_000)]
            assert not any(future.done() for future in futures)
        assert not wait(futures, LONG).not_done
    assert done == list(range(20_000))


def test_map_and_submit_keep_one_order() -> None:
    done: list[int] = []
    with PoolExecutor(1) as executor, Held(executor, 1):
        executor.submit(done.append, 0)
        executor.map(done.append, [1, 2, 3])
        executor.submit(done.append, 4)
        executor.map(done.append, iter([5]))
    assert done == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, Retry, Reject])
def test_errors_are_the_futures(kind: type[BaseException]) -> None:
    error = kind()
    with PoolExecutor(1) as executor:
        future = executor.submit(fail, error)
        assert future.exception(LONG) is error
        with pytest.raises(kind) as caught:
            future.result(LONG)
        assert caught.value is error
        with pytest.raises(kind):
            next(executor.map(fail, [error]))
        assert executor.submit(double, 4).result(LONG) == 8  # the thread lives


def test_an_error_that_no_caller_read_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with PoolExecutor(1) as executor:
        executor.submit(fail, ValueError())
        executor.map(fail, [ValueError()])
    gc.collect()
    assert not caplog.records


def test_from_the_executors_own_threads() -> None:
    with PoolExecutor(2) as executor:

        def outer(number: int) -> int:
            return sum(executor.map(double, range(number))) + executor.submit(double, 1).result(LONG)

        assert executor.submit(outer, 5).result(LONG) == 22


@pytest.mark.parametrize("threads", [1, 2])
def test_a_wait_that_no_thread_is_left_to_end_raises(threads: int) -> None:
    with PoolExecutor(threads) as executor:

        def outer(depth: int) -> int:
            return executor.submit(outer, depth - 1).result() if depth else 0

        assert executor.submit(outer, threads - 1).result(LONG) == 0
        with pytest.raises(RuntimeError, match="no worker is left"):
            executor.submit(outer, threads).result(LONG)


def test_nothing_is_kept_of_a_call_that_is_over() -> None:
    class Argument:
        def give(self) -> Argument:
            return self

    with PoolExecutor(1) as executor:
        argument = Argument()
        seen = weakref.ref(argument)
        future = executor.submit(argument.give)
        assert future.result(LONG) is argument
        del argument, future
        executor.submit(double, 1).result(LONG)
        wait_until(lambda: gc.collect() >= 0 and seen() is None)


# futures


def test_a_pending_call_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    entered = threading.Barrier(3)

    def wait_as_well(call: SubmittedCall, timeout: float | None) -> bool:
        entered.wait(LONG)
        return Operation.wait(call, timeout)

    with PoolExecutor(1) as executor:
        told: list[Future[Any]] = []
        with Held(executor, 1) as held:
            future = executor.submit(ran.append, 1)
            future.add_done_callback(told.append)
            monkeypatch.setattr(SubmittedCall, "wait", wait_as_well)
            waiting = start_threads(lambda: future.exception(LONG), lambda: future.result(LONG))
            entered.wait(LONG)  # both have seen that it is pending
            assert not held.futures[0].cancel()
            assert future.cancel()
            assert future.cancel()
            assert future.cancelled()
            assert future.done()
            assert told == [future]
            with pytest.raises(CancelledError):
                waiting.join()
            assert all(isinstance(error, CancelledError) for error in waiting.errors)
        assert wait([future], LONG).done == {future}  # told by the thread that came to it
        assert list(as_completed([future], LONG)) == [future]
        with pytest.raises(InvalidStateError):
            future.set_result(1)
    assert not ran
    assert told == [future]


def test_a_future_that_is_done_cannot_be_cancelled() -> None:
    with PoolExecutor(1) as executor:
        future = executor.submit(double, 4)
        assert future.result(LONG) == 8
        assert not future.cancel()
        assert future.exception() is None
        assert not future.running()
        assert "finished returned int" in repr(future)


@pytest.mark.parametrize("timeout", [0, -1, 0.01])
def test_timeouts_of_futures(timeout: float) -> None:
    called: list[int] = []
    with PoolExecutor(1) as executor, Held(executor, 1) as held:
        with pytest.raises(TimeoutError):
            held.futures[0].result(timeout)
        with pytest.raises(TimeoutError):
            held.futures[0].exception(timeout)
        results = executor.map(called.append, [1, 2], timeout=timeout)
        with pytest.raises(TimeoutError):
            next(results)
        assert held.futures[0].running()
    assert not called  # what was too late is cancelled


def test_a_callback_may_wait_for_one_that_waits_for_the_result() -> None:
    passed = threading.Event()
    with PoolExecutor(1) as executor:
        with Held(executor, 1):
            future = executor.submit(double, 4)
            future.add_done_callback(lambda future: passed.wait(LONG))
            future.add_done_callback(lambda future: results.append(passed.is_set()))
        results: list[Any] = [future.result(LONG)]
        passed.set()
    assert results == [8, True]


def test_callbacks_are_called_once_in_order_whatever_they_raise(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    with PoolExecutor(1) as executor:
        with Held(executor, 1):
            future = executor.submit(double, 4)
            future.add_done_callback(lambda future: calls.append(1))
            future.add_done_callback(lambda future: fail(ValueError("callback")))
            future.add_done_callback(lambda future: calls.append(future.result()))
        future.result(LONG)
        executor.submit(double, 1).result(LONG)
        future.add_done_callback(lambda future: calls.append(3))
    assert calls == [1, 8, 3]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["callback"]


def test_an_error_goes_with_its_future() -> None:
    """No cycle is left of it, its traceback and the future for the collector to find."""

    class Unlike(ValueError):
        pass

    def raise_it(_: object) -> None:
        raise Unlike

    def attempt(way: Callable[[], object]) -> weakref.ref[Unlike]:
        try:
            way()
        except Unlike as error:
            return weakref.ref(error)
        raise AssertionError("it raised nothing")

    gc.collect()
    gc.disable()
    try:
        with PoolExecutor(1) as executor:
            seen = [
                attempt(lambda: executor.submit(raise_it, 1).result(LONG)),
                attempt(lambda: next(executor.map(raise_it, [1]))),
            ]
            wait_until(lambda: executor.submit(double, 1).result(LONG) == 2 and [ref() for ref in seen] == [None, None])
    finally:
        gc.enable()


def test_wait_and_as_completed_among_many() -> None:
    with PoolExecutor(3) as executor:
        with Held(executor, 3) as held:
            futures = [executor.submit(double, number) for number in range(500)]
            waiting = start_threads(
                lambda: wait(futures, LONG), lambda: {future.result() for future in as_completed(futures, LONG)}
            )
            wait_until(lambda: all(future._waiters for future in futures))  # type: ignore[attr-defined]
            assert not wait(futures, 0).done
            held.gate.set()
        (done, not_done), results = waiting.join()
        assert done == set(futures)
        assert not not_done
        assert results == {2 * number for number in range(500)}
        assert not any(future._waiters for future in futures)  # type: ignore[attr-defined]


@pytest.mark.stress
def test_each_future_comes_to_one_end(seed: int, switch_interval: float) -> None:
    """Submitters, cancellers and threads that wait, all at once."""
    calls: list[int] = []
    told: list[int] = []
    with PoolExecutor(2) as executor:

        def submit(part: int) -> list[Future[Any]]:
            dice = random.Random(seed + part)
            futures = []
            for number in range(part * 1000, part * 1000 + 300):
                future = executor.submit(calls.append, number)
                future.add_done_callback(lambda _, number=number: told.append(number))  # type: ignore[misc]
                futures.append(future)
                if dice.random() < 0.3:
                    dice.choice(futures).cancel()
                elif dice.random() < 0.3:
                    with contextlib.suppress(CancelledError):
                        dice.choice(futures).result(LONG)
            return futures

        parts = run_threads(*(functools.partial(submit, part) for part in range(3)))
        futures = [future for part in parts for future in part]
        assert not wait(futures, LONG).not_done
    numbers = [part * 1000 + k for part in range(3) for k in range(300)]
    assert sorted(told) == numbers
    assert sorted(calls) == [number for number, future in zip(numbers, futures, strict=True) if not future.cancelled()]


# contextvars

name = contextvars.ContextVar("name", default="nobody")


def set_and_get(value: str) -> str:
    before = name.get()
    name.set(value)
    return before


def test_calls_see_the_context_of_their_submitter() -> None:
    with PoolExecutor(1, context=True) as executor:

        def submitter(value: str) -> list[str]:
            name.set(value)
            seen = [executor.submit(name.get).result(LONG)]
            seen += executor.map(lambda _: name.get(), range(2))
            later = executor.submit(set_and_get, "changed")
            name.set("after")
            return [*seen, later.result(LONG), name.get(), executor.submit(name.get).result(LONG)]

        rows = run_threads(*(functools.partial(submitter, value) for value in "abc"))
        for value, seen in zip("abc", rows, strict=True):
            assert seen == [value, value, value, value, "after", "after"]
        assert list(executor.map(set_and_get, "xyz")) == ["nobody"] * 3  # a context of its own for each


def test_calls_in_the_context_of_their_thread() -> None:
    with PoolExecutor(1) as executor:
        name.set("caller")
        try:
            assert executor.submit(set_and_get, "first").result(LONG) != "caller"
            assert list(executor.map(set_and_get, ["second", "third"])) == ["first", "second"]
        finally:
            name.set("nobody")


# asyncio


def test_run_in_executor() -> None:
    async def main(executor: PoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        name.set("task")
        assert await loop.run_in_executor(executor, name.get) == "task"
        assert await asyncio.gather(*(loop.run_in_executor(executor, double, number) for number in range(100))) == [
            2 * number for number in range(100)
        ]
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(executor, divmod, 1, 0)
        gate = threading.Event()
        held = [loop.run_in_executor(executor, gate.wait, LONG) for _ in range(2)]
        pending = executor.submit(double, 1)
        wrapped = asyncio.wrap_future(pending)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped
        while not pending.cancelled():  # the loop's next turns do that
            await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*held) == [True, True]

    with PoolExecutor(2, context=True) as executor:
        asyncio.run(main(executor))


def test_results_come_at_once() -> None:
    """A future that is done answers without a wait, whatever its executor does."""
    with PoolExecutor(1) as executor:
        future = executor.submit(time.monotonic)
        first = future.result(LONG)
        with Held(executor, 1):
            assert future.result(0) == future.result() == first
