"""contextvars: with `context=True` `process` runs in a copy of the submitter's context, otherwise in the thread's."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import functools
import gc
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from ringmill import Operation, Outcome, PoolExecutor, Retry, RingBuffer, Task, TaskWorker, Worker, WorkerPool
from ringmill._core.pool.context import InContext
from tests.loops import BACKENDS, run_loop, together
from tests.threads import run_threads

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


class Who(Operation):
    seen: str
    told: str

    def __init__(self, fails: int = 0) -> None:
        self.fails = fails


class Asker(Worker[Who]):
    def process(self, op: Who) -> None:
        op.seen = user.get()
        user.set("changed by a worker")
        if op.tries < op.fails:
            raise Retry
        if op.fails < 0:
            raise ValueError

    def handle_error(self, error: BaseException, op: Who) -> None:
        op.told = user.get()


CHOICES: list[tuple[dict[str, bool], str]] = [
    ({"context": True}, "ann"),
    ({"context": False}, "nobody"),
    ({}, "nobody"),
]


def as_user(name: str, call: Callable[[], Any]) -> Any:
    def run() -> Any:
        user.set(name)
        return call()

    return contextvars.copy_context().run(run)


def test_a_task_sees_its_submitters_context() -> None:
    with WorkerPool([TaskWorker(), TaskWorker()], context=True) as pool:
        tasks = [Task(user.get) for _ in range(4)]
        as_user("ann", lambda: pool.do(tasks[0]))
        as_user("bob", lambda: pool.do(tasks[1]))
        as_user("eve", lambda: list(pool.execute(tasks[2:])))
        assert [task.result() for task in tasks] == ["ann", "bob", "eve", "eve"]


def test_what_a_task_sets_stays_its_own() -> None:
    with WorkerPool([TaskWorker()], context=True) as pool:
        pool.do(Task(user.set, "mallory")).result()
        assert pool.do(Task(user.get)).result() == "nobody"
    assert user.get() == "nobody"


def test_tasks_that_run_at_once_have_each_its_own_copy() -> None:
    barrier = threading.Barrier(4)

    def set_and_get(name: str) -> str:
        user.set(name)
        barrier.wait()
        return user.get()

    with WorkerPool([TaskWorker() for _ in range(4)], context=True) as pool:
        tasks = [Task(set_and_get, str(n)) for n in range(4)]
        list(pool.execute(tasks))
        assert [task.result() for task in tasks] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("options", "expected"), CHOICES)
def test_whether_operations_see_it_is_the_pools_choice(options: dict[str, bool], expected: str) -> None:
    for submit in (lambda pool, op: pool.do(op), lambda pool, op: pool.execute([op])):
        with WorkerPool([Asker()], **options) as pool:
            op = Who()
            as_user("ann", lambda pool=pool, op=op, submit=submit: submit(pool, op))  # type: ignore[misc]
            assert op.wait()
            assert op.seen == expected


@pytest.mark.parametrize(("options", "expected"), CHOICES)
def test_tasks_are_no_exception(options: dict[str, bool], expected: str) -> None:
    with WorkerPool([TaskWorker()], **options) as pool:
        assert as_user("ann", lambda: pool.do(Task(user.get))).result() == expected


def test_each_try_and_handle_error_run_in_a_copy_of_their_own() -> None:
    with WorkerPool([Asker(), Asker()], context=True) as pool:
        again, broken = Who(fails=2), Who(fails=-1)
        as_user("ann", lambda: pool.do(again))
        as_user("bob", lambda: pool.do(broken))
        assert again.wait()
        assert broken.wait()
        assert again.tries == 2
        assert again.seen == "ann"  # what its first two tries set is gone
        assert (broken.seen, broken.told) == ("bob", "bob")


def test_a_wrap_runs_in_the_context_of_the_thread_that_draws_the_source() -> None:
    def source() -> Iterator[Who]:
        yield Who()
        yield Who()

    with WorkerPool([Asker()], context=True) as pool:
        stream = pool.wrap(source(), buffer=1)
        assert [as_user(name, stream.get).seen for name in ("ann", "bob")] == ["ann", "bob"]
        stream = as_user("eve", lambda: pool.wrap(source(), drawn_by="thread"))
        assert [op.seen for op in stream] == ["eve", "eve"]


def test_operations_from_a_ring_run_in_the_context_of_the_caller_of_wrap() -> None:
    ring: RingBuffer[Who] = RingBuffer(4)
    with WorkerPool([Asker(), Asker()], context=True) as pool:
        stream = as_user("ann", lambda: pool.wrap(ring))
        as_user("bob", lambda: ring.put_many([Who() for _ in range(4)]))
        ring.close()
        assert [op.seen for op in stream] == ["ann"] * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_tasks_of_one_loop_submit_in_contexts_of_their_own(backend: str) -> None:
    async def main() -> None:
        async with WorkerPool([TaskWorker(), TaskWorker()], context=True) as pool:

            async def ask(name: str) -> str:
                user.set(name)
                return await (await pool.ado(Task(user.get)))

            assert await together(lambda: ask("ann"), lambda: ask("bob")) == ["ann", "bob"]

    run_loop(backend, main)


def test_an_operation_submitted_by_a_worker_gets_the_context_of_the_current_operation() -> None:
    with WorkerPool([TaskWorker(), TaskWorker()], context=True) as pool:
        outer = as_user("ann", lambda: pool.do(Task(lambda: pool.do(Task(user.get)))))
        assert outer.result().result() == "ann"


class Value:
    """Something that a context holds and that can be watched."""


held: contextvars.ContextVar[Value | None] = contextvars.ContextVar("held", default=None)


@pytest.mark.parametrize("ends", ["succeeds", "fails", "is cancelled", "is refused"])
def test_the_context_is_released_when_the_operation_has_ended(ends: str) -> None:
    value = Value()
    gone = weakref.ref(value)
    gate = threading.Event()

    def work() -> None:
        if ends == "fails":
            raise ValueError

    def submit(pool: WorkerPool[Task[None]], task: Task[None], value: Value) -> None:
        held.set(value)
        if ends == "is cancelled":
            pool.do(task)
            assert task.cancel()
        elif ends == "is refused":
            with pytest.raises(TypeError):
                pool.execute([task, None])  # type: ignore[list-item]
            pool.do(task)
        else:
            pool.do(task)

    with WorkerPool([TaskWorker()], context=True) as pool:
        pool.do(Task(gate.wait))
        task = Task(work)
        contextvars.copy_context().run(submit, pool, task, value)
        gate.set()
        task.wait()
        if ends == "fails":
            task.exception()
        del value
    gc.collect()
    assert gone() is None
    assert task.outcome is not Outcome.PENDING


@pytest.mark.parametrize("ends", ["full", "refused batch"])
def test_what_a_pool_did_not_take_keeps_no_context(ends: str) -> None:
    """Neither the value, nor for another pool, which may want none."""
    value = Value()
    gone = weakref.ref(value)
    gate = threading.Event()
    task = Task(user.get)

    def submit(value: Value) -> None:
        held.set(value)
        user.set("ann")
        if ends == "full":
            with pytest.raises(queue.Full):
                pool.do(task, timeout=0)
        else:
            with pytest.raises(TypeError):
                pool.execute([task, None])  # type: ignore[list-item]

    with WorkerPool([TaskWorker()], queue_size=1, context=True) as pool, WorkerPool([TaskWorker()]) as other:
        pool.do(Task(gate.wait))
        while not pool.stats().running:
            time.sleep(0.0005)
        pool.do(Task(int))
        contextvars.copy_context().run(submit, value)
        gate.set()
        del value
        gc.collect()
        assert gone() is None
        assert other.do(task).result() == "nobody"


def test_a_task_can_be_reset_and_run_in_another_context() -> None:
    with WorkerPool([TaskWorker()], context=True) as pool:
        task = Task(user.get)
        for name in ("ann", "bob"):
            assert as_user(name, lambda: pool.do(task)).result() == name
            task.reset()
    assert as_user("eve", task.run) is None
    assert task.value == "eve"  # no pool: just a call


def test_many_threads_submit_at_once(seed: int) -> None:
    with WorkerPool([TaskWorker() for _ in range(3)], queue_size=2, context=True) as pool:

        def submit(name: str) -> list[str]:
            user.set(name)
            return [pool.do(Task(user.get)).result() for _ in range(100)]

        names = [str(n) for n in range(4)]
        results = run_threads(*[lambda name=name: submit(name) for name in names])
    assert results == [[name] * 100 for name in names]


def test_the_argument_is_checked() -> None:
    for wrong in ("yes", None, 1):
        with pytest.raises(TypeError, match=f"context must be True or False, not {wrong!r}"):
            WorkerPool([TaskWorker()], context=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"context must be True or False, not {wrong!r}"):
            PoolExecutor(1, context=wrong)  # type: ignore[arg-type]


# the worker's own thread


@pytest.mark.parametrize("kind", [WorkerPool, PoolExecutor])
def test_worker_threads_start_in_an_empty_context(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a thread inherits the context of the one that starts it, as on free-threaded 3.14."""
    start = threading.Thread.start
    inherited: list[int] = []

    def spied(thread: threading.Thread) -> None:
        inherited.append(len(contextvars.copy_context()))
        start(thread)

    def seen() -> int:
        if kind is PoolExecutor:
            with PoolExecutor(2) as executor:
                return executor.submit(lambda: len(contextvars.copy_context())).result()
        with WorkerPool([TaskWorker(), TaskWorker()]) as pool:
            return pool.do(Task(lambda: len(contextvars.copy_context()))).result()

    monkeypatch.setattr(threading.Thread, "start", spied)
    assert as_user("ann", seen) == 0
    assert inherited == [0] * (1 if kind is PoolExecutor else 2)  # an executor starts a thread for its call


class Initialised(Worker[Task[Any]]):
    """Its `init` sets variables, and the decimal precision, on its thread."""

    def __init__(self) -> None:
        self.inits = 0

    def init(self) -> None:
        self.inits += 1
        user.set(f"init {self.inits}")
        held.set(Value())
        decimal.getcontext().prec = 7

    def process(self, op: Task[Any]) -> None:
        op.run()

    def cleanup(self) -> None:
        self.at_cleanup = user.get(), digits()


def digits() -> int:
    """How many digits a division gives in the decimal context that it finds."""
    return len(str(decimal.Decimal(1) / 3)) - 2


def both() -> tuple[str, int, bool]:
    return user.get(), digits(), held.get() is not None


def change() -> tuple[str, int, bool]:
    """What it finds; then it sets something else."""
    found = both()
    user.set("changed")
    held.set(None)
    decimal.getcontext().prec = 3
    return found


@pytest.mark.parametrize("context", [True, False])
def test_what_init_sets_is_seen_by_calls_whose_submitter_lacks_it(context: bool) -> None:
    worker = Initialised()
    empty = contextvars.Context()
    with WorkerPool([worker], context=context) as pool:
        tasks = [Task(change), Task(both)]
        for task in tasks:
            empty.run(pool.do, task).wait()
        rows = [task.result() for task in tasks]
    kept = ("init 1", 7, True)
    assert rows == ([kept, kept] if context else [kept, ("changed", 3, False)])
    assert worker.at_cleanup == (("init 1", 7) if context else ("changed", 3))


def test_variables_of_the_submitter_override_those_of_init() -> None:
    with WorkerPool([Initialised()], context=True) as pool:

        def submit() -> tuple[str, int, bool]:
            user.set("ann")
            decimal.getcontext().prec = 11
            return pool.do(Task(both)).result()

        assert contextvars.Context().run(submit) == ("ann", 11, True)  # and the third from init


def test_a_restart_shows_what_the_new_init_sets() -> None:
    class Fragile(Initialised):
        def process(self, op: Task[Any]) -> None:
            if op.fn is int:
                raise SystemExit
            op.run()

    with WorkerPool([Fragile()], context=True, restart_pause=0) as pool:
        empty = contextvars.Context()
        assert empty.run(pool.do, Task(both)).result()[0] == "init 1"
        crash = empty.run(pool.do, Task(int))
        assert isinstance(crash.exception(), SystemExit)
        assert empty.run(pool.do, Task(both)).result()[0] == "init 2"


@pytest.mark.parametrize("context", [True, False])
def test_what_an_initializer_sets_is_seen_by_calls(context: bool) -> None:
    def initializer() -> None:
        user.set("initializer")
        decimal.getcontext().prec = 7

    def calls(executor: PoolExecutor) -> list[Any]:
        one = executor.submit(change).result()
        return [one, *executor.map(lambda _: both(), range(2))]

    with PoolExecutor(1, initializer=initializer, context=context) as executor:
        rows = contextvars.Context().run(calls, executor)
    later = ("initializer", 7, False) if context else ("changed", 3, False)
    assert rows == [("initializer", 7, False), later, later]


def test_numpys_error_state_is_the_threads_or_the_submitters() -> None:
    """A variable of a library's, set by `init`, or by the submitter."""
    numpy = pytest.importorskip("numpy")

    class Strict(TaskWorker):
        def init(self) -> None:
            numpy.seterr(divide="raise")

    def state() -> str:
        return str(numpy.geterr()["divide"])

    def submit(pool: WorkerPool[Task[str]]) -> list[str]:
        first = pool.do(Task(state)).result()
        with numpy.errstate(divide="ignore"):
            return [first, pool.do(Task(state)).result()]

    for context, expected in ((True, ["raise", "ignore"]), (False, ["raise", "raise"])):
        with WorkerPool([Strict()], context=context) as pool:
            assert contextvars.Context().run(submit, pool) == expected
    with PoolExecutor(1, initializer=numpy.seterr, initargs=("raise",)) as executor:
        assert contextvars.Context().run(executor.submit, state).result() == "raise"


# the decimal context, which is mutable


def in_decimal(prec: int, call: Callable[[], Any]) -> Any:
    """Calls it in a context whose decimal context has that precision."""

    def run() -> Any:
        decimal.getcontext().prec = prec
        return call(), decimal.getcontext().prec

    return contextvars.Context().run(run)


@pytest.mark.parametrize("context", [True, False])
def test_calls_that_run_at_once_share_no_decimal_context(context: bool) -> None:
    barrier = threading.Barrier(4)

    def divide(prec: int) -> int:
        decimal.getcontext().prec = prec
        barrier.wait()
        found = digits()
        barrier.wait()
        return found

    def through_map() -> list[int]:
        with PoolExecutor(4, context=context) as executor:
            return list(executor.map(divide, [5, 10, 15, 20]))

    def through_submit() -> list[int]:
        with PoolExecutor(4, context=context) as executor:
            return [future.result() for future in [executor.submit(divide, prec) for prec in (5, 10, 15, 20)]]

    def through_tasks() -> list[int]:
        with WorkerPool([TaskWorker() for _ in range(4)], context=context) as pool:
            return [task.result() for task in pool.wrap([Task(divide, prec) for prec in (5, 10, 15, 20)], ordered=True)]

    def through_execute() -> list[int]:
        with WorkerPool([TaskWorker() for _ in range(4)], context=context) as pool:
            tasks = [Task(divide, prec) for prec in (5, 10, 15, 20)]
            list(pool.execute(tasks))
            return [task.result() for task in tasks]

    for through in (through_map, through_submit, through_tasks, through_execute):
        assert in_decimal(28, through) == ([5, 10, 15, 20], 28)


def test_a_call_sees_the_precision_of_the_submission() -> None:
    """Not what its submitter has set since, in place."""
    with PoolExecutor(1, context=True) as executor:

        def submit() -> list[int]:
            gate = threading.Event()
            executor.submit(gate.wait)
            futures = []
            for prec in (9, 4):
                decimal.getcontext().prec = prec
                futures.append(executor.submit(digits))
            decimal.getcontext().prec = 2
            gate.set()
            return [future.result() for future in futures]

        assert in_decimal(28, submit) == ([9, 4], 2)


def test_neither_a_retry_nor_handle_error_sees_what_a_try_did_to_the_decimal_context() -> None:
    seen: list[tuple[str, int]] = []

    class Careless(Worker[Who]):
        def process(self, op: Who) -> None:
            seen.append(("process", digits()))
            decimal.getcontext().prec = 3
            raise Retry if op.tries < 2 else ValueError

        def handle_error(self, error: BaseException, op: Who) -> None:
            seen.append(("handle_error", digits()))
            decimal.getcontext().prec = 2

    with WorkerPool([Careless(), Careless()], context=True) as pool:
        assert in_decimal(9, lambda: pool.do(Who()).wait()) == (True, 9)
    assert seen == [("process", 9)] * 3 + [("handle_error", 9)]


def test_a_nested_call_has_a_copy_of_its_own() -> None:
    with PoolExecutor(2, context=True) as executor:

        def outer() -> tuple[int, int]:
            decimal.getcontext().prec = 6
            inner = executor.submit(change).result()[1]
            return inner, digits()

        assert in_decimal(9, lambda: executor.submit(outer).result()) == ((6, 6), 9)


@pytest.mark.parametrize("source", ["reader", "thread", "ring", "async"])
def test_a_wraps_operations_have_copies_of_the_decimal_context(source: str) -> None:
    """Of the thread that draws them; and a source that is drawn on a thread of its own changes no other thread's."""

    def tasks() -> Iterator[Task[Any]]:
        for _ in range(3):
            yield Task(change)
        if source == "thread":
            decimal.getcontext().prec = 5

    async def tasks_async() -> AsyncIterator[Task[Any]]:
        for task in tasks():
            yield task

    async def read_async(pool: WorkerPool[Task[Any]]) -> list[Task[Any]]:
        return [task async for task in pool.wrap(tasks_async())]

    def read(pool: WorkerPool[Task[Any]]) -> list[int]:
        if source == "async":
            done = asyncio.run(read_async(pool))
        elif source == "ring":
            ring: RingBuffer[Task[Any]] = RingBuffer(3)
            stream = pool.wrap(ring)
            contextvars.Context().run(ring.put_many, tasks())
            ring.close()
            done = list(stream)
        else:
            done = list(pool.wrap(tasks(), drawn_by="thread" if source == "thread" else "reader"))
        return [task.result()[1] for task in done]

    with WorkerPool([TaskWorker(), TaskWorker()], context=True) as pool:
        assert in_decimal(9, lambda: read(pool)) == ([9, 9, 9], 9)


def test_no_decimal_context_is_made_where_none_exists() -> None:
    variables = lambda: list(contextvars.copy_context())  # noqa: E731
    with PoolExecutor(1, context=True) as executor, WorkerPool([TaskWorker()], context=True) as pool:
        empty = contextvars.Context()
        assert empty.run(executor.submit, variables).result() == []
        assert empty.run(pool.do, Task(variables)).result() == []
        assert list(empty) == []


def test_decimal_is_not_imported_and_may_be_imported_later() -> None:
    code = """
import sys
from ringmill import PoolExecutor
with PoolExecutor(1, context=True) as executor:
    assert executor.submit(int).result() == 0
    assert "decimal" not in sys.modules
    import decimal
    decimal.getcontext().prec = 5
    def prec():
        found = decimal.getcontext().prec
        decimal.getcontext().prec = 3
        return found
    assert [executor.submit(prec).result(), executor.submit(prec).result(), decimal.getcontext().prec] == [5, 5, 5]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# asyncio


@pytest.mark.parametrize("context", [True, False])
def test_asyncio_to_thread_submits_its_own_context(context: bool) -> None:
    async def main(executor: PoolExecutor) -> list[str]:
        loop = asyncio.get_running_loop()

        async def ask(name: str) -> str:
            user.set(name)
            own = contextvars.copy_context()
            found = await loop.run_in_executor(executor, functools.partial(own.run, user.get))
            assert found == name
            return await loop.run_in_executor(executor, user.get)

        return list(await asyncio.gather(ask("ann"), ask("bob")))

    with PoolExecutor(2, context=context) as executor:
        assert asyncio.run(main(executor)) == (["ann", "bob"] if context else ["nobody", "nobody"])


@pytest.mark.parametrize("arguments", [(), (None,), (1,), (Task(len, ""),), (Task(len, ""), None)])
def test_in_context_refuses_what_carries_none(arguments: tuple[Any, ...]) -> None:
    """It is reachable from Python, and its last argument is looked at as an operation."""
    with pytest.raises(TypeError):
        InContext(print)(*arguments)
    with pytest.raises(TypeError):
        InContext.__new__(InContext)(*arguments)
