# Calls of a hub. See execution.pyx.

from ringmill._core.fixture cimport Call, Fixture

cdef void open_hub(Fixture fixture, int subscriptions, set late, Py_ssize_t capacity, dict ways)
cdef void call_hub(Fixture fixture, Call* call) noexcept
cdef str complaint_of_hub(Fixture fixture)
