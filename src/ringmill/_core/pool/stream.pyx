# The read end of an execute or a wrap: finished operations, each once, in the order of finishing or of the source.
#
# A Stream is the reader's handle on a feed. The pool knows the feed only, so a stream that is dropped is collected, and
# its feed is flagged for a worker to settle.
#
# Where the reader draws the source (wrap of an iterable), it has the turn while it draws: one reader at a time. A read
# draws one operation for the one that it takes, and more, up to the buffer, while nothing is ready; then it gives the
# turn back, and waits in `ready`'s queue until an operation is ready or until it could draw: the turn is free, the source
# not exhausted, and a place free. Who finds the turn taken waits likewise. So a reader that does not go on (a task whose
# loop has stopped, a source that blocks) keeps no other reader from an operation that is ready. Whoever gives the turn
# back, or takes an operation and so frees a place, notifies `ready`'s queue after that, and every look of a waiter is
# sequentially consistent, as wait_queue.pyx wants them. Between source and reader there are put_count(pending) - get_count(ready), so the
# rings' own positions keep the bound. Drawing runs the user's code; what that raises is kept by the feed and reaches
# the reader after all that was accepted before it. KeyboardInterrupt and its like are raised at once as well.
#
# Where a thread draws, it takes a ticket for each operation before it draws it, and a read gives one back. Where the
# workers draw (a RingBuffer), a read makes a place, so it notifies the workers.
#
# An async reader does the same in awaits. It may share a stream with threads and with tasks of other loops; whom an async
# source is drawn for is a task. A cancelled await has taken no operation; one that was cancelled while it drew has passed the
# cancellation through the source, and ends the stream, with an error, only if that ended the source.
#
# turn: a binary lock, held while the source runs. Its own queue is for who closes an async source: no task may draw it then.

import _thread
import queue
from types import GenericAlias

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport (
    memory_order_acq_rel,
    memory_order_acquire,
    memory_order_relaxed,
    memory_order_release,
    memory_order_seq_cst,
)

from ringmill._core.platform.gil_atomics cimport exchange32, put32
from ringmill._core.pool.context cimport capture
from ringmill._core.pool.operation cimport (
    CANCELLED,
    NEW,
    OperationBase,
    PyTypeObject,
    accept,
    hook_raised,
    is_operation,
    own_error,
    renew,
    raise_kept,
    traverseproc,
    with_traceback,
)
from ringmill._core.ring.ring cimport (
    DONE,
    NOT_NOW,
    SHUT,
    get_count,
    has_items,
    is_shut,
    size,
    try_get,
    try_put,
)
from ringmill._core.pool.work_source cimport is_unsuccessful, take_over
from ringmill._core.ring.ring_buffer cimport checked_max
from ringmill._core.waiting.event_loop cimport await_for, checkpoint, in_trio, running_task
from ringmill._core.platform.primitives cimport now_ns, steal
from ringmill._core.waiting.wait_queue cimport (
    NEVER,
    PyThread_get_thread_ident,
    acquire,
    deadline_of,
    epoch_now,
    init_queue,
    notify,
    release,
    visit_sleepers,
    visitproc,
    wait_for,
)

from ringmill.arguments import describe
from ringmill.errors import Closed, OperationReused, PoolNotRunning

cdef object Empty = queue.Empty
cdef object allocate_lock = _thread.allocate_lock
cdef double LIFECYCLE_SLICE_S = 1.0
cdef str CLOSING_RAISED = "the source of a stream, a %s, raised while it was closed"

cdef extern from *:
    """
    #define RINGMILL_EXCHANGE_CORE(pool, value) ringmill_exchange((PyObject**)&(pool)->_core, (value))
    """
    PyObject* exchange_core "RINGMILL_EXCHANGE_CORE"(PoolBase pool, PyObject* core) noexcept

cdef extern from "Python.h":
    PyObject* PyIter_Next(object iterator) except? NULL
    PyObject* next_raw "PyIter_Next"(PyObject* iterator) noexcept  # what it raises stays to be looked at
    PyObject* PyErr_Occurred()
    bint PyErr_GivenExceptionMatches(PyObject* error, PyObject* classes) noexcept
    PyObject* PyExc_Exception
    PyTypeObject* Py_TYPE(PyObject* o) nogil


cdef int check_raised() except? -1:
    # Raises what a function declared as noexcept has raised.
    return -1 if PyErr_Occurred() else 0


cdef int turn_attempt(void* stream) noexcept:
    # seq_cst: a sleeper's last look; takes over what the last reader wrote
    return not exchange32((<Stream>stream).busy, 1, memory_order_seq_cst)

cdef int turn_more(void* stream) noexcept:
    return not (<Stream>stream).busy.load(memory_order_seq_cst)  # seq_cst: as notify


cdef enum:
    TURN = 3                    # beside the ring's results: nothing is ready, and the caller has the turn now

cdef struct Reading:            # a read of a source that its readers draw, which has to wait
    PyObject* stream
    PyObject* op

cdef inline bint _drawable(Stream stream) noexcept:
    # Whether a reader that gets the turn would draw. seq_cst, all of it: a waiter's last look
    return not is_shut(stream.source.pending.ring) and stream.source.free_places() > 0

cdef int read_attempt(void* raw) noexcept:
    cdef Reading* reading = <Reading*>raw
    cdef Stream stream = <Stream>reading.stream
    cdef int result = try_get(stream.source.ready.ring, &reading.op, NULL)
    if result == NOT_NOW and _drawable(stream) and turn_attempt(reading.stream):
        return TURN
    return result

cdef int read_more(void* raw) noexcept:
    cdef Stream stream = <Stream>(<Reading*>raw).stream
    return has_items(stream.source.ready.ring) or turn_more((<Reading*>raw).stream) and _drawable(stream)


cdef object accept_drawn(PoolRun core, WorkSource source, object op, bint resets):
    # Accepts what a source gave. Returns None, or the error that ends the source; raises where memory is short only.
    if not isinstance(op, OperationBase):
        return TypeError(f"the source must give Operations, got {describe(op)}")
    context = capture() if core.carries else None  # before it is accepted: this may fail
    if resets and take_over(<OperationBase>op):
        renew(<OperationBase>op, NEW, 0)
    elif resets and is_unsuccessful(<OperationBase>op):
        Py_INCREF(op)  # the stream's, if it gets there
        if source.pass_by(<PyObject*>op):
            return None
        Py_DECREF(op)
        return core.stopped_error()  # ended meanwhile, by the pool or by the reader
    if not accept(<OperationBase>op, core.number):
        return OperationReused(f"the source gave {describe(op)}, which is pending, or finished and not reset")
    if context is not None:
        (<OperationBase>op).set_context(context)
    Py_INCREF(op)  # the ring's, if it gets there
    source.note_position()
    if try_put(source.pending.ring, <PyObject*>op, NULL) != DONE:
        # Ended meanwhile, by the pool or by the reader; it is never full: the places are counted.
        Py_DECREF(op)
        core.withdraw(<OperationBase>op)
        return core.stopped_error()
    notify(&core.idle)
    return None


cdef class Stream:
    """The read end on which finished operations come out: an iterator, each operation once.

    Made by `WorkerPool.execute` and `WorkerPool.wrap`. Operations come in the order in which they finish, or, from a
    wrap with `ordered=True`, in the order of the source; failed and cancelled ones come too. Any number of threads
    may read and share them.
    """

    def __cinit__(self, PoolRun core not None, WorkSource source not None, *, iterator=None, bint wraps=False, bint draws=False, bint resets=False,
                  bint awaits=False):
        if source.ready is None:
            raise TypeError("feed must be one that can be read")
        self.core = core
        self.source = source
        self.iterator = iterator
        self.wraps = wraps
        self.draws = draws
        self.awaits = awaits
        self.async_iterator = draws and hasattr(type(iterator), "__anext__")
        self.resets = resets
        init_queue(&self.turn)
        # relaxed: published with the object
        self.busy.store(0, memory_order_relaxed)
        self.reader.store(0, memory_order_relaxed)
        self.closed_by_reader.store(0, memory_order_relaxed)

    def __init__(self, *args, **kwargs):
        pass

    def __del__(self):
        # The collector may run anywhere, so it only flags the feed; a worker ends it and cancels what is left.
        if self.wraps and self.source is not None and self.core.epoch == epoch_now:
            if not is_shut(self.source.ready.ring) or has_items(self.source.pending.ring):
                self.source.abandoned.store(1, memory_order_release)  # release: pairs with next_feed
                notify(&self.core.idle)

    __class_getitem__ = classmethod(GenericAlias)

    # -----------------------------------------------------------------------------------------------------------

    cdef int taken(self, Py_ssize_t count) except -1:
        # So many were read: places became free.
        cdef PyObject* permit = NULL
        if self.source.external:
            notify(&self.core.idle)
        elif self.source.permits is not None:
            while count > 0 and try_get(self.source.permits.ring, &permit, NULL) == DONE:
                Py_DECREF(<object>permit)  # was the ring's
                count -= 1
            notify(&self.source.permits.not_full)
        elif self.draws:
            notify(&self.source.ready.not_empty)  # a reader that waits there may draw now
        return 0

    cdef object finish(self):
        # All that will come out has been read.
        self.core.remove(self.source)
        # acquire: pairs with close
        if self.source.failure is None or self.closed_by_reader.load(memory_order_acquire):
            return
        if not self.source.from_source:
            # The pool has ended, which all its streams' readers are told at the same moment: each by an object of its own.
            raise own_error(self.source.failure)
        # acq_rel: of several readers one is told
        if not exchange32(self.source.granted_flag, 1, memory_order_acq_rel):
            raise with_traceback(self.source.failure, self.source.trace)

    cdef int read(self, PyObject** op, int64_t deadline, bint block) except -1:
        cdef int result
        if self.core.epoch != epoch_now:
            raise self.core.stopped_error()
        if not self.draws:
            result = self.read_ready(op, deadline, block)
        elif self.awaits:
            raise self.not_here()
        else:
            result = self.read_drawn(op, deadline, block)
        if result == DONE:
            if self.wraps:
                self.taken(1)
        elif result == SHUT:
            self.finish()
        return result

    cdef int read_ready(self, PyObject** op, int64_t deadline, bint block) except -1:
        cdef int result = try_get(self.source.ready.ring, op, NULL)
        if result != NOT_NOW or not block or (deadline != NEVER and now_ns() >= deadline):
            return result
        entered = self.core.enter_wait(None, self.source, False, False, deadline != NEVER)
        if entered is None:
            return self.source.ready.get_item(op, deadline, True)
        try:
            return self.source.ready.get_item(op, deadline, True)
        finally:
            self.core.leave_wait(entered)

    cdef int read_drawn(self, PyObject** op, int64_t deadline, bint block) except -1:
        # Where the readers draw the source.
        cdef Reading reading
        cdef int result = TURN if self.try_turn(PyThread_get_thread_ident()) else NOT_NOW
        reading.stream = <PyObject*>self
        while True:
            if result == TURN:
                # relaxed: equal only if this very thread wrote it
                self.reader.store(PyThread_get_thread_ident(), memory_order_relaxed)
                try:
                    result = self.read_drawing(op, deadline, block)
                finally:
                    self.give_turn()
            else:
                result = try_get(self.source.ready.ring, op, NULL)
            if result != NOT_NOW or not block or (deadline != NEVER and now_ns() >= deadline):
                return result
            if self.core.epoch != epoch_now:
                raise self.core.stopped_error()  # the source forked, and this is the child
            entered = self.core.enter_wait(None, self.source, False, False, deadline != NEVER)
            try:
                result = wait_for(&self.source.ready.not_empty, read_attempt, read_more, &reading, NULL, 0, deadline)
            finally:
                if entered is not None:
                    self.core.leave_wait(entered)
            if result != TURN:
                op[0] = reading.op
                return result

    cdef int read_drawing(self, PyObject** op, int64_t deadline, bint block) except -1:
        # With the turn. Does not wait, but for the source.
        cdef int result
        if self.iterator is not None and self.source.free_places() > 0:
            self.draw()  # one for the one that we take
        while True:
            result = try_get(self.source.ready.ring, op, NULL)
            if result != NOT_NOW:
                return result
            if self.iterator is None or self.source.free_places() <= 0:
                return NOT_NOW
            if not block or (deadline != NEVER and now_ns() >= deadline):
                return NOT_NOW
            self.draw()

    cdef object not_here(self):
        return TypeError(f"the source of {describe(self)} is an async iterable: read it with `async for`, or `aget`")

    cdef bint try_turn(self, uint64_t me) except -1:
        # `me`: the thread, or the task that draws an async source; 0: neither is to be checked.
        if turn_attempt(<void*>self):
            self.reader.store(me, memory_order_relaxed)  # relaxed: equal only if this very thread, or task, wrote it
            return True
        if me and self.reader.load(memory_order_relaxed) == me:  # relaxed: as above
            raise RuntimeError("the source of a stream reads that stream")
        return False

    cdef int give_turn(self) except -1:
        self.reader.store(0, memory_order_relaxed)  # relaxed: as try_turn
        put32(self.busy, 0, memory_order_seq_cst)  # seq_cst: before the look at the waiters; publishes what we wrote
        notify(&self.turn)
        notify(&self.source.ready.not_empty)
        # seq_cst: after the release, pairs with close_quietly: it gets the turn, or we see that the reader is gone
        if not self.awaits and self.closed_by_reader.load(memory_order_seq_cst) and turn_attempt(<void*>self):
            self.drop_source()
        return 0

    cdef int drop_source(self) except -1:
        # With the turn, which it gives back. The reader is gone: a source that nobody else refers to goes, too.
        iterator = self.iterator
        self.iterator = None
        put32(self.busy, 0, memory_order_seq_cst)  # seq_cst: as give_turn
        notify(&self.turn)
        notify(&self.source.ready.not_empty)
        return 0

    cdef bint draw(self) except -1:
        # Draws one operation and hands it to the workers. False: the source is exhausted, or the pool has stopped.
        cdef PyObject* raw
        if is_shut(self.source.pending.ring):
            self.iterator = None
            return False
        raw = next_raw(<PyObject*>self.iterator)
        if raw != NULL and self.hand_over(raw):
            return True
        try:
            if raw == NULL:
                check_raised()
                return self.end_source(None)
            op = steal(raw)
        except BaseException as raised:
            return self.iterator_raised(raised)
        return self.drawn(op)

    cdef bint hand_over(self, PyObject* op) except -1:
        # The common case of accept_drawn: new, and without a context. If True, the caller's reference is the ring's.
        if <PyObject*>Py_TYPE(op) != <PyObject*>self.plain_type:
            if self.resets or self.core.carries or not is_operation(op):
                return False
            self.plain_type = type(<object>op)
        if not accept(<OperationBase>op, self.core.number):
            return False
        if try_put(self.source.pending.ring, op, NULL) == DONE:
            notify(&self.core.idle)
            return True
        self.core.withdraw(<OperationBase>op)  # ended since we looked: accept_drawn will say so
        return False

    cdef bint drawn(self, object op) except -1:
        try:
            error = accept_drawn(self.core, self.source, op, self.resets)
        except BaseException as raised:
            return self.iterator_raised(raised)
        return True if error is None else self.end_source(error)

    cdef bint end_source(self, object error) except -1:
        # An error of the source's ends it early, so it is closed; an async one by `_draw`.
        iterator = self.iterator
        self.iterator = None
        try:
            if error is not None and not self.async_iterator and not self.source.ended():
                close_iterator(iterator)
        finally:
            self.source.end_source(error)
        return False

    cdef bint iterator_raised(self, object error) except -1:
        cdef bint at_once = not PyErr_GivenExceptionMatches(<PyObject*>error, PyExc_Exception)
        if at_once:
            # Before the end, which lets other readers raise it. release: as the exchange in finish.
            self.source.granted_flag.store(1, memory_order_release)
        self.end_source(error)
        if at_once:
            raise error
        return False

    # -----------------------------------------------------------------------------------------------------------
    # async readers

    async def _take_turn(self):
        # Waits for the turn, to close the source. While an async source is drawn, the holder is known by its task.
        cdef void* task = running_task() if self.async_iterator else NULL
        if not turn_attempt(<void*>self):
            if task and self.reader.load(memory_order_relaxed) == <uint64_t>task:  # relaxed: as try_turn
                raise RuntimeError("the source of a stream reads that stream")
            await await_for(&self.turn, turn_attempt, turn_more, <void*>self, self)
        self.reader.store(<uint64_t>task, memory_order_relaxed)  # relaxed: as try_turn

    cdef bint draw_here(self) except -1:
        # An iterable's next, for an async reader that has the turn.
        self.reader.store(PyThread_get_thread_ident(), memory_order_relaxed)  # relaxed: as try_turn
        try:
            return self.draw()
        finally:
            self.reader.store(0, memory_order_relaxed)  # relaxed: as try_turn

    async def _draw(self):
        # As draw, of an async source. A generator that is given up on is closed: its loop's collector would have to do it.
        iterator = self.iterator
        if is_shut(self.source.pending.ring):
            self.iterator = None
            await _close_iterator(iterator)
            return
        try:
            op = await iterator.__anext__()
        except StopAsyncIteration:
            self.end_source(None)
        except Exception as raised:
            self.iterator_raised(raised)
            await _close_failed_source(iterator)
        except BaseException as raised:
            # Most likely a cancelled await. An async generator is over then; any other source may go on.
            if getattr(iterator, "ag_frame", iterator) is None:
                error = RuntimeError("the source was ended by a read that was cancelled while it drew")
                error.__cause__ = raised
                self.end_source(error)
            raise
        else:
            if not self.drawn(op):
                await _close_failed_source(iterator)

    async def _read(self):
        # As read, and gives the operation; None at the end.
        cdef PyObject* op = NULL
        cdef int result
        cdef void* task
        cdef Reading reading
        point = checkpoint()
        if point is not None:
            await point
        if self.core.epoch != epoch_now:
            raise self.core.stopped_error()
        if not self.draws:
            found = await self._read_ready()
        else:
            task = running_task() if self.async_iterator else NULL
            reading.stream = <PyObject*>self
            result = TURN if self.try_turn(<uint64_t>task) else NOT_NOW
            while True:
                if result == TURN:
                    self.reader.store(<uint64_t>task, memory_order_relaxed)  # relaxed: as try_turn
                    try:
                        if self.iterator is not None and self.source.free_places() > 0:  # one for the one that we take
                            if self.async_iterator:
                                await self._draw()
                            else:
                                self.draw_here()
                        while True:
                            result = try_get(self.source.ready.ring, &op, NULL)
                            if result != NOT_NOW or self.iterator is None or self.source.free_places() <= 0:
                                break
                            if self.async_iterator:
                                await self._draw()
                            else:
                                self.draw_here()
                    finally:
                        self.give_turn()
                else:
                    result = try_get(self.source.ready.ring, &op, NULL)
                if result != NOT_NOW:
                    break
                if self.core.epoch != epoch_now:
                    raise self.core.stopped_error()  # as in read_drawn
                entered = self.core.enter_wait(None, self.source, False, True, False)
                try:
                    result = await await_for(&self.source.ready.not_empty, read_attempt, read_more, &reading, self)
                finally:
                    if entered is not None:
                        self.core.leave_wait(entered)
                if result != TURN:
                    op = reading.op
                    break
            found = steal(op) if result == DONE else None
        if found is None:
            self.finish()
        elif self.wraps:
            self.taken(1)
        return found

    async def _read_ready(self):
        # As read_ready, and gives the operation; None at the end.
        cdef PyObject* op = NULL
        cdef int result = try_get(self.source.ready.ring, &op, NULL)
        if result == DONE:
            return steal(op)
        if result == SHUT:
            return None
        entered = self.core.enter_wait(None, self.source, False, True, False)
        try:
            return await self.source.ready.aget()
        except Closed:
            return None
        finally:
            if entered is not None:
                self.core.leave_wait(entered)

    async def aget(self):
        """Takes the next operation, awaiting it: `get` for a task of asyncio or trio.

        Raises as `get`. A cancelled await has taken none. The source of a `wrap` is drawn in this task: an iterable as
        `get` does, an async iterable with `await`. Any number of tasks may read, of any loops, beside threads.
        """
        op = await self._read()
        if op is None:
            raise Closed(f"all operations have been read: {describe(self)}")
        return op

    def __aiter__(self):
        return self

    async def __anext__(self):
        cdef PyObject* op = NULL
        if not self.draws and self.core.epoch == epoch_now and not in_trio():  # the short way; trio wants a checkpoint
            if try_get(self.source.ready.ring, &op, NULL) == DONE:
                if self.wraps:
                    self.taken(1)
                return steal(op)
        try:
            found = await self._read()
        except StopAsyncIteration as error:  # a source that is no generator: it must not look like the end
            raise RuntimeError("the source of a stream raised StopAsyncIteration") from error
        if found is None:
            raise StopAsyncIteration
        return found

    # -----------------------------------------------------------------------------------------------------------

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* op = NULL
        if not self.draws and self.core.epoch == epoch_now:  # the short way, where one is ready
            if try_get((<WorkSource><PyObject*>self.source).ready.ring, &op, NULL) == DONE:
                if self.wraps:
                    self.taken(1)
                return steal(op)
        if self.read(&op, NEVER, True) != DONE:
            raise StopIteration
        return steal(op)

    def get(self, timeout=None):
        """Takes the next operation, waiting up to `timeout` seconds for it (None: without limit).

        Raises `queue.Empty` when none came in time; `Closed` at the end, or what the stream ends with: the source's
        own error, `PoolNotRunning`, `BrokenPool`. Safe from any thread.
        """
        cdef PyObject* op = NULL
        cdef int result = self.read(&op, deadline_of(timeout), True)
        if result == SHUT:
            raise Closed(f"all operations have been read: {describe(self)}")
        if result == NOT_NOW:
            raise Empty
        return steal(op)

    def get_many(self, max=None, timeout=None):
        """Waits for the first operation, then takes what is ready, up to `max`, as a list.

        Raises as `get`. Safe from any thread.
        """
        cdef Py_ssize_t limit = self.source.ready.capacity
        cdef Py_ssize_t length
        cdef int64_t deadline = deadline_of(timeout)
        if max is not None:
            limit = min(limit, checked_max(max))
        if self.draws:
            return self.get_many_drawing(limit, deadline)
        ops = [None]  # made before anything is taken, which would be lost if there were no memory for it
        ops[0] = self.get(None if deadline == NEVER else (deadline - now_ns()) / 1e9 if deadline > now_ns() else 0)
        ops = self.source.ready._take(min(limit - 1, size(self.source.ready.ring)), ops)
        if self.wraps and len(ops) > 1:
            self.taken(len(ops) - 1)
        return ops

    cdef list get_many_drawing(self, Py_ssize_t limit, int64_t deadline):
        # Draws as many as are ready before it takes any: what the source raises cannot lose one that was taken.
        cdef PyObject* op = NULL
        cdef Py_ssize_t length
        cdef int result
        if self.core.epoch != epoch_now:
            raise self.core.stopped_error()
        if self.awaits:
            raise self.not_here()
        ops = [None]  # as in get_many
        if self.try_turn(PyThread_get_thread_ident()):
            try:
                length = min(limit - 1, size(self.source.ready.ring))
                while length > 0 and self.iterator is not None and self.source.free_places() > 0:
                    self.draw()
                    length -= 1
            finally:
                self.give_turn()
        result = self.read_drawn(&op, deadline, True)
        if result == DONE:
            ops[0] = steal(op)
            ops = self.source.ready._take(min(limit - 1, size(self.source.ready.ring)), ops)
            self.taken(len(ops))
            return ops
        if result == NOT_NOW:
            raise Empty
        self.finish()
        raise Closed(f"all operations have been read: {describe(self)}")

    def close(self):
        """The reader is gone: what has not begun is cancelled, a wrap draws no more. Idempotent, never blocks.

        A KeyboardInterrupt in an overridden `done()`, on the main thread, is raised once all have ended.
        """
        self.close_quietly()
        raise_kept()

    cdef int close_quietly(self) except -1:
        if self.core.epoch != epoch_now:
            return 0
        self.closed_by_reader.store(1, memory_order_seq_cst)  # seq_cst: pairs with finish, and with give_turn
        self.source.end(None)
        self.source.ready.close_ring()
        self.core.end_unbegun(self.source, CANCELLED, None)
        self.core.remove(self.source)
        notify(&self.core.idle)
        self.source.ready.shutdown(immediate=True)
        if self.draws and not self.awaits and turn_attempt(<void*>self):
            self.drop_source()
        return 0

    async def aclose(self):
        """`close`, and closes an async source too, an async generator's `finally` included, when no task draws it."""
        self.close_quietly()
        try:
            if self.awaits:
                await self._take_turn()
                try:
                    iterator = self.iterator
                    self.iterator = None
                    await _close_iterator(iterator)
                finally:
                    self.give_turn()
        finally:
            raise_kept()

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, error, trace):
        await self.aclose()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def total(self):
        """How many operations come out in all, those already read included; None while that is not known."""
        total = self.source.total.load(memory_order_acquire)  # acquire: pairs with end
        return None if total < 0 else total

    @property
    def ready(self):
        """How many operations can be read now; a snapshot."""
        return size(self.source.ready.ring)

    def __len__(self):
        """`total`, for progress bars; TypeError while it is not known."""
        total = self.total
        if total is None:
            raise TypeError("how many operations will come out is not known yet: `ready` says how many can be read now")
        return total

    def __bool__(self):
        return True

    def __contains__(self, item):
        raise TypeError("`in` would consume the stream's operations: iterate it instead")

    @property
    def closed(self):
        """Whether nothing will be added: all have come out, or the reader closed it. What is ready can be read."""
        return is_shut(self.source.ready.ring)

    def __repr__(self):
        state = "closed" if is_shut(self.source.ready.ring) else "open"
        total = self.total
        read = get_count(self.source.ready.ring)
        return f"<Stream {state}, {size(self.source.ready.ring)} ready, {read} read of {'?' if total is None else total}>"




# The garbage collector: Cython knows nothing of the tasks that wait for the turn (rule 11).
cdef PyTypeObject* stream_type = <PyTypeObject*>Stream
cdef traverseproc base_traverse = stream_type.tp_traverse


cdef int stream_traverse(PyObject* stream, visitproc visit, void* arg) noexcept:
    cdef int status = base_traverse(stream, visit, arg)
    return status or visit_sleepers(&(<Stream>stream).turn, visit, arg)


stream_type.tp_traverse = stream_traverse


async def _close_iterator(iterator):
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()


async def _close_failed_source(iterator):
    # The reader is to be told the error that the stream ends with, and not what closing raises.
    try:
        await _close_iterator(iterator)
    except Exception as error:
        hook_raised(error, CLOSING_RAISED, source_name(iterator))


cdef int close_iterator(object iterator) except -1:
    # As above, for an iterable.
    try:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
    except Exception as error:
        hook_raised(error, CLOSING_RAISED, source_name(iterator))
    return 0


cdef object source_name(object iterator):
    return type(iterator).__qualname__


def draw_on_thread(PoolRun core not None, WorkSource source not None, iterator, bint resets):
    """Draws a source on the calling thread, one ticket each, until it is exhausted or the feed has ended."""
    cdef PyObject* raw
    try:
        while True:
            try:
                source.permits.put(None)
            except Closed:  # the feed has ended; what the source raises may be a Closed, too
                error = None
                break
            raw = PyIter_Next(iterator)
            if raw == NULL:
                error = None
                break
            op = steal(raw)
            if core.epoch != epoch_now:
                return  # the source forked, and this is the child
            error = accept_drawn(core, source, op, resets)
            if error is not None:
                break
            raw = NULL
            op = None
    except BaseException as raised:
        error = raised
    try:
        if error is not None and not source.ended():
            close_iterator(iterator)
    finally:
        source.end_source(error)


# ---------------------------------------------------------------------------------------------------------------
# what WorkerPool inherits: the calls that every operation goes through

cdef class PoolBase:
    """The compiled base of WorkerPool."""

    def __cinit__(self):  # whatever WorkerPool is given: Cython's copy of *args crashes without memory
        self._lifecycle = allocate_lock()

    def _alone(self, call, deadline):
        """Gives what `call(deadline)` gives, called by one thread at a time; None if the deadline passes before its turn.

        Compiled, since Ctrl-C can come between any two bytecodes: as the lock is acquired, and it would stay locked.
        """
        cdef double left = LIFECYCLE_SLICE_S
        cdef uint64_t me = PyThread_get_thread_ident()
        lock = self._lifecycle  # ours to release, also in the child of a fork, which has another
        if self._starter.load(memory_order_relaxed) == me:  # relaxed: equal only if this very thread wrote it
            raise RuntimeError(f"{describe(self)} is being started by this very thread")
        # In slices: a signal that comes just before a lock waits does not end that wait.
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
        # A run begins: its core takes the calls from now on. It stays after the end, to say that.
        cdef PyObject* old
        Py_INCREF(core)  # the field's
        acquire(&self._lock)
        old = exchange_core(self, <PyObject*>core)
        release(&self._lock)
        Py_DECREF(<object>old)  # was the field's

    def _after_fork(self):
        # relaxed: the child has one thread yet
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

    def _wrap(self, PoolRun core not None, WorkSource source not None, iterator, bint draws, bint resets, bint awaits=False):
        core.add(source)
        return Stream(core, source, iterator=iterator, wraps=True, draws=draws, resets=resets, awaits=awaits)

    def do(self, op, timeout=None):
        """Hands one operation over to the workers and returns it.

        Blocks while the queue is full, at most `timeout` seconds (None: without limit), then raises `queue.Full`;
        from a worker of this pool it never blocks. `PoolNotRunning` when the pool does not run, also for those
        blocked when it stops; their operation stays new. `OperationReused` for one that is pending, or finished and
        not reset. Safe from any thread.
        """
        cdef int64_t deadline = NEVER
        if not isinstance(op, OperationBase):
            raise TypeError(f"op must be an Operation, not {describe(op)}")
        if timeout is not None:
            deadline = deadline_of(timeout)
        return self._running().do(<OperationBase>op, deadline)

    async def ado(self, op):
        """Hands one operation over, awaiting room in the queue: `do` for a task of asyncio or trio.

        Raises as `do`, but for `queue.Full`. A cancelled await has handed nothing over: the operation stays new.
        """
        if not isinstance(op, OperationBase):
            raise TypeError(f"op must be an Operation, not {describe(op)}")
        point = checkpoint()
        if point is not None:
            await point
        return await self._running().ado(op)

    def execute(self, ops):
        """Hands a batch over, all or none, without blocking; returns the `Stream` on which the operations come out.

        Lists and checks the operations first: TypeError for what is none, `OperationReused` for one that is pending,
        finished and not reset, or listed twice; then none is accepted. Not bounded by `queue_size`. The stream closes
        after the last operation, failed ones included. `PoolNotRunning` when the pool does not run. Safe from any
        thread.
        """
        cdef PoolRun core = self._running()
        return Stream(core, core.execute(ops))
