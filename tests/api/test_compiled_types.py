"""Compiled types refuse None and missing arguments without crashing. Each test runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each line says what is called next, so that a crash names it.
PRELUDE = """
import faulthandler, gc, importlib, inspect, itertools, pkgutil, sys
import ringmill, ringmill._core
from ringmill._core.pool.run import PoolRun
from ringmill._core.pool.worker_loop import WorkerLoop, new_run
from ringmill._core.pool.work_source import WorkSource
from ringmill._core.pool.retry_queue import RetryEntry, RetryQueue
from ringmill._core.pool.stream import Stream, draw_on_thread

faulthandler.enable()
faulthandler.dump_traceback_later(30, exit=True)

def attempt(call, *args):
    try:
        found = call(*args)
        if inspect.iscoroutine(found) or hasattr(found, "send"):
            try:
                found.send(None)
            finally:
                found.close()
    except BaseException as error:
        assert not isinstance(error, (SystemError, KeyboardInterrupt)), error
"""

MAKE = (
    PRELUDE
    + """
ring = ringmill.RingBuffer(2)
arguments = [None, 1, "block", [], (), ring]
for info in pkgutil.walk_packages(ringmill._core.__path__, "ringmill._core."):
    module = importlib.import_module(info.name)
    for name, kind in list(vars(module).items()):
        if not isinstance(kind, type) or kind.__module__ != module.__name__:
            continue
        kinds = [kind]
        try:
            class Heir(kind):
                def __init__(self, *args): pass
            kinds.append(Heir)
        except TypeError:
            pass  # final
        for kind in kinds:
            made = []
            print(info.name, kind, flush=True)
            for count in range(4):
                for args in itertools.product(arguments, repeat=count):
                    for make in (kind, lambda *args: kind.__new__(kind, *args)):
                        attempt(lambda: made.append(make(*args)))
            for one in made[:20]:
                attempt(repr, one)
                attempt(lambda: iter(one))
                for name in dir(kind):
                    if name in ("__class__", "__init_subclass__", "__subclasshook__", "wait", "get", "join", "__next__",
                                "pause", "put", "await_reports", "await_verdict", "await_over", "run_timer"):
                        continue
                    for count in range(4):
                        if name == "get_many" and count < 2 or name == "aget" and "Sub" in str(kind):
                            continue  # would wait
                        args = (None, 0) if name == "get_many" else (None,) * count
                        print(name, args, flush=True)
                        attempt(lambda: getattr(one, name)(*args))
            del made, kind
            gc.collect()
"""
)

USE = (
    PRELUDE
    + """
def make_core():
    return new_run("policy", ["worker"], 2, False)

def made():
    core = make_core()
    ring = ringmill.RingBuffer(1)
    yield core
    yield core.worker_loops[0]
    yield WorkSource(ring, ring)
    yield WorkSource(ring)
    op = ringmill.Task(len, "")
    yield op
    yield RetryQueue()
    yield Stream(core, WorkSource(ring, ringmill.RingBuffer(1)))
    yield ringmill.Hub()
    yield ringmill.Hub().subscribe()
    yield ringmill.SubscriptionRing()
    yield ringmill.WorkerPool([ringmill.TaskWorker()])
    yield ringmill.RingBuffer(1)

for which, one in enumerate(made()):
    for name in dir(type(one)):
        # These wait, or end the thread's work; or take what no caller of Python's gives.
        if name in ("__class__", "__next__", "__iter__", "__del__", "wait", "_wait", "run_timer",
                    "pause", "result", "exception", "get", "put", "aget", "join",
                    "run_timer", "run", "__init_subclass__", "__subclasshook__", "start", "__enter__", "__aenter__",
                    "__await__"):
            continue
        for count in range(5):
            print(which, type(one).__name__, name, count, flush=True)
            fresh = next(itertools.islice(made(), which, None))
            args = (None, 0) if name == "get_many" else ([], 0) if name == "put_many" else (None,) * count
            attempt(lambda: getattr(fresh, name)(*args))
core = make_core()
ring = ringmill.RingBuffer(1)
for args in itertools.product([None, core, ring, WorkSource(ring)], repeat=3):
    attempt(lambda: Stream(*args))
    attempt(lambda: Stream(*args[:2], draws=True, wraps=True))
    attempt(lambda: WorkSource(*args[:2], ordered=True))
    attempt(lambda: WorkerLoop(*args))
    attempt(lambda: draw_on_thread(*args, False))
"""
)


@pytest.mark.parametrize("program", [MAKE, USE], ids=["make", "use"])
def test_none_is_no_crash(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stdout[-200:], done.stderr[-2000:])
