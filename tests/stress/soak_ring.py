"""A soak of RingBuffer: each item comes out exactly once, in the order of each producer, under random workloads.

`python tests/stress/soak_ring.py SECONDS [SEED]` runs rounds, each with other numbers of producers and consumers,
another capacity, timeouts of 0, 1 us, 1 ms and none mixed, threads and tasks of an event loop whose awaits are
cancelled, and a close at a random moment in half of them. A round accounts for every item: put and received, or put
and left, or not put. On a GIL build the switch interval is a microsecond. Prints the figures, and the seed of a round
that differs.
"""

from __future__ import annotations

import asyncio
import faulthandler
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from ringmill import Closed, RingBuffer
from tests.threads import start_threads

Item = tuple[int, int]  # producer, number: rising for each producer
TIMEOUTS = (0, 1e-6, 1e-3, None)
ITEMS = 200  # of each producer


@dataclass
class Account:
    """What one thread or task did."""

    put: list[Item] = field(default_factory=list)
    got: list[Item] = field(default_factory=list)
    calls: int = 0
    cancelled: int = 0


def produce(ring: RingBuffer[Item], who: int, rng: random.Random, account: Account) -> None:
    number = 0
    try:
        while number < ITEMS:
            account.calls += 1
            timeout = rng.choice(TIMEOUTS)
            batch = [(who, n) for n in range(number, min(ITEMS, number + rng.randint(1, 5)))]
            try:
                if rng.random() < 0.7:
                    ring.put(batch[0], timeout=timeout)
                    batch = batch[:1]
                else:
                    ring.put_many(batch, timeout=timeout)
            except (queue.Full, Closed) as error:
                batch = batch[: getattr(error, "count", 0)]
                account.put += batch
                number += len(batch)
                if isinstance(error, Closed):
                    return
                continue
            account.put += batch
            number += len(batch)
    except Closed:
        return


def consume(ring: RingBuffer[Item], rng: random.Random, account: Account) -> None:
    while True:
        account.calls += 1
        timeout = rng.choice(TIMEOUTS)
        try:
            if rng.random() < 0.7:
                account.got.append(ring.get(timeout=timeout))
            else:
                account.got += ring.get_many(rng.choice([None, 1, 3]), timeout=timeout)
        except Closed:
            return
        except queue.Empty:
            continue


async def attempt(call: Any, rng: random.Random, account: Account) -> Any:
    """Awaits the call, and cancels it at a random moment; what it took or put, if it came first. None: cancelled."""
    account.calls += 1
    task = asyncio.ensure_future(call)
    if rng.random() < 0.5:
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(rng.choice([0, 0, 1e-4]))
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        account.cancelled += 1
        return None


async def put_by_tasks(ring: RingBuffer[Item], who: int, rng: random.Random, account: Account) -> None:
    async def put(item: Item) -> Item:
        await ring.aput(item)
        return item

    number = 0
    try:
        while number < ITEMS:
            if await attempt(put((who, number)), rng, account) is not None:
                account.put.append((who, number))
                number += 1
    except Closed:
        return


async def get_by_tasks(ring: RingBuffer[Item], rng: random.Random, account: Account) -> None:
    while True:
        try:
            item = await attempt(ring.aget(), rng, account)
        except Closed:
            return
        if item is not None:
            account.got.append(item)


def one_round(seed: int) -> Counter[str]:
    """Returns figures. Raises AssertionError on a difference."""
    rng = random.Random(seed)
    producers, consumers = rng.choice([1, 2, 4, 8]), rng.choice([1, 2, 4, 8])
    ring = RingBuffer[Item](rng.choice([1, 2, 3, 64]))
    accounts = [Account() for _ in range(producers + consumers)]
    threads: list[Any] = []
    putters: list[Any] = []
    for k in range(producers + consumers):
        own = random.Random(rng.random())
        if k < producers:
            if own.random() < 0.3:
                putters.append(lambda k=k, own=own: asyncio.run(put_by_tasks(ring, k, own, accounts[k])))
            else:
                putters.append(lambda k=k, own=own: produce(ring, k, own, accounts[k]))
        elif own.random() < 0.3:
            threads.append(lambda k=k, own=own: asyncio.run(get_by_tasks(ring, own, accounts[k])))
        else:
            threads.append(lambda k=k, own=own: consume(ring, own, accounts[k]))
    early = rng.random() * 0.02 if rng.random() < 0.5 else None
    readers = start_threads(*threads)
    if early is not None:
        timer = threading.Timer(early, ring.close)
        timer.start()
    start_threads(*putters).join()
    ring.close()
    readers.join()
    if early is not None:
        timer.join()
    received = Counter(item for account in accounts for item in account.got)
    assert received == Counter(item for account in accounts for item in account.put), "an item was lost or doubled"
    assert len(ring) == 0
    for account in accounts:
        for who in range(producers):
            numbers = [number for producer, number in account.got if producer == who]
            assert all(a < b for a, b in pairwise(numbers)), f"not in the order of producer {who}"
    return Counter(
        {
            "rounds": 1,
            "calls": sum(account.calls for account in accounts),
            "items": received.total(),
            "awaits cancelled": sum(account.cancelled for account in accounts),
        }
    )


def soak(one_round: Callable[[int], Counter[str]]) -> None:
    """Rounds for so many seconds, each with a seed of its own, as the command line says."""
    seconds = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(2**32)
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        sys.setswitchinterval(1e-6)
    until = time.monotonic() + seconds
    figures: Counter[str] = Counter()
    while time.monotonic() < until:
        faulthandler.dump_traceback_later(60, exit=True)
        try:
            figures += one_round(seed + figures["rounds"])
        except BaseException:
            print(f"the round of seed {seed + figures['rounds']} differs", file=sys.stderr)
            raise
    faulthandler.cancel_dump_traceback_later()
    print(f"seed {seed}: {', '.join(f'{count} {name}' for name, count in figures.items())}; 0 differences")


if __name__ == "__main__":
    soak(one_round)
