"""Runs scenarios in a process of its own, since a process in which something was found cannot be used again."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.models.test_model_ring_slots import linearizable
from tests.tools.weak_memory.scenarios import ALL, outcomes

ROOT = Path(__file__).parents[3]
AT_ONCE = 200  # executions of a scenario before it is the next one's turn
Scenario = tuple[int, str]


@dataclass(frozen=True)
class Verdict:
    """The result of a run: "" or the finding; and the full text."""

    complaint: str
    text: str


def run(
    built: Path, seconds: float, scenarios: list[Scenario] | None = None, seed: int | None = None, relaxed: int = -1
) -> Verdict:
    """Runs all scenarios in turn for so long; or one execution of one, and tells it.

    `relaxed`: the site of the order that is relaxed, where it was built for that.
    """
    request = json.dumps(
        {"built": str(built), "seconds": seconds, "scenarios": scenarios or ALL, "seed": seed, "relaxed": relaxed}
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.weak_memory.runner", request],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds + 120,
    )
    if done.returncode == 0:
        return Verdict("", done.stdout.strip())
    text = (done.stdout + done.stderr).strip()
    return Verdict(text.splitlines()[0] if text else f"status {done.returncode}", text)


def _run(built: str, seconds: float, scenarios: list[Scenario], seed: int | None, relaxed: int) -> None:
    machine = ctypes.CDLL(f"{built}/libmachine.so", mode=ctypes.RTLD_GLOBAL)
    machine.wm_relax(relaxed)
    sys.path.insert(0, f"{built}/src")
    from ringmill._core import execution  # type: ignore[attr-defined]

    gc.disable()  # it would run within an execution, on some thread of it
    if seed is not None:
        (capacity, scenario), *_ = scenarios
        what, _, story = execution.story(scenario, capacity, seed)
        print(what, story, sep="\n", flush=True)
        os._exit(0)
    seen: dict[Scenario, set[Any]] = {}
    first, executions, started = 0, 0, time.monotonic()
    while time.monotonic() - started < seconds:
        for capacity, scenario in scenarios:
            histories, finding = execution.search(scenario, capacity, first, AT_ONCE)
            if finding:
                _complain(scenario, capacity, *finding)
            gc.collect()
            known = seen.setdefault((capacity, scenario), set())
            for history, of_seed in histories.items():
                if history not in known and not linearizable(capacity, history, outcomes):
                    what = f"no queue does this: {history}"
                    _complain(scenario, capacity, what, of_seed, execution.story(scenario, capacity, of_seed)[2])
                known.add(history)
        first += AT_ONCE
        executions += AT_ONCE * len(scenarios)
    histories = sum(map(len, seen.values()))
    print(f"{executions} executions of {len(scenarios)} scenarios, {histories} histories: 0 findings")


def _complain(scenario: str, capacity: int, what: str, seed: int, story: str) -> None:
    print(f"{what} (--scenario '{scenario}' --capacity {capacity} --seed {seed})", story, sep="\n", flush=True)
    os._exit(1)


if __name__ == "__main__":
    _run(**json.loads(sys.argv[1]))
