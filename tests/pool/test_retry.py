"""Retries: number of tries, delays, and the cost of operations that wait for their delay."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ringmill import Operation, Outcome, RetriesExhausted, Retry, Task, TaskWorker, Worker, WorkerPool
from tests.pools import counts
from tests.threads import HOUR, LONG, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


Step = BaseException | Callable[["Actor"], Any] | None


class Job(Operation):
    """Carries what is to happen to it, one step for each time that it is processed; then it succeeds."""

    def __init__(self, *script: Step) -> None:
        self.script = script
        self.seen: list[Actor] = []
        self.told = 0

    def increment_try(self) -> None:
        self.told += 1


class Actor(Worker[Job]):
    def __init__(self) -> None:
        self.handled: list[tuple[BaseException, Job, Outcome, int]] = []

    def process(self, op: Job) -> None:
        op.seen.append(self)
        if len(op.seen) <= len(op.script):
            step = op.script[len(op.seen) - 1]
            if isinstance(step, BaseException):
                raise step
            if step is not None:
                step(self)

    def handle_error(self, error: BaseException, op: Job) -> None:
        self.handled.append((error, op, op.outcome, op.tries))


# How often


@pytest.mark.parametrize("max_tries", [1, 2, 4, 10])
@pytest.mark.parametrize("workers", [1, 3])
def test_max_tries_runs_process_so_often_and_no_more(max_tries: int, workers: int) -> None:
    actors = [Actor() for _ in range(workers)]
    errors = [Retry(f"try {k}") for k in range(20)]
    with WorkerPool(actors, max_tries=max_tries) as pool:
        op = pool.do(Job(*errors))
        assert op.wait(LONG)
        stats = pool.stats()
    assert (op.outcome, op.tries, op.told, len(op.seen)) == (Outcome.FAILED, max_tries, max_tries, max_tries)
    assert isinstance(op.error, RetriesExhausted)
    assert op.error.__cause__ is errors[max_tries - 1]  # the last one
    assert (counts(stats), stats.tries, stats.accepted) == ({"failed": 1}, max_tries, 1)
    handled = [entry for actor in actors for entry in actor.handled]
    assert handled == [(op.error, op, Outcome.PENDING, max_tries)]
    assert op.seen[-1].handled == handled  # on the last worker


def test_ten_tries_are_the_default() -> None:
    with WorkerPool([Actor()]) as pool:
        op = pool.do(Job(*[Retry()] * 20))
        assert op.wait(LONG)
    assert (op.tries, len(op.seen)) == (10, 10)


def test_without_a_limit_an_operation_is_tried_until_it_succeeds() -> None:
    with WorkerPool([Actor(), Actor()], max_tries=None) as pool:
        op = pool.do(Job(*[Retry()] * 500))
        assert op.wait(LONG)
    assert (op.outcome, op.tries, op.told, len(op.seen), op.error) == (Outcome.SUCCEEDED, 500, 500, 501, None)


def test_success_at_the_last_try() -> None:
    with WorkerPool([Actor()], max_tries=4) as pool:
        op = pool.do(Job(*[Retry()] * 3))
        assert op.wait(LONG)
    assert (op.outcome, op.tries, len(op.seen)) == (Outcome.SUCCEEDED, 3, 4)
    assert op.check() is op


def test_retry_on_is_as_retry() -> None:
    class Flaky(Actor):
        retry_on = (ConnectionError, TimeoutError)

    worker = Flaky()
    with WorkerPool([worker], max_tries=3) as pool:
        reset, late, fatal, lost = ConnectionResetError(), TimeoutError(), ValueError("fatal"), ConnectionError("lost")
        passing, failing, exhausted = Job(reset, late), Job(reset, fatal), Job(reset, late, lost)
        assert len(list(pool.execute([passing, failing, exhausted]))) == 3
    assert (passing.outcome, passing.tries) == (Outcome.SUCCEEDED, 2)
    assert (failing.outcome, failing.tries, failing.error) == (Outcome.FAILED, 1, fatal)
    assert (exhausted.outcome, exhausted.tries) == (Outcome.FAILED, 3)
    assert isinstance(exhausted.error, RetriesExhausted)
    assert exhausted.error.__cause__ is lost


def test_a_task_may_ask_for_another_try() -> None:
    left = [1, 2, 3]

    def fetch() -> str:
        if left:
            left.pop()
            raise Retry
        return "fetched"

    with WorkerPool([TaskWorker()]) as pool:
        task = pool.do(Task(fetch))
        assert task.result(LONG) == "fetched"
    assert task.tries == 3


# When


def test_backoff_is_asked_with_the_tries_and_a_delay_of_ones_own_goes_before() -> None:
    asked: list[int] = []
    delayed: list[int] = []

    def backoff(tries: int) -> float:
        asked.append(tries)
        return HOUR if tries == 3 else 0

    with WorkerPool([Actor()], backoff=backoff, max_tries=6) as pool:
        op = pool.do(Job(Retry(), Retry(delay=0), Retry(), ValueError()))
        wait_until(lambda: bool(pool.stats().delayed))
        assert (asked, op.tries, len(op.seen)) == ([1, 3], 3, 3)
        assert op.cancel()
        asked.clear()
        delayed.append(pool.stats().delayed)
        op = pool.do(Job(*[Retry(delay=0.0)] * 10))  # none of them asks
        assert op.wait(LONG)
    assert (asked, delayed, op.tries) == ([], [0], 6)
    assert isinstance(op.error, RetriesExhausted)


def test_a_delay_of_ones_own_is_longer_than_the_backoff() -> None:
    with WorkerPool([Actor()], backoff=lambda tries: 0.0) as pool:
        op = pool.do(Job(Retry(delay=HOUR)))
        wait_until(lambda: bool(pool.stats().delayed))
        assert counts(pool.stats()) == {"delayed": 1}
        assert op.cancel()


@pytest.mark.parametrize("given", [None, "soon", object()])
def test_a_backoff_that_gives_no_number_fails_the_operation(given: Any) -> None:
    worker = Actor()
    with WorkerPool([worker], backoff=lambda tries: given) as pool:
        op = pool.do(Job(Retry()))
        assert op.wait(LONG)
        assert isinstance(op.error, (TypeError, ValueError))
        assert [error for error, *_ in worker.handled] == [op.error]
        assert pool.do(Job()).wait(LONG)


@pytest.mark.parametrize("workers", [1, 3])
def test_none_comes_back_early_and_they_come_in_order(workers: int, seed: int) -> None:
    rng = random.Random(seed)
    given_up: dict[int, tuple[float, float]] = {}  # by operation: the interval in which its delay began
    came_back: list[tuple[float, int]] = []
    last: dict[Actor, int] = {}

    class Clerk(Actor):
        def process(self, op: Job) -> None:
            now = time.monotonic()
            if (before := last.pop(self, None)) is not None:
                given_up[before] = (given_up[before][0], now)
            if op.seen:
                came_back.append((now, id(op)))
            else:
                last[self] = id(op)
                given_up[id(op)] = (time.monotonic(), LONG + now)
            super().process(op)

    delays = [rng.random() * 0.3 for _ in range(2000)]
    jobs = [Job(Retry(delay=delay)) for delay in delays]
    by_id = dict(zip(map(id, jobs), delays, strict=True))
    with WorkerPool([Clerk() for _ in range(workers)]) as pool:
        out = list(pool.execute(jobs))
    assert sorted(map(id, out)) == sorted(by_id)
    assert all(op.outcome is Outcome.SUCCEEDED and op.tries == 1 for op in jobs)
    assert len(came_back) == len(jobs)
    for when, key in came_back:
        assert when >= given_up[key][0] + by_id[key]
    if workers == 1:  # with one, they come back in the order of their deadlines, as far as we know those
        latest = 0.0
        for _, key in came_back:
            begun, ended = given_up[key]
            assert ended + by_id[key] >= latest, "one was overtaken by another with a later deadline"
            latest = max(latest, begun + by_id[key])


# At what cost


def test_ten_thousand_delayed_operations_cost_one_thread() -> None:
    before = set(threading.enumerate())
    with WorkerPool([Actor(), Actor()]) as pool:
        jobs = [Job(Retry(delay=HOUR + k)) for k in range(10_000)]
        stream = pool.execute(jobs)
        wait_until(lambda: pool.stats().delayed == len(jobs), LONG)
        assert counts(pool.stats()) == {"delayed": 10_000}
        assert len(set(threading.enumerate()) - before) == 2 + 1  # workers and timer
        assert pool.do(Job()).wait(LONG)  # no worker is occupied
        assert [stream.ready, stream.total] == [0, 10_000]
        # Each that is cancelled comes out at once, in that order, though its hour is not over.
        for op in jobs:
            assert op.cancel()
            assert (op.outcome, op.wait(0)) == (Outcome.CANCELLED, True)
            assert stream.get(LONG) is op
        assert list(stream) == []
        assert counts(pool.stats()) == {"cancelled": 10_000, "succeeded": 1}


def test_a_pool_that_delays_nothing_has_no_timer() -> None:
    before = set(threading.enumerate())
    with WorkerPool([Actor(), Actor()]) as pool:
        assert pool.do(Job(Retry(), Retry(delay=0))).wait(LONG)
        assert len(set(threading.enumerate()) - before) == 2


def test_a_delay_that_is_over_goes_before_longer_ones() -> None:
    """The timer sleeps for an hour when a shorter delay arrives."""
    with WorkerPool([Actor()]) as pool:
        later = pool.do(Job(Retry(delay=HOUR)))
        wait_until(lambda: pool.stats().delayed == 1)
        for _ in range(20):
            assert pool.do(Job(Retry(delay=0.001))).wait(LONG)
        assert later.outcome is Outcome.PENDING
        assert later.cancel()


def test_a_delayed_operation_that_is_cancelled_and_used_again_comes_back() -> None:
    """Its old delay runs out while it is delayed anew."""
    with WorkerPool([Actor()]) as pool:
        op = pool.do(Job(Retry(delay=0.05), Retry(delay=0.1), None))
        wait_until(lambda: pool.stats().delayed == 1)
        assert op.cancel()
        op.reset()
        pool.do(op)
        assert op.wait(LONG)
        assert (op.outcome, op.tries, len(op.seen)) == (Outcome.SUCCEEDED, 1, 3)


def test_shutdown_waits_for_delays() -> None:
    with WorkerPool([Actor(), Actor()]) as pool:
        stream = pool.execute(jobs := [Job(*[Retry(delay=0.01)] * (k % 4)) for k in range(100)])
    assert [op.tries for op in jobs] == [k % 4 for k in range(100)]
    assert all(op.outcome is Outcome.SUCCEEDED for op in jobs)
    assert len(list(stream)) == 100


@pytest.mark.parametrize("way", ["cancel", "cancel_pending"])
def test_the_last_delayed_operation_is_cancelled_while_the_pool_drains(way: str) -> None:
    pool = WorkerPool([Actor(), Actor()])
    pool.start()
    op = pool.do(Job(Retry(delay=HOUR)))
    wait_until(lambda: pool.stats().delayed == 1)
    drainer = start_threads(pool.shutdown)
    wait_until(lambda: "shutting down" in repr(pool))
    if way == "cancel":
        assert op.cancel()
    else:
        assert pool.shutdown(cancel_pending=True) == [op]
    assert drainer.join() == [[]]
    assert op.outcome is Outcome.CANCELLED


def test_a_delayed_operation_that_is_cancelled_keeps_its_place_in_an_ordered_stream() -> None:
    with WorkerPool([Actor()]) as pool:
        jobs = [Job(), Job(Retry(delay=HOUR)), Job()]
        stream = pool.wrap(jobs, ordered=True, drawn_by="thread")
        assert stream.get(LONG) is jobs[0]
        wait_until(lambda: counts(pool.stats()) == {"succeeded": 2, "delayed": 1})
        assert stream.ready == 0
        assert jobs[1].cancel()
        assert list(stream) == jobs[1:]


def test_errors_of_earlier_tries_are_let_go() -> None:
    """Only the last error is kept: a thousand retries hold no chain of tracebacks."""

    class Glitch(Retry):
        pass

    glitches: list[weakref.ref[Glitch]] = []

    def fail(_: Actor) -> None:
        glitch = Glitch()
        glitches.append(weakref.ref(glitch))
        raise glitch

    def alive() -> int:
        gc.collect()
        return sum(glitch() is not None for glitch in glitches)

    with WorkerPool([Actor()], max_tries=200) as pool:
        op = pool.do(Job(*[fail] * 200))
        assert op.wait(LONG)
        wait_until(lambda: alive() <= 1)
        assert isinstance(op.error, RetriesExhausted)
        assert op.error.__cause__ is glitches[-1]()
