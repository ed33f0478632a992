# The books of a pool's run: its feeds, its counts, its phase, and who is there. See books.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.feed cimport Feed
from ringmill._core.operation cimport Home, OperationBase
from ringmill._core.retry_queue cimport DelayHeap, RetryQueue
from ringmill._core.ring_buffer cimport RingBuffer
from ringmill._core.waiter cimport ShortLock, WaitQueue

cdef enum Phase:
    OPEN = 1                    # accepts
    DRAINING = 2                # accepts nothing more; workers finish what was accepted
    ENDING = 3                  # workers leave
    BROKEN = 4                  # the last worker is lost; workers leave

cdef struct Counts:
    uint64_t accepted
    uint64_t running
    uint64_t delayed
    uint64_t succeeded
    uint64_t failed
    uint64_t cancelled
    uint64_t tries
    uint64_t restarts

cdef class Tally:
    # What the books say of one worker. Written by its own thread, unless said otherwise.
    cdef readonly object worker
    cdef readonly Py_ssize_t index
    cdef public str name
    cdef Books books
    cdef atomic[uint64_t] word      # twice the operations it ended, plus one while it runs one
    cdef uint64_t failed            # these four are written under the pool's lock
    cdef uint64_t redriven
    cdef uint64_t tries
    cdef uint64_t restarts
    cdef atomic[uint32_t] alive     # between init and the end of its loop: may be handed redrives
    cdef bint retired               # written under the pool's lock, like the next three
    cdef bint waits                 # for work of its own pool, so it takes none; for:
    cdef OperationBase awaited      # this operation
    cdef Feed awaited_feed          # or what comes out here

    cdef void enter(self) noexcept
    cdef void leave(self) noexcept

cdef class Books(Home):
    cdef ShortLock lock         # guards what follows down to `phase`, and the feeds' links
    cdef PyObject* first        # the circular list of feeds
    cdef Py_ssize_t linked
    cdef RetryQueue retries     # operations to be tried again, or submitted without waiting, in order
    cdef DelayHeap delays       # operations to be tried again when their delay is over
    cdef uint64_t accepted_before  # by feeds that are gone, and by way of the side list
    cdef uint64_t cancelled
    cdef uint64_t failed        # without a worker: by breakage
    cdef Py_ssize_t present     # workers that are not retired
    cdef atomic[uint32_t] phase
    cdef atomic[uint32_t] sealed  # nothing more will be accepted: every feed has ended
    cdef atomic[Py_ssize_t] side_count  # the length of `retries`; written under the lock
    cdef WaitQueue idle         # workers that sleep
    cdef WaitQueue leaving      # workers that pause before a restart
    cdef readonly list runners  # Tallies, written once, with their number
    cdef Py_ssize_t crew
    cdef readonly RingBuffer inbox  # what `do` hands over
    cdef Feed inbox_feed
    cdef dict kept              # owns the linked feeds, as its keys, in the order of their coming
    cdef dict streams           # weak references to the feeds that somebody may read, spent ones too, by address
    cdef object policy          # the Supervisor: _judge(runner, operation, error, raised)

    cdef int check_open(self) except -1
    cdef Tally current(self)
    cdef int add(self, Feed feed) except -1
    cdef int remove(self, Feed feed) except -1
    cdef void count(self, Counts* counts) noexcept nogil
    cdef bint settled(self) noexcept nogil
    cdef bint ends(self) noexcept
    cdef int wake_for_the_end(self) except -1
    cdef Py_ssize_t waiting(self) noexcept
    cdef int review_side(self) except -1
