"""examples/sqlite_writers.py, run as a user runs it."""

from __future__ import annotations

import itertools
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

SQLITE_WRITERS = Path(__file__).parents[2] / "examples" / "sqlite_writers.py"


def sqlite_writers(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SQLITE_WRITERS, *arguments], capture_output=True, text=True, timeout=100, check=False
    )


def test_every_row_is_inserted_once_and_the_output_names_the_retries(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    ended = sqlite_writers("--rows", "120", "--writers", "3", "--db", path)
    assert (ended.returncode, ended.stderr) == (0, "")
    with closing(sqlite3.connect(path)) as connection:
        table = connection.execute("SELECT key, writer FROM rows").fetchall()
    assert sorted(key for key, _ in table) == list(range(120))  # not trusting its own check
    *retries, summary = ended.stdout.splitlines()
    writer_of = dict(table)
    assert retries
    for line in retries:
        match = re.fullmatch(r"row (\d+): writer-0 failed, then (writer-[12]) wrote it", line)
        assert match, line
        assert writer_of[int(match[1])] == match[2]
    assert len({line.split(":")[0] for line in retries}) == len(retries)
    written = Counter(writer_of.values())
    assert "writer-0" not in written
    shares = ", ".join(f"{name} wrote {count}" for name, count in sorted(written.items()))
    assert summary == f"120 rows, each exactly once; {len(retries)} were retried; {shares}"


def test_without_failures_nothing_is_retried() -> None:
    ended = sqlite_writers("--rows", "20", "--failing", "0")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("20 rows, each exactly once; 0 were retried; ")


def test_two_of_three_may_fail() -> None:
    ended = sqlite_writers("--rows", "30", "--failing", "2")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("writer-2 wrote 30\n")


def test_the_check_fails_when_all_writers_do() -> None:
    ended = sqlite_writers("--rows", "5", "--writers", "2", "--failing", "2")
    assert ended.returncode == 1
    assert ended.stderr == "sqlite_writers: 5 rows went in, 0 are in the table, 0 of them different\n"
    lines = ended.stdout.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert re.match(r"row \d: (writer-[01], ){9}writer-[01] failed, given up: ", line), line
        tried = re.findall(r"writer-[01]", line)
        assert all(one != other for one, other in itertools.pairwise(tried)), line  # in turn


@pytest.mark.parametrize(
    "arguments", [("--writers", "0"), ("--rows", "2", "--writers", "3"), ("--failing", "4"), ("--db", __file__)]
)
def test_bad_arguments(arguments: tuple[str, ...]) -> None:
    ended = sqlite_writers(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
