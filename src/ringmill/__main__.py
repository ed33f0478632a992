"""`python -m ringmill` prints the facts for a bug report: versions, the GIL, the compiler and its flags."""

from __future__ import annotations

import platform
import sys
import sysconfig

from ._core.platform import build


def report() -> str:
    """Returns the text that is printed."""
    return "\n".join(
        [
            f"ringmill  {build.version}",
            f"Python    {' '.join(sys.version.split())}",
            f"GIL       {_gil()}",
            f"system    {platform.platform()}, {platform.machine()}",
            f"compiler  {build.compiler}",
            f"flags     {build.flags}",
        ]
    )


def _gil() -> str:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "on"
    enabled: bool = sys._is_gil_enabled()  # type: ignore[attr-defined,unused-ignore]  # new in 3.13
    return "on, in a free-threaded build" if enabled else "off"


if __name__ == "__main__":
    print(report())
