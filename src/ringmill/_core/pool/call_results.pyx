# CallResults: what `PoolExecutor.map` returns; and how it submits its calls.
#
# May use the rest of `pool`, `ring`, `waiting` and `platform`. futures.py checks the arguments.
#
# The calls of one `map` are items with a function (item_source.pyx). Lists, tuples and ranges are accepted as a whole. Any
# other iterable is drawn to its end at once, and each item may be called before the next is drawn; so it becomes a
# chain of drawn sources, each longer than the one before. With `buffersize`, one item is drawn for each that is read.
#
# An iterator that has not been read does not cancel anything when it is dropped; one that has does.

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_XDECREF
from libc.stdint cimport int64_t, uint64_t
from libcpp.atomic cimport memory_order_relaxed

from ringmill._core.platform.primitives cimport steal
from ringmill._core.pool.item_source cimport BROKEN_ITEM, FAILED_BIT, NO_VALUE, ItemSource, take_result
from ringmill._core.pool.operation cimport ErrorRecord, raisable
from ringmill._core.pool.results cimport Results, new_results
from ringmill._core.pool.run cimport PoolRun, announce, may_add_worker
from ringmill._core.ring.ring cimport DONE, NOT_NOW, SHUT
from ringmill._core.waiting.wait_queue cimport deadline_of, epoch_now

from ringmill.errors import PoolNotRunning

cdef extern from "Python.h":
    PyObject* next_raw "PyIter_Next"(PyObject* iterator) noexcept
    PyObject* PyErr_Occurred()

cdef enum:
    FIRST_PART = 64             # items of the first of a chain of sources
    LONGEST_PART = 1 << 16

cdef tuple wholes = (list, tuple, range)


cdef class CallResults:
    """The results of `PoolExecutor.map`, in the order of the arguments. As the generator of `Executor.map`."""

    cdef PoolRun run
    cdef object calls               # the ExecutorState
    cdef list parts                 # Results, each of a source; the last is the one that is read
    cdef Results current            # the part that is read; None: over
    cdef object iterator            # with `buffersize`: drawn as results are read; or None
    cdef object executor            # a weak reference: without it, nothing more is drawn
    cdef int64_t deadline
    cdef bint begun

    def __del__(self):
        self.leave_unread()

    cdef int leave_unread(self) except -1:
        # What was submitted is called all the same; no more comes.
        if self.iterator is not None and not self.begun and self.current is not None and self.run.epoch == epoch_now:
            end(self.run, self.current.items)
        return 0

    def __iter__(self):
        """Returns the iterator itself."""
        return self

    def __next__(self):
        """Waits for the next result; raises what its call raised, and ends then."""
        cdef PyObject* found = NULL
        cdef PyObject* item = NULL
        cdef PyObject* part = <PyObject*>self.current  # borrowed
        if (
            self.begun and self.iterator is None and part != <PyObject*>None and self.run.epoch == epoch_now
            and take_result((<Results>part).items, &found, &item)
        ):
            Py_XDECREF(item)  # ours to drop
            return steal(found)
        return self.next_result()

    cdef object next_result(self):
        cdef PyObject* found = NULL
        cdef Results part
        cdef int result
        if not self.begun:
            self.begin()
        if self.iterator is not None:
            self.draw_next()
        while True:
            part = self.current
            if part is None:
                raise StopIteration
            try:
                result = part.take_next(&found, self.deadline)
            except BaseException as error:
                # The executor's end is none for its calls, unless a worker is stuck in one of them.
                if isinstance(error, PoolNotRunning) and not self.run.is_inherited and not part.items.aborted.load(
                    memory_order_relaxed  # relaxed: it was set before the error was raised
                ):
                    result = SHUT
                else:
                    self.close()
                    raise
            if result == DONE:
                if not <uint64_t>found & NO_VALUE:
                    return steal(found)
                self.raise_error(<uint64_t>found)
            if result == NOT_NOW:
                self.close()
                raise TimeoutError
            self.next_part(part)

    cdef int begin(self) except -1:
        cdef Results part
        self.begun = True
        if self.current is not None:
            self.current.wraps = True
        for part in self.parts:
            part.wraps = True
        return 0

    cdef int next_part(self, Results part) except -1:
        with cython.critical_section(self):
            if self.current is part:
                self.current = self.parts.pop() if self.parts else None
        return 0

    cdef int draw_next(self) except -1:
        cdef PyObject* raw
        iterator = self.iterator
        owner = self.executor()
        try:
            if owner is None:
                self.end_drawing()
                return 0
            raw = next_raw(<PyObject*>iterator)
            if raw == NULL:
                if PyErr_Occurred():
                    raise_set()
                self.end_drawing()
                return 0
            item = steal(raw)
            put(self.run, self.current.items, item)
        except BaseException as error:
            self.close()
            raise owner._refusal_of(error) if owner is not None else error
        return 0

    cdef int end_drawing(self) except -1:
        self.iterator = None
        end(self.run, self.current.items)
        return 0

    cdef int raise_error(self, uint64_t outcome) except -1:
        cdef ErrorRecord error_record
        self.close()
        if outcome & FAILED_BIT:
            error_record = <ErrorRecord>steal(<PyObject*>(outcome & ~<uint64_t>FAILED_BIT))
            raise raisable(error_record)
        raise self.calls.ending_error(self.run.stopped_error() if outcome == BROKEN_ITEM else None)

    def __length_hint__(self):
        """How many results are left, at least."""
        cdef Results part = self.current
        return 0 if part is None else max(0, <Py_ssize_t>(part.items.accepted() - part.items.read_count()))

    def close(self):
        """Ends the iterator: calls that have not begun are cancelled. Does nothing before the first result is read."""
        cdef Results part
        cdef list parts
        if not self.begun:
            self.leave_unread()
            self.current = None
            self.parts = []
            self.iterator = None
            return
        with cython.critical_section(self):
            parts = self.parts
            part = self.current
            self.parts = []
            self.current = None
            self.iterator = None
        if part is not None:
            part.close()
        for part in parts:
            part.close()


cdef int end(PoolRun run, ItemSource source) except -1:
    # Nothing more is drawn.
    source.end(None)
    run.make_ready(<PyObject*>source)  # for a worker to remove it
    return 0


cdef int put(PoolRun run, ItemSource source, object item) except -1:
    cdef PyObject* raw = <PyObject*>item
    with_reference(raw)
    if not source.put_item(raw):
        Py_DECREF(item)  # was to be the source's
        raise run.stopped_error()
    announce(run, source)
    if may_add_worker(run):
        run.add_if_wanted()
    return 0


cdef extern from *:
    """
    static inline void ringmill_with_reference(PyObject* o) { Py_INCREF(o); }
    """
    void with_reference "ringmill_with_reference"(PyObject* o) noexcept


cdef int raise_set() except -1:
    # Raises what a function declared as noexcept has set.
    return -1


cdef Results results_of(PoolRun run, ItemSource source):
    cdef Results results = new_results(run, source, "raise", None, False)
    results.wraps = False
    results.draws = False
    return results


def map_calls(PoolRun run not None, calls, function, tuple iterables not None, timeout, buffersize, executor,
              bint context):
    """Submits a call for each item of the iterables, or each tuple of items, and returns the CallResults.

    `calls`: the ExecutorState. `executor`: a weak reference to the executor. With a `buffersize`, as many at a time.
    """
    cdef CallResults results = CallResults()
    cdef ItemSource source
    cdef bint unpacks = len(iterables) != 1
    results.run = run
    results.calls = calls
    results.executor = executor
    results.parts = []
    results.deadline = deadline_of(timeout)
    if buffersize is None and not unpacks and type(iterables[0]) in wholes:
        source = run.map_items(iterables[0], True, function, False, context)
        if source is not None:
            results.current = results_of(run, source)
            return results
    iterator = zip(*iterables) if unpacks else iter(iterables[0])
    if buffersize is None:
        results.parts = draw_all(run, iterator, function, unpacks, context)
        results.parts.reverse()
        results.current = results.parts.pop()
        return results
    source = run.draw_items(buffersize + 1, True, function, unpacks, context)
    results.current = results_of(run, source)
    results.iterator = iterator  # from here on, the source ends with the results
    for _ in range(buffersize):
        item = next(iterator, results)
        if item is results:
            results.end_drawing()
            return results
        put(run, source, item)
        item = None
    return results


cdef list draw_all(PoolRun run, object iterator, object function, bint unpacks, bint context):
    # Draws it to its end, and submits each item as it is drawn.
    cdef uint64_t length = FIRST_PART
    cdef ItemSource source = run.draw_items(length, True, function, unpacks, context)
    cdef list parts = [results_of(run, source)]
    cdef PyObject* raw
    try:
        while True:
            raw = next_raw(<PyObject*>iterator)
            if raw == NULL:
                if PyErr_Occurred():
                    raise_set()
                return parts
            item = steal(raw)
            if not source.free_places():
                end(run, source)
                length = min(<uint64_t>LONGEST_PART, 2 * length)
                source = run.draw_items(length, True, function, unpacks, context)
                parts.append(results_of(run, source))
            put(run, source, item)
            item = None
    finally:
        end(run, source)
