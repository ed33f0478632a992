# ItemSource: the plain items of one `map`, from their acceptance to their results. See item_source.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport (
    atomic,
    memory_order_acquire,
    memory_order_relaxed,
    memory_order_release,
    memory_order_seq_cst,
)

from ringmill._core.platform.gil_atomics cimport put64, swap64
from ringmill._core.platform.primitives cimport FREE_THREADED
from ringmill._core.pool.operation cimport OperationBase
from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.ring.ring cimport Result
from ringmill._core.waiting.wait_queue cimport SpinLock, WaitQueue, acquire, release

# What an item came to, in one word: a result (a reference), or one of these.
cdef enum:
    NO_OUTCOME = 0              # it has not ended
    FAILED_BIT = 1              # the rest of the word is a reference to an ErrorRecord
    CANCELLED_ITEM = 2
    BROKEN_ITEM = 4             # the pool broke before it began
    NO_VALUE = 7                # the bits that no reference has

cdef extern from *:
    """
    #ifndef RINGMILL_SPAN
    #define RINGMILL_SPAN
    #include <atomic>
    #include <cstdint>
    #include <new>
    struct RingmillSpan {
        std::atomic<std::uint64_t> word{0};
        char padding[56];
    };
    static_assert(sizeof(RingmillSpan) == 64, "two workers' words must not share a cache line");
    [[maybe_unused]] static inline RingmillSpan* ringmill_new_spans(Py_ssize_t count) {
        return new (std::nothrow) RingmillSpan[count];
    }
    [[maybe_unused]] static inline void ringmill_delete_spans(RingmillSpan* spans) { delete[] spans; }
    #endif
    """
    cppclass Span "RingmillSpan":
        atomic[uint64_t] word   # positions that one worker has taken and not begun: the first << 32 | the end
    Span* new_spans "ringmill_new_spans"(Py_ssize_t count) noexcept
    void delete_spans "ringmill_delete_spans"(Span* spans) noexcept

@cython.final
cdef class ItemSource(WorkSource):
    # written once
    cdef readonly object function   # called in place of the worker's `process`; or None
    cdef bint unpacks               # items are tuples of the function's arguments
    cdef bint ordered
    cdef bint draws                 # items are added one by one, by the thread that draws
    cdef bint computes              # the items of a range, which are made when they are taken:
    cdef int64_t range_start
    cdef int64_t range_step
    cdef uint64_t bound             # how many items may be between source and reader
    cdef uint64_t mask              # a position's index in the arrays: all ones where each has an entry of its own
    cdef uint64_t entries           # the length of the arrays
    cdef uint64_t last              # the last position, of a source that was accepted as a whole; else 0
    cdef Span* spans                # by worker's index; NULL if `draws`
    cdef Py_ssize_t span_count      # a worker whose number is not below it was added later and has none
    cdef Py_ssize_t sharers         # how many workers there were
    # who owns an entry of these is said in item_source.pyx
    cdef PyObject** inputs          # NULL if `computes`
    cdef PyObject** used            # items that have ended, for the reader to drop; may be the same array as `inputs`
    cdef atomic[uint64_t]* outcomes
    # the cursors, all of them positions
    cdef atomic[uint64_t] tail      # how many were accepted; the top bit: nothing more will be
    cdef atomic[uint64_t] front     # those from here to `tail` are in no worker's span
    cdef atomic[uint64_t] ended_count  # unordered: how many have ended
    cdef atomic[uint64_t] head      # how many were read
    cdef atomic[uint32_t] open_spans  # at least the number of spans that are not empty
    cdef atomic[uint32_t] reader_closed
    cdef atomic[uint32_t] aborted   # a worker is stuck: the stream ends where an outcome is missing, with:
    cdef object abort_failure       # guarded by `lock`
    cdef SpinLock reading           # free-threaded builds: held by the thread that moves `head`
    cdef WaitQueue waiting          # readers

    cdef int hold_list(self, list items, Py_ssize_t span_count, Py_ssize_t sharers) except -1
    cdef int hold_range(self, int64_t start, int64_t step, uint64_t length, Py_ssize_t span_count,
                         Py_ssize_t sharers) except -1
    cdef int hold_drawn(self, uint64_t bound) except -1
    cdef int reserve(self, uint64_t length) except -1
    cdef bint put_item(self, PyObject* item) noexcept
    cdef Result claim_item(self, Py_ssize_t worker, uint64_t* position, PyObject** item) noexcept
    cdef bint steal_span(self, Py_ssize_t worker, uint64_t* position) noexcept
    cdef bint claim_span(self, uint64_t* begin, uint64_t* end, PyObject** drawn) noexcept
    cdef PyObject* take_input(self, uint64_t position) noexcept
    cdef PyObject* item_at(self, uint64_t position) noexcept
    cdef void publish(self, uint64_t position, PyObject* item, uint64_t outcome) noexcept
    cdef Result take_if(self, PyObject** found, PyObject** item, bint values_only) noexcept
    cdef bint has_value(self) noexcept
    cdef bint all_read(self) noexcept
    cdef int open_whole(self, uint64_t length, Py_ssize_t span_count, Py_ssize_t sharers) except -1

cdef void drop_outcome(uint64_t outcome) noexcept

# The common cases of take_if and claim_item, inline: a result is at `head`; the worker's own span has more than one item.

cdef inline bint take_result(ItemSource source, PyObject** found, PyObject** item) noexcept:
    # True: the caller owns the result, and the item (or NULL). False: take_if finds out.
    cdef uint64_t position, outcome
    cdef bint taken = False
    if FREE_THREADED:
        acquire(&source.reading)
    position = source.head.load(memory_order_relaxed)  # relaxed: under the lock
    if not source.reader_closed.load(memory_order_relaxed) and position < source.last:  # relaxed: no waiter's last check
        outcome = source.outcomes[position].load(memory_order_acquire)  # acquire: pairs with publish
        if outcome != NO_OUTCOME and not outcome & NO_VALUE:
            source.outcomes[position].store(NO_OUTCOME, memory_order_relaxed)  # relaxed: published by `head`
            if source.used:
                item[0] = source.used[position]
                source.used[position] = NULL
            put64(source.head, position + 1, memory_order_seq_cst)  # seq_cst: as in take_if
            found[0] = <PyObject*>outcome
            taken = True
    if FREE_THREADED:
        release(&source.reading)
    return taken

cdef inline bint claim_own(ItemSource source, Py_ssize_t worker, uint64_t* position, PyObject** item) noexcept:
    # False: claim_item finds out.
    cdef atomic[uint64_t]* word
    cdef uint64_t seen
    if worker >= source.span_count:
        return False
    word = &source.spans[worker].word
    seen = word.load(memory_order_acquire)  # acquire: as in claim_item
    while (seen >> 32) + 1 < <uint64_t><uint32_t>seen:
        # seq_cst: as in claim_item
        if swap64(word[0], seen, seen + (<uint64_t>1 << 32), memory_order_seq_cst, memory_order_acquire):
            position[0] = seen >> 32
            if source.inputs:
                item[0] = source.inputs[seen >> 32]
                source.inputs[seen >> 32] = NULL
            return True
    return False

cdef ItemSource new_item_source(bint ordered, object function, bint unpacks, object context)
