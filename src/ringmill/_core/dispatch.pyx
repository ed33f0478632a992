# What happens to every operation, from the moment that it is accepted until it is out of its stream.
#
#               +--------------------- put back (Retry, Reject) <-------+
#               v                                                       |
#   accept -> [feed] -> take -> begin -> call process -> judge ---------+--> count -> outcome -> done() -> stream
#               |                                                          (settle)              (emit)
#               +-- cancel, breakage: count -> outcome -> done(); the claim of its place emits it
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
# The books that this keeps are in books.pyx; what happens to operations otherwise than on a worker, in redrive.pyx. Core
# inherits both: a run of a pool is one object with one lock.

import queue

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from ringmill._core.books cimport ENDING, OPEN
from ringmill._core.feed cimport emit
from ringmill._core.loop cimport await_for
from ringmill._core.machine cimport steal
from ringmill._core.operation cimport (
    CANCELLED,
    FAILED,
    QUEUED,
    SUCCEEDED,
    CARRY_ALL,
    CARRY_NONE,
    CARRY_TASKS,
    PyContext_CopyCurrent,
    PyTypeObject,
    accept,
    begin,
    carries,
    end,
    is_operation,
    log_exception,
    put_back,
    renew,
    unaccept,
    unplace,
)
from ringmill._core.redrive cimport describe, new_note
from ringmill._core.ring cimport (
    DONE,
    NOT_NOW,
    SHUT,
    Result,
    Ring,
    fill,
    has_items,
    has_room,
    is_shut,
    size,
    try_get,
    try_put,
)
from ringmill._core.waiter cimport NEVER, acquire, epoch_now, notify, release, wait_for

from ringmill.errors import OperationReused

cdef extern from "Python.h":
    PyTypeObject* Py_TYPE(PyObject* o) nogil
    void Py_SET_SIZE(PyObject* list, Py_ssize_t size)
    Py_ssize_t PY_SSIZE_T_MAX
    list PyList_New(Py_ssize_t size)
    list PyList_GetSlice(list items, Py_ssize_t low, Py_ssize_t high)
    ctypedef struct PyTupleObject:
        PyObject** ob_item
    ctypedef struct PyListObject:
        PyObject** ob_item

cdef enum:
    TURN = 32                   # operations that a worker takes from one feed before it looks at the next
    # what take() found
    NOTHING = 0
    FOUND = 1
    LEAVE = 2

cdef object done_of_base = OperationBase.done


# ---------------------------------------------------------------------------------------------------------------
# the pool

cdef class Core(Redrives):
    """The compiled half of one run of a pool."""

    def __init__(self, policy, workers, Py_ssize_t queue_size, context):
        self.policy = policy
        self.carry = CARRY_TASKS if context is None else CARRY_ALL if context else CARRY_NONE
        self.inbox = RingBuffer(queue_size)
        self.inbox_feed = Feed(self.inbox)
        self.runners = [Runner(self, worker, index) for index, worker in enumerate(workers)]
        self.crew = self.present = len(self.runners)
        self.add(self.inbox_feed)

    # -----------------------------------------------------------------------------------------------------------
    # accept

    cdef int accept_new(self, OperationBase op) except -1:
        self.check_open()
        if not accept(op, self.number):
            raise OperationReused(f"{op!r} is pending, or finished and not reset: reset() it when it is finished")
        return 0

    cdef bint hand_aside(self, OperationBase op) except -1:
        # Accepts it. True: that was all; from a worker of this pool, which never blocks on it, or it was cancelled already.
        self.accept_new(op)
        if carries(<PyObject*>op, self.carry):
            try:
                op.set_context(PyContext_CopyCurrent())
            except BaseException:
                if not self.give_up(op):
                    return True
                raise
        if self.current() is None:
            return False
        self.do_aside(op)
        return True

    cdef object handed(self, OperationBase op, int result):
        # `result`: what became of the attempt to put it into the inbox.
        if result == DONE:
            notify(&self.idle)
            return op
        Py_DECREF(op)  # was to be the inbox's
        if not self.give_up(op):
            return op
        if result == SHUT:
            raise self.stopped_error()
        raise queue.Full(f"no room in the queue of {self.policy!r}")

    cdef object do(self, OperationBase op, int64_t deadline):
        cdef Asking asking
        cdef int result
        if self.hand_aside(op):
            return op
        Py_INCREF(op)  # the inbox's, if it gets there
        asking.core = <PyObject*>self
        asking.op = <PyObject*>op
        try:
            result = do_attempt(&asking)
            if result == NOT_NOW:
                result = wait_for(&self.inbox.not_full, do_attempt, do_more, &asking, NULL, 0, deadline)
        except BaseException:
            Py_DECREF(op)
            self.give_up(op)  # also where it was cancelled meanwhile: the interrupt is the caller's all the same
            raise
        return self.handed(op, result)

    async def ado(self, OperationBase op):
        cdef Asking asking
        cdef int result
        if self.hand_aside(op):
            return op
        Py_INCREF(op)  # the inbox's, if it gets there
        asking.core = <PyObject*>self
        asking.op = <PyObject*>op
        try:
            result = do_attempt(&asking)
            if result == NOT_NOW:
                result = await await_for(&self.inbox.not_full, do_attempt, do_more, &asking, self)
        except BaseException:
            Py_DECREF(op)
            self.give_up(op)  # as in do
            raise
        return self.handed(op, result)

    cdef bint give_up(self, OperationBase op) except -1:
        # The pool does not take an operation that it had accepted: it is new again. False: it was cancelled meanwhile,
        # and counts as accepted and cancelled. Called before an error is made, since memory may be what is lacking.
        if op.context is not None:
            op.set_context(None)  # the next pool may want none
        if unaccept(op):
            return True
        acquire(&self.lock)
        self.accepted_before += 1
        release(&self.lock)
        unplace(op)  # it never had a place
        self.wake_for_the_end()
        return False

    cdef int do_aside(self, OperationBase op) except -1:
        cdef Redrive record
        cdef bint open
        try:
            record = Redrive(op, self.inbox_feed)
            acquire(&self.lock)
            try:
                open = self.phase.load(memory_order_relaxed) == OPEN  # relaxed: written under the lock
                if open:
                    self.put_in_side(record)
                    self.accepted_before += 1
            finally:
                release(&self.lock)
        except BaseException:
            if not self.give_up(op):
                return 0
            raise
        if open:
            notify(&self.idle)
        elif self.give_up(op):
            raise self.stopped_error()
        return 0

    def submit(self, OperationBase op not None):
        """Accepts one without waiting, however many are pending; those of one caller begin in their order."""
        self.accept_new(op)
        self.do_aside(op)

    def execute(self, operations):
        """Accepts all or none, as one feed; returns it, to be read."""
        cdef list ops
        cdef Py_ssize_t count, k = 0, taken = 0
        cdef PyObject* raw
        cdef PyObject* kind = NULL
        cdef bint carry = False
        cdef Feed feed
        try:
            ops = list_of(operations)
        except TypeError:
            if hasattr(type(operations), "__iter__"):
                raise
            raise TypeError(f"ops must be an iterable of Operations, got {operations!r}") from None
        count = len(ops)
        self.check_open()
        feed = Feed(RingBuffer(count or 1), RingBuffer(count or 1))
        try:
            for k in range(count):
                raw = (<PyListObject*>ops).ob_item[k]
                if not is_operation(raw):
                    raise TypeError(f"ops must be Operations, got {<object>raw!r}")
                if not accept(<OperationBase>raw, self.number):
                    raise OperationReused(
                        f"{<object>raw!r} is pending, or finished and not reset: reset() it when finished"
                    )
                taken = k + 1
                if <PyObject*>Py_TYPE(raw) != kind:
                    kind = <PyObject*>Py_TYPE(raw)
                    carry = carries(raw, self.carry)
                if carry:
                    (<OperationBase>raw).set_context(PyContext_CopyCurrent())
            if count:
                fill(feed.pending.ring, (<PyListObject*>ops).ob_item)
                Py_SET_SIZE(<PyObject*>ops, 0)  # the list's references are the ring's now
            feed.end(None)  # its total is known before anybody sees it
            if count:
                self.add(feed)
        except BaseException:
            # Without a new object: it may be memory that is lacking.
            for k in range(min(taken, len(ops))):
                self.give_up(<OperationBase>(<PyListObject*>ops).ob_item[k])
            while try_get(feed.pending.ring, &raw, NULL) == DONE:
                self.give_up(<OperationBase>raw)
                Py_DECREF(<object>raw)  # was the ring's
            raise
        return feed

    # -----------------------------------------------------------------------------------------------------------
    # take

    cdef PyObject* next_feed(self, PyObject* after, Runner sleeper) except? NULL:
        # A feed with work, the next in turn after that one; the caller owns the reference. NULL: none. Unlinks feeds
        # that are spent on the way. `sleeper`: who is about to sleep if there is none, or looks in the
        # sleepers' stead, so bells are armed; or None.
        cdef PyObject* at
        cdef PyObject* found
        cdef PyObject* spent
        cdef Feed feed
        cdef Py_ssize_t left
        cdef bint closed
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
                    closed = is_shut((<Feed>at).pending.ring)  # before the look: after it, nothing comes
                    if has_items((<Feed>at).pending.ring):
                        found = at
                        break
                    if closed and at != <PyObject*>self.inbox_feed:
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

    cdef bint any_work(self, Runner runner) noexcept:
        # Whether there is more, for a searcher that has taken one. Who rang a bell and woke nobody counts on this look, in
        # the sleepers' stead: so it arms the bells again. What rang may be gone, and nobody else would.
        cdef PyObject* feed
        cdef Runner sleeper = None
        if self.side_count.load(memory_order_seq_cst):  # seq_cst: as take
            return True
        if self.idle.word.load(memory_order_seq_cst) >> 32:  # seq_cst: as notify. Who sleeps later arms them himself
            sleeper = runner
        feed = self.next_feed(<PyObject*>runner.feed if runner.feed is not None else NULL, sleeper)
        if feed:
            Py_DECREF(<object>feed)  # next_feed's
        return feed != NULL


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


cdef struct Asking:             # a `do` that may have to wait
    PyObject* core
    PyObject* op

cdef int do_attempt(void* asking) noexcept:
    cdef PyObject* core = (<Asking*>asking).core
    # seq_cst: pairs with take_aside. Redrives count as queued, so that a pool whose work keeps failing takes no more.
    cdef Py_ssize_t aside = (<Core>core).side_count.load(memory_order_seq_cst)
    cdef Ring* inbox = (<Core>core).inbox.ring
    if aside and <uint64_t>(aside + size(inbox)) >= inbox.capacity and not is_shut(inbox):
        return NOT_NOW
    return try_put(inbox, (<Asking*>asking).op, NULL)

cdef int do_more(void* asking) noexcept:
    return has_room((<Core>(<Asking*>asking).core).inbox.ring)


# ---------------------------------------------------------------------------------------------------------------
# a worker

cdef int take_attempt(void* runner) noexcept:
    return (<Runner>runner).take(True)

cdef int take_more(void* runner) noexcept:
    return (<Runner>runner).core.any_work(<Runner>runner)


cdef class Runner(Tally):
    """The compiled half of one worker: its loop and its counts."""

    def __init__(self, Core core, worker, Py_ssize_t index):
        self.core = core
        self.books = core
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
            if feed.foreign and carries(op, self.core.carry):
                self.lend_context(feed)
            if feed.foreign or feed is self.core.inbox_feed:
                notify(&feed.pending.not_full)
            return FOUND
        if feed.foreign and result == SHUT and not feed.ended():
            if feed.culprit:
                notify(&feed.pending.not_full)  # it was taken
            self.end_source(feed)
        return NOTHING

    cdef int lend_context(self, Feed feed) noexcept:
        # Nobody handed it over but the ring, so it runs in the context of who wrapped that.
        try:
            (<OperationBase>self.op).set_context(feed.context.copy())
        except MemoryError:
            pass  # in the worker's own
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

    cdef inline int take_again(self) noexcept:
        # take(), where it is the same feed's turn still, and nothing stands aside.
        cdef PyObject* feed = <PyObject*>self.feed  # borrowed, like the next: no reference is counted
        cdef PyObject* pending
        if (
            self.turn <= 0
            or feed != <PyObject*>self.came_from
            or (<Feed>feed).foreign
            or self.core.side_count.load(memory_order_seq_cst)  # seq_cst: as take
        ):
            return NOTHING
        pending = <PyObject*>(<Feed>feed).pending
        if try_get((<RingBuffer>pending).ring, &self.op, &self.position) != DONE:
            return NOTHING
        self.turn -= 1
        notify(&(<RingBuffer>pending).not_full)
        return FOUND

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
        self.feed = self.came_from = None  # it holds nothing while it sleeps
        self.turn = 0
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

    # The loop. The policy runs it, on the worker's thread:
    #
    #     for op in runner:       __iter__, then __next__: takes one, waiting for it, and makes it RUNNING
    #         process(op)         a raise leaves the loop, and the policy ends the operation at hand or puts it back
    #         del op              nobody holds it while the worker waits
    #                             __next__: settles the operation at hand as succeeded, and takes the next one
    #
    # Python calls `process`, since a call from Python into Python costs less than one from C. Between the calls the
    # operation at hand is the runner's.

    def __iter__(self):
        """Takes operations; the iteration ends when the pool does, or when the worker is broken."""
        return self

    def __next__(self):
        cdef PyObject* raw = self.op
        cdef int found
        if raw != NULL and not self.settle(raw):
            raise StopIteration
        while True:
            found = self.take_again()
            if found == NOTHING:
                found = self.take(False)
            if found == NOTHING:
                found = wait_for(
                    &self.core.idle, take_attempt, take_more, <void*>self, <void*>self,
                    self.since_wait(), NEVER,
                )
            if found == LEAVE or self.core.epoch != epoch_now:  # in the child of a fork the worker is the parent's
                raise StopIteration
            raw = self.op
            if begin(<OperationBase>raw):
                # relaxed load: its only writer; release: pairs with count
                self.word.store(self.word.load(memory_order_relaxed) + 1, memory_order_release)
                return <object>raw
            self.op = NULL
            self.record = None
            self.core.emit_cancelled(raw, self.came_from, self.position)

    cdef uint64_t since_wait(self) noexcept:
        # How many operations it has ended since it last waited.
        cdef uint64_t last = self.waited_at
        self.waited_at = self.word.load(memory_order_relaxed) >> 1  # relaxed: its only writer
        return self.waited_at - last

    cdef bint settle(self, PyObject* raw) except -1:
        # `process` has returned. False: that was the last one, see `crash`.
        if self.core.epoch != epoch_now:
            return False  # it forked, and this is the child: the operation is the parent's
        if (<OperationBase>raw).note is not None:
            self.crash = self.core.policy._judge(self, <object>raw, (<OperationBase>raw).get_note().error, False)
            return self.crash is None
        self.op = NULL
        # relaxed load and release: as above. Counted, then the outcome, then done(), then the stream.
        self.word.store(self.word.load(memory_order_relaxed) + 1, memory_order_release)
        if <PyObject*>Py_TYPE(raw) != <PyObject*>self.last_type:
            self.look_at_type(type(<object>raw))
        if self.record is not None:
            self.record = None
        end(<OperationBase>raw, SUCCEEDED, self.overridden)
        emit(<Feed><PyObject*>self.came_from, raw, self.position)  # the cast: no reference is counted
        return True

    def rest(self):
        """The loop is over: holds nothing of the feeds any more."""
        self.feed = self.came_from = self.crash = self.last_type = None
        self.turn = 0

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
        end(<OperationBase>raw, FAILED, self.overridden)
        emit(self.came_from, raw, self.position)

    def put_back(self, bytes had, bytes rejected, bint delayed):
        """Puts the operation at hand back, for a worker that is in neither mask. Returns its Redrive.

        `delayed`: nobody takes it before `Core.due` is called with that.
        """
        cdef PyObject* raw = self.op
        cdef Redrive record = self.record
        cdef Core core = self.core
        cdef bint ends = False
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
                    core.postponed[record.key] = record
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
        """The operation at hand: taken, and neither ended nor put back yet; or None."""
        return <object>self.op if self.op != NULL else None

    @property
    def redrive(self):
        """What is known of the way of the operation at hand; None if it was not put back before."""
        return self.record
