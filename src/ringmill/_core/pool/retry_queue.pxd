# Operations that wait for another try: in order, or for the end of a delay. See retry_queue.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.pool.operation cimport OperationBase
from ringmill._core.waiting.wait_queue cimport SpinLock

cdef class RetryEntry:
    # An operation outside the ring of its source. Its owner (a worker, or the queue that it stands in) alone writes it.
    cdef readonly OperationBase operation
    cdef WorkSource source
    cdef uint64_t position
    cdef uint64_t arrival       # in a run that is first_come: its number
    # By worker's index, 1 or 0; None: no worker. Not written while the entry stands in a queue.
    cdef readonly bytes tried_by     # equal to a worker that tried it since all had it: other workers first
    cdef readonly bytes rejected_by  # rejected it: never again
    # guarded by the pool's lock, all that follows
    cdef PyObject* next         # in a RetryQueue
    cdef PyObject* prev
    cdef PyObject* next_of_source  # among those of its source, delayed ones too
    cdef PyObject* prev_of_source
    cdef PyObject* first_cursor  # the workers whose cursor is this entry, linked by next_cursor; borrowed
    cdef bint delayed           # it is in a DelayHeap
    cdef int64_t due_ns         # in a DelayHeap: when its delay is over
    cdef Py_ssize_t place       # in a DelayHeap: its index

cdef PyObject* new_entry(PyObject* operation, PyObject* source, uint64_t position) noexcept

cdef class RetryQueue:
    cdef PyObject* first        # owned, each
    cdef PyObject* last
    cdef Py_ssize_t length
    cdef void append(self, PyObject* entry) noexcept nogil
    cdef void unlink(self, PyObject* entry) noexcept nogil
    cdef object traversed       # makes Cython give the type a traverse and a clear, which ours extend

cdef class DelayHeap:
    cdef PyObject** entries     # owned, each
    cdef Py_ssize_t length
    cdef Py_ssize_t reserved    # places that are promised to threads that are about to push
    cdef Py_ssize_t capacity
    cdef int reserve(self, SpinLock* lock) except -1
    cdef void give_back(self) noexcept nogil
    cdef void push(self, PyObject* entry, int64_t due_ns) noexcept nogil
    cdef void remove(self, PyObject* entry) noexcept nogil
    cdef PyObject* earliest(self) noexcept nogil
    cdef void place_up(self, PyObject* entry, Py_ssize_t index) noexcept nogil
    cdef void place_down(self, PyObject* entry, Py_ssize_t index) noexcept nogil
    cdef object traversed
