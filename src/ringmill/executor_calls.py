"""What a PoolExecutor's threads run: the calls of `submit`, with their futures, and those of `map`.

A submitted call is an operation, which carries its future. The future's own state is what counts: it moves under the
future's lock, as in every `concurrent.futures.Future`; the operation is how the call reaches a worker, and what
`result` sleeps on. Calls that `map` makes have no futures: its iterator waits for the operations.

    Call -> [core] -> Hand.process -> run: the future is FINISHED -> done(): callbacks -> who waits is woken
               |
               +-- cancelled by the pool (shutdown, breakage, Ctrl-C) ------> done(): the future fails or is cancelled

Calls and workers know the `Crew`, which knows neither the executor nor its pool: an executor that is dropped is
collected, and its threads end when the calls that are pending are done.

May import `operation`, `worker`, `supervisor`, and nothing above.
"""

from __future__ import annotations

import logging
import operator
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import Any, Generic, TypeVar

from ._core.pool.context import InContext
from ._core.pool.operation import exc_info, raise_copy, repeatable
from .arguments import describe, seconds
from .errors import BrokenPool
from .operation import Operation
from .supervisor import Supervisor
from .worker import Worker

__all__ = ["Call", "Crew", "Hand", "Item", "PoolFuture"]

R = TypeVar("R")

logger = logging.getLogger("concurrent.futures")  # where users of executors look for what goes wrong in them

OVER = (FINISHED, CANCELLED_AND_NOTIFIED)
wake = Operation.done
run: Callable[[SubmittedCall | MapCall[Any]], None] = operator.methodcaller("run")


class ExecutorState:
    """What an executor, its workers and its calls share."""

    def __init__(
        self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...], context: bool = False
    ) -> None:
        self.initializer = initializer
        self.initargs = initargs
        self.context = context  # whether calls run in their submitter's
        self.broken: BaseException | None = None  # what the initializer raised
        self.run: weakref.ref[Supervisor] | None = None

    def broken_error(self) -> BrokenPool:
        error = BrokenPool(
            f"the initializer of a thread raised {describe(self.broken)}: the executor takes no more calls"
        )
        error.__cause__ = self.broken
        return error

    def break_down(self, error: BaseException) -> None:
        """The initializer has failed: what is pending fails, and nothing more is taken."""
        if self.broken is None:
            self.broken = error
        run = self.run() if self.run is not None else None
        if run is not None:
            run.end(False, True, None)


class SubmittedCall(Operation):
    """A call that was submitted."""

    __slots__ = ("args", "executor_state", "fn", "future", "kwargs")

    def __init__(self, executor_state: ExecutorState, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.executor_state = executor_state
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.future: PoolFuture[Any] = PoolFuture(self)

    def run(self) -> None:
        future = self.future
        try:
            if not future.set_running_or_notify_cancel():
                return
            value = self.fn(*self.args, **self.kwargs)
        except BaseException as error:
            future._finish(None, error)
        else:
            future._finish(value, None)
        finally:
            del self, future  # an error's traceback holds this frame

    def refuse(self) -> None:
        """It will not run, see `done`."""

    @repeatable
    def done(self) -> None:
        """The pool is through with it: in whatever way, the future is finished now."""
        future = self.future
        if future._state not in OVER or future._giving_up:
            future._give_up(self.executor_state.broken_error() if self.executor_state.broken is not None else self.error)
        future._call = None
        if future._done_callbacks:
            wake(self)  # a callback may wait for one that waits for the result
            future._call_back()


class MapCall(Operation, Generic[R]):
    """A call of `map`'s."""

    __slots__ = ("args", "executor_state", "fn", "raised", "value")

    value: R  #: what it returned, until the iterator takes it

    def __init__(self, executor_state: ExecutorState, fn: Callable[..., R], args: tuple[Any, ...]) -> None:
        self.executor_state = executor_state
        self.fn = fn
        self.args = args
        self.raised: BaseException | None = None

    def run(self) -> None:
        try:
            self.value = self.fn(*self.args)
        except BaseException as error:
            self.raised = error
        finally:
            del self  # an error's traceback holds this frame

    def refuse(self) -> None:
        self.raised = self.executor_state.broken_error()


class ExecutorWorker(Worker[Any]):
    """Runs Calls and Items, once it has called the initializer."""

    def __init__(self, executor_state: ExecutorState, name: str) -> None:
        self.executor_state = executor_state
        self.name = name
        self.run: Callable[[SubmittedCall | MapCall[Any]], None] | None = None  # once the initializer has been called

    def init(self) -> None:
        threading.current_thread().name = self.name

    def process(self, op: SubmittedCall | MapCall[Any]) -> None:
        call = self.run or self._get_ready()
        if call is not None:
            call(op)
        else:
            op.refuse()
        del op  # an error's traceback holds the frame that ran it, and that this one

    def _get_ready(self) -> Callable[[SubmittedCall | MapCall[Any]], None] | None:
        executor_state = self.executor_state
        if executor_state.initializer is not None:
            try:
                executor_state.initializer(*executor_state.initargs)
            except BaseException as error:
                logger.critical("Exception in initializer:", exc_info=True)
                executor_state.break_down(error)
                return None
        self.run = InContext(run) if executor_state.context else run  # made now: it looks at what the initializer has set
        return self.run


# ----------------------------------------------------------------------------------------------------------------
# its future


class PoolFuture(Future[R]):
    """A `Future` without a Condition, which costs more than all the rest: who waits for a result sleeps on the call.

    Its lock is where the Condition would be, and guards the same. What a pool does when it ends a call may be
    interrupted on the main thread, between any two bytecodes, and is repeated then (Call.done), so it keeps how far it
    came.
    """

    _giving_up = False  # _finish or _give_up was begun, and has not told all yet
    _caller: int | None = None  # the thread that calls the callbacks; guarded by the lock
    _called = 0  # how many it has begun to call

    def __init__(self, call: SubmittedCall) -> None:
        self._condition = threading.RLock()  # type: ignore[assignment]
        self._state = PENDING
        self._result: R | None = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[[Future[R]], object]] = []
        self._call: SubmittedCall | None = call  # until it is over
        self._raised = False  # somebody raises the exception itself; guarded by the lock

    def result(self, timeout: float | None = None) -> R:
        """As every future's; RuntimeError where no thread of the executor would be left to make the call."""
        try:
            self._wait(timeout)
            if self._state != FINISHED:
                raise CancelledError
            if self._exception is not None:
                raise self._own_exception(self._exception)
            return self._result  # type: ignore[return-value]
        finally:
            del self  # the error's traceback holds this frame

    def _own_exception(self, error: BaseException) -> BaseException:
        """The exception for the first that raises it, a copy for each later one: two threads must not raise one object."""
        with self._condition:
            if not self._raised:
                self._raised = True
                self._traceback = exc_info(error)[2]  # not by attribute, which the error's class may have replaced
                return error
        return raise_copy(error, self._traceback)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As every future's; RuntimeError as `result`."""
        self._wait(timeout)
        if self._state != FINISHED:
            raise CancelledError
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        call = self._call
        if call is None or self._state not in (PENDING, RUNNING):
            return
        limit = None if timeout is None else max(0.0, seconds("timeout", timeout, optional=True, negative=True))
        if not call.wait(limit):
            raise TimeoutError

    def cancel(self) -> bool:
        with self._condition:
            if self._state in (RUNNING, FINISHED):
                return False
            if self._state != PENDING:
                return True
            self._state = CANCELLED
        self._end()
        return True

    def set_result(self, result: R) -> None:
        self._finish(result, None)
        self._end()

    def set_exception(self, exception: BaseException | None) -> None:
        self._finish(None, exception)
        self._end()

    def _finish(self, result: R | None, error: BaseException | None) -> None:
        """Finished, though nobody but `wait` and `as_completed` is told yet."""
        with self._condition:
            if self._state not in (PENDING, RUNNING):
                raise InvalidStateError(f"{self._state}: {self!r}")
            self._giving_up = True  # if this is left for want of memory, `done` goes on with it
            self._result = result
            self._exception = error
            self._state = FINISHED
            for waiter in self._waiters:
                if error is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            self._giving_up = False

    def _give_up(self, error: BaseException | None) -> None:
        """The call will not be made, or its end was lost: failed with the error, or cancelled if there is none."""
        with self._condition:
            if self._state in OVER and not self._giving_up:
                return
            self._giving_up = True
            if self._state not in OVER:
                if error is not None and self._state != CANCELLED:
                    self._exception = error
                    self._state = FINISHED
                else:
                    self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                if self in waiter.finished_futures:
                    continue  # told before an interrupt
                if self._state == FINISHED and self._exception is None:
                    waiter.add_result(self)
                elif self._state == FINISHED:
                    waiter.add_exception(self)
                else:
                    waiter.add_cancelled(self)
            self._giving_up = False

    def _end(self) -> None:
        call = self._call
        if call is not None:
            wake(call)
        self._call_back()

    def _call_back(self) -> None:
        """Calls what is to be called, each once. Raises a KeyboardInterrupt, or its like, when all have been called."""
        with self._condition:
            if self._caller is None:
                self._caller = threading.get_ident()
            if self._caller != threading.get_ident():
                return  # another thread calls them
        interrupt: BaseException | None = None
        callbacks = self._done_callbacks  # it does not grow any more
        while self._called < len(callbacks):
            callback = callbacks[self._called]
            self._called += 1  # no signal is handled between this and the call
            try:
                callback(self)
            except Exception:
                logger.exception("exception calling callback for %r", self)
            except BaseException as error:
                interrupt = interrupt or error
        self._done_callbacks = []
        if interrupt is not None:
            try:
                raise interrupt
            finally:
                interrupt = None  # its traceback holds this frame
