# How a task of an event loop sleeps and is woken: asyncio (any of its loops) and trio.
#
# The task's side is wait_for's (wait_queue.pyx): attempt; begin_sleep; attempt once more; sleep; and so on. It sleeps in an
# await instead of on a lock, so a LoopSleeper stands in the queue. Whoever grants it calls wake() from any thread:
#
#   same thread, in a task of the same loop   asyncio: the future is resolved at once, which costs no system call
#   anywhere else                             the sleeper is appended to its LoopMailbox's chain; who finds the chain unscheduled
#                                             asks the loop, by its thread-safe call, to run land(); others have nothing to do
#
# land() runs on the loop and resumes all that have come by then: wake-ups of one loop coalesce into one write to its
# wake-up pipe.
#
# A cancelled await takes nothing: items are taken by the task itself, when it runs, and from there to the caller nothing
# suspends. One that was granted and leaves without taking owes a look, and passes the wake-up on if there is something
# (run's finally). That also holds for a task that is destroyed: its coroutine is closed, and runs that finally.
#
# A loop may be busy for long, blocked, stopped, or stopped and run again later. Nothing waits for it: whoever wakes one of
# its tasks wakes a thread and a task of each other loop as well (wait_queue.pyx), so a task that is told owns nothing by that.
# It looks when its loop runs again; finds something, or returns to its place in line.
#
# A loop that is closed refuses the call: then the landing is dead, wake() says so, and the waker wakes the next of that
# loop's tasks, until none is left in line. Tasks that had been told by then and never ran pass the wake-up on.
#
# The chain holds its own reference to each sleeper in it, taken before the lock and dropped after it. Under the lock
# pointers are moved, and no reference is counted (rule 7): on a free-threaded build the DECREF of what another thread
# made, or of None at the wrong moment, may detach. Hence raw pointers, which the landing shows to the collector (rule 11).
#
# The call is Python code, so it may fail otherwise: a signal handler raises in it, the waker stands at the end of its
# recursion, memory lacks. Those that were told rely on it, so it is asked again, at the latest by the interpreter when the
# main thread is out of what it does. What a signal handler raised is not ours to keep: the thread gets it later.
#
# Why not a library for this (aiologic, sniffio): the core depends on nothing at run time, and what is needed of one is
# this file. Whether asyncio or trio runs is asked of those two, if the program has imported them.

import _thread
import signal
import sys
import threading
import weakref

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from ringmill._core.platform.primitives cimport steal
from ringmill._core.waiting.wait_queue cimport (
    PyThread_get_thread_ident,
    acquire,
    begin_sleep,
    cancel_sleep,
    end_pending,
    notify,
    release,
    visitproc,
)

cdef extern from "Python.h":
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear
    int Py_AddPendingCall(int (*call)(void*) noexcept, void* argument) nogil
    bint PyErr_GivenExceptionMatches(PyObject* error, PyObject* classes) noexcept
    PyObject* PyExc_Exception
    PyObject* PyExc_KeyboardInterrupt
    int PyThreadState_SetAsyncExc(unsigned long thread, object error) except -1

cdef enum:
    # what became of the call to a loop
    ASKED = 1
    GONE = 2                    # the loop is closed for good
    FAILED = 3
    PATIENCE = 100              # how often it is tried on the spot: each signal, each lack of memory fails one

cdef dict modules = sys.modules
cdef object mailboxes = threading.local()  # .current: a weak reference to the LoopMailbox that was used last on this thread
cdef object ref = weakref.ref


cdef class LoopMailbox:
    def __cinit__(self, loop):
        self.loop = loop
        self.thread = PyThread_get_thread_ident()

    cdef object schedule(self):
        raise NotImplementedError

    cdef bint is_gone(self, error) except -1:
        # Asked when it has refused the call, with that error.
        raise NotImplementedError

    cdef int ask(self) noexcept:
        # Has the loop call land().
        cdef int left = PATIENCE
        cdef int result = FAILED
        later = None
        while left and result == FAILED:
            left -= 1
            try:
                try:
                    self.schedule()
                    result = ASKED
                except RuntimeError as error:  # a RecursionError is one too
                    if self.is_gone(error):
                        result = GONE
            except (MemoryError, RuntimeError):
                pass
            except BaseException as error:
                later = error
        if later is not None:
            raise_later(later)
        return result

    cdef bint abandon_loop(self, LoopSleeper sleeper) noexcept:
        # The loop is gone. False, for post().
        cdef PyObject* raw = self.take_all(True)
        cdef LoopSleeper stranded
        while raw:
            stranded = <LoopSleeper>steal(raw)  # the chain's reference is ours
            raw = stranded.following
            if stranded is not sleeper:
                stranded.pass_wakeup_on()
        return False

    cdef bint post(self, LoopSleeper sleeper) noexcept:
        # From any thread. False: the loop is gone.
        cdef bint scheduled
        cdef int result
        cdef bint dead
        sleeper.following = NULL  # nobody else knows of it: it was granted to us
        Py_INCREF(sleeper)  # the chain's
        acquire(&self.lock)
        dead = self.dead
        scheduled = self.scheduled
        if not dead:
            if self.last:
                (<LoopSleeper>self.last).following = <PyObject*>sleeper
            else:
                self.first = <PyObject*>sleeper
            self.last = <PyObject*>sleeper
            self.scheduled = True
        release(&self.lock)
        if dead:
            Py_DECREF(sleeper)  # it did not get there
            return False
        if scheduled:
            return True
        result = self.ask()
        if result == GONE:
            return self.abandon_loop(sleeper)
        if result == FAILED:
            Py_INCREF(self)  # the pending call's
            if Py_AddPendingCall(ask_again, <void*>self):
                Py_DECREF(self)  # there is none
                self.give_up()
                return False
        return True

    cdef void give_up(self) noexcept:
        # Whoever comes next asks again. That somebody does: those that were told count as pending no more.
        cdef PyObject* first = self.take_all(False)
        cdef PyObject* last = NULL
        cdef PyObject* raw = first
        while raw:  # ours, until it is put back
            (<LoopSleeper>raw).count_no_more()
            last = raw
            raw = (<LoopSleeper>raw).following
        if first == NULL:
            return
        acquire(&self.lock)
        (<LoopSleeper>last).following = self.first
        if self.last == NULL:
            self.last = last
        self.first = first
        release(&self.lock)

    cdef PyObject* take_all(self, bint for_good) noexcept:
        # The chain, and its references, are the caller's then. `for_good`: and nobody may post any more.
        cdef PyObject* first
        acquire(&self.lock)
        first = self.first
        self.first = NULL
        self.last = NULL
        self.scheduled = False
        self.dead = for_good
        release(&self.lock)
        return first

    def __call__(self):
        """On the loop: resumes those that were told."""
        cdef PyObject* raw = self.take_all(False)
        cdef LoopSleeper sleeper
        interrupt = None
        while raw:
            sleeper = <LoopSleeper>steal(raw)  # the chain's reference is ours
            raw = sleeper.following  # before it is resumed: it may be told again from then on
            try:
                sleeper.resume()
            except BaseException as error:
                sleeper.pass_wakeup_on()  # its loop is being torn down
                if not PyErr_GivenExceptionMatches(<PyObject*>error, PyExc_Exception):
                    interrupt = error
        if interrupt is not None:
            raise interrupt  # Ctrl-C goes through the loop, as it does where a callback of its own is interrupted

    def __dealloc__(self):
        drop_chain(self.take_all(True))


cdef void drop_chain(PyObject* raw) noexcept:
    cdef PyObject* following
    while raw:
        following = (<LoopSleeper>raw).following
        Py_DECREF(<object>raw)  # was the chain's
        raw = following


# The garbage collector: Cython knows nothing of the chain. No thread is between two steps under a lock.
cdef traverseproc base_traverse = (<PyTypeObject*>LoopMailbox).tp_traverse
cdef inquiry base_clear = (<PyTypeObject*>LoopMailbox).tp_clear


cdef int mailbox_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef int status = base_traverse(self, visit, arg)
    cdef PyObject* raw = (<LoopMailbox>self).first
    while raw and not status:
        status = visit(raw, arg)
        raw = (<LoopSleeper>raw).following
    return status


cdef int mailbox_clear(PyObject* self) noexcept:
    drop_chain((<LoopMailbox>self).take_all(False))
    return base_clear(self)


cdef void show_chain(PyTypeObject* kind) noexcept:
    kind.tp_traverse = mailbox_traverse
    kind.tp_clear = mailbox_clear


cdef int ask_again(void* raw) noexcept:
    # A pending call, on the main thread.
    cdef LoopMailbox mailbox = <LoopMailbox>steal(<PyObject*>raw)
    cdef int result = mailbox.ask()
    if result == GONE:
        mailbox.abandon_loop(None)
    elif result == FAILED:
        mailbox.give_up()
    return 0


cdef int raise_later(object error) noexcept:
    # The thread that runs gets it once it is out of what it does.
    try:
        if (
            PyErr_GivenExceptionMatches(<PyObject*>error, PyExc_KeyboardInterrupt)
            and threading.get_ident() == threading.main_thread().ident
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            _thread.interrupt_main()  # which a thread that waits sees as well
        else:
            PyThreadState_SetAsyncExc(PyThread_get_thread_ident(), type(error))
    except BaseException:
        pass
    return 0


cdef class AsyncioMailbox(LoopMailbox):
    cdef object schedule(self):
        self.loop.call_soon_threadsafe(self)

    cdef bint is_gone(self, error) except -1:
        return self.loop.is_closed()


cdef class TrioMailbox(LoopMailbox):
    cdef object schedule(self):
        self.loop.run_sync_soon(self)

    cdef bint is_gone(self, error) except -1:
        return isinstance(error, modules["trio"].RunFinishedError)


show_chain(<PyTypeObject*>LoopMailbox)
show_chain(<PyTypeObject*>AsyncioMailbox)  # which have no references of their own
show_chain(<PyTypeObject*>TrioMailbox)


cdef object _asyncio_loop():
    # asyncio's loop that runs on this thread, or None.
    events = modules.get("asyncio.events")
    return events._get_running_loop() if events is not None else None


cpdef bint in_trio() except -1:
    # Whether trio runs a task on this thread.
    lowlevel = modules.get("trio.lowlevel")
    if lowlevel is None:
        return False
    try:
        lowlevel.current_task()
    except (AttributeError, RuntimeError):  # half imported, or not within a run
        return False
    return True


cdef object _asyncio_task():
    # asyncio's task that runs on this thread, or None; where no loop runs, an error.
    return modules["asyncio"].current_task()


cdef int bind_to_task(LoopSleeper sleeper) except -1:
    cdef LoopMailbox mailbox = None
    cdef bint trio = in_trio()  # before asyncio: trio may run as its guest
    home = modules["trio.lowlevel"].current_trio_token() if trio else _asyncio_loop()
    if home is None:
        raise RuntimeError("no asyncio or trio event loop is running on this thread")
    last = getattr(mailboxes, "current", None)
    if last is not None:
        mailbox = last()
    if mailbox is None or mailbox.loop is not home:
        mailbox = TrioMailbox(home) if trio else AsyncioMailbox(home)
        mailboxes.current = ref(mailbox)
    sleeper.mailbox = mailbox
    sleeper.node.owner = <void*>home  # the landing, which the sleeper keeps, keeps it
    if trio:
        sleeper.task = modules["trio.lowlevel"].current_task()
    return 0


cdef void* running_task() except? NULL:
    if in_trio():
        task = modules["trio.lowlevel"].current_task()
    elif _asyncio_loop() is not None:
        task = _asyncio_task()
    else:
        return NULL
    return <void*>task if task is not None else NULL


cdef object checkpoint():
    return modules["trio.lowlevel"].checkpoint() if in_trio() else None


cdef class LoopSleeper(Sleeper):
    cdef bint wake(self) noexcept:
        cdef LoopMailbox mailbox = self.mailbox
        cdef bint here
        if self.future is not None and mailbox.thread == PyThread_get_thread_ident():
            # Outside of a task (in a signal handler, say) the loop may be in its select, and must be woken from it.
            try:
                here = _asyncio_loop() is mailbox.loop and _asyncio_task() is not None
                if here:
                    self.resume()
                    return True
            except BaseException as error:  # the long way
                if not PyErr_GivenExceptionMatches(<PyObject*>error, PyExc_Exception):
                    raise_later(error)
        return mailbox.post(self)

    cdef int arm(self) except -1:
        # Before begin_sleep: may be told from then on.
        if self.task is None:
            self.future = self.mailbox.loop.create_future()
        return 0

    cdef object suspend(self):
        # What to await until told.
        return self.future if self.task is None else _suspend_in_trio(self)

    cdef int resume(self) except -1:
        # On the loop: the task goes on, unless it has left meanwhile.
        if self.task is None:
            if not self.future.done():
                self.future.set_result(None)
        elif self.asleep:
            self.asleep = False
            modules["trio.lowlevel"].reschedule(self.task)
        return 0

    def _abort(self, raise_cancel):
        # For trio: the task is cancelled, and sleeps no more.
        self.asleep = False
        return modules["trio.lowlevel"].Abort.SUCCEEDED

    cdef void pass_wakeup_on(self) noexcept:
        # From any thread: it was told, and will never run.
        pass

    cdef void count_no_more(self) noexcept:
        # From any thread: it was told, and its loop could not be.
        pass


async def _suspend_in_trio(LoopSleeper sleeper):
    # Resumed by land() only, which runs while no task does: so not before the task is asleep.
    sleeper.asleep = True
    await modules["trio.lowlevel"].wait_task_rescheduled(sleeper._abort)  # no closure: it would keep itself alive


cdef class LoopWait(LoopSleeper):
    cdef bint wake(self) noexcept:
        if LoopSleeper.wake(self):
            return True
        end_pending(self.queue, &self.node)  # the next of the lane may be reached, or not either
        return False

    cdef int resume(self) except -1:
        end_pending(self.queue, &self.node)  # before the task looks
        return LoopSleeper.resume(self)

    cdef void pass_wakeup_on(self) noexcept:
        end_pending(self.queue, &self.node)
        notify(self.queue)

    cdef void count_no_more(self) noexcept:
        end_pending(self.queue, &self.node)

    async def run(self):
        cdef int result
        cdef bint queued = False
        cdef bint owes = False  # granted, and has not looked yet
        if self.attempt == NULL:
            raise TypeError("a LoopWait is made by what waits, and by that alone")
        try:
            while True:
                result = self.attempt(self.context)
                if result:
                    return result
                self.arm()
                begin_sleep(self.queue, &self.node, False)
                queued = True
                owes = False
                result = self.attempt(self.context)  # the last look
                if result:
                    return result
                await self.suspend()
                queued = False
                owes = True
        finally:
            if queued:
                owes = cancel_sleep(self.queue, &self.node)
            if owes and self.more(self.context):
                notify(self.queue)


cdef object await_for(WaitQueue* q, Attempt attempt, Attempt more, void* context, object keeper):
    cdef LoopWait wait = LoopWait()
    bind_to_task(wait)
    wait.queue = q
    wait.attempt = attempt
    wait.more = more
    wait.context = context
    wait.keeper = keeper
    return wait.run()
