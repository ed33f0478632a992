"""When an allocation fails, a call raises MemoryError or succeeds anyway; nothing crashes, hangs, is lost or leaked.

Each public call runs in a process of its own (out_of_memory.py): with each of its first allocations failing alone, and
with those after it. RINGMILL_LONG=1 fails the first 200 instead of 40.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("_testcapi", reason="this CPython came without _testcapi, which makes allocations fail")

from tests import out_of_memory

LONG_RUN = bool(os.environ.get("RINGMILL_LONG"))
ALLOCATIONS = 200 if LONG_RUN else 40
ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.watchdog(600 if LONG_RUN else 100)]


def fails_allocations(name: str) -> dict[str, int]:
    limit = ALLOCATIONS if name not in out_of_memory.FORKS or LONG_RUN else 8
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "out_of_memory.py", name, str(limit)],
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
