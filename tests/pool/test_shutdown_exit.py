"""How a program with a running pool ends: at its last line, by Ctrl-C, by a second Ctrl-C. Each in its own process.

The program says on stdout what happens, and each step of a test waits for such a word, so nothing depends on time.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest

from tests.threads import LONG

PRELUDE = """
    import os, signal, sys, threading, time
    from ringmill import *

    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever was inherited

    def say(text):
        os.write(1, f"{text}\\n".encode())

    class Job(Operation):
        def __init__(self, name, error=None):
            self.name = name
            self.error_then = error

        def done(self):
            say(f"{self.name} {self.outcome.value}")
            super().done()

    class JobWorker(Worker):
        def process(self, op):
            if op.name == "held":
                say("begun")
                os.read(0, 1)  # until the test lets it go on
            if op.error_then is not None and not op.tries:
                raise op.error_then

        def handle_error(self, error, op):
            pass

        def cleanup(self):
            say("cleanup")

    def watch(times, main=threading.main_thread().ident):
        # Says it each time that the main thread begins to wait for the workers.
        seen = None
        while times:
            time.sleep(0.001)
            frame, joining = sys._current_frames().get(main), None
            while frame is not None:
                if frame.f_code.co_name == "join":
                    joining = frame
                frame = frame.f_back
            if joining is not None and joining is not seen:
                seen = joining
                times -= 1
                say("joining")

    def start_watch(times):
        threading.Thread(target=watch, args=(times,), daemon=True).start()

    def poke(main=threading.main_thread().ident):
        while True:
            time.sleep(0.005)
            signal.pthread_kill(main, signal.SIGUSR1)

    def start_poking():
        # A Ctrl-C just before the main thread falls asleep does not wake it: CPython's own race, with any lock.
        signal.signal(signal.SIGUSR1, lambda *_: None)
        threading.Thread(target=poke, daemon=True).start()

    pool = WorkerPool([JobWorker()], name="mill")
"""

signals = pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to one process")


class Program:
    def __init__(self, text: str, watch: int) -> None:
        source = textwrap.dedent(PRELUDE) + f"start_watch({watch})\n" + textwrap.dedent(text)
        self.process = subprocess.Popen(
            [sys.executable, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        self.words: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.errors = ""
        self.readers = [threading.Thread(target=self._hear), threading.Thread(target=self._collect)]
        for reader in self.readers:
            reader.start()

    def _hear(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.words.put(line.rstrip())
        self.words.put("(end)")

    def _collect(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def expect(self, *words: str) -> None:
        """The next words, in any order."""
        heard = []
        for _ in words:
            try:
                heard.append(self.words.get(timeout=LONG))
            except queue.Empty:
                raise AssertionError(f"waited for {words}, heard only {heard}") from None
        assert sorted(heard) == sorted(words), self.errors

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("x")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """How it ended: status, stderr."""
        self.expect("(end)")
        status = self.process.wait(LONG)
        for reader in self.readers:
            reader.join(LONG)
        return status, self.errors


@contextlib.contextmanager
def program(text: str, watch: int = 0) -> Iterator[Program]:
    running = Program(text, watch)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        for reader in running.readers:
            reader.join()
        for pipe in (running.process.stdin, running.process.stdout, running.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def ended_by_sigint(ended: tuple[int, str]) -> bool:
    return ended[0] in (-signal.SIGINT, 130) and ended[1].rstrip().endswith("KeyboardInterrupt")


# The last line


def test_everything_accepted_is_finished() -> None:
    with program(
        """
        pool.start()
        pool.do(Job("held"))
        pool.do(Job("one"))
        stream = pool.execute([Job("two"), Job("three", Retry())])
        wrapped = pool.wrap([Job("four"), Job("five")], drawn_by="thread")
        while pool.stats().accepted < 6:
            time.sleep(0.001)
        """,
        watch=1,
    ) as running:
        running.expect("begun", "joining")
        running.let_go()
        running.expect("held succeeded", *[f"{name} succeeded" for name in ("one", "two", "three", "four", "five")])
        running.expect("cleanup")
        assert running.end() == (0, "")


@pytest.mark.parametrize("delay", ["0.001", "3600"])
def test_delayed_work_is_cancelled_even_if_it_is_delayed_only_now(delay: str) -> None:
    with program(
        f"""
        pool.start()
        pool.do(Job("before", Retry(delay=3600)))
        while not pool.stats().delayed:
            time.sleep(0.001)
        pool.do(Job("held", Retry(delay={delay})))
        pool.do(Job("after", Retry(delay={delay})))
        pool.do(Job("last"))
        """,
        watch=1,
    ) as running:
        running.expect("begun", "before cancelled", "joining")
        running.let_go()
        running.expect("held cancelled", "after cancelled", "last succeeded", "cleanup")
        assert running.end() == (0, "")


def test_a_source_that_blocks_for_ever_holds_up_nothing() -> None:
    with program("""
        def source():
            yield Job("first")
            threading.Event().wait()

        def endless():
            while True:
                yield Operation()

        pool.start()
        stream = pool.wrap(source(), drawn_by="thread")
        assert stream.get().name == "first"
        unread = [pool.wrap(endless(), buffer=4), pool.wrap(endless(), buffer=4, drawn_by="thread")]
        for op in unread[0]:
            break
        """) as running:
        running.expect("first succeeded", "cleanup")
        assert running.end() == (0, "")


def test_a_stuck_worker_that_was_given_up_holds_up_nothing() -> None:
    with program("""
        import logging
        logging.getLogger("ringmill").addHandler(logging.NullHandler())
        pool.start()
        pool.do(Job("held"))
        pool.do(Job("waiting"))
        while not pool.stats().running:
            time.sleep(0.001)
        assert [op.name for op in pool.shutdown(timeout=0.01)] == ["waiting"]
        say("given up")
        """) as running:
        running.expect("begun", "waiting cancelled", "given up")
        assert running.end() == (0, "")


def test_a_worker_that_crashes_at_exit_restarts_and_the_rest_is_finished() -> None:
    with program(
        """
        import logging
        logging.getLogger("ringmill").addHandler(logging.NullHandler())
        pool.start()
        for name, error in (("held", SystemExit()), ("one", KeyboardInterrupt()), ("two", None)):
            pool.do(Job(name, error))
        """,
        watch=1,
    ) as running:
        running.expect("begun", "joining")
        running.let_go()
        running.expect("held failed", "cleanup", "one failed", "cleanup", "two succeeded", "cleanup")
        assert running.end()[0] == 0


def test_what_happens_in_del_at_exit() -> None:
    """An owner whose __del__ shuts its pool down when the modules go."""
    with program("""
        class Owner:
            def __init__(self):
                self.pool = pool
                self.pool.start()
            def __del__(self):
                self.pool.shutdown()
        owner = Owner()
        pool.do(Job("one"))
        """) as running:
        running.expect("one succeeded", "cleanup")
        assert running.end() == (0, "")


# Ctrl-C

BODY = """
    start_poking()
    with pool:
        pool.do(Job("held"))
        pool.do(Job("waiting"))
        pool.do(Job("delayed", Retry(delay=3600)))
        say("in the body")
        threading.Event().wait()
"""

DRAINING = """
    start_poking()
    pool.start()
    pool.do(Job("delayed", Retry(delay=3600)))
    while not pool.stats().delayed:
        time.sleep(0.001)
    pool.do(Job("held"))
    pool.do(Job("waiting"))
    try:
        pool.shutdown()
    except KeyboardInterrupt:
        say("raised")
        raise
"""

WAITING = """
    start_poking()
    pool.start()
    pool.do(Job("delayed", Retry(delay=3600)))
    while not pool.stats().delayed:
        time.sleep(0.001)
    pool.do(Job("held"))
    op = pool.do(Job("waiting"))
    say("in the body")
    op.wait()
"""

EXITING = """
    start_poking()
    pool.start()
    pool.do(Job("held"))
    pool.do(Job("waiting"))
"""


@signals
def test_ctrl_c_in_the_body_cancels_what_has_not_begun() -> None:
    with program(BODY) as running:
        running.expect("begun", "in the body")
        running.interrupt()
        running.expect("waiting cancelled", "delayed cancelled")
        running.let_go()
        running.expect("held succeeded")
        running.expect("cleanup")
        assert ended_by_sigint(running.end())


@signals
def test_a_second_ctrl_c_stops_the_waiting_of_the_body() -> None:
    with program(BODY, watch=1) as running:
        running.expect("begun", "in the body")
        running.interrupt()
        running.expect("waiting cancelled", "delayed cancelled", "joining")
        running.interrupt()
        assert ended_by_sigint(running.end())  # though it is still held


@signals
def test_ctrl_c_while_draining_cancels_what_has_not_begun() -> None:
    with program(DRAINING, watch=1) as running:
        running.expect("begun", "joining")
        running.interrupt()
        running.expect("waiting cancelled", "delayed cancelled")
        running.let_go()
        running.expect("held succeeded")
        running.expect("cleanup")
        running.expect("raised")  # once the rest is finished
        assert ended_by_sigint(running.end())


@signals
def test_a_second_ctrl_c_while_draining_stops_the_waiting() -> None:
    with program(DRAINING, watch=2) as running:
        running.expect("begun", "joining")
        running.interrupt()
        running.expect("waiting cancelled", "delayed cancelled", "joining")
        running.interrupt()
        running.expect("raised")
        assert ended_by_sigint(running.end())


@signals
def test_ctrl_c_that_ends_the_program_cancels_what_has_not_begun() -> None:
    with program(WAITING) as running:
        running.expect("begun", "in the body")
        running.interrupt()
        running.expect("waiting cancelled", "delayed cancelled")
        running.let_go()
        running.expect("held succeeded")
        running.expect("cleanup")
        assert ended_by_sigint(running.end())


@signals
def test_a_second_ctrl_c_ends_the_program() -> None:
    with program(WAITING, watch=1) as running:
        running.expect("begun", "in the body")
        running.interrupt()
        running.expect("waiting cancelled", "delayed cancelled", "joining")
        running.interrupt()
        assert running.end()[0] != 0


@signals
def test_ctrl_c_at_exit_cancels_what_has_not_begun() -> None:
    with program(EXITING, watch=1) as running:
        running.expect("begun", "joining")
        running.interrupt()
        running.expect("waiting cancelled")
        running.let_go()
        running.expect("held succeeded")
        running.expect("cleanup")
        running.end()


@signals
def test_a_second_ctrl_c_at_exit_stops_the_waiting() -> None:
    with program(EXITING, watch=2) as running:
        running.expect("begun", "joining")
        running.interrupt()
        running.expect("waiting cancelled", "joining")
        running.interrupt()
        running.end()
