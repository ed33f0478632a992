# One run of a pool: accepting operations, ending them without a worker, the end of the run. See run.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic, memory_order_relaxed, memory_order_seq_cst

from ringmill._core.pool.accounting cimport Accounting
from ringmill._core.pool.item_source cimport ItemSource
from ringmill._core.pool.operation cimport ErrorRecord, OperationBase, OwnerPool
from ringmill._core.pool.retry_queue cimport RetryQueue
from ringmill._core.pool.retry_routing cimport RetryRouting
from ringmill._core.pool.run_threads cimport RunThreads
from ringmill._core.pool.source_list cimport SourceList
from ringmill._core.pool.start_gate cimport StartGate
from ringmill._core.pool.work_source cimport QUIET, WorkSource
from ringmill._core.pool.worker_state cimport WorkerState
from ringmill._core.pool.worker_table cimport WorkerTable
from ringmill._core.pool.worker_waits cimport WorkerWaits
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.waiting.wait_queue cimport SpinLock, WaitQueue, notify

cdef enum Phase:
    OPEN = 1                    # accepts
    DRAINING = 2                # accepts nothing more; workers finish what was accepted
    ENDING = 3                  # workers leave
    BROKEN = 4                  # the last worker is lost; workers leave

cdef struct SubmitRequest:      # a `do` that may have to wait
    PyObject* run
    PyObject* op

cdef class PoolRun(OwnerPool):
    cdef SpinLock lock              # guards the state of the parts, as they say, and what is said here to be
    # written once
    cdef readonly object policy     # the Supervisor: _live(worker_loop), _judge(worker_loop, operation, error, raised)
    cdef readonly bint first_come   # work begins in the order in which it was accepted; else sources take turns
    cdef bint carries               # operations carry their submitter's context
    cdef readonly RingBuffer inbox  # what `do` submits
    cdef WorkSource inbox_source
    cdef readonly WorkerTable workers
    cdef readonly list worker_loops  # the WorkerLoops of the workers in the table; appended to
    cdef readonly StartGate gate    # of the workers that the run started with
    cdef atomic[Py_ssize_t] max_workers  # up to how many are added while work waits and no worker is free; 0: none
    cdef SourceList sources
    cdef RetryRouting routing
    cdef WorkerWaits waits
    cdef Accounting accounting
    cdef readonly RunThreads threads
    cdef object broken_message
    cdef ErrorRecord broken_for_all  # for an operation for which there is no memory for an error object of its own
    cdef atomic[uint32_t] phase     # written under the lock
    cdef atomic[uint32_t] sealed    # nothing more will be accepted: every source has ended
    cdef WaitQueue idle             # workers that sleep
    cdef WaitQueue leaving          # workers that pause before a restart
    # guarded by the lock
    cdef RetryQueue orphans         # cancelled, their place claimed, not yet released; see emit_cancelled
    cdef uint64_t arrivals          # numbers what is accepted, in a run that is first_come
    cdef Py_ssize_t held_back       # workers that were to leave and could not: see leaves
    cdef Py_ssize_t free_from       # the worker that wants_worker looks at first
    cdef bint undelayed             # no retry is delayed any more: the interpreter ends
    cdef bint has_timer             # the timer's thread runs
    cdef bint no_timer              # it cannot be started: retries are not delayed
    cdef bint timer_stopped
    cdef int64_t timer_deadline     # until when the timer's thread sleeps
    cdef WaitQueue timer_wakes      # the timer's thread

    # the phase
    cdef int check_open(self) except -1
    cdef bint should_end(self) noexcept
    cdef int wake_for_drain(self) except -1
    # workers
    cdef WorkerState current(self)
    cdef bint wants_worker(self) noexcept
    cdef int add_if_wanted(self) except -1
    cdef void set_alive(self, WorkerState worker, bint alive) noexcept
    cdef bint leaves(self, WorkerState worker) noexcept
    cdef bint workers_left(self) noexcept
    # sources
    cdef int add(self, WorkSource source) except -1
    cdef int remove(self, WorkSource source) except -1
    cdef void make_ready(self, PyObject* source) noexcept
    cdef void return_source(self, PyObject* source) noexcept
    cdef void drop(self, WorkSource source) noexcept
    cdef PyObject* next_source(self, bint in_turn, bint watch) except? NULL
    cdef int remove_spent(self, Py_ssize_t most) except -1
    cdef bint any_work(self) noexcept
    # accepting
    cdef int accept_new(self, OperationBase op, bint carries) except -1
    cdef bint submit_aside(self, OperationBase op) except -1
    cdef object submitted(self, OperationBase op, int result)
    cdef object do(self, OperationBase op, int64_t deadline)
    cdef int wait_for_room(self, SubmitRequest* request, int64_t deadline) except -1
    cdef ItemSource map_items(self, object items, bint ordered, object function, bint unpacks, bint carries)
    cdef Py_ssize_t span_count(self)
    cdef ItemSource draw_items(self, uint64_t bound, bint ordered, object function, bint unpacks, bint carries)
    cdef bint withdraw(self, OperationBase op) except -1
    cdef int submit_unbounded(self, OperationBase op) except -1
    # retries
    cdef bint route_retry(self, PyObject* entry) noexcept
    cdef void wake_for_retry(self, PyObject* tried_by, PyObject* rejected_by) noexcept
    cdef PyObject* take_retry_for(self, PyObject* worker) noexcept
    cdef bint retry_is_first(self, PyObject* source) noexcept
    cdef void end_retry(self, PyObject* entry) noexcept
    cdef void cancel_dropped(self, PyObject* entry) noexcept
    cdef int review_retries(self) except -1
    cdef int end_chain(self, PyObject* entry) except -1
    cdef int retire(self, WorkerState worker) except -1
    cdef PyObject* take_delayed(self, int64_t now) noexcept
    cdef int release_due(self, int64_t now) except -1
    cdef int serve_timer(self) except -1
    # ending without a worker
    cdef int emit_cancelled(self, PyObject* op, WorkSource source, uint64_t position) except -1
    cdef int end_one(self, OperationBase op, WorkSource source, uint64_t position, uint32_t phase,
                     PyObject* error_record, list ended) except -1
    cdef int end_entry(self, PyObject* entry, uint32_t phase, list ended) except -1
    cdef int end_unbegun(self, WorkSource source, uint32_t phase, list ended) except -1
    cdef int end_abandoned(self, WorkSource source) except -1
    cdef int end_items(self, ItemSource source, uint32_t phase, list ended) except -1
    cdef int end_pending(self, uint32_t phase, list ended) except -1
    cdef PyObject* take_any(self) noexcept
    cdef PyObject* broken_record(self, PyObject* operation) noexcept

cdef inline bint may_add_worker(PoolRun run) noexcept:
    # Whether the run adds workers by itself and has fewer than it may have; a hint.
    cdef Py_ssize_t most = run.max_workers.load(memory_order_relaxed)  # relaxed, both: a hint
    return most and run.workers.present.load(memory_order_relaxed) < most

cdef inline void announce(PoolRun run, WorkSource source) noexcept:
    # Something was published in a source, by a seq_cst write: workers look there.
    if source.place.load(memory_order_seq_cst) == QUIET:  # seq_cst: see source_list.pyx
        run.make_ready(<PyObject*>source)
    notify(&run.idle)
