"""Runs one case: see the package."""

from __future__ import annotations

import _testcapi
import faulthandler
import gc
import json
import logging
import os
import sys
import threading
from types import CodeType, FunctionType
from typing import Any

from tests.tools.out_of_memory import ALONE, CASES, FORKS
from tests.tools.out_of_memory.trial import NONE, SPELL, Trial

WATCHDOG = 20.0  # seconds without a new case
FORKED = 2.0  # seconds that a forked case gets before its stacks are looked at
LOST = 1000  # references to one code that CPython may lose
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


DIED = "a thread died in threading.py"


def died(hooked: Any) -> None:
    trace = hooked.exc_traceback
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_filename.endswith("threading.py"):
        print(DIED, file=sys.stderr)
    sys.excepthook(hooked.exc_type, hooked.exc_value, hooked.exc_traceback)


def one_forked(name: str, start: int, stop: int) -> bool:
    """The same in a child. Excused are hangs in CPython's own threading.py, which is not made for this: Thread.start
    waits for ever for a thread that found no memory before it said that it runs; a `with` that finds none between
    taking a Condition's lock and its body leaves that lock taken; and a thread that dies in there, before the first
    line of ours, is waited for by shutdown."""
    reading, writing = os.pipe()
    faulthandler.cancel_dump_traceback_later()  # its thread's lock would be taken for ever in the child
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


def keep_codes() -> list[CodeType]:
    """More references to the code of inner functions than get lost: 3.12 and 3.13 drop one too many where there is no
    memory to make the function, and the code would be freed while it is used (faults.py: function)."""
    if not (3, 12) <= sys.version_info < (3, 14):
        return []
    codes = [thing.__code__ for thing in gc.get_objects() if isinstance(thing, FunctionType)]
    inner: set[int] = set()
    for code in codes:  # grows meanwhile
        found = [const for const in code.co_consts if isinstance(const, CodeType) and id(const) not in inner]
        inner.update(map(id, found))
        codes += found
    return [code for code in codes if id(code) in inner for _ in range(LOST)]


def main(name: str, limit: int) -> None:
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
        for stop in (start + 1,) if name in ALONE else (start + 1, start + SPELL):
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


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
