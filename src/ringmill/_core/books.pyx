# The books of one run of a pool: which feeds it serves, what became of the operations, in which phase it is, who works.
#
# Books. A worker's word is twice the number of operations that it gave up (settled or put back), plus one while it
# runs one: one store at the take, one at the settlement, no read-modify-write. What a worker gives up otherwise than
# by success is also counted under the pool's lock, together with the word, so that under the lock
#     succeeded = word // 2 - failed - redriven      running = word % 2
# hold for each worker, and a snapshot taken under the lock is one state that the pool was in: words first, accepted
# last. An operation is counted as accepted (a ring's tail) before anyone can take it, so queued, the rest, is never
# negative. Success, the common case, takes no lock.
#
# The end. DRAINING: feeds are ended, one by one; when all are (sealed), accepted stands still. From then on a worker that
# finds nothing counts, and when all are settled it sets ENDING and wakes all. The last one to settle looks for the next
# operation afterwards, so somebody counts after the last settlement; whoever settles one without a worker wakes some.
#
# Waiting for one's own pool. A worker that waits for an operation or a stream of its pool takes no work meanwhile; the
# last one must not. Whom the awaited has come for already, though it has not run yet, does not count as waiting.

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_tss_create, PyThread_tss_get, PyThread_tss_set
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from ringmill._core.feed cimport Bell
from ringmill._core.operation cimport RELEASED
from ringmill._core.ring cimport has_items, is_shut
from ringmill._core.waiter cimport (
    NEVER,
    acquire,
    deadline_of,
    epoch_now,
    init_queue,
    notify,
    notify_all,
    release,
    wait_for,
)

from ringmill.errors import BrokenPool, PoolNotRunning

cdef extern from "Python.h":
    ctypedef struct PyListObject:
        PyObject** ob_item

cdef Py_tss_t current_tally     # the Tally whose thread this is, borrowed, between enter() and leave()
PyThread_tss_create(&current_tally)


cdef class Tally:
    """What the books say of one worker."""

    cdef void enter(self) noexcept:
        # The calling thread is this worker's from now on, until leave().
        PyThread_tss_set(&current_tally, <void*>self)

    cdef void leave(self) noexcept:
        PyThread_tss_set(&current_tally, NULL)

    def count_restart(self):
        acquire(&self.books.lock)
        self.restarts += 1
        release(&self.books.lock)

    def set_alive(self, bint alive):
        """Whether it takes operations. Who waits for another worker to take a redrive looks again."""
        self.alive.store(alive, memory_order_seq_cst)  # seq_cst: before the wake-up
        if not alive:
            notify_all(&self.books.idle)

    @property
    def is_running(self):
        """Whether it runs an operation now."""
        return bool(self.word.load(memory_order_acquire) & 1)  # acquire: as count

    @property
    def is_alive(self):
        """Whether it takes operations now."""
        return bool(self.alive.load(memory_order_relaxed))  # relaxed: a snapshot



cdef class Books(Home):
    """The books of one run of a pool."""

    def __cinit__(self):
        self.retries = RetryQueue()
        self.delays = DelayHeap()
        self.kept = {}
        self.streams = {}
        init_queue(&self.idle)
        init_queue(&self.leaving)
        self.phase.store(OPEN, memory_order_relaxed)  # relaxed: published with the object

    cdef int check_open(self) except -1:
        if self.epoch != epoch_now or self.phase.load(memory_order_acquire) != OPEN:  # acquire: see stopped_error
            raise self.stopped_error()
        return 0

    cdef object stopped_error(self):
        if self.epoch != epoch_now:
            return PoolNotRunning(f"{self.policy!r} was inherited through a fork: start a pool in the child")
        if self.phase.load(memory_order_acquire) == BROKEN:  # acquire: pairs with break_down
            return BrokenPool(f"{self.policy!r} has lost its last worker")
        return PoolNotRunning(f"{self.policy!r} is not running: call start()")

    @property
    def is_inherited(self):
        """Whether the run belongs to the parent of this process."""
        return self.epoch != epoch_now

    @property
    def is_open(self):
        """Whether it accepts operations."""
        return self.epoch == epoch_now and self.phase.load(memory_order_acquire) == OPEN  # acquire: as check_open

    @property
    def state(self):
        """In a word, for people."""
        if self.is_inherited:
            return "inherited"
        phase = self.phase.load(memory_order_acquire)  # acquire: as check_open
        return {OPEN: "running", DRAINING: "shutting down", ENDING: "stopped", BROKEN: "broken"}[phase]

    def is_own_thread(self):
        """Whether the calling thread is one of its workers."""
        return self.current() is not None

    cdef Tally current(self):
        # The worker of this pool whose thread this is, or None.
        cdef PyObject* runner = <PyObject*>PyThread_tss_get(&current_tally)
        if runner == NULL or (<Tally>runner).books is not self:
            return None
        return <Tally>runner

    # -----------------------------------------------------------------------------------------------------------
    # feeds

    cdef int add(self, Feed feed) except -1:
        # Links a feed, so that workers take from it; PoolNotRunning if it is too late.
        cdef bint open
        cdef Feed first
        if feed.foreign:
            feed.bell = Bell()
            feed.bell.target = &self.idle
            feed.bell.owner = self
        self.kept[feed] = None
        if feed.ready is not None:
            try:
                feed.list_in(self.streams)
            except BaseException:
                self.kept.pop(feed, None)
                raise
        # Nothing fails from here on: a feed that is linked is served, and counted as accepted.
        acquire(&self.lock)
        open = self.phase.load(memory_order_relaxed) == OPEN  # relaxed: written under the lock
        if open:
            if self.first:
                first = <Feed>self.first
                feed.next = self.first
                feed.prev = first.prev
                (<Feed>first.prev).next = <PyObject*>feed
                first.prev = <PyObject*>feed
            else:
                feed.next = feed.prev = <PyObject*>feed
                self.first = <PyObject*>feed
            feed.linked = True
            self.linked += 1
        release(&self.lock)
        if not open:
            self.kept.pop(feed, None)
            feed.unlist()
            raise self.stopped_error()
        notify(&self.idle)
        return 0

    cdef int remove(self, Feed feed) except -1:
        # Unlinks a feed that has ended and that holds nothing more. Idempotent.
        cdef bint linked
        acquire(&self.lock)
        linked = feed.linked
        if linked:
            feed.linked = False
            self.linked -= 1
            self.accepted_before += feed.accepted()
            if self.first == <PyObject*>feed:
                self.first = feed.next
            (<Feed>feed.next).prev = feed.prev
            (<Feed>feed.prev).next = feed.next
            if not self.linked:
                self.first = NULL
        release(&self.lock)
        if linked:
            if feed.bell is not None:
                feed.bell.disarm(&feed.pending.not_empty)
            self.kept.pop(feed, None)
        return 0

    def _feeds(self):
        # Those that are linked; complete once the phase forbids to link more.
        cdef Feed feed
        cdef bint linked
        feeds = []
        for feed in list(self.kept):
            acquire(&self.lock)
            linked = feed.linked
            release(&self.lock)
            if linked:
                feeds.append(feed)
        return feeds

    # -----------------------------------------------------------------------------------------------------------
    # counts

    cdef void count(self, Counts* counts) noexcept nogil:
        # Under the lock. Words first, accepted last: see the head.
        cdef uint64_t word, ended = 0
        cdef PyObject* at
        cdef PyObject* runner
        cdef Py_ssize_t k
        counts.running = counts.failed = counts.tries = counts.restarts = 0
        for k in range(self.crew):
            runner = (<PyListObject*>self.runners).ob_item[k]
            word = (<Tally>runner).word.load(memory_order_seq_cst)  # seq_cst: before the rings' tails
            counts.running += word & 1
            ended += (word >> 1) - (<Tally>runner).redriven
            counts.failed += (<Tally>runner).failed
            counts.tries += (<Tally>runner).tries
            counts.restarts += (<Tally>runner).restarts
        counts.succeeded = ended - counts.failed
        counts.failed += self.failed
        counts.cancelled = self.cancelled
        counts.delayed = self.delays.length
        counts.accepted = self.accepted_before
        at = self.first
        for k in range(self.linked):
            counts.accepted += (<Feed>at).accepted()
            at = (<Feed>at).next

    cdef bint settled(self) noexcept nogil:
        # Whether everything accepted has its outcome. Exact while nothing is accepted.
        cdef Counts counts
        acquire(&self.lock)
        self.count(&counts)
        release(&self.lock)
        # The first two are implied, unless one was cancelled on its way into a ring and hides another: see the head.
        return (
            counts.running == 0
            and counts.delayed == 0
            and counts.accepted == counts.succeeded + counts.failed + counts.cancelled
        )

    cdef bint ends(self) noexcept:
        # Whether workers leave now. Draining ends when all that was accepted is settled, and this finds out.
        cdef uint32_t phase = self.phase.load(memory_order_acquire)  # acquire: pairs with _close
        # seq_cst: as take. A cancelled redrive is settled and still to be emitted.
        if (
            phase == DRAINING
            and self.sealed.load(memory_order_seq_cst)  # seq_cst: pairs with _close
            and not self.side_count.load(memory_order_seq_cst)
            and self.settled()
        ):
            acquire(&self.lock)
            if self.phase.load(memory_order_relaxed) == DRAINING:  # relaxed: written under the lock
                self.phase.store(ENDING, memory_order_release)  # release: as _close
            release(&self.lock)
            notify_all(&self.idle)
            notify_all(&self.leaving)
            return True
        return phase >= ENDING

    cdef int wake_for_the_end(self) except -1:
        # Something was settled by another than a worker: while the pool drains, a worker must look whether that was all.
        if self.phase.load(memory_order_acquire) >= DRAINING:  # acquire: pairs with _close
            notify_all(&self.idle)
            notify_all(&self.leaving)
        return 0

    def pause(self, seconds):
        """Sleeps; returns whether the pool ended meanwhile."""
        return bool(wait_for(&self.leaving, pause_attempt, pause_attempt, <void*>self, NULL, 0, deadline_of(seconds)))

    def stats(self):
        """One consistent snapshot: a dict of counts, and one such dict for each worker."""
        cdef Counts counts
        cdef uint64_t word
        cdef Tally runner
        cdef list rows = []
        cdef uint64_t* flat = <uint64_t*>PyMem_Malloc(5 * self.crew * sizeof(uint64_t))
        cdef Py_ssize_t k
        if flat == NULL:
            raise MemoryError
        acquire(&self.lock)
        for k in range(self.crew):
            runner = <Tally>self.runners[k]
            # seq_cst: as count. Read before it, so a worker's row may lag behind the sums by an operation.
            flat[5 * k] = runner.word.load(memory_order_seq_cst)
            flat[5 * k + 1] = runner.failed
            flat[5 * k + 2] = runner.redriven
            flat[5 * k + 3] = runner.tries
            flat[5 * k + 4] = runner.restarts
        self.count(&counts)
        release(&self.lock)
        # One that was cancelled on its way into a ring counts as accepted, whatever the ring says: see the head.
        counts.accepted = max(
            counts.accepted, counts.running + counts.delayed + counts.succeeded + counts.failed + counts.cancelled
        )
        for k in range(self.crew):
            word = flat[5 * k]
            rows.append({
                "running": word & 1,
                "succeeded": (word >> 1) - flat[5 * k + 1] - flat[5 * k + 2],
                "failed": flat[5 * k + 1],
                "tries": flat[5 * k + 3],
                "restarts": flat[5 * k + 4],
            })
        PyMem_Free(flat)
        total = {
            "accepted": counts.accepted,
            "queued": counts.accepted - counts.running - counts.delayed - counts.succeeded - counts.failed
            - counts.cancelled,
            "running": counts.running,
            "delayed": counts.delayed,
            "succeeded": counts.succeeded,
            "failed": counts.failed,
            "cancelled": counts.cancelled,
            "tries": counts.tries,
            "restarts": counts.restarts,
        }
        return total, rows

    # -----------------------------------------------------------------------------------------------------------
    # waiting for work of one's own pool

    cdef Py_ssize_t waiting(self) noexcept:
        # Under the lock. How many workers wait for work of this pool that has not come yet.
        cdef Py_ssize_t count = 0, k
        cdef PyObject* runner
        for k in range(self.crew):
            runner = (<PyListObject*>self.runners).ob_item[k]
            if not (<Tally>runner).waits:
                continue
            # acquire: pairs with end. It may have come, and the worker not run yet.
            if (
                (<Tally>runner).awaited is not None
                and (<Tally>runner).awaited.state.load(memory_order_acquire) & RELEASED
            ):
                continue
            if (<Tally>runner).awaited_feed is not None and (
                has_items((<Tally>runner).awaited_feed.ready.ring) or is_shut((<Tally>runner).awaited_feed.ready.ring)
            ):
                continue
            count += 1
        return count

    cdef object enter_wait(self, OperationBase awaited, object stream):
        # A worker of this pool is about to wait for its work: returns it, for leave_wait. None: this thread is none of them.
        cdef bint last
        cdef Tally runner = self.current()
        if runner is None or runner.waits:  # its own flag: a task of a loop on that thread, and another waits already
            return None
        acquire(&self.lock)
        last = self.waiting() + 1 >= self.present
        if not last:
            runner.waits = True
            runner.awaited = awaited  # None goes, so nothing runs under the lock
            runner.awaited_feed = <Feed>stream
        release(&self.lock)
        if self.side_count.load(memory_order_seq_cst):  # seq_cst: as take
            self.review_side()  # what only this worker was to take, others may now, or nobody
        if last:
            raise RuntimeError(
                f"a worker of {self.policy!r} waits for work of its own pool, and no worker is left to do it"
            )
        return runner

    cdef int review_side(self) except -1:
        return 0

    cdef void leave_wait(self, object waiter) noexcept:
        # From any thread: a task that is destroyed is closed wherever the collector runs.
        cdef Tally runner = <Tally>waiter
        acquire(&self.lock)
        awaited = runner.awaited  # they go after the lock
        feed = runner.awaited_feed
        runner.waits = False
        runner.awaited = None
        runner.awaited_feed = None
        release(&self.lock)


cdef int pause_attempt(void* core) noexcept:
    return (<Books>core).ends()
