"""The calls of `map`, `call`, Results and PoolExecutor.map.

As in pools.py, the workers stand still while the call is made, unless it says otherwise.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ringmill import BrokenPool, Closed, PoolExecutor, PoolNotRunning, Retry, Worker, WorkerPool
from tests.tools.out_of_memory.pools import Gate, over
from tests.tools.out_of_memory.trial import FAILED, Thing, Trial, alone, case, forks

LIMIT = 20.0  # seconds: an item that has not ended by then is lost


class Fails(Thing):
    """An item that raises."""


class Retries(Thing):
    """An item that is tried twice."""

    tried = False


class ItemWorker(Worker[Any]):
    """Returns the item."""

    def process(self, item: Any) -> Any:
        if isinstance(item, Gate):
            item.reached.set()
            item.opened.wait()
            return None
        if isinstance(item, Fails):
            raise ValueError("it was to fail")
        if isinstance(item, Retries) and not item.tried:
            item.tried = True
            raise Retry
        return item


@contextlib.contextmanager
def running(workers: int = 1) -> Iterator[WorkerPool[Any]]:
    """A pool whose workers have come up; it ends with the block, and its counts agree."""
    pool: WorkerPool[Any] = WorkerPool([ItemWorker() for _ in range(workers)], max_restarts=None, restart_pause=0)
    pool.start()
    with standing(pool):
        pass
    try:
        yield pool
    finally:
        over(pool)


@contextlib.contextmanager
def standing(pool: WorkerPool[Any]) -> Iterator[None]:
    """All its workers stand still in the block."""
    gates = [Gate() for _ in pool.workers]
    for gate in gates:
        pool.do(gate)
    for gate in gates:
        gate.reached.wait()
    try:
        yield
    finally:
        for gate in gates:
            gate.opened.set()
        for gate in gates:
            gate.wait()


# What may stand in an item's place. SystemError: its call found no memory for the traceback (faults.py: raised).
RAISED = (ValueError, MemoryError, SystemError)


def rest(results: Any, most: int, got: list[Any]) -> None:
    """Appends what is left of the results: values, and errors in their places."""
    while len(got) <= most:
        try:
            got.append(results.get(LIMIT))
        except queue.Empty:
            raise AssertionError(f"lost: {results!r}") from None
        except Closed:
            return
        except RAISED as error:
            got.append(error)
    raise AssertionError(f"more than {most} results: {got}")


def things(trial: Trial, count: int) -> list[Any]:
    return [trial.thing() for _ in range(count)]


def mapping(trial: Trial, make: Callable[[list[Any]], Any], **options: Any) -> None:
    items = things(trial, 5)
    with running() as pool:
        with standing(pool):
            results = trial(pool.map, make(items), **options)
        if results is not FAILED:
            got = list(results)
            assert got == items
    assert results is FAILED or pool.stats().succeeded >= 5


@case
def map_list(trial: Trial) -> None:
    mapping(trial, list)


@case
def map_tuple_unordered(trial: Trial) -> None:
    mapping(trial, tuple, ordered=False)


@case
def map_drawn(trial: Trial) -> None:
    mapping(trial, iter)


@case
def map_drawn_generator(trial: Trial) -> None:
    mapping(trial, lambda items: (item for item in items), buffer=2)


@case
def map_range(trial: Trial) -> None:
    with running() as pool:
        with standing(pool):
            results = trial(pool.map, range(1000, 1005))
        if results is not FAILED:
            assert list(results) == [*range(1000, 1005)]


@case
def map_refused(trial: Trial) -> None:
    """The last is an Operation, so none is accepted."""
    items = [*things(trial, 3), Gate()]
    with running() as pool:
        before = pool.stats().accepted
        trial.raising(TypeError, call=lambda: pool.map(items))
        assert pool.stats().accepted == before


def reading(trial: Trial, items: Any, expected: list[Any], **options: Any) -> None:
    """All have ended, and are read while memory is short."""
    with running() as pool:
        results = pool.map(items, **options)
        while results.ready < 8:
            threading.Event().wait(0.0001)
        got = [trial(results.__next__), trial(results.get), trial(results.get_many, 2), trial(results.get_many)]
        trial(lambda: (results.ready, results.total, results.closed, repr(results)))
        flat = [one for each in got if each is not FAILED for one in (each if isinstance(each, list) else [each])]
        flat += list(results)
        assert flat == expected, f"{len(flat)} of {len(expected)} came out: {got}"


@case
def results_reads(trial: Trial) -> None:
    items = things(trial, 8)
    reading(trial, list(items), items)


@case
def results_reads_range(trial: Trial) -> None:
    reading(trial, range(1000, 1008), [*range(1000, 1008)])


@case
def results_reads_unordered(trial: Trial) -> None:
    items = things(trial, 8)
    reading(trial, list(items), items, ordered=False)  # of one worker, so in order


@case
def results_reads_errors(trial: Trial) -> None:
    """Each item comes out once: as a value, as its error, or as the MemoryError of the read that took it."""
    items: list[Any] = [trial.watch(Fails() if k % 2 else Thing()) for k in range(8)]
    with running() as pool:
        results = pool.map(list(items))
        while results.ready < 8:
            threading.Event().wait(0.0001)
        got: list[Any] = []
        for read in (results.__next__, results.get, results.__next__, results.get):
            try:
                got.append(trial(read))
            except ValueError as error:
                got.append(error)
        lost = got.count(FAILED)
        came = [one for one in got if one is not FAILED]
        rest(results, 8, came)
        assert 8 - lost <= len(came) <= 8, came
        assert [one for one in came if isinstance(one, Thing)] == items[::2]


@case
def results_returns_errors(trial: Trial) -> None:
    items: list[Any] = [trial.watch(Fails() if k % 2 else Thing()) for k in range(8)]
    with running() as pool:
        results = pool.map(list(items), errors="return")
        while results.ready < 8:
            threading.Event().wait(0.0001)
        got = [trial(results.__next__), trial(results.get), trial(results.get_many, 2), trial(results.get_many)]
        flat = [one for each in got if each is not FAILED for one in (each if isinstance(each, list) else [each])]
        flat += list(results)
        assert [one for one in flat if isinstance(one, Thing)] == items[::2]
        assert len(flat) == 8, f"{8 - len(flat)} errors were lost"


@case
def results_draws(trial: Trial) -> None:
    items = things(trial, 5)
    with running() as pool:
        with standing(pool):
            results = pool.map(iter(items), buffer=8)
            with contextlib.suppress(queue.Empty):
                trial(results.get, 0.0001)
        got = []
        for _ in range(2):
            with contextlib.suppress(MemoryError):  # what ends the source, that is what its reader gets
                got += list(results)
                break
        assert got == items[: len(got)]
        assert results.closed


@case
def results_close(trial: Trial) -> None:
    items = things(trial, 5)
    with running() as pool:
        with standing(pool):
            results = pool.map(list(items))
            trial(results.close)
            results.close()
        assert list(results) == []


@case
def map_cancelled(trial: Trial) -> None:
    items = things(trial, 5)
    with running() as pool:
        with standing(pool):
            results = pool.map(list(items), errors="return")
            trial(pool.shutdown, False, cancel_pending=True)
            pool.shutdown(False, cancel_pending=True)
        assert len(list(results)) == 5


@case
def pool_call(trial: Trial) -> None:
    thing = trial.thing()
    with running() as pool, standing(pool):
        trial.raising(TimeoutError, call=lambda: pool.call(thing, 0.0001))


def pool_call_works(trial: Trial) -> None:
    """The worker's allocations may fail too."""
    for kind in (Thing, Fails, Retries):
        thing = trial.watch(kind())
        with running() as pool, contextlib.suppress(*RAISED, BrokenPool, PoolNotRunning):
            assert trial(pool.call, thing, LIMIT) in (FAILED, thing)


if sys.version_info >= (3, 12):  # on 3.11 an item is left behind at the 12th allocation; where was not found yet
    case(alone(pool_call_works))


def working(trial: Trial, items: Callable[[], Iterable[Any]], **options: Any) -> None:
    """Everything may fail, on the workers' threads too: each item that was accepted comes out once."""
    with running(2) as pool:
        before = pool.stats().accepted
        made: list[Any] = []
        got: list[Any] = []

        def work() -> None:
            made.append(pool.map(items(), **options))
            rest(made[0], 9, got)

        trial(work)
        for results in made:
            with contextlib.suppress(BrokenPool, PoolNotRunning):
                rest(results, 9, got)
            accepted = pool.stats().accepted - before
            # One place more: the error of the source. One less: what failed was our own list, or the reading thread.
            assert accepted - 1 <= len(got) <= accepted + 1, f"{len(got)} of {accepted} came out: {got}"
            came = [one for one in got if not isinstance(one, BaseException)]
            assert len({*map(id, came)}) == len(came), f"twice: {got}"


@case
@alone
def map_works(trial: Trial) -> None:
    working(trial, lambda: [trial.watch(kind()) for kind in (Thing, Fails, Retries, Thing)])


@case
@alone
def map_works_unordered(trial: Trial) -> None:
    working(trial, lambda: [trial.watch(kind()) for kind in (Retries, Fails, Thing)], ordered=False)


@case
@alone
def map_works_range(trial: Trial) -> None:
    working(trial, lambda: range(1000, 1006))


@case
@alone
def map_works_drawn(trial: Trial) -> None:
    working(trial, lambda: iter([trial.watch(kind()) for kind in (Thing, Fails, Retries, Thing)]), buffer=2)


@forks
@alone
def executor_map(trial: Trial) -> None:
    executor = PoolExecutor(2, "memory")
    executor.submit(int).result(LIMIT)
    items = things(trial, 4)
    same: Callable[[Any], Any] = lambda item: item  # noqa: E731
    for options in ({}, {"buffersize": 2}):
        for make in (list.copy, iter):  # list(items) of CPython 3.11 leaks the list
            made: list[Any] = []
            try:
                trial(lambda: made.extend(executor.map(same, make(items), **options)))  # noqa: B023
            except (RuntimeError, BrokenPool):
                trial.failed = True
            assert made == items[: len(made)]
    executor.shutdown()
