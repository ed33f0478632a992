# How tasks of event loops sleep and are woken: asyncio and trio. See event_loop.pyx.

from cpython.object cimport PyObject

from ringmill._core.waiting.wait_queue cimport Attempt, SpinLock, Sleeper, WaitQueue

cdef class ReadyQueue:
    # The tasks of one event loop that were woken and that the loop has not resumed yet. Any thread adds to it.
    cdef object loop            # the asyncio loop, or trio's token
    cdef unsigned long thread   # the thread that runs the loop
    cdef object __weakref__
    cdef SpinLock lock         # guards the next four
    cdef PyObject* first        # LoopSleepers that were woken and are not resumed yet: a chain by `following`, owned
    cdef PyObject* last
    cdef bint scheduled         # the loop has been asked to call this object
    cdef bint dead              # the loop is closed

    cdef object schedule(self)
    cdef bint is_gone(self, error) except -1
    cdef int ask(self) noexcept
    cdef bint abandon_loop(self, LoopSleeper sleeper) noexcept
    cdef void give_up(self) noexcept
    cdef bint post(self, LoopSleeper sleeper) noexcept
    cdef PyObject* take_all(self, bint for_good) noexcept

cdef class LoopSleeper(Sleeper):
    # One wait of one task. Made on the loop's thread, and used there, except wake().
    cdef ReadyQueue ready_queue
    cdef PyObject* following    # the next in the ready queue's chain; guarded by its lock until the chain is taken
    cdef object future          # asyncio: what the task awaits
    cdef object task            # trio: the task
    cdef bint asleep            # trio: whether the task sleeps

    cdef int arm(self) except -1
    cdef object suspend(self)
    cdef int resume(self) except -1
    cdef void pass_wakeup_on(self) noexcept
    cdef void end_wakeup(self) noexcept

cdef class LoopWait(LoopSleeper):
    cdef WaitQueue* queue
    cdef Attempt attempt
    cdef Attempt more
    cdef void* context
    cdef object keeper          # keeps the queue alive


# wait_for as an awaitable, which gives what the attempt returned. The caller keeps the context alive.
cdef object await_for(WaitQueue* q, Attempt attempt, Attempt more, void* context, object keeper)

# Binds the sleeper to the running task. RuntimeError if no loop runs on this thread.
cdef int bind_to_task(LoopSleeper sleeper) except -1
cpdef bint in_trio() except -1
# The running task of asyncio or trio, borrowed; NULL if there is none.
cdef void* running_task() except? NULL
# An awaitable where calls must yield to the loop even if they need not wait (trio); None elsewhere.
cdef object checkpoint()
