"""The queue of a PoolExecutor, as programs know it from ThreadPoolExecutor: `_work_queue`.

There is no queue behind it: calls wait in the pool's run, those of `submit` as operations, those of `map` as items.
`get_nowait` takes one back from there, so that no thread runs it; it counts as cancelled then, in the executor's pool.

    CallQueue.get_nowait -> TakenCall (of `submit`: its future is the caller's)
                         -> TakenItem (of `map`: its future gives the iterator its result)
                         -> the work item that was put, if ThreadPoolExecutor's own `submit` made it (executor_calls.py)

May import `executor_calls` and the compiled core.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from ._core.pool.item_source import ItemSource
from ._core.pool.run import PoolRun
from .executor_calls import ForeignCall, SubmittedCall

__all__ = ["CallQueue", "TakenCall", "TakenItem"]


class Owner(Protocol):
    """What a CallQueue needs to know of its executor."""

    @property
    def pending(self) -> int: ...
    @property
    def _core(self) -> PoolRun | None: ...
    def _submit_foreign(self, item: Any) -> None: ...


class CallQueue:
    """The calls of an executor that have not begun. May be used by any thread; never blocks.

    Args:
        owner: Returns the executor, or None when it is gone.
    """

    def __init__(self, owner: Callable[[], Owner | None]) -> None:
        self._owner = owner

    def qsize(self) -> int:
        """Returns how many calls have not begun; a snapshot."""
        owner = self._owner()
        return 0 if owner is None else owner.pending

    def empty(self) -> bool:
        """Returns whether all calls have begun; a snapshot."""
        return self.qsize() == 0

    def get_nowait(self) -> Any:
        """Takes back the oldest call that has not begun.

        Returns:
            An object with `future`, `fn`, `args`, `kwargs`, and `run()`, which calls the function and finishes the
            future.

        Raises:
            queue.Empty: All calls have begun.
        """
        owner = self._owner()
        taken = None if owner is None or owner._core is None else owner._core.take_back()
        if taken is None:
            raise queue.Empty
        if isinstance(taken, SubmittedCall):
            return TakenCall(taken)
        if isinstance(taken, ForeignCall):
            return taken.item
        return TakenItem(*taken)

    def put(self, item: Any) -> None:
        """Submits a work item of ThreadPoolExecutor's own `submit`. None, the wake-up of its threads, does nothing."""
        owner = self._owner()
        if item is not None and owner is not None:
            owner._submit_foreign(item)


class TakenCall:
    """A call of `submit` that was taken back."""

    def __init__(self, call: SubmittedCall) -> None:
        self.future: Future[Any] = call.future
        self.fn = call.fn
        self.args = call.args
        self.kwargs = call.kwargs
        self._call = call

    def run(self) -> None:
        """Calls the function on this thread, and finishes the future."""
        self._call.run()
        self._call.done()


class TakenItem:
    """A call of `map` that was taken back. The iterator gives what its future gives."""

    def __init__(self, source: ItemSource, position: int, args: tuple[Any, ...]) -> None:
        self.future: Future[Any] = Future()
        self.fn: Any = source.function
        self.args = args
        self.kwargs: dict[str, Any] = {}

        def end(future: Future[Any]) -> None:
            if future.cancelled():
                source.end_taken(position, True, None, None)
            elif (error := future.exception()) is not None:
                source.end_taken(position, False, None, error)
            else:
                source.end_taken(position, False, future.result(), None)

        self.future.add_done_callback(end)

    def run(self) -> None:
        """Calls the function on this thread, and finishes the future."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.fn(*self.args)
        except BaseException as error:
            self.future.set_exception(error)
            del self  # the error's traceback holds this frame
        else:
            self.future.set_result(result)
