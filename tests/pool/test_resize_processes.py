"""resize and the rest of the process: Ctrl-C while it waits, a fork, the end of the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.threads import LONG

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and fork of POSIX")

PRELUDE = """
import os, signal, sys, threading, warnings
from ringmill import *

warnings.simplefilter("ignore")
gate = threading.Event()
made = []

class Job(Operation):
    pass

class Member(Worker):
    slow = False
    def __init__(self):
        made.append(self)
        self.calls = []
    def init(self):
        self.calls.append("init")
        if self.slow:
            print("slow", flush=True)
            assert gate.wait(30)
    def process(self, op):
        pass
    def cleanup(self):
        self.calls.append("cleanup")

def check_ended():
    assert all(member.calls in ([], ["init", "cleanup"]) for member in made), [member.calls for member in made]
    left = [thread for thread in threading.enumerate() if thread.name.startswith("ringmill")]
    for thread in left:
        thread.join(20)
    assert not any(thread.is_alive() for thread in left), left
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def finish(process: subprocess.Popen[str], *lines: str) -> None:
    out, err = process.communicate(timeout=2 * LONG)
    assert (process.returncode, out.splitlines(), err) == (0, list(lines), "")


@posix_only
@pytest.mark.parametrize("where", ["in the body", "around the body"])
def test_ctrl_c_while_new_workers_are_not_ready(where: str) -> None:
    """It is raised at once, not when the new workers are ready; the pool is whole, with them or without them."""
    process = start(
        """
        pool = WorkerPool(Member, 1)
        try:
            with pool:
                Member.slow = True
                try:
                    pool.resize(2)
                except KeyboardInterrupt:
                    print("interrupted", gate.is_set(), flush=True)
                    if sys.argv[1] == "around the body":
                        threading.Timer(0.2, gate.set).start()
                        raise
                gate.set()
                assert pool.do(Job()).wait(20)
                pool.resize(3)
                assert len(pool.workers) == 3
                assert pool.do(Job()).wait(20)
        except KeyboardInterrupt:
            print("left", flush=True)
        check_ended()
        print("ended", flush=True)
        """,
        where,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "slow\n"
    process.send_signal(signal.SIGINT)
    if where == "around the body":
        finish(process, "interrupted False", "left", "ended")
    else:
        out, err = process.communicate(timeout=2 * LONG)
        lines = out.splitlines()
        assert (process.returncode, lines[0], lines[-1], err) == (0, "interrupted False", "ended", "")


@posix_only
@pytest.mark.parametrize("moment", ["after", "during"])
def test_a_fork_and_a_resize(moment: str) -> None:
    finish(
        start(
            """
            import time
            pool = WorkerPool(Member, 2)
            pool.start()
            pool.resize(4)
            pool.resize(3)
            resizing = None
            if sys.argv[1] == "during":
                Member.slow = True
                resizing = threading.Thread(target=pool.resize, args=(4,))
                entered = sys.stdout
                resizing.start()
                while len(made) < 5 or not made[4].calls:
                    time.sleep(0.001)
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                status = 1
                try:
                    try:
                        pool.do(Job())
                    except PoolNotRunning:
                        Member.slow = False
                        pool.shutdown()
                        with WorkerPool(Member, 1) as new:
                            new.resize(3)
                            assert new.do(Job()).wait(20)
                        status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            gate.set()
            if resizing is not None:
                resizing.join()
                assert len(pool.workers) == 4
            assert pool.do(Job()).wait(20)
            Member.slow = False
            pool.resize(1)
            assert pool.do(Job()).wait(20)
            pool.shutdown()
            check_ended()
            print("ended", flush=True)
            """,
            moment,
        ),
        *(["slow", "ended"] if moment == "during" else ["ended"]),
    )


def test_a_resize_while_the_program_ends() -> None:
    """No thread can be started any more: a resize is refused, or had been done before."""
    finish(
        start(
            """
            import atexit
            pool = WorkerPool(Member, 1)
            pool.start()
            started = threading.Event()

            def resize():
                count = 0
                try:
                    while True:
                        pool.resize(1 + count % 4)
                        if not pool.do(Job()).wait(20):
                            print("not done", flush=True)
                        count += 1
                        started.set()
                except PoolNotRunning:
                    print("refused", flush=True)

            threading.Thread(target=resize).start()
            assert started.wait(20)
            atexit.register(check_ended)
            """
        ),
        "refused",
    )
