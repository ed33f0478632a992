# Calls of a ring. See execution.pyx.

from cpython.object cimport PyObject

from ringmill._core.fixture cimport Call, Entry, Fixture

cdef void call_ring(Fixture fixture, Call* call, Entry* entry) noexcept
cdef int number_of_item(Fixture fixture, PyObject* item) noexcept
