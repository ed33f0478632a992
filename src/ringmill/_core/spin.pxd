# How long a thread looks for something, awake, before it sleeps; and how it goes back to the GIL. See spin.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef struct Spin:               # how long it has been worth it of late: two guesses, by whoever has just spun
    atomic[int64_t] span_ns
    atomic[uint32_t] count

cdef enum:
    LONG_EVERY = 16             # one of so many spins is a long one, where short ones have been in vain

cdef void init_spin(Spin* spin) noexcept nogil
cdef bint may_spin() noexcept nogil
cdef bint spin_until(atomic[uint64_t]* word, uint64_t bits, Spin* spin, int64_t linger, int64_t deadline) noexcept

cdef void went_out() noexcept nogil
cdef void come_in() noexcept nogil
cdef void came_in() noexcept nogil
