# The books of one run of a pool: which feeds it serves, what became of the operations, in which phase it is, who works.
#
# Accounting. A worker's word is twice the number of operations that it gave up (settled or put back), plus one while it
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
# Waiting inside a worker for work of its own pool. Each wait has a WorkerWait, linked to its worker's WorkerCounters while the wait
# lasts: one if the thread itself waits, any number if its event loop has tasks that do. A worker
# takes no operation until `process` returns, which is taken to be after all these waits are over. So a worker is stalled
# while any of them that has no timeout has not come. What has come stays so (an operation that is done; a stream that has ended; an
# item in a stream may be read by another reader), hence a worker becomes stalled only where it enters a wait, and there the
# wait is refused with RuntimeError if
#   - no worker would be left that is not stalled (worker_left), or
#   - what it waits for is an operation that runs on a worker which waits in turn, directly or through others, for the one
#     that this worker runs (waits_for_itself).
# The same decides whether the pool is broken when a worker is lost. A wait with a timeout ends by itself, so it stalls no
# worker; it matters to what was put back only (retry_routing.pyx), which does not wait for a worker that is in a wait. What
# cannot be seen: that a task which waits will be cancelled by another (asyncio.wait_for, asyncio.timeout),
# and a wait by other means (concurrent.futures.wait, a lock, an event).
#
# A task may be left behind in its wait when `process` returns. So a task's wait counts only while the worker's word is
# what it was: in the same call of `process`; or before the worker takes operations (init), or after (cleanup).

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from cpython.pythread cimport PyThread_tss_create, PyThread_tss_get, PyThread_tss_set
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from ringmill._core.pool.work_source cimport RingWatcher
from ringmill._core.pool.operation cimport PHASE, RELEASED, RUNNING, traverseproc
from ringmill._core.ring.ring cimport has_items, is_shut
from ringmill._core.waiting.wait_queue cimport (
    NEVER,
    acquire,
    deadline_of,
    epoch_now,
    init_queue,
    notify,
    notify_all,
    release,
    visitproc,
    wait_for,
)

from ringmill.errors import BrokenPool, PoolNotRunning

cdef extern from "Python.h":
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear
    ctypedef struct PyListObject:
        PyObject** ob_item

cdef enum:
    HEAP_TYPE = 1 << 9          # Py_TPFLAGS_HEAPTYPE: a class that was made by Python code

cdef Py_tss_t current_counters     # the WorkerCounters whose thread this is, borrowed, between enter() and leave()
PyThread_tss_create(&current_counters)


cdef int refuse_alone(object made, object base) except -1:
    # For a class whose compiled subclass makes what its methods need (rule 12): Python cannot make one of it alone, nor of a
    # subclass of its own.
    if type(made) is base or type(made).__flags__ & HEAP_TYPE:
        raise TypeError(f"{type(made).__qualname__} is a part of a pool, and is made by that alone")
    return 0


cdef class WorkerCounters:
    """What the books say of one worker."""

    def __cinit__(self):
        refuse_alone(self, WorkerCounters)

    cdef void enter(self) noexcept:
        # The calling thread is this worker's from now on, until leave().
        PyThread_tss_set(&current_counters, <void*>self)

    cdef void leave(self) noexcept:
        PyThread_tss_set(&current_counters, NULL)

    def count_restart(self):
        acquire(&self.accounting.lock)
        self.restarts += 1
        release(&self.accounting.lock)

    def set_alive(self, bint alive):
        """Whether it takes operations. Who waits for another worker to take a retry looks again."""
        self.alive.store(alive, memory_order_seq_cst)  # seq_cst: before the wake-up
        if not alive:
            notify_all(&self.accounting.idle)

    def __dealloc__(self):
        # Only in the child of a fork: its thread was left in the parent, with an operation in its hands.
        if self.op:
            Py_DECREF(<object>self.op)

    @property
    def is_running(self):
        """Whether it runs an operation now."""
        return bool(self.word.load(memory_order_acquire) & 1)  # acquire: as count

    @property
    def is_alive(self):
        """Whether it takes operations now."""
        return bool(self.alive.load(memory_order_relaxed))  # relaxed: a snapshot



cdef class Accounting(OwnerPool):
    """The books of one run of a pool."""

    def __cinit__(self):
        refuse_alone(self, Accounting)
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

    cdef WorkerCounters current(self):
        # The worker of this pool whose thread this is, or None.
        cdef PyObject* worker_loop = <PyObject*>PyThread_tss_get(&current_counters)
        if worker_loop == NULL or (<WorkerCounters>worker_loop).accounting is not self:
            return None
        return <WorkerCounters>worker_loop

    # -----------------------------------------------------------------------------------------------------------
    # feeds

    cdef int add(self, WorkSource source) except -1:
        # Links a feed, so that workers take from it; PoolNotRunning if it is too late.
        cdef bint open
        cdef WorkSource first
        if source.external:
            source.watcher = RingWatcher()
            source.watcher.target = &self.idle
            source.watcher.owner = self
        self.kept[source] = None
        if source.ready is not None:
            try:
                source.list_in(self.streams)
            except BaseException:
                self.kept.pop(source, None)
                raise
        # Nothing fails from here on: a feed that is linked is served, and counted as accepted.
        acquire(&self.lock)
        open = self.phase.load(memory_order_relaxed) == OPEN  # relaxed: written under the lock
        if open:
            if self.first:
                first = <WorkSource>self.first
                source.next = self.first
                source.prev = first.prev
                (<WorkSource>first.prev).next = <PyObject*>source
                first.prev = <PyObject*>source
            else:
                source.next = source.prev = <PyObject*>source
                self.first = <PyObject*>source
            source.linked = True
            self.linked += 1
        release(&self.lock)
        if not open:
            self.kept.pop(source, None)
            source.unlist()
            raise self.stopped_error()
        notify(&self.idle)
        return 0

    cdef int remove(self, WorkSource source) except -1:
        # Unlinks a feed that has ended and that holds nothing more. Idempotent.
        cdef bint linked
        acquire(&self.lock)
        linked = source.linked
        if linked:
            source.linked = False
            self.linked -= 1
            self.accepted_before += source.accepted()
            if self.first == <PyObject*>source:
                self.first = source.next
            (<WorkSource>source.next).prev = source.prev
            (<WorkSource>source.prev).next = source.next
            if not self.linked:
                self.first = NULL
        release(&self.lock)
        if linked:
            if source.watcher is not None:
                source.watcher.disarm(&source.pending.not_empty)
            self.kept.pop(source, None)
        return 0

    def linked_sources(self):
        # Those that are linked; complete once the phase forbids to link more.
        cdef WorkSource source
        cdef bint linked
        sources = []
        for source in list(self.kept):
            acquire(&self.lock)
            linked = source.linked
            release(&self.lock)
            if linked:
                sources.append(source)
        return sources

    # -----------------------------------------------------------------------------------------------------------
    # counts

    cdef void count(self, Counts* counts) noexcept nogil:
        # Under the lock. Words first, accepted last: see the head.
        cdef uint64_t word, ended = 0
        cdef PyObject* at
        cdef PyObject* worker_loop
        cdef Py_ssize_t k
        counts.running = counts.failed = counts.tries = counts.restarts = 0
        for k in range(self.worker_count):
            worker_loop = (<PyListObject*>self.worker_loops).ob_item[k]
            word = (<WorkerCounters>worker_loop).word.load(memory_order_seq_cst)  # seq_cst: before the rings' tails
            counts.running += word & 1
            ended += (word >> 1) - (<WorkerCounters>worker_loop).retried
            counts.failed += (<WorkerCounters>worker_loop).failed
            counts.tries += (<WorkerCounters>worker_loop).tries
            counts.restarts += (<WorkerCounters>worker_loop).restarts
        counts.succeeded = ended - counts.failed
        counts.failed += self.failed
        counts.cancelled = self.cancelled
        counts.delayed = self.delays.length
        counts.accepted = self.accepted_before
        at = self.first
        for k in range(self.linked):
            counts.accepted += (<WorkSource>at).accepted()
            at = (<WorkSource>at).next

    cdef bint all_settled(self) noexcept nogil:
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

    cdef bint should_end(self) noexcept:
        # Whether workers leave now. Draining ends when all that was accepted is settled, and this finds out.
        cdef uint32_t phase = self.phase.load(memory_order_acquire)  # acquire: pairs with _close
        # seq_cst: as take. A cancelled retry is settled and still to be emitted.
        if (
            phase == DRAINING
            and self.sealed.load(memory_order_seq_cst)  # seq_cst: pairs with _close
            and not self.retry_count.load(memory_order_seq_cst)
            and self.all_settled()
        ):
            acquire(&self.lock)
            if self.phase.load(memory_order_relaxed) == DRAINING:  # relaxed: written under the lock
                self.phase.store(ENDING, memory_order_release)  # release: as _close
            release(&self.lock)
            notify_all(&self.idle)
            notify_all(&self.leaving)
            return True
        return phase >= ENDING

    cdef int wake_for_drain(self) except -1:
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
        cdef WorkerCounters worker_loop
        cdef list rows = []
        cdef uint64_t* flat = <uint64_t*>PyMem_Malloc(5 * self.worker_count * sizeof(uint64_t))
        cdef Py_ssize_t k
        if flat == NULL:
            raise MemoryError
        acquire(&self.lock)
        for k in range(self.worker_count):
            worker_loop = <WorkerCounters>self.worker_loops[k]
            # seq_cst: as count. Read before it, so a worker's row may lag behind the sums by an operation.
            flat[5 * k] = worker_loop.word.load(memory_order_seq_cst)
            flat[5 * k + 1] = worker_loop.failed
            flat[5 * k + 2] = worker_loop.retried
            flat[5 * k + 3] = worker_loop.tries
            flat[5 * k + 4] = worker_loop.restarts
        self.count(&counts)
        release(&self.lock)
        # One that was cancelled on its way into a ring counts as accepted, whatever the ring says: see the head.
        counts.accepted = max(
            counts.accepted, counts.running + counts.delayed + counts.succeeded + counts.failed + counts.cancelled
        )
        for k in range(self.worker_count):
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

    cdef void link_wait(self, PyObject* wait) noexcept:
        # Under the lock, on the worker's thread.
        cdef PyObject* worker_loop = <PyObject*>(<WorkerWait>wait).worker_loop
        cdef PyObject* running = (<WorkerCounters>worker_loop).op
        if (<WorkerCounters>worker_loop).first_wait and (<WorkerCounters>worker_loop).running != running:
            self.leave_stalled(worker_loop)
            self.join_stalled(worker_loop, running)
        elif not (<WorkerCounters>worker_loop).first_wait:
            self.join_stalled(worker_loop, running)
            if not (<WorkerCounters>worker_loop).retired:
                self.stalled_count += 1
        (<WorkerWait>wait).linked = True
        (<WorkerWait>wait).prev = NULL
        (<WorkerWait>wait).next = (<WorkerCounters>worker_loop).first_wait
        if (<WorkerCounters>worker_loop).first_wait:
            (<WorkerWait>(<WorkerCounters>worker_loop).first_wait).prev = wait
        (<WorkerCounters>worker_loop).first_wait = wait

    cdef void unlink_wait(self, PyObject* wait) noexcept:
        # Under the lock, on any thread. Idempotent.
        cdef PyObject* worker_loop = <PyObject*>(<WorkerWait>wait).worker_loop
        if not (<WorkerWait>wait).linked:
            return
        (<WorkerWait>wait).linked = False
        if (<WorkerWait>wait).next:
            (<WorkerWait>(<WorkerWait>wait).next).prev = (<WorkerWait>wait).prev
        if (<WorkerWait>wait).prev:
            (<WorkerWait>(<WorkerWait>wait).prev).next = (<WorkerWait>wait).next
            return
        (<WorkerCounters>worker_loop).first_wait = (<WorkerWait>wait).next
        if not (<WorkerCounters>worker_loop).first_wait:
            self.leave_stalled(worker_loop)
            if not (<WorkerCounters>worker_loop).retired:
                self.stalled_count -= 1

    cdef void join_stalled(self, PyObject* worker_loop, PyObject* running) noexcept:
        cdef PyObject** bucket = &self.stalled[(<uintptr_t>running >> 6) & 63]
        (<WorkerCounters>worker_loop).running = running
        (<WorkerCounters>worker_loop).next_stalled = bucket[0]
        bucket[0] = worker_loop

    cdef void leave_stalled(self, PyObject* worker_loop) noexcept:
        cdef PyObject** link = &self.stalled[(<uintptr_t>(<WorkerCounters>worker_loop).running >> 6) & 63]
        while link[0] != worker_loop:
            link = &(<WorkerCounters>link[0]).next_stalled
        link[0] = (<WorkerCounters>worker_loop).next_stalled
        (<WorkerCounters>worker_loop).next_stalled = NULL

    cdef bint worker_left(self) noexcept:
        # Under the lock. Whether a worker is left that is not stalled. It looks at them one by one only where each has
        # entered some wait, and begins with the one that it found last.
        cdef Py_ssize_t left = self.worker_count
        cdef PyObject* worker_loop
        if self.stalled_count < self.present:
            return True
        while left:
            left -= 1
            if self.look_from >= self.worker_count:
                self.look_from = 0
            worker_loop = (<PyListObject*>self.worker_loops).ob_item[self.look_from]
            if not (<WorkerCounters>worker_loop).retired and not is_stalled(worker_loop):
                return True
            self.look_from += 1
        return False

    cdef bint waits_for_itself(self, PyObject* worker_loop, PyObject* wait) noexcept:
        # Under the lock. Whether the operation that this worker runs must be over before the wait can come: from each
        # operation that is waited for to the worker that runs it and waits itself, and on to what that waits for.
        cdef PyObject* own = (<WorkerCounters>worker_loop).running
        cdef PyObject* operation = <PyObject*>(<WorkerWait>wait).operation
        cdef PyObject* found
        cdef PyObject* at = wait
        cdef PyObject* todo = NULL      # workers whose waits have not been followed, linked by the next
        if own == NULL or operation == <PyObject*>None:
            return False
        self.visits += 1
        (<WorkerCounters>worker_loop).visited = self.visits
        while True:
            operation = <PyObject*>(<WorkerWait>at).operation
            # acquire: pairs with begin; a snapshot, but who runs it and waits has registered that under this lock
            if (
                operation != <PyObject*>None
                and stalls_worker(at)
                and (<OperationBase>operation).state.load(memory_order_acquire) & PHASE == RUNNING
            ):
                if operation == own:
                    return True
                found = self.stalled[(<uintptr_t>operation >> 6) & 63]
                while found and (
                    (<WorkerCounters>found).running != operation or (<WorkerCounters>found).visited == self.visits
                ):
                    found = (<WorkerCounters>found).next_stalled
                if found:
                    (<WorkerCounters>found).visited = self.visits
                    (<WorkerCounters>found).todo = todo
                    todo = found
            at = (<WorkerWait>at).next if at != wait else NULL
            while at == NULL:
                if todo == NULL:
                    return False
                at = (<WorkerCounters>todo).first_wait
                todo = (<WorkerCounters>todo).todo

    def _count_waiting(self):
        # For tests.
        cdef Py_ssize_t count = 0, k
        acquire(&self.lock)
        for k in range(self.worker_count):
            count += is_waiting((<PyListObject*>self.worker_loops).ob_item[k])
        release(&self.lock)
        return count

    cdef object enter_wait(self, OperationBase operation, object source, bint for_turn, bint in_task, bint timed):
        # Before a wait. If this thread is a worker of this pool: what leave_wait takes; RuntimeError
        # where the wait could not end. None if it is not.
        cdef WorkerWait wait
        cdef PyObject* raw
        cdef bint refused
        cdef WorkerCounters worker_loop = self.current()
        if worker_loop is None:
            return None
        wait = WorkerWait()
        wait.worker_loop = worker_loop
        wait.operation = operation
        wait.source = <WorkSource>source
        wait.for_turn = for_turn
        wait.timed = timed
        wait.in_task = in_task
        wait.word = worker_loop.word.load(memory_order_relaxed)  # relaxed: this thread is its only writer
        if operation is not None:
            wait.expected_generation = operation.generation.load(memory_order_acquire)  # acquire: pairs with renew
        raw = <PyObject*>wait
        acquire(&self.lock)
        self.link_wait(raw)
        refused = stalls_worker(raw) and (not self.worker_left() or self.waits_for_itself(<PyObject*>worker_loop, raw))
        if refused:
            self.unlink_wait(raw)
        release(&self.lock)
        if self.retry_count.load(memory_order_seq_cst):  # seq_cst: as take
            self.review_retries()  # what only this worker was to take, others may now, or nobody
        if refused:
            raise RuntimeError(
                f"a worker of {self.policy!r} waits for work of its own pool, and no worker is left to do it"
            )
        return wait

    cdef int review_retries(self) except -1:
        return 0

    cdef void leave_wait(self, object wait) noexcept:
        # From any thread: a task that is destroyed is closed wherever the collector runs.
        acquire(&self.lock)
        self.unlink_wait(<PyObject*>wait)
        release(&self.lock)


cdef class WorkerWait:
    def __dealloc__(self):
        # A coroutine that cannot run to its end any more: the runner and its books are still there, see above.
        if self.linked and self.worker_loop is not None and self.worker_loop.accounting is not None:
            self.worker_loop.accounting.leave_wait(self)


cdef bint has_come(PyObject* wait) noexcept nogil:
    cdef PyObject* operation = <PyObject*>(<WorkerWait>wait).operation
    cdef PyObject* source = <PyObject*>(<WorkerWait>wait).source
    if operation != <PyObject*>None:
        # acquire twice: pairs with end, and with renew: it was done, and begins another life
        return (
            (<OperationBase>operation).state.load(memory_order_acquire) & RELEASED != 0
            or (<OperationBase>operation).generation.load(memory_order_acquire) != (<WorkerWait>wait).expected_generation
        )
    # The turn may be free for a moment, and another reader have it the next.
    if not (<WorkerWait>wait).for_turn and has_items((<WorkSource>source).ready.ring):
        return True
    return is_shut((<WorkSource>source).ready.ring)


cdef bint holds_worker(PyObject* wait) noexcept nogil:
    # Under the lock. Whether its worker takes no operation because of it.
    cdef PyObject* worker_loop = <PyObject*>(<WorkerWait>wait).worker_loop
    cdef uint64_t word
    if (<WorkerWait>wait).in_task:
        word = (<WorkerCounters>worker_loop).word.load(memory_order_acquire)  # acquire: as count
        # relaxed: written by its own thread, which looks for operations only after that
        if word != (<WorkerWait>wait).word or not word & 1 and (<WorkerCounters>worker_loop).alive.load(memory_order_relaxed):
            return False
    return not has_come(wait)


cdef bint stalls_worker(PyObject* wait) noexcept nogil:
    return not (<WorkerWait>wait).timed and holds_worker(wait)


cdef bint is_stalled(PyObject* worker_loop) noexcept nogil:
    cdef PyObject* wait = (<WorkerCounters>worker_loop).first_wait
    while wait:
        if stalls_worker(wait):
            return True
        wait = (<WorkerWait>wait).next
    return False


cdef bint is_waiting(PyObject* worker_loop) noexcept nogil:
    cdef PyObject* wait = (<WorkerCounters>worker_loop).first_wait
    while wait:
        if holds_worker(wait):
            return True
        wait = (<WorkerWait>wait).next
    return False


cdef bint waits_for(PyObject* worker_loop, PyObject* operation, PyObject* source, bint timed) noexcept nogil:
    cdef PyObject* wait = (<WorkerCounters>worker_loop).first_wait
    while wait:
        if (timed or not (<WorkerWait>wait).timed) and holds_worker(wait) and (
            operation and <PyObject*>(<WorkerWait>wait).operation == operation
            or source and <PyObject*>(<WorkerWait>wait).source == source
        ):
            return True
        wait = (<WorkerWait>wait).next
    return False


cdef int pause_attempt(void* core) noexcept:
    return (<Accounting>core).should_end()


# The garbage collector: Cython knows nothing of raw pointers (rule 11). All but `op` are borrowed.
cdef PyTypeObject* counters_type = <PyTypeObject*>WorkerCounters
cdef traverseproc base_traverse = counters_type.tp_traverse
cdef inquiry base_clear = counters_type.tp_clear


cdef int counters_traverse(PyObject* counters, visitproc visit, void* arg) noexcept:
    cdef int status = base_traverse(counters, visit, arg)
    if not status and (<WorkerCounters>counters).op:
        status = visit((<WorkerCounters>counters).op, arg)
    return status


cdef int counters_clear(PyObject* counters) noexcept:
    cdef PyObject* op = (<WorkerCounters>counters).op
    (<WorkerCounters>counters).op = NULL
    if op:
        Py_DECREF(<object>op)  # was the worker's
    return base_clear(counters)


counters_type.tp_traverse = counters_traverse
counters_type.tp_clear = counters_clear
