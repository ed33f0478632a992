# The circular list of subscriptions. See subscription_ring.pyx.

from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic
from cpython.object cimport PyObject

from ringmill._core.waiting.wait_queue cimport SpinLock

cdef struct Link:
    PyObject* item              # owned
    Link* next
    Link* prev
    Link* chained               # of an item's first occurrence: the next in its bucket
    Link* same                  # the next later occurrence of the same item, or NULL
    Link* last_same             # of the first occurrence: the last one
    Py_ssize_t index            # its place in the snapshot, if that is of the ring's version

cdef enum:
    FEW = 8                     # buckets that a ring begins with

cdef class Snapshot:
    cdef tuple items            # from the head on; None in a hub's, which keeps them elsewhere
    cdef uint64_t version       # of the ring; written before the snapshot is published

cdef class SubscriptionRing:
    cdef SpinLock lock         # guards what follows
    cdef atomic[uint32_t] epoch  # the fork epoch that the lock belongs to
    cdef Link* head
    cdef Link* at               # the current position
    cdef atomic[Py_ssize_t] count  # written under the lock; read without, as a hint
    cdef uint64_t version       # counts changes
    cdef PyObject* cached       # the last Snapshot made, owned; or NULL
    cdef Link** buckets         # item -> its first occurrence: a hash table, chained through the links
    cdef Link* few[FEW]         # the first buckets, so that a table is never missing
    cdef atomic[int] bits       # there are 1 << bits buckets; written under the lock; read without, as a hint
    # A hub's ring only; written once. Whether the garbage collector is shown the ring's reference to an item; and what to
    # do before the ring's reference to an item is dropped by the collector. NULL: all are shown, and nothing is to be done.
    cdef bint (*shown)(PyObject* item) noexcept
    cdef void (*forsaken)(PyObject* item) noexcept
    cdef object traversed       # makes Cython give the type a traverse and a clear, which ours extend
    cdef object __weakref__

    cdef Snapshot snapshot(self)
    cdef Snapshot cached_snapshot(self)
    cdef bint record(self, Snapshot made, PyObject** into, Py_ssize_t count) noexcept
    cdef Py_ssize_t place_of_current(self, Snapshot made) noexcept
    cdef int append(self, PyObject* item) except -1
    cdef bint take_out(self, PyObject* item) noexcept
    cdef PyObject* take_first(self) noexcept
    cdef PyObject* step(self, bint before) noexcept
