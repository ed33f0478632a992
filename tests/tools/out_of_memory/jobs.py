"""What the paths run: operations and workers that come to the points of a shortage, and the end of a path."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from ringmill import Closed, Operation, Outcome, Reject, Retry, RingBuffer, Worker, WorkerPool
from tests.pools import check_at_rest
from tests.tools.out_of_memory.shortage import LIMIT, OUTCOMES, Shortage, Waiter, attempt, read, threads_of, wait_for

Act = Callable[["Hand", "Job"], None]


class Job(Operation):
    """An operation that its worker runs by `act`."""

    def __init__(self, trial: Shortage, act: Act) -> None:
        self.trial, self.act = trial, act
        trial.watch(self)


class Told(Job):
    """One with both notifications overridden."""

    def increment_try(self) -> None:
        self.trial.at("increment_try")
        super().increment_try()

    def done(self) -> None:
        self.trial.at("done")
        super().done()


class Raises(Job):
    """One whose notifications raise."""

    def increment_try(self) -> None:
        self.trial.at("increment_try")
        raise ValueError("increment_try")

    def done(self) -> None:
        self.trial.at("done")
        raise ValueError("done")


class Hand(Worker[Any]):
    retry_on = OSError

    def __init__(self, trial: Shortage, index: int) -> None:
        self.trial, self.index = trial, index

    def init(self) -> None:
        if self.trial.live:
            self.trial.at("init")

    def process(self, op: Job) -> None:
        op.act(self, op)

    def cleanup(self) -> None:
        self.trial.at("cleanup")


class Handling(Hand):
    def handle_error(self, error: BaseException, op: Job) -> None:
        self.trial.at("handle_error")


class Broken(Hand):
    def handle_error(self, error: BaseException, op: Job) -> None:
        self.trial.at("handle_error")
        raise ValueError("the worker is broken")


class Alike(Hand):
    def equal(self, other: Any) -> bool:
        self.trial.at("equal")
        return True


class Crash(BaseException):
    pass


class OddRetry(Retry):
    def __init__(self, *args: Any) -> None:
        pass

    __slots__ = ()


class Odd(Exception):
    """No attribute of it can be read."""

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise ValueError("__traceback__")

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise ValueError("__class__")

    def __repr__(self) -> str:
        raise ValueError("repr")


def ok(hand: Hand, op: Job) -> None:
    op.trial.at("process")


def fails(hand: Hand, op: Job) -> None:
    op.trial.at("process")
    raise ValueError("it was to fail")


def retries(hand: Hand, op: Job) -> None:
    if op.tries < 2:
        op.trial.at("process" if op.tries == 0 else "second try")
        raise Retry
    op.trial.at("last try")


def retries_late(hand: Hand, op: Job) -> None:
    if op.tries < 2:
        op.trial.at("process" if op.tries == 0 else "second try")
        raise Retry(delay=0.001)
    op.trial.at("last try")


def retries_on(hand: Hand, op: Job) -> None:
    if op.tries < 1:
        op.trial.at("process")
        raise OSError("it was to be retried")


def never_ends(hand: Hand, op: Job) -> None:
    op.trial.at("process")
    raise Retry


def rejects_first(hand: Hand, op: Job) -> None:
    if hand.index == 0:
        op.trial.at("process")
        raise Reject
    op.trial.at("other worker")


def rejects(hand: Hand, op: Job) -> None:
    op.trial.at("process")
    raise Reject


def crashes(hand: Hand, op: Job) -> None:
    op.trial.at("process")
    raise Crash


def odd(hand: Hand, op: Job) -> None:
    op.trial.at("process")
    raise Odd


def odd_retry(hand: Hand, op: Job) -> None:
    if op.tries < 1:
        op.trial.at("process")
        raise OddRetry("odd")


class Gate(Job):
    """Keeps its worker until it is opened."""

    def __init__(self, trial: Shortage) -> None:
        super().__init__(trial, stands)
        self.reached, self.opened = RingBuffer[None](1), RingBuffer[None](1)

    def await_worker(self) -> None:
        self.reached.get(timeout=LIMIT)

    def open(self) -> None:
        self.opened.close()


def stands(hand: Hand, op: Any) -> None:
    op.reached.put_nowait(None)
    with contextlib.suppress(Closed):
        op.opened.get(timeout=LIMIT)
    op.trial.at("gate")


def pool_of(trial: Shortage, count: int = 2, kind: type[Hand] = Hand, **options: Any) -> WorkerPool[Any]:
    options = {"restart_pause": 0.0, "max_restarts": None} | options
    return WorkerPool([kind(trial, index) for index in range(count)], **options)


def finish(trial: Shortage, pool: WorkerPool[Any], ops: list[Any], waiters: Iterable[Waiter] = ()) -> list[Any]:
    """The end of a path: no more memory fails. Returns the operations that were accepted.

    Those that were not are new: the pool, started again, accepts them.
    """
    trial.end()
    pool.shutdown()
    accepted = [op for op in ops if op.outcome is not Outcome.PENDING]
    for op in accepted:
        assert op.wait(0), f"ended, and no waiter was told: {op}"
        assert (op.outcome is Outcome.FAILED) == (op.error is not None)
    stats = pool.stats()
    check_at_rest(stats)
    ledger = {name: sum([op.outcome is outcome for op in accepted]) for outcome, name in OUTCOMES.items()}
    assert {name: getattr(stats, name) for name in ledger} == ledger, (stats, ledger)
    assert stats.accepted == len(accepted), (stats, ledger)
    deadline = time.monotonic() + LIMIT
    while threads_of(pool.name):  # one that draws a source may end a moment later
        assert time.monotonic() < deadline, threads_of(pool.name)
        time.sleep(0.001)
    pool.start()
    again = [op for op in ops if op.outcome is Outcome.PENDING]
    for op in [*again, Job(trial, ok)]:
        pool.do(op)
        assert op.wait(LIMIT)
        assert op.outcome is not Outcome.PENDING
        _ = op.error
    assert op.outcome is Outcome.SUCCEEDED
    pool.shutdown()
    for waiter in waiters:
        waiter.check()
    assert not threads_of(pool.name), threads_of(pool.name)
    return accepted


def runs(trial: Shortage, ops: list[Any], pool: WorkerPool[Any]) -> None:
    """Has the pool run the operations, in one stream."""
    pool.start()
    trial.live = True
    waiter = Waiter(ops[0])
    stream: list[Any] = [None]

    def section() -> None:
        trial.at("submit")
        stream[0] = pool.execute(ops)
        wait_for(ops)

    attempt(trial, section)
    read(stream[0], ops)
    accepted = finish(trial, pool, ops, [waiter])
    assert len(accepted) in (0, len(ops)), "some were accepted, and some were not"


def each(trial: Shortage, *acts: Act, kind: type[Job] = Job) -> list[Any]:
    return [kind(trial, act) for act in acts]
