# Copies of contexts (contextvars), and calls in them. The rules are at the head of context.pyx.

cimport cython
from cpython.object cimport PyObject

cdef object capture()

@cython.final
cdef class InContext:
    cdef object function
    cdef list own                   # the variables that are set on the thread itself, with their values; usually none
    cdef object call(self, object context, tuple args)

# Calls an InContext with a tuple of arguments; NULL: it has raised.
cdef PyObject* call_in_context(PyObject* function, PyObject* context, PyObject* args) noexcept
