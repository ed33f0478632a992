"""Signals, forks and exits by the hundred: no hang, no loss, the expected exit status, and nothing on stderr.

RINGMILL_LONG=1: a thousand signals, a thousand forks, a hundred exits of each kind.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LONG_RUN = bool(os.environ.get("RINGMILL_LONG"))
SIGNALS = 1000 if LONG_RUN else 100
FORKS = 1000 if LONG_RUN else 30
EXITS = 100 if LONG_RUN else 5
LIMIT = 600 if LONG_RUN else 100

pytestmark = [
    pytest.mark.watchdog(LIMIT + 20),
    pytest.mark.skipif(sys.platform == "win32", reason="no os.fork, and os.kill ends the process"),
]


def run(script: str, limit: float = LIMIT) -> str:
    """Runs a script; returns what it printed. Its status must be 0 and its stderr empty."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True, text=True, timeout=limit, check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


# One thread puts numbers, the main thread takes them and is interrupted at random moments, wherever it is. What it has
# taken when it is interrupted is in `got` or in the ring: the list is appended to by the ring's own iterator, in C.
SIGINTS = """
import faulthandler, os, queue, random, signal, threading, time
from ringmill import Operation, Outcome, RingBuffer, Worker, WorkerPool
faulthandler.dump_traceback_later({limit}, exit=True)
rng = random.Random({seed})
interrupted = 0

class Job(Operation):
    pass

class JobWorker(Worker):
    def process(self, op):
        pass

def killer(sent):
    for _ in range({signals}):
        taken.wait()
        taken.clear()
        until = time.perf_counter() + rng.random() * 300e-6
        while time.perf_counter() < until:
            pass
        os.kill(main, signal.SIGINT)
    sent.set()

main = os.getpid()
taken, sent = threading.Event(), threading.Event()
ring = RingBuffer(2)
got = []
pool = WorkerPool([JobWorker(), JobWorker()], queue_size=2)
pool.start()
accepted = set()
number = 0

def put():
    for k in range(1 << 60):
        try:
            ring.put(k)
        except Exception:
            return

putter = threading.Thread(target=put, daemon=True)
putter.start()
threading.Thread(target=killer, args=(sent,), daemon=True).start()
while interrupted < {signals}:
    ops = []
    try:
        taken.set()
        while True:
            got.extend([ring.get()]) if rng.random() < 0.3 else got.append(ring.get())
            op = Job()
            ops.append(op)
            pool.do(op)
            op.wait()
            for op in pool.execute([Job(), Job()]):
                ops.append(op)
    except KeyboardInterrupt:
        interrupted += 1
    for op in ops:
        if op.outcome is Outcome.PENDING and not op.wait(20):
            assert op.cancel(), "it is neither new nor does it come to an end"
for _ in range(3):
    ring.get()
ring.close()
putter.join()
pool.shutdown()
stats = pool.stats()
assert stats.accepted == stats.succeeded + stats.failed + stats.cancelled, stats
assert got == sorted(set(got)), "doubled, or out of order"
print(interrupted, len(got), stats.accepted)
"""


def test_signals_at_random_moments(seed: int) -> None:
    interrupted, *_ = map(int, run(SIGINTS.format(seed=seed, signals=SIGNALS, limit=LIMIT - 5)).split())
    assert interrupted == SIGNALS


FORKING = """
import faulthandler, os, signal, threading, time
from ringmill import Operation, PoolNotRunning, RingBuffer, Worker, WorkerPool
faulthandler.dump_traceback_later({limit}, exit=True)

class Job(Operation):
    pass

class JobWorker(Worker):
    def process(self, op):
        pass

empty, full = RingBuffer(2), RingBuffer(1)
full.put(0)
waiters = [threading.Thread(target=empty.get) for _ in range(3)] + [threading.Thread(target=full.put, args=(1,))]
for waiter in waiters:
    waiter.start()
pool = WorkerPool([JobWorker(), JobWorker()])
pool.start()
for k in range({forks}):
    pool.do(Job())  # a worker may be in the middle of anything
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(30)
            empty.put(1)
            assert empty.get() == 1
            assert full.get() == 0
            full.put(2)
            thread = threading.Thread(target=empty.get)
            thread.start()
            empty.put(3)
            thread.join()
            try:
                pool.do(Job())
            except PoolNotRunning:
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, k
assert full.get() == 0
assert full.get() == 1
for k in range(3):
    empty.put(k)
for waiter in waiters:
    waiter.join()
pool.shutdown()
assert pool.stats().succeeded == {forks}, pool.stats()
print("whole")
"""


def test_forks_while_threads_wait_and_pools_work() -> None:
    assert run(FORKING.format(forks=FORKS, limit=LIMIT - 5)) == "whole\n"


EXITING = """
import sys, threading
from ringmill import Closed, Operation, RingBuffer, Worker, WorkerPool

class Job(Operation):
    pass

class JobWorker(Worker):
    def process(self, op):
        pass

def get(ring):
    try:
        ring.get()
    except Closed:
        sys.stdout.write("closed ")

never, later = RingBuffer(1), RingBuffer(1)
for _ in range(3):
    threading.Thread(target=get, args=(never,), daemon=True).start()
    threading.Thread(target=get, args=(later,)).start()
def wait(op):
    op.wait()

threading.Thread(target=wait, args=(Job(),), daemon=True).start()  # for an operation that no worker runs
{pool}
{end}
"""
POOLS = {
    "without-pool": "",
    "running-pool": "pool = WorkerPool([JobWorker(), JobWorker()]); pool.start(); pool.do(Job())",
    "open-stream": "pool = WorkerPool([JobWorker()]); pool.start(); stream = pool.execute([Job(), Job()])",
}
ENDS = {"closes": "later.close()", "closes-late": "threading.Timer(0.01, later.close).start()"}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_exits_with_parked_getters(pool: str, end: str) -> None:
    for _ in range(EXITS):
        assert sorted(run(EXITING.format(pool=pool, end=end), 60).split()) == ["closed"] * 3
