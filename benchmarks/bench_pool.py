"""What a pool costs per operation, against doing without one.

execute        list of 1,000 --> [pool: 4 workers, process() does nothing] --> stream --> read to the end
  plain loop   for op in list: w.process(op)
  ideal pool   list --> SimpleQueue --> [one thread: for op in list: w.process(op)] --> SimpleQueue --> list
  map          list --> ThreadPoolExecutor(4).map(w.process, list) --> read to the end

wrap           endless generator --> [pool: 4 workers, buffer 1,000] --> stream --> the first N
  plain loop   for op in generator: w.process(op)

do and wait    one operation --> [pool: 4 workers] --> op.wait(), then the next; on an idle machine, and while another
               process keeps each core busy
  submit       one call --> ThreadPoolExecutor(4) --> future.result(), then the next

work           list of 1,000 --> [pool: 2 workers, process() runs about 20 us of Python] --> stream
  two threads  half of the operations each, in plain loops

All make their operations afresh, within the time that is taken.

    python benchmarks/bench_pool.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from os import cpu_count
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ringmill import Operation, Worker, WorkerPool

if TYPE_CHECKING or __package__:
    from .harness import Suite, open_suite
else:  # run as a script
    from harness import Suite, open_suite

BATCH = 1000
WORKERS = 4
BUFFER = 1000


class Noop(Operation):
    """As small as an operation gets."""


class Idler(Worker[Noop]):
    def process(self, op: Noop) -> None:
        pass


class Loop(Worker[Noop]):
    """Runs so many turns of an empty Python loop."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def process(self, op: Noop) -> None:
        for _ in range(self.turns):
            pass


class IdealPool:
    """The least that handing a list to another thread and back can cost: two queues, one entry each."""

    def __init__(self, worker: Worker[Noop]) -> None:
        self.worker = worker
        self.there: SimpleQueue[list[Noop] | None] = SimpleQueue()
        self.back: SimpleQueue[list[Noop]] = SimpleQueue()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        process = self.worker.process
        while (ops := self.there.get()) is not None:
            for op in ops:
                process(op)
            self.back.put(ops)
            del ops

    def execute(self, ops: list[Noop]) -> list[Noop]:
        self.there.put(ops)
        return self.back.get()

    def close(self) -> None:
        self.there.put(None)
        self.thread.join()


def fresh() -> list[Noop]:
    return [Noop() for _ in range(BATCH)]


def endless() -> Iterator[Noop]:
    while True:
        yield Noop()


def bench_execute(suite: Suite) -> None:
    batches = suite.scale(100)
    worker = Idler()

    def ringmill() -> None:
        for _ in range(batches):
            for _op in pool.execute(fresh()):
                pass

    def plain() -> None:
        process = worker.process
        for _ in range(batches):
            ops = fresh()
            for op in ops:
                process(op)

    def ideal_pool() -> None:
        for _ in range(batches):
            for _op in ideal.execute(fresh()):
                pass

    def futures() -> None:
        for _ in range(batches):
            for _op in executor.map(worker.process, fresh()):
                pass

    with ExitStack() as stack:
        pool = stack.enter_context(WorkerPool([Idler() for _ in range(WORKERS)]))
        executor = stack.enter_context(ThreadPoolExecutor(WORKERS))
        ideal = IdealPool(worker)
        stack.callback(ideal.close)
        suite.compare(
            f"execute in batches of {BATCH:,} operations that do nothing",
            batches * BATCH,
            f"{WORKERS} workers and a reader",
            {
                "execute": ringmill,
                "plain loop": plain,
                "ideal pool": ideal_pool,
                "ThreadPoolExecutor.map": futures,
            },
        )


def bench_wrap(suite: Suite) -> None:
    n = suite.scale(200_000)
    worker = Idler()

    def ringmill() -> None:
        with pool.wrap(endless(), buffer=BUFFER) as stream:
            for _op in islice(stream, n):
                pass

    def plain() -> None:
        process = worker.process
        for op in islice(endless(), n):
            process(op)

    with WorkerPool([Idler() for _ in range(WORKERS)]) as pool:
        suite.compare(
            f"wrap of an endless generator, buffer {BUFFER:,}", n, f"{WORKERS} workers and a reader",
            {"wrap": ringmill, "plain loop": plain},
        )


def bench_do(suite: Suite, machine: str) -> None:
    n = suite.scale(5_000)
    worker = Idler()

    def ringmill() -> None:
        for _ in range(n):
            pool.do(Noop()).wait()

    def futures() -> None:
        for _ in range(n):
            executor.submit(worker.process, Noop()).result()

    with WorkerPool([Idler() for _ in range(WORKERS)]) as pool, ThreadPoolExecutor(WORKERS) as executor:
        suite.compare(
            f"do and wait, one at a time, {machine}", n, f"{WORKERS} workers and a caller",
            {"do().wait()": ringmill, "submit().result()": futures},
        )


def bench_work(suite: Suite) -> None:
    batches = suite.scale(20)
    turns = turns_of(20e-6)
    workers = [Loop(turns), Loop(turns)]

    def ringmill() -> None:
        for _ in range(batches):
            for _op in pool.execute(fresh()):
                pass

    def half(worker: Loop) -> None:
        process = worker.process
        for _ in range(batches):
            for op in [Noop() for _ in range(BATCH // 2)]:
                process(op)

    def threads() -> None:
        pair = [threading.Thread(target=half, args=(worker,)) for worker in workers]
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join()

    with WorkerPool([Loop(turns), Loop(turns)]) as pool:
        suite.compare(
            "execute of operations of about 20 us of Python each", batches * BATCH, "2 workers",
            {"execute": ringmill, "two threads": threads},
        )


def turns_of(seconds: float) -> int:
    """How many turns of Loop's loop take so long: the least of some tries."""
    worker, op = Loop(10_000), Noop()

    def once() -> float:
        begun = time.perf_counter()
        worker.process(op)
        return time.perf_counter() - begun

    return max(1, round(seconds / min(once() for _ in range(20)) * worker.turns))


@contextmanager
def busy_cores() -> Iterator[None]:
    """One process for each core, that does nothing but keep it busy."""
    burners: list[subprocess.Popen[Any]] = []
    try:
        for _ in range(cpu_count() or 1):
            burners.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        time.sleep(0.2)  # until they have started; nothing depends on it but the warm-up
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def main() -> None:
    suite = open_suite("pool", __doc__ or "")
    bench_execute(suite)
    bench_wrap(suite)
    bench_do(suite, "on the machine as it is")
    with busy_cores():
        bench_do(suite, "while another process keeps each core busy")
    bench_work(suite)
    suite.finish()


if __name__ == "__main__":
    main()
