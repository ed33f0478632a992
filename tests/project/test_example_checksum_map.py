"""examples/checksum_map.py, run as a user runs it, on real files."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

CHECKSUM_MAP = Path(__file__).parents[2] / "examples" / "checksum_map.py"


def checksum_map(*paths: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, CHECKSUM_MAP, *paths], capture_output=True, text=True, timeout=100, check=False
    )


def test_it_prints_the_lines_of_sha256sum_in_the_order_of_the_names(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(100)]
    for number, path in enumerate(paths):
        path.write_bytes(os.urandom(number * 1000))
    run = checksum_map(*paths)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n" for path in paths)


def test_without_names_it_prints_nothing() -> None:
    run = checksum_map()
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_first_file_that_cannot_be_read_ends_it_after_the_lines_before(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(b"x")
    run = checksum_map(good, tmp_path / "missing", good)
    assert run.returncode == 1
    assert run.stdout == f"{hashlib.sha256(b'x').hexdigest()}  {good}\n"
    assert "FileNotFoundError" in run.stderr
