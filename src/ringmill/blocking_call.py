"""Runs a blocking call on a thread of its own while a task of asyncio or trio awaits it.

May import the compiled core.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ._core.waiting.event_loop import in_trio
from ._core.ring.ring_buffer import RingBuffer
from .errors import Closed

__all__ = ["BlockingCall"]

R = TypeVar("R")

_here = threading.local()  # .offloaded: whose thread this is


class BlockingCall(Generic[R]):
    """A call of `owner`'s that runs on a thread of its own, from now on; it finds this object by `running_for(owner)`.

    Two may want the last word: the call, when what it began is ready, and who waits, when that is given up. `keep` and
    `leave` are said under one lock, so whoever comes second knows of the first, and undoes what was begun.
    """

    def __init__(self, call: Callable[[], R], name: str, owner: object = None) -> None:
        self._call = call
        self._owner = owner
        self._lock = threading.Lock()  # guards the next two
        self._left = False
        self._kept = False
        self._result: R | None = None
        self._error: BaseException | None = None
        self._over: RingBuffer[None] = RingBuffer(1)  # closed when the call has ended
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        _here.offloaded = self
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error
        finally:
            self._over.close()

    @staticmethod
    def running_for(owner: object) -> BlockingCall[Any] | None:
        """The call that runs on this thread, if it is that owner's."""
        offloaded: BlockingCall[Any] | None = getattr(_here, "offloaded", None)
        return offloaded if offloaded is not None and offloaded._owner is owner else None

    async def result(self) -> R:
        """Awaits the end of the call; returns what it returned, or raises, once, what it raised."""
        with contextlib.suppress(Closed):
            await self._over.aget()
        error, self._error = self._error, None  # its traceback holds frames that hold this object
        if error is not None:
            try:
                raise error
            finally:
                del error
        return self._result  # type: ignore[return-value]  # the call's own

    @property
    def is_over(self) -> bool:
        """Whether the call has ended."""
        return self._over.closed

    def keep(self) -> bool:
        """For the call: what it began is ready. False: nobody waits any more, so the call undoes it."""
        with self._lock:
            self._kept = not self._left
            return self._kept

    def leave(self) -> bool:
        """Nobody waits any more. True: it was ready by then, so the caller undoes it."""
        with self._lock:
            self._left = True
            return self._kept


def shield() -> contextlib.AbstractContextManager[Any]:
    """A context in which an await is not cancelled by what has been cancelled already.

    trio and anyio deliver a cancellation at each await, asyncio delivers it once.
    """
    library = sys.modules.get("anyio") or (sys.modules["trio"] if in_trio() else None)
    if library is None:
        return contextlib.nullcontext()
    scope: contextlib.AbstractContextManager[Any] = library.CancelScope(shield=True)
    return scope
