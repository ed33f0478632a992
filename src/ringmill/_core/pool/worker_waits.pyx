# Workers that wait for work of their own pool: which wait is refused, and which worker takes no operation for it.
#
# Waiting inside a worker for work of its own pool. Each wait has a WorkerWait, linked to its worker's WorkerState while the wait
# lasts: one if the thread itself waits, any number if its event loop has tasks that do. A worker
# takes no operation until `process` returns, which is taken to be after all these waits are over. So a worker is stalled
# while any of them that has no timeout has not come. What has come stays so (an operation that is done; a stream that has ended; an
# item in a stream may be read by another reader), hence a worker becomes stalled only where it enters a wait, and there the
# wait is refused with RuntimeError if
#   - no worker would be left that is not stalled (worker_left), or
#   - what it waits for is an operation that runs on a worker which waits in turn, directly or through others, for the one
#     that this worker runs (waits_for_itself).
# The same decides whether the pool is broken when a worker is lost. A wait with a timeout ends by itself, so it stalls no
# worker; it matters to what was put back only (retry_routing.pyx), which does not wait for a worker that is in a wait. What
# cannot be seen: that a task which waits will be cancelled by another (asyncio.wait_for, asyncio.timeout),
# and a wait by other means (concurrent.futures.wait, a lock, an event).
#
# A task may be left behind in its wait when `process` returns. So a task's wait counts only while the worker's word is
# what it was: in the same call of `process`; or before the worker takes operations (init), or after (cleanup).

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t, uintptr_t
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed

from ringmill._core.pool.operation cimport PHASE, RELEASED, RUNNING, OperationBase
from ringmill._core.pool.work_source cimport WorkSource
from ringmill._core.pool.worker_state cimport WorkerState
from ringmill._core.pool.worker_table cimport WorkerTable


cdef class WorkerWaits:
    """Which workers of a run wait for work of their own pool."""

    def __cinit__(self, WorkerTable workers not None):
        self.workers = workers

    cdef bint refuses(self, PyObject* wait) noexcept:
        # Whether a wait that has been linked could not end.
        return stalls_worker(wait) and (
            not self.worker_left() or self.waits_for_itself(<PyObject*>(<WorkerWait>wait).worker, wait)
        )

    cdef void retire(self, PyObject* worker) noexcept:
        # The worker is lost, or leaves. Idempotent.
        if not (<WorkerState>worker).retired:
            (<WorkerState>worker).retired = True
            self.workers.present.fetch_sub(1, memory_order_relaxed)  # relaxed: as WorkerTable.add
            self.workers.mark(worker)

    cdef void take_back(self, PyObject* worker) noexcept:
        # Undoes retire(): the worker cannot leave yet.
        (<WorkerState>worker).retired = False
        self.workers.present.fetch_add(1, memory_order_relaxed)  # relaxed: as WorkerTable.add
        self.workers.mark(worker)

    cdef Py_ssize_t count_waiting(self) noexcept:
        cdef Py_ssize_t count = 0, k
        for k in range(self.workers.count):
            count += is_waiting(self.workers.states[k])
        return count

    cdef void link_wait(self, PyObject* wait) noexcept:
        # Under the lock, on the worker's thread.
        cdef PyObject* worker = <PyObject*>(<WorkerWait>wait).worker
        cdef PyObject* running = (<WorkerState>worker).op
        if (<WorkerState>worker).first_wait and (<WorkerState>worker).running != running:
            self.leave_stalled(worker)
            self.join_stalled(worker, running)
        elif not (<WorkerState>worker).first_wait:
            self.join_stalled(worker, running)
        (<WorkerWait>wait).linked = True
        (<WorkerWait>wait).prev = NULL
        (<WorkerWait>wait).next = (<WorkerState>worker).first_wait
        if (<WorkerState>worker).first_wait:
            (<WorkerWait>(<WorkerState>worker).first_wait).prev = wait
        (<WorkerState>worker).first_wait = wait
        self.workers.mark(worker)

    cdef void unlink_wait(self, PyObject* wait) noexcept:
        # Under the lock, on any thread. Idempotent.
        cdef PyObject* worker = <PyObject*>(<WorkerWait>wait).worker
        if not (<WorkerWait>wait).linked:
            return
        (<WorkerWait>wait).linked = False
        if (<WorkerWait>wait).next:
            (<WorkerWait>(<WorkerWait>wait).next).prev = (<WorkerWait>wait).prev
        if (<WorkerWait>wait).prev:
            (<WorkerWait>(<WorkerWait>wait).prev).next = (<WorkerWait>wait).next
            return
        (<WorkerState>worker).first_wait = (<WorkerWait>wait).next
        if not (<WorkerState>worker).first_wait:
            self.leave_stalled(worker)
            self.workers.mark(worker)

    cdef void join_stalled(self, PyObject* worker, PyObject* running) noexcept:
        cdef PyObject** bucket = &self.stalled[(<uintptr_t>running >> 6) & 63]
        (<WorkerState>worker).running = running
        (<WorkerState>worker).next_stalled = bucket[0]
        bucket[0] = worker

    cdef void leave_stalled(self, PyObject* worker) noexcept:
        cdef PyObject** link = &self.stalled[(<uintptr_t>(<WorkerState>worker).running >> 6) & 63]
        while link[0] != worker:
            link = &(<WorkerState>link[0]).next_stalled
        link[0] = (<WorkerState>worker).next_stalled
        (<WorkerState>worker).next_stalled = NULL

    cdef bint worker_left(self) noexcept:
        # Under the lock. Whether a worker is left that is not stalled. It looks at them one by one only where each has
        # entered some wait, and begins with the one that it found last.
        cdef Py_ssize_t left = self.workers.count
        cdef PyObject* worker
        if self.workers.in_wait < self.workers.present.load(memory_order_relaxed):  # relaxed: written under the lock
            return True
        while left:
            left -= 1
            if self.look_from >= self.workers.count:
                self.look_from = 0
            worker = self.workers.states[self.look_from]
            if not (<WorkerState>worker).retired and not is_stalled(worker):
                return True
            self.look_from += 1
        return False

    cdef bint waits_for_itself(self, PyObject* worker, PyObject* wait) noexcept:
        # Under the lock. Whether the operation that this worker runs must be over before the wait can come: from each
        # operation that is waited for to the worker that runs it and waits itself, and on to what that waits for.
        cdef PyObject* own = (<WorkerState>worker).running
        cdef PyObject* operation = <PyObject*>(<WorkerWait>wait).operation
        cdef PyObject* found
        cdef PyObject* at = wait
        cdef PyObject* todo = NULL      # workers whose waits have not been followed, linked by the next
        if own == NULL or operation == <PyObject*>None:
            return False
        self.visits += 1
        (<WorkerState>worker).visited = self.visits
        while True:
            operation = <PyObject*>(<WorkerWait>at).operation
            # acquire: pairs with begin; a snapshot, but who runs it and waits has registered that under this lock
            if (
                operation != <PyObject*>None
                and stalls_worker(at)
                and (<OperationBase>operation).state.load(memory_order_acquire) & PHASE == RUNNING
            ):
                if operation == own:
                    return True
                found = self.stalled[(<uintptr_t>operation >> 6) & 63]
                while found and (
                    (<WorkerState>found).running != operation or (<WorkerState>found).visited == self.visits
                ):
                    found = (<WorkerState>found).next_stalled
                if found:
                    (<WorkerState>found).visited = self.visits
                    (<WorkerState>found).todo = todo
                    todo = found
            at = (<WorkerWait>at).next if at != wait else NULL
            while at == NULL:
                if todo == NULL:
                    return False
                at = (<WorkerState>todo).first_wait
                todo = (<WorkerState>todo).todo


cdef class WorkerWait:
    def __dealloc__(self):
        # A coroutine that cannot run to its end any more. The worker's state and its run are still there.
        if self.linked and self.worker is not None and self.worker.run is not None:
            self.worker.run.leave_wait(self)


cdef bint has_come(PyObject* wait, bint for_good) noexcept nogil:
    # `for_good`: and stays so. What is ready in a stream another reader may take, and then the wait goes on.
    cdef PyObject* operation = <PyObject*>(<WorkerWait>wait).operation
    cdef PyObject* source = <PyObject*>(<WorkerWait>wait).source
    if operation != <PyObject*>None:
        # acquire twice: pairs with end, and with renew: it was done, and begins another life
        return (
            (<OperationBase>operation).state.load(memory_order_acquire) & RELEASED != 0
            or (<OperationBase>operation).generation.load(memory_order_acquire) != (<WorkerWait>wait).expected_generation
        )
    # The turn may be free for a moment, and another reader have it the next.
    if not for_good and not (<WorkerWait>wait).for_turn and (<WorkSource>source).has_ready():
        return True
    return (<WorkSource>source).is_over()


cdef bint holds_worker(PyObject* wait, bint for_good) noexcept nogil:
    # Under the lock. Whether its worker takes no operation because of it. `for_good`: as has_come.
    cdef PyObject* worker = <PyObject*>(<WorkerWait>wait).worker
    cdef uint64_t word
    if (<WorkerWait>wait).in_task:
        word = (<WorkerState>worker).word.load(memory_order_acquire)  # acquire: as count
        # relaxed: written by its own thread, which looks for operations only after that
        if word != (<WorkerWait>wait).word or not word & 1 and (<WorkerState>worker).alive.load(memory_order_relaxed):
            return False
    return not has_come(wait, for_good)


cdef bint stalls_worker(PyObject* wait) noexcept nogil:
    return not (<WorkerWait>wait).timed and holds_worker(wait, False)


cdef bint is_stalled(PyObject* worker) noexcept nogil:
    cdef PyObject* wait = (<WorkerState>worker).first_wait
    while wait:
        if stalls_worker(wait):
            return True
        wait = (<WorkerWait>wait).next
    return False


cdef bint is_waiting(PyObject* worker) noexcept nogil:
    cdef PyObject* wait = (<WorkerState>worker).first_wait
    while wait:
        if holds_worker(wait, True):
            return True
        wait = (<WorkerWait>wait).next
    return False


cdef bint waits_for(PyObject* worker, PyObject* operation, PyObject* source, bint timed) noexcept nogil:
    cdef PyObject* wait = (<WorkerState>worker).first_wait
    while wait:
        if (timed or not (<WorkerWait>wait).timed) and holds_worker(wait, False) and (
            operation and <PyObject*>(<WorkerWait>wait).operation == operation
            or source and <PyObject*>(<WorkerWait>wait).source == source
        ):
            return True
        wait = (<WorkerWait>wait).next
    return False
