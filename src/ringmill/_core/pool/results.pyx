# Results: the reading side of `map`. A Stream whose reads give what the items came to, instead of operations.
#
# May use the rest of `pool`, `ring`, `waiting` and `platform`. How readers share a source, draw from it and wait is in
# stream.pyx; what a read takes, an outcome, in item_source.pyx.
#
# Drawing. A read draws while few items are ahead of the workers, and then several at a time, as long as that is quick: so
# a fast source costs little per item, and a slow one delays a result by no more than one item, as in a wrap.

import queue
from concurrent.futures import CancelledError

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint64_t
from libcpp.atomic cimport memory_order_acquire

from ringmill._core.platform.primitives cimport now_ns, steal
from ringmill._core.pool.item_source cimport (
    BROKEN_ITEM,
    CANCELLED_ITEM,
    FAILED_BIT,
    NO_VALUE,
    ItemSource,
    drop_outcome,
    take_result,
)
from ringmill._core.pool.operation cimport ErrorRecord, PyTypeObject, is_operation, own_error, raisable
from ringmill._core.pool.run cimport PoolRun, announce
from ringmill._core.pool.stream cimport AT_END, Stream
from ringmill._core.ring.ring cimport DONE, NOT_NOW, SHUT
from ringmill._core.ring.ring_buffer cimport checked_max
from ringmill._core.waiting.event_loop cimport in_trio
from ringmill._core.waiting.wait_queue cimport NEVER, deadline_of, epoch_now, notify

from ringmill.errors import BrokenPool, Closed, describe

cdef extern from "Python.h":
    PyObject* next_raw "PyIter_Next"(PyObject* iterator) noexcept  # what it raises stays to be looked at
    PyTypeObject* Py_TYPE(PyObject* o) nogil
    PyObject* call_one "PyObject_CallOneArg"(PyObject* function, PyObject* argument) noexcept
    PyObject* StopIteration_type "PyExc_StopIteration"
    void PyErr_SetObject(PyObject* kind, PyObject* error)
    ctypedef PyObject* (*iternextfunc)(PyObject*) noexcept
    ctypedef struct Type "PyTypeObject":
        iternextfunc tp_iternext
    int PyList_Append(PyObject* list, PyObject* item) noexcept
    void PyErr_Clear()

cdef enum:
    BURST = 64                  # the most items that are drawn at a time

cdef int64_t QUICK_NS = 20_000  # for how long a read goes on drawing

cdef object Empty = queue.Empty
cdef tuple END_OF_ITERATION = (StopIteration, StopAsyncIteration)
cdef tuple ANSWERS_OF_GET = (queue.Empty, Closed)
cdef object SKIPPED = object()  # in place of the error of an item that is left out


@cython.freelist(8)
@cython.final
cdef class ReadyResult:
    # Awaited, it gives its value at once: cheaper than a coroutine.
    cdef object value

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        raise AssertionError("replaced below")


cdef PyObject* end_await(PyObject* ready) noexcept:
    # ReadyResult.__next__: raises StopIteration with the value. Not in Cython, which adds a traceback to what is raised.
    cdef PyObject* error = call_one(StopIteration_type, <PyObject*>(<ReadyResult>ready).value)
    (<ReadyResult>ready).value = None
    if error != NULL:
        PyErr_SetObject(StopIteration_type, error)
        Py_DECREF(<object>error)  # the interpreter owns one
    return NULL


(<Type*>ReadyResult).tp_iternext = end_await


cdef class Results(Stream):
    """Results(core, source, *, iterator=None, wraps=False, draws=False, resets=False, awaits=False)
--

    An iterator of what the items of a `map` came to, each given once. Made by `WorkerPool.map`.

    Results come in the order of the items, or, with `map(ordered=False)`, in the order in which they end. Any number of
    threads and tasks may read one; each result goes to one of them. An item's error is raised in the place of its
    result, and the next read goes on; or it is given as an object, or left out (`errors` of `map`).

    Leaving a loop by `break` does not close it. Dropping the last reference closes it: items that have not begun are
    cancelled.
    """

    def __cinit__(self, PoolRun core not None, ItemSource source not None, *, iterator=None, bint wraps=False,
                  bint draws=False, bint resets=False, bint awaits=False):
        self.items = source  # new_results() sets the rest

    # -----------------------------------------------------------------------------------------------------------
    # outcomes

    cdef object value_of(self, PyObject* found, bint in_get):
        # What a read gives for an outcome, or SKIPPED; or raises. Takes the caller's reference.
        cdef uint64_t outcome = <uint64_t>found
        if not outcome & NO_VALUE:
            return steal(found)
        if self.errors == SKIP:
            drop_outcome(outcome)
            return SKIPPED
        error = self.error_of(outcome)
        if self.errors == RETURN:
            return error
        if isinstance(error, END_OF_ITERATION) or in_get and isinstance(error, ANSWERS_OF_GET):
            # The caller could not tell it from what the read itself raises.
            raise RuntimeError(f"an item raised {type(error).__name__}") from error
        raise error

    cdef object error_of(self, uint64_t outcome):
        cdef ErrorRecord error_record
        if outcome == CANCELLED_ITEM:
            return CancelledError("the item was cancelled before it began")
        if outcome == BROKEN_ITEM:
            return BrokenPool(self.core.broken_message)
        error_record = <ErrorRecord>steal(<PyObject*>(outcome & ~<uint64_t>FAILED_BIT))
        return raisable(error_record) if self.errors == RAISE else error_record.error

    cdef object finish(self):
        if self.items.aborted.load(memory_order_acquire) and not self.items.all_read():  # acquire: pairs with abort
            raise own_error(self.items.abort_failure)
        Stream.finish(self)

    cdef object unwrap(self, PyObject* found):
        # For awaited reads.
        return self.value_of(found, False)

    cdef int take_next(self, PyObject** found, int64_t deadline) except -1:
        # As read(), of which it is the fast path.
        cdef int result
        if not self.draws and self.core.epoch == epoch_now:
            result = self.take(found)
            if result == DONE:
                return result
        return self.read(found, deadline, True)

    def __next__(self):
        """Waits for the next result and takes it; StopIteration when all have been read. Raises as `get`."""
        cdef PyObject* found = NULL
        cdef PyObject* item = NULL
        if self.core.epoch == epoch_now:
            if take_result(self.items, &found, &item):
                Py_XDECREF(item)  # ours to drop
                return steal(found)
            if self.draws and not self.few_ahead() and self.items.take_if(&found, &item, True) == DONE:
                Py_XDECREF(item)  # ours to drop
                notify(&self.items.waiting)  # as in taken
                return steal(found)
        while self.take_next(&found, NEVER) == DONE:
            if not <uint64_t>found & NO_VALUE:
                return steal(found)
            value = self.value_of(found, False)
            if value is not SKIPPED:
                return value
        raise StopIteration

    def get(self, timeout=None):
        """Takes the next result, waiting for it.

        Blocks until one is ready. If the items are drawn from an iterable, the call draws from it too, and blocks as
        long as it does. May be called from any thread.

        Args:
            timeout: Seconds to wait; None waits without limit. A source that blocks is not interrupted.

        Returns:
            What `process` returned.

        Raises:
            queue.Empty: No result came in time; nothing has changed.
            Closed: All results have been read.
            Exception: What `process` raised for the item whose turn it is, with `errors="raise"`; the next call goes
                on. A StopIteration, queue.Empty or Closed comes as the cause of a RuntimeError. Or what the source
                raised; raised once, to one reader, after all that was accepted before.
            concurrent.futures.CancelledError: The item was cancelled before it began.
            PoolNotRunning: The pool stopped before the source was exhausted; also in the child of a fork.
            BrokenPool: The pool is broken.
            TypeError: The source is an async iterable: use `aget`.
            RuntimeError: Called without a timeout from a worker of the same pool, when no worker would be left to do
                the work; or called by the source itself.
        """
        cdef PyObject* found = NULL
        cdef int64_t deadline = deadline_of(timeout)
        cdef int result
        while True:
            result = self.take_next(&found, deadline)
            if result == SHUT:
                raise self.closed_error()
            if result == NOT_NOW:
                raise Empty
            value = self.value_of(found, True)
            if value is not SKIPPED:
                return value

    def get_many(self, max=None, timeout=None):
        """Waits for the first result, then takes all that are ready, up to `max`, or up to the first error.

        An error that is to be raised is raised by the next read. Blocks until a result is ready, and draws from the
        source, as `get`. May be called from any thread.

        Args:
            max: The largest number of results to take, from 1; None takes all.
            timeout: Seconds to wait for the first result; None waits without limit.

        Returns:
            A list of at least one result.

        Raises:
            queue.Empty: No result came in time; nothing has changed.
            Closed: All results have been read. Other exceptions as in `get`.
        """
        cdef Py_ssize_t limit = <Py_ssize_t>self.items.entries
        cdef list values = [None]   # made before one is taken: without memory for the list, it would be lost
        if max is not None:
            limit = min(limit, checked_max(max))
        values[0] = self.get(timeout)
        return self.take_values(values, limit)

    cdef list take_values(self, list values, Py_ssize_t limit):
        cdef PyObject* found
        cdef PyObject* item
        while len(values) < limit:
            if PyList_Append(<PyObject*>values, <PyObject*>None):  # as in get_many
                PyErr_Clear()  # there is no memory for more: what was taken is given
                break
            found = item = NULL
            if self.items.take_if(&found, &item, self.errors == RAISE) != DONE:
                values.pop()
                break
            Py_XDECREF(item)  # ours to drop
            value = self.value_of(found, True)
            if value is SKIPPED:
                values.pop()
            else:
                values[len(values) - 1] = value
        self.taken(len(values))
        return values

    # -----------------------------------------------------------------------------------------------------------
    # drawing

    cdef bint wants_turn(self) noexcept:
        return self.few_ahead() or not self.items.has_ready()

    cdef bint few_ahead(self) noexcept:
        return self.items.free_places() >= min(<Py_ssize_t>BURST, <Py_ssize_t>(self.items.bound + 1) // 2)

    cdef bint draw(self) except -1:
        cdef int64_t begun = now_ns()
        cdef Py_ssize_t left = min(self.items.free_places(), <Py_ssize_t>BURST)
        cdef int drawn = 0
        cdef PyObject* raw
        while True:
            if self.items.is_closed():
                self.iterator = None
                return False
            raw = next_raw(<PyObject*>self.iterator)
            if (raw == NULL or not self.hand_over(raw)) and not self.draw_uncommon(raw):
                return False
            drawn += 1
            if drawn >= left or drawn & 7 == 1 and now_ns() - begun > QUICK_NS:
                return True

    cdef bint hand_over(self, PyObject* item) except -1:
        # If True, the source owns the caller's reference.
        if <PyObject*>Py_TYPE(item) != <PyObject*>self.plain_type:
            if is_operation(item):
                return False
            self.plain_type = type(<object>item)
        if not self.items.put_item(item):
            return False
        announce(self.core, self.items)
        return True

    cdef bint drawn(self, object item) except -1:
        if is_operation(<PyObject*>item):
            return self.end_source(TypeError(
                f"the source must give plain items, not Operations, got {describe(item)}: use wrap for operations"
            ))
        Py_INCREF(item)  # the source's, if it gets there
        if self.items.put_item(<PyObject*>item):
            announce(self.core, self.items)
            return True
        Py_DECREF(item)
        return self.end_source(self.core.stopped_error())  # ended meanwhile, by the pool or by the reader

    # -----------------------------------------------------------------------------------------------------------
    # tasks

    async def aget(self):
        """Takes the next result, awaiting it: `get` for a task of asyncio or trio.

        A cancelled await has taken nothing. The items are drawn in this task: from an iterable directly, from an async
        iterable with `await`. Any number of tasks of any loops, and threads, may read one.

        Returns:
            What `process` returned.

        Raises:
            Closed: All results have been read. Other exceptions as in `get`, except queue.Empty.
            RuntimeError: It has to wait, and no asyncio or trio loop runs on this thread.
        """
        while True:
            try:
                found = await self._read()
            except ANSWERS_OF_GET as error:
                raise RuntimeError(f"an item raised {type(error).__name__}") from error
            if found is AT_END:
                raise self.closed_error()
            if found is not SKIPPED:
                return found

    def __anext__(self):
        """Awaits and takes the next result; StopAsyncIteration when all have been read. Raises as `aget`."""
        cdef PyObject* found = NULL
        cdef ReadyResult ready
        # the fast path; trio needs a checkpoint
        if not self.draws and self.core.epoch == epoch_now and self.items.has_value() and not in_trio():
            ready = ReadyResult()  # before it takes one: this may fail
            if self.take_value(&found):
                ready.value = steal(found)
                return ready
        return self._anext()

    cdef bint take_value(self, PyObject** found) noexcept:
        # Takes the next outcome if that is a result.
        cdef PyObject* item = NULL
        if self.items.take_if(found, &item, True) != DONE:
            return False
        Py_XDECREF(item)  # ours to drop
        return True

    async def _anext(self):
        while True:
            try:
                found = await self._read()
            except StopAsyncIteration as error:  # a source that is no generator: it must not look like the end
                raise RuntimeError("the source of a stream raised StopAsyncIteration") from error
            if found is AT_END:
                raise StopAsyncIteration
            if found is not SKIPPED:
                return found

    @property
    def total(self):
        """The number of results that come out in all, those already read included; None while that is not known."""
        total = self.items.total.load(memory_order_acquire)  # acquire: pairs with end
        return None if total < 0 or self.errors == SKIP else total


cdef Results new_results(PoolRun run, ItemSource source, object errors, object iterator, bint awaits):
    # `errors`: as map's, checked.
    cdef Results results = Results(run, source, iterator=iterator, wraps=True, draws=source.draws, awaits=awaits)
    results.errors = {"raise": RAISE, "return": RETURN, "skip": SKIP}[errors]
    return results
