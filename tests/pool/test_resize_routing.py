"""Who gets a retried or rejected operation, and who may wait for the pool, while workers join and leave it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from ringmill import Operation, Outcome, Reject, Retry, Unroutable, WorkerPool
from tests.pool.resizing import KINDS, Factory, Job, check_rows, held, hold_all, look_around, numbers, send
from tests.pool.test_wait_inside_worker import TIMED_WAITS, WAITS
from tests.pools import Gate, counts
from tests.threads import HOUR, LONG, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

DELAYS = pytest.mark.parametrize("delay", [None, 0.0005], ids=["at once", "delayed"])
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
#: How often two workers joined and left before the test: later workers' numbers do not fit into one machine word.
TURNS = pytest.mark.parametrize("turns", [0, 33, 70])


def turn(pool: WorkerPool[Any], times: int) -> None:
    """So many times two more workers join and leave."""
    size = len(pool.workers)
    for _ in range(times):
        pool.resize(size + 2)
        pool.resize(size)


def wait_for_retry(pool: WorkerPool[Any], tries: int = 1) -> None:
    """Its time has come, and no worker has taken it yet."""
    wait_until(lambda: pool.stats().tries == tries and not pool.stats().delayed)


# More workers


@TURNS
@DELAYS
def test_each_worker_tries_once_before_one_tries_twice(delay: float | None, turns: int) -> None:
    factory = Factory()
    with WorkerPool(factory, 1, max_tries=None) as pool:
        turn(pool, turns)
        for count in (2, 4, 3):
            pool.resize(count)
            jobs = [Job(*[Retry(delay=delay)] * (count + 1)) for _ in range(20)]
            assert len(list(pool.execute(jobs))) == 20
            for job in jobs:
                assert sorted(job.seen[:count]) == sorted(numbers(pool)), job.seen
                assert (job.outcome, job.tries, len(job.seen)) == (Outcome.SUCCEEDED, count + 1, count + 2)
    factory.check_ended()


@TURNS
@DELAYS
@EACH_KIND
def test_a_new_worker_takes_what_waits_for_a_busy_one(kind: str, delay: float | None, turns: int) -> None:
    factory = Factory()
    with WorkerPool(factory, 2) as pool:
        turn(pool, turns)
        first, second = numbers(pool)
        with held(pool, second):
            sent = send(pool, kind, Retry(delay=delay))
            wait_for_retry(pool)
            look_around(pool, first)
            assert sent.work.seen == [first]
            pool.resize(3)  # idle, and not equal to the first
            assert sent.end() is None
        assert sent.work.seen == [first, numbers(pool)[2]]
    factory.check_ended()


@TURNS
@DELAYS
@EACH_KIND
def test_a_new_worker_that_is_equal_to_one_that_tried_leaves_it_to_the_others(
    kind: str, delay: float | None, turns: int
) -> None:
    factory = Factory()
    with WorkerPool(factory, 2) as pool:
        turn(pool, turns)
        first, second = numbers(pool)
        factory.groups[len(factory.made)] = factory.made[first].group
        with held(pool, second):
            sent = send(pool, kind, Retry(delay=delay))
            wait_for_retry(pool)
            pool.resize(3)
            look_around(pool, numbers(pool)[2])
            look_around(pool, first)
            assert sent.work.seen == [first]
        assert sent.end() is None
        assert sent.work.seen == [first, second]
    factory.check_ended()


@DELAYS
@EACH_KIND
def test_a_new_worker_that_is_equal_to_one_that_has_not_tried(kind: str, delay: float | None) -> None:
    factory = Factory(groups={0: "left", 1: "right", 2: "right"})
    with WorkerPool(factory, 2) as pool:
        with held(pool, 1):
            sent = send(pool, kind, Retry(delay=delay))
            wait_for_retry(pool)
            pool.resize(3)
            assert sent.end() is None
        assert sent.work.seen == [0, 2]
    factory.check_ended()


@EACH_KIND
def test_new_workers_that_are_all_equal_to_one_that_tried(kind: str) -> None:
    """No worker that is not equal is alive, so it is retried at once, by any of them."""
    factory = Factory(groups=dict.fromkeys(range(9), "same"))
    with WorkerPool(factory, 1) as pool:
        gate = Gate(Retry())
        sent = send(pool, kind, gate)
        assert gate.reached.wait(LONG)
        pool.resize(3)
        gate.opened.set()
        assert sent.end() is None
        assert len(sent.work.seen) == 2
    factory.check_ended()


@EACH_KIND
def test_a_new_worker_takes_what_the_others_reject(kind: str) -> None:
    factory = Factory()
    with WorkerPool(factory, 2) as pool:
        with held(pool, 1):
            sent = send(pool, kind, wanted=2)
            wait_until(lambda: sent.work.rejected == [0])
            pool.resize(3)
            assert sent.end() is None
        assert (sent.work.seen, sent.work.rejected) == ([2], [0])
    factory.check_ended()


@EACH_KIND
def test_what_all_have_rejected_is_not_offered_to_a_later_worker(kind: str) -> None:
    factory = Factory()
    with WorkerPool(factory, 2) as pool:
        sent = send(pool, kind, wanted=2)
        assert isinstance(sent.end(), Unroutable)
        pool.resize(3)
        look_around(pool, 2)
        assert (sent.work.seen, sorted(sent.work.rejected)) == ([], [0, 1])
    factory.check_ended()


@EACH_KIND
def test_a_worker_that_joins_before_the_last_one_rejects(kind: str) -> None:
    """Rejected by one, in process at the other, which rejects it once a third is there."""
    factory = Factory()
    gate = Gate(Reject())
    with WorkerPool(factory, 1) as pool:
        sent = send(pool, kind, gate)
        assert gate.reached.wait(LONG)
        pool.resize(2)
        gate.opened.set()
        assert sent.end() is None
        assert sent.work.seen == [0, 1]
    factory.check_ended()


# Fewer workers


@pytest.mark.parametrize("turns", [0, 70])
@pytest.mark.parametrize("tried_by", [0, 1])
@DELAYS
@EACH_KIND
def test_a_retry_after_the_only_other_worker_left(kind: str, delay: float | None, tried_by: int, turns: int) -> None:
    """One has tried it, the other is held, and one of them is told to leave: the one that stays does it."""
    factory = Factory()
    with WorkerPool(factory, 2) as pool:
        turn(pool, turns)
        before = numbers(pool)
        first, second = before[tried_by], before[1 - tried_by]
        with held(pool, second):
            sent = send(pool, kind, Retry(delay=delay))
            wait_for_retry(pool)
            with held(pool, first):
                pool.resize(1)
                [staying] = numbers(pool)
        assert sent.end() is None
        assert sent.work.seen == [first, staying]
    check_rows(pool.stats())
    factory.check_ended()


@pytest.mark.parametrize("tried_by", [0, 1, 2])
@DELAYS
def test_an_idle_worker_takes_its_retry_again_when_all_others_have_left(delay: float | None, tried_by: int) -> None:
    factory = Factory()
    with WorkerPool(factory, 3) as pool:
        others = [number for number in range(3) if number != tried_by]
        with held(pool, others[0]), held(pool, others[1]):
            job = pool.do(Job(Retry(delay=delay)))
            wait_for_retry(pool)
            pool.resize(1)  # the first is idle
            [staying] = numbers(pool)
        assert job.wait(LONG)
        assert job.seen == [tried_by, staying]
    factory.check_ended()


def test_a_worker_that_is_leaving_does_not_take_its_own_retry() -> None:
    """All that are busy raise Retry; those that leave do not wait for it."""
    factory = Factory()
    with WorkerPool(factory, 3) as pool:
        gates = [Gate(Retry()) for _ in range(3)]
        jobs = [pool.do(Job(gate)) for gate in gates]
        assert all(gate.reached.wait(LONG) for gate in gates)
        pool.resize(1)
        [staying] = numbers(pool)
        for job, gate in zip(jobs, gates, strict=True):
            if job.seen != [staying]:
                gate.opened.set()
        wait_until(lambda: all(member.has_ended() for member in factory.left(pool)))
        for job, gate in zip(jobs, gates, strict=True):
            if job.seen == [staying]:
                gate.opened.set()
        for job in jobs:
            assert job.wait(LONG)
            assert job.seen[1:] == [staying]
    factory.check_ended()


def test_a_worker_that_is_equal_to_one_that_tried_and_left() -> None:
    """A retry is not for the equal of one that had it, also when that one has left."""
    factory = Factory()
    with WorkerPool(factory, 2) as pool:
        gates = [Gate(Retry()) for _ in range(2)]
        jobs = [pool.do(Job(gate)) for gate in gates]
        assert all(gate.reached.wait(LONG) for gate in gates)
        pool.resize(1)
        [staying], [leaving] = numbers(pool), factory.left(pool)
        by = {job.seen[0]: (job, gate) for job, gate in zip(jobs, gates, strict=True)}
        by[leaving.number][1].opened.set()
        wait_until(leaving.has_ended)
        factory.groups[2] = leaving.group
        pool.resize(2)
        look_around(pool, 2)
        assert by[leaving.number][0].seen == [leaving.number]  # it waits for the one that stays, which is not equal
        by[staying][1].opened.set()
        assert all(job.wait(LONG) for job in jobs)
        assert by[leaving.number][0].seen == [leaving.number, staying]
        assert by[staying][0].seen == [staying, 2]
    factory.check_ended()


@pytest.mark.parametrize("turns", [0, 70])
@pytest.mark.parametrize("rejected_by", [0, 1, 2])
@EACH_KIND
def test_rejected_by_all_that_stay(kind: str, rejected_by: int, turns: int) -> None:
    factory = Factory()
    with WorkerPool(factory, 3) as pool:
        turn(pool, turns)
        before = numbers(pool)
        others = [number for number in before if number != before[rejected_by]]
        with held(pool, others[0]), held(pool, others[1]):
            sent = send(pool, kind, wanted=-1)
            wait_until(lambda: sent.work.rejected == [before[rejected_by]])
            pool.resize(1)
        assert isinstance(sent.end(), Unroutable)
        assert set(numbers(pool)) <= set(sent.work.rejected)
        assert pool.do(Job()).wait(LONG)
    assert counts(pool.stats()) == {"succeeded": 3, "failed": 1}
    check_rows(pool.stats())
    factory.check_ended()


@pytest.mark.parametrize("rejected_by", [0, 1])
def test_many_that_only_a_leaving_worker_would_take(rejected_by: int) -> None:
    """The worker that stays has rejected them, or wants them; the other leaves as it finishes what it runs."""
    factory = Factory()
    with WorkerPool(factory, 2) as pool:
        with held(pool, 1 - rejected_by):
            stream = pool.execute(jobs := [Job(wanted=1 - rejected_by) for _ in range(10)])
            wait_until(lambda: all(job.rejected for job in jobs))
            with held(pool, rejected_by):
                pool.resize(1)
                [staying] = numbers(pool)
        assert sorted(map(id, stream)) == sorted(map(id, jobs))
        for job in jobs:
            if staying == rejected_by:
                assert isinstance(job.error, Unroutable)
            else:
                assert (job.outcome, job.seen) == (Outcome.SUCCEEDED, [staying])
    factory.check_ended()


def test_delayed_retries_outlive_the_workers_that_had_them() -> None:
    factory = Factory()
    pool = WorkerPool(factory, 3)
    pool.start()
    late = pool.execute([Job(Retry(delay=HOUR)) for _ in range(6)])
    soon = pool.execute(jobs := [Job(*[Retry(delay=0.001)] * 5) for _ in range(50)])
    wait_until(lambda: pool.stats().delayed >= 6)
    for count in (1, 4, 2, 1, 3, 1):
        pool.resize(count)
    assert sorted(map(id, soon)) == sorted(map(id, jobs))
    assert all((job.outcome, job.tries) == (Outcome.SUCCEEDED, 5) for job in jobs)
    assert counts(pool.stats()) == {"delayed": 6, "succeeded": 50}
    cancelled = pool.shutdown(cancel_pending=True)
    assert len(cancelled) == 6
    assert sorted(map(id, late)) == sorted(map(id, cancelled))
    check_rows(pool.stats())
    factory.check_ended()


# Waiting inside a worker


def wait_for(
    pool: WorkerPool[Any], wait: Callable[..., Any], child: Operation, begun: threading.Event
) -> Callable[[], Any]:
    def step() -> None:
        begun.set()
        wait(pool, child)

    return step


@pytest.mark.parametrize("wait", WAITS)
def test_a_worker_may_wait_while_one_that_has_joined_is_left(wait: Callable[[Any, Operation], bool]) -> None:
    factory = Factory()
    with WorkerPool(factory, 1) as pool:
        for size, error in ((1, RuntimeError), (2, type(None)), (1, RuntimeError), (3, type(None)), (1, RuntimeError)):
            pool.resize(size)
            wait_until(lambda size=size: sum(not member.has_ended() for member in factory.made) == size)  # type: ignore[misc]
            child = Job()
            parent = pool.do(Job(lambda child=child: wait(pool, child)))  # type: ignore[misc]
            assert parent.wait(LONG)
            assert type(parent.error) is error, size
            assert child.wait(LONG)
    factory.check_ended()


@pytest.mark.parametrize("parent_at", [0, 1])
@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_for_work_that_is_queued_when_the_other_worker_leaves(
    wait: Callable[[Any, Operation], bool], parent_at: int
) -> None:
    """The other one is busy, and does nothing else before it leaves: the wait must end."""
    factory = Factory()
    with WorkerPool(factory, 2) as pool:
        child = Job()
        begun = threading.Event()
        with held(pool, 1 - parent_at):
            parent = pool.do(Job(wait_for(pool, wait, child, begun), wanted=parent_at))
            assert begun.wait(LONG)
            wait_until(lambda: pool.stats().queued == 1)  # the child
            pool.resize(1)
        assert parent.wait(LONG)
        assert child.wait(LONG)
        assert child.outcome is Outcome.SUCCEEDED
        assert type(parent.error) in (RuntimeError, type(None))
        assert child.seen == numbers(pool) or parent.error is None
        assert pool.do(Job()).wait(LONG)
    factory.check_ended()


@pytest.mark.parametrize("parent_at", [0, 1])
@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_for_work_that_a_leaving_worker_is_running(
    wait: Callable[[Any, Operation], bool], parent_at: int
) -> None:
    factory = Factory()
    with WorkerPool(factory, 2) as pool:
        gate = Gate()
        child = Job(gate)
        parent = pool.do(Job(lambda: wait(pool, child), wanted=parent_at))
        assert gate.reached.wait(LONG)
        pool.resize(1)
        gate.opened.set()
        assert parent.wait(LONG)
        assert (child.outcome, child.seen) == (Outcome.SUCCEEDED, [1 - parent_at])
        assert type(parent.error) in (RuntimeError, type(None))
        assert pool.do(Job()).wait(LONG)
    factory.check_ended()


@pytest.mark.parametrize("parent_at", [0, 1])
@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_that_begins_after_the_shrink(wait: Callable[[Any, Operation], bool], parent_at: int) -> None:
    factory = Factory()
    with WorkerPool(factory, 2) as pool:
        gate = Gate()
        child = Job()

        def step() -> None:
            gate()
            wait(pool, child)

        with held(pool, 1 - parent_at):
            parent = pool.do(Job(step, wanted=parent_at))
            assert gate.reached.wait(LONG)
            pool.resize(1)
            [staying] = numbers(pool)
            gate.opened.set()
            wait_until(lambda: pool.stats().queued == 1 or parent.outcome is not Outcome.PENDING)
        assert parent.wait(LONG)
        assert child.wait(LONG)
        assert child.outcome is Outcome.SUCCEEDED
        # Where the parent's worker is the one that stays, the other does the child before it leaves: no other can.
        assert type(parent.error) in ((RuntimeError, type(None)) if staying == parent_at else (type(None),))
        assert pool.do(Job()).wait(LONG)
    factory.check_ended()


@pytest.mark.parametrize("wait", TIMED_WAITS)
def test_a_wait_with_a_timeout_while_the_other_worker_leaves(wait: Callable[[Any, Operation, float], bool]) -> None:
    """No RuntimeError: it ends by itself, and then the worker that waited does the rest, or the other one did it."""
    from ringmill import Task

    for parent_at in (0, 1):
        factory = Factory()

        class Running(type(factory())):  # type: ignore[misc]
            def process(self, op: Any) -> Any:
                if isinstance(op, Task):
                    return op.run()
                return super().process(op)

        made: list[Any] = []

        def make(kind: Any = Running, made: Any = made) -> Any:
            made.append(kind(len(made), None, len(made)))
            return made[-1]

        with WorkerPool(make, 2) as pool:
            child = Job()
            begun = threading.Event()

            def step(child: Job = child, begun: threading.Event = begun, pool: Any = pool) -> None:
                begun.set()
                wait(pool, child, 0.05)

            with held(pool, 1 - parent_at):
                parent = pool.do(Job(step, wanted=parent_at))
                assert begun.wait(LONG)
                pool.resize(1)
                if numbers(pool) == [parent_at]:
                    assert parent.wait(LONG)
            assert parent.wait(LONG)
            parent.check()


def test_several_workers_wait_while_those_that_could_do_the_work_leave() -> None:
    """Three wait for one child, the fourth is busy; then all but one are told to leave."""
    factory = Factory()
    with WorkerPool(factory, 4) as pool:
        child = Job()
        gates = hold_all(pool, 4)
        parents = [Job(lambda: child.wait()) for _ in range(3)]
        for job in (*parents, child):
            pool.do(job)
        for number in range(3):
            gates[number].opened.set()
        wait_until(lambda: all(parent.seen for parent in parents))
        pool.resize(1)
        gates[3].opened.set()
        for parent in parents:
            assert parent.wait(LONG)
            assert type(parent.error) in (RuntimeError, type(None))
        assert child.wait(LONG)
        assert child.outcome is Outcome.SUCCEEDED
        assert pool.do(Job()).wait(LONG)
    factory.check_ended()


def test_map_inside_a_worker_that_is_told_to_leave() -> None:
    for parent_at in (0, 1):
        factory = Factory()
        with WorkerPool(factory, 2) as pool:
            gate = Gate()
            came: list[Any] = []

            def step(pool: Any = pool, gate: Gate = gate, came: list[Any] = came) -> None:
                gate()
                with pool.map(range(50)) as results:
                    came.extend(results)

            parent = pool.do(Job(step, wanted=parent_at))
            assert gate.reached.wait(LONG)
            pool.resize(1)
            [staying] = numbers(pool)
            gate.opened.set()
            assert parent.wait(LONG)
            if staying == parent_at:
                assert type(parent.error) is RuntimeError
            else:
                parent.check()
                assert came == list(range(50))
        factory.check_ended()
