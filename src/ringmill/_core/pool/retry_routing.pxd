# What happens to operations otherwise than on a worker: tried again, cancelled, ended. See retry_routing.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringmill._core.pool.accounting cimport Accounting, WorkerCounters
from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.pool.operation cimport ErrorRecord, OperationBase
from ringmill._core.pool.retry_queue cimport RetryQueue
from ringmill._core.waiting.wait_queue cimport WaitQueue

cdef class Retries(Accounting):
    # guarded by the pool's lock
    cdef RetryQueue orphans     # cancelled, their place claimed, not yet released; see emit_cancelled
    cdef bint undelayed         # no retry is delayed any more: the interpreter ends
    cdef bint has_timer         # the timer's thread runs
    cdef bint no_timer          # it cannot be started: retries are not delayed
    cdef bint timer_stopped
    cdef int64_t timer_deadline  # until when the timer's thread sleeps
    cdef WaitQueue timer_wakes  # the timer's thread
    # written once, before the pool is BROKEN
    cdef object broken_message
    cdef ErrorRecord broken_for_all    # for an operation for which there is no memory for an error object of its own

    cdef bint append_retry(self, PyObject* entry) noexcept
    cdef void unlink_retry(self, PyObject* entry) noexcept
    cdef void wake_for_retry(self, PyObject* tried_by, PyObject* rejected_by) noexcept
    cdef PyObject* take_retry_for(self, WorkerCounters worker_loop) noexcept
    cdef bint may_take(self, PyObject* tried_by, PyObject* rejected_by, WorkerCounters worker_loop) noexcept
    cdef bint routable(self, PyObject* entry) noexcept
    cdef void end_retry(self, PyObject* entry) noexcept
    cdef PyObject* broken_record(self, PyObject* operation) noexcept
    cdef PyObject* take_delayed(self, int64_t now) noexcept
    cdef PyObject* unlink_delayed(self, int64_t now) noexcept
    cdef int serve_timer(self) except -1
    cdef int release_due(self, int64_t now) except -1
    cdef int emit_cancelled(self, PyObject* op, WorkSource source, uint64_t position) except -1
    cdef int end_one(self, OperationBase op, WorkSource source, uint64_t position, uint32_t phase, PyObject* error_record,
                     list ended) except -1
    cdef int end_entry(self, PyObject* entry, uint32_t phase, list ended) except -1
    cdef int end_unbegun(self, WorkSource source, uint32_t phase, list ended) except -1
    cdef int end_pending(self, uint32_t phase, list ended) except -1
    cdef PyObject* take_any(self) noexcept
