# What the threads of an execution share.

from ringmill._core.pool.operation cimport OperationBase
from ringmill._core.waiting.wait_queue cimport begin_sleep, cancel_sleep


class Operation(OperationBase):
    pass


cdef class Idle(Sleeper):
    cdef bint wake(self) noexcept:
        return True


cdef class Fixture:
    def __init__(self, list items, Py_ssize_t capacity, dict ways):
        self.items = items
        self.ring = RingBuffer(capacity)
        self.idle = Idle()
        self.operations = [Operation() for _ in range(OPERATIONS)]
        self.ways = ways
        self.retries = [0] * OPERATIONS
        self.streams = {}
        self.streamed = set()

    cdef void let_idle_wait(self) noexcept:
        begin_sleep(&self.ring.not_empty, &self.idle.node, False)

    cdef void end_idle(self) noexcept:
        if self.idle.node.queued:
            cancel_sleep(&self.ring.not_empty, &self.idle.node)

    cdef void name_all(self) noexcept:
        cdef int k
        cdef RingBuffer ring = self.ring
        wm_name(&ring.ring.head, "head")
        wm_name(&ring.ring.tail, "tail")
        for k in range(<int>min(ring.capacity, 4)):
            wm_name(<void*>&ring.ring.slots[k], [b"stamp 0", b"stamp 1", b"stamp 2", b"stamp 3"][k])  # first in the slot
            wm_name(&ring.ring.slots[k].item, [b"slot 0", b"slot 1", b"slot 2", b"slot 3"][k])
        wm_name(&ring.not_empty.word, "not_empty.word")
        wm_name(&ring.not_empty.lock, "not_empty.lock")
        wm_name(&ring.not_empty.hint, "not_empty.hint")
        wm_name(&ring.not_empty.epoch, "not_empty.epoch")
        wm_name(&ring.not_full.word, "not_full.word")
        wm_name(&ring.not_full.lock, "not_full.lock")
        wm_name(&ring.not_full.hint, "not_full.hint")
        wm_name(&ring.not_full.epoch, "not_full.epoch")
        wm_name(&ring.finished, "finished")
        wm_name(&self.lock, "lock")
        for k in range(ITEMS):
            wm_name(wm_variable(k), "what goes with an item")
        for k in range(OPERATIONS):
            wm_name(&(<OperationBase>self.operations[k]).state, "state")
            wm_name(wm_variable(INPUT + k), "input")
            wm_name(wm_variable(OUTPUT + k), "output")
        wm_name(wm_variable(COUNTER), "counter")
        if self.core is not None:
            wm_name(&self.core.idle.word, "idle.word")
            wm_name(&self.core.idle.lock, "idle.lock")
            wm_name(&self.core.idle.hint, "idle.hint")
            wm_name(&self.core.lock, "core.lock")
            wm_name(&self.core.phase, "phase")
            wm_name(&self.core.sealed, "sealed")
            wm_name(&self.core.routing.length, "routing.length")
            wm_name(&self.core.inbox.ring.head, "inbox.head")
            wm_name(&self.core.inbox.ring.tail, "inbox.tail")
            if self.stream is not None:
                wm_name(&self.stream.source.place, "place")
                wm_name(&self.stream.source.total, "total")
                wm_name(&self.stream.source.abandoned, "abandoned")
                if self.stream.source.watcher is not None:
                    wm_name(&self.stream.source.watcher.armed, "armed")
        if self.hub is not None:
            wm_name(&self.hub.shut, "shut")
            wm_name(&self.hub.subscriptions.version, "version")
            wm_name(&self.hub.subscriptions.lock, "subscriptions.lock")
