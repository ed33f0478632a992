# The ring buffer: the ring of ring.pxd, and who waits for it.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.ring.ring cimport Ring
from ringmill._core.waiting.wait_queue cimport WaitQueue

cdef class RingBuffer:
    cdef Ring* ring             # written once, in __init__, like the next
    cdef readonly Py_ssize_t capacity
    cdef WaitQueue not_empty    # who waits for an item
    cdef WaitQueue not_full     # who waits for room
    cdef atomic[uint64_t] getters_mark  # what the count was when a getter last waited; a hint, like the next
    cdef atomic[uint64_t] putters_mark
    cdef atomic[uint64_t] finished  # tasks; never more than were put: see the tasks in ring_buffer.pyx
    cdef WaitQueue all_finished  # who waits in join
    cdef atomic[uint32_t] made  # 1: __init__ has made the ring
    cdef object traversed       # makes Cython give the type a traverse and a clear, which ours extend
    cdef object __weakref__

    # With waiting: called attached, may run other code (a Sleeper's wake).
    cdef int put_item(self, PyObject* item, int64_t deadline, bint block) except -1
    cdef int get_item(self, PyObject** item, int64_t deadline, bint block) except -1
    cdef object _put_tuple(self, tuple items, int64_t deadline)
    cdef list _take(self, Py_ssize_t limit, list first)
    cdef object get_or_raise(self)
    cdef bint close_ring(self) except -1
    cdef bint finish(self) except -1
    cdef int check_made(self) except -1

cdef object checked_max(object value)
