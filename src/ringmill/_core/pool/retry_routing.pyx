# Which worker gets an operation that is to be tried again.
#
# An entry waits in `queue`, in order, with two masks of workers: those that rejected it, which never get it again, and those
# that are equal to a worker that tried it, which get it only when no other is alive (and not itself waiting for work). An
# operation that was submitted without waiting (from a worker, or by an executor) has neither mask. The thread that appends
# an entry wakes a sleeping worker that may take it, by name. An entry whose delay runs is in `delays`. An entry that no
# worker left may take is not routable: asked under the lock when it is appended, and when a worker retires or waits.
#
# The masks are by the workers' numbers, and a worker that is added later has a number beyond the end of a mask. It has
# rejected nothing. Whether it is equal to a worker that tried an operation it says itself: before it takes its first
# operation, it compares itself with all workers before it (`equals`, a mask of those that it is equal to).
#
# Owners of an entry: the worker that has the operation writes its masks; under the pool's lock it hands the entry to `queue`
# or `delays`, and the thread that unlinks it from there, under the lock, owns it and its operation's place.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from ringmill._core.platform.primitives cimport steal
from ringmill._core.pool.operation cimport CANCELLED, OperationBase, phase_of
from ringmill._core.pool.retry_queue cimport DelayHeap, RetryEntry, RetryQueue
from ringmill._core.pool.worker_state cimport WorkerState
from ringmill._core.pool.worker_table cimport WorkerTable
from ringmill._core.pool.worker_waits cimport is_waiting, waits_for
from ringmill._core.waiting.wait_queue cimport NEVER, SpinLock, WaitQueue, acquire, notify_owner, release

cdef extern from "Python.h":
    PyObject* new_bytes "PyBytes_FromStringAndSize"(char* content, Py_ssize_t length) noexcept
    char* bytes_of "PyBytes_AS_STRING"(PyObject* o) noexcept nogil

cdef extern from *:
    """
    /* A mask of workers, by number, a bytes object or None: whether that worker is in it. */
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
    """
    bint in_mask "ringmill_in_mask"(PyObject* mask, Py_ssize_t index) noexcept nogil
    bint masks_meet "ringmill_masks_meet"(PyObject* mask, PyObject* other) noexcept nogil
    bint covers "ringmill_covers"(PyObject* mask, Py_ssize_t index) noexcept nogil


cdef bint in_tried(PyObject* mask, PyObject* worker) noexcept nogil:
    # Whether the worker is equal to one that tried the operation. A mask that was made before the worker was added does not
    # say; then the worker does: `equals`.
    if covers(mask, (<WorkerState>worker).index):
        return in_mask(mask, (<WorkerState>worker).index)
    return masks_meet(mask, <PyObject*>(<WorkerState>worker).equals)


cdef class RetryRouting:
    """Which worker gets an operation that is to be tried again."""

    def __cinit__(self, WorkerTable workers not None):
        self.workers = workers
        self.queue = RetryQueue()
        self.delays = DelayHeap()

    cdef void append(self, PyObject* entry) noexcept:
        # Takes the caller's reference.
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
        self.queue.unlink(entry)
        self.length.store(self.queue.length, memory_order_seq_cst)  # seq_cst: room for do; pairs with do_attempt

    cdef void wake_taker(self, WaitQueue* idle, SpinLock* lock, PyObject* tried_by, PyObject* rejected_by) noexcept:
        # An entry with these masks was appended: wakes a worker that may take it, by name. Where no such worker sleeps,
        # those that are awake look before they sleep.
        cdef PyObject* worker
        cdef bint eligible
        cdef Py_ssize_t k
        for k in range(self.workers.count):
            acquire(lock)
            worker = self.workers.states[k]
            eligible = self.may_take(tried_by, rejected_by, worker)
            release(lock)
            if eligible and notify_owner(idle, <void*>worker):
                break

    cdef PyObject* take_for(self, PyObject* worker) noexcept:
        # The first entry that may go to this worker, owned by the caller; NULL: none.
        cdef PyObject* entry = self.queue.first
        cdef PyObject* operation
        while entry:
            operation = <PyObject*>(<RetryEntry>entry).operation
            if phase_of(<OperationBase>operation) == CANCELLED or self.may_take(
                <PyObject*>(<RetryEntry>entry).tried_by, <PyObject*>(<RetryEntry>entry).rejected_by, worker
            ):
                self.unlink(entry)
                break
            entry = (<RetryEntry>entry).next
        return entry

    cdef PyObject* take_unroutable(self) noexcept:
        # All entries that no worker may take, in a chain of their `next`, owned by the caller; NULL: none.
        cdef PyObject* entry = self.queue.first
        cdef PyObject* following
        cdef PyObject* chain = NULL
        while entry:
            following = (<RetryEntry>entry).next
            if not self.is_routable(entry):
                self.unlink(entry)
                (<RetryEntry>entry).next = chain
                chain = entry
            entry = following
        return chain

    cdef PyObject* take_of_source(self, PyObject* source) noexcept:
        # All entries of that source, delayed ones too, as take_unroutable.
        cdef PyObject* entry = self.queue.first
        cdef PyObject* following
        cdef PyObject* chain = NULL
        cdef Py_ssize_t k, removed = 1
        while entry:
            following = (<RetryEntry>entry).next
            if <PyObject*>(<RetryEntry>entry).source == source:
                self.unlink(entry)
                (<RetryEntry>entry).next = chain
                chain = entry
            entry = following
        while removed:  # again, since a removal moves entries in the heap
            removed = 0
            k = self.delays.length
            while k > 0:
                k -= 1
                entry = self.delays.entries[k]
                if <PyObject*>(<RetryEntry>entry).source == source:
                    self.delays.remove(entry)
                    (<RetryEntry>entry).operation.delayed = NULL
                    (<RetryEntry>entry).next = chain
                    chain = entry
                    removed += 1
                    k = min(k, self.delays.length)
        return chain

    cdef PyObject* take_delayed(self, int64_t now) noexcept:
        # An entry whose delay is over at that time (any, for NEVER), owned by the caller; NULL: none.
        cdef PyObject* entry = self.delays.earliest()
        if entry and (now == NEVER or (<RetryEntry>entry).due_ns <= now):
            self.delays.remove(entry)
            (<RetryEntry>entry).operation.delayed = NULL
            return entry
        return NULL

    cdef bint may_take(self, PyObject* tried_by, PyObject* rejected_by, PyObject* worker) noexcept:
        # Under the lock. Not a worker that rejected it. One that had it, or is equal to one that had, if no other is alive.
        cdef Py_ssize_t k
        cdef PyObject* other
        if in_mask(rejected_by, (<WorkerState>worker).index):
            return False
        if not in_tried(tried_by, worker):
            return True
        for k in range(self.workers.count):
            other = self.workers.states[k]
            # relaxed: a thread that changes it wakes all, which look again
            if (
                not in_tried(tried_by, other)
                and not in_mask(rejected_by, k)
                and (<WorkerState>other).alive.load(memory_order_relaxed)
                and not is_waiting(other)
            ):
                return False
        return True

    cdef bint is_routable(self, PyObject* entry) noexcept:
        # Under the lock. Whether a worker is left, pausing ones included, that has not rejected it, and that does not
        # itself wait for it.
        cdef Py_ssize_t k
        cdef PyObject* worker
        cdef PyObject* rejected_by = <PyObject*>(<RetryEntry>entry).rejected_by
        for k in range(self.workers.count):
            worker = self.workers.states[k]
            if (<WorkerState>worker).retired or in_mask(rejected_by, k):
                continue
            # One that others have rejected does not wait for the end of a wait for it; any other one does.
            if not waits_for(
                worker, <PyObject*>(<RetryEntry>entry).operation, <PyObject*>(<RetryEntry>entry).source,
                rejected_by != <PyObject*>None,
            ):
                return True
        return False

    cdef bint has_taker(self, PyObject* rejected_by) noexcept:
        # Whether a worker is left that is not in the mask.
        cdef Py_ssize_t k
        for k in range(self.workers.count):
            if not (<WorkerState>self.workers.states[k]).retired and not in_mask(rejected_by, k):
                return True
        return False

    cdef bint has_untried(self, PyObject* tried_by, PyObject* rejected_by) noexcept:
        # Whether a worker takes operations now that is in neither mask.
        cdef Py_ssize_t k
        cdef PyObject* worker
        for k in range(self.workers.count):
            worker = self.workers.states[k]
            # relaxed: a snapshot
            if (
                (<WorkerState>worker).alive.load(memory_order_relaxed)
                and not in_tried(tried_by, worker)
                and not in_mask(rejected_by, k)
            ):
                return True
        return False

    cdef bytes union_of(self, SpinLock* lock, bytes mask, bytes other, bint of_tried):
        # The workers that are in either mask, which may be None. `of_tried`: the masks are of workers equal to those that
        # tried an operation.
        cdef Py_ssize_t k, count = self.workers.count
        cdef PyObject* merged = new_bytes(NULL, count)
        cdef PyObject* worker
        cdef bint contained
        if merged == NULL:
            raise_set()
        acquire(lock)
        for k in range(count):
            worker = self.workers.states[k]
            if of_tried:
                contained = in_tried(<PyObject*>mask, worker) or in_tried(<PyObject*>other, worker)
            else:
                contained = in_mask(<PyObject*>mask, k) or in_mask(<PyObject*>other, k)
            bytes_of(merged)[k] = contained
        release(lock)
        return <bytes>steal(merged)


cdef int raise_set() except -1:
    # Raises what a function declared as noexcept has set.
    return -1
