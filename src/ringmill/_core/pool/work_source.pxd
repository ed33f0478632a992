# WorkSource: the operations of one `do`, `execute` or `wrap`, from queue to reader. See work_source.pyx.

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic, memory_order_seq_cst

from ringmill._core.pool.operation cimport OperationBase, OwnerPool
from ringmill._core.ring.ring cimport DONE, Result, try_put
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.waiting.wait_queue cimport SpinLock, Sleeper, WaitQueue, notify

cdef enum Renewal:              # what to do with the operation that claim() took
    AS_IT_IS                    # begin it
    RENEW                       # renew it first: it succeeded upstream, and is RESETTING
    PASS                        # only emit it: it failed or was cancelled upstream

cdef enum:                      # the place of a source in its pool's SourceList, which see
    UNLINKED
    QUIET
    READY
    SPENT

cdef class WorkSource:
    cdef bint carries_items     # it is an ItemSource (item_source.pyx); `pending` and `ready` are None then
    cdef RingBuffer pending     # workers take from it; written once, like the next seven
    cdef RingBuffer ready       # ended operations come out of it; None: there is no reader
    cdef bint external          # `pending` is the user's ring: the worker that takes an item accepts it
    cdef bint resets            # operations that succeeded upstream are reset as they are drawn, others pass
    cdef object context         # external: that of the thread that called wrap
    cdef RingBuffer permits     # drawn by a thread: one permit for each operation between source and reader
    cdef list reorder_buffer    # ordered: ended operations that came too early, by position; None in empty slots
    cdef RingWatcher watcher    # external: waits in the ring's queue while workers sleep
    cdef SpinLock lock          # guards the next five
    cdef uint64_t drawn         # external: how many were accepted, or passed
    cdef atomic[uint64_t] passed  # how many were not accepted and come out untouched: see pass_by
    cdef uint64_t* shifts       # ordered and resets, not external: by position in `pending`, how many passed before it
    cdef uint64_t next_out      # ordered: the position that comes out next
    cdef object failure         # what the stream ends with, or None; written before `total`
    cdef object trace           # its traceback at that time
    cdef bint from_source       # the failure is the source's: it is raised to one reader, and then:
    cdef atomic[uint32_t] failure_raised
    cdef PyObject* bad_item     # external: the item that could not be accepted, owned
    cdef atomic[int64_t] total  # how many come out in all; -1: not known yet. Written once, under the lock
    cdef atomic[uint32_t] abandoned  # the stream was dropped: a worker cancels what is left
    cdef bint held              # the list owns it by a reference of its own: see PoolRun.drop; guarded by the pool's lock
    cdef PyObject* retries      # its first RetryEntry, of those that wait or are delayed; guarded by the pool's lock
    # in the pool's SourceList; guarded by the pool's lock
    cdef uint64_t arrival       # its number, in the order in which sources came or became READY
    cdef PyObject* next
    cdef PyObject* prev
    cdef atomic[uint64_t] place  # one of those above; read without the lock
    cdef PyObject* streams      # the pool's dict that has a weak reference to this object; owned, like its key; or NULL
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
    cdef void put_ended(self, PyObject* op, uint64_t position) noexcept
    # the reader's side
    cdef Result take_ready(self, PyObject** found, PyObject** item) noexcept
    cdef bint has_ready(self) noexcept nogil
    cdef bint is_over(self) noexcept nogil
    cdef bint is_closed(self) noexcept nogil
    cdef Py_ssize_t ready_count(self) noexcept
    cdef uint64_t read_count(self) noexcept
    cdef WaitQueue* readers(self) noexcept
    cdef int end_reading(self) except -1
    cdef bint ended_by_reader(self) noexcept
    cdef int drop_ready(self) except -1

cdef inline int came_out(WorkSource source, uint64_t place) noexcept:
    # An operation is in the ready ring; `place` is how many were put before it.
    notify(&source.ready.not_empty)
    # seq_cst: pairs with end
    if <int64_t>(place + 1) == source.total.load(memory_order_seq_cst):
        source.ready.close_ring()
    return 0

cdef inline int emit(WorkSource source, PyObject* op, uint64_t position) noexcept:
    # Gives an ended operation to the reader. Takes the caller's reference.
    cdef uint64_t place = 0
    if source.carries_items:
        source.put_ended(op, position)
    elif source.reorder_buffer is not None:
        if source.shifts:
            position += source.shifts[position % <uint64_t>source.ready.ring.capacity]
        source.emit_in_order(op, position)
    elif source.ready is None or try_put(source.ready.ring, op, &place) != DONE:  # or the reader has closed it
        Py_DECREF(<object>op)  # was the worker's
    else:
        came_out(source, place)
    return 0

cdef class RingWatcher(Sleeper):
    # Waits in the ring of an external source in the place of the workers.
    cdef OwnerPool run          # which it tells; written once
    cdef PyObject* source       # while that is linked, borrowed; guarded by the pool's lock
    cdef atomic[uint32_t] armed  # 1: it is in the ring's queue, or about to be
    cdef void arm(self, WaitQueue* queue) noexcept
    cdef void disarm(self, WaitQueue* queue) noexcept

cdef bint take_over(OperationBase op) noexcept nogil
cdef bint is_unsuccessful(OperationBase op) noexcept nogil
