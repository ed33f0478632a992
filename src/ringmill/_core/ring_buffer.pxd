# The lock-free ring. The protocol is at the head of ring_buffer.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.waiter cimport WaitQueue

# Producers write tail, consumers write head: a cache line each (two, for the adjacent-line prefetcher).
cdef extern from *:
    """
    #ifndef RINGMILL_CURSORS
    #define RINGMILL_CURSORS
    #include <atomic>
    #include <cstdint>
    struct RingmillCursors {
        alignas(128) std::atomic<std::uint64_t> head{0};
        alignas(128) std::atomic<std::uint64_t> tail{0};
    };
    static_assert(sizeof(RingmillCursors) == 256, "head and tail must not share a cache line");
    #endif
    """
    cppclass Cursors "RingmillCursors":
        atomic[uint64_t] head
        atomic[uint64_t] tail

cdef struct Slot:
    atomic[uint64_t] stamp      # a head or tail word: whose turn the slot is
    PyObject* item              # owned, while the stamp says that it is filled

cdef enum Result:
    NOT_NOW = 0                 # full, or empty
    DONE = 1
    SHUT = 2                       # closed; for a getter: and drained


cdef class RingBuffer:
    cdef Cursors* cursors       # written once, in __cinit__, like all below
    cdef Slot* slots
    cdef uint64_t one_lap       # a power of two above the capacity
    cdef readonly Py_ssize_t capacity
    cdef WaitQueue not_empty    # who waits for an item
    cdef WaitQueue not_full     # who waits for room
    cdef object traversed       # makes Cython give the type a traverse and a clear, which ours extend
    cdef object __weakref__

    # The ring itself: noexcept nogil, called attached, references move with the item.
    cdef uint64_t _after(self, uint64_t word, uint64_t count) noexcept nogil
    cdef uint64_t _between(self, uint64_t head, uint64_t tail) noexcept nogil
    cdef uint64_t _position(self, uint64_t word) noexcept nogil
    cdef Result try_put(self, PyObject* item, uint64_t* position) noexcept nogil
    cdef Result try_get(self, PyObject** item, uint64_t* position) noexcept nogil
    cdef Result try_put_many(self, PyObject** items, Py_ssize_t count, Py_ssize_t* done) noexcept nogil
    cdef Result try_get_many(self, PyObject** items, Py_ssize_t count, Py_ssize_t* done) noexcept nogil
    cdef void prefill(self, PyObject** items) noexcept nogil
    cdef bint shut(self) noexcept nogil
    cdef uint64_t put_count(self) noexcept nogil
    cdef uint64_t get_count(self) noexcept nogil
    cdef Py_ssize_t length(self) noexcept nogil
    cdef bint is_shut(self) noexcept nogil
    cdef bint has_items(self) noexcept nogil
    cdef bint has_room(self) noexcept nogil

    # With waiting: called attached, may run other code (a Sleeper's wake).
    cdef int put_item(self, PyObject* item, int64_t deadline, bint block) except -1
    cdef int get_item(self, PyObject** item, int64_t deadline, bint block) except -1
    cdef object _put_tuple(self, tuple items, int64_t deadline)
    cdef list _take(self, Py_ssize_t limit)
    cdef bint close_ring(self) except -1
