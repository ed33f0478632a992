"""Puts ringmill in the place of standard classes, in this process and in the Python processes that it starts.

What can be replaced, as the words of RINGMILL_SWAP:

    executor    concurrent.futures.ThreadPoolExecutor, and so asyncio's default executor, by PoolExecutor
    queue       queue.Queue by RingBuffer
    joblib      joblib's threading backend by one that runs its calls on a PoolExecutor
    names       the name ThreadPoolExecutor in test modules, and nothing else (done by ringmill_report.py, as soon as
                a test module is imported): the library sees the standard class

At exit the process appends a line to the file RINGMILL_USES: how many objects of ringmill's were made, and how many
calls and items they got.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
from typing import Any

UNBOUNDED = 10_000  # the capacity of a RingBuffer that stands for an unbounded queue

kinds: list[str] = []
uses = {"executors": 0, "calls": 0, "rings": 0, "items": 0}
counters: dict[str, itertools.count[int]] = {}


def counted(cls: type, method: str, counter: str) -> None:
    """Counts the calls of a method, which stays the method of the same class."""
    original = getattr(cls, method)
    counter_of = counters.setdefault(counter, itertools.count())

    @functools.wraps(original)
    def counting(*args: Any, **kwargs: Any) -> Any:
        next(counter_of)
        return original(*args, **kwargs)

    setattr(cls, method, counting)


def write_uses(path: str) -> None:
    for name, counter in counters.items():
        uses[name] = next(counter)
    if any(uses.values()):
        with open(path, "a") as file:
            file.write(json.dumps(uses) + "\n")


def count_executors() -> None:
    from ringmill import PoolExecutor

    counted(PoolExecutor, "__init__", "executors")
    counted(PoolExecutor, "submit", "calls")
    counted(PoolExecutor, "map", "calls")


def replace_executor() -> None:
    import concurrent.futures.thread

    from ringmill import PoolExecutor

    concurrent.futures.thread.ThreadPoolExecutor = PoolExecutor  # type: ignore[misc]
    concurrent.futures.ThreadPoolExecutor = PoolExecutor  # type: ignore[misc]


def replace_queue() -> None:
    import queue

    from ringmill import RingBuffer

    class Queue(RingBuffer[Any]):
        """A RingBuffer with `queue.Queue`'s only argument, for which 0 and less mean an unbounded queue."""

        def __init__(self, maxsize: int = 0) -> None:
            super().__init__(maxsize if maxsize > 0 else UNBOUNDED)

        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            super().put(item, block, timeout)

        def put_nowait(self, item: Any) -> None:
            super().put_nowait(item)

    counted(Queue, "__init__", "rings")
    counted(Queue, "put", "items")
    counted(Queue, "put_nowait", "items")
    queue.Queue = Queue  # type: ignore[assignment, misc]


def replace_joblib_backend() -> None:
    import ringmill_joblib

    ringmill_joblib.install()


def install(words: list[str]) -> None:
    kinds.extend(words)
    actions = {
        "executor": [count_executors, replace_executor],
        "queue": [replace_queue],
        "joblib": [count_executors, replace_joblib_backend],
        "names": [count_executors],
    }
    for action in dict.fromkeys(action for word in words for action in actions[word]):
        action()
    atexit.register(write_uses, os.environ["RINGMILL_USES"])
