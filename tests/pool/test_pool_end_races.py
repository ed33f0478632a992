"""Races at the end of a pool: every accepted operation ends, and no thread waits for one without end.

While the pool drains, after it broke or was given up, in the last worker that waits for its own work, when what the
log says cannot be said, and in the child of a fork that an operation made.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringmill import (
    BrokenPool,
    Operation,
    OperationReused,
    Outcome,
    PoolNotRunning,
    Reject,
    Retry,
    RingBuffer,
    Stream,
    Unroutable,
    Worker,
    WorkerPool,
)
from tests.pools import Gate, Step, counts, perform
from tests.threads import HOUR, LONG, start_threads, wait_until

SOON = 3.0  # seconds; the same, where a failure is put right afterwards

pytestmark = [pytest.mark.watchdog(60), pytest.mark.usefixtures("no_thread_is_left")]


class Job(Operation):
    """What is to happen to it, one step for each time that it is processed; `wanted`: who alone does not reject it."""

    def __init__(self, *script: Step, wanted: str = "") -> None:
        self.script = script
        self.wanted = wanted
        self.seen = ""  # the names of those that processed it
        self.rejected = ""  # and of those that rejected it


class JobWorker(Worker[Job]):
    def __init__(self, name: str = "a") -> None:
        self.name = name  # one letter
        self.cleans_up: Callable[[], Any] = lambda: None

    def process(self, op: Job) -> None:
        if op.wanted not in ("", self.name):
            op.rejected += self.name
            raise Reject
        op.seen += self.name
        step = op.script[len(op.seen) - 1] if len(op.seen) <= len(op.script) else None
        perform(step)

    def handle_error(self, error: BaseException, op: Job) -> None:
        pass

    def cleanup(self) -> None:
        self.cleans_up()


def start(*workers: JobWorker, **settings: Any) -> WorkerPool[Job]:
    pool: WorkerPool[Job] = WorkerPool(workers or [JobWorker()], name="mill", **settings)
    pool.start()
    return pool


def hold(pool: WorkerPool[Job], error: BaseException | None = None, wanted: str = "") -> tuple[Job, Gate]:
    """That worker is busy until the gate opens."""
    gate = Gate(error)
    op = pool.do(Job(gate, wanted=wanted))
    assert gate.reached.wait(LONG)
    return op, gate


# While the pool drains


@pytest.mark.parametrize("other", ["delayed", "running"])
def test_an_operation_cancelled_while_it_is_submitted_hides_no_other(other: str) -> None:
    """It counts as cancelled, and not yet as accepted, while its batch is being refused; and the pool drains."""

    class Telltale(Job):
        def __repr__(self) -> str:  # part of the error's text
            assert first.cancel()
            inside.set()
            assert goes_on.wait(LONG)
            return "telltale"

    inside, goes_on = threading.Event(), threading.Event()
    first, used = Job(), Telltale()
    pool = start(JobWorker("a"), JobWorker("b"))
    assert pool.do(used).wait(LONG)
    if other == "delayed":
        op = pool.do(Job(Retry(delay=0.05)))
        wait_until(lambda: op.tries == 1)
    else:
        op, gate = hold(pool, Retry())

    def hand_over() -> None:
        with pytest.raises(OperationReused):
            pool.execute([first, used])

    caller = start_threads(hand_over)
    assert inside.wait(LONG)
    drainer = start_threads(pool.shutdown)
    wait_until(lambda: "shutting down" in repr(pool))
    if other == "running":
        gate.opened.set()
    assert op.wait(LONG)
    assert (op.outcome, len(op.seen)) == (Outcome.SUCCEEDED, 2)
    goes_on.set()
    caller.join()
    assert drainer.join() == [[]]
    assert counts(pool.stats()) == {"succeeded": 2, "cancelled": 1}


def test_the_last_operation_becomes_unroutable_while_the_pool_drains() -> None:
    """The one that rejected it is asleep when the other one is retired: it must be told that all is over."""
    workers = [JobWorker("a"), JobWorker("b")]
    pool = start(*workers, max_restarts=0)
    crashing, gate = hold(pool, SystemExit(), "b")
    op = pool.do(Job(wanted="b"))
    wait_until(lambda: op.rejected == "a")
    cleaning = Gate()
    workers[1].cleans_up = cleaning
    drainer = start_threads(pool.shutdown)
    wait_until(lambda: "shutting down" in repr(pool))
    gate.opened.set()
    assert cleaning.reached.wait(LONG)
    assert isinstance(crashing.error, SystemExit)
    assert op.outcome is Outcome.PENDING  # it is not known yet whether b will start again
    cleaning.opened.set()
    assert drainer.join() == [[]]
    assert isinstance(op.error, Unroutable)
    assert counts(pool.stats()) == {"failed": 2}


@pytest.mark.stress
@pytest.mark.parametrize("how", ["read", "do"])
def test_operations_accepted_at_the_last_moment_are_finished(how: str, switch_interval: float) -> None:
    """The workers have nothing left to do while the pool closes its doors, one after the other."""

    class Slow(str):  # what the pool says to those before its doors takes a while to say
        def __repr__(self) -> str:
            time.sleep(0.002)
            return super().__repr__()

    pool: WorkerPool[Job] = WorkerPool([JobWorker(), JobWorker()], queue_size=1, name=Slow("mill"))
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        accepted: list[Job] = []
        came: list[Job] = []
        with pool:
            stream = pool.wrap(iter(Job, None), buffer=4) if how == "read" else None

            def call(
                stream: Stream[Job] | None = stream, came: list[Job] = came, accepted: list[Job] = accepted
            ) -> None:
                try:
                    if stream is not None:
                        came.extend(stream)
                    while True:
                        accepted.append(pool.do(Job()))
                except PoolNotRunning:
                    pass

            callers = start_threads(call, call)
            wait_until(lambda: pool.stats().succeeded > 2)
        callers.join()
        assert all(op.outcome is Outcome.SUCCEEDED for op in came + accepted)
        stats = pool.stats()
        assert (stats.accepted, stats.succeeded) == (len(came) + len(accepted),) * 2


# After the pool broke


@pytest.mark.parametrize("name", ["retry", "delay", "reject", "fail", "succeed"])
def test_an_operation_ends_whatever_happens_after_its_pool_broke(name: str) -> None:
    """The pool breaks because the only worker that is left waits for work that no worker will do; then it goes on."""

    def attempt() -> bool:
        """Whether the worker waited before the other one was lost: otherwise it is refused to wait."""
        error = {"retry": Retry(), "delay": Retry(delay=HOUR), "reject": Reject(), "fail": ValueError()}.get(name)
        entered, child = threading.Event(), Job()
        ticks = iter(range(20))

        def wait_for_child() -> None:
            pool.do(child)
            entered.set()
            child.wait()
            if error is not None:
                raise error

        pool = start(JobWorker("a"), JobWorker("b"), max_restarts=0)
        crashing, gate = hold(pool, SystemExit())
        stream = pool.execute([parent := Job(wait_for_child)])
        assert entered.wait(LONG)
        wait_until(lambda: next(ticks, None) is None)
        gate.opened.set()
        assert list(stream) == [parent]
        assert parent.wait(LONG)
        assert child.wait(LONG)
        assert pool.shutdown() == []
        assert isinstance(crashing.error, SystemExit)
        stats = pool.stats()
        assert (stats.accepted, stats.succeeded + stats.failed + stats.cancelled) == (3, 3)
        if not isinstance(child.error, BrokenPool):
            assert type(parent.error) is RuntimeError
            return False
        if name == "succeed":
            assert parent.check() is parent
        elif name == "fail":
            assert parent.error is error
        else:
            assert isinstance(parent.error, (BrokenPool, Unroutable) if name == "reject" else BrokenPool)
        return True

    assert any(attempt() for _ in range(50))


# A worker that waits for its own pool


WAITS = [
    pytest.param(lambda pool, op: pool.do(op).wait(LONG), id="wait"),
    pytest.param(lambda pool, op: pool.execute([op]).get(LONG), id="stream"),
    pytest.param(lambda pool, op: list(pool.wrap([op])), id="wrap"),
]


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("delay", [None, 0.005], ids=["at once", "delayed"])
def test_a_retry_does_not_wait_for_the_worker_that_waits_for_it(
    wait: Callable[[Any, Job], Any], delay: float | None
) -> None:
    with start(JobWorker("a"), JobWorker("b")) as pool:
        child = Job(Retry(delay=delay), Retry(delay=delay))
        parent = pool.do(Job(lambda: wait(pool, child)))
        assert parent.wait(LONG)
        assert parent.check() is parent
        assert child.outcome is Outcome.SUCCEEDED
        assert child.seen == 3 * ("b" if parent.seen == "a" else "a")


@pytest.mark.parametrize("wait", WAITS)
def test_a_rejected_operation_does_not_wait_for_the_worker_that_waits_for_it(wait: Callable[[Any, Job], Any]) -> None:
    """No other worker is left to take it: the wait is refused, or the operation is unroutable."""
    with start(JobWorker("a"), JobWorker("b")) as pool:
        child = Job()

        def parent_step() -> None:
            child.wanted = parent.seen  # rejected by the other one
            wait(pool, child)

        parent = Job(parent_step)
        pool.do(parent)
        try:
            assert parent.wait(SOON)
        finally:
            child.cancel()  # so that a failure is no hang
        assert isinstance(parent.error, RuntimeError) or isinstance(child.error, Unroutable)


# A log that cannot be written


class Gone(logging.Handler):
    """A handler that raises, for records whose text contains a word."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word
        self.struck = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self.word in record.getMessage() and "never read" not in record.msg:  # that comes from a finalizer
            self.struck += 1
            raise RuntimeError("the log is gone")


@pytest.fixture
def break_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Gone]]:
    """Call it with a word: from then on, what contains the word cannot be logged."""
    logger = logging.getLogger("ringmill")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # a thread that raises is what this is about
    handlers: list[Gone] = []

    def break_it(word: str) -> Gone:
        handlers.append(Gone(word))
        logger.addHandler(handlers[-1])
        return handlers[-1]

    yield break_it
    for handler in handlers:
        logger.removeHandler(handler)


def test_a_worker_whose_crash_cannot_be_logged_restarts(break_log: Callable[[str], Gone]) -> None:
    log = break_log("crashed")
    pool = start(JobWorker())
    lost, gate = hold(pool, SystemExit())
    stream = pool.execute([Job(), Job(Retry(delay=0.001)), Job()])
    gate.opened.set()
    assert [op.outcome for op in stream] == [Outcome.SUCCEEDED] * 3
    assert isinstance(lost.error, SystemExit)
    assert log.struck == 1
    stats = pool.stats()
    assert pool.shutdown() == []
    assert (stats.failed, stats.succeeded, stats.restarts) == (1, 3, 1)


@pytest.mark.parametrize("word", ["", "crashed", "retired"])
def test_the_others_work_on_when_the_loss_of_a_worker_cannot_be_logged(
    word: str, break_log: Callable[[str], Gone]
) -> None:
    log = break_log(word)
    pool = start(JobWorker("a"), JobWorker("b"), max_restarts=0)
    lost, gate = hold(pool, SystemExit())
    waiting = pool.do(Job(wanted=lost.seen))
    wait_until(lambda: bool(waiting.rejected))
    gate.opened.set()
    assert waiting.wait(LONG)  # it counts on the lost one no longer
    assert isinstance(waiting.error, Unroutable)
    assert isinstance(lost.error, SystemExit)
    wait_until(lambda: bool(log.struck))
    wait_until(lambda: sum(thread.name.startswith("mill") for thread in threading.enumerate()) == 1)
    assert "' running, " in repr(pool)
    jobs = [Job(), Job(Retry()), Job(Retry(delay=0.001)), Job(ValueError())]
    assert len(list(pool.execute(jobs))) == 4
    assert [op.outcome.name for op in jobs] == ["SUCCEEDED"] * 3 + ["FAILED"]
    assert pool.shutdown() == []
    with pool:
        assert pool.do(Job()).wait(LONG)


@pytest.mark.parametrize("hook", ["done", "increment_try", "equal", "cleanup"])
def test_an_error_of_a_hook_that_cannot_be_logged(hook: str, break_log: Callable[[str], Gone]) -> None:
    class Bad(Job):
        def done(self) -> None:
            if hook == "done":
                raise ValueError("in done")

        def increment_try(self) -> None:
            if hook == "increment_try":
                raise ValueError("in increment_try")

    class Rude(JobWorker):
        def equal(self, other: Worker[Any]) -> bool:
            if hook == "equal":
                raise ValueError("in equal")
            return super().equal(other)

    log = break_log(hook)
    workers = [Rude("a"), Rude("b")]
    pool = start(*workers)
    if hook == "cleanup":
        for worker in workers:
            worker.cleans_up = lambda: 1 / 0
    jobs = [Bad(Retry()) for _ in range(4)]
    stream = pool.execute(jobs)
    assert sorted(map(id, stream)) == sorted(map(id, jobs))
    assert all(op.wait(LONG) for op in jobs)
    assert all((op.outcome is Outcome.SUCCEEDED) == (op.error is None) for op in jobs)
    if hook == "done":
        assert all(op.check() is op for op in jobs)
    assert pool.shutdown() == []
    assert log.struck
    stats = pool.stats()
    assert (stats.accepted, stats.succeeded + stats.failed) == (4, 4)
    logging.getLogger("ringmill").removeHandler(log)
    for worker in workers:
        worker.cleans_up = lambda: None
    with pool:
        assert pool.do(Job()).wait(LONG)


def test_a_cancel_whose_done_cannot_be_logged(break_log: Callable[[str], Gone]) -> None:
    class Bad(Job):
        def done(self) -> None:
            raise ValueError("in done")

    log = break_log("done")
    pool = start(JobWorker())
    _, gate = hold(pool)
    stream = pool.execute(jobs := [Bad(), Bad()])
    waiters = start_threads(*[op.wait for op in jobs])
    new = Bad()
    assert new.cancel()
    assert new.wait(LONG)
    assert jobs[0].cancel()
    assert pool.shutdown(wait=False, cancel_pending=True) == [jobs[1]]
    assert waiters.join() == [True, True]
    gate.opened.set()
    assert sorted(map(id, stream)) == sorted(map(id, jobs))
    assert pool.shutdown() == []
    assert log.struck == 3


@pytest.mark.parametrize("hook", ["stuck", "interrupt"])
def test_streams_end_although_stuck_workers_cannot_be_logged(hook: str, break_log: Callable[[str], Gone]) -> None:
    class Deaf(JobWorker):
        def interrupt(self) -> None:
            if hook == "interrupt":
                raise ValueError("in interrupt")

    break_log(hook)
    pool = start(Deaf("a"))
    gate = Gate()
    stream = pool.execute([Job(), Job(gate)])
    assert gate.reached.wait(LONG)
    ended = start_threads(lambda: list_of(stream))
    try:
        assert pool.shutdown(timeout=0.01) == []
    except RuntimeError as error:
        assert "log" in str(error)  # noqa: PT017  # the caller may be told, if all the rest is done
    try:
        ended.threads[0].join(SOON)
        assert not ended.threads[0].is_alive()
        assert len(ended.join()[0]) == 1
    finally:
        gate.opened.set()
    pool.shutdown()


def list_of(stream: Stream[Job]) -> list[Job]:
    came: list[Job] = []
    with pytest.raises(PoolNotRunning):
        came.extend(stream)
    return came


# A broken or ended pool lets go


@pytest.mark.parametrize("end", ["broken", "given up", "shut down"])
def test_a_ring_is_usable_after_its_pool_has_ended(end: str) -> None:
    """What is put into it afterwards stays for others, and wakes no worker of that pool."""
    ring = RingBuffer[Job](2)
    pool = start(JobWorker(), max_restarts=0)
    stream = pool.wrap(ring)
    if end == "broken":
        crashing, gate = hold(pool, SystemExit())
        gate.opened.set()
        assert crashing.wait(LONG)
        assert isinstance(crashing.error, SystemExit)
        with pytest.raises(BrokenPool):
            stream.get(LONG)
    elif end == "given up":
        _, gate = hold(pool)
        assert pool.shutdown(timeout=0) == []
        gate.opened.set()
    pool.shutdown()
    getter = start_threads(lambda: ring.get(timeout=LONG))
    op = Job()
    ring.put(op)
    assert getter.join() == [op]
    ring.put(op)
    with start(JobWorker()) as other:
        assert other.wrap(ring).get(LONG) is op


# The child of a fork that an operation made

FORKING = """
    import os, sys, threading, warnings, time
    from ringmill import Operation, Retry, Worker, WorkerPool
    warnings.simplefilter("ignore", DeprecationWarning)  # there are threads, that is the point

    class Job(Operation):
        def __init__(self, number):
            self.number = number
        def done(self):
            say("done", self.number)

    parent = os.getpid()

    def say(*words):
        os.write(1, (" ".join(map(str, ["parent" if os.getpid() == parent else "child", *words])) + "\\n").encode())

    class Forking(Worker):
        def process(self, op):
            say("process", op.number)
            if op.number == 1:
                self.child = os.fork()
                if self.child == 0:
                    {child}
        def handle_error(self, error, op):
            say("handle_error", op.number)
        def cleanup(self):
            say("cleanup")

    pool = WorkerPool([Forking(){more}])
    pool.start()
    stream = pool.execute(map(Job, range(4)))
    assert sorted(op.number for op in stream) == [0, 1, 2, 3]
    pool.shutdown()
    child = [worker.child for worker in pool.workers if hasattr(worker, "child")][0]
    deadline = time.monotonic() + 10
    while os.waitpid(child, os.WNOHANG) == (0, 0):  # its only thread ended, so it does
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            say("killed its child")
        time.sleep(0.001)
    say("ended")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("child", "more"),
    [
        ("pass", ""),
        ("pass", ", Forking()"),
        ("raise ValueError", ""),
        ("raise Retry", ""),
        ("raise Retry", ", Forking()"),
        ("raise Retry(delay=0.01)", ""),
        ("raise SystemExit", ""),
    ],
)
def test_a_child_that_an_operation_forks_does_none_of_the_work(child: str, more: str) -> None:
    program = textwrap.dedent(FORKING.format(child=child, more=more))
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG, cwd="/", check=False
    )
    lines = ended.stdout.splitlines()
    assert lines[-1:] == ["parent ended"], ended.stderr
    assert sorted(line for line in lines if "done" in line) == [f"parent done {number}" for number in range(4)]
    assert [line for line in lines if line.startswith("child")] == []
    assert "parent killed its child" not in lines
