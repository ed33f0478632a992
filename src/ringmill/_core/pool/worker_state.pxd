# One worker of a run, as the rest of the run sees it. See worker_state.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.pool.operation cimport OwnerPool

@cython.final
cdef class WorkerState:
    # Written by the worker's own thread, unless said otherwise.
    cdef object worker              # None once it has left; written under the pool's lock after the first time
    cdef OwnerPool run              # written once, like the next
    cdef bytes equals               # see retry_routing.pyx; None: it is equal to no earlier worker
    cdef readonly Py_ssize_t index  # its number in the run; written before a thread runs it, like the next
    cdef readonly str name          # of its thread, and in log lines
    cdef uint8_t stage              # guarded by the lock of RunThreads, which see
    cdef atomic[uint32_t] dismissed  # 1: it leaves when it can; see PoolRun.leaves. Written by any thread
    cdef PyObject* op               # what the worker has taken and not ended, owned; used by its own thread only
    cdef atomic[uint64_t] word      # twice the operations it ended, plus one while it runs one
    cdef uint64_t failed            # these four are written under the pool's lock
    cdef uint64_t retried
    cdef uint64_t tries
    cdef uint64_t restarts
    cdef atomic[uint32_t] alive     # between init and the end of its loop; written under the pool's lock
    cdef bint retired               # written under the pool's lock, like all that follows
    cdef bint joined                # it has been one of the run's workers
    cdef bint held_back             # it was to leave and could not: see PoolRun.leaves
    # for retry_routing.pyx
    cdef PyObject* cursor           # the last entry that it has passed over, borrowed; NULL: it begins at the first one
    cdef PyObject* next_cursor      # another worker whose cursor is there
    cdef PyObject* prev_cursor
    cdef uint64_t reviewed          # the review in which it has passed over those up to the cursor
    # for worker_waits.pyx
    cdef PyObject* first_wait       # its WorkerWaits, borrowed: each is linked while its owner is in the wait
    cdef PyObject* running          # the operation in which it entered the last of them; only to be compared
    cdef PyObject* next_stalled     # in the bucket of WorkerWaits.stalled that `running` belongs to
    cdef uint64_t visited           # the last search of waits_for_itself that has come here, and its next worker
    cdef PyObject* todo

cdef void enter_thread(WorkerState state) noexcept
cdef void leave_thread() noexcept
cdef PyObject* current_worker() noexcept
