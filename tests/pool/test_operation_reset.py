"""One operation is submitted, ended, reset and submitted again, many times: no submission affects another.

What a life may leave behind: its place in a queue, its delay, threads that wait for it, a worker that is still in its
`done`, a thread that is still in its `cancel`.
"""

from __future__ import annotations

import contextlib
import gc
import queue
import threading
import time
from collections.abc import Iterator

import pytest

from ringmill import Operation, OperationReused, Outcome, Reject, Retry, Worker, WorkerPool
from tests.pools import Gate, Step, counts, perform
from tests.threads import HOUR, LONG, run_threads, start_threads, wait_until

pytestmark = [pytest.mark.watchdog(60), pytest.mark.usefixtures("no_thread_is_left")]


class Job(Operation):
    """What is to happen to it, one step for each time that it is processed, in whatever life; then it succeeds."""

    def __init__(self, *script: Step) -> None:
        self.script = script
        self.runs: list[JobWorker] = []


class JobWorker(Worker[Job]):
    def process(self, op: Job) -> None:
        op.runs.append(self)
        step = op.script[len(op.runs) - 1] if len(op.runs) <= len(op.script) else None
        perform(step)


@contextlib.contextmanager
def held(*pools: WorkerPool[Job]) -> Iterator[None]:
    """All workers of these pools are busy."""
    gates = [(pool, Gate()) for pool in pools for _ in pool.workers]
    for pool, gate in gates:
        pool.do(Job(gate))
    try:
        for _, gate in gates:
            assert gate.reached.wait(LONG)
        yield
    finally:
        for _, gate in gates:
            gate.opened.set()


def can_reset(op: Job) -> bool:
    try:
        op.reset()
    except OperationReused:
        return False
    return True


# The place of an earlier life


def test_a_cancelled_operation_cannot_be_used_again_before_its_place_is_passed() -> None:
    with WorkerPool([JobWorker()]) as one, WorkerPool([JobWorker()]) as two:
        with held(one):
            op = one.do(Job())
            assert op.cancel()
            with pytest.raises(OperationReused, match="still has an entry"):
                op.reset()
            for pool in (one, two):
                with pytest.raises(OperationReused):
                    pool.do(op)
                with pytest.raises(OperationReused):
                    list(pool.wrap([op], reset=True))
        assert one.do(Job()).wait(LONG)  # its worker has passed the place
        op.reset()
        assert two.do(op).wait(LONG)
        assert (op.outcome, op.runs) == (Outcome.SUCCEEDED, [two.workers[0]])
    assert counts(one.stats()) == {"succeeded": 2, "cancelled": 1}
    assert counts(two.stats()) == {"succeeded": 1}


def test_each_life_comes_out_of_its_own_stream_once() -> None:
    with WorkerPool([JobWorker(), JobWorker()]) as pool:
        op = Job()
        with held(pool):
            streams = [pool.execute([op])]
            assert op.cancel()
            assert not can_reset(op)
        assert streams[0].get(LONG) is op
        for _ in range(3):
            op.reset()  # it has come out, so its place is passed
            with held(pool):
                streams.append(pool.execute([op]))
            assert streams[-1].get(LONG) is op
            assert op.outcome is Outcome.SUCCEEDED
        assert [list(stream) for stream in streams] == [[]] * 4
    assert len(op.runs) == 3
    assert counts(pool.stats()) == {"succeeded": 8 + 3, "cancelled": 1}


@pytest.mark.parametrize("first", ["do", "execute", "wrap"])
def test_a_second_life_in_a_stream_waits_for_the_place_of_the_first(first: str) -> None:
    """Both workers come for it at once: for the place of the first life, and for that of the second."""
    with WorkerPool([JobWorker(), JobWorker()]) as pool:
        op = Job()
        with held(pool):
            if first == "do":
                pool.do(op)
            elif first == "execute":
                pool.execute([op])
            else:
                wrapped = pool.wrap([op], drawn_by="thread")
                wait_until(lambda: wrapped.total == 1)
            assert op.cancel()
        wait_until(lambda: can_reset(op))
        stream = pool.execute([op])
        assert stream.get(LONG) is op
        assert list(stream) == []
    assert len(op.runs) == 1
    assert counts(pool.stats()) == {"succeeded": 3, "cancelled": 1}


def test_an_operation_that_was_cancelled_in_the_retry_queue_can_be_submitted_again() -> None:
    """It waits for the other worker, which is busy; the one that rejected it passes its place."""

    class Picky(JobWorker):
        picky = True

        def process(self, op: Job) -> None:
            if self.picky:
                if op is not busy:
                    rejected.set()
                raise Reject
            super().process(op)

    picky, rejected, gate = Picky(), threading.Event(), Gate()
    busy, op = Job(gate), Job()
    with WorkerPool([picky, JobWorker()]) as pool:
        pool.do(busy)
        assert gate.reached.wait(LONG)
        pool.do(op)
        assert rejected.wait(LONG)
        wait_until(op.cancel)  # as soon as it is put back
        wait_until(lambda: can_reset(op))
        picky.picky = False
        assert pool.do(op).wait(LONG)
        gate.opened.set()
    assert (op.outcome, op.runs) == (Outcome.SUCCEEDED, [picky])
    assert busy.runs == [pool.workers[1]]
    assert counts(pool.stats()) == {"succeeded": 2, "cancelled": 1}


# The delay of an earlier life


@pytest.mark.parametrize("delays", [(0.02, 0.06), (0.03, 0.03), (HOUR, 0.01)], ids=str)
def test_the_delay_of_a_cancelled_submission_does_not_apply_to_the_next(delays: tuple[float, float]) -> None:
    with WorkerPool([JobWorker()]) as pool:
        op = Job(*[Retry(delay=delay) for delay in delays])
        first = pool.execute([op])
        wait_until(lambda: pool.stats().delayed == 1)
        assert op.cancel()
        assert list(first) == [op]
        op.reset()  # a delayed one has no place
        begun = time.monotonic()
        second = pool.execute([op])
        assert list(second) == [op]
        assert time.monotonic() - begun >= delays[1]
        assert (op.outcome, op.tries, len(op.runs)) == (Outcome.SUCCEEDED, 1, 3)
    assert counts(pool.stats()) == {"succeeded": 1, "cancelled": 1}


# A worker that is still in the `done` of an earlier life


@pytest.mark.parametrize("how", ["released", "polled"])
def test_a_worker_that_lingers_in_done_does_not_release_the_next_life(how: str) -> None:
    lingers, goes_on, second = threading.Event(), threading.Event(), Gate()

    class Lingering(Job):
        def done(self) -> None:
            if len(self.runs) == 1:
                if how == "released":
                    super().done()
                lingers.set()
                assert goes_on.wait(LONG)

    with WorkerPool([JobWorker(), JobWorker()]) as pool:
        op = pool.do(Lingering(None, second))
        if how == "released":
            assert op.wait(LONG)
        assert lingers.wait(LONG)
        assert op.outcome is Outcome.SUCCEEDED
        op.reset()
        pool.do(op)
        assert second.reached.wait(LONG)
        goes_on.set()
        assert pool.do(Job()).wait(LONG)  # only the one that lingered can have done it
        assert not op.wait(0)
        assert op.outcome is Outcome.PENDING
        second.opened.set()
        assert op.wait(LONG)
        assert op.outcome is Outcome.SUCCEEDED


# Threads that wait


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_waiter_is_woken_by_the_next_end_if_done_resubmits_the_operation(when: str) -> None:
    """`done` as a notification: the operation is new, and has its second life, before the first one's waiters wake."""
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    goes_on, first = threading.Event(), Gate()

    class Telling(Job):
        def done(self) -> None:
            told.put(len(self.runs))
            if len(self.runs) == 1:
                assert goes_on.wait(LONG)

    with WorkerPool([JobWorker(), JobWorker()]) as pool:
        op = Telling(first)
        pool.do(op)
        assert first.reached.wait(LONG)
        if when == "before":
            waiters = start_threads(*[op.wait] * 3)
            for _ in range(50):  # they fall asleep meanwhile
                assert pool.do(Job()).wait(LONG)
        first.opened.set()
        assert told.get(timeout=LONG) == 1
        if when == "between":
            waiters = start_threads(*[op.wait] * 3)
            for _ in range(50):
                assert pool.do(Job()).wait(LONG)
        op.reset()
        pool.do(op)
        assert told.get(timeout=LONG) == 2
        assert waiters.join() == [True] * 3
        goes_on.set()
    assert op.outcome is Outcome.SUCCEEDED


@pytest.mark.stress
def test_the_end_of_one_submission_wakes_no_waiter_of_another(switch_interval: float) -> None:
    class Living(Job):
        begun = ended = 0

        def done(self) -> None:
            pass  # overridden, so that outcome and release are two steps

    class Ending(Worker[Living]):
        def process(self, op: Living) -> None:
            op.ended = op.begun

    op, stop = Living(), threading.Event()

    def wait() -> None:
        while not stop.is_set():
            life = op.begun
            assert op.wait(LONG)
            assert op.ended >= life

    with WorkerPool([Ending(), Ending()]) as pool:
        waiters = start_threads(*[wait] * 3)
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            op.begun += 1
            pool.do(op)
            wait_until(lambda: op.outcome is Outcome.SUCCEEDED)
            op.reset()
        stop.set()
        pool.do(op)
        waiters.join()


# A thread that is still in `cancel`


@pytest.mark.stress
def test_a_cancellation_is_counted_in_the_pool_of_the_cancelled_submission(switch_interval: float) -> None:
    """An operation goes to and fro between two pools while others cancel whatever life they find it in."""
    pools = [WorkerPool([JobWorker()]), WorkerPool([JobWorker()])]
    given = [0, 0]
    current = [Job()]
    stop = threading.Event()

    def cancel() -> None:
        while not stop.is_set():
            current[0].cancel()

    with pools[0], pools[1]:
        cancellers = start_threads(*[cancel] * 3)
        try:
            until = time.monotonic() + 0.4
            while time.monotonic() < until:
                for index, pool in enumerate(pools):
                    op = current[0]
                    if op.outcome is Outcome.CANCELLED:
                        op = current[0] = Job()
                    elif op.outcome is Outcome.SUCCEEDED:
                        op.reset()
                    with contextlib.suppress(OperationReused):  # it was cancelled while it was new
                        pool.do(op)
                        given[index] += 1
                    assert op.wait(LONG)
        finally:
            stop.set()
            cancellers.join()
    for pool, number in zip(pools, given, strict=True):
        stats = pool.stats()
        assert (stats.accepted, stats.succeeded + stats.cancelled, stats.queued) == (number, number, 0)


@pytest.mark.stress
def test_cancel_reset_and_do_of_one_operation_race(switch_interval: float) -> None:
    """Each of them does its deed wholly, or says that it did not."""
    op, stop = Job(), threading.Event()
    given = 0

    def cancel() -> None:
        while not stop.is_set():
            op.cancel()

    with WorkerPool([JobWorker()]) as pool:
        cancellers = start_threads(*[cancel] * 2)
        try:
            until = time.monotonic() + 0.4
            while time.monotonic() < until:
                can_reset(op)
                with contextlib.suppress(OperationReused):
                    pool.do(op)
                    given += 1
        finally:
            stop.set()
            cancellers.join()
        assert op.wait(LONG)
    stats = pool.stats()
    assert (stats.accepted, stats.succeeded + stats.cancelled, stats.queued) == (given, given, 0)
    assert stats.succeeded == len(op.runs)


# A life that never had a place


def test_an_operation_that_is_cancelled_while_its_do_is_blocked_can_be_reset() -> None:
    pool: WorkerPool[Job] = WorkerPool([JobWorker()], queue_size=1)
    with pool:
        with held(pool):
            queued = pool.do(Job())
            op = Job()
            caller = start_threads(lambda: pool.do(op))
            wait_until(lambda: not can_reset(op))  # it is accepted, and waits for room
            assert op.cancel()
            drainer = start_threads(pool.shutdown)
            assert caller.join() == [op]
            op.reset()
        assert drainer.join() == [[]]
    assert queued.outcome is Outcome.SUCCEEDED
    assert counts(pool.stats()) == {"succeeded": 2, "cancelled": 1}
    with pool:
        assert pool.do(op).wait(LONG)
    assert (op.outcome, len(op.runs)) == (Outcome.SUCCEEDED, 1)


def test_an_operation_that_is_cancelled_while_its_batch_is_refused_can_be_reset() -> None:
    class Telltale(Job):
        def __repr__(self) -> str:  # part of the error's text
            assert first.cancel()
            return "telltale"

    first, used = Job(), Telltale()
    with WorkerPool([JobWorker()]) as pool:
        assert pool.do(used).wait(LONG)
        with pytest.raises(OperationReused, match="telltale"):
            pool.execute([first, used])
        assert first.outcome is Outcome.CANCELLED
        assert counts(pool.stats()) == {"succeeded": 1, "cancelled": 1}
        first.reset()
        assert pool.do(first).wait(LONG)
    assert counts(pool.stats()) == {"succeeded": 2, "cancelled": 1}


# The class of an earlier life


def test_done_is_called_though_its_class_took_the_memory_of_another() -> None:
    """The worker remembers for the last class that it met whether `done` is overridden."""

    def one_without() -> int:
        class Plain(Operation):
            pass

        assert pool.do(Plain()).wait(LONG)
        return id(Plain)

    def one_with() -> int:
        calls = []

        class Told(Operation):
            def done(self) -> None:
                calls.append(self.outcome)

        assert pool.do(Told()).wait(LONG)
        assert calls == [Outcome.SUCCEEDED]
        return id(Told)

    class Idle(Worker[Operation]):
        def process(self, op: Operation) -> None:
            pass

    with WorkerPool([Idle()]) as pool:
        for _ in range(60):
            one_without()
            gc.collect(0)
            one_with()
            gc.collect(0)


def test_an_operation_is_reset_and_submitted_many_times_in_many_pools(seed: int) -> None:
    """All together: four threads pass their operations round two pools, and cancel some of them on the way."""
    pools: list[WorkerPool[Job]] = [WorkerPool([JobWorker(), JobWorker()]) for _ in range(2)]
    given, cancelled = [0, 0], [0, 0]
    lock = threading.Lock()

    def pass_round(number: int) -> None:
        op = Job(Retry(), None, Retry(delay=0.0005), None, Reject())
        for lap in range(60):
            index = (number + lap) % 2
            with lock:
                given[index] += 1
            stream = pools[index].execute([op]) if lap % 3 else None
            if stream is None:
                pools[index].do(op)
            if (seed >> (lap % 32)) & 1 and op.cancel():
                with lock:
                    cancelled[index] += 1
            assert op.wait(LONG)
            if stream is not None:
                assert list(stream) == [op]
            wait_until(lambda: can_reset(op))

    with pools[0], pools[1]:
        run_threads(*[lambda number=number: pass_round(number) for number in range(4)])
    for index, pool in enumerate(pools):
        stats = pool.stats()
        assert (stats.accepted, stats.cancelled) == (given[index], cancelled[index])
        assert stats.succeeded + stats.failed + stats.cancelled == stats.accepted
