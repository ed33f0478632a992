# Results, the reading side of map. See results.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from ringmill._core.pool.item_source cimport ItemSource
from ringmill._core.pool.run cimport PoolRun
from ringmill._core.pool.stream cimport Stream

cdef enum Errors:               # what a read does with an item's error
    RAISE
    RETURN
    SKIP

@cython.final
cdef class Results(Stream):
    cdef ItemSource items           # the same object as `source`; written once, like the next
    cdef Errors errors

    cdef int take_next(self, PyObject** found, int64_t deadline) except -1
    cdef object value_of(self, PyObject* found, bint in_get)
    cdef bint few_ahead(self) noexcept
    cdef object error_of(self, uint64_t outcome)
    cdef list take_values(self, list values, Py_ssize_t limit)
    cdef bint take_value(self, PyObject** found) noexcept

cdef Results new_results(PoolRun run, ItemSource source, object errors, object iterator, bint awaits)
