# One worker's loop. See worker_loop.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from ringmill._core.pool.operation cimport ErrorRecord
from ringmill._core.pool.retry_queue cimport RetryEntry
from ringmill._core.pool.run cimport PoolRun
from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.pool.worker_state cimport WorkerState

@cython.final
cdef class WorkerLoop:
    # Used by the worker's own thread only, unless said otherwise.
    cdef readonly PoolRun pool_run  # written once, like the next
    cdef WorkerState state          # its counters, and the current operation
    cdef public str name
    cdef object crash               # what broke the worker, unless `process` raised it
    cdef uint64_t position          # of the current operation in its source
    cdef WorkSource source          # where the next operation is looked for
    cdef WorkSource current_source  # where the current operation comes out: `source`, or a RetryEntry's
    cdef RetryEntry record          # of the current operation, if it was tried before
    cdef ErrorRecord spare_record   # for a failure for which there is no memory
    cdef bint needs_cleanup         # init was called, and cleanup was not yet
    cdef readonly bint has_reported  # whether it came up; if not:
    cdef readonly object start_error
    cdef object log_arguments       # a tuple of its name
    cdef public object equal_to     # a mask of workers, which are equal to it; None: not asked yet
    cdef int turn                   # how many more it takes from `source` before it looks at the next
    cdef bint took_retry            # the last one that it took was to be tried again
    cdef uint64_t waited_at         # how many it had ended when it last waited
    cdef object last_type           # of an operation, and
    cdef bint overridden            # whether that overrides done()

    cdef bint more_work(self) noexcept
    cdef int take(self, bint sleepy) noexcept
    cdef int take_again(self) noexcept
    cdef int take_retry(self) noexcept
    cdef int claim_from(self, WorkSource source) noexcept
    cdef int end_source(self, WorkSource source) noexcept
    cdef uint64_t since_wait(self) noexcept
    cdef int check_current(self) except -1
    cdef bint end_succeeded(self, PyObject* raw) except -1
    cdef void inspect_type(self, PyObject* kind) noexcept
    cdef object judge_error(self, object error, bint raised)
    cdef void end_failed(self, PyObject* error, bint seen, bint logged) noexcept
    cdef PyObject* take_error_record(self, PyObject* error, PyObject* kind, bint seen) noexcept
    cdef PyObject* call_worker(self, PyObject* method) noexcept
    cdef void clean_up(self) noexcept
    cdef void report_error(self, PyObject* error) noexcept
    cdef void end_life(self, bint given_up) noexcept
    cdef void release_sources(self) noexcept
    cdef void end_thread(self) noexcept
