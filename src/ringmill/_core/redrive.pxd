# What happens to operations otherwise than on a worker: put back, cancelled, ended. See redrive.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from ringmill._core.books cimport Books, Tally
from ringmill._core.feed cimport Feed
from ringmill._core.operation cimport Note, OperationBase

cdef class Redrive:
    # An operation that was put back, and what is known of its way.
    cdef readonly OperationBase operation  # None once it has ended while its delay ran
    cdef object key             # what postponed holds it by; fixed: `due` may come late, and must not touch the operation
    cdef Feed feed
    cdef uint64_t position
    # by worker's index, 1 or 0; None: nobody. Written under the pool's lock, by the worker that has the operation
    cdef readonly bytes had     # equal to one that had it since it last started over: others first
    cdef readonly bytes rejected  # rejected it: never again

cdef class Redrives(Books):
    # guarded by the pool's lock
    cdef list orphans           # (operation, feed, position): cancelled, claimed, not yet released; see emit_cancelled
    cdef bint undelayed         # nothing is put back with a delay any more: the interpreter ends

    cdef int push_aside(self, Redrive record, bint from_delay) except -1
    cdef int put_in_side(self, Redrive record) except -1
    cdef Redrive take_from_side(self, Py_ssize_t k)
    cdef Redrive take_aside(self, Tally runner)
    cdef bint may_take(self, Redrive record, Tally runner) noexcept
    cdef bint routable(self, Redrive record) noexcept
    cdef int end_redrive(self, Redrive record) except -1
    cdef int emit_cancelled(self, PyObject* op, Feed feed, uint64_t position) except -1
    cdef int end_one(self, OperationBase op, Feed feed, uint64_t position, uint32_t phase, Note note,
                     list ended) except -1
    cdef int end_unbegun(self, Feed feed, uint32_t phase, Note note, list ended) except -1
    cdef int end_pending(self, uint32_t phase, Note note, list ended) except -1
    cdef Redrive take_any(self)
    cdef dict take_postponed(self)

cdef str describe(object o)
cdef Note new_note(object error, OperationBase op, bint seen)
