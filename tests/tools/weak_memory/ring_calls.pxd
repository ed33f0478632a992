# Calls of a ring. See scenarios.pyx.

from cpython.object cimport PyObject

from ringmill._core.stage cimport Call, Entry, Stage

cdef void call_ring(Stage stage, Call* call, Entry* entry) noexcept
cdef int number_of_item(Stage stage, PyObject* item) noexcept
