"""Threads for tests: they start together, and their errors are raised in the test. And the time limits of tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

LONG = 30.0  # seconds; reached only by a test that fails
SHORT = 0.02  # seconds; a time limit that is meant to pass
HOUR = 3600.0  # seconds; a delay that no test waits for


class Started:
    """Threads that are running already; `join` re-raises the first error and returns what each returned."""

    def __init__(self, functions: tuple[Callable[[], Any], ...]) -> None:
        self.results: list[Any] = [None] * len(functions)
        self.errors: list[BaseException] = []
        self.barrier = threading.Barrier(len(functions))
        self.threads = [
            threading.Thread(target=self._run, args=(i, function), daemon=True, name=f"test-{i}")
            for i, function in enumerate(functions)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, index: int, function: Callable[[], Any]) -> None:
        try:
            self.barrier.wait()
            self.results[index] = function()
        except BaseException as error:
            self.errors.append(error)

    def join(self) -> list[Any]:
        for thread in self.threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return self.results


def start_threads(*functions: Callable[[], Any]) -> Started:
    """Starts one thread for each function, all released by one barrier."""
    return Started(functions)


def run_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Runs each function on a thread of its own, all at once; returns their results, re-raises the first error."""
    return Started(functions).join()


def wait_until(predicate: Callable[[], bool], seconds: float = LONG) -> None:
    """Polls a condition that another thread brings about; the time limit is a failure, never a verdict."""
    deadline = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not true after {seconds} s: {predicate}")
        time.sleep(0.0005)
