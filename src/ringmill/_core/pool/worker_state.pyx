# One worker of a run, as the rest of the run sees it: its counters, whether it is alive, what it waits for.
#
# WorkerLoop (worker_loop.pyx), which runs the worker, has one; so have the parts of PoolRun that deal with workers. The
# counters and what they mean are at the head of accounting.pyx, the waits at that of worker_waits.pyx.

from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_tss_create, PyThread_tss_get, PyThread_tss_set
from cpython.ref cimport Py_DECREF

from ringmill._core.pool.operation cimport OwnerPool, traverseproc
from ringmill._core.waiting.wait_queue cimport visitproc

cdef extern from "Python.h":
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear

cdef Py_tss_t current           # the WorkerState whose thread this is, borrowed, between enter_thread and leave_thread
PyThread_tss_create(&current)


cdef class WorkerState:
    """One worker of a run, as the rest of the run sees it."""

    def __cinit__(self, OwnerPool run not None, worker, Py_ssize_t index):
        self.run = run
        self.worker = worker
        self.index = index
        self.name = str(index)

    def __dealloc__(self):
        # Only in the child of a fork: its thread stayed in the parent, with an operation that it ran.
        if self.op:
            Py_DECREF(<object>self.op)


cdef void enter_thread(WorkerState state) noexcept:
    # The calling thread is this worker's from now on, until leave_thread().
    PyThread_tss_set(&current, <void*>state)


cdef void leave_thread() noexcept:
    PyThread_tss_set(&current, NULL)


cdef PyObject* current_worker() noexcept:
    # The WorkerState whose thread this is, of whatever pool, borrowed; or NULL.
    return <PyObject*>PyThread_tss_get(&current)


# The garbage collector: Cython knows nothing of raw pointers (rule 11). All but `op` are borrowed.
cdef PyTypeObject* state_type = <PyTypeObject*>WorkerState
cdef traverseproc base_traverse = state_type.tp_traverse
cdef inquiry base_clear = state_type.tp_clear


cdef int state_traverse(PyObject* state, visitproc visit, void* arg) noexcept:
    cdef int status = base_traverse(state, visit, arg)
    if not status and (<WorkerState>state).op:
        status = visit((<WorkerState>state).op, arg)
    return status


cdef int state_clear(PyObject* state) noexcept:
    cdef PyObject* op = (<WorkerState>state).op
    (<WorkerState>state).op = NULL
    if op:
        Py_DECREF(<object>op)  # was the worker's
    return base_clear(state)


state_type.tp_traverse = state_traverse
state_type.tp_clear = state_clear
