# Where workers that start together wait for each other. See start_gate.pyx.

cimport cython
from libc.stdint cimport uint32_t
from libcpp.atomic cimport atomic

from ringmill._core.waiting.wait_queue cimport WaitQueue

@cython.final
cdef class StartGate:
    cdef atomic[uint32_t] reports   # how many workers have said whether they came up
    cdef atomic[uint32_t] verdict   # whether the start succeeded: UNKNOWN, GO, STOP
    cdef WaitQueue reported         # the thread that starts them waits here
    cdef WaitQueue decided          # workers that have come up wait here

    cdef void report(self) noexcept
