"""What the tests of pools in several folders use: steps of operations, gates, counts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ringmill import PoolStats
from tests.threads import LONG

# The ways in which the source of a wrap is drawn.
DRAWN_BY = ["reader", "thread", "ring"]

# What an operation is to do when it is processed: raise, call, or nothing.
Step = BaseException | Callable[[], Any] | None


def perform(step: Step) -> None:
    if isinstance(step, BaseException):
        raise step
    if step is not None:
        step()


class Gate:
    """A step that holds its worker until it is opened, and then raises the error, if any."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(LONG)
        if self.error is not None:
            raise self.error


def counts(stats: PoolStats) -> dict[str, int]:
    names = ("queued", "running", "delayed", "succeeded", "failed", "cancelled")
    return {name: value for name in names if (value := getattr(stats, name))}


def check_at_rest(stats: PoolStats) -> None:
    """All that was accepted has an outcome."""
    assert stats.queued == stats.running == stats.delayed == 0, stats
    assert stats.accepted == stats.succeeded + stats.failed + stats.cancelled, stats
