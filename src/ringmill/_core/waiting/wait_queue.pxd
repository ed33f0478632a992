# How a thread, an event loop or a select sleeps and is woken. The protocol is at the head of wait_queue.pyx.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.atomic cimport (
    atomic,
    memory_order_acquire,
    memory_order_relaxed,
    memory_order_release,
    memory_order_seq_cst,
)

from ringmill._core.platform.gil_atomics cimport exchange32
from ringmill._core.platform.primitives cimport relax
from ringmill._core.platform.spinning cimport SearchResult, Spin

cdef extern from "pythread.h" nogil:
    ctypedef void* PyThread_type_lock
    ctypedef enum PyLockStatus:
        PY_LOCK_FAILURE
        PY_LOCK_ACQUIRED
        PY_LOCK_INTR
    PyThread_type_lock PyThread_allocate_lock()
    int PyThread_acquire_lock(PyThread_type_lock, int wait)
    void PyThread_release_lock(PyThread_type_lock)
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock, long long microseconds, int intr_flag)
    unsigned long PyThread_get_thread_ident()


# A deadline is a point of the steady clock in nanoseconds; NEVER waits without limit.
cdef enum:
    NEVER = -1


# A lock for a handful of instructions: no user code, no Python API that may run any, no detaching under it.
cdef struct SpinLock:
    atomic[uint32_t] held  # 0 or 1

# A test build records here which locks the calling thread holds (tests/tools/lock_rules); every other build, nothing.
cdef extern from *:
    """
    #ifndef RINGMILL_LOCK_ACQUIRED
    #define RINGMILL_LOCK_ACQUIRED(lock) ((void)0)
    #define RINGMILL_LOCK_RELEASED(lock) ((void)0)
    #endif
    """
    void record_acquired "RINGMILL_LOCK_ACQUIRED"(void* lock) noexcept nogil
    void record_released "RINGMILL_LOCK_RELEASED"(void* lock) noexcept nogil

cdef inline void acquire(SpinLock* lock) noexcept nogil:
    cdef int spins = 0
    # acquire: pairs with the release in release(), so that the holder sees what the last one wrote
    while exchange32(lock.held, 1, memory_order_acquire):
        # relaxed: only to wait without writing to the line; the exchange above decides
        while lock.held.load(memory_order_relaxed):
            relax(&spins)
    record_acquired(lock)

cdef inline void release(SpinLock* lock) noexcept nogil:
    record_released(lock)
    lock.held.store(0, memory_order_release)  # release: pairs with the exchange in acquire()


cdef struct WaitNode:
    WaitNode* prev              # guarded by the queue's lock while queued. Of threads: a list; of a lane's Sleepers: circular
    WaitNode* next              # once granted: the waker's chain
    WaitNode* above             # the first of a lane: the first of the lanes beside it; guarded by the queue's lock
    WaitNode* below
    bint heads                  # it is the first of a lane; guarded by the queue's lock
    void* pending               # the first of a lane: a granted one of the lane that is not resumed yet; never read through
    bint pends                  # granted: the lane had others; they are not granted before it has been resumed
    uint64_t since              # when it was queued last, by the queue's clock
    uint64_t place              # of a Sleeper: when it was queued first; 0: it was not yet
    PyThread_type_lock lock     # a thread parks on it; locked at rest, released by the one grant
    PyObject* sleeper           # NULL for a thread; else the Sleeper, borrowed (see begin_sleep)
    uint32_t epoch              # the fork epoch in which it was queued
    bint queued                 # guarded by the queue's lock: in the list, not granted
    void* owner                 # of a thread: who it is, for wake-ups by name. Of a Sleeper: its event loop; never read through
    atomic[uint64_t] granted_flag       # 1: granted; for one that spins. GIL builds only, as the next
    atomic[uint32_t] spins      # 1: it spins

cdef struct WaitQueue:
    atomic[uint64_t] word       # sleepers << 32 | searchers; written under the lock, read without
    atomic[uint64_t] hint       # 1: something was published since the spinning searcher looked
    atomic[uint32_t] epoch      # the fork epoch it belongs to
    SpinLock lock
    WaitNode* first             # threads; guarded by the lock, like all below but `spin`
    WaitNode* last
    WaitNode* lanes             # Sleepers: the first of each lane, one lane for each owner
    WaitNode* last_lane
    uint64_t clock              # how many have been queued
    WaitNode* spinner           # one in the list that spins, or did; guarded by the lock; GIL builds only
    Spin spin                   # of those who wait here
    int64_t linger_ns           # how long the next search goes on when it has been hinted; guarded by the lock, adapts
    uint32_t linger_count            # guarded by the lock


cdef class Sleeper:
    # Somebody who sleeps otherwise than on a lock: an event loop's future, a pool that reads a ring.
    cdef WaitNode node
    # Called attached, without locks, once it is granted; may run Python code. Others that could take the same item have
    # been granted too. False: it cannot be reached, so the next of its lane is granted as well.
    cdef bint wake(self) noexcept


cdef void init_queue(WaitQueue* q) noexcept
cdef int refuse_greenlets() except -1
cdef WaitNode* take_node() except NULL
cdef void give_node(WaitNode* node) noexcept

cdef void begin_sleep(WaitQueue* q, WaitNode* node, bint searching) noexcept
cdef bint cancel_sleep(WaitQueue* q, WaitNode* node) noexcept
cdef bint wake_node(WaitNode* node) noexcept
cdef int park(WaitNode* node, WaitQueue* q, int64_t deadline) except -1
cdef void end_search(WaitQueue* q) noexcept
cdef void end_pending(WaitQueue* q, WaitNode* node) noexcept
cdef SearchResult search(WaitQueue* q, uint64_t moved, int64_t deadline) noexcept

# What a waiter waits for. An attempt that is over (done, or in vain for good) returns non-zero; it is also the last
# look before sleep. `more` tells whether another waiter of the same queue would find something.
ctypedef int (*Attempt)(void* context) noexcept

# `owner`: who may be woken by name; or NULL. `moved`: how many items have been since the last wait, or 0.
cdef int wait_for(
    WaitQueue* q, Attempt attempt, Attempt more, void* context, void* owner, uint64_t moved, int64_t deadline
) except -1

cdef void notify_slow(WaitQueue* q, uint64_t word) noexcept
cdef bint notify_owner(WaitQueue* q, void* owner) noexcept
cdef void notify_all(WaitQueue* q) noexcept

cdef inline void notify(WaitQueue* q) noexcept:
    # seq_cst: the last of the waker's two accesses; pairs with the store in begin_sleep and the sleeper's last look
    cdef uint64_t word = q.word.load(memory_order_seq_cst)
    if word:
        notify_slow(q, word)

cdef int64_t deadline_of(object timeout) except? -2

ctypedef int (*visitproc)(PyObject*, void*) noexcept
# For the garbage collector, as tp_traverse: the Sleepers in a queue.
cdef int visit_sleepers(WaitQueue* q, visitproc visit, void* arg) noexcept

# How many forks lie between this process and the one that imported ringmill first, from 1. Only to be read.
cdef uint32_t epoch_now
