# RingBuffer: the ring of ring.pxd with its waiting threads and tasks. See ring_buffer.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.ring.ring cimport Ring
from ringmill._core.waiting.wait_queue cimport WaitQueue

cdef class RingBuffer:
    cdef Ring* ring             # written once more, in __init__: see ring_buffer.pyx
    cdef WaitQueue not_empty    # getters
    cdef WaitQueue not_full     # putters
    cdef atomic[uint64_t] getters_mark  # get_count when a getter last waited; a hint
    cdef atomic[uint64_t] putters_mark  # put_count when a putter last waited; a hint
    cdef atomic[uint64_t] finished  # task_done() calls; at most put_count
    cdef WaitQueue all_finished  # callers of join
    cdef atomic[uint32_t] made  # 1: __init__ has made the ring
    cdef object traversed       # makes Cython generate tp_traverse and tp_clear, which ring_buffer.pyx extends
    cdef object __weakref__

    # Called attached; may run other code (Sleeper.wake).
    cdef int put_item(self, PyObject* item, int64_t deadline, bint block) except -1
    cdef int get_item(self, PyObject** item, int64_t deadline, bint block) except -1
    cdef object _put_tuple(self, tuple items, int64_t deadline)
    cdef list _take(self, Py_ssize_t limit, list first)
    cdef object get_or_raise(self)
    cdef object get_or_wait(self, object block, object timeout)
    cdef int put_or_wait(self, object item, object block, object timeout) except -1
    cdef bint close_ring(self) except -1
    cdef bint finish(self) except -1
    cdef int check_made(self) except -1

cdef object checked_max(object value)
