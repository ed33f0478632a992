"""Runs rivals in turn, in one process, and prints every round.

    for each round:   run(A)  run(B)  run(C)      the order moves on by one each round
                        |       |       |
                      A / B / C of one round are neighbours in time: ratios are taken within a round

A round of a side is one call that does the whole work N times over. The first call of each side warms up and is not
counted. The ratio that is printed is the median over the rounds of (time of the peer / time of the subject), so above
1 the subject is faster. Garbage is collected before each call, and as usual during it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from ringmill._core import ring_buffer


@dataclass
class Comparison:
    """The times of one comparison, in microseconds per operation: the first side is the subject."""

    title: str
    n: int
    threads: str
    rounds: dict[str, list[float]]

    @property
    def subject(self) -> str:
        return next(iter(self.rounds))

    @property
    def medians(self) -> dict[str, float]:
        return {name: median(times) for name, times in self.rounds.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """By peer: its time over the subject's, the median of the rounds."""
        mine = self.rounds[self.subject]
        return {
            name: median(theirs / ours for theirs, ours in zip(times, mine, strict=True))
            for name, times in self.rounds.items()
            if name != self.subject
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "n": self.n,
            "threads": self.threads,
            "unit": "us per operation",
            "subject": self.subject,
            "rounds": self.rounds,
            "medians": self.medians,
            "peer time / subject time": self.ratios,
        }


@dataclass
class Suite:
    """What the command line asked for, and the results so far."""

    name: str
    quick: bool
    json: Path | None
    rounds: int
    results: list[Comparison] = field(default_factory=list)

    def scale(self, n: int) -> int:
        """How many operations a round has: a tenth with --quick."""
        return n // 10 if self.quick else n

    def compare(self, title: str, n: int, threads: str, sides: dict[str, Callable[[], object]]) -> Comparison:
        """Times the sides against each other; each call does `n` operations. The first side is the subject."""
        rounds: dict[str, list[float]] = {name: [] for name in sides}
        names = list(sides)
        for side in sides.values():
            side()
        for number in range(self.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                gc.collect()
                begun = time.perf_counter()
                sides[name]()
                rounds[name].append((time.perf_counter() - begun) / n * 1e6)
        result = Comparison(title, n, threads, rounds)
        self.results.append(result)
        show(result)
        return result

    def finish(self) -> None:
        if self.json is not None:
            report = {"suite": self.name, **environment(), "results": [result.as_json() for result in self.results]}
            self.json.write_text(json.dumps(report, indent=2) + "\n")


def open_suite(name: str, description: str, arguments: Sequence[str] | None = None) -> Suite:
    """Reads the command line and prints where and on what this runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the operations")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds to this file as well")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    for key, value in environment().items():
        print(f"{key + ':':10} {value}")
    return Suite(name, options.quick, options.json, options.rounds)


def show(result: Comparison) -> None:
    print(f"\n{result.title}\nN = {result.n:,}, T = {result.threads}; microseconds per operation; "
          f"the peers' times are over {result.subject}'s")
    names = list(result.rounds)
    widths = [max(len(name), 9) + 2 for name in names]

    def row(label: str, cells: Sequence[str]) -> None:
        print(f"{label:>8}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))

    row("round", names)
    for number, times in enumerate(zip(*result.rounds.values(), strict=True), 1):
        row(str(number), [f"{value:.3f}" for value in times])
    row("median", [f"{value:.3f}" for value in result.medians.values()])
    ratios = result.ratios
    row("ratio", ["" if name == result.subject else f"{ratios[name]:.2f}" for name in names])
    sys.stdout.flush()


def environment() -> dict[str, Any]:
    """What a number means nothing without."""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "ringmill": version("ringmill"),
        "commit": commit(),
        "built": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.path.getmtime(ring_buffer.__file__))),
        "python": f"{platform.python_implementation()} {platform.python_version()}, GIL {'on' if gil else 'off'}",
        "machine": f"{cpu_model()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}",
        "load": "unknown" if load is None else f"{load:.2f} before the start",
    }


def commit() -> str:
    """The commit of the working tree, "+changes" if src has any; what runs is what is installed: see `built`."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", "../src", "../setup.py")
        return git("rev-parse", "--short", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"
