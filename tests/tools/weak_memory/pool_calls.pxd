# Calls of operations and of a pool's core. See scenarios.pyx.

from ringmill._core.stage cimport Call, Stage

cdef void call_operation(Stage stage, Call* call) noexcept
cdef void call_pool(Stage stage, int who, Call* call) noexcept
cdef void open_pool(Stage stage, int workers, Py_ssize_t capacity, str stream)
cdef str complaint(Stage stage)
