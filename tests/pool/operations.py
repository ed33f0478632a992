"""Operations of several forms, and a pool that runs one of them to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ringmill import Operation, Worker, WorkerPool
from tests.threads import LONG

ERRORS = [Exception, KeyboardInterrupt, SystemExit, MemoryError, RecursionError]


class Plain(Operation):
    """No __init__ at all."""


class Filled(Operation):
    def __init__(self, number: int, name: str = "") -> None:  # no super().__init__()
        self.number = number
        self.name = name


@dataclass
class Data(Operation):
    number: int
    names: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Slotted(Operation):
    number: int
    other: Any = None


class Script(Worker[Any]):
    """Does what the test says, once the gate is open."""

    def __init__(self, process: Callable[[Any], None] | None = None) -> None:
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.gate.set()
        self.do = process

    def process(self, op: Any) -> None:
        self.begun.set()
        assert self.gate.wait(LONG)
        if self.do is not None:
            self.do(op)


def raising(error: BaseException | type[BaseException]) -> Callable[[Any], None]:
    def process(op: Any) -> None:
        raise error

    return process


def run(op: Operation, process: Callable[[Any], None] | None = None) -> Operation:
    """Puts it through a pool of its own, to its end."""
    with WorkerPool([Script(process)]) as pool:
        assert pool.do(op).wait(LONG)
    return op
