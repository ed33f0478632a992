# One source of work in a pool: the operations that wait, and the place where the finished ones come out.

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic, memory_order_seq_cst

from ringmill._core.pool.operation cimport OperationBase
from ringmill._core.ring.ring cimport DONE, Result, try_put
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.waiting.wait_queue cimport SpinLock, Sleeper, WaitQueue, notify

cdef enum Renewal:              # what is to be done with what claim() took
    AS_IT_IS                    # begun
    RENEW                       # renewed first: it succeeded upstream, and is RESETTING
    PASS                        # nothing: it failed upstream, or was cancelled, and is to be emitted

cdef class WorkSource:
    cdef RingBuffer pending         # workers take from it; written once, like the next seven
    cdef RingBuffer ready           # finished ones come out of it; None: nobody reads them
    cdef bint external               # `pending` is the user's ring: an item is accepted by the worker that takes it
    cdef bint resets                # one that succeeded is reset as it is drawn; one that failed or was cancelled passes
    cdef object context             # foreign: the submitter's is that of the thread that wrapped the ring
    cdef RingBuffer permits         # drawn by a thread: one for each operation between source and reader
    cdef list reorder_buffer                 # ordered: finished ones that wait for their turn, NULL where none does
    cdef RingWatcher watcher                  # foreign: rung by the ring when an item comes in
    cdef SpinLock lock             # guards the next five
    cdef uint64_t drawn             # foreign: how many were accepted, or passed
    cdef atomic[uint64_t] passed    # how many were not accepted and come out as they are: see pass_by
    cdef uint64_t* shifts           # ordered, resets, not foreign: by position in `pending`, how many passed before it
    cdef uint64_t next_out          # ordered: the position that comes out next
    cdef object failure             # what the stream ends with, unless None; settled before `total`
    cdef object trace               # its traceback as it was then
    cdef bint from_source           # it is the source's: one reader is told, and that is `told`
    cdef atomic[uint32_t] granted_flag
    cdef PyObject* bad_item          # foreign: the item that could not be accepted, owned
    cdef atomic[int64_t] total      # how many come out in all; -1: not known yet. Written once, under the lock
    cdef atomic[uint32_t] abandoned  # the stream was dropped: a worker cancels what is left
    # in the pool's circular list of feeds; guarded by the pool's lock
    cdef PyObject* next
    cdef PyObject* prev
    cdef bint linked
    cdef PyObject* streams          # the pool's dict that has a weak reference to it; owned, like the key there; or NULL
    cdef PyObject* key
    cdef object __weakref__

    cdef int list_in(self, dict streams) except -1
    cdef void unlist(self) noexcept
    cdef Result claim(self, PyObject** op, uint64_t* position, uint32_t owner, Renewal* renewal) noexcept nogil
    cdef bint pass_by(self, PyObject* op) noexcept
    cdef void note_position(self) noexcept
    cdef void emit_in_order(self, PyObject* op, uint64_t position) noexcept
    cdef bint end(self, object failure) except -1
    cdef bint end_source(self, object error) except -1
    cdef bint end_with(self, object failure, bint from_source) except -1
    cdef int abort(self, object failure) except -1
    cdef bint ended(self) noexcept nogil
    cdef uint64_t accepted(self) noexcept nogil
    cdef Py_ssize_t free_places(self) noexcept nogil
    cdef bint has_work(self) noexcept nogil

cdef inline int came_out(WorkSource source, uint64_t place) noexcept:
    # One is in the ready ring, with so many before it.
    notify(&source.ready.not_empty)
    # seq_cst: pairs with end
    if <int64_t>(place + 1) == source.total.load(memory_order_seq_cst):
        source.ready.close_ring()
    return 0

cdef inline int emit(WorkSource source, PyObject* op, uint64_t position) noexcept:
    # The operation is over: hands it to the reader. Takes the caller's reference.
    cdef uint64_t place = 0
    if source.reorder_buffer is not None:
        if source.shifts:
            position += source.shifts[position % <uint64_t>source.ready.capacity]
        source.emit_in_order(op, position)
    elif source.ready is None or try_put(source.ready.ring, op, &place) != DONE:  # or the reader has closed it
        Py_DECREF(<object>op)  # was the worker's
    else:
        came_out(source, place)
    return 0

cdef class RingWatcher(Sleeper):
    cdef WaitQueue* target          # whom to notify
    cdef atomic[uint32_t] armed
    cdef object owner               # keeps `target` alive
    cdef void arm(self, WaitQueue* queue) noexcept
    cdef void disarm(self, WaitQueue* queue) noexcept

cdef bint take_over(OperationBase op) noexcept nogil
cdef bint is_unsuccessful(OperationBase op) noexcept nogil
