# One subscriber's buffer and overflow policy, and the publisher's loops. See subscription.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.ring_buffer cimport RingBuffer
from ringmill._core.subscription_ring cimport SubscriptionRing

cdef enum Overflow:
    BLOCK
    DROP_OLDEST
    DROP_INCOMING
    LATEST
    RAISE

cdef class SubscriptionBase:
    cdef RingBuffer buffer          # written once, like the next two
    cdef Overflow overflow
    cdef readonly uint64_t id
    cdef atomic[uint64_t] drops
    cdef object __weakref__

    cdef int offer(self, PyObject* item) except -1
    cdef int deliver(self, PyObject* item, int64_t deadline) except -1
    cdef int deliver_now(self, PyObject* item) except -1

cdef class HubBase:
    cdef SubscriptionRing subscriptions  # of SubscriptionBases only, so not for Python
    cdef atomic[uint32_t] shut
    cdef object __weakref__

    cdef int check_open(self) except -1
    cdef SubscriptionBase pass_round(self, object item, bint* taken)
    cdef object not_taken(self, SubscriptionBase subscription)
    cdef list offer_all(self, object item, Py_ssize_t* count)
    cdef object not_all(self, Py_ssize_t count)
