# ItemRecord: an item as an operation. See item_record.pyx.

cimport cython
from cpython.object cimport PyObject

from ringmill._core.pool.operation cimport OperationBase

@cython.final
cdef class ItemRecord(OperationBase):
    cdef readonly object item   # written once
    cdef object value           # what `process` returned; written by the worker before the record has succeeded

cdef bint is_item_record(PyObject* op) noexcept nogil
# The caller owns it. NULL, with MemoryError set, where there is no memory.
cdef PyObject* new_item_record(PyObject* item) noexcept
# What the user knows of an operation of the pool's: the item of a record, or the operation itself; borrowed.
cdef PyObject* subject_of(PyObject* op) noexcept nogil
