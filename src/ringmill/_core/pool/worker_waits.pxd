# Workers that wait for work of their own pool. See worker_waits.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from ringmill._core.pool.operation cimport OperationBase
from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.pool.worker_state cimport WorkerState
from ringmill._core.pool.worker_table cimport WorkerTable

@cython.final
cdef class WorkerWait:
    # A wait on a worker's thread for work of its own pool. Written before it is linked.
    cdef WorkerState worker
    cdef OperationBase operation    # it waits for this operation,
    cdef WorkSource source          # or for what comes out here,
    cdef bint for_turn              # or for the turn to read that
    cdef bint timed                 # with a timeout, so that it ends by itself
    cdef uint32_t expected_generation  # of the operation
    cdef uint64_t word              # the worker's
    cdef bint in_task               # a task of an event loop waits, and the thread may go on
    cdef bint linked                # guarded by the pool's lock, like the next two
    cdef PyObject* next
    cdef PyObject* prev

@cython.final
cdef class WorkerWaits:
    # All of it is guarded by the pool's lock, under which all methods are called.
    cdef WorkerTable workers        # written once
    cdef Py_ssize_t look_from       # the worker that was found not to wait when one was last looked for
    cdef PyObject* stalled[64]      # chains of the WorkerStates that have a WorkerWait, by the operation that they run
    cdef uint64_t visits            # numbers the searches of waits_for_itself

    cdef void link_wait(self, PyObject* wait) noexcept
    cdef void unlink_wait(self, PyObject* wait) noexcept
    cdef bint refuses(self, PyObject* wait) noexcept
    cdef void retire(self, PyObject* worker) noexcept
    cdef void take_back(self, PyObject* worker) noexcept
    cdef bint worker_left(self) noexcept
    cdef Py_ssize_t count_waiting(self) noexcept
    cdef void join_stalled(self, PyObject* worker, PyObject* running) noexcept
    cdef void leave_stalled(self, PyObject* worker) noexcept
    cdef bint waits_for_itself(self, PyObject* worker, PyObject* wait) noexcept

# All under the pool's lock; `worker` is a WorkerState, borrowed. Whether it is in a wait for work of its pool that has not come
# for good: it takes no operation before that has, or its time is over. It begins to be so where it enters a wait, nowhere else.
cdef bint is_waiting(PyObject* worker) noexcept nogil
# The same of waits without a timeout only: it takes no operation before that has come.
cdef bint is_stalled(PyObject* worker) noexcept nogil
# Whether it waits for this operation, or for what comes out of this source. These two are borrowed; or NULL. `timed`: or in
# a wait with a timeout.
cdef bint waits_for(PyObject* worker, PyObject* operation, PyObject* source, bint timed) noexcept nogil
