# WaitQueue: how threads and tasks of event loops sleep and are woken. The protocol is at the head of wait_queue.pyx.

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


# A deadline is a time of the steady clock in nanoseconds; NEVER means no limit.
cdef enum:
    NEVER = -1


# A lock for a few instructions. Under it: no user code, no Python API that may run user code, no detaching.
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
    # acquire: pairs with the store in release(), so that the holder sees what the last holder wrote
    while exchange32(lock.held, 1, memory_order_acquire):
        # relaxed: only to wait without writing to the line; the exchange above decides
        while lock.held.load(memory_order_relaxed):
            relax(&spins)
    record_acquired(lock)

cdef inline void release(SpinLock* lock) noexcept nogil:
    record_released(lock)
    lock.held.store(0, memory_order_release)  # release: pairs with the exchange in acquire()


cdef struct WaitNode:
    WaitNode* prev              # of the list of threads, of a subqueue's circular list, or of an operation's waiters
    WaitNode* next              # once granted: the waker's chain
    WaitNode* above             # of the first node of a subqueue: the first nodes of the subqueues before and after it;
    WaitNode* below             # guarded by the queue's lock
    bint heads                  # it is the first of a subqueue; guarded by the queue's lock
    void* pending               # of the first of a subqueue: its granted Sleeper that is not resumed yet; only compared
    bint pends                  # a granted Sleeper; the others of its subqueue are not granted before it is resumed
    uint64_t since              # when it was queued last, by the queue's clock
    uint64_t place              # of a Sleeper: when it was queued first; 0: not yet
    PyThread_type_lock lock     # a thread parks on it; locked at rest, released by a grant
    PyObject* sleeper           # NULL for a thread; else the Sleeper, borrowed (see begin_sleep)
    uint32_t epoch              # the fork epoch in which it was queued
    bint queued                 # in the list and not granted; guarded by the queue's lock
    void* owner                 # of a thread: for notify_matching; of a Sleeper: its event loop, only compared
    atomic[uint64_t] granted_flag  # 1: granted; read by a spinner. GIL builds only, as the next
    atomic[uint32_t] spins      # 1: the thread spins

cdef struct WaitQueue:
    atomic[uint64_t] word       # sleepers << 32 | searchers; written under the lock, read without
    atomic[uint64_t] hint       # 1: something was published since the spinning searcher last checked
    atomic[uint32_t] epoch      # the fork epoch it belongs to
    SpinLock lock
    WaitNode* first             # threads; guarded by the lock, like all below but `spin`
    WaitNode* last
    WaitNode* subqueues         # Sleepers: the first of each subqueue; one subqueue for each owner
    WaitNode* last_subqueue
    uint64_t clock              # how many nodes have been queued
    WaitNode* spinner           # a node in the list whose thread spins, or has spun; GIL builds only
    Spin spin                   # how long the waiters here spin; atomics
    int64_t batching_ns         # batching delay: how long the next search goes on after it has seen the hint; adapts
    uint32_t batching_count


cdef class Sleeper:
    # A waiter that does not block a thread: a task of an event loop, or a pool that reads a ring.
    cdef WaitNode node
    # Called attached, without locks, once it is granted; may run Python code. Other waiters that could take the same
    # item have been granted too. False: it cannot be reached, so the next of its subqueue is granted as well.
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

# What a waiter waits for. An attempt returns non-zero when it is over (successful, or hopeless for good); it is also
# the last check before sleep. `more` returns whether another waiter of the same queue would find something.
ctypedef int (*Attempt)(void* context) noexcept

# `owner`: what notify_matching asks about, or NULL. `moved`: how many items the caller has moved since its last wait, or
# 0.
cdef int wait_for(
    WaitQueue* q, Attempt attempt, Attempt more, void* context, void* owner, uint64_t moved, int64_t deadline
) except -1

# The fork epoch: 1 in the process that imported ringmill, one more in each child of a fork. Read-only.
cdef uint32_t epoch_now

cdef void notify_slow(WaitQueue* q, uint64_t word) noexcept
# Whether the thread with that owner is meant. Called under the queue's lock.
ctypedef bint (*Matches)(void* owner, void* context) noexcept nogil
cdef bint notify_matching(WaitQueue* q, Matches matches, void* context) noexcept
cdef void notify_all(WaitQueue* q) noexcept

cdef inline void notify(WaitQueue* q) noexcept:
    # seq_cst: the second of the waker's two accesses; pairs with the store in begin_sleep and the waiter's last check
    cdef uint64_t word = q.word.load(memory_order_seq_cst)
    # A searcher, who knows already: as notify_slow, which is called for the rest. relaxed and acquire: as there
    if word and not (
        <uint32_t>word and q.hint.load(memory_order_relaxed) and q.epoch.load(memory_order_acquire) == epoch_now
    ):
        notify_slow(q, word)

cdef int64_t deadline_of(object timeout) except? -2

ctypedef int (*visitproc)(PyObject*, void*) noexcept
# As tp_traverse, for the Sleepers in a queue.
cdef int visit_sleepers(WaitQueue* q, visitproc visit, void* arg) noexcept

