"""Workers of a factory that remembers them, what they process, and the check of how they ended; for `resize`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ringmill import Operation, PoolStats, Reject, Worker, WorkerPool
from tests.pools import Gate, Step, perform
from tests.threads import LONG, wait_until

PARTS = ("queued", "running", "delayed", "succeeded", "failed", "cancelled")

#: How a piece of work comes to the pool, and how the test waits for its end.
KINDS = ["do", "wrap", "map"]


class Script:
    """What is to happen to it, one step each time that it is processed, and who processed it.

    Attributes:
        wanted: The number of the only worker that does not reject it; None: no worker rejects it.
        seen: The numbers of the workers that processed it, in order.
        rejected: The numbers of those that rejected it because of `wanted`.
    """

    def __init__(self, *steps: Step, wanted: int | None = None) -> None:
        self.steps = steps
        self.wanted = wanted
        self.seen: list[int] = []
        self.rejected: list[int] = []


class Item(Script):
    """For `map` and `call`: its result is the item itself."""


class Job(Script, Operation):
    told = 0

    def done(self) -> None:
        self.told += 1
        super().done()


class Member(Worker[Any]):
    """Processes scripts, and gives back any other item.

    Attributes:
        number: In the order in which the factory made them.
        group: Members of one group are equal to each other.
        calls: The names of the methods that were called.
        names: The name of its thread, at each `init`.
    """

    def __init__(self, number: int, on_init: Step, group: object) -> None:
        self.number = number
        self.on_init = on_init
        self.group = group
        self.calls: list[str] = []
        self.names: list[str] = []
        self.own_threads: list[threading.Thread] = []
        self.ready = False
        self.handled: list[tuple[type[BaseException], Any]] = []

    def init(self) -> None:
        self.calls.append("init")
        self.own_threads.append(threading.current_thread())
        self.names.append(threading.current_thread().name)
        perform(self.on_init)
        self.ready = True

    def process(self, op: Any) -> Any:
        if not isinstance(op, Script):
            return op
        if op.wanted not in (None, self.number):
            op.rejected.append(self.number)
            raise Reject
        self.calls.append("process")
        op.seen.append(self.number)
        if len(op.seen) <= len(op.steps):
            perform(op.steps[len(op.seen) - 1])
        return op if isinstance(op, Item) else None

    def handle_error(self, error: BaseException, op: Any) -> None:
        self.handled.append((type(error), op))

    def equal(self, other: Worker[Any]) -> bool:
        return isinstance(other, Member) and other.group == self.group

    def cleanup(self) -> None:
        self.calls.append("cleanup")
        self.ready = False

    def has_ended(self) -> bool:
        return not any(thread.is_alive() for thread in self.own_threads)

    def __repr__(self) -> str:
        return f"<Member {self.number}: {', '.join(self.calls[-4:])}>"


class Factory:
    """Makes Members and remembers them.

    Attributes:
        on_init: By the number of a member: what its `init` does.
        groups: By the number of a member: its group; by default each is equal to itself only.
    """

    def __init__(self, on_init: dict[int, Step] | None = None, groups: dict[int, object] | None = None) -> None:
        self.made: list[Member] = []
        self.on_init = on_init or {}
        self.groups = groups or {}
        self.lock = threading.Lock()

    def __call__(self) -> Member:
        with self.lock:
            number = len(self.made)
            member = Member(number, self.on_init.get(number), self.groups.get(number, number))
            self.made.append(member)
            return member

    def left(self, pool: WorkerPool[Any]) -> list[Member]:
        """Those that are no longer among the workers of the pool."""
        return [member for member in self.made if member not in pool.workers]

    def check_ended(self) -> None:
        """Each had one cleanup for each init, and no thread is left."""
        wait_until(lambda: all(member.has_ended() for member in self.made))
        for member in self.made:
            lifes = [call for call in member.calls if call != "process"]
            assert lifes == ["init", "cleanup"] * (len(lifes) // 2), member


def numbers(pool: WorkerPool[Any]) -> list[int]:
    return [worker.number for worker in pool.workers if isinstance(worker, Member)]


def hold_all(pool: WorkerPool[Any], count: int) -> dict[int, Gate]:
    """So many workers are busy; by the number of each, the gate that holds it."""
    gates = [Gate() for _ in range(count)]
    jobs = [pool.do(Job(gate), LONG) for gate in gates]
    assert all(gate.reached.wait(LONG) for gate in gates)
    return {job.seen[0]: gate for job, gate in zip(jobs, gates, strict=True)}


@contextmanager
def held(pool: WorkerPool[Any], number: int, error: BaseException | None = None) -> Iterator[Gate]:
    """The worker of that number is busy, and then its operation raises the error, if any."""
    gate = Gate(error)
    pool.do(Job(gate, wanted=number))
    assert gate.reached.wait(LONG)
    try:
        yield gate
    finally:
        gate.opened.set()


def look_around(pool: WorkerPool[Any], number: int) -> None:
    """That worker looks for work several times: what it does not take now, it may not take."""
    for _ in range(4):
        assert pool.do(Job(wanted=number)).wait(LONG)


@dataclass
class Sent:
    """A piece of work that a pool has accepted.

    Attributes:
        end: Waits until it has ended; returns its error, or None.
    """

    work: Script
    end: Callable[[], BaseException | None]


def send(pool: WorkerPool[Any], kind: str, *steps: Step, wanted: int | None = None) -> Sent:
    """Gives one piece of work to the pool, in one of the KINDS."""
    if kind in ("do", "wrap"):
        job = Job(*steps, wanted=wanted)
        stream = pool.wrap([job], drawn_by="thread") if kind == "wrap" else None
        if stream is None:
            pool.do(job)

        def end() -> BaseException | None:
            assert job.wait(LONG)
            assert stream is None or list(stream) == [job]
            return job.error

        return Sent(job, end)
    item = Item(*steps, wanted=wanted)
    results = pool.map([item], errors="return")

    def get() -> BaseException | None:
        [result] = results
        return result if isinstance(result, BaseException) else None

    return Sent(item, get)


def check_law_1(stats: PoolStats) -> None:
    """What each snapshot must obey, whatever goes on."""
    assert stats.accepted == sum(getattr(stats, name) for name in PARTS), stats
    assert all(getattr(stats, name) >= 0 for name in PARTS), stats
    names = [row.name for row in stats.workers]
    assert len(set(names)) == len(names), names


def check_rows(stats: PoolStats) -> None:
    """At rest: the counters of the workers, also of those that have left, add up to those of the pool."""
    for name in ("running", "succeeded", "tries", "restarts"):
        assert sum(getattr(row, name) for row in stats.workers) == getattr(stats, name), (name, stats)
    # What fails because a worker has gone, as Unroutable or with BrokenPool, is no worker's.
    assert sum(row.failed for row in stats.workers) <= stats.failed, stats
