# Take, call, settle, emit: what happens to every operation. The protocol is at the head of dispatch.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.feed cimport Feed
from ringmill._core.operation cimport Home, Note, OperationBase
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

cdef class Redrive:
    # An operation that was put back, and what is known of its way.
    cdef readonly OperationBase operation
    cdef Feed feed
    cdef uint64_t position
    # by worker's index, 1 or 0; None: nobody. Replaced whole, by the worker that has the operation
    cdef readonly bytes had     # equal to one that had it since it last started over: others first
    cdef readonly bytes rejected  # rejected it: never again

cdef class Core(Home):
    cdef ShortLock lock         # guards what follows down to `phase`, and the feeds' links
    cdef PyObject* first        # the circular list of feeds
    cdef Py_ssize_t linked
    cdef list side              # Redrives: put back, or handed over by a worker of this pool; in order
    cdef list orphans           # (operation, feed, position): cancelled, claimed, not yet released; see emit_cancelled
    cdef dict postponed         # id of an operation -> its Redrive, whose delay is not over
    cdef uint64_t accepted_before  # by feeds that are gone, and by way of the side list
    cdef uint64_t cancelled
    cdef uint64_t failed        # without a worker: by breakage
    cdef Py_ssize_t present     # workers that are not retired
    cdef bint undelayed         # nothing is put back with a delay any more: the interpreter ends
    cdef atomic[uint32_t] phase
    cdef atomic[uint32_t] sealed  # nothing more will be accepted: every feed has ended
    cdef atomic[Py_ssize_t] side_count  # len(side); written under the lock
    cdef WaitQueue idle         # workers that sleep
    cdef WaitQueue leaving      # workers that pause before a restart
    cdef readonly list runners  # written once, with its length
    cdef Py_ssize_t crew
    cdef readonly RingBuffer inbox
    cdef Feed inbox_feed
    cdef dict kept              # owns the linked feeds, as its keys, in the order of their coming
    cdef object streams         # a WeakSet of the feeds that somebody may read, spent ones too
    cdef object policy          # the Supervisor: _judge(runner, operation, error, raised)

    cdef int check_open(self) except -1
    cdef Runner current(self)
    cdef object do(self, OperationBase op, int64_t deadline)
    cdef int do_aside(self, OperationBase op) except -1
    cdef int add(self, Feed feed) except -1
    cdef int remove(self, Feed feed) except -1
    cdef PyObject* next_feed(self, PyObject* after, Runner sleeper) except? NULL
    cdef Redrive take_aside(self, Runner runner)
    cdef Redrive take_any(self)
    cdef dict take_postponed(self)
    cdef bint may_take(self, Redrive record, Runner runner) noexcept
    cdef bint routable(self, Redrive record) noexcept
    cdef int end_redrive(self, Redrive record) except -1
    cdef int wake_for_the_end(self) except -1
    cdef bint any_work(self, Runner runner) noexcept
    cdef int push_aside(self, Redrive record, bint from_delay) except -1
    cdef object give_up(self, OperationBase op, object error)
    cdef int emit_cancelled(self, PyObject* op, Feed feed, uint64_t position) except -1
    cdef int end_one(self, OperationBase op, Feed feed, uint64_t position, uint32_t phase, object error,
                     list ended) except -1
    cdef int end_unbegun(self, Feed feed, uint32_t phase, object error, list ended) except -1
    cdef void count(self, Counts* counts) noexcept nogil
    cdef bint settled(self) noexcept nogil
    cdef Py_ssize_t waiting(self) noexcept
    cdef bint ends(self) noexcept

cdef class Runner:
    # One worker's compiled half. Written by its own thread, unless said otherwise.
    cdef Core core
    cdef readonly object worker
    cdef readonly Py_ssize_t index
    cdef public str name
    cdef object process
    cdef atomic[uint64_t] word      # twice the operations it ended, plus one while it runs one
    cdef uint64_t failed            # these four are written under the pool's lock
    cdef uint64_t redriven
    cdef uint64_t tries
    cdef uint64_t restarts
    cdef bint retired               # written under the pool's lock, like the next
    cdef bint waits                 # for work of its own pool, so it takes none; for:
    cdef OperationBase awaited      # this operation
    cdef Feed awaited_feed          # or what comes out here
    cdef atomic[uint32_t] alive     # between init and the end of its loop: may be handed redrives
    cdef PyObject* op               # what take() found, owned
    cdef uint64_t position
    cdef Feed feed                  # where it comes from, and where the next is looked for
    cdef Feed came_from             # where the operation at hand goes to: `feed`, or a Redrive's
    cdef Redrive record
    cdef int turn                   # how many more it takes from `feed` before it looks at the next
    cdef bint aside                 # took the last one from the side list
    cdef object last_type
    cdef bint overridden            # whether last_type overrides done()

    cdef int take(self, bint sleepy) noexcept
    cdef int take_redrive(self) noexcept
    cdef int claim_from(self, Feed feed) noexcept
    cdef int watch(self, Feed feed) noexcept
    cdef int end_source(self, Feed feed) noexcept
    cdef object run_one(self)
    cdef int look_at_type(self, object kind) except -1
