"""Every path that an operation can take, while allocations fail at a point of it: in `process`, in a hook, in a call.

A path is a function that makes a pool, has operations run in it, and checks what came of them. It calls
`trial.at(point)` at the points where the shortage may begin: `trial` begins it at one of them, on that thread, and
`trial.end()` ends it. The shortage is the process's, so each path runs in a process of its own, a fork of one in which
it has run before.

Whatever fails, each operation that was accepted has one outcome, comes out of its stream once, and wakes the threads
that wait for it; the counts agree with the outcomes; `shutdown` returns, no thread is left, the pool can be started
again, and nothing is leaked.
"""

from __future__ import annotations

import _testcapi
import _thread
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

from ringmill import BrokenPool, Operation, Outcome, PoolNotRunning
from tests.tools.out_of_memory.trial import CPYTHONS_OWN, NONE

LIMIT = 20.0  # seconds: an operation that has not ended by then is lost
OUTCOMES = {Outcome.SUCCEEDED: "succeeded", Outcome.FAILED: "failed", Outcome.CANCELLED: "cancelled"}

PATHS: dict[str, Callable[[Shortage], None]] = {}


def path(function: Callable[[Shortage], None]) -> Callable[[Shortage], None]:
    PATHS[function.__name__] = function
    return function


class Shortage:
    """When allocations fail: from the `start`-th after the point on, `length` in a row."""

    def __init__(self, point: str = "", start: int = 0, length: int = 0) -> None:
        self.point = point
        self.window = (start, start + length) if point else NONE
        self.begun = self.over = False
        self.quiet = False  # what is done now is not the path's
        self.live = False  # the workers have come up: their `init` is the path's from now on
        self.needed_more = True  # whether the path made as many allocations as `start`, and so saw one fail
        self.points: list[str] = []  # where it could have begun
        self.refs: list[weakref.ref[Any]] = []
        self.probes = [None] * (start + length + 1)

    def at(self, point: str) -> None:
        """The shortage begins here, if this is its point, the first time."""
        if self.over or self.quiet:
            return
        if not self.point:
            if point not in self.points:
                self.points.append(point)
        elif point == self.point and not self.begun:
            self.begun = True
            _testcapi.set_nomemory(*self.window)

    def end(self) -> None:
        """Ends the shortage, and finds out whether an allocation has failed: if none has, the `start`-th is to come."""
        over, self.over = self.over, True
        if over or not self.begun:
            return
        made = 0
        try:
            for _ in self.probes:
                object()
                made += 1
        except MemoryError:
            self.needed_more = made == 0
        finally:
            _testcapi.set_nomemory(*NONE)

    def watch(self, thing: Any) -> Any:
        self.refs.append(weakref.ref(thing))
        return thing


class Waiter:
    """A thread that waits for an operation."""

    def __init__(self, op: Operation) -> None:
        self.op = op
        self.woken = _thread.allocate_lock()
        self.woken.acquire()
        began = _thread.allocate_lock()
        began.acquire()
        self.began = began
        _thread.start_new_thread(self.run, ())
        began.acquire()

    def run(self) -> None:
        woken = self.woken
        try:
            self.began.release()
            self.op.wait(LIMIT)
        except MemoryError:
            pass
        finally:
            woken.release()

    def check(self) -> None:
        assert self.woken.acquire(timeout=LIMIT), f"no thread woke the waiter for {self.op}"


def attempt(trial: Shortage, section: Callable[[], Any], *expected: type[BaseException]) -> None:
    """Runs a section in which memory is short; that ends with it, or when the section finds none on this thread.

    What the section has done, it leaves in places that were made before.
    """
    try:
        section()
    except BaseException as error:
        trial.end()
        if not (
            isinstance(error, (MemoryError, *expected))
            or (isinstance(error, SystemError) and str(error) == CPYTHONS_OWN)
            or (isinstance(error, RuntimeError) and "can't" in str(error))  # threading's: "can't start new thread"
        ):
            raise
    finally:
        trial.end()


class Read:
    """What has come out of a stream, kept without an allocation."""

    def __init__(self, room: int) -> None:
        self.items: list[Any] = [None] * room
        self.count = 0

    def all(self, stream: Any) -> None:
        for op in stream:
            self.items[self.count] = op
            self.count += 1

    def rest(self, stream: Any) -> None:
        """The same, after errors too: those that the stream gives once, that of its source for instance."""
        for _ in range(4):
            try:
                self.all(stream)
                return
            except (BrokenPool, PoolNotRunning, MemoryError, LookupError, SystemError, RuntimeError):
                continue

    def check(self, expected: list[Any], ordered: bool = False) -> None:
        got = self.items[: self.count]
        assert sorted(map(id, got)) == sorted(map(id, expected)), f"{len(got)} of {len(expected)} came out"
        assert not ordered or got == [op for op in expected if op in got]


def wait_for(ops: list[Any]) -> None:
    for op in ops:
        assert op.wait(LIMIT), "lost"


def read(stream: Any, ops: list[Any]) -> None:
    """Each operation comes out of its stream once. None: the call that makes it has raised."""
    if stream is not None:
        came = Read(2 * len(ops))
        came.rest(stream)
        came.check(ops)


def threads_of(pool: Any) -> list[str]:
    """Those of its threads that run."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(pool) and thread.is_alive()]


def collect(trial: Shortage) -> None:
    """Nothing of the path's is left. A thread that could not start may stay in CPython's list of those that do."""
    threading._limbo.clear()  # type: ignore[attr-defined]
    for _ in range(20):
        gc.collect()
        left = [ref() for ref in trial.refs if ref() is not None]
        if not left:
            return
        del left
        threading.Event().wait(0.01)
    raise AssertionError(f"{sum(ref() is not None for ref in trial.refs)} things are left")
