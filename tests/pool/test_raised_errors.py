"""Each thread that raises one error raises an object of its own, since CPython does not guard a shared traceback."""

from __future__ import annotations

import errno
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from ringmill import BrokenPool, Operation, PoolExecutor, RetriesExhausted, Retry, Task, TaskWorker, Worker, WorkerPool
from ringmill._core.pool.operation import raise_copy
from tests.threads import LONG, run_threads


class Plain(Exception):
    pass


class Demanding(Exception):
    """Its __init__ takes other arguments than it passes on, and counts its calls."""

    made = 0

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        type(self).made += 1


class Strange(ValueError):
    """Whatever might be used to copy it raises."""

    def __new__(cls, *args: object) -> Strange:
        if cls.closed:
            raise AssertionError("not to be called")
        return super().__new__(cls, *args)

    def __init__(self, *args: object) -> None:
        if self.closed:
            raise AssertionError("not to be called")
        super().__init__(*args)

    def _no(self, *args: object) -> Any:
        raise AssertionError("not to be called")

    __reduce__ = __reduce_ex__ = __copy__ = __deepcopy__ = __getstate__ = _no
    closed = False


class Slotted(Exception):
    __slots__ = ("detail", "unset")

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Group(ExceptionGroup):
    pass


class Both(KeyError, AttributeError):
    pass


def import_error() -> ImportError:
    return ImportError("no", name="thing", path="/there")


def os_error() -> OSError:
    error = FileNotFoundError(errno.ENOENT, "none", "this file")
    error.filename2 = "that file"
    return error


def unicode_error() -> UnicodeDecodeError:
    return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")


def noted() -> Plain:
    error = Plain("with a note")
    error.add_note("this note")
    return error


ERRORS: list[Callable[[], BaseException]] = [
    lambda: Plain("a", 2),
    lambda: Demanding(7, reason="why"),
    lambda: Strange("odd"),
    lambda: Slotted("inside"),
    lambda: Group("group", [ValueError(1), Plain(2)]),
    lambda: Both("key"),
    import_error,
    os_error,
    unicode_error,
    noted,
    lambda: StopIteration("value"),
    lambda: AttributeError("none", name="such", obj=[1]),
    lambda: NameError("none", name="such"),
    lambda: SystemExit(3),
    lambda: KeyboardInterrupt("stop"),
    lambda: SyntaxError("bad", ("file", 1, 2, "text")),
]
FIELDS = ("code", "reason", "detail", "name", "path", "filename", "filename2", "errno", "strerror", "object", "start",
          "end", "obj", "value", "msg", "lineno", "text", "message", "exceptions", "__notes__")  # fmt: skip


@pytest.mark.parametrize("make", ERRORS)
def test_a_copy_is_like_the_error(make: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    error = make()
    monkeypatch.setattr(Strange, "closed", True)
    made = Demanding.made
    copy = raise_copy(error, None)
    assert copy is not error
    assert type(copy) is type(error)
    assert Demanding.made == made  # its own code is not called
    assert copy.args == error.args
    assert str(copy) == str(error)
    for name in FIELDS:
        assert getattr(copy, name, None) == getattr(error, name, None), name
    assert copy.__cause__ is error
    assert error.__cause__ is None
    copy.add_note("another")
    assert "another" not in getattr(error, "__notes__", [])


def test_a_cause_is_kept() -> None:
    error, cause = Plain("that"), ValueError("why")
    error.__cause__ = cause
    copy = raise_copy(error, None)
    assert copy is not error
    assert copy.__cause__ is cause
    assert copy.__context__ is error


@pytest.mark.parametrize("make", ERRORS)
def test_each_thread_that_checks_raises_an_object_of_its_own(make: Callable[[], BaseException]) -> None:
    error = make()

    def throw() -> None:
        raise error

    with WorkerPool([TaskWorker()]) as pool:
        task = pool.do(Task(throw))
        assert task.wait(LONG)

        def check() -> BaseException:
            try:
                task.check()
            except BaseException as raised:
                return raised
            raise AssertionError

        def result() -> BaseException:
            try:
                task.result(LONG)
            except BaseException as raised:
                return raised
            raise AssertionError

        raised = run_threads(check, result, check, result)
    assert task.error is error
    assert len(set(map(id, raised))) == 4
    assert all(type(one) is type(error) and one.args == error.args for one in raised)
    assert sum(one is error for one in raised) == 1  # the first
    assert all(one is error or one.__cause__ is error for one in raised)
    for one in raised:
        names = [frame.name for frame in traceback.extract_tb(one.__traceback__)]
        assert "throw" in names
        assert names.count("check") + names.count("result") <= 2  # the frames of its own thread, and no other's


def test_each_call_of_a_futures_result_raises_an_object_of_its_own() -> None:
    error = Plain("in the call")

    def throw() -> None:
        raise error

    with PoolExecutor(1) as executor:
        future = executor.submit(throw)

        def result() -> BaseException:
            try:
                future.result(LONG)
            except Plain as raised:
                return raised
            raise AssertionError

        assert future.exception(LONG) is error
        raised = run_threads(*[result] * 4)
    assert len(set(map(id, raised))) == 4
    assert sum(one is error for one in raised) == 1
    assert all(one is error or one.__cause__ is error for one in raised)


def test_the_cause_of_exhausted_retries_is_seen_by_each() -> None:
    class Failing(Worker[Operation]):
        def process(self, op: Operation) -> None:
            raise Retry("again")

    class Op(Operation):
        pass

    with WorkerPool([Failing()], max_tries=2) as pool:
        op = pool.do(Op())
        assert op.wait(LONG)
    for _ in range(3):
        with pytest.raises(RetriesExhausted) as raised:
            op.check()
        assert isinstance(raised.value.__cause__, Retry)


def test_each_operation_of_a_broken_pool_fails_with_an_error_of_its_own() -> None:
    held, opened = threading.Event(), threading.Event()

    class Op(Operation):
        pass

    class Dying(Worker[Op]):
        def process(self, op: Op) -> None:
            held.set()
            assert opened.wait(LONG)
            raise SystemExit

    pool = WorkerPool([Dying()], max_restarts=0, queue_size=100)
    pool.start()
    pool.do(Op())
    assert held.wait(LONG)
    ops = [pool.do(Op()) for _ in range(20)]
    stream = pool.execute([Op() for _ in range(20)])
    ring = pool.wrap([Op()])
    opened.set()
    ops += list(stream)
    for op in ops:
        assert op.wait(LONG)
    assert {type(op.error) for op in ops} == {BrokenPool}
    assert len({id(op.error) for op in ops}) == 40
    assert len({id(op.error.args) for op in ops if op.error}) >= 1
    refused = []
    for call in (lambda: pool.do(Op()), lambda: pool.do(Op()), lambda: next(ring), lambda: next(ring)):
        with pytest.raises(BrokenPool) as raised:
            call()
        refused.append(raised.value)
    assert len({id(error) for error in [*refused, *[op.error for op in ops]]}) == 44
    pool.shutdown()
