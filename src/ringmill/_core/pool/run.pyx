# One run of a pool: what happens to every operation, from its acceptance until it is out of its stream.
#
#               +--------------------- put back (Retry, Reject) <-------+
#               v                                                       |
#   accept -> [source] -> take -> begin -> call process -> judge -------+--> count -> outcome -> done() -> stream
#               |                                                           (end)                (emit)
#               +-- cancel, breakage: count -> outcome -> done(); the claim of its place emits it
#
# A PoolRun has one lock and these parts, whose state the lock guards; each says so at its head:
#
#   sources      the sources that workers take from, in turn                           source_list.pyx
#   routing      operations to be tried again, and which worker may take them          retry_routing.pyx
#   waits        workers that wait for work of their own pool                          worker_waits.pyx
#   accounting   the counts                                                            accounting.pyx
#   threads      which threads have begun, and ended                                   run_threads.pyx
#   gate         where the workers wait until all have come up                         start_gate.pyx
#   workers      one WorkerState each, by number                                       worker_table.pyx
#                the loops that run them are in worker_loop.pyx
#
# An item of `call`, and one of `map` from its first failure on, is an operation, too (item_record.pyx); the other items of
# a map are counted, claimed and ended by position (item_source.pyx).
#
# This file accepts operations, ends those that no worker will run, and ends the run. It is one class, hence its length.
#
# Taking. A worker stays with a source for some operations, or until it is empty, then looks at the next one: an
# operation of one source waits for at most so many per worker of each other. Operations to be tried again are looked at
# first, but not twice running, so neither kind starves the other. A thread that publishes an operation notifies `idle`;
# one thread searches at a time; a searcher that takes one and sees more wakes the next (wait_queue.pyx).
#
# Cancelling. By the same compare-exchange as begin (operation.pyx), under the lock, with the count. A cancelled
# operation keeps its place in its ring; the worker that claims the place emits it, or, if done() has not been called
# yet, leaves that to the canceller (orphans, under the lock: one of the two sees the other). One whose delay runs leaves
# its place at once. An operation can be cancelled between its acceptance and its entry into the ring: it is counted
# as accepted then, whatever the ring says (the maximum in stats), and one that the ring refuses after that stays both.
#
# More workers. An executor's run adds a worker while work waits and no worker is free (wants_worker). A thread that publishes
# work looks afterwards, and so does a worker that begins some. Both look under the lock, one of them after the other: if
# it is the worker, it sees what was published; otherwise the publisher sees that the worker is busy. So no work waits
# behind a busy worker while another may be added. A worker that runs the items of one source looks at its first item,
# and where it has claimed the last: until then the source counts as work that waits.
#
# `WorkerPool.resize` adds workers that have come up, all or none (join), and dismisses some. One that was dismissed leaves
# between two operations, under the lock, unless those left could not do what is pending since they all wait for it
# (leaves); then it works on, and looks again when a wait has ended or others have joined.
#
# The end. DRAINING: sources are ended, one by one; when all are (sealed), accepted stands still. From then on a worker that
# finds nothing counts, and when all have ended it sets ENDING and wakes all. A worker that ends an operation looks for
# the next one afterwards, so a worker counts after the last has ended; a thread that ends one without a worker wakes
# some.
#
# Under the lock no reference is dropped, nothing is allocated, and no Python code runs (rule 7). What must not fail
# allocates by functions that return NULL: Cython's `except` needs memory itself.

import queue

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from ringmill._core.platform.primitives cimport now_ns, steal
from ringmill._core.pool.accounting cimport Accounting
from ringmill._core.pool.context cimport capture
from ringmill._core.pool.item_record cimport subject_of
from ringmill._core.pool.item_source cimport BROKEN_ITEM, CANCELLED_ITEM, ItemSource, new_item_source
from ringmill._core.pool.operation cimport (
    CANCELLED,
    FAILED,
    RELEASED,
    SUCCEEDED,
    OperationBase,
    PyTypeObject,
    accept,
    begin,
    end,
    is_operation,
    log_error,
    log_exception,
    new_error_record,
    overrides_done,
    unaccept,
    unplace,
)
from ringmill._core.pool.retry_queue cimport RetryEntry, RetryQueue, new_entry
from ringmill._core.pool.retry_routing cimport RetryRouting
from ringmill._core.pool.run_threads cimport RunThreads
from ringmill._core.pool.source_list cimport SourceList
from ringmill._core.pool.start_gate cimport StartGate
from ringmill._core.pool.work_source cimport AS_IT_IS, SPENT, UNLINKED, Renewal, RingWatcher, WorkSource, emit
from ringmill._core.pool.worker_state cimport WorkerState, current_worker
from ringmill._core.pool.worker_table cimport WorkerTable
from ringmill._core.pool.worker_waits cimport WorkerWait, WorkerWaits
from ringmill._core.ring.ring cimport (
    DONE,
    NOT_NOW,
    SHUT,
    Ring,
    fill,
    has_room,
    is_shut,
    size,
    try_get,
    try_put,
)
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.waiting.event_loop cimport await_for
from ringmill._core.waiting.wait_queue cimport (
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

from ringmill._core.pool.item_record import subject
from ringmill.errors import BrokenPool, OperationReused, PoolNotRunning, Unroutable, describe

cdef extern from "Python.h":
    int PyList_Append(PyObject* list, PyObject* item) noexcept
    PyObject* call_one "PyObject_CallOneArg"(PyObject* function, PyObject* argument) noexcept
    PyTypeObject* Py_TYPE(PyObject* o) nogil
    void PyErr_Clear()
    void Py_SET_SIZE(PyObject* list, Py_ssize_t size)
    Py_ssize_t PY_SSIZE_T_MAX
    list PyList_New(Py_ssize_t size)
    list PyList_GetSlice(list items, Py_ssize_t low, Py_ssize_t high)
    ctypedef struct PyTupleObject:
        PyObject** ob_item
    ctypedef struct PyListObject:
        PyObject** ob_item

cdef enum:
    # what the timer thread waits for
    STOPPED = 1
    DUE = 2
    EARLIER = 3


# a range that is longer, or has larger integers, is drawn like any other iterable
cdef Py_ssize_t LONGEST_RANGE = 10_000_000
cdef int64_t WIDEST = <int64_t>1 << 62

cdef Py_ssize_t LATER_SPANS = 64  # also for workers that are not there yet
cdef Py_ssize_t MAX_SPANS = 1024
cdef Py_ssize_t MOST_SPENT = 64  # sources that a worker removes before it begins what it has found

cdef tuple nothing = ()         # the arguments of a log line


cdef class PoolRun(OwnerPool):
    """The compiled half of one run of a pool. `worker_loop.new_run` makes one, with its loops."""

    def __cinit__(self, policy, Py_ssize_t queue_size, bint context, bint first_come=False, Py_ssize_t max_workers=0):
        self.policy = policy
        self.carries = context
        self.first_come = first_come
        self.inbox = RingBuffer(queue_size)
        self.inbox_source = WorkSource(self.inbox)
        self.max_workers.store(max_workers, memory_order_relaxed)  # relaxed: published with the object
        self.workers = WorkerTable()
        self.worker_loops = []
        self.gate = StartGate()
        self.sources = SourceList()
        self.sources.inbox = <PyObject*>self.inbox_source
        self.routing = RetryRouting(self.workers)
        self.waits = WorkerWaits(self.workers)
        self.accounting = Accounting(self.workers, self.sources, self.routing.delays)
        self.threads = RunThreads()
        self.orphans = RetryQueue()
        init_queue(&self.idle)
        init_queue(&self.leaving)
        init_queue(&self.timer_wakes)
        self.broken_message = f"{policy!r} has lost its last worker"
        self.broken_for_all = owned_record(BrokenPool(self.broken_message))
        self.phase.store(OPEN, memory_order_relaxed)  # relaxed: published with the object
        self.add(self.inbox_source)

    # -----------------------------------------------------------------------------------------------------------
    # the phase

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

    def refusal(self):
        """The error for a call that comes too late."""
        return self.stopped_error()

    @property
    def is_inherited(self):
        """Whether the run belongs to the parent of this process."""
        return self.epoch != epoch_now

    @property
    def is_open(self):
        """Whether it accepts operations."""
        return self.epoch == epoch_now and self.phase.load(memory_order_acquire) == OPEN  # acquire: as check_open

    @property
    def is_broken(self):
        """Whether it has lost its last worker."""
        return self.epoch == epoch_now and self.phase.load(memory_order_acquire) == BROKEN  # acquire: as check_open

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

    cdef WorkerState current(self):
        # The worker of this run whose thread this is, or None.
        cdef PyObject* worker = current_worker()
        if worker == NULL or (<WorkerState>worker).run is not self:
            return None
        return <WorkerState>worker

    cdef bint should_end(self) noexcept:
        # Whether workers leave now. Draining ends when all that was accepted has ended, and this finds out.
        cdef uint32_t phase = self.phase.load(memory_order_acquire)  # acquire: pairs with _close
        # seq_cst: as take. A cancelled retry has ended and is still to be emitted.
        if (
            phase == DRAINING
            and self.sealed.load(memory_order_seq_cst)  # seq_cst: pairs with _close
            and not self.routing.length.load(memory_order_seq_cst)
            and self.accounting.all_ended(&self.lock)
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
        # An operation has ended on no worker's thread, after it was counted: while the pool drains, workers must know if it was
        # the last. Of a worker's last operation they learn by itself, since it looks after it has ended that.
        if self.phase.load(memory_order_acquire) >= DRAINING and self.accounting.all_ended(&self.lock):  # acquire: see _close
            notify_all(&self.idle)
            notify_all(&self.leaving)
        return 0

    def stats(self):
        """One consistent snapshot: a dict of counts, and one such dict for each worker."""
        return self.accounting.stats(&self.lock)

    # -----------------------------------------------------------------------------------------------------------
    # more workers, and fewer

    @property
    def worker_count(self):
        """How many workers there are now, without those that have left or were lost; a snapshot."""
        return self.workers.present.load(memory_order_relaxed)  # relaxed: a snapshot

    def set_max_workers(self, Py_ssize_t number):
        """Up to how many workers it adds by itself."""
        self.max_workers.store(number, memory_order_relaxed)  # relaxed: what is submitted from now on sees it or not

    cdef bint wants_worker(self) noexcept:
        # Under the lock. Whether more work waits than workers are free, and one more may be added. It begins with the worker
        # that it found free last; so it looks at all of them about once for each worker that is added.
        cdef Py_ssize_t left = self.workers.count
        cdef Py_ssize_t present = self.workers.present.load(memory_order_relaxed)  # relaxed, all: written under the lock
        cdef Py_ssize_t waiting
        cdef PyObject* worker
        if present >= self.max_workers.load(memory_order_relaxed) or self.phase.load(memory_order_relaxed) != OPEN:
            return False
        waiting = self.routing.queue.length
        if waiting <= present:
            waiting += self.sources.count_with_work(present + 1 - waiting)
        while left and waiting:
            left -= 1
            if self.free_from >= self.workers.count:
                self.free_from = 0
            worker = self.workers.states[self.free_from]
            # seq_cst: after the looks at the sources; pairs with run_items
            if not (<WorkerState>worker).retired and not (<WorkerState>worker).word.load(memory_order_seq_cst) & 1:
                waiting -= 1
            if waiting:
                self.free_from += 1
        return waiting > 0

    cdef int add_if_wanted(self) except -1:
        # Adds a worker if work waits and no worker is free. On failure there is none more: that is logged.
        cdef bint wanted
        if self.epoch != epoch_now:
            return 0
        acquire(&self.lock)
        wanted = self.wants_worker()
        release(&self.lock)
        if wanted:
            try:
                self.policy._add_worker()
            except Exception:
                log_exception("%s could not add a worker", self.policy.name)
        return 0

    def add_worker(self, WorkerState state not None, bint if_wanted):
        """Adds a worker, whose thread may be started then. False: it is not wanted any more, or the run has ended."""
        cdef bint added = False
        cdef bint last = False
        self.workers.reserve([state], &self.lock)
        if self.threads.expect(state):
            acquire(&self.lock)
            added = not if_wanted or self.wants_worker()
            if added:
                self.workers.add(<PyObject*>state, True)
            else:
                self.workers.give_back(1)
            release(&self.lock)
            if not added and self.threads.give_up(state, &last) and last:
                self.finish_run()
        else:
            acquire(&self.lock)
            self.workers.give_back(1)
            release(&self.lock)
        if not added:
            self.workers.owned.remove(state)
        return added

    def expect(self, WorkerState state not None):
        """The thread of a worker that is to join will be started. False: the run has ended."""
        return bool(self.threads.expect(state))

    def join(self, list states not None, bint joins=True):
        """Adds workers that have come up. Returns whether the run still takes some: all of them, or none.

        With `joins=False`, for workers that have not come up, their numbers are used, so that no other worker gets them.
        """
        cdef Py_ssize_t k, held_back, count = len(states)
        self.workers.reserve(states, &self.lock)
        acquire(&self.lock)
        joins = joins and self.phase.load(memory_order_relaxed) == OPEN  # relaxed: written under the lock
        for k in range(count):
            self.workers.add((<PyListObject*>states).ob_item[k], joins)
        held_back = self.held_back
        release(&self.lock)
        if held_back:
            notify_all(&self.idle)  # a worker that was to leave, and could not, may now
        return joins

    def give_up(self, WorkerState state not None):
        """If the worker's thread has not begun by now, it never does, and the worker is lost."""
        cdef bint last = False
        cdef bint listed
        if not self.threads.give_up(state, &last):
            return
        acquire(&self.lock)
        # relaxed: written under the lock. A run that ends needs the worker no more.
        listed = (
            self.phase.load(memory_order_relaxed) == OPEN
            and state.index < self.workers.count
            and self.workers.states[state.index] == <PyObject*>state
        )
        release(&self.lock)
        if listed:
            self.retire(state)
        if last:
            self.finish_run()

    def dismiss(self, list states not None):
        """Has workers leave when they have ended what they run; see the head. Idempotent. May be called from any thread."""
        cdef PyObject* state
        for k in range(len(states)):
            state = (<PyListObject*>states).ob_item[k]
            acquire(&self.lock)
            # relaxed: written under the lock; seq_cst: before the wake-up
            if not (<WorkerState>state).retired and not (<WorkerState>state).dismissed.load(memory_order_relaxed):
                (<WorkerState>state).dismissed.store(1, memory_order_seq_cst)
            release(&self.lock)
        notify_all(&self.idle)
        notify_all(&self.leaving)

    cdef void set_alive(self, WorkerState worker, bint alive) noexcept:
        # Whether it takes operations. The caller wakes those who may take more after this.
        acquire(&self.lock)
        worker.alive.store(alive, memory_order_relaxed)  # relaxed: read under the lock, or as a snapshot
        self.workers.mark(<PyObject*>worker)
        if not alive:
            self.routing.review += 1
        release(&self.lock)

    cdef bint leaves(self, WorkerState worker) noexcept:
        # On the thread of a worker that has been dismissed, between two operations: whether it leaves now.
        cdef bint leaving
        acquire(&self.lock)
        leaving = not worker.retired
        if leaving:
            self.waits.retire(<PyObject*>worker)
            leaving = self.workers_left()
            if leaving:
                self.held_back -= worker.held_back
                worker.held_back = False
                # relaxed: as set_alive. What it was to try next goes to the others, by review_retries.
                worker.alive.store(False, memory_order_relaxed)
                self.workers.mark(<PyObject*>worker)
                self.routing.set_cursor(<PyObject*>worker, NULL)
            else:
                self.waits.take_back(<PyObject*>worker)
                self.held_back += not worker.held_back
                worker.held_back = True
        leaving = leaving or worker.retired
        release(&self.lock)
        if leaving:
            self.review_retries()
        return leaving

    cdef bint workers_left(self) noexcept:
        # Under the lock. Whether the workers that are present can do what is pending.
        return self.workers.present.load(memory_order_relaxed) > 0 and self.waits.worker_left()  # relaxed: under the lock

    # -----------------------------------------------------------------------------------------------------------
    # sources

    cdef int add(self, WorkSource source) except -1:
        # Links a source, so that workers take from it; PoolNotRunning if it is too late.
        cdef bint open
        cdef PyObject* watcher = NULL   # borrowed: no reference is counted under the lock
        if source.external:
            source.watcher = RingWatcher()
            source.watcher.run = self
            watcher = <PyObject*>source.watcher
        self.sources.keep(source)
        # Nothing fails from here on: a source that is linked is served, and counted as accepted.
        acquire(&self.lock)
        open = self.phase.load(memory_order_relaxed) == OPEN  # relaxed: written under the lock
        if open:
            self.arrivals += 1
            source.arrival = self.arrivals
            self.sources.link(<PyObject*>source)
            if watcher:
                (<RingWatcher>watcher).source = <PyObject*>source
        release(&self.lock)
        if not open:
            self.sources.forget(source, True)
            raise self.stopped_error()
        notify(&self.idle)
        return 0

    cdef int remove(self, WorkSource source) except -1:
        # Unlinks a source that has ended and that holds nothing more. Idempotent.
        cdef bint linked, held
        cdef PyObject* watcher = <PyObject*>source.watcher
        acquire(&self.lock)
        linked = self.sources.unlink(<PyObject*>source)
        held = source.held
        source.held = False
        if linked:
            self.accounting.accepted_before += source.accepted()
            if source.external:
                (<RingWatcher>watcher).source = NULL
        release(&self.lock)
        if held:
            Py_DECREF(source)  # the list's: see drop
        elif linked:
            if source.watcher is not None:
                source.watcher.disarm(&source.pending.not_empty)
            self.sources.forget(source, False)
        return 0

    def linked_sources(self):
        # Those that are linked; complete once the phase forbids to link more.
        cdef WorkSource source
        cdef bint linked
        sources = []
        for source in list(self.sources.kept):
            acquire(&self.lock)
            linked = source.place.load(memory_order_relaxed) != UNLINKED  # relaxed: written under the lock
            release(&self.lock)
            if linked:
                sources.append(source)
        return sources

    cdef void make_ready(self, PyObject* source) noexcept:
        # Something has happened in a source that the caller keeps in memory.
        acquire(&self.lock)
        self.return_source(source)
        release(&self.lock)

    cdef void return_source(self, PyObject* source) noexcept:
        # Under the lock. A source that was QUIET is READY again, behind those that came or returned before.
        if self.sources.make_ready(source):
            self.arrivals += 1
            (<WorkSource>source).arrival = self.arrivals

    cdef void ring_changed(self, PyObject** source) noexcept:
        # The watcher of an external source was woken, whose source that is, while it is linked.
        acquire(&self.lock)
        if source[0]:
            self.return_source(source[0])
        release(&self.lock)
        notify(&self.idle)

    cdef void drop(self, WorkSource source) noexcept:
        # Its stream is gone: a worker cancels what is left, and removes the source. May be called wherever the collector runs.
        # One that has ended may have been removed while operations of it wait for another try: then it comes back for that. Those
        # that a worker runs now, any worker cancels when they have been put back.
        source.abandoned.store(1, memory_order_seq_cst)  # seq_cst: pairs with SourceList.look_at, for one that is READY
        acquire(&self.lock)
        if source.retries and source.place.load(memory_order_relaxed) == UNLINKED:  # relaxed: written under the lock
            source.held = True
            Py_INCREF(source)  # the list's, until remove()
            self.accounting.accepted_before -= source.accepted()
            self.sources.move(<PyObject*>source, UNLINKED, SPENT)
        else:
            self.sources.make_spent(<PyObject*>source)
        release(&self.lock)
        notify(&self.idle)

    cdef PyObject* next_source(self, bint in_turn, bint watch) except? NULL:
        # A source with work; the caller owns the reference. NULL: none. Removes spent ones. The arguments: as SourceList.find.
        cdef PyObject* found
        cdef bint spent
        while True:
            acquire(&self.lock)
            found = self.sources.find(in_turn, watch)
            if found:
                Py_INCREF(<object>found)  # the caller's; the list's keeps it alive until here
            spent = self.sources.lengths[SPENT] != 0
            release(&self.lock)
            if not spent:
                return found
            self.remove_spent(MOST_SPENT if found else PY_SSIZE_T_MAX)
            if found:
                return found

    cdef int remove_spent(self, Py_ssize_t most) except -1:
        # Removes sources that have ended or were dropped, at most so many: a worker that has found work does not let that wait.
        cdef PyObject* spent
        cdef WorkSource source
        while most:
            most -= 1
            acquire(&self.lock)
            spent = self.sources.firsts[SPENT]
            if spent:
                Py_INCREF(<object>spent)  # ours, for a moment
            release(&self.lock)
            if not spent:
                return 0
            source = <WorkSource>steal(spent)
            if source.abandoned.load(memory_order_acquire):  # acquire: pairs with drop
                source.end(None)
                self.end_abandoned(source)
            self.remove(source)
        return 0

    cdef bint any_work(self) noexcept:
        # Whether there is more, for a searcher that has taken one. A watcher that was told and woke no worker counts on this
        # look, in place of the workers that sleep: so it arms the watchers again. What they were told of may be gone, and no
        # other thread would arm them.
        cdef PyObject* source
        if self.routing.length.load(memory_order_seq_cst):  # seq_cst: as take
            return True
        # seq_cst: as notify. A worker that sleeps later arms them itself
        source = self.next_source(False, self.idle.word.load(memory_order_seq_cst) >> 32 != 0)
        if source:
            Py_DECREF(<object>source)  # next_source's
        return source != NULL

    # -----------------------------------------------------------------------------------------------------------
    # accepting

    cdef int accept_new(self, OperationBase op, bint carries) except -1:
        context = capture() if carries else None  # before it is accepted: this may fail
        self.check_open()
        if not accept(op, self.number):
            raise OperationReused(f"{describe(op)} is pending, or finished and not reset: reset() it when it is finished")
        if carries:
            op.set_context(context)
        return 0

    cdef bint submit_aside(self, OperationBase op) except -1:
        # Accepts it. True: that was all; from a worker of this pool, which never blocks on it, or it was cancelled already.
        self.accept_new(op, self.carries)
        if self.current() is None:
            return False
        self.submit_unbounded(op)
        return True

    cdef object submitted(self, OperationBase op, int result):
        # `result`: what became of the attempt to put it into the inbox.
        if result == DONE:
            notify(&self.idle)
            return op
        Py_DECREF(op)  # was to be the inbox's
        if not self.withdraw(op):
            return op
        if result == SHUT:
            raise self.stopped_error()
        raise queue.Full(f"no room in the queue of {self.policy!r}")

    cdef object do(self, OperationBase op, int64_t deadline):
        cdef SubmitRequest request
        cdef int result
        if self.submit_aside(op):
            return op
        Py_INCREF(op)  # the inbox's, if it gets there
        request.run = <PyObject*>self
        request.op = <PyObject*>op
        result = do_attempt(&request)
        if result == NOT_NOW:
            result = self.wait_for_room(&request, deadline)
        return self.submitted(op, result)

    cdef int wait_for_room(self, SubmitRequest* request, int64_t deadline) except -1:
        # What became of the attempt. If this raises, the operation is new again, and the inbox's reference is dropped.
        try:
            return wait_for(&self.inbox.not_full, do_attempt, do_more, request, NULL, 0, deadline)
        except BaseException:
            op = <OperationBase>request.op
            Py_DECREF(op)
            self.withdraw(op)  # also where it was cancelled meanwhile: the caller gets the exception all the same
            raise

    async def ado(self, OperationBase op not None):
        cdef SubmitRequest request
        cdef int result
        if self.submit_aside(op):
            return op
        request.run = <PyObject*>self
        request.op = <PyObject*>op
        try:
            result = do_counted(&request)
            if result == NOT_NOW:
                result = await await_for(&self.inbox.not_full, do_counted, do_more, &request, self)
        except BaseException:
            self.withdraw(op)  # as in do
            raise
        if result != DONE:
            Py_INCREF(op)  # for submitted() to drop
        return self.submitted(op, result)

    cdef bint withdraw(self, OperationBase op) except -1:
        # The pool does not take an operation that it had accepted: it is new again. False: it was cancelled meanwhile,
        # and counts as accepted and cancelled. Called before an error is made, since memory may be what is lacking.
        if op.context is not None:
            op.set_context(None)  # the next pool may want none
        if unaccept(op):
            return True
        acquire(&self.lock)
        self.accounting.accepted_before += 1
        release(&self.lock)
        unplace(op)  # it never had a place
        self.wake_for_drain()
        return False

    cdef int submit_unbounded(self, OperationBase op) except -1:
        cdef PyObject* entry = new_entry(<PyObject*>op, <PyObject*>self.inbox_source, 0)
        cdef bint open
        if not entry:
            if self.withdraw(op):
                raise_set()
            PyErr_Clear()  # it was cancelled meanwhile
            return 0
        acquire(&self.lock)
        open = self.phase.load(memory_order_relaxed) == OPEN  # relaxed: written under the lock
        if open:
            self.arrivals += 1
            (<RetryEntry>entry).arrival = self.arrivals
            self.routing.append(entry)
            self.accounting.accepted_before += 1
        release(&self.lock)
        if open:
            notify(&self.idle)
            return 0
        Py_DECREF(<object>entry)
        if self.withdraw(op):
            raise self.stopped_error()
        return 0

    def submit(self, OperationBase op not None, bint context=False):
        """Accepts one without waiting, however many are pending; those of one caller begin in their order.

        `context`: whether the operation carries its submitter's context.
        """
        self.accept_new(op, context)
        self.submit_unbounded(op)
        if may_add_worker(self):
            self.add_if_wanted()

    def execute(self, operations):
        """Accepts all or none, as one WorkSource; returns that, to be read."""
        cdef list ops
        cdef Py_ssize_t count, k = 0, taken = 0
        cdef PyObject* raw
        cdef WorkSource source
        try:
            ops = list_of(operations)
        except TypeError:
            if hasattr(type(operations), "__iter__"):
                raise
            raise TypeError(f"ops must be an iterable of Operations, got {describe(operations)}") from None
        count = len(ops)
        self.check_open()
        source = WorkSource(RingBuffer(count or 1), RingBuffer(count or 1))
        context = capture() if self.carries else None
        try:
            for k in range(count):
                raw = (<PyListObject*>ops).ob_item[k]
                if not is_operation(raw):
                    raise TypeError(f"ops must be Operations, got {describe(<object>raw)}")
                if not accept(<OperationBase>raw, self.number):
                    raise OperationReused(
                        f"{describe(<object>raw)} is pending, or finished and not reset: reset() it when finished"
                    )
                taken = k + 1
                if self.carries:
                    (<OperationBase>raw).set_context(context)
            if count:
                fill(source.pending.ring, (<PyListObject*>ops).ob_item)
                Py_SET_SIZE(<PyObject*>ops, 0)  # the list's references are the ring's now
            source.end(None)  # its total is known before any thread sees it
            if count:
                self.add(source)
        except BaseException:
            # Without a new object: it may be memory that is lacking.
            for k in range(min(taken, len(ops))):
                self.withdraw(<OperationBase>(<PyListObject*>ops).ob_item[k])
            while try_get(source.pending.ring, &raw, NULL) == DONE:
                self.withdraw(<OperationBase>raw)
                Py_DECREF(<object>raw)  # was the ring's
            raise
        return source

    cdef ItemSource map_items(self, object items, bint ordered, object function, bint unpacks, bint carries):
        # Accepts the items of an exact list, tuple or range, as one WorkSource; None: a range that is too long.
        cdef ItemSource source
        cdef object start, step
        cdef Py_ssize_t length = 0
        cdef Py_ssize_t sharers = max(1, self.workers.present.load(memory_order_relaxed))  # relaxed: a hint
        self.check_open()
        source = new_item_source(ordered, function, unpacks, capture() if carries else None)
        if type(items) is range:
            start, step = items.start, items.step
            if not is_short(items):
                return None
            length = len(items)
            source.hold_range(start, step, length, self.span_count(), sharers)
        else:
            copied = list_of(items)
            length = len(copied)
            source.hold_list(copied, self.span_count(), sharers)
        if length:
            self.add(source)
            if may_add_worker(self):
                self.add_if_wanted()
        return source

    cdef Py_ssize_t span_count(self):
        # Spans for a new source: also for the workers that may be added soon.
        cdef Py_ssize_t later = min(self.max_workers.load(memory_order_relaxed), LATER_SPANS)  # relaxed: a hint
        cdef Py_ssize_t count
        acquire(&self.lock)
        count = self.workers.count
        release(&self.lock)
        return min(max(count, later), MAX_SPANS)

    cdef ItemSource draw_items(self, uint64_t bound, bint ordered, object function, bint unpacks, bint carries):
        # A WorkSource whose items will be drawn one by one.
        cdef ItemSource source
        self.check_open()
        source = new_item_source(ordered, function, unpacks, capture() if carries else None)
        source.hold_drawn(bound)
        self.add(source)
        return source

    # -----------------------------------------------------------------------------------------------------------
    # to be tried again: which worker may take an entry is in retry_routing.pyx

    cdef bint route_retry(self, PyObject* entry) noexcept:
        # Under the lock. Takes the caller's reference; False, and it stays the caller's: no worker may take it, or the run
        # has ended. relaxed: written under the lock. A thread that ends what is pending does that after it has set the phase.
        return self.phase.load(memory_order_relaxed) < ENDING and self.routing.route(entry)

    cdef void wake_for_retry(self, PyObject* tried_by, PyObject* rejected_by) noexcept:
        self.routing.wake_taker(&self.idle, &self.lock, tried_by, rejected_by)

    cdef PyObject* take_retry_for(self, PyObject* worker) noexcept:
        # The first entry that may go to this worker, owned by the caller; NULL: none.
        cdef PyObject* entry
        acquire(&self.lock)
        entry = self.routing.take_for(worker)
        release(&self.lock)
        if entry:
            notify(&self.inbox.not_full)
        return entry

    cdef bint retry_is_first(self, PyObject* source) noexcept:
        # Whether the first of those that wait was accepted before what that source has.
        cdef bint first
        acquire(&self.lock)
        first = self.routing.queue.first != NULL and (
            (<RetryEntry>self.routing.queue.first).arrival < (<WorkSource>source).arrival
        )
        release(&self.lock)
        return first

    cdef void end_retry(self, PyObject* entry) noexcept:
        # Ends an entry that no worker will take: no worker may, or the pool has ended. Takes the caller's reference.
        cdef uint32_t phase = self.phase.load(memory_order_acquire)  # acquire: pairs with _close
        cdef PyObject* operation = <PyObject*>(<RetryEntry>entry).operation
        cdef PyObject* source = <PyObject*>(<RetryEntry>entry).source
        cdef uint32_t outcome = CANCELLED if phase == ENDING else FAILED
        cdef PyObject* error_record = NULL
        if phase != BROKEN and phase != ENDING:
            error_record = unroutable_record(operation)
        self.end_one(<OperationBase>operation, <WorkSource>source, (<RetryEntry>entry).position, outcome, error_record, None)
        Py_DECREF(<object>entry)  # the caller's
        self.wake_for_drain()

    cdef void cancel_dropped(self, PyObject* entry) noexcept:
        # Its stream was dropped before it was tried again. Takes the caller's reference. What ends it may run a hook of the
        # user's, whose interruption must not stop the worker.
        try:
            self.end_entry(entry, CANCELLED, None)
            self.wake_for_drain()
        except BaseException:
            log_exception("%s could not end an operation of a stream that was dropped", self.policy.name)

    cdef PyObject* broken_record(self, PyObject* operation) noexcept:
        # Each operation of a broken pool fails with an error object of its own; where there is no memory, with a
        # shared one.
        cdef PyObject* error_record = NULL
        cdef PyObject* error = call_one(<PyObject*>BrokenPool, <PyObject*>self.broken_message)
        if error != NULL:
            error_record = new_error_record(error, <PyObject*>Py_TYPE(operation), True)
            Py_DECREF(<object>error)  # the record owns one
        if error_record == NULL:
            PyErr_Clear()
            error_record = <PyObject*>self.broken_for_all
            Py_INCREF(<object>error_record)  # the caller's
        return error_record

    def has_untried(self, bytes tried_by, bytes rejected_by):
        """Whether a worker takes operations now that is in neither mask; a snapshot."""
        cdef bint found
        acquire(&self.lock)
        found = self.routing.has_untried(<PyObject*>tried_by, <PyObject*>rejected_by)
        release(&self.lock)
        return found

    def union_of(self, bytes mask, bytes other, bint of_tried):
        """The workers that are in either mask, which may be None. `of_tried`: of those that are equal to one that tried."""
        return self.routing.union_of(&self.lock, mask, other, of_tried)

    def has_taker(self, bytes rejected_by):
        """Whether a worker is left that is not in the mask."""
        cdef bint found
        acquire(&self.lock)
        found = self.routing.has_taker(<PyObject*>rejected_by)
        release(&self.lock)
        return found

    cdef int review_retries(self) except -1:
        # A worker is left out for good: ends the entries that no worker may take now, wakes all for the others.
        cdef PyObject* chain
        acquire(&self.lock)
        chain = self.routing.take_unroutable()
        release(&self.lock)
        notify_all(&self.idle)  # first: done() of those that end may take long
        self.end_chain(chain)
        return 0

    cdef int end_chain(self, PyObject* entry) except -1:
        # Ends entries that no worker may take. Takes the caller's references.
        cdef PyObject* following
        if not entry:
            return 0
        while entry:
            following = (<RetryEntry>entry).next
            (<RetryEntry>entry).next = NULL
            self.end_retry(entry)
            entry = following
        notify(&self.inbox.not_full)
        return 0

    cdef int retire(self, WorkerState worker) except -1:
        # One worker less. Ends the operations that only this one might have taken; or all, where none of those left can do
        # what is pending. Returns whether they can.
        cdef bint enough
        acquire(&self.lock)
        if worker.retired:
            enough = True
        else:
            self.waits.retire(<PyObject*>worker)
            self.routing.set_cursor(<PyObject*>worker, NULL)
            self.held_back -= worker.held_back
            worker.held_back = False
            enough = self.workers_left()
        release(&self.lock)
        if enough:
            self.review_retries()
        else:
            self.break_down()
        return enough

    # -----------------------------------------------------------------------------------------------------------
    # delays

    cdef PyObject* take_delayed(self, int64_t now) noexcept:
        # As RetryRouting's.
        cdef PyObject* entry
        acquire(&self.lock)
        entry = self.routing.take_delayed(now)
        release(&self.lock)
        return entry

    cdef int release_due(self, int64_t now) except -1:
        # Moves what is due to the retries, and wakes workers.
        cdef PyObject* entry
        cdef PyObject* tried_by
        cdef PyObject* rejected_by
        cdef bint kept
        while True:
            acquire(&self.lock)
            entry = self.routing.take_delayed(now)
            if not entry:
                release(&self.lock)
                return 0
            tried_by = <PyObject*>(<RetryEntry>entry).tried_by
            rejected_by = <PyObject*>(<RetryEntry>entry).rejected_by
            Py_INCREF(<object>tried_by)  # ours, both: a worker may have taken the entry and written it by the time we read
            Py_INCREF(<object>rejected_by)
            kept = self.route_retry(entry)
            release(&self.lock)
            if kept:
                self.wake_for_retry(tried_by, rejected_by)
            else:
                self.end_retry(entry)
            Py_DECREF(<object>tried_by)
            Py_DECREF(<object>rejected_by)

    @property
    def timer_runs(self):
        """Whether the timer's thread runs; a snapshot."""
        cdef bint runs
        acquire(&self.lock)
        runs = self.has_timer
        release(&self.lock)
        return runs

    @property
    def cancels_delayed(self):
        """Whether retries that would be delayed are cancelled: the program ends."""
        cdef bint cancels
        acquire(&self.lock)
        cancels = self.undelayed
        release(&self.lock)
        return cancels

    def give_up_timer(self):
        """The timer's thread cannot be started: retries are not delayed, until one can."""
        acquire(&self.lock)
        self.no_timer = not self.has_timer
        release(&self.lock)
        self.release_due(NEVER)

    def run_timer(self, OperationBase begun not None):
        """The whole life of the timer's thread: moves each delayed operation to the retries when its delay is over.

        A second one returns at once. `begun` is done when one runs. Never raises: an exception that was injected into the
        thread, or the lack of memory, would leave operations delayed without end.
        """
        cdef bint runs
        acquire(&self.lock)
        runs = self.has_timer
        self.has_timer = True
        self.no_timer = False
        release(&self.lock)
        end(begun, SUCCEEDED, False)
        if runs:
            return
        while True:
            try:
                self.serve_timer()
                break
            except MemoryError:  # for its place in a queue of waiting threads
                continue
            except BaseException as error:
                log_error(40, "a fault in the timer of a pool", <PyObject*>nothing, <PyObject*>error)
        acquire(&self.lock)
        self.has_timer = False
        release(&self.lock)

    cdef int serve_timer(self) except -1:
        cdef int64_t deadline
        cdef PyObject* earliest
        while True:
            acquire(&self.lock)
            earliest = self.routing.delays.earliest()
            deadline = (<RetryEntry>earliest).due_ns if earliest else NEVER
            self.timer_deadline = deadline
            release(&self.lock)
            if wait_for(&self.timer_wakes, timer_attempt, timer_attempt, <void*>self, NULL, 0, deadline) == STOPPED:
                return 0
            self.release_due(now_ns())
            if self.epoch != epoch_now:
                return 0  # as in release_due: the thread is the parent's

    def stop_timer(self):
        """Ends the timer's thread, if there is one. Idempotent."""
        acquire(&self.lock)
        self.timer_stopped = True
        release(&self.lock)
        notify_all(&self.timer_wakes)

    # -----------------------------------------------------------------------------------------------------------
    # workers that wait for work of their own pool: see worker_waits.pyx

    cdef object enter_wait(self, OperationBase operation, object source, bint for_turn, bint in_task, bint timed):
        # Before a wait. If this thread is a worker of this pool: what leave_wait takes; RuntimeError
        # where the wait could not end. None if it is not.
        cdef WorkerWait wait
        cdef PyObject* raw
        cdef PyObject* chain = NULL
        cdef bint refused, deferred = False
        cdef WorkerState worker = self.current()
        if worker is None:
            return None
        wait = WorkerWait()
        wait.worker = worker
        wait.operation = operation
        wait.source = <WorkSource>source
        wait.for_turn = for_turn
        wait.timed = timed
        wait.in_task = in_task
        wait.word = worker.word.load(memory_order_relaxed)  # relaxed: this thread is its only writer
        if operation is not None:
            wait.expected_generation = operation.generation.load(memory_order_acquire)  # acquire: pairs with renew
        raw = <PyObject*>wait
        acquire(&self.lock)
        self.waits.link_wait(raw)
        refused = self.waits.refuses(raw)
        if refused:
            self.waits.unlink_wait(raw)
        else:
            # What only this worker was to take, others may now, or none.
            deferred = self.routing.begin_wait(<PyObject*>worker)
            chain = self.routing.take_unroutable_for(operation, <PyObject*>source if source is not None else NULL, self.number)
        release(&self.lock)
        if deferred:
            notify_all(&self.idle)  # first: as in review_retries
        self.end_chain(chain)
        if refused:
            raise RuntimeError(
                f"a worker of {self.policy!r} waits for work of its own pool, and no worker is left to do it"
            )
        return wait

    cdef void leave_wait(self, object wait) noexcept:
        # From any thread: a task that is destroyed is closed wherever the collector runs.
        cdef Py_ssize_t held_back
        acquire(&self.lock)
        self.waits.unlink_wait(<PyObject*>wait)
        held_back = self.held_back
        release(&self.lock)
        if held_back:
            notify_all(&self.idle)  # a worker that was to leave, and could not, may now

    def _count_waiting(self):
        # For tests.
        cdef Py_ssize_t count
        acquire(&self.lock)
        count = self.waits.count_waiting()
        release(&self.lock)
        return count

    # -----------------------------------------------------------------------------------------------------------
    # cancelled

    cdef int cancel(self, OperationBase op) except -1:
        # Cancels it if it is queued here, and emits it if its place was claimed meanwhile, or it has none: it was put back.
        # False: it is not, any more.
        cdef PyObject* entry = NULL
        cdef bint cancels
        acquire(&self.lock)
        cancels = op.try_cancel(self.number)
        if cancels:
            self.accounting.cancelled += 1
            entry = self.routing.take_cancelled(op)
        release(&self.lock)
        if not cancels:
            return False
        op.announce_done(CANCELLED, overrides_done(<PyObject*>Py_TYPE(<PyObject*>op)))
        if not entry:
            acquire(&self.lock)
            entry = self.orphans.first
            while entry:
                # acquire: pairs with end. Not done: it is an orphan of the next life, whose own canceller will look.
                if (<RetryEntry>entry).operation is op and op.state.load(memory_order_acquire) & RELEASED:
                    self.orphans.unlink(entry)
                    break
                entry = (<RetryEntry>entry).next
            release(&self.lock)
        if entry:
            unplace(op)
            Py_INCREF(op)  # the stream's
            emit((<RetryEntry>entry).source, <PyObject*>op, (<RetryEntry>entry).position)
            # On a free-threaded build the entry, which a worker made, may live on for long (rule 14); the operation does not.
            (<RetryEntry>entry).operation = None
            (<RetryEntry>entry).source = None
            Py_DECREF(<object>entry)  # the queue's, the heap's, or the orphans'
            notify(&self.inbox.not_full)
        self.wake_for_drain()
        return True

    cdef int emit_cancelled(self, PyObject* op, WorkSource source, uint64_t position) except -1:
        # The place of an operation that was cancelled is claimed. Takes the caller's reference.
        cdef bint ended
        cdef PyObject* orphan
        if (<OperationBase>op).context is not None:
            (<OperationBase>op).set_context(None)  # it was cancelled before its submitter had set that
        orphan = new_entry(op, <PyObject*>source, position)
        acquire(&self.lock)
        ended = (<OperationBase>op).state.load(memory_order_acquire) & RELEASED  # acquire: pairs with end
        if not ended and orphan:
            self.orphans.append(orphan)
        release(&self.lock)
        if not ended and orphan:
            Py_DECREF(<object>op)  # the orphan owns one
            return 0
        # Or no memory: it comes out of its stream a moment before its done().
        if not orphan:
            PyErr_Clear()
        Py_XDECREF(orphan)
        unplace(<OperationBase>op)
        emit(source, op, position)
        return 0

    # -----------------------------------------------------------------------------------------------------------
    # ended

    cdef int end_one(self, OperationBase op, WorkSource source, uint64_t position, uint32_t phase, PyObject* error_record,
                     list ended) except -1:
        # Ends one that the caller has claimed. `error_record`: what it fails with, the caller's reference;
        # NULL: that the pool is broken. Returns how many did not get into `ended`, for lack of memory.
        cdef bint mine
        Py_INCREF(op)  # the stream's
        acquire(&self.lock)
        mine = begin(op)
        if mine:
            if phase == CANCELLED:
                self.accounting.cancelled += 1
            else:
                self.accounting.failed += 1
        release(&self.lock)
        if not mine:
            Py_XDECREF(error_record)
            self.emit_cancelled(<PyObject*>op, source, position)
            return 0
        if phase == FAILED and not error_record:
            error_record = self.broken_record(<PyObject*>op)
        if error_record:
            op.set_error_record(<ErrorRecord>error_record)
            Py_DECREF(<object>error_record)  # the operation owns one
        end(op, phase, overrides_done(<PyObject*>Py_TYPE(<PyObject*>op)))
        emit(source, <PyObject*>op, position)
        if ended is not None and PyList_Append(<PyObject*>ended, subject_of(<PyObject*>op)):
            PyErr_Clear()  # those that come after it must be ended all the same
            return 1
        return 0

    cdef int end_entry(self, PyObject* entry, uint32_t phase, list ended) except -1:
        # end_one for an operation that is in no ring. Takes the caller's reference.
        cdef int unlisted = self.end_one(
            <OperationBase><PyObject*>(<RetryEntry>entry).operation, <WorkSource><PyObject*>(<RetryEntry>entry).source,
            (<RetryEntry>entry).position, phase, NULL, ended,
        )
        Py_DECREF(<object>entry)
        return unlisted

    cdef int end_unbegun(self, WorkSource source, uint32_t phase, list ended) except -1:
        # Ends all that waits in a source of our own, without a worker, and appends it to `ended`. Returns as end_one.
        cdef PyObject* raw = NULL
        cdef uint64_t position = 0
        cdef Renewal renewal = AS_IT_IS
        cdef int unlisted = 0
        if source.external:
            return 0
        if source.carries_items:
            return self.end_items(<ItemSource>source, phase, ended)
        while source.claim(&raw, &position, self.number, &renewal) == DONE:
            op = <OperationBase>steal(raw)
            unlisted += self.end_one(op, source, position, phase, NULL, ended)
        return unlisted

    cdef int end_abandoned(self, WorkSource source) except -1:
        # The reader is gone: cancels what no worker runs now, also what waits to be tried again.
        cdef PyObject* entry
        cdef PyObject* following
        self.end_unbegun(source, CANCELLED, None)
        acquire(&self.lock)
        entry = self.routing.take_of_source(<PyObject*>source)
        release(&self.lock)
        if entry:
            notify(&self.inbox.not_full)
        while entry:
            following = (<RetryEntry>entry).next
            (<RetryEntry>entry).next = NULL
            self.end_entry(entry, CANCELLED, None)
            entry = following
        return 0

    cdef int end_items(self, ItemSource source, uint32_t phase, list ended) except -1:
        # end_unbegun for items: span by span, in the order of the source as far as workers have not moved spans.
        cdef uint64_t begin = 0, end = 0, position
        cdef int unlisted = 0
        cdef PyObject* drawn = NULL
        cdef PyObject* item
        cdef PyObject* listed
        while source.claim_span(&begin, &end, &drawn):
            acquire(&self.lock)
            if phase == CANCELLED:
                self.accounting.cancelled += end - begin
            else:
                self.accounting.failed += end - begin
            release(&self.lock)
            for position in range(begin, end):
                item = drawn if source.draws else source.take_input(position)
                if ended is not None:
                    listed = item
                    if item == NULL and source.computes:
                        listed = source.item_at(position)
                    if listed == NULL or PyList_Append(<PyObject*>ended, listed):
                        PyErr_Clear()  # as in end_one
                        unlisted += 1
                    if listed != item:
                        Py_XDECREF(listed)
                source.publish(position, item, CANCELLED_ITEM if phase == CANCELLED else BROKEN_ITEM)
        return unlisted

    def drain(self):
        """Accepts nothing from now on. Workers finish what was accepted, then leave. Idempotent."""
        self._close(DRAINING, None)

    def _close(self, uint32_t phase, failure):
        cdef WorkSource source
        # acquire twice: pairs with the stores below. It may be a finalizer that asks, when our globals are gone.
        if self.sealed.load(memory_order_acquire) and self.phase.load(memory_order_acquire) >= phase:
            return
        if failure is None:
            failure = PoolNotRunning(f"{self.policy!r} was shut down before the source was exhausted")
        acquire(&self.lock)
        if self.phase.load(memory_order_relaxed) < phase:  # relaxed: written under the lock
            self.phase.store(phase, memory_order_release)  # release: pairs with check_open
        release(&self.lock)
        # No source is linked from here on. A batch has ended already; the others end now, with an error for the reader.
        for source in self.linked_sources():
            source.end(failure)
        self.inbox.close_ring()  # wakes those who wait for room
        self.sealed.store(1, memory_order_seq_cst)  # seq_cst: pairs with ends; accepted stands still from here on
        notify_all(&self.idle)
        notify_all(&self.leaving)

    def cancel_pending(self):
        """Ends what has not begun as CANCELLED and returns it. After drain(). MemoryError if not all could be listed."""
        cdef list ended = []
        cdef int unlisted = self.end_pending(CANCELLED, ended)
        self.wake_for_drain()
        if unlisted:
            raise MemoryError(f"{unlisted} of the operations that were cancelled")
        return ended

    cdef int end_pending(self, uint32_t phase, list ended) except -1:
        # Ends what has not begun as CANCELLED, or as FAILED: the pool is broken. Returns as end_one.
        cdef WorkSource source
        cdef PyObject* entry
        cdef int unlisted = 0
        for source in self.linked_sources():
            unlisted += self.end_unbegun(source, phase, ended)
        while True:
            entry = self.take_any()
            if not entry:
                break
            unlisted += self.end_entry(entry, phase, ended)
        while True:
            entry = self.take_delayed(NEVER)
            if not entry:
                break
            unlisted += self.end_entry(entry, phase, ended)
        return unlisted

    cdef PyObject* take_any(self) noexcept:
        # The first entry that waits for a worker, for its end; owned by the caller. NULL: none.
        cdef PyObject* entry
        acquire(&self.lock)
        entry = self.routing.queue.first
        if entry:
            self.routing.unlink(entry)
        release(&self.lock)
        if entry:
            notify(&self.inbox.not_full)
        return entry

    def take_back(self):
        """Takes the oldest that has not begun, in a run that is first_come; it counts as cancelled.

        An operation, which its owner is to end by done(); or (source, position, arguments) of an item, which its owner is to
        end by source.end_taken(); None: there is none.
        """
        cdef PyObject* found
        cdef PyObject* entry
        cdef PyObject* item = NULL
        cdef uint64_t position = 0
        cdef ItemSource source
        cdef RetryEntry retry
        cdef OperationBase operation
        cdef bint mine
        while True:
            found = self.next_source(False, False)
            entry = NULL
            if not found or self.retry_is_first(found):
                entry = self.take_any()
            if entry:
                Py_XDECREF(found)  # next_source's
                retry = <RetryEntry>steal(entry)
                operation = retry.operation
                acquire(&self.lock)
                mine = begin(operation)
                if mine:
                    self.accounting.cancelled += 1
                release(&self.lock)
                if mine:
                    return operation
                Py_INCREF(operation)  # the stream's
                self.emit_cancelled(<PyObject*>operation, retry.source, retry.position)
                continue
            if not found:
                return None
            source = <ItemSource>steal(found)
            # a worker beyond all numbers: it takes one at a time
            if source.claim_item(PY_SSIZE_T_MAX, &position, &item) != DONE:
                continue
            acquire(&self.lock)
            self.accounting.cancelled += 1
            release(&self.lock)
            if source.computes:
                item = source.item_at(position)
                if item == NULL:
                    source.publish(position, NULL, CANCELLED_ITEM)
                    raise_set()
            arguments = steal(item)
            return source, position, arguments if source.unpacks else (arguments,)

    def cancel_delayed(self):
        """Ends those whose delay runs as CANCELLED, and from now on those that would be delayed."""
        cdef PyObject* entry
        acquire(&self.lock)
        self.undelayed = True
        release(&self.lock)
        while True:
            entry = self.take_delayed(NEVER)
            if not entry:
                break
            self.end_entry(entry, CANCELLED, None)
        self.wake_for_drain()

    # -----------------------------------------------------------------------------------------------------------
    # the end of the run

    def break_down(self):
        """The last worker is lost: everything pending fails, streams end with the error, nothing is accepted."""
        self._close(BROKEN, BrokenPool(self.broken_message))
        self.end_pending(FAILED, None)

    def end_now(self):
        """Workers leave as soon as they are between two operations. What is pending is cancelled."""
        self._close(ENDING, None)
        self.end_pending(CANCELLED, None)

    def abort_streams(self):
        """A worker is stuck: streams that wait for its operation end without it, with PoolNotRunning."""
        cdef WorkSource source
        for reference in list(self.sources.streams.values()):
            source = reference()
            if source is not None:
                source.abort(PoolNotRunning(f"{self.policy!r} was shut down while a worker was stuck in an operation"))

    def finish(self):
        """The last thread has ended. Releases the sources, and the rings that have watchers in them.

        Nothing is pending, unless a worker had no memory to say that it was the last: then it ends here.
        """
        cdef WorkSource source
        cdef uint32_t phase = self.phase.load(memory_order_acquire)  # acquire: pairs with _close
        if phase < DRAINING or phase == BROKEN:
            self.break_down()
        else:
            self.end_now()
        for source in list(self.sources.kept):
            source.end(self.stopped_error())
            self.remove(source)
        self.remove_spent(PY_SSIZE_T_MAX)

    def finish_run(self):
        """No thread of the run is left, and none will begin. May be called again, also at the same time."""
        self.stop_timer()
        self.finish()
        self.threads.set_over()


cdef bint is_short(object numbers) except -1:
    # Whether a range may be accepted as a whole. Its length may be more than len() can tell.
    if not numbers:
        return True
    last = numbers.__getitem__(-1)
    if abs(numbers.start) > WIDEST or abs(last) > WIDEST:
        return False
    return abs(last - numbers.start) < LONGEST_RANGE * abs(numbers.step)


cdef list list_of(object operations):
    # list() of a list or tuple leaks that in CPython 3.11 and 3.12 where memory is short.
    cdef Py_ssize_t k, length
    cdef list ops
    cdef PyObject* op
    if type(operations) is list:
        return PyList_GetSlice(operations, 0, PY_SSIZE_T_MAX)
    if type(operations) is not tuple:
        return list(operations)
    length = len(<tuple>operations)
    ops = PyList_New(length)
    for k in range(length):
        op = (<PyTupleObject*>operations).ob_item[k]
        Py_INCREF(<object>op)  # the list's
        (<PyListObject*>ops).ob_item[k] = op
    return ops


cdef int do_attempt(void* request) noexcept:
    cdef PyObject* run = (<SubmitRequest*>request).run
    # seq_cst: pairs with take_retry_for. Retries count as queued, so that a pool whose work keeps failing takes no more.
    cdef Py_ssize_t retries = (<PoolRun>run).routing.length.load(memory_order_seq_cst)
    cdef Ring* inbox = (<PoolRun>run).inbox.ring
    if retries and <uint64_t>(retries + size(inbox)) >= inbox.capacity and not is_shut(inbox):
        return NOT_NOW
    return try_put(inbox, (<SubmitRequest*>request).op, NULL)

cdef int do_counted(void* request) noexcept:
    # For a task, which may be suspended without end: it holds no reference for the inbox meanwhile, that the collector knows
    # nothing of.
    cdef PyObject* op = (<SubmitRequest*>request).op
    cdef int result
    Py_INCREF(<object>op)  # the inbox's, if it gets there
    result = do_attempt(request)
    if result != DONE:
        Py_DECREF(<object>op)
    return result

cdef int do_more(void* request) noexcept:
    return has_room((<PoolRun>(<SubmitRequest*>request).run).inbox.ring)


cdef int timer_attempt(void* run) noexcept:
    cdef PyObject* earliest
    cdef int64_t due, expected
    cdef bint stopped
    acquire(&(<PoolRun>run).lock)
    earliest = (<PoolRun>run).routing.delays.earliest()
    due = (<RetryEntry>earliest).due_ns if earliest else NEVER
    expected = (<PoolRun>run).timer_deadline
    stopped = (<PoolRun>run).timer_stopped
    release(&(<PoolRun>run).lock)
    if stopped:
        return STOPPED
    if due == NEVER:
        return 0
    if due <= now_ns():
        return DUE
    return EARLIER if expected == NEVER or due < expected else 0


def _unroutable(op):
    return Unroutable(f"every worker that is left has rejected {describe(subject(op))}")


cdef object make_unroutable = _unroutable
cdef object unroutable_for_all = Unroutable("every worker that is left has rejected the operation")


cdef PyObject* unroutable_record(PyObject* operation) noexcept:
    # Where there is no memory for an error object, with a shared one; NULL where there is none for the record either.
    cdef PyObject* error_record
    cdef PyObject* error = call_one(<PyObject*>make_unroutable, operation)
    if error == NULL:
        PyErr_Clear()
        error = <PyObject*>unroutable_for_all
        Py_INCREF(<object>error)
    error_record = new_error_record(error, <PyObject*>Py_TYPE(operation), True)
    Py_DECREF(<object>error)  # the record owns one
    if error_record == NULL:
        PyErr_Clear()
        error_record = <PyObject*>unroutable_record_for_all
        Py_INCREF(<object>error_record)
    return error_record


cdef object unroutable_record_for_all = steal(new_error_record(<PyObject*>unroutable_for_all, <PyObject*>OperationBase, True))


cdef int raise_set() except -1:
    # Raises what a function declared as noexcept has set.
    return -1


cdef ErrorRecord owned_record(object error):
    cdef PyObject* record = new_error_record(<PyObject*>error, <PyObject*>OperationBase, True)
    if record == NULL:
        raise_set()
    return <ErrorRecord>steal(record)
