# The lock-free ring: a bounded FIFO queue of references, many producers, many consumers, closable.
#
# The algorithm is that of crossbeam's array channel (which credits Dmitry Vyukov's bounded MPMC queue), with exact
# capacity, ordered operations in place of its fences, and claims of several slots at once.
#
# May use `platform` only. It knows nothing of waiting, and of Python only that an item is a reference, which moves with
# it. ring_buffer.pyx makes a Python type of it; pools and hubs use it directly. All functions are called attached.
#
# A word (head, tail, or a slot's stamp) is a lap in its upper bits and an index in its lower bits; one_lap is the
# power of two above the capacity. The tail's top bit says closed. A slot's stamp says which thread may touch the slot:
#
#   stamp == tail            the slot is free for the put at `tail`
#   stamp == head + 1        it holds the item for the get at `head`
#   anything else            another thread is between its claim and its publication, or the word that was read is stale
#
#   put: read the stamp (acquire); claim by compare-exchange of tail (seq_cst); write; stamp = tail + 1 (release)
#   get: read the stamp (acquire); claim by compare-exchange of head (seq_cst); read; stamp = head + one_lap (release)
#
# A put takes effect at its claim of tail, a get at its claim of head, so the order of the positions is the order of the
# queue. Empty: stamp == head, and then tail == head (seq_cst load). Neither cursor goes back and head never passes
# tail, so both had that value at one moment, in which the ring was empty. Full likewise, at the moment in which tail
# was read (seq_cst): a head that is found one lap behind it later was there already. A slot that is claimed and not yet
# published is neither: a thread that finds one waits for it, a few instructions of another thread.
#
# Closing sets the bit in the tail word, so a later claim of tail fails; an earlier claim is an item that getters drain.
# After the bit is set, tail does not change any more, so a getter that finds the ring closed and empty is right for
# good.
#
# With a GIL a slot has no stamp. An attached thread is alone, so no slot is ever between a claim and its publication, and the
# cursors say what the stamp would: stamp_at_tail and stamp_at_head make it from them, and the compiler makes of that one
# comparison. So a slot takes half the memory, and a getter writes none: the line of a slot goes from the producer's
# processor to the consumer's once, and not back.
#
# Ownership: the caller of a put owns a reference and gives it to the slot by the claim. The getter whose claim takes
# the slot owns it from then on. Between a claim and its stamp there is no Python API, hence no signal handler, no
# collector and no detaching: on a GIL build no other thread ever sees a claimed slot; on a free-threaded build the
# collector stops attached threads elsewhere.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libcpp.atomic cimport (
    atomic,
    memory_order,
    memory_order_acquire,
    memory_order_relaxed,
    memory_order_release,
    memory_order_seq_cst,
)

from ringmill._core.platform.gil_atomics cimport fetch_or64, swap64
from ringmill._core.platform.primitives cimport relax

# Producers write tail, consumers write head, so each has a cache line of its own (two, for the adjacent-line
# prefetcher).
cdef extern from *:
    """
    #ifndef RINGMILL_RING
    #define RINGMILL_RING
    #include <atomic>
    #include <cstdint>
    #include <new>
    #ifdef Py_GIL_DISABLED
    #define RINGMILL_STAMPS 1
    #else
    #define RINGMILL_STAMPS 0
    #endif
    struct RingmillSlot {
    #if RINGMILL_STAMPS
        std::atomic<std::uint64_t> stamp;
    #endif
        PyObject* item;
    };
    struct RingmillRing {
        RingmillSlot* slots;
        RingmillSlot* last;
        std::uint64_t capacity;
        std::uint64_t one_lap;
        int lap_bits;
        alignas(128) std::atomic<std::uint64_t> head{0};
        alignas(128) std::atomic<std::uint64_t> tail{0};
    };
    static_assert(sizeof(RingmillRing) == 384, "the constants, head and tail must not share a cache line");
    static_assert(sizeof(RingmillSlot) == (1 + RINGMILL_STAMPS) * sizeof(std::uint64_t), "as small as its words");
    #if RINGMILL_STAMPS
    static inline std::uint64_t ringmill_stamp_at_tail(
        const RingmillRing*, const RingmillSlot* slot, std::uint64_t, std::memory_order order
    ) {
        return slot->stamp.load(order);
    }
    static inline std::uint64_t ringmill_stamp_at_head(
        const RingmillRing*, const RingmillSlot* slot, std::uint64_t, std::memory_order order
    ) {
        return slot->stamp.load(order);
    }
    static inline void ringmill_set_stamp(RingmillSlot* slot, std::uint64_t stamp, std::memory_order order) {
        slot->stamp.store(stamp, order);
    }
    #else
    /* relaxed: ordered by the GIL. A closed tail has no free slot. */
    static inline std::uint64_t ringmill_stamp_at_tail(
        const RingmillRing* ring, const RingmillSlot*, std::uint64_t tail, std::memory_order
    ) {
        bool full = tail >> 63 || ring->head.load(std::memory_order_relaxed) + ring->one_lap == tail;
        return full ? tail + 1 - ring->one_lap : tail;
    }
    static inline std::uint64_t ringmill_stamp_at_head(
        const RingmillRing* ring, const RingmillSlot*, std::uint64_t head, std::memory_order
    ) {
        bool empty = (ring->tail.load(std::memory_order_relaxed) << 1 >> 1) == head;
        return empty ? head : head + 1;
    }
    static inline void ringmill_set_stamp(RingmillSlot*, std::uint64_t, std::memory_order) {}
    #endif
    [[maybe_unused]] static inline RingmillRing* ringmill_new_ring(void) { return new (std::nothrow) RingmillRing(); }
    [[maybe_unused]] static inline void ringmill_delete_ring(RingmillRing* ring) { delete ring; }
    #endif
    """
    cppclass Slot "RingmillSlot":
        PyObject* item          # owned while the stamp says that the slot is filled
    cppclass Ring "RingmillRing":
        Slot* slots             # written once, like the next four
        Slot* last              # the last slot; after it comes the next lap
        uint64_t capacity
        uint64_t one_lap        # 1 << lap_bits, a power of two above the capacity
        int lap_bits
        atomic[uint64_t] head
        atomic[uint64_t] tail
    Ring* new_ring "ringmill_new_ring"() noexcept
    void delete_ring "ringmill_delete_ring"(Ring*) noexcept
    # The stamp of the slot at `tail`, or at `head`, which the ring's cursor had at some time; see the head.
    uint64_t stamp_at_tail "ringmill_stamp_at_tail"(Ring*, Slot*, uint64_t tail, memory_order) noexcept nogil
    uint64_t stamp_at_head "ringmill_stamp_at_head"(Ring*, Slot*, uint64_t head, memory_order) noexcept nogil
    void set_stamp "ringmill_set_stamp"(Slot*, uint64_t stamp, memory_order) noexcept nogil

cdef enum Result:
    NOT_NOW = 0                 # full, or empty
    DONE = 1
    SHUT = 2                    # closed; for a get: and drained

cdef enum:
    CLOSED_BIT = 63
    BATCH = 128                 # the most slots that one claim takes: bounds how long other threads wait for one of them


# ---------------------------------------------------------------------------------------------------------------
# words

cdef inline uint64_t without_closed(uint64_t tail) noexcept nogil:
    return tail & ~(<uint64_t>1 << CLOSED_BIT)

cdef inline bint says_closed(uint64_t tail) noexcept nogil:
    return tail >> CLOSED_BIT != 0

cdef inline uint64_t after(Ring* ring, uint64_t word, uint64_t count) noexcept nogil:
    # The word `count` (at most the capacity) positions further.
    cdef uint64_t index = (word & (ring.one_lap - 1)) + count
    return word + count if index < ring.capacity else word + count + ring.one_lap - ring.capacity

cdef inline uint64_t next_word(Ring* ring, Slot* slot, uint64_t word) noexcept nogil:
    # after(ring, word, 1) for a caller that has the word's slot, in half the instructions.
    return word + 1 if slot != ring.last else word + 1 + ring.one_lap - ring.capacity

cdef inline uint64_t between(Ring* ring, uint64_t head, uint64_t tail) noexcept nogil:
    # The number of positions from head to tail; tail is not behind head, and at most one lap ahead.
    cdef uint64_t count = tail - head
    return count if tail >> ring.lap_bits == head >> ring.lap_bits else count - ring.one_lap + ring.capacity

cdef inline uint64_t position_of(Ring* ring, uint64_t word) noexcept nogil:
    # How many positions came before this one: lap * capacity + index.
    return (without_closed(word) >> ring.lap_bits) * ring.capacity + (word & (ring.one_lap - 1))


# ---------------------------------------------------------------------------------------------------------------
# put and get

cdef inline bint fill_slot(Ring* ring, Slot* slot, uint64_t* tail, PyObject* item) noexcept nogil:
    # Puts at `tail`, whose slot has been seen free. True: the slot owns the caller's reference. False: another thread
    # was faster, and `tail` is its new value. seq_cst: the claim, which also publishes to sleepers (wait_queue.pyx); on
    # failure: as the load in try_put
    if not swap64(ring.tail, tail[0], next_word(ring, slot, tail[0]), memory_order_seq_cst, memory_order_seq_cst):
        return False
    slot.item = item  # the slot owns the reference now
    set_stamp(slot, tail[0] + 1, memory_order_release)  # release: publishes the item; pairs with the getters' loads
    return True

cdef inline bint take_slot(Ring* ring, Slot* slot, uint64_t* head, PyObject** item) noexcept nogil:
    # Gets at `head`, whose slot has been seen filled. True: the caller owns the slot's reference. False: another thread
    # was faster, and `head` is its new value. seq_cst: the claim, which also publishes to sleepers (wait_queue.pyx);
    # relaxed on failure: the caller checks again
    if not swap64(ring.head, head[0], next_word(ring, slot, head[0]), memory_order_seq_cst, memory_order_relaxed):
        return False
    item[0] = slot.item  # the caller owns the reference now
    set_stamp(slot, head[0] + ring.one_lap, memory_order_release)  # release: after the read; pairs with the putters' loads
    return True

cdef inline Result try_put(Ring* ring, PyObject* item, uint64_t* position) noexcept nogil:
    # DONE: the slot owns the caller's reference. `position`, unless NULL, receives how many items were put before.
    cdef uint64_t tail = ring.tail.load(memory_order_seq_cst)  # seq_cst: full and closed are decided at this instant
    cdef uint64_t stamp
    cdef Slot* slot
    cdef int spins = 0
    while not says_closed(tail):
        slot = &ring.slots[tail & (ring.one_lap - 1)]
        stamp = stamp_at_tail(ring, slot, tail, memory_order_acquire)  # acquire: pairs with the release in take_slot
        if stamp == tail:
            if fill_slot(ring, slot, &tail, item):
                if position:
                    position[0] = position_of(ring, tail)
                return DONE
            continue
        # seq_cst: full is decided on both cursors; pairs with the claim in take_slot
        if stamp + ring.one_lap == tail + 1 and ring.head.load(memory_order_seq_cst) + ring.one_lap == tail:
            return NOT_NOW
        relax(&spins)
        tail = ring.tail.load(memory_order_seq_cst)  # seq_cst: as above
    return SHUT

cdef inline Result try_get(Ring* ring, PyObject** item, uint64_t* position) noexcept nogil:
    # DONE: the caller owns the slot's reference. `position` as in try_put.
    cdef uint64_t head = ring.head.load(memory_order_acquire)  # acquire: not older than this thread's last get
    cdef uint64_t stamp, tail
    cdef Slot* slot
    cdef int spins = 0
    while True:
        slot = &ring.slots[head & (ring.one_lap - 1)]
        stamp = stamp_at_head(ring, slot, head, memory_order_acquire)  # acquire: pairs with the release in fill_slot
        if stamp == head + 1:
            if take_slot(ring, slot, &head, item):
                if position:
                    position[0] = position_of(ring, head)
                return DONE
            continue
        if stamp == head:
            # seq_cst: empty is decided on both cursors; pairs with the claim in fill_slot
            tail = ring.tail.load(memory_order_seq_cst)
            if without_closed(tail) == head:
                return SHUT if says_closed(tail) else NOT_NOW
        relax(&spins)
        head = ring.head.load(memory_order_acquire)  # acquire: as above

cdef inline bint try_get_before(Ring* ring, uint64_t limit, PyObject** item) noexcept nogil:
    # As try_get, of the positions before `limit` only, a tail word without the closed bit that was read before. True:
    # the caller owns the slot's reference. False: they have all been taken.
    cdef uint64_t head = ring.head.load(memory_order_acquire)  # acquire: as in try_get
    cdef Slot* slot
    cdef int spins = 0
    while head < limit:  # neither word goes back, so what is before a limit once is claimed by a put for good
        slot = &ring.slots[head & (ring.one_lap - 1)]
        # acquire: pairs with the release in fill_slot
        if stamp_at_head(ring, slot, head, memory_order_acquire) == head + 1:
            if take_slot(ring, slot, &head, item):
                return True
            continue
        relax(&spins)
        head = ring.head.load(memory_order_acquire)  # acquire: as above
    return False

# One attempt without a loop, for callers that call try_put or try_get, out of line, only if it fails. Half the
# instructions: a function without calls saves no registers.

cdef inline bint put_at_once(Ring* ring, PyObject* item) noexcept nogil:
    # True: the slot owns the caller's reference. False: full, or closed, or another thread was faster.
    cdef uint64_t tail = ring.tail.load(memory_order_relaxed)  # relaxed: the claim decides
    cdef Slot* slot = &ring.slots[tail & (ring.one_lap - 1)]
    # acquire: as in try_put. No stamp has the closed bit, so none equals a tail that has it.
    return stamp_at_tail(ring, slot, tail, memory_order_acquire) == tail and fill_slot(ring, slot, &tail, item)

cdef inline bint get_at_once(Ring* ring, PyObject** item) noexcept nogil:
    # True: the caller owns the slot's reference. False: empty, or another thread was faster.
    cdef uint64_t head = ring.head.load(memory_order_relaxed)  # relaxed: the claim decides
    cdef Slot* slot = &ring.slots[head & (ring.one_lap - 1)]
    # acquire: as in try_get
    return stamp_at_head(ring, slot, head, memory_order_acquire) == head + 1 and take_slot(ring, slot, &head, item)

cdef inline Result try_put_many(Ring* ring, PyObject** items, Py_ssize_t count, Py_ssize_t* done) noexcept nogil:
    # Puts as many items as there is room for. The slots own the first `done` of the caller's references then.
    cdef uint64_t tail, head, room, claimed, k
    cdef Slot* slot
    cdef int spins = 0
    done[0] = 0
    while done[0] < count:
        tail = ring.tail.load(memory_order_seq_cst)  # seq_cst: as in try_put
        if says_closed(tail):
            return SHUT
        head = ring.head.load(memory_order_seq_cst)  # seq_cst: as in try_put, for full
        if head > tail:
            continue  # tail was stale: getters have passed it
        room = ring.capacity - between(ring, head, tail)
        if room == 0:
            return NOT_NOW
        claimed = min(room, <uint64_t>(count - done[0]), <uint64_t>BATCH)
        # seq_cst and relaxed: as in try_put
        if not swap64(ring.tail, tail, after(ring, tail, claimed), memory_order_seq_cst, memory_order_relaxed):
            continue
        for k in range(claimed):
            slot = &ring.slots[tail & (ring.one_lap - 1)]
            # acquire: pairs with the release of the getter, which has claimed the slot and is about to free it
            while stamp_at_tail(ring, slot, tail, memory_order_acquire) != tail:
                relax(&spins)
            slot.item = items[k]  # the slot owns the reference now
            set_stamp(slot, tail + 1, memory_order_release)  # release: publishes the item; pairs with the getters' loads
            tail = after(ring, tail, 1)
        items += claimed
        done[0] += <Py_ssize_t>claimed
    return DONE

cdef inline Result try_get_many(Ring* ring, PyObject** items, Py_ssize_t count, Py_ssize_t* done) noexcept nogil:
    # Takes up to `count` items, and none beyond the tail that it saw first. The caller owns `done` references then.
    cdef uint64_t head, tail, limit, claimed, k
    cdef Slot* slot
    cdef int spins = 0
    done[0] = 0
    limit = ring.tail.load(memory_order_seq_cst)  # seq_cst: as in try_get, for empty
    while done[0] < count:
        head = ring.head.load(memory_order_seq_cst)  # seq_cst: empty is decided on both cursors
        tail = without_closed(limit)
        if head >= tail:
            if done[0]:
                return DONE
            limit = ring.tail.load(memory_order_seq_cst)  # seq_cst: as in try_get, for empty
            if without_closed(limit) == head:
                return SHUT if says_closed(limit) else NOT_NOW
            continue  # other getters have passed that tail
        claimed = min(between(ring, head, tail), <uint64_t>(count - done[0]), <uint64_t>BATCH)
        # seq_cst and relaxed: as in try_get
        if not swap64(ring.head, head, after(ring, head, claimed), memory_order_seq_cst, memory_order_relaxed):
            continue
        for k in range(claimed):
            slot = &ring.slots[head & (ring.one_lap - 1)]
            # acquire: pairs with the release of the putter, which has claimed the slot and is about to publish
            while stamp_at_head(ring, slot, head, memory_order_acquire) != head + 1:
                relax(&spins)
            items[k] = slot.item  # the caller owns the reference now
            set_stamp(slot, head + ring.one_lap, memory_order_release)  # release: after the read; pairs with the putters' loads
            head = after(ring, head, 1)
        items += claimed
        done[0] += <Py_ssize_t>claimed
    return DONE

cdef inline void fill(Ring* ring, PyObject** items) noexcept nogil:
    # Fills a new ring, which no other thread has yet, to its capacity, and closes it. The slots own the references
    # then.
    cdef uint64_t index
    for index in range(ring.capacity):
        ring.slots[index].item = items[index]
        set_stamp(&ring.slots[index], index + 1, memory_order_relaxed)  # relaxed: the ring is not published yet
    ring.tail.store(ring.one_lap | <uint64_t>1 << CLOSED_BIT, memory_order_relaxed)  # relaxed: the same

cdef inline bint shut(Ring* ring) noexcept nogil:
    # Closes the ring; True for the first call. seq_cst: as any claim of the tail.
    return not says_closed(fetch_or64(ring.tail, <uint64_t>1 << CLOSED_BIT, memory_order_seq_cst))


# ---------------------------------------------------------------------------------------------------------------
# observations

cdef inline uint64_t put_count(Ring* ring) noexcept nogil:
    # How many items were ever put. seq_cst: callers ask whether all items that will be put have been put.
    return position_of(ring, ring.tail.load(memory_order_seq_cst))

cdef inline uint64_t get_count(Ring* ring) noexcept nogil:
    # How many items were ever taken. seq_cst: as put_count.
    return position_of(ring, ring.head.load(memory_order_seq_cst))

cdef inline Py_ssize_t size(Ring* ring) noexcept nogil:
    cdef uint64_t head, tail
    while True:
        # seq_cst: tail did not change while head was read, so both had these values at one moment
        tail = ring.tail.load(memory_order_seq_cst)
        head = ring.head.load(memory_order_seq_cst)
        if ring.tail.load(memory_order_seq_cst) == tail:
            return <Py_ssize_t>between(ring, head, without_closed(tail))

cdef inline bint is_shut(Ring* ring) noexcept nogil:
    return says_closed(ring.tail.load(memory_order_seq_cst))  # seq_cst: a waiter's last check

cdef inline bint has_items(Ring* ring) noexcept nogil:
    # seq_cst: a waiter's last check (wait_queue.pyx)
    return ring.head.load(memory_order_seq_cst) != without_closed(ring.tail.load(memory_order_seq_cst))

cdef inline bint has_room(Ring* ring) noexcept nogil:
    # seq_cst: a waiter's last check. Tail first: head only grows, so room is never missed.
    cdef uint64_t tail = ring.tail.load(memory_order_seq_cst)
    return ring.head.load(memory_order_seq_cst) + ring.one_lap != without_closed(tail)
