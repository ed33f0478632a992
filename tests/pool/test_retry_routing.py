"""Which worker gets a retried operation: none that tried or rejected it, and an idle one that may take it is woken."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ringmill import Operation, Outcome, Reject, Retry, Unroutable, Worker, WorkerPool
from tests.pools import counts
from tests.threads import HOUR, LONG, run_threads, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


Step = BaseException | Callable[["Actor"], Any] | None


class Job(Operation):
    """What is to happen to it, one step a time; `wanted`: the only worker that does not reject it."""

    def __init__(self, *script: Step, wanted: str = "") -> None:
        self.script = script
        self.wanted = wanted
        self.seen = ""  # the names of those that processed it
        self.rejected = ""  # and of those that rejected it


class Actor(Worker[Job]):
    def __init__(self, name: str, group: str = "") -> None:
        self.name = name  # one letter
        self.group = group or name
        self.order: list[Job] = []
        self.asked_on: set[int] = set()
        self.handled: list[tuple[type[BaseException], Job]] = []
        self.thread = 0

    def init(self) -> None:
        self.thread = threading.get_ident()

    def process(self, op: Job) -> None:
        self.order.append(op)
        if op.wanted not in ("", self.name):
            op.rejected += self.name
            raise Reject
        op.seen += self.name
        if len(op.seen) <= len(op.script):
            step = op.script[len(op.seen) - 1]
            if isinstance(step, BaseException):
                raise step
            if step is not None:
                step(self)

    def equal(self, other: Worker[Any]) -> bool:
        self.asked_on.add(threading.get_ident())
        return isinstance(other, Actor) and other.group == self.group

    def handle_error(self, error: BaseException, op: Job) -> None:
        self.handled.append((type(error), op))


class Gate:
    """A step that holds its worker until it is opened; then does what follows."""

    def __init__(self, then: Step = None) -> None:
        self.then = then
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, _: Actor) -> None:
        self.reached.set()
        assert self.opened.wait(LONG)
        if isinstance(self.then, BaseException):
            raise self.then


def make_workers(names: str) -> list[Actor]:
    return [Actor(name) for name in names]


@contextmanager
def held(pool: WorkerPool[Job], name: str, then: Step = None) -> Iterator[Gate]:
    """The worker of that name is busy."""
    gate = Gate(then)
    pool.do(Job(gate, wanted=name))
    assert gate.reached.wait(LONG)
    try:
        yield gate
    finally:
        gate.opened.set()


def look_around(pool: WorkerPool[Job], name: str) -> None:
    """That worker looks for work several times: what it does not take now, it may not take."""
    for _ in range(4):
        assert pool.do(Job(wanted=name)).wait(LONG)


# Another worker, while there is one


@pytest.mark.parametrize("delay", [None, 0.0005], ids=["at once", "delayed"])
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_each_worker_tries_an_operation_once_before_one_tries_it_twice(workers: int, delay: float | None) -> None:
    actors = make_workers("abcde"[:workers])
    with WorkerPool(actors, max_tries=None) as pool:
        jobs = [Job(*[Retry(delay=delay)] * (workers + 1)) for _ in range(50)]
        assert len(list(pool.execute(jobs))) == 50
    for op in jobs:
        assert len(set(op.seen[:workers])) == workers, op.seen  # each once
        assert len(op.seen) == workers + 2  # then it starts over
        assert (op.outcome, op.tries) == (Outcome.SUCCEEDED, workers + 1)


def test_the_very_first_operation_after_start_goes_to_another_worker() -> None:
    """All workers are ready when `start` returns, so there is another one."""
    for _ in range(50):
        with WorkerPool(make_workers("ab")) as pool:
            op = pool.do(Job(Retry()))
            assert op.wait(LONG)
        assert set(op.seen) == {"a", "b"}


def test_equal_workers_count_as_one() -> None:
    actors = [Actor("a", "left"), Actor("b", "left"), Actor("c", "left"), Actor("d", "right")]
    sides = {actor.name: actor.group for actor in actors}
    with WorkerPool(actors) as pool:
        jobs = [Job(Retry()) for _ in range(100)]
        assert len(list(pool.execute(jobs))) == 100
    assert all({sides[name] for name in op.seen} == {"left", "right"} for op in jobs)
    for actor in actors:
        assert actor.asked_on <= {actor.thread}
    assert any(actor.asked_on for actor in actors)


def test_a_retry_starts_over_at_once_if_all_workers_are_equal() -> None:
    actors = [Actor("a", "same"), Actor("b", "same")]
    with WorkerPool(actors) as pool:
        op = pool.do(Job(*[Retry()] * 5))
        assert op.wait(LONG)
    assert len(op.seen) == 6


def test_a_single_worker_retries_its_own_operations() -> None:
    with WorkerPool(make_workers("a")) as pool:
        op = pool.do(Job(*[Retry()] * 5))
        assert op.wait(LONG)
    assert op.seen == "aaaaaa"


@pytest.mark.parametrize("delay", [None, 0.0005], ids=["at once", "delayed"])
def test_a_retry_waits_for_a_busy_worker_that_has_not_tried_it(delay: float | None) -> None:
    with WorkerPool(make_workers("ab")) as pool:
        with held(pool, "b"):
            op = pool.do(Job(Retry(delay=delay)))
            wait_until(lambda: op.tries == 1 and not pool.stats().delayed)
            look_around(pool, "a")  # it is idle, and does not take it
            assert (op.seen, op.outcome) == ("a", Outcome.PENDING)
        assert op.wait(LONG)
    assert op.seen == "ab"


def test_the_same_worker_retries_when_the_other_worker_pauses() -> None:
    """A worker in a restart pause is not alive."""
    with WorkerPool(make_workers("ab"), restart_pause=HOUR) as pool:
        assert pool.do(Job(SystemExit(), wanted="b")).wait(LONG)  # restarts at once
        with held(pool, "b", SystemExit()):  # then pauses
            op = pool.do(Job(Retry()))
            wait_until(lambda: op.tries == 1)
            look_around(pool, "a")
            assert op.seen == "a"
        assert op.wait(LONG)
    assert op.seen == "aa"


def test_the_same_worker_retries_when_the_other_worker_is_retired() -> None:
    with WorkerPool(make_workers("ab"), max_restarts=0) as pool:
        with held(pool, "b", SystemExit()):
            op = pool.do(Job(Retry()))
            wait_until(lambda: op.tries == 1)
        assert op.wait(LONG)
    assert op.seen == "aa"


# Rejected


def test_reject_counts_no_try_and_no_worker_rejects_twice() -> None:
    actors = make_workers("abcdef")
    with WorkerPool(actors, max_tries=1) as pool:
        jobs = [Job(wanted="abcdef"[k % 6]) for k in range(300)]
        assert len(list(pool.execute(jobs))) == 300
        stats = pool.stats()
    for op in jobs:
        assert (op.outcome, op.tries, op.seen) == (Outcome.SUCCEEDED, 0, op.wanted)
        assert len(set(op.rejected)) == len(op.rejected)
    assert (stats.tries, counts(stats)) == (0, {"succeeded": 300})


def test_an_operation_that_all_have_rejected_is_unroutable() -> None:
    actors = make_workers("abc")
    with WorkerPool(actors) as pool:
        jobs = [Job(wanted="z") for _ in range(20)]
        assert len(list(pool.execute(jobs))) == 20
    for op in jobs:
        assert (op.outcome, op.tries, sorted(op.rejected)) == (Outcome.FAILED, 0, ["a", "b", "c"])
        assert isinstance(op.error, Unroutable)
        last = actors["abc".index(op.rejected[-1])]
        assert [actor.handled.count((Unroutable, op)) for actor in actors] == [int(actor is last) for actor in actors]


def test_equal_workers_each_may_reject() -> None:
    """`equal` is about trying again, not about whose an operation is."""
    with WorkerPool([Actor("a", "same"), Actor("b", "same")]) as pool:
        jobs = [Job(wanted="ab"[k % 2]) for k in range(50)]
        assert len(list(pool.execute(jobs))) == 50
    assert all(op.seen == op.wanted for op in jobs)


def test_retried_by_the_only_worker_that_does_not_reject_it() -> None:
    with WorkerPool(make_workers("abc")) as pool:
        jobs = [Job(*[Retry()] * 5, wanted="b") for _ in range(20)]
        assert len(list(pool.execute(jobs))) == 20
    assert all((op.seen, op.tries, op.outcome) == ("bbbbbb", 5, Outcome.SUCCEEDED) for op in jobs)
    assert all(op.rejected in ("", "a", "c", "ac", "ca") for op in jobs)


def test_a_worker_in_a_restart_pause_still_counts() -> None:
    with WorkerPool(make_workers("ab"), restart_pause=HOUR) as pool:
        for _ in range(2):
            assert pool.do(Job(SystemExit(), wanted="b")).wait(LONG)  # from the second on, it pauses
        op = pool.do(Job(wanted="b"))
        wait_until(lambda: op.rejected == "a")
        look_around(pool, "a")
        assert op.outcome is Outcome.PENDING
        assert pool.shutdown(cancel_pending=True) == [op]
    assert (op.rejected, op.outcome) == ("a", Outcome.CANCELLED)


def test_a_retired_worker_counts_no_longer() -> None:
    actors = make_workers("ab")
    with WorkerPool(actors, max_restarts=0) as pool:
        with held(pool, "b", SystemExit()):
            waiting = pool.execute(jobs := [Job(wanted="b") for _ in range(5)])
            wait_until(lambda: all(op.rejected == "a" for op in jobs))
            look_around(pool, "a")
            assert all(op.outcome is Outcome.PENDING for op in jobs)
        assert len(list(waiting)) == 5  # when b is retired, they fail
        assert all(isinstance(op.error, Unroutable) for op in jobs)
        late = pool.do(Job(wanted="b"))
        assert late.wait(LONG)
        assert isinstance(late.error, Unroutable)
        assert (Unroutable, late) in actors[0].handled


def test_a_delayed_operation_without_an_eligible_worker_is_unroutable() -> None:
    """Rejected by one, delayed by the other, which is retired meanwhile."""
    with WorkerPool(make_workers("ab"), max_restarts=0) as pool:
        with held(pool, "b"):
            op = pool.do(Job(Retry(delay=0.05), wanted="b"))
            wait_until(lambda: op.rejected == "a")
        wait_until(lambda: op.tries == 1)
        assert pool.do(Job(SystemExit(), wanted="b")).wait(LONG)
        assert op.wait(LONG)
        assert isinstance(op.error, Unroutable) or op.seen == "bb"  # the latter if b was slow to crash


@pytest.mark.stress
def test_rejection_races_with_retirement(switch_interval: float) -> None:
    """One looks who is left and puts it back for him, while he is retired."""
    for _ in range(40):
        with WorkerPool(make_workers("abc"), max_restarts=0) as pool, held(pool, "c", SystemExit()) as gate:
            jobs = [Job(wanted="c") for _ in range(30)]
            stream = pool.execute(jobs)
            run_threads(gate.opened.set, lambda pool=pool: pool.do(Job()))
            assert len(list(stream)) == 30
        assert all(op.rejected and isinstance(op.error, Unroutable) for op in jobs)


def test_those_that_are_unroutable_make_room_for_a_caller() -> None:
    with WorkerPool(make_workers("ab"), max_restarts=0, queue_size=1) as pool:
        with held(pool, "b", SystemExit()):
            op = pool.do(Job(wanted="b"))
            wait_until(lambda: op.rejected == "a")  # it fills the queue
            caller = start_threads(lambda: pool.do(Job()))
        assert caller.join()[0].wait(LONG)
        assert op.wait(LONG)
        assert isinstance(op.error, Unroutable)


def test_an_operation_without_a_repr_is_unroutable_too() -> None:
    class Nameless(Job):
        def __repr__(self) -> str:
            raise RuntimeError("no name")

    with WorkerPool(make_workers("ab"), max_restarts=0) as pool:
        with held(pool, "b", SystemExit()):
            stream = pool.execute(jobs := [Nameless(wanted="b") for _ in range(3)])
            wait_until(lambda: all(op.rejected == "a" for op in jobs))
        assert len(list(stream)) == 3
        assert all(op.outcome is Outcome.FAILED and op.error is not None for op in jobs)


# Woken, and not starved


@pytest.mark.parametrize("workers", [2, 8])
def test_a_retry_wakes_a_worker_that_may_take_it(workers: int, seed: int, switch_interval: float) -> None:
    """All sleep between two rounds; a wake-up that goes to one that may not take it leaves it lying forever."""
    rng = random.Random(seed)
    names = "abcdefgh"[:workers]
    with WorkerPool(make_workers(names)) as pool:
        for _ in range(150):
            wanted = rng.choice(names)
            script = [Retry()] * rng.randrange(2)
            op = pool.do(Job(*script, wanted=wanted))
            assert op.wait(LONG)
            assert op.seen == wanted * (1 + len(script))


def test_an_eligible_worker_is_woken_while_others_are_busy() -> None:
    with WorkerPool(make_workers("abcd")) as pool, held(pool, "b"), held(pool, "c"):
        for _ in range(100):
            op = pool.do(Job(Retry()))
            assert op.wait(LONG)
            assert set(op.seen) == {"a", "d"}


def test_retries_go_first_but_not_twice_in_a_row() -> None:
    """The priority between the two, as stated in run.pyx, with one worker."""
    worker = Actor("a")
    with WorkerPool([worker]) as pool:
        with held(pool, "a"):
            old = pool.do(Job(*[Retry()] * 3))
            new = [pool.do(Job()) for _ in range(4)]
        assert all(op.wait(LONG) for op in [old, *new])
    order = "".join("R" if op is old else "N" for op in worker.order[1:])
    assert order == "RRNRNRNN"  # the first R is new itself
    assert [op for op in worker.order[1:] if op is not old] == new


@pytest.mark.parametrize("workers", [1, 2])
def test_neither_starves_the_other(workers: int) -> None:
    """Ops that fail for as long as new work waits, and new work that comes for as long as they fail."""
    stop = threading.Event()

    def again(_: Actor) -> None:
        if not stop.is_set():
            raise Retry

    with WorkerPool(make_workers("ab"[:workers]), max_tries=None, queue_size=64) as pool:
        stubborn = [pool.do(Job(*[again] * 1_000_000)) for _ in range(10)]
        for _ in range(20):
            assert all(op.wait(LONG) for op in pool.execute([Job() for _ in range(50)]))  # new work is done
            tries = [op.tries for op in stubborn]
            wait_until(lambda tries=tries: all(op.tries > before for op, before in zip(stubborn, tries, strict=True)))
        flood = pool.wrap((Job() for _ in range(10**9)), buffer=8)
        before = [op.tries for op in stubborn]
        for op in flood:  # new work is always there
            assert op.outcome is Outcome.SUCCEEDED
            if all(op.tries > tries + 5 for op, tries in zip(stubborn, before, strict=True)):
                break
        flood.close()
        stop.set()
        assert all(op.wait(LONG) for op in stubborn)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_full_pool_whose_workers_all_retry_and_submit_makes_progress(workers: int, switch_interval: float) -> None:
    callers, each = 4, 30
    children: list[Job] = []

    def submit(_: Actor) -> None:
        children.append(pool.do(Job(Retry())))  # from a worker
        raise Retry

    with WorkerPool(make_workers("abc"[:workers]), queue_size=1) as pool:
        shares = run_threads(*[lambda: [pool.do(Job(submit, submit)) for _ in range(each)] for _ in range(callers)])
        jobs = [op for share in shares for op in share]
        assert all(op.wait(LONG) for op in jobs)
        assert all(op.wait(LONG) for op in children)
        stats = pool.stats()
    assert len(children) == 2 * callers * each
    assert Counter(op.tries for op in jobs) == {2: callers * each}
    assert (stats.accepted, counts(stats)) == (3 * callers * each, {"succeeded": 3 * callers * each})
