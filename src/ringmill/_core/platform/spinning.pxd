# How long a thread looks for something, awake, before it sleeps; and how it goes back to the GIL. See spinning.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef struct Spin:               # what has been worth it of late: guesses, by whoever has just spun, or napped
    atomic[int64_t] span_ns     # how long to spin
    atomic[uint32_t] count      # of spins in vain
    atomic[uint32_t] nap_skips  # after a nap that did not pay, so many are left out,
    atomic[uint32_t] nap_left   # of which so many are left

cdef enum:
    LONG_EVERY = 16             # one of so many spins is a long one, where short ones have been in vain

cdef enum SearchResult:               # how one has looked for something
    FOUND_HINT = 1              # spun, and saw a bit
    FOUND_NOTHING = 2                 # spun, and saw none
    NOT_AT_ALL = 3              # may not spin: enough others do
    NAPPED = 4

cdef void init_spin(Spin* spin) noexcept nogil
cdef bint may_spin() noexcept nogil
cdef bint spin_detached(atomic[uint64_t]* word, uint64_t bits, Spin* spin, int64_t deadline) noexcept nogil
cdef SearchResult spin_until(atomic[uint64_t]* word, uint64_t bits, Spin* spin, int64_t linger, int64_t deadline) noexcept
cdef SearchResult nap(Spin* spin, int64_t deadline) noexcept
cdef void learn_nap(Spin* spin, bint paid) noexcept
cdef void forget_lookers() noexcept  # in the child of a fork, which has none

cdef void released_gil() noexcept nogil
cdef void reacquire_gil() noexcept nogil
cdef void reacquired_gil() noexcept nogil
