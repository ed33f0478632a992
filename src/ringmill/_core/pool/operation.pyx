# The compiled base of Operation: what happened to it, how often it was tried, and who waits for it.
#
# The state is one word: a phase, flags, and, while it is pending, the number of the pool that has it:
#
#            accept             begin              end
#     NEW ----------> QUEUED ----------> RUNNING ----------> SUCCEEDED | FAILED
#      ^                |  ^                |
#      |                |  +---- retry ---+
#      |                +---- cancel, breakage ------------> CANCELLED | FAILED
#      +--------------------------- reset ---------------------------+
#
# Who may move it: accept, any thread that hands it to a pool; begin, the worker that claimed it from its ring;
# retry and end, the worker that runs it; cancel, anybody, but only out of NEW and QUEUED, so that begin and cancel
# race by compare-exchange and one wins. Whoever moves it out of QUEUED for good ends it, alone.
#
# PLACED ties a life to its place in a queue. A cancelled operation leaves its place behind, for whoever claims it to
# find; until then it cannot be reset, or the place would be taken for one of its next life.
#
# RELEASED says that done() was called; it comes after the phase, except where a user calls done() early. A waiter
# sets WAITED and reads RELEASED in one read-modify-write under its bucket's lock; the releaser sets RELEASED and reads
# WAITED in one read-modify-write, then takes the chain of waiters under that lock. Both on one word: one of them sees
# the other. The buckets are a fixed table of locks, chosen by address, so that an operation carries none.
#
# Verbs that a subclass overrides (increment_try, wait, done) are notifications: nothing here depends on them. What an
# override raises is logged; but a KeyboardInterrupt of the main thread is the program's, so it is raised there, once what
# was begun is complete: it is kept meanwhile (hook_raised), and the outermost call that the main thread made raises it at
# its end (raise_kept, take_interrupt). Only the main thread touches what is kept, so that needs no lock.

import copyreg
import enum
import itertools
import logging
import os
import sys
import threading
from concurrent.futures import CancelledError, InvalidStateError
from types import MemberDescriptorType
from weakref import WeakValueDictionary

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint64_t, uintptr_t

from ringmill._core.platform.gil_atomics cimport exchange32, fetch_or64, swap64
from ringmill._core.waiting.event_loop cimport LoopSleeper, checkpoint, bind_to_task
from ringmill._core.platform.primitives cimport FREE_THREADED, now_ns, steal
from ringmill._core.platform.spinning cimport FOUND_HINT, init_spin, spin_until
from ringmill._core.waiting.wait_queue cimport (
    NEVER,
    PyThread_acquire_lock,
    PyThread_get_thread_ident,
    SpinLock,
    acquire,
    deadline_of,
    epoch_now,
    give_node,
    park,
    refuse_greenlets,
    release,
    take_node,
    visitproc,
    wake_node,
)

from ringmill.errors import OperationReused, describe

cdef extern from *:
    """
    #define RINGMILL_EXCHANGE_ERROR_RECORD(op, value) ringmill_exchange((PyObject**)&(op)->error_record, (value))
    #define RINGMILL_EXCHANGE_CONTEXT(op, value) ringmill_exchange((PyObject**)&(op)->context, (value))
    """
    PyObject* exchange_error_record "RINGMILL_EXCHANGE_ERROR_RECORD"(OperationBase op, PyObject* error_record) noexcept
    PyObject* exchange_context "RINGMILL_EXCHANGE_CONTEXT"(OperationBase op, PyObject* context) noexcept

cdef extern from "Python.h":
    PyObject* PyException_GetTraceback(PyObject* error) noexcept
    int PyException_SetTraceback(object error, object traceback) except -1
    bint PyExceptionInstance_Check(object error)
    PyTypeObject* Py_TYPE(PyObject* o) nogil
    PyObject* PyType_GetQualName(PyTypeObject* type) noexcept
    PyObject* call_log "PyObject_Call"(PyObject* function, PyObject* arguments, PyObject* keywords) noexcept
    PyObject* PySequence_Concat(PyObject* first, PyObject* second) noexcept
    PyObject* pack_log "Py_BuildValue"(const char* format, ...) noexcept
    PyObject* PyErr_Occurred()
    void PyErr_Clear()
    PyObject* get_raw "PyObject_GetAttr"(PyObject* o, PyObject* name) noexcept
    bint matches_error "PyErr_GivenExceptionMatches"(PyObject* error, PyObject* kinds) noexcept
    ctypedef struct PyListObject:
        PyObject** ob_item

# C globals, which outlive the module's dictionary: a Note may go while the interpreter ends.
cdef object logger = logging.getLogger("ringmill")
cdef object is_finalizing = sys.is_finalizing
cdef object log = logger.log

cdef object Member = MemberDescriptorType
cdef object args_of = BaseException.__dict__["args"]
cdef object get_attribute = object.__getattribute__
cdef object set_attribute = object.__setattr__

cdef str done_name = "done"
cdef object done_of_base = None  # OperationBase.done, once that is there

cdef extern from "Python.h":
    bint PyErr_GivenExceptionMatches(PyObject* error, PyObject* classes) noexcept
    PyObject* PyExc_KeyboardInterrupt
    PyObject* get_attribute_of "PyObject_GetAttr"(PyObject* o, PyObject* name) noexcept
    void PyErr_SetObject(object kind, object value)
    void PyErr_WriteUnraisable(object subject)

cdef enum:
    REPEATS = 200               # of a done() of ringmill's own that finds no memory
    BUCKETS = 256               # a power of two
    HEAPTYPE = 1 << 9           # Py_TPFLAGS_HEAPTYPE

cdef SpinLock buckets[BUCKETS]
cdef object owners = WeakValueDictionary()
cdef object numbers = itertools.count(1)
cdef unsigned long main_thread = threading.main_thread().ident
cdef object kept_interrupt = None  # the main thread's: see the head
cdef list repeated = []  # done() methods that are called again: see repeatable

cdef inline SpinLock* _bucket(OperationBase op) noexcept nogil:
    return &buckets[(<uintptr_t><void*>op >> 6) & (BUCKETS - 1)]


def _after_fork_in_child():
    global main_thread, kept_interrupt
    cdef int k
    for k in range(BUCKETS):
        buckets[k].held.store(0, memory_order_relaxed)  # relaxed: the child has one thread yet
    if main_thread != PyThread_get_thread_ident():
        main_thread = PyThread_get_thread_ident()
        kept_interrupt = None  # of the parent's main thread


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Outcome(enum.Enum):
    """How an operation stands."""

    PENDING = "pending"         #: not finished, or not begun
    SUCCEEDED = "succeeded"     #: `process` returned
    FAILED = "failed"           #: it failed for good; `error` says why
    CANCELLED = "cancelled"     #: it never ran to an end


Outcome.__module__ = "ringmill"
cdef tuple OUTCOMES = (
    Outcome.PENDING, Outcome.PENDING, Outcome.PENDING, Outcome.SUCCEEDED, Outcome.FAILED, Outcome.CANCELLED,
    Outcome.PENDING,
)


cdef class ErrorRecord:
    def __del__(self):
        if not self.seen.load(memory_order_relaxed) and self.error is not None and not is_finalizing():  # relaxed: see Note
            logger.error(
                "the error of a failed %s was never read", name_of(self.kind),
                exc_info=(type(self.error), self.error, self.traceback),
            )


cdef tuple no_arguments = ()
cdef PyTypeObject* error_record_type = <PyTypeObject*>ErrorRecord


cdef PyObject* new_error_record(PyObject* error, PyObject* kind, bint seen) noexcept:
    cdef PyObject* error_record = error_record_type.tp_new(error_record_type, <PyObject*>no_arguments, NULL)
    cdef PyObject* trace
    if error_record != NULL:
        (<ErrorRecord>error_record).error = <object>error
        (<ErrorRecord>error_record).kind = <object>kind
        (<ErrorRecord>error_record).seen.store(seen, memory_order_relaxed)  # relaxed: see Note
        # not by attribute, which the error's class may have replaced
        trace = PyException_GetTraceback(error) if error != <PyObject*>None else NULL
        if trace != NULL:
            (<ErrorRecord>error_record).traceback = steal(trace)
    return error_record


cdef class OwnerPool:
    def __cinit__(self):
        self.number = next(numbers)
        self.epoch = epoch_now
        init_spin(&self.spin)
        owners[self.number] = self

    cdef int cancel(self, OperationBase op) except -1:
        raise NotImplementedError

    cdef object enter_wait(self, OperationBase operation, object source, bint for_turn, bint in_task, bint timed):
        raise NotImplementedError

    cdef void leave_wait(self, object wait) noexcept:
        pass

    cdef object stopped_error(self):
        raise NotImplementedError


cdef class OperationBase:
    # Born zeroed: NEW, with no tries, no home and no waiters. No __init__: a subclass need not call one.

    # -----------------------------------------------------------------------------------------------------------
    # for the pool

    cdef bint try_cancel(self, uint32_t owner) noexcept nogil:
        # QUEUED in that pool, or NEW for home 0, -> CANCELLED. The caller calls tell(). False: look again.
        cdef uint64_t seen = self.state.load(memory_order_relaxed)  # relaxed: the exchange decides
        cdef uint32_t pending = QUEUED if owner else NEW
        while seen & PHASE == pending and seen >> OWNER_SHIFT == owner:
            # acq_rel: as begin, with which it races
            if swap64(
                self.state, seen, (seen & (WAITED | RELEASED | PLACED)) | CANCELLED, memory_order_acq_rel, memory_order_relaxed
            ):
                return True
        return False

    cdef int end_overridden(self, uint32_t phase) except -1:
        # end() for an operation whose done() is overridden.
        cdef uint64_t seen = self.state.load(memory_order_relaxed)  # relaxed: the exchange decides
        while not swap64(
            self.state, seen, (seen & (WAITED | RELEASED)) | phase, memory_order_acq_rel, memory_order_relaxed
        ):
            pass
        return self.announce_done(phase, True)

    cdef int announce_done(self, uint32_t phase, bint overridden) except -1:
        # The outcome is set: calls done(), if that is overridden, and releases the waiters whatever it does.
        cdef int left = REPEATS
        if self.context is not None:
            self.set_context(None)
        while overridden and self.call_done(left):
            left -= 1
        self.release(phase)
        return 0

    cdef bint call_done(self, int left) noexcept:
        # Whether it is to be called again, see repeatable: `left` times at most, where memory is lacking.
        cdef bint again = False
        try:
            call_verb(self, "done")
        except BaseException as error:
            again = is_repeated(<PyObject*>Py_TYPE(<PyObject*>self))
            if not again or not left or not matches_error(<PyObject*>error, <PyObject*>memory_errors):
                again = hook_raised(error, "done() raised in %s", name_of(type(self))) and again
        return again

    cdef int release(self, uint32_t phase) except -1:
        # Sets RELEASED and wakes the waiters; unless the operation has left that phase, and begun another life.
        cdef uint64_t seen = self.state.load(memory_order_relaxed)  # relaxed: the exchange decides
        while seen & PHASE == phase and not seen & RELEASED:
            # acq_rel: publishes what came before done(); reads WAITED (see the head)
            if swap64(
                self.state, seen, seen | RELEASED, memory_order_acq_rel, memory_order_relaxed
            ):
                if seen & WAITED:
                    wake_waiters(self)
                return 1
        return 0

    cdef ErrorRecord get_error_record(self):
        cdef SpinLock* lock = _bucket(self)
        cdef PyObject* error_record
        acquire(lock)
        error_record = <PyObject*>self.error_record
        Py_INCREF(<object>error_record)  # ours; the field's keeps it alive until here
        release(lock)
        return <ErrorRecord>steal(error_record)

    cdef void set_error_record(self, ErrorRecord error_record) noexcept:
        # Writes a field that others may be reading. No reference is dropped under the lock (rule 7).
        cdef SpinLock* lock = _bucket(self)
        cdef PyObject* old
        Py_INCREF(error_record)  # the field's
        acquire(lock)
        old = exchange_error_record(self, <PyObject*>error_record)
        release(lock)
        Py_DECREF(<object>old)  # was the field's

    cdef void set_context(self, object context) noexcept:
        # As set_note. The submitter sets it, before a worker can take the operation; the thread that ends it drops it.
        cdef SpinLock* lock = _bucket(self)
        cdef PyObject* old
        Py_INCREF(context)  # the field's
        acquire(lock)
        old = exchange_context(self, <PyObject*>context)
        release(lock)
        Py_DECREF(<object>old)  # was the field's

    # -----------------------------------------------------------------------------------------------------------
    # for everybody

    @property
    def outcome(self):
        """How the operation stands: an `Outcome`. A snapshot until it is finished, then for good."""
        return OUTCOMES[phase_of(self)]

    @property
    def error(self):
        """The exception that ended the operation, with its traceback; None if there is none (yet)."""
        cdef ErrorRecord error_record = self.get_error_record() if phase_of(self) == FAILED else None
        if error_record is None:
            return None
        error_record.seen.store(1, memory_order_relaxed)  # relaxed: see Note
        return error_record.error

    @property
    def tries(self):
        """How often `process` was called in vain and is to be called again (or was given up on); a snapshot."""
        return self.tried.load(memory_order_relaxed)  # relaxed: a count

    def increment_try(self):
        """Called by the worker once for each `Retry`, when `tries` has been counted. Override it to be told."""

    def done(self):
        """Wakes everybody who waits. Called once the outcome is set; idempotent; from any thread.

        Called earlier, by the user, it releases the waiters and does not touch the outcome.
        """
        cdef uint32_t phase = phase_of(self)
        while not self.state.load(memory_order_acquire) & RELEASED:  # acquire: as wait
            self.release(phase)
            phase = phase_of(self)

    def wait(self, timeout=None):
        """Blocks until the operation is done, at most `timeout` seconds (None: without limit).

        Returns whether it is done. Any number of threads may wait. Without a timeout it raises RuntimeError inside a
        worker of the pool that has to do it, when no worker would be left to do it. Raises `PoolNotRunning` in the
        child of a fork.
        """
        cdef int64_t deadline = deadline_of(timeout)
        cdef OwnerPool owner
        # acquire: pairs with end
        if self.state.load(memory_order_acquire) & RELEASED:
            return True
        owner = _owner_of(self)
        if owner is None:
            return bool(self.park(deadline))
        if owner.epoch != epoch_now:
            raise owner.stopped_error()
        if deadline != NEVER and now_ns() >= deadline:
            return False  # only a look
        if spin_until(&self.state, RELEASED, &owner.spin, 0, deadline) == FOUND_HINT:
            return True
        entered = owner.enter_wait(self, None, False, False, deadline != NEVER)
        if entered is None:
            return bool(self.park(deadline))
        try:
            return bool(self.park(deadline))
        finally:
            owner.leave_wait(entered)

    def __await__(self):
        """Waits until the operation is done, and gives it: `wait` for a task of asyncio or trio.

        Whether it succeeded, `outcome` or `check()` say. Raises as `wait`.
        """
        return _until_done(self).__await__()

    cdef int park(self, int64_t deadline) except -1:
        cdef WaitNode* node
        cdef bint granted = True
        cdef uint32_t expected_generation
        refuse_greenlets()
        node = take_node()
        try:
            while granted:
                expected_generation = self.generation.load(memory_order_acquire)  # acquire: pairs with renew; before the look at the state
                if not self.enqueue(node):
                    return 1
                granted = False
                try:
                    granted = park(node, NULL, deadline)
                finally:
                    if not granted:
                        granted = not self.unlink(node)
                        if granted:
                            # The releaser is between its unlock and its release of our lock: a few instructions.
                            PyThread_acquire_lock(node.lock, 1)
                if granted and self.generation.load(memory_order_acquire) != expected_generation:  # acquire: pairs with renew
                    return 1  # it was done, and reset before we looked
        finally:
            give_node(node)
        return 0

    cdef bint enqueue(self, WaitNode* node) noexcept:
        # One more who waits. False: it is done.
        cdef SpinLock* lock = _bucket(self)
        cdef PyObject* sleeper = node.sleeper
        acquire(lock)
        # acq_rel: see the head
        if fetch_or64(self.state, WAITED, memory_order_acq_rel) & RELEASED:
            release(lock)
            return False
        if sleeper:
            Py_INCREF(<object>sleeper)  # owned by the chain, then by the thread that takes it
        node.next = self.waiters
        node.queued = True
        node.epoch = epoch_now
        self.waiters = node
        release(lock)
        return True

    cdef bint unlink(self, WaitNode* node) noexcept:
        # One who leaves. False: the releaser has taken it.
        cdef SpinLock* lock = _bucket(self)
        cdef WaitNode** link = &self.waiters
        cdef bint queued
        acquire(lock)
        queued = node.queued
        while queued and link[0]:
            if link[0] == node:
                link[0] = node.next
                break
            link = &link[0].next
        release(lock)
        if queued and node.sleeper:
            Py_DECREF(<object>node.sleeper)  # the chain's
        return queued

    def cancel(self):
        """Ends the operation as CANCELLED unless a worker is running it now or it is finished: False then.

        Never blocks; safe from any thread. An operation that no pool has accepted is cancelled too. A KeyboardInterrupt
        in an overridden `done()`, on the main thread, is raised once the operation has ended.
        """
        cdef bint cancelled = self.cancel_quietly()
        raise_kept()
        return cancelled

    cdef bint cancel_quietly(self) except -1:
        cdef uint64_t seen
        cdef OwnerPool owner
        cdef int cancelled
        while True:
            seen = self.state.load(memory_order_acquire)  # acquire: pairs with accept
            if seen & PHASE == NEW:
                if self.try_cancel(0):
                    self.announce_done(CANCELLED, overrides_done(<PyObject*>Py_TYPE(<PyObject*>self)))
                    return True
            elif seen & PHASE == QUEUED:
                owner = owners.get(seen >> OWNER_SHIFT)
                if owner is None or owner.epoch != epoch_now:
                    return False  # its pool is gone, or in the parent of a fork
                cancelled = owner.cancel(self)
                if cancelled:
                    return True
            else:
                return False

    def check(self):
        """Returns the operation if it succeeded, raises its error otherwise.

        `concurrent.futures.CancelledError` if it was cancelled, `InvalidStateError` while it is pending. Never blocks.
        The first call raises `error` itself, each later one a copy whose `__cause__` is the error (or that of the
        error; then `__context__` is the error), so that no two threads raise one object. On a free-threaded build
        the first, too, if the worker crashed: its log reads the error meanwhile.
        """
        cdef uint32_t phase = phase_of(self)
        cdef ErrorRecord error_record
        if phase == SUCCEEDED:
            return self
        if phase == FAILED:
            error_record = self.get_error_record()
            if error_record is not None:
                error_record.seen.store(1, memory_order_relaxed)  # relaxed: see Note
                raise raisable(error_record)
        if phase == CANCELLED:
            raise CancelledError(f"{describe(self)} was cancelled")
        raise InvalidStateError(f"{describe(self)} is not finished: wait() for it first")

    def reset(self):
        """Makes a finished operation new, to be accepted once more; does nothing to a new one.

        `OperationReused` while it is pending, and while one that was cancelled still has its place in the pool's queue:
        until a worker has passed that.
        """
        if reset(self) is None:
            if phase_of(self) == CANCELLED:
                raise OperationReused(f"{describe(self)} still has its place in the queue, which no worker has passed yet")
            raise OperationReused(f"{describe(self)} is pending and cannot be reset: wait() for it first")

    def _fail(self, error):
        # For the worker that runs it: failed, though process returns. Task.run uses it.
        cdef PyObject* error_record = new_error_record(<PyObject*>error, <PyObject*>Py_TYPE(<PyObject*>self), False)
        if error_record == NULL:
            raise_set()
        self.set_error_record(<ErrorRecord>steal(error_record))

    def __repr__(self):
        tries = f", tries={self.tries}" if self.tries else ""
        return f"<{type(self).__qualname__} {OUTCOMES[phase_of(self)].value}{tries} at {<uintptr_t><void*>self:#x}>"

    # Pickles and copies arrive new: the subclass's own fields travel, the state does not. As for an object in Python
    # alone, a class that defines a part of this itself is asked for it, also one that comes after this one in the order
    # of the bases. object's own way is not open: it refuses a type with compiled fields.

    def __reduce_ex__(self, protocol):
        override = _defined(self, "__reduce_ex__", True)
        if override is not None:
            return override(protocol)
        override = _defined(self, "__reduce__", False)
        return _reduce(self) if override is None else override()

    def __reduce__(self):
        override = _defined(self, "__reduce__", True)
        return _reduce(self) if override is None else override()



cdef object _defined(OperationBase op, str name, bint after):
    # The method that a class of the operation's defines itself, bound; or None. `after`: only by a class that comes after
    # OperationBase, which hides it.
    for owner in type(op).__mro__:
        if owner is OperationBase:
            after = False
        elif owner is object:
            break
        elif not after and name in owner.__dict__:
            found = owner.__dict__[name]
            bind = getattr(type(found), "__get__", None)
            return found if bind is None else bind(found, op, type(op))
    return None


cdef object _reduce(OperationBase op):
    # What object.__reduce_ex__ gives from protocol 2 on, for all protocols.
    cls = type(op)
    arguments = ()
    names = None
    if hasattr(op, "__getnewargs_ex__"):
        found = op.__getnewargs_ex__()
        if type(found) is not tuple or len(found) != 2:
            raise TypeError(f"{cls.__qualname__}.__getnewargs_ex__ must return a pair, not {describe(found)}")
        arguments, names = found
        if not isinstance(arguments, tuple) or not isinstance(names, dict):
            raise TypeError(
                f"{cls.__qualname__}.__getnewargs_ex__ must return a tuple and a dict, not {describe(found)}"
            )
    elif hasattr(op, "__getnewargs__"):
        arguments = op.__getnewargs__()
        if not isinstance(arguments, tuple):
            raise TypeError(f"{cls.__qualname__}.__getnewargs__ must return a tuple, not {describe(arguments)}")
    state = op.__getstate__()
    if names:
        return copyreg.__newobj_ex__, (cls, arguments, names), state
    return copyreg.__newobj__, (cls, *arguments), state


cpdef object call_verb(OperationBase op, str name):
    # Calls a verb that a class overrides, looked up there, as Python looks up special methods: an attribute of that name
    # that was set on the operation is no verb.
    verb = _defined(op, name, False)
    if verb is not None:
        verb()


done_of_base = OperationBase.done


cdef bint overrides_done(PyObject* kind) noexcept:
    # Whether the class has a done() of its own. So it counts where its metaclass raises when it is asked.
    cdef PyObject* done = get_attribute_of(kind, <PyObject*>done_name)
    cdef bint overridden = done != <PyObject*>done_of_base
    if done == NULL:
        PyErr_Clear()
    Py_XDECREF(done)
    return overridden


async def _until_done(OperationBase op):
    cdef LoopSleeper sleeper = None
    cdef uint32_t expected_generation
    cdef OwnerPool owner
    entered = None
    point = checkpoint()
    if point is not None:
        await point
    # acquire: as wait
    if op.state.load(memory_order_acquire) & RELEASED:
        return op
    owner = _owner_of(op)
    if owner is not None:
        if owner.epoch != epoch_now:
            raise owner.stopped_error()
        entered = owner.enter_wait(op, None, False, True, False)
    try:
        sleeper = LoopSleeper()
        bind_to_task(sleeper)
        while True:
            sleeper.arm()
            expected_generation = op.generation.load(memory_order_acquire)  # acquire: as park
            if not op.enqueue(&sleeper.node):
                return op
            try:
                await sleeper.suspend()
            except BaseException:
                op.unlink(&sleeper.node)
                raise
            if op.generation.load(memory_order_acquire) != expected_generation:  # acquire: as park
                return op
    finally:
        if entered is not None:
            owner.leave_wait(entered)


cdef object wake_waiters(OperationBase op):
    # The chain is ours once it is out of the operation; each node is gone with its release.
    cdef SpinLock* lock = _bucket(op)
    cdef WaitNode* node
    cdef WaitNode* following
    cdef WaitNode* granted_flag = NULL
    acquire(lock)
    node = op.waiters
    op.waiters = NULL
    following = node
    while following:
        following.queued = False
        following = following.next
    release(lock)
    # Threads first: one of them may be waiting for its release, attached, while a Sleeper's wake runs Python code.
    while node:
        following = node.next  # before the release: the node may be gone after it
        if node.sleeper:
            node.next = granted_flag
            granted_flag = node
        elif node.epoch == epoch_now:  # else its thread stayed in the parent of a fork
            wake_node(node)
        node = following
    while granted_flag:
        following = granted_flag.next
        if granted_flag.epoch == epoch_now:  # as above
            wake_node(granted_flag)
        granted_flag = following


operation_type = <PyTypeObject*>OperationBase

# The garbage collector: Cython knows nothing of the chain (rule 11). No thread is between two steps under a lock.
cdef traverseproc base_traverse = operation_type.tp_traverse


cdef int operation_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef int status = base_traverse(self, visit, arg)
    cdef WaitNode* node = (<OperationBase>self).waiters
    while node and not status:
        if node.sleeper and node.epoch == epoch_now:
            status = visit(node.sleeper, arg)  # the chain owns a reference
        node = node.next
    return status


operation_type.tp_traverse = operation_traverse


# Errors that several threads may raise (check(), a pool's end that all its readers are told, a future's result). CPython adds
# each raiser's frames to the traceback of the object that is raised, and a free-threaded build does not guard that. So each
# gets an object of his own: the first the error itself, those after him a copy. Only the first raiser writes to the error;
# the traceback that copies begin with was taken before. With a GIL the traceback is also the better one: it does not grow.
# Free-threaded, nobody raises an error that the worker goes on to log: that reads it, and those that are chained to it.

cdef object with_traceback(object error, object traceback):
    PyException_SetTraceback(error, traceback)
    return error


cdef object traceback_of(object error):
    cdef PyObject* trace = PyException_GetTraceback(<PyObject*>error)
    return steal(trace) if trace != NULL else None


cdef object raisable(ErrorRecord error_record):
    error = error_record.error
    # acq_rel: of several threads one raises the error itself
    if not exchange32(error_record.raised, 1, memory_order_acq_rel):
        return error if FREE_THREADED else with_traceback(error, error_record.traceback)
    try:
        own = copy_of(error)
    except MemoryError:
        if FREE_THREADED:
            raise
        return with_traceback(error, error_record.traceback)
    if own is None:
        return error if FREE_THREADED else with_traceback(error, error_record.traceback)
    return with_traceback(own, error_record.traceback)


def raise_copy(error, traceback):
    """A copy of an error that another thread may have raised, with this traceback; the error if it cannot be copied."""
    own = copy_of(error)
    return error if own is None else with_traceback(own, traceback)


cdef object copy_of(object error):
    # Chained to the error. Calls neither the class's __init__ nor its __new__, __reduce__ or __copy__, which may do
    # anything: fields are copied one by one, and what the built-in base keeps outside of them by the base's own methods.
    # None if the class cannot be copied so: an extension type with state of its own.
    kind = type(error)
    try:
        for base in kind.__mro__:
            if not base.__flags__ & HEAPTYPE:
                break
        reduced = base.__reduce__(error)
        own = base.__new__(kind, *reduced[1])
        base.__init__(own, *reduced[1])
        fields = error.__dict__
        if len(reduced) > 2 and type(reduced[2]) is dict:
            for name, value in list(reduced[2].items()):
                if name not in fields:
                    set_attribute(own, name, value)
        for builtin in base.__mro__:
            for name, member in builtin.__dict__.items():
                if type(member) is Member and not name.startswith("__"):
                    try:
                        set_attribute(own, name, member.__get__(error))
                    except AttributeError:  # has none, or is read-only
                        continue
        own.__dict__.update(fields)
        notes = fields.get("__notes__")
        if type(notes) is list:
            own.__dict__["__notes__"] = list(notes)
        for name in copyreg._slotnames(kind):
            try:
                value = get_attribute(error, name)
            except AttributeError:
                continue
            set_attribute(own, name, value)
        args_of.__set__(own, args_of.__get__(error))
        if error.__cause__ is None:
            own.__cause__ = error
        else:
            own.__cause__ = error.__cause__
            own.__context__ = error
    except MemoryError:
        raise
    except Exception:
        return None
    return own if type(own) is kind else None


cdef object own_error(object error):
    # Another like it: of an error of ringmill's own, that is told to many.
    own = type(error)(*error.args)
    own.__cause__ = error.__cause__
    return own


cdef OwnerPool _owner_of(OperationBase op):
    # The pool that has it, if it is pending in one that lives.
    cdef uint64_t seen = op.state.load(memory_order_acquire)  # acquire: pairs with accept
    if seen & PHASE == QUEUED or seen & PHASE == RUNNING:
        return owners.get(seen >> OWNER_SHIFT)
    return None


cdef int raise_set() except -1:
    # Raises what a function declared as noexcept has set.
    return -1


cpdef object name_of(object kind):
    # Of a class, in words; not by attribute, which its metaclass may have replaced.
    cdef PyObject* name = PyType_GetQualName(<PyTypeObject*>kind)
    if name == NULL:
        raise_set()
    return steal(name)


def exc_info(error):
    """What logging takes as `exc_info`; the traceback not by attribute, which the error's class may have replaced."""
    if not PyExceptionInstance_Check(error):
        raise TypeError(f"exceptions must derive from BaseException, got {describe(error)}")
    return type(error), error, traceback_of(error)


cdef const char* EXC_INFO = "exc_info"


cdef void log_error(int level, str message, PyObject* arguments, PyObject* error) noexcept:
    # Logs, with a tuple of arguments. What a logging handler raises, or the lack of memory, stops nothing.
    cdef PyObject* trace = PyException_GetTraceback(error) if error != NULL else NULL
    cdef PyObject* first = NULL
    cdef PyObject* positional = NULL
    cdef PyObject* keywords = NULL
    cdef PyObject* result = NULL
    if error != NULL:
        keywords = pack_log(
            "{s(OOO)}", EXC_INFO, <PyObject*>Py_TYPE(error), error, trace if trace != NULL else <PyObject*>None
        )
    if error == NULL or keywords != NULL:
        first = pack_log("(iO)", level, <PyObject*>message)
    if first != NULL:
        positional = PySequence_Concat(first, arguments)
    if positional != NULL:
        result = call_log(<PyObject*>log, positional, keywords)
    PyErr_Clear()
    Py_XDECREF(trace)
    Py_XDECREF(first)
    Py_XDECREF(positional)
    Py_XDECREF(keywords)
    Py_XDECREF(result)


def log_event(int level, str message not None, tuple arguments not None, error=None):
    """Logs, with the error's traceback if there is one. Whatever a logging handler raises stops nothing."""
    log_error(level, message, <PyObject*>arguments, <PyObject*>error if error is not None else NULL)


cdef int log_exception(str what, object subject) except -1:
    # Logs the exception that is being handled. A logging handler that raises must not stop what goes on after it.
    try:
        logger.exception(what, subject)
    except BaseException as error:
        keep_interrupt(error)
    return 0


cdef bint hook_raised(object error, str what, object subject) except -1:
    # A user's hook raised the error, which is being handled, and what called the hook goes on: see the head. Returns
    # whether it is a KeyboardInterrupt that was kept.
    if keep_interrupt(error):
        return True
    log_exception(what, subject)
    return False


cdef bint keep_interrupt(object error) except -1:
    # Keeps a KeyboardInterrupt of the main thread, the first of several. False: it is none.
    global kept_interrupt
    # By its type: the class may have a `__class__` that raises, or that lies.
    if PyThread_get_thread_ident() != main_thread or not PyErr_GivenExceptionMatches(
        <PyObject*>error, PyExc_KeyboardInterrupt
    ):
        return False
    if kept_interrupt is None:
        kept_interrupt = error
    return True


cdef int raise_kept() except -1:
    # At the end of a call that may have run users' hooks: raises the KeyboardInterrupt that one of them was left by.
    error = take_interrupt()
    if error is not None:
        raise error
    return 0


cpdef object take_interrupt():
    """The KeyboardInterrupt that a user's hook was left by on the main thread, to be raised by the caller; or None."""
    global kept_interrupt
    if PyThread_get_thread_ident() != main_thread or kept_interrupt is None:
        return None
    error = kept_interrupt
    kept_interrupt = None
    return error


def report_hook(error, str what, subject):
    """Logs what a user's hook raised, while that is being handled; keeps a KeyboardInterrupt of the main thread."""
    hook_raised(error, what, subject)


def repeatable(done):
    """Marks a `done` of ringmill's own, which is called again, to go on, where it was left by a KeyboardInterrupt on the main
    thread, or for want of memory.
    """
    repeated.append(done)
    return done


# SystemError: what Python code makes of an exception that CPython has lost where it had no memory, see primitives.pxd.
cdef tuple memory_errors = (MemoryError, SystemError)


cdef bint is_repeated(PyObject* kind) noexcept:
    # Whether that class's `done` is marked so. Takes no memory.
    cdef PyObject* done = get_raw(kind, <PyObject*>done_name)
    cdef Py_ssize_t k
    cdef bint found = False
    if done == NULL:
        PyErr_Clear()
        return False
    for k in range(len(repeated)):
        found = found or (<PyListObject*>repeated).ob_item[k] == done
    Py_DECREF(<object>done)
    return found


def complete(step, int interrupts):
    """Calls `step(interrupts)` until it returns; each time that it raises, reports that and adds one to `interrupts`, unless
    it was for want of memory.

    For the end of the interpreter, where a KeyboardInterrupt must not get out, however often it comes: a signal handler
    runs between two bytecodes of Python code, so no Python function can promise that.
    """
    cdef int left = 100
    while left:
        left -= 1
        try:
            step(interrupts)
            return
        except BaseException as error:
            if not matches_error(<PyObject*>error, <PyObject*>memory_errors):
                interrupts += 1
            report_unraisable(error, step)


cdef int report_unraisable(object error, object subject) except -1:
    # By sys.unraisablehook; what that raises, the interpreter reports by itself.
    PyErr_SetObject(type(error), error)
    PyErr_WriteUnraisable(subject)
    return 0


cdef object reset(OperationBase op):
    # Finished -> NEW: True. New already: False. Pending, or cancelled in its place: None.
    cdef uint64_t seen = op.state.load(memory_order_acquire)  # acquire: pairs with end
    while True:
        if seen & PHASE == NEW:
            return False
        if seen & PHASE == QUEUED or seen & PHASE == RUNNING or seen & PHASE == RESETTING or seen & PLACED:
            return None
        # acq_rel: of several threads that reset it, one does
        if swap64(
            op.state, seen, (seen & ~<uint64_t>PHASE) | RESETTING, memory_order_acq_rel, memory_order_acquire
        ):
            break
    renew(op, NEW, 0)
    return True


cdef void renew(OperationBase op, uint32_t phase, uint32_t owner) noexcept:
    # RESETTING -> NEW, or QUEUED in a pool. By the thread that made it RESETTING.
    op.set_error_record(None)
    op.tried.store(0, memory_order_relaxed)  # relaxed: published by the phase
    # release: pairs with park. Before the phase: who waits for the new life knows its number.
    op.generation.fetch_add(1, memory_order_release)
    # Who still waits (done() resets it, say, before the waiters are released) waits for the new life.
    # acq_rel: pairs with accept, begin and cancel. One that goes on to a pool has a place there.
    cdef uint64_t renewed = (PLACED if owner else 0) | phase | <uint64_t>owner << OWNER_SHIFT
    cdef uint64_t seen = op.state.load(memory_order_relaxed)  # relaxed: the exchange decides
    while not swap64(
        op.state, seen, renewed | (0 if seen & RELEASED else seen & WAITED), memory_order_acq_rel, memory_order_relaxed
    ):
        pass
