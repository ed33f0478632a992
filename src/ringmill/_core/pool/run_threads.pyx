# The threads of one run of a pool: which have begun, which have reported, what was decided, which have ended.
#
#   starter:  starts each thread, then await_reports; then decide(yes or no)
#   worker:   begin -> init -> report -> await_verdict -> (work) -> end; the last one to end: set_over
#   joiner:   await_over
#
# A thread whose start was given up (give_up_unbegun) never begins: begin() and give_up_unbegun() decide that under the
# lock. Everything is compiled and takes no memory after __cinit__, but for a waiting thread's first node: a tracer, an
# exception injected into a worker's thread, or the lack of memory cannot leave a lock held or a joiner waiting.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset
from libcpp.atomic cimport memory_order_seq_cst

from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.waiting.wait_queue cimport (
    NEVER,
    acquire,
    deadline_of,
    init_queue,
    notify_all,
    release,
    wait_for,
)

cdef enum:
    # the stage of a thread
    OVER = 0
    RUNNING = 1
    EXPECTED = 2
    # the verdict
    UNKNOWN = 0
    GO = 1
    STOP = 2

cdef struct Reports:                # what the starter waits for
    void* threads
    uint32_t wanted


cdef class RunThreads:
    """Which threads of a run have begun, reported, and ended."""

    def __cinit__(self, Py_ssize_t count):
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count}")
        init_queue(&self.reported)
        init_queue(&self.decided)
        init_queue(&self.ended)
        self.over_for_tasks = RingBuffer(1)
        self.stages = <uint8_t*>PyMem_RawMalloc(count if count > 0 else 1)
        if self.stages == NULL:
            raise MemoryError
        memset(self.stages, EXPECTED, count)
        self.count = self.left = count

    def __dealloc__(self):
        PyMem_RawFree(self.stages)

    # -----------------------------------------------------------------------------------------------------------
    # for the thread that starts the run

    def await_reports(self, uint32_t wanted, timeout):
        """Waits until so many workers have reported; returns whether they have, within `timeout` seconds (None: no limit)."""
        cdef Reports reports
        reports.threads = <void*>self
        reports.wanted = wanted
        return bool(wait_for(
            &self.reported, reports_attempt, reports_attempt, &reports, NULL, 0, deadline_of(timeout)
        )) or self.reports.load(memory_order_seq_cst) >= wanted  # seq_cst: as reports_attempt

    @property
    def report_count(self):
        """How many workers have reported; a snapshot."""
        return self.reports.load(memory_order_seq_cst)  # seq_cst: as reports_attempt

    def decide(self, bint go):
        """Says whether the start succeeded. The first decision stays."""
        cdef uint32_t unknown = UNKNOWN
        self.verdict.compare_exchange_strong(unknown, GO if go else STOP)  # seq_cst: publishes to the waiting workers
        notify_all(&self.decided)

    @property
    def has_started(self):
        """Whether the start succeeded; None: not decided yet."""
        cdef uint32_t verdict = self.verdict.load(memory_order_seq_cst)  # seq_cst: as verdict_attempt
        return None if verdict == UNKNOWN else verdict == GO

    def give_up_unbegun(self):
        """Threads that have not begun by now never do. Returns whether no thread is left."""
        cdef Py_ssize_t k
        cdef bint none_left
        acquire(&self.lock)
        for k in range(self.count):
            if self.stages[k] == EXPECTED:
                self.stages[k] = OVER
                self.left -= 1
        none_left = self.left == 0
        release(&self.lock)
        return none_left

    # -----------------------------------------------------------------------------------------------------------
    # for a worker's thread

    cdef bint begin(self, Py_ssize_t index) noexcept:
        # The worker's thread has begun. False: its start was given up.
        cdef bint begins
        acquire(&self.lock)
        begins = self.stages[index] == EXPECTED
        if begins:
            self.stages[index] = RUNNING
        release(&self.lock)
        return begins

    cdef void report(self) noexcept:
        # The worker has come up, or has not, which it has written down before.
        self.reports.fetch_add(1, memory_order_seq_cst)  # seq_cst: publishes to the starter (wait_queue.pyx)
        notify_all(&self.reported)

    def await_verdict(self):
        """Waits for the decision; returns whether the start succeeded."""
        return wait_for(&self.decided, verdict_attempt, verdict_attempt, <void*>self, NULL, 0, NEVER) == GO

    cdef bint end(self, Py_ssize_t index) noexcept:
        # The worker's thread is about to end. True: it was the last one.
        cdef bint last = False
        acquire(&self.lock)
        if self.stages[index] == RUNNING:
            self.stages[index] = OVER
            self.left -= 1
            last = self.left == 0
        release(&self.lock)
        return last

    # -----------------------------------------------------------------------------------------------------------
    # for threads that join the run

    @property
    def all_ended(self):
        """Whether no thread of the run is left; a snapshot."""
        cdef bint none_left
        acquire(&self.lock)
        none_left = self.left == 0
        release(&self.lock)
        return none_left

    cdef void set_over(self) noexcept:
        # All threads have ended, and nothing of the run is left to do.
        self.over.store(1, memory_order_seq_cst)  # seq_cst: publishes to the joiners (wait_queue.pyx)
        notify_all(&self.ended)
        self.over_for_tasks.close_ring()

    @property
    def is_over(self):
        """Whether all have ended; a snapshot."""
        return bool(over_attempt(<void*>self))

    def await_over(self, timeout):
        """Waits until all have ended; returns whether they have, within `timeout` seconds (None: no limit)."""
        if over_attempt(<void*>self):
            return True
        return bool(wait_for(&self.ended, over_attempt, over_attempt, <void*>self, NULL, 0, deadline_of(timeout)))


cdef int reports_attempt(void* reports) noexcept:
    # seq_cst, here and below: a waiting thread's last look
    return (<RunThreads>(<Reports*>reports).threads).reports.load(memory_order_seq_cst) >= (<Reports*>reports).wanted


cdef int verdict_attempt(void* threads) noexcept:
    return (<RunThreads>threads).verdict.load(memory_order_seq_cst)


cdef int over_attempt(void* threads) noexcept:
    return (<RunThreads>threads).over.load(memory_order_seq_cst)
