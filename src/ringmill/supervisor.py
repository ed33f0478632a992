"""The policy of one run of a pool: what happens to operations that fail, when workers restart, how the run ends.

A Supervisor lives from `WorkerPool.start` to the end of its threads. It knows nothing of the WorkerPool, so that a pool
that is dropped can be collected while its threads still work. Each worker's thread runs `WorkerLoop.run`
(worker_loop.pyx), which calls `_live` for the worker's life, and `_judge` for each operation that did not simply
succeed:

    init -> report -> (all came up?) -> serve -> [crash -> cleanup -> pause -> init]* -> cleanup -> end
                       no: cleanup, end                  too many: retire; the last one breaks the pool

What runs on a worker's thread here takes no lock and changes nothing in two steps that belong together: an exception
may come at any line, from a tracer, from another thread, or for lack of memory. `WorkerLoop.run` ends the current
operation then, and calls `_live` again.

May import `operation`, `stacks`, `worker` and the compiled core.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from ._core.platform import clock
from ._core.pool.context import InContext
from ._core.pool.item_record import subject
from ._core.pool.operation import OperationBase, call_verb, log_event, name_of, report_hook, take_keyboard_interrupt
from ._core.pool.start_gate import StartGate
from ._core.pool.worker_loop import WorkerLoop, matches, new_run
from ._core.waiting.wait_queue import check_threads
from .arguments import finite_seconds
from .errors import Closed, Reject, RetriesExhausted, Retry, Unroutable, describe
from .operation import Operation
from .stacks import stacks_of
from .worker import Worker, checked_retry_on, refuse_unstarted

logger = logging.getLogger("ringmill")

Started = tuple[list[tuple[Worker[Any], BaseException]], bool]  # who did not come up, and why; whether it took too long

LONGEST_PAUSE = 30.0  # seconds between two restarts of one worker
cause: Any = BaseException.__dict__["__cause__"]  # not by attribute, which an error's class may have replaced
BEGINNING = 0.05  # seconds after which a worker looks whether the timer's thread still lives
GRACE = 0.5  # seconds that an interrupted worker has to come to an end


@dataclass(frozen=True, slots=True)
class Settings:
    """What WorkerPool was given, checked; documented there."""

    name: str
    queue_size: int
    max_tries: int | None
    backoff: Callable[[int], float] | None
    max_restarts: int | None
    restart_period: float
    restart_pause: float
    context: bool
    # An executor's
    first_come: bool = False  # work begins in the order in which it was accepted; else sources take turns
    max_workers: int = 0  # up to so many workers are added while work waits and no worker is free; 0: none
    make_worker: Callable[[], Worker[Any]] | None = None  # makes one of them
    separator: str = "-"  # between the pool's name and a worker's number, in the name of its thread


class Crashes:
    """How often, and when, one worker has crashed."""

    def __init__(self) -> None:
        self.times: deque[float] = deque()  # within the restart period
        self.streak = 0  # since it last worked for a restart period
        self.begun = clock.now()  # when it last came up


class Supervisor:
    """One run of a pool: its core, its threads, and the rules for what goes wrong."""

    #: Seconds. A signal that comes just before the main thread waits for a lock does not end that wait: it ends itself.
    SLICE = 1.0
    _take_keyboard_interrupt: Any = staticmethod(take_keyboard_interrupt)  # no global name: see end

    def __init__(self, workers: Sequence[Worker[Any]], settings: Settings) -> None:
        self.name = settings.name
        self.settings = settings
        self.threads: list[threading.Thread] = []  # of the workers, in the order in which they were started
        self.core = new_run(
            self, workers, settings.queue_size, settings.context, settings.first_come, settings.max_workers
        )
        self.timers: list[threading.Thread] = []  # the timer's, from the first retry on that has a delay
        self.joined = False  # all of them: a finalizer that asks again finds Thread.join's own names gone
        self.given_up = False  # a caller stopped waiting for its end, so the program does not when it ends
        for worker_loop in self.core.worker_loops:
            self._prepare(worker_loop)

    def _prepare(self, worker_loop: WorkerLoop) -> None:
        worker_loop.set_name(f"{self.name}{self.settings.separator}{worker_loop.index}")
        worker_loop.retry_on = (Retry, *checked_retry_on(worker_loop.worker))
        worker_loop.crashes = Crashes()
        worker_loop.keeps_worker = type(worker_loop.worker).equal is not Worker.equal

    def __repr__(self) -> str:
        return f"<WorkerPool {self.name!r}>"

    # ------------------------------------------------------------------------------------------------------------
    # start and end

    @property
    def verdict(self) -> bool | None:
        """Whether the start succeeded; None while that is not decided."""
        return self.core.gate.has_started

    def start(self, deadline: float | None) -> Started:
        """Starts all threads and waits until each has reported.

        The deadline is of the core's clock. Unless the result is ([], False), the run is over: threads clean up and
        end by themselves.
        """
        check_threads()
        loops = list(self.core.worker_loops)
        try:
            for worker_loop in loops:
                self._start_thread(worker_loop)
            causes, late = self._await_reports(loops, self.core.gate, deadline)
        except BaseException:
            self._announce(False)
            raise
        self._announce(not causes and not late)
        return causes, late

    def _start_thread(self, worker_loop: WorkerLoop) -> None:
        thread = threading.Thread(target=worker_loop.run, name=worker_loop.name, daemon=True)
        worker_loop.thread = thread
        self.threads.append(thread)
        Context().run(thread.start)  # its context is empty, also where threads inherit their starter's

    def _await_reports(self, loops: list[WorkerLoop], gate: StartGate, deadline: float | None) -> Started:
        """Waits until each of these workers has reported; returns why some failed, and whether it took too long."""
        lost: list[tuple[Worker[Any], BaseException]] = []
        late = False
        while not lost:
            left = None if deadline is None else max(0.0, deadline - clock.now())
            slice_ = self.SLICE if left is None else min(self.SLICE, left)
            if gate.await_reports(len(loops), slice_):
                break
            if left == 0.0:
                late = True
                break
            # The workers whose threads have ended before they reported: without memory even threading's own code fails.
            lost = [
                (
                    worker_loop.worker,
                    RuntimeError(f"the thread {worker_loop.name} ended before its worker was ready"),
                )
                for worker_loop in loops
                if not worker_loop.thread.is_alive() and not worker_loop.has_reported
            ]
        causes = lost + [
            (worker_loop.worker, worker_loop.start_error)
            for worker_loop in loops
            if worker_loop.start_error is not None
        ]
        return causes, late

    def _announce(self, verdict: bool) -> None:
        if not verdict:
            self.core.end_now()
            # A thread that has not begun by now never does, though start() of it may have raised.
            for worker_loop in self.core.worker_loops:
                self.core.give_up(worker_loop.state)
        self.core.gate.decide(verdict)

    # ------------------------------------------------------------------------------------------------------------
    # more workers, and fewer, while it runs

    def _add_worker(self) -> None:
        """Adds a worker if one is wanted still, and starts its thread without waiting for it. May be called anywhere.

        The core calls it, also on a worker's thread, when more work waits than workers are free.
        """
        assert self.settings.make_worker is not None
        worker_loop = WorkerLoop(self.core, self.settings.make_worker(), -1, self.core.gate)
        try:
            if self.core.add_worker(worker_loop.state, True):
                self._prepare(worker_loop)
                self.core.worker_loops.append(worker_loop)
                self._start_thread(worker_loop)
        except BaseException:  # no thread can be started, or Ctrl-C
            self.core.give_up(worker_loop.state)
            raise

    def add_workers(self, workers: Sequence[Worker[Any]]) -> list[tuple[Worker[Any], BaseException]] | None:
        """Adds workers, all or none, and waits until their `init` has returned. Called by one thread at a time.

        Returns the causes of a failure, as `start`; None: the run has ended, or ends. Unless the list is empty, the
        workers clean up and end by themselves.
        """
        gate = StartGate()
        first = len(self.core.worker_loops)
        loops = [WorkerLoop(self.core, worker, first + k, gate) for k, worker in enumerate(workers)]
        joined = False
        causes: list[tuple[Worker[Any], BaseException]] = []
        try:
            for worker_loop in loops:
                self._prepare(worker_loop)
                if not self.core.expect(worker_loop.state):
                    return None
                self._start_thread(worker_loop)
            causes, _ = self._await_reports(loops, gate, None)
            joined = self.core.join([worker_loop.state for worker_loop in loops], not causes)
            self.core.worker_loops.extend(loops)  # also those that do not join: the index in the list is the number
        finally:
            gate.decide(joined)
            if not joined:
                for worker_loop in loops:
                    self.core.give_up(worker_loop.state)
        if not joined:
            for worker_loop in loops:
                if worker_loop.thread is not None and worker_loop.thread.is_alive():
                    worker_loop.thread.join()
        self.threads = [thread for thread in self.threads if thread.is_alive()]  # those of workers that have left go
        return causes if joined or causes else None

    def dismiss(self, workers: Sequence[Worker[Any]]) -> None:
        """Has these workers leave, each when it has ended what it runs."""
        leaving = {id(worker) for worker in workers}
        loops = self.core.worker_loops
        self.core.dismiss([worker_loop.state for worker_loop in loops if id(worker_loop.worker) in leaving])

    def lost(self) -> list[Worker[Any]]:
        """The workers that have crashed too often."""
        workers = [worker_loop.worker for worker_loop in self.core.worker_loops if worker_loop.is_retired]
        return [worker for worker in workers if worker is not None]  # those that have left are gone

    # ------------------------------------------------------------------------------------------------------------
    # the end

    def end(
        self, wait: bool, cancel_pending: bool, timeout: float | None, *, after_keyboard_interrupt: bool = False
    ) -> list[Any]:
        """What `WorkerPool.shutdown` promises; returns what was cancelled.

        `after_keyboard_interrupt`: one is being raised already, so the next one stops the waiting. Without a timeout it
        uses no global names: it may be called by a finalizer when those are gone.
        """
        deadline = None if timeout is None else clock.now() + timeout
        cancelled: list[Any] = []
        keyboard_interrupt: BaseException | None = None
        try:
            try:
                self.core.drain()
                if cancel_pending:
                    cancelled = self.core.cancel_pending()
                self._raise_keyboard_interrupt()  # out of a done(): all have ended by now
                ended = not wait or self.join(deadline)
            except KeyboardInterrupt as error:
                if after_keyboard_interrupt:
                    raise
                keyboard_interrupt = error
                ended = self._finish_begun(wait, cancel_pending, deadline)
        except KeyboardInterrupt:
            self.given_up = wait
            keyboard_interrupt = None
            raise
        if not ended and timeout is not None:
            self.given_up = True
            cancelled += self.core.cancel_pending()
            self.force(timeout)
            if keyboard_interrupt is None:
                self._raise_keyboard_interrupt()
        if keyboard_interrupt is not None:
            try:
                raise keyboard_interrupt
            finally:
                keyboard_interrupt = None  # its traceback holds this frame
        return cancelled

    def _finish_begun(self, wait: bool, cancel_pending: bool, deadline: float | None) -> bool:
        """After a KeyboardInterrupt, which the caller raises: cancels what has not begun, waits as `join` does."""
        self.core.drain()
        if wait or cancel_pending:
            self.core.cancel_pending()
        self._raise_keyboard_interrupt()  # a second one
        return not wait or self.join(deadline)

    def _raise_keyboard_interrupt(self) -> None:
        error = self._take_keyboard_interrupt()
        if error is not None:
            raise error

    def stop_accepting(self) -> None:
        """The main thread has ended: what was accepted is finished, what is delayed, or would be, is cancelled."""
        self.core.drain()
        self.core.cancel_delayed()

    async def wait_until_ended(self) -> None:
        """`join` for a task of asyncio or trio, without a limit."""
        if self.verdict is None:
            self._announce(False)  # as in join
        with contextlib.suppress(Closed):
            await self.core.threads.over_for_tasks.aget()
        self.join(None)  # the threads have nothing left to do

    def join(self, deadline: float | None) -> bool:
        """Waits until all threads have ended, or until the deadline; returns whether they have."""
        if self.joined:
            return True
        if self.verdict is None:
            self._announce(False)  # start() had no memory for that
        left = self.SLICE  # no global names unless there is a deadline: see end
        while True:
            if deadline is not None:
                left = max(0.0, min(self.SLICE, deadline - clock.now()))
            if self.core.threads.await_over(left):
                break
            if left < self.SLICE:
                return False
            if self.core.threads.all_ended:
                self.core.finish_run()  # the last thread had no memory for that
        for thread in list(self.threads):
            if thread.is_alive():  # one that could not be started cannot be joined
                thread.join()  # it has nothing left to do
        for timer in self.timers:
            if timer.is_alive():
                timer.join()
        self.joined = True
        return True

    def alive(self) -> list[threading.Thread]:
        return [thread for thread in self.threads if thread.is_alive()]

    def force(self, timeout: float) -> None:
        """The last step: `interrupt` of stuck workers is called, streams that wait for them end, the log names them."""
        self.core.end_now()
        try:
            self._interrupt_and_name(timeout)
        finally:
            self.core.abort_streams()  # though a logging handler raises

    def _interrupt_and_name(self, timeout: float) -> None:
        loops = [loop for loop in self.core.worker_loops if loop.thread is not None]
        busy = [loop for loop in loops if loop.thread.is_alive() and loop.is_running]
        for worker_loop in busy:
            try:
                worker_loop.worker.interrupt()
            except BaseException as error:
                report_hook(error, "interrupt of worker %s raised", worker_loop.name)
        patience = clock.now() + GRACE
        for worker_loop in loops:
            if worker_loop not in busy or type(worker_loop.worker).interrupt is not Worker.interrupt:
                worker_loop.thread.join(max(0.0, patience - clock.now()))
        stuck = self.alive()
        stacks = stacks_of([thread.ident or 0 for thread in stuck])
        for thread in stuck:
            stack = stacks.get(thread.ident or 0, "(no stack: it has just ended, or none can be taken here)\n")
            logger.warning("worker %s is stuck after %g s of shutdown:\n%s", thread.name, timeout, stack)

    # ------------------------------------------------------------------------------------------------------------
    # a worker's thread

    def _live(self, worker_loop: WorkerLoop) -> None:
        """A worker's life. If this raises, it is called again, with that as the worker's crash."""
        crashed = worker_loop.is_crashed
        begins = not worker_loop.has_reported
        if begins:
            error = worker_loop.take_crash() if crashed else worker_loop.call_init()
            if self.core.is_inherited:
                return  # the child of a fork that `init` made: the worker is the parent's
            if error is None:
                self._compare(worker_loop)
            worker_loop.set_alive(error is None)  # before the report: the first retry may come at once after the start
            worker_loop.report(error)
            error = None
            crashed = False
        if not worker_loop.gate.await_verdict():
            worker_loop.set_alive(False)
            worker_loop.call_cleanup()
            return
        if worker_loop.start_error is not None:  # of a worker that was added alone
            worker_loop.call_cleanup()
            self._retire(worker_loop)
            return
        if begins:
            log_event(logging.DEBUG, "worker %s started", (worker_loop.name,))
        while True:
            if not crashed:
                crashed = self._serve(worker_loop)
                if self.core.is_inherited:
                    return  # the child of a fork that an operation made: the worker is the parent's
            worker_loop.set_alive(False)
            worker_loop.call_cleanup()
            if not crashed or self.core.is_inherited or not self._restart(worker_loop):
                return
            crashed = False
            worker_loop.set_alive(True)

    def _serve(self, worker_loop: WorkerLoop) -> bool:
        """Runs operations until the pool ends: False; or until the worker is broken: True.

        See worker_loop.pyx for what the WorkerLoop does between two calls of `process`.
        """
        process = worker_loop.worker.process
        if self.settings.context:
            process = InContext(process)
        worker_loop.process = process
        while True:
            try:
                for op in worker_loop:
                    result = process(op)
                    if result is not None:
                        _look_at_result(worker_loop.worker, result)
                        result = None
                    del op
                return worker_loop.is_crashed
            except BaseException as error:
                # The traceback begins with this frame, and stays so: two workers may raise one exception at once.
                op = result = None
                if worker_loop.judge(error):
                    return True

    def _restart(self, worker_loop: WorkerLoop) -> bool:
        """Brings a crashed worker up again. False: the worker is lost, or the pool ended meanwhile."""
        crashes = worker_loop.crashes
        period = self.settings.restart_period
        if clock.now() - crashes.begun >= period:
            crashes.streak = 0
        crash = worker_loop.take_crash()
        while True:
            now = clock.now()
            crashes.times.append(now)
            while crashes.times and crashes.times[0] < now - period:
                crashes.times.popleft()
            if self.settings.max_restarts is not None and len(crashes.times) > self.settings.max_restarts:
                values = (worker_loop.name, len(crashes.times), period)
                log_event(logging.ERROR, "worker %s crashed %d times in %g s", values, crash)
                self._retire(worker_loop)
                return False
            crashes.streak += 1
            pause = 0.0
            if crashes.streak > 1:
                pause = min(self.settings.restart_pause * 2 ** min(crashes.streak - 2, 60), LONGEST_PAUSE)
            log_event(logging.WARNING, "worker %s crashed, restarts in %g s", (worker_loop.name, pause), crash)
            crash = None  # it holds a traceback, and that the operation
            if worker_loop.pause(pause):
                return False
            worker_loop.count_restart()
            crash = worker_loop.call_init()
            if self.core.is_inherited:
                return False
            if crash is None:
                crashes.begun = clock.now()
                return True
            worker_loop.call_cleanup()

    def _retire(self, worker_loop: WorkerLoop) -> None:
        """The worker is lost; with the last one, the pool."""
        enough = worker_loop.retire()
        log_event(logging.ERROR, "worker %s is retired", (worker_loop.name,))
        if not enough:
            log_event(logging.CRITICAL, "%r has lost its last worker and is broken", (self,))

    # ------------------------------------------------------------------------------------------------------------
    # what becomes of an operation that did not succeed; on its worker's thread

    def _judge(
        self, worker_loop: WorkerLoop, op: Operation, error: BaseException, raised: bool
    ) -> BaseException | None:
        """Ends the current operation or has it tried again. Returns the error if the worker is broken by it.

        `raised`: `process` raised the error; otherwise a Task recorded it. What this raises ends the operation, too.
        """
        if matches(error, Reject):
            return self._reject(worker_loop, op, error)
        if matches(error, worker_loop.retry_on):
            return self._retry(worker_loop, op, error)
        if raised and not matches(error, Exception):
            worker_loop.fail(error, False, True)
            return error
        return self._fail(worker_loop, op, error)

    def _check_result(self, worker_loop: WorkerLoop, result: object) -> None:
        """TypeError for what `process` returned for an item if that has not run."""
        refuse_unstarted(worker_loop.worker, "process", result)

    def _fail(self, worker_loop: WorkerLoop, op: Operation, error: BaseException) -> BaseException | None:
        broken: BaseException | None = None
        handles = type(worker_loop.worker).handle_error is not Worker.handle_error
        if handles:
            try:
                handle = worker_loop.worker.handle_error
                if not self.settings.context:
                    handle(error, subject(op))
                else:
                    InContext(handle).run(worker_loop.current_context, (error, subject(op)))
            except BaseException as raised:
                broken = raised
        worker_loop.fail(error, handles, broken is not None)  # it is the context of what handle_error raised
        return broken

    def _retry(self, worker_loop: WorkerLoop, op: Operation, error: BaseException) -> BaseException | None:
        tries = worker_loop.count_try()
        try:
            call_verb(op, "increment_try")
        except BaseException as raised:
            log_event(logging.ERROR, "increment_try() raised in %s", (name_of(type(op)),), raised)
        if self.settings.max_tries is not None and tries >= self.settings.max_tries:
            exhausted = RetriesExhausted(f"gave up on {describe(subject(op))} after {tries} tries")
            exhausted.__cause__ = error
            return self._fail(worker_loop, op, exhausted)
        try:
            delay = self._delay(error, tries)
        except BaseException as raised:
            if raised is not error and cause.__get__(raised) is None:
                cause.__set__(raised, error)
            return self._fail(worker_loop, op, raised)
        tried_by, rejected_by = worker_loop.retry_masks
        equals = self._equal_to(worker_loop)
        tried_by = self.core.union_of(tried_by, equals, True)
        if not self.core.has_untried(tried_by, rejected_by):
            tried_by = equals  # all have had it: it starts over
        if self.core.is_inherited:
            return None  # the child of a fork that one of the hooks made
        if delay > 0 and not self.core.timer_runs and not self.core.cancels_delayed:
            self._start_timer()
        worker_loop.put_back(tried_by, rejected_by, delay)
        return None

    def _delay(self, error: BaseException, tries: int) -> float:
        """How many seconds pass before the next try, at least."""
        delay = getattr(error, "delay", None) if matches(error, Retry) else None
        if delay is not None:
            return finite_seconds("Retry.delay", delay)
        if self.settings.backoff is not None:
            return finite_seconds("backoff's result", self.settings.backoff(tries))
        return 0.0

    def _start_timer(self) -> None:
        """Starts the thread that waits for the ends of delays. Where that fails, nothing is delayed: better than lost.

        Workers that do this at the same moment start several, of which all but one end at once.
        """
        timer: threading.Thread | None = None
        try:
            begun = OperationBase()
            timer = threading.Thread(
                target=self.core.run_timer, args=(begun,), name=f"{self.name}-timer", daemon=True
            )
            self.timers.append(timer)  # before it starts, since join waits for each that has started
            Context().run(timer.start)
            while not begun.wait(BEGINNING):
                if not timer.is_alive():  # an exception came before its first step
                    raise RuntimeError(f"the thread {timer.name} ended before it began")
        except BaseException as error:
            if timer in self.timers and isinstance(error, RuntimeError):  # it has not started
                self.timers.remove(timer)
            self.core.give_up_timer()
            message = "%r cannot start a thread for the delays of retries, which are not delayed"
            log_event(logging.ERROR, message, (self,), error)

    def _reject(self, worker_loop: WorkerLoop, op: Operation, error: BaseException) -> BaseException | None:
        tried_by, rejected_by = worker_loop.retry_masks
        rejected_by = self.core.union_of(rejected_by, _only(worker_loop.index), False)
        if not self.core.has_taker(rejected_by):
            unroutable = Unroutable(f"every worker has rejected {describe(subject(op))}")
            unroutable.__cause__ = error
            return self._fail(worker_loop, op, unroutable)
        worker_loop.put_back(tried_by, rejected_by, 0.0)
        return None

    def _equal_to(self, worker_loop: WorkerLoop) -> bytes:
        """By number: whether that worker is, or is equal to, this one. Asked once, on this worker's thread."""
        mask: bytes | None = worker_loop.equal_to
        if not worker_loop.keeps_worker:  # its class does not define `equal`
            if mask is None:
                mask = worker_loop.equal_to = _only(worker_loop.index)
        elif mask is None or len(mask) < len(self.core.worker_loops):
            mask = mask or b""
            # A list: in a generator that finds no memory CPython 3.12 and 3.13 crash.
            more = [other is worker_loop or self._equal(worker_loop, other)
                    for other in self.core.worker_loops[len(mask):]]  # fmt: skip
            mask = worker_loop.equal_to = mask + bytes(more)
        return mask

    def _compare(self, worker_loop: WorkerLoop) -> None:
        """A worker that is added says which of those before it are its equals: they may have tried what waits."""
        if worker_loop.gate is not self.core.gate and worker_loop.keeps_worker:
            before = self.core.worker_loops[: worker_loop.index]
            worker_loop.set_equals(bytes([self._equal(worker_loop, other) for other in before]))

    def _equal(self, worker_loop: WorkerLoop, other: WorkerLoop) -> bool:
        worker = other.worker
        if worker is None:
            return False  # it has left, and is equal to itself only
        try:
            return bool(worker_loop.worker.equal(worker))
        except BaseException as error:
            log_event(logging.ERROR, "equal of worker %s raised", (worker_loop.name,), error)
            return False


def _only(index: int) -> bytes:
    """The mask in which only that worker is."""
    return bytes(index) + b"\1"


_warned: weakref.WeakSet[type] = weakref.WeakSet()  # classes of workers whose `process` has returned something


def _look_at_result(worker: Worker[Any], result: object) -> None:
    """What `process` returns for an operation is dropped, of which a warning tells once per class."""
    refuse_unstarted(worker, "process", result)
    kind = type(worker)
    if kind not in _warned:
        _warned.add(kind)
        warnings.warn(
            f"{kind.__qualname__}.process returned something, which is dropped: keep the result in the operation",
            RuntimeWarning,
            stacklevel=2,
        )
