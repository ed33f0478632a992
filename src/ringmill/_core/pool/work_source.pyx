# WorkSource: one source of work in a pool, from the queue of waiting operations to the ring from which the reader takes
# the ended ones. `do` has one work source, each `execute` and each `wrap` its own.
#
#     accept --> pending ring --> a worker: claim, begin, call, end --> emit --> ready ring --> reader
#
# May use `operation`, `ring`, `waiting` and `platform`.
#
# Both ends are ring buffers, and their positions are the counters: the number of items ever put into `pending` is what
# was accepted, ever put into `ready` is what came out, ever taken from `ready` is what was read. There is no other
# counter that could disagree with the queues.
#
# No worker ever waits to emit: `ready` has room for each operation before the operation is accepted. The rings of an
# execute are as long as its list; a wrap draws only while drawn - read < buffer.
#
# External source: `pending` is a RingBuffer of the user's. Its items are not accepted beforehand, so the worker that
# takes one accepts it, under the source's lock, which makes one step of: check for room, take, number. While workers
# sleep, the source's RingWatcher waits in the queue of that ring in their place. A worker arms it before it sleeps, and
# a worker that ends a search while others sleep does too, and one that makes the source QUIET (source_list.pyx), under
# the pool's lock while the source is linked. A put wakes the watcher, which disarms it; it makes the source READY and
# wakes a worker, which looks at the ring. (tests/models/test_model_ring_watcher.py searches all
# interleavings.)
#
# Chained pools (`reset=True`). An operation that succeeded upstream is reset as it is drawn, and accepted. One that
# failed or was cancelled there is not accepted: the thread that draws it (for an external source, the worker that takes
# it) emits it at once, untouched. It takes room between source and reader like any other, so `passed` is added wherever
# room and emitted operations are counted. In an ordered stream an operation's position in the source is its position in
# `pending` plus the number of operations that passed before it, which `shifts` records.
#
# The end: `total` is written once, when nothing more will be accepted (source exhausted, pool stopping, reader gone). A
# thread that emits compares the count with `total` after its put; the thread that writes `total` compares it with the
# count after that. Both are sequentially consistent, so at least one of them sees that all have come out, and closes
# `ready`.

import weakref

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_seq_cst

from ringmill._core.platform.gil_atomics cimport swap64
from ringmill._core.pool.operation cimport (
    CANCELLED,
    FAILED,
    PHASE,
    PLACED,
    RESETTING,
    SUCCEEDED,
    OperationBase,
    accept,
    is_operation,
    traceback_of,
)
from ringmill._core.ring.ring cimport (
    DONE,
    NOT_NOW,
    SHUT,
    get_count,
    has_items,
    is_shut,
    put_count,
    shut,
    size,
    try_get,
    try_put,
)
from ringmill._core.waiting.wait_queue cimport acquire, begin_sleep, cancel_sleep, notify, release, visitproc

cdef extern from "Python.h":
    ctypedef struct PyListObject:
        PyObject** ob_item
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear
    object PyLong_FromVoidPtr(void*)

cdef object ref = weakref.ref


cdef bint take_over(OperationBase op) noexcept nogil:
    # SUCCEEDED -> RESETTING: only the caller may renew it then.
    cdef uint64_t seen = op.state.load(memory_order_acquire)  # acquire: pairs with end
    while seen & PHASE == SUCCEEDED:
        # acquire twice: exactly one of several threads succeeds
        if swap64(
            op.state, seen, (seen & ~<uint64_t>PHASE) | RESETTING, memory_order_acquire, memory_order_acquire
        ):
            return True
    return False


cdef bint is_unsuccessful(OperationBase op) noexcept nogil:
    # Failed or cancelled, unless a queue still has an entry for it, which its pool will find.
    cdef uint64_t seen = op.state.load(memory_order_acquire)  # acquire: pairs with end
    return (seen & PHASE == FAILED or seen & PHASE == CANCELLED) and not seen & PLACED


cdef class WorkSource:
    def __cinit__(self, RingBuffer pending, RingBuffer ready=None, *, bint ordered=False, bint external=False,
                  bint resets=False, RingBuffer permits=None, context=None):
        self.passed.store(0, memory_order_relaxed)  # relaxed: as the next
        self.place.store(UNLINKED, memory_order_relaxed)  # relaxed: as the next
        self.total.store(-1, memory_order_relaxed)  # relaxed: published with the object
        self.context = context
        if pending is None:
            return  # an ItemSource, which has neither ring
        pending.check_made()
        if ready is not None:
            ready.check_made()
        elif ordered:
            raise TypeError("ready must be a RingBuffer where the order is kept, not None")
        self.pending = pending
        self.ready = ready
        self.external = external
        self.resets = resets
        self.permits = permits
        self.reorder_buffer = [None] * <Py_ssize_t>ready.ring.capacity if ordered else None
        if ordered and resets and not external:
            self.shifts = <uint64_t*>PyMem_RawMalloc(ready.ring.capacity * sizeof(uint64_t))
            if self.shifts == NULL:
                raise MemoryError

    def __dealloc__(self):
        if self.bad_item:
            Py_DECREF(<object>self.bad_item)
        PyMem_RawFree(self.shifts)
        self.unlist()

    cdef int list_in(self, dict streams) except -1:
        # A plain weak reference, which __dealloc__ takes out: a callback of weakref's, as a WeakSet's, would be Python
        # code that runs as a stream is dropped, and a KeyboardInterrupt raised there is lost.
        key = PyLong_FromVoidPtr(<void*>self)
        streams[key] = ref(self)
        Py_INCREF(streams)
        Py_INCREF(key)
        self.streams = <PyObject*>streams
        self.key = <PyObject*>key
        return 0

    cdef void unlist(self) noexcept:
        cdef PyObject* streams = self.streams
        self.streams = NULL
        if streams:
            (<dict>streams).pop(<object>self.key, None)
            Py_DECREF(<object>self.key)
            Py_DECREF(<object>streams)

    cdef Result claim(self, PyObject** op, uint64_t* position, uint32_t owner, Renewal* renewal) noexcept nogil:
        # Takes the next operation, with its reference, for a worker or for a thread that cancels. SHUT: nothing is left
        # and nothing will come.
        cdef Result result
        renewal[0] = AS_IT_IS
        if not self.external:
            return try_get(self.pending.ring, op, position)
        acquire(&self.lock)
        if self.ended() or self.bad_item or is_shut(self.pending.ring) and not has_items(self.pending.ring):
            result = SHUT  # before the check for room, which the end does not need; has_work agrees
        elif self.free_places() <= 0:
            result = NOT_NOW
        else:
            result = try_get(self.pending.ring, op, NULL)
            if result == DONE:
                if is_operation(op[0]) and accept(<OperationBase>op[0], owner):
                    position[0] = self.drawn
                    self.drawn += 1
                elif is_operation(op[0]) and self.resets and take_over(<OperationBase>op[0]):
                    renewal[0] = RENEW
                    position[0] = self.drawn
                    self.drawn += 1
                elif is_operation(op[0]) and self.resets and is_unsuccessful(<OperationBase>op[0]):
                    renewal[0] = PASS
                    position[0] = self.drawn
                    self.drawn += 1
                    self.passed.fetch_add(1, memory_order_relaxed)  # relaxed: read under the lock
                else:
                    self.bad_item = op[0]  # owned by the source now; the thread that gets SHUT ends the source
                    result = SHUT
        release(&self.lock)
        return result

    cdef bint pass_by(self, PyObject* op) noexcept:
        # Emits an operation that failed or was cancelled upstream, in its place, without accepting it. Called by the
        # thread that draws, one at a time, not for an external source. True: took the caller's reference. False: the
        # source has ended.
        cdef uint64_t position = 0
        cdef bint ended
        acquire(&self.lock)
        ended = self.ended()
        if not ended:
            position = put_count(self.pending.ring) + self.passed.load(memory_order_relaxed)  # relaxed: under the lock
            self.passed.fetch_add(1, memory_order_relaxed)  # relaxed: as above; free_places is called by the thread that draws
        release(&self.lock)
        if ended:
            return False
        if self.reorder_buffer is not None:
            self.emit_in_order(op, position)
        else:
            emit(self, op, position)
        return True

    cdef void note_position(self) noexcept:
        # Called by the thread that draws, before it puts the next operation into `pending`, which publishes this to the
        # worker that takes it. The entry is free: free_places() > 0, so the operation that used it has been read.
        if self.shifts:
            self.shifts[put_count(self.pending.ring) % self.ready.ring.capacity] = self.passed.load(
                memory_order_relaxed  # relaxed: only this thread writes it now
            )

    cdef void emit_in_order(self, PyObject* op, uint64_t position) noexcept:
        # The reorder buffer has a slot for each operation between source and reader, so two positions never share a
        # slot.
        cdef uint64_t place = 0
        cdef Result result = NOT_NOW
        cdef PyObject** slots = (<PyListObject*>self.reorder_buffer).ob_item
        cdef PyObject** slot
        cdef PyObject* head
        acquire(&self.lock)
        slot = &slots[position % self.ready.ring.capacity]
        slot[0] = op  # replaces None, whose references need not be counted
        while True:
            slot = &slots[self.next_out % self.ready.ring.capacity]
            head = slot[0]
            if head == <PyObject*>None or try_put(self.ready.ring, head, &place) != DONE:
                break  # a gap; or the reader has closed the stream, and the reorder buffer keeps them until it is freed
            slot[0] = <PyObject*>None
            self.next_out += 1
            result = DONE
        release(&self.lock)
        if result == DONE:
            came_out(self, place)

    cdef bint end(self, object failure) except -1:
        # Nothing more will be accepted. True for the first call; the stream then ends with its `failure`, for each
        # reader.
        return self.end_with(failure, False)

    cdef bint end_source(self, object error) except -1:
        # The same, at the end of the source: the error, unless None, is raised to one reader.
        return self.end_with(error, True)

    cdef bint end_with(self, object failure, bint from_source) except -1:
        cdef bint first
        cdef uint64_t count = 0
        trace = traceback_of(failure) if failure is not None else None
        if not self.external:
            shut(self.pending.ring)  # the tail stands still: put_count is what was accepted
        acquire(&self.lock)
        first = not self.ended()
        if first:
            if self.external:
                count = self.drawn
            else:
                count = put_count(self.pending.ring) + self.passed.load(memory_order_relaxed)  # relaxed: under the lock
            self.failure = failure
            self.trace = trace
            self.from_source = from_source
            self.total.store(<int64_t>count, memory_order_seq_cst)  # seq_cst: pairs with emit
        release(&self.lock)
        if first and self.permits is not None:
            self.permits.close_ring()
        # seq_cst (put_count): pairs with emit
        if first and self.ready is not None and put_count(self.ready.ring) == count:
            self.ready.close_ring()
        return first

    # -----------------------------------------------------------------------------------------------------------
    # the reader's side

    cdef Result take_ready(self, PyObject** found, PyObject** item) noexcept:
        # The next ended operation; the caller owns it. SHUT: all have been read. `item`: see item_source.pyx
        return try_get(self.ready.ring, found, NULL)

    cdef bint has_ready(self) noexcept nogil:
        return has_items(self.ready.ring)

    cdef bint is_over(self) noexcept nogil:
        # Whether nothing more will become ready.
        return is_shut(self.ready.ring)

    cdef bint is_closed(self) noexcept nogil:
        # Whether nothing more will be accepted; what was accepted may still wait for a worker.
        return is_shut(self.pending.ring)

    cdef Py_ssize_t ready_count(self) noexcept:
        return size(self.ready.ring)

    cdef uint64_t read_count(self) noexcept:
        return get_count(self.ready.ring)

    cdef WaitQueue* readers(self) noexcept:
        # Those who wait for has_ready or is_over.
        return &self.ready.not_empty

    cdef int end_reading(self) except -1:
        # The reader has closed the stream: nothing more becomes ready.
        self.ready.close_ring()
        return 0

    cdef bint ended_by_reader(self) noexcept:
        # Whether end_reading() was called; known of ItemSources only.
        return False

    cdef int drop_ready(self) except -1:
        self.ready.shutdown(immediate=True)
        return 0

    cdef void put_ended(self, PyObject* op, uint64_t position) noexcept:
        pass  # see emit(): for ItemSources only

    cdef int abort(self, object failure) except -1:
        # Some accepted operations will not come out in time: the stream ends without them, with the failure.
        self.end(failure)
        if self.ready is None or is_shut(self.ready.ring):
            return 0
        acquire(&self.lock)
        if self.failure is None:
            self.failure = failure  # replaces None, so nothing is deallocated under the lock
            self.from_source = False
        release(&self.lock)
        self.ready.close_ring()
        return 0

    cdef bint ended(self) noexcept nogil:
        return self.total.load(memory_order_seq_cst) >= 0  # seq_cst: as end

    cdef uint64_t accepted(self) noexcept nogil:
        cdef uint64_t count
        if not self.external:
            return put_count(self.pending.ring)
        acquire(&self.lock)
        count = self.drawn - self.passed.load(memory_order_relaxed)  # relaxed: under the lock
        release(&self.lock)
        return count

    cdef Py_ssize_t free_places(self) noexcept nogil:
        # How many more operations may be accepted before the reader reads. For an external source: under the lock, or a
        # hint. relaxed: called by the thread that draws, the only one that changes `passed`
        cdef uint64_t drawn = (
            self.drawn if self.external else put_count(self.pending.ring) + self.passed.load(memory_order_relaxed)
        )
        return <Py_ssize_t>self.ready.ring.capacity - <Py_ssize_t>(drawn - get_count(self.ready.ring))

    cdef bint has_work(self) noexcept nogil:
        # Whether a worker would find an operation, or the end of the source.
        cdef bint found
        if not self.external:
            return has_items(self.pending.ring)
        acquire(&self.lock)
        found = not self.ended() and (
            self.bad_item != NULL
            or self.free_places() > 0 and has_items(self.pending.ring)
            or is_shut(self.pending.ring) and not has_items(self.pending.ring)
        )
        release(&self.lock)
        return found


cdef class RingWatcher(Sleeper):
    cdef bint wake(self) noexcept:
        # Woken and out of the ring's queue: may be armed again from here on.
        self.armed.store(0, memory_order_seq_cst)  # seq_cst: before the wake-up of a worker that saw 1
        if self.run is not None:
            self.run.ring_changed(&self.source)
        return True

    cdef void arm(self, WaitQueue* queue) noexcept:
        # seq_cst: exactly one worker queues the node; a worker that sees it armed may sleep
        if not self.armed.exchange(1, memory_order_seq_cst):
            begin_sleep(queue, &self.node, False)

    cdef void disarm(self, WaitQueue* queue) noexcept:
        if self.armed.exchange(1, memory_order_seq_cst):  # seq_cst: as arm; stays 1, so it is never armed again
            cancel_sleep(queue, &self.node)


# Garbage collection: Cython does not traverse raw pointers (rule 11).
cdef PyTypeObject* source_type = <PyTypeObject*>WorkSource
cdef traverseproc base_traverse = source_type.tp_traverse
cdef inquiry base_clear = source_type.tp_clear


cdef int source_traverse(PyObject* source, visitproc visit, void* arg) noexcept:
    cdef int status = base_traverse(source, visit, arg)
    if not status and (<WorkSource>source).bad_item:
        status = visit((<WorkSource>source).bad_item, arg)
    if not status and (<WorkSource>source).streams:
        status = visit((<WorkSource>source).streams, arg)
    return status


cdef int source_clear(PyObject* source) noexcept:
    # `streams` stays, for __dealloc__: it holds only weak references, so no cycle goes through it.
    cdef PyObject* bad_item = (<WorkSource>source).bad_item
    (<WorkSource>source).bad_item = NULL
    if bad_item:
        Py_DECREF(<object>bad_item)  # was the source's
    return base_clear(source)


source_type.tp_traverse = source_traverse
source_type.tp_clear = source_clear
