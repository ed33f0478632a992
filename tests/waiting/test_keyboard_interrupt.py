"""Ctrl-C ends every wait of the main thread and loses nothing; a waiting thread uses no processor time.

Each case is a process of its own, as the signal goes to the process. To cover another wait, add a line to WAITS.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass

import pytest

# Given to every script: `interrupt_when_parked()` sends one SIGINT as soon as the main thread sleeps.
PRELUDE = """
import os, queue, signal, sys, threading, time
from ringmill import *

main = threading.main_thread().ident
sent = []

def wait_until_parked():
    # Until the main thread uses no processor time; where its clock cannot be read, a moment instead: a signal that
    # comes before the wait has begun ends it just the same.
    if not hasattr(time, "pthread_getcpuclockid"):
        time.sleep(0.2)
        return
    clock = time.pthread_getcpuclockid(main)
    before = -1
    while before != (before := time.clock_gettime_ns(clock)):
        time.sleep(0.05)

def interrupt():
    entered.wait()
    wait_until_parked()
    sent.append(time.monotonic())
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGINT)
    else:
        os.kill(os.getpid(), signal.SIGINT)

def interrupt_when_parked():
    threading.Thread(target=interrupt, daemon=True).start()

entered = threading.Event()
"""

INTERRUPT = """
{setup}
interrupt_when_parked()
try:
    entered.set()
    {wait}
except KeyboardInterrupt:
    took = time.monotonic() - sent[0]
else:
    sys.exit("the wait ended by itself")
assert took < 10, took
{after}
print("interrupted")
"""


@dataclass(frozen=True)
class Wait:
    """A wait that Ctrl-C must end. `wait` is one statement that would block; `after` checks that what was waited for
    is still usable and that nothing is lost."""

    name: str
    setup: str
    wait: str
    after: str


EMPTY = "ring = RingBuffer(2)"
FULL = "ring = RingBuffer(2); ring.put_many([1, 2])"
SOURCE = FULL + "; ring.get(); source = iter(range(3, 10))"
USABLE_EMPTY = """
assert len(ring) == 0 and not ring.closed
for i in range(5):
    ring.put(i); assert ring.get() == i
threading.Thread(target=ring.put, args=(7,)).start()
assert ring.get(timeout=30) == 7  # the wait that was left eats no wake-up
"""
USABLE_FULL = """
assert len(ring) == 2 and not ring.closed
putter = threading.Thread(target=ring.put, args=(7,))
putter.start()
assert [ring.get(timeout=30) for _ in range(3)] == [1, 2, 7]  # what was not put is not in
putter.join()
assert ring.empty()
"""
# One was in and one more was put before the wait. The item in the caller's hands may go down with the
# KeyboardInterrupt, or come in its `rest`; none goes in twice or late.
USABLE_SOURCE = (
    """
assert ring.get_many() == [2, 3]
assert list(source) in ([4, 5, 6, 7, 8, 9], [5, 6, 7, 8, 9])
"""
    + USABLE_EMPTY
)

# A worker that sits in its first operation until the gate opens, so that whatever waits behind it waits.
POOL = """
gate = threading.Event()
class Job(Operation):
    pass
class Gated(Worker):
    def process(self, op):
        gate.wait()
pool = WorkerPool([Gated()], queue_size=1)
pool.start()
held = pool.do(Job())
while pool.stats().running == 0:
    time.sleep(0.001)
"""
POOL_GOES_ON = """
gate.set()
ops = [Job() for _ in range(5)]
assert list(pool.execute(ops)) == ops and held.wait(30)
assert pool.shutdown() == []
"""
REST_OF_STREAM = """
gate.set()
assert sum(1 for op in stream) == 3
""" + POOL_GOES_ON
NOT_TAKEN = "assert late.outcome is Outcome.PENDING and pool.stats().accepted == 2" + POOL_GOES_ON
EXECUTOR = """
gate = threading.Event()
executor = PoolExecutor(1)
held = executor.submit(gate.wait)
"""
EXECUTOR_GOES_ON = """
gate.set()
assert held.result(30) and list(executor.map(abs, [-3, 4])) == [3, 4]
executor.shutdown()
"""
SLOW_INIT = """
gate = threading.Event()
class Slow(Worker):
    def init(self): gate.wait()
    def process(self, op): pass
pool = WorkerPool([Slow()])
"""
STARTS_AGAIN = """
gate.set()
pool.start()
pool.shutdown()
"""

WAITS = [
    Wait("get", EMPTY, "ring.get()", USABLE_EMPTY),
    Wait("get-timeout", EMPTY, "ring.get(timeout=60)", USABLE_EMPTY),
    Wait("get_many", EMPTY, "ring.get_many()", USABLE_EMPTY),
    Wait("get_many-timeout", EMPTY, "ring.get_many(2, timeout=60)", USABLE_EMPTY),
    Wait("iteration", EMPTY, "for item in ring: pass", USABLE_EMPTY),
    Wait("next", EMPTY, "next(iter(ring))", USABLE_EMPTY),
    Wait("put", FULL, "ring.put(3)", USABLE_FULL),
    Wait("put-timeout", FULL, "ring.put(3, timeout=60)", USABLE_FULL),
    Wait("put_many-list", FULL, "ring.put_many([3, 4])", USABLE_FULL),
    Wait("put_many", SOURCE, "ring.put_many(source)", USABLE_SOURCE),
    Wait("put_many-timeout", SOURCE, "ring.put_many(source, timeout=60)", USABLE_SOURCE),
    Wait("join", FULL, "ring.join()", "ring.task_done(); ring.task_done(); ring.join()" + USABLE_FULL),
    Wait("operation", POOL, "held.wait()", POOL_GOES_ON),
    Wait("operation-timeout", POOL, "held.wait(60)", POOL_GOES_ON),
    Wait("do", POOL + "pool.do(Job()); late = Job()", "pool.do(late)", NOT_TAKEN),
    Wait("do-timeout", POOL + "pool.do(Job()); late = Job()", "pool.do(late, timeout=60)", NOT_TAKEN),
    Wait("execute", POOL + "stream = pool.execute([Job(), Job(), Job()])", "next(stream)", REST_OF_STREAM),
    Wait("stream-get", POOL + "stream = pool.execute([Job(), Job(), Job()])", "stream.get(60)", REST_OF_STREAM),
    Wait("wrap", POOL + "stream = pool.wrap(iter([Job(), Job(), Job()]))", "next(stream)", REST_OF_STREAM),
    Wait("wrap-thread", POOL + "stream = pool.wrap([Job(), Job(), Job()], drawn_by='thread')", "next(stream)",
         REST_OF_STREAM),
    Wait("start", SLOW_INIT, "pool.start()", STARTS_AGAIN),
    Wait("future", EXECUTOR, "held.result()", EXECUTOR_GOES_ON),
    Wait("future-timeout", EXECUTOR, "held.exception(timeout=60)", EXECUTOR_GOES_ON),
    Wait("map", EXECUTOR + "results = executor.map(abs, [-1, -2])", "next(results)", EXECUTOR_GOES_ON),
    Wait("subscription", "hub = Hub(); ring = hub.subscribe()", "ring.get()",
         "hub.broadcast(1); assert ring.get() == 1"),
    Wait("broadcast", "hub = Hub(buffer=1); ring = hub.subscribe(); hub.broadcast(1)", "hub.broadcast(2)",
         "assert ring.get_many() == [1]"),
    Wait("signal", "hub = Hub(buffer=1); ring = hub.subscribe(); hub.signal(1)", "hub.signal(2)",
         "assert ring.get_many() == [1]"),
]


def run_script(script: str) -> str:
    """Runs a script in a fresh interpreter; one that hangs is killed, and one that fails fails the test."""
    process = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PRELUDE + script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, f"exit status {process.returncode}\n{process.stdout}{process.stderr}"
    assert not process.stderr, process.stderr
    return process.stdout.strip()


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.name)
def test_ctrl_c_ends_the_wait(wait: Wait) -> None:
    script = INTERRUPT.format(setup=wait.setup, wait=wait.wait, after=wait.after)
    assert run_script(script) == "interrupted"


def test_ctrl_c_leaves_the_other_waiters_asleep() -> None:
    """Another thread waits in the same ring: the signal is the main thread's, the next item is the other's."""
    assert (
        run_script("""
ring = RingBuffer(2)
got = []
getter = threading.Thread(target=lambda: got.append(ring.get()))
getter.start()
interrupt_when_parked()
try:
    entered.set()
    ring.get()
except KeyboardInterrupt:
    pass
assert getter.is_alive() and not got
ring.put(1)
getter.join(30)
print(got)
""")
        == "[1]"
    )


def test_a_handler_that_returns_does_not_end_the_wait() -> None:
    assert (
        run_script("""
seen = []
signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
ring = RingBuffer(2)
def interrupt_and_put():
    interrupt()
    while not seen:  # the handler runs in the main thread, inside its wait
        time.sleep(0.001)
    ring.put("after")
threading.Thread(target=interrupt_and_put).start()
entered.set()
print(ring.get(timeout=30), len(seen))
""")
        == "after 1"
    )


def test_a_handler_that_returns_does_not_prolong_the_wait() -> None:
    """Deadlines are absolute: signals that keep coming do not start the time-out anew."""
    assert (
        run_script("""
seen = []
signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
over = threading.Event()
def keep_interrupting():
    while not over.is_set():
        if sys.platform == "win32":
            signal.raise_signal(signal.SIGINT)
        else:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
threading.Thread(target=keep_interrupting, daemon=True).start()
begun = time.monotonic()
try:
    RingBuffer(2).get(timeout=0.3)
except queue.Empty:
    took = time.monotonic() - begun
over.set()
assert 0.29 < took < 20, took
print("empty", len(seen) > 0)
""")
        == "empty True"
    )


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a look for signals begins no collection")
@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="a few objects make no collection due")
def test_a_waiter_that_runs_a_finalizer_is_not_woken_before_a_sleeper() -> None:
    """The finalizer puts, and waits for the answer of another getter, which has slept for longer."""
    assert (
        run_script("""
import gc
ring = RingBuffer(4)
answered, ran_on, got = threading.Event(), [], []
class Finalizer:
    def __del__(self):
        ran_on.append(threading.get_ident())
        ring.put_nowait("question")
        answered.wait(10)
class Seconds:
    def __float__(self):
        # Makes a collection due, which begins at the next look for signals: in the wait that this is the time-out of.
        cycle = Finalizer()
        cycle.itself = cycle
        del cycle
        gc.set_threshold(1)
        self.objects = [{}, {}, {}, {}, {}, {}]
        return 60.0
def second():
    wait_until_parked()  # the first
    got.append(ring.get(timeout=Seconds()))
gc.collect()
gc.freeze()
thread = threading.Thread(target=second)
thread.start()
got.append(ring.get(timeout=30))
answered.set()
gc.disable()
ring.put("end")
thread.join()
print(*got, ran_on == [thread.ident])
""")
        == "question end True"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process here")
def test_ctrl_c_as_start_has_its_turn_leaves_no_lock_behind() -> None:
    """The signal comes as another start ends, for which this one waits."""
    assert (
        run_script("""
class Slow(Worker):
    def init(self):
        coming_up.set()
        wait_until_parked()
    def process(self, op): pass
def start_and_interrupt():
    pool.start()
    os.kill(os.getpid(), signal.SIGINT)
sys.setswitchinterval(0.02)  # so late does the main thread get the GIL, when it has the lock
for _ in range(5):
    coming_up = threading.Event()
    pool = WorkerPool([Slow()])
    other = threading.Thread(target=start_and_interrupt)
    other.start()
    coming_up.wait()
    try:
        pool.start()
        while True:
            time.sleep(0.001)
    except KeyboardInterrupt:
        pass
    other.join()
    pool.start(timeout=10)
    pool.shutdown()
print("started")
""")
        == "started"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process here")
def test_start_from_a_handler_within_start_does_not_wait_for_itself() -> None:
    assert (
        run_script("""
class Slow(Worker):
    def init(self):
        coming_up.set()
        handled.wait(30)
    def process(self, op): pass
def handler(number, frame):
    try:
        pool.start()
    except RuntimeError as error:
        print("by this thread" in str(error))
    handled.set()
signal.signal(signal.SIGINT, handler)
coming_up, handled = threading.Event(), threading.Event()
pool = WorkerPool([Slow()])
def interrupt_the_start():
    coming_up.wait()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt_the_start).start()
with pool:
    print(pool.stats().running)
""")
        == "True\n0"
    )


# Signals at random moments. Each call goes through `results.extend(iterator)`, which is C all the way: what
# a call returned is in `results` before a handler can run, so the test itself loses nothing between two bytecodes.
TRAFFIC = """
import itertools, operator, random

class Interrupted(Exception):
    pass

armed = False
interrupts = 0

def handler(number, frame):
    global armed, interrupts
    if armed:
        armed = False
        interrupts += 1
        raise Interrupted

def start(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread

ring = RingBuffer({capacity})
rng = random.Random({seed})
"""

posix_signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")


@pytest.mark.stress
@posix_signals
@pytest.mark.parametrize("capacity", [1, 2, 64])
def test_interrupted_getter_loses_and_doubles_nothing(capacity: int, seed: int) -> None:
    """Two threads read; the main one is interrupted again and again, asleep or just being woken."""
    script = """
def produce():
    for i in range(4000):
        ring.put(i)
        if rng.random() < 0.1:
            time.sleep(rng.random() / 1000)  # lets the readers run dry and sleep
    ring.close()

mine, other = [], []
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
threads = start(produce), start(lambda: other.extend(ring))
while True:
    try:
        armed = True
        mine.extend(ring)  # keeps what it has got when the ring's __next__ raises
        armed = False
        break
    except Interrupted:
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
for thread in threads:
    thread.join()
assert sorted(mine + other) == list(range(4000)), (len(mine), len(other))
assert interrupts > 0
print("whole")
"""
    assert run_script(TRAFFIC.format(capacity=capacity, seed=seed) + script) == "whole"


@pytest.mark.stress
@posix_signals
@pytest.mark.parametrize("capacity", [1, 2, 64])
def test_interrupted_putter_loses_and_doubles_nothing(capacity: int, seed: int) -> None:
    """Two threads put; an item of the main thread's is in the ring if and only if its put returned."""
    script = """
def consume():
    for item in ring:
        got.append(item)
        if rng.random() < 0.1:
            time.sleep(rng.random() / 1000)  # lets the putters fill the ring and sleep

items = list(range(3000))
source = iter(items)
got, returned, refused = [], [], []
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
consumer, other = start(consume), start(lambda: ring.put_many(range(-1000, 0)))
while operator.length_hint(source):
    try:
        armed = True
        returned.extend(map(ring.put, source))
        armed = False
    except Interrupted:
        drawn = len(items) - operator.length_hint(source)
        if drawn > len(returned) + len(refused):
            refused.append(items[drawn - 1])
signal.setitimer(signal.ITIMER_REAL, 0)
other.join()
ring.close()
consumer.join()
assert sorted(got + refused) == list(range(-1000, 3000)), (len(got), len(refused))
assert interrupts > 0
print("whole")
"""
    assert run_script(TRAFFIC.format(capacity=capacity, seed=seed) + script) == "whole"


@pytest.mark.stress
@posix_signals
@pytest.mark.parametrize("side", ["getters", "putters"])
def test_an_interrupted_waiter_passes_its_wake_up_on(side: str, seed: int) -> None:
    """The main thread and another one wait; a signal for the one and an item (or a free slot) for either come at once.
    If the wake-up went to the main thread and the signal ends its wait, the other one must be told."""
    calls = {
        "getters": {"wait": "itertools.islice(ring, 1)", "serve": "ring.put_nowait(0)", "left": "0"},
        "putters": {"wait": "map(ring.put, [0])", "serve": "ring.get_nowait()", "left": "1"},
    }[side]
    script = """
ROUNDS = 200
gate = threading.Barrier(3, timeout=20)
over = threading.Event()
mine = []

def other():
    for _ in range(ROUNDS):
        gate.wait()
        for _ in range(rng.choice([0, 0, 100, 1000])):
            pass
        [].extend({wait})
        gate.wait()

def serve():
    for _ in range(ROUNDS):
        gate.wait()
        for _ in range(rng.choice([0, 100, 3000, 10000])):
            pass
        # One after the other without giving the GIL away: the main thread is woken by both before it can look.
        if rng.random() < 0.5:
            os.kill(os.getpid(), signal.SIGALRM)
            {serve}
        else:
            {serve}
            os.kill(os.getpid(), signal.SIGALRM)
        while not over.wait(0.001):
            os.kill(os.getpid(), signal.SIGALRM)  # the first came too early
        gate.wait()

signal.signal(signal.SIGALRM, handler)
if {left}:
    ring.put(0)
start(other)
start(serve)
for i in range(ROUNDS):
    over.clear()
    before = len(mine)
    gate.wait()
    try:
        armed = True
        mine.extend({wait})
        armed = False
    except Interrupted:
        pass
    over.set()
    if len(mine) > before:
        {serve}  # it was meant for the other one
    gate.wait()  # a BrokenBarrierError here: the other one sleeps on
assert len(ring) == {left}
assert interrupts > 0
print("told")
"""
    assert run_script(TRAFFIC.format(capacity=1, seed=seed) + script.format(**calls)) == "told"


# A wait costs nothing


@pytest.mark.parametrize(
    ("setup", "wait"),
    [
        (EMPTY, "ring.get(timeout=0.3)"),
        (EMPTY, "ring.get_many(timeout=0.3)"),
        (FULL, "ring.put(3, timeout=0.3)"),
        (FULL, "ring.put_many([3], timeout=0.3)"),
    ],
    ids=["get", "get_many", "put", "put_many"],
)
def test_a_waiting_thread_uses_no_processor_time(setup: str, wait: str) -> None:
    """Eight threads and the main thread wait; nine that polled or spun would use seconds."""
    assert (
        run_script(f"""
{setup}
def wait():
    try:
        {wait}
    except (queue.Empty, queue.Full):
        return
    sys.exit("the wait ended early")
threads = [threading.Thread(target=wait) for _ in range(8)]
before = time.process_time()
for thread in threads:
    thread.start()
wait()
for thread in threads:
    thread.join()
used = time.process_time() - before
assert used < 0.1, used
print("asleep")
""")
        == "asleep"
    )


AT_ANY_MOMENT = """
import random

op, ring = Task(print), RingBuffer(1)
rng = random.Random({seed})
waits = [ring.get, op.wait]
for number in range(400):
    wait = waits[number % 2]
    entered.clear()

    def interrupt_soon(delay):
        entered.wait()
        until = time.perf_counter() + delay
        while time.perf_counter() < until:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    killer = threading.Thread(target=interrupt_soon, args=(rng.random() * 60e-6,))
    try:
        killer.start()
        entered.set()
        wait()
        sys.exit("the wait ended by itself")
    except KeyboardInterrupt:
        pass
    while killer.is_alive():
        killer.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process here")
def test_ctrl_c_ends_the_wait_whenever_it_comes(seed: int) -> None:
    """Also while the main thread spins, or has just looked for signals: a wake-up that is lost is a hang here."""
    run = subprocess.run(
        [sys.executable, "-c", PRELUDE + AT_ANY_MOMENT.format(seed=seed)],
        capture_output=True, text=True, timeout=100, check=False,
    )
    assert run.returncode == 0, run.stderr
