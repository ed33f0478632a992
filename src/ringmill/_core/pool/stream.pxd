# The read end: finished operations, and the drawing of a wrap's source. See stream.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.pool.run cimport PoolRun
from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.waiting.wait_queue cimport SpinLock, WaitQueue

@cython.final
cdef class Stream:
    cdef WorkSource source                  # written once, like the next six
    cdef PoolRun core
    cdef bint wraps                 # of a wrap: dropping it closes it
    cdef bint draws                 # the reader draws the source, under `turn`
    cdef bint awaits                # by `await` only
    cdef bint async_iterator          # a task draws it by `await`
    cdef bint resets
    cdef object iterator              # the iterator that is drawn, until it is exhausted; guarded by `turn`
    cdef object plain_type          # of the last operation drawn, if such need nothing but to be accepted; as `source`
    cdef atomic[uint32_t] busy      # 1: a reader has the turn
    cdef WaitQueue turn             # readers that wait for it
    cdef atomic[uint64_t] reader    # the thread that has it, or the task
    cdef atomic[uint32_t] closed_by_reader
    cdef object __weakref__

    cdef int read(self, PyObject** op, int64_t deadline, bint block) except -1
    cdef int read_ready(self, PyObject** op, int64_t deadline, bint block) except -1
    cdef int read_drawn(self, PyObject** op, int64_t deadline, bint block) except -1
    cdef int read_drawing(self, PyObject** op, int64_t deadline, bint block) except -1
    cdef list get_many_drawing(self, Py_ssize_t limit, int64_t deadline)
    cdef bint try_turn(self, uint64_t me) except -1
    cdef int give_turn(self) except -1
    cdef int drop_source(self) except -1
    cdef object not_here(self)
    cdef bint draw(self) except -1
    cdef bint draw_here(self) except -1
    cdef bint hand_over(self, PyObject* op) except -1
    cdef bint drawn(self, object op) except -1
    cdef bint end_source(self, object error) except -1
    cdef bint iterator_raised(self, object error) except -1
    cdef int taken(self, Py_ssize_t count) except -1
    cdef object finish(self)
    cdef int close_quietly(self) except -1

cdef class PoolBase:
    cdef object __weakref__
    cdef SpinLock _lock            # guards the next
    cdef PoolRun _core                 # of the current or the last run
    cdef object _lifecycle          # a lock, held by start(), so that one of several does it
    cdef atomic[uint64_t] _starter  # the thread that holds it, or 0

    cdef PoolRun _running(self)
