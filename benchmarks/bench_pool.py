"""What a pool costs per operation, against doing without one, and against the pools of others.

execute        list of 1,000 --> [pool: 4 workers, process() does nothing] --> stream --> read to the end
  plain loop   for op in list: w.process(op)
  ideal pool   list --> SimpleQueue --> [one thread: for op in list: w.process(op)] --> SimpleQueue --> list
  map          list --> ThreadPoolExecutor(4).map(w.process, list) --> read to the end; ThreadPool.map and
               pebble's too, both in chunks of 62, which is ThreadPool's own choice: what shares a chunk with a slow
               operation waits for it

wrap           endless generator --> [pool: 4 workers, buffer 1,000] --> stream --> the first N
  plain loop   for op in generator: w.process(op)
  imap         the first N of the generator --> ThreadPool(4).imap_unordered, in chunks of 62: draws all at once, memory
               is not bounded

do and wait    one operation --> [pool: 4 workers] --> op.wait(), then the next; on the machine as it is (the target is
               for an idle one), and while another process keeps each core busy
  submit       one call --> ThreadPoolExecutor(4) --> future.result(), then the next
  others       ThreadPool.apply, pebble's schedule; not with busy cores, where a call may take them half a second

work           list of 1,000 --> [pool: 2 workers, process() runs about 20 us of Python] --> stream
  two threads  half of the operations each, in plain loops; a target on free-threaded builds only, as with a GIL either
               side's threads take turns

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
from multiprocessing.pool import ThreadPool
from os import cpu_count
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ringmill import Worker, WorkerPool

if TYPE_CHECKING or __package__:
    from .harness import Side, Suite, in_threads, main
    from .peers import pebble
    from .work import BATCH, BUFFER, WORKERS, Idler, Noop, endless
else:  # run as a script
    from harness import Side, Suite, in_threads, main
    from peers import pebble
    from work import BATCH, BUFFER, WORKERS, Idler, Noop, endless

CHUNK = BATCH // (4 * WORKERS)


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


def fresh(n: int = BATCH) -> list[Noop]:
    return [Noop() for _ in range(n)]


@contextmanager
def pebble_pool(workers: int) -> Iterator[Any]:
    pool = pebble.ThreadPool(max_workers=workers)
    try:
        yield pool
    finally:
        pool.close()
        pool.join()


def bench_execute(suite: Suite) -> None:
    process = Idler().process

    def execute(n: int) -> None:
        for _ in range(n // BATCH):
            for _op in pool.execute(fresh()):
                pass

    def plain(n: int) -> None:
        for _ in range(n // BATCH):
            for op in fresh():
                process(op)

    def ideal_pool(n: int) -> None:
        for _ in range(n // BATCH):
            for _op in ideal.execute(fresh()):
                pass

    def futures(n: int) -> None:
        for _ in range(n // BATCH):
            for _ in executor.map(process, fresh()):
                pass

    def thread_pool(n: int) -> None:
        for _ in range(n // BATCH):
            for _ in threads.map(process, fresh(), CHUNK):
                pass

    def by_pebble(n: int) -> None:
        for _ in range(n // BATCH):
            for _ in pebbles.map(process, fresh(), chunksize=CHUNK).result():
                pass

    with ExitStack() as stack:
        pool = stack.enter_context(WorkerPool([Idler() for _ in range(WORKERS)]))
        executor = stack.enter_context(ThreadPoolExecutor(WORKERS))
        threads = stack.enter_context(ThreadPool(WORKERS))
        ideal = IdealPool(Idler())
        stack.callback(ideal.close)
        sides: dict[str, Side] = {
            "execute": execute,
            "plain loop": plain,
            "ideal pool": ideal_pool,
            "ThreadPoolExecutor.map": futures,
            "ThreadPool.map": thread_pool,
        }
        if pebble:
            pebbles = stack.enter_context(pebble_pool(WORKERS))
            sides["pebble.ThreadPool.map"] = by_pebble
        suite.compare(
            f"execute of {BATCH:,} no-ops", suite.scale(100_000, BATCH), f"{WORKERS} workers and a reader", sides,
            targets={"ideal pool": (0.75, 0.75), "ThreadPoolExecutor.map": (40, 40)},
            fewer={"ThreadPoolExecutor.map": 5}, unit=BATCH,
        )


def bench_wrap(suite: Suite) -> None:
    process = Idler().process

    def wrap(n: int) -> None:
        with pool.wrap(endless(), buffer=BUFFER) as stream:
            for _op in islice(stream, n):
                pass

    def plain(n: int) -> None:
        for op in islice(endless(), n):
            process(op)

    def imap(n: int) -> None:
        for _ in threads.imap_unordered(process, islice(endless(), n), CHUNK):
            pass

    with WorkerPool([Idler() for _ in range(WORKERS)]) as pool, ThreadPool(WORKERS) as threads:
        suite.compare(
            f"wrap of an endless generator, buffer {BUFFER:,}", suite.scale(200_000), f"{WORKERS} workers and a reader",
            {"wrap": wrap, "plain loop": plain, "ThreadPool.imap_unordered": imap},
            targets={"plain loop": (0.5, 0.5)},
        )


def bench_do(suite: Suite, machine: str, n: int, target: tuple[float, float], fewer: int, others: bool) -> None:
    process = Idler().process

    def do(n: int) -> None:
        for _ in range(n):
            pool.do(Noop()).wait()

    def futures(n: int) -> None:
        for _ in range(n):
            executor.submit(process, Noop()).result()

    def thread_pool(n: int) -> None:
        for _ in range(n):
            threads.apply(process, (Noop(),))

    def by_pebble(n: int) -> None:
        for _ in range(n):
            pebbles.schedule(process, (Noop(),)).result()

    with ExitStack() as stack:
        pool = stack.enter_context(WorkerPool([Idler() for _ in range(WORKERS)]))
        executor = stack.enter_context(ThreadPoolExecutor(WORKERS))
        sides: dict[str, Side] = {"do().wait()": do, "submit().result()": futures}
        if others:
            threads = stack.enter_context(ThreadPool(WORKERS))
            sides["ThreadPool.apply"] = thread_pool
        if others and pebble:
            pebbles = stack.enter_context(pebble_pool(WORKERS))
            sides["pebble.schedule().result()"] = by_pebble
        suite.compare(
            f"do and wait, one at a time, {machine}", suite.scale(n), f"{WORKERS} workers and a caller", sides,
            targets={"submit().result()": target},
            fewer={"submit().result()": fewer, "ThreadPool.apply": 5, "pebble.schedule().result()": 5},
        )


def bench_work(suite: Suite) -> None:
    turns = turns_of(20e-6)
    workers = [Loop(turns), Loop(turns)]

    def execute(n: int) -> None:
        for _ in range(n // BATCH):
            for _op in pool.execute(fresh()):
                pass

    def threads(n: int) -> None:
        def half(worker: Loop) -> None:
            process = worker.process
            for _ in range(n // BATCH):
                for op in fresh(BATCH // 2):
                    process(op)

        in_threads(*[lambda worker=worker: half(worker) for worker in workers])

    with WorkerPool([Loop(turns), Loop(turns)]) as pool:
        suite.compare(
            "execute of operations of about 20 us of Python each", suite.scale(20_000, BATCH), "2 workers",
            {"execute": execute, "two threads": threads}, targets={"two threads": (None, 0.95)}, unit=BATCH,
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


def run(suite: Suite) -> None:
    bench_execute(suite)
    bench_wrap(suite)
    bench_do(suite, "on the machine as it is", 5000, (8, 20), 1, others=True)
    with busy_cores():
        bench_do(suite, "while another process keeps each core busy", 500, (1, 1), 10, others=False)
    bench_work(suite)


if __name__ == "__main__":
    main("pool", __doc__ or "", run)
