"""The calls of a PoolExecutor, from `submit` (with futures) and from `map`; and the worker that runs them.

A submitted call is an operation that carries its future. The state of the future is the authoritative one: it changes
under the future's lock, as in every `concurrent.futures.Future`. The operation brings the call to a worker, and
`result` waits for the operation.

    SubmittedCall -> [pool] -> ExecutorWorker.process -> run: the future is FINISHED -> done(): callbacks -> waiters
    wake
                        |
                        +-- cancelled by the pool (shutdown, breakage, Ctrl-C) ------> done(): the future fails or is
                        cancelled

`map` makes neither futures nor operations: its calls are items (_core/pool/call_results.pyx).

Calls and workers refer to the ExecutorState, which refers neither to the executor nor to its pool. So an executor that
is dropped is collected, and its threads end when the pending calls are done.

May import `operation`, `standard_executor`, `worker`, `supervisor` and the compiled core.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import Any, TypeVar

from ._core.pool.context import InContext
from ._core.pool.operation import exc_info, raise_copy, repeatable
from .arguments import describe, seconds
from .errors import BrokenPool
from .operation import Operation
from .standard_executor import run_arguments
from .supervisor import Supervisor
from .worker import Worker

__all__ = ["ExecutorState", "ExecutorWorker", "ForeignCall", "PoolFuture", "SubmittedCall"]

R = TypeVar("R")

logger = logging.getLogger("concurrent.futures")  # where users of executors expect log messages

OVER = (FINISHED, CANCELLED_AND_NOTIFIED)
RLock: Any = type(threading.RLock())  # half the price of calling threading.RLock
wake = Operation.done
run: Callable[[SubmittedCall], None] = operator.methodcaller("run")


class ExecutorState:
    """The state that an executor, its workers and its calls share."""

    def __init__(
        self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...], context: bool = False
    ) -> None:
        self.initializer = initializer
        self.initargs = initargs
        self.context = context  # whether calls run in a copy of their submitter's context
        self.broken: BaseException | None = None  # what the initializer raised
        self.run: weakref.ref[Supervisor] | None = None

    def broken_error(self) -> BrokenPool:
        error = BrokenPool(
            f"the initializer of a thread raised {describe(self.broken)}: the executor takes no more calls"
        )
        error.__cause__ = self.broken
        return error

    def ending_error(self, error: BaseException | None) -> BaseException:
        """For a call of `map` that will not run: the pool is broken, by that error; or it was cancelled."""
        if self.broken is not None:
            return self.broken_error()
        return CancelledError() if error is None else error

    def break_down(self, error: BaseException) -> None:
        """The initializer has failed: pending calls fail, and no more are accepted."""
        if self.broken is None:
            self.broken = error
        run = self.run() if self.run is not None else None
        if run is not None:
            run.end(False, True, None)


class SubmittedCall(Operation):
    """A call of `submit`."""

    __slots__ = ("args", "executor_state", "fn", "future", "kwargs")

    def __init__(
        self, executor_state: ExecutorState, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.executor_state = executor_state
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.future: PoolFuture[Any] = PoolFuture(self)

    def run(self) -> None:
        future = self.future
        try:
            with future._condition:
                begins = future._state is PENDING
                if begins:
                    future._state = RUNNING
            if not begins and not future.set_running_or_notify_cancel():
                return
            value = self.fn(*self.args, **self.kwargs)
        except BaseException as error:
            future._finish(None, error)
        else:
            future._finish(value, None)
        finally:
            del self, future  # an error's traceback holds this frame

    @repeatable
    def done(self) -> None:
        """The operation has ended: makes sure that the future is finished, and calls the callbacks."""
        future = self.future
        if future._state not in OVER or future._is_abandoning:
            state = self.executor_state
            future._abandon(self.error if state.broken is None else state.broken_error())
        future._call = None
        if future._done_callbacks:
            wake(self)  # a callback may wait for a thread that waits for the result
            future._call_back()


class ForeignCall(Operation):
    """A work item that ThreadPoolExecutor's own `submit` has made, with a future of its own.

    A program that traces calls replaces that method by one that calls the original in the end.
    """

    __slots__ = ("executor_state", "future", "item")

    def __init__(self, executor_state: ExecutorState, item: Any) -> None:
        self.executor_state = executor_state
        self.item = item
        self.future: Future[Any] = item.future

    def run(self) -> None:
        try:
            self.item.run(*run_arguments)
        finally:
            del self  # as in SubmittedCall

    @repeatable
    def done(self) -> None:
        """The operation has ended: makes sure that the future is finished."""
        future = self.future
        if not future.done():
            state = self.executor_state
            error = self.error if state.broken is None else state.broken_error()
            if error is None:
                future.cancel()
            else:
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(error)
        if future._state == CANCELLED:
            with contextlib.suppress(InvalidStateError):
                future.set_running_or_notify_cancel()
        wake(self)


class ExecutorWorker(Worker[Any]):
    """Runs calls, and the initializer before its first call."""

    def __init__(self, executor_state: ExecutorState) -> None:
        self.executor_state = executor_state
        self.run: Callable[[SubmittedCall], None] | None = None  # once the initializer has been called

    def process(self, op: SubmittedCall) -> None:
        call = self.run or self._initialize()
        if call is not None:  # else the call will not run; `done` finishes the future
            call(op)
        del op  # an error's traceback holds the frame that ran the call, and that frame holds this one

    def prepare_function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Called before the first call of a `map` on this thread; returns the function to call."""
        if self.run is None and self._initialize() is None:
            raise self.executor_state.broken_error()
        return function

    def _initialize(self) -> Callable[[SubmittedCall], None] | None:
        executor_state = self.executor_state
        if executor_state.initializer is not None:
            try:
                executor_state.initializer(*executor_state.initargs)
            except BaseException as error:
                logger.critical("Exception in initializer:", exc_info=True)
                executor_state.break_down(error)
                return None
        # InContext must be made after the initializer, whose variables it reads.
        self.run = InContext(run) if executor_state.context else run
        return self.run


# ----------------------------------------------------------------------------------------------------------------
# the future


class PoolFuture(Future[R]):
    """A `Future` without a Condition, which would cost more than all the rest: `result` waits for the call instead.

    A lock takes the place of the Condition and guards the same fields. When a pool ends a call on the main thread, a
    KeyboardInterrupt may arrive between any two bytecodes; the work is repeated then (SubmittedCall.done), so the
    fields below record how far it has come.
    """

    _is_abandoning = False  # _abandon has begun, and has not notified all waiters yet
    _caller: int | None = None  # the thread that calls the callbacks; guarded by the lock
    _called = 0  # how many callbacks that thread has begun to call

    def __init__(self, call: SubmittedCall) -> None:
        self._condition = RLock()
        self._state = PENDING
        self._result: R | None = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[[Future[R]], object]] = []
        self._call: SubmittedCall | None = call  # until it has ended
        self._raised = False  # a thread raises the exception itself, so others raise copies; guarded by the lock

    def result(self, timeout: float | None = None) -> R:
        """As `Future.result`; RuntimeError if no thread of the executor would be left to run the call."""
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
        """Returns the exception for the first thread, a copy for later ones: two threads must not raise one object."""
        with self._condition:
            if not self._raised:
                self._raised = True
                self._traceback = exc_info(error)[2]  # not by attribute, which the error's class may have replaced
                return error
        return raise_copy(error, self._traceback)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `Future.exception`; RuntimeError as in `result`."""
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
        """Makes the future FINISHED and notifies `wait` and `as_completed`; `_end` notifies all others."""
        with self._condition:
            if self._state not in (PENDING, RUNNING):
                raise InvalidStateError(f"{self._state}: {self!r}")
            self._is_abandoning = True  # if this is left for lack of memory, `done` goes on with it
            self._result = result
            self._exception = error
            self._state = FINISHED
            for waiter in self._waiters:
                if error is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            self._is_abandoning = False

    def _abandon(self, error: BaseException | None) -> None:
        """Ends a future that its call has not finished: FAILED with the error, or CANCELLED without one."""
        with self._condition:
            if self._state in OVER and not self._is_abandoning:
                return
            self._is_abandoning = True
            if self._state not in OVER:
                if error is not None and self._state != CANCELLED:
                    self._exception = error
                    self._state = FINISHED
                else:
                    self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                if self in waiter.finished_futures:
                    continue  # it was notified before a KeyboardInterrupt
                if self._state == FINISHED and self._exception is None:
                    waiter.add_result(self)
                elif self._state == FINISHED:
                    waiter.add_exception(self)
                else:
                    waiter.add_cancelled(self)
            self._is_abandoning = False

    def _end(self) -> None:
        call = self._call
        if call is not None:
            wake(call)
        self._call_back()

    def _call_back(self) -> None:
        """Calls each callback once. A KeyboardInterrupt or SystemExit is raised when all have been called."""
        with self._condition:
            if self._caller is None:
                self._caller = threading.get_ident()
            if self._caller != threading.get_ident():
                return  # another thread calls them
        to_raise: BaseException | None = None
        callbacks = self._done_callbacks  # no callback is added any more
        while self._called < len(callbacks):
            callback = callbacks[self._called]
            self._called += 1  # no signal handler runs between this and the call
            try:
                callback(self)
            except Exception:
                logger.exception("exception calling callback for %r", self)
            except BaseException as error:
                to_raise = to_raise or error
        self._done_callbacks = []
        if to_raise is not None:
            try:
                raise to_raise
            finally:
                to_raise = None  # its traceback holds this frame
