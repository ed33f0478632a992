"""Runs one case, or `--long`, all of them: see the package."""

from __future__ import annotations

import _testcapi
import faulthandler
import gc
import json
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import CodeType
from typing import Any

from tests.tools.out_of_memory import ALONE, CASES, FORKS
from tests.tools.out_of_memory.paths import PATHS
from tests.tools.out_of_memory.sweep import DIED, LENGTHS, died, keep_codes
from tests.tools.out_of_memory.trial import NONE, SPELL, Trial

WATCHDOG = 20.0  # seconds without a new case
FORKED = 2.0  # seconds that a forked case gets before its stacks are looked at
excused: list[str] = []  # hangs of CPython's
kept: list[CodeType] = []  # while the process lives


def one(name: str, start: int, stop: int) -> bool:
    """Runs one case; returns whether an allocation failed in a way that the caller saw."""
    trial = Trial(start, stop)
    CASES[name](trial)
    refs, failed = trial.refs, trial.failed
    del trial
    if any(ref() is not None for ref in refs):
        gc.collect()
        left = [ref() for ref in refs if ref() is not None]
        assert not left, f"{len(left)} things are left"
    return failed


def one_forked(name: str, start: int, stop: int) -> bool:
    """The same in a child. Excused are hangs in CPython's own threading.py, which is not made for this: Thread.start
    waits forever for a thread that found no memory before it said that it runs; a `with` that finds none between
    taking a Condition's lock and its body leaves that lock taken; and a thread that dies in there, before the first
    line of ours, is waited for by shutdown."""
    reading, writing = os.pipe()
    faulthandler.cancel_dump_traceback_later()  # its thread's lock would be taken forever in the child
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            os.dup2(writing, 2)
            threading.excepthook = died
            faulthandler.dump_traceback_later(FORKED, exit=True)
            status = 10 + one(name, start, stop)
            faulthandler.cancel_dump_traceback_later()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 1 and "Timeout" in told:
        excused.append(f"{name} {start} {stop}")
        last = told.rpartition("most recent call first")[2].splitlines()
        main = [line.split(", line ") for line in last if "File" in line]
        inside = [(file.rpartition("/")[2].strip('"'), rest.split(" in ")[1]) for file, rest in main]
        locked = inside[0] in (("threading.py", "__enter__"), ("threading.py", "_acquire_restore"))
        locked = locked or " in _delete\n" in told  # a worker that waits for the lock that Thread.start has lost
        if locked or ("threading.py", "start") in inside[:4] or DIED in told:
            return True
    assert status in (10, 11), f"{name} {start} {stop}: status {status}\n{told}"
    return status == 11


def main(name: str, limit: int, lengths: tuple[int, ...] = (1, SPELL)) -> None:
    _testcapi.set_nomemory(*NONE)  # puts the hooks in, before there is another thread
    logging.getLogger("ringmill").addHandler(logging.NullHandler())
    logging.getLogger("ringmill").propagate = False
    logging.raiseExceptions = False
    unraisable: list[str] = []

    def unraised(hooked: Any) -> None:
        unraisable.append(f"{hooked.exc_type.__name__}: {hooked.err_msg}: {hooked.object!r}")

    def escaped(hooked: Any) -> None:
        unraisable.append(f"{hooked.exc_type.__name__} out of {hooked.thread}")

    one(name, 1 << 20, 1 << 20)  # nothing fails; and what is made once, is made
    one(name, 1 << 20, 1 << 20)
    sys.unraisablehook, threading.excepthook = unraised, escaped
    kept.extend(keep_codes())
    gc.collect()
    gc.freeze()
    run = one_forked if name in FORKS else one
    cases = failed = 0
    for start in range(limit):
        for length in (1,) if name in ALONE else lengths:
            stop = start + length
            faulthandler.dump_traceback_later(WATCHDOG, exit=True)
            try:
                failed += run(name, start, stop)
            except BaseException:
                print(f"{name}: allocations {start} to {stop} failed", file=sys.stderr)
                raise
            cases += 1
    faulthandler.cancel_dump_traceback_later()
    strange = sorted({line for line in unraisable if not line.startswith("MemoryError")})
    figures = {"cases": cases, "failed": failed, "unraisable": len(unraisable), "excused": len(excused)}
    print(json.dumps(figures | {"strange": strange}))


def everything(names: list[str]) -> int:
    """Each case with all lengths, each path whole: of all, or of those names; as many processes as processors."""
    jobs = [[name, "200", "long"] for name in CASES] + [[name] for name in PATHS]
    jobs = [job for job in jobs if not names or job[0] in names]

    def runs(job: list[str]) -> subprocess.CompletedProcess[str]:
        module = "tests.tools.out_of_memory.sweep" if len(job) == 1 else "tests.tools.out_of_memory"
        return subprocess.run(
            [sys.executable, "-m", module, *job],
            env=os.environ | {"PYTHONMALLOC": "default"}, capture_output=True, text=True,
        )

    wrong = 0
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for job, done in zip(jobs, executor.map(runs, jobs), strict=True):
            strange = len(job) > 1 and done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["strange"]
            wrong += bool(done.returncode or strange)
            print(done.stdout.strip() if len(job) == 1 else f"{job[0]}: {done.stdout.strip()}", flush=True)
            if done.returncode:
                print(f"{job[0]}: status {done.returncode}\n{done.stderr}", flush=True)
    print(f"{len(jobs)} of them, {wrong} went wrong")
    return bool(wrong)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--long"]:
        sys.exit(everything(sys.argv[2:]))
    main(sys.argv[1], int(sys.argv[2]), LENGTHS if sys.argv[3:] else (1, SPELL))
