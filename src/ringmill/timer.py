"""Redrives whose delay runs.

May import the compiled core.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time

from ._core.dispatch import Core
from ._core.redrive import Redrive


class Timer:
    """Holds back redrives until their delay is over: one thread, however many there are; none before the first."""

    def __init__(self, core: Core, name: str) -> None:
        self.core = core
        self.name = f"{name}-timer"
        self.changed = threading.Condition()
        self.heap: list[tuple[float, int, Redrive]] = []  # guarded by `changed`, like the next two
        self.thread: threading.Thread | None = None
        self.stopped = False
        self.numbers = itertools.count()

    def add(self, record: Redrive, delay: float) -> None:
        with self.changed:
            heapq.heappush(self.heap, (time.monotonic() + delay, next(self.numbers), record))
            if self.thread is None and not self.stopped:
                thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                thread.start()
                self.thread = thread
            elif self.heap[0][2] is record:
                self.changed.notify()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.heap.clear()
            self.changed.notify()
            thread = self.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self.changed:
                while not self.stopped and (not self.heap or self.heap[0][0] > time.monotonic()):
                    wait = min(self.heap[0][0] - time.monotonic(), threading.TIMEOUT_MAX) if self.heap else None
                    self.changed.wait(wait)
                if self.stopped:
                    return
                record = heapq.heappop(self.heap)[2]
            self.core.due(record)
            del record
