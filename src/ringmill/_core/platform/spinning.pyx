# How long a thread looks for something, awake, before it sleeps; and how it goes back to the GIL.
#
# A wake-up costs some 20 microseconds on another processor, a look a hundredth of one. So who waits spins first: detached,
# for at most 50 microseconds, and for as long as has been worth it of late (Spin): the span doubles when the spin found
# what it was for and is halved when not, so that on a busy machine next to nothing is left of it. Nothing here matters
# for correctness: whoever is told that he found nothing looks again, and sleeps by the protocol of wait_queue.pyx.
#
# Exploring. Two threads that hand work to and fro and both sleep find each other asleep, however often they spin for a
# short time. One spin of LONG_EVERY is therefore as long as the other needs to wake up.
#
# Yielding. The thread that we wait for may be waiting for our processor. A yield gives it to that thread, but on a
# crowded machine to anybody, for milliseconds; each such yield doubles the number of those that are left out next.
#
# Lingering. Where items come one by one, two threads in step fight for each cache line. A spin that has found something may
# go on for a while, to let some gather; wait_queue.pyx knows when that pays. On a GIL build it does by itself, see next.
#
# Napping. Where more threads look than there are processors, spinning only keeps those from running that would publish
# something; and if all of them slept, a publisher would pay for a wake-up with each item. So on a free-threaded build no
# more spin than there are processors, and who comes on top naps, still a searcher, so that nobody need wake him: once,
# for the longer the more do so, that the clock may not wake more than the processors can run. A nap has paid if more than
# one item has gathered by the end of the wait; if not, naps are left out for a while, since whoever sends one item at a
# time waits for the answer. On a GIL build items gather while the GIL is elsewhere.
#
# Taking the GIL. Who asks for the GIL while another has it sleeps in the kernel, even if the holder is just about to let
# go. So who has found what it spun for spins on until the holder has detached (to search, or to park, most likely):
# `attached` says whether the thread of ringmill's that passed here last went in or out. Who is misled by it, because
# the holder detached elsewhere, loses the rest of a spin.

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
cdef int64_t CROWDED_NS = 50_000  # a yield that took so long gave the processor to somebody else
cdef int64_t NAP_NS = 50_000        # and about as much again that Linux's timers take, if not told otherwise
cdef int64_t NAP_FOR_EACH_NS = 25_000  # of the others that look
cdef int64_t MAX_NAP_NS = 800_000
cdef enum:
    MAX_CROWD = 4096
    FIRST_SKIPS = 16
    MAX_SKIPS = 1024

# relaxed, all of these, wherever they are read and written: guesses, on which nothing depends
cdef atomic[uint32_t] attached  # 1: a thread of ringmill's took the GIL last; 0: one gave it up last
cdef Spin patience              # of those who wait for the GIL
cdef atomic[uint32_t] crowd_left  # so many yields are left out yet,
cdef atomic[uint32_t] crowd_size  # of so many
cdef atomic[uint32_t] looking   # threads that spin or nap; free-threaded builds only


cdef bint may_spin() noexcept nogil:
    # Not where there is one processor only.
    return MAY_SPIN


cdef void init_spin(Spin* spin) noexcept nogil:
    spin.span_ns.store(MAX_SPIN_NS, memory_order_relaxed)
    spin.count.store(0, memory_order_relaxed)
    spin.nap_skips.store(0, memory_order_relaxed)
    spin.nap_left.store(0, memory_order_relaxed)


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


init_spin(&patience)


cdef struct SpinRound:              # one spin; on the spinner's stack
    int64_t limit
    int64_t yield_at
    int64_t yield_every         # doubles
    int rounds

cdef inline void _begin(SpinRound* spin_round, int64_t span, int64_t deadline) noexcept nogil:
    # A deadline below 0 is none.
    cdef int64_t now = now_ns()
    spin_round.limit = now + span
    if 0 <= deadline < spin_round.limit:
        spin_round.limit = deadline
    spin_round.yield_every = YIELD_AFTER_NS
    spin_round.yield_at = now + YIELD_AFTER_NS
    spin_round.rounds = 0

cdef inline bint _goes_on(SpinRound* spin_round) noexcept nogil:
    # One round. False: that was long enough.
    pause()
    spin_round.rounds += 1
    return True if spin_round.rounds & 15 else _look_up(spin_round)

cdef bint _look_up(SpinRound* spin_round) noexcept nogil:
    # Now and then: the time; and whoever we wait for may be waiting for this very processor.
    cdef int64_t now = now_ns(), back
    cdef uint32_t left
    if now >= spin_round.limit:
        return False
    if now < spin_round.yield_at:
        return True
    spin_round.yield_every *= 2
    spin_round.yield_at = now + spin_round.yield_every
    left = crowd_left.load(memory_order_relaxed)
    if left:
        crowd_left.store(left - 1, memory_order_relaxed)
        return True
    yield_processor()
    back = now_ns()
    if back - now < CROWDED_NS:
        crowd_size.store(0, memory_order_relaxed)
    else:
        left = min(MAX_CROWD, 2 * crowd_size.load(memory_order_relaxed) + 16)
        crowd_size.store(left, memory_order_relaxed)
        crowd_left.store(left, memory_order_relaxed)
    return True


# ---------------------------------------------------------------------------------------------------------------
# in and out

cdef void released_gil() noexcept nogil:
    # Just detached.
    if not FREE_THREADED:
        attached.store(0, memory_order_relaxed)

cdef void reacquire_gil() noexcept nogil:
    # About to attach: waits for the holder of the GIL to let go, if it looks as if it would.
    cdef int64_t span
    cdef SpinRound spin_round
    if FREE_THREADED or not MAY_SPIN or not attached.load(memory_order_relaxed):
        return
    span = _span(&patience)
    _begin(&spin_round, span, -1)
    while attached.load(memory_order_relaxed):
        if not _goes_on(&spin_round):
            _learn(&patience, span, False)
            return
    _learn(&patience, span, True)

cdef void reacquired_gil() noexcept nogil:
    # Just attached.
    if not FREE_THREADED:
        attached.store(1, memory_order_relaxed)


# ---------------------------------------------------------------------------------------------------------------
# looking

cdef bint spin_detached(atomic[uint64_t]* word, uint64_t bits, Spin* spin, int64_t deadline) noexcept nogil:
    # Spins until the word has one of the bits: True. Or until the deadline, or for as long as has been worth it.
    cdef int64_t span = _span(spin)
    cdef SpinRound spin_round
    cdef bint found
    _begin(&spin_round, span, deadline)
    while True:
        found = word.load(memory_order_acquire) & bits != 0  # acquire: what was written before the bit
        if found or not _goes_on(&spin_round):
            break
    _learn(spin, span, found)
    return found


cdef SearchResult spin_until(atomic[uint64_t]* word, uint64_t bits, Spin* spin, int64_t linger, int64_t deadline) noexcept:
    # Called attached. The same, detached meanwhile, and then for `linger` nanoseconds more.
    cdef SpinRound spin_round
    cdef bint found
    if not MAY_SPIN:
        return NOT_AT_ALL
    if FREE_THREADED and looking.fetch_add(1, memory_order_relaxed) >= PROCESSORS:
        looking.fetch_sub(1, memory_order_relaxed)
        return NOT_AT_ALL
    with nogil:  # waits for another thread to set a bit
        released_gil()
        found = spin_detached(word, bits, spin, deadline)
        if found and linger:
            _begin(&spin_round, linger, deadline)
            spin_round.yield_at = spin_round.limit  # whoever publishes is at it, on another processor
            while _goes_on(&spin_round):
                pass
        reacquire_gil()
    reacquired_gil()
    if FREE_THREADED:
        looking.fetch_sub(1, memory_order_relaxed)
    return FOUND_HINT if found else FOUND_NOTHING


cdef SearchResult nap(Spin* spin, int64_t deadline) noexcept:
    # Called attached. Sleeps for a moment, detached, unless that has not paid of late. NAPPED: learn_nap must follow.
    cdef uint32_t left = spin.nap_left.load(memory_order_relaxed)
    cdef int64_t span
    if not FREE_THREADED:
        return NOT_AT_ALL
    if left:
        spin.nap_left.store(left - 1, memory_order_relaxed)
        return NOT_AT_ALL
    span = NAP_NS + NAP_FOR_EACH_NS * <int64_t>looking.fetch_add(1, memory_order_relaxed)
    span = min(span, MAX_NAP_NS)
    if deadline >= 0:
        span = min(span, deadline - now_ns())
    if span > 0:
        with nogil:  # waits for more to be published
            sleep_ns(span)
    looking.fetch_sub(1, memory_order_relaxed)
    return NAPPED


cdef void learn_nap(Spin* spin, bint paid) noexcept:
    # Whether more than one had gathered.
    cdef uint32_t skips = 0
    if not paid:
        skips = min(MAX_SKIPS, FIRST_SKIPS + 2 * spin.nap_skips.load(memory_order_relaxed))
    spin.nap_skips.store(skips, memory_order_relaxed)
    spin.nap_left.store(skips, memory_order_relaxed)


cdef void forget_lookers() noexcept:
    looking.store(0, memory_order_relaxed)
