# How tasks of event loops sleep and are woken: asyncio (with any of its loops) and trio.
#
# May use wait_queue.pyx and `platform`. Imports neither asyncio nor trio: it asks those that the program has imported.
#
# The task's side is that of wait_for (wait_queue.pyx): attempt; begin_sleep; attempt again; sleep; and so on. The task
# sleeps in an await instead of on a lock, so a LoopSleeper is in the queue. The waker may be any thread:
#
#   same thread, in a task of the same loop   asyncio: the future is resolved at once, without a system call
#   anywhere else                             the sleeper is appended to its ReadyQueue's chain; the thread that finds
#                                             the chain unscheduled asks the loop, by its thread-safe call, to call the
#                                             ready queue
#
# The ready queue (ReadyQueue.__call__) runs on the loop and resumes all tasks whose sleepers have arrived by then: the
# wake-ups of one loop are combined into one write to its wake-up pipe.
#
# A cancelled await takes nothing: a task takes its item itself, when it runs, and from there to the caller nothing
# suspends. A task that was granted and leaves without an item has the duty to check, and passes the wake-up on if there
# is an item (the `finally` of LoopWait.run). That also holds for a task that is destroyed: its coroutine is closed,
# which runs that `finally`.
#
# A loop may be busy for long, blocked, stopped, or stopped and run again later. Nothing waits for it: a waker that
# wakes one of its tasks also wakes a thread and a task of each other loop (wait_queue.pyx), so a wake-up gives a task
# no claim on an item. The task checks when its loop runs again; it takes an item, or returns to its place in its
# subqueue.
#
# A loop that is closed refuses the call. Then the ready queue is dead, wake() returns False, and the waker wakes the
# next of that loop's tasks, until none is left in the subqueue. Tasks that were woken by then and never ran pass the
# wake-up on.
#
# The chain holds its own reference to each sleeper in it, taken before the lock is acquired and dropped after its
# release. Under the lock only pointers are moved (rule 7): on a free-threaded build, the DECREF of an object that
# another thread made, or of None at the wrong moment, may detach. Hence raw pointers, which the ready queue shows to
# the collector (rule 11).
#
# The call to the loop is Python code, so it can also fail for other reasons: a signal handler raises in it, the waker
# is at its recursion limit, memory is short. The woken tasks rely on it, so the loop is asked again, in the end by a
# pending call of the interpreter on the main thread. What a signal handler raised is not for this code to keep: the
# thread gets it later.
#
# Why not a library (aiologic, sniffio): the core depends on nothing at run time, and this file is all that is needed.

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
    # the results of ReadyQueue.ask
    ASKED = 1
    GONE = 2                    # the loop is closed for good
    FAILED = 3
    ATTEMPTS = 100              # how often it is tried at once: each signal, or lack of memory, makes one attempt fail

cdef dict modules = sys.modules
cdef object ready_queues = threading.local()  # .current: a weak reference to this thread's latest ReadyQueue
cdef object ref = weakref.ref


cdef class ReadyQueue:
    def __cinit__(self, loop):
        self.loop = loop
        self.thread = PyThread_get_thread_ident()

    cdef object schedule(self):
        raise NotImplementedError

    cdef bint is_gone(self, error) except -1:
        # Whether the loop is closed for good, after it has refused the call with that error.
        raise NotImplementedError

    cdef int ask(self) noexcept:
        # Asks the loop to call this object.
        cdef int left = ATTEMPTS
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
        # The loop is closed: its tasks that are in the chain pass their wake-ups on. Returns False, for post().
        cdef PyObject* raw = self.take_all(True)
        cdef LoopSleeper stranded
        while raw:
            stranded = <LoopSleeper>steal(raw)  # owns the chain's reference now
            raw = stranded.following
            if stranded is not sleeper:
                stranded.pass_wakeup_on()
        return False

    cdef bint post(self, LoopSleeper sleeper) noexcept:
        # Called from any thread. False: the loop is closed.
        cdef bint scheduled
        cdef int result
        cdef bint dead
        sleeper.following = NULL  # only this thread has it: the waker that granted it
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
            Py_DECREF(sleeper)  # the chain's, which did not take it
            return False
        if scheduled:
            return True
        result = self.ask()
        if result == GONE:
            return self.abandon_loop(sleeper)
        if result == FAILED:
            Py_INCREF(self)  # the pending call's
            if Py_AddPendingCall(ask_again, <void*>self):
                Py_DECREF(self)  # the pending call's, which was not added
                self.give_up()
                return False
        return True

    cdef void give_up(self) noexcept:
        # Leaves the sleepers in the chain, unscheduled, so that the next post() asks the loop again. They no longer
        # count as pending in their subqueues, so that there will be a next post().
        cdef PyObject* first = self.take_all(False)
        cdef PyObject* last = NULL
        cdef PyObject* raw = first
        while raw:  # this thread owns the chain until it is put back
            (<LoopSleeper>raw).end_wakeup()
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
        # Empties the chain; the caller owns it and its references. `for_good`: no thread may post any more.
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
        """Called by the loop: resumes the tasks whose sleepers are in the chain."""
        cdef PyObject* raw = self.take_all(False)
        cdef LoopSleeper sleeper
        to_raise = None
        while raw:
            sleeper = <LoopSleeper>steal(raw)  # owns the chain's reference now
            raw = sleeper.following  # before it is resumed: after that it may be woken again
            try:
                sleeper.resume()
            except BaseException as error:
                sleeper.pass_wakeup_on()  # the loop is being torn down
                if not PyErr_GivenExceptionMatches(<PyObject*>error, PyExc_Exception):
                    to_raise = error
        if to_raise is not None:
            raise to_raise  # a KeyboardInterrupt goes through the loop, as out of any other callback of the loop

    def __dealloc__(self):
        drop_chain(self.take_all(True))


cdef void drop_chain(PyObject* raw) noexcept:
    cdef PyObject* following
    while raw:
        following = (<LoopSleeper>raw).following
        Py_DECREF(<object>raw)  # was the chain's
        raw = following


# Garbage collection: Cython does not traverse the chain. No thread is inside a section under a lock meanwhile.
cdef traverseproc base_traverse = (<PyTypeObject*>ReadyQueue).tp_traverse
cdef inquiry base_clear = (<PyTypeObject*>ReadyQueue).tp_clear


cdef int ready_queue_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef int status = base_traverse(self, visit, arg)
    cdef PyObject* raw = (<ReadyQueue>self).first
    while raw and not status:
        status = visit(raw, arg)
        raw = (<LoopSleeper>raw).following
    return status


cdef int ready_queue_clear(PyObject* self) noexcept:
    drop_chain((<ReadyQueue>self).take_all(False))
    return base_clear(self)


cdef void install_traverse(PyTypeObject* kind) noexcept:
    kind.tp_traverse = ready_queue_traverse
    kind.tp_clear = ready_queue_clear


cdef int ask_again(void* raw) noexcept:
    # A pending call of the interpreter, on the main thread.
    cdef ReadyQueue ready_queue = <ReadyQueue>steal(<PyObject*>raw)
    cdef int result = ready_queue.ask()
    if result == GONE:
        ready_queue.abandon_loop(None)
    elif result == FAILED:
        ready_queue.give_up()
    return 0


cdef int raise_later(object error) noexcept:
    # Raises the error in the calling thread, after it has left this code.
    try:
        if (
            PyErr_GivenExceptionMatches(<PyObject*>error, PyExc_KeyboardInterrupt)
            and threading.get_ident() == threading.main_thread().ident
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            _thread.interrupt_main()  # which also ends a wait
        else:
            PyThreadState_SetAsyncExc(PyThread_get_thread_ident(), type(error))
    except BaseException:
        pass
    return 0


cdef class AsyncioReadyQueue(ReadyQueue):
    cdef object schedule(self):
        self.loop.call_soon_threadsafe(self)

    cdef bint is_gone(self, error) except -1:
        return self.loop.is_closed()


cdef class TrioReadyQueue(ReadyQueue):
    cdef object schedule(self):
        self.loop.run_sync_soon(self)

    cdef bint is_gone(self, error) except -1:
        return isinstance(error, modules["trio"].RunFinishedError)


install_traverse(<PyTypeObject*>ReadyQueue)
install_traverse(<PyTypeObject*>AsyncioReadyQueue)  # the subclasses add no references
install_traverse(<PyTypeObject*>TrioReadyQueue)


cdef object _asyncio_loop():
    # The asyncio loop that runs on this thread, or None.
    events = modules.get("asyncio.events")
    return events._get_running_loop() if events is not None else None


cpdef bint in_trio() except -1:
    # Whether trio runs a task on this thread.
    lowlevel = modules.get("trio.lowlevel")
    if lowlevel is None:
        return False
    try:
        lowlevel.current_task()
    except (AttributeError, RuntimeError):  # partly imported, or not in a run
        return False
    return True


cdef object _asyncio_task():
    # The asyncio task that runs on this thread, or None; RuntimeError if no loop runs.
    return modules["asyncio"].current_task()


cdef int bind_to_task(LoopSleeper sleeper) except -1:
    cdef ReadyQueue ready_queue = None
    cdef bint trio = in_trio()  # before asyncio: trio may run as its guest
    loop = modules["trio.lowlevel"].current_trio_token() if trio else _asyncio_loop()
    if loop is None:
        raise RuntimeError("no asyncio or trio event loop is running on this thread")
    last = getattr(ready_queues, "current", None)
    if last is not None:
        ready_queue = last()
    if ready_queue is None or ready_queue.loop is not loop:
        ready_queue = TrioReadyQueue(loop) if trio else AsyncioReadyQueue(loop)
        ready_queues.current = ref(ready_queue)
    sleeper.ready_queue = ready_queue
    sleeper.node.owner = <void*>loop  # kept alive by the ready queue, which the sleeper refers to
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
        cdef ReadyQueue ready_queue = self.ready_queue
        cdef bint here
        if self.future is not None and ready_queue.thread == PyThread_get_thread_ident():
            # Outside of a task (in a signal handler, for example) the loop may be in its select and must be woken from
            # it.
            try:
                here = _asyncio_loop() is ready_queue.loop and _asyncio_task() is not None
                if here:
                    self.resume()
                    return True
            except BaseException as error:  # falls back to post()
                if not PyErr_GivenExceptionMatches(<PyObject*>error, PyExc_Exception):
                    raise_later(error)
        return ready_queue.post(self)

    cdef int arm(self) except -1:
        # Called before begin_sleep, after which it may be woken.
        if self.task is None:
            self.future = self.ready_queue.loop.create_future()
        return 0

    cdef object suspend(self):
        # Returns what to await until it is woken.
        return self.future if self.task is None else _suspend_in_trio(self)

    cdef int resume(self) except -1:
        # Called on the loop: the task goes on, unless it has left meanwhile.
        if self.task is None:
            if not self.future.done():
                self.future.set_result(None)
        elif self.asleep:
            self.asleep = False
            modules["trio.lowlevel"].reschedule(self.task)
        return 0

    def _abort(self, raise_cancel):
        # Called by trio: the task is cancelled and no longer sleeps.
        self.asleep = False
        return modules["trio.lowlevel"].Abort.SUCCEEDED

    cdef void pass_wakeup_on(self) noexcept:
        # Called from any thread: the task was woken and will never run.
        pass

    cdef void end_wakeup(self) noexcept:
        # Called from any thread: the task was woken, and its loop could not be asked to run it.
        pass


async def _suspend_in_trio(LoopSleeper sleeper):
    # Only the ready queue resumes the task, and it runs while no task does: so not before the task is asleep.
    sleeper.asleep = True
    await modules["trio.lowlevel"].wait_task_rescheduled(sleeper._abort)  # not a closure, which would keep itself alive


cdef class LoopWait(LoopSleeper):
    cdef bint wake(self) noexcept:
        if LoopSleeper.wake(self):
            return True
        end_pending(self.queue, &self.node)  # so that the next of the subqueue can be granted
        return False

    cdef int resume(self) except -1:
        end_pending(self.queue, &self.node)  # before the task checks
        return LoopSleeper.resume(self)

    cdef void pass_wakeup_on(self) noexcept:
        end_pending(self.queue, &self.node)
        notify(self.queue)

    cdef void end_wakeup(self) noexcept:
        end_pending(self.queue, &self.node)

    async def run(self):
        cdef int result
        cdef bint queued = False
        cdef bint owes = False  # granted, and has not checked yet
        if self.attempt == NULL:
            raise TypeError("this LoopWait waits for nothing: only the core makes LoopWaits")
        try:
            while True:
                result = self.attempt(self.context)
                if result:
                    return result
                self.arm()
                begin_sleep(self.queue, &self.node, False)
                queued = True
                owes = False
                result = self.attempt(self.context)  # the last check
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
