"""contextvars: what runs for a submitter sees the submitter's context, in a copy of its own."""

from __future__ import annotations

import contextvars
import gc
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringmill import Operation, Outcome, Retry, RingBuffer, Task, TaskWorker, Worker, WorkerPool
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


def as_user(name: str, call: Callable[[], Any]) -> Any:
    def run() -> Any:
        user.set(name)
        return call()

    return contextvars.copy_context().run(run)


def test_a_task_sees_its_submitters_context_by_default() -> None:
    with WorkerPool([TaskWorker(), TaskWorker()]) as pool:
        tasks = [Task(user.get) for _ in range(4)]
        as_user("ann", lambda: pool.do(tasks[0]))
        as_user("bob", lambda: pool.do(tasks[1]))
        as_user("eve", lambda: list(pool.execute(tasks[2:])))
        assert [task.result() for task in tasks] == ["ann", "bob", "eve", "eve"]


def test_what_a_task_sets_stays_its_own() -> None:
    with WorkerPool([TaskWorker()]) as pool:
        pool.do(Task(user.set, "mallory")).result()
        assert pool.do(Task(user.get)).result() == "nobody"
    assert user.get() == "nobody"


def test_tasks_that_run_at_once_have_each_its_own_copy() -> None:
    barrier = threading.Barrier(4)

    def set_and_get(name: str) -> str:
        user.set(name)
        barrier.wait()
        return user.get()

    with WorkerPool([TaskWorker() for _ in range(4)]) as pool:
        tasks = [Task(set_and_get, str(n)) for n in range(4)]
        list(pool.execute(tasks))
        assert [task.result() for task in tasks] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("context", "expected"), [(True, "ann"), (False, "nobody"), (None, "nobody")])
def test_whether_operations_see_it_is_the_pools_choice(context: bool | None, expected: str) -> None:
    for submit in (lambda pool, op: pool.do(op), lambda pool, op: pool.execute([op])):
        with WorkerPool([Asker()], context=context) as pool:
            op = Who()
            as_user("ann", lambda pool=pool, op=op, submit=submit: submit(pool, op))  # type: ignore[misc]
            assert op.wait()
            assert op.seen == expected


@pytest.mark.parametrize(("context", "expected"), [(True, "ann"), (False, "nobody"), (None, "ann")])
def test_a_tasks_context_can_be_turned_off(context: bool | None, expected: str) -> None:
    with WorkerPool([TaskWorker()], context=context) as pool:
        assert as_user("ann", lambda: pool.do(Task(user.get))).result() == expected


def test_each_try_and_handle_error_run_in_it() -> None:
    with WorkerPool([Asker(), Asker()], context=True) as pool:
        again, broken = Who(fails=2), Who(fails=-1)
        as_user("ann", lambda: pool.do(again))
        as_user("bob", lambda: pool.do(broken))
        assert again.wait()
        assert broken.wait()
        assert again.tries == 2
        assert again.seen == "changed by a worker"  # by its own first try, in the same copy
        assert (broken.seen, broken.told) == ("bob", "changed by a worker")


def test_a_wrap_runs_in_the_context_of_who_draws_it() -> None:
    def source() -> Iterator[Who]:
        yield Who()
        yield Who()

    with WorkerPool([Asker()], context=True) as pool:
        stream = pool.wrap(source(), buffer=1)
        assert [as_user(name, stream.get).seen for name in ("ann", "bob")] == ["ann", "bob"]
        stream = as_user("eve", lambda: pool.wrap(source(), feed="thread"))
        assert [op.seen for op in stream] == ["eve", "eve"]


def test_what_comes_out_of_a_ring_runs_in_the_context_of_who_wrapped_it() -> None:
    ring: RingBuffer[Who] = RingBuffer(4)
    with WorkerPool([Asker(), Asker()], context=True) as pool:
        stream = as_user("ann", lambda: pool.wrap(ring))
        as_user("bob", lambda: ring.put_many([Who() for _ in range(4)]))
        ring.close()
        assert [op.seen for op in stream] == ["ann"] * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_tasks_of_a_loop_hand_over_their_own(backend: str) -> None:
    async def main() -> None:
        async with WorkerPool([TaskWorker(), TaskWorker()]) as pool:

            async def ask(name: str) -> str:
                user.set(name)
                return await (await pool.ado(Task(user.get)))

            assert await together(lambda: ask("ann"), lambda: ask("bob")) == ["ann", "bob"]

    run_loop(backend, main)


def test_a_worker_that_hands_on_hands_on_the_context() -> None:
    with WorkerPool([TaskWorker(), TaskWorker()]) as pool:
        outer = as_user("ann", lambda: pool.do(Task(lambda: pool.do(Task(user.get)))))
        assert outer.result().result() == "ann"


class Value:
    """Something that a context holds and that can be watched."""


held: contextvars.ContextVar[Value | None] = contextvars.ContextVar("held", default=None)


@pytest.mark.parametrize("ends", ["succeeds", "fails", "is cancelled", "is refused"])
def test_the_context_is_let_go_when_the_operation_has_ended(ends: str) -> None:
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

    with WorkerPool([TaskWorker()]) as pool:
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

    with WorkerPool([TaskWorker()], queue_size=1) as pool, WorkerPool([TaskWorker()], context=False) as other:
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
    with WorkerPool([TaskWorker()]) as pool:
        task = Task(user.get)
        for name in ("ann", "bob"):
            assert as_user(name, lambda: pool.do(task)).result() == name
            task.reset()
    assert as_user("eve", task.run) is None
    assert task.value == "eve"  # no pool: just a call


def test_many_threads_hand_over_at_once(seed: int) -> None:
    with WorkerPool([TaskWorker() for _ in range(3)], queue_size=2) as pool:

        def submit(name: str) -> list[str]:
            user.set(name)
            return [pool.do(Task(user.get)).result() for _ in range(100)]

        names = [str(n) for n in range(4)]
        results = run_threads(*[lambda name=name: submit(name) for name in names])
    assert results == [[name] * 100 for name in names]


def test_the_argument_is_checked() -> None:
    with pytest.raises(TypeError, match="context must be True, False or None, not 'yes'"):
        WorkerPool([TaskWorker()], context="yes")  # type: ignore[arg-type]
