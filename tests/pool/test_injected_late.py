"""Exceptions that come before the timer's thread has begun, and again and again in the policy of one worker: no retry
waits for a thread that is gone.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from ringmill import Operation, Outcome, Retry, Worker, WorkerPool
from ringmill.supervisor import Supervisor
from tests.threads import LONG


class Job(Operation):
    pass


class Delayer(Worker[Any]):
    delay: float | None = 0.001

    def process(self, op: Job) -> None:
        if op.tries < 2:
            raise Retry(delay=self.delay)


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    hook = threading.excepthook
    threading.excepthook = lambda _: None  # type: ignore[assignment]
    yield
    threading.excepthook = hook
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("error", [ValueError, SystemExit])
@pytest.mark.parametrize("times", [1, 1000])
def test_a_timer_whose_thread_ends_before_it_begins(error: type[BaseException], times: int) -> None:
    """A debugger may quit at the first line of a thread. Where no timer can run, nothing is delayed."""
    left = [times]

    def quit_timers(frame: FrameType, event: str, arg: object) -> None:
        if threading.current_thread().name.endswith("-timer") and frame.f_code.co_name == "run" and left[0] > 0:
            left[0] -= 1
            raise error

    with WorkerPool([Delayer(), Delayer()]) as pool:
        threading.settrace(quit_timers)
        try:
            ops = [pool.do(Job()) for _ in range(4)]
            for op in ops:
                assert op.wait(LONG)
                assert op.outcome is Outcome.SUCCEEDED
        finally:
            threading.settrace(None)  # type: ignore[arg-type]
        assert left[0] < times


@pytest.mark.usefixtures("quiet")
def test_a_worker_whose_supervision_fails_for_good_leaves_its_retries_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that is given up takes nothing any more, so the one that had an operation before may try it again."""
    live = Supervisor._live

    def fail_for_good(self: Supervisor, worker_loop: Any) -> None:
        if worker_loop.index != 0:
            live(self, worker_loop)
            return
        if not worker_loop.has_reported:
            error = worker_loop.call_init()
            worker_loop.set_alive(error is None)
            worker_loop.report(error)
        raise ValueError("again and again")

    class Direct(Delayer):
        delay = None

    monkeypatch.setattr(Supervisor, "_live", fail_for_good)
    with WorkerPool([Direct(), Direct()], max_tries=None) as pool:
        run = pool._run
        assert run is not None
        run.threads[0].join(LONG)
        assert not run.threads[0].is_alive()
        op = pool.do(Job())
        assert op.wait(LONG)
        assert op.outcome is Outcome.SUCCEEDED


if sys.gettrace() is not None:  # coverage, a debugger: they would be replaced
    pytestmark = pytest.mark.skip("another tracer is at work")
