"""PoolExecutor.map: results in order, computed while the source is drawn, cancelled when the iterator is dropped."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from ringmill import PoolExecutor
from tests.futures.test_futures import LONG, double
from tests.threads import wait_until


@pytest.mark.parametrize(
    ("buffersize", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("1", TypeError), (True, TypeError)]
)
def test_bad_buffersize(buffersize: Any, error: type[Exception]) -> None:
    with PoolExecutor(1) as executor, pytest.raises(error, match="buffersize must be"):
        executor.map(double, [1], buffersize=buffersize)


def test_map_draws_and_calls_side_by_side() -> None:
    """A source may wait for what was drawn from it before."""
    called = threading.Event()

    def source() -> Iterator[Callable[[], object]]:
        yield called.set
        assert called.wait(LONG)
        yield called.is_set

    with PoolExecutor(1) as executor:
        assert list(executor.map(lambda fn: fn(), source())) == [None, True]


@pytest.mark.parametrize("end", ["closed", "dropped", "failed", "late"])
def test_map_cancels_the_rest_when_its_iterator_ends_early(end: str) -> None:
    begun: list[str] = []
    holding, gate = threading.Event(), threading.Event()

    def call(what: str) -> str:
        begun.append(what)
        if what == "hold":
            holding.set()
            gate.wait(LONG)
        if what == "failed":
            raise ZeroDivisionError
        return what

    with PoolExecutor(1) as executor:
        results = executor.map(call, [end, "hold", "never", "never"], timeout=0.01 if end == "late" else LONG)
        assert holding.wait(LONG)
        if end == "failed":
            with pytest.raises(ZeroDivisionError):
                next(results)
        else:
            assert next(results) == end
        if end == "late":
            with pytest.raises(TimeoutError):
                next(results)
        if end == "closed":
            results.close()  # type: ignore[attr-defined]
        del results
        gate.set()
    assert begun == [end, "hold"]


def test_map_calls_the_function_even_if_its_iterator_is_not_read() -> None:
    done: list[int] = []
    with PoolExecutor(1) as executor:
        executor.map(done.append, range(100))
    assert done == list(range(100))


def test_map_with_a_buffer_draws_as_results_are_taken() -> None:
    drawn: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10):
            drawn.append(number)
            yield number

    with PoolExecutor(2) as executor:
        results = executor.map(double, source(), buffersize=3)
        assert drawn == [0, 1, 2]
        assert next(results) == 0
        assert drawn == [0, 1, 2, 3]
        assert list(results) == [2 * number for number in range(1, 10)]
        results = executor.map(double, source(), buffersize=3)
    assert drawn[10:] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="after shutdown"):
        next(results)


def test_map_goes_by_way_of_a_submit_that_is_overridden() -> None:
    class Counting(PoolExecutor):
        count = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.count += 1
            return super().submit(fn, *args, **kwargs)

    with Counting(1) as executor:
        assert list(executor.map(double, [1, 2, 3])) == [2, 4, 6]
        assert executor.count == 3


def test_map_draws_no_more_from_a_source_that_has_ended() -> None:
    class Twice:
        """Ends, and would begin again."""

        count = 0

        def __iter__(self) -> Twice:
            return self

        def __next__(self) -> int:
            self.count += 1
            if self.count % 3 == 0:
                raise StopIteration
            return self.count

    with PoolExecutor(1) as executor:
        assert list(executor.map(double, Twice())) == [2, 4]


def test_map_of_nothing() -> None:
    with PoolExecutor(1) as executor:
        assert list(executor.map(double, [])) == []
        assert list(executor.map(double)) == []
        assert list(executor.map(double, [], buffersize=2)) == []


@pytest.mark.parametrize("way", ["dropped", "closed", "raises", "read"])
def test_an_executor_keeps_nothing_of_a_bounded_map_that_is_over(way: str) -> None:
    def count() -> int:
        gc.collect()
        return sum(type(each).__name__ == "ItemSource" for each in gc.get_objects())

    def items() -> Iterator[int]:
        yield 1
        if way == "raises":
            raise ValueError
        yield 2

    def gone() -> bool:
        executor.submit(int).result(LONG)  # a worker looks for work
        return count() <= before

    before = count()
    with PoolExecutor(1) as executor:
        for _ in range(20):
            if way == "raises":
                with pytest.raises(ValueError):  # noqa: PT011  # the iterable's own
                    executor.map(double, items(), buffersize=2)
                continue
            results: Any = executor.map(double, items(), buffersize=1)
            if way == "closed":
                results.close()
            elif way == "read":
                assert list(results) == [2, 4]
            del results
        wait_until(gone)
