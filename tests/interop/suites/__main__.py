"""The command: see the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.interop import suites
from tests.interop.suites.compare import Comparison, compare
from tests.interop.suites.environment import Environment
from tests.interop.suites.libraries import EXPECTED, LEFT_OUT, LIBRARIES

REPOSITORY = Path(__file__).parents[3]


def tell(comparison: Comparison) -> None:
    """Prints what differs, with the errors."""
    name = comparison.library.name
    for fault in comparison.faults:
        print(f"{name}: FAULT: {fault}")
        run = comparison.standard if comparison.standard.fault else comparison.ringmill
        print("    " + run.output[-3000:].replace("\n", "\n    "))
    for test in comparison.differing:
        reason = EXPECTED.get((name, test))
        print(f"{name}: {'differs by design' if reason else 'DIFFERS'}: {test}{f': {reason}' if reason else ''}")
        if not reason:
            text = comparison.ringmill.texts.get(test) or "no result"
            print("    " + text.replace("\n", "\n    "))
    for test in comparison.outdated:
        print(f"{name}: OUTDATED: {test} is in EXPECTED, and passes")
    for test in comparison.unsteady:
        print(f"{name}: failed, but not in each run: {test}")
        print("    " + (comparison.ringmill.texts.get(test) or "no result")[-1500:].replace("\n", "\n    "))


def table(comparisons: list[Comparison]) -> str:
    """One line for each suite."""
    lines = [
        f"{'':20}{'standard':>22}{'ringmill':>22}",
        f"{'suite':20}{'pass/fail/skip':>15}{'s':>7}{'pass/fail/skip':>15}{'s':>7}{'differ':>8}  uses",
    ]
    for comparison in comparisons:
        columns = ""
        for run in (comparison.standard, comparison.ringmill):
            counts = "/".join(str(run.count(outcome)) for outcome in ("passed", "failed", "skipped"))
            columns += f"{counts:>15}{run.seconds:7.1f}"
        uses = ", ".join(f"{number} {what}" for what, number in comparison.ringmill.uses.items() if number)
        lines.append(
            f"{comparison.library.name:20}{columns}{len(comparison.differing):8}  {uses or '-'}"
            f"{'  FAILED' if comparison.failed else ''}"
        )
    return "\n".join(lines)


def main() -> int:
    assert suites.__doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m tests.interop.suites", description=suites.__doc__.splitlines()[0],
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a suite; default: all")
    parser.add_argument("--quick", action="store_true", help="a part of each suite: 3.5 minutes in all")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--standard-only", action="store_true", help="without ringmill")
    parser.add_argument(
        "--folder", type=Path, default=REPOSITORY / "build" / "suites",
        help="where the environment and the sdists are kept; default: %(default)s",
    )
    given = parser.parse_args()
    if unknown := set(given.names) - {library.name for library in LIBRARIES}:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}; --list prints the names")
    libraries = [library for library in LIBRARIES if not given.names or library.name in given.names]
    if given.list:
        for library in libraries:
            print(f"{library.name:20} {library.swap}")
        for name, reason in LEFT_OUT.items():
            print(f"{name:20} left out: {reason}")
        return 0
    environment = Environment(given.folder)
    environment.make()
    comparisons = []
    for library in libraries:
        tests = library.quick if given.quick and library.quick else library.tests
        comparison = compare(environment, library, tests, given.standard_only)
        comparisons.append(comparison)
        tell(comparison)
        print(table([comparison]).splitlines()[-1], flush=True)
    print("\n" + table(comparisons))
    failed = sum(comparison.failed for comparison in comparisons)
    print(f"\n{len(comparisons) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
