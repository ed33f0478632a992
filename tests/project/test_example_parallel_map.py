"""examples/parallel_map.py, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PARALLEL_MAP = Path(__file__).parents[2] / "examples" / "parallel_map.py"
CUSTOMERS = ("Ada", "Blaise", "Charles")


def parallel_map(*arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """`path`: a folder whose modules come first."""
    before = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, PARALLEL_MAP, *arguments], capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": before},
    )  # fmt: skip


def expected(count: int) -> str:
    """What it prints: for each customer, in the order of appearance, the total of the orders that are not cut off."""
    totals: dict[str, int] = {}
    for number in range(1, count + 1):
        if number % 97:
            total = sum(price * (1 + (number + position) % 5) for position, price in enumerate((2, 3, 50)))
            totals[CUSTOMERS[number % 3]] = totals.get(CUSTOMERS[number % 3], 0) + total
    return "".join(f"{customer}: {total}\n" for customer, total in totals.items())


@pytest.mark.parametrize("workers", ["1", "4"])
def test_results_are_in_order_and_errors_come_at_the_end(workers: str) -> None:
    run = parallel_map("--documents", "200", "--workers", workers)
    assert run.returncode == 1
    assert run.stdout == expected(200)
    *errors, summary = run.stderr.splitlines()
    assert [line.split(": ")[1] for line in errors] == ["document 97", "document 194"]
    assert all("column" in line for line in errors)
    assert summary == "200 documents, 2 could not be parsed"


def test_without_errors_it_ends_with_0() -> None:
    run = parallel_map("--documents", "2")
    assert (run.returncode, run.stdout) == (0, expected(2))
    assert run.stderr == "2 documents, 0 could not be parsed\n"


def test_without_tqdm(tmp_path: Path) -> None:
    (tmp_path / "tqdm.py").write_text("raise ImportError('not installed')\n")
    run = parallel_map("--documents", "100", path=str(tmp_path))
    assert (run.returncode, run.stdout) == (1, expected(100)), run.stderr


def test_the_bar_has_the_number_of_documents_as_its_total(tmp_path: Path) -> None:
    (tmp_path / "tqdm.py").write_text("def tqdm(results, **options):\n    print(len(results))\n    return results\n")
    run = parallel_map("--documents", "50", path=str(tmp_path))
    assert (run.returncode, run.stdout) == (0, "50\n" + expected(50)), run.stderr


@pytest.mark.parametrize("arguments", [("--workers", "0"), ("--documents", "many"), ("x",)])
def test_it_refuses_bad_arguments(arguments: tuple[str, ...]) -> None:
    run = parallel_map(*arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert arguments[-1] in run.stderr
