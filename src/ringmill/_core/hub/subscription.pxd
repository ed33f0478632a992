# Subscriptions and the publisher's side of a hub. See subscription.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic, memory_order_seq_cst

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
    # 1: the hub's ring passes it over: a thread that takes an item must set it ready. Written under the ring's lock.
    cdef atomic[uint32_t] passed_over
    # Numbers of references that hubs hold and the collector does not attribute to them: see the head of
    # subscription.pyx
    cdef atomic[Py_ssize_t] hidden  # of snapshots and Pins
    cdef atomic[Py_ssize_t] links   # of the hub's ring: 0 or 1

    cdef int offer(self, PyObject* item) noexcept
    cdef int deliver_now(self, PyObject* item) noexcept

cdef class Recipients(Snapshot):
    # A hub's snapshot. Its references are not shown to the collector.
    cdef PyObject** mailboxes   # each owned, or NULL while it is being filled
    cdef Py_ssize_t count

cdef class Pin:
    # Keeps a mailbox in memory for a publisher that waits in it, or is about to. Its reference is not shown to the
    # collector.
    cdef PyObject* mailbox      # owned; written once

    cdef int deliver(self, object item, int64_t deadline, PyObject** taker) except -1
    cdef int wait_for_room(self, object item, int64_t deadline, PyObject** taker) except -1

cdef class SubscriptionBase:
    cdef Mailbox mailbox        # written once, like the next; None where __cinit__ failed
    cdef SubscriptionRing ring  # the hub's
    cdef uint64_t number        # written once; `id` in Python
    cdef atomic[uint32_t] added  # 1: has been added to the hub's ring
    cdef object __weakref__

    cdef RingBuffer reader(self)

cdef inline void made_room(SubscriptionBase subscription) noexcept:
    # Follows each call that has taken items. seq_cst: after the claim of the buffer's head; pairs with the store in
    # SubscriptionRing.pass_over
    if subscription.mailbox.passed_over.load(memory_order_seq_cst):
        subscription.ring.set_ready(<PyObject*>subscription.mailbox, &subscription.mailbox.passed_over)

cdef class HubBase:
    cdef SubscriptionRing subscriptions  # of Mailboxes, so not shown to Python code; None where __cinit__ failed
    cdef atomic[uint32_t] shut
    cdef object __weakref__

    cdef int check_open(self) except -1
    cdef void end_all(self) noexcept
    cdef Recipients recipients(self)
    cdef PyObject* offer_to(self, PyObject* mailbox, PyObject* item) noexcept
    cdef PyObject* offer_in_turn(self, PyObject* item, PyObject** next_one) noexcept
    cdef object signal_result(self, Pin pin)
    cdef list offer_all(self, object item, Py_ssize_t* count)
    cdef object raise_full(self, Py_ssize_t count)
