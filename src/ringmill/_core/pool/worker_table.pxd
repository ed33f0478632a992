# The workers of a run, by number. See worker_table.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t
from libcpp.atomic cimport atomic

from ringmill._core.waiting.wait_queue cimport SpinLock

cdef enum:                      # what a worker is now, one bit each
    PRESENT = 1                 # it has joined, and has neither left nor been lost
    WITHOUT_WAIT = 2            # and is in no wait for work of its pool
    ALIVE = 4                   # takes operations: between init and the end of its loop
    AVAILABLE = 8               # alive, and in no such wait

@cython.final
cdef class WorkerTable:
    cdef list owned                 # the WorkerStates of the table, and those on their way into it
    # guarded by the pool's lock
    cdef PyObject** states          # by number; borrowed
    cdef uint8_t* flags             # by number; in the same block of memory
    cdef Py_ssize_t count           # how many there have been; never shrinks
    cdef Py_ssize_t capacity
    cdef Py_ssize_t reserved        # places of `states` that are promised
    cdef Py_ssize_t in_wait         # how many are PRESENT and not WITHOUT_WAIT
    cdef bint has_equals            # one of them is equal to an earlier one; see retry_routing.pyx
    cdef atomic[Py_ssize_t] present  # workers that have neither left nor been lost; written under the lock

    cdef int reserve(self, list states, SpinLock* lock) except -1
    # under the pool's lock
    cdef void give_back(self, Py_ssize_t places) noexcept nogil
    cdef void add(self, PyObject* state, bint joins) noexcept
    cdef void mark(self, PyObject* state) noexcept nogil
