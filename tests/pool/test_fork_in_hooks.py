"""A fork inside a worker's hook: the child leaves the pool, which is its parent's; the parent goes on as if nothing
was.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# A child that stays in the pool hangs, or does the parent's work a second time. It may not write the word again.
PRELUDE = """
import os, signal, sys, threading, time, warnings
from ringmill import *

warnings.simplefilter("ignore")
parent = os.getpid()
processed = 0

def fork():
    global child
    if os.getpid() == parent and not child:
        child = os.fork()
        if not child:
            child = -1
            signal.alarm(30)   # ends a child that hangs

def await_child():
    # 0: its threads have ended; the last one's end is the process's
    deadline = time.monotonic() + 60
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0, status
            return
        assert time.monotonic() < deadline
        time.sleep(0.005)

child = 0

class Number(Operation):
    def __init__(self, number):
        self.number = number

class Forking(Worker):
    where = None
    retry_on = KeyError

    def init(self):
        if self.where == "init":
            fork()

    def process(self, op):
        if os.getpid() != parent:
            os._exit(9)
        if op.number == 3 and self.where == "process":
            fork()
        if op.number == 3 and self.where in ("handle_error", "restart"):
            raise ValueError(op.number)
        if op.number == 3 and self.where in ("backoff", "increment_try") and not op.tries:
            raise KeyError(op.number)

    def handle_error(self, error, op):
        if self.where == "restart":
            raise SystemExit
        fork()

    def cleanup(self):
        if self.where in ("cleanup", "restart"):
            fork()

def backoff(tries):
    if Forking.where == "backoff":
        fork()
    return 0.001

class Telling(Number):
    def done(self):
        if Forking.where == "done" and self.number == 3:
            fork()
        super().done()

    def increment_try(self):
        if Forking.where == "increment_try":
            fork()
"""

HOOKS = (
    PRELUDE
    + """
Forking.where = sys.argv[1]
ops = [Telling(number) for number in range(20)]
pool = WorkerPool([Forking()], backoff=backoff, restart_pause=0.01)
pool.start()
came = list(pool.execute(ops))
pool.shutdown()
if os.getpid() != parent:
    os._exit(8)  # the child's only thread is the worker's
assert sorted(op.number for op in came) == list(range(20))
failed = [op.number for op in ops if op.outcome is not Outcome.SUCCEEDED]
assert failed == ([3] if Forking.where in ("handle_error", "restart") else []), failed
await_child()
"""
)

SOURCE = (
    PRELUDE
    + """
def source():
    for number in range(20):
        if number == 3:
            fork()
        yield Number(number)

def read():
    try:
        came = list(pool.wrap(source(), buffer=4, drawn_by=sys.argv[1]))
    except PoolNotRunning:
        if os.getpid() != parent:
            os._exit(0)
        raise
    if os.getpid() != parent:
        os._exit(7)
    assert len(came) == 20

with WorkerPool([Forking()]) as pool:
    read()
await_child()
"""
)

def run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-2000:])


@pytest.mark.parametrize(
    "hook", ["init", "process", "done", "handle_error", "restart", "backoff", "increment_try", "cleanup"]
)
def test_the_child_of_a_hook_leaves_the_pool(hook: str) -> None:
    run(HOOKS, hook)


@pytest.mark.parametrize("drawn_by", ["reader", "thread"])
def test_the_child_of_a_source_is_told_that_the_pool_is_its_parents(drawn_by: str) -> None:
    run(SOURCE, drawn_by)
