"""Runs a suite with the standard classes and with ringmill, and compares the results of each test."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop.suites.environment import HERE, Environment
from tests.interop.suites.libraries import EXPECTED, Library

TEST_LIMIT = 60  # seconds that one test may take
RUN_LIMIT = 900  # seconds that one run may take
REPEATS = 2  # how often the tests that differ run again


@dataclass
class Run:
    """The results of one run of a suite."""

    outcomes: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    fault: str = ""  # what is wrong with the run as a whole
    output: str = ""

    def count(self, outcome: str) -> int:
        return sum(1 for each in self.outcomes.values() if each == outcome)


@dataclass
class Comparison:
    """Two runs of a suite, and the tests that are worse with ringmill."""

    library: Library
    standard: Run
    ringmill: Run
    differing: list[str] = field(default_factory=list)  # in all runs
    unsteady: list[str] = field(default_factory=list)  # in some
    faults: list[str] = field(default_factory=list)

    @property
    def unexpected(self) -> list[str]:
        return [test for test in self.differing if (self.library.name, test) not in EXPECTED]

    @property
    def outdated(self) -> list[str]:
        """Tests that should differ, and pass."""
        tests = [test for library, test in EXPECTED if library == self.library.name]
        return [test for test in tests if self.ringmill.outcomes.get(test) == "passed"]

    @property
    def failed(self) -> bool:
        return bool(self.unexpected or self.outdated or self.faults)


def read_results(report: Path, run: Run) -> None:
    """Sums up what `swap/ringmill_report.py` has written: the worst outcome of a test's phases is that of the test."""
    severity = ["started", "passed", "skipped", "failed"]
    if not report.exists():
        return
    for line in report.read_text().splitlines():
        entry = json.loads(line)
        # Some tests have the name of the class in their own.
        test, outcome = re.sub(r"\bPoolExecutor", "ThreadPoolExecutor", entry["test"]), entry["outcome"]
        if outcome not in severity:  # "rerun", of pytest-rerunfailures
            continue
        if severity.index(outcome) >= severity.index(run.outcomes.get(test, "started")):
            run.outcomes[test] = outcome
            run.texts[test] = entry["text"]


def run_tests(environment: Environment, library: Library, tests: Sequence[str], swapped: bool) -> Run:
    """Runs tests of a library in a process of their own."""
    root = environment.root(library)
    run = Run()
    output = environment.folder / "logs" / f"{library.name}-{'ringmill' if swapped else 'standard'}.txt"
    output.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        report, uses = (Path(temporary) / name for name in ("report", "uses"))
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE / "swap"), str(environment.on_path)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "RINGMILL_REPORT": str(report),
            "RINGMILL_USES": str(uses),
            "RINGMILL_SWAP": library.swap if swapped else "",
        }
        variables.pop("PYTEST_ADDOPTS", None)
        plugins = [f"-p{plugin}" for plugin in ("ringmill_report", "timeout", "no:cacheprovider", *library.plugins)]
        config = [] if library.origin == "sdist" else ["-c", os.devnull]
        begun = time.monotonic()
        with output.open("w") as file:
            process = subprocess.Popen(
                [
                    environment.python, "-m", "pytest", "-q", "--tb=short", f"--rootdir={root}", *config, *plugins,
                    f"--timeout={TEST_LIMIT}", f"--basetemp={temporary}/tmp", *library.options, *tests,
                ],
                cwd=root, env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(RUN_LIMIT)
                if status not in (0, 1):
                    run.fault = f"pytest's exit status was {status}"
            except subprocess.TimeoutExpired:
                run.fault = f"it had not ended after {RUN_LIMIT} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with the processes that tests have left
                process.wait()
        run.seconds = time.monotonic() - begun
        run.output = output.read_text(errors="replace")
        read_results(report, run)
        if uses.exists():
            for line in uses.read_text().splitlines():
                run.uses.update(json.loads(line))
    return run


def worse(standard: Run, ringmill: Run) -> set[str]:
    """The tests that passed with the standard class, and did not with ringmill."""
    passed = {test for test, outcome in standard.outcomes.items() if outcome == "passed"}
    return {test for test in passed if ringmill.outcomes.get(test) != "passed"}


def compare(environment: Environment, library: Library, tests: Sequence[str], standard_only: bool) -> Comparison:
    """Runs tests of a suite with and without ringmill, and the files with tests that differ two more times."""
    standard = run_tests(environment, library, tests, swapped=False)
    comparison = Comparison(library, standard, Run())
    if standard.fault or not standard.count("passed"):
        comparison.faults.append(f"the run with the standard class is of no use: {standard.fault or 'no test passed'}")
    if standard_only:
        return comparison
    ringmill = comparison.ringmill = run_tests(environment, library, tests, swapped=True)
    if ringmill.fault:
        comparison.faults.append(f"the run with ringmill: {ringmill.fault}")
    if not ringmill.uses["calls"] + ringmill.uses["items"]:
        comparison.faults.append("the run with ringmill did not use it")
    suspects = worse(standard, ringmill)
    differing = set(suspects)
    for _ in range(REPEATS):
        if not differing:
            break
        files = sorted({test.partition("::")[0] for test in differing})
        again = run_tests(environment, library, files, swapped=True)
        reference = run_tests(environment, library, files, swapped=False)
        for test in differing:
            if again.outcomes.get(test) not in (None, "passed"):
                ringmill.texts[test] = again.texts[test] or ringmill.texts.get(test, "")
        # A test without a result in a repetition has not passed there.
        differing = {
            test for test in differing
            if again.outcomes.get(test) != "passed" and reference.outcomes.get(test, "passed") == "passed"
        }
    comparison.differing = sorted(differing)
    comparison.unsteady = sorted(suspects - differing)
    return comparison
