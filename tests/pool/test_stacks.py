"""The stacks of stuck and of running threads, as text."""

from __future__ import annotations

import sys
import sysconfig
import threading
import time

import pytest

from ringmill import stacks
from tests.threads import start_threads

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
TAKEN = not FREE_THREADED or sys.version_info >= (3, 13, 2)

DUMP = """\
Thread 0x00007f0000000001 [pool-1] (most recent call first):
  File "/a.py", line 3 in inner
  File "/b.py", line 20 in outer

Thread 0x00007F0000000002 (most recent call first):
  <no Python frame>

Current thread 0x00007f0000000003 (most recent call first):
  File "/c.py", line 1 in <module>
"""


def test_the_output_of_faulthandler_is_parsed() -> None:
    found = stacks.parse(DUMP, {0x7F0000000001, 0x7F0000000002, 0x7F0000000003, 0x7F0000000004})
    assert found == {
        0x7F0000000001: '  File "/b.py", line 20 in outer\n  File "/a.py", line 3 in inner\n',
        0x7F0000000002: "  <no Python frame>\n",
        0x7F0000000003: '  File "/c.py", line 1 in <module>\n',
    }


@pytest.mark.skipif(not TAKEN, reason="no stack can be taken here: see stacks.py")
def test_the_stack_of_a_thread_that_waits() -> None:
    reached, go = threading.Event(), threading.Event()
    ident = 0

    def stuck_here() -> None:
        nonlocal ident
        ident = threading.get_ident()
        reached.set()
        go.wait()

    thread = start_threads(stuck_here)
    try:
        assert reached.wait(30)
        found = stacks.stacks_of([ident, 1])
    finally:
        go.set()
    thread.join()
    assert list(found) == [ident]
    assert "stuck_here" in found[ident]
    assert found[ident].index("_run") < found[ident].index("stuck_here")  # the innermost call last


def test_it_may_be_called_while_threads_run() -> None:
    """Free-threaded, following the frames of a running thread crashes."""
    stop = threading.Event()
    idents: list[int] = []

    def deep(left: int) -> int:
        return 1 if not left else deep(left - 1) + 1

    def run() -> None:
        idents.append(threading.get_ident())
        while not stop.is_set():
            deep(5)
            try:
                raise ValueError
            except ValueError:
                pass

    threads = start_threads(run, run, run)
    end = time.monotonic() + 0.5
    taken = 0
    try:
        while time.monotonic() < end:
            taken += len(stacks.stacks_of(list(idents)))
    finally:
        stop.set()
    threads.join()
    assert taken or not TAKEN
