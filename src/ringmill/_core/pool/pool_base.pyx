# PoolBase: the compiled base of WorkerPool, with the calls that every operation goes through: do, ado, execute.
#
# May use the rest of `pool`, `waiting` and `platform`. pool.py checks arguments and starts and ends runs.
#
# `_core` is the current or the last run of the pool, and may be replaced by a thread that starts the pool while another
# submits, so it is read and written under `_lock`. `_lifecycle` is held by the thread that starts the pool; `_starter`
# names that thread, so that a start() inside of its own start() (a signal handler, an `init`) is refused instead of
# waiting for itself.

import _thread
import queue
from concurrent.futures import CancelledError

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint64_t
from libcpp.atomic cimport memory_order_relaxed

from ringmill._core.platform.primitives cimport now_ns, steal
from ringmill._core.pool.item_record cimport ItemRecord, new_item_record
from ringmill._core.pool.item_source cimport ItemSource
from ringmill._core.pool.operation cimport (
    FAILED,
    SUCCEEDED,
    ErrorRecord,
    OperationBase,
    is_operation,
    phase_of,
    raisable,
)
from ringmill._core.pool.results cimport new_results
from ringmill._core.pool.stream cimport Stream
from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.waiting.event_loop cimport checkpoint
from ringmill._core.waiting.wait_queue cimport (
    NEVER,
    PyThread_get_thread_ident,
    acquire,
    deadline_of,
    release,
)

from ringmill.arguments import describe
from ringmill.errors import PoolNotRunning

cdef object allocate_lock = _thread.allocate_lock
cdef double LIFECYCLE_SLICE_S = 1.0

cdef extern from *:
    """
    #define RINGMILL_EXCHANGE_CORE(pool, value) ringmill_exchange((PyObject**)&(pool)->_core, (value))
    """
    PyObject* exchange_core "RINGMILL_EXCHANGE_CORE"(PoolBase pool, PyObject* core) noexcept


cdef class PoolBase:
    """The compiled base of WorkerPool."""

    def __cinit__(self):  # ignores WorkerPool's arguments; no *args: Cython's code for them crashes without memory
        self._lifecycle = allocate_lock()

    def _alone(self, call, deadline):
        """Returns `call(deadline)`, called by one thread at a time; None if the deadline passes first.

        Compiled, because Ctrl-C can come between any two bytecodes: just after the lock is acquired, it would stay
        locked.
        """
        cdef double left = LIFECYCLE_SLICE_S
        cdef uint64_t me = PyThread_get_thread_ident()
        lock = self._lifecycle  # a local variable: in the child of a fork, the attribute is another lock
        if self._starter.load(memory_order_relaxed) == me:  # relaxed: equal only if this thread wrote it
            raise RuntimeError(f"{describe(self)} is already being started by this thread")
        # In slices: a signal that comes just before the wait begins does not end that wait.
        while True:
            if deadline is not None:
                left = max(0.0, min(LIFECYCLE_SLICE_S, <double>deadline - now_ns() / 1e9))
            if lock.acquire(True, left):
                break
            if left < LIFECYCLE_SLICE_S:
                return None
        self._starter.store(me, memory_order_relaxed)  # relaxed: as above
        try:
            return call(deadline)
        finally:
            self._starter.store(0, memory_order_relaxed)  # relaxed: as above
            lock.release()

    def _open(self, PoolRun core):
        # A run begins: it takes the calls from now on. It stays here after its end, to raise the right error.
        cdef PyObject* old
        Py_INCREF(core)  # the field's
        acquire(&self._lock)
        old = exchange_core(self, <PyObject*>core)
        release(&self._lock)
        Py_DECREF(<object>old)  # was the field's

    def _after_fork(self):
        # relaxed: the child has only one thread now
        self._lock.held.store(0, memory_order_relaxed)
        self._starter.store(0, memory_order_relaxed)
        self._lifecycle = allocate_lock()

    cdef PoolRun _running(self):
        acquire(&self._lock)
        core = self._core
        release(&self._lock)
        if core is None:
            raise PoolNotRunning(f"{describe(self)} is not running: call start()")
        return core

    def _wrap(self, PoolRun core not None, WorkSource source not None, iterator, bint draws, bint resets,
              bint awaits=False):
        core.add(source)
        return Stream(core, source, iterator=iterator, wraps=True, draws=draws, resets=resets, awaits=awaits)

    def do(self, op, timeout=None):
        """Submits one operation.

        Blocks while the queue is full; a call from one of this pool's own workers never blocks. May be called from any
        thread. If it raises, the operation stays as it was.

        Args:
            op: The operation. It must be new.
            timeout: Seconds to wait for room in the queue; None waits without limit.

        Returns:
            The operation.

        Raises:
            queue.Full: There was no room in time.
            PoolNotRunning: The pool does not run, or stopped while this call waited.
            BrokenPool: The pool is broken.
            OperationReused: The operation is pending, or has ended and was not reset.
        """
        cdef int64_t deadline = NEVER
        if not isinstance(op, OperationBase):
            raise TypeError(f"op must be an Operation, not {describe(op)}")
        if timeout is not None:
            deadline = deadline_of(timeout)
        return self._running().do(<OperationBase>op, deadline)

    async def ado(self, op):
        """Submits one operation, awaiting room in the queue: `do` for a task of asyncio or trio.

        A cancelled await has submitted nothing: the operation stays new.

        Args:
            op: The operation. It must be new.

        Returns:
            The operation.

        Raises:
            PoolNotRunning: The pool does not run, or stopped during the await.
            BrokenPool: The pool is broken.
            OperationReused: The operation is pending, or has ended and was not reset.
            RuntimeError: It has to wait, and no asyncio or trio loop runs on this thread.
        """
        if not isinstance(op, OperationBase):
            raise TypeError(f"op must be an Operation, not {describe(op)}")
        point = checkpoint()
        if point is not None:
            await point
        return await self._running().ado(op)

    def execute(self, ops):
        """Submits a batch of operations, all or none.

        Never blocks; not bounded by `queue_size`. May be called from any thread. The operations are listed and
        validated first; if one is invalid, none is accepted.

        Args:
            ops: An iterable of new operations.

        Returns:
            The `Stream` on which the operations come out as they end, failed ones included. It ends after the last one.

        Raises:
            TypeError: An item is not an Operation.
            OperationReused: An operation is pending, has ended and was not reset, or is listed twice.
            PoolNotRunning: The pool does not run.
            BrokenPool: The pool is broken.
        """
        cdef PoolRun core = self._running()
        return Stream(core, core.execute(ops))

    def _map(self, items, iterator, bint awaits, bint ordered, Py_ssize_t buffer, errors):
        # `iterator`: draws from it, at most `buffer` ahead of the reader; None: accepts the exact list, tuple or range
        # as a whole, or returns None where a range is too long for that.
        cdef PoolRun core = self._running()
        cdef ItemSource source
        if iterator is None:
            source = core.map_items(items, ordered, None, False, core.carries)
            if source is None:
                return None
        else:
            source = core.draw_items(buffer, ordered, None, False, core.carries)
        return new_results(core, source, errors, iterator, awaits)

    def call(self, item, timeout=None):
        """Has a worker process one item, and returns what `process` returned.

        Blocks until the item has ended. May be called from any thread; from one of this pool's own workers it is refused
        when no worker would be left to run the item.

        Args:
            item: Any object but an Operation.
            timeout: Seconds to wait, for room in the queue and for the result together; None waits without limit. When
                they have passed, an item that has not begun is cancelled; the result of one that runs is discarded.

        Returns:
            What `process` returned.

        Raises:
            Exception: What `process` raised, as in `Operation.check`; a StopIteration as the cause of a RuntimeError.
            TimeoutError: The item had not ended in time.
            concurrent.futures.CancelledError: The pool cancelled the item.
            PoolNotRunning: The pool does not run, or stopped while this call waited for room.
            BrokenPool: The pool is broken.
            TypeError: The item is an Operation: submit it with `do`.
        """
        cdef int64_t deadline = NEVER if timeout is None else deadline_of(timeout)
        cdef ItemRecord record = record_for(item)
        try:
            self._running().do(record, deadline)
        except queue.Full:
            raise TimeoutError(f"no room in the queue of {describe(self)} in time") from None
        try:
            done = record.wait(None if deadline == NEVER else max(0.0, (deadline - now_ns()) / 1e9))
        except BaseException:
            record.cancel_quietly()
            raise
        if not done:
            if record.cancel_quietly():
                raise TimeoutError(f"the item had not begun in time, and was cancelled: {describe(item)}")
            raise TimeoutError(f"the item had not ended in time; its result is dropped when it ends: {describe(item)}")
        return result_of(record)

    async def acall(self, item):
        """Has a worker process one item, and returns what `process` returned: `call` for a task of asyncio or trio.

        When the await is cancelled, an item that has not begun is cancelled; the result of one that runs is discarded.

        Args:
            item: Any object but an Operation.

        Returns:
            What `process` returned.

        Raises:
            Exception: What `process` raised, as in `Operation.check`. Other exceptions as in `call`, except TimeoutError.
            RuntimeError: It has to wait, and no asyncio or trio loop runs on this thread.
        """
        cdef ItemRecord record = record_for(item)
        point = checkpoint()
        if point is not None:
            await point
        await self._running().ado(record)
        try:
            await record
        except BaseException:
            record.cancel_quietly()
            raise
        return result_of(record)


cdef ItemRecord record_for(object item):
    cdef PyObject* record
    if is_operation(<PyObject*>item):
        raise TypeError(f"item must be a plain object, not an Operation, got {describe(item)}: submit it with do()")
    record = new_item_record(<PyObject*>item)
    if record == NULL:
        raise_set()
    return <ItemRecord>steal(record)


cdef int raise_set() except -1:
    # Raises what a function declared as noexcept has set.
    return -1


cdef object result_of(ItemRecord record):
    cdef int phase = phase_of(record)
    cdef ErrorRecord error_record
    if phase == SUCCEEDED:
        return record.value
    if phase == FAILED:
        error_record = record.get_error_record()
        error = raisable(error_record)
        if isinstance(error, (StopIteration, StopAsyncIteration)):  # it would end a loop of the caller's
            raise RuntimeError(f"an item raised {type(error).__name__}") from error
        raise error
    raise CancelledError(f"the item was cancelled before it began: {describe(record.item)}")
