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
    cdef PyObject* op               # what the worker has taken and not ended, owned; used by its own thread only
    cdef atomic[uint64_t] word      # twice the operations it ended, plus one while it runs one
    cdef uint64_t failed            # these four are written under the pool's lock
    cdef uint64_t redriven
    cdef uint64_t tries
    cdef uint64_t restarts
    cdef atomic[uint32_t] alive     # between init and the end of its loop: may be handed redrives
    cdef bint retired               # written under the pool's lock, like all that follows
    cdef PyObject* first_wait       # its WorkerWaits, borrowed: each is linked while its owner is in the wait
    cdef PyObject* running          # the operation in which it entered the last of them; only to be compared
    cdef PyObject* next_stalled     # in the bucket of Books.stalled that `running` belongs to
    cdef uint64_t visited           # the last search of waits_for_itself that has come here, and its next worker
    cdef PyObject* todo

    cdef void enter(self) noexcept
    cdef void leave(self) noexcept

cdef class WorkerWait:
    # A wait on a worker's thread for work of its own pool. Written before it is linked.
    cdef Tally runner
    cdef OperationBase operation    # it waits for this operation,
    cdef Feed feed                  # or for what comes out here,
    cdef bint for_turn              # or, so, for the turn to read that
    cdef bint timed                 # with a timeout, so that it ends by itself
    cdef uint32_t life              # of the operation
    cdef uint64_t word              # the worker's
    cdef bint in_task               # a task of an event loop waits, and the thread may go on
    cdef bint linked                # guarded by the pool's lock, like the next two
    cdef PyObject* next
    cdef PyObject* prev

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
    cdef Py_ssize_t stalled_count  # those of them that have a WorkerWait of whatever kind
    cdef Py_ssize_t look_from   # the worker that was found not to wait when one was last looked for
    cdef PyObject* stalled[64]  # chains of the Tallies that have a WorkerWait, by the operation that they run
    cdef uint64_t visits        # numbers the searches of waits_for_itself
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
    cdef void link_wait(self, PyObject* wait) noexcept
    cdef void unlink_wait(self, PyObject* wait) noexcept
    cdef void join_stalled(self, PyObject* runner, PyObject* running) noexcept
    cdef void leave_stalled(self, PyObject* runner) noexcept
    cdef bint worker_left(self) noexcept
    cdef bint waits_for_itself(self, PyObject* runner, PyObject* wait) noexcept
    cdef int review_side(self) except -1

# All under the pool's lock; `runner` is a Tally, borrowed. Whether it is in a wait for work of its pool that has not come:
# it takes no operation before that has, or its time is over.
cdef bint is_waiting(PyObject* runner) noexcept nogil
# The same of waits without a timeout only: it takes no operation before that has come.
cdef bint is_stalled(PyObject* runner) noexcept nogil
# Whether it waits for this operation, or for what comes out of this feed. These two are borrowed; or NULL. `timed`: or in a
# wait with a timeout.
cdef bint waits_for(PyObject* runner, PyObject* operation, PyObject* feed, bint timed) noexcept nogil
cdef int refuse_alone(object made, object base) except -1
