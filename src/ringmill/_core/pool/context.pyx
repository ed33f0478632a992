# Running a worker's methods in the context of the submitter: contextvars, and the decimal context, which is one of
# them.
#
# The context is captured when an operation is submitted, and is never entered itself. Each call of `process` and of
# `handle_error` enters a copy of it, so the next try and other operations do not see what a call sets.
#
# A copy of a context shares its values. All are meant to be immutable except one, the decimal context: programs change
# its precision in place, and every calculation writes its flags. So each copy made here has its own copy of the decimal
# context: at the capture, because the submitter may change its own before the operation begins, and for each call.
#
# The variables that a worker's `init` has set on its thread, and that the submitter's context lacks, are set in the
# copy too.

import contextvars
import sys

from cpython.object cimport PyObject

from ringmill._core.platform.primitives cimport steal
from ringmill._core.pool.operation cimport OperationBase

cdef extern from "Python.h":
    object PyContext_CopyCurrent()
    object PyContext_Copy(object context)
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    int PyContextVar_Get(object variable, PyObject* default, PyObject** value) except -1
    object PyContextVar_Set(object variable, object value)
    PyObject* call_method "PyObject_CallMethodObjArgs"(PyObject* o, PyObject* name, ...) noexcept
    object PySequence_GetItem(object sequence, Py_ssize_t index)

# A one-item list, so that one thread may replace the tuple while another reads it: the module `decimal`, the variable
# that holds a context's decimal context, and the type of that. Each is None if there is none.
cdef tuple no_decimal = (None, None, None)
cdef list known_decimal = [no_decimal]


cdef tuple find_decimal():
    # The variable is not public: it is found as the one that `decimal.getcontext()` sets in an empty context.
    cdef tuple found = PySequence_GetItem(known_decimal, 0)  # one atomic step on either build
    module = sys.modules.get("decimal")
    if module is found[0] or module is None:  # None: not loaded, or purged from sys.modules and still in use
        return found
    try:
        getcontext = module.getcontext
        kind = module.Context
    except AttributeError:
        return no_decimal  # another thread is importing it
    context = contextvars.Context()
    context.run(getcontext)
    found = (module, None, kind)  # a CPython that was built without it keeps a decimal context for each thread
    for variable in context:
        if isinstance(context[variable], kind):
            found = (module, variable, kind)
    known_decimal[0] = found
    return found


cdef object copy_decimal():
    # A copy of the decimal context in the calling thread's context; None if that has none.
    cdef tuple found = find_decimal()
    cdef PyObject* value = NULL
    if found[1] is None:
        return None
    PyContextVar_Get(found[1], NULL, &value)
    # The type's own method: a copy of a subclass is a plain one, as in decimal.localcontext().
    return found[2].copy(steal(value)) if value else None


cdef object capture():
    """Returns a copy of the calling thread's context, with its own copy of the decimal context."""
    context = PyContext_CopyCurrent()
    decimal = copy_decimal()
    if decimal is not None:
        PyContext_Enter(context)
        try:
            PyContextVar_Set(find_decimal()[1], decimal)
        finally:
            PyContext_Exit(context)
    return context


def copy_context():
    """Returns `contextvars.copy_context()`, with a copy of the decimal context of its own."""
    return capture()


cdef class InContext:
    """Calls a worker's `process` or `handle_error` in a copy of the context of the operation's submitter.

    Must be made on the worker's thread, after `init`. The last argument of a call must be the operation.
    """

    def __init__(self, function):
        self.function = function
        self.own = list(PyContext_CopyCurrent().items())

    def __call__(self, *args):
        cdef OperationBase op
        if not args or not isinstance(args[len(args) - 1], OperationBase) or self.own is None:
            raise TypeError("the last argument must be an operation that carries a context")
        op = args[len(args) - 1]
        if op.context is None:
            raise TypeError("the last argument must be an operation that carries a context")
        return self.call(op.context, args)

    def run(self, context, tuple args not None):
        """Calls it with these arguments, in a copy of that context."""
        return self.call(context, args)

    cdef object call(self, object given, tuple args):
        context = PyContext_Copy(given)
        PyContext_Enter(context)
        try:
            for variable, value in self.own:
                if variable not in context:
                    PyContextVar_Set(variable, value)
            decimal = copy_decimal()
            if decimal is not None:
                PyContextVar_Set(find_decimal()[1], decimal)
            return self.function(*args)
        finally:
            PyContext_Exit(context)


cdef str run_name = "run"


cdef PyObject* call_in_context(PyObject* function, PyObject* context, PyObject* args) noexcept:
    return call_method(function, <PyObject*>run_name, context, args, <PyObject*>NULL)
