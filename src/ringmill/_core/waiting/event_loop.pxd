# How a task of an event loop sleeps and is woken: asyncio's and trio's. See event_loop.pyx.

from cpython.object cimport PyObject

from ringmill._core.waiting.wait_queue cimport Attempt, SpinLock, Sleeper, WaitQueue

cdef class LoopMailbox:
    # Where wake-ups for the tasks of one loop arrive from all threads.
    cdef object loop            # the loop, or trio's token
    cdef unsigned long thread   # the one that runs it
    cdef object __weakref__
    cdef SpinLock lock         # guards the next four
    cdef PyObject* first        # LoopSleepers that were told and are not resumed yet: a chain by `following`, each owned
    cdef PyObject* last
    cdef bint scheduled         # a call of land() is on its way
    cdef bint dead              # the loop takes no more calls

    cdef object schedule(self)
    cdef bint is_gone(self, error) except -1
    cdef int ask(self) noexcept
    cdef bint abandon_loop(self, LoopSleeper sleeper) noexcept
    cdef void give_up(self) noexcept
    cdef bint post(self, LoopSleeper sleeper) noexcept
    cdef PyObject* take_all(self, bint for_good) noexcept

cdef class LoopSleeper(Sleeper):
    # One wait of one task. Made, and used but for wake(), on its loop's thread.
    cdef LoopMailbox mailbox
    cdef PyObject* following    # in the landing's chain, which owns it; guarded by the landing's lock, or whoever took it
    cdef object future          # asyncio: what the task awaits
    cdef object task            # trio: the task that sleeps,
    cdef bint asleep            # and whether it does

    cdef int arm(self) except -1
    cdef object suspend(self)
    cdef int resume(self) except -1
    cdef void pass_wakeup_on(self) noexcept
    cdef void count_no_more(self) noexcept

cdef class LoopWait(LoopSleeper):
    cdef WaitQueue* queue
    cdef Attempt attempt
    cdef Attempt more
    cdef void* context
    cdef object keeper          # keeps the queue alive


# The awaitable twin of wait_for: gives what the attempt returned. The caller keeps the context alive.
cdef object await_for(WaitQueue* q, Attempt attempt, Attempt more, void* context, object keeper)

# Makes it a sleeper for the running task. RuntimeError where no loop runs.
cdef int bind_to_task(LoopSleeper sleeper) except -1
cpdef bint in_trio() except -1
# Who runs: asyncio's or trio's task, borrowed; NULL if none does.
cdef void* running_task() except? NULL
# An awaitable where the loop's own calls would yield even if they need not wait (trio); None elsewhere.
cdef object checkpoint()
