"""PoolExecutor: initializers, shutdown, an executor that is dropped, the interpreter's exit, fork."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import BrokenExecutor, CancelledError, Future, as_completed, wait

import pytest

from ringmill import BrokenPool, PoolExecutor
from tests.futures.test_futures import LONG, Held, double
from tests.threads import run_threads, start_threads, wait_until


def run(script: str) -> tuple[str, str]:
    """What a program prints and what it complains of."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=LONG, cwd="/"
    )
    return done.stdout.strip(), done.stderr


# The initializer


def test_each_thread_calls_the_initializer_before_its_first_call() -> None:
    calls: list[tuple[int, str, int]] = []
    ready = threading.local()

    def initialize(word: str, number: int) -> None:
        calls.append((threading.get_ident(), word, number))
        ready.yes = True

    with PoolExecutor(3, "", initialize, ("word", 7)) as executor:
        with Held(executor, 3):
            pass
        assert all(executor.map(lambda _: ready.yes, range(100)))
    assert [call[1:] for call in calls] == [("word", 7)] * 3
    assert len({call[0] for call in calls}) == 3


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_initializer_that_raises_breaks_the_executor(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    error = kind("no")
    gate = threading.Event()

    def initialize() -> None:
        gate.wait(LONG)
        raise error

    ran: list[int] = []
    executor = PoolExecutor(2, initializer=initialize)
    futures = [executor.submit(ran.append, number) for number in range(10)]
    results = executor.map(ran.append, range(3))
    cancelled = futures[-1]
    assert cancelled.cancel()
    told: list[Future[None]] = []
    futures[5].add_done_callback(told.append)
    waiting = start_threads(lambda: set(as_completed(futures, LONG)), futures[7].exception)
    gate.set()
    for future in futures[:-1]:
        failure = future.exception(LONG)
        assert isinstance(failure, BrokenPool)
        assert isinstance(failure, BrokenExecutor)
        assert failure.__cause__ is error
        assert "the initializer of a thread raised" in str(failure)
    with pytest.raises(BrokenPool):
        next(results)
    with pytest.raises(CancelledError):
        cancelled.result(LONG)
    everything, failure = waiting.join()
    assert everything == set(futures)
    assert isinstance(failure, BrokenPool)
    with pytest.raises(BrokenPool, match="takes no more calls"):
        executor.submit(ran.append, 1)
    with pytest.raises(BrokenPool):
        executor.map(ran.append, [1])
    executor.shutdown()
    with pytest.raises(BrokenPool):  # as ThreadPoolExecutor says it
        executor.submit(ran.append, 1)
    assert not ran
    assert told == [futures[5]]
    assert "Exception in initializer:" in caplog.messages


def test_submit_does_not_wait_for_the_initializer() -> None:
    gate = threading.Event()
    with PoolExecutor(1, initializer=gate.wait, initargs=(LONG,)) as executor:
        future = executor.submit(double, 1)
        assert not future.done()
        gate.set()
        assert future.result(LONG) == 2


# shutdown


def test_shutdown_finishes_what_is_pending() -> None:
    executor = PoolExecutor(2)
    with Held(executor, 2):
        futures = [executor.submit(double, number) for number in range(100)]
        results = executor.map(double, range(100))
        executor.shutdown(wait=False)
        assert not futures[0].done()
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(double, 1)
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.map(double, [1])
    executor.shutdown()
    assert not any(thread.is_alive() for thread in executor._threads)
    assert [future.result(0) for future in futures] == list(results) == [2 * number for number in range(100)]
    executor.shutdown()


def test_shutdown_cancels_what_has_not_begun() -> None:
    executor = PoolExecutor(2)
    told: list[Future[int]] = []
    with Held(executor, 2) as held:
        futures = [executor.submit(double, number) for number in range(50)]
        results = executor.map(double, range(3))
        futures[0].cancel()
        futures[1].add_done_callback(told.append)
        waiting = start_threads(lambda: wait(futures, LONG))
        wait_until(lambda: all(future._waiters for future in futures))  # type: ignore[attr-defined]
        executor.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in futures)
        assert waiting.join()[0].done == set(futures)  # ThreadPoolExecutor leaves these waiting forever
        with pytest.raises(CancelledError):
            futures[9].result(LONG)
        with pytest.raises(CancelledError):
            next(results)
        assert told == [futures[1]]
        assert not any(future.done() for future in held.futures)
    executor.shutdown()
    assert all(future.result(0) is None for future in held.futures)


def test_shutdown_before_the_first_submission() -> None:
    executor = PoolExecutor(2)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(double, 1)
    assert not executor._threads


def test_shutdown_from_one_of_its_own_threads() -> None:
    with PoolExecutor(1) as executor:
        with pytest.raises(RuntimeError):
            executor.submit(executor.shutdown).result(LONG)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(double, 1)


@pytest.mark.stress
def test_submitted_operations_are_done_whenever_shutdown_is_called(switch_interval: float) -> None:
    for _ in range(20):
        executor = PoolExecutor(2)
        done: list[int] = []

        def submit(executor: PoolExecutor, done: list[int]) -> list[Future[None]]:
            futures: list[Future[None]] = []
            with pytest.raises(RuntimeError, match="after shutdown"):
                futures.extend(iter(functools.partial(executor.submit, done.append, 1), None))
            return futures

        def end(executor: PoolExecutor, done: list[int]) -> None:
            wait_until(lambda: len(done) > 20)
            executor.shutdown()

        *parts, _ = run_threads(
            *[functools.partial(submit, executor, done)] * 2, functools.partial(end, executor, done)
        )
        futures = [future for part in parts for future in part]
        assert all(future.result(LONG) is None for future in futures)
        assert len(done) == len(futures)


# An executor that is dropped


@pytest.mark.parametrize("cycle", [False, True])
def test_an_executor_that_is_dropped_finishes_and_ends(cycle: bool) -> None:
    executor = PoolExecutor(2)
    if cycle:
        executor.self = executor  # type: ignore[attr-defined]
    with Held(executor, 2) as held:
        held.executor = None  # type: ignore[assignment]
        threads = executor._threads
        assert len(threads) == 2
        futures = [executor.submit(double, number) for number in range(20)]
        results = executor.map(double, range(3), buffersize=1)
        seen = weakref.ref(executor)
        del executor
        gc.collect()
        assert seen() is None
        assert all(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert [future.result(0) for future in futures] == [2 * number for number in range(20)]
    assert list(results) == [0]  # no executor is left to submit the next one to


# The end of the interpreter

PRELUDE = """
    import atexit, os, sys, threading, time
    from ringmill import PoolExecutor

    def say(word):
        os.write(1, f"{word} ".encode())
"""


@pytest.mark.parametrize("ending", ["", "executor.shutdown(wait=False)", "del executor"])
def test_exit_finishes_what_is_pending(ending: str) -> None:
    out, err = run(
        PRELUDE
        + f"""
    executor = PoolExecutor(1)
    executor.submit(time.sleep, 0.05)
    for number in range(5):
        executor.submit(say, number)
    results = executor.map(say, "ab")
    {ending}
    """
    )
    assert (out, err) == ("0 1 2 3 4 a b", "")


def test_submit_at_exit() -> None:
    out, err = run(
        "import atexit\natexit.register(lambda: late())\n"
        + textwrap.dedent(PRELUDE)
        + textwrap.dedent("""
    def late():
        for executor in started, new:
            try:
                executor.submit(say, "late")
            except RuntimeError as error:
                say(str(error).replace(" ", "-"))
    started, new = PoolExecutor(1), PoolExecutor(1)
    started.submit(say, "first").result()
    """)
    )
    assert out.split() == ["first"] + ["cannot-schedule-new-futures-after-interpreter-shutdown"] * 2
    assert err == ""


# fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_in_the_child_of_a_fork() -> None:
    unused = PoolExecutor(1)
    with PoolExecutor(1) as executor:
        with Held(executor, 1):
            pending = executor.submit(double, 4)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    submit, spread = functools.partial(executor.submit, double), functools.partial(executor.map, double)
                    for call in (functools.partial(submit, 1), functools.partial(spread, [1]), pending.result):
                        with pytest.raises(RuntimeError, match="inherited through a fork"):
                            call()
                    assert pending.cancel() or pending.done()
                    executor.shutdown()
                    with unused, PoolExecutor(1) as new:
                        assert unused.submit(double, 2).result(LONG) == new.submit(double, 2).result(LONG) == 4
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert pending.result(LONG) == 8
        assert executor.submit(double, 2).result(LONG) == 4
    unused.shutdown()
