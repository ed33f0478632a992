# What happens to every operation, from the moment that it is accepted until it is out of its stream.
#
#               +--------------------- put back (Retry, Reject) <-------+
#               v                                                       |
#   accept -> [feed] -> take -> begin -> call process -> judge ---------+--> count -> outcome -> done() -> stream
#               |                                                          (settle)              (emit)
#               +-- cancel, breakage: count -> outcome -> done(); the claim of its place emits it
#
# Books. A worker's word is twice the number of operations that it gave up (settled or put back), plus one while it
# runs one: one store at the take, one at the settlement, no read-modify-write. What a worker gives up otherwise than
# by success is also counted under the pool's lock, together with the word, so that under the lock
#     succeeded = word // 2 - failed - redriven      running = word % 2
# hold for each worker, and a snapshot taken under the lock is one state that the pool was in: words first, accepted
# last. An operation is counted as accepted (a ring's tail) before anyone can take it, so queued, the rest, is never
# negative. Success, the common case, takes no lock.
#
# Taking. Each feed is a ring from which all workers claim; feeds stand in a circular list, under the pool's lock. A
# worker stays with a feed for TURN operations, or until it is empty, then looks at the next one: feeds are served in
# turn, and an operation of one waits for at most TURN operations per worker of each other. Operations that were put
# back stand aside, each for certain workers; a worker looks there first, but not twice running, so neither kind
# starves the other.
#
# Sleeping is waiter.pyx's: whoever publishes an operation notifies `idle`; one searcher at a time; a searcher that
# takes one and sees more wakes the next. A redrive wakes a sleeping worker that may take it by name.
#
# The end. DRAINING: feeds are ended, one by one; when all are (sealed), accepted stands still; from then on a worker that finds nothing counts, and when all are settled it sets ENDING and wakes all. The
# last one to settle looks for the next operation afterwards, so somebody counts after the last settlement.
#
# Cancelling. By the same compare-exchange as begin (operation.pyx), under the pool's lock, with the count. A cancelled
# operation keeps its place in its ring; the worker that claims the place emits it, or, if done() has not been called
# yet, leaves that to the canceller (orphans, under the lock: one of the two sees the other). One whose delay runs leaves
# its place at once. An operation can be cancelled between its acceptance and its entry into the ring: it is counted
# as accepted then, whatever the ring says (the maximum in stats), and one that the ring refuses after that stays both.

import queue
import weakref

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.pythread cimport PyThread_tss_create, PyThread_tss_get, PyThread_tss_set
from libcpp.atomic cimport memory_order_acq_rel, memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from ringmill._core.operation cimport (
    CANCELLED,
    FAILED,
    PHASE,
    QUEUED,
    RELEASED,
    RUNNING,
    SUCCEEDED,
    accept,
    log_exception,
    phase_of,
    put_back,
    renew,
    unaccept,
    unplace,
)
from ringmill._core.ring_buffer cimport DONE, NOT_NOW, SHUT, Result
from ringmill._core.feed cimport Bell
from ringmill._core.waiter cimport (
    NEVER,
    acquire,
    current_epoch,
    deadline_of,
    init_queue,
    notify,
    notify_all,
    notify_owner,
    release,
    steal,
    wait_for,
)

from ringmill.errors import BrokenPool, OperationReused, PoolNotRunning, Unroutable

cdef extern from "Python.h":
    Py_ssize_t PyDict_GET_SIZE(PyObject* dict) nogil
    ctypedef struct PyTypeObject:
        pass
    PyTypeObject* Py_TYPE(PyObject* o) nogil
    ctypedef struct PyListObject:
        PyObject** ob_item

cdef enum:
    TURN = 32                   # operations that a worker takes from one feed before it looks at the next
    # what take() found
    NOTHING = 0
    FOUND = 1
    LEAVE = 2

cdef Py_tss_t current_runner    # the Runner whose thread this is, borrowed, between enter() and leave()
PyThread_tss_create(&current_runner)

cdef object done_of_base = OperationBase.done


cdef class Redrive:
    def __cinit__(self, OperationBase operation, Feed feed):
        self.operation = operation
        self.feed = feed


# ---------------------------------------------------------------------------------------------------------------
# the pool

cdef class Core(Home):
    """The compiled half of one run of a pool."""

    def __init__(self, policy, workers, Py_ssize_t queue_size):
        cdef Py_ssize_t index
        self.policy = policy
        self.side = []
        self.orphans = []
        self.postponed = {}
        self.kept = {}
        self.streams = weakref.WeakSet()
        init_queue(&self.idle)
        init_queue(&self.leaving)
        self.phase.store(OPEN, memory_order_relaxed)  # relaxed: published with the object
        self.inbox = RingBuffer(queue_size)
        self.inbox_feed = Feed(self.inbox)
        self.runners = [Runner(self, worker, index) for index, worker in enumerate(workers)]
        self.crew = self.present = len(self.runners)
        self.add(self.inbox_feed)

    # -----------------------------------------------------------------------------------------------------------
    # accept

    cdef int check_open(self) except -1:
        if self.epoch != current_epoch() or self.phase.load(memory_order_acquire) != OPEN:  # acquire: see stopped_error
            raise self.stopped_error()
        return 0

    cdef object stopped_error(self):
        if self.epoch != current_epoch():
            return PoolNotRunning(f"{self.policy!r} was inherited through a fork: start a pool in the child")
        if self.phase.load(memory_order_acquire) == BROKEN:  # acquire: pairs with break_down
            return BrokenPool(f"{self.policy!r} has lost its last worker")
        return PoolNotRunning(f"{self.policy!r} is not running: call start()")

    cdef object do(self, OperationBase op, int64_t deadline):
        cdef Asking asking
        cdef int result
        self.check_open()
        if not accept(op, self.number):
            raise OperationReused(f"{op!r} is pending, or finished and not reset: reset() it when it is finished")
        if PyThread_tss_get(&current_runner) and self.current() is not None:
            self.do_aside(op)  # a worker never blocks on its own pool
            return op
        Py_INCREF(op)  # the inbox's, if it gets there
        asking.core = <PyObject*>self
        asking.op = <PyObject*>op
        try:
            result = do_attempt(&asking)
            if result == NOT_NOW:
                result = wait_for(&self.inbox.not_full, do_attempt, do_more, &asking, NULL, deadline)
        except BaseException as error:
            Py_DECREF(op)
            return self.give_up(op, error)
        if result == DONE:
            notify(&self.idle)
            return op
        Py_DECREF(op)
        if result == SHUT:
            return self.give_up(op, self.stopped_error())
        return self.give_up(op, queue.Full(f"no room in the queue of {self.policy!r}"))

    cdef object give_up(self, OperationBase op, object error):
        # The pool does not take an operation that it had accepted: raises the error. If it was cancelled meanwhile, it
        # counts as accepted and cancelled, and that is how it is returned.
        if unaccept(op):
            raise error
        acquire(&self.lock)
        self.accepted_before += 1
        release(&self.lock)
        unplace(op)  # it never had a place
        self.wake_for_the_end()
        return op

    cdef int do_aside(self, OperationBase op) except -1:
        cdef Redrive record = Redrive(op, self.inbox_feed)
        cdef bint open
        failure = None
        acquire(&self.lock)
        try:
            open = self.phase.load(memory_order_relaxed) == OPEN  # relaxed: written under the lock
            if open:
                self.side.append(record)
                self.accepted_before += 1
                self.side_count.store(len(self.side), memory_order_seq_cst)  # seq_cst: pairs with take's look
        except MemoryError as error:
            open = False
            failure = error
        finally:
            release(&self.lock)
        if open:
            notify(&self.idle)
        else:
            self.give_up(op, failure or self.stopped_error())
        return 0

    cdef int add(self, Feed feed) except -1:
        # Links a feed, so that workers take from it; PoolNotRunning if it is too late.
        cdef bint open
        cdef Feed first
        if feed.foreign:
            feed.bell = Bell()
            feed.bell.target = &self.idle
            feed.bell.owner = self
        self.kept[feed] = None
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
            raise self.stopped_error()
        if feed.ready is not None:
            self.streams.add(feed)
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

    def execute(self, operations):
        """Accepts all or none, as one feed; returns it, to be read."""
        cdef list ops
        cdef Py_ssize_t count, k = 0
        cdef OperationBase op
        cdef Feed feed
        try:
            ops = list(operations)
        except TypeError:
            if hasattr(type(operations), "__iter__"):
                raise
            raise TypeError(f"ops must be an iterable of Operations, got {operations!r}") from None
        count = len(ops)
        self.check_open()
        for item in ops:
            if not isinstance(item, OperationBase):
                raise TypeError(f"ops must be Operations, got {item!r}")
        feed = Feed(RingBuffer(count or 1), RingBuffer(count or 1))
        try:
            for k in range(count):
                op = <OperationBase>ops[k]
                if not accept(op, self.number):
                    raise OperationReused(f"{op!r} is pending, or finished and not reset: reset() it when finished")
            k = count
            if count:
                for item in ops:
                    Py_INCREF(item)  # the ring's
                feed.pending.prefill((<PyListObject*>ops).ob_item)
                feed.end(None)  # its total is known before anybody sees it
                self.add(feed)
            else:
                feed.end(None)
        except BaseException:
            for item in ops[:k]:
                try:
                    self.give_up(<OperationBase>item, OperationReused)  # returns if it was cancelled in between
                except OperationReused:
                    pass
            raise
        return feed

    # -----------------------------------------------------------------------------------------------------------
    # take

    cdef PyObject* next_feed(self, PyObject* after, Runner sleeper) except? NULL:
        # A feed with work, the next in turn after that one; the caller owns the reference. NULL: none. Unlinks feeds
        # that are spent on the way. `sleeper`: who is about to sleep if there is none, so bells are armed; or None.
        cdef PyObject* at
        cdef PyObject* found
        cdef PyObject* spent
        cdef Feed feed
        cdef Py_ssize_t left
        cdef bint shut
        while True:
            found = spent = NULL
            acquire(&self.lock)
            left = self.linked
            at = (<Feed>after).next if after and (<Feed>after).linked else self.first
            while left:
                left -= 1
                if (<Feed>at).abandoned.load(memory_order_acquire):  # acquire: pairs with the stream's drop
                    spent = at
                    break
                if (<Feed>at).foreign:
                    if (<Feed>at).ended():
                        spent = at
                        break
                    if sleeper is not None:
                        (<Feed>at).bell.arm(&(<Feed>at).pending.not_empty)
                    if (<Feed>at).has_work():
                        found = at
                        break
                else:
                    shut = (<Feed>at).pending.is_shut()  # before the look: after it, nothing comes
                    if (<Feed>at).pending.has_items():
                        found = at
                        break
                    if shut and at != <PyObject*>self.inbox_feed:
                        spent = at
                        break
                at = (<Feed>at).next
            if found:
                Py_INCREF(<object>found)  # the caller's; the list's keeps it alive until here
            if spent:
                Py_INCREF(<object>spent)  # ours, for a moment
            release(&self.lock)
            if not spent:
                return found
            feed = <Feed>steal(spent)
            if feed.abandoned.load(memory_order_acquire):  # acquire: as above
                feed.end(None)
                self.end_unbegun(feed, CANCELLED, None, None)
            self.remove(feed)

    cdef Redrive take_aside(self, Runner runner):
        # The first that was put back and may go to this worker.
        cdef Redrive record = None
        cdef Py_ssize_t k
        acquire(&self.lock)
        for k in range(len(self.side)):
            if self.may_take(<Redrive>(<PyListObject*>self.side).ob_item[k], runner):
                record = <Redrive>(<PyListObject*>self.side).ob_item[k]
                break
        if record is not None:
            del self.side[k]
            self.side_count.store(len(self.side), memory_order_seq_cst)  # seq_cst: room for do; pairs with do_attempt
        release(&self.lock)
        if record is not None:
            notify(&self.inbox.not_full)
        return record

    cdef bint may_take(self, Redrive record, Runner runner) noexcept:
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
                and (<Runner>(<PyListObject*>self.runners).ob_item[k]).alive.load(memory_order_relaxed)
                and not (<Runner>(<PyListObject*>self.runners).ob_item[k]).waits
            ):
                return False
        return True

    cdef bint any_work(self, Runner runner) noexcept:
        # Whether there is more, for a searcher that has taken one.
        cdef PyObject* feed
        if self.side_count.load(memory_order_seq_cst):  # seq_cst: as take
            return True
        feed = self.next_feed(<PyObject*>runner.feed if runner.feed is not None else NULL, None)
        if feed:
            Py_DECREF(<object>feed)  # next_feed's
        return feed != NULL

    cdef Runner current(self):
        # The worker of this pool whose thread this is, or None.
        cdef PyObject* runner = <PyObject*>PyThread_tss_get(&current_runner)
        if runner == NULL or (<Runner>runner).core is not self:
            return None
        return <Runner>runner

    # -----------------------------------------------------------------------------------------------------------
    # put back, cancel, break

    cdef int push_aside(self, Redrive record, bint from_delay) except -1:
        # Puts a redrive where workers find it, and wakes one that may take it, by name. Ends it where nobody may.
        cdef Runner runner
        cdef bint eligible, kept
        key = id(record.operation)
        acquire(&self.lock)
        try:
            if from_delay:
                if self.postponed.get(key) is not record:
                    return 0  # cancelled meanwhile
                del self.postponed[key]
            # relaxed: written under the lock. Who ends what is pending does that after this phase is set.
            kept = self.phase.load(memory_order_relaxed) < ENDING and self.routable(record)
            if kept:
                self.side.append(record)
                self.side_count.store(len(self.side), memory_order_seq_cst)  # seq_cst: pairs with take's look
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

    cdef bint routable(self, Redrive record) noexcept:
        # Under the lock. Whether a worker is left, pausing ones included, that has not rejected it.
        cdef Py_ssize_t k
        cdef PyObject* runner
        for k in range(self.crew):
            runner = (<PyListObject*>self.runners).ob_item[k]
            if not (<Runner>runner).retired and (record.rejected is None or not record.rejected[k]):
                return True
        return False

    cdef int end_redrive(self, Redrive record) except -1:
        # Ends a redrive that no worker will take: nobody may, or the pool has ended.
        cdef uint32_t phase = self.phase.load(memory_order_acquire)  # acquire: pairs with _close
        if phase == ENDING:
            self.end_one(record.operation, record.feed, record.position, CANCELLED, None, None)
        elif phase == BROKEN:
            self.end_one(record.operation, record.feed, record.position, FAILED, self.stopped_error(), None)
        else:
            error = Unroutable(f"every worker that is left has rejected {describe(record.operation)}")
            self.end_one(record.operation, record.feed, record.position, FAILED, error, None)
        self.wake_for_the_end()
        return 0

    cdef int wake_for_the_end(self) except -1:
        # Something was settled by another than a worker: while the pool drains, a worker must look whether that was all.
        if self.phase.load(memory_order_acquire) >= DRAINING:  # acquire: pairs with _close
            notify_all(&self.idle)
            notify_all(&self.leaving)
        return 0

    def due(self, Redrive record):
        """The delay of a redrive is over."""
        self.push_aside(record, True)

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
            record.feed.emit(<PyObject*>op, record.position)
            record.operation = None  # the timer may keep the record for long
            record.feed = None
            self.wake_for_the_end()
            return True
        acquire(&self.lock)
        for k in range(len(self.orphans)):
            if (<tuple>self.orphans[k])[0] is op:
                orphan = <tuple>self.orphans[k]
                del self.orphans[k]
                break
        release(&self.lock)
        if orphan is not None:
            unplace(op)
            Py_INCREF(op)  # the stream's
            (<Feed>orphan[1]).emit(<PyObject*>op, <uint64_t>orphan[2])
        elif self.side_count.load(memory_order_seq_cst):  # seq_cst: as take
            notify(&self.idle)  # any worker may emit it now
        self.wake_for_the_end()
        return True

    cdef int emit_cancelled(self, PyObject* op, Feed feed, uint64_t position) except -1:
        # The place of an operation that was cancelled is claimed. Takes the caller's reference.
        cdef bint ended
        orphan = (<object>op, feed, position)
        acquire(&self.lock)
        ended = (<OperationBase>op).state.load(memory_order_acquire) & RELEASED  # acquire: pairs with end
        if not ended:
            try:
                self.orphans.append(orphan)
            except MemoryError:
                ended = True  # comes out of its stream a moment before its done()
        release(&self.lock)
        if ended:
            unplace(<OperationBase>op)
            feed.emit(op, position)
        else:
            Py_DECREF(<object>op)  # the orphan owns one
        return 0

    cdef int end_unbegun(self, Feed feed, uint32_t phase, object error, list ended) except -1:
        # Ends all that waits in a feed of our own, without a worker, and appends it to `ended`.
        cdef PyObject* raw = NULL
        cdef uint64_t position = 0
        cdef bint reset = False
        if feed.foreign:
            return 0
        while feed.claim(&raw, &position, self.number, &reset) == DONE:
            op = <OperationBase>steal(raw)
            self.end_one(op, feed, position, phase, error, ended)
        return 0

    cdef int end_one(self, OperationBase op, Feed feed, uint64_t position, uint32_t phase, object error,
                     list ended) except -1:
        cdef bint mine
        cdef Note note = new_note(error, op, True) if error is not None else None
        Py_INCREF(op)  # the stream's
        acquire(&self.lock)
        mine = op.begin()
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
        op.end(phase, type(op).done is not done_of_base)
        if ended is not None:
            ended.append(op)
        feed.emit(<PyObject*>op, position)
        return 0

    def _feeds(self):
        # Those that are linked; complete once the phase forbids to link more.
        return [feed for feed in list(self.kept) if (<Feed>feed).linked]

    def drain(self):
        """Accepts nothing from now on. Workers finish what was accepted, then leave. Idempotent."""
        self._close(DRAINING, None)

    def _close(self, uint32_t phase, failure):
        cdef Feed feed
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
        """Ends what has not begun as CANCELLED and returns it. After drain()."""
        ended = []
        self._end_pending(CANCELLED, None, ended)
        self.wake_for_the_end()
        return ended

    def _end_pending(self, uint32_t phase, error, list ended):
        cdef Feed feed
        cdef Redrive record
        for feed in self._feeds():
            self.end_unbegun(feed, phase, error, ended)
        while True:
            record = self.take_any()
            if record is None:
                break
            self.end_one(record.operation, record.feed, record.position, phase, error, ended)
        for record in self.take_postponed().values():
            self.end_one(record.operation, record.feed, record.position, phase, error, ended)
            record.operation = None  # as in cancel
            record.feed = None

    cdef Redrive take_any(self):
        # The first redrive that waits for a worker, for its end. Nothing is dropped under the lock.
        cdef Redrive record = None
        acquire(&self.lock)
        if self.side:
            record = <Redrive>(<PyListObject*>self.side).ob_item[0]
            del self.side[0]
            self.side_count.store(len(self.side), memory_order_seq_cst)  # seq_cst: as take_aside
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

    def break_down(self):
        """The last worker is lost: everything pending fails, streams end with the error, nothing is accepted."""
        error = BrokenPool(f"{self.policy!r} has lost its last worker")
        self._close(BROKEN, error)
        self._end_pending(FAILED, error, None)

    def retire(self, Runner runner):
        """One worker less. Returns whether those left can do what is pending: not when all wait for it themselves.

        Ends the redrives that only this one might have taken.
        """
        cdef Redrive record
        cdef list lost = []
        cdef Py_ssize_t k
        acquire(&self.lock)
        try:
            if not runner.retired:
                runner.retired = True
                self.present -= 1
            if self.present <= self.waiting():
                return False
            for k in range(len(self.side) - 1, -1, -1):
                record = <Redrive>(<PyListObject*>self.side).ob_item[k]
                if not self.routable(record):
                    lost.append(record)
                    del self.side[k]
            self.side_count.store(len(self.side), memory_order_seq_cst)  # seq_cst: as take_aside
        finally:
            release(&self.lock)
        for record in lost:
            self.end_redrive(record)
        notify(&self.inbox.not_full)
        return True

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

    def finish(self):
        """The last thread has ended: nothing is pending. Lets go of the feeds, and of the rings that have bells in them."""
        cdef Feed feed
        for feed in list(self.kept):
            feed.end(self.stopped_error())
            self.remove(feed)

    @property
    def is_inherited(self):
        """Whether the run belongs to the parent of this process."""
        return self.epoch != current_epoch()

    @property
    def is_open(self):
        """Whether it accepts operations."""
        return self.epoch == current_epoch() and self.phase.load(memory_order_acquire) == OPEN  # acquire: as check_open

    def is_own_thread(self):
        """Whether the calling thread is one of its workers."""
        return self.current() is not None

    @property
    def state(self):
        """In a word, for people."""
        if self.is_inherited:
            return "inherited"
        phase = self.phase.load(memory_order_acquire)  # acquire: as check_open
        return {OPEN: "running", DRAINING: "shutting down", ENDING: "stopped", BROKEN: "broken"}[phase]

    def abort_streams(self):
        """A worker is stuck: streams that wait for its operation end without it, with PoolNotRunning."""
        cdef Feed feed
        for feed in list(self.streams):
            feed.abort(PoolNotRunning(f"{self.policy!r} was shut down while a worker was stuck in an operation"))

    def end_now(self):
        """Workers leave as soon as they are between two operations. What is pending is cancelled."""
        self._close(ENDING, None)
        self._end_pending(CANCELLED, None, None)

    # -----------------------------------------------------------------------------------------------------------
    # books

    cdef void count(self, Counts* counts) noexcept nogil:
        # Under the lock. Words first, accepted last: see the head.
        cdef uint64_t word, ended = 0
        cdef PyObject* at
        cdef PyObject* runner
        cdef Py_ssize_t k
        counts.running = counts.failed = counts.tries = counts.restarts = 0
        for k in range(self.crew):
            runner = (<PyListObject*>self.runners).ob_item[k]
            word = (<Runner>runner).word.load(memory_order_seq_cst)  # seq_cst: before the rings' tails
            counts.running += word & 1
            ended += (word >> 1) - (<Runner>runner).redriven
            counts.failed += (<Runner>runner).failed
            counts.tries += (<Runner>runner).tries
            counts.restarts += (<Runner>runner).restarts
        counts.succeeded = ended - counts.failed
        counts.failed += self.failed
        counts.cancelled = self.cancelled
        counts.delayed = PyDict_GET_SIZE(<PyObject*>self.postponed)
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

    def pause(self, seconds):
        """Sleeps; returns whether the pool ended meanwhile."""
        return bool(wait_for(&self.leaving, pause_attempt, pause_attempt, <void*>self, NULL, deadline_of(seconds)))

    def stats(self):
        """One consistent snapshot: a dict of counts, and one such dict for each worker."""
        cdef Counts counts
        cdef uint64_t word
        cdef Runner runner
        cdef list rows = []
        cdef uint64_t* flat = <uint64_t*>PyMem_Malloc(5 * self.crew * sizeof(uint64_t))
        cdef Py_ssize_t k
        if flat == NULL:
            raise MemoryError
        acquire(&self.lock)
        for k in range(self.crew):
            runner = <Runner>self.runners[k]
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
            if not (<Runner>runner).waits:
                continue
            # acquire: pairs with end. It may have come, and the worker not run yet.
            if (
                (<Runner>runner).awaited is not None
                and (<Runner>runner).awaited.state.load(memory_order_acquire) & RELEASED
            ):
                continue
            if (<Runner>runner).awaited_feed is not None and (
                (<Runner>runner).awaited_feed.ready.has_items() or (<Runner>runner).awaited_feed.ready.is_shut()
            ):
                continue
            count += 1
        return count

    cdef bint enter_wait(self, OperationBase awaited, object stream) except -1:
        # A worker of this pool is about to wait for its work. False: this thread is none of its workers.
        cdef bint last
        cdef Runner runner = self.current()
        if runner is None:
            return False
        acquire(&self.lock)
        last = self.waiting() + 1 >= self.present
        if not last:
            runner.waits = True
            runner.awaited = awaited  # None goes, so nothing runs under the lock
            runner.awaited_feed = <Feed>stream
        release(&self.lock)
        if self.side_count.load(memory_order_seq_cst):  # seq_cst: as take
            notify_all(&self.idle)  # what only this worker was to take, others may now
        if last:
            raise RuntimeError(
                f"a worker of {self.policy!r} waits for work of its own pool, and no worker is left to do it"
            )
        return True

    cdef void leave_wait(self) noexcept:
        cdef Runner runner = self.current()
        acquire(&self.lock)
        awaited = runner.awaited  # they go after the lock
        feed = runner.awaited_feed
        runner.waits = False
        runner.awaited = None
        runner.awaited_feed = None
        release(&self.lock)


cdef int pause_attempt(void* core) noexcept:
    return (<Core>core).ends()


cdef struct Asking:             # a `do` that may have to wait
    PyObject* core
    PyObject* op

cdef int do_attempt(void* asking) noexcept:
    cdef PyObject* core = (<Asking*>asking).core
    # seq_cst: pairs with take_aside. Redrives count as queued, so that a pool whose work keeps failing takes no more.
    cdef Py_ssize_t aside = (<Core>core).side_count.load(memory_order_seq_cst)
    if aside and aside + (<Core>core).inbox.length() >= (<Core>core).inbox.capacity and not (<Core>core).inbox.is_shut():
        return NOT_NOW
    return (<Core>core).inbox.try_put((<Asking*>asking).op, NULL)

cdef int do_more(void* asking) noexcept:
    return (<Core>(<Asking*>asking).core).inbox.has_room()


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


# ---------------------------------------------------------------------------------------------------------------
# a worker

cdef int take_attempt(void* runner) noexcept:
    return (<Runner>runner).take(True)

cdef int take_more(void* runner) noexcept:
    return (<Runner>runner).core.any_work(<Runner>runner)


cdef class Runner:
    """The compiled half of one worker: its loop and its counts."""

    def __init__(self, Core core, worker, Py_ssize_t index):
        self.core = core
        self.worker = worker
        self.index = index

    cdef int claim_from(self, Feed feed) noexcept:
        cdef bint reset = False
        cdef PyObject* op = NULL
        cdef Result result = feed.claim(&op, &self.position, self.core.number, &reset)
        if result == DONE:
            self.op = op
            if reset:
                renew(<OperationBase>self.op, QUEUED, self.core.number)
            if feed.foreign:
                self.watch(feed)
            elif feed is self.core.inbox_feed:
                notify(&feed.pending.not_full)
            return FOUND
        if feed.foreign and result == SHUT and not feed.ended():
            if feed.culprit:
                notify(&feed.pending.not_full)  # it was taken
            self.end_source(feed)
        return NOTHING

    cdef int watch(self, Feed feed) noexcept:
        # Others may sleep while this one works: let the ring ring for them (feed.pyx).
        notify(&feed.pending.not_full)
        if self.core.idle.word.load(memory_order_seq_cst) >> 32 and feed.bell is not None:  # seq_cst: as notify
            feed.bell.arm(&feed.pending.not_empty)
            if feed.has_work():
                notify(&self.core.idle)
        return 0

    cdef int end_source(self, Feed feed) noexcept:
        try:
            error = None
            if feed.culprit:
                culprit = <object>feed.culprit
                if isinstance(culprit, OperationBase):
                    error = OperationReused(f"the source gave {describe(culprit)}, which is pending, or finished and not reset")
                else:
                    error = TypeError(f"the source must give Operations, got {describe(culprit)}")
            feed.end(error)
        except BaseException:
            log_exception("a source ended with a failure in %s", self.name)
        return 0

    cdef int take(self, bint sleepy) noexcept:
        # Finds the next operation for this worker, without waiting. `sleepy`: it will sleep if there is none.
        cdef PyObject* found
        cdef Core core = self.core
        if core.side_count.load(memory_order_seq_cst):  # seq_cst: a sleeper's last look; pairs with push_aside
            if not self.aside and self.take_redrive() == FOUND:
                self.aside = True
                return FOUND
            self.aside = False
        if self.turn > 0 and self.feed is not None:
            self.turn -= 1
            if self.claim_from(self.feed) == FOUND:
                if self.came_from is not self.feed:
                    self.came_from = self.feed
                return FOUND
        while True:
            found = core.next_feed(<PyObject*>self.feed if self.feed is not None else NULL, self if sleepy else None)
            if found == NULL:
                break
            if <PyObject*>self.feed != found:
                self.feed = <Feed>found
            Py_DECREF(<object>found)  # next_feed's
            self.turn = TURN - 1
            if self.claim_from(self.feed) == FOUND:
                if self.came_from is not self.feed:
                    self.came_from = self.feed
                return FOUND
        # seq_cst: as above. It may have been skipped, for fairness.
        if core.side_count.load(memory_order_seq_cst) and self.take_redrive() == FOUND:
            return FOUND
        if self.feed is not None:
            self.feed = None  # it holds nothing while it sleeps
        return LEAVE if core.ends() else NOTHING

    cdef int take_redrive(self) noexcept:
        cdef Redrive record = self.core.take_aside(self)
        if record is None:
            return NOTHING
        self.record = record
        Py_INCREF(record.operation)  # the worker's
        self.op = <PyObject*>record.operation
        self.position = record.position
        self.came_from = record.feed
        return FOUND

    def enter(self):
        """The calling thread is this worker's from now on, until leave()."""
        PyThread_tss_set(&current_runner, <void*>self)

    def leave(self):
        PyThread_tss_set(&current_runner, NULL)

    def serve(self):
        """Takes and runs operations until the pool ends: returns None. Returns the error if the worker crashed."""
        cdef int found
        self.process = self.worker.process
        self.last_type = None
        self.turn = 0
        try:
            while True:
                if self.core.epoch != current_epoch():
                    return None  # in the child of a fork that this worker's operation made
                found = self.take(False)
                if found == NOTHING:
                    self.came_from = None  # as take
                    self.turn = 0
                    found = wait_for(&self.core.idle, take_attempt, take_more, <void*>self, <void*>self, NEVER)
                if found == LEAVE:
                    return None
                if found == FOUND:
                    crash = self.run_one()
                    if crash is not None:
                        return crash
        finally:
            self.feed = self.came_from = None
            self.process = None

    cdef object run_one(self):
        # Runs the operation at hand to its end, or until it is put back. Returns the error that crashed the worker.
        cdef PyObject* raw = self.op
        if not (<OperationBase>raw).begin():
            self.op = NULL
            self.record = None
            self.core.emit_cancelled(raw, self.came_from, self.position)
            return None
        # relaxed load: its only writer; release: pairs with count
        self.word.store(self.word.load(memory_order_relaxed) + 1, memory_order_release)
        try:
            self.process(<object>raw)
        except BaseException as error:
            if self.core.epoch != current_epoch():
                raise
            return self.core.policy._judge(self, <object>raw, error, True)
        if self.core.epoch != current_epoch():
            return None  # it forked, and this is the child: the operation is the parent's
        if (<OperationBase>raw).note is not None:
            return self.core.policy._judge(self, <object>raw, (<OperationBase>raw).get_note().error, False)
        self.op = NULL
        # relaxed load and release: as above. Counted, then the outcome, then done(), then the stream.
        self.word.store(self.word.load(memory_order_relaxed) + 1, memory_order_release)
        if <PyObject*>Py_TYPE(raw) != <PyObject*>self.last_type:
            self.look_at_type(type(<object>raw))
        if self.record is not None:
            self.record = None
        (<OperationBase>raw).end(SUCCEEDED, self.overridden)
        self.came_from.emit(raw, self.position)
        return None

    cdef int look_at_type(self, object kind) except -1:
        self.last_type = kind
        self.overridden = kind.done is not done_of_base
        return 0

    # -----------------------------------------------------------------------------------------------------------
    # for the policy, on the worker's thread, about the operation at hand: exactly one of the two ends it

    def count_try(self):
        """Counts a try that was in vain; returns how many there were."""
        cdef OperationBase op = <OperationBase>self.op
        acquire(&self.core.lock)
        self.tries += 1
        release(&self.core.lock)
        return op.tried.fetch_add(1, memory_order_relaxed) + 1  # relaxed: a count

    def count_restart(self):
        acquire(&self.core.lock)
        self.restarts += 1
        release(&self.core.lock)

    def set_alive(self, bint alive):
        """Whether it takes operations. Who waits for another worker to take a redrive looks again."""
        self.alive.store(alive, memory_order_seq_cst)  # seq_cst: before the wake-up
        if not alive:
            notify_all(&self.core.idle)

    def fail(self, error, bint seen):
        """Ends the operation at hand as failed. `seen`: somebody has looked at the error."""
        cdef PyObject* raw = self.op
        cdef Note note = (<OperationBase>raw).get_note()
        if note is None or note.error is not error:
            note = new_note(error, <OperationBase>raw, seen)
            (<OperationBase>raw).set_note(note)
        note.seen = note.seen or seen
        self.op = NULL
        self.record = None
        acquire(&self.core.lock)
        self.failed += 1
        # relaxed load and release: as in run_one
        self.word.store(self.word.load(memory_order_relaxed) + 1, memory_order_release)
        release(&self.core.lock)
        self.look_at_type(type(<object>raw))
        (<OperationBase>raw).end(FAILED, self.overridden)
        self.came_from.emit(raw, self.position)

    def put_back(self, bytes had, bytes rejected, bint delayed):
        """Puts the operation at hand back, for a worker that is in neither mask. Returns its Redrive.

        `delayed`: nobody takes it before `Core.due` is called with that.
        """
        cdef PyObject* raw = self.op
        cdef Redrive record = self.record
        cdef Core core = self.core
        cdef bint ends = False
        key = id(<object>raw)
        if record is None:
            record = Redrive(<OperationBase>raw, self.came_from)
            record.position = self.position
        acquire(&core.lock)
        try:
            record.had = had  # bytes: dropping the old ones runs nothing
            record.rejected = rejected
            if delayed:
                # relaxed: written under the lock
                ends = core.undelayed or core.phase.load(memory_order_relaxed) >= ENDING
                if not ends:
                    core.postponed[key] = record
            self.redriven += 1
            # relaxed load and release: as in run_one
            self.word.store(self.word.load(memory_order_relaxed) + 1, memory_order_release)
            put_back(record.operation)
        finally:
            release(&core.lock)
        self.op = NULL
        self.record = None
        Py_DECREF(<object>raw)  # the record owns one
        if ends and core.phase.load(memory_order_acquire) < ENDING:  # acquire: as end_redrive
            core.end_one(record.operation, record.feed, record.position, CANCELLED, None, None)
        elif ends:
            core.end_redrive(record)
        elif not delayed:
            core.push_aside(record, False)
        return record

    @property
    def at_hand(self):
        """Whether the operation at hand has neither been ended nor put back yet."""
        return self.op != NULL

    @property
    def is_running(self):
        """Whether it runs an operation now."""
        return bool(self.word.load(memory_order_acquire) & 1)  # acquire: as count

    @property
    def is_alive(self):
        """Whether it takes operations now."""
        return bool(self.alive.load(memory_order_relaxed))  # relaxed: a snapshot

    @property
    def redrive(self):
        """What is known of the way of the operation at hand; None if it was not put back before."""
        return self.record
