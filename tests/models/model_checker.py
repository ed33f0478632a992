"""An explicit-state model checker: explores every interleaving of a few small threads, visiting each state once.

A thread is a generator function. It yields one operation for each access to shared memory and is sent the result;
what stands between two yields is local to the thread and takes no time. Memory is a handful of named, immutable,
hashable values.

`explore` walks all interleavings breadth first, so that the trace of what it reports is a shortest one. It reports

* a violated invariant, or a `ViolationError` raised by an operation;
* a deadlock: no thread can move, and `at_rest` does not accept what it finds (by default: a thread has not ended);
* a livelock: a state from which no acceptable rest can be reached any more, though a thread can still move.

Weak memory is modelled as a FIFO store buffer for each thread (x86-TSO): a buffered `Store` is visible to its own
thread at once and to the others after a flush, which may come at any later step. A seq_cst store, a
read-modify-write, and every other `Step` wait for the thread's own buffer to drain; a `Load` does not. That is the
reordering (a store passed by a later load) on which sleep/wake protocols break; the weaker machines have more, so a
protocol that passes is not thereby proved for them, but one that fails here fails there.

A generator cannot be copied or hashed, so each one is turned into an automaton while the search goes: a state is the
chain of suspended frames with their locals; a new one is reached by running the generator again from the start. Hence
the rules for thread functions: locals are hashable; no `for` around a yield (its iterator is no local; refused); one
yield in an expression; nothing outside is changed.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Generator, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

Memory = SimpleNamespace  # the shared variables, as attributes; a Step may rebind them, and must not add any


class ViolationError(Exception):
    """Raised by a Step that finds what must never happen."""


class _Blocked:
    def __repr__(self) -> str:
        return "BLOCKED"


BLOCKED = _Blocked()  # what a Step returns when it can't be taken now; what it did to its memory is forgotten


@dataclass(frozen=True, slots=True)
class Load:
    """Reads one variable: the thread's own buffered store if there is one, else memory."""

    name: str


@dataclass(frozen=True, slots=True)
class Store:
    """Writes one variable; seq_cst (waits for the thread's own buffer to drain) unless `buffered`."""

    name: str
    value: Hashable
    buffered: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One indivisible action: a read-modify-write, a wait for a condition, a section under a lock.

    `run` gets the memory, may rebind its variables, and returns the result or BLOCKED.
    """

    label: str
    run: Callable[[Memory], Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """Any one of several steps that is not blocked: what happens is not in the thread's hands (a timeout)."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """Writes down an event in the variable `log`, in the same instant as the step before it, or the one after it."""

    event: Hashable
    with_next: bool = False


Op = Load | Store | Step | Choice | Note
Thread = Generator[Op, Any, Any]
ThreadFunction = Callable[[], Thread]

_Values = tuple[Any, ...]
_Buffer = tuple[tuple[int, Any], ...]
_Move = tuple[str, _Values, int, _Buffer]  # label, memory after it, node after it, buffer after it
_State = tuple[_Values, tuple[int, ...], tuple[_Buffer, ...]]

_ENDED = -1
_checked: set[CodeType] = set()


def _identity(value: Any) -> Hashable:
    """Makes two functions equal that the same line made over equal values; a run of a generator makes them anew."""
    match value:
        case FunctionType():
            cells = tuple(_identity(cell.cell_contents) for cell in value.__closure__ or ())
            return (value.__code__, value.__defaults__, cells)
        case partial():
            return (_identity(value.func), tuple(map(_identity, value.args)), tuple(value.keywords.items()))
        case Step():
            return (value.label, _identity(value.run))
        case Choice():
            return tuple(map(_identity, value.steps))
    hashed: Hashable = value
    return hashed


def _frames(thread: Thread) -> Hashable:
    """What decides how a suspended generator goes on: position and locals of it and of those it delegates to."""
    chain = []
    suspended: Any = thread
    while suspended is not None:
        frame = suspended.gi_frame
        if frame.f_code not in _checked:
            if any(instruction.opname == "FOR_ITER" for instruction in dis.get_instructions(frame.f_code)):
                raise TypeError(f"{frame.f_code.co_qualname}: a loop's iterator is hidden from the explorer; use while")
            _checked.add(frame.f_code)
        values = tuple((name, _identity(value)) for name, value in sorted(frame.f_locals.items()))
        chain.append((frame.f_code, frame.f_lasti, values))
        suspended = suspended.gi_yieldfrom
    return tuple(chain)


class _Program:
    """The automaton of one thread function, made as far as the search asks for it."""

    def __init__(self, function: ThreadFunction) -> None:
        self.function = function
        self.ops: list[Op] = []
        self.paths: list[tuple[Any, ...]] = []  # the results that lead to each node
        self.nodes: dict[Hashable, int] = {}
        self.edges: dict[tuple[int, Any], int] = {}
        self.start = self._node(function(), ())

    def after(self, node: int, result: Any) -> int:
        """The node that `result` leads to."""
        key = (node, result)
        if key not in self.edges:
            thread = self.function()
            thread.send(None)
            for earlier in self.paths[node]:
                thread.send(earlier)
            self.edges[key] = self._node(thread, (*self.paths[node], result))
        return self.edges[key]

    def _node(self, thread: Thread, path: tuple[Any, ...]) -> int:
        try:
            op = thread.send(path[-1] if path else None)
        except StopIteration:
            return _ENDED
        key = (_frames(thread), _identity(op))  # the op may hold a result that was never a local
        thread.close()
        if key not in self.nodes:
            self.nodes[key] = len(self.ops)
            self.ops.append(op)
            self.paths.append(path)
        return self.nodes[key]


@dataclass
class Report:
    """What a search found: its size, and the first problem with the shortest trace that leads to it."""

    states: int = 0
    moves: int = 0
    rests: int = 0
    problem: str | None = None
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        size = f"{self.states} states, {self.moves} moves, {self.rests} ways to come to rest"
        if self.problem is None:
            return f"no problem in {size}"
        return "\n".join([f"{self.problem} (found after {size})", *(f"  {step}" for step in self.trace)])


def all_ended(memory: Memory, unfinished: frozenset[str]) -> str | None:
    """The plainest idea of a good end: everybody has returned."""
    return f"blocked forever: {', '.join(sorted(unfinished))}" if unfinished else None


class _Search:
    """One walk over all states of a model."""

    def __init__(self, memory: Mapping[str, Hashable], threads: Mapping[str, ThreadFunction]) -> None:
        self.variables = tuple(memory)
        self.position = {name: i for i, name in enumerate(self.variables)}
        self.names = tuple(threads)
        self.programs = [_Program(function) for function in threads.values()]
        self.first: _State = (
            tuple(memory.values()),
            tuple(program.start for program in self.programs),
            ((),) * len(self.programs),
        )
        # What a thread can do depends on its own node, its own buffer and memory only: far fewer than there are states.
        self.known: dict[tuple[int, int, _Values, _Buffer], list[_Move]] = {}

    def namespace(self, values: _Values) -> Memory:
        return Memory(**dict(zip(self.variables, values, strict=True)))

    def moves(self, who: int, node: int, values: _Values, buffer: _Buffer) -> list[_Move]:
        """Everything that thread `who` can do next, flushes of its store buffer included."""
        key = (who, node, values, buffer)
        if key not in self.known:
            self.known[key] = self._moves(who, node, values, buffer)
        return self.known[key]

    def _moves(self, who: int, node: int, values: _Values, buffer: _Buffer) -> list[_Move]:
        program = self.programs[who]
        found: list[_Move] = []
        if buffer:
            (where, value), *rest = buffer
            flushed = self._replaced(values, where, value)
            found.append((f"flushes {self.variables[where]} = {value}", flushed, node, tuple(rest)))
        if node == _ENDED:
            return found
        op = program.ops[node]
        if isinstance(op, Note):  # with_next, or a thread that begins with one
            values = self._logged(values, op.event)
            node = program.after(node, None)
            op = program.ops[node]
        for label, after, result, still_buffered in self._effects(op, values, buffer):
            noted, following = after, program.after(node, result)
            while following != _ENDED and isinstance(note := program.ops[following], Note) and not note.with_next:
                noted, following = self._logged(noted, note.event), program.after(following, None)
            found.append((label, noted, following, still_buffered))
        return found

    def _effects(self, op: Op, values: _Values, buffer: _Buffer) -> list[tuple[str, _Values, Any, _Buffer]]:
        match op:
            case Load(name):
                where = self.position[name]
                own = [value for at, value in buffer if at == where]
                value = own[-1] if own else values[where]
                return [(f"loads {name}: {value}", values, value, buffer)]
            case Store(name, value, buffered=True):
                return [(f"buffers {name} = {value}", values, None, (*buffer, (self.position[name], value)))]
            case Note():
                raise TypeError(f"a note next to a note: {op}")
        if buffer:
            return []
        if isinstance(op, Store):
            return [
                (f"stores {op.name} = {op.value}", self._replaced(values, self.position[op.name], op.value), None, ())
            ]
        effects: list[tuple[str, _Values, Any, _Buffer]] = []
        for step in op.steps if isinstance(op, Choice) else (op,):
            memory = self.namespace(values)
            result = step.run(memory)
            if result is not BLOCKED:
                after = tuple(vars(memory).values())
                if len(after) != len(values):
                    raise TypeError(f"{step.label}: added a variable to {self.variables}")
                effects.append((step.label if result is None else f"{step.label}: {result}", after, result, ()))
        return effects

    @staticmethod
    def _replaced(values: _Values, where: int, value: Any) -> _Values:
        return (*values[:where], value, *values[where + 1 :])

    def _logged(self, values: _Values, event: Hashable) -> _Values:
        where = self.position["log"]
        return self._replaced(values, where, (*values[where], event))

    def run(
        self,
        invariant: Callable[[Memory], str | None] | None,
        at_rest: Callable[[Memory, frozenset[str]], str | None],
    ) -> Report:
        report = Report()
        index: dict[_State, int] = {self.first: 0}
        queue: list[_State] = [self.first]
        came_from: list[tuple[int, str]] = [(-1, "")]
        sources: list[list[int]] = [[]]  # for each state those it can be reached from in one move
        rests: list[int] = []
        good: dict[_Values, str | None] = {}

        def report_problem(problem: str, at: int, last: str = "") -> Report:
            report.states, report.problem, report.rests = len(queue), problem, len(rests)
            report.trace = [last] if last else []
            while at > 0:
                at, label = came_from[at]
                report.trace.insert(0, label)
            return report

        at = 0
        while at < len(queue):
            values, nodes, buffers = queue[at]
            if invariant is not None:
                if values not in good:
                    good[values] = invariant(self.namespace(values))
                if (complaint := good[values]) is not None:
                    return report_problem(complaint, at)
            stuck = True
            for who, name in enumerate(self.names):
                try:
                    moves = self.moves(who, nodes[who], values, buffers[who])
                except ViolationError as violation:
                    return report_problem(str(violation), at, f"{name}: the step that is refused")
                for label, after, node, buffer in moves:
                    stuck = False
                    state = (
                        after,
                        (*nodes[:who], node, *nodes[who + 1 :]),
                        (*buffers[:who], buffer, *buffers[who + 1 :]),
                    )
                    report.moves += 1
                    to = index.setdefault(state, len(queue))
                    if to == len(queue):
                        queue.append(state)
                        came_from.append((at, f"{name}: {label}"))
                        sources.append([])
                    sources[to].append(at)
            if stuck:
                unfinished = frozenset(name for name, node in zip(self.names, nodes, strict=True) if node != _ENDED)
                complaint = at_rest(self.namespace(values), unfinished)
                if complaint is not None:
                    return report_problem(complaint, at)
                rests.append(at)
            at += 1

        alive = set(rests)
        pending = list(rests)
        while pending:
            for source in sources[pending.pop()]:
                if source not in alive:
                    alive.add(source)
                    pending.append(source)
        for at in range(len(queue)):
            if at not in alive:
                return report_problem("livelock: from here on no thread comes to rest", at)
        report.states, report.rests = len(queue), len(rests)
        return report


def explore(
    memory: Mapping[str, Hashable],
    threads: Mapping[str, ThreadFunction],
    *,
    invariant: Callable[[Memory], str | None] | None = None,
    at_rest: Callable[[Memory, frozenset[str]], str | None] = all_ended,
) -> Report:
    """Searches every interleaving; the report names the first problem found, or none.

    `invariant(memory)` is asked in every state, `at_rest(memory, unfinished)` where no thread can move; each returns a
    complaint or None.
    """
    return _Search(memory, threads).run(invariant, at_rest)


# What the models share.


def post(me: str) -> Step:
    """Releases the semaphore of a thread: the waker's last touch of it. `posted` is a set of names in memory."""

    def run(m: Memory) -> None:
        if me in m.posted:
            raise ViolationError(f"the semaphore of {me} is released twice")
        m.posted |= {me}

    return Step(f"wakes {me}", run)


def park(me: str) -> Step:
    """Sleeps until `post`."""

    def run(m: Memory) -> Any:
        if me not in m.posted:
            return BLOCKED
        m.posted -= {me}
        return "woken"

    return Step("parked", run)


def assert_holds(report: Report, at_least: int) -> None:
    """The search found no problem, in more than so many states: a model that shrank unseen shows nothing."""
    print(report)
    assert report.problem is None, str(report)
    assert report.states > at_least


def assert_found(broken: Report, finding: str, right: Report) -> None:
    """The search of the broken variant found this; that of the right one, over the same scenario, nothing."""
    print(broken)
    assert finding in (broken.problem or "nothing"), str(broken)
    assert broken.trace
    assert right.problem is None, str(right)
