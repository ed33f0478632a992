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

from ringmill._core.books cimport BROKEN, DRAINING, ENDING, is_waiting, refuse_alone, waits_for
from ringmill._core.operation cimport CANCELLED, FAILED, RELEASED, PyTypeObject, begin, end, new_note, phase_of, unplace
from ringmill._core.retry_queue cimport RetryEntry, RetryQueue, new_entry
from ringmill._core.feed cimport AS_IT_IS, Renewal, emit
from ringmill._core.ring cimport DONE
from ringmill._core.machine cimport now_ns, steal
from ringmill._core.waiter cimport NEVER, acquire, init_queue, notify, notify_all, notify_owner, release, wait_for

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


cdef class Redrives(Books):
    """The books, and what becomes of operations outside of workers."""

    def __cinit__(self):
        refuse_alone(self, Redrives)
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
        self.side_count.store(self.retries.length, memory_order_seq_cst)  # seq_cst: pairs with take's look
        return True

    cdef void unlink_retry(self, PyObject* entry) noexcept:
        # Under the lock. The reference is the caller's then.
        self.retries.unlink(entry)
        # seq_cst: room for do; pairs with do_attempt
        self.side_count.store(self.retries.length, memory_order_seq_cst)

    cdef void wake_for_retry(self, PyObject* had, PyObject* rejected) noexcept:
        # An entry with these masks was appended: wakes a worker that may take it, by name. Where no such worker sleeps,
        # those that are awake look before they sleep.
        cdef PyObject* runner
        cdef bint eligible
        cdef Py_ssize_t k
        for k in range(self.crew):
            runner = (<PyListObject*>self.runners).ob_item[k]
            acquire(&self.lock)
            eligible = self.may_take(had, rejected, <Tally>runner)
            release(&self.lock)
            if eligible and notify_owner(&self.idle, <void*>runner):
                break

    cdef PyObject* take_aside(self, Tally runner) noexcept:
        # The first entry that may go to this worker, owned by the caller; NULL: none.
        cdef PyObject* entry
        cdef PyObject* operation
        acquire(&self.lock)
        entry = self.retries.first
        while entry:
            operation = <PyObject*>(<RetryEntry>entry).operation
            if phase_of(<OperationBase>operation) == CANCELLED or self.may_take(
                <PyObject*>(<RetryEntry>entry).had, <PyObject*>(<RetryEntry>entry).rejected, runner
            ):
                self.unlink_retry(entry)
                break
            entry = (<RetryEntry>entry).next
        release(&self.lock)
        if entry:
            notify(&self.inbox.not_full)
        return entry

    cdef bint may_take(self, PyObject* had, PyObject* rejected, Tally runner) noexcept:
        # Under the lock. Not a worker that rejected it. One that had it, or is equal to one that had, if no other is alive.
        cdef Py_ssize_t k
        cdef PyObject* other
        if in_mask(rejected, runner.index):
            return False
        if not in_mask(had, runner.index):
            return True
        for k in range(self.crew):
            other = (<PyListObject*>self.runners).ob_item[k]
            # relaxed: a thread that changes it wakes all, which look again
            if (
                not in_mask(had, k)
                and not in_mask(rejected, k)
                and (<Tally>other).alive.load(memory_order_relaxed)
                and not is_waiting(other)
            ):
                return False
        return True

    cdef bint routable(self, PyObject* entry) noexcept:
        # Under the lock. Whether a worker is left, pausing ones included, that has not rejected it, and that does not
        # itself wait for it.
        cdef Py_ssize_t k
        cdef PyObject* runner
        cdef PyObject* rejected = <PyObject*>(<RetryEntry>entry).rejected
        for k in range(self.crew):
            runner = (<PyListObject*>self.runners).ob_item[k]
            if (<Tally>runner).retired or in_mask(rejected, k):
                continue
            # One that others have rejected does not wait for the end of a wait for it; any other one does.
            if not waits_for(
                runner, <PyObject*>(<RetryEntry>entry).operation, <PyObject*>(<RetryEntry>entry).feed,
                rejected != <PyObject*>None,
            ):
                return True
        return False

    cdef void end_redrive(self, PyObject* entry) noexcept:
        # Ends an entry that no worker will take: no worker may, or the pool has ended. Takes the caller's reference.
        cdef uint32_t phase = self.phase.load(memory_order_acquire)  # acquire: pairs with _close
        cdef PyObject* operation = <PyObject*>(<RetryEntry>entry).operation
        cdef PyObject* feed = <PyObject*>(<RetryEntry>entry).feed
        cdef uint32_t outcome = CANCELLED if phase == ENDING else FAILED
        cdef PyObject* note = NULL
        if phase != BROKEN and phase != ENDING:
            note = unroutable_note(operation)
        self.end_one(<OperationBase>operation, <Feed>feed, (<RetryEntry>entry).position, outcome, note, None)
        Py_DECREF(<object>entry)  # the caller's
        self.wake_for_the_end()

    cdef PyObject* broken_note(self, PyObject* operation) noexcept:
        # Each operation of a broken pool fails with an error object of its own; where there is no memory, with a shared one.
        cdef PyObject* note = NULL
        cdef PyObject* error = call_one(<PyObject*>BrokenPool, <PyObject*>self.broken_message)
        if error != NULL:
            note = new_note(error, <PyObject*>Py_TYPE(operation), True)
            Py_DECREF(<object>error)  # the note owns one
        if note == NULL:
            PyErr_Clear()
            note = <PyObject*>self.broken_for_all
            Py_INCREF(<object>note)  # the caller's
        return note

    def is_routable(self, bytes rejected):
        """Whether a worker is left that is not in the mask."""
        cdef Py_ssize_t k
        cdef bint found = False
        acquire(&self.lock)
        for k in range(self.crew):
            if not (<Tally>(<PyListObject*>self.runners).ob_item[k]).retired and not in_mask(<PyObject*>rejected, k):
                found = True
                break
        release(&self.lock)
        return found

    def retire(self, Tally runner not None):
        """One worker less. Returns whether those left can do what is pending: not when all wait for it themselves.

        Ends the operations that only this one might have taken; or all, where none can.
        """
        cdef bint enough
        acquire(&self.lock)
        if not runner.retired:
            runner.retired = True
            self.present -= 1
            if runner.first_wait:
                self.stalled_count -= 1
        enough = self.present > 0 and self.worker_left()
        release(&self.lock)
        if enough:
            self.review_side()
        else:
            self.break_down()
        return enough

    cdef int review_side(self) except -1:
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
            self.end_redrive(lost)
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
        cdef PyObject* had
        cdef PyObject* rejected
        cdef bint kept
        while True:
            acquire(&self.lock)
            entry = self.unlink_delayed(now)
            if not entry:
                release(&self.lock)
                return 0
            had = <PyObject*>(<RetryEntry>entry).had
            rejected = <PyObject*>(<RetryEntry>entry).rejected
            Py_INCREF(<object>had)  # ours, both: a worker may have taken the entry and written it by the time we read
            Py_INCREF(<object>rejected)
            kept = self.append_retry(entry)
            release(&self.lock)
            if kept:
                self.wake_for_retry(had, rejected)
            else:
                self.end_redrive(entry)
            Py_DECREF(<object>had)
            Py_DECREF(<object>rejected)

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
        cdef bint quashed
        acquire(&self.lock)
        quashed = op.quash(self.number)
        if quashed:
            self.cancelled += 1
            entry = op.delayed
            if entry:
                op.delayed = NULL
                self.delays.remove(entry)
        release(&self.lock)
        if not quashed:
            return False
        op.tell(CANCELLED, type(op).done is not done_of_base)
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
            emit((<RetryEntry>entry).feed, <PyObject*>op, (<RetryEntry>entry).position)
            Py_DECREF(<object>entry)  # the heap's, or the orphans'
        elif self.side_count.load(memory_order_seq_cst):  # seq_cst: as take
            notify(&self.idle)  # any worker may emit it now
        self.wake_for_the_end()
        return True

    cdef int emit_cancelled(self, PyObject* op, Feed feed, uint64_t position) except -1:
        # The place of an operation that was cancelled is claimed. Takes the caller's reference.
        cdef bint ended
        cdef PyObject* orphan
        if (<OperationBase>op).context is not None:
            (<OperationBase>op).set_context(None)  # it was cancelled before its submitter had set that
        orphan = new_entry(op, <PyObject*>feed, position)
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
        emit(feed, op, position)
        return 0

    # -----------------------------------------------------------------------------------------------------------
    # ended

    cdef int end_one(self, OperationBase op, Feed feed, uint64_t position, uint32_t phase, PyObject* note,
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
            Py_XDECREF(note)
            self.emit_cancelled(<PyObject*>op, feed, position)
            return 0
        if phase == FAILED and not note:
            note = self.broken_note(<PyObject*>op)
        if note:
            op.set_note(<Note>note)
            Py_DECREF(<object>note)  # the operation owns one
        end(op, phase, type(op).done is not done_of_base)
        emit(feed, <PyObject*>op, position)
        if ended is not None and PyList_Append(<PyObject*>ended, <PyObject*>op):
            PyErr_Clear()  # those that come after it must be ended all the same
            return 1
        return 0

    cdef int end_entry(self, PyObject* entry, uint32_t phase, list ended) except -1:
        # end_one for an operation that is in no ring. Takes the caller's reference.
        cdef int unlisted = self.end_one(
            <OperationBase><PyObject*>(<RetryEntry>entry).operation, <Feed><PyObject*>(<RetryEntry>entry).feed,
            (<RetryEntry>entry).position, phase, NULL, ended,
        )
        Py_DECREF(<object>entry)
        return unlisted

    cdef int end_unbegun(self, Feed feed, uint32_t phase, list ended) except -1:
        # Ends all that waits in a feed of our own, without a worker, and appends it to `ended`. Returns as end_one.
        cdef PyObject* raw = NULL
        cdef uint64_t position = 0
        cdef Renewal renewal = AS_IT_IS
        cdef int unlisted = 0
        if feed.foreign:
            return 0
        while feed.claim(&raw, &position, self.number, &renewal) == DONE:
            op = <OperationBase>steal(raw)
            unlisted += self.end_one(op, feed, position, phase, NULL, ended)
        return unlisted

    def drain(self):
        """Accepts nothing from now on. Workers finish what was accepted, then leave. Idempotent."""
        self._close(DRAINING, None)

    def _close(self, uint32_t phase, failure):
        cdef Feed feed
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
        for feed in self._feeds():
            feed.end(failure)
        self.inbox.close_ring()  # wakes those who wait for room
        self.sealed.store(1, memory_order_seq_cst)  # seq_cst: pairs with ends; accepted stands still from here on
        notify_all(&self.idle)
        notify_all(&self.leaving)

    def cancel_pending(self):
        """Ends what has not begun as CANCELLED and returns it. After drain(). MemoryError if not all could be listed."""
        cdef list ended = []
        cdef int unlisted = self.end_pending(CANCELLED, ended)
        self.wake_for_the_end()
        if unlisted:
            raise MemoryError(f"{unlisted} of the operations that were cancelled")
        return ended

    cdef int end_pending(self, uint32_t phase, list ended) except -1:
        # Ends what has not begun as CANCELLED, or as FAILED: the pool is broken. Returns as end_one.
        cdef Feed feed
        cdef PyObject* entry
        cdef int unlisted = 0
        for feed in self._feeds():
            unlisted += self.end_unbegun(feed, phase, ended)
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
        self.wake_for_the_end()

    def break_down(self):
        """The last worker is lost: everything pending fails, streams end with the error, nothing is accepted."""
        cdef PyObject* note
        message = f"{self.policy!r} has lost its last worker"
        error = BrokenPool(message)
        if self.broken_for_all is None:
            note = new_note(<PyObject*>error, <PyObject*>OperationBase, True)
            if note == NULL:
                raise MemoryError
            self.broken_message = message
            self.broken_for_all = <Note>steal(note)
        self._close(BROKEN, error)
        self.end_pending(FAILED, None)

    def end_now(self):
        """Workers leave as soon as they are between two operations. What is pending is cancelled."""
        self._close(ENDING, None)
        self.end_pending(CANCELLED, None)

    def abort_streams(self):
        """A worker is stuck: streams that wait for its operation end without it, with PoolNotRunning."""
        cdef Feed feed
        for reference in list(self.streams.values()):
            feed = reference()
            if feed is not None:
                feed.abort(PoolNotRunning(f"{self.policy!r} was shut down while a worker was stuck in an operation"))

    def finish(self):
        """The last thread has ended. Lets go of the feeds, and of the rings that have bells in them.

        Nothing is pending, unless a worker had no memory to say that it was the last: then it ends here.
        """
        cdef Feed feed
        cdef uint32_t phase = self.phase.load(memory_order_acquire)  # acquire: pairs with _close
        if phase < DRAINING or phase == BROKEN:
            self.break_down()
        else:
            self.end_now()
        for feed in list(self.kept):
            feed.end(self.stopped_error())
            self.remove(feed)


cdef int timer_attempt(void* core) noexcept:
    cdef PyObject* earliest
    cdef int64_t due, expected
    cdef bint stopped
    acquire(&(<Redrives>core).lock)
    earliest = (<Redrives>core).delays.earliest()
    due = (<RetryEntry>earliest).due_ns if earliest else NEVER
    expected = (<Redrives>core).timer_deadline
    stopped = (<Redrives>core).timer_stopped
    release(&(<Redrives>core).lock)
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


cdef PyObject* unroutable_note(PyObject* operation) noexcept:
    # Where there is no memory for an error object, with a shared one; NULL where there is none for the note either.
    cdef PyObject* note
    cdef PyObject* error = call_one(<PyObject*>make_unroutable, operation)
    if error == NULL:
        PyErr_Clear()
        error = <PyObject*>unroutable_for_all
        Py_INCREF(<object>error)
    note = new_note(error, <PyObject*>Py_TYPE(operation), True)
    Py_DECREF(<object>error)  # the note owns one
    if note == NULL:
        PyErr_Clear()
        note = <PyObject*>unroutable_note_for_all
        Py_INCREF(<object>note)
    return note


cdef object unroutable_note_for_all = steal(new_note(<PyObject*>unroutable_for_all, <PyObject*>OperationBase, True))
