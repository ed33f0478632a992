"""Runs the paths (shortage.py): each case in a fork of a process in which the path has run before.

A case is a path, a point of it, the allocation after that point that fails first, and how many fail in a row. A sweep
runs all of them: from each allocation on, until the path needs no more. A sample runs some for each point.

Excused are hangs of CPython's own, each by what the stacks or the thread's own report say (faults.py has them without
ringmill): nothing else.
"""

from __future__ import annotations

import _testcapi
import faulthandler
import gc
import logging
import os
import random
import re
import sys
import threading
import time
from types import CodeType, FunctionType
from typing import Any

from tests.tools.out_of_memory.paths import PATHS
from tests.tools.out_of_memory.shortage import Shortage, collect
from tests.tools.out_of_memory.trial import NONE

LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 100)  # of the shortages
MOST = 400  # allocations after a point that are made to fail: no path needs as many
HUNG = float(os.environ.get("RINGMILL_HUNG", "8"))  # seconds
FAILED, DONE, ELSEWHERE = 10, 11, 12  # a case's status: an allocation failed; the path needs fewer; it never came there
WARM = 5  # runs beforehand: what is made once is made, and all points are known
LOST = 1000  # references to one code that CPython may lose

DIED = "a thread died in threading.py"


def died(hooked: Any) -> None:
    """The hook of threads: says whether it was in CPython's own code that one found no memory."""
    trace = hooked.exc_traceback
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_filename.endswith("threading.py"):
        print(DIED, file=sys.stderr)
    sys.excepthook(hooked.exc_type, hooked.exc_value, hooked.exc_traceback)


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


def stacks(told: str) -> list[list[tuple[str, str]]]:
    """What faulthandler told of a hang: for each thread (file, function), the innermost call first."""
    blocks = re.split(r"^(?:Current t|T)hread 0x.*$", told.rpartition("Timeout (")[2], flags=re.MULTILINE)[1:]
    return [
        [(file.rpartition("/")[2], function) for file, function in re.findall(r'File "(.*)", line \d+ in (.*)', block)]
        for block in blocks
    ]


def excuse(status: int, told: str) -> str:
    """Why a case that went wrong is CPython's own fault; "" if it is not."""
    if status != 1 or "Timeout (" not in told:
        return ""
    for stack in stacks(told):
        if ("threading.py", "start") in stack[:3]:
            return "Thread.start waits for a thread that died before it said that it runs"
        if stack[:1] and stack[0] in (("threading.py", "__enter__"), ("threading.py", "_acquire_restore")):
            return "a Condition's lock is left taken"
        if stack[:2] == [("selectors.py", "select"), ("base_events.py", "_run_once")]:
            return "asyncio has lost the callback of its own time limit, which the path sets (faults.py: future)"
    return DIED if DIED in told else ""


def run(name: str, point: str, start: int, length: int) -> int:
    """One case, in this process. Returns its status."""
    trial = Shortage(point, start, length)
    PATHS[name](trial)
    trial.end()
    collect(trial)
    if not trial.begun:
        return ELSEWHERE
    return FAILED if trial.needed_more else DONE


def fork(name: str, point: str, start: int, length: int) -> tuple[int, str]:
    """One case in a child: its status (negative: a signal), and what it wrote."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            os.dup2(writing, 2)
            faulthandler.enable()
            threading.excepthook = died
            faulthandler.dump_traceback_later(HUNG, exit=True)
            status = run(name, point, start, length)
        except BaseException:
            _testcapi.set_nomemory(*NONE)
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as pipe:
        told = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


def prepare() -> None:
    """Before a path runs in this process."""
    _testcapi.set_nomemory(*NONE)  # puts the hooks in, before there is another thread
    for name in ("ringmill", "concurrent.futures", "asyncio"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    logging.raiseExceptions = False
    sys.unraisablehook = lambda hooked: None


def points_of(name: str) -> list[str]:
    """The points of a path."""
    points: list[str] = []
    for _ in range(WARM):
        trial = Shortage()
        PATHS[name](trial)
        collect(trial)
        points += [point for point in trial.points if point not in points]
    return points


class Sweep:
    """What came of the cases of some paths."""

    def __init__(self) -> None:
        self.cases = self.failed = 0
        self.excused: dict[str, int] = {}
        self.wrong: list[str] = []

    def case(self, name: str, point: str, start: int, length: int) -> int:
        status, told = fork(name, point, start, length)
        self.cases += 1
        self.failed += status == FAILED
        if status not in (FAILED, DONE, ELSEWHERE):
            why = excuse(status, told)
            if why:
                self.excused[why] = self.excused.get(why, 0) + 1
            else:
                self.wrong.append(f"{name}, {point}, {start}, {length}: status {status}\n{told}")
        return status

    def whole(self, name: str, point: str) -> None:
        for start in range(MOST):
            statuses = [self.case(name, point, start, length) for length in LENGTHS]
            if FAILED not in statuses and DONE in statuses:
                break

    def sample(self, name: str, point: str, count: int, rng: random.Random) -> None:
        most = 60
        for _ in range(count):
            start = rng.randrange(most)
            if self.case(name, point, start, rng.choice(LENGTHS)) == DONE:
                most = max(1, start)


def sweep(names: list[str], sample: int | None, seed: int) -> Sweep:
    """All cases of these paths; or a sample, so many for each point."""
    prepare()
    points = {name: points_of(name) for name in names}
    kept = keep_codes()
    gc.collect()
    gc.freeze()
    done = Sweep()
    for name in names:
        rng = random.Random(f"{seed} {name}")
        for point in points[name]:
            if sample is None:
                done.whole(name, point)
            else:
                done.sample(name, point, sample, rng)
    del kept
    return done


def main(arguments: list[str]) -> int:
    """`NAME,NAME... [SAMPLE [SEED]]`, or `NAME POINT START LENGTH` for one case. Prints failures, and counts."""
    if len(arguments) == 4:
        prepare()
        points_of(arguments[0])
        kept = keep_codes()
        gc.collect()
        gc.freeze()
        print(*fork(arguments[0], arguments[1], int(arguments[2]), int(arguments[3])), sep="\n")
        del kept
        return 0
    begun = time.monotonic()
    numbers = [int(argument) for argument in arguments[1:]]
    done = sweep(arguments[0].split(","), numbers[0] if numbers else None, numbers[1] if numbers[1:] else 0)
    for line in done.wrong:
        print(line)
    print(
        f"{arguments[0]}: {done.cases} cases, in {done.failed} an allocation failed, {len(done.wrong)} wrong, "
        f"excused {done.excused}, {time.monotonic() - begun:.0f} s", flush=True,
    )
    return bool(done.wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
