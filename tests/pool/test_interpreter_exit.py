"""The main thread has ended: pools finish before the program's own exit hooks run, and none can be started after.

Each program is a process of its own. Each case runs twice: with threading's hook, and without it, by atexit alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.pool.test_shutdown_exit import program, signals
from tests.threads import LONG

PRELUDE = """
    import atexit, concurrent.futures.thread, os, signal, sys, tempfile, threading, time, weakref
    if "--atexit" in sys.argv:
        del threading._register_atexit  # as if this Python had none
    from ringmill import *

    def say(text):
        os.write(1, f"{text}\\n".encode())

    class Job(Operation):
        def __init__(self, name, call=None):
            self.name = name
            self.call = call
        def done(self):
            say(f"{self.name} {self.outcome.value}")

    class JobWorker(Worker):
        retry_on = (OSError,)
        def process(self, op):
            if op.call is not None:
                op.call()
        def cleanup(self):
            say("cleanup")

    def started(name="mill", count=1):
        pool = WorkerPool([JobWorker() for _ in range(count)], name=name)
        pool.start()
        return pool

    def nap():
        time.sleep(0.05)

    main = threading.main_thread()

    def wait_for_the_end():
        # Until the main thread has ended: its hooks are what it runs then.
        while not threading._SHUTTING_DOWN:
            time.sleep(0.001)
"""


def run(text: str, *args: str, status: int = 0) -> tuple[list[str], str]:
    """What a program says, and what it complains of."""
    script = textwrap.dedent(PRELUDE) + textwrap.dedent(text)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script, *args],
        capture_output=True, text=True, timeout=LONG, cwd="/", check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout.split("\n")[:-1], done.stderr


both = pytest.mark.parametrize("hook", ["--threading", "--atexit"])


@pytest.mark.parametrize("ending", ["", "sys.exit()", "raise SystemExit(0)"])
def test_pools_and_executors_finish_before_the_program_s_own_hooks(ending: str) -> None:
    said, errors = run(f"""
        folder = tempfile.TemporaryDirectory()
        def save(name):
            nap()
            with open(os.path.join(folder.name, name), "w"):
                pass
            say("saved")
        class Owner: pass
        owner = Owner()
        weakref.finalize(owner, say, "finalized")
        pool = started()
        executor = PoolExecutor(1)
        for name in "abc":
            pool.do(Job(name, lambda name=name: save(name)))
            executor.submit(save, name + name)
        atexit.register(say, "hook")
        {ending}
    """)
    assert errors == ""
    assert said[-2:] == ["hook", "finalized"]
    assert said.count("saved") == 6
    assert [word for word in said if "succeeded" in word] == [f"{name} succeeded" for name in "abc"]


@both
def test_an_exit_hook_may_wait_for_an_operation_and_starts_nothing(hook: str) -> None:
    said, errors = run("""
        @atexit.register
        def late():
            say(op.wait())
            for call in (new.start, old.start, lambda: old.do(Job("late")), lambda: new.__enter__()):
                try:
                    call()
                except PoolNotRunning as error:
                    say(type(error).__name__)
            for executor in (used, unused):
                try:
                    executor.submit(say, "late")
                except RuntimeError as error:
                    say(error)
        from ringmill import at_exit  # without threading's hook, those that were registered later run earlier
        if "--atexit" in sys.argv:
            atexit.unregister(late)
            atexit.unregister(at_exit._at_exit)
            atexit.register(late)
            atexit.register(at_exit._at_exit)
        old, new = started(), WorkerPool([JobWorker()])
        used, unused = PoolExecutor(1), PoolExecutor(1)
        used.submit(nap)
        op = old.do(Job("op", nap))
    """, hook)
    assert errors == ""
    assert said == ["op succeeded", "cleanup", "True", *["PoolNotRunning"] * 4,
                    *["cannot schedule new futures after interpreter shutdown"] * 2]


@both
def test_a_thread_that_outlives_the_main_thread_is_refused_and_joined(hook: str) -> None:
    """As concurrent.futures does it: nothing is accepted from any thread, and what was accepted can be read."""
    said, errors = run("""
        pool, other = started(), WorkerPool([JobWorker()])
        executor = PoolExecutor(1)
        executor.submit(nap)
        stream = pool.execute([Job("a", nap), Job("b")])
        def outlive():
            main.join()
            while pool._run.core.is_open or executor._core.is_open:
                time.sleep(0.001)
            for call in (lambda: pool.do(Job("late")), lambda: pool.execute([]), other.start,
                         lambda: executor.submit(nap)):
                try:
                    call()
                except RuntimeError as error:
                    say(type(error).__name__)
            say(len([*stream]))
            nap()
            say("joined")
        thread = threading.Thread(target=outlive)
        if "--atexit" in sys.argv:
            thread.daemon = True  # the interpreter joins the others before it calls what atexit has
            atexit.register(thread.join)
            from ringmill import at_exit
            atexit.unregister(at_exit._at_exit)
            atexit.register(at_exit._at_exit)
        thread.start()
    """, hook)
    assert errors == ""
    assert sorted(said) == sorted([*["PoolNotRunning"] * 3, "RuntimeError", "2", "joined", "a succeeded", "b succeeded",
                                   "cleanup"])


def test_a_pool_of_another_thread_is_finished_too() -> None:
    said, errors = run("""
        def work():
            global pool
            pool = started(count=2)
            for name in "abcd":
                pool.do(Job(name, nap))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        atexit.register(say, "hook")
    """)
    assert (sorted(said[:-1]), said[-1], errors) == (
        sorted([*[f"{name} succeeded" for name in "abcd"], "cleanup", "cleanup"]), "hook", ""
    )


def test_a_start_that_the_end_overtakes_is_refused_and_cleaned_up() -> None:
    said, errors = run("""
        class Slow(JobWorker):
            def init(self):
                initializing.set()
                wait_for_the_end()
                time.sleep(0.2)
        initializing = threading.Event()
        def start():
            try:
                WorkerPool([Slow()]).start()
            except PoolNotRunning as error:
                say("shutting down" in str(error))
        threading.Thread(target=start).start()
        initializing.wait()
    """)
    assert (said, errors) == (["cleanup", "True"], "")


@both
def test_the_first_retry_that_would_be_delayed_comes_after_the_end_has_begun(hook: str) -> None:
    """CPython 3.12 starts no thread then, the timer's included: the operation is cancelled, the worker lives on."""
    said, errors = run("""
        pool = started()
        def fail_late():
            while pool._run.core.is_open:
                time.sleep(0.001)
            nap()
            raise Retry(delay=3600)
        def fail_soon():
            raise Retry(delay=0.001)
        for name, call in (("late", fail_late), ("soon", fail_soon), ("last", None)):
            pool.do(Job(name, call))
    """, hook)
    assert (said, errors) == (["late cancelled", "soon cancelled", "last succeeded", "cleanup"], "")


def test_operations_may_use_the_executors_of_the_standard_library_until_they_have_ended() -> None:
    """Those of processes included, whose module is imported after ringmill. CPython 3.12 starts no more threads."""
    said, errors = run("""
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        import multiprocessing
        threads = ThreadPoolExecutor(1)
        processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        def use():
            while pool._run.core.is_open:
                time.sleep(0.001)
            nap()
            say(threads.submit(pow, 2, 3).result())
            say(processes.submit(pow, 2, 4).result())
        if __name__ == "__main__":
            assert threads.submit(pow, 1, 2).result() == processes.submit(pow, 1, 2).result() == 1
            pool = started()
            pool.do(Job("use", use))
    """)
    assert (said, errors) == (["8", "16", "use succeeded", "cleanup"], "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("end", ["", "sys.exit()", "os._exit(0)"])
@pytest.mark.parametrize("made_by", ["os.fork()", "multiprocessing"])
def test_the_child_of_a_fork_waits_for_its_own_pools_only(end: str, made_by: str) -> None:
    if made_by == "multiprocessing":
        made = "context.Process(target=child).start()"
    else:
        made = "child() if not os.fork() else os.wait()"
    said, errors = run(f"""
        import multiprocessing, warnings
        warnings.simplefilter("ignore")
        context = multiprocessing.get_context("fork")
        parents = started("parent")
        held = threading.Event()
        parents.do(Job("parent's", held.wait))
        while not parents.stats().running:
            time.sleep(0.001)
        def child():
            own = started("child")
            own.do(Job("child's", nap))
            {end}
        pid = os.getpid()
        {made}
        for process in multiprocessing.active_children():
            process.join()
        if os.getpid() == pid:
            say("in the parent")
            held.set()
    """)
    own = [] if end == "os._exit(0)" else ["child's succeeded", "cleanup"]
    assert (said, errors) == ([*own, "in the parent", "parent's succeeded", "cleanup"], "")


SUBINTERPRETER = """
import sys
code = open(sys.argv[1]).read().replace("HOOK", sys.argv[2])
try:
    from _testcapi import run_in_subinterp
    assert run_in_subinterp(code) == 0
except ImportError:  # CPython 3.11's destroys none that has threads
    import _interpreters
    interpreter = _interpreters.create("legacy")
    failure = _interpreters.exec(interpreter, code)
    assert failure is None, failure
    _interpreters.destroy(interpreter)
print("destroyed", flush=True)
"""


@both
def test_a_subinterpreter_ends_though_its_pools_run(hook: str, tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "code.py")
    with open(path, "w") as file:
        file.write("import sys; sys.argv = ['HOOK']\n" + textwrap.dedent(PRELUDE) + textwrap.dedent("""
            pool = started()
            for name in "ab":
                pool.do(Job(name, nap))
        """))
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", SUBINTERPRETER, path, hook],
        capture_output=True, text=True, timeout=LONG, check=False,
    )
    if "ImportError" in done.stderr:
        pytest.skip("this Python cannot make a subinterpreter, or ringmill cannot be loaded there")
    assert done.stdout.split("\n")[:-1] == ["a succeeded", "b succeeded", "cleanup", "destroyed"], done.stderr


def test_ringmill_imported_once_the_end_has_begun() -> None:
    script = """
import atexit, threading
@atexit.register
def late():
    import ringmill
    ring = ringmill.RingBuffer(2)
    ring.put(1)
    print(ring.get())
    class JobWorker(ringmill.Worker):
        def process(self, op): pass
    try:
        ringmill.WorkerPool([JobWorker()]).start()
    except ringmill.PoolNotRunning:
        print("refused")
    try:
        ringmill.PoolExecutor().submit(print)
    except RuntimeError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG, check=False)
    expected = "1\nrefused\ncannot schedule new futures after interpreter shutdown\n"
    assert (done.stdout, done.stderr) == (expected, "")


def test_importing_ringmill_loads_neither_multiprocessing_nor_asyncio() -> None:
    script = "import sys, ringmill; print([name for name in ('multiprocessing', 'asyncio') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Ctrl-C

SEVERAL = """
    import atexit
    start_poking()
    pools = [WorkerPool([JobWorker()], name=name) for name in "abc"]
    for pool in pools:
        pool.start()
        pool.do(Job("held"))
        pool.do(Job("waiting"))
    atexit.register(lambda: say("hook"))
    def outlive():
        threading.main_thread().join()
        say("joined")
    threading.Thread(target=outlive).start()
"""


@signals
def test_ctrl_c_at_exit_cancels_what_has_not_begun_in_all_pools() -> None:
    with program(SEVERAL, watch=1) as running:
        running.expect(*["begun"] * 3, "joining")
        running.interrupt()
        running.expect(*["waiting cancelled"] * 3)
        for _ in range(3):
            running.let_go()
            running.expect("held succeeded", "cleanup")
        running.expect("joined")
        running.expect("hook")
        status, errors = running.end()
        assert status == 0
        assert errors.count("KeyboardInterrupt") == 1
        assert "Exception ignored in" in errors


@signals
def test_ctrl_c_at_exit_without_threading_s_hook() -> None:
    """Where that is missing, atexit calls ours: later, and otherwise the same."""
    with program("    threading._threading_atexits.clear()\n" + SEVERAL, watch=1) as running:
        running.expect(*["begun"] * 3, "joined", "hook", "joining")
        running.interrupt()
        running.expect(*["waiting cancelled"] * 3)
        for _ in range(3):
            running.let_go()
            running.expect("held succeeded", "cleanup")
        status, errors = running.end()
        assert (status, errors.count("KeyboardInterrupt")) == (0, 1)


@signals
def test_a_second_ctrl_c_at_exit_keeps_no_hook_from_running() -> None:
    with program(SEVERAL, watch=2) as running:
        running.expect(*["begun"] * 3, "joining")
        running.interrupt()
        running.expect(*["waiting cancelled"] * 3, "joining")
        running.interrupt()
        running.expect("joined")
        running.expect("hook")
        status, errors = running.end()
        assert status == 0
        assert errors.count("KeyboardInterrupt") == 2


@signals
def test_ctrl_c_that_ends_the_program_cancels_what_has_not_begun_in_all_pools() -> None:
    with program(SEVERAL + "    say('in the body')\n    threading.Event().wait()\n") as running:
        running.expect(*["begun"] * 3, "in the body")
        running.interrupt()
        running.expect(*["waiting cancelled"] * 3)
        for _ in range(3):
            running.let_go()
            running.expect("held succeeded", "cleanup")
        running.expect("joined")
        running.expect("hook")
        status, errors = running.end()
        assert status in (-signal.SIGINT, 130)
        assert errors.rstrip().endswith("KeyboardInterrupt")


@signals
def test_another_signal_s_handler_that_exits_while_pools_finish() -> None:
    """A SystemExit at that time counts as a KeyboardInterrupt: nothing is skipped for it."""
    text = "    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n" + SEVERAL
    with program(text, watch=1) as running:
        running.expect(*["begun"] * 3, "joining")
        running.process.send_signal(signal.SIGTERM)
        running.expect(*["waiting cancelled"] * 3)
        for _ in range(3):
            running.let_go()
            running.expect("held succeeded", "cleanup")
        running.expect("joined")
        running.expect("hook")
        status, errors = running.end()
        assert (status, errors.count("SystemExit")) == (0, 1)


@signals
def test_pools_finish_though_a_keyboard_interrupt_left_another_hook_of_threading() -> None:
    """What was registered after ours runs before it; what leaves it skips ours, so atexit calls that."""
    with program("""
        def hook():
            say("in the hook")
            threading.Event().wait()
        start_poking()
        pool.start()
        pool.do(Job("held"))
        pool.do(Job("waiting"))
        threading._register_atexit(hook)
        """) as running:
        running.expect("begun", "in the hook")
        running.interrupt()
        running.let_go()
        running.expect("held succeeded")
        running.expect("waiting succeeded")
        running.expect("cleanup")
        assert running.end()[0] == 0


@signals
def test_a_keyboard_interrupt_in_done_at_exit_cancels_all_the_same() -> None:
    """A KeyboardInterrupt out of a done() that runs at exit, on the main thread, counts as the second."""
    with program("""
        class Raising(Job):
            def done(self):
                super().done()
                raise KeyboardInterrupt
        start_poking()
        pool.start()
        pool.do(Job("held"))
        for name in "ab":
            pool.do(Raising(name))
        """, watch=1) as running:
        running.expect("begun", "joining")
        running.interrupt()
        running.expect("a cancelled", "b cancelled")
        status, errors = running.end()
        assert status == 0
        assert errors.count("KeyboardInterrupt") >= 2
