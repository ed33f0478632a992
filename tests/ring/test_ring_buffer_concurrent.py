"""Many threads on a small ring: every item comes out exactly once, in spite of closes, timeouts and a full ring."""

from __future__ import annotations

import queue
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import pytest

from ringmill import Closed, RingBuffer
from tests.threads import run_threads, start_threads, wait_until

Item = tuple[int, int]  # producer, number: rising for each producer


def assert_rising(received: list[Item]) -> None:
    """What one consumer saw of each producer came in the order it was put in."""
    last: dict[int, int] = {}
    for producer, number in received:
        assert last.get(producer, -1) < number, (producer, last[producer], number)
        last[producer] = number


# Exactly once


@pytest.mark.stress
@pytest.mark.parametrize("capacity", [1, 2, 3, 64])
@pytest.mark.parametrize("consumers", [1, 2, 4, 8])
@pytest.mark.parametrize("producers", [1, 2, 4, 8])
def test_exactly_once_and_in_order(
    producers: int, consumers: int, capacity: int, switch_interval: float, seed: int
) -> None:
    per_producer = 240 // producers
    ring = RingBuffer[Item](capacity)

    def produce(producer: int) -> None:
        rng = random.Random(seed + producer)
        number = 0
        while number < per_producer:
            if rng.random() < 0.7:
                ring.put((producer, number))
                number += 1
            else:
                count = min(rng.randint(1, 5), per_producer - number)
                assert ring.put_many([(producer, number + i) for i in range(count)]) == count
                number += count

    def consume(consumer: int) -> list[Item]:
        rng = random.Random(seed - consumer)
        received: list[Item] = []
        for item in ring:
            received.append(item)
            if rng.random() < 0.3:
                try:
                    taken = ring.get_many(rng.choice([None, 1, 3]))
                except Closed:
                    continue
                assert 1 <= len(taken) <= capacity
                received += taken
        return received

    readers = start_threads(*[lambda i=i: consume(i) for i in range(consumers)])
    run_threads(*[lambda i=i: produce(i) for i in range(producers)])
    ring.close()
    received = readers.join()
    for items in received:
        assert_rising(items)
    assert Counter(chain.from_iterable(received)) == Counter(
        (p, n) for p in range(producers) for n in range(per_producer)
    )
    assert ring.empty()


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_two_threads_in_lock_step(capacity: int, switch_interval: float) -> None:
    """A ping-pong through two rings: nearly every call has to wait for the other thread."""
    there, back = RingBuffer[int](capacity), RingBuffer[int](capacity)

    def echo() -> None:
        for item in there:
            back.put(item)
        back.close()

    def ask() -> list[int]:
        answers = []
        for i in range(500):
            there.put(i)
            answers.append(back.get())
        there.close()
        return answers

    assert run_threads(echo, ask)[1] == list(range(500))


def test_get_many_stops_at_the_tail_it_saw(switch_interval: float) -> None:
    """With producers that refill the ring as it is emptied, no call takes more than was in it at one moment."""
    ring = RingBuffer[int](3)

    def produce() -> None:
        for i in range(1500):
            ring.put(i)

    def consume() -> int:
        taken = 0
        while taken < 3000:
            items = ring.get_many()
            assert 1 <= len(items) <= 3
            taken += len(items)
        return taken

    assert run_threads(produce, produce, consume)[2] == 3000


# Closing


def accepted_part(error: Any, items: list[Any], source: Any) -> list[Any]:
    """Checks the answer of a put_many that failed, and gives what went in: in the ring, in `rest` or still in the
    iterator, each item is in exactly one place; a list is not used up, so there `rest` may be any part of the rest."""
    missing = items[error.count :]
    if source is items:
        assert error.rest == missing[: len(error.rest)]
    else:
        assert [*error.rest, *source] == missing
    return items[: error.count]


class Ledger:
    """What one producer put and got an answer for. The items of a call that raised are not in the ring, but for
    the `count` that its error tells."""

    def __init__(self, ring: RingBuffer[Item], producer: int, rng: random.Random) -> None:
        self.ring, self.producer, self.rng = ring, producer, rng
        self.accepted: list[Item] = []
        self.number = 0

    def draw(self) -> Item:
        self.number += 1
        return (self.producer, self.number)

    def put_one(self) -> None:
        item = self.draw()
        call: Callable[[Item], None] = self.rng.choice(
            [self.ring.put, self.ring.put_nowait, lambda item: self.ring.put(item, timeout=1e-4)]
        )
        try:
            call(item)
        except queue.Full:
            return
        self.accepted.append(item)

    def put_some(self) -> None:
        items = [self.draw() for _ in range(self.rng.randint(1, 6))]
        source = iter(items) if self.rng.random() < 0.5 else items
        try:
            count = self.ring.put_many(source, timeout=self.rng.choice([None, 0, 1e-4]))
        except (queue.Full, Closed) as error:
            self.accepted += accepted_part(error, items, source)
            if isinstance(error, Closed):
                raise
        else:
            assert count == len(items)
            self.accepted += items

    def run(self) -> list[Item]:
        try:
            while True:
                self.rng.choice([self.put_one, self.put_some])()
        except Closed:
            return self.accepted


def consume_until_closed(ring: RingBuffer[Item], rng: random.Random) -> list[Item]:
    received: list[Item] = []
    try:
        while True:
            try:
                call = rng.randrange(5)
                if call == 0:
                    received.append(ring.get())
                elif call == 1:
                    received.append(ring.get(timeout=1e-4))
                elif call == 2:
                    received.append(ring.get_nowait())
                elif call == 3:
                    received += ring.get_many(rng.choice([None, 1, 2]), timeout=rng.choice([None, 1e-4]))
                else:
                    received.append(next(iter(ring)))
            except queue.Empty:
                pass
    except (Closed, StopIteration):
        return received


def close_when(ring: RingBuffer[Item], ledgers: list[Ledger], moment: int, immediate: bool) -> None:
    """Closes once so many items are in, or when the ring is full, which it may stay forever without a getter."""
    wait_until(lambda: ring.full() or sum(len(ledger.accepted) for ledger in ledgers) >= moment)
    ring.shutdown(immediate)


def close_at_random(capacity: int, seed: int, immediate: bool) -> None:
    rng = random.Random(seed)
    ring = RingBuffer[Item](capacity)
    ledgers = [Ledger(ring, p, random.Random(rng.random())) for p in range(rng.randint(1, 3))]
    getters = [random.Random(rng.random()) for _ in range(rng.randint(0, 3))]
    moment = rng.choice([0, rng.randrange(20), rng.randrange(300)])
    results = run_threads(
        *[ledger.run for ledger in ledgers],
        *[partial(consume_until_closed, ring, getter) for getter in getters],
        lambda: close_when(ring, ledgers, moment, immediate),
    )
    received = results[len(ledgers) : -1]
    # A getter that was told Closed saw the ring closed and drained, and nothing goes in after that.
    left = list(ring)
    assert not (left and (getters or immediate)), seed
    for items in (*received, left):
        assert_rising(items)
    accepted = Counter(chain.from_iterable(ledger.accepted for ledger in ledgers))
    came_out = Counter(chain(left, *received))
    if immediate:
        assert came_out <= accepted, seed  # some may have been dropped
    else:
        assert came_out == accepted, seed


@pytest.mark.stress
@pytest.mark.parametrize("immediate", [False, True])
@pytest.mark.parametrize("capacity", [1, 2, 3, 64])
def test_close_at_a_random_moment_loses_and_doubles_nothing(
    capacity: int, immediate: bool, switch_interval: float, seed: int
) -> None:
    for one in range(seed, seed + (20 if immediate else 60)):
        close_at_random(capacity, one, immediate)


def close_with_waiting_getters(immediate: bool) -> None:
    ring = RingBuffer[int](2)
    calls = [ring.get, partial(ring.get, timeout=60), ring.get_many, partial(next, iter(ring))] * 2
    entered: list[int] = []

    def wait(call: Callable[[], Any]) -> None:
        entered.append(1)
        with pytest.raises((Closed, StopIteration)):
            call()

    started = start_threads(*[partial(wait, call) for call in calls])
    wait_until(lambda: len(entered) == len(calls))  # some are asleep by now and some are not yet: all must be told
    ring.shutdown(immediate)
    started.join()


def close_with_waiting_putters(immediate: bool) -> None:
    ring = RingBuffer[int](2)
    ring.put_many([-1, -2])
    entered: list[int] = []

    def wait(i: int) -> tuple[int, list[int]]:
        entered.append(1)
        source, timeout = iter([i, i]), 60 if i % 2 else None
        call = partial(ring.put, i) if i % 4 < 2 else partial(ring.put_many, source)
        with pytest.raises(Closed) as caught:
            call(timeout=timeout)
        return (0, [i, i]) if i % 4 < 2 else (caught.value.count, [*caught.value.rest, *source])  # type: ignore[attr-defined]

    started = start_threads(*[partial(wait, i) for i in range(8)])
    wait_until(lambda: len(entered) == 8)
    ring.shutdown(immediate)
    assert started.join() == [(0, [i, i]) for i in range(8)]
    assert list(ring) == ([] if immediate else [-1, -2])


@pytest.mark.parametrize("immediate", [False, True])
@pytest.mark.parametrize("close", [close_with_waiting_getters, close_with_waiting_putters])
def test_every_waiter_wakes_on_close(close: Callable[[bool], None], immediate: bool) -> None:
    for _ in range(50):
        close(immediate)


@pytest.mark.parametrize("read", [0, 1, 5])
@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_waiting_put_many_tells_count_and_rest_on_close(capacity: int, kind: Callable[[Any], Any], read: int) -> None:
    items = list(range(20))
    ring = RingBuffer[int](capacity)
    source = items if kind is list else iter(items)

    def fill() -> BaseException:
        with pytest.raises(Closed) as caught:
            ring.put_many(source)
        return caught.value

    started = start_threads(fill)
    received = [ring.get() for _ in range(read)]
    wait_until(ring.full)  # at most 8 of the 20 are in or read: it fills up, and then the put waits
    ring.close()
    (error,) = started.join()
    received += ring
    assert len(received) == read + capacity
    assert received == accepted_part(error, items, source)
    assert error.rest  # there was one in its hands
