# One worker's loop. See worker_loop.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from ringmill._core.pool.item_source cimport ItemSource
from ringmill._core.pool.operation cimport ErrorRecord
from ringmill._core.pool.retry_queue cimport RetryEntry
from ringmill._core.pool.run cimport PoolRun
from ringmill._core.pool.start_gate cimport StartGate
from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.pool.worker_state cimport WorkerState

@cython.final
cdef class WorkerLoop:
    # Used by the worker's own thread only, unless said otherwise.
    cdef readonly PoolRun pool_run  # written once, like the next
    cdef readonly WorkerState state  # its counters, and the current operation
    cdef readonly StartGate gate    # where it waits until those that start with it have come up; written once
    cdef public object thread       # the policy's, like the next two: its thread, once that was made;
    cdef public object retry_on     # which exceptions of `process` mean that it is to be tried again;
    cdef public object crashes      # when it crashed
    cdef public bint keeps_worker   # later workers may be compared with it, also after it has left
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

    # items: see run_items
    cdef public object process      # what runs them: the worker's `process`, or an InContext of it; set by the policy
    cdef ItemSource items           # the source of the claimed item
    cdef PyObject* item             # the claimed item, owned; NULL where the source computes it
    cdef bint has_item              # an item is claimed: `position` is its position, `items` its source
    cdef ItemSource function_of     # the source for which `function` was found
    cdef object function            # what runs its items
    cdef object refusal             # why there is no `function`
    cdef int until_look             # items until the next look at the clock, see let_others_run;
    cdef int look_every             # how many there are between two looks
    cdef int64_t looked_at
    cdef int64_t yielded_at
    cdef object last_result_type    # of what `process` returned for an item

    cdef bint more_work(self) noexcept
    cdef bint run_items(self) except -1
    cdef int find_function(self) except -1
    cdef PyObject* call_for_item(self, PyObject* item) noexcept
    cdef bint item_failed(self, PyObject* item) except -1
    cdef void end_item_failed(self, PyObject* error) noexcept
    cdef object judge_handled(self, object error)
    cdef void release_items(self) noexcept
    cdef void add_if_wanted(self) noexcept
    cdef void let_others_run(self) noexcept
    cdef bint run_record(self, PyObject* raw) except -1
    cdef PyObject* checked_result(self, PyObject* result) noexcept
    cdef int take(self, bint sleepy) noexcept
    cdef int take_again(self) noexcept
    cdef int take_oldest(self, bint sleepy) noexcept
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
    cdef bint is_gone(self, bint for_good) noexcept
    cdef void release_worker(self) noexcept
    cdef void end_thread(self) noexcept
