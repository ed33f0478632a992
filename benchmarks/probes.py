"""Measures one thing in a process of its own, and prints it as JSON; bench_growth.py runs it.

What the rest of a suite has left behind is not in the way here: memory that is kept for reuse, threads that poll.

    python benchmarks/probes.py wrap 1000000        bytes by which the peak of the resident memory grew
    python benchmarks/probes.py queued SIDE 100000  bytes of resident memory for each queued operation
    python benchmarks/probes.py idle SIDE 64 5      processor seconds that idle workers used, in so many seconds
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from ringmill import Worker, WorkerPool

if TYPE_CHECKING or __package__:
    from .work import BUFFER, WORKERS, Idler, Noop, endless
else:  # run as a script
    from work import BUFFER, WORKERS, Idler, Noop, endless

QUEUED = ("execute", "do", "list", "SimpleQueue", "ThreadPoolExecutor")  # what may hold operations
IDLE = ("WorkerPool", "ThreadPoolExecutor", "no workers")

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class Gate(Worker[Noop]):
    """Holds the first operation that it gets until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def process(self, op: Noop) -> None:
        self.opened.wait()


def memory(peak: bool) -> int | None:
    """Bytes of resident memory, now or at most so far; None where the system does not say.

    Linux says both in /proc; elsewhere there is the peak alone. (Linux has that of getrusage too, but a new process
    inherits its parent's.)
    """
    status = Path("/proc/self/status")
    if status.exists():
        key = "VmHWM:" if peak else "VmRSS:"
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(key))
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def wrap(n: int) -> float | None:
    """By how much the peak grows from a wrap of a hundredth of the operations to one of all of them."""

    def through(count: int) -> None:
        with pool.wrap(endless(), buffer=BUFFER) as stream:
            for _ in islice(stream, count):
                pass

    with WorkerPool([Idler() for _ in range(WORKERS)]) as pool:
        through(max(1000, n // 100))
        before = memory(peak=True)
        through(n)
        after = memory(peak=True)
    return None if before is None or after is None else float(after - before)


def queued(side: str, n: int) -> float | None:
    """How much memory each operation takes that waits for a worker, the operation itself included."""
    gate = Gate()
    held: list[object] = []
    pool = WorkerPool([gate], queue_size=n + 1)
    pool.start()
    pool.do(Noop())
    executor = ThreadPoolExecutor(1)
    executor.submit(gate.opened.wait)
    queue: SimpleQueue[Noop] = SimpleQueue()
    gc.collect()
    before = memory(peak=False)
    if side == "execute":
        held.append(pool.execute(Noop() for _ in range(n)))
    elif side == "do":
        for _ in range(n):
            pool.do(Noop())
    elif side == "list":
        held.append([Noop() for _ in range(n)])
    elif side == "SimpleQueue":
        for _ in range(n):
            queue.put(Noop())
    else:
        for _ in range(n):
            executor.submit(gate.process, Noop())
    gc.collect()
    after = memory(peak=False)
    gate.opened.set()
    pool.shutdown(cancel_pending=True)
    executor.shutdown(cancel_futures=True)
    return None if before is None or after is None else (after - before) / n


def idle(side: str, workers: int, seconds: float) -> float:
    """The processor time of the whole process, whose main thread sleeps, after the workers have had some work."""

    def used() -> float:
        time.sleep(min(seconds, 0.5))  # whatever the end of the work sets off is not idling
        begun = time.process_time()
        time.sleep(seconds)
        return time.process_time() - begun

    if side == "WorkerPool":
        with WorkerPool([Idler() for _ in range(workers)]) as pool:
            for _ in pool.execute(Noop() for _ in range(1000)):
                pass
            return used()
    if side == "no workers":
        return used()
    with ThreadPoolExecutor(workers) as executor:
        barrier = threading.Barrier(workers)  # it starts a thread only when all that it has are busy
        for future in [executor.submit(barrier.wait) for _ in range(workers)]:
            future.result()
        return used()


def main(name: str, *arguments: str) -> None:
    if name == "wrap":
        print(json.dumps(wrap(int(arguments[0]))))
    elif name == "queued":
        print(json.dumps(queued(arguments[0], int(arguments[1]))))
    else:
        print(json.dumps(idle(arguments[0], int(arguments[1]), float(arguments[2]))))


if __name__ == "__main__":
    main(*sys.argv[1:])
