"""examples/fan_out.py, run as a user runs it: in a process of its own, on a real file."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.threads import start_threads

FAN_OUT = Path(__file__).parents[2] / "examples" / "fan_out.py"
SUBSCRIBERS = [("archive", "block"), ("alerts", "drop_oldest"), ("dashboard", "latest")]


def fan_out(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, FAN_OUT, *arguments], capture_output=True, text=True, encoding="utf-8", timeout=100,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"}, check=False,
    )


def follow(path: Path, idle: float) -> Any:
    spec = importlib.util.spec_from_file_location("fan_out_example", FAN_OUT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for it
    spec.loader.exec_module(module)
    return module.follow(str(path), idle)


def check_report(output: str, lines: list[str]) -> None:
    """For each subscriber saw + dropped is what was published; the last line of the log is the last of each."""
    published, *reports = output.splitlines()
    assert published == f"published {len(lines)}"
    assert len(reports) == len(SUBSCRIBERS)
    for (name, policy), report in zip(SUBSCRIBERS, reports, strict=True):
        found = re.fullmatch(rf"{name} +{policy} +saw (\d+), dropped (\d+), errors (\d+), last: (.*)", report)
        assert found, report
        seen, dropped, errors = (int(number) for number in found.groups()[:3])
        assert seen + dropped == len(lines), report
        assert found[4] == (lines[-1] if lines else ""), report
        all_errors = sum(line.startswith("ERROR") for line in lines)
        if policy == "block":
            assert (dropped, errors) == (0, all_errors), report
        assert errors <= min(seen, all_errors), report
        assert bool(seen) == bool(lines), report


@pytest.mark.parametrize("count", [1, 1200])
def test_it_writes_and_follows_its_own_log(count: int) -> None:
    run = fan_out("--lines", str(count), "--idle", "20")
    assert run.returncode == 0, run.stderr
    lines = [
        f"{'ERROR' if number % 10 == 0 else 'INFO'} request {number} took {number % 7} ms"
        for number in range(1, count + 1)
    ]
    check_report(run.stdout, lines)
    log = re.fullmatch(r"fan_out: following (.*)\n", run.stderr)
    assert log, run.stderr
    assert not os.path.exists(log[1])


def test_it_follows_a_file_that_grows(tmp_path: Path) -> None:
    """Written while it reads, in pieces that end within lines; it ends by itself at the last line."""
    lines = [f"ERROR {i} \u00fc" if i % 3 else f"{i}" for i in range(2000)]
    text = "".join(line + "\n" for line in lines).encode()
    path = tmp_path / "log"
    path.write_bytes(text[:1001])

    def grow() -> None:
        with open(path, "ab", buffering=0) as log:
            for begin in range(1001, len(text), 1001):
                log.write(text[begin : begin + 1001])

    run, _ = start_threads(lambda: fan_out(path, "--lines", "2000", "--idle", "60"), grow).join()
    assert run.returncode == 0, run.stderr
    check_report(run.stdout, lines)


@pytest.mark.parametrize("text", ["", "one\ntwo\n", "one\r\ntwo\r\n", "one\ntwo", "\n", "one\n\n"])
def test_it_ends_when_nothing_is_added(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(text.encode())
    run = fan_out(path, "--idle", "0")
    assert run.returncode == 0, run.stderr
    check_report(run.stdout, text.splitlines())


def test_it_ends_after_so_many_lines_though_there_are_more(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"{i}\n" for i in range(500)))
    run = fan_out(path, "--lines", "7", "--idle", "60")
    assert run.returncode == 0, run.stderr
    check_report(run.stdout, [str(i) for i in range(7)])


def test_follow_reads_a_truncated_file_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthr")
    lines = follow(path, 60)
    assert [next(lines), next(lines)] == ["one", "two"]
    with open(path, "ab") as log:
        log.write(b"ee\n")
    assert next(lines) == "three"
    path.write_bytes(b"new\n")
    assert next(lines) == "new"
    lines.close()


@pytest.mark.parametrize(
    "arguments", [("--lines", "0"), ("--lines", "many"), ("--idle", "-1"), ("--idle", "nan"), ("no such file",), ("/",)]
)
def test_it_refuses_bad_arguments(arguments: tuple[str, ...]) -> None:
    run = fan_out(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    assert arguments[-1] in run.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_interrupted_it_ends_with_130(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\n")
    process = subprocess.Popen(
        [sys.executable, FAN_OUT, path, "--idle", "100"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == f"fan_out: following {path}\n"  # it is at work, and nothing will be added
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "fan_out: interrupted\n")
