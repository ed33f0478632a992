"""Random maps, calls and operations on one pool at the same time: each item and operation is accounted for once."""

from __future__ import annotations

import itertools
import queue
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from ringmill import (
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
from tests.pool.items import is_conserved
from tests.threads import run_threads, start_threads, wait_until

pytestmark = [pytest.mark.usefixtures("no_thread_is_left"), pytest.mark.stress]

# What becomes of an item, and how likely that is.
FATES = {"return": 60, "raise": 8, "retry": 8, "delay": 4, "exhaust": 3, "reject": 6, "unroutable": 3, "crash": 1}
ENDS = {
    "raise": ValueError,
    "exhaust": RetriesExhausted,
    "unroutable": Unroutable,
    "crash": SystemExit,
}


class Item:
    """An item and the record of what happened to it."""

    def __init__(self, number: int, fate: str) -> None:
        self.number = number
        self.fate = fate
        self.tries = 0  # each is processed by one worker at a time

    def __repr__(self) -> str:
        return f"Item({self.number}, {self.fate!r})"


class Work(Operation):
    def __init__(self, item: Item) -> None:
        self.item = item


class Actor(Worker[Any]):
    def __init__(self, index: int) -> None:
        self.index = index
        self.processed: Counter[int] = Counter()

    def process(self, item: Any) -> Any:
        if isinstance(item, Work):
            self.act(item.item)
            return None
        return self.act(item)

    def act(self, item: Item) -> int:
        if item.fate == "unroutable" or (item.fate == "reject" and self.index != item.number % 2):
            raise Reject
        item.tries += 1
        self.processed[item.number] += 1
        if item.fate in ("retry", "delay") and item.tries <= 1 + item.number % 2:
            raise Retry(delay=0.0005 if item.fate == "delay" else 0)
        if item.fate == "exhaust":
            raise Retry
        if item.fate == "raise":
            raise ValueError(item.number)
        if item.fate == "crash":
            raise SystemExit(item.number)
        return item.number


class Ledger:
    """Makes items with numbers that differ, and counts what must have become of them."""

    def __init__(self, seed: int) -> None:
        self.numbers = itertools.count()
        self.rng = random.Random(seed)

    def make(self, count: int) -> list[Item]:
        fates = self.rng.choices(list(FATES), list(FATES.values()), k=count)
        return [Item(next(self.numbers), fate) for fate in fates]


def expected(item: Item, errors: str) -> list[Any]:
    """What comes out for an item: nothing, its number, or the type of its error."""
    kind = ENDS.get(item.fate)
    if kind is None:
        return [item.number]
    return [] if errors == "skip" else [kind]


def read_all(results: Any, rng: random.Random) -> list[Any]:
    """Numbers, and the types of errors, in the order in which they came."""
    came: list[Any] = []
    while True:
        try:
            match rng.randrange(4):
                case 0:
                    share = [next(results)]
                case 1:
                    share = [results.get()]
                case 2:
                    share = results.get_many(rng.randrange(1, 5))
                case _:
                    share = [results.get(timeout=0.0001)]
        except (StopIteration, Closed):
            return came
        except queue.Empty:
            continue
        except BaseException as error:
            share = [error]
        came += [type(value) if isinstance(value, BaseException) else value for value in share]


def check(items: list[Item], came: list[Any], ordered: bool, errors: str) -> None:
    wanted = [value for item in items for value in expected(item, errors)]
    if ordered:
        assert came == wanted
    else:
        assert Counter(map(str, came)) == Counter(map(str, wanted))


def check_totals(pool: WorkerPool[Any], items: list[Item]) -> None:
    """Exact once the pool is idle, and the workers that crashed have been restarted."""
    wait_until(lambda: pool.stats().restarts == sum(item.fate == "crash" for item in items))
    stats = pool.stats()
    failed = sum(item.fate in ENDS for item in items)
    assert is_conserved(stats)
    assert (stats.queued, stats.running, stats.delayed, stats.cancelled) == (0, 0, 0, 0)
    assert (stats.accepted, stats.succeeded, stats.failed) == (len(items), len(items) - failed, failed)


MAX_TRIES = 4


def make_pool(workers: int, **settings: Any) -> WorkerPool[Any]:
    settings = {"max_tries": MAX_TRIES, "max_restarts": None, "restart_pause": 0, "queue_size": 4} | settings
    return WorkerPool([Actor(index) for index in range(workers)], **settings)


def check_tries(pool: WorkerPool[Any], items: list[Item]) -> None:
    processed: Counter[int] = Counter()
    for worker in pool.workers:
        processed.update(worker.processed)
    for item in items:
        tries = {"retry": 2 + item.number % 2, "delay": 2 + item.number % 2, "exhaust": MAX_TRIES, "unroutable": 0}
        assert processed[item.number] == item.tries == tries.get(item.fate, 1), item


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("errors", ["raise", "return", "skip"])
@pytest.mark.parametrize("ordered", [True, False])
def test_one_map_of_mixed_items(workers: int, errors: str, ordered: bool, seed: int) -> None:
    ledger = Ledger(seed)
    with make_pool(workers) as pool:
        all_items: list[Item] = []
        for buffer in (None, 1, 5):
            for kind in (list, iter, tuple):
                items = ledger.make(60)
                all_items += items
                results = pool.map(kind(items), ordered=ordered, buffer=buffer, errors=errors)  # type: ignore[operator]
                check(items, read_all(results, ledger.rng), ordered, errors)
        wait_until(lambda: pool.stats().running == 0)
        check_totals(pool, all_items)
        check_tries(pool, all_items)


def test_maps_calls_and_operations_at_once(seed: int, switch_interval: float) -> None:
    ledger = Ledger(seed)
    all_items: list[Item] = []
    jobs = []

    def mapped(items: list[Item], kind: Any, ordered: bool, buffer: int | None, errors: str, rng: Any) -> None:
        results = pool.map(kind(items), ordered=ordered, buffer=buffer, errors=errors)
        check(items, read_all(results, rng), ordered, errors)

    def called(items: list[Item]) -> None:
        for item in items:
            try:
                came = pool.call(item)
            except BaseException as error:
                came = type(error)
            assert [came] == expected(item, "raise")

    def done(items: list[Item]) -> None:
        works = [pool.do(Work(item)) for item in items]
        assert all(work.wait(30) for work in works)
        check_works(works)

    def executed(items: list[Item]) -> None:
        works = list(map(Work, items))
        assert len(list(pool.execute(works))) == len(works)
        check_works(works)

    def wrapped(items: list[Item]) -> None:
        works = list(map(Work, items))
        assert len(list(pool.wrap(iter(works), buffer=3))) == len(works)
        check_works(works)

    def check_works(works: list[Work]) -> None:
        for work in works:
            kind = ENDS.get(work.item.fate)
            assert work.outcome is (Outcome.SUCCEEDED if kind is None else Outcome.FAILED)
            assert kind is None or isinstance(work.error, kind)

    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            assert is_conserved(pool.stats())

    for index in range(6):
        items = ledger.make(80)
        all_items += items
        options = (
            ledger.rng.choice([list, tuple, iter]),
            bool(index % 2),
            ledger.rng.choice([None, 1, 3, 50]),
            ledger.rng.choice(["raise", "return", "skip"]),
            random.Random(seed + index),
        )
        jobs.append(lambda items=items, options=options: mapped(items, *options))
    for function in (called, done, executed, wrapped):
        items = ledger.make(60)
        all_items += items
        jobs.append(lambda function=function, items=items: function(items))
    with make_pool(3) as pool:
        watcher = start_threads(watch)
        try:
            run_threads(*jobs)
        finally:
            over.set()
        watcher.join()
        wait_until(lambda: pool.stats().running == 0)
        check_totals(pool, all_items)
        check_tries(pool, all_items)


def test_readers_share_maps_that_some_of_them_close(seed: int) -> None:
    """What came out came once and was processed; what did not run was cancelled."""
    ledger = Ledger(seed)
    with make_pool(3) as pool:
        accepted = 0
        for lap in range(15):
            items = ledger.make(60)
            before = pool.stats()
            results = pool.map(items if lap % 2 else iter(items), errors="skip", buffer=None if lap % 2 else 9)
            limit = ledger.rng.randrange(60)
            rngs = [random.Random(seed + 10 * lap + k) for k in range(3)]

            def close(results: Any = results, limit: int = before.accepted + limit) -> list[Any]:
                wait_until(lambda: sum_ended(pool) >= min(limit, pool.stats().accepted))
                results.close()
                return []

            shares = run_threads(*[lambda results=results, rng=rng: read_all(results, rng) for rng in rngs], close)
            came = [number for share in shares for number in share]
            assert len(set(came)) == len(came)
            assert set(came) <= {item.number for item in items if item.fate not in ENDS}
            wait_until(lambda: sum_ended(pool) == pool.stats().accepted)
            stats = pool.stats()
            assert len(came) <= stats.succeeded - before.succeeded
            ran = sum(item.tries > 0 for item in items)
            ended = stats.succeeded + stats.failed - before.succeeded - before.failed
            assert ended <= ran + sum(item.fate == "unroutable" for item in items)
            assert stats.accepted - accepted <= len(items)
            accepted = stats.accepted


def sum_ended(pool: WorkerPool[Any]) -> int:
    stats = pool.stats()
    return stats.succeeded + stats.failed + stats.cancelled


@pytest.mark.parametrize("cancel", [True, False])
def test_a_shutdown_at_any_moment(cancel: bool, seed: int) -> None:
    """Each accepted item comes out of its stream, or is cancelled, returned by shutdown and comes out as cancelled."""
    ledger = Ledger(seed)

    def read(results: Any, lazy: bool) -> list[Any]:
        came: list[Any] = []
        while True:
            try:
                came.append(results.get())
            except Closed:
                assert not lazy
                return came
            except PoolNotRunning:
                return came
            except BaseException as error:
                came.append(error)

    def endless(items: list[Item]) -> Iterator[Item]:
        for item in itertools.chain(items, iter(lambda: ledger_item(), None)):
            drawn.append(item)
            yield item

    def ledger_item() -> Item:
        return Item(next(ledger.numbers), "return")

    for _ in range(8):
        drawn: list[Item] = []
        pool = make_pool(2)
        pool.start()
        items = ledger.make(100)
        whole = pool.map(items)
        lazy = pool.map(endless(ledger.make(50)), buffer=5)
        readers = start_threads(lambda whole=whole: read(whole, False), lambda lazy=lazy: read(lazy, True))
        limit = ledger.rng.randrange(150)
        wait_until(lambda pool=pool, limit=limit: sum_ended(pool) >= limit)
        returned = pool.shutdown(cancel_pending=cancel)
        from_whole, from_lazy = readers.join()
        stats = pool.stats()
        assert is_conserved(stats)
        assert (stats.queued, stats.running, stats.delayed) == (0, 0, 0)
        assert len(from_whole) == 100
        assert len(from_whole) + len(from_lazy) == stats.accepted
        cancelled = [value for value in (*from_whole, *from_lazy) if isinstance(value, CancelledError)]
        assert len(cancelled) == len(returned) == stats.cancelled
        assert len(set(map(id, returned))) == len(returned)
        assert set(map(id, returned)) <= set(map(id, [*items, *drawn]))
        for item, value in zip(items, from_whole, strict=True):
            if isinstance(value, CancelledError):
                assert any(item is other for other in returned)
            else:
                assert [type(value) if isinstance(value, BaseException) else value] == expected(item, "raise")
