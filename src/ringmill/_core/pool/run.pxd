# Take, call, settle, emit: what happens to every operation. The protocol is at the head of run.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from ringmill._core.pool.accounting cimport WorkerCounters
from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.pool.operation cimport ErrorRecord, OperationBase
from ringmill._core.pool.retry_routing cimport Retries
from ringmill._core.pool.retry_queue cimport RetryEntry
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.pool.run_threads cimport RunThreads

cdef class PoolRun(Retries):
    cdef bint carries               # operations carry their submitter's context; written once, like the next
    cdef readonly RunThreads threads

    cdef int accept_new(self, OperationBase op, bint carries) except -1
    cdef bint submit_aside(self, OperationBase op) except -1
    cdef object submitted(self, OperationBase op, int result)
    cdef object do(self, OperationBase op, int64_t deadline)
    cdef bint withdraw(self, OperationBase op) except -1
    cdef int submit_unbounded(self, OperationBase op) except -1
    cdef PyObject* next_source(self, PyObject* after, WorkerLoop sleeper) except? NULL
    cdef bint any_work(self, WorkerLoop worker_loop) noexcept

@cython.final
cdef class WorkerLoop(WorkerCounters):
    # One worker's loop. Used by its own thread only.
    cdef PoolRun core
    cdef object crash               # what broke the worker, unless `process` raised it
    cdef uint64_t position
    cdef WorkSource source                  # where it comes from, and where the next is looked for
    cdef WorkSource current_source             # where the operation at hand goes to: `feed`, or a RetryEntry's
    cdef RetryEntry record          # of the current operation, if it was tried before
    cdef ErrorRecord spare_record            # for a failure for which there is no memory
    cdef bint needs_cleanup         # init was called, and cleanup was not yet
    cdef readonly bint has_reported  # whether it came up; if not:
    cdef readonly object start_error
    cdef object log_arguments       # a tuple of its name
    cdef public object equal_to     # a mask of workers, which are equal to it; None: not asked yet
    cdef int turn                   # how many more it takes from `feed` before it looks at the next
    cdef bint took_retry                 # took the last one from the side list
    cdef uint64_t waited_at         # how many it had ended when it last waited
    cdef object last_type
    cdef bint overridden            # whether last_type overrides done()

    cdef int take(self, bint sleepy) noexcept
    cdef int take_again(self) noexcept
    cdef int take_retry(self) noexcept
    cdef int claim_from(self, WorkSource source) noexcept
    cdef int end_source(self, WorkSource source) noexcept
    cdef uint64_t since_wait(self) noexcept
    cdef int check_current(self) except -1
    cdef bint settle(self, PyObject* raw) except -1
    cdef void inspect_type(self, PyObject* kind) noexcept
    cdef object judge_error(self, object error, bint raised)
    cdef void end_failed(self, PyObject* error, bint seen) noexcept
    cdef PyObject* take_error_record(self, PyObject* error, PyObject* kind, bint seen) noexcept
    cdef PyObject* call_worker(self, PyObject* method) noexcept
    cdef void clean_up(self) noexcept
    cdef void report_error(self, PyObject* error) noexcept
    cdef void end_life(self, bint given_up) noexcept
    cdef void release_sources(self) noexcept
    cdef void end_thread(self) noexcept
