"""BlockingCall: a blocking call on a thread of its own, which a task of asyncio or trio awaits.

May import `errors` and the compiled core.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ._core.ring.ring_buffer import RingBuffer
from ._core.waiting.event_loop import in_trio
from .errors import Closed

__all__ = ["BlockingCall"]

R = TypeVar("R")

_this_thread = threading.local()  # .call: the BlockingCall that runs on this thread


class BlockingCall(Generic[R]):
    """A call that runs on a thread of its own, from the construction on.

    The called function finds this object by `running_for(owner)`.

    The call may complete (`keep`) while the waiting task is cancelled (`leave`). Both are decided under one lock, so
    the second of the two knows of the first, and undoes the effect of the call.

    Args:
        call: A function without arguments.
        name: The thread's name.
        owner: The object for which the call is made.
    """

    def __init__(self, call: Callable[[], R], name: str, owner: object = None) -> None:
        self._call = call
        self._owner = owner
        self._lock = threading.Lock()  # guards `_left` and `_kept`
        self._left = False
        self._kept = False
        self._result: R | None = None
        self._error: BaseException | None = None
        self._over: RingBuffer[None] = RingBuffer(1)  # closed when the call has ended
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        _this_thread.call = self
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error
        finally:
            self._over.close()

    @staticmethod
    def running_for(owner: object) -> BlockingCall[Any] | None:
        """Returns the BlockingCall that runs on this thread, if it has that owner; else None."""
        call: BlockingCall[Any] | None = getattr(_this_thread, "call", None)
        return call if call is not None and call._owner is owner else None

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
        return self._result  # type: ignore[return-value]  # the call's result

    @property
    def is_over(self) -> bool:
        """Whether the call has ended."""
        return self._over.closed

    def keep(self) -> bool:
        """Called by the call when it is complete. False: no task waits any more, so the call must undo its effect."""
        with self._lock:
            self._kept = not self._left
            return self._kept

    def leave(self) -> bool:
        """Called by the task when it stops waiting. True: the call is complete, so the caller must undo its effect."""
        with self._lock:
            self._left = True
            return self._kept


def shield() -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which an earlier cancellation does not cancel an await.

    trio and anyio deliver a cancellation at each await; asyncio delivers it once.
    """
    library = sys.modules.get("anyio") or (sys.modules["trio"] if in_trio() else None)
    if library is None:
        return contextlib.nullcontext()
    scope: contextlib.AbstractContextManager[Any] = library.CancelScope(shield=True)
    return scope
