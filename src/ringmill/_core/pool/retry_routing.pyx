# What happens to operations otherwise than on a worker: those that are tried again, cancelled, or overtaken by the end.
#
# Retries. An entry waits in `retries`, in order, with two masks of workers: those that rejected it, which never get it
# again, and those that are equal to a worker that had it, which get it only when no other is alive (and not itself
# waiting for work). The thread that appends an entry wakes a sleeping worker that may take it, by name. An entry whose
# delay runs is in `delays`; the timer thread moves it to `retries`. One that no worker left may take is ended as
# Unroutable: asked under the lock when it is appended, and when a worker retires.
#
# Owners of an entry: the worker that has the operation writes its masks; under the pool's lock it hands the entry to
# `retries` or `delays`, and the thread that unlinks it from there, under the lock, owns it and its operation's place.
#
# Cancelling. By the same compare-exchange as begin (operation.pyx), under the pool's lock, with the count. A cancelled
# operation keeps its place in its ring; the worker that claims the place emits it, or, if done() has not been called
# yet, leaves that to the canceller (orphans, under the lock: one of the two sees the other). One whose delay runs leaves
# its place at once. An operation can be cancelled between its acceptance and its entry into the ring: it is counted
# as accepted then, whatever the ring says (the maximum in stats), and one that the ring refuses after that stays both.
#
# Under the lock no reference is dropped, nothing is allocated, and no Python code runs (rule 7). What must not fail
# allocates by functions that return NULL: Cython's `except` needs memory itself.

import _thread

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from ringmill._core.pool.accounting cimport BROKEN, DRAINING, ENDING, is_waiting, refuse_alone, waits_for
from ringmill._core.pool.operation cimport CANCELLED, FAILED, RELEASED, PyTypeObject, begin, end, new_error_record, phase_of, unplace
from ringmill._core.pool.retry_queue cimport RetryEntry, RetryQueue, new_entry
from ringmill._core.pool.work_source cimport AS_IT_IS, Renewal, emit
from ringmill._core.ring.ring cimport DONE
from ringmill._core.platform.primitives cimport now_ns, steal
from ringmill._core.waiting.wait_queue cimport NEVER, acquire, init_queue, notify, notify_all, notify_owner, release, wait_for

from ringmill.errors import BrokenPool, PoolNotRunning, Unroutable, describe

cdef extern from "Python.h":
    int PyList_Append(PyObject* list, PyObject* item) noexcept
    PyObject* call_one "PyObject_CallOneArg"(PyObject* function, PyObject* argument) noexcept
    PyTypeObject* Py_TYPE(PyObject* o) nogil
    void PyErr_Clear()
    ctypedef struct PyListObject:
        PyObject** ob_item

cdef extern from *:
    """
    /* A mask of workers, a bytes object or None: whether that worker is in it. */
    static inline int ringmill_in_mask(PyObject* mask, Py_ssize_t index) {
        return mask != Py_None && PyBytes_AS_STRING(mask)[index] != 0;
    }
    """
    bint in_mask "ringmill_in_mask"(PyObject* mask, Py_ssize_t index) noexcept nogil

cdef enum:
    # what the timer thread waits for
    STOPPED = 1
    DUE = 2
    EARLIER = 3

cdef object done_of_base = OperationBase.done


cdef class Retries(Accounting):
    """The books, and what becomes of operations outside of workers."""

    def __cinit__(self):
        refuse_alone(self, Retries)
        self.orphans = RetryQueue()
        init_queue(&self.timer_wakes)

    # -----------------------------------------------------------------------------------------------------------
    # to be tried again

    cdef bint append_retry(self, PyObject* entry) noexcept:
        # Under the lock. Hands the caller's reference to `retries`; False: no worker may take it, or the pool has ended.
        # relaxed: written under the lock. A thread that ends what is pending does that after it has set the phase.
        if self.phase.load(memory_order_relaxed) >= ENDING or not self.routable(entry):
            return False
        self.retries.append(entry)
        self.retry_count.store(self.retries.length, memory_order_seq_cst)  # seq_cst: pairs with take's look
        return True

    cdef void unlink_retry(self, PyObject* entry) noexcept:
        # Under the lock. The reference is the caller's then.
        self.retries.unlink(entry)
        # seq_cst: room for do; pairs with do_attempt
        self.retry_count.store(self.retries.length, memory_order_seq_cst)

    cdef void wake_for_retry(self, PyObject* tried_by, PyObject* rejected_by) noexcept:
        # An entry with these masks was appended: wakes a worker that may take it, by name. Where no such worker sleeps,
        # those that are awake look before they sleep.
        cdef PyObject* worker_loop
        cdef bint eligible
        cdef Py_ssize_t k
        for k in range(self.worker_count):
            worker_loop = (<PyListObject*>self.worker_loops).ob_item[k]
            acquire(&self.lock)
            eligible = self.may_take(tried_by, rejected_by, <WorkerCounters>worker_loop)
            release(&self.lock)
            if eligible and notify_owner(&self.idle, <void*>worker_loop):
                break

    cdef PyObject* take_retry_for(self, WorkerCounters worker_loop) noexcept:
        # The first entry that may go to this worker, owned by the caller; NULL: none.
        cdef PyObject* entry
        cdef PyObject* operation
        acquire(&self.lock)
        entry = self.retries.first
        while entry:
            operation = <PyObject*>(<RetryEntry>entry).operation
            if phase_of(<OperationBase>operation) == CANCELLED or self.may_take(
                <PyObject*>(<RetryEntry>entry).tried_by, <PyObject*>(<RetryEntry>entry).rejected_by, worker_loop
            ):
                self.unlink_retry(entry)
                break
            entry = (<RetryEntry>entry).next
        release(&self.lock)
        if entry:
            notify(&self.inbox.not_full)
        return entry

    cdef bint may_take(self, PyObject* tried_by, PyObject* rejected_by, WorkerCounters worker_loop) noexcept:
        # Under the lock. Not a worker that rejected it. One that had it, or is equal to one that had, if no other is alive.
        cdef Py_ssize_t k
        cdef PyObject* other
        if in_mask(rejected_by, worker_loop.index):
            return False
        if not in_mask(tried_by, worker_loop.index):
            return True
        for k in range(self.worker_count):
            other = (<PyListObject*>self.worker_loops).ob_item[k]
            # relaxed: a thread that changes it wakes all, which look again
            if (
                not in_mask(tried_by, k)
                and not in_mask(rejected_by, k)
                and (<WorkerCounters>other).alive.load(memory_order_relaxed)
                and not is_waiting(other)
            ):
                return False
        return True

    cdef bint routable(self, PyObject* entry) noexcept:
        # Under the lock. Whether a worker is left, pausing ones included, that has not rejected it, and that does not
        # itself wait for it.
        cdef Py_ssize_t k
        cdef PyObject* worker_loop
        cdef PyObject* rejected_by = <PyObject*>(<RetryEntry>entry).rejected_by
        for k in range(self.worker_count):
            worker_loop = (<PyListObject*>self.worker_loops).ob_item[k]
            if (<WorkerCounters>worker_loop).retired or in_mask(rejected_by, k):
                continue
            # One that others have rejected does not wait for the end of a wait for it; any other one does.
            if not waits_for(
                worker_loop, <PyObject*>(<RetryEntry>entry).operation, <PyObject*>(<RetryEntry>entry).source,
                rejected_by != <PyObject*>None,
            ):
                return True
        return False

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

    cdef PyObject* broken_record(self, PyObject* operation) noexcept:
        # Each operation of a broken pool fails with an error object of its own; where there is no memory, with a shared one.
        cdef PyObject* error_record = NULL
        cdef PyObject* error = call_one(<PyObject*>BrokenPool, <PyObject*>self.broken_message)
        if error != NULL:
            error_record = new_error_record(error, <PyObject*>Py_TYPE(operation), True)
            Py_DECREF(<object>error)  # the note owns one
        if error_record == NULL:
            PyErr_Clear()
            error_record = <PyObject*>self.broken_for_all
            Py_INCREF(<object>error_record)  # the caller's
        return error_record

    def is_routable(self, bytes rejected_by):
        """Whether a worker is left that is not in the mask."""
        cdef Py_ssize_t k
        cdef bint found = False
        acquire(&self.lock)
        for k in range(self.worker_count):
            if not (<WorkerCounters>(<PyListObject*>self.worker_loops).ob_item[k]).retired and not in_mask(<PyObject*>rejected_by, k):
                found = True
                break
        release(&self.lock)
        return found

    def retire(self, WorkerCounters worker_loop not None):
        """One worker less. Returns whether those left can do what is pending: not when all wait for it themselves.

        Ends the operations that only this one might have taken; or all, where none can.
        """
        cdef bint enough
        acquire(&self.lock)
        if not worker_loop.retired:
            worker_loop.retired = True
            self.present -= 1
            if worker_loop.first_wait:
                self.stalled_count -= 1
        enough = self.present > 0 and self.worker_left()
        release(&self.lock)
        if enough:
            self.review_retries()
        else:
            self.break_down()
        return enough

    cdef int review_retries(self) except -1:
        # A worker may take less than before: ends the entries that no worker may take now, wakes all for the others.
        cdef PyObject* entry
        cdef PyObject* following
        cdef PyObject* lost = NULL
        acquire(&self.lock)
        entry = self.retries.first
        while entry:
            following = (<RetryEntry>entry).next
            if not self.routable(entry):
                self.unlink_retry(entry)
                (<RetryEntry>entry).next = lost
                lost = entry
            entry = following
        release(&self.lock)
        while lost:
            following = (<RetryEntry>lost).next
            (<RetryEntry>lost).next = NULL
            self.end_retry(lost)
            lost = following
        notify(&self.inbox.not_full)
        notify_all(&self.idle)
        return 0

    # -----------------------------------------------------------------------------------------------------------
    # delayed

    cdef PyObject* take_delayed(self, int64_t now) noexcept:
        # An entry whose delay is over at that time (any, for NEVER), owned by the caller; NULL: none.
        cdef PyObject* entry
        acquire(&self.lock)
        entry = self.unlink_delayed(now)
        release(&self.lock)
        return entry

    cdef PyObject* unlink_delayed(self, int64_t now) noexcept:
        # Under the lock. As take_delayed.
        cdef PyObject* entry = self.delays.earliest()
        if entry and (now == NEVER or (<RetryEntry>entry).due_ns <= now):
            self.delays.remove(entry)
            (<RetryEntry>entry).operation.delayed = NULL
            return entry
        return NULL

    cdef int release_due(self, int64_t now) except -1:
        # Moves what is due to the retries, and wakes workers.
        cdef PyObject* entry
        cdef PyObject* tried_by
        cdef PyObject* rejected_by
        cdef bint kept
        while True:
            acquire(&self.lock)
            entry = self.unlink_delayed(now)
            if not entry:
                release(&self.lock)
                return 0
            tried_by = <PyObject*>(<RetryEntry>entry).tried_by
            rejected_by = <PyObject*>(<RetryEntry>entry).rejected_by
            Py_INCREF(<object>tried_by)  # ours, both: a worker may have taken the entry and written it by the time we read
            Py_INCREF(<object>rejected_by)
            kept = self.append_retry(entry)
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
        return self.has_timer

    @property
    def cancels_delayed(self):
        """Whether retries that would be delayed are cancelled: the program ends."""
        return self.undelayed

    def give_up_timer(self):
        """The timer's thread cannot be started: retries are not delayed, until one can."""
        acquire(&self.lock)
        self.no_timer = not self.has_timer
        release(&self.lock)
        self.release_due(NEVER)

    def run_timer(self):
        """The whole life of the timer's thread: moves each delayed operation to the retries when its delay is over.

        A second one returns at once. MemoryError: call it again.
        """
        cdef bint runs
        acquire(&self.lock)
        runs = self.has_timer
        self.has_timer = True
        self.no_timer = False
        release(&self.lock)
        if runs:
            return
        try:
            self.serve_timer()
        finally:
            acquire(&self.lock)
            self.has_timer = False
            release(&self.lock)

    cdef int serve_timer(self) except -1:
        cdef int64_t deadline
        cdef PyObject* earliest
        while True:
            acquire(&self.lock)
            earliest = self.delays.earliest()
            deadline = (<RetryEntry>earliest).due_ns if earliest else NEVER
            self.timer_deadline = deadline
            release(&self.lock)
            if wait_for(&self.timer_wakes, timer_attempt, timer_attempt, <void*>self, NULL, 0, deadline) == STOPPED:
                return 0
            self.release_due(now_ns())

    def stop_timer(self):
        """Ends the timer's thread, if there is one. Idempotent."""
        acquire(&self.lock)
        self.timer_stopped = True
        release(&self.lock)
        notify_all(&self.timer_wakes)

    # -----------------------------------------------------------------------------------------------------------
    # cancelled

    cdef int cancel(self, OperationBase op) except -1:
        # Cancels it if it is queued here, and emits it if its place was claimed meanwhile, or it has none: a delay runs.
        # False: it is not, any more.
        cdef PyObject* entry = NULL
        cdef bint cancels
        acquire(&self.lock)
        cancels = op.try_cancel(self.number)
        if cancels:
            self.cancelled += 1
            entry = op.delayed
            if entry:
                op.delayed = NULL
                self.delays.remove(entry)
        release(&self.lock)
        if not cancels:
            return False
        op.announce_done(CANCELLED, type(op).done is not done_of_base)
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
            Py_DECREF(<object>entry)  # the heap's, or the orphans'
        elif self.retry_count.load(memory_order_seq_cst):  # seq_cst: as take
            notify(&self.idle)  # any worker may emit it now
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
        # Ends one that the caller has claimed. `note`: what it fails with, the caller's reference; NULL: that the pool is
        # broken. Returns how many did not get into `ended`, for want of memory.
        cdef bint mine
        Py_INCREF(op)  # the stream's
        acquire(&self.lock)
        mine = begin(op)
        if mine:
            if phase == CANCELLED:
                self.cancelled += 1
            else:
                self.failed += 1
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
        end(op, phase, type(op).done is not done_of_base)
        emit(source, <PyObject*>op, position)
        if ended is not None and PyList_Append(<PyObject*>ended, <PyObject*>op):
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
        # Ends all that waits in a feed of our own, without a worker, and appends it to `ended`. Returns as end_one.
        cdef PyObject* raw = NULL
        cdef uint64_t position = 0
        cdef Renewal renewal = AS_IT_IS
        cdef int unlisted = 0
        if source.external:
            return 0
        while source.claim(&raw, &position, self.number, &renewal) == DONE:
            op = <OperationBase>steal(raw)
            unlisted += self.end_one(op, source, position, phase, NULL, ended)
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
        # No feed is linked from here on. A batch has ended already; the others end now, with an error for the reader.
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
        entry = self.retries.first
        if entry:
            self.unlink_retry(entry)
        release(&self.lock)
        if entry:
            notify(&self.inbox.not_full)
        return entry

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

    def break_down(self):
        """The last worker is lost: everything pending fails, streams end with the error, nothing is accepted."""
        cdef PyObject* error_record
        message = f"{self.policy!r} has lost its last worker"
        error = BrokenPool(message)
        if self.broken_for_all is None:
            error_record = new_error_record(<PyObject*>error, <PyObject*>OperationBase, True)
            if error_record == NULL:
                raise MemoryError
            self.broken_message = message
            self.broken_for_all = <ErrorRecord>steal(error_record)
        self._close(BROKEN, error)
        self.end_pending(FAILED, None)

    def end_now(self):
        """Workers leave as soon as they are between two operations. What is pending is cancelled."""
        self._close(ENDING, None)
        self.end_pending(CANCELLED, None)

    def abort_streams(self):
        """A worker is stuck: streams that wait for its operation end without it, with PoolNotRunning."""
        cdef WorkSource source
        for reference in list(self.streams.values()):
            source = reference()
            if source is not None:
                source.abort(PoolNotRunning(f"{self.policy!r} was shut down while a worker was stuck in an operation"))

    def finish(self):
        """The last thread has ended. Lets go of the feeds, and of the rings that have bells in them.

        Nothing is pending, unless a worker had no memory to say that it was the last: then it ends here.
        """
        cdef WorkSource source
        cdef uint32_t phase = self.phase.load(memory_order_acquire)  # acquire: pairs with _close
        if phase < DRAINING or phase == BROKEN:
            self.break_down()
        else:
            self.end_now()
        for source in list(self.kept):
            source.end(self.stopped_error())
            self.remove(source)


cdef int timer_attempt(void* core) noexcept:
    cdef PyObject* earliest
    cdef int64_t due, expected
    cdef bint stopped
    acquire(&(<Retries>core).lock)
    earliest = (<Retries>core).delays.earliest()
    due = (<RetryEntry>earliest).due_ns if earliest else NEVER
    expected = (<Retries>core).timer_deadline
    stopped = (<Retries>core).timer_stopped
    release(&(<Retries>core).lock)
    if stopped:
        return STOPPED
    if due == NEVER:
        return 0
    if due <= now_ns():
        return DUE
    return EARLIER if expected == NEVER or due < expected else 0


def _unroutable(op):
    return Unroutable(f"every worker that is left has rejected {describe(op)}")


cdef object make_unroutable = _unroutable
cdef object unroutable_for_all = Unroutable("every worker that is left has rejected the operation")


cdef PyObject* unroutable_record(PyObject* operation) noexcept:
    # Where there is no memory for an error object, with a shared one; NULL where there is none for the note either.
    cdef PyObject* error_record
    cdef PyObject* error = call_one(<PyObject*>make_unroutable, operation)
    if error == NULL:
        PyErr_Clear()
        error = <PyObject*>unroutable_for_all
        Py_INCREF(<object>error)
    error_record = new_error_record(error, <PyObject*>Py_TYPE(operation), True)
    Py_DECREF(<object>error)  # the note owns one
    if error_record == NULL:
        PyErr_Clear()
        error_record = <PyObject*>unroutable_record_for_all
        Py_INCREF(<object>error_record)
    return error_record


cdef object unroutable_record_for_all = steal(new_error_record(<PyObject*>unroutable_for_all, <PyObject*>OperationBase, True))
