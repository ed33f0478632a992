# Stream, the reading side of execute and wrap. See stream.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.pool.run cimport PoolRun
from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.waiting.wait_queue cimport Attempt, WaitQueue

cdef object AT_END                  # what an awaited read gives at the end

cdef struct Reading:            # a read that waits
    PyObject* stream
    PyObject* op
    PyObject* item              # of a map: for the reader to drop

cdef class Stream:
    cdef WorkSource source          # written once, like the next six
    cdef PoolRun core
    cdef bint wraps                 # made by wrap: dropping it closes it
    cdef bint draws                 # the readers draw the source, under `turn`
    cdef bint awaits                # the source is an async iterable: can be read by tasks only
    cdef bint async_iterator        # tasks draw the source with `await`
    cdef bint resets                # operations are reset as they are drawn
    cdef object iterator            # the source, until it is exhausted; guarded by `turn`
    cdef object plain_type          # the type of the last operation that hand_over() accepted; guarded by `turn`
    cdef atomic[uint32_t] busy      # 1: a reader has the turn
    cdef WaitQueue turn             # tasks that wait for the turn, to close the source
    cdef atomic[uint64_t] reader    # the thread or the task that has the turn; 0: none
    cdef atomic[uint32_t] closed_by_reader
    cdef atomic[uint64_t] waited_at  # how much had been read when a reader waited last
    cdef Attempt attempt            # of a read that waits; its context is a Reading
    cdef Attempt more
    cdef object __weakref__

    cdef int read(self, PyObject** op, int64_t deadline, bint block) except -1
    cdef int read_ready(self, PyObject** op, int64_t deadline, bint block) except -1
    cdef int read_drawn(self, PyObject** op, int64_t deadline, bint block) except -1
    cdef int read_drawing(self, PyObject** op, int64_t deadline, bint block) except -1
    cdef list get_many_drawing(self, Py_ssize_t limit, int64_t deadline)
    cdef bint try_turn(self, uint64_t me) except -1
    cdef int give_turn(self) except -1
    cdef int drop_source(self) except -1
    cdef object async_only_error(self)
    cdef object closed_error(self)
    cdef uint64_t since_wait(self) noexcept
    cdef int take(self, PyObject** op) noexcept
    cdef bint wants_turn(self) noexcept
    cdef object unwrap(self, PyObject* found)
    cdef bint draw(self) except -1
    cdef bint draw_uncommon(self, PyObject* raw) except -1
    cdef bint draw_here(self) except -1
    cdef bint hand_over(self, PyObject* op) except -1
    cdef bint drawn(self, object op) except -1
    cdef bint end_source(self, object error) except -1
    cdef bint iterator_raised(self, object error) except -1
    cdef int taken(self, Py_ssize_t count) except -1
    cdef object finish(self)
    cdef int close_quietly(self) except -1
