"""Operations, Tasks and ringmill's exceptions are copied and pickled as their classes define it, and copies are new."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import attrs
import pytest

import ringmill
from ringmill import (
    BrokenPool,
    Closed,
    Operation,
    OperationReused,
    Outcome,
    PoolNotRunning,
    Reject,
    RetriesExhausted,
    Retry,
    RingBuffer,
    RingmillError,
    Task,
    TaskWorker,
    Unroutable,
    Worker,
    WorkerInitError,
    WorkerPool,
)

T = TypeVar("T")


def _pickling(protocol: int, python: bool) -> Callable[[Any], Any]:
    def through(value: Any) -> Any:
        if python:
            return pickle._loads(pickle._dumps(value, protocol))  # type: ignore[attr-defined]
        return pickle.loads(pickle.dumps(value, protocol))

    return through


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle{protocol}": _pickling(protocol, False) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
    **{f"python{protocol}": _pickling(protocol, True) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


# Operations of every make


class Plain(Operation):
    def __init__(self, a: int, b: str) -> None:
        self.a, self.b = a, b


class Slots(Operation):
    __slots__ = ("a", "b")

    def __init__(self, a: int, b: str) -> None:
        self.a, self.b = a, b


class Mixed(Slots):
    """Slots in the base, a `__dict__` in the subclass."""

    def __init__(self, a: int, b: str) -> None:
        super().__init__(a, b)
        self.c = [a]


@dataclass
class Data(Operation):
    a: int
    b: str = "b"


@dataclass(slots=True)
class DataSlots(Operation):
    a: int
    b: str = "b"


@dataclass(frozen=True)
class Frozen(Operation):
    a: int
    b: str = "b"


@dataclass(frozen=True, slots=True)
class FrozenSlots(Operation):
    a: int
    b: str = "b"


@dataclass(slots=True, weakref_slot=True)
class DataWeak(Operation):
    a: int
    b: str = "b"


@attrs.define
class Attrs(Operation):
    a: int
    b: str = "b"


@attrs.define(slots=False)
class AttrsDict(Operation):
    a: int
    b: str = "b"


@attrs.frozen
class AttrsFrozen(Operation):
    a: int
    b: str = "b"


@attrs.define
class AttrsMore(Attrs):
    c: list[int] = attrs.field(factory=list)


class Made(Operation, Generic[T]):
    def __init__(self, a: T, b: str) -> None:
        self.a, self.b = a, b


class NewArguments(Operation):
    """Takes its arguments in `__new__`."""

    __slots__ = ("a", "b")

    def __new__(cls, a: int, b: str) -> NewArguments:
        self = super().__new__(cls)
        self.a, self.b = a, b
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.a, self.b

    def __getstate__(self) -> None:
        return None


class NewNames(Operation):
    def __new__(cls, a: int, *, b: str) -> NewNames:
        self = super().__new__(cls)
        self.a, self.b = a, b
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.a,), {"b": self.b}

    def __getstate__(self) -> None:
        return None


class State(Plain):
    """Holds what cannot be pickled."""

    def __init__(self, a: int, b: str) -> None:
        super().__init__(a, b)
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        assert isinstance(state, dict)
        return {"packed": (state["a"], state["b"])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.a, self.b = state["packed"]
        self.lock = threading.Lock()


class StateMixin:
    def __getstate__(self) -> Any:
        return {"packed": (self.a, self.b)}  # type: ignore[attr-defined]

    def __setstate__(self, state: Any) -> None:
        self.a, self.b = state["packed"]


class MixedBefore(StateMixin, Plain):
    pass


class MixedBehind(Plain, StateMixin):
    pass


class Reduced(Plain):
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.a, self.b), {"how": "reduce"}


class ReducedMore(Plain):
    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments, state = super().__reduce__()
        return make, arguments, {**state, "how": "reduce"}


class ReduceMixin:
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.a, self.b), {"how": "reduce"}  # type: ignore[attr-defined]


class ReducedBehind(Plain, ReduceMixin):
    pass


class ReducedEx(Plain):
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        make, arguments, state = super().__reduce_ex__(protocol)
        return make, arguments, {**state, "how": "reduce"}


KINDS = [
    Plain, Slots, Mixed, Data, DataSlots, Frozen, FrozenSlots, DataWeak, Attrs, AttrsDict, AttrsFrozen, AttrsMore, Made,
    Made[int], NewArguments, NewNames, State, MixedBefore, MixedBehind, Reduced, ReducedMore, ReducedBehind, ReducedEx,
]  # fmt: skip


@ways
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: getattr(kind, "__name__", str(kind)))
def test_an_operation_arrives_with_its_fields_and_new(kind: Any, way: Callable[[Any], Any]) -> None:
    op = kind(1, b="b")

    class Failing(Worker[Any]):
        def process(self, op: Any) -> None:
            raise ValueError("no")

    with WorkerPool([Failing()]) as pool:
        assert pool.do(op).wait(30)
    assert isinstance(op.error, ValueError)
    again = way(op)
    assert type(again) is type(op)
    assert (again.a, again.b) == (1, "b")
    assert (again.outcome, again.error, again.tries) == (Outcome.PENDING, None, 0)
    assert again.cancel()
    if type(op).__name__.startswith("Reduced"):
        assert again.how == "reduce"
    if kind is State:
        assert again.lock is not op.lock
    if kind in (Mixed, AttrsMore):
        assert again.c == op.c


@pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace is new in 3.13")
@pytest.mark.parametrize("kind", [Data, DataSlots, Frozen, FrozenSlots, Attrs])
def test_a_copy_with_other_fields_is_new(kind: Any) -> None:
    op = kind(1)
    op.cancel()
    again = copy.replace(op, a=2)
    assert (again.a, again.outcome) == (2, Outcome.PENDING)


@pytest.mark.parametrize("found", [1, (1,), ([], {}), ((), [])])
def test_bad_new_arguments_are_a_type_error_that_names_the_class(found: Any) -> None:
    class Odd(Operation):
        def __getnewargs_ex__(self) -> Any:
            return found

    class Odder(Operation):
        def __getnewargs__(self) -> Any:
            return [found]

    for kind in (Odd, Odder):
        with pytest.raises(TypeError, match=kind.__name__):
            copy.copy(kind())


class TaskOfMine(Task[int]):
    def __init__(self, fn: Any, /, *args: Any, label: str, **kwargs: Any) -> None:
        super().__init__(fn, *args, **kwargs)
        self.label = label


@ways
@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("make", [lambda: Task(int, "ff", base=16), lambda: TaskOfMine(int, "ff", base=16, label="x")])
def test_a_task_arrives_new_and_can_run(make: Callable[[], Any], ran: bool, way: Callable[[Any], Any]) -> None:
    task = make()
    with WorkerPool([TaskWorker()]) as pool:
        if ran:
            assert pool.do(task).result(30) == 255
        again = way(task)
        assert type(again) is type(task)
        assert (again.fn, again.args, again.kwargs) == (int, ("ff",), {"base": 16})
        assert again.outcome is Outcome.PENDING
        assert not hasattr(again, "value")
        assert getattr(again, "label", "x") == "x"
        assert pool.do(again).result(30) == 255


# Exceptions


class Odd(Retry):
    """Called as no builtin exception is: what `args` holds would not make another."""

    def __init__(self, host: str, *, port: int) -> None:
        super().__init__(f"{host} is down", delay=3)
        self.port = port


class OddState(RingmillError):
    def __init__(self, label: str) -> None:
        super().__init__(label.upper())
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"how": "state"}


class OddReduce(RingmillError):
    def __reduce__(self) -> Any:
        return type(self), ("other",)


class OddSlots(RingmillError):
    __slots__ = ("label",)


class OddSystem(Retry, OSError):
    pass


def _all_errors() -> list[BaseException]:
    closed = Closed("put on a closed ring")
    closed.count, closed.rest = 2, [3, 4]  # type: ignore[attr-defined]
    errors: list[BaseException] = [
        RingmillError("a", 1), PoolNotRunning("b"), BrokenPool("c"), OperationReused("d"), Unroutable("e"),
        RetriesExhausted("f"), Retry(), Retry("g", delay=1.5), Reject("h"), closed, WorkerInitError("i", []),
        Odd("there", port=3),
    ]  # fmt: skip
    named = {type(error) for error in errors}
    public = [getattr(ringmill, name) for name in ringmill.__all__]
    assert {kind for kind in public if isinstance(kind, type) and issubclass(kind, BaseException)} <= named
    return errors


@ways
@pytest.mark.parametrize("error", _all_errors(), ids=lambda error: type(error).__name__)
def test_a_pickled_error_keeps_its_attributes(error: BaseException, way: Callable[[Any], Any]) -> None:
    error.add_note("noted")
    again = way(error)
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    assert again.__notes__[-1] == "noted"
    assert (again.__cause__, again.__traceback__) == (None, None)


@ways
def test_what_an_error_class_says_of_its_copies_is_honoured(way: Callable[[Any], Any]) -> None:
    again = way(OddState("label"))
    assert (again.args, vars(again)) == (("LABEL",), {"how": "state"})
    assert str(way(OddReduce("this"))) == "other"
    slots = OddSlots("x")
    slots.label = "y"
    assert (way(slots).args, way(slots).label) == (("x",), "y")
    system = way(OddSystem(2, "gone", "file"))
    assert (type(system), str(system)) == (OddSystem, str(OddSystem(2, "gone", "file")))


class Broken(Worker[Any]):
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def init(self) -> None:
        raise BadError("one", "two")

    def process(self, op: Any) -> None: ...

    def __repr__(self) -> str:
        return "the broken one"


class BadError(Exception):
    """Can be pickled, and not be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def fail_to_start(_: int = 0) -> None:
    WorkerPool([Broken(), Broken()]).start()


@ways
def test_the_causes_of_a_failed_start_arrive_though_the_workers_cannot(way: Callable[[Any], Any]) -> None:
    with pytest.raises(WorkerInitError) as caught:
        fail_to_start()
    error = caught.value
    again = way(error)
    assert str(again) == str(error)
    assert len(again.causes) == 2
    if way in (copy.copy, copy.deepcopy):
        assert again.causes == error.causes
        assert [worker for worker, _ in again.causes] == [worker for worker, _ in error.causes]
    else:
        assert [worker for worker, _ in again.causes] == ["the broken one"] * 2
        assert [type(cause) for _, cause in again.causes] == [RingmillError] * 2
        assert "one and two" in str(again.causes[0][1])


@ways
def test_a_cause_that_can_be_pickled_is_pickled(way: Callable[[Any], Any]) -> None:
    error = WorkerInitError("no", [(TaskWorker(), ValueError("x"))])
    [(worker, cause)] = way(error).causes
    assert type(worker) is TaskWorker
    assert (type(cause), str(cause)) == (ValueError, "x")


def test_a_failed_start_comes_out_of_a_process_pool() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        result = processes.map_async(fail_to_start, [0])
        with pytest.raises(WorkerInitError, match="2 of 2 workers"):
            result.get(60)


def test_a_ring_is_not_copied() -> None:
    for way in WAYS.values():
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            way(RingBuffer(1))


# What cannot be a field


NAMES = ("outcome", "error", "tries", "wait", "done", "increment_try", "cancel", "check", "reset")


@pytest.mark.parametrize("name", NAMES)
def test_no_field_has_a_reserved_name(name: str) -> None:
    def annotated(base: Any, **more: Any) -> Any:
        return type("Named", (base,), {"__annotations__": {name: bool}, **more})

    class Mixin:
        pass

    setattr(Mixin, name, 3)
    made: list[Callable[[], Any]] = [
        lambda: annotated(Operation),
        lambda: annotated(Operation, **{name: False}),
        lambda: annotated(Task),
        lambda: dataclass(annotated(Operation)),
        lambda: dataclass(slots=True)(annotated(Operation)),
        lambda: attrs.define(annotated(Operation)),
        lambda: type("Named", (Operation,), {name: attrs.field()}),
        lambda: type("Named", (Operation,), {name: field(default=1)}),
        lambda: type("Named", (Operation,), {name: None}),
        lambda: type("Named", (Operation,), {name: property(lambda self: True)}),
        lambda: type("Named", (Operation,), {"__slots__": (name,)}),
        lambda: type("Named", (Plain,), {"__slots__": (name,)}),
        lambda: type("Named", (Mixin, Operation), {}),
        lambda: type("Named", (Operation, Mixin), {}),
        lambda: type("Named", (Operation, annotated(object)), {}),
    ]
    for make in made:
        with pytest.raises(TypeError, match=rf"\b{name}\b.*reserved"):
            make()


@pytest.mark.parametrize("name", ["run", "result", "exception"])
def test_no_field_of_a_task_hides_its_methods(name: str) -> None:
    with pytest.raises(TypeError, match=rf"\b{name}\b.*reserved by Task"):
        type("Named", (Task,), {"__annotations__": {name: int}})

    class Other(Operation):
        result: int = 0  # of an operation that is no Task: a field like others

    assert Other().result == 0


def test_verbs_are_overridden_as_methods_of_any_kind() -> None:
    told = []

    class Method(Operation):
        def done(self) -> None:
            told.append("method")

    class Static(Operation):
        @staticmethod
        def done() -> None:
            told.append("static")

    class Class(Operation):
        @classmethod
        def done(cls) -> None:
            told.append("class")

    class Mixin:
        def done(self) -> None:
            told.append("mixin")

    class FromMixin(Mixin, Operation):
        pass

    for kind in (Method, Static, Class, FromMixin):
        op = kind()
        assert op.cancel()
        assert op.wait(0)
    assert told == ["method", "static", "class", "mixin"]


def test_a_verb_is_looked_up_on_the_class(caplog: pytest.LogCaptureFixture) -> None:
    told = []

    class Told(Operation):
        def done(self) -> None:
            told.append("done")

        def increment_try(self) -> None:
            told.append("increment_try")

    class Trying(Worker[Told]):
        def process(self, op: Told) -> None:
            if not op.tries:
                raise Retry

    op = Told()
    op.done = op.increment_try = "a field"  # type: ignore[assignment,method-assign]
    plain = Plain(1, "b")
    plain.done = lambda: told.append("never")  # type: ignore[method-assign]
    with WorkerPool([Trying()]) as pool:
        pool.do(op)
        pool.do(plain)  # type: ignore[arg-type]
        assert Operation.wait(op, 30)
        assert plain.wait(30)
    assert told == ["increment_try", "done"]
    assert not caplog.records
