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
# Sleeping is wait_queue.pyx's: whoever publishes an operation notifies `idle`; one searcher at a time; a searcher that
# takes one and sees more wakes the next. A retry wakes a sleeping worker that may take it by name.
#
# The books that this keeps are in accounting.pyx; what happens to operations otherwise than on a worker, in retry_routing.pyx. Core
# inherits both: a run of a pool is one object with one lock.

import queue

from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_tss_set
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from ringmill._core.pool.accounting cimport ENDING, OPEN
from ringmill._core.pool.context cimport capture
from ringmill._core.pool.work_source cimport AS_IT_IS, PASS, RENEW, Renewal, emit
from ringmill._core.waiting.event_loop cimport await_for
from ringmill._core.platform.primitives cimport now_ns, steal
from ringmill._core.pool.operation cimport (
    CANCELLED,
    FAILED,
    QUEUED,
    SUCCEEDED,
    PyTypeObject,
    accept,
    begin,
    end,
    is_operation,
    log_error,
    log_exception,
    new_error_record,
    put_back,
    renew,
    unaccept,
    unplace,
)
from ringmill._core.pool.retry_queue cimport RetryEntry, new_entry
from ringmill._core.ring.ring cimport (
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
from ringmill._core.pool.run_threads cimport RunThreads
from ringmill._core.waiting.wait_queue cimport NEVER, acquire, deadline_of, epoch_now, notify, release, wait_for

from ringmill.errors import BrokenPool, OperationReused, Reject, Retry, describe

cdef extern from "Python.h":
    PyTypeObject* Py_TYPE(PyObject* o) nogil
    PyObject* call_method "PyObject_CallMethodObjArgs"(PyObject* o, PyObject* name, ...) noexcept
    PyObject* get_attribute "PyObject_GetAttr"(PyObject* o, PyObject* name) noexcept
    bint PyErr_GivenExceptionMatches(PyObject* error, PyObject* classes) noexcept
    void PyErr_Clear()
    PyObject* PyExc_Exception
    PyObject* Py_True
    PyObject* Py_False
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

    MAX_FAULTS = 16             # in a row, in the policy's own code, before a worker is given up

cdef int64_t FAR_AWAY = (<int64_t>1 << 62)

cdef object done_of_base = OperationBase.done
cdef str live_name = "_live"
cdef str judge_name = "_judge"
cdef str init_name = "init"
cdef str cleanup_name = "cleanup"
cdef str done_name = "done"

cdef extern from *:
    """
    /* The exception that is set, whole, or NULL; the caller owns it, and none is set then. */
    static inline PyObject* ringmill_take_raised(void) {
    #if PY_VERSION_HEX >= 0x030C0000
        return PyErr_GetRaisedException();
    #else
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        if (type == NULL) return NULL;
        PyErr_NormalizeException(&type, &value, &trace);
        if (value != NULL && trace != NULL) PyException_SetTraceback(value, trace);
        Py_XDECREF(type);
        Py_XDECREF(trace);
        return value;
    #endif
    }
    """
    PyObject* take_raised "ringmill_take_raised"() noexcept


# ---------------------------------------------------------------------------------------------------------------
# the pool

cdef class PoolRun(Retries):
    """The compiled half of one run of a pool."""

    def __cinit__(self, policy, workers, Py_ssize_t queue_size, bint context):
        self.policy = policy
        self.carries = context
        self.inbox = RingBuffer(queue_size)
        self.inbox_source = WorkSource(self.inbox)
        self.threads = RunThreads(len(workers))
        self.broken_message = f"{policy!r} has lost its last worker"
        self.broken_for_all = owned_error_record(BrokenPool(self.broken_message))
        self.worker_loops = [WorkerLoop(self, worker, index) for index, worker in enumerate(workers)]
        self.worker_count = self.present = len(self.worker_loops)
        self.add(self.inbox_source)

    def finish_run(self):
        """No thread of the run is left, and none will begin. May be called again, also at the same time."""
        self.stop_timer()
        self.finish()
        self.threads.set_over()

    # -----------------------------------------------------------------------------------------------------------
    # accept

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
        request.core = <PyObject*>self
        request.op = <PyObject*>op
        try:
            result = do_attempt(&request)
            if result == NOT_NOW:
                result = wait_for(&self.inbox.not_full, do_attempt, do_more, &request, NULL, 0, deadline)
        except BaseException:
            Py_DECREF(op)
            self.withdraw(op)  # also where it was cancelled meanwhile: the interrupt is the caller's all the same
            raise
        return self.submitted(op, result)

    async def ado(self, OperationBase op not None):
        cdef SubmitRequest request
        cdef int result
        if self.submit_aside(op):
            return op
        request.core = <PyObject*>self
        request.op = <PyObject*>op
        try:
            result = do_counted(&request)
            if result == NOT_NOW:
                result = await await_for(&self.inbox.not_full, do_counted, do_more, &request, self)
        except BaseException:
            self.withdraw(op)  # as in do
            raise
        if result != DONE:
            Py_INCREF(op)  # for handed to drop
        return self.submitted(op, result)

    cdef bint withdraw(self, OperationBase op) except -1:
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
            self.retries.append(entry)
            self.retry_count.store(self.retries.length, memory_order_seq_cst)  # seq_cst: as append_retry
            self.accepted_before += 1
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

    def execute(self, operations):
        """Accepts all or none, as one feed; returns it, to be read."""
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
            source.end(None)  # its total is known before anybody sees it
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

    # -----------------------------------------------------------------------------------------------------------
    # take

    cdef PyObject* next_source(self, PyObject* after, WorkerLoop sleeper) except? NULL:
        # A feed with work, the next in turn after that one; the caller owns the reference. NULL: none. Unlinks feeds
        # that are spent on the way. `sleeper`: who is about to sleep if there is none, or looks in the
        # sleepers' stead, so bells are armed; or None.
        cdef PyObject* at
        cdef PyObject* found
        cdef PyObject* spent
        cdef WorkSource source
        cdef Py_ssize_t left
        cdef bint closed
        while True:
            found = spent = NULL
            acquire(&self.lock)
            left = self.linked
            at = (<WorkSource>after).next if after and (<WorkSource>after).linked else self.first
            while left:
                left -= 1
                if (<WorkSource>at).abandoned.load(memory_order_acquire):  # acquire: pairs with the stream's drop
                    spent = at
                    break
                if (<WorkSource>at).external:
                    if (<WorkSource>at).ended():
                        spent = at
                        break
                    if sleeper is not None:
                        (<WorkSource>at).watcher.arm(&(<WorkSource>at).pending.not_empty)
                    if (<WorkSource>at).has_work():
                        found = at
                        break
                else:
                    closed = is_shut((<WorkSource>at).pending.ring)  # before the look: after it, nothing comes
                    if has_items((<WorkSource>at).pending.ring):
                        found = at
                        break
                    if closed and at != <PyObject*>self.inbox_source:
                        spent = at
                        break
                at = (<WorkSource>at).next
            if found:
                Py_INCREF(<object>found)  # the caller's; the list's keeps it alive until here
            if spent:
                Py_INCREF(<object>spent)  # ours, for a moment
            release(&self.lock)
            if not spent:
                return found
            source = <WorkSource>steal(spent)
            if source.abandoned.load(memory_order_acquire):  # acquire: as above
                source.end(None)
                self.end_unbegun(source, CANCELLED, None)
            self.remove(source)

    cdef bint any_work(self, WorkerLoop worker_loop) noexcept:
        # Whether there is more, for a searcher that has taken one. Who rang a bell and woke nobody counts on this look, in
        # the sleepers' stead: so it arms the bells again. What rang may be gone, and nobody else would.
        cdef PyObject* source
        cdef WorkerLoop sleeper = None
        if self.retry_count.load(memory_order_seq_cst):  # seq_cst: as take
            return True
        if self.idle.word.load(memory_order_seq_cst) >> 32:  # seq_cst: as notify. Who sleeps later arms them himself
            sleeper = worker_loop
        source = self.next_source(<PyObject*>worker_loop.source if worker_loop.source is not None else NULL, sleeper)
        if source:
            Py_DECREF(<object>source)  # next_feed's
        return source != NULL


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


cdef struct SubmitRequest:             # a `do` that may have to wait
    PyObject* core
    PyObject* op

cdef int do_attempt(void* request) noexcept:
    cdef PyObject* core = (<SubmitRequest*>request).core
    # seq_cst: pairs with take_retry_for. Retries count as queued, so that a pool whose work keeps failing takes no more.
    cdef Py_ssize_t took_retry = (<PoolRun>core).retry_count.load(memory_order_seq_cst)
    cdef Ring* inbox = (<PoolRun>core).inbox.ring
    if took_retry and <uint64_t>(took_retry + size(inbox)) >= inbox.capacity and not is_shut(inbox):
        return NOT_NOW
    return try_put(inbox, (<SubmitRequest*>request).op, NULL)

cdef int do_counted(void* request) noexcept:
    # For a task, which may be suspended for ever: it holds no reference for the inbox meanwhile, that the collector knows
    # nothing of.
    cdef PyObject* op = (<SubmitRequest*>request).op
    cdef int result
    Py_INCREF(<object>op)  # the inbox's, if it gets there
    result = do_attempt(request)
    if result != DONE:
        Py_DECREF(<object>op)
    return result

cdef int do_more(void* request) noexcept:
    return has_room((<PoolRun>(<SubmitRequest*>request).core).inbox.ring)


# ---------------------------------------------------------------------------------------------------------------
# a worker

cdef int take_attempt(void* worker_loop) noexcept:
    return (<WorkerLoop>worker_loop).take(True)

cdef int take_more(void* worker_loop) noexcept:
    return (<WorkerLoop>worker_loop).core.any_work(<WorkerLoop>worker_loop)


cdef class WorkerLoop(WorkerCounters):
    """The compiled half of one worker: its loop and its counts."""

    def __cinit__(self, PoolRun core not None, worker, Py_ssize_t index):
        self.core = core
        self.accounting = core
        self.worker = worker
        self.index = index
        self.spare_record = owned_error_record(None)
        self.set_name(str(index))

    cdef int claim_from(self, WorkSource source) noexcept:
        cdef Renewal renewal = AS_IT_IS
        cdef PyObject* op = NULL
        cdef Result result = source.claim(&op, &self.position, self.core.number, &renewal)
        if result == DONE and renewal == PASS:
            notify(&source.pending.not_full)
            emit(source, op, self.position)
            return NOTHING  # the caller goes on to the next feed, which may be this one
        if result == DONE:
            self.op = op
            if renewal == RENEW:
                renew(<OperationBase>self.op, QUEUED, self.core.number)
            if source.external and self.core.carries:
                (<OperationBase>op).set_context(source.context)
            if source.external or source is self.core.inbox_source:
                notify(&source.pending.not_full)
            return FOUND
        if source.external and result == SHUT and not source.ended():
            if source.bad_item:
                notify(&source.pending.not_full)  # it was taken
            self.end_source(source)
        return NOTHING

    cdef int end_source(self, WorkSource source) noexcept:
        try:
            error = None
            if source.bad_item:
                bad_item = <object>source.bad_item
                if isinstance(bad_item, OperationBase):
                    error = OperationReused(f"the source gave {describe(bad_item)}, which is pending, or finished and not reset")
                else:
                    error = TypeError(f"the source must give Operations, got {describe(bad_item)}")
            source.end_source(error)
        except BaseException:
            log_exception("a source ended with a failure in %s", self.name)
        return 0

    cdef inline int take_again(self) noexcept:
        # take(), where it is the same feed's turn still, and nothing stands aside.
        cdef PyObject* source = <PyObject*>self.source  # borrowed, like the next: no reference is counted
        cdef PyObject* pending
        if (
            self.turn <= 0
            or source != <PyObject*>self.current_source
            or (<WorkSource>source).external
            or self.core.retry_count.load(memory_order_seq_cst)  # seq_cst: as take
        ):
            return NOTHING
        pending = <PyObject*>(<WorkSource>source).pending
        if try_get((<RingBuffer>pending).ring, &self.op, &self.position) != DONE:
            return NOTHING
        self.turn -= 1
        notify(&(<RingBuffer>pending).not_full)
        return FOUND

    cdef int take(self, bint sleepy) noexcept:
        # Finds the next operation for this worker, without waiting. `sleepy`: it will sleep if there is none.
        cdef PyObject* found
        cdef PoolRun core = self.core
        if core.retry_count.load(memory_order_seq_cst):  # seq_cst: a sleeper's last look; pairs with push_aside
            if not self.took_retry and self.take_retry() == FOUND:
                self.took_retry = True
                return FOUND
            self.took_retry = False
        if self.turn > 0 and self.source is not None:
            self.turn -= 1
            if self.claim_from(self.source) == FOUND:
                if self.current_source is not self.source:
                    self.current_source = self.source
                return FOUND
        while True:
            found = core.next_source(<PyObject*>self.source if self.source is not None else NULL, self if sleepy else None)
            if found == NULL:
                break
            if <PyObject*>self.source != found:
                self.source = <WorkSource>found
            Py_DECREF(<object>found)  # next_feed's
            self.turn = TURN - 1
            if self.claim_from(self.source) == FOUND:
                if self.current_source is not self.source:
                    self.current_source = self.source
                return FOUND
        # seq_cst: as above. It may have been skipped, for fairness.
        if core.retry_count.load(memory_order_seq_cst) and self.take_retry() == FOUND:
            return FOUND
        self.source = self.current_source = None  # it holds nothing while it sleeps
        self.turn = 0
        return LEAVE if core.should_end() else NOTHING

    cdef int take_retry(self) noexcept:
        cdef PyObject* entry = self.core.take_retry_for(self)
        if not entry:
            return NOTHING
        self.record = <RetryEntry>steal(entry)
        self.op = <PyObject*>self.record.operation
        Py_INCREF(<object>self.op)  # the worker's
        self.position = self.record.position
        self.current_source = self.record.source
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
            self.core.emit_cancelled(raw, self.current_source, self.position)

    cdef uint64_t since_wait(self) noexcept:
        # How many operations it has ended since it last waited.
        cdef uint64_t last = self.waited_at
        self.waited_at = self.word.load(memory_order_relaxed) >> 1  # relaxed: its only writer
        return self.waited_at - last

    cdef bint settle(self, PyObject* raw) except -1:
        # `process` has returned. False: that was the last one, see `crash`.
        if self.core.epoch != epoch_now:
            return False  # it forked, and this is the child: the operation is the parent's
        if (<OperationBase>raw).error_record is not None:
            self.crash = self.judge_error((<OperationBase>raw).get_error_record().error, False)
            return self.crash is None
        self.op = NULL
        # relaxed load and release: as above. Counted, then the outcome, then done(), then the stream.
        self.word.store(self.word.load(memory_order_relaxed) + 1, memory_order_release)
        if <PyObject*>Py_TYPE(raw) != <PyObject*>self.last_type:
            self.inspect_type(<PyObject*>Py_TYPE(raw))
        if self.record is not None:
            self.record = None
        end(<OperationBase>raw, SUCCEEDED, self.overridden)
        emit(<WorkSource><PyObject*>self.current_source, raw, self.position)  # the cast: no reference is counted
        return True

    @property
    def is_crashed(self):
        """Whether the worker is broken, and `take_crash` was not called for that."""
        return self.crash is not None

    def take_crash(self):
        """What broke the worker; None: nothing."""
        crash = self.crash
        self.crash = None
        return crash

    cdef void inspect_type(self, PyObject* kind) noexcept:
        cdef PyObject* done = get_attribute(kind, <PyObject*>done_name)
        self.last_type = <object>kind
        self.overridden = done != <PyObject*>done_of_base
        if done == NULL:
            PyErr_Clear()  # its metaclass raises: done() will, too
        Py_XDECREF(done)

    # -----------------------------------------------------------------------------------------------------------
    # the whole life of a worker's thread

    def run(self):
        """Runs the worker on the calling thread until the pool ends, or the worker is lost. Never raises.

        The policy does it (`_live`). What that raises is a fault of the policy's own, an exception that was injected into
        the thread, a tracer's, or the lack of memory: the current operation ends with it, and the policy goes on as
        after a crash, so that nothing is lost and each `init` is followed by a `cleanup`.
        """
        cdef PyObject* result = NULL
        cdef PyObject* fault
        cdef uint64_t before
        cdef int faults = 0
        cdef bint inherited = False
        if not self.core.threads.begin(self.index):
            return
        self.enter()
        while result == NULL and not self.retired and faults <= MAX_FAULTS and not inherited:
            before = self.word.load(memory_order_relaxed)  # relaxed: this thread is its only writer
            result = call_method(
                <PyObject*>self.core.policy, <PyObject*>live_name, <PyObject*>self, <PyObject*>NULL
            )
            inherited = self.core.epoch != epoch_now  # the child of a fork: the worker is the parent's
            if result == NULL:
                fault = take_raised()
                if not inherited:
                    self.end_failed(fault, False)
                    log_error(
                        40, "a fault in the supervision of worker %s", <PyObject*>self.log_arguments, fault
                    )
                # relaxed: as above
                faults = 1 if self.word.load(memory_order_relaxed) != before else faults + 1
                self.crash = steal(fault)  # nobody else holds it, so the policy can drop it
        if not inherited:
            self.end_life(result == NULL)
        Py_XDECREF(result)
        self.leave()

    cdef void end_life(self, bint given_up) noexcept:
        # The policy has returned; or it was given up with a fault, which is `crash`.
        cdef int left = 100         # again, where memory is short for a moment
        cdef PyObject* result = NULL
        self.end_failed(<PyObject*>(self.crash if self.crash is not None else broke_down), False)
        if given_up:
            self.clean_up()
            self.report_error(<PyObject*>self.crash)
            if self.core.phase.load(memory_order_acquire) < ENDING:  # acquire: pairs with _close
                while left and result == NULL:
                    left -= 1
                    PyErr_Clear()
                    result = call_method(
                        <PyObject*>self.core, <PyObject*>retire_name, <PyObject*>self, <PyObject*>NULL
                    )
                PyErr_Clear()
                Py_XDECREF(result)
        self.crash = None
        self.release_sources()
        if self.core.threads.end(self.index):
            self.end_thread()

    cdef void release_sources(self) noexcept:
        # Between two operations: holds nothing of the feeds.
        self.source = self.last_type = None
        if self.op == NULL:
            self.current_source = None
        self.turn = 0

    cdef void end_thread(self) noexcept:
        # The last thread of the run ends that. Where there is no memory for it, a joiner does it.
        cdef int left = 100
        cdef PyObject* result = NULL
        while left and result == NULL:
            left -= 1
            PyErr_Clear()
            result = call_method(<PyObject*>self.core, <PyObject*>finish_name, <PyObject*>NULL)
        PyErr_Clear()
        Py_XDECREF(result)

    cdef void report_error(self, PyObject* error) noexcept:
        if not self.has_reported:
            self.start_error = <object>error
            self.has_reported = True
            self.core.threads.report()

    def report(self, error):
        """Says whether the worker came up: with None, or with what `init` raised. Only the first report counts."""
        self.report_error(<PyObject*>error)

    cdef PyObject* call_worker(self, PyObject* method) noexcept:
        # What the call of the worker's method raised, owned by the caller; NULL: nothing.
        cdef PyObject* result = call_method(<PyObject*>self.worker, method, <PyObject*>NULL)
        if result == NULL:
            return take_raised()
        Py_DECREF(<object>result)
        return NULL

    def call_init(self):
        """Calls the worker's `init`; returns what it raised, or None. `call_cleanup` must follow, once, at some time."""
        cdef PyObject* error
        self.needs_cleanup = True
        error = self.call_worker(<PyObject*>init_name)
        return steal(error) if error != NULL else None

    def call_cleanup(self):
        """Calls the worker's `cleanup`, unless it was called since the last `init`. What it raises is logged."""
        self.clean_up()

    cdef void clean_up(self) noexcept:
        cdef PyObject* error
        if self.needs_cleanup:
            self.needs_cleanup = False
            error = self.call_worker(<PyObject*>cleanup_name)
            if error != NULL:
                log_error(40, "cleanup of worker %s raised", <PyObject*>self.log_arguments, error)
                Py_DECREF(<object>error)

    def set_name(self, str name not None):
        """Names the worker's thread and log lines."""
        self.name = name
        self.log_arguments = (name,)

    # -----------------------------------------------------------------------------------------------------------
    # for the policy, on the worker's thread, about the current operation: one of fail and put_back ends each call

    def judge(self, error):
        """`process` raised: ends the current operation, or has it tried again. Returns whether the worker is broken."""
        if self.op == NULL or self.core.epoch != epoch_now:
            self.crash = error  # not out of `process`; or this is the child of a fork, and the operation is the parent's
        else:
            self.crash = self.judge_error(error, True)
        return self.crash is not None

    cdef object judge_error(self, object error, bint raised):
        # Whatever happens in the policy, the operation is ended or put back afterwards; that is no crash of the worker's,
        # unless it is an exception of the kind that is.
        cdef PyObject* fault
        cdef PyObject* verdict = call_method(
            <PyObject*>self.core.policy, <PyObject*>judge_name, <PyObject*>self, self.op, <PyObject*>error,
            Py_True if raised else Py_False, <PyObject*>NULL,
        )
        if verdict != NULL:
            if self.op != NULL:
                self.end_failed(<PyObject*>error, False)
            return steal(verdict)
        fault = take_raised()
        if self.op != NULL:
            # What `process` raised says more, unless it was a signal to the pool.
            self.end_failed(fault if is_signal(<PyObject*>error) else <PyObject*>error, False)
        log_error(40, "a fault while worker %s dealt with an operation that did not succeed", <PyObject*>self.log_arguments, fault)
        if PyErr_GivenExceptionMatches(fault, PyExc_Exception):
            Py_DECREF(<object>fault)
            return None
        return steal(fault)

    cdef int check_current(self) except -1:
        if self.op == NULL:
            raise RuntimeError(f"worker {self.name} runs no operation")
        return 0

    def count_try(self):
        """Counts a failed try; returns how many there were."""
        cdef OperationBase op
        self.check_current()
        op = <OperationBase>self.op
        acquire(&self.core.lock)
        self.tries += 1
        release(&self.core.lock)
        return op.tried.fetch_add(1, memory_order_relaxed) + 1  # relaxed: a count

    def fail(self, error, bint seen):
        """Ends the current operation as failed. `seen`: the worker has looked at the error. Takes no memory that it needs."""
        self.check_current()
        self.end_failed(<PyObject*>error, seen)

    cdef PyObject* take_error_record(self, PyObject* error, PyObject* kind, bint seen) noexcept:
        # A new note, owned by the caller. Where there is no memory, the spare one; where that is gone, the one for all.
        cdef PyObject* error_record = new_error_record(error, kind, seen)
        cdef PyObject* spare
        if error_record == NULL:
            PyErr_Clear()
            error_record = <PyObject*>self.spare_record
            Py_INCREF(<object>error_record)  # the caller's
            if error_record != <PyObject*>None:
                self.spare_record = None
                (<ErrorRecord>error_record).error = <object>error
                (<ErrorRecord>error_record).kind = <object>kind
                (<ErrorRecord>error_record).seen = seen
            else:
                error_record = <PyObject*>no_memory_for_all
                Py_INCREF(<object>error_record)  # the caller's
        elif self.spare_record is None:
            spare = new_error_record(<PyObject*>None, <PyObject*>None, True)
            if spare == NULL:
                PyErr_Clear()
            else:
                self.spare_record = <ErrorRecord>steal(spare)
        return error_record

    cdef void end_failed(self, PyObject* error, bint seen) noexcept:
        # The last resort as well: needs no memory, and runs no user code but done().
        cdef PyObject* raw = self.op
        cdef PyObject* error_record
        if raw == NULL:
            return
        error_record = <PyObject*>(<OperationBase>raw).error_record
        if error_record != <PyObject*>None and <PyObject*>(<ErrorRecord>error_record).error == error:  # a Task has recorded it
            (<ErrorRecord>error_record).seen = (<ErrorRecord>error_record).seen or seen
        else:
            error_record = self.take_error_record(error, <PyObject*>Py_TYPE(raw), seen)
            (<OperationBase>raw).set_error_record(<ErrorRecord>error_record)
            Py_DECREF(<object>error_record)  # the operation owns one
        self.op = NULL
        self.record = None
        acquire(&self.core.lock)
        self.failed += 1
        # relaxed load and release: as in settle
        self.word.store(self.word.load(memory_order_relaxed) + 1, memory_order_release)
        release(&self.core.lock)
        self.inspect_type(<PyObject*>Py_TYPE(raw))
        end(<OperationBase>raw, FAILED, self.overridden)
        emit(self.current_source, raw, self.position)

    def put_back(self, bytes tried_by, bytes rejected_by, delay):
        """Has the current operation tried again by a worker that is in neither mask, after `delay` seconds (0: at once).

        MemoryError: nothing has changed.
        """
        cdef PyObject* raw = self.op
        cdef PyObject* entry
        cdef PoolRun core = self.core
        cdef int64_t due = deadline_of(delay) if delay else 0
        cdef bint kept = False, delayed = False, undelayed = False
        self.check_current()
        if self.record is None:
            entry = new_entry(raw, <PyObject*>self.current_source, self.position)
            if entry == NULL:
                raise_set()
            self.record = <RetryEntry>steal(entry)
        if due == NEVER:
            due = FAR_AWAY
        if due:
            core.delays.reserve(&core.lock)
        # Nothing fails from here on.
        self.record.tried_by = tried_by  # only this thread knows the entry
        self.record.rejected_by = rejected_by
        if (<OperationBase>raw).error_record is not None:
            (<OperationBase>raw).set_error_record(None)  # a Task's, of this try
        entry = <PyObject*>self.record
        Py_INCREF(<object>entry)  # the queue's, if it gets there
        acquire(&core.lock)
        self.retried += 1
        # relaxed load and release: as in settle
        self.word.store(self.word.load(memory_order_relaxed) + 1, memory_order_release)
        put_back(<OperationBase>raw)
        if due:
            # relaxed: written under the lock
            undelayed = core.undelayed or core.phase.load(memory_order_relaxed) >= ENDING
            delayed = not undelayed and not core.no_timer
            if delayed:
                core.delays.push(entry, due)
                (<OperationBase>raw).delayed = entry
            else:
                core.delays.give_back()
        if not delayed and not undelayed:
            kept = core.append_retry(entry)
        release(&core.lock)
        self.op = NULL
        self.record = None
        Py_DECREF(<object>raw)  # the entry owns one
        if delayed:
            notify(&core.timer_wakes)
        elif kept:
            core.wake_for_retry(<PyObject*>tried_by, <PyObject*>rejected_by)
        elif undelayed and core.phase.load(memory_order_acquire) < ENDING:  # acquire: as end_redrive
            core.end_entry(entry, CANCELLED, None)
            core.wake_for_drain()
        else:
            core.end_retry(entry)

    @property
    def current(self):
        """The current operation: taken, and neither ended nor put back yet; or None."""
        return <object>self.op if self.op != NULL else None

    @property
    def retry_masks(self):
        """The masks of the current operation: of workers that had it, and that rejected it; or None, each."""
        if self.record is None:
            return None, None
        return self.record.tried_by, self.record.rejected_by


cdef object broke_down = BrokenPool("the worker broke down")
cdef str retire_name = "retire"
cdef str finish_name = "finish_run"
cdef tuple signals = (Retry, Reject)


cdef bint is_signal(PyObject* error) noexcept:
    return PyErr_GivenExceptionMatches(error, <PyObject*>signals)


def matches(error, classes):
    """Whether `except classes` would catch the error: by its type, whatever its attributes or metaclass say."""
    return PyErr_GivenExceptionMatches(<PyObject*>error, <PyObject*>classes)


cdef int raise_set() except -1:
    # Raises what a function declared as noexcept has set.
    return -1


cdef ErrorRecord owned_error_record(object error):
    cdef PyObject* error_record = new_error_record(<PyObject*>error, <PyObject*>OperationBase, True)
    if error_record == NULL:
        raise_set()
    return <ErrorRecord>steal(error_record)


cdef ErrorRecord no_memory_for_all = owned_error_record(MemoryError("there was no memory to keep the error of this operation"))
