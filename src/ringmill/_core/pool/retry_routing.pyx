# Which worker gets an operation that is to be tried again.
#
# An entry waits in `queue`, in order, with two masks of workers: those that rejected it, which never get it again, and those
# that are equal to a worker that tried it, which get it only when no other is available (alive, and not itself waiting for
# work). An operation that was submitted without waiting (from a worker, or by an executor) has neither mask. The thread that
# appends an entry wakes a sleeping worker that may take it. An entry whose delay runs is in `delays`. An entry that no
# worker left may take is not routable: asked under the lock when it is appended, and when a worker retires or waits.
#
# The masks are by the workers' numbers, and a worker that is added later has a number beyond the end of a mask. It has
# rejected nothing. Whether it is equal to a worker that tried an operation it says itself: before it takes its first
# operation, it compares itself with all workers before it (`equals`, a mask of those that it is equal to).
#
# Cursors. A worker takes the first entry that it may take, and does not look twice at one that it may not: its cursor is the last
# entry that it has passed over. So however many wait for others, a look costs the same. What it has passed over stays
# not for it: what it rejected, for good; what it tried, as long as another worker is available, which ends when one
# retires, pauses or waits for work of the pool. Then `review` is raised, and each worker begins at the first entry again. A
# worker that begins to wait looks first whether an entry is left that it might take itself, behind its own cursor (begin_wait):
# mostly there is none, and nothing changes for the others. An entry knows the workers whose cursor it is, and hands them to
# the one before it when it leaves the queue.
#
# Questions about all workers, as whether one is left that has not rejected this, go through a byte for each worker, eight at a
# time (WorkerTable.flags). One by one they are looked at only if a worker is in a wait for work of the pool, or if some
# were added later and have equals.
#
# Owners of an entry: the worker that has the operation writes its masks; under the pool's lock it hands the entry to `queue`
# or `delays`, and the thread that unlinks it from there, under the lock, owns it and its operation's place.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from ringmill._core.platform.primitives cimport steal
from ringmill._core.pool.operation cimport CANCELLED, OWNER_SHIFT, PHASE, QUEUED, OperationBase, phase_of
from ringmill._core.pool.retry_queue cimport DelayHeap, RetryEntry, RetryQueue
from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.pool.worker_state cimport WorkerState
from ringmill._core.pool.worker_table cimport ALIVE, AVAILABLE, PRESENT, WITHOUT_WAIT, WorkerTable
from ringmill._core.pool.worker_waits cimport is_waiting, waits_for
from ringmill._core.waiting.wait_queue cimport NEVER, SpinLock, WaitQueue, acquire, notify, notify_matching, release

cdef extern from "Python.h":
    PyObject* new_bytes "PyBytes_FromStringAndSize"(char* content, Py_ssize_t length) noexcept
    char* bytes_of "PyBytes_AS_STRING"(PyObject* o) noexcept nogil
    Py_ssize_t length_of "PyBytes_GET_SIZE"(PyObject* o) noexcept nogil

cdef extern from *:
    """
    #include <cstdint>
    #include <cstring>
    /* A mask of workers, by number, a bytes object of zeros and ones, or None: whether that worker is in it. */
    static inline int ringmill_in_mask(PyObject* mask, Py_ssize_t index) {
        return mask != Py_None && index < PyBytes_GET_SIZE(mask) && PyBytes_AS_STRING(mask)[index] != 0;
    }
    /* Whether a worker is in both masks. */
    static inline int ringmill_masks_meet(PyObject* mask, PyObject* other) {
        Py_ssize_t length, k;
        if (mask == Py_None || other == Py_None) return 0;
        length = Py_MIN(PyBytes_GET_SIZE(mask), PyBytes_GET_SIZE(other));
        for (k = 0; k < length; k++)
            if (PyBytes_AS_STRING(mask)[k] && PyBytes_AS_STRING(other)[k]) return 1;
        return 0;
    }
    static inline int ringmill_covers(PyObject* mask, Py_ssize_t index) {
        return mask == Py_None || index < PyBytes_GET_SIZE(mask);
    }
    /* Eight bytes of a mask; zeros beyond its end. */
    static inline std::uint64_t ringmill_eight(PyObject* mask, Py_ssize_t from) {
        std::uint64_t word = 0;
        Py_ssize_t left;
        if (mask == Py_None) return 0;
        left = PyBytes_GET_SIZE(mask) - from;
        if (left >= 8) std::memcpy(&word, PyBytes_AS_STRING(mask) + from, 8);
        else if (left > 0) std::memcpy(&word, PyBytes_AS_STRING(mask) + from, (std::size_t)left);
        return word;
    }
    /* Whether one of the first `count` workers has that flag and is in neither mask, which count as zeros beyond their ends. */
    static inline int ringmill_one_has(
        const std::uint8_t* flags, Py_ssize_t count, int flag, PyObject* mask, PyObject* other
    ) {
        const std::uint64_t ones = 0x0101010101010101u;
        int shift = 0;
        Py_ssize_t k;
        while (flag >> shift > 1) shift++;
        for (k = 0; k < count; k += 8) {
            std::uint64_t word = 0;
            std::memcpy(&word, flags + k, (std::size_t)Py_MIN(count - k, 8));
            if ((word >> shift) & ones & ~ringmill_eight(mask, k) & ~ringmill_eight(other, k)) return 1;
        }
        return 0;
    }
    /* Adds the workers of a mask to another, which has room for `count`. */
    static inline void ringmill_add_mask(char* merged, Py_ssize_t count, PyObject* mask) {
        Py_ssize_t k, length;
        if (mask == Py_None) return;
        length = Py_MIN(PyBytes_GET_SIZE(mask), count);
        for (k = 0; k < length; k++) merged[k] |= PyBytes_AS_STRING(mask)[k];
    }
    """
    bint in_mask "ringmill_in_mask"(PyObject* mask, Py_ssize_t index) noexcept nogil
    bint masks_meet "ringmill_masks_meet"(PyObject* mask, PyObject* other) noexcept nogil
    bint covers "ringmill_covers"(PyObject* mask, Py_ssize_t index) noexcept nogil
    bint one_has "ringmill_one_has"(
        uint8_t* flags, Py_ssize_t count, int flag, PyObject* mask, PyObject* other
    ) noexcept nogil
    void add_mask "ringmill_add_mask"(char* merged, Py_ssize_t count, PyObject* mask) noexcept nogil


cdef bint in_tried(PyObject* mask, PyObject* worker) noexcept nogil:
    # Whether the worker is equal to one that tried the operation. A mask that was made before the worker was added does not
    # say; then the worker does: `equals`.
    if covers(mask, (<WorkerState>worker).index):
        return in_mask(mask, (<WorkerState>worker).index)
    return masks_meet(mask, <PyObject*>(<WorkerState>worker).equals)


cdef struct Taker:              # who may take an entry
    PyObject* tried_by
    PyObject* rejected_by
    bint tried_too              # also those who tried it

cdef bint is_taker(void* worker, void* taker) noexcept nogil:
    return not in_mask((<Taker*>taker).rejected_by, (<WorkerState><PyObject*>worker).index) and (
        (<Taker*>taker).tried_too or not in_tried((<Taker*>taker).tried_by, <PyObject*>worker)
    )


cdef class RetryRouting:
    """Which worker gets an operation that is to be tried again."""

    def __cinit__(self, WorkerTable workers not None):
        self.workers = workers
        self.queue = RetryQueue()
        self.delays = DelayHeap()
        self.review = 1

    # -----------------------------------------------------------------------------------------------------------
    # into the queue or the heap, and out

    cdef void append(self, PyObject* entry) noexcept:
        # Takes the caller's reference.
        self.enlist(entry, False)
        self.tried_count += <PyObject*>(<RetryEntry>entry).tried_by != <PyObject*>None
        self.rejected_count += <PyObject*>(<RetryEntry>entry).rejected_by != <PyObject*>None
        self.queue.append(entry)
        self.length.store(self.queue.length, memory_order_seq_cst)  # seq_cst: pairs with take's look

    cdef bint route(self, PyObject* entry) noexcept:
        # Appends it; False, and the reference stays the caller's: no worker may take it.
        if not self.is_routable(entry):
            return False
        self.append(entry)
        return True

    cdef void unlink(self, PyObject* entry) noexcept:
        # The reference is the caller's then.
        while (<RetryEntry>entry).first_cursor:
            self.set_cursor((<RetryEntry>entry).first_cursor, (<RetryEntry>entry).prev)
        self.delist(entry)
        self.tried_count -= <PyObject*>(<RetryEntry>entry).tried_by != <PyObject*>None
        self.rejected_count -= <PyObject*>(<RetryEntry>entry).rejected_by != <PyObject*>None
        self.queue.unlink(entry)
        self.length.store(self.queue.length, memory_order_seq_cst)  # seq_cst: room for do; pairs with do_attempt

    cdef void delay(self, PyObject* entry, int64_t due_ns) noexcept:
        # Takes the caller's reference, and a reserved place.
        self.enlist(entry, True)
        self.delays.push(entry, due_ns)

    cdef void undelay(self, PyObject* entry) noexcept:
        # The reference is the caller's then.
        self.delist(entry)
        self.delays.remove(entry)

    cdef void take_out(self, PyObject* entry) noexcept:
        # From the queue or the heap. The reference is the caller's then.
        if (<RetryEntry>entry).delayed:
            self.undelay(entry)
        else:
            self.unlink(entry)

    cdef void enlist(self, PyObject* entry, bint delayed) noexcept:
        # Its operation and its source find it from here on.
        cdef PyObject* source = <PyObject*>(<RetryEntry>entry).source
        cdef PyObject* operation = <PyObject*>(<RetryEntry>entry).operation
        (<RetryEntry>entry).delayed = delayed
        (<RetryEntry>entry).prev_of_source = NULL
        (<RetryEntry>entry).next_of_source = (<WorkSource>source).retries
        if (<WorkSource>source).retries:
            (<RetryEntry>(<WorkSource>source).retries).prev_of_source = entry
        (<WorkSource>source).retries = entry
        # release: a thread of another pool that reads it sees at least this state and generation (take_unroutable_for)
        (<OperationBase>operation).entry.store(<uint64_t>entry, memory_order_release)

    cdef void delist(self, PyObject* entry) noexcept:
        cdef PyObject* source = <PyObject*>(<RetryEntry>entry).source
        cdef PyObject* operation = <PyObject*>(<RetryEntry>entry).operation
        cdef PyObject* prev = (<RetryEntry>entry).prev_of_source
        cdef PyObject* following = (<RetryEntry>entry).next_of_source
        if prev:
            (<RetryEntry>prev).next_of_source = following
        else:
            (<WorkSource>source).retries = following
        if following:
            (<RetryEntry>following).prev_of_source = prev
        (<RetryEntry>entry).next_of_source = (<RetryEntry>entry).prev_of_source = NULL
        (<OperationBase>operation).entry.store(0, memory_order_relaxed)  # relaxed: under the lock

    cdef void set_cursor(self, PyObject* worker, PyObject* entry) noexcept:
        # NULL: it begins at the first entry.
        cdef PyObject* prev = (<WorkerState>worker).prev_cursor
        cdef PyObject* following = (<WorkerState>worker).next_cursor
        if prev:
            (<WorkerState>prev).next_cursor = following
        elif (<WorkerState>worker).cursor:
            (<RetryEntry>(<WorkerState>worker).cursor).first_cursor = following
        if following:
            (<WorkerState>following).prev_cursor = prev
        (<WorkerState>worker).cursor = entry
        (<WorkerState>worker).prev_cursor = (<WorkerState>worker).next_cursor = NULL
        if entry:
            following = (<RetryEntry>entry).first_cursor
            (<WorkerState>worker).next_cursor = following
            if following:
                (<WorkerState>following).prev_cursor = worker
            (<RetryEntry>entry).first_cursor = worker

    # -----------------------------------------------------------------------------------------------------------
    # who takes it

    cdef void wake_taker(self, WaitQueue* idle, SpinLock* lock, PyObject* tried_by, PyObject* rejected_by) noexcept:
        # An entry with these masks was appended: wakes a worker that may take it, whether or not another searches, since
        # that one may not. Where no such worker sleeps, those that are awake look before they sleep.
        cdef Taker taker
        if tried_by == <PyObject*>None and rejected_by == <PyObject*>None:
            notify(idle)
            return
        taker.tried_by = tried_by
        taker.rejected_by = rejected_by
        acquire(lock)
        taker.tried_too = not self.other_available(tried_by, rejected_by)
        release(lock)
        notify_matching(idle, is_taker, &taker)

    cdef PyObject* first_for(self, PyObject* worker) noexcept:
        # The first entry that may go to this worker, borrowed; NULL: none. Moves its cursor over the others.
        cdef PyObject* passed
        cdef PyObject* entry
        cdef PyObject* operation
        cdef PyObject* source
        if (<WorkerState>worker).reviewed != self.review:
            (<WorkerState>worker).reviewed = self.review
            self.set_cursor(worker, NULL)
        passed = (<WorkerState>worker).cursor
        entry = (<RetryEntry>passed).next if passed else self.queue.first
        while entry:
            operation = <PyObject*>(<RetryEntry>entry).operation
            source = <PyObject*>(<RetryEntry>entry).source
            # One that was cancelled on its way into the queue is for any worker, to be emitted; one whose stream was dropped
            # while a worker ran it, to be cancelled. relaxed: the first look at it comes after that
            if (
                phase_of(<OperationBase>operation) == CANCELLED
                or (<WorkSource>source).abandoned.load(memory_order_relaxed)
                or self.may_take(
                    <PyObject*>(<RetryEntry>entry).tried_by, <PyObject*>(<RetryEntry>entry).rejected_by, worker
                )
            ):
                break
            passed = entry
            entry = (<RetryEntry>entry).next
        if passed != (<WorkerState>worker).cursor:
            self.set_cursor(worker, passed)
        return entry

    cdef PyObject* take_for(self, PyObject* worker) noexcept:
        # The first entry that may go to this worker, owned by the caller; NULL: none.
        cdef PyObject* entry = self.first_for(worker)
        if entry:
            self.unlink(entry)
        return entry

    cdef PyObject* take_cancelled(self, OperationBase operation) noexcept:
        # The entry of an operation that was cancelled while it waits or is delayed here, owned by the caller; NULL: none.
        cdef PyObject* entry = <PyObject*>operation.entry.load(memory_order_relaxed)  # relaxed: under the lock
        if entry:
            self.take_out(entry)
        return entry

    cdef bint begin_wait(self, PyObject* worker) noexcept:
        # This worker begins to wait for work of the pool. Whether those who tried what it might have taken may take it now.
        if not self.tried_count or not self.first_for(worker):
            return False
        self.review += 1
        (<WorkerState>worker).reviewed = self.review  # what it has passed over is not for it all the same
        return True

    cdef PyObject* take_if_unroutable(self, PyObject* entry, PyObject* chain) noexcept:
        # Puts it before the chain, if no worker may take it; returns the chain. One that no worker has rejected is not looked
        # at: as long as a worker is left that is not stalled, that may take it (worker_waits.pyx).
        if <PyObject*>(<RetryEntry>entry).rejected_by == <PyObject*>None or self.is_routable(entry):
            return chain
        self.unlink(entry)
        (<RetryEntry>entry).next = chain
        return entry

    cdef PyObject* take_unroutable(self) noexcept:
        # A worker may take less than before. All entries that no worker may take, in a chain of their `next`, owned by the
        # caller; NULL: none.
        cdef PyObject* entry = self.queue.first
        cdef PyObject* following
        cdef PyObject* chain = NULL
        self.review += 1
        while entry and self.rejected_count:
            following = (<RetryEntry>entry).next
            chain = self.take_if_unroutable(entry, chain)
            entry = following
        return chain

    cdef PyObject* take_unroutable_for(self, OperationBase operation, PyObject* source, uint64_t owner) noexcept:
        # The same of those that a worker has begun to wait for: this operation, if it is queued in the pool with that number,
        # or what comes out of this source.
        cdef PyObject* entry = NULL
        cdef PyObject* following
        cdef PyObject* chain = NULL
        cdef uint64_t seen
        cdef uint32_t generation
        if not self.rejected_count:
            return NULL
        if <PyObject*>operation != <PyObject*>None:
            # acquire, all, pairs with enlist: if it is queued here, before and after its entry is read, and was not made new
            # meanwhile, then the entry is ours, or NULL
            generation = operation.generation.load(memory_order_acquire)
            seen = operation.state.load(memory_order_acquire)
            if seen & PHASE == QUEUED and seen >> OWNER_SHIFT == owner:
                entry = <PyObject*>operation.entry.load(memory_order_acquire)
                if (
                    operation.state.load(memory_order_acquire) != seen
                    or operation.generation.load(memory_order_acquire) != generation
                ):
                    entry = NULL
        else:
            entry = (<WorkSource>source).retries
        while entry:
            following = (<RetryEntry>entry).next_of_source if source else NULL
            if not (<RetryEntry>entry).delayed:
                chain = self.take_if_unroutable(entry, chain)
            entry = following
        return chain

    cdef PyObject* take_of_source(self, PyObject* source) noexcept:
        # All entries of that source, delayed ones too, as take_unroutable.
        cdef PyObject* entry
        cdef PyObject* chain = NULL
        while (<WorkSource>source).retries:
            entry = (<WorkSource>source).retries
            self.take_out(entry)
            (<RetryEntry>entry).next = chain
            chain = entry
        return chain

    cdef PyObject* take_delayed(self, int64_t now) noexcept:
        # An entry whose delay is over at that time (any, for NEVER), owned by the caller; NULL: none.
        cdef PyObject* entry = self.delays.earliest()
        if entry and (now == NEVER or (<RetryEntry>entry).due_ns <= now):
            self.undelay(entry)
            return entry
        return NULL

    # -----------------------------------------------------------------------------------------------------------
    # questions

    cdef bint may_take(self, PyObject* tried_by, PyObject* rejected_by, PyObject* worker) noexcept:
        # Not a worker that rejected it. One that had it, or is equal to one that had, if no other is available.
        if in_mask(rejected_by, (<WorkerState>worker).index):
            return False
        return not in_tried(tried_by, worker) or not self.other_available(tried_by, rejected_by)

    cdef Py_ssize_t covered(self, PyObject* tried_by) noexcept:
        # Of how many workers the mask says whether they are equal to one that tried; the others say it themselves.
        if not self.workers.has_equals or tried_by == <PyObject*>None:
            return self.workers.count
        return min(length_of(tried_by), self.workers.count)

    cdef bint other_available(self, PyObject* tried_by, PyObject* rejected_by) noexcept:
        # Whether a worker that is in neither mask is alive, and not in a wait that has not come for good.
        cdef Py_ssize_t k, covered = self.covered(tried_by)
        cdef PyObject* other
        if one_has(self.workers.flags, covered, AVAILABLE, tried_by, rejected_by):
            return True
        if covered == self.workers.count and not self.workers.in_wait:
            return False
        for k in range(self.workers.count):
            other = self.workers.states[k]
            if (
                self.workers.flags[k] & ALIVE
                and not in_mask(rejected_by, k)
                and not in_tried(tried_by, other)
                and not is_waiting(other)
            ):
                return True
        return False

    cdef bint is_routable(self, PyObject* entry) noexcept:
        # Whether a worker is left, pausing ones included, that has not rejected it, and that does not itself wait for it.
        cdef Py_ssize_t k
        cdef PyObject* rejected_by = <PyObject*>(<RetryEntry>entry).rejected_by
        if one_has(self.workers.flags, self.workers.count, WITHOUT_WAIT, <PyObject*>None, rejected_by):
            return True
        if not self.workers.in_wait:
            return False
        for k in range(self.workers.count):
            # One that others have rejected does not wait for the end of a wait for it; any other one does.
            if self.workers.flags[k] & PRESENT and not in_mask(rejected_by, k) and not waits_for(
                self.workers.states[k], <PyObject*>(<RetryEntry>entry).operation, <PyObject*>(<RetryEntry>entry).source,
                rejected_by != <PyObject*>None,
            ):
                return True
        return False

    cdef bint has_taker(self, PyObject* rejected_by) noexcept:
        # Whether a worker is left that is not in the mask.
        return one_has(self.workers.flags, self.workers.count, PRESENT, <PyObject*>None, rejected_by)

    cdef bint has_untried(self, PyObject* tried_by, PyObject* rejected_by) noexcept:
        # Whether a worker is alive that is in neither mask.
        cdef Py_ssize_t k, covered = self.covered(tried_by)
        if one_has(self.workers.flags, covered, ALIVE, tried_by, rejected_by):
            return True
        for k in range(covered, self.workers.count):
            if (
                self.workers.flags[k] & ALIVE
                and not in_mask(rejected_by, k)
                and not in_tried(tried_by, self.workers.states[k])
            ):
                return True
        return False

    cdef bytes union_of(self, SpinLock* lock, bytes mask, bytes other, bint of_tried):
        # The workers that are in either mask. `mask` may be None. `of_tried`: the masks are of workers equal to those that tried
        # an operation.
        cdef Py_ssize_t k, count
        cdef PyObject* merged
        if mask is None:
            return other
        acquire(lock)
        count = self.workers.count
        release(lock)
        merged = new_bytes(NULL, count)
        if merged == NULL:
            raise_set()
        memset(bytes_of(merged), 0, count)
        add_mask(bytes_of(merged), count, <PyObject*>mask)
        add_mask(bytes_of(merged), count, <PyObject*>other)
        acquire(lock)
        if of_tried and self.workers.has_equals:
            for k in range(min(length_of(<PyObject*>mask), length_of(<PyObject*>other)), count):
                if in_tried(<PyObject*>mask, self.workers.states[k]) or in_tried(<PyObject*>other, self.workers.states[k]):
                    bytes_of(merged)[k] = 1
        release(lock)
        return <bytes>steal(merged)


cdef int raise_set() except -1:
    # Raises what a function declared as noexcept has set.
    return -1
