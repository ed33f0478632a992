# One subscriber's buffer and overflow policy, and the publisher's loops. See subscription.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.hub.subscription_ring cimport Snapshot, SubscriptionRing

cdef enum Overflow:
    BLOCK
    DROP_OLDEST
    DROP_INCOMING
    LATEST
    RAISE

cdef class Mailbox:
    cdef RingBuffer buffer      # written once, like the next two
    cdef Overflow overflow
    cdef object reference       # weak, to the subscription
    cdef atomic[uint64_t] drops
    # Counted references of hubs, which the collector is not shown: see the head of subscription.pyx
    cdef atomic[Py_ssize_t] hidden  # those of snapshots and Pins
    cdef atomic[Py_ssize_t] links   # that of the hub's ring: 0 or 1

    cdef int offer(self, PyObject* item) noexcept
    cdef int deliver_now(self, PyObject* item) noexcept

cdef class Recipients(Snapshot):
    # A hub's snapshot: its references are hidden from the collector.
    cdef PyObject** mailboxes   # owned, each; NULL where there is none yet
    cdef Py_ssize_t count

cdef class Pin:
    # Who waits in a mailbox, or is about to, keeps it in memory by this, hidden from the collector.
    cdef PyObject* mailbox      # owned; written once

    cdef int deliver(self, object item, int64_t deadline, PyObject** taker) except -1
    cdef int wait_for_room(self, object item, int64_t deadline, PyObject** taker) except -1

cdef class SubscriptionBase:
    cdef Mailbox mailbox        # written once, like the next; None where __cinit__ failed
    cdef SubscriptionRing ring  # the hub's
    cdef readonly uint64_t id
    cdef atomic[uint32_t] added  # to the hub's ring, ever
    cdef object __weakref__

    cdef RingBuffer reader(self)

cdef class HubBase:
    cdef SubscriptionRing subscriptions  # of Mailboxes only, so not for Python; None where __cinit__ failed
    cdef atomic[uint32_t] shut
    cdef object __weakref__

    cdef int check_open(self) except -1
    cdef void end_all(self) noexcept
    cdef Recipients recipients(self)
    cdef PyObject* offer_to(self, PyObject* mailbox, PyObject* item) noexcept
    cdef PyObject* pass_round(self, PyObject* item) except? NULL
    cdef Pin next_in_turn(self)
    cdef object not_taken(self, Pin pin)
    cdef list offer_all(self, object item, Py_ssize_t* count)
    cdef object not_all(self, Py_ssize_t count)
