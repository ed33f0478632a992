"""What happens seldom in one run of a pool: redrive routing, restart, breakage, the end.

A Supervisor lives from `WorkerPool.start` to the end of its threads. The compiled core calls `_judge` on the worker's
thread for each operation that did not simply succeed; each worker's thread runs `_main`. It knows nothing of the
WorkerPool, so that a pool that is dropped can be collected while its threads still work.

The life of a worker's thread:

    init -> report -> (all came up?) -> serve -> [crash -> cleanup -> pause -> init]* -> cleanup -> end
                       no: cleanup, end                  too many: retire; the last one breaks the pool

May import `operation`, `timer`, `worker` and the compiled core.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ._core.dispatch import Core, Runner
from .errors import BrokenPool, Reject, RetriesExhausted, Retry, Unroutable
from .operation import Operation, Task
from .timer import Timer
from .worker import Worker

logger = logging.getLogger("ringmill")

Started = tuple[list[tuple[Worker[Any], BaseException]], bool]  # who did not come up, and why; whether it took too long

# A thread of a run: it has not begun and may; it runs; it has ended, or never will begin.
EXPECTED, RUNNING, OVER = 2, 1, 0
LONGEST_PAUSE = 30.0  # seconds between two restarts of one worker
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
    context: bool | None


class Supervisor:
    """One run of a pool: its core, its threads, and the rules for what goes wrong."""

    #: Seconds. A signal that comes just before the main thread waits for a lock does not end that wait: it ends itself.
    SLICE = 1.0

    def __init__(self, workers: Sequence[Worker[Any]], settings: Settings) -> None:
        self.name = name = settings.name
        self.settings = settings
        self.core = Core(self, workers, settings.queue_size, settings.context)
        self.timer = Timer(self.core, name)
        self.lock = threading.Lock()
        self.left = [True] * len(workers)  # by index: not retired; guarded by the lock, like `stages`
        self.stages = bytearray([EXPECTED]) * len(workers)  # by index: written by the thread, without taking memory
        self.over = bytes(len(workers))  # what `stages` is when no thread runs, and none will
        self.ended = threading.Event()  # all threads have: interrupted, Thread.join of 3.11 and 3.12 loses the thread
        self.reports: list[tuple[Runner, BaseException | None]] = []
        self.reported = threading.Condition()
        self.verdict: bool | None = None  # whether the start succeeded; guarded by `reported`
        self.rows: dict[int, bytes] = {}  # by index: whom a worker is equal to; written by its own thread
        self.threads: list[threading.Thread] = []  # by index; fewer if a start failed on the way
        self.joined = False  # all of them: a finalizer that asks again finds Thread.join's own names gone
        self.given_up = False  # somebody stopped waiting for its end, so the program does not when it ends

    def __repr__(self) -> str:
        return f"<WorkerPool {self.name!r}>"

    # ------------------------------------------------------------------------------------------------------------
    # start and end

    def start(self, deadline: float | None) -> Started:
        """Starts all threads and waits until each has reported.

        The deadline is of the monotonic clock. Unless the result is ([], False), the run is over: threads clean up and
        end by themselves.
        """
        late = False
        lost: list[tuple[Worker[Any], BaseException]] = []
        try:
            for runner in self.core.runners:
                runner.name = f"{self.name}-{runner.index}"
                thread = threading.Thread(target=self._main, args=(runner,), name=runner.name, daemon=True)
                self.threads.append(thread)
                thread.start()
            with self.reported:
                while len(self.reports) < len(self.threads) and not lost:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        late = True
                        break
                    if not self.reported.wait(self.SLICE if left is None else min(self.SLICE, left)):
                        lost = self._lost()
        except BaseException:
            self._announce(False)
            raise
        causes = lost + [(runner.worker, error) for runner, error in self.reports if error is not None]
        self._announce(not causes and not late)
        return causes, late

    def _lost(self) -> list[tuple[Worker[Any], BaseException]]:
        """The workers whose threads have ended before the verdict: without memory even threading's own code fails."""
        return [
            (runner.worker, RuntimeError(f"the thread {thread.name} ended before its worker was ready"))
            for runner, thread in zip(self.core.runners, self.threads, strict=True)
            if not thread.is_alive()
        ]

    def _announce(self, verdict: bool) -> None:
        if not verdict:
            self.core.end_now()
            with self.lock:  # a thread that has not begun by now never does, though start() of it may have raised
                for index, stage in enumerate(self.stages):
                    if stage == EXPECTED:
                        self.stages[index] = OVER
                over = self.stages == self.over
            if over:
                self._finish()
        with self.reported:
            self.verdict = verdict
            self.reported.notify_all()

    def _finish(self) -> None:
        """No thread runs any more, and none will. May be called again, also at the same time."""
        self.timer.stop()
        self.core.finish()
        self.ended.set()

    def end(
        self, wait: bool, cancel_pending: bool, timeout: float | None, *, interrupted: bool = False
    ) -> list[Any]:
        """What `WorkerPool.shutdown` promises; returns what was cancelled.

        `interrupted`: a KeyboardInterrupt is on its way already, so the next one stops the waiting. Without a timeout
        it uses no global names: it may be called by a finalizer when those are gone.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self.core.drain()
        cancelled = self.core.cancel_pending() if cancel_pending else []
        if not wait:
            return cancelled
        try:
            try:
                ended = self.join(deadline)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                self.core.cancel_pending()
                self.join(None)
                raise
        except KeyboardInterrupt:
            self.given_up = True
            raise
        if not ended and timeout is not None:
            self.given_up = True
            cancelled += self.core.cancel_pending()
            self.force(timeout)
        return cancelled

    def join(self, deadline: float | None) -> bool:
        """Waits until all threads have ended, or until the deadline; returns whether they have."""
        if self.joined:
            return True
        if self.verdict is None:
            self._announce(False)  # start() had no memory for that
        left = self.SLICE  # no global names unless there is a deadline: see end
        while True:
            if deadline is not None:
                left = max(0.0, min(self.SLICE, deadline - time.monotonic()))
            if self.ended.wait(left):
                break
            if left < self.SLICE:
                return False
            with self.lock:
                over = self.stages == self.over
            if over:
                self._finish()  # the last thread had no memory for that
        for thread in self.threads:
            if thread.is_alive():  # one that could not be started cannot be joined
                thread.join()  # it has nothing left to do
        self.joined = True
        return True

    def alive(self) -> list[threading.Thread]:
        return [thread for thread in self.threads if thread.is_alive()]

    def force(self, timeout: float) -> None:
        """The last rung: workers that are stuck are interrupted, streams that wait for them end, the log names them."""
        self.core.end_now()
        try:
            self._interrupt_and_name(timeout)
        finally:
            self.core.abort_streams()  # though a logging handler raises

    def _interrupt_and_name(self, timeout: float) -> None:
        crew = list(zip(self.core.runners, self.threads, strict=False))
        busy = [runner for runner, thread in crew if thread.is_alive() and runner.is_running]
        for runner in busy:
            try:
                runner.worker.interrupt()
            except BaseException:
                logger.exception("interrupt of worker %s raised", runner.name)
        patience = time.monotonic() + GRACE
        for runner, thread in crew:
            if runner not in busy or type(runner.worker).interrupt is not Worker.interrupt:
                thread.join(max(0.0, patience - time.monotonic()))
        frames = sys._current_frames()
        for thread in self.alive():
            frame = frames.get(thread.ident or 0)
            stack = "".join(traceback.format_stack(frame)) if frame is not None else "(it has just ended)"
            logger.warning("worker %s is stuck after %g s of shutdown:\n%s", thread.name, timeout, stack)

    # ------------------------------------------------------------------------------------------------------------
    # a worker's thread

    def _main(self, runner: Runner) -> None:
        index = runner.index
        self.lock.acquire()  # no `with`, which needs memory before it begins
        begins = self.stages[index] == EXPECTED
        if begins:
            self.stages[index] = RUNNING
        self.lock.release()
        if not begins:
            return  # its start was given up
        runner.enter()
        try:
            self._live(runner)
        except BaseException:  # a fault of ringmill's own, or a logging handler that raises: it has crashed for good
            if not self.core.is_inherited:
                if runner.at_hand is not None:
                    runner.fail(BrokenPool(f"{runner.name} broke down"), False)
                self._retire(runner)
            raise
        finally:
            if not self.core.is_inherited:
                self.lock.acquire()  # as above: somebody waits for this
                self.stages[index] = OVER
                last = self.stages == self.over
                self.lock.release()
                left = 100 if last else 0  # again where memory is short for a moment: a joiner looks each SLICE only
                while left:
                    left -= 1
                    try:
                        self._finish()
                        left = 0
                    except MemoryError:
                        continue
            runner.leave()

    def _live(self, runner: Runner) -> None:
        error = self._init(runner.worker)
        runner.set_alive(error is None)  # before the report: the first redrive may come at once after the start
        with self.reported:
            self.reports.append((runner, error))
            self.reported.notify_all()
            while self.verdict is None:
                self.reported.wait()
        if error is not None or not self.verdict:
            runner.set_alive(False)
            self._cleanup(runner)
            return
        logger.debug("worker %s started", runner.name)
        crashes: deque[float] = deque()
        streak = 0
        while True:
            begun = time.monotonic()
            try:
                crash = self._serve(runner)
            except BaseException as failure:  # a fault of ringmill's own, or MemoryError: treated as the worker's
                crash = failure
            if self.core.is_inherited:
                return  # the child of a fork that an operation made: the worker is the parent's
            if runner.at_hand is not None:
                runner.fail(crash or BrokenPool(f"{runner.name} broke down"), False)
            runner.set_alive(False)
            self._cleanup(runner)
            if crash is None:
                return
            if time.monotonic() - begun >= self.settings.restart_period:
                streak = 0
            streak = self._restart(runner, crash, crashes, streak)
            if streak < 0:
                self._retire(runner)
                return
            if streak == 0:
                return
            crash = None  # it holds a traceback, and that the operation
            runner.set_alive(True)

    def _serve(self, runner: Runner) -> BaseException | None:
        """Runs operations until the pool ends: None; or until the worker is broken: the error that broke it.

        See dispatch.pyx for what the runner does between two calls of `process`.
        """
        process = runner.worker.process
        if self.settings.context:
            process = _in_its_context(process)
        try:
            while True:
                try:
                    for op in runner:
                        process(op)
                        del op
                    return runner.crash
                except BaseException as error:
                    op = runner.at_hand  # or None: then it is not out of `process`
                    if op is None or self.core.is_inherited:
                        raise
                    # The traceback begins with this frame, and stays so: two workers may raise one exception at once.
                    crash = self._judge(runner, op, error, True)
                    op = None
                    if crash is not None:
                        return crash
        finally:
            runner.rest()

    def _restart(self, runner: Runner, crash: BaseException, crashes: deque[float], streak: int) -> int:
        """Brings a crashed worker up again: returns the new length of its streak of crashes.

        0 if the pool ended meanwhile, -1 if the worker is lost.
        """
        while True:
            now = time.monotonic()
            crashes.append(now)
            while crashes and crashes[0] < now - self.settings.restart_period:
                crashes.popleft()
            if self.settings.max_restarts is not None and len(crashes) > self.settings.max_restarts:
                period = self.settings.restart_period
                logger.error("worker %s crashed %d times in %g s", runner.name, len(crashes), period, exc_info=crash)
                return -1
            streak += 1
            pause = 0.0 if streak == 1 else min(self.settings.restart_pause * 2 ** min(streak - 2, 60), LONGEST_PAUSE)
            logger.warning("worker %s crashed, restarts in %g s", runner.name, pause, exc_info=crash)
            if self.core.pause(pause):
                return 0
            runner.count_restart()
            error = self._init(runner.worker)
            if error is None:
                return streak
            self._cleanup(runner)
            crash = error

    def _retire(self, runner: Runner) -> None:
        with self.lock:
            self.left[runner.index] = False
        broken = not self.core.retire(runner)
        if broken:
            self.core.break_down()
        logger.error("worker %s is retired", runner.name)
        if broken:
            logger.critical("%r has lost its last worker and is broken", self)

    def _init(self, worker: Worker[Any]) -> BaseException | None:
        try:
            worker.init()
        except BaseException as error:
            return error
        return None

    def _cleanup(self, runner: Runner) -> None:
        try:
            runner.worker.cleanup()
        except BaseException:
            logger.exception("cleanup of worker %s raised", runner.name)

    # ------------------------------------------------------------------------------------------------------------
    # what becomes of an operation that did not succeed; on its worker's thread

    def _judge(self, runner: Runner, op: Operation, error: BaseException, raised: bool) -> BaseException | None:
        """Ends the operation at hand or puts it back. Returns the error if the worker is broken by it.

        `raised`: `process` raised the error; otherwise a Task recorded it.
        """
        try:
            if raised:
                if isinstance(error, Reject):
                    return self._reject(runner, op, error)
                if isinstance(error, (Retry, *runner.worker.retry_on)):
                    return self._retry(runner, op, error)
                if not isinstance(error, Exception):
                    runner.fail(error, False)
                    return error
            return self._fail(runner, op, error)
        except BaseException as fault:
            # Out of memory, or a hook that broke what it must not. The operation must not be lost for it.
            if runner.at_hand is not None:
                runner.fail(error, False)
            return fault

    def _fail(self, runner: Runner, op: Operation, error: BaseException) -> BaseException | None:
        broken: BaseException | None = None
        handles = type(runner.worker).handle_error is not Worker.handle_error
        if handles:
            context = op._context if self.settings.context else None
            try:
                if context is None:
                    runner.worker.handle_error(error, op)
                else:
                    context.run(runner.worker.handle_error, error, op)
            except BaseException as raised:
                broken = raised
        runner.fail(error, handles)
        return broken

    def _retry(self, runner: Runner, op: Operation, error: BaseException) -> BaseException | None:
        tries = runner.count_try()
        try:
            op.increment_try()
        except BaseException:
            logger.exception("%s.increment_try() raised", type(op).__qualname__)
        if self.settings.max_tries is not None and tries >= self.settings.max_tries:
            exhausted = RetriesExhausted(f"gave up on {op!r} after {tries} tries")
            exhausted.__cause__ = error
            return self._fail(runner, op, exhausted)
        delay = error.delay if isinstance(error, Retry) else None
        if delay is None and self.settings.backoff is not None:
            try:
                delay = float(self.settings.backoff(tries))
            except BaseException as raised:
                return self._fail(runner, op, raised)
        record = runner.redrive
        rejected = record.rejected if record is not None else None
        had = _union(record.had if record is not None else None, self._row(runner))
        # Lists, here as elsewhere: in a generator that finds no memory CPython 3.12 and 3.13 crash.
        if True not in [other.is_alive and not had[other.index] and not (rejected and rejected[other.index])
                        for other in self.core.runners]:
            had = self._row(runner)  # all have had it: it starts over
        if delay is None or not delay > 0:
            runner.put_back(had, rejected, False)
        else:
            record = runner.put_back(had, rejected, True)
            try:
                self.timer.add(record, delay)
            except BaseException:  # no thread, no memory: at once is better than never
                self.core.due(record)
                raise
        return None

    def _reject(self, runner: Runner, op: Operation, error: BaseException) -> BaseException | None:
        record = runner.redrive
        me = bytes([index == runner.index for index in range(len(self.core.runners))])
        rejected = _union(record.rejected if record is not None else None, me)
        with self.lock:
            routable = True in [left and not no for left, no in zip(self.left, rejected, strict=True)]
        if not routable:
            unroutable = Unroutable(f"every worker has rejected {op!r}")
            unroutable.__cause__ = error
            return self._fail(runner, op, unroutable)
        runner.put_back(record.had if record is not None else None, rejected, False)
        return None

    def _row(self, runner: Runner) -> bytes:
        """By index: whether that worker is, or is equal to, this one. Asked once, on this worker's thread."""
        row = self.rows.get(runner.index)
        if row is None:
            row = bytes([other is runner or self._equal(runner, other) for other in self.core.runners])
            self.rows[runner.index] = row
        return row

    def _equal(self, runner: Runner, other: Runner) -> bool:
        try:
            return bool(runner.worker.equal(other.worker))
        except BaseException:
            logger.exception("equal of worker %s raised", runner.name)
            return False


def _union(mask: bytes | None, more: bytes) -> bytes:
    return more if mask is None else bytes([a | b for a, b in zip(mask, more, strict=True)])


def _in_its_context(process: Callable[[Any], None]) -> Callable[[Any], None]:
    """`process`, called in the context of who submitted the operation. A Task enters that by itself."""

    def process_in_context(op: Any) -> None:
        context = op._context
        if context is None or isinstance(op, Task):
            process(op)
        else:
            context.run(process, op)

    return process_in_context
