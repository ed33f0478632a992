# The counts of a run: how many operations were accepted, and what became of them.
#
# A worker's word is twice the number of operations that it gave up (ended or put back), plus one while it
# runs one: one store at the take, one when it gives it up, no read-modify-write. What a worker gives up otherwise than
# by success is also counted under the pool's lock, together with the word, so that under the lock
#     succeeded = word // 2 - failed - retried      running = word % 2
# hold for each worker, and a snapshot taken under the lock is one state that the pool was in: words first, accepted
# last. An operation is counted as accepted (a ring's tail) before a worker can take it, so queued, the rest, is never
# negative. Success, the common case, takes no lock.

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libcpp.atomic cimport memory_order_seq_cst

from ringmill._core.pool.retry_queue cimport DelayHeap
from ringmill._core.pool.source_list cimport SourceList
from ringmill._core.pool.worker_state cimport WorkerState
from ringmill._core.pool.worker_table cimport WorkerTable
from ringmill._core.waiting.wait_queue cimport SpinLock, acquire, release


cdef class Accounting:
    """The counts of a run."""

    def __cinit__(self, WorkerTable workers not None, SourceList sources not None, DelayHeap delays not None):
        self.workers = workers
        self.sources = sources
        self.delays = delays

    cdef void count(self, Counts* counts, uint64_t* rows) noexcept nogil:
        # Under the lock. Words first, accepted last: see the head. `rows`: room for what is counted of each worker, or NULL.
        cdef uint64_t word, ended = 0
        cdef PyObject* at
        cdef PyObject* worker
        cdef Py_ssize_t k
        counts.running = counts.failed = counts.tries = counts.restarts = 0
        for k in range(self.workers.count):
            worker = self.workers.states[k]
            word = (<WorkerState>worker).word.load(memory_order_seq_cst)  # seq_cst: before the rings' tails
            counts.running += word & 1
            ended += (word >> 1) - (<WorkerState>worker).retried
            counts.failed += (<WorkerState>worker).failed
            counts.tries += (<WorkerState>worker).tries
            counts.restarts += (<WorkerState>worker).restarts
            if rows:
                rows[6 * k] = word
                rows[6 * k + 1] = (<WorkerState>worker).failed
                rows[6 * k + 2] = (<WorkerState>worker).retried
                rows[6 * k + 3] = (<WorkerState>worker).tries
                rows[6 * k + 4] = (<WorkerState>worker).restarts
                rows[6 * k + 5] = <uint64_t>worker  # owned by the table
        counts.succeeded = ended - counts.failed
        counts.failed += self.failed
        counts.cancelled = self.cancelled
        counts.delayed = self.delays.length
        counts.accepted = self.accepted_before + self.sources.accepted()

    cdef bint all_ended(self, SpinLock* lock) noexcept nogil:
        # Whether everything accepted has its outcome. Exact while nothing is accepted. Takes the pool's lock.
        # One worker that runs an operation is answer enough: it looks at that one first which ran one when it looked last. So
        # while a pool drains, it looks at all workers only about as often as one of them has run its last operation.
        cdef Counts counts
        cdef PyObject* worker
        cdef Py_ssize_t left
        acquire(lock)
        left = self.workers.count
        if self.delays.length:
            release(lock)
            return False
        while left:
            if self.runner >= self.workers.count:
                self.runner = 0
            worker = self.workers.states[self.runner]
            if (<WorkerState>worker).word.load(memory_order_seq_cst) & 1:  # seq_cst: as count
                release(lock)
                return False
            self.runner += 1
            left -= 1
        self.count(&counts, NULL)
        release(lock)
        # The first is implied, unless one was cancelled on its way into a ring and hides another: see the head.
        return (
            counts.running == 0
            and counts.accepted == counts.succeeded + counts.failed + counts.cancelled
        )

    cdef object stats(self, SpinLock* lock):
        # One consistent snapshot: a dict of counts, and one such dict for each worker, with its name. Takes the pool's lock.
        cdef Counts counts
        cdef uint64_t word
        cdef list rows = []
        cdef Py_ssize_t k, count
        cdef uint64_t* flat
        while True:
            acquire(lock)
            count = self.workers.count + 1  # at least one, so that there is something to allocate
            release(lock)
            flat = <uint64_t*>PyMem_Malloc(6 * count * sizeof(uint64_t))
            if flat == NULL:
                raise MemoryError
            acquire(lock)
            if self.workers.count <= count:
                count = self.workers.count
                break
            release(lock)  # several have been added meanwhile
            PyMem_Free(flat)
        self.count(&counts, flat)
        release(lock)
        # One that was cancelled on its way into a ring counts as accepted, whatever the ring says: see the head.
        counts.accepted = max(
            counts.accepted, counts.running + counts.delayed + counts.succeeded + counts.failed + counts.cancelled
        )
        try:
            for k in range(count):
                if not (<WorkerState><PyObject*>flat[6 * k + 5]).joined:
                    continue
                word = flat[6 * k]
                rows.append({
                    "name": (<WorkerState><PyObject*>flat[6 * k + 5]).name,
                    "running": word & 1,
                    "succeeded": (word >> 1) - flat[6 * k + 1] - flat[6 * k + 2],
                    "failed": flat[6 * k + 1],
                    "tries": flat[6 * k + 3],
                    "restarts": flat[6 * k + 4],
                })
        finally:
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
