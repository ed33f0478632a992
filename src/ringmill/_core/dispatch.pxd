# Take, call, settle, emit: what happens to every operation. The protocol is at the head of dispatch.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from ringmill._core.books cimport Tally
from ringmill._core.feed cimport Feed
from ringmill._core.operation cimport Note, OperationBase
from ringmill._core.redrive cimport Redrives
from ringmill._core.retry_queue cimport RetryEntry
from ringmill._core.ring_buffer cimport RingBuffer
from ringmill._core.run_threads cimport RunThreads

cdef class Core(Redrives):
    cdef bint carries               # operations carry their submitter's context; written once, like the next
    cdef readonly RunThreads threads

    cdef int accept_new(self, OperationBase op, bint carries) except -1
    cdef bint hand_aside(self, OperationBase op) except -1
    cdef object handed(self, OperationBase op, int result)
    cdef object do(self, OperationBase op, int64_t deadline)
    cdef bint give_up(self, OperationBase op) except -1
    cdef int do_aside(self, OperationBase op) except -1
    cdef PyObject* next_feed(self, PyObject* after, Runner sleeper) except? NULL
    cdef bint any_work(self, Runner runner) noexcept

@cython.final
cdef class Runner(Tally):
    # One worker's loop. Used by its own thread only.
    cdef Core core
    cdef object crash               # what broke the worker, unless `process` raised it
    cdef uint64_t position
    cdef Feed feed                  # where it comes from, and where the next is looked for
    cdef Feed came_from             # where the operation at hand goes to: `feed`, or a Redrive's
    cdef RetryEntry record          # of the current operation, if it was tried before
    cdef Note spare_note            # for a failure for which there is no memory
    cdef bint needs_cleanup         # init was called, and cleanup was not yet
    cdef readonly bint has_reported  # whether it came up; if not:
    cdef readonly object start_error
    cdef object log_arguments       # a tuple of its name
    cdef public object equal_to     # a mask of workers, which are equal to it; None: not asked yet
    cdef int turn                   # how many more it takes from `feed` before it looks at the next
    cdef bint aside                 # took the last one from the side list
    cdef uint64_t waited_at         # how many it had ended when it last waited
    cdef object last_type
    cdef bint overridden            # whether last_type overrides done()

    cdef int take(self, bint sleepy) noexcept
    cdef int take_again(self) noexcept
    cdef int take_redrive(self) noexcept
    cdef int claim_from(self, Feed feed) noexcept
    cdef int end_source(self, Feed feed) noexcept
    cdef uint64_t since_wait(self) noexcept
    cdef int check_current(self) except -1
    cdef bint settle(self, PyObject* raw) except -1
    cdef void look_at_type(self, PyObject* kind) noexcept
    cdef object judge_error(self, object error, bint raised)
    cdef void end_failed(self, PyObject* error, bint seen) noexcept
    cdef PyObject* take_note(self, PyObject* error, PyObject* kind, bint seen) noexcept
    cdef PyObject* call_worker(self, PyObject* method) noexcept
    cdef void clean_up(self) noexcept
    cdef void report_error(self, PyObject* error) noexcept
    cdef void end_life(self, bint given_up) noexcept
    cdef void let_go(self) noexcept
    cdef void end_thread(self) noexcept
