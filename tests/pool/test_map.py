"""`WorkerPool.map`: results in order, sources of all kinds, how far they are drawn, errors, idle workers."""

from __future__ import annotations

import gc
import itertools
import queue
import random
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import anyio
import pytest

import ringmill
from ringmill import BrokenPool, Closed, Operation, PoolNotRunning, RingBuffer, Task, Worker, WorkerPool
from tests.loops import BACKENDS, run_loop
from tests.pool.items import LONG, SHORT, Caller, Gated, Give, Hold, Source, Square, counts, held
from tests.threads import start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

COUNT = 50


def squares(count: int) -> list[int]:
    return [number * number for number in range(count)]


def pool_of(count: int = 2, kind: type[Worker[Any]] = Square, **settings: Any) -> WorkerPool[Any]:
    return WorkerPool([kind() for _ in range(count)], **settings)


class Job(Operation):
    """An operation among the items: calls its function, if any."""

    def __init__(self, call: Callable[[], Any] = bool) -> None:
        self.call = call

    def __call__(self) -> None:
        self.call()


# Sources: each item is processed once, and its result comes out


SOURCES: list[Any] = [
    pytest.param(lambda count: list(range(count)), id="list"),
    pytest.param(lambda count: tuple(range(count)), id="tuple"),
    pytest.param(range, id="range"),
    pytest.param(lambda count: range(count - 1, -1, -1)[::-1], id="range-reversed-twice"),
    pytest.param(lambda count: (number for number in range(count)), id="generator"),
    pytest.param(lambda count: iter(range(count)), id="iterator"),
    pytest.param(Source, id="iterator-class"),
    pytest.param(lambda count: dict.fromkeys(range(count)), id="dict"),
    pytest.param(lambda count: dict.fromkeys(range(count)).keys(), id="dict-keys"),
    pytest.param(lambda count: itertools.islice(itertools.count(), count), id="islice"),
    pytest.param(lambda count: memoryview(bytes(range(count))), id="memoryview"),
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("buffer", [None, 1, 3, 1000])
@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(source: Callable[[int], Any], buffer: int | None, workers: int) -> None:
    with pool_of(workers, queue_size=1) as pool:
        for count in (0, 1, 2, COUNT):
            results = pool.map(source(count), buffer=buffer)
            assert isinstance(results, ringmill.Results)
            assert list(results) == squares(count)
            assert list(results) == []
            with pytest.raises(Closed):
                results.get()
        assert counts(pool.stats()) == {"succeeded": COUNT + 3}
        assert pool.stats().accepted == COUNT + 3


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("buffer", [None, 2])
def test_unordered_results_are_the_same_ones(source: Callable[[int], Any], buffer: int | None) -> None:
    with pool_of(3) as pool:
        assert sorted(pool.map(source(COUNT), ordered=False, buffer=buffer)) == squares(COUNT)


def test_a_set_and_a_string_are_iterables_as_others() -> None:
    class Pair(Worker[Any]):
        def process(self, item: Any) -> Any:
            return item, item

    with pool_of(2, Pair) as pool:
        numbers = {3, 1, 2}
        assert list(pool.map(numbers)) == [(number, number) for number in numbers]
        assert list(pool.map(frozenset(numbers))) == [(number, number) for number in frozenset(numbers)]
        assert list(pool.map("abc")) == [("a", "a"), ("b", "b"), ("c", "c")]
        assert list(pool.map("")) == []
        assert list(pool.map(b"ab")) == [(97, 97), (98, 98)]
        assert list(pool.map({})) == list(pool.map(set())) == []


def test_any_object_is_fine_as_item_and_as_result() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

        def __repr__(self) -> str:
            raise ZeroDivisionError

        def __bool__(self) -> bool:
            raise ZeroDivisionError

        __hash__ = None  # type: ignore[assignment]

    class Same(Worker[Any]):
        def process(self, item: Any) -> Any:
            return item

    items = [None, Ellipsis, NotImplemented, Odd(), StopIteration(), ValueError("a value"), Operation, Job, (), [], int]
    with pool_of(2, Same) as pool:
        for kind in (list, tuple, iter):
            for errors in ("raise", "return", "skip"):
                # An exception that an item returns, instead of raising it, is a result.
                came = list(pool.map(kind(items), errors=errors))  # type: ignore[operator]
                assert len(came) == len(items)
                assert all(one is other for one, other in zip(came, items, strict=True))


def test_process_that_returns_nothing_gives_none() -> None:
    class Silent(Worker[Any]):
        def process(self, item: Any) -> None:
            pass

    with pool_of(2, Silent) as pool:
        assert list(pool.map([1, 2, 3])) == [None, None, None]
        assert list(pool.map(iter([1, 2, 3]))) == [None, None, None]


def test_the_same_object_may_be_given_more_than_once() -> None:
    with pool_of(2, Caller) as pool:
        item = Give("again")
        assert list(pool.map([item] * 20)) == ["again"] * 20
        assert list(pool.map(itertools.repeat(item, 20), buffer=3)) == ["again"] * 20


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (range(0), []),
        (range(5, 5), []),
        (range(3, 10, 3), [9, 36, 81]),
        (range(10, 3, -3), [100, 49, 16]),
        (range(2**70, 2**70 + 2), [2**140, (2**70 + 1) ** 2]),
        (range(0, 2**80, 2**79), [0, 2**158]),
        (range(2**80, 2**80 - 3, -2), [2**160, (2**80 - 2) ** 2]),
    ],
    ids=str,
)
@pytest.mark.parametrize("buffer", [None, 1])
def test_ranges(items: range, expected: list[int], buffer: int | None) -> None:
    with pool_of() as pool:
        assert list(pool.map(items, buffer=buffer)) == expected


# What is accepted whole


@pytest.mark.parametrize("kind", [list, tuple, lambda items: range(len(items))], ids=["list", "tuple", "range"])
def test_a_sequence_is_accepted_whole_whatever_the_size_of_the_queue(kind: Callable[[list[int]], Any]) -> None:
    worker = Gated()
    with WorkerPool([worker], queue_size=1) as pool:
        results = pool.map(kind(list(range(5000))))
        assert pool.stats().accepted == 5000
        assert results.total == 5000
        worker.permits.release(5000)
        assert list(results) == list(range(5000))


def test_a_list_is_copied() -> None:
    worker = Gated()
    with WorkerPool([worker]) as pool:
        items = [0, 1, 2, 3]
        results = pool.map(items)
        items[:] = [9] * 100
        del items
        worker.permits.release(4)
        assert list(results) == [0, 1, 2, 3]


def test_a_list_is_processed_though_its_results_are_not_read() -> None:
    with pool_of() as pool:
        results = pool.map(list(range(COUNT)))
        wait_until(lambda: pool.stats().succeeded == COUNT)
        wait_until(lambda: results.ready == COUNT)
        assert list(results) == squares(COUNT)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_long_range_makes_no_object_for_each_item(ordered: bool) -> None:
    """10^7 items are accepted at once, in little memory, and given up as fast."""
    worker = Gated()
    size = 10**7
    with WorkerPool([worker]) as pool:
        tracemalloc.start()
        try:
            results = pool.map(range(size), ordered=ordered)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 9 * size  # bytes: a place for each result; the numbers alone would take 320 MB
        assert (results.total, len(results)) == (size, size)
        assert pool.stats().accepted == size
        worker.permits.release(3)
        assert [results.get(LONG) for _ in range(3)] == [0, 1, 2]
        results.close()
        worker.permits.release(1)
    stats = pool.stats()
    assert 3 <= stats.succeeded <= 4
    assert stats.succeeded + stats.cancelled == stats.accepted == size


@pytest.mark.parametrize("items", [range(10**7 + 1), range(10**18), range(10**30), range(10**40, 0, -7)], ids=str)
def test_a_longer_range_is_drawn_as_it_is_read(items: range) -> None:
    with pool_of() as pool:
        results = pool.map(items)
        assert list(itertools.islice(results, 10)) == [number * number for number in items[:10]]
        assert pool.stats().accepted <= 10 + 1024
        results.close()


@pytest.mark.parametrize("base", [list, tuple])
def test_a_subclass_of_list_is_iterated(base: type[Any]) -> None:
    class Doubled(base):  # type: ignore[misc]
        def __iter__(self) -> Iterator[int]:
            return iter([2, 4, 6])

    with pool_of() as pool:
        assert list(pool.map(Doubled([7]))) == [4, 16, 36]


# Order, and which worker is free


def test_ordered_and_unordered_results_of_a_slow_item() -> None:
    with pool_of(2, Caller) as pool:
        for ordered in (False, True):
            slow = Hold("slow")
            results = pool.map([slow, *map(Give, range(5))], ordered=ordered)
            if ordered:
                wait_until(lambda: pool.stats().running == 1)
                with pytest.raises(queue.Empty):
                    results.get(timeout=0)
                assert results.ready == 0
            else:
                assert [results.get(LONG) for _ in range(5)] == list(range(5))
            slow.release()
            assert list(results) == (["slow", 0, 1, 2, 3, 4] if ordered else ["slow"])


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("place", [0, 1, 25, 49])
@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("source", [list, iter], ids=["list", "iterator"])
def test_no_item_waits_behind_a_slow_one(
    source: Callable[[list[Any]], Any], workers: int, place: int, ordered: bool
) -> None:
    """All workers but one are held by slow items in a row: the last one does all the others."""
    ended = threading.Semaphore(0)
    slow = [Hold("slow") for _ in range(workers - 1)]
    fast: list[Any] = [ended.release] * COUNT
    with pool_of(workers, Caller) as pool:
        results = pool.map(source([*fast[:place], *slow, *fast[place:]]), ordered=ordered)
        reader = start_threads(lambda: list(results))
        for _ in fast:
            assert ended.acquire(timeout=LONG)
        for hold in slow:
            assert hold.reached.wait(LONG)
        assert pool.stats().running >= len(slow)
        for hold in slow:
            hold.release()
        came = reader.join()[0]
    expected: list[Any] = [None] * COUNT
    expected[place:place] = ["slow"] * len(slow)
    assert came == expected if ordered else sorted(map(str, came)) == sorted(map(str, expected))


@pytest.mark.parametrize("workers", [2, 4])
def test_as_many_items_run_at_once_as_there_are_workers(workers: int) -> None:
    """The items meet at a barrier, so that fewer would not go on. A lazily drawn source needs a reader for that."""
    with pool_of(workers, Caller) as pool:
        for source in (list, iter):
            meet = threading.Barrier(workers)
            items = [lambda meet=meet: meet.wait(LONG)] * (3 * workers)
            assert sorted(pool.map(source(items))) == sorted([*range(workers)] * 3)  # type: ignore[operator]


def test_a_drawn_item_begins_while_the_reader_draws_the_next() -> None:
    """The source of the second item waits until the first has been processed."""
    ended = threading.Event()

    def source() -> Iterator[Callable[[], Any]]:
        yield ended.set
        assert ended.wait(LONG)
        yield ended.is_set

    with pool_of(1, Caller) as pool:
        assert list(pool.map(source(), buffer=2)) == [None, True]


@pytest.mark.parametrize("kind", [list, iter], ids=["list", "iterator"])
def test_a_worker_serves_other_sources_between_two_items(kind: Callable[[Any], Any]) -> None:
    order: list[str] = []
    hold = Hold()
    with pool_of(1, Caller) as pool:
        results = pool.map(kind([hold, *[lambda: order.append("item")] * 500]), buffer=None)
        reader = start_threads(lambda: list(results))
        assert hold.reached.wait(LONG)
        job = pool.do(Job(lambda: order.append("do")))
        batch = pool.execute([Job(lambda: order.append("execute"))])
        wrapped = pool.wrap([Job(lambda: order.append("wrap"))], drawn_by="thread")
        call = start_threads(lambda: pool.call(lambda: order.append("call")))
        wait_until(lambda: pool.stats().queued >= 4)
        hold.release()
        reader.join()
        call.join()
        assert job.wait(LONG)
        assert (len(list(batch)), len(list(wrapped))) == (1, 1)
    # The contract does not say how many items of one source a worker may process in a row: far fewer than all.
    assert [what for what in ("do", "execute", "wrap", "call") if order.index(what) >= 250] == []
    assert len(order) == 504


def test_two_maps_are_served_in_turn() -> None:
    order: list[str] = []
    hold = Hold()
    with pool_of(1, Caller) as pool:
        first = pool.map([hold, *[lambda: order.append("a")] * 500])
        assert hold.reached.wait(LONG)
        second = pool.map([lambda: order.append("b")] * 500)
        hold.release()
        assert list(second) == [None] * 500
        assert list(first) == ["held"] + [None] * 500
    for start in (0, 250, 500):  # at no time does one of them wait until the other is through
        assert set(order[start : start + 250]) == {"a", "b"}


# How far a source is drawn


def test_nothing_is_drawn_beyond_the_default_buffer() -> None:
    source = Source()
    with pool_of() as pool:
        results = pool.map(source)
        assert source.drawn <= 1024
        assert [results.get(LONG) for _ in range(10)] == squares(10)
        assert source.drawn <= 10 + 1024
        results.close()
    assert pool.stats().accepted <= source.drawn


@pytest.mark.parametrize("buffer", [1, 2, 3, 7])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("kind", [iter, list], ids=["iterator", "list"])
def test_at_most_buffer_items_are_drawn_ahead_of_the_reader(
    buffer: int, ordered: bool, kind: Callable[[Any], Any], switch_interval: float, seed: int
) -> None:
    """Also of a list, when `buffer` is given. A result that is being returned counts as not read, as for `wrap`."""
    rng = random.Random(seed)
    taken = 0
    most = 0

    def source() -> Iterator[int]:
        nonlocal most
        for number in range(150):
            most = max(most, number + 1 - taken)
            yield number

    with pool_of() as pool:
        results = pool.map(source() if kind is iter else list(range(150)), buffer=buffer, ordered=ordered)
        while True:
            try:
                if rng.random() < 0.5:
                    results.get()
                    taken += 1
                else:
                    taken += len(results.get_many(max=1))
            except Closed:
                break
            assert pool.stats().accepted <= taken + buffer
    assert taken == 150
    assert most <= buffer


def test_the_reading_thread_draws() -> None:
    """As for `wrap`: a generator need not be safe to use from several threads, nor from a worker's."""
    source = Source(COUNT)
    with pool_of() as pool:
        assert list(pool.map(source, buffer=3)) == squares(COUNT)
    assert source.drawn_by == {threading.get_ident()}


@pytest.mark.parametrize("buffer", [1, 2, 5])
def test_a_reader_that_stops_stops_the_source(buffer: int) -> None:
    with pool_of() as pool:
        source = Source()
        results = pool.map(source, buffer=buffer)
        for _ in range(3):
            results.get(LONG)
        wait_until(lambda: pool.stats().succeeded == pool.stats().accepted)
        drawn = source.drawn
        assert 3 <= drawn <= 3 + buffer
        assert pool.call(4) == 16  # the pool is not held up by it
        assert source.drawn == drawn
        results.close()


def test_a_source_that_answers_results_works_with_a_buffer_of_one() -> None:
    """Each item is made from the result before it."""
    came = [1]

    def source() -> Iterator[int]:
        for _ in range(5):
            yield came[-1] + 1

    with pool_of() as pool:
        for result in pool.map(source(), buffer=1):
            came.append(result)
    assert came == [1, 4, 25, 676, 458329, 210066388900]


def test_an_endless_source() -> None:
    with pool_of() as pool:
        for ordered in (True, False):
            results = pool.map(itertools.count(), ordered=ordered, buffer=10)
            came = list(itertools.islice(results, 200))
            assert (came == squares(200)) if ordered else len(set(came)) == 200
            results.close()
            assert list(results) == []


def test_an_exhausted_source_is_not_asked_again() -> None:
    class Once:
        ended = False

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            assert not self.ended
            self.ended = True
            raise StopIteration

    with pool_of() as pool:
        results = pool.map(Once())
        for _ in range(3):
            assert list(results) == []
            with pytest.raises(Closed):
                results.get()


def test_a_ring_is_an_iterable() -> None:
    """The contract names rings for `wrap` only; a ring can be iterated until it is closed and drained."""
    ring = RingBuffer[int](10)
    ring.put_many(range(10))
    ring.close()
    with pool_of() as pool:
        assert list(pool.map(ring)) == squares(10)


# Errors of items


MIXED = [3, -1, 2, -2, -3, 1]


@pytest.mark.parametrize("kind", [list, tuple, iter], ids=["list", "tuple", "iterator"])
@pytest.mark.parametrize("buffer", [None, 1, 2])
def test_errors_raise(kind: Callable[[Any], Any], buffer: int | None) -> None:
    """The error is raised in its place, and the next read goes on."""
    with pool_of() as pool:
        results = pool.map(kind(MIXED), buffer=buffer)
        came: list[Any] = []
        while True:
            try:
                came.append(next(results))
            except StopIteration:
                break
            except ValueError as error:
                came.append(error.args[0])
        assert came == [9, -1, 4, -2, -3, 1]
        if buffer is None and kind is not iter:
            assert results.total == 6
    assert counts(pool.stats()) == {"succeeded": 3, "failed": 3}


def test_errors_raise_is_the_default_and_a_for_loop_may_be_entered_again() -> None:
    with pool_of() as pool:
        results = pool.map(MIXED)
        came: list[int] = []
        failed = 0
        for _ in range(4):
            try:
                came.extend(results)  # extend keeps what came before the error
            except ValueError:
                failed += 1
        assert (came, failed) == ([9, 4, 1], 3)


@pytest.mark.parametrize("kind", [list, iter], ids=["list", "iterator"])
@pytest.mark.parametrize("ordered", [True, False])
def test_errors_return(kind: Callable[[Any], Any], ordered: bool) -> None:
    errors = [ValueError("one"), KeyError("two")]
    items = [Give(1), Give(errors[0]), Give(2), Give(errors[1])]
    with pool_of(2, Caller) as pool:
        came = list(pool.map(kind(items), ordered=ordered, errors="return"))
    if not ordered:
        came.sort(key=[1, errors[0], 2, errors[1]].index)
    assert came == [1, errors[0], 2, errors[1]]
    assert all(error.__traceback__ is not None for error in errors)
    assert counts(pool.stats()) == {"succeeded": 2, "failed": 2}


@pytest.mark.parametrize("kind", [list, iter], ids=["list", "iterator"])
@pytest.mark.parametrize("buffer", [None, 1, 2])
@pytest.mark.parametrize("ordered", [True, False])
def test_errors_skip(kind: Callable[[Any], Any], buffer: int | None, ordered: bool) -> None:
    with pool_of() as pool:
        results = pool.map(kind(MIXED), buffer=buffer, ordered=ordered, errors="skip")
        assert results.total is None
        with pytest.raises(TypeError):
            len(results)
        came = list(results)
        assert (came if ordered else sorted(came, reverse=True)) == [9, 4, 1]
        assert list(pool.map(kind([-1] * 10), buffer=buffer, ordered=ordered, errors="skip")) == []
        results = pool.map(kind([-1] * 3), buffer=buffer, ordered=ordered, errors="skip")
        with pytest.raises(Closed):
            results.get(LONG)


@pytest.mark.parametrize("errors", ["raise", "return"])
def test_an_error_has_the_traceback_of_process(errors: str) -> None:
    with pool_of() as pool:
        results = pool.map([-7], errors=errors)
        try:
            error = next(results)
        except ValueError as raised:
            error = raised
    assert error.args == (-7,)
    names = []
    trace = error.__traceback__
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert names[-1] == "process"


# Errors of sources


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("buffer", [None, 1, 3, 100])
@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
@pytest.mark.parametrize("kind", [ValueError, RuntimeError, StopAsyncIteration, Closed, queue.Empty, PoolNotRunning])
def test_an_error_of_the_source_comes_once_after_what_was_drawn(
    ordered: bool, buffer: int | None, errors: str, kind: type[Exception]
) -> None:
    """Whatever `errors` says, which is for errors of items. A Closed of the source is not the stream's end."""
    error = kind("in the source")
    source = Source(7, error)
    with pool_of() as pool:
        results = pool.map(source, buffer=buffer, ordered=ordered, errors=errors)
        came: list[int] = []
        with pytest.raises(kind) as caught:
            came.extend(results)
        assert caught.value is error
        assert sorted(came) == squares(7)
        assert list(results) == []
        with pytest.raises(Closed):
            results.get()
        assert source.closed == 1
        assert pool.call(2) == 4


def test_a_generator_that_raises_at_once() -> None:
    def source() -> Iterator[int]:
        raise ZeroDivisionError
        yield 1

    with pool_of() as pool:
        results = pool.map(source())
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert list(results) == []
    assert pool.stats().accepted == 0


def test_items_that_cannot_be_iterated_are_refused_at_once() -> None:
    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise ZeroDivisionError

    with pool_of() as pool:
        for items in (None, 3, object(), int):
            with pytest.raises(TypeError) as caught:
                pool.map(items)
            assert "items" in str(caught.value)
            assert repr(items) in str(caught.value)
        with pytest.raises(ZeroDivisionError):
            list(pool.map(Broken()))
    assert pool.stats().accepted == 0


def test_a_source_that_reads_its_own_stream_gets_an_error() -> None:
    results: Any = None

    def source() -> Iterator[int]:
        yield 1
        yield results.get()

    with pool_of() as pool:
        results = pool.map(source(), buffer=2)
        came: list[int] = []
        with pytest.raises(RuntimeError):
            came.extend(results)
        assert came == [1]


def test_a_source_is_closed_when_it_is_exhausted_or_given_up() -> None:
    """A source that is left before its end is given up at the latest when its stream is."""
    ended: list[str] = []

    def source() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            ended.append("ended")

    with pool_of() as pool:
        assert list(pool.map(source())) == [0, 1, 4]
        assert ended == ["ended"]
        results = pool.map(source(), buffer=1)
        assert results.get(LONG) == 0
        results.close()
        del results
        gc.collect()
        wait_until(lambda: len(ended) == 2)


# An Operation is no item


@pytest.mark.parametrize("operation", [Job(), Task(int)], ids=["Operation", "Task"])
@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_operation_in_a_list_is_refused_before_anything_is_accepted(
    operation: Operation, kind: type[Any], place: int
) -> None:
    items: list[Any] = [1, 2, 3]
    items.insert(place, operation)
    with pool_of() as pool:
        with pytest.raises(TypeError, match=r"execute|wrap"):
            pool.map(kind(items))
        assert pool.stats().accepted == 0
        assert operation.outcome is ringmill.Outcome.PENDING


@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
@pytest.mark.parametrize("kind", [iter, list], ids=["iterator", "list with buffer"])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_operation_that_is_drawn_ends_the_stream_in_its_place(
    errors: str, kind: Callable[[Any], Any], place: int
) -> None:
    """A list with `buffer` is drawn lazily; it may be refused at once all the same, which the contract leaves open."""
    items: list[Any] = [1, 2, 3, 4]
    items.insert(place, Job())
    with pool_of() as pool:
        came: list[int] = []
        results: Any = []

        def read() -> None:
            nonlocal results
            results = pool.map(kind(items), buffer=2, errors=errors)
            came.extend(results)

        with pytest.raises(TypeError, match=r"execute|wrap"):
            read()
        assert list(results) == []
        if kind is iter:
            assert came == squares(place + 1)[1:]
            assert pool.stats().accepted == place


# Arguments


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"buffer": 0}, ValueError, ["buffer", "0"]),
        ({"buffer": -1}, ValueError, ["buffer", "-1"]),
        ({"buffer": 1.5}, TypeError, ["buffer", "1.5"]),
        ({"buffer": "1"}, TypeError, ["buffer", "'1'"]),
        ({"buffer": True}, TypeError, ["buffer", "True"]),
        ({"errors": "ignore"}, ValueError, ["errors", "'ignore'"]),
        ({"errors": ""}, ValueError, ["errors", "''"]),
        ({"errors": None}, (TypeError, ValueError), ["errors", "None"]),
        ({"errors": 3}, (TypeError, ValueError), ["errors", "3"]),
        ({"errors": []}, (TypeError, ValueError), ["errors", "[]"]),
        ({"nonsense": 1}, TypeError, ["nonsense"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind_of_items", [list, iter], ids=["list", "iterator"])
def test_bad_arguments(
    options: dict[str, Any], kind: Any, words: list[str], kind_of_items: Callable[[Any], Any]
) -> None:
    with pool_of() as pool:
        with pytest.raises(kind) as caught:
            pool.map(kind_of_items([1, 2]), **options)
        assert [word for word in words if word not in str(caught.value)] == []
        assert pool.stats().accepted == 0


def test_options_are_given_by_name() -> None:
    with pool_of() as pool, pytest.raises(TypeError):
        pool.map([1], True)  # type: ignore[misc]


def test_buffer_takes_anything_with_an_index() -> None:
    class Two:
        def __index__(self) -> int:
            return 2

    with pool_of() as pool:
        assert list(pool.map(iter(range(9)), buffer=Two())) == squares(9)  # type: ignore[arg-type]


@pytest.mark.parametrize("items", [[1, 2], (1,), range(3), [], iter([1])], ids=repr)
def test_a_pool_that_does_not_run_refuses(items: Iterable[int]) -> None:
    pool = pool_of()
    with pytest.raises(PoolNotRunning):
        pool.map(items)
    with pool:
        pass
    with pytest.raises(PoolNotRunning):
        pool.map(items)
    with pool:
        assert list(pool.map([3])) == [9]


def test_a_broken_pool_refuses() -> None:
    class Dying(Worker[Any]):
        def process(self, item: Any) -> Any:
            raise SystemExit

    pool = pool_of(1, Dying, max_restarts=0)
    pool.start()
    with pytest.raises((SystemExit, BrokenPool)):
        pool.call(1)
    wait_until(lambda: "broken" in repr(pool))
    for items in ([1], iter([1]), range(2)):
        with pytest.raises(BrokenPool):
            pool.map(items)
    pool.shutdown()


# Several maps, several submitters


def test_several_maps_at_once_do_not_mix() -> None:
    with pool_of(3) as pool:
        streams = [
            pool.map(list(range(k, k + COUNT)), ordered=True) if k % 2 else pool.map(iter(range(k, k + COUNT)))
            for k in range(6)
        ]
        threads = start_threads(*[lambda stream=stream: list(stream) for stream in streams])
        for k, came in enumerate(threads.join()):
            assert came == [number * number for number in range(k, k + COUNT)]
        assert pool.stats().accepted == pool.stats().succeeded == 6 * COUNT


def test_a_map_of_a_held_pool_accepts_and_waits() -> None:
    with pool_of(2, Caller, queue_size=1) as pool, held(pool, 2) as holds:
        results = pool.map([Give(n) for n in range(20)])
        for call in (results.get, results.get_many):
            with pytest.raises(queue.Empty):
                call(timeout=0)
            with pytest.raises(queue.Empty):
                call(timeout=SHORT)
        assert pool.stats().queued == 20
        holds[0].release()
        assert list(results) == list(range(20))


# Async sources, read by a task


async def anumbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        if number % 3 == 0:
            await anyio.lowlevel.checkpoint()
        yield number


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("buffer", [None, 1, 2, 7])
def test_an_async_source(backend: str, ordered: bool, buffer: int | None) -> None:
    async def main() -> None:
        drawn = 0
        taken: list[int] = []

        async def source() -> AsyncIterator[int]:
            nonlocal drawn
            async for number in anumbers(100):
                drawn += 1
                assert drawn - len(taken) <= (buffer or 1024) + 1
                yield number

        async with pool_of(3) as pool:
            async for result in pool.map(source(), buffer=buffer, ordered=ordered):
                taken.append(result)
        assert (taken if ordered else sorted(taken)) == squares(100)

    run_loop(backend, main)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("source", SOURCES)
def test_async_for_over_other_sources(backend: str, source: Callable[[int], Any]) -> None:
    async def main() -> None:
        async with pool_of() as pool:
            assert [result async for result in pool.map(source(20), buffer=3)] == squares(20)
            assert [result async for result in pool.map(source(20))] == squares(20)
            assert [result async for result in pool.map(source(0))] == []

    run_loop(backend, main)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_async_source_that_raises(backend: str) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise ZeroDivisionError

    async def read(results: Any, taken: list[int]) -> None:
        async for result in results:
            taken.append(result)

    async def main() -> None:
        taken: list[int] = []
        async with pool_of() as pool:
            results = pool.map(broken())
            with pytest.raises(ZeroDivisionError):
                await read(results, taken)
            assert taken == [1, 4]
            assert [result async for result in results] == []

    run_loop(backend, main)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_operation_of_an_async_source(backend: str) -> None:
    async def wrong() -> AsyncIterator[Any]:
        yield 2
        yield Job()

    async def main() -> None:
        async with pool_of() as pool:
            results = pool.map(wrong())
            assert await results.aget() == 4
            with pytest.raises(TypeError, match=r"execute|wrap"):
                await results.aget()

    run_loop(backend, main)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_blocking_read_of_an_async_source_is_refused(backend: str) -> None:
    async def main() -> None:
        async with pool_of() as pool:
            results = pool.map(anumbers(3))
            for call in (lambda: next(results), lambda: results.get(timeout=0), results.get_many):
                with pytest.raises(TypeError, match="async for"):
                    call()
            assert [result async for result in results] == [0, 1, 4]

    run_loop(backend, main)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
def test_errors_of_items_of_an_async_source(backend: str, errors: str) -> None:
    async def source() -> AsyncIterator[int]:
        for number in MIXED:
            yield number

    async def main() -> list[Any]:
        came: list[Any] = []
        async with pool_of() as pool:
            results = pool.map(source(), errors=errors)
            while True:
                try:
                    came.append(await results.aget())
                except Closed:
                    return came
                except ValueError as error:
                    came.append(error)

    came = [value.args[0] if isinstance(value, ValueError) else value for value in run_loop(backend, main)]
    assert came == ([9, 4, 1] if errors == "skip" else [9, -1, 4, -2, -3, 1])
