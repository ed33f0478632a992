# ItemSource: the plain items of one `map` in a pool: claimed by workers by position, each with a place for its outcome.
#
#     accept --> inputs[position] --> a worker: claim, call, end --> outcomes[place] --> reader
#
# May use `operation`, `work_source`, `ring` (Result only), `waiting` and `platform`.
#
# No object is made for an item. A position is an item's number in its source; its index in the arrays is the position
# (a list, tuple or range, accepted as a whole: an entry for each), or the position modulo a power of two (drawn: an
# entry for each item between source and reader).
#
# Claiming, of a source that was accepted as a whole. Positions from `front` to the end belong to no worker. A worker that
# needs one takes a part of them by one compare-exchange of `front`, begins the first, and keeps the others in its span:
# one word, first << 32 | end. It takes from the front of its span; an idle worker takes the back half of another's span;
# both by a compare-exchange of that word, so each position is begun once, and no word is shared in the common case.
# Nothing is lost by ABA: a span's word says which unbegun positions it has; which worker had them before does not matter. So no item waits
# behind a slow one while a worker is idle.
#
# `open_spans` is at least the number of spans that are not empty: raised before a span gets positions, lowered after it
# has lost its last. A worker that reads front == end and then open_spans == 0 has therefore seen the end for good.
# If it reads more, it may find nothing (the raise comes first), and looks again.
#
# A worker that was added after the source was accepted has no span: it takes one position at a time, from `front`, else
# from the back of another's span. One that has left may leave positions in its span; the others take them.
#
# Claiming, of a drawn source: one at a time from `front`, by compare-exchange, in the order of the source.
#
# Ownership of an item. Accepted as a whole: the entry's; a claim moves it to the worker and leaves NULL. Drawn: the
# entry's while its position is in [front, tail); the worker reads the entry before its compare-exchange, since the
# thread that draws may use the entry again as soon as others have been read. (Unread items number at most `bound`, the
# entries at least as many, so the entry of a position that is not claimed is never used again.)
# The worker publishes the item with its outcome, for the reader to drop: on a free-threaded build a thread that drops an
# object of another's pays for it (rule 14), and the reader most likely made it.
#
# Outcomes. Ordered: a position's outcome has the position's entry. Unordered: the next one by `ended_count`. A worker
# stores the item first, then the outcome (seq_cst), then notifies the readers. A reader takes the outcome at `head`,
# clears the entry, and moves `head` on, which gives the entry free. With a GIL that is one step; on a free-threaded build
# the spin lock `reading` makes it one.
#
# The end: `total` is written once, when nothing more will be accepted. A reader that reads the last wakes the other readers;
# the thread that writes `total` compares it with `head` after that. Both are seq_cst, so one of them sees the end.

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.atomic cimport (
    atomic,
    memory_order_acquire,
    memory_order_relaxed,
    memory_order_release,
    memory_order_seq_cst,
)

from ringmill._core.platform.gil_atomics cimport fetch_or64, put64, swap64
from ringmill._core.platform.primitives cimport FREE_THREADED, pause
from ringmill._core.pool.item_record cimport ItemRecord
from ringmill._core.pool.operation cimport (
    FAILED,
    SUCCEEDED,
    OperationBase,
    PyTypeObject,
    is_operation,
    new_error_record,
    phase_of,
    traceback_of,
)
from ringmill._core.ring.ring cimport DONE, NOT_NOW, SHUT, Result
from ringmill._core.waiting.wait_queue cimport (
    WaitQueue,
    acquire,
    init_queue,
    notify,
    notify_all,
    release,
    visit_sleepers,
    visitproc,
)

from ringmill.errors import describe

cdef extern from "Python.h":
    PyTypeObject* Py_TYPE(PyObject* o) nogil
    void Py_SET_SIZE(PyObject* list, Py_ssize_t size)
    PyObject* make_integer "PyLong_FromLongLong"(long long number) noexcept
    ctypedef struct PyListObject:
        PyObject** ob_item
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef struct Type "PyTypeObject":
        traverseproc tp_traverse
        inquiry tp_clear

cdef extern from *:
    """
    /* How many of `left` positions a worker takes from the front: a share of a half, so that the ends of the workers'
       spans come near each other, and the reader, who needs the first ones first, does not wait for a far one. */
    static inline std::uint64_t ringmill_share(std::uint64_t left, Py_ssize_t workers) {
        std::uint64_t share = left / (2 * (std::uint64_t)workers);
        return share ? share : 1;
    }
    """
    uint64_t share_of "ringmill_share"(uint64_t left, Py_ssize_t workers) noexcept nogil

cdef uint64_t CLOSED = <uint64_t>1 << 63


cdef inline uint64_t span_of(uint64_t first, uint64_t end) noexcept nogil:
    return first << 32 | end

cdef inline uint64_t first_of(uint64_t span) noexcept nogil:
    return span >> 32

cdef inline uint64_t end_of(uint64_t span) noexcept nogil:
    return <uint64_t><uint32_t>span


cdef inline atomic[uint64_t]* entry_of(ItemSource source, uint64_t position) noexcept nogil:
    # The entry of a drawn item, as an atomic.
    return &(<atomic[uint64_t]*>source.inputs)[position & source.mask]


cdef class ItemSource(WorkSource):
    def __cinit__(self, pending=None, *, bint ordered=False, context=None):
        # The arguments are WorkSource's; `pending` is None. new_item_source() makes one.
        self.carries_items = True
        self.ordered = ordered
        init_queue(&self.waiting)
        # relaxed, all: published with the object
        self.tail.store(0, memory_order_relaxed)
        self.front.store(0, memory_order_relaxed)
        self.ended_count.store(0, memory_order_relaxed)
        self.head.store(0, memory_order_relaxed)
        self.open_spans.store(0, memory_order_relaxed)
        self.reader_closed.store(0, memory_order_relaxed)
        self.aborted.store(0, memory_order_relaxed)
        self.reading.held.store(0, memory_order_relaxed)

    def __dealloc__(self):
        drop_entries(self)
        PyMem_RawFree(<void*>self.outcomes)
        if self.used != self.inputs:
            PyMem_RawFree(self.used)
        PyMem_RawFree(self.inputs)
        if self.spans:
            delete_spans(self.spans)

    # -----------------------------------------------------------------------------------------------------------
    # accepting

    cdef int reserve(self, uint64_t length) except -1:
        # Arrays of that length, all zero.
        self.entries = length or 1
        self.outcomes = <atomic[uint64_t]*>PyMem_RawCalloc(self.entries, sizeof(uint64_t))
        if self.outcomes == NULL:
            raise MemoryError
        if self.computes:
            return 0
        self.inputs = <PyObject**>PyMem_RawCalloc(self.entries, sizeof(PyObject*))
        if self.inputs == NULL:
            raise MemoryError
        if self.ordered and not self.draws:
            self.used = self.inputs
            return 0
        self.used = <PyObject**>PyMem_RawCalloc(self.entries, sizeof(PyObject*))
        if self.used == NULL:
            raise MemoryError
        return 0

    cdef int hold_list(self, list items, Py_ssize_t span_count, Py_ssize_t sharers) except -1:
        # Accepts all of them, and takes the list's references. The list is the caller's own.
        cdef uint64_t length = len(items)
        cdef PyObject** listed = (<PyListObject*>items).ob_item
        cdef PyObject* last = NULL
        cdef uint64_t k
        if not self.function:
            for k in range(length):
                if <PyObject*>Py_TYPE(listed[k]) != last:
                    last = <PyObject*>Py_TYPE(listed[k])
                    if is_operation(listed[k]):
                        raise TypeError(
                            f"items must be plain objects, not Operations, got {describe(<object>listed[k])}: use execute "
                            "or wrap for operations"
                        )
        self.reserve(length)
        self.open_whole(length, span_count, sharers)
        if length:
            memcpy(self.inputs, listed, length * sizeof(PyObject*))
        Py_SET_SIZE(<PyObject*>items, 0)  # the references are ours now
        return 0

    cdef int hold_range(self, int64_t start, int64_t step, uint64_t length, Py_ssize_t span_count,
                         Py_ssize_t sharers) except -1:
        # Accepts the integers of a range.
        self.computes = True
        self.range_start = start
        self.range_step = step
        self.reserve(length)
        self.open_whole(length, span_count, sharers)
        return 0

    cdef int open_whole(self, uint64_t length, Py_ssize_t span_count, Py_ssize_t sharers) except -1:
        self.mask = <uint64_t>-1
        self.last = length - 1 if length else 0
        self.bound = length
        self.sharers = sharers
        self.span_count = min(span_count, max(1, <Py_ssize_t>length))
        self.spans = new_spans(self.span_count)
        if self.spans == NULL:
            raise MemoryError
        # relaxed, both: the source is published with its place in the pool's list
        self.tail.store(length | CLOSED, memory_order_relaxed)
        self.total.store(<int64_t>length, memory_order_relaxed)
        return 0

    cdef int hold_drawn(self, uint64_t bound) except -1:
        # Items will be added one by one, at most `bound` between source and reader.
        cdef uint64_t length = 1
        self.draws = True
        self.bound = bound
        while length < bound:
            length *= 2
        self.mask = length - 1
        self.reserve(length)
        return 0

    cdef bint put_item(self, PyObject* item) noexcept:
        # Adds an item; called by the thread that draws, one at a time, with free_places() > 0. True: took the caller's
        # reference. False: the source has ended.
        cdef uint64_t tail = self.tail.load(memory_order_relaxed)  # relaxed: the exchange decides
        while not tail & CLOSED:
            # The entry's, by the exchange. relaxed: published by that; a worker that is to lose its exchange may read it
            entry_of(self, tail)[0].store(<uint64_t>item, memory_order_relaxed)
            # seq_cst: publishes the item, also to sleepers (wait_queue.pyx); relaxed on failure: checked again
            if swap64(self.tail, tail, tail + 1, memory_order_seq_cst, memory_order_relaxed):
                return True
        return False

    cdef Py_ssize_t free_places(self) noexcept nogil:
        # seq_cst, both: a waiter's last check
        cdef uint64_t head = self.head.load(memory_order_seq_cst)
        return <Py_ssize_t>(self.bound - ((self.tail.load(memory_order_seq_cst) & ~CLOSED) - head))

    cdef uint64_t accepted(self) noexcept nogil:
        return self.tail.load(memory_order_seq_cst) & ~CLOSED  # seq_cst: as put_count of a ring

    cdef bint is_closed(self) noexcept nogil:
        return self.tail.load(memory_order_seq_cst) & CLOSED != 0  # seq_cst: a waiter's last check

    cdef bint end_with(self, object failure, bint from_source) except -1:
        cdef bint first
        cdef uint64_t count
        trace = traceback_of(failure) if failure is not None else None
        count = fetch_or64(self.tail, CLOSED, memory_order_seq_cst) & ~CLOSED  # seq_cst: pairs with put_item
        acquire(&self.lock)
        first = not self.ended()
        if first:
            self.failure = failure  # replaces None: nothing is deallocated under the lock
            self.trace = trace
            self.from_source = from_source
            self.total.store(<int64_t>count, memory_order_seq_cst)  # seq_cst: pairs with take_ready
        release(&self.lock)
        if first and self.head.load(memory_order_seq_cst) == count:  # seq_cst: as above
            notify_all(&self.waiting)
        return first

    cdef int abort(self, object failure) except -1:
        # Items that a stuck worker runs do not come out in time: reads raise the failure instead of waiting for them.
        self.end(failure)
        if self.is_over():
            return 0
        acquire(&self.lock)
        if self.abort_failure is None:
            self.abort_failure = failure  # as in end_with
        release(&self.lock)
        self.aborted.store(1, memory_order_seq_cst)  # seq_cst: before the wake-up
        notify_all(&self.waiting)
        return 0

    # -----------------------------------------------------------------------------------------------------------
    # claiming

    cdef bint has_work(self) noexcept nogil:
        # seq_cst, all: a waiter's last check; `front` before `open_spans` (see the head)
        if self.front.load(memory_order_seq_cst) < self.tail.load(memory_order_seq_cst) & ~CLOSED:
            return True
        return self.open_spans.load(memory_order_seq_cst) != 0

    cdef Result claim_item(self, Py_ssize_t worker, uint64_t* position, PyObject** item) noexcept:
        # Takes an item, with its reference (NULL if `computes`), for that worker. NOT_NOW: there is none now.
        cdef uint64_t seen, tail, share
        cdef PyObject* found
        if self.draws:
            seen = self.front.load(memory_order_acquire)  # acquire: as the next
            while seen < self.tail.load(memory_order_seq_cst) & ~CLOSED:  # seq_cst: a waiter's last check; pairs with put_item
                # Ours only if the exchange succeeds. relaxed: as put_item
                found = <PyObject*>entry_of(self, seen)[0].load(memory_order_relaxed)
                # seq_cst: the claim; acquire: the entry is read after `front`
                if swap64(self.front, seen, seen + 1, memory_order_seq_cst, memory_order_acquire):
                    position[0] = seen
                    item[0] = found
                    return DONE
            return NOT_NOW
        seen = 0
        if worker < self.span_count:
            seen = self.spans[worker].word.load(memory_order_acquire)  # acquire: pairs with a thief's exchange
        while first_of(seen) < end_of(seen):
            # acq_rel would do, here and below: the item was published before the source was
            if swap64(
                self.spans[worker].word, seen, seen + (<uint64_t>1 << 32), memory_order_seq_cst, memory_order_acquire
            ):
                position[0] = first_of(seen)
                if first_of(seen) + 1 == end_of(seen):
                    lower(self)
                item[0] = self.take_input(position[0])
                return DONE
        seen = self.front.load(memory_order_seq_cst)  # seq_cst: as has_work
        tail = self.tail.load(memory_order_relaxed) & ~CLOSED  # relaxed: it stands still
        while seen < tail:
            share = share_of(tail - seen, self.sharers) if worker < self.span_count else 1
            if share > 1:
                raise_(self)
            if swap64(self.front, seen, seen + share, memory_order_seq_cst, memory_order_seq_cst):  # seq_cst: the claim
                if share > 1:
                    # release: pairs with a thief's load. The span was empty, so only its owner writes it.
                    put64(self.spans[worker].word, span_of(seen + 1, seen + share), memory_order_release)
                position[0] = seen
                item[0] = self.take_input(seen)
                return DONE
            if share > 1:
                lower(self)
        if not self.steal_span(worker, position):
            return NOT_NOW
        item[0] = self.take_input(position[0])
        return DONE

    cdef bint steal_span(self, Py_ssize_t worker, uint64_t* position) noexcept:
        # Takes the back half of another worker's span, and begins its first.
        cdef Py_ssize_t k, victim
        cdef uint64_t seen, share, begin
        cdef bint has_span = worker < self.span_count
        for k in range(self.span_count):
            if not self.open_spans.load(memory_order_seq_cst):  # seq_cst: as has_work
                return False
            victim = k
            if has_span:
                victim = worker + 1 + k
                if victim >= self.span_count:
                    victim -= self.span_count
                if victim == worker:
                    break
            seen = self.spans[victim].word.load(memory_order_acquire)  # acquire: as in claim_item
            while first_of(seen) < end_of(seen):
                share = (end_of(seen) - first_of(seen) + 1) // 2 if has_span else 1
                begin = end_of(seen) - share
                if share > 1:
                    raise_(self)
                # seq_cst: the claim
                if swap64(
                    self.spans[victim].word, seen, span_of(first_of(seen), begin), memory_order_seq_cst,
                    memory_order_acquire,
                ):
                    if begin == first_of(seen):
                        lower(self)
                    if share > 1:
                        # release: as in claim_item
                        put64(self.spans[worker].word, span_of(begin + 1, begin + share), memory_order_release)
                    position[0] = begin
                    return True
                if share > 1:
                    lower(self)
        if self.open_spans.load(memory_order_seq_cst):  # seq_cst: as has_work
            pause()  # some are on their way into a span, or another worker has lost an exchange: the caller looks again
        return False

    cdef bint claim_span(self, uint64_t* begin, uint64_t* end, PyObject** drawn) noexcept:
        # Takes some positions, the first ones that can be taken, to end them without a worker. False: none is left. `drawn`:
        # the item, of a drawn source, which gives one at a time.
        cdef Py_ssize_t k, lowest
        cdef uint64_t seen, tail, found
        while True:
            lowest = -1
            found = 0
            for k in range(self.span_count):
                seen = self.spans[k].word.load(memory_order_acquire)  # acquire: as in claim_item
                if first_of(seen) < end_of(seen) and (lowest < 0 or seen < found):
                    lowest = k
                    found = seen
            if lowest >= 0:
                # seq_cst: the claim
                if swap64(self.spans[lowest].word, found, 0, memory_order_seq_cst, memory_order_acquire):
                    lower(self)
                    begin[0] = first_of(found)
                    end[0] = end_of(found)
                    return True
                continue
            seen = self.front.load(memory_order_seq_cst)  # seq_cst: as has_work
            tail = self.tail.load(memory_order_seq_cst) & ~CLOSED  # seq_cst: as claim_item
            if seen >= tail:
                # Some may be on their way into a span, for some instructions, on a free-threaded build.
                if not self.open_spans.load(memory_order_seq_cst):  # seq_cst: as has_work
                    return False
                pause()
                continue
            if self.draws:
                drawn[0] = <PyObject*>entry_of(self, seen)[0].load(memory_order_relaxed)  # relaxed: as in claim_item
            if swap64(self.front, seen, tail if self.spans else seen + 1, memory_order_seq_cst, memory_order_acquire):
                begin[0] = seen
                end[0] = tail if self.spans else seen + 1
                return True

    cdef inline PyObject* take_input(self, uint64_t position) noexcept:
        # The item of a claimed position, of a source that was accepted as a whole; NULL if `computes`.
        cdef PyObject* item
        if self.computes:
            return NULL
        item = self.inputs[position]
        self.inputs[position] = NULL
        return item

    cdef PyObject* item_at(self, uint64_t position) noexcept:
        # A new reference to an item of a range; NULL, with MemoryError set: there is no memory.
        return make_integer(self.range_start + self.range_step * <int64_t>position)

    # -----------------------------------------------------------------------------------------------------------
    # outcomes

    cdef void publish(self, uint64_t position, PyObject* item, uint64_t outcome) noexcept:
        # Takes the caller's references, `item` may be NULL.
        cdef uint64_t place = position
        if self.reader_closed.load(memory_order_relaxed):  # relaxed: what is stored after that goes with the source
            drop_outcome(outcome)
            Py_XDECREF(item)
            return
        if not self.ordered:
            place = self.ended_count.fetch_add(1, memory_order_seq_cst)  # seq_cst: each place once; see the head
        place &= self.mask
        if item:
            self.used[place] = item  # the reader's, or drop_entries'
        # seq_cst: publishes the outcome, also to sleepers (wait_queue.pyx)
        put64(self.outcomes[place], outcome, memory_order_seq_cst)
        notify(&self.waiting)

    def end_taken(self, uint64_t position, bint cancelled, result, error):
        """Ends a claimed item that its owner has run itself; once for each. See PoolRun.take_back."""
        cdef PyObject* outcome
        if cancelled:
            self.publish(position, NULL, CANCELLED_ITEM)
        elif error is None:
            outcome = <PyObject*>result
            Py_INCREF(result)  # the entry's
            self.publish(position, NULL, <uint64_t>outcome)
        else:
            outcome = new_error_record(<PyObject*>error, <PyObject*>ItemRecord, True)
            if outcome == NULL:
                raise_set()
            self.publish(position, NULL, <uint64_t>outcome | FAILED_BIT)

    cdef void put_ended(self, PyObject* op, uint64_t position) noexcept:
        # An item that had a record has ended. Takes the caller's reference.
        cdef uint32_t phase = phase_of(<OperationBase>op)
        cdef PyObject* held
        cdef uint64_t outcome = CANCELLED_ITEM
        if phase == SUCCEEDED:
            held = <PyObject*>(<ItemRecord>op).value
            Py_INCREF(<object>held)  # the entry's
            outcome = <uint64_t>held
        elif phase == FAILED:
            held = <PyObject*>(<OperationBase>op).error_record
            Py_INCREF(<object>held)  # the entry's; only the thread that has ended the record is here
            outcome = <uint64_t>held | FAILED_BIT
        self.publish(position, NULL, outcome)
        Py_DECREF(<object>op)  # was the caller's

    # -----------------------------------------------------------------------------------------------------------
    # the reader's side

    cdef Result take_ready(self, PyObject** found, PyObject** item) noexcept:
        return self.take_if(found, item, False)

    cdef Result take_if(self, PyObject** found, PyObject** item, bint values_only) noexcept:
        # The outcome at `head`, and the item (or NULL); the caller owns both. `values_only`: only if it is a result.
        cdef uint64_t position, place, outcome
        cdef Result result = DONE
        if FREE_THREADED:
            acquire(&self.reading)
        position = self.head.load(memory_order_relaxed)  # relaxed: under the lock
        place = position & self.mask
        # seq_cst, all: a waiter's last check; pairs with end_with
        if self.reader_closed.load(memory_order_seq_cst) or <int64_t>position == self.total.load(memory_order_seq_cst):
            result = SHUT
        else:
            outcome = self.outcomes[place].load(memory_order_seq_cst)  # seq_cst: as above; pairs with publish
            if values_only and outcome & NO_VALUE:
                result = NOT_NOW
            elif outcome == NO_OUTCOME:
                result = SHUT if self.aborted.load(memory_order_seq_cst) else NOT_NOW  # seq_cst: as above
            else:
                self.outcomes[place].store(NO_OUTCOME, memory_order_relaxed)  # relaxed: published by `head`
                if self.used:
                    item[0] = self.used[place]
                    self.used[place] = NULL
                put64(self.head, position + 1, memory_order_seq_cst)  # seq_cst: gives the entry free; pairs with end_with
        if FREE_THREADED:
            release(&self.reading)
        if result == DONE:
            found[0] = <PyObject*>outcome
            if <int64_t>(position + 1) == self.total.load(memory_order_seq_cst):  # seq_cst: as above
                notify_all(&self.waiting)
        return result

    cdef bint all_read(self) noexcept:
        # seq_cst, all: as has_ready
        return (
            self.reader_closed.load(memory_order_seq_cst) != 0
            or <int64_t>self.head.load(memory_order_seq_cst) == self.total.load(memory_order_seq_cst)
        )

    cdef bint has_value(self) noexcept:
        # Whether the next outcome is a result; a snapshot, of a source that was accepted as a whole. acquire, all
        cdef uint64_t head = self.head.load(memory_order_acquire)
        cdef uint64_t outcome
        if head & self.mask >= self.entries:
            return False  # all have been read
        outcome = self.outcomes[head & self.mask].load(memory_order_acquire)
        return outcome != NO_OUTCOME and not outcome & NO_VALUE

    cdef bint has_ready(self) noexcept nogil:
        # seq_cst, all: a waiter's last check; or the check that a searcher owes, which may not miss an outcome. Under the
        # lock: another reader may be between the clearing of an entry and the move of `head`.
        cdef uint64_t head
        cdef bint ready
        if self.reader_closed.load(memory_order_seq_cst) or self.aborted.load(memory_order_seq_cst):
            return True  # the end
        if FREE_THREADED:
            acquire(&self.reading)
        head = self.head.load(memory_order_seq_cst)
        ready = (
            <int64_t>head == self.total.load(memory_order_seq_cst)
            or self.outcomes[head & self.mask].load(memory_order_seq_cst) != NO_OUTCOME
        )
        if FREE_THREADED:
            release(&self.reading)
        return ready

    cdef bint is_over(self) noexcept nogil:
        # Whether nothing more will become ready.
        cdef uint64_t position
        cdef int64_t total = self.total.load(memory_order_seq_cst)  # seq_cst: as has_ready
        if self.reader_closed.load(memory_order_seq_cst) or self.aborted.load(memory_order_seq_cst):
            return True
        if total < 0:
            return False
        if not self.ordered:
            return <int64_t>self.ended_count.load(memory_order_seq_cst) == total  # seq_cst: as above
        position = self.head.load(memory_order_seq_cst)  # seq_cst: as above
        while <int64_t>position < total:
            if self.outcomes[position & self.mask].load(memory_order_seq_cst) == NO_OUTCOME:
                return False
            position += 1
        return True

    cdef Py_ssize_t ready_count(self) noexcept:
        cdef uint64_t head = self.head.load(memory_order_seq_cst)  # seq_cst: as has_ready
        cdef uint64_t position = head
        if self.reader_closed.load(memory_order_seq_cst):
            return 0
        # acquire: a snapshot
        while position < self.accepted() and self.outcomes[position & self.mask].load(memory_order_acquire):
            position += 1
        return <Py_ssize_t>(position - head)

    cdef uint64_t read_count(self) noexcept:
        return self.head.load(memory_order_seq_cst)  # seq_cst: as has_ready

    cdef WaitQueue* readers(self) noexcept:
        return &self.waiting

    cdef int end_reading(self) except -1:
        self.reader_closed.store(1, memory_order_seq_cst)  # seq_cst: before the wake-up
        notify_all(&self.waiting)
        return 0

    cdef bint ended_by_reader(self) noexcept:
        return self.reader_closed.load(memory_order_acquire) != 0  # acquire: a snapshot

    cdef int drop_ready(self) except -1:
        # After end_reading: what is ready goes. What ends later is not kept; see publish.
        cdef uint64_t k, outcome
        cdef PyObject* item
        # relaxed, all: under the lock. What was read has been taken.
        for k in range(0 if self.draws else self.head.load(memory_order_relaxed), self.entries):
            item = NULL
            if FREE_THREADED:
                acquire(&self.reading)
            outcome = self.outcomes[k].load(memory_order_acquire)  # acquire: pairs with publish
            if outcome:
                self.outcomes[k].store(NO_OUTCOME, memory_order_relaxed)
                if self.used:
                    item = self.used[k]
                    self.used[k] = NULL
            if FREE_THREADED:
                release(&self.reading)
            drop_outcome(outcome)
            Py_XDECREF(item)
        return 0


cdef inline void raise_(ItemSource source) noexcept:
    # seq_cst: before the span gets positions; see the head
    if FREE_THREADED:
        source.open_spans.fetch_add(1, memory_order_seq_cst)
    else:
        source.open_spans.store(source.open_spans.load(memory_order_relaxed) + 1, memory_order_relaxed)  # relaxed: the GIL


cdef inline void lower(ItemSource source) noexcept:
    # seq_cst: after the span has lost its last position
    if FREE_THREADED:
        source.open_spans.fetch_sub(1, memory_order_seq_cst)
    else:
        source.open_spans.store(source.open_spans.load(memory_order_relaxed) - 1, memory_order_relaxed)  # relaxed: the GIL


cdef void drop_outcome(uint64_t outcome) noexcept:
    # Drops the reference in it, if any.
    if outcome & FAILED_BIT:
        Py_DECREF(<object><PyObject*>(outcome & ~<uint64_t>FAILED_BIT))
    elif outcome and outcome != CANCELLED_ITEM and outcome != BROKEN_ITEM:
        Py_DECREF(<object><PyObject*>outcome)


cdef inline PyObject* reference_in(uint64_t outcome) noexcept:
    if outcome == CANCELLED_ITEM or outcome == BROKEN_ITEM:
        return NULL
    return <PyObject*>(outcome & ~<uint64_t>FAILED_BIT)


cdef int drop_entries(ItemSource source) noexcept:
    # No other thread has the source any more, or it is garbage.
    cdef uint64_t k, outcome
    cdef PyObject* item
    # relaxed: as above. What was read has been taken.
    for k in range(0 if source.draws else source.head.load(memory_order_relaxed), source.entries):
        if source.outcomes:
            outcome = source.outcomes[k].load(memory_order_relaxed)  # relaxed: as above
            source.outcomes[k].store(NO_OUTCOME, memory_order_relaxed)
            drop_outcome(outcome)
        if source.used:
            item = source.used[k]
            source.used[k] = NULL
            Py_XDECREF(item)
    if source.inputs and source.used != source.inputs:
        if source.draws:
            # relaxed, both: as above
            k = source.front.load(memory_order_relaxed)
            while k < source.tail.load(memory_order_relaxed) & ~CLOSED:
                source.front.store(k + 1, memory_order_relaxed)
                Py_DECREF(<object>source.inputs[k & source.mask])  # was the entry's
                k += 1
        else:
            for k in range(source.entries):
                item = source.inputs[k]
                source.inputs[k] = NULL
                Py_XDECREF(item)
    return 0


# Garbage collection: Cython does not traverse arrays and wait queues (rule 11).
cdef Type* source_type = <Type*>ItemSource
cdef traverseproc base_traverse = source_type.tp_traverse
cdef inquiry base_clear = source_type.tp_clear


cdef int source_traverse(PyObject* raw, visitproc visit, void* arg) noexcept:
    cdef ItemSource source = <ItemSource>raw
    cdef int status = base_traverse(raw, visit, arg)
    cdef uint64_t k, tail
    cdef PyObject* held
    # relaxed, all: the collector runs while no other thread does
    for k in range(source.entries):
        if status:
            return status
        if source.outcomes:
            held = reference_in(source.outcomes[k].load(memory_order_relaxed))
            if held:
                status = visit(held, arg)
        if not status and source.used and source.used[k]:
            status = visit(source.used[k], arg)
        if not status and source.inputs and source.used != source.inputs and not source.draws and source.inputs[k]:
            status = visit(source.inputs[k], arg)
    if source.draws:
        k = source.front.load(memory_order_relaxed)
        tail = source.tail.load(memory_order_relaxed) & ~CLOSED
        while k < tail and not status:
            status = visit(source.inputs[k & source.mask], arg)
            k += 1
    return status or visit_sleepers(&source.waiting, visit, arg)


cdef int source_clear(PyObject* raw) noexcept:
    drop_entries(<ItemSource>raw)
    return base_clear(raw)


source_type.tp_traverse = source_traverse
source_type.tp_clear = source_clear


cdef ItemSource new_item_source(bint ordered, object function, bint unpacks, object context):
    cdef ItemSource source = ItemSource(None, ordered=ordered, context=context)
    source.function = function
    source.unpacks = unpacks
    return source


cdef int raise_set() except -1:
    # Raises what a function declared as noexcept has set.
    return -1
