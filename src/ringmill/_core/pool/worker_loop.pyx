# One worker's loop: takes an operation, has Python call `process`, ends it. And the whole life of a worker's thread.
#
# May use the rest of `pool`, `ring`, `waiting` and `platform`. Longer than most files: one class.
#
# Between two calls of `process` the current operation is the loop's. Whatever is raised on the worker's thread, at
# whatever line of the policy (supervisor.py), by a tracer, by another thread, or for lack of memory, the current
# operation ends with it: the functions that see to that are compiled, need no memory, and call no user code but done().
# The items of a map are run here, without the policy, until one fails: see run_items.

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint64_t
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from ringmill._core.platform.primitives cimport FREE_THREADED, now_ns, steal
from ringmill._core.pool.context cimport InContext, call_in_context
from ringmill._core.pool.item_record cimport ItemRecord, is_item_record, new_item_record
from ringmill._core.pool.item_source cimport FAILED_BIT, ItemSource, claim_own
from ringmill._core.pool.operation cimport (
    CANCELLED,
    FAILED,
    QUEUED,
    SUCCEEDED,
    ErrorRecord,
    OperationBase,
    PyTypeObject,
    accept,
    begin,
    end,
    log_error,
    log_exception,
    new_error_record,
    overrides_done,
    put_back,
    renew,
)
from ringmill._core.pool.retry_queue cimport RetryEntry, new_entry
from ringmill._core.pool.run cimport ENDING, PoolRun, may_add_worker
from ringmill._core.pool.start_gate cimport StartGate
from ringmill._core.pool.work_source cimport AS_IT_IS, PASS, RENEW, Renewal, WorkSource, emit
from ringmill._core.pool.worker_state cimport WorkerState, enter_thread, leave_thread
from ringmill._core.ring.ring cimport DONE, SHUT, Result, try_get
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.waiting.wait_queue cimport (
    NEVER,
    acquire,
    deadline_of,
    epoch_now,
    notify,
    notify_all,
    release,
    wait_for,
)

from ringmill.errors import BrokenPool, OperationReused, Reject, Retry, describe

cdef extern from "Python.h":
    PyTypeObject* Py_TYPE(PyObject* o) nogil
    PyObject* call_method "PyObject_CallMethodObjArgs"(PyObject* o, PyObject* name, ...) noexcept
    PyObject* call_one "PyObject_CallOneArg"(PyObject* function, PyObject* argument) noexcept
    PyObject* call_function "PyObject_Call"(PyObject* function, PyObject* arguments, PyObject* keywords) noexcept
    PyObject* pack_tuple "PyTuple_Pack"(Py_ssize_t length, ...) noexcept
    void PyErr_SetObject(object kind, object value)
    PyObject* get_attribute "PyObject_GetAttr"(PyObject* o, PyObject* name) noexcept
    bint PyErr_GivenExceptionMatches(PyObject* error, PyObject* classes) noexcept
    void PyErr_Clear()
    PyObject* PyErr_GetHandledException() noexcept
    void PyErr_SetHandledException(PyObject* error) noexcept
    PyObject* PyExc_Exception
    PyObject* Py_True
    PyObject* Py_False

cdef enum:
    TURN = 32                   # operations that a worker takes from one source before it looks at the next
    # what take() found
    NOTHING = 0
    FOUND = 1
    LEAVE = 2
    ITEM = 3                    # an item of an ItemSource: `has_item`

    LOOK_EVERY = 255            # the most items between two looks at the clock
    YIELD_NS = 1_000_000
    MAX_FAULTS = 16             # in a row, in the policy's own code, before a worker is given up

cdef int64_t FAR_AWAY = (<int64_t>1 << 62)

cdef str live_name = "_live"
cdef str judge_name = "_judge"
cdef str init_name = "init"
cdef str cleanup_name = "cleanup"
cdef str check_result_name = "_check_result"
cdef object item_type = ItemRecord

cdef extern from *:
    """
    /* The exception that a call has raised, whole; the caller owns it, and none is set then. Never NULL: see primitives.pxd. */
    static inline PyObject* ringmill_take_raised(void) {
        ringmill_have_raised();
    #if PY_VERSION_HEX >= 0x030C0000
        return PyErr_GetRaisedException();
    #else
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        PyErr_NormalizeException(&type, &value, &trace);
        if (value != NULL && trace != NULL) PyException_SetTraceback(value, trace);
        Py_XDECREF(type);
        Py_XDECREF(trace);
        return value;
    #endif
    }
    """
    PyObject* take_raised "ringmill_take_raised"() noexcept

cdef extern from *:
    """
    static inline PyObject* ringmill_exchange_for_none(PyObject** field) {
        PyObject* old = *field;
        Py_INCREF(Py_None);
        *field = Py_None;
        return old;
    }
    #define RINGMILL_TAKE_WORKER(state) ringmill_exchange_for_none(&(state)->worker)
    """
    PyObject* take_worker "RINGMILL_TAKE_WORKER"(WorkerState state) noexcept

cdef extern from *:
    """
    /* PyObject_CallOneArg for many calls of one function: what it looks up for each call is looked up once. */
    static inline PyObject* ringmill_call_vector(vectorcallfunc vector_function, PyObject* function, PyObject* argument) {
        PyObject* arguments[2] = {NULL, argument};
        if (vector_function == NULL) return PyObject_CallOneArg(function, argument);
        return vector_function(function, arguments + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    """
    ctypedef PyObject* (*vectorcallfunc)(PyObject*, PyObject**, size_t, PyObject*) noexcept
    vectorcallfunc vector_function_of "PyVectorcall_Function"(PyObject* function) noexcept
    PyObject* call_vector "ringmill_call_vector"(vectorcallfunc vector_function, PyObject* function, PyObject* item) noexcept


cdef int take_attempt(void* worker_loop) noexcept:
    return (<WorkerLoop>worker_loop).take(True)

cdef int pause_attempt(void* worker_loop) noexcept:
    cdef PoolRun run = (<WorkerLoop>worker_loop).pool_run
    if (<WorkerLoop>worker_loop).state.dismissed.load(memory_order_seq_cst) and run.leaves((<WorkerLoop>worker_loop).state):
        return True  # seq_cst: a waiter's last check
    return run.should_end()

cdef int take_more(void* worker_loop) noexcept:
    return (<WorkerLoop>worker_loop).more_work()


cdef class WorkerLoop:
    """The loop of one worker, on its own thread. The policy drives it: see `run`, and `__next__`."""

    def __cinit__(self, PoolRun pool_run not None, worker, Py_ssize_t index, StartGate gate not None):
        self.pool_run = pool_run
        self.state = WorkerState(pool_run, worker, index)
        self.gate = gate
        self.spare_record = owned_error_record(None)
        self.set_name(str(index))

    @property
    def name(self):
        """The name of its thread, and of the worker in log lines."""
        return self.state.name

    @property
    def is_retired(self):
        """Whether the worker was lost, or has left; a snapshot."""
        return self.is_gone(False)

    cdef bint is_gone(self, bint for_good) noexcept:
        # Whether it was lost or has left; `for_good`: and the run does not keep it.
        cdef WorkerState state = self.state  # so that no reference is counted under the lock
        cdef bint gone
        acquire(&self.pool_run.lock)
        gone = state.retired
        if for_good:
            # relaxed: written under the lock
            gone = gone and (
                not state.joined or state.dismissed.load(memory_order_relaxed) and not self.keeps_worker
            )
        release(&self.pool_run.lock)
        return gone

    def set_equals(self, bytes equals):
        """Which of the workers before it, by number, it is equal to; said before it takes its first operation."""
        self.state.equals = equals

    @property
    def worker(self):
        """The user's Worker; None once it has left."""
        acquire(&self.pool_run.lock)
        worker = self.state.worker
        release(&self.pool_run.lock)
        return worker

    @property
    def index(self):
        """Its number in the run."""
        return self.state.index

    @property
    def is_running(self):
        """Whether it runs an operation now; a snapshot."""
        return bool(self.state.word.load(memory_order_acquire) & 1)  # acquire: as Accounting.count

    @property
    def is_alive(self):
        """Whether it takes operations now; a snapshot."""
        return bool(self.state.alive.load(memory_order_relaxed))  # relaxed: a snapshot

    def set_alive(self, bint alive):
        """Whether it takes operations. Workers that wait for another worker to take a retry look again."""
        self.pool_run.set_alive(self.state, alive)
        if not alive:
            notify_all(&self.pool_run.idle)

    def pause(self, seconds):
        """Sleeps; returns whether the run ended meanwhile, or the worker is to leave."""
        return bool(wait_for(
            &self.pool_run.leaving, pause_attempt, pause_attempt, <void*>self, NULL, 0, deadline_of(seconds)
        ))

    def count_restart(self):
        """Counts a restart of the worker."""
        acquire(&self.pool_run.lock)
        self.state.restarts += 1
        release(&self.pool_run.lock)

    def retire(self):
        """The worker is lost. Returns whether those left can do what is pending: not when all wait for it themselves."""
        return bool(self.pool_run.retire(self.state))

    cdef bint more_work(self) noexcept:
        return self.pool_run.any_work()

    cdef int claim_from(self, WorkSource source) noexcept:
        cdef Renewal renewal = AS_IT_IS
        cdef PyObject* op = NULL
        cdef Result result
        if source.carries_items:
            self.item = NULL
            if (<ItemSource>source).claim_item(self.state.index, &self.position, &self.item) != DONE:
                return NOTHING
            if self.items is not source:
                self.items = <ItemSource>source
            self.has_item = True
            return ITEM
        result = source.claim(&op, &self.position, self.pool_run.number, &renewal)
        if result == DONE and renewal == PASS:
            notify(&source.pending.not_full)
            emit(source, op, self.position)
            return NOTHING  # the caller goes on to the next source, which may be this one
        if result == DONE:
            self.state.op = op
            if renewal == RENEW:
                renew(<OperationBase>self.state.op, QUEUED, self.pool_run.number)
            if source.external and self.pool_run.carries:
                (<OperationBase>op).set_context(source.context)
            if source.external or source is self.pool_run.inbox_source:
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
            # Found by its turn, without a look at the list: another worker may have made it QUIET meanwhile.
            self.pool_run.make_ready(<PyObject*>source)
        except BaseException:
            log_exception("a source ended with a failure in %s", self.state.name)
        return 0

    cdef inline int take_again(self) noexcept:
        # take(), where it is the same source's turn still, and nothing stands aside.
        cdef PyObject* source = <PyObject*>self.source  # borrowed, like the next: no reference is counted
        cdef PyObject* pending
        if (
            self.turn <= 0
            or self.state.dismissed.load(memory_order_relaxed)  # relaxed: take() looks again
            or source != <PyObject*>self.current_source
            or (<WorkSource>source).external
            or (<WorkSource>source).carries_items
            or self.pool_run.routing.length.load(memory_order_seq_cst)  # seq_cst: as take
        ):
            return NOTHING
        pending = <PyObject*>(<WorkSource>source).pending
        if try_get((<RingBuffer>pending).ring, &self.state.op, &self.position) != DONE:
            return NOTHING
        self.turn -= 1
        notify(&(<RingBuffer>pending).not_full)
        return FOUND

    cdef int take(self, bint sleepy) noexcept:
        # Finds the next operation for this worker, without waiting. `sleepy`: it will sleep if there is none.
        cdef PyObject* found
        cdef int result
        cdef PoolRun run = self.pool_run
        if self.state.dismissed.load(memory_order_relaxed) and run.leaves(self.state):  # relaxed: its writer wakes all
            self.release_sources()
            return LEAVE
        if run.first_come:
            return self.take_oldest(sleepy)
        if run.routing.length.load(memory_order_seq_cst):  # seq_cst: a sleeper's last look; pairs with RetryRouting's store
            if not self.took_retry and self.take_retry() == FOUND:
                self.took_retry = True
                return FOUND
            self.took_retry = False
        if self.turn > 0 and self.source is not None:
            self.turn -= 1
            result = self.claim_from(self.source)
            if result != NOTHING:
                if self.current_source is not self.source:
                    self.current_source = self.source
                return result
        while True:
            found = run.next_source(True, sleepy)
            if found == NULL:
                break
            if <PyObject*>self.source != found:
                self.source = <WorkSource>found
            Py_DECREF(<object>found)  # next_source's
            self.turn = TURN - 1
            result = self.claim_from(self.source)
            if result != NOTHING:
                if self.current_source is not self.source:
                    self.current_source = self.source
                return result
        # seq_cst: as above. It may have been skipped, for fairness.
        if run.routing.length.load(memory_order_seq_cst) and self.take_retry() == FOUND:
            return FOUND
        self.release_items()
        self.source = self.current_source = None  # it holds nothing while it sleeps
        self.turn = 0
        self.took_retry = False  # a worker that is woken for a retry takes that first: no other one is told of it
        return LEAVE if run.should_end() else NOTHING

    cdef int take_oldest(self, bint sleepy) noexcept:
        # take(), in a run that is first_come: its sources are linked in the order of their coming.
        cdef PyObject* found
        cdef PoolRun run = self.pool_run
        while True:
            found = run.next_source(False, sleepy)
            # seq_cst: as take
            if run.routing.length.load(memory_order_seq_cst) and (found == NULL or run.retry_is_first(found)):
                if self.take_retry() == FOUND:
                    Py_XDECREF(found)  # next_source's
                    return FOUND
            if found == NULL:
                break
            if <PyObject*>self.source != found:
                self.source = <WorkSource>found
            Py_DECREF(<object>found)  # next_source's
            if self.claim_from(self.source) == ITEM:
                if self.current_source is not self.source:
                    self.current_source = self.source
                return ITEM
        self.release_items()
        self.source = self.current_source = None  # it holds nothing while it sleeps
        return LEAVE if run.should_end() else NOTHING

    cdef int take_retry(self) noexcept:
        cdef PyObject* entry
        while True:
            entry = self.pool_run.take_retry_for(<PyObject*>self.state)
            if not entry:
                return NOTHING
            # acquire: pairs with drop
            if not (<WorkSource><PyObject*>(<RetryEntry>entry).source).abandoned.load(memory_order_acquire):
                break
            self.pool_run.cancel_dropped(entry)
        self.record = <RetryEntry>steal(entry)
        self.state.op = <PyObject*>self.record.operation
        Py_INCREF(<object>self.state.op)  # the worker's
        self.position = self.record.position
        self.current_source = self.record.source
        return FOUND

    # The loop. The policy runs it, on the worker's thread:
    #
    #     for op in loop:         __iter__, then __next__: takes one, waiting for it, and makes it RUNNING
    #         process(op)         a raise leaves the loop, and the policy ends the current operation or puts it back
    #         del op              no reference is held while the worker waits
    #                             __next__: ends the current operation as succeeded, and takes the next one
    #
    # Python calls `process`, since a call from Python into Python costs less than one from C. Between the calls the
    # current operation is the WorkerLoop's.

    def __iter__(self):
        """Takes operations; the iteration ends when the pool does, or when the worker is broken."""
        return self

    def __next__(self):
        cdef PyObject* raw = self.state.op
        cdef int found
        if raw != NULL and not self.end_succeeded(raw):
            raise StopIteration
        while True:
            found = self.take_again()
            if found == NOTHING:
                found = self.take(False)
            if found == NOTHING and self.pool_run.epoch == epoch_now:
                found = wait_for(
                    &self.pool_run.idle, take_attempt, take_more, <void*>self, <void*>self.state,
                    self.since_wait(), NEVER,
                )
            if found == LEAVE or self.pool_run.epoch != epoch_now:  # in the child of a fork the worker is the parent's
                raise StopIteration
            if found == ITEM:
                if not self.run_items():
                    raise StopIteration
                continue
            raw = self.state.op
            if begin(<OperationBase>raw):
                # relaxed load: its only writer; release: pairs with count
                self.state.word.store(self.state.word.load(memory_order_relaxed) + 1, memory_order_release)
                if may_add_worker(self.pool_run):
                    self.add_if_wanted()
                if not is_item_record(raw):
                    return <object>raw
                if not self.run_record(raw):
                    raise StopIteration
                continue
            self.state.op = NULL
            self.record = None
            self.pool_run.emit_cancelled(raw, self.current_source, self.position)

    # -----------------------------------------------------------------------------------------------------------
    # items
    #
    # Items are run here rather than by the policy: there is no object for the policy to hold, and a result to store. What
    # an item raises makes a record of it, an operation, and the policy judges that (item_record.pyx). Between the claim of
    # an item and its outcome it is the loop's, as the current operation is: end_failed ends it.

    cdef bint run_items(self) except -1:
        # Runs the claimed item, and others of its source until the worker's turn is over. False: as end_succeeded.
        cdef ItemSource source = self.items
        cdef PyObject* function
        cdef vectorcallfunc vector_function
        cdef PyObject* result
        cdef PyObject* item
        cdef bint is_first = True
        if self.function_of is not source:
            self.find_function()
        function = <PyObject*>self.function
        vector_function = vector_function_of(function)
        while True:
            # relaxed load: its only writer; release: pairs with count
            self.state.word.store(self.state.word.load(memory_order_relaxed) + 1, memory_order_release)
            if may_add_worker(self.pool_run):
                # seq_cst: before the look. While the source has more, a thread that publishes work counts that.
                self.state.word.store(self.state.word.load(memory_order_relaxed), memory_order_seq_cst)
                if is_first or not source.has_work():
                    self.add_if_wanted()
                is_first = False
            item = self.item
            if source.computes:
                self.item = item = source.item_at(self.position)
            if item == NULL or function == <PyObject*>None:
                result = NULL  # with the exception set
                if item != NULL:
                    raise_no_function(self)
            elif source.context is not None or source.unpacks:
                result = self.call_for_item(item)
            else:
                result = call_vector(vector_function, function, item)
            if self.pool_run.epoch != epoch_now:
                PyErr_Clear()
                return False  # it forked, and this is the child: the item is the parent's
            if result != NULL and source.function is None and <PyObject*>Py_TYPE(result) != <PyObject*>self.last_result_type:
                result = self.checked_result(result)
            if result == NULL:
                if not self.item_failed(item):
                    return False
            else:
                self.has_item = False
                self.item = NULL
                if source.computes:
                    Py_DECREF(<object>item)  # was the loop's
                    item = NULL
                # relaxed load and release: as above. Counted, then the outcome.
                self.state.word.store(self.state.word.load(memory_order_relaxed) + 1, memory_order_release)
                source.publish(self.position, item, <uint64_t>result)
            self.until_look -= 1
            if self.until_look <= 0:
                self.let_others_run()
            # relaxed, both: next_source and take() look again
            if source.abandoned.load(memory_order_relaxed) or self.state.dismissed.load(memory_order_relaxed):
                self.turn = 0
                return True
            if not self.pool_run.first_come:
                if self.turn <= 0 or self.pool_run.routing.length.load(memory_order_relaxed):  # relaxed: take() looks again
                    return True
                self.turn -= 1
            if not claim_own(source, self.state.index, &self.position, &self.item):
                if source.claim_item(self.state.index, &self.position, &self.item) != DONE:
                    if source.is_closed() and not source.has_work():
                        self.release_items()  # it may be long before this worker sleeps
                    return True
            self.has_item = True

    cdef void let_others_run(self) noexcept:
        # A function in C never comes by where the interpreter lets other threads run; so this detaches, each millisecond.
        # The clock is looked at more often the longer the items take.
        cdef int64_t now = now_ns()
        cdef int64_t elapsed = now - self.looked_at
        self.looked_at = now
        if elapsed > YIELD_NS // 2:
            self.look_every = max(1, self.look_every // 4)
        elif elapsed < YIELD_NS // 8:
            self.look_every = min(LOOK_EVERY, 2 * self.look_every + 1)
        self.until_look = self.look_every
        if now - self.yielded_at > YIELD_NS:
            self.yielded_at = now
            with nogil:  # not to wait: another thread may want the GIL, or to stop this one
                pass

    cdef int find_function(self) except -1:
        # Finds what runs the items of `items`: once for each source that the worker comes to.
        cdef ItemSource source = self.items
        self.function = None
        self.function_of = source
        try:
            function = self.process
            if source.function is not None:
                function = self.state.worker.prepare_function(source.function)  # an executor's worker
            if source.context is not None and not isinstance(function, InContext):
                function = InContext(function)
            self.function = function
        except BaseException as error:  # the claimed item fails with it
            self.refusal = error
            self.function_of = None
        return 0

    cdef PyObject* call_for_item(self, PyObject* item) noexcept:
        # The uncommon ways to call: in a context, or with a tuple of arguments. NULL: it has raised.
        cdef PyObject* arguments = item
        cdef PyObject* result = NULL
        if not self.items.unpacks:
            arguments = pack_tuple(1, item)
            if arguments == NULL:
                return NULL
        if self.items.context is not None:
            result = call_in_context(<PyObject*>self.function, <PyObject*>self.items.context, arguments)
        else:
            result = call_function(<PyObject*>self.function, arguments, NULL)
        if arguments != item:
            Py_DECREF(<object>arguments)
        return result

    cdef PyObject* checked_result(self, PyObject* result) noexcept:
        # The result, or NULL: it is a coroutine or a generator, which has not run; as for operations. Takes the reference.
        cdef PyObject* checked = call_method(
            <PyObject*>self.pool_run.policy, <PyObject*>check_result_name, <PyObject*>self, result, <PyObject*>NULL
        )
        if checked == NULL:
            Py_DECREF(<object>result)
            return NULL
        Py_DECREF(<object>checked)
        self.last_result_type = <object>Py_TYPE(result)
        return result

    cdef bint item_failed(self, PyObject* item) except -1:
        # The call of an item has raised. False: as end_succeeded.
        cdef PyObject* raw
        cdef ItemSource source = self.items
        error = steal(take_raised())
        if source.function is not None or item == NULL:  # an executor's call, whatever it raises, has ended
            self.end_item_failed(<PyObject*>error)
            return True
        raw = new_item_record(item)
        if raw == NULL:
            fault = steal(take_raised())
            # As in judge_error: what it raised says more, unless it was a signal to the pool.
            self.end_item_failed(<PyObject*>(fault if is_signal(<PyObject*>error) else error))
            if PyErr_GivenExceptionMatches(<PyObject*>error, PyExc_Exception):
                return True
            self.crash = error
            return False
        if source.context is not None:
            (<OperationBase>raw).set_context(source.context)
        accept(<OperationBase>raw, self.pool_run.number)
        begin(<OperationBase>raw)
        self.has_item = False
        self.state.op = raw  # the worker's
        Py_DECREF(<object>item)  # was the loop's; the record has one
        self.item = NULL
        self.crash = self.judge_handled(error)
        return self.crash is None

    cdef object judge_handled(self, object error):
        # judge_error, with the error as the one that is being handled, as in an `except` block.
        cdef PyObject* handled = PyErr_GetHandledException()
        PyErr_SetHandledException(<PyObject*>error)
        try:
            return self.judge_error(error, True)
        finally:
            PyErr_SetHandledException(handled)
            Py_XDECREF(handled)

    cdef void end_item_failed(self, PyObject* error) noexcept:
        # Ends the claimed item as failed, without a record. Needs no memory.
        cdef PyObject* item = self.item
        cdef PyObject* error_record = self.take_error_record(error, <PyObject*>item_type, True)
        self.has_item = False
        self.item = NULL
        acquire(&self.pool_run.lock)
        self.state.failed += 1
        # relaxed load and release: as in end_succeeded
        self.state.word.store((self.state.word.load(memory_order_relaxed) | 1) + 1, memory_order_release)
        release(&self.pool_run.lock)
        if self.items.computes:
            Py_XDECREF(item)  # was the loop's
            item = NULL
        self.items.publish(self.position, item, <uint64_t>error_record | FAILED_BIT)

    cdef bint run_record(self, PyObject* raw) except -1:
        # Runs an item that has a record: it is tried again, or one of `call`. False: as end_succeeded.
        cdef PyObject* result
        cdef PyObject* arguments
        if (<OperationBase>raw).context is None:
            result = call_one(<PyObject*>self.process, <PyObject*>(<ItemRecord>raw).item)
        else:
            arguments = pack_tuple(1, <PyObject*>(<ItemRecord>raw).item)
            result = NULL
            if arguments != NULL:
                result = call_in_context(
                    <PyObject*>self.process, <PyObject*>(<OperationBase>raw).context, arguments
                )
                Py_DECREF(<object>arguments)
        if self.pool_run.epoch != epoch_now:
            PyErr_Clear()
            return False  # as in run_items
        if result != NULL and <PyObject*>Py_TYPE(result) != <PyObject*>self.last_result_type:
            result = self.checked_result(result)
        if result == NULL:
            self.crash = self.judge_handled(steal(take_raised()))
            return self.crash is None
        (<ItemRecord>raw).value = steal(result)
        return self.end_succeeded(raw)

    cdef void add_if_wanted(self) noexcept:
        # It has begun some work, and more may wait: see PoolRun. What interrupts that is logged: the work must go on.
        try:
            self.pool_run.add_if_wanted()
        except BaseException:
            log_exception("%s could not add a worker", self.pool_run.policy.name)

    cdef void release_items(self) noexcept:
        # Between two items: holds nothing of their sources.
        if self.items is not None:
            self.items = self.function_of = None
            self.function = self.last_result_type = None

    cdef uint64_t since_wait(self) noexcept:
        # How many operations it has ended since it last waited.
        cdef uint64_t last = self.waited_at
        self.waited_at = self.state.word.load(memory_order_relaxed) >> 1  # relaxed: its only writer
        return self.waited_at - last

    cdef bint end_succeeded(self, PyObject* raw) except -1:
        # `process` has returned. False: that was the last one, see `crash`.
        if self.pool_run.epoch != epoch_now:
            return False  # it forked, and this is the child: the operation is the parent's
        if (<OperationBase>raw).error_record is not None:
            self.crash = self.judge_error((<OperationBase>raw).get_error_record().error, False)
            return self.crash is None
        self.state.op = NULL
        # relaxed load and release: as above. Counted, then the outcome, then done(), then the stream.
        self.state.word.store(self.state.word.load(memory_order_relaxed) + 1, memory_order_release)
        if <PyObject*>Py_TYPE(raw) != <PyObject*>self.last_type:
            self.inspect_type(<PyObject*>Py_TYPE(raw))
        if self.record is not None:
            self.record = None
        end(<OperationBase>raw, SUCCEEDED, self.overridden)
        if self.overridden and self.pool_run.epoch != epoch_now:
            return False  # its done() forked, and this is the child
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
        self.last_type = <object>kind
        self.overridden = overrides_done(kind)

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
        if not self.pool_run.threads.begin(self.state):
            return
        enter_thread(self.state)
        while result == NULL and not self.state.retired and faults <= MAX_FAULTS and not inherited:
            before = self.state.word.load(memory_order_relaxed)  # relaxed: this thread is its only writer
            result = call_method(
                <PyObject*>self.pool_run.policy, <PyObject*>live_name, <PyObject*>self, <PyObject*>NULL
            )
            inherited = self.pool_run.epoch != epoch_now  # the child of a fork: the worker is the parent's
            if result == NULL:
                fault = take_raised()
                if not inherited:
                    self.end_failed(fault, False, True)
                    log_error(
                        40, "a fault in the supervision of worker %s", <PyObject*>self.log_arguments, fault
                    )
                # relaxed: as above
                faults = 1 if self.state.word.load(memory_order_relaxed) != before else faults + 1
                self.crash = steal(fault)  # no other thread holds it, so the policy can drop it
        if not inherited:
            self.end_life(result == NULL)
        Py_XDECREF(result)
        leave_thread()

    cdef void end_life(self, bint given_up) noexcept:
        # The policy has returned; or it was given up with a fault, which is `crash`.
        cdef int left = 100         # again, where memory is short for a moment
        cdef PyObject* result = NULL
        self.end_failed(<PyObject*>(self.crash if self.crash is not None else broke_down), False, True)
        if given_up:
            self.pool_run.set_alive(self.state, False)  # what it was to try next goes to the others, which retire() wakes
            self.clean_up()
            self.report_error(<PyObject*>self.crash)
            if self.pool_run.phase.load(memory_order_acquire) < ENDING:  # acquire: pairs with _close
                while left and result == NULL:
                    left -= 1
                    PyErr_Clear()
                    result = call_method(<PyObject*>self, <PyObject*>retire_name, <PyObject*>NULL)
                PyErr_Clear()
                Py_XDECREF(result)
        self.crash = None
        self.release_sources()
        if self.is_gone(True):
            self.release_worker()
        if self.pool_run.threads.end(self.state):
            self.end_thread()

    cdef void release_worker(self) noexcept:
        # The worker has left, and the run, which may go on for long, does not hold it.
        cdef PyObject* worker
        cdef WorkerState state = self.state  # so that no reference is counted under the lock
        self.process = None
        acquire(&self.pool_run.lock)
        worker = take_worker(state)
        release(&self.pool_run.lock)
        Py_DECREF(<object>worker)  # was the state's

    cdef void release_sources(self) noexcept:
        # Between two operations: holds nothing of the sources.
        self.source = self.last_type = None
        self.release_items()
        if self.state.op == NULL:
            self.current_source = None
        self.turn = 0

    cdef void end_thread(self) noexcept:
        # The last thread of the run ends that. Where there is no memory for it, a joiner does it.
        cdef int left = 100
        cdef PyObject* result = NULL
        while left and result == NULL:
            left -= 1
            PyErr_Clear()
            result = call_method(<PyObject*>self.pool_run, <PyObject*>finish_name, <PyObject*>NULL)
        PyErr_Clear()
        Py_XDECREF(result)

    cdef void report_error(self, PyObject* error) noexcept:
        if not self.has_reported:
            self.start_error = <object>error
            self.has_reported = True
            self.gate.report()

    def report(self, error):
        """Says whether the worker came up: with None, or with what `init` raised. Only the first report counts."""
        self.report_error(<PyObject*>error)

    cdef PyObject* call_worker(self, PyObject* method) noexcept:
        # What the call of the worker's method raised, owned by the caller; NULL: nothing.
        cdef PyObject* result = call_method(<PyObject*>self.state.worker, method, <PyObject*>NULL)
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
        self.state.name = name
        self.log_arguments = (name,)

    # -----------------------------------------------------------------------------------------------------------
    # for the policy, on the worker's thread, about the current operation: one of fail and put_back ends each call

    def judge(self, error):
        """`process` raised: ends the current operation, or has it tried again. Returns whether the worker is broken."""
        if self.state.op == NULL or self.pool_run.epoch != epoch_now:
            self.crash = error  # not out of `process`; or this is the child of a fork, and the operation is the parent's
        else:
            self.crash = self.judge_error(error, True)
        return self.crash is not None

    cdef object judge_error(self, object error, bint raised):
        # Whatever happens in the policy, the operation is ended or put back afterwards; that is no crash of the worker's,
        # unless it is an exception of the kind that is.
        cdef PyObject* fault
        cdef PyObject* verdict = call_method(
            <PyObject*>self.pool_run.policy, <PyObject*>judge_name, <PyObject*>self, self.state.op, <PyObject*>error,
            Py_True if raised else Py_False, <PyObject*>NULL,
        )
        if verdict != NULL:
            if self.state.op != NULL:
                self.end_failed(<PyObject*>error, False, True)
            return steal(verdict)
        fault = take_raised()
        if self.state.op != NULL:
            # What `process` raised says more, unless it was a signal to the pool.
            self.end_failed(fault if is_signal(<PyObject*>error) else <PyObject*>error, False, True)
        log_error(40, "a fault while worker %s dealt with an operation that did not succeed", <PyObject*>self.log_arguments, fault)
        if PyErr_GivenExceptionMatches(fault, PyExc_Exception):
            Py_DECREF(<object>fault)
            return None
        return steal(fault)

    cdef int check_current(self) except -1:
        if self.state.op == NULL:
            raise RuntimeError(f"worker {self.state.name} runs no operation")
        return 0

    def count_try(self):
        """Counts a failed try; returns how many there were."""
        cdef OperationBase op
        self.check_current()
        op = <OperationBase>self.state.op
        acquire(&self.pool_run.lock)
        self.state.tries += 1
        release(&self.pool_run.lock)
        return op.tried.fetch_add(1, memory_order_relaxed) + 1  # relaxed: a count

    def fail(self, error, bint seen, bint logged=False):
        """Ends the current operation as failed. Takes no memory that it needs.

        `seen`: the worker has looked at the error. `logged`: it goes on to log the error, or one that is chained to it.
        """
        self.check_current()
        self.end_failed(<PyObject*>error, seen, logged)

    cdef PyObject* take_error_record(self, PyObject* error, PyObject* kind, bint seen) noexcept:
        # A new record, owned by the caller. Where there is no memory, the spare one; where that is gone, the one for all.
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
                (<ErrorRecord>error_record).seen.store(seen, memory_order_relaxed)  # relaxed: see Note
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

    cdef void end_failed(self, PyObject* error, bint seen, bint logged) noexcept:
        # The last resort as well: needs no memory, and runs no user code but done(). `logged`: the worker reads the error
        # after this, or it is not this operation's alone, so it may not be raised itself, only copies of it.
        cdef PyObject* raw = self.state.op
        cdef PyObject* error_record
        cdef PyObject* handled
        if raw == NULL and self.has_item and self.pool_run.epoch == epoch_now:
            self.end_item_failed(error)
        if raw == NULL or self.pool_run.epoch != epoch_now:
            return  # in the child of a fork, made by the worker's own hook, the operation is the parent's
        seen = seen or is_item_record(raw)  # its error comes out in the place of its result
        error_record = <PyObject*>(<OperationBase>raw).error_record
        if error_record != <PyObject*>None and <PyObject*>(<ErrorRecord>error_record).error == error:  # a Task has recorded it
            if seen:
                (<ErrorRecord>error_record).seen.store(1, memory_order_relaxed)  # relaxed: see Note
            if logged and FREE_THREADED:
                (<ErrorRecord>error_record).raised.store(1, memory_order_relaxed)  # relaxed: as below
        else:
            error_record = self.take_error_record(error, <PyObject*>Py_TYPE(raw), seen)
            if logged and FREE_THREADED:
                (<ErrorRecord>error_record).raised.store(1, memory_order_relaxed)  # relaxed: published by the phase
            (<OperationBase>raw).set_error_record(<ErrorRecord>error_record)
            Py_DECREF(<object>error_record)  # the operation owns one
        self.state.op = NULL
        self.record = None
        acquire(&self.pool_run.lock)
        self.state.failed += 1
        # relaxed load and release: as in end_succeeded
        self.state.word.store(self.state.word.load(memory_order_relaxed) + 1, memory_order_release)
        release(&self.pool_run.lock)
        self.inspect_type(<PyObject*>Py_TYPE(raw))
        # What done() raises is not chained to the error, which others may be raising when that is logged.
        handled = PyErr_GetHandledException()
        PyErr_SetHandledException(NULL)
        end(<OperationBase>raw, FAILED, self.overridden)
        PyErr_SetHandledException(handled)
        Py_XDECREF(handled)
        emit(self.current_source, raw, self.position)

    def put_back(self, bytes tried_by, bytes rejected_by, delay):
        """Has the current operation tried again by a worker that is in neither mask, after `delay` seconds (0: at once).

        MemoryError: nothing has changed.
        """
        cdef PyObject* raw = self.state.op
        cdef PyObject* entry
        cdef PyObject* source = <PyObject*>self.current_source
        cdef PoolRun run = self.pool_run
        cdef int64_t due = deadline_of(delay) if delay else 0
        cdef bint kept = False, delayed = False, undelayed = False
        self.check_current()
        if run.epoch != epoch_now:
            return  # as in end_failed
        if self.record is None:
            entry = new_entry(raw, <PyObject*>self.current_source, self.position)
            if entry == NULL:
                raise_set()
            self.record = <RetryEntry>steal(entry)
        if due == NEVER:
            due = FAR_AWAY
        if due:
            run.routing.delays.reserve(&run.lock)
        # Nothing fails from here on.
        self.record.tried_by = tried_by  # only this thread knows the entry
        self.record.rejected_by = rejected_by
        if (<OperationBase>raw).error_record is not None:
            (<OperationBase>raw).set_error_record(None)  # a Task's, of this try
        entry = <PyObject*>self.record
        Py_INCREF(<object>entry)  # the queue's, if it gets there
        acquire(&run.lock)
        self.state.retried += 1
        # relaxed load and release: as in end_succeeded
        self.state.word.store(self.state.word.load(memory_order_relaxed) + 1, memory_order_release)
        put_back(<OperationBase>raw)
        if due:
            # relaxed: written under the lock
            undelayed = run.undelayed or run.phase.load(memory_order_relaxed) >= ENDING
            # One of a stream that was dropped meanwhile is cancelled, by the worker that takes it: see take_retry.
            delayed = not undelayed and not run.no_timer and not (<WorkSource>source).abandoned.load(memory_order_relaxed)
            if delayed:
                run.routing.delay(entry, due)
            else:
                run.routing.delays.give_back()
        if not delayed and not undelayed:
            kept = run.route_retry(entry)
        release(&run.lock)
        self.state.op = NULL
        self.record = None
        Py_DECREF(<object>raw)  # the entry owns one
        if delayed:
            notify(&run.timer_wakes)
        elif kept:
            run.wake_for_retry(<PyObject*>tried_by, <PyObject*>rejected_by)
        elif undelayed and run.phase.load(memory_order_acquire) < ENDING:  # acquire: pairs with the thread that ends the run
            run.end_entry(entry, CANCELLED, None)
            run.wake_for_drain()
        else:
            run.end_retry(entry)

    @property
    def current(self):
        """The current operation: taken, and neither ended nor put back yet; or None."""
        return <object>self.state.op if self.state.op != NULL else None

    @property
    def current_context(self):
        """The context that the current operation carries; or None."""
        return (<OperationBase>self.state.op).context if self.state.op != NULL else None

    @property
    def retry_masks(self):
        """The masks of the current operation: of workers that had it, and that rejected it; or None, each."""
        if self.record is None:
            return None, None
        return self.record.tried_by, self.record.rejected_by


cdef int raise_no_function(WorkerLoop loop) noexcept:
    # Sets what kept the worker from being able to run the items.
    PyErr_SetObject(type(loop.refusal), loop.refusal)
    return 0


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


def new_run(policy, workers, Py_ssize_t queue_size, bint context, bint first_come=False, Py_ssize_t max_workers=0):
    """A run of a pool, with a loop for each of its workers. `max_workers`: up to how many it adds by itself; 0: none."""
    cdef PoolRun run = PoolRun(policy, queue_size, context, first_come, max_workers)
    cdef WorkerLoop loop
    for index, worker in enumerate(workers):
        loop = WorkerLoop(run, worker, index, run.gate)
        run.threads.expect_first(loop.state)
        run.worker_loops.append(loop)
    run.join([loop.state for loop in run.worker_loops])
    return run
