# Bounded spinning before a thread sleeps, short sleeps, and how a thread reacquires the GIL.
#
# May use primitives.pxd only. Nothing here matters for correctness: a thread that is told that nothing was found checks
# again, and sleeps by the protocol of wait_queue.pyx. All shared words are hints, accessed relaxed.
#
# Spinning. Waking a thread on another processor takes about 20 microseconds, a look at a word a hundredth of one. So a
# waiting thread spins first: detached, for at most 50 microseconds, and for as long as it has paid recently (Spin): the
# span doubles when the spin found something and is halved when not, so that on a busy machine almost nothing of it is
# left.
#
# Long spins. Two threads that hand work back and forth and both sleep find each other asleep, however often they spin
# for a short time. So one spin in LONG_EVERY is as long as the other thread needs to wake up.
#
# Yielding. The awaited thread may be waiting for this processor. A yield gives the processor to that thread, but on a
# crowded machine to any thread, for milliseconds; after such a yield twice as many yields are skipped as after the one
# before.
#
# Batching delay. If items come one at a time, two threads in step contend for each cache line. A spin that has found
# something may go on for a while, to let items gather; wait_queue.pyx knows when that pays. On a GIL build items gather
# by themselves, see the next paragraph.
#
# Short sleep. If more threads search than there are processors, spinning only keeps the threads from running that would
# publish something; and if all of them slept, a publisher would pay for a wake-up with each item. So on a free-threaded
# build no more threads spin than there are processors. A thread beyond that number sleeps once for a short time, still
# as a searcher, so that no publisher has to wake it; the more threads search, the longer it sleeps, so that the clock
# does not wake more threads than the processors can run. A short sleep has paid if more than one item has gathered by
# the end of the wait. If not, short sleeps are skipped for a while, since a publisher that sends one item at a time
# waits for the answer. On a GIL build items gather while another thread has the GIL.
#
# Reacquiring the GIL. A thread that requests the GIL while another holds it sleeps in the kernel, even if the holder is
# about to release it. So a thread that has found what it spun for goes on spinning until the holder has detached (most
# likely to search or to park). `attached` is 1 if the last thread of ringmill's that passed here was attaching, 0 if it
# was detaching. If it is wrong, because the holder detached elsewhere, the thread loses the rest of a spin.

import os

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport atomic, memory_order_acquire, memory_order_relaxed

from ringmill._core.platform.primitives cimport FREE_THREADED, now_ns, pause, sleep_ns, yield_processor

cdef uint32_t PROCESSORS = os.cpu_count() or 1
cdef bint MAY_SPIN = PROCESSORS > 1
cdef int64_t MAX_SPIN_NS = 20_000
cdef int64_t MIN_SPIN_NS = 500
cdef int64_t LONG_SPIN_NS = 40_000  # longer than it takes to wake a thread on another processor
cdef int64_t YIELD_AFTER_NS = 1_000
cdef int64_t CROWDED_NS = 50_000  # a yield that took longer gave the processor to an unrelated thread
cdef int64_t SHORT_SLEEP_NS = 50_000  # Linux's timers add about as much by default
cdef int64_t SHORT_SLEEP_FOR_EACH_NS = 25_000  # added for each other thread that searches
cdef int64_t MAX_SHORT_SLEEP_NS = 800_000
cdef enum:
    MAX_YIELD_SKIPS = 4096
    FIRST_SKIPS = 16
    MAX_SKIPS = 1024

# relaxed, every access to these: hints, on which no correctness depends
cdef atomic[uint32_t] attached  # 1: a thread of ringmill's acquired the GIL last; 0: one released it last
cdef Spin gil_spin              # how long threads spin for the GIL
cdef atomic[uint32_t] yields_to_skip  # how many yields are still to be skipped,
cdef atomic[uint32_t] yield_skips  # of this number
cdef atomic[uint32_t] searching  # threads that spin or sleep briefly; free-threaded builds only


cdef bint may_spin() noexcept nogil:
    # False on a machine with one processor.
    return MAY_SPIN


cdef void init_spin(Spin* spin) noexcept nogil:
    spin.span_ns.store(MAX_SPIN_NS, memory_order_relaxed)
    spin.count.store(0, memory_order_relaxed)
    spin.sleep_skips.store(0, memory_order_relaxed)
    spin.sleep_skips_left.store(0, memory_order_relaxed)


cdef int64_t _span(Spin* spin) noexcept nogil:
    # How long to spin now.
    cdef int64_t span = spin.span_ns.load(memory_order_relaxed)
    cdef uint32_t count
    if span > MIN_SPIN_NS:
        return span
    count = spin.count.load(memory_order_relaxed) + 1
    spin.count.store(count, memory_order_relaxed)
    return LONG_SPIN_NS if count % LONG_EVERY == 0 else MIN_SPIN_NS


cdef void _learn(Spin* spin, int64_t span, bint found) noexcept nogil:
    spin.span_ns.store(
        min(MAX_SPIN_NS, 2 * span) if found else max(MIN_SPIN_NS, spin.span_ns.load(memory_order_relaxed) // 2),
        memory_order_relaxed,
    )


init_spin(&gil_spin)


cdef struct SpinRound:          # one spin; on the spinning thread's stack
    int64_t limit
    int64_t yield_at
    int64_t yield_every         # doubles with each yield
    int rounds

cdef inline void _begin(SpinRound* spin_round, int64_t span, int64_t deadline) noexcept nogil:
    # A negative deadline is none.
    cdef int64_t now = now_ns()
    spin_round.limit = now + span
    if 0 <= deadline < spin_round.limit:
        spin_round.limit = deadline
    spin_round.yield_every = YIELD_AFTER_NS
    spin_round.yield_at = now + YIELD_AFTER_NS
    spin_round.rounds = 0

cdef inline bint _goes_on(SpinRound* spin_round) noexcept nogil:
    # One round. False: the spin is over.
    pause()
    spin_round.rounds += 1
    return True if spin_round.rounds & 15 else _check_time(spin_round)

cdef bint _check_time(SpinRound* spin_round) noexcept nogil:
    # Every 16 rounds: checks the time, and yields now and then (see the head).
    cdef int64_t now = now_ns(), back
    cdef uint32_t left
    if now >= spin_round.limit:
        return False
    if now < spin_round.yield_at:
        return True
    spin_round.yield_every *= 2
    spin_round.yield_at = now + spin_round.yield_every
    left = yields_to_skip.load(memory_order_relaxed)
    if left:
        yields_to_skip.store(left - 1, memory_order_relaxed)
        return True
    yield_processor()
    back = now_ns()
    if back - now < CROWDED_NS:
        yield_skips.store(0, memory_order_relaxed)
    else:
        left = min(MAX_YIELD_SKIPS, 2 * yield_skips.load(memory_order_relaxed) + 16)
        yield_skips.store(left, memory_order_relaxed)
        yields_to_skip.store(left, memory_order_relaxed)
    return True


# ---------------------------------------------------------------------------------------------------------------
# releasing and reacquiring the GIL

cdef void released_gil() noexcept nogil:
    # Called just after the thread has detached.
    if not FREE_THREADED:
        attached.store(0, memory_order_relaxed)

cdef void reacquire_gil() noexcept nogil:
    # Called before the thread attaches: waits for the holder of the GIL to release it, if that seems likely.
    cdef int64_t span
    cdef SpinRound spin_round
    if FREE_THREADED or not MAY_SPIN or not attached.load(memory_order_relaxed):
        return
    span = _span(&gil_spin)
    _begin(&spin_round, span, -1)
    while attached.load(memory_order_relaxed):
        if not _goes_on(&spin_round):
            _learn(&gil_spin, span, False)
            return
    _learn(&gil_spin, span, True)

cdef void reacquired_gil() noexcept nogil:
    # Called just after the thread has attached.
    if not FREE_THREADED:
        attached.store(1, memory_order_relaxed)


# ---------------------------------------------------------------------------------------------------------------
# searching

cdef bint spin_detached(atomic[uint64_t]* word, uint64_t bits, Spin* spin, int64_t deadline) noexcept nogil:
    # Spins until the word has one of the bits: True; or until the deadline, or for as long as has paid recently: False.
    cdef int64_t span = _span(spin)
    cdef SpinRound spin_round
    cdef bint found
    _begin(&spin_round, span, deadline)
    while True:
        found = word.load(memory_order_acquire) & bits != 0  # acquire: pairs with the release that set the bit
        if found or not _goes_on(&spin_round):
            break
    _learn(spin, span, found)
    return found


cdef SearchResult spin_until(
    atomic[uint64_t]* word, uint64_t bits, Spin* spin, int64_t delay, int64_t deadline
) noexcept:
    # Called attached. The same, detached meanwhile; then goes on for `delay` nanoseconds if it found something.
    cdef SpinRound spin_round
    cdef bint found
    if not MAY_SPIN:
        return NOT_AT_ALL
    if FREE_THREADED and searching.fetch_add(1, memory_order_relaxed) >= PROCESSORS:
        searching.fetch_sub(1, memory_order_relaxed)
        return NOT_AT_ALL
    with nogil:  # waits for another thread to set a bit
        released_gil()
        found = spin_detached(word, bits, spin, deadline)
        if found and delay:
            _begin(&spin_round, delay, deadline)
            spin_round.yield_at = spin_round.limit  # no yield: the publisher runs, on another processor
            while _goes_on(&spin_round):
                pass
        reacquire_gil()
    reacquired_gil()
    if FREE_THREADED:
        searching.fetch_sub(1, memory_order_relaxed)
    return FOUND_HINT if found else FOUND_NOTHING


cdef SearchResult short_sleep(Spin* spin, int64_t deadline) noexcept:
    # Called attached. Sleeps briefly, detached, unless that has not paid recently. After SLEPT, learn_short_sleep must
    # be called.
    cdef uint32_t left = spin.sleep_skips_left.load(memory_order_relaxed)
    cdef int64_t span
    if not FREE_THREADED:
        return NOT_AT_ALL
    if left:
        spin.sleep_skips_left.store(left - 1, memory_order_relaxed)
        return NOT_AT_ALL
    span = SHORT_SLEEP_NS + SHORT_SLEEP_FOR_EACH_NS * <int64_t>searching.fetch_add(1, memory_order_relaxed)
    span = min(span, MAX_SHORT_SLEEP_NS)
    if deadline >= 0:
        span = min(span, deadline - now_ns())
    if span > 0:
        with nogil:  # waits for more to be published
            sleep_ns(span)
    searching.fetch_sub(1, memory_order_relaxed)
    return SLEPT


cdef void learn_short_sleep(Spin* spin, bint paid) noexcept:
    # `paid`: whether more than one item had gathered.
    cdef uint32_t skips = 0
    if not paid:
        skips = min(MAX_SKIPS, FIRST_SKIPS + 2 * spin.sleep_skips.load(memory_order_relaxed))
    spin.sleep_skips.store(skips, memory_order_relaxed)
    spin.sleep_skips_left.store(skips, memory_order_relaxed)


cdef void reset_search_count() noexcept:
    searching.store(0, memory_order_relaxed)
