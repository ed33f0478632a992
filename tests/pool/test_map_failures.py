"""`WorkerPool.map` when items fail, are retried or rejected, when workers crash, and when the pool ends first."""

from __future__ import annotations

import itertools
import logging
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from ringmill import (
    BrokenPool,
    Closed,
    Operation,
    Outcome,
    PoolNotRunning,
    Reject,
    RetriesExhausted,
    Retry,
    Unroutable,
    Worker,
    WorkerPool,
)
from tests.loops import BACKENDS, run_loop
from tests.pool.items import (
    HOUR,
    LONG,
    SHORT,
    Caller,
    Give,
    Hold,
    Source,
    Square,
    counts,
    held,
    read_each,
    stems_from,
)
from tests.threads import run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

@pytest.fixture
def hold() -> Iterator[Hold]:
    hold = Hold()
    yield hold
    hold.release()  # also when the test has failed


both = pytest.mark.parametrize("kind", [list, iter], ids=["list", "iterator"])

Kind = Callable[[Any], Any]


class Boom(BaseException):
    """Not an Exception: a crash."""


class Job(Operation):
    """An operation among the items."""

    def __call__(self) -> None:
        pass


class Script:
    """An item for Caller: one step for each time that it is processed, an exception to raise; then the value."""

    def __init__(self, *steps: BaseException, value: Any = "done") -> None:
        self.steps = steps
        self.value = value
        self.threads: list[str] = []

    def __call__(self) -> Any:
        self.threads.append(threading.current_thread().name)
        turn = len(self.threads) - 1
        if turn < len(self.steps):
            raise self.steps[turn]
        return self.value


def pool_of(count: int = 2, kind: type[Worker[Any]] = Caller, **settings: Any) -> WorkerPool[Any]:
    return WorkerPool([kind() for _ in range(count)], **settings)


# Retry


@both
def test_an_item_that_is_retried_gives_one_result_in_its_place(kind: Kind) -> None:
    flaky = Script(Retry("first"), Retry("second"), value="third")
    with pool_of(2) as pool:
        assert list(pool.map(kind([Give(0), flaky, Give(2)]))) == [0, "third", 2]
        assert len(flaky.threads) == 3
        assert pool.stats().tries == 2
        assert counts(pool.stats()) == {"succeeded": 3}
        assert pool.stats().accepted == 3


@both
def test_a_delayed_retry_holds_up_nothing_but_the_order(kind: Kind) -> None:
    with pool_of(1) as pool:
        assert list(pool.map(kind([Script(Retry(delay=0.01)), Give(1), Give(2)]))) == ["done", 1, 2]
        came = list(pool.map(kind([Script(Retry(delay=0.05)), Give(1), Give(2)]), ordered=False))
        assert came == [1, 2, "done"]


def test_a_retry_is_for_another_worker() -> None:
    with pool_of(2) as pool:
        items = [Script(Retry()) for _ in range(20)]
        assert list(pool.map(items)) == ["done"] * 20
    assert all(len(set(item.threads)) == 2 for item in items)


def test_an_item_that_waits_for_its_retry_is_counted_as_delayed_and_can_be_given_up() -> None:
    item = Script(Retry(delay=HOUR))
    with pool_of(1) as pool:
        results = pool.map([item, Give(1)])
        wait_until(lambda: counts(pool.stats()) == {"delayed": 1, "succeeded": 1})
        with pytest.raises(queue.Empty):
            results.get(timeout=0)
        results.close()
        wait_until(lambda: counts(pool.stats()) == {"cancelled": 1, "succeeded": 1})
    assert len(item.threads) == 1


def test_retry_on_counts_as_retry() -> None:
    class Flaky(Caller):
        retry_on = (ConnectionError, StopIteration, queue.Empty)

    with pool_of(2, Flaky, max_tries=4) as pool:
        items = [
            Script(ConnectionResetError(), value=1),
            Script(StopIteration(), queue.Empty(), value=2),
            Script(ConnectionError(), ValueError("fatal")),
        ]
        came = list(pool.map(items, errors="return"))
        assert came[:2] == [1, 2]
        assert came[2] is items[2].steps[1]
        assert pool.stats().tries >= 4


@both
@pytest.mark.parametrize("max_tries", [1, 3])
@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
def test_retries_that_are_exhausted(kind: Kind, max_tries: int, errors: str) -> None:
    retries = [Retry(f"try {number}") for number in range(5)]
    item = Script(*retries)
    with pool_of(2, max_tries=max_tries) as pool:
        came = read_each(pool.map(kind([Give(0), item, Give(2)]), errors=errors).get, Closed)
        if errors == "skip":
            assert came == [0, 2]
        else:
            assert [came[0], came[2]] == [0, 2]
            assert isinstance(came[1], RetriesExhausted)
            assert came[1].__cause__ is retries[max_tries - 1]
        assert len(item.threads) == max_tries
        assert pool.stats().tries == max_tries
        assert counts(pool.stats()) == {"succeeded": 2, "failed": 1}


def test_backoff_and_no_limit_of_tries() -> None:
    asked: list[int] = []

    def backoff(tries: int) -> float:
        asked.append(tries)
        return 0

    with pool_of(1, max_tries=None, backoff=backoff) as pool:
        assert list(pool.map([Script(*[Retry()] * 50)])) == ["done"]
    assert asked == list(range(1, 51))


# Reject


class Choosy(Worker[Any]):
    """Takes the numbers that are `mine` modulo the number of workers."""

    def __init__(self, mine: int, of: int) -> None:
        self.mine = mine
        self.of = of
        self.rejected = 0

    def process(self, item: int) -> Any:
        if item % self.of != self.mine:
            self.rejected += 1
            raise Reject
        return item, self.mine


@both
@pytest.mark.parametrize("workers", [2, 3])
def test_each_item_is_processed_by_the_worker_that_takes_it(kind: Kind, workers: int) -> None:
    with WorkerPool([Choosy(k, workers) for k in range(workers)]) as pool:
        assert list(pool.map(kind(range(60)))) == [(n, n % workers) for n in range(60)]
        assert pool.stats().tries == 0
        assert counts(pool.stats()) == {"succeeded": 60}


@both
@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
def test_an_item_that_all_workers_reject(kind: Kind, errors: str) -> None:
    with WorkerPool([Choosy(0, 3), Choosy(1, 3)]) as pool:
        came = read_each(pool.map(kind([0, 1, 2, 3]), errors=errors).get, Closed)
        if errors != "skip":
            assert isinstance(came.pop(2), Unroutable)
        assert came == [(0, 0), (1, 1), (3, 0)]
        assert counts(pool.stats()) == {"succeeded": 3, "failed": 1}


def test_an_item_that_only_a_busy_worker_takes_waits_for_that_worker() -> None:
    """And holds up no item that an idle worker may take."""

    class Other(Worker[Any]):
        def process(self, item: Any) -> Any:
            if item is wanted:
                raise Reject
            return item()

    class Wanted(Caller):
        def process(self, item: Any) -> Any:
            if item not in (wanted, hold):
                raise Reject
            return item()

    class Any1(Hold):
        def __call__(self) -> Any:
            if threading.current_thread().name != wanted_thread[0]:
                raise Reject
            return super().__call__()

    wanted, hold = Give("wanted"), Any1()
    wanted_thread: list[str] = []

    class Named(Wanted):
        def init(self) -> None:
            wanted_thread.append(threading.current_thread().name)

    with WorkerPool([Other(), Named()]) as pool:
        first = pool.map([hold])
        assert hold.reached.wait(LONG)
        second = pool.map([wanted, *map(Give, range(10))])
        wait_until(lambda: pool.stats().succeeded == 10)
        hold.release()
        assert list(first) == ["held"]
        assert list(second) == ["wanted", *range(10)]


# handle_error


class Telling(Caller):
    def __init__(self) -> None:
        self.told: list[tuple[BaseException, Any]] = []
        self.calls: list[str] = []
        self.raises: BaseException | None = None

    def init(self) -> None:
        self.calls.append("init")

    def handle_error(self, error: BaseException, item: Any) -> None:
        self.told.append((error, item))
        if self.raises is not None:
            raise self.raises

    def cleanup(self) -> None:
        self.calls.append("cleanup")


@both
def test_handle_error_is_given_the_error_and_the_item_before_the_result_comes_out(kind: Kind) -> None:
    worker = Telling()
    item = Give(ValueError("one"))
    with WorkerPool([worker]) as pool:
        results = pool.map(kind([Give(0), item]), errors="return")
        assert results.get(LONG) == 0
        assert results.get(LONG) is item.value
        assert len(worker.told) == 1
        assert worker.told[0][0] is item.value
        assert worker.told[0][1] is item
        assert list(results) == []
    assert worker.calls == ["init", "cleanup"]


def test_handle_error_is_called_once_when_retries_are_exhausted() -> None:
    worker = Telling()
    item = Script(*[Retry()] * 5)
    with WorkerPool([worker], max_tries=3) as pool:
        assert list(pool.map([item, Script(Retry())], errors="skip")) == ["done"]
    assert [(type(error), told) for error, told in worker.told] == [(RetriesExhausted, item)]


@both
def test_a_handle_error_that_raises_restarts_the_worker_and_the_error_stays_that_of_process(kind: Kind) -> None:
    worker = Telling()
    worker.raises = LookupError("broken")
    error = ValueError("one")
    with WorkerPool([worker]) as pool:
        assert list(pool.map(kind([Give(error), Give(1)]), errors="return")) == [error, 1]
        wait_until(lambda: pool.stats().restarts == 1)
        assert counts(pool.stats()) == {"succeeded": 1, "failed": 1}
    assert worker.calls == ["init", "cleanup"] * 2


# A crash


@both
@pytest.mark.parametrize("crash", [Boom, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
def test_a_crash_fails_its_item_alone(kind: Kind, crash: type[BaseException], errors: str) -> None:
    worker = Telling()
    error = crash("crash")
    with WorkerPool([worker]) as pool:
        came = read_each(pool.map(kind([Give(0), Give(error), Give(2)]), errors=errors).get, Closed)
        if errors != "skip":
            assert stems_from(came.pop(1), error)
        assert came == [0, 2]
        assert counts(pool.stats()) == {"succeeded": 2, "failed": 1}
        wait_until(lambda: pool.stats().restarts == 1)
    assert worker.calls == ["init", "cleanup"] * 2
    assert worker.told == []  # a crash is not handled


def test_a_crash_while_another_worker_goes_on() -> None:
    with pool_of(2, max_restarts=0) as pool:
        items = [Give(number) for number in range(50)]
        items[10] = Give(Boom())
        came = list(pool.map(items, errors="return"))
        assert isinstance(came[10], Boom)
        assert came[:10] + came[11:] == [*range(10), *range(11, 50)]
        assert counts(pool.stats()) == {"succeeded": 49, "failed": 1}


# Breakage: the last worker is lost


@pytest.mark.parametrize("errors", ["raise", "return"])
@pytest.mark.parametrize("ordered", [True, False])
def test_breakage_fails_all_items_that_were_accepted(errors: str, ordered: bool) -> None:
    pool = pool_of(1, max_restarts=0)
    pool.start()
    results = pool.map([Give(0), Give(Boom()), *map(Give, range(2, 10))], errors=errors, ordered=ordered)
    came: list[Any] = []
    while len(came) < 10:
        try:
            came.append(results.get(LONG))
        except BaseException as error:
            came.append(error)
    assert len([value for value in came if not isinstance(value, BaseException)]) == 1
    assert len([value for value in came if isinstance(value, Boom)]) == 1
    broken = [value for value in came if isinstance(value, BrokenPool)]
    assert len(broken) == 8
    assert len(set(map(id, broken))) == 8  # each has an exception object of its own
    if ordered:
        assert came[0] == 0
        assert isinstance(came[1], Boom)
    # All that was accepted has come out: the end is the stream's, or it says that the pool is broken.
    with pytest.raises((Closed, BrokenPool)):
        results.get(LONG)
    assert counts(pool.stats()) == {"succeeded": 1, "failed": 9}
    with pytest.raises(BrokenPool):
        pool.map([1])
    pool.shutdown()


@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
@pytest.mark.parametrize("buffer", [1, 3, None])
def test_breakage_never_looks_like_the_end_of_a_source(errors: str, buffer: int | None) -> None:
    pool = pool_of(1, max_restarts=0)
    pool.start()
    source = Source()
    items = (Give(Boom() if number == 5 else number) for number in source)
    results = pool.map(items, buffer=buffer, errors=errors)
    came: list[Any] = []
    ends = 0
    while ends < 3:
        try:
            came.append(next(results))
        except StopIteration:
            raise AssertionError("it looks complete") from None
        except Boom as error:
            came.append(error)
        except BrokenPool:  # an item's, or the stream's end: that goes on
            ends += 1 if len(came) >= source.drawn or errors == "skip" else 0
            came.append(BrokenPool())
    assert came[:5] == [0, 1, 2, 3, 4]
    if errors != "skip":
        assert isinstance(came[5], Boom)
    stats = pool.stats()
    assert (stats.succeeded, stats.accepted) == (5, 5 + stats.failed)
    pool.shutdown()


def test_readers_wake_when_the_pool_breaks() -> None:
    pool = pool_of(1, max_restarts=0)
    pool.start()
    hold = Hold(Boom())
    results = pool.map([hold, *map(Give, range(10))], errors="return")
    readers = start_threads(*[lambda: list(results)] * 3)
    assert hold.reached.wait(LONG)
    hold.release()
    came = [value for share in readers.join() for value in share]
    assert sorted(type(value).__name__ for value in came) == ["Boom"] + ["BrokenPool"] * 10
    pool.shutdown()


# Shutdown


def test_shutdown_finishes_what_was_accepted_and_results_can_still_be_read() -> None:
    with pool_of(2) as pool:
        results = pool.map([Script(Retry(delay=0.01)), *map(Give, range(50))])
    assert counts(pool.stats()) == {"succeeded": 51}
    assert results.ready == 51
    assert list(results) == ["done", *range(50)]


@both
def test_shutdown_that_cancels_returns_the_items_of_a_map_in_their_order(kind: Kind, hold: Hold) -> None:
    pool = pool_of(1)
    pool.start()
    items = [hold, *map(Give, range(20))]
    results = pool.map(kind(items))
    reader = start_threads(lambda: read_each(results.get, Closed, PoolNotRunning))
    wait_until(lambda: counts(pool.stats()) == {"running": 1, "queued": 20})
    assert list(map(id, pool.shutdown(wait=False, cancel_pending=True))) == list(map(id, items[1:]))
    hold.release()
    came = reader.join()[0]
    assert came[0] == "held"
    assert [type(error) for error in came[1:]] == [CancelledError] * 20
    assert pool.shutdown() == []


@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
def test_shutdown_that_cancels_returns_the_items_as_they_were_given(errors: str, hold: Hold) -> None:
    """In the order of acceptance, of each map and batch, and of these; before them what `do` has submitted."""
    pool = pool_of(1)
    pool.start()
    first = [hold, *map(Give, range(5))]
    second = tuple(map(Give, range(5, 10)))
    job = Job()
    streams = [pool.map(first, errors=errors)]
    assert hold.reached.wait(LONG)
    pool.do(job)
    streams.append(pool.map(second, errors=errors))
    streams.append(pool.map(range(100, 103), errors=errors))
    ops = [Job(), Job()]
    pool.execute(ops)
    returned = pool.shutdown(wait=False, cancel_pending=True)
    expected = [job, *first[1:], *second, 100, 101, 102, *ops]
    hold.release()
    assert pool.shutdown() == []
    assert returned == expected  # all but the numbers are compared by identity
    assert job.outcome is Outcome.CANCELLED
    came = [read_each(stream.get, Closed) for stream in streams]
    assert came[0].pop(0) == "held"
    lengths = [5, 5, 3]
    assert [len(share) for share in came] == ([0, 0, 0] if errors == "skip" else lengths)
    cancelled = [error for share in came for error in share]
    assert all(isinstance(error, CancelledError) for error in cancelled)
    assert len(set(map(id, cancelled))) == len(cancelled)
    assert counts(pool.stats()) == {"succeeded": 1, "cancelled": 16}


def test_shutdown_that_cancels_returns_what_was_drawn_and_the_stream_does_not_look_complete(hold: Hold) -> None:
    pool = pool_of(1)
    pool.start()
    drawn: list[Any] = []

    def source() -> Iterator[Any]:
        yield hold
        for number in itertools.count():
            drawn.append(Give(number))
            yield drawn[-1]

    results = pool.map(source(), buffer=4)
    with pytest.raises(queue.Empty):
        results.get(SHORT)  # draws up to the buffer, meanwhile
    assert hold.reached.wait(LONG)
    accepted = pool.stats().accepted
    assert 1 <= accepted <= 4
    returned = pool.shutdown(wait=False, cancel_pending=True)
    assert list(map(id, returned)) == list(map(id, drawn[: accepted - 1]))
    hold.release()
    pool.shutdown()
    came = read_each(results.get, PoolNotRunning)
    assert came[0] == "held"
    assert [type(error) for error in came[1:]] == [CancelledError] * (accepted - 1)
    for call in (results.get, results.get_many, lambda: next(results)):
        with pytest.raises(PoolNotRunning):
            call()


@pytest.mark.parametrize("delay", [0, HOUR])
def test_shutdown_that_cancels_returns_what_waits_for_a_retry(delay: float) -> None:
    """Of items that have been tried, the contract does not say in what order they are returned."""
    pool = pool_of(1)
    pool.start()
    tried = Script(Retry(delay=delay), *[Retry(delay=HOUR)] * 5)
    results = pool.map([tried])
    wait_until(lambda: pool.stats().delayed == 1)
    assert pool.shutdown(cancel_pending=True) == [tried]
    with pytest.raises(CancelledError):
        results.get(LONG)
    assert list(results) == []
    assert counts(pool.stats()) == {"cancelled": 1}


def test_shutdown_with_a_timeout_cancels_and_returns_what_is_left(
    hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_of(1)
    pool.start()
    items = [hold, *map(Give, range(5))]
    results = pool.map(items, errors="return")
    assert hold.reached.wait(LONG)
    with caplog.at_level(logging.CRITICAL, "ringmill"):
        assert pool.shutdown(timeout=SHORT) == items[1:]
    assert counts(pool.stats()) == {"running": 1, "cancelled": 5}
    hold.release()
    assert pool.shutdown() == []
    came = list(results)
    assert came[0] == "held"
    assert [type(error) for error in came[1:]] == [CancelledError] * 5


def test_concurrent_shutdowns_return_each_item_once() -> None:
    pool = pool_of(1)
    pool.start()
    with held(pool) as (hold,):
        items = [Give(number) for number in range(100)]
        results = pool.map(items, errors="skip")
        shares = run_threads(*[lambda: pool.shutdown(wait=False, cancel_pending=True)] * 4)
        assert sorted(id(item) for share in shares for item in share) == sorted(map(id, items))
        hold.release()
    assert list(results) == []
    pool.shutdown()


def test_an_error_in_the_body_cancels_what_has_not_begun() -> None:
    hold = Hold()
    streams: list[Any] = []

    def fail() -> None:
        with pool_of(1) as pool:
            streams.append(pool.map([hold, *map(Give, range(5))], errors="return"))
            assert hold.reached.wait(LONG)
            threading.Timer(0.01, hold.release).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [type(value).__name__ for value in streams[0]] == ["str"] + ["CancelledError"] * 5


@both
def test_a_map_that_is_read_while_the_pool_ends(kind: Kind) -> None:
    """Each result comes once; a list's stream ends, that of a source says that it is not complete."""
    for cancel in (False, True):
        pool = pool_of(2)
        pool.start()
        source: Any = itertools.count() if kind is iter else range(3000)
        results = pool.map(kind(map(Give, source)), buffer=None, errors="skip")
        reader = start_threads(lambda results=results: read_each(results.get, Closed, PoolNotRunning))
        wait_until(lambda pool=pool: pool.stats().succeeded > 50)
        returned = pool.shutdown(cancel_pending=cancel)
        came = reader.join()[0]
        stats = pool.stats()
        # In order; workers may begin some items while others are being cancelled.
        assert came == sorted(came)
        assert sorted([*came, *[item.value for item in returned]]) == list(range(stats.accepted))
        assert len(came) == stats.succeeded == stats.accepted - len(returned)
        assert stats.cancelled == len(returned)
        if kind is iter:
            with pytest.raises(PoolNotRunning):
                next(results)
        else:
            assert list(results) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelled_items_read_by_a_task(backend: str) -> None:
    """CancelledError of concurrent.futures: an asyncio.CancelledError would cancel the reading task."""

    async def main() -> None:
        pool = pool_of(1)
        pool.start()
        hold = Hold()
        results = pool.map([hold, Give(1)])
        await hold.until_reached()
        pool.shutdown(wait=False, cancel_pending=True)
        hold.release()
        assert await results.aget() == "held"
        with pytest.raises(CancelledError):
            await results.aget()
        assert [value async for value in results] == []
        pool.shutdown()

    run_loop(backend, main)


def test_a_pool_that_is_started_again_does_not_touch_earlier_streams() -> None:
    pool = pool_of(2)
    with pool:
        first = pool.map(list(map(Give, range(5))))
        lazy = pool.map(map(Give, range(5)), buffer=2)
        assert lazy.get(LONG) == 0
    with pool:
        assert list(pool.map(map(Give, "abc"))) == ["a", "b", "c"]
        assert list(first) == [0, 1, 2, 3, 4]
        came = read_each(lazy.get, PoolNotRunning)
        assert came == list(range(1, 1 + len(came)))


# Errors of items are never taken for the stream's end or a timeout


CONFUSING = [StopIteration, StopAsyncIteration, queue.Empty, Closed, TimeoutError, CancelledError, PoolNotRunning]
confusing = pytest.mark.parametrize("error_kind", CONFUSING)


@both
@confusing
@pytest.mark.parametrize("read", ["next", "for", "get", "timed get", "get_many"])
def test_an_error_of_an_item_that_looks_like_the_end(kind: Kind, error_kind: type[Exception], read: str) -> None:
    """It is raised in its place, as it is or as the cause of a RuntimeError, and what follows still comes."""
    error = error_kind("of the item")
    came: list[Any] = []

    def read_all() -> None:
        if read == "for":
            came.extend(results)
        while read == "next":
            came.append(next(results))
        while read == "get":
            came.append(results.get())
        while read == "timed get":
            came.append(results.get(LONG))
        while read == "get_many":
            came.extend(results.get_many())

    with pool_of(2) as pool:
        results = pool.map(kind([Give(0), Give(error), Give(2), Give(3)]))
        # Whether `get` may raise an item's own queue.Empty or Closed, which a reader cannot tell from the stream's, is
        # left open: it must not lose the item's error, nor what follows.
        with pytest.raises(RuntimeError if error_kind is StopIteration else (error_kind, RuntimeError)) as caught:
            read_all()
        assert stems_from(caught.value, error)
        assert came == [0]
        assert list(results) == [2, 3]
        assert counts(pool.stats()) == {"succeeded": 3, "failed": 1}


@both
@confusing
def test_an_error_that_looks_like_the_end_is_returned_or_skipped(kind: Kind, error_kind: type[Exception]) -> None:
    items = [Give(0), Give(error_kind("of the item")), Give(2)]
    with pool_of(2) as pool:
        came = list(pool.map(kind(items), errors="return"))
        assert [came[0], came[2]] == [0, 2]
        assert stems_from(came[1], items[1].value)
        assert list(pool.map(kind(items), errors="skip")) == [0, 2]


@pytest.mark.parametrize("backend", BACKENDS)
@both
@confusing
def test_a_task_never_takes_an_error_of_an_item_for_the_end(
    kind: Kind, error_kind: type[Exception], backend: str
) -> None:
    async def main() -> None:
        error = error_kind("of the item")
        came: list[Any] = []

        async def read(results: Any) -> None:
            async for value in results:
                came.append(value)

        async with pool_of(2) as pool:
            results = pool.map(kind([Give(0), Give(error), Give(2), Give(error), Give(4)]))
            with pytest.raises((error_kind, RuntimeError)) as caught:
                await read(results)
            assert stems_from(caught.value, error)
            assert came == [0]
            assert await results.aget() == 2
            with pytest.raises((error_kind, RuntimeError)) as again:
                await results.aget()
            assert stems_from(again.value, error)
            assert [value async for value in results] == [4]

    run_loop(backend, main)


@both
def test_errors_of_items_downstream_of_a_loop_that_catches_them(kind: Kind) -> None:
    """All in a row: every read raises the next one, then the stream ends."""
    errors = [kind_of("of the item") for kind_of in CONFUSING]
    with pool_of(2) as pool:
        results = pool.map(kind(map(Give, errors)))
        told: list[BaseException] = []
        for _ in errors:
            try:
                next(results)
            except StopIteration:
                raise AssertionError("it looks complete") from None
            except BaseException as error:
                told.append(error)
        assert all(stems_from(one, other) for one, other in zip(told, errors, strict=True))
        assert list(results) == []


# Odd errors


def test_errors_whose_own_methods_raise() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise LookupError

        __repr__ = __str__

        def __eq__(self, other: object) -> bool:
            raise LookupError

        __hash__ = None  # type: ignore[assignment]

    class OwnRetry(Retry):
        def __init__(self) -> None:
            pass

    odd = Odd()
    with pool_of(2, max_tries=2) as pool:
        came = list(pool.map([Give(odd), Script(OwnRetry()), Script(Retry(odd)), Give(3)], errors="return"))
        assert came[0] is odd
        assert came[1:] == ["done", "done", 3]
        assert pool.stats().restarts == 0


def test_an_item_that_raises_the_same_error_object_many_times() -> None:
    error = ValueError("shared")
    with pool_of(3) as pool:
        assert list(pool.map([Give(error)] * 30, errors="return")) == [error] * 30
        results = pool.map([Give(error)] * 30)
        told = run_threads(*[lambda: read_each(results.get, Closed)] * 3)
        assert sum(map(len, told)) == 30
        assert all(stems_from(one, error) for share in told for one in share)


def test_errors_that_are_not_read_are_logged_or_forgotten_but_break_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Of an operation, an error that is not read is logged once; of items the contract does not say."""
    with caplog.at_level(logging.CRITICAL, "ringmill"), pool_of(2) as pool:
        results = pool.map([Give(ValueError()) for _ in range(5)])
        wait_until(lambda: pool.stats().failed == 5)
        del results
        assert pool.call(Give(1)) == 1


# Interrupts


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
@pytest.mark.parametrize("read", ["next", "get", "get_many"])
@both
def test_a_keyboard_interrupt_in_the_reader_loses_nothing(kind: Kind, read: str) -> None:
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    with pool_of(1) as pool:
        hold = Hold()
        results = pool.map(kind([hold, Give(1), Give(2)]))

        def interrupt() -> None:
            assert reading.wait(LONG)
            assert hold.reached.wait(LONG)
            signal.pthread_kill(main_thread, signal.SIGINT)

        def read_it() -> None:
            reading.set()
            {"next": results.__next__, "get": results.get, "get_many": results.get_many}[read]()

        reading = threading.Event()
        other = start_threads(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                read_it()
        finally:
            hold.release()
        other.join()
        assert list(results) == ["held", 1, 2]
        assert counts(pool.stats()) == {"succeeded": 3}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_the_source_loses_nothing(kind: type[BaseException]) -> None:
    """Raised at once, or after what was drawn before."""
    with pool_of(1, Square) as pool:
        results = pool.map(Source(3, kind()), buffer=2)
        came: list[int] = []
        with pytest.raises(kind):
            came.extend(results)
        while True:
            try:
                came.append(results.get(LONG))
            except (kind, Closed):
                break
        assert came == [0, 1, 4]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_signals_at_any_moment_of_reading_lose_no_result(seed: int) -> None:
    """The source, the stream and `extend` are all compiled: no moment between them is the test's own."""
    handled: list[int] = []

    def handle(number: int, frame: object) -> None:
        handled.append(number)
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, handle)
    interrupted = 0
    try:
        with pool_of(2, Square) as pool:
            for lap in range(20):
                results = pool.map(iter(range(200)), buffer=4)
                came: list[int] = []
                handled.clear()
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + (seed + lap * 7919) % 2000 * 1e-6)
                    came.extend(results)
                    wait_until(lambda: bool(handled))
                except KeyboardInterrupt:
                    interrupted += 1
                came.extend(results)
                assert came == [number * number for number in range(200)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert interrupted
