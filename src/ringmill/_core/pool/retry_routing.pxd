# Which worker gets an operation that is to be tried again. See retry_routing.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.pool.operation cimport OperationBase
from ringmill._core.pool.retry_queue cimport DelayHeap, RetryQueue
from ringmill._core.pool.worker_table cimport WorkerTable
from ringmill._core.waiting.wait_queue cimport SpinLock, WaitQueue

@cython.final
cdef class RetryRouting:
    cdef WorkerTable workers        # written once, like the next two
    cdef RetryQueue queue           # operations to be tried again, or submitted without waiting, in order
    cdef DelayHeap delays           # operations to be tried again when their delay is over
    cdef atomic[Py_ssize_t] length  # of `queue`; written under the pool's lock
    # guarded by the pool's lock
    cdef Py_ssize_t tried_count     # entries of `queue` that a worker has tried
    cdef Py_ssize_t rejected_count  # those that a worker has rejected
    cdef uint64_t review            # counts the times when workers may take what they have passed over

    # under the pool's lock; entries are RetryEntries
    cdef void append(self, PyObject* entry) noexcept
    cdef bint route(self, PyObject* entry) noexcept
    cdef void unlink(self, PyObject* entry) noexcept
    cdef void delay(self, PyObject* entry, int64_t due_ns) noexcept
    cdef void undelay(self, PyObject* entry) noexcept
    cdef void take_out(self, PyObject* entry) noexcept
    cdef void enlist(self, PyObject* entry, bint delayed) noexcept
    cdef void delist(self, PyObject* entry) noexcept
    cdef PyObject* take_for(self, PyObject* worker) noexcept
    cdef PyObject* first_for(self, PyObject* worker) noexcept
    cdef void set_cursor(self, PyObject* worker, PyObject* entry) noexcept
    cdef PyObject* take_cancelled(self, OperationBase operation) noexcept
    cdef bint begin_wait(self, PyObject* worker) noexcept
    cdef PyObject* take_unroutable(self) noexcept
    cdef PyObject* take_unroutable_for(self, OperationBase operation, PyObject* source, uint64_t owner) noexcept
    cdef PyObject* take_if_unroutable(self, PyObject* entry, PyObject* chain) noexcept
    cdef PyObject* take_of_source(self, PyObject* source) noexcept
    cdef PyObject* take_delayed(self, int64_t now) noexcept
    cdef bint may_take(self, PyObject* tried_by, PyObject* rejected_by, PyObject* worker) noexcept
    cdef Py_ssize_t covered(self, PyObject* tried_by) noexcept
    cdef bint other_available(self, PyObject* tried_by, PyObject* rejected_by) noexcept
    cdef bint is_routable(self, PyObject* entry) noexcept
    cdef bint has_taker(self, PyObject* rejected_by) noexcept
    cdef bint has_untried(self, PyObject* tried_by, PyObject* rejected_by) noexcept
    # takes the pool's lock, like the next
    cdef bytes union_of(self, SpinLock* lock, bytes mask, bytes other, bint of_tried)
    cdef void wake_taker(self, WaitQueue* idle, SpinLock* lock, PyObject* tried_by, PyObject* rejected_by) noexcept
