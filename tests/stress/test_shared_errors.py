"""An exception object that several threads get hold of at the same moment: none of them raises it while another one
does.

CPython adds the frames of each raiser to the object's traceback, which a free-threaded build of CPython 3.13 does not
guard. Run under ThreadSanitizer (tests/tools/tsan.sh), the stress tests show that.
"""

# ruff: noqa: B023 - the functions end within the turn of the loop that defines them
from __future__ import annotations

import asyncio
import logging
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringmill import (
    BrokenPool,
    Closed,
    Operation,
    PoolExecutor,
    PoolNotRunning,
    Stream,
    Task,
    TaskWorker,
    Worker,
    WorkerPool,
)
from ringmill._core.pool.operation import raise_copy
from tests.threads import LONG, run_threads, start_threads

ROUNDS = 50
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


class Op(Operation):
    pass


class Quick(Worker[Op]):
    def process(self, op: Op) -> None:
        pass


def raised_by(call: Callable[[], Any]) -> BaseException | None:
    try:
        call()
    except BaseException as error:
        return error
    return None


# What a class of exceptions may do


class Hidden(ValueError):
    """An exception of which nothing can be asked."""

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise AssertionError("not to be asked")

    @property
    def __class__(self) -> Any:
        raise AssertionError("not to be asked")

    def with_traceback(self, trace: Any) -> Any:
        raise AssertionError("not to be called")


class HiddenExit(BaseException):
    __traceback__ = Hidden.__traceback__
    __class__ = Hidden.__class__
    with_traceback = Hidden.with_traceback


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
@pytest.mark.parametrize("kind", [Hidden, HiddenExit])
def test_a_source_may_raise_an_exception_of_which_nothing_can_be_asked(
    kind: type[BaseException], drawn_by: Any, ordered: bool
) -> None:
    """The stream ends with it, rather than that its readers wait without end."""
    error = kind("odd")

    def source() -> Iterator[Op]:
        yield Op()
        raise error

    with WorkerPool([Quick()]) as pool:
        stream = pool.wrap(source(), drawn_by=drawn_by, ordered=ordered)
        got = 0
        raised: list[BaseException] = []
        while not raised:
            one = raised_by(lambda: stream.get(LONG))
            if one is None:
                got += 1
            else:
                raised.append(one)
        assert raised == [error]
        got += len(list(stream))
        assert got == 1


def test_a_future_may_have_an_exception_of_which_nothing_can_be_asked() -> None:
    error = Hidden("odd")

    def throw() -> None:
        raise error

    with PoolExecutor(1) as executor:
        future = executor.submit(throw)
        assert raised_by(lambda: future.result(LONG)) is error
        again = raised_by(lambda: future.result(LONG))
        assert type(again) is Hidden
        assert again.args == error.args


def test_a_future_that_was_given_no_exception_says_so() -> None:
    with PoolExecutor(1) as executor:
        executor.submit(int).result(LONG)
        future = executor.submit(int)
        future.cancel()
        if not future.cancelled():
            future.result(LONG)
            future = type(future)(future._call)  # type: ignore[call-arg]
        else:
            future = type(future)(None)  # type: ignore[call-arg]
        future.set_exception("no exception")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="no exception"):
            future.result(0)


# Who raises the object itself, and who a copy


def test_what_the_worker_goes_on_to_log_is_raised_as_a_copy_only() -> None:
    """Free-threaded: the log of a crash reads the exception while those that wait for the operation raise it."""

    class Crash(BaseException):
        pass

    class Crashing(Worker[Op]):
        def process(self, op: Op) -> None:
            raise Crash("down")

    class Broken(Worker[Op]):
        def process(self, op: Op) -> None:
            raise ValueError("first")

        def handle_error(self, error: Exception, op: Op) -> None:
            raise KeyError("second")  # its __context__ is the first

    for worker in (Crashing(), Broken()):
        with WorkerPool([worker]) as pool:
            op = pool.do(Op())
            assert op.wait(LONG)
        error = op.error
        assert error is not None
        raised = [raised_by(op.check), raised_by(op.check)]
        assert sum(one is error for one in raised) == (0 if FREE_THREADED else 1)
        assert all(one is error or (one is not None and one.__cause__ is error) for one in raised)


def test_what_done_raises_is_not_chained_to_the_error_that_others_raise(caplog: pytest.LogCaptureFixture) -> None:
    class Loud(Op):
        def done(self) -> None:
            super().done()
            raise LookupError

    class Failing(Worker[Op]):
        seen: BaseException | None = None

        def process(self, op: Op) -> None:
            raise ValueError

        def handle_error(self, error: Exception, op: Op) -> None:
            self.seen = sys.exception()  # here it is what is being handled

    worker = Failing()
    with WorkerPool([worker]) as pool:
        op = pool.do(Loud())
        assert op.wait(LONG)
    assert worker.seen is op.error is not None
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [type(error) for error in logged] == [LookupError]
    assert logged[0] is not None
    assert logged[0].__context__ is None


def test_a_base_exception_in_a_source_is_raised_by_the_reader_that_drew_alone() -> None:
    """The other reader, for which the stream ends at that moment, is not given the same object to raise."""

    class Exit(BaseException):
        pass

    for _ in range(ROUNDS):
        drawing, go = threading.Event(), threading.Event()

        def source() -> Iterator[Op]:
            drawing.set()
            assert go.wait(LONG)
            raise Exit
            yield Op()

        with WorkerPool([Quick()]) as pool:
            stream = pool.wrap(source())

            def read() -> BaseException | None:
                return raised_by(lambda: stream.get(LONG))

            readers = start_threads(read, read)
            assert drawing.wait(LONG)
            go.set()
            raised = readers.join()
        assert sorted(type(error).__name__ for error in raised) == ["Closed", "Exit"]


# Stress


@pytest.mark.stress
@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_readers_of_a_source_that_raises(drawn_by: Any) -> None:
    """One reader raises the source's error, the others end, all at the same moment; and each logs what it got."""

    def read(stream: Stream[Op]) -> BaseException | None:
        error = None
        try:
            for _ in stream:
                pass
        except ValueError as raised:
            error = raised
            "".join(traceback.format_exception(raised))
        return error

    with WorkerPool([Quick(), Quick()]) as pool:
        for _ in range(ROUNDS):
            error = ValueError("in the source")

            def source() -> Iterator[Op]:
                for _ in range(3):
                    yield Op()
                raise error

            stream = pool.wrap(source(), buffer=2, drawn_by=drawn_by)
            raised = run_threads(*[lambda: read(stream)] * 4)
            assert [one for one in raised if one is not None] == [error]


@pytest.mark.stress
@pytest.mark.parametrize("how", ["shut down", "broken"])
def test_readers_of_streams_whose_pool_ends(how: str) -> None:
    """The pool's end is told to all readers, of all streams: each raises an object of its own."""

    class Gated(Worker[Op]):
        def __init__(self) -> None:
            self.begun, self.gate = threading.Event(), threading.Event()

        def process(self, op: Op) -> None:
            self.begun.set()
            assert self.gate.wait(LONG)
            if how == "broken":
                raise SystemExit

    def read(stream: Stream[Op]) -> BaseException | None:
        try:
            for _ in stream:
                pass
        except (PoolNotRunning, BrokenPool) as raised:
            "".join(traceback.format_exception(raised))
            return raised
        return None

    def source() -> Iterator[Op]:
        while True:
            yield Op()

    for _ in range(ROUNDS // 5):
        worker = Gated()
        pool = WorkerPool([worker], max_restarts=0)
        pool.start()
        streams = [pool.wrap(source(), buffer=2) for _ in range(2)]
        readers = start_threads(*[lambda stream=stream: read(stream) for stream in streams * 2])
        assert worker.begun.wait(LONG)
        worker.gate.set()
        pool.shutdown()
        raised = [error for error in readers.join() if error is not None]
        assert len(set(map(id, raised))) == len(raised)
        assert raised


@pytest.mark.stress
@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_threads_that_check_one_failed_operation(kind: type[BaseException]) -> None:
    """By `check`, `result` and `await`; while the worker logs that it crashed."""

    class Failing(Worker[Op]):
        def process(self, op: Op) -> None:
            raise kind("in the worker")

    def throw() -> None:
        raise kind("in the task")

    logging.getLogger("ringmill").addHandler(handler := Formatting())
    try:
        with (
            WorkerPool([Failing(), Failing()], max_restarts=None, restart_pause=0.0) as pool,
            WorkerPool([TaskWorker(), TaskWorker()]) as tasks,
            PoolExecutor(2) as executor,
        ):
            for _ in range(ROUNDS):
                op, task, future = pool.do(Op()), tasks.do(Task(throw)), executor.submit(throw)

                def check() -> list[BaseException | None]:
                    assert op.wait(LONG)
                    return [raised_by(op.check), raised_by(task.result), raised_by(lambda: future.result(LONG))]

                def check_in_handler() -> list[BaseException | None]:
                    try:
                        raise KeyError("what is handled becomes the context of what is raised")
                    except KeyError:
                        return check()

                def check_in_loop() -> list[BaseException | None]:
                    async def check_all() -> list[BaseException | None]:
                        await op
                        found = [raised_by(op.check)]
                        try:
                            await task
                        except BaseException as error:
                            found.append(error)
                        return [*found, raised_by(lambda: future.result(LONG))]

                    return asyncio.run(check_all())

                raised = run_threads(check, check, check_in_handler, check_in_loop)
                for column in zip(*raised, strict=True):
                    assert len(set(map(id, column))) == 4
                    assert {type(error) for error in column} == {kind}
    finally:
        logging.getLogger("ringmill").removeHandler(handler)
    assert handler.count or kind is ValueError


@pytest.mark.stress
def test_threads_that_copy_one_error() -> None:
    """The error has no dictionary of attributes yet, which CPython makes when it is asked for."""
    for _ in range(ROUNDS * 5):
        error = ValueError("in the worker")
        copies = run_threads(*[lambda error=error: raise_copy(error, None)] * 3)
        assert len({id(copy) for copy in copies}) == 3
        assert all(copy.__cause__ is error for copy in copies)


class Formatting(logging.Handler):
    """Formats each record, its exceptions included, and drops it."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += len(self.format(record)) > 0


@pytest.mark.stress
def test_a_worker_that_is_stuck_in_python_code_is_named_while_others_run(caplog: pytest.LogCaptureFixture) -> None:
    """Its stack is read while it, the other workers and other threads call, return, raise and make frames."""
    stop = threading.Event()

    def deep(left: int) -> int:
        return 1 if not left else deep(left - 1) + 1

    def turn() -> None:
        while not stop.is_set():
            deep(5)
            try:
                raise ValueError
            except ValueError:
                pass

    begun = threading.Semaphore(0)

    class Stuck(Worker[Op]):
        def process(self, op: Op) -> None:
            begun.release()
            turn()

    other_thread = start_threads(turn)
    pools = []
    try:
        with WorkerPool([Quick()]) as other:
            for number in range(5):
                pool = WorkerPool([Stuck(), Stuck()], name=f"stuck{number}")
                pool.start()
                ops = [pool.do(Op()) for _ in range(3)]
                assert begun.acquire(timeout=LONG)
                assert begun.acquire(timeout=LONG)
                others = [other.do(Op()) for _ in range(50)]
                cancelled = pool.shutdown(timeout=0.01)
                assert set(map(id, cancelled)) <= set(map(id, ops))
                assert all(op.wait(LONG) for op in others)
                pools.append(pool)
            warnings = [record.getMessage() for record in caplog.records if " is stuck after " in record.getMessage()]
            assert len(warnings) == 10
            if not FREE_THREADED or sys.version_info >= (3, 13, 2):
                assert any("turn" in warning for warning in warnings)
    finally:
        stop.set()
    other_thread.join()
    for pool in pools:
        pool.shutdown()


def test_readers_that_find_a_stream_closed() -> None:
    """No other thread's error is raised by a second reader."""
    with WorkerPool([Quick()]) as pool:
        stream = pool.wrap([Op()])
        assert len(list(stream)) == 1
        first, second = raised_by(stream.get), raised_by(stream.get)
    assert isinstance(first, Closed)
    assert isinstance(second, Closed)
    assert first is not second
