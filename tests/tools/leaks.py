"""`pytest --leaks`: runs each test three times more and checks whether memory grows each time.

Blocks of memory are counted (and references, on a debug build of CPython) when a test is over and what it left has been
collected. Once is no leak: a cache was filled, a thread was slow. A test that grew each of three times is run again
until it does not, or until it has grown ten times running: that fails it.
"""

from __future__ import annotations

import gc
import linecache
import re
import sys
import time
import typing
from array import array

import pytest
from _pytest.runner import runtestprotocol

TIMES = 3
SURE = 10


def references() -> list[int]:
    """All there are, on a debug build; but not to Cython's own types: each coroutine of Cython 3.3 leaks one."""
    if not hasattr(sys, "gettotalrefcount"):
        return []
    cythons = [module for name, module in sys.modules.items() if name.startswith("_cython_")]
    return [sys.gettotalrefcount() - sum(sys.getrefcount(each) for module in cythons for each in vars(module).values())]


def names_in(test: object) -> tuple[str, ...]:
    code = getattr(test, "__code__", None)
    return code.co_names if code else ()


def keeps_something(item: pytest.Item) -> bool:
    """Hypothesis remembers what it has drawn, pytest each temporary folder and each report of a `subTest`."""
    test = getattr(item, "obj", None)
    if "tmp_path" in getattr(item, "fixturenames", ()) or "subTest" in names_in(test):
        return True
    return hasattr(test, "is_hypothesis_test") or hasattr(getattr(test, "__self__", None), "settings")


def counts() -> tuple[int, ...]:
    """Blocks, and references where they can be counted, when nothing falls any more."""
    least: tuple[int, ...] = ()
    quiet = 0
    # Caches, as CPython's own tests clear them: Worker[Job], say, keeps Job in one of typing's.
    for clear in (*getattr(typing, "_cleanups", ()), linecache.clearcache, re.purge):
        clear()
    getattr(sys, "_clear_internal_caches", sys._clear_type_cache)()
    while quiet < 2:
        gc.collect()
        now = (sys.getallocatedblocks(), *references())
        quiet = 0 if not least or any(a < b for a, b in zip(now, least, strict=True)) else quiet + 1
        least = now if not least else tuple(map(min, now, least))
        time.sleep(0.001)  # a thread that has just ended is still being taken apart
    return least


class Leaks:
    """The plugin."""

    def __init__(self) -> None:
        self.tests = self.runs = 0
        self.width = len(counts())
        self.grown: list[str] = []

    def pytest_collection_finish(self) -> None:
        gc.collect()
        gc.freeze()  # what is there already is not looked through each time

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        self.tests += 1
        growth = array("q", [0] * (SURE * self.width))  # made beforehand: what is counted must not grow by the counting
        done = 0
        if all(report.passed for report in reports) and not keeps_something(item):
            kept = list(reports)
            del item._report_sections[:], reports[:]  # pytest's own memory of each run
            before = counts()
            while done < TIMES or (done < SURE and self.always(growth, done)):
                reports = runtestprotocol(item, log=False, nextitem=nextitem)
                self.runs += 1
                if not all(report.passed for report in reports):
                    kept = list(reports)
                    break
                del item._report_sections[:], reports[:]
                after = counts()
                for k in range(self.width):
                    growth[done * self.width + k] = after[k] - before[k]
                before = after
                done += 1
            reports = kept
        if done == SURE and self.always(growth, done):
            self.grown.append(f"{item.nodeid}: {growth.tolist()}")
            reports[1].outcome = "failed"
            reports[1].longrepr = f"it grew each time, by so many blocks (and references): {growth.tolist()}"
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def always(self, growth: array[int], done: int) -> bool:
        """Whether blocks (or references) grew each time so far."""
        return any(min(growth[k : done * self.width : self.width]) > 0 for k in range(self.width))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"leaks: {self.tests} tests, run {self.runs} times more; {len(self.grown)} grow")
