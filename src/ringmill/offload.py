"""Runs a blocking call on a thread of its own while a task of asyncio or trio awaits it.

May import the compiled core.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ._core.loop import in_trio
from ._core.ring_buffer import RingBuffer

__all__ = ["Offloaded"]

R = TypeVar("R")


class Offloaded(Generic[R]):
    """A call that runs on a thread of its own, from now on.

    `if_left`: what that thread does afterwards if nobody waits any more by then, and the call did not raise.
    """

    def __init__(self, call: Callable[[], R], name: str, if_left: Callable[[], object] | None = None) -> None:
        self._call = call
        self._if_left = if_left
        self._left = threading.Event()
        self._outcome: RingBuffer[tuple[R | None, BaseException | None]] = RingBuffer(1)
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            result = self._call()
        except BaseException as error:
            self._outcome.put((None, error))
            return
        self._outcome.put((result, None))
        if self._left.is_set() and self._if_left is not None:
            self._if_left()

    async def result(self) -> R:
        """Awaits the end of the call; returns what it returned, or raises what it raised."""
        result, error = await self._outcome.aget()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # the call's own

    def leave(self) -> None:
        """Nobody waits any more. Either this finds the call ended, or its thread finds that it was left."""
        self._left.set()
        if self._outcome.full() and self._if_left is not None:
            self._if_left()


def shield() -> contextlib.AbstractContextManager[Any]:
    """A context in which an await is not cancelled by what has been cancelled already.

    trio and anyio deliver a cancellation at each await, asyncio delivers it once.
    """
    library = sys.modules.get("anyio") or (sys.modules["trio"] if in_trio() else None)
    if library is None:
        return contextlib.nullcontext()
    scope: contextlib.AbstractContextManager[Any] = library.CancelScope(shield=True)
    return scope
