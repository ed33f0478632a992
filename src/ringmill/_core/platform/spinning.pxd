# Bounded spinning before a thread sleeps, short sleeps, and how a thread reacquires the GIL. See spinning.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

cdef struct Spin:               # what has paid recently; hints, updated by threads that spin or sleep briefly
    atomic[int64_t] span_ns     # how long to spin
    atomic[uint32_t] count      # short spins, to find the next long one
    atomic[uint32_t] sleep_skips  # how many short sleeps are skipped after one that did not pay
    atomic[uint32_t] sleep_skips_left  # how many of them are still to be skipped

cdef enum:
    LONG_EVERY = 16             # when short spins find nothing, one in this many is a long one

cdef enum SearchResult:
    FOUND_HINT = 1              # the thread spun and saw a bit
    FOUND_NOTHING = 2           # it spun and saw none
    NOT_AT_ALL = 3              # it may not spin: enough other threads do
    SLEPT = 4                   # it slept briefly

cdef void init_spin(Spin* spin) noexcept nogil
cdef bint may_spin() noexcept nogil
cdef bint spin_detached(atomic[uint64_t]* word, uint64_t bits, Spin* spin, int64_t deadline) noexcept nogil
cdef SearchResult spin_until(
    atomic[uint64_t]* word, uint64_t bits, Spin* spin, int64_t delay, int64_t deadline
) noexcept
cdef SearchResult short_sleep(Spin* spin, int64_t deadline) noexcept
cdef void learn_short_sleep(Spin* spin, bint paid) noexcept
cdef void reset_search_count() noexcept  # for the child of a fork, where no other thread searches

cdef void released_gil() noexcept nogil
cdef void reacquire_gil() noexcept nogil
cdef void reacquired_gil() noexcept nogil
