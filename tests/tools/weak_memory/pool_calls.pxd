# Calls of operations and of a pool's core. See execution.pyx.

from ringmill._core.fixture cimport Call, Fixture

cdef void call_operation(Fixture fixture, Call* call) noexcept
cdef void call_pool(Fixture fixture, int who, Call* call) noexcept
cdef void open_pool(Fixture fixture, int workers, Py_ssize_t capacity, str stream, bint moves_empty)
cdef str complaint(Fixture fixture)
