"""Where gevent or eventlet has replaced threads by greenlets, ringmill says so instead of hanging.

With the libraries where they are installed, and with a module that looks like them everywhere.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

LONG = 60.0  # seconds; reached only by a test that fails

FAKES = {
    "fake gevent": """
import sys, types, _thread
monkey = types.ModuleType("gevent.monkey")
monkey.is_module_patched = lambda name: name == "threading" and _thread.start_new_thread is start_new_thread
sys.modules["gevent.monkey"] = monkey
def start_new_thread(*args): raise SystemExit("a greenlet was started")
def patch(): _thread.start_new_thread = start_new_thread
""",
    "fake eventlet": """
import sys, types, _thread
patcher = types.ModuleType("eventlet.patcher")
patcher.is_monkey_patched = lambda name: name == "thread" and _thread.start_new_thread is start_new_thread
sys.modules["eventlet.patcher"] = patcher
def start_new_thread(*args): raise SystemExit("a greenlet was started")
def patch(): _thread.start_new_thread = start_new_thread
""",
    "fake gevent of another name": """
import _thread
def start_new_thread(*args): raise SystemExit("a greenlet was started")
start_new_thread.__module__ = "gevent.thread"
def patch(): _thread.start_new_thread = start_new_thread
""",
    "gevent": "from gevent.monkey import patch_all as patch\n",
    "eventlet": "import warnings; warnings.simplefilter('ignore')\nfrom eventlet import monkey_patch as patch\n",
}

CALLS = """
import faulthandler
faulthandler.dump_traceback_later(30, exit=True)

class JobWorker(Worker):
    def process(self, op): pass

async def start():
    async with WorkerPool([JobWorker()]): pass

ring, full, hub = RingBuffer(1), RingBuffer(1), Hub(buffer=1)
full.put(1)
subscription = hub.subscribe()
calls = {
    "start": WorkerPool([JobWorker()]).start,
    "with": WorkerPool([JobWorker()]).__enter__,
    "async with": lambda: start().send(None),
    "submit": lambda: PoolExecutor(1).submit(print),
    "map": lambda: PoolExecutor(1).map(print, [1]),
    "get": ring.get,
    "get with a timeout": lambda: ring.get(timeout=5),
    "get_many": ring.get_many,
    "put": lambda: full.put(2),
    "join": full.join,
    "iteration": lambda: next(iter(ring)),
    "wait": Task(print).wait,
    "subscription": subscription.get,
}
refused = {}
for name, call in calls.items():
    try:
        call()
    except RuntimeError as error:
        refused[name] = str(error)
print(sorted(set(calls) - set(refused)), all("replaced threads by greenlets" in text for text in refused.values()))
# What waits for nothing works.
ring.put(1)
assert ring.get() == 1 and ring.empty() and not ring.get_many.__self__.closed
assert hub.broadcast(1) == 1 and subscription.get() == 1
try:
    ring.get(timeout=0)
except Exception as error:
    print(type(error).__name__)
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("first", ["patched first", "imported first"])
@pytest.mark.parametrize("library", FAKES)
def test_start_and_waits_are_refused(library: str, first: str) -> None:
    if not library.startswith("fake") and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    steps = ["patch()\n", "from ringmill import *\n"]
    if first == "imported first":
        steps.reverse()
    assert run(FAKES[library] + "".join(steps) + CALLS) == "[] True\nEmpty\n"


@pytest.mark.parametrize("library", FAKES)
def test_the_libraries_without_threads_replaced_are_fine(library: str) -> None:
    if not library.startswith("fake") and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    patch = "" if library.startswith("fake") else "patch(thread=False)\n"
    assert run(FAKES[library] + patch + """
import threading
from ringmill import *
with PoolExecutor(2) as executor:
    print(list(executor.map(abs, [-1, 2])))
ring = RingBuffer(1)
threading.Timer(0.05, ring.put, [3]).start()
print(ring.get())
""") == "[1, 2]\n3\n"


def test_another_tool_may_replace_the_function_that_starts_threads() -> None:
    """A debugger does so; threads are threads all the same."""
    assert run("""
import _thread, threading
from ringmill import *
def replace():
    real = _thread.start_new_thread
    def start_new_thread(*args):
        return real(*args)
    _thread.start_new_thread = threading._start_new_thread = start_new_thread
for _ in range(2):
    with PoolExecutor(2) as executor:
        print(list(executor.map(abs, [-1, 2])))
    ring = RingBuffer(1)
    threading.Timer(0.05, ring.put, [3]).start()
    print(ring.get())
    replace()
""") == "[1, 2]\n3\n" * 2


def test_pools_that_ran_before_the_patch_go_on() -> None:
    """Their threads are threads; only those that would begin a wait from then on are refused."""
    assert run(FAKES["fake gevent"] + """
import os, sys, time
from ringmill import *
class JobWorker(Worker):
    def process(self, op): pass
pool = WorkerPool([JobWorker()])
pool.start()
patch()
for _ in range(3):
    op = pool.do(Operation())
    while op.outcome is Outcome.PENDING:
        time.sleep(0.01)
    print(op.outcome.value, flush=True)
    time.sleep(0.05)  # the worker sleeps
pool.shutdown(wait=False)
while pool._run.alive():
    time.sleep(0.01)
os._exit(0)  # the hook for the end would wait
""") == "succeeded\n" * 3
