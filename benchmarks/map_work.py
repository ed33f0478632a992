"""What the topic `map` has its pools do: workers and operations, beside plain objects; and how large the work is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ringmill import Operation, Worker

if TYPE_CHECKING or __package__:
    from .work import Idler, Noop
else:  # run as a script
    from work import Idler, Noop

FIRST = 1000  # as in bench_ring_buffer
PAYLOAD = 64 * 1024

Function = Callable[[Any], Any]


class Absolute(Worker[Any]):
    def process(self, item: int) -> Any:
        return abs(item)


class LoopAbsolute(Worker[Any]):
    """For the comprehensions: the code of its `process` is run by nothing else."""

    def process(self, item: int) -> Any:
        return abs(item)


class Arithmetic(Worker[Any]):
    """Adds up so many numbers."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def process(self, item: int) -> Any:
        total = item
        for step in range(self.turns):
            total += step
        return total


@dataclass(slots=True)
class Copy(Operation):
    number: int
    result: int = 0


@dataclass(slots=True)
class PlainCopy:
    number: int
    result: int = 0


@dataclass
class CopyWithDict(Operation):
    number: int
    result: int = 0


@dataclass
class PlainCopyWithDict:
    number: int
    result: int = 0


class PlainNoop:
    __slots__ = ()


class Copier(Worker[Any]):
    """The pools' and the plain loops' each have a subclass of their own: its `process` meets one class only."""


class SlotsCopier(Copier):
    def process(self, op: Copy) -> None:
        op.result = op.number


class LoopSlotsCopier(Copier):
    def process(self, op: PlainCopy) -> None:
        op.result = op.number


class DictCopier(Copier):
    def process(self, op: CopyWithDict) -> None:
        op.result = op.number


class LoopDictCopier(Copier):
    def process(self, op: PlainCopyWithDict) -> None:
        op.result = op.number


class LoopIdler(Worker[Any]):
    def process(self, op: PlainNoop) -> None:
        pass


def digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()


def turns_of(seconds: float) -> int:
    """How many turns of Arithmetic's loop take so long, the call included: the least of some tries."""

    def least(turns: int) -> float:
        process = Arithmetic(turns).process

        def once() -> float:
            begun = time.perf_counter()
            for _ in range(50):
                process(FIRST)
            return (time.perf_counter() - begun) / 50

        return min(once() for _ in range(20))

    call, long = least(0), least(200)
    return max(1, round((seconds - call) / (long - call) * 200))


def payload_of(seconds: float) -> bytes:
    """Whose SHA-256 takes so long: by the least of some tries."""
    payload = bytes(PAYLOAD)

    def once() -> float:
        begun = time.perf_counter()
        digest(payload)
        return time.perf_counter() - begun

    return bytes(round(PAYLOAD * seconds / min(once() for _ in range(20))))


class Kind:
    """Operations of one declaration, and the plain objects that are declared alike."""

    def __init__(
        self, name: str, worker: Callable[[], Worker[Any]], make: Function, twin: Worker[Any], plain: Function
    ) -> None:
        self.name = name
        self.worker = worker
        self.make = make
        self.process = twin.process
        self.plain = plain


SLOTS = Kind("with slots", SlotsCopier, Copy, LoopSlotsCopier(), PlainCopy)
DICT = Kind("without slots", DictCopier, CopyWithDict, LoopDictCopier(), PlainCopyWithDict)
EMPTY = Kind("that are empty", Idler, lambda _: Noop(), LoopIdler(), lambda _: PlainNoop())
