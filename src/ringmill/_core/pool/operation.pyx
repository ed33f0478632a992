# OperationBase: the compiled base of Operation. Its state, its tries, and the threads and tasks that wait for it.
#
# May use `waiting` and `platform`. Knows pools only as OwnerPool, the interface that a run of a pool implements.
# Longer than most files: one class, and what becomes of its error and of what its overridden verbs raise.
#
# The state is one atomic word: a phase, flags, and, while the operation is pending, the number of the pool that owns
# it:
#
#            accept             begin              end
#     NEW ----------> QUEUED ----------> RUNNING ----------> SUCCEEDED | FAILED
#      ^                |  ^                |
#      |                |  +---- retry -----+
#      |                +---- cancel, breakage ------------> CANCELLED | FAILED
#      +--------------------------- reset ---------------------------+
#
# Which thread may change it: accept, any thread that submits it to a pool; begin, the worker that claimed it from its
# queue; retry and end, the worker that runs it; cancel, any thread, but only out of NEW and QUEUED. So begin and cancel
# race by compare-exchange and one of them wins. The thread that moves it out of QUEUED for good is the only one that
# ends it.
#
# PLACED: a queue has an entry for the operation that no worker has claimed yet. An operation that is cancelled leaves
# its entry behind, for a worker to find. Until then it cannot be reset, or the old entry would be taken for one of its
# next generation.
#
# RELEASED: done() was called. It comes after the phase, unless the user calls done() early. A waiter sets WAITED and
# reads RELEASED in one read-modify-write under the lock of its bucket. The releasing thread sets RELEASED and reads
# WAITED in one read-modify-write, then takes the chain of waiters under that lock. Both act on one word, so at least
# one of them sees the other. The buckets are a fixed table of locks, chosen by the operation's address, so that an
# operation carries no lock.
#
# Verbs that a subclass overrides (increment_try, wait, done) are notifications: nothing here depends on them. What an
# override raises is logged. A KeyboardInterrupt on the main thread is meant for the program, so it is kept
# (hook_raised) until the current step is complete, and raised at the end of the outermost call that the main thread
# made (raise_kept, take_keyboard_interrupt). Only the main thread touches the kept exception, so that needs no lock.

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

# C globals, which outlive the module's dictionary: an ErrorRecord may be deallocated while the interpreter ends.
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
cdef object kept_keyboard_interrupt = None  # touched by the main thread only: see the head
cdef list repeated = []  # done() methods that are called again after a KeyboardInterrupt: see repeatable

cdef inline SpinLock* _bucket(OperationBase op) noexcept nogil:
    return &buckets[(<uintptr_t><void*>op >> 6) & (BUCKETS - 1)]


def _after_fork_in_child():
    global main_thread, kept_keyboard_interrupt
    cdef int k
    for k in range(BUCKETS):
        buckets[k].held.store(0, memory_order_relaxed)  # relaxed: the child has only one thread now
    if main_thread != PyThread_get_thread_ident():
        main_thread = PyThread_get_thread_ident()
        kept_keyboard_interrupt = None  # it belonged to the parent's main thread


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Outcome(enum.Enum):
    """The state of an operation: pending, or one of the three ways to end."""

    PENDING = "pending"         #: not submitted yet, waiting, or running
    SUCCEEDED = "succeeded"     #: `process` returned
    FAILED = "failed"           #: failed for good; `Operation.error` is the exception
    CANCELLED = "cancelled"     #: ended before a worker ran it to an end


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
        (<ErrorRecord>error_record).seen.store(seen, memory_order_relaxed)  # relaxed: see ErrorRecord
        # not by attribute, which the error's class may override
        trace = PyException_GetTraceback(error) if PyExceptionInstance_Check(<object>error) else NULL
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

    cdef void ring_changed(self, PyObject** source) noexcept:
        pass

    cdef object enter_wait(self, OperationBase operation, object source, bint for_turn, bint in_task, bint timed):
        raise NotImplementedError

    cdef void leave_wait(self, object wait) noexcept:
        pass

    cdef object stopped_error(self):
        raise NotImplementedError


cdef class OperationBase:
    """OperationBase()
--

    The compiled base of `Operation`.
    """

    # All fields start as zero: NEW, no tries, no pool, no waiters. There is no __init__ that a subclass would have to
    # call.

    # -----------------------------------------------------------------------------------------------------------
    # for the pool

    cdef bint try_cancel(self, uint32_t owner) noexcept nogil:
        # QUEUED in that pool, or NEW for owner 0, -> CANCELLED. Then the caller must call announce_done(). False: the
        # state was another one.
        cdef uint64_t seen = self.state.load(memory_order_relaxed)  # relaxed: the exchange decides
        cdef uint32_t pending = QUEUED if owner else NEW
        while seen & PHASE == pending and seen >> OWNER_SHIFT == owner:
            # acq_rel: as begin, with which it races
            if swap64(
                self.state, seen, (seen & (WAITED | RELEASED | PLACED)) | CANCELLED, memory_order_acq_rel,
                memory_order_relaxed
            ):
                return True
        return False

    cdef int end_overridden(self, uint32_t phase) except -1:
        # `end` for an operation whose done() is overridden.
        cdef uint64_t seen = self.state.load(memory_order_relaxed)  # relaxed: the exchange decides
        while not swap64(
            self.state, seen, (seen & (WAITED | RELEASED)) | phase, memory_order_acq_rel, memory_order_relaxed
        ):
            pass
        return self.announce_done(phase, True)

    cdef int announce_done(self, uint32_t phase, bint overridden) except -1:
        # After the outcome is set: calls done() if it is overridden, and releases the waiters whatever done() does.
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
        # Sets RELEASED and wakes the waiters, unless the operation has left that phase and begun a new generation.
        cdef uint64_t seen = self.state.load(memory_order_relaxed)  # relaxed: the exchange decides
        while seen & PHASE == phase and not seen & RELEASED:
            # acq_rel: publishes what happened before done(); reads WAITED (see the head)
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
        Py_INCREF(<object>error_record)  # the caller's; the field's reference keeps the object alive until here
        release(lock)
        return <ErrorRecord>steal(error_record)

    cdef void set_error_record(self, ErrorRecord error_record) noexcept:
        # Replaces the field, which other threads may be reading. No reference is dropped under the lock (rule 7).
        cdef SpinLock* lock = _bucket(self)
        cdef PyObject* old
        Py_INCREF(error_record)  # the field's
        acquire(lock)
        old = exchange_error_record(self, <PyObject*>error_record)
        release(lock)
        Py_DECREF(<object>old)  # was the field's

    cdef void set_context(self, object context) noexcept:
        # As set_error_record. Set by the submitter before a worker can take the operation, cleared by the thread that
        # ends it.
        cdef SpinLock* lock = _bucket(self)
        cdef PyObject* old
        Py_INCREF(context)  # the field's
        acquire(lock)
        old = exchange_context(self, <PyObject*>context)
        release(lock)
        Py_DECREF(<object>old)  # was the field's

    # -----------------------------------------------------------------------------------------------------------
    # the public interface

    @property
    def outcome(self):
        """The operation's `Outcome`. A snapshot while it is PENDING; the others stay until `reset`."""
        return OUTCOMES[phase_of(self)]

    @property
    def error(self):
        """The exception that ended the operation, with its traceback; None if it has not failed.

        Reading it marks the error as read: an error that is never read is logged when its operation is collected.
        """
        cdef ErrorRecord error_record = self.get_error_record() if phase_of(self) == FAILED else None
        if error_record is None:
            return None
        error_record.seen.store(1, memory_order_relaxed)  # relaxed: see Note
        return error_record.error

    @property
    def tries(self):
        """The number of failed tries: `process` raised `Retry` or an exception of `retry_on`. A snapshot."""
        return self.tried.load(memory_order_relaxed)  # relaxed: a count

    def increment_try(self):
        """Called on the worker's thread once for each failed try, after `tries` was counted. Does nothing itself.

        Override it to be notified of retries. What an override raises is logged and changes nothing.
        """

    def done(self):
        """Wakes all threads and tasks that wait for the operation.

        The pool calls it once the outcome is set. A user may call it earlier: then it releases the waiters and leaves
        the outcome alone. Override it to be notified of the end; the waiters are released whatever an override does.
        Never blocks; idempotent; may be called from any thread.
        """
        cdef uint32_t phase = phase_of(self)
        while not self.state.load(memory_order_acquire) & RELEASED:  # acquire: as wait
            self.release(phase)
            phase = phase_of(self)

    def wait(self, timeout=None):
        """Blocks until the operation is done.

        Any number of threads may wait.

        Args:
            timeout: Seconds to wait; None waits without limit.

        Returns:
            Whether the operation is done; False only when the time ran out.

        Raises:
            RuntimeError: Called without a timeout from a worker of the pool that owns the operation, when no worker
                would be left to run it.
            PoolNotRunning: This is the child of a fork and the pool runs in the parent.
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
            return False  # the caller only wants to look
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
        """Waits until the operation is done: `await op` is `wait` for a task of asyncio or trio.

        Returns:
            An awaitable that gives the operation itself, whatever its outcome: use `check()` to raise its error.

        Raises:
            RuntimeError: As `wait`; or no asyncio or trio loop runs on this thread.
            PoolNotRunning: As `wait`.
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
                expected_generation = self.generation.load(memory_order_acquire)  # acquire: pairs with renew; before the state is read
                if not self.enqueue(node):
                    return 1
                granted = False
                try:
                    granted = park(node, NULL, deadline)
                finally:
                    if not granted:
                        granted = not self.unlink(node)
                        if granted:
                            # The releasing thread is between its unlock and its release of this node: a few
                            # instructions.
                            PyThread_acquire_lock(node.lock, 1)
                if granted and self.generation.load(memory_order_acquire) != expected_generation:  # acquire: pairs with renew
                    return 1  # the operation was done, and has been reset since
        finally:
            give_node(node)
        return 0

    cdef bint enqueue(self, WaitNode* node) noexcept:
        # Adds a waiter. False: the operation is done.
        cdef SpinLock* lock = _bucket(self)
        cdef PyObject* sleeper = node.sleeper
        acquire(lock)
        # acq_rel: see the head
        if fetch_or64(self.state, WAITED, memory_order_acq_rel) & RELEASED:
            release(lock)
            return False
        if sleeper:
            Py_INCREF(<object>sleeper)  # owned by the chain, then by the thread that takes it
        node.prev = NULL
        node.next = self.waiters
        if self.waiters:
            self.waiters.prev = node
        node.queued = True
        node.epoch = epoch_now
        self.waiters = node
        release(lock)
        return True

    cdef bint unlink(self, WaitNode* node) noexcept:
        # Removes a waiter. False: the releasing thread has taken it.
        cdef SpinLock* lock = _bucket(self)
        cdef bint queued
        acquire(lock)
        queued = node.queued
        if queued:
            if node.prev:
                node.prev.next = node.next
            else:
                self.waiters = node.next
            if node.next:
                node.next.prev = node.prev
            node.queued = False
        release(lock)
        if queued and node.sleeper:
            Py_DECREF(<object>node.sleeper)  # the chain's
        return queued

    def cancel(self):
        """Ends the operation as CANCELLED, unless a worker is running it or it has ended.

        An operation that no pool has accepted can be cancelled too. Never blocks; may be called from any thread. A
        KeyboardInterrupt in an overridden `done()`, on the main thread, is raised once the operation has ended.

        Returns:
            Whether this call cancelled the operation.
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
                    return False  # its pool no longer exists, or is in the parent of a fork
                cancelled = owner.cancel(self)
                if cancelled:
                    return True
            else:
                return False

    def check(self):
        """Returns the operation if it succeeded; raises its error otherwise.

        Never blocks; may be called from any thread. The first call raises `error` itself. Each later call raises a
        copy, so that no two threads raise one object: the copy's `__cause__` is the error, or, if the error has a
        cause, that cause; then `__context__` is the error. On a free-threaded build the first call, too, raises a copy
        if the worker crashed: its log reads the error meanwhile.

        Returns:
            The operation itself.

        Raises:
            BaseException: The operation failed: its `error`, or a copy of it.
            concurrent.futures.CancelledError: The operation was cancelled.
            concurrent.futures.InvalidStateError: The operation is pending.
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
        """Makes an ended operation new, so that it can be submitted again. Does nothing to a new one.

        `outcome`, `error` and `tries` are cleared; the subclass's own fields are not. Never blocks; may be called from
        any thread.

        Raises:
            OperationReused: The operation is pending; or it was cancelled and the pool's queue still has an entry for
                it, which a worker has to remove first.
        """
        if reset(self) is None:
            if phase_of(self) == CANCELLED:
                raise OperationReused(
                    f"{describe(self)} was cancelled, and its pool's queue still has an entry for it: reset it later"
                )
            raise OperationReused(f"{describe(self)} is pending and cannot be reset: wait() for it first")

    def _fail(self, error):
        # Called by the worker that runs the operation: it ends as FAILED although process returns. Task.run uses it.
        if not PyExceptionInstance_Check(error):
            raise TypeError(f"error must be an exception, not {describe(error)}")
        cdef PyObject* error_record = new_error_record(<PyObject*>error, <PyObject*>Py_TYPE(<PyObject*>self), False)
        if error_record == NULL:
            raise_set()
        self.set_error_record(<ErrorRecord>steal(error_record))

    def __repr__(self):
        tries = f", tries={self.tries}" if self.tries else ""
        return f"<{type(self).__qualname__} {OUTCOMES[phase_of(self)].value}{tries} at {<uintptr_t><void*>self:#x}>"

    # Pickles and copies are new operations: the subclass's own fields are copied, the state is not. As for a plain
    # Python object, methods of the pickle protocol that a class defines are honoured, also those of a class after this
    # one in the method resolution order. object.__reduce_ex__ cannot be used: it refuses a type with compiled fields.

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
    # The method that a class of the operation defines itself, bound; or None. `after`: search only the classes that
    # come after OperationBase, whose own method hides theirs.
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
    # What object.__reduce_ex__ returns for protocol 2 and above, for all protocols.
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
    # Calls a verb that a class overrides. It is looked up on the class, as special methods are: an instance attribute
    # of that name does not count.
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
    # This thread owns the chain once it is out of the operation. A node may be reused as soon as it has been released.
    cdef SpinLock* lock = _bucket(op)
    cdef WaitNode* node
    cdef WaitNode* following
    cdef WaitNode* sleepers = NULL
    acquire(lock)
    node = op.waiters
    op.waiters = NULL
    following = node
    while following:
        following.queued = False
        following = following.next
    release(lock)
    # Threads first: one of them may wait for its release while attached, and a Sleeper's wake runs Python code.
    while node:
        following = node.next  # before the release: the node may be gone after it
        if node.sleeper:
            node.next = sleepers
            sleepers = node
        elif node.epoch == epoch_now:  # else its thread stayed in the parent of a fork
            wake_node(node)
        node = following
    while sleepers:
        following = sleepers.next
        if sleepers.epoch == epoch_now:  # as above
            wake_node(sleepers)
        sleepers = following


operation_type = <PyTypeObject*>OperationBase

# Garbage collection: Cython does not traverse the chain (rule 11). No thread is inside a section under a lock
# meanwhile.
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


# Errors that several threads may raise: check(), the end of a pool (raised to all readers), a future's result. CPython
# adds the frames of each thread that raises an exception to its traceback, and a free-threaded build does not guard
# that. So each thread gets an object of its own: the first one the error itself, later ones a copy. Only the first
# thread writes to the error; the traceback of the copies was taken before. On a GIL build that traceback is also the
# better one: it does not grow. On a free-threaded build no thread raises an error that a worker is about to log: the log
# reads it, and the errors that it is chained to.

cdef object with_traceback(object error, object traceback):
    # Not by with_traceback(), which the error's class may override.
    PyException_SetTraceback(error, traceback)
    return error


cdef object traceback_of(object error):
    cdef PyObject* trace = PyException_GetTraceback(<PyObject*>error)
    return steal(trace) if trace != NULL else None


cdef object raisable(ErrorRecord error_record):
    error = error_record.error
    # acq_rel: exactly one thread raises the error itself
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
    """Returns a copy of an error, with this traceback, for another thread to raise; the error if it cannot be copied."""
    own = copy_of(error)
    return error if own is None else with_traceback(own, traceback)


cdef object copy_of(object error):
    # A copy that is chained to the error. The class's own __init__, __new__, __reduce__ and __copy__ are not called,
    # since they may do anything: fields are copied one by one, and the state of the built-in base by the base's own
    # methods. None if that is not possible: an extension type with state of its own.
    kind = type(error)
    try:
        for base in kind.__mro__:
            if not base.__flags__ & HEAPTYPE:
                break
        fields = error.__dict__  # made by the first who asks; before __reduce__, which does not guard its look at that
        reduced = base.__reduce__(error)
        own = base.__new__(kind, *reduced[1])
        base.__init__(own, *reduced[1])
        if len(reduced) > 2 and type(reduced[2]) is dict:
            for name, value in list(reduced[2].items()):
                if name not in fields:
                    set_attribute(own, name, value)
        for builtin in base.__mro__:
            for name, member in builtin.__dict__.items():
                if type(member) is Member and not name.startswith("__"):
                    try:
                        set_attribute(own, name, member.__get__(error))
                    except AttributeError:  # not set, or read-only
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
    # A new object like this error of ringmill's, for one of several threads that raise it.
    own = type(error)(*error.args)
    own.__cause__ = error.__cause__
    return own


cdef OwnerPool _owner_of(OperationBase op):
    # The pool that owns the operation, if it is pending in one that still exists.
    cdef uint64_t seen = op.state.load(memory_order_acquire)  # acquire: pairs with accept
    if seen & PHASE == QUEUED or seen & PHASE == RUNNING:
        return owners.get(seen >> OWNER_SHIFT)
    return None


cdef int raise_set() except -1:
    # Raises the exception that a function declared as noexcept has set.
    return -1


cpdef object name_of(object kind):
    # A class's qualified name; not by attribute, which its metaclass may override.
    cdef PyObject* name = PyType_GetQualName(<PyTypeObject*>kind)
    if name == NULL:
        raise_set()
    return steal(name)


def exc_info(error):
    """Returns an error as logging's `exc_info`. Reads no attribute of the error, which its class may override."""
    if not PyExceptionInstance_Check(error):
        raise TypeError(f"exceptions must derive from BaseException, got {describe(error)}")
    return type(error), error, traceback_of(error)


cdef const char* EXC_INFO = "exc_info"


cdef void log_error(int level, str message, PyObject* arguments, PyObject* error) noexcept:
    # Logs a message with a tuple of arguments. Exceptions of logging handlers, and lack of memory, are ignored.
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
    """Logs a message, with the error's traceback if there is one. Exceptions of logging handlers are ignored."""
    log_error(level, message, <PyObject*>arguments, <PyObject*>error if error is not None else NULL)


cdef int log_exception(str message, object subject) except -1:
    # Logs the exception that is being handled. An exception of a logging handler must not stop the caller.
    try:
        logger.exception(message, subject)
    except BaseException as error:
        keep_keyboard_interrupt(error)
    return 0


cdef bint hook_raised(object error, str message, object subject) except -1:
    # Called while the error that a user's hook raised is being handled; the caller of the hook goes on (see the head).
    # Returns whether the error is a KeyboardInterrupt that was kept; any other is logged.
    if keep_keyboard_interrupt(error):
        return True
    log_exception(message, subject)
    return False


cdef bint keep_keyboard_interrupt(object error) except -1:
    # Keeps a KeyboardInterrupt of the main thread, the first of several. False: the error is not one.
    global kept_keyboard_interrupt
    # By its type: the class may have a `__class__` that raises, or that lies.
    if PyThread_get_thread_ident() != main_thread or not PyErr_GivenExceptionMatches(
        <PyObject*>error, PyExc_KeyboardInterrupt
    ):
        return False
    if kept_keyboard_interrupt is None:
        kept_keyboard_interrupt = error
    return True


cdef int raise_kept() except -1:
    # At the end of a call that may have run users' hooks: raises the KeyboardInterrupt that was kept, if any.
    error = take_keyboard_interrupt()
    if error is not None:
        raise error
    return 0


cpdef object take_keyboard_interrupt():
    """Returns the kept KeyboardInterrupt of a user's hook, for the caller to raise, on the main thread; else None."""
    global kept_keyboard_interrupt
    if PyThread_get_thread_ident() != main_thread or kept_keyboard_interrupt is None:
        return None
    error = kept_keyboard_interrupt
    kept_keyboard_interrupt = None
    return error


def report_hook(error, str message, subject):
    """Logs the error of a user's hook while it is being handled; keeps a KeyboardInterrupt of the main thread."""
    hook_raised(error, message, subject)


def repeatable(done):
    """Marks a `done` of ringmill's own that is called again if it ends early.

    That happens by a KeyboardInterrupt on the main thread, or for lack of memory.
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


def complete(step, int keyboard_interrupts):
    """Calls `step(keyboard_interrupts)` until it returns. Each time that it raises, reports that and adds one to
    `keyboard_interrupts`, unless it raised for lack of memory.

    For the exit of the interpreter, where no KeyboardInterrupt may escape, however many arrive. A signal handler can
    run between any two bytecodes, so no Python function can guarantee that; this one is compiled.
    """
    cdef int left = 100
    while left:
        left -= 1
        try:
            step(keyboard_interrupts)
            return
        except BaseException as error:
            if not matches_error(<PyObject*>error, <PyObject*>memory_errors):
                keyboard_interrupts += 1
            report_unraisable(error, step)


cdef int report_unraisable(object error, object subject) except -1:
    # By sys.unraisablehook; the interpreter itself reports what that raises.
    PyErr_SetObject(type(error), error)
    PyErr_WriteUnraisable(subject)
    return 0


cdef object reset(OperationBase op):
    # Ended -> NEW: True. New already: False. Pending, or cancelled with an entry left in a queue: None.
    cdef uint64_t seen = op.state.load(memory_order_acquire)  # acquire: pairs with end
    while True:
        if seen & PHASE == NEW:
            return False
        if seen & PHASE == QUEUED or seen & PHASE == RUNNING or seen & PHASE == RESETTING or seen & PLACED:
            return None
        # acq_rel: exactly one of several threads that reset the operation wins
        if swap64(
            op.state, seen, (seen & ~<uint64_t>PHASE) | RESETTING, memory_order_acq_rel, memory_order_acquire
        ):
            break
    renew(op, NEW, 0)
    return True


cdef void renew(OperationBase op, uint32_t phase, uint32_t owner) noexcept:
    # RESETTING -> NEW, or QUEUED in a pool. Called by the thread that made it RESETTING.
    op.set_error_record(None)
    op.tried.store(0, memory_order_relaxed)  # relaxed: published by the phase
    # release: pairs with park. Before the phase, so that a waiter for the new generation knows its number.
    op.generation.fetch_add(1, memory_order_release)
    # A waiter that has not been released yet (if done() resets the operation, say) now waits for the new generation.
    # acq_rel: pairs with accept, begin and cancel. For an operation that goes on to a pool, the queue there has an
    # entry.
    cdef uint64_t renewed = (PLACED if owner else 0) | phase | <uint64_t>owner << OWNER_SHIFT
    cdef uint64_t seen = op.state.load(memory_order_relaxed)  # relaxed: the exchange decides
    while not swap64(
        op.state, seen, renewed | (0 if seen & RELEASED else seen & WAITED), memory_order_acq_rel, memory_order_relaxed
    ):
        pass
