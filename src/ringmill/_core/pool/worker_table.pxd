# The workers of a run, by number. See worker_table.pyx.

cimport cython
from cpython.object cimport PyObject
from libcpp.atomic cimport atomic

from ringmill._core.waiting.wait_queue cimport SpinLock

@cython.final
cdef class WorkerTable:
    cdef list owned                 # the WorkerStates of the table, and those on their way into it
    # guarded by the pool's lock
    cdef PyObject** states          # by number; borrowed
    cdef Py_ssize_t count           # how many there have been; never shrinks
    cdef Py_ssize_t capacity
    cdef Py_ssize_t reserved        # places of `states` that are promised
    cdef atomic[Py_ssize_t] present  # workers that have neither left nor been lost; written under the lock

    cdef int reserve(self, list states, SpinLock* lock) except -1
    # under the pool's lock
    cdef void give_back(self, Py_ssize_t places) noexcept nogil
    cdef void add(self, PyObject* state, bint joins) noexcept nogil
