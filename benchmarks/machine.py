"""Where a number was measured: it means nothing without."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import version
from pathlib import Path

from ringmill._core.ring import ring_buffer


def has_gil() -> bool:
    """Whether there is a GIL now: a free-threaded build takes it too when it imports a module that wants it."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def environment() -> dict[str, str]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    build = "free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else "standard"
    return {
        "ringmill": version("ringmill"),
        "commit": commit(),
        "built": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.path.getmtime(ring_buffer.__file__))),
        "python": f"{platform.python_implementation()} {platform.python_version()}, GIL {'on' if has_gil() else 'off'}",
        "build": f"{build}, {platform.python_compiler()}",
        "machine": f"{cpu_model()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}",
        "load": "unknown" if load is None else f"{load:.2f} before the start",
    }


def commit() -> str:
    """The commit of the working tree, "+changes" if src has any. What runs is what is installed: `built` says when."""
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
