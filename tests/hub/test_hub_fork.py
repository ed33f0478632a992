"""Hubs and subscription rings in the child of a fork do not hang, whatever other threads did at the fork."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ringmill import Hub, SubscriptionRing

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # "is multi-threaded"
]

# Threads change hubs and rings without pause while the main thread forks, again and again; each child uses all of them.
# In a process of its own: its threads are never joined.
CHURN = """
import gc, os, sys, threading, time, warnings
from ringmill import Hub, SubscriptionRing
warnings.simplefilter("ignore")
hub, ring, full = Hub(buffer=2, overflow="drop_oldest"), SubscriptionRing(), Hub(buffer=1)
stays = full.subscribe()
full.broadcast(0)
items = [object() for _ in range(40)]

def churn():
    while True:
        sub = hub.subscribe()
        hub.broadcast(1)
        hub.signal(2)
        if time.monotonic_ns() & 1:
            sub.close()
        del sub

def turn():
    while True:
        for item in items:
            ring.add(item)
        ring.take(), list(ring), ring.current, items[0] in ring
        for item in items:
            ring.remove(item)

def wait():
    while True:
        try: full.broadcast(1, 0.001)
        except Exception: pass

def consistent(ring):
    # Each occurrence is found, and removed once.
    walked = list(ring)
    assert len(walked) == len(ring)
    for _ in walked: ring.take()
    for item in walked:
        assert item in ring and ring.remove(item)
    assert (len(ring), ring.current, list(ring)) == (0, None, [])

for function in (churn, churn, turn, turn, wait):
    threading.Thread(target=function, daemon=True).start()
for fork in range(FORKS):
    pid = os.fork()
    if pid == 0:
        try:
            consistent(ring)
            ring.add(1)
            assert list(ring) == [1] and ring.remove(1)
            sub = hub.subscribe()
            assert hub.broadcast(3) == len(hub)
            assert hub.signal(4) is not None
            assert len(sub) in (1, 2)
            before = len(hub)
            del sub
            assert len(hub) == before - 1
            gc.collect()
            hub.close()
            assert stays.get() in (0, 1)
            assert full.broadcast(5) == 1
            stays.close()
            assert len(full) == 0
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    until = time.monotonic() + 30
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            print("hung", fork, flush=True)
            os._exit(1)
        time.sleep(0.0005)
    if ended[1]:
        print("failed", fork, flush=True)
        os._exit(1)
print("all ended", flush=True)
os._exit(0)
"""


@pytest.mark.stress
def test_forks_while_threads_change_everything() -> None:
    script = CHURN.replace("FORKS", "40")
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=110, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "all ended\n", "")


def child(check: object) -> int:
    """The exit status of a child that calls it."""
    pid = os.fork()
    if pid == 0:
        try:
            check()  # type: ignore[operator]
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_hubs_and_rings_made_before_work_in_the_child_and_leave_the_parents_alone() -> None:
    hub = Hub[int](buffer=3)
    sub, other = hub.subscribe(), hub.subscribe()
    ring = SubscriptionRing[str]()
    names = ["one", "two", "three"]  # removed by identity
    for name in names:
        ring.add(name)
    hub.broadcast(1)

    def check() -> None:
        nonlocal other
        assert hub.broadcast(2) == 2
        assert hub.signal(3) is sub
        assert sub.get_many() == [1, 2, 3]
        del other
        assert len(hub) == 1
        assert (ring.take(), ring.remove(names[1]), list(ring)) == ("one", True, ["three", "one"])
        assert child(lambda: hub.close()) == 0  # a child of the child
        assert hub.broadcast(4) == 1
        hub.close()
        assert list(sub) == [4]

    assert child(check) == 0
    assert hub.broadcast(5) == 2
    assert list(ring) == names
    assert [sub.get_many(), other.get_many()] == [[1, 5], [1, 5]]
