"""A linearizability checker for histories of a bounded, closable FIFO queue, and a recorder for them.

A history is linearizable when every operation can be given one instant between its call and its return such that the
operations, done one after another in the order of these instants, give the results that were recorded (Herlihy & Wing
1990). `check` looks for such an order: the depth-first search of Wing & Gong (1993) with the memo of Lowe (2017) of the
configurations tried already, which leaves a few thousand of them to look at where there are millions of orders.

The sequential queue, `capacity` exactly:

    put    OK iff not closed and there is room; FULL iff not closed and no room; CLOSED iff closed
    get    OK with the oldest item; EMPTY iff nothing is inside and not closed; CLOSED iff nothing is inside and closed
    close  OK always

What counts as an operation's instant:

- A blocking operation that succeeds has one instant like any other: waiting is not visible in the result. One that
  times out says FULL or EMPTY of some instant in its interval, not of all of them: a waiter that is overtaken by a
  newcomer each time there is room is unlucky, not wrong.
- `put_many` and `get_many` are not atomic. Each item has an instant of its own within the interval, in the order of the
  items, so others may put or get in between. A batch that goes in by one claim is a special case of that, and allowed.
- A `put_many` that ended in FULL or CLOSED with a count is that many puts and then the observation FULL or CLOSED, like
  a `put` that fails; `rest` must be what was offered and not counted.
- A `get_many` that returns stops where it likes after its first item (others may have emptied the ring meanwhile), so
  how much it takes is a matter for test_ring_buffer, but for its limit, and that it took one at least.

The clock is `time.perf_counter_ns`: monotonic across threads on each platform we support, and read without writing
memory that the threads share. A shared counter (`itertools.count`) would have no ties, but on a free-threaded build
each operation would begin and end with a locked write to one cache line: that orders the very accesses whose memory
orders are under test and keeps the threads in step (and before 3.14 such a counter is not even safe there). A clock has
ties, so B comes after A only if A's return is strictly smaller than B's call: a tie is an overlap. That, and each delay
between an operation and its time stamps, widens intervals: it can hide a violation, never invent one. Only a store that
is still in its processor's store buffer when the return is stamped could do that. Look for one if a history of some ten
nanoseconds is at fault: an operation whose instant is a read-modify-write, as those on head and tail are, has none.

Histories are complete: every operation has returned. Use each item once in a history: the checker does not need it, but
two equal items explain each other's loss.
"""

from __future__ import annotations

import queue
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import count, islice
from typing import Any, Protocol

from tests.threads import run_threads


class Result(Enum):
    OK = "ok"
    FULL = "Full"
    EMPTY = "Empty"
    CLOSED = "Closed"


PUTS = ("put", "put_nowait", "put_many")
GETS = ("get", "get_nowait", "get_many")


@dataclass(frozen=True, slots=True)
class Event:
    """One operation as its caller saw it: when it was called, when it returned, and what came of it."""

    thread: int
    call: int
    ret: int
    verb: str
    items: tuple[Any, ...] = ()
    """What a put offered, or what a get was given."""
    result: Result = Result.OK
    count: int | None = None
    """put_many: how many it says went in."""
    rest: tuple[Any, ...] | None = None
    """put_many that failed: what it gave back, followed by what it had not drawn from its iterable."""
    limit: int | None = None
    """get_many: the most it may take."""

    def describe(self, origin: int = 0) -> str:
        items = ", ".join(map(repr, self.items))
        got = self.verb in GETS and self.result is Result.OK
        notes = [f"{name}={value}" for name in ("count", "rest", "limit") if (value := getattr(self, name)) is not None]
        arguments, outcome = ("", f"[{items}]") if got else (items, self.result.value)
        span = f"{self.call - origin:>9}..{self.ret - origin:<9}"
        return f"{span} thread {self.thread}: {' '.join([f'{self.verb}({arguments}) -> {outcome}', *notes])}"


@dataclass(frozen=True, slots=True)
class Step:
    """A part of an operation that has one instant: `kind` is put, get or close, `result` what it must give then."""

    call: int
    ret: int
    kind: str
    item: Any
    result: Result

    def __str__(self) -> str:
        if self.result is not Result.OK:
            return f"{self.kind} -> {self.result.value}"
        return self.kind if self.kind == "close" else f"{self.kind} {self.item!r}"


class LinearizabilityError(AssertionError):
    """No order of the recorded operations explains their results."""


SHOWN = 100
"""How many operations a report shows on either side of the fault."""
Problem = tuple[int, str]
"""When, and what it is."""
State = tuple[tuple[Any, ...], bool]
"""What is inside, oldest first, and whether the queue is closed."""


def apply(step: Step, state: State, capacity: int) -> State | None:
    """The sequential queue: the state after the step, or None if the step cannot give its result in this state."""
    items, closed = state
    if step.kind == "close":
        return (items, True) if step.result is Result.OK else None
    if step.kind == "put":
        result = Result.CLOSED if closed else Result.FULL if len(items) >= capacity else Result.OK
        if step.result is not result:
            return None
        return ((*items, step.item), closed) if result is Result.OK else state
    if step.result is Result.OK:
        return (items[1:], closed) if items and items[0] == step.item else None
    return state if not items and step.result is (Result.CLOSED if closed else Result.EMPTY) else None


def check(history: Iterable[Event], capacity: int) -> None:
    """Raises LinearizabilityError, with the history and how far it can be explained, unless it is linearizable."""
    events = sorted(history, key=lambda event: (event.call, event.ret))
    if problem := _by_itself(events) or _search(_threads(events), capacity):
        when, what = problem
        earlier = [event for event in events if event.call <= when]
        pending = [event for event in earlier[:-SHOWN] if event.ret >= when]
        near = [*pending, *earlier[-SHOWN:], *events[len(earlier) :][:SHOWN]]
        lines = [f"  {event.describe(origin=events[0].call)}" for event in near]
        title = f"history (capacity {capacity}, {len(near)} of {len(events)} operations, the nearest to the fault):"
        raise LinearizabilityError("\n".join([what, title, *lines]))


def _by_itself(events: Sequence[Event]) -> Problem | None:
    """What no order could explain, whatever the other operations did."""
    for event in events:
        if event.verb == "put_many" and event.result is Result.OK and event.count != len(event.items):
            return event.call, "put_many returned without an error and a wrong count"
        if event.verb == "put_many" and event.result is not Result.OK and not _partial(event):
            return event.call, "count and rest of put_many are not what was offered"
        if event.verb == "get_many" and event.result is Result.OK and not event.items:
            return event.call, "get_many returned without an item"
        if event.limit is not None and len(event.items) > event.limit:
            return event.call, "get_many took more than its limit"
    return None


def _partial(event: Event) -> bool:
    """Whether a put_many that failed went in up to `count`, with something left, and `rest` is just that."""
    count = event.count or 0
    return 0 <= count < max(1, len(event.items)) and event.rest == event.items[count:]


def _threads(events: Sequence[Event]) -> list[list[Step]]:
    """The steps of each thread, in its order."""
    threads: dict[int, list[Step]] = defaultdict(list)
    last: dict[int, Event] = {}
    for event in events:
        before = last.get(event.thread)
        if event.ret < event.call or (before and event.call < before.ret):
            raise ValueError(f"not a history, a thread does one thing after another:\n{before}\n{event}")
        last[event.thread] = event
        threads[event.thread] += _steps(event)
    return list(threads.values())


def _steps(event: Event) -> Iterator[Step]:
    kind = "put" if event.verb in PUTS else "get" if event.verb in GETS else event.verb
    ok = event.result is Result.OK
    done: tuple[Any, ...] = event.items if ok else event.items[: event.count or 0] if kind == "put" else ()
    for item in (None,) if kind == "close" and ok else done:
        yield Step(event.call, event.ret, kind, item, Result.OK)
    if not ok:
        yield Step(event.call, event.ret, kind, None, event.result)


def _search(threads: list[list[Step]], capacity: int) -> Problem | None:
    """None if some order explains all steps; else how far the best one came."""
    # A configuration is how many steps of each thread have had their instant, and the state they led to. Whatever is
    # possible from there does not depend on the way there, so each configuration is looked at once.
    start: tuple[tuple[int, ...], State] = ((0,) * len(threads), ((), False))
    stack, seen, best = [start], {start}, start
    while stack:
        done, state = stack.pop()
        if sum(done) > sum(best[0]):
            best = done, state
        heads = [(i, steps[n]) for i, (steps, n) in enumerate(zip(threads, done, strict=True)) if n < len(steps)]
        if not heads:
            return None
        # A step may be next unless a step that is still to come had returned before it was called.
        first_return = min(step.ret for _, step in heads)
        following = []
        for thread, step in heads:
            if step.call > first_return or (after := apply(step, state, capacity)) is None:
                continue
            then = (*done[:thread], done[thread] + 1, *done[thread + 1 :]), after
            if after == state:
                # It changes nothing and may be next: if any order works from here, one that begins with it does.
                following = [(step.ret, then)]
                break
            following.append((step.ret, then))
        # What returns first is tried first (the stack is read from its end): mostly that is how it was.
        for _, then in sorted(following, key=lambda entry: -entry[0]):
            if then not in seen:
                seen.add(then)
                stack.append(then)
    done, (items, closed) = best
    stuck = [steps[n] for steps, n in zip(threads, done, strict=True) if n < len(steps)]
    total = sum(map(len, threads))
    lines = [
        f"not linearizable: at best {sum(done)} of {total} steps are explained ({len(seen)} configurations tried)",
        f"  then {list(items)} is inside, {'closed' if closed else 'open'}, and none of these can be next:",
        *(f"    {step}" for step in stuck),
    ]
    return min(step.ret for step in stuck), "\n".join(lines)


class Ring(Protocol):
    """What the recorder calls: RingBuffer, as far as it is checked here."""

    def put(self, item: Any, /, block: bool = True, timeout: float | None = None) -> None: ...
    def put_nowait(self, item: Any, /) -> None: ...
    def get(self, block: bool = True, timeout: float | None = None) -> Any: ...
    def get_nowait(self) -> Any: ...
    def put_many(self, iterable: Iterable[Any], /, timeout: float | None = None) -> int: ...
    def get_many(self, max: int | None = None, timeout: float | None = None) -> list[Any]: ...
    def close(self) -> None: ...


class Recorder:
    """Calls a ring on behalf of one thread and logs what it saw; each thread has its own, so that they share nothing.

    `closed` is the ring's exception for a closed ring. Any error but this, Full and Empty is raised.
    """

    def __init__(self, ring: Ring, thread: int, closed: type[Exception]) -> None:
        self.ring = ring
        self.thread = thread
        self._failures = (queue.Full, queue.Empty, closed)
        self._log: list[tuple[str, tuple[Any, ...], Iterator[Any] | None, int, int, Any, Exception | None]] = []

    def call(self, verb: str, *arguments: Any) -> Exception | None:
        """Calls the method and returns how it failed, or None. Short, since threads meet only within operations."""
        function = getattr(self.ring, verb)
        value, failure, source, given = None, None, None, arguments
        if verb == "put_many":  # how far ahead of its puts the ring draws is its own affair: see `rest`
            source = iter(arguments[0])
            given = (source, *arguments[1:])
        call = time.perf_counter_ns()
        try:
            value = function(*given)
        except self._failures as error:
            failure = error
        ret = time.perf_counter_ns()
        self._log.append((verb, arguments, source, call, ret, value, failure))
        return failure

    @property
    def events(self) -> list[Event]:
        return [self._event(*entry) for entry in self._log]

    def _event(
        self,
        verb: str,
        arguments: tuple[Any, ...],
        source: Iterator[Any] | None,
        call: int,
        ret: int,
        value: Any,
        failure: Any,
    ) -> Event:
        match failure:
            case None:
                result = Result.OK
            case queue.Full():
                result = Result.FULL
            case queue.Empty():
                result = Result.EMPTY
            case _:
                result = Result.CLOSED
        event = partial(Event, self.thread, call, ret, verb)
        if verb == "put_many" and source is not None:
            rest = None if failure is None else (*failure.rest, *source)
            return event(tuple(arguments[0]), result, value if failure is None else failure.count, rest)
        if verb == "get_many":
            return event(() if failure else tuple(value), result, limit=arguments[0] if arguments else None)
        if verb in GETS:
            return event(() if failure else (value,), result)
        return event(arguments[:1], result)


Call = tuple[Any, ...]
"""A verb and its arguments."""
THREADS = 4
OPERATIONS = {"timed": 10, "untimed": 10, "never": 1000}
"""Of each thread, by how it waits."""
TIMEOUTS = {"timed": (0.0, 0.0002, 0.001), "untimed": (None,), "never": (0.0,)}


def random_programs(seed: int, waits: str) -> list[list[Call]]:
    """What each thread is to call; all items differ.

    `waits` is "timed"; "untimed", which end at the last thread's close; or "never". The last is for what goes wrong
    only when a thread loses its processor between two instructions of the ring: that is rare, so it takes many
    operations, and then the others see it, as long as they have not finished.
    """
    rng = random.Random(seed)
    operations = OPERATIONS[waits]
    closer = {"timed": rng.choice([None, *range(THREADS)]), "untimed": THREADS - 1, "never": None}[waits]
    programs: list[list[Call]] = []
    for thread in range(THREADS):
        items = count(100_000 * thread)
        program: list[Call] = []
        closes_last = thread == closer and waits == "untimed"
        # The one that never waits would be done, and the ring closed, before the others have begun to wait.
        for _ in range(3 * operations if closes_last else operations):
            many = rng.choice(["put_many", "get_many"])
            timeout = rng.choice(TIMEOUTS[waits])
            waiting = [] if closes_last else ["put", "get", many]
            verb = rng.choice(["put_nowait", "get_nowait", *waiting])
            match verb:
                case "put_many":
                    program.append((verb, list(islice(items, rng.randint(1, 5))), timeout))
                case "get_many":
                    program.append((verb, rng.choice([None, 1, 2, 4]), timeout))
                case "put":
                    program.append((verb, next(items), True, timeout))
                case "get":
                    program.append((verb, True, timeout))
                case "put_nowait":
                    program.append((verb, next(items)))
                case _:
                    program.append((verb,))
        if thread == closer:
            program.insert(len(program) if closes_last else rng.randint(operations // 2, operations), ("close",))
        programs.append(program)
    return programs


def record(ring: Ring, programs: Sequence[Sequence[Call]], closed: type[Exception]) -> list[Event]:
    """Runs each program on a thread of its own, then empties the ring, so that what was lost shows."""
    recorders = [Recorder(ring, thread, closed) for thread in range(len(programs) + 1)]
    to_come = list(programs)

    def run(recorder: Recorder, program: Sequence[Call]) -> None:
        # Threads leave a barrier one by one, some ten operations apart: that is all of a program. The last starts all.
        to_come.pop()
        while to_come:
            time.sleep(0)
        for verb, *arguments in program:
            recorder.call(verb, *arguments)

    run_threads(*(partial(run, recorder, program) for recorder, program in zip(recorders, programs, strict=False)))
    while recorders[-1].call("get_nowait") is None:
        pass
    return [event for recorder in recorders for event in recorder.events]
