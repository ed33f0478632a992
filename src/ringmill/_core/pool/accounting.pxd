# The books of a pool's run: its feeds, its counts, its phase, and who is there. See accounting.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.pool.operation cimport OwnerPool, OperationBase
from ringmill._core.pool.retry_queue cimport DelayHeap, RetryQueue
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.waiting.wait_queue cimport SpinLock, WaitQueue

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

cdef class WorkerCounters:
    # What the books say of one worker. Written by its own thread, unless said otherwise.
    cdef readonly object worker
    cdef readonly Py_ssize_t index
    cdef public str name
    cdef Accounting accounting
    cdef PyObject* op               # what the worker has taken and not ended, owned; used by its own thread only
    cdef atomic[uint64_t] word      # twice the operations it ended, plus one while it runs one
    cdef uint64_t failed            # these four are written under the pool's lock
    cdef uint64_t retried
    cdef uint64_t tries
    cdef uint64_t restarts
    cdef atomic[uint32_t] alive     # between init and the end of its loop: may be handed retries
    cdef bint retired               # written under the pool's lock, like all that follows
    cdef PyObject* first_wait       # its WorkerWaits, borrowed: each is linked while its owner is in the wait
    cdef PyObject* running          # the operation in which it entered the last of them; only to be compared
    cdef PyObject* next_stalled     # in the bucket of Accounting.stalled that `running` belongs to
    cdef uint64_t visited           # the last search of waits_for_itself that has come here, and its next worker
    cdef PyObject* todo

    cdef void enter(self) noexcept
    cdef void leave(self) noexcept

cdef class WorkerWait:
    # A wait on a worker's thread for work of its own pool. Written before it is linked.
    cdef WorkerCounters worker_loop
    cdef OperationBase operation    # it waits for this operation,
    cdef WorkSource source                  # or for what comes out here,
    cdef bint for_turn              # or, so, for the turn to read that
    cdef bint timed                 # with a timeout, so that it ends by itself
    cdef uint32_t expected_generation              # of the operation
    cdef uint64_t word              # the worker's
    cdef bint in_task               # a task of an event loop waits, and the thread may go on
    cdef bint linked                # guarded by the pool's lock, like the next two
    cdef PyObject* next
    cdef PyObject* prev

cdef class Accounting(OwnerPool):
    cdef SpinLock lock         # guards what follows down to `phase`, and the feeds' links
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
    cdef atomic[Py_ssize_t] retry_count  # the length of `retries`; written under the lock
    cdef WaitQueue idle         # workers that sleep
    cdef WaitQueue leaving      # workers that pause before a restart
    cdef readonly list worker_loops  # Tallies, written once, with their number
    cdef Py_ssize_t worker_count
    cdef readonly RingBuffer inbox  # what `do` hands over
    cdef WorkSource inbox_source
    cdef dict kept              # owns the linked feeds, as its keys, in the order of their coming
    cdef dict streams           # weak references to the feeds that somebody may read, spent ones too, by address
    cdef object policy          # the Supervisor: _judge(runner, operation, error, raised)

    cdef int check_open(self) except -1
    cdef WorkerCounters current(self)
    cdef int add(self, WorkSource source) except -1
    cdef int remove(self, WorkSource source) except -1
    cdef void count(self, Counts* counts) noexcept nogil
    cdef bint all_settled(self) noexcept nogil
    cdef bint should_end(self) noexcept
    cdef int wake_for_drain(self) except -1
    cdef void link_wait(self, PyObject* wait) noexcept
    cdef void unlink_wait(self, PyObject* wait) noexcept
    cdef void join_stalled(self, PyObject* worker_loop, PyObject* running) noexcept
    cdef void leave_stalled(self, PyObject* worker_loop) noexcept
    cdef bint worker_left(self) noexcept
    cdef bint waits_for_itself(self, PyObject* worker_loop, PyObject* wait) noexcept
    cdef int review_retries(self) except -1

# All under the pool's lock; `runner` is a WorkerCounters, borrowed. Whether it is in a wait for work of its pool that has not come:
# it takes no operation before that has, or its time is over.
cdef bint is_waiting(PyObject* worker_loop) noexcept nogil
# The same of waits without a timeout only: it takes no operation before that has come.
cdef bint is_stalled(PyObject* worker_loop) noexcept nogil
# Whether it waits for this operation, or for what comes out of this feed. These two are borrowed; or NULL. `timed`: or in a
# wait with a timeout.
cdef bint waits_for(PyObject* worker_loop, PyObject* operation, PyObject* source, bint timed) noexcept nogil
cdef int refuse_alone(object made, object base) except -1
