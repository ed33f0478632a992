# A feed is one source of work in a pool, with its way out: `do` has one feed, each `execute` and each `wrap` its own.
#
#     accept --> pending ring --> a worker: claim, begin, call, settle --> emit --> ready ring --> reader
#
# Both ends are ring buffers, and their positions are the books: what was ever put into `pending` is what was
# accepted, what was ever put into `ready` is what came out, what was ever taken from it is what was read. Nothing
# else counts them, so the books cannot disagree with the queues.
#
# No worker ever waits to emit: `ready` has a place for each operation before it is accepted. An execute's rings are
# as long as its list; a wrap draws only while drawn - read < buffer.
#
# A foreign feed takes from a RingBuffer of the user's. Nobody accepts its items beforehand, so the worker that takes
# one does, under the feed's lock, which also keeps the places: {is there a place? take; number it}. Its bell sleeps
# in the ring's queue in the workers' stead. It is armed by a worker before it sleeps, and by one that ends a search while
# others sleep, under the pool's lock while the feed is linked; a ring's put rings it, which disarms it, and it wakes a
# worker, which looks at the ring. (tests/models/test_model_ring_watcher.py searches all interleavings.)
#
# Chained pools (`reset=True`). One that succeeded upstream is reset as it is drawn, and accepted. One that failed there or
# was cancelled is not accepted: who draws it (of a foreign ring, the worker that takes it) emits it at once, untouched. It
# has a place between source and reader like any other, so `passed` is added wherever places and what comes out are counted.
# Where the stream is ordered, an operation's position in the source is its position in `pending` and the number of those
# that passed before it, which `shifts` remembers.
#
# The end: `total` is written once, when nothing more will be accepted (source exhausted, pool stopping, reader gone).
# Whoever emits compares the count with `total` after its put, whoever writes `total` compares it with the count after
# that; both are sequentially consistent, so one of them sees that all came out, and closes `ready`.

import weakref

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

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
    # SUCCEEDED -> RESETTING: the caller renews it, and nobody else may.
    cdef uint64_t seen = op.state.load(memory_order_acquire)  # acquire: pairs with end
    while seen & PHASE == SUCCEEDED:
        # acquire twice: of several, one gets it
        if swap64(
            op.state, seen, (seen & ~<uint64_t>PHASE) | RESETTING, memory_order_acquire, memory_order_acquire
        ):
            return True
    return False


cdef bint is_unsuccessful(OperationBase op) noexcept nogil:
    # Failed or cancelled; but not one that still has a place in a queue, where its pool will find it.
    cdef uint64_t seen = op.state.load(memory_order_acquire)  # acquire: pairs with end
    return (seen & PHASE == FAILED or seen & PHASE == CANCELLED) and not seen & PLACED


cdef class WorkSource:
    def __cinit__(self, RingBuffer pending not None, RingBuffer ready=None, *, bint ordered=False, bint external=False,
                  bint resets=False, RingBuffer permits=None, context=None):
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
        self.context = context
        self.reorder_buffer = [None] * ready.capacity if ordered else None
        if ordered and resets and not external:
            self.shifts = <uint64_t*>PyMem_RawMalloc(ready.capacity * sizeof(uint64_t))
            if self.shifts == NULL:
                raise MemoryError
        self.passed.store(0, memory_order_relaxed)  # relaxed: as the next
        self.total.store(-1, memory_order_relaxed)  # relaxed: published with the object

    def __dealloc__(self):
        if self.bad_item:
            Py_DECREF(<object>self.bad_item)
        PyMem_RawFree(self.shifts)
        self.unlist()

    cdef int list_in(self, dict streams) except -1:
        # A plain weak reference, which __dealloc__ takes out: a callback of weakref's, as a WeakSet's, would be Python code
        # that runs as a stream is dropped, and a KeyboardInterrupt raised there is lost.
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
        # Takes the next operation, and the reference to it, for a worker (or for who cancels). SHUT: nothing is left
        # and nothing comes.
        cdef Result result
        renewal[0] = AS_IT_IS
        if not self.external:
            return try_get(self.pending.ring, op, position)
        acquire(&self.lock)
        if self.ended() or self.bad_item or is_shut(self.pending.ring) and not has_items(self.pending.ring):
            result = SHUT  # before the places, which it needs none of; has_work says the same
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
                    self.bad_item = op[0]  # owned by the feed now; whoever gets SHUT ends it
                    result = SHUT
        release(&self.lock)
        return result

    cdef bint pass_by(self, PyObject* op) noexcept:
        # For one that failed upstream, or was cancelled: it is not accepted, and comes out in its place. By whoever draws,
        # one thread at a time, not for a foreign feed. Takes the caller's reference if True. False: the feed has ended.
        cdef uint64_t position = 0
        cdef bint ended
        acquire(&self.lock)
        ended = self.ended()
        if not ended:
            position = put_count(self.pending.ring) + self.passed.load(memory_order_relaxed)  # relaxed: under the lock
            self.passed.fetch_add(1, memory_order_relaxed)  # relaxed: as above; `places` is asked by the thread that draws
        release(&self.lock)
        if ended:
            return False
        if self.reorder_buffer is not None:
            self.emit_in_order(op, position)
        else:
            emit(self, op, position)
        return True

    cdef void note_position(self) noexcept:
        # By whoever draws, before it puts the next one into `pending`, which publishes this to the worker that takes it. The
        # place is free again: the operation that had it has been read, as `places` says.
        if self.shifts:
            self.shifts[put_count(self.pending.ring) % <uint64_t>self.ready.capacity] = self.passed.load(
                memory_order_relaxed  # relaxed: only this thread writes it now
            )

    cdef void emit_in_order(self, PyObject* op, uint64_t position) noexcept:
        # The reorder buffer has a slot for each operation between source and reader, so positions do not collide.
        cdef uint64_t place = 0
        cdef Result result = NOT_NOW
        cdef PyObject** slots = (<PyListObject*>self.reorder_buffer).ob_item
        cdef PyObject** slot
        cdef PyObject* head
        acquire(&self.lock)
        slot = &slots[position % <uint64_t>self.ready.capacity]
        slot[0] = op  # None, which is immortal or has references to spare, makes place: see below
        while True:
            slot = &slots[self.next_out % <uint64_t>self.ready.capacity]
            head = slot[0]
            if head == <PyObject*>None or try_put(self.ready.ring, head, &place) != DONE:
                break  # a gap; or the reader has closed it, and the reorder buffer keeps them until it goes
            slot[0] = <PyObject*>None
            self.next_out += 1
            result = DONE
        release(&self.lock)
        if result == DONE:
            came_out(self, place)

    cdef bint end(self, object failure) except -1:
        # Nothing more will be accepted. True for the first who says so; its `failure` is what the stream ends with, for each
        # of its readers.
        return self.end_with(failure, False)

    cdef bint end_source(self, object error) except -1:
        # The same, for the source: the error, unless None, is raised by one reader.
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

    cdef int abort(self, object failure) except -1:
        # Some that were accepted will not come out in time: the stream ends without them, with the failure.
        self.end(failure)
        if self.ready is None or is_shut(self.ready.ring):
            return 0
        acquire(&self.lock)
        if self.failure is None:
            self.failure = failure  # None goes, so nothing runs under the lock
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
        # How many more may be accepted until the reader reads. For a foreign feed, under the lock or as a hint.
        # relaxed: asked by the thread that draws, the only one that counts those
        cdef uint64_t drawn = (
            self.drawn if self.external else put_count(self.pending.ring) + self.passed.load(memory_order_relaxed)
        )
        return self.ready.capacity - <Py_ssize_t>(drawn - get_count(self.ready.ring))

    cdef bint has_work(self) noexcept nogil:
        # Whether a worker would find something to do: an operation, or the end of the source.
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
        # Rung, and out of the ring's queue: may be armed again from here on.
        self.armed.store(0, memory_order_seq_cst)  # seq_cst: before the notify; whoever saw 1 and slept is woken
        if self.target:
            notify(self.target)
        return True

    cdef void arm(self, WaitQueue* queue) noexcept:
        # seq_cst: of several, one queues the node; whoever sees it armed may sleep
        if not self.armed.exchange(1, memory_order_seq_cst):
            begin_sleep(queue, &self.node, False)

    cdef void disarm(self, WaitQueue* queue) noexcept:
        if self.armed.exchange(1, memory_order_seq_cst):  # seq_cst: as arm; stays 1, for good
            cancel_sleep(queue, &self.node)


# The garbage collector: Cython knows nothing of raw pointers (rule 11).
cdef PyTypeObject* feed_type = <PyTypeObject*>WorkSource
cdef traverseproc base_traverse = feed_type.tp_traverse
cdef inquiry base_clear = feed_type.tp_clear


cdef int feed_traverse(PyObject* source, visitproc visit, void* arg) noexcept:
    cdef int status = base_traverse(source, visit, arg)
    if not status and (<WorkSource>source).bad_item:
        status = visit((<WorkSource>source).bad_item, arg)
    if not status and (<WorkSource>source).streams:
        status = visit((<WorkSource>source).streams, arg)
    return status


cdef int feed_clear(PyObject* source) noexcept:
    # `streams` stays, for __dealloc__: it holds weak references only, so no cycle goes through it.
    cdef PyObject* bad_item = (<WorkSource>source).bad_item
    (<WorkSource>source).bad_item = NULL
    if bad_item:
        Py_DECREF(<object>bad_item)  # was the feed's
    return base_clear(source)


feed_type.tp_traverse = feed_traverse
feed_type.tp_clear = feed_clear
