"""examples/pipeline.py, run as a user runs it, on real files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PIPELINE = Path(__file__).parents[2] / "examples" / "pipeline.py"


def pipeline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PIPELINE, *arguments], capture_output=True, text=True, timeout=100, check=False
    )


def test_it_counts_the_words_of_all_files(tmp_path: Path) -> None:
    for number in range(200):  # many times what the stages hold
        (tmp_path / f"{number}.txt").write_text("the ring, the Mill " + "ring " * (number % 3), encoding="utf-8")
    (tmp_path / "other.md").write_text("the the the", encoding="utf-8")
    (tmp_path / "folder.txt").mkdir()
    run = pipeline(tmp_path, "--pattern", "*.txt", "--top", "3")
    assert run.returncode == 0, run.stderr
    rings = 200 + sum(number % 3 for number in range(200))
    assert [line.split() for line in run.stdout.splitlines()] == [
        ["400", "the"], [str(rings), "ring"], ["200", "mill"]
    ]  # fmt: skip
    assert run.stderr == f"200 files, {600 + rings} words; could not be read: 0\n"


def test_a_file_that_cannot_be_read_is_reported_and_the_others_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one", encoding="utf-8")
    (tmp_path / "b.py").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "c.py").write_text("one two", encoding="utf-8")
    run = pipeline(tmp_path)
    assert run.returncode == 1
    assert run.stdout.split() == ["2", "one", "1", "two"]
    error, summary = run.stderr.splitlines()
    assert error.startswith(f"pipeline: {tmp_path / 'b.py'}: ")
    assert summary == "2 files, 3 words; could not be read: 1"


def test_an_empty_directory(tmp_path: Path) -> None:
    run = pipeline(tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "0 files, 0 words; could not be read: 0\n")


@pytest.mark.parametrize("arguments", [("--top", "0"), ("no such directory",), ("a", "b")])
def test_it_refuses_bad_arguments(arguments: tuple[str, ...]) -> None:
    run = pipeline(*arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert arguments[-1] in run.stderr
