"""Whatever a hook raises: no hang, no lost operation, no leaked thread, and the counters agree; then under load.

RINGMILL_LONG=1 runs the long versions: 100,000 operations, 1,000 starts, a million failures.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from ringmill import Operation, Outcome, Reject, Retry, Stream, Worker, WorkerPool
from tests.threads import LONG, start_threads, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

LONG_RUN = bool(os.environ.get("RINGMILL_LONG"))

KINDS = [ValueError, KeyboardInterrupt, SystemExit, MemoryError, RecursionError]
HOOKS = [
    *["init", "process", "handle_error", "equal", "cleanup", "backoff", "retry_on"],  # the worker's
    *["source", "source, thread"],  # its __next__
    *["increment_try", "done", "repr"],  # the operation's
]
WORDS = ["succeed", "fail", "retry", "reject", "crash", "delay"]


class Trouble:
    """Raises in one hook, about every other time; not before it is armed, since `start` needs its inits."""

    def __init__(self, hook: str, kind: type[BaseException], seed: int) -> None:
        self.hook = hook
        self.kind = kind
        self.rng = random.Random(seed)
        self.armed = False
        self.visits: list[None] = []  # appending is atomic
        self.struck: list[None] = []

    def visit(self, hook: str) -> None:
        if not self.armed or hook != self.hook:
            return
        self.visits.append(None)
        if self.rng.random() < 0.5 or (len(self.visits) > 1 and not self.struck):
            self.struck.append(None)
            raise self.kind(f"from {hook}")


class Job(Operation):
    def __init__(self, trouble: Trouble, *script: str) -> None:
        self.trouble = trouble
        self.script = script
        self.turn = 0
        self.ends: list[Outcome] = []

    def increment_try(self) -> None:
        self.trouble.visit("increment_try")

    def done(self) -> None:
        self.ends.append(self.outcome)
        self.trouble.visit("done")
        super().done()

    def __repr__(self) -> str:
        self.trouble.visit("repr")
        return super().__repr__()


class Victim(Worker[Job]):
    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble
        self.inits = self.cleanups = 0

    def init(self) -> None:
        self.inits += 1
        self.trouble.visit("init")

    def process(self, op: Job) -> None:
        self.trouble.visit("process")
        word = op.script[op.turn] if op.turn < len(op.script) else "succeed"
        op.turn += 1
        match word:
            case "fail":
                raise LookupError("as asked")
            case "retry":
                raise Retry
            case "delay":
                raise Retry(delay=0.0005)
            case "reject":
                raise Reject
            case "crash":
                raise GeneratorExit

    @property
    def retry_on(self) -> tuple[type[BaseException], ...]:  # type: ignore[override]
        self.trouble.visit("retry_on")
        return (ConnectionError,)

    def handle_error(self, error: BaseException, op: Job) -> None:
        self.trouble.visit("handle_error")

    def equal(self, other: Worker[Any]) -> bool:
        self.trouble.visit("equal")
        return self is other

    def cleanup(self) -> None:
        self.cleanups += 1
        self.trouble.visit("cleanup")


class Source:
    """Gives so many operations, if nothing goes wrong."""

    def __init__(self, jobs: list[Job], hook: str) -> None:
        self.jobs = jobs
        self.given: list[Job] = []
        self.hook = hook

    def __iter__(self) -> Iterator[Job]:
        return self

    def __next__(self) -> Job:
        if len(self.given) == len(self.jobs):
            raise StopIteration
        if self.given:
            self.given[0].trouble.visit(self.hook)
        self.given.append(self.jobs[len(self.given)])
        return self.given[-1]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """pytest keeps what is logged, with its errors; here that would be thousands."""
    caplog.set_level(logging.CRITICAL + 1, "ringmill")


def read_all(stream: Stream[Job], kind: type[BaseException]) -> tuple[list[Job], int]:
    """Everything that comes out, and how often the source's error was raised."""
    came: list[Job] = []
    raised = 0
    while True:
        try:
            came.append(next(stream))
        except StopIteration:
            return came, raised
        except kind:
            raised += 1
            if len(came) == stream.total:
                return came, raised


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_hook_raises(hook: str, kind: type[BaseException], seed: int) -> None:
    trouble = Trouble(hook, kind, seed)
    rng = random.Random(seed)
    workers = [Victim(trouble) for _ in range(3)]

    def make(count: int) -> list[Job]:
        return [Job(trouble, *rng.choices(WORDS, k=rng.randrange(4))) for _ in range(count)]

    def backoff(tries: int) -> float:
        trouble.visit("backoff")
        return 0.0

    pool = WorkerPool(workers, queue_size=4, max_tries=2, backoff=backoff, max_restarts=None, restart_pause=0)
    pool.start()
    trouble.armed = True
    singles, batch = make(20), make(20)
    sources = [Source(make(20), "source"), Source(make(20), "source, thread")]
    streams = [pool.wrap(sources[0], buffer=3), pool.wrap(sources[1], buffer=3, drawn_by="thread")]
    readers = start_threads(*[lambda stream=stream: read_all(stream, kind) for stream in streams])
    stream = pool.execute(batch)
    for op in singles:
        pool.do(op)
    results = readers.join()
    assert sorted(map(id, stream)) == sorted(map(id, batch))
    assert all(op.wait(LONG) for op in singles)
    at_rest = pool.stats()
    assert pool.shutdown() == []
    trouble.armed = False

    for source, (came, raised) in zip(sources, results, strict=True):
        assert sorted(map(id, came)) == sorted(map(id, source.given))
        assert bool(raised) == (len(source.given) < len(source.jobs))
    jobs = [*singles, *batch, *sources[0].given, *sources[1].given]
    outcomes = Counter(op.outcome for op in jobs)
    assert all(op.wait(0) and op.ends == [op.outcome] for op in jobs)
    assert outcomes.keys() <= {Outcome.SUCCEEDED, Outcome.FAILED}
    assert all((op.error is None) == (op.outcome is Outcome.SUCCEEDED) for op in jobs)
    assert (at_rest.queued, at_rest.running, at_rest.delayed, at_rest.cancelled) == (0, 0, 0, 0)
    assert at_rest.accepted == len(jobs)
    assert (at_rest.succeeded, at_rest.failed) == (outcomes[Outcome.SUCCEEDED], outcomes[Outcome.FAILED])
    assert all(worker.inits == worker.cleanups for worker in workers)
    assert sum(worker.inits for worker in workers) >= 3 + at_rest.restarts
    assert trouble.struck or len(trouble.visits) < 2
    with pool:  # and it starts again
        assert all(op.outcome is Outcome.SUCCEEDED for op in pool.execute([Job(trouble) for _ in range(5)]))


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_visited(hook: str) -> None:
    """Else the test above proves nothing. Raises nothing, only looks where such a workload leads."""
    visited: set[str] = set()

    class Look(Trouble):
        def visit(self, hook: str) -> None:
            visited.add(hook)

    trouble = Look(hook, ValueError, 0)
    pool = WorkerPool([Victim(trouble), Victim(trouble)], max_tries=2, backoff=lambda _: trouble.visit("backoff") or 0)
    with pool:
        jobs = [Job(trouble, word, word, word) for word in WORDS]
        assert len(list(pool.execute(jobs))) == len(WORDS)
        for drawn_by in ("reader", "thread"):
            name = "source" if drawn_by == "reader" else "source, thread"
            source = Source([Job(trouble), Job(trouble)], name)
            assert len(list(pool.wrap(source, drawn_by=drawn_by))) == 2  # type: ignore[arg-type]
        assert all(op.error is None or str(op.error) is not None for op in jobs)
    assert hook in visited


# In numbers


@pytest.mark.stress
def test_a_hundred_workers_of_which_half_crash_at_random(seed: int) -> None:
    total = 100_000 if LONG_RUN else 20_000
    crashed: list[int] = []

    class Fragile(Worker[Operation]):
        def __init__(self, index: int) -> None:
            self.rng = random.Random(seed + index) if index % 2 else None
            self.index = index

        def process(self, op: Operation) -> None:
            if self.rng is not None and self.rng.random() < 0.02:
                crashed.append(self.index)
                raise SystemExit
            if self.rng is not None and self.rng.random() < 0.02:
                raise Retry

    came: set[int] = set()
    jobs: list[Operation] = []

    def source() -> Iterator[Operation]:
        for _ in range(total // 2):
            jobs.append(Operation())
            yield jobs[-1]

    workers = [Fragile(index) for index in range(100)]
    with WorkerPool(workers, max_restarts=None, restart_pause=0, max_tries=None) as pool:
        jobs += (batch := [Operation() for _ in range(total // 2)])
        batch_stream = pool.execute(batch)
        for stream in (pool.wrap(source(), buffer=256), batch_stream):
            for op in stream:
                assert id(op) not in came
                came.add(id(op))
        wait_until(lambda: pool.stats().restarts == len(crashed))
        stats = pool.stats()
    assert came == set(map(id, jobs))
    assert len(jobs) == total
    assert sum(isinstance(op.error, SystemExit) for op in jobs) == len(crashed) > 0
    assert (stats.accepted, stats.succeeded, stats.failed) == (total, total - len(crashed), len(crashed))
    assert stats.tries == sum(op.tries for op in jobs)
    restarts = Counter(crashed)
    assert [row.restarts for row in stats.workers] == [restarts[index] for index in range(100)]


@pytest.mark.stress
def test_starting_and_ending_leaves_no_thread_and_no_reference(seed: int) -> None:
    rounds = 1000 if LONG_RUN else 200
    trouble = Trouble("", ValueError, seed)
    workers = [Victim(trouble) for _ in range(3)]
    pool = WorkerPool(workers, max_restarts=3, restart_pause=0)
    threads = set(threading.enumerate())

    def once(number: int) -> None:
        pool.start()
        jobs = [Job(trouble, *words) for words in [(), ("fail",), ("retry",), ("crash",), ("delay",), ("reject",)]]
        stream = pool.execute(jobs)
        wrapped = pool.wrap([Job(trouble), Job(trouble)], drawn_by="thread" if number % 2 else "reader")
        match number % 4:
            case 0:
                assert len(list(stream)) == 6
                pool.shutdown()
            case 1:
                pool.shutdown(cancel_pending=True)
            case 2:
                next(wrapped)
                pool.shutdown(wait=False)
                pool.shutdown()
            case 3:
                wrapped.close()
                pool.shutdown()
        assert all(op.wait(0) and (op.error or True) for op in jobs)
        wait_until(lambda: set(threading.enumerate()) <= threads)  # one that draws a source may end a moment later

    def census() -> tuple[int, int, list[int]]:
        gc.collect()
        once(0)  # at_exit.py drops the weak references to the runs that were just collected
        gc.collect()
        objects = gc.get_objects()
        return (
            len(objects),
            sum(type(thing) is Job for thing in objects),
            [sys.getrefcount(w) for w in (pool, *workers)],
        )

    for number in range(20):
        once(number)
    objects, jobs, references = census()
    for number in range(rounds):
        once(number)
    wait_until(lambda: census()[1:] == (0, references))
    assert jobs == 0
    assert census()[0] - objects < rounds // 2, "what grew did not grow with each round"


@pytest.mark.stress
@pytest.mark.parametrize("word", ["fail", "crash", "exhausted"])
def test_failing_operations_need_constant_memory(word: str) -> None:
    """An error holds its traceback, the traceback the frame, the frame the operation: a cycle through ours.

    So it is the collector that frees them. Counted without asking it to, and at the end after asking.
    """
    total = (1_000_000 if LONG_RUN else 100_000) // (1 if word == "fail" else 10)
    alive: weakref.WeakSet[Operation] = weakref.WeakSet()
    objects: list[int] = []
    most = seen = 0

    class Bad(Worker[Operation]):
        def process(self, op: Operation) -> None:
            if word == "crash":
                raise SystemExit
            raise Retry if word == "exhausted" else ValueError(op)

        def handle_error(self, error: BaseException, op: Operation) -> None:
            error.op = op  # type: ignore[attr-defined]

    with WorkerPool([Bad(), Bad()], max_tries=3, max_restarts=None, restart_pause=0) as pool:
        for op in pool.wrap((Operation() for _ in range(total)), buffer=64):
            seen += 1
            assert op.error is not None
            if not seen % 10:
                alive.add(op)
            if not seen % (total // 20):
                most = max(most, len(alive))
            if seen * 2 == total:
                gc.collect()
                objects.append(len(gc.get_objects()))
        stats = pool.stats()
    assert (seen, stats.failed, stats.accepted) == (total, total, total)
    if word == "fail":  # the others are too few for the collector of a free-threaded build to run by itself
        assert most < total // 20, f"{most} of {total // 10} operations that were looked at lived at once"
    del op
    # Asked until it answers: a collection that another thread has begun makes ours do nothing.
    wait_until(lambda: gc.collect() >= 0 and len(gc.get_objects()) - objects[0] < 1000)
    wait_until(lambda: not alive)
