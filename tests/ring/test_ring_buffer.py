"""The contract of RingBuffer, as far as one thread can check it."""

from __future__ import annotations

import collections
import inspect
import itertools
import math
import queue
import random
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringmill import Closed, RingBuffer
from tests.threads import run_threads

CAPACITIES = [1, 2, 3, 5, 64]
sources = pytest.mark.parametrize(
    "make", [list, iter, lambda items: (item for item in items)], ids=["list", "iter", "generator"]
)


def fill(ring: RingBuffer[Any], *items: Any) -> RingBuffer[Any]:
    for item in items:
        ring.put_nowait(item)
    return ring


def drain(ring: RingBuffer[Any]) -> list[Any]:
    """Takes what is there now; never blocks."""
    taken = []
    while True:
        try:
            taken.append(ring.get_nowait())
        except (queue.Empty, Closed):
            return taken


# Order and capacity


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_capacity_is_exact_on_every_lap(capacity: int) -> None:
    ring = RingBuffer[int](capacity)
    assert ring.capacity == capacity
    # Several laps, and each starts at another index, so every slot is at some time the first and the last one.
    for lap in range(3 * capacity if capacity < 10 else 5):
        for i in range(capacity):
            assert not ring.full()
            assert len(ring) == ring.qsize() == i
            ring.put_nowait(lap * 1000 + i)
        assert ring.full()
        with pytest.raises(queue.Full):
            ring.put_nowait(-1)
        assert len(ring) == ring.qsize() == capacity
        assert [ring.get_nowait() for _ in range(capacity)] == [lap * 1000 + i for i in range(capacity)]
        assert ring.empty()
        with pytest.raises(queue.Empty):
            ring.get_nowait()
        ring.put_nowait(0)
        assert not ring.empty()
        assert ring.get_nowait() == 0


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_against_a_model(capacity: int, seed: int) -> None:
    """A few thousand random calls, each compared with a deque."""
    rng = random.Random(seed)
    ring = RingBuffer[int](capacity)
    model: collections.deque[int] = collections.deque()
    numbers = itertools.count()
    for _ in range(3000):
        call = rng.choice(["put", "put", "get", "get", "put_many", "get_many"])
        if call == "put":
            item = next(numbers)
            if len(model) == capacity:
                with pytest.raises(queue.Full):
                    ring.put(item, block=False)
            else:
                ring.put(item)
                model.append(item)
        elif call == "get":
            if model:
                assert ring.get() == model.popleft()
            else:
                with pytest.raises(queue.Empty):
                    ring.get(block=False)
        elif call == "put_many":
            items = list(itertools.islice(numbers, rng.randint(0, capacity - len(model))))
            assert ring.put_many(items) == len(items)
            model.extend(items)
        elif model:
            most = rng.choice([None, 1, 2, capacity, capacity + 1])
            count = len(model) if most is None else min(most, len(model))
            assert ring.get_many(most) == [model.popleft() for _ in range(count)]
        assert (len(ring), ring.empty(), ring.full()) == (len(model), not model, len(model) == capacity)
    assert drain(ring) == list(model)


@pytest.mark.parametrize(
    "item", [None, math.nan, False, 0, "", (), [], {}, object(), int, Ellipsis, NotImplemented, StopIteration()]
)
def test_any_object_is_an_item(item: Any) -> None:
    ring = RingBuffer[Any](2)
    for put in (ring.put, ring.put_nowait, lambda item: ring.put_many([item])):
        for get in (ring.get, ring.get_nowait, lambda: ring.get_many()[0], lambda: next(iter(ring))):
            put(item)
            assert get() is item
    assert ring.empty()


def test_a_ring_can_hold_itself() -> None:
    ring = RingBuffer[Any](1)
    ring.put(ring)
    assert ring.get() is ring


# Blocking arguments, as queue.Queue has them


def test_timeouts_and_block() -> None:
    ring = RingBuffer[int](1)
    for timeout in (0, 0.0, 1e-9, 0.002):
        for get in (lambda t=timeout: ring.get(True, t), lambda t=timeout: ring.get(timeout=t)):
            with pytest.raises(queue.Empty):
                get()
        with pytest.raises(queue.Empty):
            ring.get_many(None, timeout)
    with pytest.raises(queue.Empty):
        ring.get(False)
    ring.put(1, True, 0)
    for timeout in (0, 0.0, 1e-9, 0.002):
        for put in (lambda t=timeout: ring.put(2, True, t), lambda t=timeout: ring.put(2, timeout=t)):
            with pytest.raises(queue.Full):
                put()
        with pytest.raises(queue.Full):
            ring.put_many([2], timeout)
    with pytest.raises(queue.Full):
        ring.put(2, False)
    assert ring.get(timeout=0) == 1
    ring.put(item=3, block=True, timeout=None)
    assert ring.get(block=True, timeout=None) == 3
    ring.put_many(iterable=[4], timeout=0)
    assert ring.get_many(max=1, timeout=0) == [4]


@pytest.mark.parametrize("timeout", [10**6, 1e9, 1e18, math.inf])
def test_a_very_long_timeout_is_a_timeout_or_a_value_error(timeout: float) -> None:
    ring = RingBuffer[int](2)
    try:
        ring.put(1, timeout=timeout)
    except ValueError as error:  # either answer is right, an OverflowError is not
        assert_names(error, "timeout", timeout)
    else:
        assert ring.get(timeout=timeout) == 1


# put_many


def test_put_many_of_any_iterable() -> None:
    ring = RingBuffer[Any](4)
    for source in ([1, 2, 3], (1, 2, 3), range(1, 4), iter([1, 2, 3]), (i for i in (1, 2, 3)), {1: 0, 2: 0, 3: 0}):
        assert ring.put_many(source) == 3
        assert ring.get_many() == [1, 2, 3]
    assert ring.put_many([]) == 0
    assert ring.put_many(iter(())) == 0
    assert ring.put_many("ab") == 2
    assert drain(ring) == ["a", "b"]


@sources
@pytest.mark.parametrize("timeout", [0, 0.002])
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_put_many_that_times_out_reports_its_count(make: Callable[[Any], Any], timeout: float, kept: int) -> None:
    ring = fill(RingBuffer[int](3), *range(-kept, 0))
    items = list(range(10))
    source = make(items)
    with pytest.raises(queue.Full) as caught:
        ring.put_many(source, timeout=timeout)
    check_partial(caught.value, ring, source, items, kept)
    assert caught.value.count == 3 - kept


@sources
def test_put_many_into_a_closed_ring_tells_that_nothing_went_in(make: Callable[[Any], Any]) -> None:
    ring = fill(RingBuffer[int](3), -1)
    ring.close()
    items = list(range(10))
    source = make(items)
    with pytest.raises(Closed) as caught:
        ring.put_many(source)
    check_partial(caught.value, ring, source, items, 1)
    assert caught.value.count == 0


def check_partial(error: Any, ring: RingBuffer[int], source: Any, items: list[int], kept: int) -> None:
    """The ledger of a put_many that failed: in the ring, in `rest`, still in the source, and nowhere twice."""
    assert drain(ring)[kept:] == items[: error.count]
    if isinstance(source, list):
        assert source == items
        assert error.rest == items[error.count : error.count + len(error.rest)]
    else:
        assert [*error.rest, *source] == items[error.count :]


def test_put_many_closed_by_its_own_source() -> None:
    ring = RingBuffer[int](4)

    def source() -> Iterator[int]:
        yield from (0, 1)
        ring.close()
        yield from (2, 3)

    drawn = source()
    with pytest.raises(Closed) as caught:
        ring.put_many(drawn)
    check_partial(caught.value, ring, drawn, [0, 1, 2, 3], 0)


def test_put_many_from_a_source_that_raises() -> None:
    ring = RingBuffer[int](8)

    def source() -> Iterator[int]:
        yield from (0, 1, 2)
        raise LookupError("the source")

    with pytest.raises(LookupError, match="the source"):
        ring.put_many(source())
    assert drain(ring) == [0, 1, 2]


def test_put_many_from_a_source_that_uses_the_ring() -> None:
    ring = RingBuffer[int](6)
    taken: list[int] = []

    def source() -> Iterator[int]:
        for i in range(6):
            taken.extend(drain(ring))
            yield i

    assert ring.put_many(source()) == 6
    assert taken + drain(ring) == list(range(6))


# get_many


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_get_many_takes_what_is_there_up_to_max(capacity: int) -> None:
    ring = RingBuffer[int](capacity)
    items = list(range(capacity))
    for most in (1, 2, capacity, capacity + 1, 10**6):
        ring.put_many(items)
        assert ring.get_many(most) == items[:most]
        assert drain(ring) == items[most:]
    ring.put_many(items)
    assert ring.get_many() == items
    assert ring.empty()


def test_get_many_of_a_closed_ring_drains_it() -> None:
    ring = fill(RingBuffer[int](3), 1, 2, 3)
    ring.close()
    assert ring.get_many(2) == [1, 2]
    assert ring.get_many() == [3]
    with pytest.raises(Closed):
        ring.get_many()


# Closing


def test_closed_is_queue_shutdown_where_that_exists() -> None:
    assert issubclass(Closed, getattr(queue, "ShutDown", Exception))


@pytest.mark.parametrize("close", [RingBuffer.close, RingBuffer.shutdown, lambda ring: ring.shutdown(immediate=False)])
def test_close_refuses_puts_and_lets_getters_drain(close: Callable[[RingBuffer[int]], None]) -> None:
    ring = fill(RingBuffer[int](3), 1, 2)
    assert not ring.closed
    assert close(ring) is None
    close(ring)
    assert ring.closed
    for put in (ring.put, ring.put_nowait, lambda i: ring.put(i, timeout=0), lambda i: ring.put_many([i])):
        with pytest.raises(Closed):
            put(3)
    assert (len(ring), ring.qsize(), ring.empty(), ring.full(), ring.capacity) == (2, 2, False, False, 3)
    assert ring.get() == 1
    assert ring.get_nowait() == 2
    assert (len(ring), ring.empty(), ring.closed) == (0, True, True)
    for get in (ring.get, ring.get_nowait, lambda: ring.get(timeout=0), lambda: ring.get(False), ring.get_many):
        with pytest.raises(Closed):
            get()
    assert list(ring) == []


def test_put_into_a_full_closed_ring_is_closed_not_full() -> None:
    ring = fill(RingBuffer[int](1), 1)
    ring.close()
    assert ring.full()
    for put in (ring.put, ring.put_nowait, lambda i: ring.put(i, timeout=0.001), lambda i: ring.put_many([i])):
        with pytest.raises(Closed):
            put(2)
    assert drain(ring) == [1]


@pytest.mark.parametrize("before", [lambda ring: None, RingBuffer.close], ids=["open", "closed"])
def test_immediate_shutdown_drops_what_is_left(before: Callable[[RingBuffer[int]], None]) -> None:
    ring = fill(RingBuffer[int](3), 1, 2)
    before(ring)
    assert ring.shutdown(immediate=True) is None
    ring.shutdown(immediate=True)
    ring.close()
    assert ring.closed
    assert (len(ring), ring.empty()) == (0, True)
    with pytest.raises(Closed):
        ring.get()
    with pytest.raises(Closed):
        ring.put(3)


def test_iteration_ends_when_closed_and_drained() -> None:
    ring = fill(RingBuffer[int](3), 1, 2, 3)
    first, second = iter(ring), iter(ring)
    assert next(first) == 1
    assert next(second) == 2  # two iterators share the ring
    ring.close()
    assert list(first) == [3]
    assert list(second) == []
    assert next(first, "end") == "end"


# Bad arguments: refused by name before anything has changed


@pytest.mark.parametrize("capacity", [0, -1, -(2**70), 1.5, 2.0, 2**62, 2**63, 2**100, "3", None, [3], math.nan])
def test_bad_capacity(capacity: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        RingBuffer(capacity)
    assert_names(caught.value, "capacity", capacity)


def test_missing_capacity() -> None:
    with pytest.raises(TypeError):
        RingBuffer()  # type: ignore[call-arg]


@pytest.mark.parametrize("timeout", [-1, -0.001, -math.inf, math.nan, "1", b"1", [1], object])
@pytest.mark.parametrize("call", ["put", "get", "put_many", "get_many"])
def test_bad_timeout(call: str, timeout: Any) -> None:
    ring = fill(RingBuffer[str](2), "kept")
    source = iter(["drawn"])
    arguments = {"put": ("item",), "put_many": (source,)}.get(call, ())
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(ring, call)(*arguments, timeout=timeout)
    assert_names(caught.value, "timeout", timeout)
    assert list(source) == ["drawn"]
    assert drain(ring) == ["kept"]


@pytest.mark.parametrize("most", [0, -1, -(2**70)])
def test_max_below_one(most: int) -> None:
    ring = fill(RingBuffer[str](2), "kept")
    with pytest.raises(ValueError, match="max") as caught:
        ring.get_many(most)
    assert_names(caught.value, "max", most)
    assert drain(ring) == ["kept"]


@pytest.mark.parametrize("most", ["1", 1.5, [1]])
def test_max_of_a_wrong_type(most: Any) -> None:
    ring = fill(RingBuffer[str](2), "kept")
    with pytest.raises((TypeError, ValueError)) as caught:
        ring.get_many(most)
    assert_names(caught.value, "max", most)
    assert drain(ring) == ["kept"]


@pytest.mark.parametrize("source", [5, None, object()])
def test_put_many_of_an_object_that_is_not_iterable(source: Any) -> None:
    ring = fill(RingBuffer[str](2), "kept")
    with pytest.raises(TypeError, match="iterable"):
        ring.put_many(source)
    assert drain(ring) == ["kept"]


def assert_names(error: BaseException, argument: str, value: object) -> None:
    assert argument in str(error)
    assert repr(value) in str(error)


# The class


def test_generic_alias() -> None:
    alias = RingBuffer[int]
    assert typing.get_origin(alias) is RingBuffer
    assert typing.get_args(alias) == (int,)
    assert isinstance(alias(3), RingBuffer)
    assert alias(3).capacity == 3


@pytest.mark.parametrize("arguments", [(9,), (3,), (), ("nine",)])
def test_a_second_init_is_refused_and_changes_nothing(arguments: tuple[Any, ...]) -> None:
    class Jobs(RingBuffer[int]):
        pass

    ring = fill(Jobs(3), 1, 2)
    with pytest.raises(RuntimeError, match=r"Jobs.__init__ was called on a ring that is initialized already"):
        ring.__init__(*arguments)  # type: ignore[misc]
    assert (ring.capacity, ring.closed, len(ring)) == (3, False, 2)
    ring.close()
    with pytest.raises(RuntimeError, match="initialized already"):
        ring.__init__(*arguments)  # type: ignore[misc]
    assert ring.closed
    assert drain(ring) == [1, 2]


def test_one_of_many_inits_at_once_makes_the_ring() -> None:
    for _ in range(100):
        ring = RingBuffer.__new__(RingBuffer)

        def make(capacity: int, ring: Any = ring) -> int:
            try:
                ring.__init__(capacity)
            except RuntimeError:
                return 0
            return capacity

        made = run_threads(*[lambda capacity=capacity: make(capacity) for capacity in (1, 2, 3)])
        assert made.count(0) == 2
        assert ring.capacity == sum(made)


def test_subclass_with_its_own_init() -> None:
    class Named(RingBuffer[int]):
        def __init__(self, capacity: int) -> None:
            super().__init__(capacity)
            self.name = "named"

    ring = fill(Named(2), 1, 2)
    assert ring.full()
    assert ring.name == "named"
    assert "Named" in repr(ring)
    assert drain(ring) == [1, 2]


def test_repr_shows_the_state() -> None:
    ring = RingBuffer[int](7)
    seen = [repr(ring)]
    fill(ring, 0, 0, 0)
    seen.append(repr(ring))
    ring.close()
    seen.append(repr(ring))
    assert len(set(seen)) == 3
    assert all("RingBuffer" in text and "7" in text for text in seen)
    assert "3" in seen[1]
    assert "closed" in seen[2].lower()


def test_put_nowait_takes_its_argument_by_name_too_and_no_other() -> None:
    """The common call, with one positional argument, has a way of its own."""

    class Counting(RingBuffer[Any]):
        puts = 0

        def put_nowait(self, item: Any) -> None:
            self.puts += 1
            super().put_nowait(item)

    ring = Counting(3)
    ring.put_nowait(1)
    RingBuffer.put_nowait(ring, 2)
    RingBuffer.put_nowait(ring, item=3)
    assert ring.puts == 1
    with pytest.raises(queue.Full):
        RingBuffer.put_nowait(ring, item=4)
    assert list(ring.get_many()) == [1, 2, 3]
    call: Any = RingBuffer(1).put_nowait
    for arguments, names in [((), {}), ((1, 2), {}), ((1,), {"item": 2}), ((), {"items": 1})]:
        with pytest.raises(TypeError):
            call(*arguments, **names)
    with pytest.raises(TypeError):
        RingBuffer.put_nowait([], 1)  # type: ignore[arg-type]
    assert str(inspect.signature(RingBuffer.put_nowait)) == "(self, /, item)"
