"""Workers join and leave while everything else goes on: law 1 in each snapshot, and each piece of work ends once."""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from ringmill import (
    BrokenPool,
    Outcome,
    PoolNotRunning,
    Reject,
    Retry,
    RingBuffer,
    Unroutable,
    WorkerInitError,
    WorkerPool,
)
from tests.pool.resizing import Factory, Item, Job, Member, Script, check_law_1, check_rows
from tests.pools import check_at_rest, counts
from tests.threads import LONG, Started, run_threads, start_threads, wait_until

pytestmark = [pytest.mark.stress, pytest.mark.usefixtures("no_thread_is_left")]

GROWING = ("accepted", "succeeded", "failed", "cancelled", "tries", "restarts")
LARGEST = 4


class Resizing:
    """Resizes a pool up and down, and checks its counters, on two threads, while the block runs.

    Attributes:
        allowed: What `resize` may raise.
        one_run: Whether the pool is not started again meanwhile, so that the counters only grow.
    """

    def __init__(
        self, pool: WorkerPool[Any], seed: int, *allowed: type[BaseException], one_run: bool = True
    ) -> None:
        self.pool = pool
        self.one_run = one_run
        self.random = random.Random(seed)
        self.allowed = allowed
        self.ended = threading.Event()
        self.resizes = self.looks = 0
        self.threads: Started

    def __enter__(self) -> Resizing:
        self.threads = start_threads(self.resize, self.watch)
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.threads.join()
        assert self.resizes
        assert self.looks

    def resize(self) -> None:
        while not self.ended.is_set() or not self.resizes:
            self.resizes += 1
            with contextlib.suppress(self.allowed):
                self.pool.resize(self.random.randint(1, LARGEST))

    def watch(self) -> None:
        last = dict.fromkeys(GROWING, 0)
        while not self.ended.is_set() or not self.looks:
            stats = self.pool.stats()
            check_law_1(stats)
            now = {name: getattr(stats, name) for name in GROWING}
            assert not self.one_run or all(now[name] >= last[name] for name in GROWING), (now, last)
            for name in ("succeeded", "tries", "restarts", "running"):
                assert sum(getattr(row, name) for row in stats.workers) == getattr(stats, name), (name, stats)
            last = now
            self.looks += 1


def expected(script: Script) -> tuple[type[BaseException] | None, int]:
    """What its steps lead to, if it is not rejected by all: the type of the error, and the number of tries."""
    tries = 0
    for step in script.steps:
        if isinstance(step, Retry):
            tries += 1
        elif isinstance(step, BaseException) and not isinstance(step, Reject):
            return type(step), tries
        elif not isinstance(step, Reject):
            break
    return None, tries


def check_end(script: Script, error: BaseException | None) -> int:
    """That the work ended as its steps say, each step performed once; returns the number of its tries."""
    kind, tries = expected(script)
    if isinstance(error, Unroutable):
        assert any(isinstance(step, Reject) for step in script.steps)
        return sum(isinstance(step, Retry) for step in script.steps[: len(script.seen)])
    assert type(error) is (kind or type(None)), (script.steps, error)
    performed = len(script.steps)
    for number, step in enumerate(script.steps):
        if not isinstance(step, Retry | Reject):
            performed = number + 1
            break
    else:
        performed += 1
    assert len(script.seen) == performed, (script.steps, script.seen)
    return tries


def draw(items: list[Any]) -> Iterator[Any]:
    yield from items


def make_steps(dice: random.Random) -> list[Any]:
    steps: list[Any] = []
    for _ in range(dice.randrange(3)):
        steps.append(dice.choice([Retry(), Retry(), Retry(delay=0.0005), Reject()]))
    if dice.random() < 0.2:
        steps.append(dice.choice([ValueError("asked"), LookupError("asked"), SystemExit("asked")]))
    return steps


class Caller:
    """Gives work to a pool in every way, in turn, and accounts for it."""

    def __init__(self, pool: WorkerPool[Any], seed: int) -> None:
        self.pool = pool
        self.dice = random.Random(seed)
        self.ends: list[tuple[Script, BaseException | None]] = []
        self.plain = 0  # items without a script, all of which succeed

    def __call__(self, rounds: int) -> None:
        for _ in range(rounds):
            self.dice.choice([self.do, self.execute, self.wrap, self.map, self.map_plain, self.call])()

    def make(self, kind: Any) -> list[Any]:
        return [kind(*make_steps(self.dice)) for _ in range(self.dice.randrange(1, 9))]

    def end_jobs(self, jobs: list[Job], came: list[Job]) -> None:
        assert sorted(map(id, came)) == sorted(map(id, jobs))
        for job in jobs:
            assert job.wait(LONG)
            assert job.told == 1
            assert (job.outcome is Outcome.SUCCEEDED) == (job.error is None)
            self.ends.append((job, job.error))

    def do(self) -> None:
        jobs = [self.pool.do(job, LONG) for job in self.make(Job)]
        self.end_jobs(jobs, jobs)

    def execute(self) -> None:
        jobs = self.make(Job)
        self.end_jobs(jobs, list(self.pool.execute(jobs)))

    def wrap(self) -> None:
        jobs = self.make(Job)
        ordered, buffer = self.dice.random() < 0.5, self.dice.randint(1, 3)
        drawn_by: Any = self.dice.choice(["reader", "thread", "ring"])
        if drawn_by == "ring":
            ring = RingBuffer[Job](len(jobs))
            ring.put_many(jobs)
            ring.close()
            stream = self.pool.wrap(ring, buffer=buffer, ordered=ordered)
        else:
            stream = self.pool.wrap(draw(jobs), buffer=buffer, ordered=ordered, drawn_by=drawn_by)
        came = list(stream)
        assert not ordered or came == jobs
        self.end_jobs(jobs, came)

    def map(self) -> None:
        items = self.make(Item)
        source: Any = items if self.dice.random() < 0.5 else draw(items)
        results = list(self.pool.map(source, errors="return", buffer=self.dice.choice([None, 1, 3])))
        assert len(results) == len(items)
        for item, result in zip(items, results, strict=True):
            assert result is item or isinstance(result, BaseException)
            self.ends.append((item, None if result is item else result))

    def map_plain(self) -> None:
        numbers = range(self.dice.randrange(40))
        source: Any = self.dice.choice([list(numbers), numbers, iter(numbers)])
        assert list(self.pool.map(source)) == list(numbers)
        self.plain += len(numbers)

    def call(self) -> None:
        item = Item(*make_steps(self.dice))
        try:
            assert self.pool.call(item) is item
            self.ends.append((item, None))
        except (ValueError, LookupError, SystemExit, Unroutable) as error:
            self.ends.append((item, error))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("queue_size", [1, 16])
def test_all_work_ends_once_while_the_pool_is_resized(
    workers: int, queue_size: int, seed: int, switch_interval: float
) -> None:
    factory = Factory()
    pool = WorkerPool(
        factory, workers, queue_size=queue_size, max_tries=None, max_restarts=None, restart_pause=0
    )
    with pool:
        callers = [Caller(pool, seed + k) for k in range(3)]
        with Resizing(pool, seed):
            run_threads(*(functools.partial(caller, 25) for caller in callers))
        pool.resize(2)
        wait_until(lambda: sum(not member.has_ended() for member in factory.made) == 2)
        ends = [end for caller in callers for end in caller.ends]
        tries = sum(check_end(script, error) for script, error in ends)
        stats = pool.stats()
        check_at_rest(stats)
        check_rows(stats)
        failed = sum(error is not None for _, error in ends)
        plain = sum(caller.plain for caller in callers)
        assert counts(stats) == {
            name: value
            for name, value in {"succeeded": len(ends) - failed + plain, "failed": failed}.items()
            if value
        }
        assert stats.tries == tries
        assert stats.restarts <= sum(isinstance(error, SystemExit) for _, error in ends)
    names = [name for member in factory.made for name in set(member.names)]
    assert len(names) == len(set(names)) == len(factory.made)
    factory.check_ended()


def endless(limit: int) -> Iterator[int]:
    yield from range(limit)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("list", lambda n: list(range(n))),
        ("range", range),
        ("generator", endless),
    ],
)
@pytest.mark.parametrize("ordered", [True, False])
def test_one_large_map_while_the_pool_is_resized(
    name: str, source: Callable[[int], Any], ordered: bool, seed: int, switch_interval: float
) -> None:
    factory = Factory()
    total = 20_000
    with WorkerPool(factory, 1) as pool:
        with Resizing(pool, seed):
            came = list(pool.map(source(total), ordered=ordered))
        assert (came if ordered else sorted(came)) == list(range(total))
        assert counts(pool.stats()) == {"succeeded": total}
        check_rows(pool.stats())
    factory.check_ended()


class Holding:
    """A step that holds the workers that come to it. `release` lets those go that it holds now, `open` all."""

    def __init__(self) -> None:
        self.held: dict[str, threading.Event] = {}  # by the name of the thread
        self.is_open = False

    def __call__(self) -> None:
        event = self.held[threading.current_thread().name] = threading.Event()
        assert self.is_open or event.wait(LONG)

    def release(self) -> None:
        for name in list(self.held):
            self.held.pop(name).set()

    def open(self) -> None:
        self.is_open = True
        self.release()


@pytest.mark.parametrize("source", [list, iter])
def test_items_of_a_map_are_spread_over_the_workers_that_are_there(source: Callable[[Any], Any]) -> None:
    """After each resize every worker of the pool runs an item, and no other does."""
    holding = Holding()
    items = [Item(holding) for _ in range(60)]
    factory = Factory()
    with WorkerPool(factory, 1) as pool:
        results = pool.map(source(items))
        reader = start_threads(lambda: list(results))
        for size in (1, 3, 2, 4, 1, 2, 2):
            leaving = [member for member in pool.workers[size:] if isinstance(member, Member)]
            pool.resize(size)
            if leaving:
                holding.release()
                wait_until(lambda leaving=leaving: all(member.has_ended() for member in leaving))  # type: ignore[misc]
            names = {member.names[0] for member in pool.workers if isinstance(member, Member)}
            wait_until(lambda names=names: set(holding.held) == names)  # type: ignore[misc]
            assert len(names) == size == pool.stats().running
        holding.open()
        assert reader.join() == [items]
    assert all(len(item.seen) == 1 for item in items)
    factory.check_ended()


def test_one_call_at_a_time_while_the_pool_is_resized(seed: int, switch_interval: float) -> None:
    """All workers sleep before each call: a wake-up that is lost on one that leaves is not followed by another."""
    with WorkerPool(Factory(), 1) as pool, Resizing(pool, seed):
        for number in range(1000):
            assert pool.call(number, LONG) == number


def test_resizes_of_several_threads_take_effect_one_after_the_other(seed: int, switch_interval: float) -> None:
    factory = Factory()
    with WorkerPool(factory, 2) as pool:

        def resize(index: int) -> None:
            dice = random.Random(seed + index)
            for _ in range(20):
                pool.resize(dice.randint(1, LARGEST))
                assert 1 <= len(pool.workers) <= LARGEST

        def work() -> None:
            for _ in range(10):
                assert list(pool.map(range(50))) == list(range(50))

        run_threads(*(functools.partial(resize, k) for k in range(4)), work)
        pool.resize(3)
        assert len(pool.workers) == 3
        wait_until(lambda: sum(not member.has_ended() for member in factory.made) == 3)
        check_rows(pool.stats())
    names = [member.names for member in factory.made]
    assert all(len(each) == 1 for each in names)
    assert len({each[0] for each in names}) == len(names)
    factory.check_ended()


def test_resizes_of_which_some_fail(seed: int, switch_interval: float) -> None:
    """Each third worker cannot be made ready."""
    factory = Factory(on_init={number: ValueError(number) for number in range(4, 2000, 3)})
    with WorkerPool(factory, 2) as pool:
        failures: list[WorkerInitError] = []

        def resize(index: int) -> None:
            dice = random.Random(seed + index)
            for _ in range(20):
                try:
                    pool.resize(dice.randint(1, LARGEST))
                except WorkerInitError as error:
                    failures.append(error)

        def work() -> None:
            for _ in range(20):
                assert list(pool.map(range(30))) == list(range(30))

        run_threads(*(functools.partial(resize, k) for k in range(3)), work)
        assert failures
        assert all(worker.number % 3 == 1 for error in failures for worker, _ in error.causes)  # type: ignore[attr-defined]
        wait_until(lambda: sum(not member.has_ended() for member in factory.made) == len(pool.workers))
        assert all(member.ready for member in pool.workers)  # type: ignore[attr-defined]
        check_rows(pool.stats())
    factory.check_ended()


# The end of the pool


def shut_down(pool: WorkerPool[Any], how: str) -> list[Any]:
    match how:
        case "wait":
            return pool.shutdown()
        case "no wait":
            return pool.shutdown(wait=False)
        case "cancel":
            return pool.shutdown(cancel_pending=True)
    return pool.shutdown(timeout=0)


@pytest.mark.parametrize("how", ["wait", "no wait", "cancel", "timeout"])
def test_resizes_while_the_pool_is_shut_down_and_started(how: str, seed: int, switch_interval: float) -> None:
    factory = Factory()
    pool = WorkerPool(factory, 2, queue_size=2)
    jobs: list[Job] = []
    with Resizing(pool, seed, PoolNotRunning, one_run=False):
        for _ in range(25):
            pool.start()
            mine = [Job(*[Retry()] * (number % 3)) for number in range(6)]
            stream = pool.execute(mine)
            cancelled = shut_down(pool, how)
            came: list[int] = []
            try:
                came.extend(map(id, stream))
            except PoolNotRunning:  # a worker still ran a job when the time was over: the stream ends without it
                assert how == "timeout"
                assert len(set(came)) == len(came)
                assert set(came) <= set(map(id, mine))
            else:
                assert sorted(came) == sorted(map(id, mine))
            ended = {job for job in mine if job.outcome is Outcome.CANCELLED}
            assert ended >= set(cancelled)
            # A job that was running when the time was over may have been retried, and cancelled, after that.
            assert how == "timeout" or ended == set(cancelled)
            jobs += mine
            pool.shutdown()
            check_at_rest(pool.stats())
            check_rows(pool.stats())
    assert all(job.told == 1 for job in jobs)
    assert all(job.outcome is Outcome.SUCCEEDED or how in ("cancel", "timeout") for job in jobs)
    factory.check_ended()
    with pool:
        assert len(pool.workers) == sum(not member.has_ended() for member in factory.made)
    factory.check_ended()


def test_starts_and_resizes_of_many_threads(seed: int, switch_interval: float) -> None:
    factory = Factory()
    pool = WorkerPool(factory, 2)

    def cycle(index: int) -> None:
        dice = random.Random(seed + index)
        for _ in range(15):
            try:
                match dice.randrange(4):
                    case 0:
                        pool.start()
                    case 1:
                        pool.shutdown(wait=dice.random() < 0.5)
                    case 2:
                        pool.resize(dice.randint(1, LARGEST))
                    case 3:
                        assert pool.call(index, LONG) == index
            except (PoolNotRunning, CancelledError):
                pass

    run_threads(*(functools.partial(cycle, k) for k in range(4)))
    pool.start()
    assert pool.call(1, LONG) == 1
    wait_until(lambda: sum(not member.has_ended() for member in factory.made) == len(pool.workers))
    pool.shutdown()
    factory.check_ended()


@pytest.mark.parametrize("max_restarts", [0, 1])
def test_resizes_while_workers_are_lost(max_restarts: int, seed: int, switch_interval: float) -> None:
    """The pool breaks, or new workers come in time; nothing waits without end in either case."""
    for turn in range(8):
        factory = Factory()
        pool = WorkerPool(factory, 2, max_restarts=max_restarts, restart_pause=0)
        jobs: list[Job] = []
        with pool:
            with Resizing(pool, seed + turn, BrokenPool):
                try:
                    for _ in range(20):
                        stream = pool.execute(mine := [Job(*[SystemExit()] * (number == 1)) for number in range(3)])
                        jobs += mine
                        assert sorted(map(id, stream)) == sorted(map(id, mine))
                except BrokenPool:
                    pass
            for job in jobs:
                assert job.wait(LONG)
                assert job.told == 1
                assert job.error is None or isinstance(job.error, SystemExit | BrokenPool)
            stats = pool.stats()
            check_at_rest(stats)
            outcomes = Counter(job.outcome for job in jobs)
            assert (stats.succeeded, stats.failed) == (outcomes[Outcome.SUCCEEDED], outcomes[Outcome.FAILED])
            try:
                late = pool.do(Job())
            except BrokenPool:
                assert "broken" in repr(pool)
            else:
                assert late.wait(LONG)
                # A worker may have been on its way to be lost, the last one.
                assert late.outcome is Outcome.SUCCEEDED or isinstance(late.error, BrokenPool)
        factory.check_ended()


def test_cancels_while_the_pool_is_resized(seed: int, switch_interval: float) -> None:
    factory = Factory()
    dice = random.Random(seed)
    jobs: list[Job] = []
    cancelled: set[int] = set()
    with WorkerPool(factory, 2, max_tries=None) as pool:
        with Resizing(pool, seed):
            for _ in range(60):
                stream = pool.execute(mine := [Job(*make_steps(random.Random(dice.random()))) for _ in range(8)])
                for job in dice.sample(mine, 3):
                    if job.cancel():
                        cancelled.add(id(job))
                if dice.random() < 0.3:
                    stream.close()
                    assert all(job.wait(LONG) for job in mine)
                else:
                    assert sorted(map(id, stream)) == sorted(map(id, mine))
                jobs += mine
        assert all(job.told == 1 for job in jobs)
        assert cancelled <= {id(job) for job in jobs if job.outcome is Outcome.CANCELLED}
        check_at_rest(pool.stats())
        check_rows(pool.stats())
        assert pool.stats().accepted == len(jobs)
    factory.check_ended()
