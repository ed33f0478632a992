# The circular list of subscriptions. See subscription_ring.pyx.

from libc.stdint cimport uint64_t
from libcpp.atomic cimport atomic
from libcpp.unordered_map cimport unordered_map
from cpython.object cimport PyObject

from ringmill._core.waiter cimport ShortLock

cdef struct Link:
    PyObject* item              # owned
    Link* next
    Link* prev
    Link* same                  # the next later occurrence of the same item, or NULL
    Link* last_same             # of the first occurrence: the last one
    Py_ssize_t index            # its place in the snapshot, if that is of the ring's version

ctypedef PyObject* Item         # a template argument must be a name
ctypedef Link* LinkPointer

cdef class Snapshot:
    cdef tuple items            # from the head on
    cdef uint64_t version

cdef class SubscriptionRing:
    cdef ShortLock lock         # guards what follows, down to the version
    cdef Link* head
    cdef Link* at               # the current position
    cdef atomic[Py_ssize_t] count  # written under the lock, like the version; read without, as a hint
    cdef unordered_map[Item, LinkPointer] first  # item -> its first occurrence
    cdef atomic[uint64_t] version  # counts changes; written under the lock, read without
    cdef list cell              # [the last Snapshot made]
    cdef object __weakref__

    cdef Snapshot snapshot(self)
    cdef PyObject* step(self, bint before) noexcept
    cdef Link* unlink(self, PyObject* item) noexcept
