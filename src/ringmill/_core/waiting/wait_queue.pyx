# WaitQueue: how threads, and tasks of event loops, sleep until something is published, and how they are woken.
#
# May use `platform`. event_loop.pyx adds the waiters of event loops; the ring and the pools own the queues.
# Longer than most files: one protocol, whose every step depends on the others.
#
# There is one WaitQueue for each predicate that can be waited for ("an item is there", "there is room"). Its user owns
# the predicate; the queue knows only the waiters. Everything here is called attached (rule 1 of the core); `with
# nogil:` surrounds waiting only.
#
# The word holds two numbers: sleepers (nodes in the list) and searchers (threads that were woken, or that spin, and
# have not reported yet what they found). It is written under the lock, and read without it by wakers.
#
#   waiter                                       waker
#   1  checks: nothing                           1  publishes (seq_cst read-modify-write of the ring's tail or head)
#   2  begin_sleep: word.sleepers + 1 (seq_cst)  2  reads the word (seq_cst)
#   3  checks again: nothing (seq_cst load)      3  sleepers and no searcher: grants the first node, searchers + 1
#   4  parks                                     4  releases the node's lock: its last touch of the node
#
# No lost wake-up. All four accesses (publish, read of the word; write of the word, last check) are sequentially
# consistent, so either the waiter's last check sees the publication, or the waker reads a word that counts the waiter.
# A waker that finds a searcher wakes no thread, so the searcher has a duty: it must check after its search has ended
# (end_search, or begin_sleep), and it must check for more than it takes itself. If the check after begin_sleep finds
# nothing, the duty is done. If any check finds something, the searcher takes one item and checks whether there is more;
# if so, it wakes the next waiter. That check sees whatever the waker had published, because the waker read the word
# before the search ended. The duty outlives the search: a thread that goes back to sleep, finds something on its last
# check and cancels is no searcher any more, but still has the duty. (tests/models/test_model_park_wake.py searches all
# interleavings; without that last rule it finds a lost wake-up.)
#
# To grant a wake-up is to take a waiter's node out of the list, under the lock, in order to wake the waiter after the
# unlock. A thread that leaves without having parked to the end (timeout, signal, an item found on the last check) calls
# cancel_sleep. If that returns "granted", the release of the node's lock has been consumed, and the thread is a
# searcher with the duty above: so the wake-up is passed on.
#
# Spinning (spinning.pyx) on a free-threaded build is a search that no sleep preceded: at most one thread per queue. A
# waker that sees it sets `hint` instead of waking a sleeper. The hint saves time only; correctness rests on the check
# after the search. A short sleep (spinning.pyx) is a search, too, but one that does not look at the hint.
#
# On a GIL build, such a thread would have to reacquire the GIL after the spin only to release it again and sleep. So
# there a thread registers as a sleeper first, then spins, detached, on its own node (`granted_flag`) before it blocks
# on the node's lock: at most one per queue, the `spinner`. A waker grants the spinner before those that are first in
# the list, as long as `spins` is set; that is set before the thread detaches, after everything in park that may run a
# signal handler or a finalizer, which could take long. Only time depends on these three fields: all waiters in the list
# have the same claim, whichever is granted, and a thread that saw granted_flag acquires the lock like any other. But
# the spinner must be in the list, so every function that takes it out of the list resets q.spinner.
#
# Event loops. A Sleeper is a waiter that does not block a thread: a task of an event loop, or the RingWatcher of a pool
# that reads a ring. It is unknown whether and when it acts on a wake-up: its loop may be busy, blocked, stopped, or
# never run again. So no wake-up depends on a Sleeper: it is granted without becoming a searcher, and never instead of a
# waiter that could take the same item. The Sleepers of one owner (one event loop) form a subqueue, in the order in
# which they began to wait. Threads are in a list of their own. A waker that finds no searcher grants, in one section
# under the lock,
#
#   the first thread, which becomes the searcher, and
#   the first Sleeper of each subqueue: of every subqueue if no thread waits; else of those subqueues whose first
#   Sleeper was queued before that thread.
#
# A subqueue that is passed over loses nothing: the thread was granted; it takes an item and notifies if there is more,
# or finds that there is nothing, or leaves and notifies. A waker that finds a searcher passes over all subqueues for
# the same reason. If no thread waits and none searches, each publication is announced in every subqueue; whatever one
# loop does about it, the others have been notified themselves.
#
# Within a subqueue, a granted Sleeper corresponds to a searcher among threads. Until its loop resumes it (`pending`),
# no other Sleeper of the subqueue is granted; so a busy loop is woken once rather than with each publication, and one
# loop does not wake several tasks for one item. The Sleeper checks after `pending` has ended (end_pending, or
# cancel_sleep), and checks for more than it takes itself. So it sees whatever was published until then, and notifies if
# there is more. If its loop never resumes it, its subqueue is not granted any more: that is the loop which does not
# run. If all waiters are tasks of one loop, no other waiter can take an item first, and each publication grants the
# next task, so that they run concurrently. (The model includes loops that stop. With a waker that stops at the first
# Sleeper, or a task that checks for more before `pending` ends, it finds the lost wake-up.)
#
# So a granted Sleeper may find nothing, because a thread or a task of another loop was faster. It returns to its former
# place in its subqueue (`place`), not to the end, but behind the threads that wait by then (`since`). If it is the
# first of its subqueue, it is granted again after at most as many wake-ups; so no Sleeper starves, and threads that are
# always faster than a loop do not wake that loop with each item. A thread that was granted and found nothing goes to
# the end of the list of threads; those before it become fewer with each wake-up, so it is first again after as many.
#
# A walk over the subqueues, under the lock, takes time in proportion to the number of event loops that wait in one
# queue. Sleeper.wake returns whether the Sleeper can be reached at all; if not (its loop is closed), the next of its
# subqueue is granted.
#
# After a fork the child's queues hold nodes of threads that no longer exist, perhaps half changed. Each queue knows the
# fork epoch that it belongs to, and the first thread of the child that touches it empties it.

import _thread
import os
import sys
import threading

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from ringmill._core.platform.gil_atomics cimport put64
from ringmill._core.platform.primitives cimport FREE_THREADED, now_ns, yield_processor
from ringmill._core.platform.spinning cimport (
    FOUND_NOTHING,
    LONG_EVERY,
    NOT_AT_ALL,
    SLEPT,
    SearchResult,
    init_spin,
    learn_short_sleep,
    may_spin,
    reacquire_gil,
    reacquired_gil,
    released_gil,
    reset_search_count,
    short_sleep,
    spin_detached,
    spin_until,
)

from ringmill.arguments import seconds as check_seconds

cdef extern from *:
    """
    #if defined(__linux__)
    #define RINGMILL_SLICE_NS 1000000000  /* a signal ends a wait on a semaphore, unless the wait has not begun yet */
    #else
    #define RINGMILL_SLICE_NS 50000000    /* elsewhere the main thread checks for signals twenty times a second */
    #endif
    """
    const int64_t SLICE_NS "RINGMILL_SLICE_NS"

# A Python function: calling it makes the interpreter run this thread's pending work.
cdef object run_pending = eval("lambda: None")
cdef int64_t PENDING_WORK_NS = 20_000_000
cdef int64_t FIRST_SLICE_NS = 10_000_000

cdef enum:
    SEARCHER = 1
    RESETTING = 0          # no epoch: the first is 1

cdef uint64_t SLEEPER = <uint64_t>1 << 32
cdef uint64_t SEARCHERS = SLEEPER - 1

cdef int64_t MIN_BATCHING_NS = 500
cdef int64_t MAX_BATCHING_NS = 20_000
cdef int64_t BATCHING_ITEM_NS = 250  # the delay pays if items come at most this far apart
cdef int64_t BATCHING_ITEMS = 4
cdef int64_t MAX_PARK_NS = <int64_t>3_600 * 1_000_000_000

epoch_now = 1
cdef SpinLock free_lock        # guards free_nodes
cdef WaitNode* free_nodes = NULL
cdef unsigned long main_thread = threading.main_thread().ident

cdef extern from "Python.h":
    PyObject* PyDict_GetItem(PyObject* dict, PyObject* key) noexcept

# gevent and eventlet replace these names to turn threads into greenlets. All greenlets of a thread stand still while
# one of them sleeps in the core, including those that would wake it, so such a wait is refused.
cdef dict thread_module = _thread.__dict__
cdef str start_name = "start_new_thread"
cdef dict modules = sys.modules
cdef str gevent_name = "gevent.monkey"
cdef str eventlet_name = "eventlet.patcher"
# The addresses of the start_new_thread that was found to start real threads, and of those two modules at that time;
# they are only compared. relaxed, all: a thread that reads an older address checks again.
cdef atomic[uint64_t] native_start
cdef atomic[uint64_t] gevent_seen
cdef atomic[uint64_t] eventlet_seen


cdef void _after_fork_in_child() noexcept:
    global epoch_now, free_nodes, main_thread
    epoch_now += 1
    free_lock.held.store(0, memory_order_relaxed)  # relaxed: the child has only one thread now
    free_nodes = NULL                              # perhaps half changed; leaks a few bytes for each fork
    main_thread = PyThread_get_thread_ident()
    reset_search_count()


def _forked():
    _after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


# ---------------------------------------------------------------------------------------------------------------
# the queue

cdef void init_queue(WaitQueue* q) noexcept:
    # relaxed: the queue is published with the object that contains it
    q.word.store(0, memory_order_relaxed)
    q.hint.store(0, memory_order_relaxed)
    q.epoch.store(epoch_now, memory_order_relaxed)
    q.lock.held.store(0, memory_order_relaxed)
    q.first = NULL
    q.last = NULL
    q.subqueues = NULL
    q.last_subqueue = NULL
    q.clock = 0
    q.spinner = NULL
    init_spin(&q.spin)
    q.batching_ns = 0
    q.batching_count = 0


cdef void _lock(WaitQueue* q) noexcept:
    cdef uint32_t seen = q.epoch.load(memory_order_acquire)  # acquire: pairs with the release below
    while seen != epoch_now:
        # seq_cst, by default: exactly one thread of the child claims the reset
        if seen != RESETTING and q.epoch.compare_exchange_strong(seen, RESETTING):
            q.word.store(0, memory_order_seq_cst)
            q.hint.store(0, memory_order_relaxed)  # relaxed: a hint
            q.lock.held.store(0, memory_order_relaxed)  # relaxed: published by the release below
            q.first = NULL
            q.last = NULL
            q.subqueues = NULL
            q.last_subqueue = NULL
            q.spinner = NULL
            q.epoch.store(epoch_now, memory_order_release)  # release: the queue is whole
            break
        yield_processor()
        seen = q.epoch.load(memory_order_acquire)  # acquire: pairs with the release above
    acquire(&q.lock)


cdef inline uint64_t _word(WaitQueue* q) noexcept:
    return q.word.load(memory_order_relaxed)  # relaxed: under the lock, which every writer holds


cdef inline void _set_word(WaitQueue* q, uint64_t word) noexcept:
    # seq_cst: the waiter's write before its last check; pairs with the load in notify
    put64(q.word, word, memory_order_seq_cst)


cdef inline void _append(WaitQueue* q, WaitNode* node) noexcept:
    # Adds a thread at the end of the list of threads.
    q.clock += 1
    node.since = q.clock
    node.prev = q.last
    node.next = NULL
    if q.last:
        q.last.next = node
    else:
        q.first = node
    q.last = node


cdef void _set_subqueue(WaitQueue* q, WaitNode* node, WaitNode* above, WaitNode* below) noexcept:
    # Makes the node the first of its subqueue, between those two subqueues. The caller sets its `pending`.
    node.heads = True
    node.above = above
    node.below = below
    if above:
        above.below = node
    else:
        q.subqueues = node
    if below:
        below.above = node
    else:
        q.last_subqueue = node


cdef void _append_to_subqueue(WaitQueue* q, WaitNode* node) noexcept:
    # Adds a Sleeper to the subqueue of its owner: at the end, or at the place that it had before. A subqueue is a
    # circular list.
    cdef WaitNode* head = q.subqueues
    cdef WaitNode* at
    q.clock += 1
    node.since = q.clock
    if node.place == 0:
        node.place = node.since
    node.heads = False
    node.pends = False
    while head and head.owner != node.owner:
        head = head.below
    if head == NULL:
        node.prev = node
        node.next = node
        node.pending = NULL
        _set_subqueue(q, node, q.last_subqueue, NULL)
        return
    at = head  # it is inserted before `at`; before the first is the end of the subqueue
    if head.prev.place > node.place:
        # passes only Sleepers that were granted, found nothing, and have returned before this one
        while at.place < node.place:
            at = at.next
    node.next = at
    node.prev = at.prev
    at.prev.next = node
    at.prev = node
    if at == head and node.place < head.place:
        head.heads = False
        node.pending = head.pending
        _set_subqueue(q, node, head.above, head.below)


cdef void _unlink_from_subqueue(WaitQueue* q, WaitNode* node) noexcept:
    if node.heads:
        node.heads = False
        if node.next != node:
            node.next.pending = node.pending
            _set_subqueue(q, node.next, node.above, node.below)
        else:
            if node.above:
                node.above.below = node.below
            else:
                q.subqueues = node.below
            if node.below:
                node.below.above = node.above
            else:
                q.last_subqueue = node.above
    node.prev.next = node.next
    node.next.prev = node.prev
    node.queued = False


cdef inline void _unlink(WaitQueue* q, WaitNode* node) noexcept:
    if node.sleeper:
        _unlink_from_subqueue(q, node)
        return
    if node.prev:
        node.prev.next = node.next
    else:
        q.first = node.next
    if node.next:
        node.next.prev = node.prev
    else:
        q.last = node.prev
    if not FREE_THREADED and q.spinner == node:
        q.spinner = NULL
    node.queued = False


cdef inline bint _spins(WaitNode* node) noexcept:
    return node != NULL and node.spins.load(memory_order_relaxed) != 0  # relaxed: a hint, like `granted_flag`


cdef inline bint _make_spinner(WaitQueue* q, WaitNode* node) noexcept:
    # GIL builds. The lock is not needed: only attached threads hold it, and this thread is the one that is attached.
    # Not if another thread spins (two would only take processors from running threads), nor if the node is granted
    # already.
    if FREE_THREADED or not may_spin() or not node.queued or _spins(q.spinner):
        return False
    node.spins.store(1, memory_order_relaxed)
    q.spinner = node
    return True


cdef void begin_sleep(WaitQueue* q, WaitNode* node, bint searching) noexcept:
    # Makes the caller, searcher or not, a sleeper. It must check once more before it parks. The caller may hold another
    # lock (a worker that arms a RingWatcher), so a local variable: for a field, Cython adds a DECREF.
    cdef PyObject* sleeper = node.sleeper
    if sleeper:
        Py_INCREF(<object>sleeper)  # owned by the subqueue, then by the thread that grants or cancels
    _lock(q)
    node.epoch = epoch_now
    node.queued = True
    if node.sleeper:
        _append_to_subqueue(q, node)
    else:
        node.granted_flag.store(0, memory_order_relaxed)
        _append(q, node)
    # after a fork, the count of searchers was reset with the rest of the word
    _set_word(q, _word(q) + SLEEPER - (SEARCHER if searching and _word(q) & SEARCHERS else 0))
    release(&q.lock)


cdef inline void _end_pending(WaitQueue* q, WaitNode* node) noexcept:
    cdef WaitNode* head = q.subqueues
    if not node.sleeper or not node.pends:
        return
    node.pends = False
    while head and head.owner != node.owner:
        head = head.below
    if head and head.pending == <void*>node:
        head.pending = NULL


cdef void end_pending(WaitQueue* q, WaitNode* node) noexcept:
    # A granted Sleeper is resumed, or never will be. It must check after this, or notify.
    if not node.pends:  # written before it was woken
        return
    _lock(q)
    if node.epoch == epoch_now:
        _end_pending(q, node)
    release(&q.lock)


cdef bint cancel_sleep(WaitQueue* q, WaitNode* node) noexcept:
    # Leaves the queue. True: a wake-up had been granted and is consumed. A thread is a searcher then; a Sleeper never
    # is one, but has the duty to check all the same.
    cdef bint granted
    _lock(q)
    if node.epoch != epoch_now:  # a signal handler forked while this thread slept: the list was the parent's
        release(&q.lock)
        return False
    granted = not node.queued
    if granted:
        _end_pending(q, node)  # before the check that is its duty
    else:
        _unlink(q, node)
        _set_word(q, _word(q) - SLEEPER)
    release(&q.lock)
    if node.sleeper:
        if not granted:
            Py_DECREF(<object>node.sleeper)  # the subqueue's; the granter drops its own
    elif granted:
        # The waker is between its unlock and its release of the node: a few instructions.
        PyThread_acquire_lock(node.lock, 1)
    return granted


cdef void end_search(WaitQueue* q) noexcept:
    # The caller is no searcher any more. It must check once more, and notify if there is more.
    _lock(q)
    if _word(q) & SEARCHERS:  # it may be 0 after a fork
        _set_word(q, _word(q) - SEARCHER)
    release(&q.lock)


cdef bint wake_node(WaitNode* node) noexcept:
    # The node is granted: it is out of the list and belongs to this thread until the release, which is the last touch
    # of it. Returns as Sleeper.wake.
    cdef PyObject* sleeper = node.sleeper
    cdef bint reachable = True
    if sleeper:
        reachable = (<Sleeper>sleeper).wake()
        Py_DECREF(<object>sleeper)  # the subqueue's reference, which passed to this thread with the grant
    else:
        if not FREE_THREADED:
            node.granted_flag.store(1, memory_order_relaxed)
        PyThread_release_lock(node.lock)
    return reachable


cdef WaitNode* _grant(WaitQueue* q) noexcept:
    # Called under the lock, when no thread searches. Takes the waiters that are to be woken out of their lists and
    # returns them chained by `next`: the first thread, then the first Sleeper of each subqueue, unless it was queued
    # after that thread or another of its subqueue is pending.
    cdef WaitNode* thread = q.spinner if _spins(q.spinner) else q.first
    cdef WaitNode* head = q.subqueues
    cdef WaitNode* below
    cdef WaitNode* granted = NULL
    cdef WaitNode* last = NULL
    cdef uint64_t word = _word(q)
    cdef bint shared = thread != NULL or head != q.last_subqueue  # the waiters are not all of one event loop
    if thread:
        _unlink(q, thread)
        word += SEARCHER - SLEEPER
        granted = last = thread
    while head:
        below = head.below
        if head.pending == NULL and (thread == NULL or head.since < thread.since):
            if shared and head.next != head:
                head.pending = <void*>head  # _unlink_from_subqueue passes it on to the next one, then the first
                head.pends = True
            _unlink_from_subqueue(q, head)
            word -= SLEEPER
            if last:
                last.next = head
            else:
                granted = head
            last = head
        head = below
    if last:
        last.next = NULL
        _set_word(q, word)
    return granted


cdef void notify_slow(WaitQueue* q, uint64_t word) noexcept:
    # Wakes a thread if one sleeps and none searches, and one task of each event loop. `word` was read after the
    # publication.
    cdef WaitNode* node
    cdef WaitNode* following
    cdef bint reached
    if word & SEARCHERS:
        if not q.hint.load(memory_order_relaxed):  # relaxed: if it is 1 already, the cache line stays where it is
            # release: publishes what came before it; pairs with the load in spin_until
            q.hint.store(1, memory_order_release)
        if q.epoch.load(memory_order_acquire) == epoch_now:  # acquire: pairs with the reset after a fork
            return
    while True:
        node = NULL
        _lock(q)
        if not _word(q) & SEARCHERS:
            node = _grant(q)
        release(&q.lock)
        reached = True
        while node:
            following = node.next  # before the release: the node may be gone after it
            if not wake_node(node):
                reached = False
            node = following
        if reached:
            return
        # a loop is closed: try the next Sleeper of its subqueue


cdef bint notify_matching(WaitQueue* q, Matches matches, void* context) noexcept:
    # Wakes the first thread whose owner matches, whether or not there are searchers: they may not take what is there.
    cdef WaitNode* node
    q.hint.store(1, memory_order_release)  # release: as in notify_slow; the thread may be spinning
    if q.word.load(memory_order_seq_cst) < SLEEPER:  # seq_cst: as in notify
        return False
    _lock(q)
    node = q.first
    while node and not matches(node.owner, context):
        node = node.next
    if node:
        _unlink(q, node)
        _set_word(q, _word(q) - SLEEPER + SEARCHER)
    release(&q.lock)
    if node:
        wake_node(node)
    return node != NULL


cdef void notify_all(WaitQueue* q) noexcept:
    # Wakes all waiters: the predicate has become true for good (closed). This thread owns the chain once it is out of
    # the queue.
    cdef WaitNode* node
    cdef WaitNode* following
    cdef WaitNode* head
    cdef WaitNode* last
    cdef uint64_t searchers
    _lock(q)
    # Threads first: one of them may wait for its release while attached, and a Sleeper's wake runs Python code.
    node = q.first
    last = q.last
    head = q.subqueues
    q.first = NULL
    q.last = NULL
    q.subqueues = NULL
    q.last_subqueue = NULL
    q.spinner = NULL
    searchers = _word(q) & SEARCHERS
    while head:
        following = head.below
        head.heads = False
        if last:
            last.next = head
        else:
            node = head
        last = head.prev
        last.next = NULL
        head = following
    following = node
    while following:
        following.queued = False
        if not following.sleeper:
            searchers += SEARCHER
        following = following.next
    _set_word(q, searchers)
    q.hint.store(1, memory_order_release)  # release: as in notify_slow
    release(&q.lock)
    while node:
        following = node.next  # before the release: the node may be gone after it
        wake_node(node)
        node = following


# ---------------------------------------------------------------------------------------------------------------
# waiting

cdef int64_t _batching_delay(WaitQueue* q, uint64_t moved) noexcept:
    # How long a search goes on after something has been published, so that items gather. It paid the last time if the
    # caller has moved enough items since.
    cdef int64_t delay = q.batching_ns
    if moved >= <uint64_t>max(BATCHING_ITEMS, delay // BATCHING_ITEM_NS):
        delay = min(MAX_BATCHING_NS, 2 * delay)
    else:
        delay = delay // 2
    if delay < MIN_BATCHING_NS:
        delay = 0
        q.batching_count += 1
        if q.batching_count % LONG_EVERY == 0:
            delay = 2 * MIN_BATCHING_NS
    q.batching_ns = delay
    return delay


cdef SearchResult search(WaitQueue* q, uint64_t moved, int64_t deadline) noexcept:
    # Free-threaded builds: spins or sleeps briefly, detached, if no thread searches yet. Unless it returns NOT_AT_ALL,
    # the caller is a searcher now and must check; whether or not it finds anything, it must call begin_sleep or
    # end_search.
    cdef int64_t delay
    cdef SearchResult looked
    if not FREE_THREADED or not may_spin() or _word(q) & SEARCHERS:
        return NOT_AT_ALL
    _lock(q)
    if _word(q) & SEARCHERS:
        release(&q.lock)
        return NOT_AT_ALL
    _set_word(q, _word(q) + SEARCHER)
    q.hint.store(0, memory_order_relaxed)  # relaxed: under the lock, and only a hint
    delay = _batching_delay(q, moved)
    release(&q.lock)
    looked = spin_until(&q.hint, 1, &q.spin, delay, deadline)
    if looked == NOT_AT_ALL:
        looked = short_sleep(&q.spin, deadline)
    return FOUND_NOTHING if looked == NOT_AT_ALL else looked


cdef int park(WaitNode* node, WaitQueue* q, int64_t deadline) except -1:
    # Sleeps until granted: 1; or until the deadline: 0. Raises what a signal handler raises. After 0 or an exception
    # the caller must call cancel_sleep. Uses no CPU beyond the spin of a queue's spinner, and does not hold the GIL.
    # `q`: the queue whose spinner it may become, or NULL.
    cdef int64_t now, span
    cdef PyLockStatus status
    cdef bint sliced = PyThread_get_thread_ident() == main_thread
    cdef bint first = True, spins
    while True:
        PyErr_CheckSignals()  # a signal may have arrived during the spin
        if node.epoch != epoch_now:
            return 0  # as in cancel_sleep
        span = MAX_PARK_NS
        if deadline != NEVER:
            now = now_ns()
            if now >= deadline:
                return 0
            span = min(span, deadline - now)
        if sliced:
            # A signal that arrives before the lock's wait begins does not end it, and releasing the GIL or spinning
            # takes time.
            span = min(span, FIRST_SLICE_NS if first else SLICE_NS)
        spins = first and q != NULL and _make_spinner(q, node)
        first = False
        with nogil:  # waits for the grant
            released_gil()
            if spins:
                spin_detached(&node.granted_flag, 1, &q.spin, deadline)
                node.spins.store(0, memory_order_relaxed)
                if deadline != NEVER:
                    span = min(span, max(0, deadline - now_ns()))
            # microseconds, rounded up; the flag: a signal ends the wait
            status = PyThread_acquire_lock_timed(node.lock, (span + 999) // 1000, 1)
            reacquire_gil()
        reacquired_gil()
        if status == PY_LOCK_ACQUIRED:
            return 1


cdef int wait_for(WaitQueue* q, Attempt attempt, Attempt more, void* context, void* owner, uint64_t moved,
                  int64_t deadline) except -1:
    # The waiter's side of the protocol. Returns what the attempt returned, or 0 when the deadline passed. Raises what a
    # signal handler raises, and MemoryError; nothing was taken then.
    cdef int result = 0
    cdef SearchResult looked = search(q, moved, deadline)
    cdef bint searching = looked != NOT_AT_ALL
    cdef bint owes = searching  # the duty to check (see the head): a waker may have relied on this thread
    cdef bint rest
    cdef WaitNode* node = NULL
    cdef bint runs_pending = FREE_THREADED and owner != NULL
    cdef int64_t until
    try:
        node = take_node()
        node.owner = owner
        while True:
            result = attempt(context)
            if result or (deadline != NEVER and now_ns() >= deadline):
                return result
            if owner == NULL:  # a worker's own thread is a real one, whatever was patched since it started
                refuse_greenlets()
            begin_sleep(q, node, searching)
            searching = False
            result = attempt(context)  # the last look
            if result:
                searching = cancel_sleep(q, node)
                return result
            owes = False  # no waker can have relied on this thread before that check and published after it
            try:
                if runs_pending:
                    # Objects of this thread that other threads drop are freed when it attaches again (rule 14): so it
                    # does, once, soon after it began to sleep.
                    runs_pending = False
                    until = now_ns() + PENDING_WORK_NS
                    searching = park(node, q, until if deadline == NEVER or until < deadline else deadline)
                    if not searching:
                        run_pending()
                        searching = park(node, q, deadline)
                else:
                    searching = park(node, q, deadline)
            except BaseException:
                searching = cancel_sleep(q, node)
                raise
            if not searching:
                searching = cancel_sleep(q, node)
            owes = searching
    finally:
        if node:
            give_node(node)
        if searching:
            end_search(q)
        rest = (searching or owes) and more(context)
        if rest:
            notify(q)
        if looked == SLEPT:
            learn_short_sleep(&q.spin, rest)


# ---------------------------------------------------------------------------------------------------------------
# greenlets

cdef int refuse_greenlets() except -1:
    # Called before a thread sleeps. Costs a look into two dicts if nothing has changed since the last time.
    cdef PyObject* start = PyDict_GetItem(<PyObject*>thread_module, <PyObject*>start_name)
    cdef PyObject* gevent = PyDict_GetItem(<PyObject*>modules, <PyObject*>gevent_name)
    cdef PyObject* eventlet = PyDict_GetItem(<PyObject*>modules, <PyObject*>eventlet_name)
    if (
        native_start.load(memory_order_relaxed) == <uint64_t>start
        and gevent_seen.load(memory_order_relaxed) == <uint64_t>gevent
        and eventlet_seen.load(memory_order_relaxed) == <uint64_t>eventlet
    ):
        return 0
    if start == NULL or start == <PyObject*>None:  # the interpreter is ending, and has cleared the module
        return 0
    check_threads()
    native_start.store(<uint64_t>start, memory_order_relaxed)
    gevent_seen.store(<uint64_t>gevent, memory_order_relaxed)
    eventlet_seen.store(<uint64_t>eventlet, memory_order_relaxed)
    return 0


def check_threads():
    """Raises RuntimeError if gevent or eventlet has replaced threads by greenlets."""
    library = patched_by()
    if library is not None:
        raise RuntimeError(
            f"{library} has replaced threads by greenlets (monkey-patching), which ringmill cannot work with: "
            "leave threads as they are, with gevent.monkey.patch_all(thread=False) or eventlet.monkey_patch(thread=False)"
        )


cdef str patched_by():
    # Another tool, a debugger for example, may also replace the function, by one that starts a real thread.
    for library, module, function, names in (
        ("gevent", gevent_name, "is_module_patched", ("threading", "_thread", "thread")),
        ("eventlet", eventlet_name, "is_monkey_patched", ("thread", "threading", "_thread")),
    ):
        is_patched = getattr(modules.get(module), function, None)
        if is_patched is not None and True in [bool(is_patched(name)) for name in names]:
            return library
        if str(getattr(thread_module.get(start_name), "__module__", None)).split(".")[0] == library:
            return library
    return None


# ---------------------------------------------------------------------------------------------------------------
# nodes: each has a lock; they are kept for reuse and never freed (a waker may still be inside the release of one)

cdef WaitNode* take_node() except NULL:
    global free_nodes
    cdef WaitNode* node
    acquire(&free_lock)
    node = free_nodes
    if node:
        free_nodes = node.next
    release(&free_lock)
    if node == NULL:
        node = <WaitNode*>PyMem_RawCalloc(1, sizeof(WaitNode))
        if node == NULL:
            raise MemoryError
        node.lock = PyThread_allocate_lock()
        if node.lock == NULL:
            PyMem_RawFree(node)
            raise MemoryError
        PyThread_acquire_lock(node.lock, 1)
    node.prev = NULL
    node.next = NULL
    node.owner = NULL
    return node


cdef void give_node(WaitNode* node) noexcept:
    global free_nodes
    acquire(&free_lock)
    node.next = free_nodes
    free_nodes = node
    release(&free_lock)


cdef int visit_sleepers(WaitQueue* q, visitproc visit, void* arg) noexcept:
    # No thread is inside a section under a lock: the collector stops threads only where they may be stopped.
    cdef WaitNode* head = q.subqueues
    cdef WaitNode* node
    cdef int status = 0
    if q.epoch.load(memory_order_relaxed) != epoch_now:  # relaxed: no other thread runs
        return 0
    while head and not status:
        node = head
        while True:
            status = visit(node.sleeper, arg)  # the subqueue owns a reference
            node = node.next
            if status or node == head:
                break
        head = head.below
    return status


cdef class Sleeper:
    def __cinit__(self):
        self.node.sleeper = <PyObject*>self
        self.node.owner = <void*>self  # a subqueue of its own, unless its maker sets another owner

    cdef bint wake(self) noexcept:
        return False


# ---------------------------------------------------------------------------------------------------------------
# timeouts

cdef int64_t deadline_of(object timeout) except? -2:
    """Returns the deadline `timeout` seconds from now; NEVER for None. TypeError or ValueError for anything else."""
    cdef double seconds
    if timeout is None:
        return NEVER
    if type(timeout) is float:
        seconds = <double>timeout
    elif type(timeout) is int:
        try:
            seconds = <double>timeout
        except OverflowError:
            seconds = -1.0
    else:
        seconds = -1.0
    if not seconds >= 0.0:
        seconds = check_seconds("timeout", timeout, optional=True)  # another type, not a number, negative, or huge
    if seconds > 1e9:  # thirty years
        return NEVER
    return now_ns() + <int64_t>(seconds * 1e9)
