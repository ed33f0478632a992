"""What one operation costs while there are N of something else: as much as with none, if all is well.

waiting retries   N operations that A has rejected, or tried, and that only B may take, which is busy
                    --> one operation that A runs; a wait inside process; cancel and close of one more that waits
delayed retries   N operations whose delays do not end --> likewise
pending calls     N calls that wait for a thread of PoolExecutor(2) --> a call that waits for another one
waiting tasks     N tasks of an event loop that a worker runs --> another operation, or one more task; N tasks that
                    await one operation --> each is cancelled
open streams      N wraps of generators (not read; full of results) or of rings, N maps --> one operation beside them;
                    one item put into one of the rings
ending streams    N wraps --> half of them dropped, or closed, or all of them ended by shutdown: the time for each of
                    these, and how long another thread did not run meanwhile
workers           a pool of N workers --> start and shutdown, for each worker, against plain threads; one operation,
                    also one that needs a second try; resize; cancel while the pool drains; submit with N busy threads
subscribers       a hub of N subscriptions --> signal: all have room; all are full; all are full but one
memory            bytes for each queued operation, idle worker, open stream, subscription, retry, pending call

A curve is the median time of one operation by N, and its growth over the smallest N, which is to stay below 3. The
points of a curve are timed in turn, within one run. The time that a set-up may take is limited: where each operation
costs more the more there are, N is smaller than it was to be, and a line says so. --quick goes to a tenth of the N.

    python benchmarks/bench_scale.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ringmill import Hub, Outcome, Retry, Subscription

if TYPE_CHECKING or __package__:
    from . import scale_retries, scale_streams, scale_workers
    from .footprints import KINDS
    from .harness import Sample, Suite, main, one_by_one
    from .scale_retries import FAR, Budget, ForB, Make, Setup, Waiting
    from .work import Noop
else:  # run as a script
    import scale_retries
    import scale_streams
    import scale_workers
    from footprints import KINDS
    from harness import Sample, Suite, main, one_by_one
    from scale_retries import FAR, Budget, ForB, Make, Setup, Waiting
    from work import Noop

OPERATIONS = 200  # of a round
CANCELS = 50
RESIZES = 20
ROOM = 64  # the buffer of a subscription


def sizes_of(suite: Suite, *sizes: int) -> list[int]:
    """With --quick a tenth of them, and at least 1 unless it is 0; none is there twice."""
    share = {1: 1, 10: 10}.get(suite.share, 1000)
    return list(dict.fromkeys(size and max(1, size // share) for size in sizes))


def seconds_of(suite: Suite) -> float:
    """How long a set-up may take."""
    return 10.0 if suite.share == 1 else 2.0


def bench_among(suite: Suite, what: str, sizes: Sequence[int], make: Make, n: int = OPERATIONS) -> None:
    """A curve for each sample of the set-ups, which are there at the same time."""
    with ExitStack() as stack:
        setups: list[Setup] = []
        for size in sizes:
            setup = stack.enter_context(make(size, Budget(seconds_of(suite))))
            if not setups or setup.size > setups[-1].size:
                setups.append(setup)
            if setup.size < size:
                suite.skip(f"{size:,} {what}: after {seconds_of(suite):g} s there were {setup.size:,}")
                break
        for title in setups[0].samples:
            suite.curve(title, what, {setup.size: setup.samples[title] for setup in setups}, suite.scale(n))


def bench_each(
    suite: Suite, title: str, what: str, sizes: Sequence[int], make: Callable[[int], Sample], n: int = 1
) -> None:
    """A curve of samples that make what they time, and end it."""
    suite.curve(title, what, {size: make(size) for size in sizes}, n, warm=False)


def bench_retries(suite: Suite) -> None:
    sizes = sizes_of(suite, 0, 1000, 10_000, 100_000)
    bench_among(suite, "retries that wait for a busy worker", sizes, scale_retries.rejected)
    bench_among(suite, "retries that wait for a busy worker", sizes, scale_retries.tried)
    bench_among(suite, "retries that wait for a busy worker", sizes, scale_retries.nested)
    bench_among(suite, "retries whose delays run", sizes, scale_retries.delayed)
    sizes_of_tasks = sizes_of(suite, 0, 100, 1000, 10_000)
    for delays in (True, False):
        bench_among(suite, "tasks that wait", sizes_of_tasks, partial(scale_retries.awaiting, delays=delays))
    bench_each(
        suite, "tasks that await one operation: cancel, each", "tasks", sizes_of(suite, 100, 1000, 10_000),
        scale_retries.cancel_waiters,
    )
    answers = (suite.rounds + 1) * suite.scale(OPERATIONS)
    bench_among(suite, "pending calls", sizes, partial(scale_retries.pending, answers=answers))


def bench_streams(suite: Suite) -> None:
    sizes = sizes_of(suite, 0, 100, 1000, 10_000)
    bench_among(suite, "open wraps", sizes, scale_streams.idle_wraps)
    bench_among(suite, "open wraps", sizes, scale_streams.full_wraps)
    bench_among(suite, "open maps", sizes, scale_streams.idle_maps)
    bench_among(suite, "open maps", sizes, scale_streams.executor_maps)
    bench_among(suite, "open wraps of rings", sizes_of(suite, 1, 100, 1000, 10_000), scale_streams.rings)


def bench_ends(suite: Suite) -> None:
    sizes = sizes_of(suite, 1000, 10_000, 16_000)
    budget = seconds_of(suite)
    for by_closing, how in ((False, "dropping"), (True, "closing")):
        freezes: dict[int, float] = {}
        make = partial(scale_streams.end_half, by_closing=by_closing, freezes=freezes, budget=budget)
        bench_each(suite, f"{how} every other wrap, each", "open wraps", sizes, make)
        suite.measure(
            f"{how} every other wrap: how long another thread did not run", "ms",
            {f"{size:,} open": seconds * 1e3 for size, seconds in freezes.items()}, "at most 50",
        )
    bench_each(
        suite, "shutdown of a pool, for each open wrap", "open wraps", sizes,
        partial(scale_streams.shut_down, budget=budget),
    )


def bench_workers(suite: Suite) -> None:
    sizes = sizes_of(suite, 10, 100, 1000)
    bench_each(suite, "start, each worker", "workers", sizes, scale_workers.start)
    bench_each(suite, "start, each plain thread", "threads", sizes, scale_workers.start_threads)
    bench_each(suite, "shutdown, each worker", "workers", sizes, scale_workers.stop)
    two = [max(2, size) for size in sizes_of(suite, 2, 10, 100, 1000)]  # a retry goes to another worker
    bench_among(suite, "idle workers", list(dict.fromkeys(two)), scale_workers.idle_workers)
    bench_among(suite, "idle workers", sizes, scale_workers.resized, RESIZES)
    bench_among(suite, "busy threads", sizes, scale_workers.busy_threads)
    few = sizes_of(suite, 2, 16, 128)
    for delays, which in ((False, "queued behind busy workers"), (True, "delayed, next to idle workers")):
        bench_each(
            suite, f"cancel while the pool drains: {which}", "workers", few,
            partial(scale_workers.cancel_while_draining, delays=delays), suite.scale(CANCELS),
        )


# Hub


@contextmanager
def with_room(size: int, budget: Budget) -> Iterator[Setup]:
    hub = Hub[int](buffer=ROOM)
    subscriptions: list[Subscription[int]] = []
    reached = budget.fill(size, lambda n: subscriptions.extend([hub.subscribe() for _ in range(n)]))

    def signal(n: int) -> list[float]:
        times = one_by_one(lambda: hub.signal(1), min(n, ROOM * reached))
        for subscription in subscriptions:
            while len(subscription):
                subscription.get_many()
        return times

    yield Setup(reached, {"signal, all have room": signal})
    hub.close()


@contextmanager
def full(size: int, budget: Budget) -> Iterator[Setup]:
    hub = Hub[int](buffer=1, overflow="drop_incoming")
    subscriptions: list[Subscription[int]] = []
    reached = budget.fill(size, lambda n: subscriptions.extend([hub.subscribe() for _ in range(n)]))
    hub.broadcast(0)

    def all_but_one(n: int) -> list[float]:
        return one_by_one(lambda: hub.signal(1), n, before=subscriptions[reached // 2].get_nowait)

    yield Setup(reached, {
        "signal, all are full": lambda n: one_by_one(lambda: hub.signal(1), n),
        "signal, all are full but one": all_but_one,
    })  # fmt: skip
    hub.close()


def bench_hub(suite: Suite) -> None:
    sizes = sizes_of(suite, 10, 1000, 10_000)
    bench_among(suite, "subscribers", sizes, with_room, 500)
    bench_among(suite, "subscribers", sizes, full)


# Memory


def bench_memory(suite: Suite) -> None:
    resident: dict[str, float] = {}
    virtual: dict[str, float] = {}
    for name in list(KINDS)[:1] if suite.tiny else KINDS:
        kind = KINDS[name]
        command = [sys.executable, str(Path(__file__).parent / "footprints.py"), name, str(suite.scale(kind.n))]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        if found is None:
            suite.skip("memory: this system does not say how much a process uses")
            return
        resident[kind.title] = found[0]
        if name in ("worker", "thread"):
            virtual[kind.title] = found[1]
    suite.measure("resident memory", "bytes", resident)
    if virtual:
        suite.measure("virtual memory", "bytes", virtual)


def bench_freed(suite: Suite) -> None:
    """Whether a delayed operation that is cancelled, and dropped by its owner, is freed by that, or later."""
    waiting = Waiting(1, Budget(0.0), lambda: Retry(delay=FAR), 1, True)
    at_once = later = 0
    tries = suite.scale(20)
    try:
        for _ in range(tries):
            op = ForB()
            reference = weakref.ref(op)
            waiting.pool.do(op)
            waiting.await_refusals(1)
            op.cancel()
            assert op.outcome is Outcome.CANCELLED
            gc.disable()  # not by the collector
            try:
                del op
                at_once += reference() is None
                for _again in range(2):  # the worker runs something else, and then has ended that, too
                    waiting.pool.do(Noop()).wait()
                later += reference() is None
            finally:
                gc.enable()
    finally:
        waiting.close()
    suite.measure(
        "delayed operations that were cancelled and dropped, and freed by that", "%",
        {"at once": 100 * at_once / tries, "when the worker has run another one": 100 * later / tries}, "100",
    )


def run(suite: Suite) -> None:
    bench_retries(suite)
    bench_streams(suite)
    bench_ends(suite)
    bench_workers(suite)
    bench_hub(suite)
    bench_memory(suite)
    bench_freed(suite)


if __name__ == "__main__":
    main("scale", __doc__ or "", run)
