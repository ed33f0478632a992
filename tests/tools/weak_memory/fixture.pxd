# What the threads of an execution share, and what they say to the machine. See execution.pyx for the scenarios.

from libc.stdint cimport uint64_t

from ringmill._core.pool.run cimport PoolRun
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.pool.stream cimport Stream
from ringmill._core.hub.subscription cimport HubBase
from ringmill._core.waiting.wait_queue cimport SpinLock, Sleeper

cdef extern from *:
    void wm_begin(uint64_t seed, bint by_the_clock)
    int wm_thread(void (*run)(void*) noexcept, void* argument)
    int wm_run()
    const char* wm_finding()
    const char* wm_story()
    void wm_name(const void* where, const char* name)
    void wm_find(const char* what)
    void wm_write_variable(int which)
    void wm_read_variable(int which)
    const void* wm_variable(int which)

cdef enum:
    THREADS = 6
    CALLS = 8
    BATCH = 3
    OPERATIONS = 4
    MAPPED = 8                  # items of a map: enough for two workers to take more than one at a time
    ITEMS = 64                  # a variable each, by number
    INPUT = 64                  # and behind them those of operations
    OUTPUT = 72
    COUNTER = 80

cdef struct Call:
    char letter
    bint impatient
    int number
    int first_item              # its items are numbered from here

cdef struct Entry:              # of the history: a call begins, or returns
    int who
    Call* call
    bint returns
    int result
    int count                   # of a batch, or of what is there
    int items[BATCH]            # what it took

cdef struct Actor:              # a thread
    int who
    int calls
    Call call[CALLS]

cdef class Idle(Sleeper):       # a waiter that never acts on a wake-up: a task of a loop that is stopped
    pass

cdef class Fixture:
    cdef RingBuffer ring
    cdef Idle idle              # waits for an item of the ring, if it was told to
    cdef list items             # by number
    cdef list operations
    cdef int ended[MAPPED]  # how often each was ended by a worker, or cancelled, over all submissions
    cdef int submitted[MAPPED]  # how often each was submitted
    cdef int counted            # under the lock
    cdef SpinLock lock
    cdef PoolRun core              # pools only, like the next
    cdef Stream stream          # of a wrap, read by several
    cdef dict streams           # of each thread's execute
    cdef set streamed           # numbers of the operations that come out of one
    cdef int out[MAPPED]    # how often each came out of a stream
    cdef dict ways              # by an operation's number: f, fails; r, is retried once; j, is rejected by worker 0
    cdef list retries           # by number: how often it was retried
    cdef HubBase hub            # hubs only, like the next
    cdef list subscriptions
    cdef list reads             # of each, the numbers of the items that it gave
    cdef int delivered
    cdef void name_all(self) noexcept
    cdef void let_idle_wait(self) noexcept
    cdef void end_idle(self) noexcept
