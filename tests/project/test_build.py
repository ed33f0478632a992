"""pyproject.toml is the only source of the version; `python -m ringmill` prints it and the details of a bug report."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import ringmill
from ringmill._core.platform import build

ROOT = Path(__file__).parents[2]


def printed(*options: str) -> dict[str, str]:
    run = subprocess.run(
        [sys.executable, *options, "-m", "ringmill"], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stderr == ""
    return dict(line.split(maxsplit=1) for line in run.stdout.splitlines())


def test_the_version_is_that_of_pyproject_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert ringmill.__version__ == build.version == project["version"]
    assert importlib.metadata.version("ringmill") == project["version"]


def test_the_changelog_begins_with_what_is_unreleased_or_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)[0] in ("Unreleased", ringmill.__version__)


def test_python_m_ringmill_prints_what_a_bug_report_needs() -> None:
    lines = printed()
    assert list(lines) == ["ringmill", "Python", "GIL", "system", "compiler", "flags"]
    assert lines["ringmill"] == ringmill.__version__
    assert lines["Python"].startswith(platform.python_version())
    assert lines["system"].endswith(platform.machine())
    assert lines["compiler"] == build.compiler
    assert lines["flags"] == build.flags


def test_the_compiler_and_its_flags_are_those_of_the_build() -> None:
    if sys.platform == "win32":
        assert build.compiler.startswith("MSVC 19")
        assert "/std:c++17" in build.flags.split()
        return
    name, number = build.compiler.split()[:2]
    assert name in ("GCC", "Clang")
    assert number[0].isdigit()
    flags = build.flags.split()
    assert "-std=c++17" in flags
    assert "-fPIC" in flags or sys.platform == "darwin"
    assert not any("/" in flag for flag in flags)


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="only free-threaded builds have a choice")
def test_the_state_of_the_gil_is_that_of_the_process() -> None:
    assert printed("-X", "gil=0")["GIL"] == "off"
    assert printed("-X", "gil=1")["GIL"] == "on, in a free-threaded build"


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="a free-threaded build says more")
def test_the_state_of_the_gil_is_on_elsewhere() -> None:
    assert printed()["GIL"] == "on"
