# The sources of work that a run serves. See source_list.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from ringmill._core.pool.work_source cimport WorkSource

@cython.final
cdef class SourceList:
    # guarded by the pool's lock; by place
    cdef PyObject* firsts[4]        # of each circular list
    cdef Py_ssize_t lengths[4]
    cdef Py_ssize_t keeps_empty     # how many sources without work stay READY; written once
    cdef PyObject* inbox            # the source that is never spent, nor QUIET; borrowed; or NULL
    cdef dict kept                  # owns the linked sources, as its keys, in the order of their coming
    cdef dict streams               # weak references to the sources that a reader may have, spent ones too, by address

    # before a source is linked, and after it was unlinked; without the lock
    cdef int keep(self, WorkSource source) except -1
    cdef int forget(self, WorkSource source, bint unlist) except -1
    # under the pool's lock
    cdef void link(self, PyObject* source) noexcept
    cdef bint unlink(self, PyObject* source) noexcept
    cdef bint make_ready(self, PyObject* source) noexcept
    cdef void make_spent(self, PyObject* source) noexcept
    cdef uint64_t accepted(self) noexcept nogil
    cdef Py_ssize_t count_with_work(self, Py_ssize_t enough) noexcept
    cdef PyObject* find(self, bint in_turn, bint watch) noexcept
    cdef bint look_at(self, PyObject* source, bint watch) noexcept
    cdef void move(self, PyObject* source, uint64_t before, uint64_t place) noexcept nogil
