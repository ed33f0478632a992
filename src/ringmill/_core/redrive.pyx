# What happens to operations otherwise than on a worker: those that were put back, cancelled, or overtaken by the end.
#
# Put back. A redrive stands aside, in order, with two masks of workers: those that rejected it, which never get it again,
# and those that are equal to one that had it, which get it only when no other is alive (and not itself waiting for work).
# Whoever puts one aside wakes a sleeping worker that may take it, by name. A redrive whose delay runs is postponed: the
# timer calls due(). One that no worker left may take is ended as Unroutable: asked under the lock when it is put aside,
# and when a worker retires.
#
# Cancelling. By the same compare-exchange as begin (operation.pyx), under the pool's lock, with the count. A cancelled
# operation keeps its place in its ring; the worker that claims the place emits it, or, if done() has not been called
# yet, leaves that to the canceller (orphans, under the lock: one of the two sees the other). One whose delay runs leaves
# its place at once. An operation can be cancelled between its acceptance and its entry into the ring: it is counted
# as accepted then, whatever the ring says (the maximum in stats), and one that the ring refuses after that stays both.
#
# Nothing is dropped, and nothing that the collector tracks is made, under the lock: a finalizer may call the pool.

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from ringmill._core.books cimport BROKEN, DRAINING, ENDING
from ringmill._core.feed cimport emit
from ringmill._core.operation cimport CANCELLED, FAILED, RELEASED, begin, end, phase_of, unplace
from ringmill._core.ring cimport DONE
from ringmill._core.machine cimport steal
from ringmill._core.waiter cimport acquire, notify, notify_all, notify_owner, release

from ringmill.errors import BrokenPool, PoolNotRunning, Unroutable

cdef extern from "Python.h":
    int PyList_SetSlice(PyObject* list, Py_ssize_t low, Py_ssize_t high, PyObject* items) noexcept
    int PyList_Append(PyObject* list, PyObject* item) noexcept
    PyObject* PyTuple_Pack(Py_ssize_t n, ...) noexcept
    PyObject* PyLong_FromUnsignedLongLong(uint64_t value) noexcept
    void PyErr_Clear()
    ctypedef struct PyListObject:
        PyObject** ob_item

cdef Py_ssize_t SIDE_GAP = 64   # so many may be gone at the head of the side list before it is closed up

cdef object done_of_base = OperationBase.done


cdef class Redrive:
    def __cinit__(self, OperationBase operation, Feed feed):
        self.operation = operation
        self.key = id(operation)
        self.feed = feed


cdef class Redrives(Books):
    """The books, and what becomes of operations outside of workers."""

    def __cinit__(self):
        self.orphans = []

    # -----------------------------------------------------------------------------------------------------------
    # put back

    cdef int push_aside(self, Redrive record, bint from_delay) except -1:
        # Puts a redrive where workers find it, and wakes one that may take it, by name. Ends it where nobody may.
        cdef Tally runner
        cdef bint eligible, kept
        acquire(&self.lock)
        try:
            if from_delay:
                if self.postponed.get(record.key) is not record:
                    return 0  # cancelled meanwhile
                del self.postponed[record.key]
            # relaxed: written under the lock. Who ends what is pending does that after this phase is set.
            kept = self.phase.load(memory_order_relaxed) < ENDING and self.routable(record)
            if kept:
                self.put_in_side(record)
        finally:
            release(&self.lock)
        if not kept:
            return self.end_redrive(record)
        for runner in self.runners:
            acquire(&self.lock)
            eligible = self.may_take(record, runner)
            release(&self.lock)
            if eligible and notify_owner(&self.idle, <void*>runner):
                break
        return 1  # where no eligible worker slept, those that are awake look before they sleep

    def due(self, Redrive record):
        """The delay of a redrive is over."""
        self.push_aside(record, True)

    cdef int put_in_side(self, Redrive record) except -1:
        # Under the lock.
        self.side.append(record)
        self.side_count.store(len(self.side) - self.side_head, memory_order_seq_cst)  # seq_cst: pairs with take's look
        return 0

    cdef Redrive take_from_side(self, Py_ssize_t k):
        # Under the lock. What is taken at the head leaves a None, so that a list of any length costs no more; the Nones
        # go when they are many, and as many as what is left.
        cdef Redrive record = <Redrive>(<PyListObject*>self.side).ob_item[k]
        cdef Py_ssize_t length = len(self.side)
        if k > self.side_head:
            del self.side[k]
        else:
            self.side[k] = None
            self.side_head += 1
            if self.side_head >= SIDE_GAP and 2 * self.side_head >= length:
                if PyList_SetSlice(<PyObject*>self.side, 0, self.side_head, NULL) == 0:
                    self.side_head = 0
                else:
                    PyErr_Clear()  # no memory for it now
        # seq_cst: room for do; pairs with do_attempt
        self.side_count.store(len(self.side) - self.side_head, memory_order_seq_cst)
        return record

    cdef Redrive take_aside(self, Tally runner):
        # The first that was put back and may go to this worker.
        cdef Redrive record = None
        cdef Py_ssize_t k
        acquire(&self.lock)
        for k in range(self.side_head, len(self.side)):
            if self.may_take(<Redrive>(<PyListObject*>self.side).ob_item[k], runner):
                record = self.take_from_side(k)
                break
        release(&self.lock)
        if record is not None:
            notify(&self.inbox.not_full)
        return record

    cdef bint may_take(self, Redrive record, Tally runner) noexcept:
        # Under the lock. Who rejected it may not. Who had it, or is equal to one that had, may when no other is alive.
        cdef Py_ssize_t k
        if phase_of(record.operation) == CANCELLED:
            return True  # only to be emitted
        if record.rejected is not None and record.rejected[runner.index]:
            return False
        if record.had is None or not record.had[runner.index]:
            return True
        for k in range(self.crew):
            # relaxed: whoever changes it wakes all, who look again
            if (
                not record.had[k]
                and (record.rejected is None or not record.rejected[k])
                and (<Tally>(<PyListObject*>self.runners).ob_item[k]).alive.load(memory_order_relaxed)
                and not (<Tally>(<PyListObject*>self.runners).ob_item[k]).waits
            ):
                return False
        return True

    cdef bint routable(self, Redrive record) noexcept:
        # Under the lock. Whether a worker is left, pausing ones included, that has not rejected it, and that does not
        # itself wait for it.
        cdef Py_ssize_t k
        cdef PyObject* runner
        for k in range(self.crew):
            runner = (<PyListObject*>self.runners).ob_item[k]
            if (<Tally>runner).retired or (record.rejected is not None and record.rejected[k]):
                continue
            if not (<Tally>runner).waits or (
                (<Tally>runner).awaited is not record.operation
                and ((<Tally>runner).awaited_feed is None or (<Tally>runner).awaited_feed is not record.feed)
            ):
                return True
        return False

    cdef int end_redrive(self, Redrive record) except -1:
        # Ends a redrive that no worker will take: nobody may, or the pool has ended.
        cdef uint32_t phase = self.phase.load(memory_order_acquire)  # acquire: pairs with _close
        if phase == ENDING:
            self.end_one(record.operation, record.feed, record.position, CANCELLED, None, None)
        elif phase == BROKEN:
            note = seen_note(self.stopped_error())
            self.end_one(record.operation, record.feed, record.position, FAILED, note, None)
        else:
            error = Unroutable(f"every worker that is left has rejected {describe(record.operation)}")
            self.end_one(record.operation, record.feed, record.position, FAILED, seen_note(error), None)
        self.wake_for_the_end()
        return 0

    def retire(self, Tally runner):
        """One worker less. Returns whether those left can do what is pending: not when all wait for it themselves.

        Ends the redrives that only this one might have taken.
        """
        cdef bint enough
        acquire(&self.lock)
        if not runner.retired:
            runner.retired = True
            self.present -= 1
        enough = self.present > self.waiting()
        release(&self.lock)
        if enough:
            self.review_side()
        return enough

    cdef int review_side(self) except -1:
        # Somebody may take less than before: ends the redrives that nobody may take now, wakes who may take the others.
        cdef Redrive record
        cdef list lost = []
        cdef Py_ssize_t k
        acquire(&self.lock)
        try:
            for k in range(len(self.side) - 1, self.side_head - 1, -1):  # backwards: taking the first may close it up
                record = <Redrive>(<PyListObject*>self.side).ob_item[k]
                if not self.routable(record):
                    lost.append(record)
                    self.take_from_side(k)
        finally:
            release(&self.lock)
        for record in lost:
            self.end_redrive(record)
        notify(&self.inbox.not_full)
        notify_all(&self.idle)
        return 0

    # -----------------------------------------------------------------------------------------------------------
    # cancelled

    cdef int cancel(self, OperationBase op) except -1:
        # Cancels it if it is queued here, and emits it if its place was claimed meanwhile, or it has none: a delay runs.
        # False: it is not, any more.
        cdef Py_ssize_t k
        cdef tuple orphan = None
        cdef Redrive record = None
        cdef bint quashed
        key = id(op)
        acquire(&self.lock)
        try:
            quashed = op.quash(self.number)
            if quashed:
                self.cancelled += 1
                record = self.postponed.pop(key, None)
        finally:
            release(&self.lock)
        if not quashed:
            return False
        op.tell(CANCELLED, type(op).done is not done_of_base)
        if record is not None:
            unplace(op)
            Py_INCREF(op)  # the stream's
            emit(record.feed, <PyObject*>op, record.position)
            record.operation = None  # the timer may keep the record for long
            record.feed = None
            self.wake_for_the_end()
            return True
        acquire(&self.lock)
        for k in range(len(self.orphans)):
            # acquire: pairs with end. Not done: it is an orphan of the next life, whose own canceller will look.
            if (<tuple>self.orphans[k])[0] is op and op.state.load(memory_order_acquire) & RELEASED:
                orphan = <tuple>self.orphans[k]
                del self.orphans[k]
                break
        release(&self.lock)
        if orphan is not None:
            unplace(op)
            Py_INCREF(op)  # the stream's
            emit(<Feed>orphan[1], <PyObject*>op, <uint64_t>orphan[2])
        elif self.side_count.load(memory_order_seq_cst):  # seq_cst: as take
            notify(&self.idle)  # any worker may emit it now
        self.wake_for_the_end()
        return True

    cdef int emit_cancelled(self, PyObject* op, Feed feed, uint64_t position) except -1:
        # The place of an operation that was cancelled is claimed. Takes the caller's reference.
        cdef bint ended
        cdef PyObject* orphan = NULL
        cdef PyObject* number
        if (<OperationBase>op).context is not None:
            (<OperationBase>op).set_context(None)  # it was cancelled before its submitter had set that
        # No except, here and below: see RingBuffer._take. The claim is ours alone, so nothing may be raised before it
        # has come out of its stream.
        number = PyLong_FromUnsignedLongLong(position)
        if number:
            orphan = PyTuple_Pack(3, op, <PyObject*>feed, number)
            Py_DECREF(<object>number)  # the tuple's now
        acquire(&self.lock)
        ended = (<OperationBase>op).state.load(memory_order_acquire) & RELEASED  # acquire: pairs with end
        if not ended:
            ended = not orphan or PyList_Append(<PyObject*>self.orphans, orphan)
            # no memory: comes out of its stream a moment before its done()
        release(&self.lock)
        PyErr_Clear()
        Py_XDECREF(orphan)  # the list's, if it got there
        if ended:
            unplace(<OperationBase>op)
            emit(feed, op, position)
        else:
            Py_DECREF(<object>op)  # the orphan owns one
        return 0

    # -----------------------------------------------------------------------------------------------------------
    # ended

    cdef int end_one(self, OperationBase op, Feed feed, uint64_t position, uint32_t phase, Note note,
                     list ended) except -1:
        # Ends one that the caller has claimed. Returns how many did not get into `ended`, for want of memory.
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
            self.emit_cancelled(<PyObject*>op, feed, position)
            return 0
        if note is not None:
            op.set_note(note)
        end(op, phase, type(op).done is not done_of_base)
        emit(feed, <PyObject*>op, position)
        if ended is not None and PyList_Append(<PyObject*>ended, <PyObject*>op):
            PyErr_Clear()  # those that come after it must be ended all the same
            return 1
        return 0

    cdef int end_unbegun(self, Feed feed, uint32_t phase, Note note, list ended) except -1:
        # Ends all that waits in a feed of our own, without a worker, and appends it to `ended`. Returns as end_one.
        cdef PyObject* raw = NULL
        cdef uint64_t position = 0
        cdef bint reset = False
        cdef int unlisted = 0
        if feed.foreign:
            return 0
        while feed.claim(&raw, &position, self.number, &reset) == DONE:
            op = <OperationBase>steal(raw)
            unlisted += self.end_one(op, feed, position, phase, note, ended)
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
        cdef int unlisted = self.end_pending(CANCELLED, None, ended)
        self.wake_for_the_end()
        if unlisted:
            raise MemoryError(f"{unlisted} of the operations that were cancelled")
        return ended

    cdef int end_pending(self, uint32_t phase, Note note, list ended) except -1:
        # One note for all, made before any is claimed. Returns as end_one.
        cdef Feed feed
        cdef Redrive record
        cdef int unlisted = 0
        for feed in self._feeds():
            unlisted += self.end_unbegun(feed, phase, note, ended)
        while True:
            record = self.take_any()
            if record is None:
                break
            unlisted += self.end_one(record.operation, record.feed, record.position, phase, note, ended)
        for record in self.take_postponed().values():
            unlisted += self.end_one(record.operation, record.feed, record.position, phase, note, ended)
            record.operation = None  # as in cancel
            record.feed = None
        return unlisted

    cdef Redrive take_any(self):
        # The first redrive that waits for a worker, for its end. Nothing is dropped under the lock.
        cdef Redrive record = None
        acquire(&self.lock)
        if self.side_head < len(self.side):
            record = self.take_from_side(self.side_head)
        release(&self.lock)
        if record is not None:
            notify(&self.inbox.not_full)
        return record

    cdef dict take_postponed(self):
        # All redrives whose delay runs, for their end. Nothing is made or dropped under the lock.
        cdef dict none = {}
        cdef dict taken
        acquire(&self.lock)
        taken = self.postponed
        self.postponed = none
        release(&self.lock)
        return taken

    def cancel_delayed(self):
        """Ends those whose delay runs as CANCELLED, and from now on those that would be delayed."""
        cdef Redrive record
        acquire(&self.lock)
        self.undelayed = True
        release(&self.lock)
        for record in self.take_postponed().values():
            self.end_one(record.operation, record.feed, record.position, CANCELLED, None, None)
            record.operation = None  # as in cancel
            record.feed = None
        self.wake_for_the_end()

    def break_down(self):
        """The last worker is lost: everything pending fails, streams end with the error, nothing is accepted."""
        error = BrokenPool(f"{self.policy!r} has lost its last worker")
        note = seen_note(error)
        self._close(BROKEN, error)
        self.end_pending(FAILED, note, None)

    def end_now(self):
        """Workers leave as soon as they are between two operations. What is pending is cancelled."""
        self._close(ENDING, None)
        self.end_pending(CANCELLED, None, None)

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


cdef str describe(object o):
    # Its repr, which is the user's code.
    try:
        return repr(o)
    except Exception as error:
        return f"a {type(o).__qualname__} whose repr raises {type(error).__qualname__}"


cdef Note new_note(object error, OperationBase op, bint seen):
    cdef Note note = Note(error, type(op).__qualname__)
    note.seen = seen
    return note


cdef Note seen_note(object error):
    # Of an error that nobody needs to look at: may be that of many operations.
    cdef Note note = Note(error, None)
    note.seen = True
    return note
