"""The weak-memory machine allows what C++ allows and nothing else, by the usual litmus tests.

The core itself runs on it by `python -m tests.tools.weak_memory`, which takes a minute to compile.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.models.test_model_ring_slots import linearizable
from tests.tools.weak_memory.build import HERE, MACHINE, compile_shared
from tests.tools.weak_memory.scenarios import outcomes

RUN = """
import ctypes, sys
machine = ctypes.PyDLL(sys.argv[1])  # the machine runs with the GIL
machine.wm_litmus.restype = ctypes.c_char_p
machine.wm_litmus.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
print(machine.wm_litmus(sys.argv[2].encode(), 20_000).decode(), end="")
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    known = sys.version_info[:2] in {(3, 12), (3, 13)}  # it takes what CPython keeps of exceptions along with a thread
    if sys.platform != "linux" or not known or not shutil.which("g++") or not header.exists():
        pytest.skip("the machine is compiled by g++ on Linux, for CPython 3.12 and 3.13, with their headers")
    built = tmp_path_factory.mktemp("machine") / "machine.so"
    compile_shared(built, *MACHINE, HERE / "litmus.cc")
    return built


def outcomes_of(machine: Path, name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(machine), name], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


# What the threads read, in the words of litmus.cc: all that C++ allows, and this machine shows (LB's 11 it does not).
SEEN = {
    "SB+rlx": "00 01 10 11",
    "SB+rel": "00 01 10 11",
    "SB+sc": "01 10 11",
    "MP+rlx": "00 01 10 11",
    "MP+rel+rlx": "00 01 10 11",
    "MP+rlx+acq": "00 01 10 11",
    "MP+rel+acq": "00 01 11",
    "MP+sc": "00 01 11",
    "MP+plain+rel+acq": "0 1",
    "MP+plain+rlx": "a race on a variable",
    "MP+plain+rel+rlx": "a race on a variable",
    "R+rlx+sc": "00 01 10 11",
    "CoRR": "00 01 02 11 12 22",
    "2+2W+rlx": "11 12 21 22",
    "2+2W+sc": "12 21 22",
    "release sequence": "00 01 11",
    "release sequence, broken": "00 01 10 11",
    "fetch_add": "30",
    "one wins": "11",
    "failed swap, coherence": "00 11 12",  # a weak one that fails for no reason has read a value all the same
    "failed swap, acquire": "00 11",
    "LB+rlx": "00 01 10",
    "lock": "",
    "deadlock": "blocked forever",
    "visible in the end": "10",
    "livelock": "they never end",
}


@pytest.mark.parametrize("name", SEEN)
def test_the_machine_shows_what_is_allowed_and_nothing_else(machine: Path, name: str) -> None:
    assert outcomes_of(machine, name) == SEEN[name]


@pytest.mark.parametrize(("name", "disagree"), [("IRIW+acq", True), ("IRIW+sc", False)])
def test_readers_agree_on_the_order_of_writes_only_where_all_is_seq_cst(
    machine: Path, name: str, disagree: bool
) -> None:
    seen = outcomes_of(machine, name).split()
    assert ("1010" in seen) == disagree
    assert len(seen) == 15 + disagree


def test_observations_take_part_in_histories() -> None:
    history = [("call", "A", "p", "1"), ("return", "A", "done"), ("call", "B", "n", ""), ("return", "B", 1)]
    assert linearizable(2, tuple(history), outcomes)
    assert not linearizable(2, (*history[:3], ("return", "B", 0)), outcomes)
    assert not linearizable(1, (*history[:2], ("call", "B", "f", ""), ("return", "B", False)), outcomes)
    assert not linearizable(2, (*history[:2], ("call", "B", "e", ""), ("return", "B", True)), outcomes)
