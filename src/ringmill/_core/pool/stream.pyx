# Stream: the reading side of `execute` and `wrap`.
# Longer than most files: one class, whose blocking and awaitable reads follow one protocol.
#
# May use the rest of `pool`, `ring`, `waiting` and `platform`.
#
# Results (results.pyx) is a Stream whose reads give the results of items; `op` here is then what such a read takes.
#
# A Stream is the reader's handle on a work source (work_source.pyx). The pool refers to the work source only, so a
# stream that is dropped is collected; its work source is then flagged, and a worker ends it.
#
# Drawing by readers (`wrap` of an iterable). The reader that draws has the turn: one reader at a time. A read draws one
# operation to replace the one that it takes, and more, up to the buffer, while nothing is ready. Then it gives the turn
# back and waits in the queue of `ready` until an operation is ready or until it could draw: the turn is free, the
# source not exhausted, and the buffer has room. A reader that finds the turn taken waits in the same way. So a reader
# that does not go on (a task whose loop has stopped, a source that blocks) keeps no other reader from an operation that
# is ready. A thread that gives the turn back, or takes an operation and so makes room, notifies the queue of `ready`
# after that, and every check of a waiter is sequentially consistent, as wait_queue.pyx requires. The operations between
# source and reader number put_count(pending) - get_count(ready) (and those in WorkSource.passed), so the positions of
# the rings enforce the bound. Drawing runs the user's code. What that raises is kept by the work source and reaches a
# reader after all that was accepted before it; KeyboardInterrupt and other exceptions that are not an Exception are
# raised at once as well.
#
# Drawing by a thread (drawn_by="thread"): the thread takes a permit for each operation before it draws it, and a read
# gives one back. Drawing by workers (a RingBuffer): a read makes room, so it notifies the workers.
#
# Tasks do the same with awaits, and may share a stream with threads and with tasks of other loops. The owner of the
# turn for an async source is known by its task. A cancelled await has taken no operation. A task that is cancelled
# while it draws has passed the cancellation through the source; the stream ends, with an error, only if that ended the
# source.
#
# turn: a binary lock, held while the source runs. Its own wait queue is for the task that closes an async source: no
# task may draw meanwhile.

import queue
from types import GenericAlias

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libcpp.atomic cimport (
    memory_order_acq_rel,
    memory_order_acquire,
    memory_order_relaxed,
    memory_order_release,
    memory_order_seq_cst,
)

from ringmill._core.platform.gil_atomics cimport exchange32, put32
from ringmill._core.pool.context cimport capture
from ringmill._core.pool.run cimport announce
from ringmill._core.pool.operation cimport (
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
from ringmill._core.ring.ring cimport DONE, NOT_NOW, SHUT, try_get, try_put
from ringmill._core.pool.work_source cimport is_unsuccessful, take_over
from ringmill._core.ring.ring_buffer cimport checked_max
from ringmill._core.waiting.event_loop cimport await_for, checkpoint, in_trio, running_task
from ringmill._core.platform.primitives cimport now_ns, steal
from ringmill._core.waiting.wait_queue cimport (
    NEVER,
    PyThread_get_thread_ident,
    deadline_of,
    epoch_now,
    init_queue,
    notify,
    visit_sleepers,
    visitproc,
    wait_for,
)

from ringmill.arguments import describe
from ringmill.errors import Closed, OperationReused

cdef object Empty = queue.Empty
cdef const char* UNREAD = "the results of a map were dropped unread, which cancels its items: keep and read them"
cdef str CLOSING_RAISED = "the source of a stream, a %s, raised while it was closed"

cdef extern from "Python.h":
    PyObject* PyIter_Next(object iterator) except? NULL
    int PyErr_ResourceWarning(PyObject* source, Py_ssize_t stack_level, const char* message) except -1
    PyObject* next_raw "PyIter_Next"(PyObject* iterator) noexcept  # what it raises stays to be looked at
    PyObject* PyErr_Occurred()
    bint PyErr_GivenExceptionMatches(PyObject* error, PyObject* classes) noexcept
    PyObject* PyExc_Exception
    PyTypeObject* Py_TYPE(PyObject* o) nogil


cdef int check_raised() except? -1:
    # Raises the exception that a function declared as noexcept has set.
    return -1 if PyErr_Occurred() else 0


cdef int turn_attempt(void* stream) noexcept:
    # seq_cst: a waiter's last check; acquires what the last owner of the turn wrote
    return not exchange32((<Stream>stream).busy, 1, memory_order_seq_cst)

cdef int turn_more(void* stream) noexcept:
    return not (<Stream>stream).busy.load(memory_order_seq_cst)  # seq_cst: as notify


cdef enum:
    TURN = 3                    # one more result than the ring's: nothing is ready, and the caller has the turn now

cdef inline bint _drawable(Stream stream) noexcept:
    # Whether a reader that gets the turn would draw. seq_cst, all accesses: a waiter's last check
    return not stream.source.is_closed() and stream.source.free_places() > 0

cdef int drawing_attempt(void* raw) noexcept:
    cdef Reading* reading = <Reading*>raw
    cdef Stream stream = <Stream>reading.stream
    cdef int result = stream.source.take_ready(&reading.op, &reading.item)
    if result == NOT_NOW and _drawable(stream) and turn_attempt(reading.stream):
        return TURN
    return result

cdef int drawing_more(void* raw) noexcept:
    cdef Stream stream = <Stream>(<Reading*>raw).stream
    return stream.source.has_ready() or turn_more((<Reading*>raw).stream) and _drawable(stream)

# The same where readers do not draw.
cdef int ready_attempt(void* raw) noexcept:
    return (<Stream>(<Reading*>raw).stream).source.take_ready(&(<Reading*>raw).op, &(<Reading*>raw).item)

cdef int ready_more(void* raw) noexcept:
    return (<Stream>(<Reading*>raw).stream).source.has_ready()


cdef object AT_END = object()   # what an awaited read gives at the end


cdef object accept_drawn(PoolRun core, WorkSource source, object op, bint resets):
    # Accepts what a source gave. Returns None, or the error that ends the source. Raises only if memory is short.
    if not isinstance(op, OperationBase):
        return TypeError(f"the source must give Operations, got {describe(op)}")
    context = capture() if core.carries else None  # before the operation is accepted: this may fail
    if resets and take_over(<OperationBase>op):
        renew(<OperationBase>op, NEW, 0)
    elif resets and is_unsuccessful(<OperationBase>op):
        Py_INCREF(op)  # the stream's, if it gets there
        if source.pass_by(<PyObject*>op):
            return None
        Py_DECREF(op)
        return core.stopped_error()  # the work source was ended meanwhile, by the pool or by the reader
    if not accept(<OperationBase>op, core.number):
        return OperationReused(f"the source gave {describe(op)}, which is pending, or has ended and was not reset")
    if context is not None:
        (<OperationBase>op).set_context(context)
    Py_INCREF(op)  # the ring's, if it gets there
    source.note_position()
    if try_put(source.pending.ring, <PyObject*>op, NULL) != DONE:
        # The work source was ended meanwhile, by the pool or by the reader. The ring is never full: free_places() > 0.
        Py_DECREF(op)
        core.withdraw(<OperationBase>op)
        return core.stopped_error()
    announce(core, source)
    return None


cdef class Stream:
    """Stream(core, source, *, iterator=None, wraps=False, draws=False, resets=False, awaits=False)
--

    An iterator of ended operations, each given once. Made by `WorkerPool.execute` and `WorkerPool.wrap`.

    Operations come in the order in which they end, or, with `wrap(ordered=True)`, in the order of the source. Failed
    and cancelled ones come too. Any number of threads and tasks may read one stream; each operation goes to one of
    them.

    Leaving a loop by `break` does not close the stream. Dropping the last reference to a wrap's stream closes it.
    """

    def __cinit__(self, PoolRun core not None, WorkSource source not None, *, iterator=None, bint wraps=False,
                  bint draws=False, bint resets=False, bint awaits=False):
        if source.ready is None and not source.carries_items:
            raise TypeError("source.ready must be a RingBuffer: nothing could be read from this source")
        self.core = core
        self.source = source
        self.iterator = iterator
        self.wraps = wraps
        self.draws = draws
        self.awaits = awaits
        self.async_iterator = draws and hasattr(type(iterator), "__anext__")
        self.resets = resets
        self.attempt = drawing_attempt if draws else ready_attempt
        self.more = drawing_more if draws else ready_more
        init_queue(&self.turn)
        # relaxed: published with the object
        self.busy.store(0, memory_order_relaxed)
        self.reader.store(0, memory_order_relaxed)
        self.waited_at.store(0, memory_order_relaxed)
        self.closed_by_reader.store(0, memory_order_relaxed)

    def __init__(self, *args, **kwargs):
        pass

    def __del__(self):
        # The collector may run anywhere, so this only flags the work source; a worker ends it and cancels what is left.
        if self.wraps and self.source is not None and self.core.epoch == epoch_now:
            if not self.source.is_over() or self.source.has_work():
                self.core.drop(self.source)
                if self.source.carries_items and not self.source.read_count() and not self.source.ended_by_reader():
                    PyErr_ResourceWarning(<PyObject*>self, 1, UNREAD)

    __class_getitem__ = classmethod(GenericAlias)

    # -----------------------------------------------------------------------------------------------------------

    cdef int taken(self, Py_ssize_t count) except -1:
        # `count` operations were read: there is room for as many.
        cdef PyObject* permit = NULL
        if self.source.external:
            announce(self.core, self.source)
        elif self.source.permits is not None:
            while count > 0 and try_get(self.source.permits.ring, &permit, NULL) == DONE:
                Py_DECREF(<object>permit)  # was the ring's
                count -= 1
            notify(&self.source.permits.not_full)
        elif self.draws:
            notify(self.source.readers())  # a reader that waits may draw now
        return 0

    cdef object finish(self):
        # The reader has reached the end: raises what the stream ends with, if anything.
        self.core.remove(self.source)
        # acquire: pairs with close
        if self.source.failure is None or self.closed_by_reader.load(memory_order_acquire):
            return
        if not self.source.from_source:
            # The pool has ended, which is raised to all readers of its streams at about the same time: to each as an
            # object of its own.
            raise own_error(self.source.failure)
        # acq_rel: exactly one of several readers raises the source's error
        if not exchange32(self.source.failure_raised, 1, memory_order_acq_rel):
            raise with_traceback(self.source.failure, self.source.trace)

    cdef int read(self, PyObject** op, int64_t deadline, bint block) except -1:
        cdef int result
        if self.core.epoch != epoch_now:
            raise self.core.stopped_error()
        if not self.draws:
            result = self.read_ready(op, deadline, block)
        elif self.awaits:
            raise self.async_only_error()
        else:
            result = self.read_drawn(op, deadline, block)
        if result == DONE:
            if self.wraps:
                self.taken(1)
        elif result == SHUT:
            self.finish()
        return result

    cdef int read_ready(self, PyObject** op, int64_t deadline, bint block) except -1:
        cdef Reading reading
        cdef int result = self.take(op)
        if result != NOT_NOW or not block or (deadline != NEVER and now_ns() >= deadline):
            return result
        reading.stream = <PyObject*>self
        reading.item = NULL
        entered = self.core.enter_wait(None, self.source, False, False, deadline != NEVER)
        try:
            result = wait_for(
                self.source.readers(), self.attempt, self.more, &reading, NULL, self.since_wait(), deadline
            )
        finally:
            if entered is not None:
                self.core.leave_wait(entered)
        op[0] = reading.op
        Py_XDECREF(reading.item)  # as in take
        return result

    cdef int read_drawn(self, PyObject** op, int64_t deadline, bint block) except -1:
        # A read of a source that its readers draw.
        cdef Reading reading
        cdef int result = NOT_NOW
        reading.stream = <PyObject*>self
        reading.item = NULL
        if self.wants_turn() and self.try_turn(PyThread_get_thread_ident()):
            result = TURN
        while True:
            if result == TURN:
                # relaxed: try_turn compares it only with the calling thread's own identity, which only that thread
                # writes
                self.reader.store(PyThread_get_thread_ident(), memory_order_relaxed)
                try:
                    result = self.read_drawing(op, deadline, block)
                finally:
                    self.give_turn()
            else:
                result = self.take(op)
            if result != NOT_NOW or not block or (deadline != NEVER and now_ns() >= deadline):
                return result
            if self.core.epoch != epoch_now:
                raise self.core.stopped_error()  # the source forked, and this is the child
            entered = self.core.enter_wait(None, self.source, False, False, deadline != NEVER)
            try:
                result = wait_for(self.source.readers(), self.attempt, self.more, &reading, NULL, 0, deadline)
            finally:
                if entered is not None:
                    self.core.leave_wait(entered)
            if result != TURN:
                op[0] = reading.op
                Py_XDECREF(reading.item)  # as in take
                return result

    cdef int read_drawing(self, PyObject** op, int64_t deadline, bint block) except -1:
        # Called with the turn. Waits for nothing but the source.
        cdef int result
        if self.iterator is not None and self.source.free_places() > 0:
            self.draw()  # replaces the operation that this read takes
        while True:
            result = self.take(op)
            if result != NOT_NOW:
                return result
            if self.iterator is None or self.source.free_places() <= 0:
                return NOT_NOW
            if not block or (deadline != NEVER and now_ns() >= deadline):
                return NOT_NOW
            self.draw()

    cdef int take(self, PyObject** op) noexcept:
        # Takes what is ready, without waiting.
        cdef PyObject* item = NULL
        cdef int result = self.source.take_ready(op, &item)
        Py_XDECREF(item)  # of a map: the reader's to drop
        return result

    cdef uint64_t since_wait(self) noexcept:
        # How much has been read since a reader waited last. relaxed, both: a hint, for how long to spin
        cdef uint64_t count = self.source.read_count()
        cdef uint64_t last = self.waited_at.load(memory_order_relaxed)
        self.waited_at.store(count, memory_order_relaxed)
        return count - last

    cdef object closed_error(self):
        return Closed(f"all that came out has been read: {describe(self)}")

    cdef object async_only_error(self):
        return TypeError(f"the source of {describe(self)} is an async iterable: read it with `async for` or `aget`")

    cdef bint wants_turn(self) noexcept:
        # Whether a read begins by drawing.
        return True

    cdef object unwrap(self, PyObject* found):
        # What a read gives for what it took. Takes the caller's reference.
        return steal(found)

    cdef bint try_turn(self, uint64_t me) except -1:
        # `me`: the thread, or the task that draws an async source; 0: do not check for reentry.
        if turn_attempt(<void*>self):
            self.reader.store(me, memory_order_relaxed)  # relaxed: as in read_drawn, for threads and tasks
            return True
        if me and self.reader.load(memory_order_relaxed) == me:  # relaxed: as above
            raise RuntimeError("the source of a stream reads that stream: it would wait for itself")
        return False

    cdef int give_turn(self) except -1:
        self.reader.store(0, memory_order_relaxed)  # relaxed: as try_turn
        put32(self.busy, 0, memory_order_seq_cst)  # seq_cst: before notify; publishes what the owner wrote
        notify(&self.turn)
        notify(self.source.readers())
        # seq_cst: after the release, pairs with close_quietly: it gets the turn, or we see that the reader is gone
        if not self.awaits and self.closed_by_reader.load(memory_order_seq_cst) and turn_attempt(<void*>self):
            self.drop_source()
        return 0

    cdef int drop_source(self) except -1:
        # With the turn, which it gives back. The reader is gone: a source to which nothing else refers goes, too.
        iterator = self.iterator
        self.iterator = None
        put32(self.busy, 0, memory_order_seq_cst)  # seq_cst: as give_turn
        notify(&self.turn)
        notify(self.source.readers())
        return 0

    cdef bint draw(self) except -1:
        # Draws one operation and gives it to the workers. False: the source is exhausted, or the pool has stopped.
        cdef PyObject* raw
        if self.source.is_closed():
            self.iterator = None
            return False
        raw = next_raw(<PyObject*>self.iterator)
        if raw != NULL and self.hand_over(raw):
            return True
        return self.draw_uncommon(raw)

    cdef bint draw_uncommon(self, PyObject* raw) except -1:
        # The rest of draw, for what the iterator gave; NULL: nothing, or it has raised.
        try:
            if raw == NULL:
                check_raised()
                return self.end_source(None)
            op = steal(raw)
        except BaseException as raised:
            return self.iterator_raised(raised)
        return self.drawn(op)

    cdef bint hand_over(self, PyObject* op) except -1:
        # The common case of accept_drawn: a new operation without a context. If True, the ring owns the caller's
        # reference.
        if <PyObject*>Py_TYPE(op) != <PyObject*>self.plain_type:
            if self.resets or self.core.carries or not is_operation(op):
                return False
            self.plain_type = type(<object>op)
        if not accept(<OperationBase>op, self.core.number):
            return False
        if try_put(self.source.pending.ring, op, NULL) == DONE:
            announce(self.core, self.source)
            return True
        self.core.withdraw(<OperationBase>op)  # the work source was ended meanwhile: accept_drawn finds that out
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
            self.core.make_ready(<PyObject*>self.source)  # for a worker to remove it
        return False

    cdef bint iterator_raised(self, object error) except -1:
        cdef bint at_once = not PyErr_GivenExceptionMatches(<PyObject*>error, PyExc_Exception)
        if at_once:
            # Before the end, which lets other readers raise it. release: as the exchange in finish.
            self.source.failure_raised.store(1, memory_order_release)
        self.end_source(error)
        if at_once:
            raise error
        return False

    # -----------------------------------------------------------------------------------------------------------
    # reading from tasks

    async def _take_turn(self):
        # Waits for the turn, to close the source. While an async source is drawn, the owner is known by its task.
        cdef void* task = running_task() if self.async_iterator else NULL
        if not turn_attempt(<void*>self):
            if task and self.reader.load(memory_order_relaxed) == <uint64_t>task:  # relaxed: as try_turn
                raise RuntimeError("the source of a stream reads that stream: it would wait for itself")
            await await_for(&self.turn, turn_attempt, turn_more, <void*>self, self)
        self.reader.store(<uint64_t>task, memory_order_relaxed)  # relaxed: as try_turn

    cdef bint draw_here(self) except -1:
        # Draws from an iterable, for a task that has the turn.
        self.reader.store(PyThread_get_thread_ident(), memory_order_relaxed)  # relaxed: as try_turn
        try:
            return self.draw()
        finally:
            self.reader.store(0, memory_order_relaxed)  # relaxed: as try_turn

    async def _draw(self):
        # As draw, from an async source. A generator that is not drawn to its end is closed here, rather than by its
        # loop when it is collected.
        iterator = self.iterator
        if self.source.is_closed():
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
            # Most likely a cancelled await. That has ended an async generator; any other source may go on.
            if getattr(iterator, "ag_frame", iterator) is None:
                error = RuntimeError("the source was ended by a read that was cancelled while it drew from it")
                error.__cause__ = raised
                self.end_source(error)
            raise
        else:
            if not self.drawn(op):
                await _close_failed_source(iterator)

    async def _read(self):
        # `read` for a task. Returns the operation; AT_END at the end.
        cdef PyObject* op = NULL
        cdef int result
        cdef void* task
        cdef Reading reading
        point = checkpoint()
        if point is not None:
            await point
        if self.core.epoch != epoch_now:
            raise self.core.stopped_error()
        reading.stream = <PyObject*>self
        reading.item = NULL
        task = running_task() if self.async_iterator else NULL
        if not self.draws:
            result = self.take(&op)
        else:
            result = TURN if self.wants_turn() and self.try_turn(<uint64_t>task) else NOT_NOW
        while True:
            if result == TURN:
                self.reader.store(<uint64_t>task, memory_order_relaxed)  # relaxed: as try_turn
                try:
                    if self.iterator is not None and self.source.free_places() > 0:  # as in read_drawing
                        if self.async_iterator:
                            await self._draw()
                        else:
                            self.draw_here()
                    while True:
                        result = self.take(&op)
                        if result != NOT_NOW or self.iterator is None or self.source.free_places() <= 0:
                            break
                        if self.async_iterator:
                            await self._draw()
                        else:
                            self.draw_here()
                finally:
                    self.give_turn()
            elif self.draws:
                result = self.take(&op)
            if result != NOT_NOW:
                break
            if self.core.epoch != epoch_now:
                raise self.core.stopped_error()  # as in read_drawn
            entered = self.core.enter_wait(None, self.source, False, True, False)
            try:
                result = await await_for(self.source.readers(), self.attempt, self.more, &reading, self)
            finally:
                if entered is not None:
                    self.core.leave_wait(entered)
            if result != TURN:
                op = reading.op
                Py_XDECREF(reading.item)  # as in take
                break
        if result != DONE:
            self.finish()
            return AT_END
        if self.wraps:
            self.taken(1)
        return self.unwrap(op)

    async def aget(self):
        """Takes the next operation, awaiting it: `get` for a task of asyncio or trio.

        A cancelled await has taken nothing. The source of a `wrap` is drawn in this task: an iterable directly, an
        async iterable with `await`. Any number of tasks of any loops, and threads, may read one stream.

        Returns:
            The operation.

        Raises:
            Closed: All operations have been read.
            PoolNotRunning: The pool stopped before the source was exhausted; also in the child of a fork.
            BrokenPool: The pool is broken.
            Exception: What the source raised; raised once, to one reader, after all that was accepted before.
            RuntimeError: It has to wait, and no asyncio or trio loop runs on this thread.
        """
        found = await self._read()
        if found is AT_END:
            raise self.closed_error()
        return found

    def __aiter__(self):
        """Returns the stream itself: `async for` gives the operations until all have been read."""
        return self

    async def __anext__(self):
        """Awaits and takes the next operation; StopAsyncIteration when all have been read. Raises as `aget`."""
        cdef PyObject* op = NULL
        if not self.draws and self.core.epoch == epoch_now and not in_trio():  # the fast path; trio needs a checkpoint
            if self.take(&op) == DONE:
                if self.wraps:
                    self.taken(1)
                return self.unwrap(op)
        try:
            found = await self._read()
        except StopAsyncIteration as error:  # a source that is no generator: it must not look like the end
            raise RuntimeError("the source of a stream raised StopAsyncIteration") from error
        if found is AT_END:
            raise StopAsyncIteration
        return found

    # -----------------------------------------------------------------------------------------------------------

    def __iter__(self):
        """Returns the stream itself: a loop gives the operations until all have been read."""
        return self

    def __next__(self):
        """Waits for the next operation and takes it; StopIteration when all have been read. Raises as `get`."""
        cdef PyObject* op = NULL
        if not self.draws and self.core.epoch == epoch_now:  # the fast path: one is ready
            if try_get((<WorkSource><PyObject*>self.source).ready.ring, &op, NULL) == DONE:
                if self.wraps:
                    self.taken(1)
                return steal(op)
        if self.read(&op, NEVER, True) != DONE:
            raise StopIteration
        return steal(op)

    def get(self, timeout=None):
        """Takes the next operation, waiting for it.

        Blocks until one is ready. For a `wrap` whose source is an iterable, the call draws from the source too, and
        blocks as long as the source does. May be called from any thread.

        Args:
            timeout: Seconds to wait; None waits without limit. A source that blocks is not interrupted.

        Returns:
            The operation.

        Raises:
            queue.Empty: No operation came in time; nothing has changed.
            Closed: All operations have been read.
            PoolNotRunning: The pool stopped before the source was exhausted; also in the child of a fork.
            BrokenPool: The pool is broken.
            Exception: What the source raised; raised once, to one reader, after all that was accepted before.
            TypeError: The source is an async iterable: use `aget`.
            RuntimeError: Called without a timeout from a worker of the same pool, when no worker would be left to do
                the work; or called by the source itself.
        """
        cdef PyObject* op = NULL
        cdef int result = self.read(&op, deadline_of(timeout), True)
        if result == SHUT:
            raise self.closed_error()
        if result == NOT_NOW:
            raise Empty
        return self.unwrap(op)

    def get_many(self, max=None, timeout=None):
        """Waits for the first operation, then takes all that are ready, up to `max`.

        Blocks until one is ready, and draws from the source, as `get`. May be called from any thread.

        Args:
            max: The largest number of operations to take, from 1; None takes all.
            timeout: Seconds to wait for the first operation; None waits without limit.

        Returns:
            A list of at least one operation.

        Raises:
            queue.Empty: No operation came in time; nothing has changed.
            Closed: All operations have been read. Other exceptions as in `get`.
        """
        cdef Py_ssize_t limit = self.source.ready.ring.capacity
        cdef Py_ssize_t length
        cdef int64_t deadline = deadline_of(timeout)
        if max is not None:
            limit = min(limit, checked_max(max))
        if self.draws:
            return self.get_many_drawing(limit, deadline)
        ops = [None]  # made before one is taken: without memory for the list, it would be lost
        ops[0] = self.get(None if deadline == NEVER else (deadline - now_ns()) / 1e9 if deadline > now_ns() else 0)
        ops = self.source.ready._take(min(limit - 1, self.source.ready_count()), ops)
        if self.wraps and len(ops) > 1:
            self.taken(len(ops) - 1)
        return ops

    cdef list get_many_drawing(self, Py_ssize_t limit, int64_t deadline):
        # Draws as many as are ready before it takes any, so that no operation is lost if the source raises.
        cdef PyObject* op = NULL
        cdef Py_ssize_t length
        cdef int result
        if self.core.epoch != epoch_now:
            raise self.core.stopped_error()
        if self.awaits:
            raise self.async_only_error()
        ops = [None]  # as in get_many
        if self.try_turn(PyThread_get_thread_ident()):
            try:
                length = min(limit - 1, self.source.ready_count())
                while length > 0 and self.iterator is not None and self.source.free_places() > 0:
                    self.draw()
                    length -= 1
            finally:
                self.give_turn()
        result = self.read_drawn(&op, deadline, True)
        if result == DONE:
            ops[0] = steal(op)
            ops = self.source.ready._take(min(limit - 1, self.source.ready_count()), ops)
            self.taken(len(ops))
            return ops
        if result == NOT_NOW:
            raise Empty
        self.finish()
        raise self.closed_error()

    def close(self):
        """Closes the stream: cancels the operations that have not begun, and draws the source no more.

        Nothing comes out of the stream any more. Never blocks; idempotent; may be called from any thread. A
        KeyboardInterrupt in an overridden `done()`, on the main thread, is raised once all operations have ended.
        """
        self.close_quietly()
        raise_kept()

    cdef int close_quietly(self) except -1:
        if self.core.epoch != epoch_now:
            return 0
        self.closed_by_reader.store(1, memory_order_seq_cst)  # seq_cst: pairs with finish, and with give_turn
        self.source.end(None)
        self.source.end_reading()
        self.core.end_abandoned(self.source)
        self.core.remove(self.source)
        notify(&self.core.idle)
        self.core.wake_for_drain()
        self.source.drop_ready()
        if self.draws and not self.awaits and turn_attempt(<void*>self):
            self.drop_source()
        return 0

    async def aclose(self):
        """Closes the stream as `close` does, and closes an async source as well.

        Waits until no task draws the source; then awaits its `aclose`, so that an async generator's `finally` runs.
        """
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
        """Returns the stream itself."""
        return self

    async def __aexit__(self, kind, error, trace):
        """Calls `aclose`."""
        await self.aclose()

    def __enter__(self):
        """Returns the stream itself."""
        return self

    def __exit__(self, *exc):
        """Calls `close`."""
        self.close()

    @property
    def total(self):
        """The number of operations that come out in all, those already read included; None while that is not known."""
        total = self.source.total.load(memory_order_acquire)  # acquire: pairs with end
        return None if total < 0 else total

    @property
    def ready(self):
        """The number of operations that can be read now; a snapshot."""
        return self.source.ready_count()

    def __len__(self):
        """The `total`, for progress bars; TypeError while that is not known."""
        total = self.total
        if total is None:
            raise TypeError(f"the total of {describe(self)} is not known; `ready` is the number to read now")
        return total

    def __bool__(self):
        """Always True."""
        return True

    def __contains__(self, item):
        """Not supported: a search would consume operations."""
        raise TypeError("`in` would consume operations of the stream: iterate the stream instead")

    @property
    def closed(self):
        """Whether no operation will be added: all have come out, or the stream was closed. Some may be left to read."""
        return self.source.is_over()

    def __repr__(self):
        state = "closed" if self.source.is_over() else "open"
        read = self.source.read_count()
        total = "?" if self.total is None else self.total
        return f"<{type(self).__name__} {state}, {self.source.ready_count()} ready, {read} read of {total}>"



# Garbage collection: Cython does not traverse the tasks that wait for the turn (rule 11).
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
    """Draws a source on the calling thread, with one permit for each operation, until either side ends."""
    cdef PyObject* raw
    try:
        while True:
            try:
                source.permits.put(None)
            except Closed:  # the WorkSource has ended; what the source raises may be a Closed, too
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
        core.make_ready(<PyObject*>source)  # as in Stream.end_source
