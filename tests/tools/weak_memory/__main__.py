"""Runs the core's own code on a machine that orders memory no more than C++ promises.

memory.cc and threads.cc are the machine; execution.pyx says what a scenario is.

    python -m tests.tools.weak_memory                         builds it, and runs all scenarios for 20 seconds
    python -m tests.tools.weak_memory --seconds 600           longer
    python -m tests.tools.weak_memory --scenario 'p | g' --capacity 1 --seed 17     one execution, told

Needs CPython 3.12 or 3.13, g++ (or CXX), setuptools and Cython; no free-threaded interpreter, since the machine has its
own threads. What runs is what free-threaded builds run: with a GIL, memory orders hardly matter.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.tools.weak_memory.build import build
from tests.tools.weak_memory.runner import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, help="of the one execution that is told")
    parser.add_argument("--scenario", help="only this one")
    parser.add_argument("--capacity", type=int, default=2)
    parser.add_argument("--built", type=Path, help="a folder to build in, which stays")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = given.built or Path(folder)
        place.mkdir(exist_ok=True)
        build(place)
        only = [(given.capacity, given.scenario)] if given.scenario else None
        verdict = run(place, given.seconds, only, given.seed)
    print(verdict.text or verdict.complaint)
    sys.exit(bool(verdict.complaint))


if __name__ == "__main__":
    main()
