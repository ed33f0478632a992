"""WorkerPool.resize: workers that join and leave a running pool, arguments, failures, and the life of the workers.

Which worker gets what after a resize is in test_resize_routing.py, many at once in test_resize_stress.py, signals, fork
and exit in test_resize_processes.py.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringmill import (
    BrokenPool,
    Operation,
    Outcome,
    PoolNotRunning,
    Retry,
    RingBuffer,
    TaskWorker,
    Worker,
    WorkerInitError,
    WorkerPool,
)
from tests.pool.resizing import Factory, Item, Job, Member, check_law_1, check_rows, hold_all, numbers
from tests.pools import Gate, counts
from tests.threads import HOUR, LONG, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def threads_of(name: str) -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith(f"{name}-"))


# More workers


def test_growing_returns_when_every_new_worker_is_ready() -> None:
    gates = {number: Gate() for number in (1, 2)}
    factory = Factory(on_init={**gates})
    with WorkerPool(factory, 1) as pool:
        resizing = start_threads(lambda: (pool.resize(3), [member.ready for member in factory.made]))
        for gate in gates.values():
            assert gate.reached.wait(LONG)
            assert pool.do(Job()).wait(LONG)  # the pool works on meanwhile
            check_law_1(pool.stats())
            assert resizing.threads[0].is_alive()
            gate.opened.set()
        assert resizing.join() == [(None, [True, True, True])]
        assert pool.workers == tuple(factory.made)
    factory.check_ended()


def test_the_new_workers_take_what_is_queued() -> None:
    factory = Factory()
    with WorkerPool(factory, 1, queue_size=3) as pool:
        hold = hold_all(pool, 1)
        meet = threading.Barrier(4)
        jobs = [pool.do(Job(lambda: meet.wait(LONG))) for _ in range(3)]
        pool.resize(4)
        meet.wait(LONG)  # each is run by a worker of its own, while the first worker is busy
        assert all(job.wait(LONG) for job in jobs)
        assert sorted(job.seen[0] for job in jobs) == [1, 2, 3]
        hold[0].opened.set()
    check_rows(pool.stats())
    factory.check_ended()


def test_a_caller_that_waits_for_room_goes_on() -> None:
    with WorkerPool(Factory(), 1, queue_size=1) as pool:
        hold = hold_all(pool, 1)
        filling = pool.do(Job())
        with pytest.raises(queue.Full):
            pool.do(Job(), timeout=0)
        caller = start_threads(lambda: pool.do(Job()))
        pool.resize(2)
        [late] = caller.join()
        assert filling.wait(LONG)
        assert late.wait(LONG)
        hold[0].opened.set()


def draw(items: list[Any]) -> Iterator[Any]:
    yield from items


def ring_of(items: list[Any]) -> RingBuffer[Any]:
    ring = RingBuffer[Any](len(items))
    ring.put_many(items)
    ring.close()
    return ring


SOURCES: list[Any] = [
    pytest.param(Item, lambda pool, items: pool.map(items), id="map-list"),
    pytest.param(Item, lambda pool, items: pool.map(items, buffer=8), id="map-buffer"),
    pytest.param(Item, lambda pool, items: pool.map(draw(items), ordered=False), id="map-generator"),
    pytest.param(Job, lambda pool, items: pool.execute(items), id="execute"),
    pytest.param(Job, lambda pool, items: pool.wrap(draw(items), drawn_by="thread"), id="wrap-thread"),
    pytest.param(Job, lambda pool, items: pool.wrap(draw(items), buffer=8), id="wrap-reader"),
    pytest.param(Job, lambda pool, items: pool.wrap(ring_of(items)), id="wrap-ring"),
]


@pytest.mark.parametrize(("kind", "submit"), SOURCES)
def test_the_new_workers_take_part_in_streams_that_are_under_way(kind: Any, submit: Callable[..., Any]) -> None:
    """Four items that wait for each other: with one worker they never end."""
    factory = Factory()
    with WorkerPool(factory, 1) as pool:
        meet = threading.Barrier(4)
        items = [kind(lambda: meet.wait(LONG)) for _ in range(4)]
        stream = submit(pool, items)
        reader = start_threads(lambda: list(stream))
        wait_until(lambda: meet.n_waiting == 1)
        pool.resize(4)
        [came] = reader.join()
        assert sorted(map(id, came)) == sorted(map(id, items))
        assert sorted(item.seen[0] for item in items) == [0, 1, 2, 3]
    factory.check_ended()


def test_the_same_size_changes_nothing() -> None:
    factory = Factory()
    with WorkerPool(factory, 2) as pool:
        before = pool.workers
        pool.resize(2)
        assert pool.workers == before == tuple(factory.made)
    factory.check_ended()


# Fewer workers


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("queued", [0, 20])
def test_a_shrink_returns_at_once_and_workers_leave_as_they_finish(count: int, queued: int) -> None:
    factory = Factory()
    with WorkerPool(factory, 4) as pool:
        gates = hold_all(pool, 4)
        jobs = [pool.do(Job()) for _ in range(queued)]
        pool.resize(count)  # though all are busy
        staying, leaving = numbers(pool), factory.left(pool)
        assert (len(staying), len(leaving)) == (count, 4 - count)
        assert [member.calls for member in factory.made] == [["init", "process"]] * 4
        for member in leaving:
            gates[member.number].opened.set()
        for member in leaving:
            wait_until(member.has_ended)
            assert member.calls == ["init", "process", "cleanup"]  # it finished what it ran, and took nothing more
        assert counts(pool.stats()) == {
            name: value
            for name, value in {"queued": queued, "running": count, "succeeded": 4 - count}.items()
            if value
        }
        check_rows(pool.stats())
        assert not any(job.outcome is not Outcome.PENDING for job in jobs)
        for number in staying:
            gates[number].opened.set()
        assert all(job.wait(LONG) for job in jobs)
        assert all(job.seen[0] in staying for job in jobs)
        assert numbers(pool) == staying
    assert counts(pool.stats()) == {"succeeded": 4 + queued}
    check_rows(pool.stats())
    factory.check_ended()


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_idle_workers_leave_without_further_work(used: bool) -> None:
    for _ in range(25):
        factory = Factory()
        with WorkerPool(factory, 4) as pool:
            if used:
                assert list(pool.map(range(8))) == list(range(8))
            pool.resize(1)
            leaving = factory.left(pool)
            assert len(leaving) == 3
            wait_until(lambda: all(member.has_ended() for member in leaving))  # noqa: B023
            assert pool.do(Job()).wait(LONG)
        factory.check_ended()


def test_a_worker_that_stays_is_woken_after_others_have_left(seed: int) -> None:
    """One call at a time, so that all sleep in between; a wake-up that goes to a leaving worker would be lost."""
    factory = Factory()
    with WorkerPool(factory, 4) as pool:
        for round in range(200):
            pool.resize(1 + (seed + round) % 4)
            assert pool.call(round, LONG) == round
    factory.check_ended()


def test_growing_again_while_a_leaving_worker_is_still_busy() -> None:
    factory = Factory()
    with WorkerPool(factory, 2) as pool:
        gates = hold_all(pool, 2)
        pool.resize(1)
        pool.resize(2)
        job = pool.do(Job())
        assert job.wait(LONG)  # by a new worker: the others are held
        assert job.seen == [2]
        for gate in gates.values():
            gate.opened.set()
        wait_until(lambda: sum(not member.has_ended() for member in factory.made) == 2)
        assert len(pool.workers) == 2
    check_rows(pool.stats())
    factory.check_ended()


def test_shutdown_waits_for_a_worker_that_is_leaving() -> None:
    factory = Factory()
    pool = WorkerPool(factory, 2, name="mill")
    pool.start()
    gates = hold_all(pool, 2)
    pool.resize(1)
    [leaving] = factory.left(pool)
    gates[numbers(pool)[0]].opened.set()
    ending = start_threads(pool.shutdown)
    wait_until(lambda: "shutting down" in repr(pool))
    assert leaving.calls == ["init", "process"]
    gates[leaving.number].opened.set()
    assert ending.join() == [[]]
    assert leaving.calls == ["init", "process", "cleanup"]
    assert leaving.has_ended()
    assert counts(pool.stats()) == {"succeeded": 2}
    factory.check_ended()


def test_a_stuck_worker_that_is_leaving_is_named_by_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    factory = Factory()
    pool = WorkerPool(factory, 2, name="mill")
    pool.start()
    gates = hold_all(pool, 2)
    pool.resize(1)
    [leaving] = factory.left(pool)
    gates[numbers(pool)[0]].opened.set()
    with caplog.at_level(logging.WARNING, "ringmill"):
        pool.shutdown(timeout=0.05)
    assert any(leaving.names[0] in record.getMessage() for record in caplog.records)
    gates[leaving.number].opened.set()
    pool.shutdown()
    factory.check_ended()


# The workers of a pool, and of its next run


def test_a_second_start_uses_the_workers_of_now() -> None:
    factory = Factory()
    pool = WorkerPool(factory, 1, name="resized")
    with pool:
        pool.resize(4)
        pool.resize(2)
        workers = pool.workers
    with pool:
        assert pool.workers == workers
        assert len(threads_of("resized")) == 2
        meet = threading.Barrier(2)
        jobs = [Job(lambda: meet.wait(LONG)) for _ in range(2)]
        assert len(list(pool.execute(jobs))) == 2
        assert sorted(job.seen[0] for job in jobs) == sorted(numbers(pool))
        assert len(pool.stats().workers) == 2
    assert len(factory.made) == 4
    for member in factory.made:
        assert member.calls.count("init") == (2 if member in workers else 1)
    factory.check_ended()


def test_numbers_are_never_used_twice_in_a_run() -> None:
    factory = Factory(on_init={7: ValueError("no")})
    with WorkerPool(factory, 2, name="mill") as pool:
        for count in (4, 1, 3):
            pool.resize(count)
            assert len(pool.workers) == count
        with pytest.raises(WorkerInitError):
            pool.resize(5)
        for count in (1, 6, 2, 3):
            pool.resize(count)
    names = [name for member in factory.made for name in member.names]
    assert len(set(names)) == len(names) == len(factory.made)
    assert all(name.startswith("mill-") for name in names)
    assert {row.name for row in pool.stats().workers} <= set(names)
    factory.check_ended()


def test_the_counters_of_workers_that_have_left_are_kept() -> None:
    factory = Factory()
    with WorkerPool(factory, 3, restart_pause=0, max_restarts=None) as pool:
        for round in range(12):
            jobs = [Job(), Job(Retry(), None), Job(ValueError()), Job(SystemExit())]
            assert len(list(pool.execute(jobs))) == 4
            pool.resize(1 + round % 3)
        wait_until(lambda: sum(not member.has_ended() for member in factory.made) == len(pool.workers))
        stats = pool.stats()
        check_rows(stats)
        assert (stats.succeeded, stats.failed, stats.tries) == (24, 24, 12)
        for row in stats.workers:
            [member] = [member for member in factory.made if row.name in member.names]
            assert row.succeeded + row.failed + row.tries == member.calls.count("process"), (row, member)
        names = {row.name for row in stats.workers}
        assert {member.names[0] for member in pool.workers if isinstance(member, Member)} <= names
    factory.check_ended()


def test_a_pool_lets_go_of_workers_that_have_left() -> None:
    gone: list[weakref.ref[Any]] = []

    class Short(Worker[Any]):
        def __init__(self) -> None:
            gone.append(weakref.ref(self))

        def process(self, op: Any) -> None: ...

    with WorkerPool(Short, 1) as pool:
        for _ in range(10):
            pool.resize(4)
            assert pool.do(Job()).wait(LONG)
            pool.resize(1)
        wait_until(lambda: gc.collect() >= 0 and sum(ref() is not None for ref in gone) == 1)
        assert pool.do(Job()).wait(LONG)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_error_out_of_the_cleanup_of_a_leaving_worker_is_logged(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Untidy(Worker[Any]):
        def process(self, op: Any) -> None: ...

        def cleanup(self) -> None:
            raise error("untidy")

    with WorkerPool(Untidy, 3, name="resized") as pool, caplog.at_level(logging.WARNING, "ringmill"):
        pool.resize(1)
        wait_until(lambda: len(caplog.records) == 2 and len(threads_of("resized")) == 1)
        assert pool.do(Job()).wait(LONG)
    assert all("untidy" in str(record.exc_info) or "untidy" in record.getMessage() for record in caplog.records)


# An init, or a factory, that fails


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("bad", [[1], [2], [3], [1, 3], [1, 2, 3]], ids=str)
def test_an_init_that_fails_undoes_the_resize(kind: type[BaseException], bad: list[int]) -> None:
    errors = {number: kind(number) for number in bad}
    factory = Factory(on_init={**errors})
    with WorkerPool(factory, 1) as pool:
        workers = pool.workers
        with pytest.raises(WorkerInitError) as caught:
            pool.resize(4)
        assert {worker.number: error for worker, error in caught.value.causes} == errors  # type: ignore[attr-defined]
        assert pool.workers == workers
        for member in factory.made[1:]:
            assert member.calls == ["init", "cleanup"]
            wait_until(member.has_ended)
        assert factory.made[0].calls == ["init"]
        assert pool.do(Job()).wait(LONG)
        pool.resize(3)  # the next workers are others
        assert (len(pool.workers), len(factory.made)) == (3, 6)
        meet = threading.Barrier(3)
        assert len(list(pool.execute([Job(lambda: meet.wait(LONG)) for _ in range(3)]))) == 3
    check_rows(pool.stats())
    factory.check_ended()


def test_work_that_is_queued_survives_a_resize_that_fails() -> None:
    factory = Factory(on_init={2: ValueError()})
    with WorkerPool(factory, 1, queue_size=2) as pool:
        gate = hold_all(pool, 1)[0]
        stream = pool.execute(jobs := [Job(Retry() if number % 2 else None) for number in range(8)])
        results = pool.map(items := [Item() for _ in range(8)])
        with pytest.raises(WorkerInitError):
            pool.resize(4)
        check_law_1(pool.stats())
        gate.opened.set()
        assert sorted(map(id, stream)) == sorted(map(id, jobs))
        assert list(results) == items
        assert all(job.outcome is Outcome.SUCCEEDED for job in jobs)
        assert [len(job.seen) for job in jobs] == [1, 2] * 4
    factory.check_ended()


def test_a_factory_that_raises_undoes_the_resize() -> None:
    factory = Factory()
    error = OSError("no more")

    def make() -> Member:
        if len(factory.made) == 3:
            raise error
        return factory()

    with WorkerPool(make, 2) as pool:
        workers = pool.workers
        with pytest.raises(OSError, match="no more") as caught:
            pool.resize(5)
        assert caught.value is error
        assert pool.workers == workers
        assert factory.made[2].calls == []
        pool.resize(1)
        assert pool.do(Job()).wait(LONG)
    factory.check_ended()


@pytest.mark.parametrize(
    ("returned", "error"),
    [(None, TypeError), (Member, TypeError), ("own", ValueError), ("twice", ValueError), ("other's", ValueError)],
)
def test_a_factory_that_returns_something_else(returned: Any, error: type[Exception]) -> None:
    first = Member(0, None, 0)
    new = Member(1, None, 1)
    others = WorkerPool([Member(2, None, 2)])
    given = {"own": first, "twice": new, "other's": others.workers[0]}
    made = iter([first])
    with WorkerPool(lambda: next(made, given.get(returned, returned)), 1) as pool:
        with pytest.raises(error):
            pool.resize(3)
        assert pool.workers == (first,)
        assert first.calls == ["init"]
        assert new.calls == []
        assert pool.do(Job()).wait(LONG)


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_thread_that_cannot_be_started_undoes_the_resize(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = Factory()
    started: list[str] = []
    start = threading.Thread.start

    def start_or_raise(thread: threading.Thread) -> None:
        if thread.name.startswith("ringmill"):
            started.append(thread.name)
            if len(started) == which:
                raise RuntimeError("can't start new thread")
        start(thread)

    with WorkerPool(factory, 1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start_or_raise)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                pool.resize(4)
        assert len(started) >= which
        assert numbers(pool) == [0]
        for member in factory.made[1:]:
            wait_until(member.has_ended)
            assert member.calls in ([], ["init", "cleanup"])
        assert pool.do(Job()).wait(LONG)
        pool.resize(2)
        assert len(pool.workers) == 2
    factory.check_ended()


# Arguments, and calls that are refused


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (0, ValueError, "count must be at least 1, got 0"),
        (-1, ValueError, "count must be at least 1, got -1"),
        (True, TypeError, "count must be an integer, not True"),
        (1.5, TypeError, r"count must be an integer, not 1\.5"),
        ("2", TypeError, "count must be an integer, not '2'"),
        (None, TypeError, "count must be an integer, not None"),
    ],
)
@pytest.mark.parametrize("running", [True, False])
def test_counts_that_are_none(count: Any, error: type[Exception], message: str, running: bool) -> None:
    factory = Factory()
    pool = WorkerPool(factory, 2)
    if running:
        pool.start()
    try:
        with pytest.raises(error, match=message):
            pool.resize(count)
        assert (len(pool.workers), len(factory.made)) == (2, 2)
    finally:
        pool.shutdown()


def test_a_count_may_be_anything_with_an_index() -> None:
    class Three:
        def __index__(self) -> int:
            return 3

    with WorkerPool(TaskWorker, 1) as pool:
        pool.resize(Three())  # type: ignore[arg-type]
        assert len(pool.workers) == 3


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("running", [True, False])
def test_a_pool_made_from_a_list_cannot_be_resized(count: int, running: bool) -> None:
    workers = [TaskWorker(), TaskWorker()]
    pool = WorkerPool(workers)
    if running:
        pool.start()
    with pytest.raises(TypeError, match="factory"):
        pool.resize(count)
    assert pool.workers == tuple(workers)
    pool.shutdown()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("hook", ["process", "handle_error", "done", "init", "cleanup"])
def test_a_worker_cannot_resize_its_own_pool(hook: str, count: int) -> None:
    """It would wait for itself, or for another one that waits for it."""
    raised: list[BaseException | None] = []

    def resize() -> None:
        try:
            pool.resize(count)
        except BaseException as error:
            raised.append(error)
        else:
            raised.append(None)

    class Resizing(Worker[Any]):
        def init(self) -> None:
            if hook == "init" and running.is_set():
                resize()

        def process(self, op: Operation) -> None:
            if hook == "process":
                resize()
            if hook == "handle_error":
                raise ValueError

        def handle_error(self, error: BaseException, op: Operation) -> None:
            resize()

        def cleanup(self) -> None:
            if hook == "cleanup":
                resize()

    class Telling(Operation):
        def done(self) -> None:
            super().done()
            if hook == "done":
                resize()

    running = threading.Event()
    with WorkerPool(Resizing, 2) as pool:
        running.set()
        assert pool.do(Telling()).wait(LONG)
        if hook == "init":
            pool.resize(3)
    assert raised
    assert [type(error) for error in raised] == [RuntimeError] * len(raised)


def test_a_worker_may_resize_another_pool() -> None:
    inner = WorkerPool(Factory(), 1, name="inner")
    with inner, WorkerPool(Factory(), 1, name="outer") as outer:
        job = outer.do(Job(lambda: inner.resize(3)))
        assert job.wait(LONG)
        job.check()
        assert len(inner.workers) == 3


def test_a_factory_that_resizes_its_own_pool_does_not_hang() -> None:
    factory = Factory()
    raised: list[BaseException] = []

    def make() -> Member:
        if len(factory.made) == 1:
            factory()  # once only
            try:
                pool.resize(2)
            except Exception as error:
                raised.append(error)
        return factory()

    with WorkerPool(make, 1, name="resized") as pool:
        try:
            pool.resize(3)
        except Exception as error:
            raised.append(error)
        assert all(isinstance(error, RuntimeError) for error in raised), raised
        assert pool.do(Job()).wait(LONG)
        assert len(threads_of("resized")) == len(pool.workers)
    wait_until(lambda: all(member.has_ended() for member in factory.made))


# A pool that does not run


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("runs", [0, 1], ids=["before the start", "after a shutdown"])
def test_a_resize_of_a_pool_that_does_not_run_applies_to_the_next_run(count: int, runs: int) -> None:
    factory = Factory()
    pool = WorkerPool(factory, 2, name="resized")
    for _ in range(runs):
        with pool:
            assert pool.do(Job()).wait(LONG)
    pool.resize(count)
    assert [member.calls.count("init") for member in factory.made] == [runs] * 2 + [0] * (count - 2)
    for _ in range(2):
        with pool:
            assert len(pool.workers) == len(threads_of("resized")) == len(pool.stats().workers) == count
            meet = threading.Barrier(count)
            jobs = [Job(lambda meet=meet: meet.wait(LONG)) for _ in range(count)]  # type: ignore[misc]
            assert len(list(pool.execute(jobs))) == count
            assert sorted(job.seen[0] for job in jobs) == sorted(numbers(pool))
    assert len(factory.made) == max(2, count)
    for member in factory.made:
        assert member.calls.count("init") == runs * (member.number < 2) + 2 * (member in pool.workers)
    factory.check_ended()


def test_a_factory_that_raises_while_the_pool_does_not_run() -> None:
    factory = Factory()

    def make() -> Member:
        if len(factory.made) == 3:
            raise OSError("no more")
        return factory()

    pool = WorkerPool(make, 2)
    with pytest.raises(OSError, match="no more"):
        pool.resize(5)
    assert numbers(pool) == [0, 1]
    with pool:
        assert pool.do(Job()).wait(LONG)
    assert factory.made[2].calls == []


def test_an_init_that_fails_at_the_start_after_a_resize() -> None:
    factory = Factory(on_init={2: ValueError("third")})
    pool = WorkerPool(factory, 2)
    pool.resize(3)
    with pytest.raises(WorkerInitError) as caught:
        pool.start()
    assert [worker for worker, _ in caught.value.causes] == [factory.made[2]]
    pool.resize(2)
    with pool:
        assert pool.do(Job()).wait(LONG)
    factory.check_ended()


@pytest.mark.parametrize("count", [1, 3])
def test_a_resize_while_the_pool_shuts_down_applies_to_the_next_run(count: int) -> None:
    factory = Factory()
    pool = WorkerPool(factory, 2, name="resized")
    pool.start()
    gates = hold_all(pool, 2)
    ending = start_threads(pool.shutdown)
    wait_until(lambda: "shutting down" in repr(pool))
    pool.resize(count)
    for gate in gates.values():
        gate.opened.set()
    ending.join()
    assert counts(pool.stats()) == {"succeeded": 2}
    check_rows(pool.stats())
    factory.check_ended()
    with pool:
        assert len(threads_of("resized")) == len(pool.workers) == count
        assert pool.do(Job()).wait(LONG)
    factory.check_ended()


@pytest.mark.parametrize("cancel", [False, True])
def test_a_shutdown_while_new_workers_are_not_ready_yet(cancel: bool) -> None:
    gate = Gate()
    factory = Factory(on_init={2: gate})
    pool = WorkerPool(factory, 1)
    pool.start()
    resizing = start_threads(lambda: pool.resize(3))
    assert gate.reached.wait(LONG)
    ending = start_threads(lambda: pool.shutdown(cancel_pending=cancel))
    wait_until(lambda: "shutting down" in repr(pool) or "stopped" in repr(pool))
    gate.opened.set()
    assert ending.join() == [[]]
    with contextlib.suppress(PoolNotRunning):
        resizing.join()
    factory.check_ended()
    with pool:
        assert pool.do(Job()).wait(LONG)
    factory.check_ended()


def test_a_broken_pool_cannot_be_resized() -> None:
    pool = WorkerPool(Factory(), 1, max_restarts=0)
    with pool:
        assert pool.do(Job(SystemExit())).wait(LONG)
        wait_until(lambda: "broken" in repr(pool))
        for count in (1, 2):
            with pytest.raises(BrokenPool):
                pool.resize(count)
    assert len(pool.workers) == 1


def test_the_last_worker_is_lost_while_new_ones_are_not_ready_yet() -> None:
    gate = Gate()
    factory = Factory(on_init={1: gate})
    pool = WorkerPool(factory, 1, max_restarts=0)
    with pool:
        resizing = start_threads(lambda: pool.resize(2))
        assert gate.reached.wait(LONG)
        assert pool.do(Job(SystemExit())).wait(LONG)
        wait_until(factory.made[0].has_ended)
        pending: list[Job] = []
        with contextlib.suppress(BrokenPool):
            pending.append(pool.do(Job()))
        gate.opened.set()
        try:
            resizing.join()
        except BrokenPool:
            with pytest.raises(BrokenPool):
                pool.do(Job())
            assert all(isinstance(job.error, BrokenPool) for job in pending if job.wait(LONG))
        else:
            assert pool.do(Job()).wait(LONG)
            assert all(job.wait(LONG) and job.error is None for job in pending)
    factory.check_ended()


# Workers that crash, pause, or are lost


def crash_each(pool: WorkerPool[Any], factory: Factory, times: int) -> None:
    """Each worker of the pool crashes so often."""
    for _ in range(times):
        for number in numbers(pool):
            assert pool.do(Job(SystemExit(), wanted=number)).wait(LONG)


def test_a_worker_that_pauses_before_a_restart_leaves_at_once() -> None:
    factory = Factory()
    with WorkerPool(factory, 3, restart_pause=HOUR) as pool:
        crash_each(pool, factory, 2)  # from the second crash on, they pause
        wait_until(lambda: all(member.calls.count("cleanup") == 2 for member in factory.made))
        pool.resize(1)
        leaving = factory.left(pool)
        assert len(leaving) == 2
        wait_until(lambda: all(member.has_ended() for member in leaving))
        pool.resize(2)
        assert pool.do(Job()).wait(LONG)
    check_rows(pool.stats())
    factory.check_ended()


@pytest.mark.parametrize("max_restarts", [0, 5])
def test_a_leaving_worker_that_crashes_is_not_restarted(max_restarts: int) -> None:
    factory = Factory()
    with WorkerPool(factory, 3, max_restarts=max_restarts, restart_pause=HOUR) as pool:
        gates = hold_all(pool, 3)
        for gate in gates.values():
            gate.error = SystemExit()
        pool.resize(1)
        [staying] = numbers(pool)
        gates[staying].error = None
        for gate in gates.values():
            gate.opened.set()
        leaving = factory.left(pool)
        for member in leaving:
            wait_until(member.has_ended)
            assert member.calls == ["init", "process", "cleanup"]
        assert pool.do(Job()).wait(LONG)
        stats = pool.stats()
        assert (stats.failed, stats.succeeded, stats.restarts) == (2, 2, 0)
        check_rows(stats)
    factory.check_ended()


def test_the_last_worker_that_stays_is_lost_while_another_is_leaving() -> None:
    """The one that was to leave is alive, so the pool is not broken; it serves until there are others."""
    factory = Factory()
    with WorkerPool(factory, 2, max_restarts=0) as pool:
        gates = hold_all(pool, 2)
        pool.resize(1)
        [staying], [leaving] = numbers(pool), factory.left(pool)
        stream = pool.execute(jobs := [Job() for _ in range(4)])
        gates[staying].error = SystemExit()
        gates[staying].opened.set()
        wait_until(factory.made[staying].has_ended)
        gates[leaving.number].opened.set()
        assert sorted(map(id, stream)) == sorted(map(id, jobs))
        assert all((job.outcome, job.seen, job.told) == (Outcome.SUCCEEDED, [leaving.number], 1) for job in jobs)
        assert pool.do(Job()).wait(LONG)
        pool.resize(1)
        wait_until(leaving.has_ended)
        job = pool.do(Job())
        assert job.wait(LONG)
        assert job.seen == numbers(pool) == [2]
    check_rows(pool.stats())
    factory.check_ended()


@pytest.mark.parametrize("lost_first", ["staying", "leaving"])
def test_a_pool_breaks_when_those_that_stay_and_those_that_leave_are_lost(lost_first: str) -> None:
    factory = Factory()
    pool = WorkerPool(factory, 2, max_restarts=0)
    with pool:
        gates = hold_all(pool, 2)
        pool.resize(1)
        order = [*numbers(pool), *(member.number for member in factory.left(pool))]
        stream = pool.execute(jobs := [Job() for _ in range(4)])
        for number in order if lost_first == "staying" else reversed(order):
            gates[number].error = SystemExit()
            gates[number].opened.set()
            wait_until(factory.made[number].has_ended)
        assert sorted(map(id, stream)) == sorted(map(id, jobs))
        assert all(isinstance(job.error, BrokenPool) and job.told == 1 for job in jobs)
        with pytest.raises(BrokenPool):
            pool.do(Job())
        assert counts(pool.stats()) == {"failed": 6}
    factory.check_ended()


def test_a_shrink_does_not_dismiss_the_last_worker_that_is_alive() -> None:
    """Two of three are lost: the one that stays is the third."""
    for alive in range(3):
        factory = Factory()
        with WorkerPool(factory, 3, max_restarts=0) as pool:
            for number in range(3):
                if number != alive:
                    assert pool.do(Job(SystemExit(), wanted=number)).wait(LONG)
                    wait_until(factory.made[number].has_ended)
            pool.resize(1)
            job = pool.do(Job())
            assert job.wait(LONG)
            assert job.seen == [alive]
        factory.check_ended()


def test_growing_after_a_worker_was_lost() -> None:
    factory = Factory()
    with WorkerPool(factory, 2, max_restarts=0) as pool:
        assert pool.do(Job(SystemExit(), wanted=0)).wait(LONG)
        wait_until(factory.made[0].has_ended)
        pool.resize(3)
        meet = threading.Barrier(2)
        jobs = [Job(lambda: meet.wait(LONG)) for _ in range(2)]
        assert len(list(pool.execute(jobs))) == 2
        assert all(job.outcome is Outcome.SUCCEEDED for job in jobs)
    check_rows(pool.stats())
    factory.check_ended()
