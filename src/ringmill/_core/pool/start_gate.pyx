# Where workers that start together wait for each other: those of a run, or those that are added to it.
#
#   starter:  starts a thread for each, then await_reports; then decide(yes or no)
#   worker:   init -> report -> await_verdict -> work, or cleanup
#
# A worker that is added alone, since the run needs it at once, uses the gate of the run, which is decided.
#
# Everything is compiled and takes no memory after __cinit__, but for a waiting thread's first node: see run_threads.pyx.

from libc.stdint cimport uint32_t
from libcpp.atomic cimport memory_order_seq_cst

from ringmill._core.waiting.wait_queue cimport NEVER, deadline_of, init_queue, notify_all, wait_for

cdef enum:
    # the verdict
    UNKNOWN = 0
    GO = 1
    STOP = 2

cdef struct Reports:                # what the starter waits for
    void* gate
    uint32_t wanted


cdef class StartGate:
    """Where workers that start together wait for each other."""

    def __cinit__(self):
        init_queue(&self.reported)
        init_queue(&self.decided)

    # -----------------------------------------------------------------------------------------------------------
    # for the thread that starts them

    def await_reports(self, uint32_t wanted, timeout):
        """Waits until so many workers have reported; returns whether they have, within `timeout` seconds (None: no limit)."""
        cdef Reports reports
        reports.gate = <void*>self
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

    # -----------------------------------------------------------------------------------------------------------
    # for a worker's thread

    cdef void report(self) noexcept:
        # The worker has come up, or has not, which it has written down before.
        self.reports.fetch_add(1, memory_order_seq_cst)  # seq_cst: publishes to the starter (wait_queue.pyx)
        notify_all(&self.reported)

    def await_verdict(self):
        """Waits for the decision; returns whether the start succeeded."""
        return wait_for(&self.decided, verdict_attempt, verdict_attempt, <void*>self, NULL, 0, NEVER) == GO


cdef int reports_attempt(void* reports) noexcept:
    # seq_cst, here and below: a waiting thread's last look
    return (<StartGate>(<Reports*>reports).gate).reports.load(memory_order_seq_cst) >= (<Reports*>reports).wanted


cdef int verdict_attempt(void* gate) noexcept:
    return (<StartGate>gate).verdict.load(memory_order_seq_cst)
