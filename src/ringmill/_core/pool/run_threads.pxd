# The threads of one run of a pool: which have begun, and ended. See run_threads.pyx.

cimport cython
from libc.stdint cimport uint32_t
from libcpp.atomic cimport atomic

from ringmill._core.pool.worker_state cimport WorkerState
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.waiting.wait_queue cimport SpinLock, WaitQueue

@cython.final
cdef class RunThreads:
    cdef SpinLock lock              # guards the stages of the WorkerStates, and the next
    cdef Py_ssize_t left            # threads that are EXPECTED or RUNNING
    cdef atomic[uint32_t] over      # 1: all have ended, and what they leave behind is done with
    cdef WaitQueue ended            # threads that join the run wait here
    cdef readonly RingBuffer over_for_tasks  # closed when all have ended: tasks that join the run wait here

    cdef void expect_first(self, WorkerState state) noexcept
    cdef bint expect(self, WorkerState state) noexcept
    cdef bint begin(self, WorkerState state) noexcept
    cdef bint give_up(self, WorkerState state, bint* last) noexcept
    cdef bint end(self, WorkerState state) noexcept
    cdef void set_over(self) noexcept
