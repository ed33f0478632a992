"""A worker that has passed over a retry looks at it again when it may take it after all, and the queue stays whole.

Workers: 0 has tried the operation and passed over it, 1 rejects it and does what the others wait for, 2 is the one that
0 leaves it to.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ringmill import Operation, OperationReused, Outcome, Reject, Retry, Unroutable, Worker, WorkerPool
from tests.pools import Gate, Step, check_at_rest, perform
from tests.threads import HOUR, LONG, run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class Script:
    """What is to happen to it, one step each time that a worker processes it that does not reject it.

    Attributes:
        wanted: The number of the only worker that does not reject it; None: all but the `refused`.
        refused: The numbers of workers that reject it.
    """

    def __init__(self, *steps: Step, wanted: int | None = None, refused: tuple[int, ...] = ()) -> None:
        self.steps = steps
        self.wanted = wanted
        self.refused = refused
        self.seen: list[int] = []
        self.rejected: list[int] = []


class Item(Script):
    """For `map`."""


class Job(Script, Operation):
    pass


class Hand(Worker[Any]):
    def __init__(self, number: int, group: object = None) -> None:
        self.number = number
        self.group = number if group is None else group
        self.order: list[Any] = []
        self.on_init: Step = None

    def init(self) -> None:
        perform(self.on_init)

    def process(self, op: Script) -> None:
        if op.wanted not in (None, self.number) or self.number in op.refused:
            op.rejected.append(self.number)
            raise Reject
        op.seen.append(self.number)
        self.order.append(op)
        if len(op.seen) <= len(op.steps):
            perform(op.steps[len(op.seen) - 1])

    def equal(self, other: Worker[Any]) -> bool:
        return isinstance(other, Hand) and other.group == self.group


class Hands:
    """A factory that remembers what it made; those of one group are equal."""

    def __init__(self, groups: dict[int, object] | None = None) -> None:
        self.made: list[Hand] = []
        self.groups = groups or {}

    def __call__(self) -> Hand:
        self.made.append(Hand(len(self.made), self.groups.get(len(self.made))))
        return self.made[-1]


@contextmanager
def held(pool: WorkerPool[Any], number: int, then: Step = None) -> Iterator[Gate]:
    """The worker of that number is busy; then its operation goes on with that step."""
    gate = Gate()

    def step() -> None:
        gate()
        perform(then)

    pool.do(Job(step, wanted=number))
    assert gate.reached.wait(LONG)
    try:
        yield gate
    finally:
        gate.opened.set()


def look_around(pool: WorkerPool[Any], *workers: int) -> None:
    """These workers look for work several times: what they do not take now, they may not take."""
    for number in workers * 3:
        assert pool.do(Job(wanted=number)).wait(LONG)


def send_passed_over(pool: WorkerPool[Any], *later: Step) -> Job:
    """An operation that 0 has tried and passed over, and 1 has rejected; 2 is busy."""
    job = pool.do(Job(Retry(), *later, refused=(1,)))
    wait_until(lambda: job.tries == 1 and job.rejected == [1])
    look_around(pool, 0, 1)  # and so it was put back
    assert (job.seen, job.outcome) == ([0], Outcome.PENDING)
    return job


def wait_for_retry(pool: WorkerPool[Any], *jobs: Job, running: int = 1) -> None:
    """Each was tried once, and was put back: no worker runs it any more."""
    wait_until(lambda: all(job.tries == 1 for job in jobs) and pool.stats().running == running)


def core_of(pool: WorkerPool[Any]) -> Any:
    assert pool._run is not None
    return pool._run.core


# What was passed over may be taken


def is_dead(pool: WorkerPool[Any]) -> bool:
    return not core_of(pool).worker_loops[2].is_alive


def is_waiting(pool: WorkerPool[Any]) -> bool:
    return bool(core_of(pool)._count_waiting())


def wait_for_op(pool: WorkerPool[Any], child: Gate) -> None:
    pool.do(Job(child, wanted=1)).wait()


def wait_for_op_in_time(pool: WorkerPool[Any], child: Gate) -> None:
    assert pool.do(Job(child, wanted=1)).wait(LONG)


def read_stream(pool: WorkerPool[Any], child: Gate) -> None:
    assert len(list(pool.execute([Job(child, wanted=1)]))) == 1


def read_stream_in_time(pool: WorkerPool[Any], child: Gate) -> None:
    pool.execute([Job(child, wanted=1)]).get(LONG)


def read_wrap(pool: WorkerPool[Any], child: Gate) -> None:
    assert len(list(pool.wrap([Job(child, wanted=1)]))) == 1


def map_items(pool: WorkerPool[Any], child: Gate) -> None:
    assert list(pool.map([Item(child, wanted=1)])) == [None]


def call_item(pool: WorkerPool[Any], child: Gate) -> None:
    pool.call(Item(child, wanted=1), LONG)


def await_op(pool: WorkerPool[Any], child: Gate) -> None:
    async def main() -> None:
        await pool.do(Job(child, wanted=1))

    asyncio.run(main())


def await_in_task(pool: WorkerPool[Any], child: Gate) -> None:
    """One task of several waits, and the loop goes on."""

    async def one(op: Job) -> None:
        await op

    async def main() -> None:
        await asyncio.gather(one(pool.do(Job(wanted=1))), one(pool.do(Job(child, wanted=1))), asyncio.sleep(0))

    asyncio.run(main())


def aget(pool: WorkerPool[Any], child: Gate) -> None:
    async def main() -> None:
        await pool.execute([Job(child, wanted=1)]).aget()

    asyncio.run(main())


WAITS = [
    wait_for_op, wait_for_op_in_time, read_stream, read_stream_in_time, read_wrap, map_items, call_item, await_op,
    await_in_task, aget,
]  # fmt: skip

STATES = pytest.mark.parametrize("state", ["asleep", "busy"])


@contextmanager
def in_state(pool: WorkerPool[Any], state: str) -> Iterator[None]:
    """Worker 0 sleeps, or is busy until the end of the block."""
    if state == "busy":
        with held(pool, 0):
            yield
    else:
        yield


@STATES
@pytest.mark.parametrize("wait", WAITS)
def test_when_the_other_worker_begins_to_wait_and_no_longer_when_it_comes_back(
    wait: Callable[[WorkerPool[Any], Gate], None], state: str
) -> None:
    child, back = Gate(), Gate()

    def step() -> None:
        wait(pool, child)
        back()

    with WorkerPool(Hands(), 3) as pool:
        with held(pool, 2, step) as gate:
            job = send_passed_over(pool)
            with in_state(pool, state):
                gate.opened.set()
                assert child.reached.wait(LONG)
                wait_until(lambda: is_waiting(pool))
            assert job.wait(LONG)  # while 2 waits
            assert job.seen == [0, 0]
            child.opened.set()
            assert back.reached.wait(LONG)
            later = send_passed_over(pool)
            back.opened.set()
        assert later.wait(LONG)
        assert later.seen == [0, 2]


@STATES
@pytest.mark.parametrize("waits", [2, 5])
def test_at_each_wait_of_the_other_worker(waits: int, state: str) -> None:
    """In one call of `process`: each begins anew, and none is left over from the one before."""
    children, backs = [Gate() for _ in range(waits)], [Gate() for _ in range(waits)]

    def step() -> None:
        for child, back in zip(children, backs, strict=True):
            wait_for_op_in_time(pool, child)
            back()

    with WorkerPool(Hands(), 3) as pool, held(pool, 2, step) as gate:
        for child, back in zip(children, backs, strict=True):
            job = send_passed_over(pool)
            with in_state(pool, state):
                gate.opened.set()
                assert child.reached.wait(LONG)
                wait_until(lambda: is_waiting(pool))
            assert job.wait(LONG)
            assert job.seen == [0, 0]
            child.opened.set()
            assert back.reached.wait(LONG)
            gate = back
        gate.opened.set()


@STATES
@pytest.mark.parametrize("how", ["pauses", "is lost", "leaves"])
def test_when_the_other_worker_is_gone(how: str, state: str) -> None:
    with WorkerPool(Hands(), 3, restart_pause=HOUR, max_restarts=0 if how == "is lost" else 5) as pool:
        if how == "pauses":
            assert pool.do(Job(SystemExit(), wanted=2)).wait(LONG)  # restarts at once; the second time it pauses
        with held(pool, 2, None if how == "leaves" else SystemExit()) as gate:
            job = send_passed_over(pool)
            if how == "leaves":
                pool.resize(2)
                look_around(pool, 0)
                assert job.seen == [0]  # it has not left yet
            with in_state(pool, state):
                gate.opened.set()
                wait_until(lambda: is_dead(pool))
            assert job.wait(LONG)
        assert job.seen == [0, 0]


@STATES
def test_while_the_other_worker_restarts(state: str) -> None:
    """From its crash until its `init` has returned."""
    hands = Hands()
    with WorkerPool(hands, 3) as pool:
        begun = Gate()
        with held(pool, 2, SystemExit()) as gate:
            job = send_passed_over(pool)
            hands.made[2].on_init = begun
            with in_state(pool, state):
                gate.opened.set()
                assert begun.reached.wait(LONG)
            assert job.wait(LONG)
            assert job.seen == [0, 0]
            begun.opened.set()
        with held(pool, 2):
            later = send_passed_over(pool)
        assert later.wait(LONG)
        assert later.seen == [0, 2]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_all_that_was_passed_over_and_in_order(count: int) -> None:
    hands = Hands()
    child = Gate()
    with WorkerPool(hands, 3) as pool, held(pool, 2, lambda: wait_for_op(pool, child)) as gate:
        jobs = [send_passed_over(pool) for _ in range(count)]
        gate.opened.set()
        assert all(job.wait(LONG) for job in jobs)
        assert [job for job in hands.made[0].order if job in jobs][-count:] == jobs
        child.opened.set()


def test_a_task_reads_a_stream_that_another_reader_empties() -> None:
    """2 has a task in a stream's `aget`. What came out of the stream for a moment makes no difference."""
    waits, goes_on = Gate(), Gate()
    source_open = threading.Event()
    first, second = Job(wanted=1), Job(wanted=1)

    def source() -> Iterator[Job]:
        assert waits.reached.wait(LONG)  # so that nothing comes out before the task waits
        yield first
        assert source_open.wait(LONG)
        yield second

    def step() -> None:
        async def main() -> None:
            task = asyncio.ensure_future(stream.aget())
            for _ in range(5):
                await asyncio.sleep(0)
            waits()  # the loop is blocked, with the task in its wait
            for _ in range(5):
                await asyncio.sleep(0)
            goes_on()
            assert await task is second

        asyncio.run(main())

    with WorkerPool(Hands(), 3) as pool:
        stream = pool.wrap(source(), drawn_by="thread")
        pool.do(outer := Job(step, wanted=2))
        wait_until(lambda: stream.ready == 1)
        job = pool.do(Job(Retry(), refused=(1,)))
        wait_until(lambda: job.tries == 1)
        look_around(pool, 0, 1)
        assert stream.get(LONG) is first
        waits.opened.set()
        assert goes_on.reached.wait(LONG)
        look_around(pool, 0)
        assert job.wait(LONG)
        assert job.seen == [0, 0]
        goes_on.opened.set()
        source_open.set()
        assert outer.wait(LONG)
        outer.check()
        stream.close()


def test_a_worker_that_waits_in_init_looks_at_the_queue_of_retries() -> None:
    """A worker that joins has no number yet, and has passed over nothing."""
    hands = Hands()
    with WorkerPool(hands, 3) as pool, held(pool, 2):
        jobs = [send_passed_over(pool) for _ in range(3)]
        before = [pool.do(Job(wanted=0))]

        def make() -> Hand:
            hand = hands()
            hand.on_init = lambda: before.append(pool.do(Job(wanted=0))) or before[-1].wait()  # type: ignore[func-returns-value]
            return hand

        pool._factory = make
        pool.resize(4)
        assert all(job.wait(LONG) for job in [*before, *jobs])
        assert all(job.seen in ([0, 3], [0, 0]) for job in jobs)


# Which worker is woken


@pytest.mark.parametrize("turn", range(5))
def test_a_worker_that_is_woken_for_a_retry_takes_that_first(turn: int) -> None:
    """Not what else has come, though it took a retry last. The next one that is woken may not take the retry."""
    gates = [Gate(), Gate()]
    jobs = [Job(gate) for gate in gates]
    interval = sys.getswitchinterval()
    with WorkerPool(Hands(), 3) as pool:
        parent = pool.do(Job(lambda: [pool.do(job) for job in jobs] and [gate.reached.wait(LONG) for gate in gates]))
        assert parent.wait(LONG)  # the two others have taken them from the queue of retries
        retry = pool.do(Job(Retry(delay=HOUR)))
        wait_until(lambda: pool.stats().delayed == 1)
        for gate, job in zip(gates, jobs, strict=True):
            gate.opened.set()
            assert job.wait(LONG)
        wait_until(lambda: not pool.stats().running)
        threading.Event().wait(0.005)  # likely they all sleep now; if not, the test proves less
        other = Gate()
        sys.setswitchinterval(LONG)  # with a GIL, no worker comes between these two lines
        try:
            core_of(pool).give_up_timer()  # releases what is delayed
            pool.do(Job(other))
        finally:
            sys.setswitchinterval(interval)
        assert retry.wait(LONG / 3)
        assert other.reached.wait(LONG)
        other.opened.set()


# Cancelled while it waits


@contextmanager
def waiting(count: int, workers: int) -> Iterator[tuple[WorkerPool[Any], Hands, Any, list[Job]]]:
    """So many wait for worker 0, which is busy, in this order; all others, which are equal, have passed over them."""
    hands = Hands(dict.fromkeys(range(1, workers), "same"))
    with WorkerPool(hands, workers) as pool, held(pool, 0):
        with contextlib.ExitStack() as stack:
            for number in range(2, workers):
                stack.enter_context(held(pool, number))
            stream = pool.execute(jobs := [Job(Retry()) for _ in range(count)])
            wait_for_retry(pool, *jobs, running=workers - 1)
        look_around(pool, *range(1, workers))
        yield pool, hands, stream, jobs


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))])
def test_cancelled_in_any_order_where_all_have_passed_over_them(order: tuple[int, ...]) -> None:
    with waiting(4, 5) as (pool, hands, stream, jobs):
        for number in order:
            assert jobs[number].cancel()
            look_around(pool, 1, 4)
            job = pool.do(Job(wanted=2))  # goes to the end, and is taken there
            assert job.wait(LONG)
            assert job.seen == [2]
        assert sorted(map(id, stream)) == sorted(map(id, jobs))
        assert not any(job.cancel() for job in jobs)
        assert all(job.outcome is Outcome.CANCELLED for job in jobs)
    assert not set(hands.made[0].order) & set(jobs)
    check_at_rest(pool.stats())
    assert pool.stats().cancelled == 4


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_what_stands_behind_those_that_are_cancelled(order: tuple[int, ...]) -> None:
    """A worker has passed over them and not looked further yet: it begins where they stood."""
    with waiting(3, 4) as (pool, _, stream, jobs):
        with held(pool, 1):
            behind = pool.do(Job(wanted=1))
            wait_until(lambda: sorted(behind.rejected) == [2, 3] and pool.stats().running == 2)
            assert all(jobs[number].cancel() for number in order)
        assert behind.wait(LONG)
        assert behind.seen == [1]
        assert len(list(stream)) == 3


@pytest.mark.parametrize("cancelled", ["first", "middle", "last", "odd", "all but one"])
@pytest.mark.parametrize("workers", [2, 9])
def test_those_that_are_left_keep_their_order(workers: int, cancelled: str) -> None:
    chosen = {"first": [0], "middle": [4, 5], "last": [8], "odd": [1, 3, 5, 7], "all but one": [0, 1, 2, 3, 5, 6, 7, 8]}
    with waiting(9, workers) as (pool, hands, stream, jobs):
        gone = [jobs[k] for k in chosen[cancelled]]
        assert all(job.cancel() for job in gone)
        look_around(pool, *range(1, workers))
        more = pool.do(Job(Retry()))
        wait_for_retry(pool, more)
        look_around(pool, *range(1, workers))
    assert sorted(map(id, stream)) == sorted(map(id, jobs))
    left = [job for job in jobs if job not in gone]
    assert [job for job in hands.made[0].order if job in [*jobs, more]] == [*left, more]
    assert pool.stats().cancelled == len(gone)


@pytest.mark.parametrize("delay", [None, HOUR], ids=["waits", "delayed"])
def test_cancelled_reset_and_submitted_again_at_once(delay: float | None) -> None:
    with WorkerPool(Hands(), 2) as pool, WorkerPool(Hands(), 1) as other, held(pool, 1):
        job = Job(Retry(delay=delay), refused=())
        for turn in range(200):
            target = other if turn % 5 == 4 else pool
            job.steps = (Retry(delay=delay),) if target is pool else ()
            job.seen.clear()
            target.do(job)
            if target is other:
                assert job.wait(LONG)
                assert job.outcome is Outcome.SUCCEEDED
            else:
                wait_for_retry(pool, job)
                assert pool.stats().delayed == bool(delay)
                assert job.cancel()
                assert not job.cancel()
                assert job.outcome is Outcome.CANCELLED
            job.reset()
            assert (job.outcome, job.tries) == (Outcome.PENDING, 0)
        stats = pool.stats()
    assert (stats.cancelled, stats.queued, stats.delayed, stats.accepted) == (160, 0, 0, 161)


def test_cancelled_by_several_threads_while_workers_take_and_retry(switch_interval: float) -> None:
    with WorkerPool(Hands(), 3, max_tries=None) as pool:
        for _ in range(10):
            stream = pool.execute(jobs := [Job(*[Retry()] * 10) for _ in range(20)])
            won = run_threads(*[lambda jobs=jobs: [job.cancel() for job in jobs] for _ in range(3)])
            assert sorted(map(id, stream)) == sorted(map(id, jobs))
            for job, answers in zip(jobs, zip(*won, strict=True), strict=True):
                assert sum(answers) == (job.outcome is Outcome.CANCELLED)
                job_reset(job)
        check_at_rest(pool.stats())


def job_reset(job: Job) -> None:
    """It may be reset: no queue has an entry for it."""
    while True:
        try:
            job.reset()
            return
        except OperationReused:  # the canceller has not come back yet
            threading.Event().wait(0.0005)


def test_a_cancel_makes_room_for_a_caller() -> None:
    with WorkerPool(Hands(), 2, queue_size=1) as pool, held(pool, 1):
        job = pool.do(Job(Retry()))
        wait_for_retry(pool, job)  # it fills the queue
        caller = start_threads(lambda: pool.do(Job(wanted=0)))
        assert not caller.results[0]
        assert job.cancel()
        assert caller.join()[0].wait(LONG)


# Streams that are closed or dropped


@pytest.mark.parametrize("end", ["close", "drop"])
@pytest.mark.parametrize("delay", [None, HOUR], ids=["waits", "delayed"])
def test_a_stream_whose_retries_wait_is_gone(delay: float | None, end: str) -> None:
    """They are cancelled, what else waits stays, also what has the same masks."""
    jobs = [Job(Retry(delay=delay)) for _ in range(5)]
    with WorkerPool(Hands(), 2) as pool:
        with held(pool, 1):
            stay = pool.do(Job(Retry()))
            wait_for_retry(pool, stay)
            # it would give more than is between source and reader
            stream: Any = pool.wrap(itertools.chain(jobs, map(Job, itertools.count())), drawn_by="thread", buffer=5)
            wait_for_retry(pool, *jobs)
            assert pool.stats().delayed == (5 if delay else 0)
            after = pool.do(Job(Retry()))
            wait_for_retry(pool, after)
            look_around(pool, 0)
            if end == "close":
                stream.close()
            else:
                del stream
            assert all(job.wait(LONG / 3) for job in jobs)
            assert all((job.outcome, job.seen) == (Outcome.CANCELLED, [0]) for job in jobs)
            assert stay.outcome is after.outcome is Outcome.PENDING
            look_around(pool, 0)
        assert stay.wait(LONG)
        assert after.wait(LONG)
    assert (stay.seen, after.seen) == ([0, 1], [0, 1])
    stats = pool.stats()
    assert (stats.cancelled, stats.delayed, stats.queued) == (5, 0, 0)


# Rejected


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_rejected_by_all_in_any_order(order: tuple[int, ...]) -> None:
    hands = Hands()
    with WorkerPool(hands, 3) as pool:
        gates = {}
        for number in range(3):
            gates[number] = Gate()
            pool.do(Job(gates[number], wanted=number))
            assert gates[number].reached.wait(LONG)
        job = pool.do(Job(wanted=99))
        for k, number in enumerate(order):
            assert job.outcome is Outcome.PENDING
            gates[number].opened.set()
            wait_until(lambda k=k: job.rejected == list(order[: k + 1]))  # type: ignore[misc]
            if k < 2:
                look_around(pool, number)
        assert job.wait(LONG)
        assert isinstance(job.error, Unroutable)


def test_each_takes_the_first_that_it_may_take() -> None:
    """From a queue in which what one may take stands between what others may take."""
    hands = Hands()
    with WorkerPool(hands, 4) as pool:
        gates = {}
        for number in range(1, 4):
            gates[number] = Gate()
            pool.do(Job(gates[number], wanted=number))
            assert gates[number].reached.wait(LONG)
        jobs = [Job(wanted=1 + k % 3) for k in range(30)]
        stream = pool.execute(jobs)
        wait_until(lambda: all(job.rejected == [0] for job in jobs))  # in this order they stand in the queue
        for number in (2, 1, 3):
            gates[number].opened.set()
            wait_until(lambda number=number: all(job.seen for job in jobs if job.wanted == number))  # type: ignore[misc]
        assert len(list(stream)) == 30
    for number in range(1, 4):
        assert [job for job in hands.made[number].order if job in jobs] == [job for job in jobs if job.wanted == number]


# The end of the pool


PENDING = ["queued", "delayed", "put back"]


@pytest.mark.parametrize("last", ["cancel", "close"])
@pytest.mark.parametrize("kind", PENDING)
def test_the_last_pending_operation_is_cancelled_while_the_pool_drains(kind: str, last: str) -> None:
    """The only worker pauses for an hour, and is told of the end."""
    pool: WorkerPool[Any] = WorkerPool(Hands(), 1, restart_pause=HOUR)
    pool.start()
    assert pool.do(Job(SystemExit())).wait(LONG)  # restarts at once
    early = pool.execute([job := Job(Retry(delay=HOUR))]) if kind != "queued" else None
    wait_until(lambda: kind == "queued" or job.tries == 1)
    assert pool.do(Job(SystemExit())).wait(LONG)
    wait_until(lambda: not core_of(pool).worker_loops[0].is_alive)
    if kind == "put back":
        core_of(pool).give_up_timer()  # releases what is delayed
    stream = early or pool.execute([job := Job()])
    ender = start_threads(pool.shutdown)
    wait_until(lambda: not core_of(pool).is_open)
    assert job.outcome is Outcome.PENDING
    if last == "cancel":
        assert job.cancel()
    else:
        stream.close()
    ender.join()
    assert job.outcome is Outcome.CANCELLED
    check_at_rest(pool.stats())


@pytest.mark.parametrize("cancelled_first", [True, False])
@pytest.mark.parametrize("kind", PENDING)
def test_the_last_one_is_cancelled_or_ends_while_the_pool_drains(kind: str, cancelled_first: bool) -> None:
    """Worker 0 sleeps, 1 runs the one, the other is pending: whichever ends last ends the pool."""
    pool: WorkerPool[Any] = WorkerPool(Hands(), 2)
    pool.start()
    with held(pool, 1) as gate:
        step = Retry(delay=HOUR if kind == "delayed" else None)
        job = pool.do(Job(step) if kind != "queued" else Job(wanted=1))
        wait_until(lambda: (job.tries == 1 or job.rejected == [0]) and pool.stats().running == 1)
        ender = start_threads(pool.shutdown)
        wait_until(lambda: not core_of(pool).is_open)
        if cancelled_first:
            assert job.cancel()
        elif kind == "delayed":
            gate.opened.set()
            wait_until(lambda: not pool.stats().running)
            assert job.cancel()
    ender.join()
    assert job.outcome is (Outcome.CANCELLED if cancelled_first or kind == "delayed" else Outcome.SUCCEEDED)
    check_at_rest(pool.stats())


@pytest.mark.parametrize("count", [1, 7])
def test_those_that_end_without_a_worker_while_the_pool_drains(count: int) -> None:
    """They are unroutable when the only worker that might take them is lost, and the last to end."""
    pool: WorkerPool[Any] = WorkerPool(Hands(), 2, max_restarts=0)
    pool.start()
    with held(pool, 1, SystemExit()):
        stream = pool.execute(jobs := [Job(wanted=1) for _ in range(count)])
        wait_until(lambda: all(job.rejected == [0] for job in jobs))
        ender = start_threads(pool.shutdown)
        wait_until(lambda: not core_of(pool).is_open)
    ender.join()
    assert len(list(stream)) == count
    assert all(isinstance(job.error, Unroutable) for job in jobs)
    check_at_rest(pool.stats())


def test_cancelled_by_many_threads_while_the_pool_drains(switch_interval: float) -> None:
    """All workers sleep, so one of the threads that cancel must tell them that it was the last."""
    for _ in range(20):
        pool: WorkerPool[Any] = WorkerPool(Hands(), 2)
        pool.start()
        jobs = [pool.do(Job(Retry(delay=HOUR))) for _ in range(8)]
        wait_for_retry(pool, *jobs, running=0)
        ender = start_threads(pool.shutdown)
        wait_until(lambda pool=pool: not core_of(pool).is_open)  # type: ignore[misc]
        run_threads(*[job.cancel for job in jobs])
        ender.join()
        assert all(job.outcome is Outcome.CANCELLED for job in jobs)
        check_at_rest(pool.stats())


@pytest.mark.parametrize("delay", [0.0, HOUR])
@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_a_stream_that_is_dropped_after_its_source_has_ended_cancels_its_retries(drawn_by: Any, delay: float) -> None:
    """The pool has removed the source by then; its operations wait for the worker that has not tried them."""
    tried: list[Operation] = []
    reached, opened = threading.Event(), threading.Event()

    class Plain(Operation):
        pass

    class First(Worker[Plain]):
        def process(self, op: Plain) -> None:
            if op is holding:
                raise Reject
            tried.append(op)
            if op in jobs:
                raise Retry(delay=delay)

    class Second(Worker[Plain]):
        def process(self, op: Plain) -> None:
            if op is not holding:
                raise Reject
            reached.set()
            assert opened.wait(LONG)

    holding, jobs = Plain(), [Plain() for _ in range(3)]
    with WorkerPool([First(), Second()]) as pool:
        try:
            pool.do(holding)
            assert reached.wait(LONG)
            stream = pool.wrap(iter(jobs), drawn_by=drawn_by)
            with contextlib.suppress(queue.Empty):
                stream.get(timeout=0.05)  # draws, where the reader does
            wait_until(lambda: len(tried) == len(jobs))
            assert pool.do(Plain()).wait(LONG)  # a look after the end of the source
            del stream
            assert all(job.wait(LONG) for job in jobs)
            assert [job.outcome for job in jobs] == [Outcome.CANCELLED] * len(jobs)
            wait_until(lambda: pool.stats().queued == pool.stats().delayed == 0)
            assert pool.stats().accepted == len(jobs) + 2
        finally:
            opened.set()
    assert pool.stats().cancelled == len(jobs)


def test_an_operation_that_is_put_back_after_its_stream_was_dropped_is_cancelled() -> None:
    reached, opened = threading.Event(), threading.Event()

    class Plain(Operation):
        pass

    class Once(Worker[Plain]):
        def process(self, op: Plain) -> None:
            reached.set()
            assert opened.wait(LONG)
            raise Retry(delay=HOUR)

    job = Plain()
    with WorkerPool([Once()]) as pool:
        try:
            stream = pool.wrap(iter([job]), drawn_by="thread")
            assert reached.wait(LONG)
            del stream
        finally:
            opened.set()
        assert job.wait(LONG)
        assert job.outcome is Outcome.CANCELLED
    stats = pool.stats()
    assert (stats.accepted, stats.cancelled, stats.tries) == (1, 1, 1)
