# ItemRecord: an item as an operation: one of `call`, or one of `map` from its first failure on.
#
# May use `operation`. Everything that happens to operations that fail (retries, delays, routing, cancelling, the error)
# is written for operations; a record makes it hold for items. The user never sees it.

from cpython.object cimport PyObject

from ringmill._core.pool.operation cimport OperationBase

cdef extern from "Python.h":
    ctypedef PyObject* (*newfunc)(Type*, PyObject*, PyObject*) noexcept
    ctypedef struct Type "PyTypeObject":
        newfunc tp_new
    Type* Py_TYPE(PyObject* o) nogil


cdef class ItemRecord(OperationBase):
    """An item as an operation."""


cdef tuple no_arguments = ()
cdef Type* record_type = <Type*>ItemRecord


cdef bint is_item_record(PyObject* op) noexcept nogil:
    return Py_TYPE(op) == record_type


cdef PyObject* new_item_record(PyObject* item) noexcept:
    cdef PyObject* record = record_type.tp_new(record_type, <PyObject*>no_arguments, NULL)
    if record != NULL:
        (<ItemRecord>record).item = <object>item
    return record


cdef PyObject* subject_of(PyObject* op) noexcept nogil:
    return <PyObject*>(<ItemRecord>op).item if is_item_record(op) else op


def subject(op):
    """Returns what the user knows of an operation of the pool's: the item of a record, or the operation itself."""
    return <object>subject_of(<PyObject*>op)
