# OperationBase: outcome, tries and waiters of an operation. The protocol is at the head of operation.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport (
    atomic,
    memory_order_acq_rel,
    memory_order_acquire,
    memory_order_relaxed,
    memory_order_release,
)

from ringmill._core.platform.gil_atomics cimport exchange64, swap64
from ringmill._core.platform.spinning cimport Spin
from ringmill._core.waiting.wait_queue cimport WaitNode, visitproc

cdef enum:
    # the phase, in the state's low bits
    NEW = 0
    QUEUED = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5
    RESETTING = 6               # ended, and being made new
    PHASE = 7                   # the mask
    # flags above the phase
    RELEASED = 8                # done() was called: waiters need not wait any more
    WAITED = 16                 # there are waiters, or were
    PLACED = 32                 # a queue has an entry for it that no worker has claimed yet

cdef class ErrorRecord:
    # The error that ended an operation. Logs the error when it is deallocated without having been read.
    cdef object error
    cdef object traceback
    cdef object kind            # the type of the operation that failed
    cdef atomic[uint32_t] seen  # 1: the error was read; relaxed, since only its last owner looks at that
    cdef atomic[uint32_t] raised  # 1: the error itself was given to a thread to raise, or a worker logs it; others get copies

# For callers that must not raise: without memory it returns NULL, with MemoryError set. The caller owns the result.
cdef PyObject* new_error_record(PyObject* error, PyObject* kind, bint seen) noexcept

cdef class OwnerPool:
    # The run of a pool, as operations see it. A table finds it by its number, so an operation holds no reference to it.
    cdef readonly uint32_t number
    cdef uint32_t epoch         # the fork epoch in which it was made
    cdef Spin spin              # of the threads that wait for its operations
    cdef object __weakref__
    cdef int cancel(self, OperationBase op) except -1
    cdef void ring_changed(self, PyObject** source) noexcept
    # See worker_waits.pyx.
    cdef object enter_wait(self, OperationBase operation, object source, bint for_turn, bint in_task, bint timed)
    cdef void leave_wait(self, object wait) noexcept
    cdef object stopped_error(self)

cdef enum:
    OWNER_SHIFT = 32            # above the flags: the number of the pool that accepted it, while it is pending there

cdef class OperationBase:
    cdef atomic[uint64_t] state
    cdef atomic[uint32_t] tried  # the number of failed tries; written by the worker that runs it
    cdef atomic[uint32_t] generation  # how often it was reset: tells a waiter that what it waited for has ended
    cdef WaitNode* waiters      # guarded by the lock of the operation's bucket
    cdef ErrorRecord error_record  # guarded by the same lock; written before the phase becomes FAILED
    cdef object context         # guarded by the same lock: the submitter's context while pending (context.pyx); or None
    # The address of its RetryEntry while that waits or is delayed; else 0. Written under the lock of the pool that has it, read
    # by others too, which do not follow it.
    cdef atomic[uint64_t] entry
    cdef object __weakref__

    cdef bint try_cancel(self, uint32_t owner) noexcept nogil
    cdef int end_overridden(self, uint32_t phase) except -1
    cdef int announce_done(self, uint32_t phase, bint overridden) except -1
    cdef bint call_done(self, int left) noexcept
    cdef int release(self, uint32_t phase) except -1
    cdef bint cancel_quietly(self) except -1
    cdef int park(self, int64_t deadline) except -1
    cdef bint enqueue(self, WaitNode* node) noexcept
    cdef bint unlink(self, WaitNode* node) noexcept
    cdef ErrorRecord get_error_record(self)
    cdef void set_error_record(self, ErrorRecord error_record) noexcept
    cdef void set_context(self, object context) noexcept

cdef extern from "Python.h":
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef PyObject* (*newfunc)(PyTypeObject*, PyObject*, PyObject*) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        newfunc tp_new
    bint PyObject_TypeCheck(PyObject* o, PyTypeObject* type) nogil

cdef PyTypeObject* operation_type   # OperationBase; read-only

cdef object wake_waiters(OperationBase op)
cpdef object call_verb(OperationBase op, str name)
cpdef object name_of(object kind)
cdef bint overrides_done(PyObject* kind) noexcept

cdef inline bint is_operation(PyObject* o) noexcept nogil:
    return PyObject_TypeCheck(o, operation_type)

cdef inline uint32_t phase_of(OperationBase op) noexcept nogil:
    return <uint32_t>op.state.load(memory_order_acquire) & PHASE  # acquire: pairs with the release in end

cdef inline bint accept(OperationBase op, uint32_t owner) noexcept nogil:
    # NEW -> QUEUED, from any thread. False: it is pending, or ended and not reset.
    cdef uint64_t seen = op.state.load(memory_order_relaxed)  # relaxed: the exchange decides
    while not seen & PHASE:
        # acq_rel: acquires what reset wrote; releases the operation to the thread that claims it
        if swap64(
            op.state, seen,
            seen | QUEUED | PLACED | <uint64_t>owner << OWNER_SHIFT,
            memory_order_acq_rel,
            memory_order_relaxed,
        ):
            return True
    return False

cdef inline bint unaccept(OperationBase op) noexcept nogil:
    # QUEUED -> NEW: the pool could not queue it. False: it was cancelled meanwhile, and counted as cancelled.
    cdef uint64_t seen = op.state.load(memory_order_relaxed)  # relaxed: the exchange decides
    while seen & PHASE == QUEUED:
        # acq_rel: as accept
        if swap64(
            op.state, seen, seen & (RELEASED | WAITED), memory_order_acq_rel, memory_order_relaxed
        ):
            return True
    return False

cdef inline bint begin(OperationBase op) noexcept nogil:
    # QUEUED -> RUNNING, by the worker that claimed its entry. False: it was cancelled meanwhile.
    cdef uint64_t seen = op.state.load(memory_order_relaxed)  # relaxed: the exchange decides
    while seen & PHASE == QUEUED:
        # acq_rel: acquires what the submitter wrote; decides the race with cancel
        if swap64(
            op.state, seen, (seen ^ (QUEUED ^ RUNNING)) & ~<uint64_t>PLACED, memory_order_acq_rel, memory_order_relaxed
        ):
            return True
    return False

cdef inline int end(OperationBase op, uint32_t phase, bint overridden) except -1:
    # RUNNING -> the outcome, then done(). Only by the worker that made it RUNNING; the error record is set already.
    cdef uint64_t seen
    if op.context is not None:
        op.set_context(None)
    if overridden:
        return op.end_overridden(phase)
    # acq_rel: publishes the outcome and all that the worker wrote; reads WAITED (see the head of operation.pyx)
    seen = exchange64(op.state, phase | RELEASED, memory_order_acq_rel)
    if seen & (WAITED | RELEASED) == WAITED:
        wake_waiters(op)
    return 0

cdef inline void put_back(OperationBase op) noexcept nogil:
    # RUNNING -> QUEUED, by the worker that runs it, for a retry: a queue has an entry again, and it may be cancelled.
    op.state.fetch_xor(RUNNING ^ QUEUED ^ PLACED, memory_order_acq_rel)  # acq_rel: as accept

cdef inline void unplace(OperationBase op) noexcept nogil:
    # The entry of a cancelled operation was claimed: it may be reset from here on.
    op.state.fetch_and(~<uint64_t>PLACED, memory_order_acq_rel)  # acq_rel: as accept

# The object to raise for an error that several threads may raise: see operation.pyx.
cdef object raisable(ErrorRecord error_record)
cdef object with_traceback(object error, object traceback)
cdef object traceback_of(object error)
cdef object copy_of(object error)
cdef object own_error(object error)
cdef int log_exception(str message, object subject) except -1
cdef void log_error(int level, str message, PyObject* arguments, PyObject* error) noexcept
cdef bint hook_raised(object error, str message, object subject) except -1
cdef bint keep_keyboard_interrupt(object error) except -1
cdef int raise_kept() except -1
cpdef object take_keyboard_interrupt()
cdef object reset(OperationBase op)
cdef void renew(OperationBase op, uint32_t phase, uint32_t owner) noexcept
