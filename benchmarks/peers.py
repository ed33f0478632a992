"""The queues that ring buffers are compared with, each by its fastest calls; and the libraries that may be missing.

The `bench` extra installs them, but for hypertile, which not every Python has a wheel of. What is not installed is left
out, and a line says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from queue import Queue, SimpleQueue
from typing import Any, NamedTuple

from ringmill import RingBuffer

missing: list[str] = []  # a line for each library that is not there


def optional(module: str, package: str, note: str = "which the bench extra installs") -> Any:
    """The module, or None if it cannot be imported."""
    try:
        return import_module(module)
    except ImportError as error:
        missing.append(f"{package}, {note}: {error}")
        return None


culsans = optional("culsans", "culsans")
aiologic = optional("aiologic", "aiologic")
ft_concurrency = optional("ft_utils.concurrency", "ft-utils")
pebble = optional("pebble", "pebble")
janus = optional("janus", "janus")
joblib = optional("joblib", "joblib")
spdl = optional("spdl.pipeline", "spdl-core")
hypertile = optional("hypertile", "hypertile", "of which not every Python has a wheel")


def versions() -> str:
    """Of the libraries that are there."""

    def one(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"no {package}"

    packages = ("culsans", "aiologic", "ft-utils", "janus", "pebble", "joblib", "spdl-core", "hypertile")
    return ", ".join(one(package) for package in packages)


class Verbs(NamedTuple):
    """A queue's bound methods, so that none is looked up while the clock runs. `put` and `get` block."""

    put: Callable[[Any], object]
    get: Callable[[], Any]
    put_nowait: Callable[[Any], object]
    get_nowait: Callable[[], Any]


def verbs(queue: Any) -> Verbs:
    """Of a queue whose calls are named as those of `queue.Queue`."""
    return Verbs(queue.put, queue.get, queue.put_nowait, queue.get_nowait)


def aiologic_queue(capacity: int) -> Verbs:
    queue = aiologic.Queue(maxsize=capacity)
    return Verbs(
        queue.green_put, queue.green_get, partial(queue.green_put, blocking=False),
        partial(queue.green_get, blocking=False),
    )


def aiologic_simple_queue() -> Verbs:
    queue = aiologic.SimpleQueue()
    return Verbs(queue.put, queue.green_get, queue.put, partial(queue.green_get, blocking=False))


def ft_queue(threads: int) -> Verbs:
    """It has no call that does not block; with an item inside, `pop` does not. Lock-free, it polls when it waits."""
    queue = ft_concurrency.ConcurrentQueue(threads, lock_free=True)
    return Verbs(queue.push, queue.pop, queue.push, queue.pop)


def queues(capacity: int, threads: int) -> dict[str, Callable[[], Verbs]]:
    """What makes the ring buffer, first, and its rivals, by name."""
    makers: dict[str, Callable[[], Verbs]] = {
        "RingBuffer": lambda: verbs(RingBuffer(capacity)),
        "SimpleQueue": lambda: verbs(SimpleQueue()),
        "Queue": lambda: verbs(Queue(capacity)),
    }
    if culsans:
        makers["culsans.Queue"] = lambda: verbs(culsans.Queue(capacity).sync_q)
    if aiologic:
        makers["aiologic.Queue"] = lambda: aiologic_queue(capacity)
        makers["aiologic.SimpleQueue"] = aiologic_simple_queue
    if ft_concurrency:
        makers["ft_utils.ConcurrentQueue"] = lambda: ft_queue(threads)
    return makers
