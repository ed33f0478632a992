"""When an allocation fails, a call raises MemoryError or succeeds; nothing crashes, hangs, is lost or leaked.

Each public call runs in a process of its own (out_of_memory): with each of its first allocations failing alone, and
with those after it. RINGMILL_LONG=1 fails the first 200 instead of 40. Each path that an operation can take runs with a
sample of shortages of 1 to 8 and of 100 allocations, which begin at the points of the path, on its thread
(out_of_memory/shortage.py); `python -m tests.tools.out_of_memory --long` runs all of them. What CPython and Cython do
wrong themselves is in out_of_memory/faults.py. Not shown: free-threaded builds (below).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("_testcapi", reason="this CPython came without _testcapi, which makes allocations fail")

from tests.tools import out_of_memory

LONG_RUN = bool(os.environ.get("RINGMILL_LONG"))
ALLOCATIONS = 200 if LONG_RUN else 40
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="cases run in forks, and use the timers of POSIX"),
    pytest.mark.watchdog(600 if LONG_RUN else 100),
    pytest.mark.skipif(
        bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        reason="PyList_New of free-threaded CPython 3.13 frees what it never allocated when there is no memory",
    ),
    pytest.mark.skipif(
        sys.version_info >= (3, 16),
        reason="what CPython itself does wrong without memory is known, and allowed for, in 3.11 to 3.15 only",
    ),
]


def fails_allocations(name: str) -> dict[str, int]:
    limit = ALLOCATIONS if name not in out_of_memory.FORKS or LONG_RUN else 8
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.out_of_memory", name, str(limit)],
        cwd=ROOT, env=os.environ | {"PYTHONMALLOC": "default"}, capture_output=True, text=True,
        timeout=580 if LONG_RUN else 90,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stderr}"
    figures: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    print(name, figures)
    assert figures["cases"] == (limit if name in out_of_memory.ALONE else 2 * limit)
    assert figures["failed"] > 0, "no allocation of this call was made to fail"
    assert not figures["strange"]
    return figures


@pytest.mark.parametrize("name", out_of_memory.CASES)
def test_a_call_without_memory_raises_or_succeeds(name: str) -> None:
    fails_allocations(name)


GROUPS = 4
SAMPLE = 3  # cases for each point of each path


@pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="what asyncio and threading of 3.14 lose without memory is not known yet"
)
@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="set_nomemory fails on other threads than its caller's from 3.12 on only"
)
@pytest.mark.parametrize("group", range(GROUPS))
def test_no_path_of_an_operation_loses_it_where_memory_is_short(group: int) -> None:
    """No crash, no hang; one outcome, out of the stream once, counts that agree, threads that end, nothing leaked."""
    from tests.tools.out_of_memory.paths import PATHS

    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.out_of_memory.sweep", ",".join([*PATHS][group::GROUPS]), str(SAMPLE)],
        cwd=ROOT, env=os.environ | {"PYTHONMALLOC": "default"}, capture_output=True, text=True, timeout=90,
    )
    print(done.stdout)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
