# Calls of a hub. See scenarios.pyx.

from ringmill._core.stage cimport Call, Stage

cdef void open_hub(Stage stage, int subscriptions, set late, Py_ssize_t capacity, dict ways)
cdef void call_hub(Stage stage, Call* call) noexcept
cdef str complaint_of_hub(Stage stage)
