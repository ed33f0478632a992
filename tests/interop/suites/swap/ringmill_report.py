"""A plugin of pytest's: appends a line of JSON to the file RINGMILL_REPORT for each phase of each test.

A line is written as soon as the phase has ended, so that the results of a run that hangs or dies are known.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
from typing import Any

import pytest

REPORT = os.environ["RINGMILL_REPORT"]


def note(test: str, outcome: str, text: str = "") -> None:
    with open(REPORT, "a") as file:
        file.write(json.dumps({"test": test, "outcome": outcome, "text": text[-4000:]}) + "\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "names" not in os.environ.get("RINGMILL_SWAP", "").split():
        return
    from ringmill import PoolExecutor

    for module in {getattr(item, "module", None) for item in items}:
        if getattr(module, "ThreadPoolExecutor", None) is concurrent.futures.ThreadPoolExecutor:
            module.ThreadPoolExecutor = PoolExecutor  # type: ignore[union-attr]


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        note(report.nodeid, "failed", str(report.longrepr))


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    note(nodeid, "started")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.outcome != "passed" or report.when == "call":
        note(report.nodeid, report.outcome, str(report.longrepr) if report.failed else "")
