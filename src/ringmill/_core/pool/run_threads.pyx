# The threads of one run of a pool: which have begun, and ended.
#
#   starter:  expect each worker's thread, and start it
#   worker:   begin -> (its life) -> end; the last one to end: set_over
#   joiner:   await_over
#
# A thread whose start was given up (give_up) never begins: begin() and give_up() decide that under the lock. A run
# whose last thread has ended expects no other. Everything is compiled and takes no memory after __cinit__, but for a waiting
# thread's first node: a tracer, an exception injected into a worker's thread, or the lack of memory cannot leave a lock
# held or a joiner waiting.

from libcpp.atomic cimport memory_order_seq_cst

from ringmill._core.pool.worker_state cimport WorkerState
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.waiting.wait_queue cimport (
    acquire,
    deadline_of,
    init_queue,
    notify_all,
    release,
    wait_for,
)

cdef enum:
    # the stage of a thread
    NO_THREAD = 0
    EXPECTED = 1
    RUNNING = 2
    OVER = 3


cdef class RunThreads:
    """Which threads of a run have begun, and ended."""

    def __cinit__(self):
        init_queue(&self.ended)
        self.over_for_tasks = RingBuffer(1)

    # -----------------------------------------------------------------------------------------------------------
    # for the thread that starts workers

    cdef void expect_first(self, WorkerState state) noexcept:
        # A worker of the run that is being made: no thread of it has begun.
        state.stage = EXPECTED
        self.left += 1

    cdef bint expect(self, WorkerState state) noexcept:
        # A thread will be started for the worker. False: the run's last thread has ended, so none may.
        cdef bint expected
        acquire(&self.lock)
        expected = self.left > 0
        if expected:
            state.stage = EXPECTED
            self.left += 1
        release(&self.lock)
        return expected

    cdef bint give_up(self, WorkerState state, bint* last) noexcept:
        # If the worker's thread has not begun by now, it never does; returns whether that is so. `last`: no thread is left,
        # by this.
        cdef bint given_up
        acquire(&self.lock)
        given_up = state.stage == EXPECTED
        last[0] = False
        if given_up:
            state.stage = OVER
            self.left -= 1
            last[0] = self.left == 0
        release(&self.lock)
        return given_up

    # -----------------------------------------------------------------------------------------------------------
    # for a worker's thread

    cdef bint begin(self, WorkerState state) noexcept:
        # The worker's thread has begun. False: its start was given up.
        cdef bint begins
        acquire(&self.lock)
        begins = state.stage == EXPECTED
        if begins:
            state.stage = RUNNING
        release(&self.lock)
        return begins

    cdef bint end(self, WorkerState state) noexcept:
        # The worker's thread is about to end. True: it was the last one.
        cdef bint last = False
        acquire(&self.lock)
        if state.stage == RUNNING:
            state.stage = OVER
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


cdef int over_attempt(void* threads) noexcept:
    return (<RunThreads>threads).over.load(memory_order_seq_cst)  # seq_cst: a waiting thread's last look
