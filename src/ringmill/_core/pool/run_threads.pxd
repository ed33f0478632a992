# The threads of one run of a pool: which have begun, reported, and ended. See run_threads.pyx.

from libc.stdint cimport uint8_t, uint32_t
from libcpp.atomic cimport atomic

from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.waiting.wait_queue cimport SpinLock, WaitQueue

cdef class RunThreads:
    cdef SpinLock lock             # guards the next three
    cdef uint8_t* stages            # by worker's index: EXPECTED, RUNNING, OVER
    cdef Py_ssize_t count
    cdef Py_ssize_t left            # threads that are not OVER
    cdef atomic[uint32_t] reports   # how many workers have said whether they came up
    cdef atomic[uint32_t] verdict   # whether the start succeeded: UNKNOWN, GO, STOP
    cdef atomic[uint32_t] over      # 1: all have ended, and what they leave behind is done with
    cdef WaitQueue reported         # the thread that starts the run waits here
    cdef WaitQueue decided          # workers that have come up wait here
    cdef WaitQueue ended            # threads that join the run wait here
    cdef readonly RingBuffer over_for_tasks  # closed when all have ended: tasks that join the run wait here

    cdef bint begin(self, Py_ssize_t index) noexcept
    cdef bint end(self, Py_ssize_t index) noexcept
    cdef void report(self) noexcept
    cdef void set_over(self) noexcept
