# The sources of work that a run serves. See source_list.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from ringmill._core.pool.work_source cimport WorkSource

@cython.final
cdef class SourceList:
    cdef PyObject* first            # the circular list of linked sources; guarded by the pool's lock, like the next
    cdef Py_ssize_t length
    cdef dict kept                  # owns the linked sources, as its keys, in the order of their coming
    cdef dict streams               # weak references to the sources that a reader may have, spent ones too, by address

    # before a source is linked, and after it was unlinked; without the lock
    cdef int keep(self, WorkSource source) except -1
    cdef int forget(self, WorkSource source, bint unlist) except -1
    # under the pool's lock
    cdef void link(self, PyObject* source) noexcept nogil
    cdef bint unlink(self, PyObject* source) noexcept nogil
    cdef uint64_t accepted(self) noexcept nogil
    cdef Py_ssize_t count_with_work(self, Py_ssize_t enough) noexcept nogil
    cdef PyObject* find(self, PyObject* after, PyObject* inbox, bint watch, PyObject** spent) noexcept
