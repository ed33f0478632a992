"""What making an operation costs, and what `execute`, `wrap`, and `do` with `wait` add to it.

make           1,000 objects with two fields, kept in a list until all are made
  operation    a subclass of Operation: with __slots__; @dataclass(slots=True); without slots
  plain class  the same without a base
  ABC          the same, of abc.ABC, which is in Operation's bases: what its metaclass costs
  slotted base the same under a base with one slot: like every class whose base has a state of its own, it has no room
               for the fields inside the object (no inline values)
  Task         Task(abs, n), against functools.partial(abs, n), which does not check what it is given
memory         of one such object, with all that belongs to it

execute        list of 1,000 operations with two fields --> [pool: 4 workers, op.result = op.number] --> stream
wrap           endless generator of them --> [pool: 4 workers, buffer 1,000] --> stream --> the first N
do and wait    one of them --> [pool: 4 workers] --> op.wait(), then the next
  no slots     the same with operations without slots
  plain loop   for op in source: w.process(op), with slots

All but "make" make their operations within the time that is taken.

    python benchmarks/bench_operation_cost.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import tracemalloc
from abc import ABC
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from ringmill import Operation, Task, Worker, WorkerPool

if TYPE_CHECKING or __package__:
    from .harness import Side, Suite, main
    from .work import BATCH, BUFFER, WORKERS
else:  # run as a script
    from harness import Side, Suite, main
    from work import BATCH, BUFFER, WORKERS

SLOTS = 0.83  # the target: an operation with slots costs at most 1.2 times a plain object with the same slots


class SlottedBase:
    __slots__ = ("other",)


# Each class has an __init__ of its own, written out: its code adapts to this class alone.


class OperationWithSlots(Operation):
    __slots__ = ("number", "result")

    def __init__(self, number: int, result: int) -> None:
        self.number = number
        self.result = result


class PlainWithSlots:
    __slots__ = ("number", "result")

    def __init__(self, number: int, result: int) -> None:
        self.number = number
        self.result = result


class AbcWithSlots(ABC):  # noqa: B024
    __slots__ = ("number", "result")

    def __init__(self, number: int, result: int) -> None:
        self.number = number
        self.result = result


class OperationWithDict(Operation):
    def __init__(self, number: int, result: int) -> None:
        self.number = number
        self.result = result


class PlainWithDict:
    def __init__(self, number: int, result: int) -> None:
        self.number = number
        self.result = result


class AbcWithDict(ABC):  # noqa: B024
    def __init__(self, number: int, result: int) -> None:
        self.number = number
        self.result = result


class UnderSlottedBase(SlottedBase):
    def __init__(self, number: int, result: int) -> None:
        self.number = number
        self.result = result


@dataclass(slots=True)
class OperationDataclass(Operation):
    number: int
    result: int = 0


@dataclass(slots=True)
class PlainDataclass:
    number: int
    result: int = 0


@dataclass(slots=True)
class Copy(Operation):
    """What the pools are given: a number goes in, the same comes out."""

    number: int
    result: int = 0


@dataclass
class CopyWithDict(Operation):
    number: int
    result: int = 0


class Copier(Worker[Copy]):
    def process(self, op: Copy) -> None:
        op.result = op.number


class LoopCopier(Worker[Copy]):
    """For the plain loop: the code of its `process` is run by nothing else."""

    def process(self, op: Copy) -> None:
        op.result = op.number


class DictCopier(Worker[CopyWithDict]):
    def process(self, op: CopyWithDict) -> None:
        op.result = op.number


def maker(make: Callable[..., object]) -> Side:
    """Makes objects as a program does: by a call in a loop of its own."""
    if make is partial or make is Task:

        def calls(n: int) -> None:
            for _ in range(n // BATCH):
                _made = [make(abs, number) for number in range(BATCH)]

        return calls

    def objects(n: int) -> None:
        for _ in range(n // BATCH):
            _made = [make(number, number) for number in range(BATCH)]

    return objects


def bench_make(suite: Suite) -> None:
    n = suite.scale(200_000, BATCH)

    def compare(title: str, sides: dict[str, Callable[..., object]], target: float | None = None) -> None:
        suite.compare(
            f"make {title}", n, "1", {name: maker(make) for name, make in sides.items()}, unit=BATCH,
            targets={} if target is None else {"plain class": (target, target)},
        )

    compare(
        "objects with two fields, __slots__",
        {"operation": OperationWithSlots, "plain class": PlainWithSlots, "ABC": AbcWithSlots}, SLOTS,
    )
    compare(
        "objects with two fields, @dataclass(slots=True)",
        {"operation": OperationDataclass, "plain class": PlainDataclass}, SLOTS,
    )
    compare(
        "objects with two fields, without slots",
        {
            "operation": OperationWithDict, "plain class": PlainWithDict, "ABC": AbcWithDict,
            "slotted base": UnderSlottedBase, "operation with slots": OperationWithSlots,
        },
    )  # fmt: skip
    compare("calls of a function", {"Task": Task, "functools.partial": partial})


def bytes_of(make: Callable[[int], object]) -> float:
    """The number is one that exists already, and costs nothing."""
    made: list[object] = [None] * BATCH
    make(0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for index in range(BATCH):
            made[index] = make(1)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / BATCH


def task(number: int) -> object:
    return Task(abs, number)


def bench_memory(suite: Suite) -> None:
    kinds: dict[str, Callable[[int, int], object]] = {
        "operation, slots": OperationWithSlots,
        "plain class, slots": PlainWithSlots,
        "operation, no slots": OperationWithDict,
        "plain class, no slots": PlainWithDict,
    }
    values = {name: bytes_of(partial(kind, 1)) for name, kind in kinds.items()}
    values["Task"] = bytes_of(task)
    suite.measure("memory of one object with two fields, or of one Task", "bytes", values)


def endless(kind: Callable[[int], Any]) -> Iterator[Any]:
    return (kind(number) for number in count())


def bench_execute(suite: Suite, pool: WorkerPool[Copy], other: WorkerPool[CopyWithDict]) -> None:
    process = LoopCopier().process

    def execute(n: int) -> None:
        for _ in range(n // BATCH):
            for _op in pool.execute([Copy(number) for number in range(BATCH)]):
                pass

    def without_slots(n: int) -> None:
        for _ in range(n // BATCH):
            for _op in other.execute([CopyWithDict(number) for number in range(BATCH)]):
                pass

    def plain(n: int) -> None:
        for _ in range(n // BATCH):
            for op in [Copy(number) for number in range(BATCH)]:
                process(op)

    suite.compare(
        f"execute of {BATCH:,} operations with two fields", suite.scale(100_000, BATCH),
        f"{WORKERS} workers and a reader",
        {"execute": execute, "no slots": without_slots, "plain loop": plain}, unit=BATCH,
    )


def bench_wrap(suite: Suite, pool: WorkerPool[Copy], other: WorkerPool[CopyWithDict]) -> None:
    process = LoopCopier().process

    def wrap(n: int) -> None:
        with pool.wrap(endless(Copy), buffer=BUFFER) as stream:
            for _op in islice(stream, n):
                pass

    def without_slots(n: int) -> None:
        with other.wrap(endless(CopyWithDict), buffer=BUFFER) as stream:
            for _op in islice(stream, n):
                pass

    def plain(n: int) -> None:
        for op in islice(endless(Copy), n):
            process(op)

    suite.compare(
        "wrap of operations with two fields", suite.scale(100_000), f"{WORKERS} workers and a reader",
        {"wrap": wrap, "no slots": without_slots, "plain loop": plain},
    )


def bench_do(suite: Suite, pool: WorkerPool[Copy], other: WorkerPool[CopyWithDict]) -> None:
    process = LoopCopier().process

    def do(n: int) -> None:
        for number in range(n):
            pool.do(Copy(number)).wait()

    def without_slots(n: int) -> None:
        for number in range(n):
            other.do(CopyWithDict(number)).wait()

    def plain(n: int) -> None:
        for number in range(n):
            process(Copy(number))

    suite.compare(
        "do and wait, one operation with two fields at a time", suite.scale(20_000), f"{WORKERS} workers and a caller",
        {"do and wait": do, "no slots": without_slots, "plain loop": plain},
    )


def run(suite: Suite) -> None:
    bench_make(suite)
    bench_memory(suite)
    with WorkerPool(Copier, WORKERS) as pool, WorkerPool(DictCopier, WORKERS) as other:
        bench_execute(suite, pool, other)
        bench_wrap(suite, pool, other)
        bench_do(suite, pool, other)


if __name__ == "__main__":
    main("operation_cost", __doc__ or "", run)
