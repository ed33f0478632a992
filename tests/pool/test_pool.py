"""A pool as a whole: arguments, names, and what happens when it is dropped, forked, or left running at exit."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from ringmill import Operation, Outcome, PoolNotRunning, RingBuffer, Worker, WorkerPool
from tests.threads import LONG, wait_until

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


class Job(Operation):
    def __init__(self, number: int = 0) -> None:
        self.number = number


class Gated(Worker[Job]):
    """Begins an operation, says so, and ends it when the gate opens."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.cleaned_up = 0
        self.thread: threading.Thread | None = None

    def init(self) -> None:
        self.thread = threading.current_thread()

    def process(self, op: Job) -> None:
        self.begun.release()
        assert self.gate.wait(LONG)

    def cleanup(self) -> None:
        self.cleaned_up += 1


class Open(Gated):
    """One whose gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.set()


# Bad arguments: named, with what was given, and nothing has changed


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("queue_size", 0, ValueError),
        ("queue_size", -1, ValueError),
        ("queue_size", 1.5, TypeError),
        ("queue_size", "3", TypeError),
        ("queue_size", None, TypeError),
        ("queue_size", True, TypeError),
        ("queue_size", 2**62, ValueError),
        ("max_tries", 0, ValueError),
        ("max_tries", -1, ValueError),
        ("max_tries", 2.5, TypeError),
        ("max_tries", "4", TypeError),
        ("max_restarts", -1, ValueError),
        ("max_restarts", 1.5, TypeError),
        ("restart_period", -1, ValueError),
        ("restart_period", float("nan"), ValueError),
        ("restart_period", "60", TypeError),
        ("restart_period", None, TypeError),
        ("restart_pause", -0.1, ValueError),
        ("restart_pause", "0", TypeError),
        ("name", 3, TypeError),
        ("name", None, TypeError),
        ("backoff", 0.5, TypeError),
        ("backoff", "fast", TypeError),
    ],
)
def test_bad_settings(name: str, value: Any, kind: type[Exception]) -> None:
    worker = Open()
    with pytest.raises(kind) as caught:
        WorkerPool([worker], **{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)
    WorkerPool([worker])  # it belongs to no pool yet


@pytest.mark.parametrize(
    "settings", [{"queue_size": 1}, {"max_tries": None}, {"max_restarts": 0}, {"restart_period": 0, "restart_pause": 0}]
)
def test_settings_at_the_edge(settings: dict[str, Any]) -> None:
    with WorkerPool([Open()], **settings) as pool:
        assert pool.do(Job()).wait(LONG)


@pytest.mark.parametrize("workers", [3, None, Open(), [3], [Open(), "worker"], [Open], [Job()]])
def test_objects_that_are_no_workers(workers: Any) -> None:
    with pytest.raises(TypeError, match="workers"):
        WorkerPool(workers)


def test_no_workers_at_all() -> None:
    with pytest.raises(ValueError, match="workers"):
        WorkerPool([])
    with pytest.raises(ValueError, match="workers"):
        WorkerPool(worker for worker in [Open()] if worker.cleaned_up)


def test_a_worker_is_listed_once_and_in_one_pool() -> None:
    shared, other = Open(), Open()
    with pytest.raises(ValueError, match="workers"):
        WorkerPool([shared, other, shared])
    pool = WorkerPool([shared])
    with pytest.raises(ValueError, match="workers"):
        WorkerPool([other, shared])
    with pytest.raises(ValueError, match="workers"):
        WorkerPool([shared])
    WorkerPool([other])  # neither refusal has claimed it
    assert pool.workers == (shared,)


def test_workers_are_compared_by_identity() -> None:
    """A worker's __eq__ and __hash__ are not used."""

    class Alike(Open):
        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        __hash__ = None  # type: ignore[assignment]

    with WorkerPool([Alike(), Alike()]) as pool:
        assert len(list(pool.execute([Job() for _ in range(10)]))) == 10


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda pool: pool.start(timeout=-1), ValueError, ["timeout", "-1"]),
        (lambda pool: pool.start(timeout="1"), TypeError, ["timeout", "'1'"]),
        (lambda pool: pool.shutdown(timeout=-1), ValueError, ["timeout", "-1"]),
        (lambda pool: pool.shutdown(timeout="1"), TypeError, ["timeout", "'1'"]),
        (lambda pool: pool.shutdown(wait=False, timeout=5), ValueError, ["timeout", "5"]),
        (lambda pool: pool.do(Job(), timeout=-1), ValueError, ["timeout", "-1"]),
        (lambda pool: pool.do(Job(), timeout="1"), TypeError, ["timeout", "'1'"]),
        (lambda pool: pool.do(3), TypeError, ["op", "3"]),
        (lambda pool: pool.do(None), TypeError, ["op", "None"]),
        (lambda pool: pool.do(Job), TypeError, ["op", "Job"]),
        (lambda pool: pool.execute(3), TypeError, ["ops", "3"]),
        (lambda pool: pool.execute([Job(), "job"]), TypeError, ["ops", "'job'"]),
        (lambda pool: pool.wrap(3), TypeError, ["source", "3"]),
        (lambda pool: pool.wrap([], buffer=0), ValueError, ["buffer", "0"]),
        (lambda pool: pool.wrap([], buffer=-1), ValueError, ["buffer", "-1"]),
        (lambda pool: pool.wrap([], buffer=1.5), TypeError, ["buffer", "1.5"]),
        (lambda pool: pool.wrap([], buffer="3"), TypeError, ["buffer", "'3'"]),
        (lambda pool: pool.wrap([], buffer=2**62), ValueError, ["buffer", str(2**62)]),
        (lambda pool: pool.wrap(RingBuffer(1), buffer=0), ValueError, ["buffer", "0"]),
        (lambda pool: pool.wrap([], drawn_by="reeder"), ValueError, ["drawn_by", "'reeder'"]),
        (lambda pool: pool.wrap([], drawn_by=None), (TypeError, ValueError), ["drawn_by", "None"]),
    ],
)
def test_bad_calls(call: Callable[[WorkerPool[Job]], Any], kind: type[Exception], words: list[str]) -> None:
    with WorkerPool([Open()]) as pool:
        with pytest.raises(kind) as caught:
            call(pool)
        assert [word for word in words if word not in str(caught.value)] == []
        assert pool.stats().accepted == 0
        assert pool.do(Job()).wait(LONG)  # nothing has changed


def test_use_before_start_and_after_shutdown() -> None:
    pool = WorkerPool([Open()])
    for _ in range(2):
        op = Job()
        ring = RingBuffer[Job](1)
        for call in (
            lambda op=op: pool.do(op),
            lambda op=op: pool.do(op, timeout=0),
            lambda op=op: pool.execute([op]),
            lambda: pool.execute([]),
            lambda op=op: pool.wrap([op]),
            lambda op=op: pool.wrap([op], drawn_by="thread"),
            lambda ring=ring: pool.wrap(ring),
        ):
            with pytest.raises(PoolNotRunning, match="ringmill"):
                call()
        assert op.outcome is Outcome.PENDING
        with pool:
            assert pool.do(op).wait(LONG)  # it stayed new


# Names


def test_threads_carry_the_names_of_pool_and_worker() -> None:
    workers = [Gated(), Gated()]
    with WorkerPool(workers, name="flour") as pool:
        for _ in workers:
            pool.do(Job())
        for worker in workers:
            assert worker.begun.acquire(timeout=LONG)  # a gated worker takes one, so each has one
        names = [worker.thread.name for worker in workers if worker.thread]
        assert len(set(names)) == 2
        assert all(name.startswith("flour") for name in names)
        assert {row.name for row in pool.stats().workers} == set(names)
        for worker in workers:
            worker.gate.set()


def test_repr_says_name_and_state() -> None:
    pool = WorkerPool([Open()], name="flour")
    before = repr(pool)
    with pool:
        during = repr(pool)
    after = repr(pool)
    assert len({before, during, after}) == 3
    assert all("flour" in text for text in (before, during, after))
    assert "running" in during


# A pool that is dropped


def has_ended(worker: Gated) -> bool:
    return worker.thread is not None and not worker.thread.is_alive()


def drop_a_running_pool(worker: Gated) -> list[Job]:
    pool = WorkerPool([worker])
    pool.start()
    ops = [pool.do(Job(number)) for number in range(5)]
    assert worker.begun.acquire(timeout=LONG)
    del pool
    gc.collect()
    return ops


def test_a_dropped_pool_warns_and_finishes() -> None:
    worker = Gated()
    with pytest.warns(ResourceWarning, match="ringmill"):
        ops = drop_a_running_pool(worker)
    worker.gate.set()
    assert all(op.wait(LONG) and op.outcome is Outcome.SUCCEEDED for op in ops)
    wait_until(lambda: has_ended(worker))
    assert worker.cleaned_up == 1


def test_a_dropped_pool_ends_though_the_warning_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: caught.append(type(report.exc_value)))
    worker = Gated()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops = drop_a_running_pool(worker)
    assert caught == [ResourceWarning]
    worker.gate.set()
    assert all(op.wait(LONG) and op.outcome is Outcome.SUCCEEDED for op in ops)
    wait_until(lambda: has_ended(worker))
    assert worker.cleaned_up == 1


def test_a_pool_that_was_shut_down_is_dropped_in_silence() -> None:
    worker = Open()
    pool = WorkerPool([worker])
    pool.start()
    pool.shutdown()
    del pool
    gc.collect()  # a warning would be an error
    with WorkerPool([worker]) as pool:  # and the worker is free again
        assert pool.do(Job()).wait(LONG)


# Fork


def in_child(body: Callable[[], None]) -> str:
    """Runs `body` in a fork of this process; returns what it raised there, or nothing."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads, that is the point
        child = os.fork()
    if child == 0:
        try:
            body()
            text = ""
        except BaseException as error:
            text = f"{error!r} at line {error.__traceback__.tb_next.tb_lineno if error.__traceback__ else 0}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return text


@forks
def test_a_fork_leaves_the_parent_alone_and_the_child_without_the_pool() -> None:
    worker = Gated()
    with WorkerPool([worker]) as pool:
        running = pool.do(Job())
        assert worker.begun.acquire(timeout=LONG)
        queued = pool.do(Job())
        streams = [pool.execute([Job(), Job()]), pool.wrap([Job()]), pool.wrap([Job()], drawn_by="thread")]
        ring = RingBuffer[Job](2)
        streams.append(pool.wrap(ring))

        def body() -> None:
            calls: list[Callable[[], Any]] = [
                lambda: pool.do(Job()),
                lambda: pool.do(Job(), timeout=0),
                lambda: pool.execute([Job()]),
                lambda: pool.wrap([Job()]),
                running.wait,
                queued.wait,
                lambda: queued.wait(timeout=0.01),
                *[stream.get for stream in streams],
                *[stream.get_many for stream in streams],
                *[lambda stream=stream: next(stream) for stream in streams],
            ]
            for number, call in enumerate(calls):
                try:
                    result = call()
                except PoolNotRunning:
                    continue
                raise AssertionError(f"call {number} returned {result!r}")

        assert in_child(body) == ""
        worker.gate.set()
        ring.put(Job())
        ring.close()
        assert [len(list(stream)) for stream in streams] == [2, 1, 1, 1]
        assert (running.outcome, queued.outcome) == (Outcome.SUCCEEDED, Outcome.SUCCEEDED)
    assert pool.stats().accepted == pool.stats().succeeded == 7


@forks
def test_a_fork_can_start_a_pool_of_its_own() -> None:
    with WorkerPool([Open(), Open()]) as pool:
        assert len(list(pool.execute([Job() for _ in range(10)]))) == 10

        def body() -> None:
            with WorkerPool([Open(), Open()]) as own:
                ops = list(own.execute([Job() for _ in range(100)]))
                assert len(ops) == 100
                assert own.do(Job()).wait(LONG)
            assert own.stats().succeeded == 101

        assert in_child(body) == ""
        assert len(list(pool.execute([Job() for _ in range(10)]))) == 10


# Interpreter exit


def run_program(text: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(text)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=2 * LONG, check=False, cwd="/"
    )


def test_exit_finishes_what_was_accepted() -> None:
    ended = run_program("""
        import os
        from ringmill import Operation, Worker, WorkerPool
        class Job(Operation):
            def done(self):
                os.write(1, b"x")
        class Slow(Worker):
            def process(self, op):
                sum(range(10_000))
            def cleanup(self):
                os.write(1, b"c")
        pool = WorkerPool([Slow(), Slow()])
        pool.start()
        for _ in range(50):
            pool.do(Job())
        stream = pool.execute([Job() for _ in range(50)])
    """)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (ended.stdout.count("x"), ended.stdout.count("c")) == (100, 2)


def test_exit_cancels_what_is_delayed() -> None:
    ended = run_program("""
        import os, threading
        from ringmill import Operation, Retry, Worker, WorkerPool
        class Job(Operation):
            def done(self):
                os.write(1, self.outcome.name.encode())
        class Later(Worker):
            def process(self, op):
                tried.set()
                raise Retry(delay=3600)
        tried = threading.Event()
        pool = WorkerPool([Later()])
        pool.start()
        op = pool.do(Job())
        tried.wait()
        while not pool.stats().delayed:
            pass
    """)
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", "CANCELLED")


def test_exit_by_an_error_in_the_body_leaves_the_traceback_and_no_thread() -> None:
    ended = run_program("""
        from ringmill import Operation, Worker, WorkerPool
        class Nothing(Worker):
            def process(self, op):
                pass
        with WorkerPool([Nothing()]) as pool:
            pool.do(Operation())
            raise SystemExit(7)
    """)
    assert (ended.returncode, ended.stderr) == (7, "")
