# SubscriptionRing: the circular list of a hub's subscriptions. See subscription_ring.pyx.

from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic
from cpython.object cimport PyObject

from ringmill._core.hub.index_set cimport IndexSet
from ringmill._core.waiting.wait_queue cimport SpinLock

cdef struct Link:
    PyObject* item              # owned
    Link* next
    Link* prev
    Link* chained               # in an item's first occurrence: the next link in its bucket
    Link* same                  # the next later occurrence of the same item, or NULL
    Link* last_same             # in an item's first occurrence: the last occurrence
    Py_ssize_t index            # its index in the cached snapshot, if that has the ring's version
    size_t place                # in a hub's ring: where it is in `places`
    bint ready                  # likewise: whether its place is in `places.ready`

cdef enum:
    FEW = 8                     # buckets that a ring begins with

cdef struct Places:             # the links of a hub's ring in order, and which items may be ready
    Link** links                # by place; only those of `ready` are valid. One allocation with the words of `ready`
    size_t size
    size_t used                 # the place of the next link that is added
    IndexSet ready              # places of items that may be ready

cdef struct Turn:               # one call's search for a ready item; begins with `start` NULL
    Link* start                 # where the ring was when it began
    Link* moved_to              # where this search has moved it; NULL: it has not
    uint64_t version            # the ring's then: the links are valid as long as it has not changed

cdef class Snapshot:
    cdef tuple items            # from the head on; None in Recipients, which keeps them elsewhere
    cdef uint64_t version       # of the ring; written before the snapshot is published

cdef class SubscriptionRing:
    cdef SpinLock lock         # guards what follows
    cdef atomic[uint32_t] epoch  # the fork epoch in which the lock was initialized
    cdef Link* head
    cdef Link* at               # the current position
    cdef atomic[Py_ssize_t] count  # written under the lock; read without, as a hint
    cdef uint64_t version       # counts changes
    cdef PyObject* cached       # the latest Snapshot, owned; or NULL
    cdef Link** buckets         # item -> its first occurrence: a hash table, chained through the links
    cdef Link* few[FEW]         # the first table, so that there always is one
    cdef atomic[int] bits       # there are 1 << bits buckets; written under the lock; read without, as a hint
    # Set once, in a hub's ring only; otherwise NULL. Whether the ring's reference to an item is shown to the collector
    # (NULL: always), and what is called before tp_clear drops the ring's reference to an item.
    cdef bint (*is_shown)(PyObject* item) noexcept
    cdef void (*before_drop)(PyObject* item) noexcept
    # Likewise: whether an item is ready, from atomic loads only. NULL: the ring does not keep track of that.
    cdef bint (*is_ready)(PyObject* item) noexcept
    cdef Places* places         # NULL before the first item, or without is_ready
    cdef atomic[size_t] free_places  # places.size - places.used; written under the lock; read without, as a hint
    cdef object traversed       # makes Cython generate tp_traverse and tp_clear, which subscription_ring.pyx extends
    cdef object __weakref__

    cdef Snapshot snapshot(self)
    cdef Snapshot cached_snapshot(self)
    cdef bint record(self, Snapshot made, PyObject** into, Py_ssize_t count) noexcept
    cdef Py_ssize_t index_of_current(self, Snapshot made) noexcept
    cdef int append(self, PyObject* item) except -1
    cdef bint take_out(self, PyObject* item) noexcept
    cdef PyObject* take_first(self) noexcept
    cdef PyObject* step(self, bint before) noexcept
    cdef PyObject* next_ready(self, Turn* turn, bint* ready) noexcept
    cdef void pass_over(self, PyObject* item, atomic[uint32_t]* passed_over) noexcept
    cdef void set_ready(self, PyObject* item, atomic[uint32_t]* passed_over) noexcept
