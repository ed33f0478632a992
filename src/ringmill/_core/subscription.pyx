# What every published item goes through: the publisher's loops, and what a full buffer does.
#
# A subscription is a RingBuffer and a policy. A publisher offers the item to those that have room without waiting, and
# delivers to the others by their policy; it walks the subscription ring's snapshot, and holds no lock at any time, so
# a slow subscriber delays nobody but the publisher that waits for it.
#
# drop_oldest: put, or take one off and count it as dropped, until the put succeeds. Puts and takes are the ring's own,
# so each published item is exactly one of dropped, read and left, whoever publishes or reads beside; a publisher's
# items stay in order, since they go in in order and leave from the front only. latest is drop_oldest with one slot.
#
# Unsubscribing closes the ring: what is in it stays readable; a put that comes later, or waits, is told so, and
# counts for nothing (broadcast) or goes to the next subscriber (signal).

import itertools
import queue

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from ringmill._core.ring cimport DONE, NOT_NOW, SHUT, is_shut, size, try_get, try_put
from ringmill._core.ring_buffer cimport RingBuffer
from ringmill._core.subscription_ring cimport Snapshot
from ringmill._core.loop cimport checkpoint
from ringmill._core.machine cimport steal
from ringmill._core.waiter cimport NEVER, deadline_of, notify

from ringmill.errors import Closed, describe

cdef extern from "Python.h":
    PyObject* PyTuple_GET_ITEM(PyObject* tuple, Py_ssize_t index)
    Py_ssize_t PyTuple_GET_SIZE(PyObject* tuple)

cdef object ids = itertools.count(1)
cdef dict policies = {
    "block": BLOCK, "drop_oldest": DROP_OLDEST, "drop_incoming": DROP_INCOMING, "latest": LATEST, "raise": RAISE,
}


cdef class SubscriptionBase:
    def __cinit__(self, buffer, str overflow, hub):  # no *args: what Cython makes of them crashes without memory
        self.overflow = policies[overflow]
        self.buffer = RingBuffer(1 if self.overflow == LATEST else buffer)
        self.id = next(ids)

    cdef int offer(self, PyObject* item) except -1:
        # Delivers if there is room: DONE. Borrows the item.
        cdef int result
        Py_INCREF(<object>item)  # the ring's, if it gets there
        result = try_put(self.buffer.ring, item, NULL)
        if result == DONE:
            notify(&self.buffer.not_empty)
        else:
            Py_DECREF(<object>item)
        return result

    cdef int deliver(self, PyObject* item, int64_t deadline) except -1:
        # Delivers by the policy, waiting if that says so. DONE; NOT_NOW: dropped, or no room in time; SHUT.
        cdef int result
        if self.overflow != BLOCK:
            return self.deliver_now(item)
        Py_INCREF(<object>item)  # the ring's, if it gets there
        try:
            result = self.buffer.put_item(item, deadline, True)
        except BaseException:
            Py_DECREF(<object>item)
            raise
        if result != DONE:
            Py_DECREF(<object>item)
        return result

    cdef int deliver_now(self, PyObject* item) except -1:
        # By a policy that does not wait.
        cdef PyObject* oldest = NULL
        cdef int result = self.offer(item)
        if result != NOT_NOW or self.overflow == RAISE:
            return result
        if self.overflow == DROP_INCOMING:
            self.drops.fetch_add(1, memory_order_relaxed)  # relaxed: a count
            return NOT_NOW
        while result == NOT_NOW:
            if try_get(self.buffer.ring, &oldest, NULL) == DONE:
                self.drops.fetch_add(1, memory_order_relaxed)  # relaxed: a count
                Py_DECREF(<object>oldest)  # was the ring's
            result = self.offer(item)
        return result

    async def _deliver(self, item):
        # As deliver, without a deadline.
        if self.overflow != BLOCK:
            return self.deliver_now(<PyObject*>item)
        try:
            await self.buffer.aput(item)
        except Closed:
            return SHUT
        return DONE

    def get(self, timeout=None):
        """Takes the oldest item, waiting up to `timeout` seconds for one (None: without limit).

        Raises `queue.Empty` when none came in time, `Closed` when the subscription has ended and all was read. Safe
        from any thread; several share the items.
        """
        return self.buffer.get(True, timeout)

    def get_nowait(self):
        """Takes the oldest item, or raises `queue.Empty` or `Closed`. Never blocks."""
        return self.buffer.get_nowait()

    def get_many(self, max=None, timeout=None):
        """Waits for the first item, then takes what is there, up to `max`, as a list. Raises as `get`."""
        return self.buffer.get_many(max, timeout)

    async def aget(self):
        """Takes the oldest item, awaiting one: `get` for a task of asyncio or trio. A cancelled await has taken none."""
        return await self.buffer.aget()

    def __iter__(self):
        return self

    def __next__(self):
        return self.buffer.__next__()

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await self.buffer.__anext__()

    def __len__(self):
        """How many items are ready to be read; a snapshot."""
        return size(self.buffer.ring)

    def __bool__(self):
        return True

    @property
    def closed(self):
        """Whether the subscription has ended. What was delivered before can be read."""
        return is_shut(self.buffer.ring)

    @property
    def dropped(self):
        """How many items the overflow policy has dropped; a snapshot that only grows."""
        return self.drops.load(memory_order_relaxed)  # relaxed: a count

    def _end(self):
        self.buffer.close_ring()


cdef class HubBase:
    def __cinit__(self, *args, **kwargs):
        self.subscriptions = SubscriptionRing()

    def __del__(self):
        # Nobody can publish any more: readers must not wait for it. No Python names: the interpreter may be ending. And
        # no snapshot: the collector would take what a new object refers to for brought back to life.
        cdef SubscriptionBase subscription
        cdef PyObject* raw
        cdef Py_ssize_t left
        if self.subscriptions is None:  # __cinit__ had no memory for it
            return
        left = self.subscriptions.count.load(memory_order_relaxed)  # relaxed: a hint
        self.shut.store(1, memory_order_seq_cst)  # seq_cst: as _shut
        while left > 0:
            left -= 1
            raw = self.subscriptions.step(True)
            if raw == NULL:
                break
            subscription = <SubscriptionBase>steal(raw)
            subscription.buffer.close_ring()

    cdef int check_open(self) except -1:
        if self.shut.load(memory_order_seq_cst):  # seq_cst: pairs with _shut
            raise Closed(f"the hub is closed: {describe(self)}")
        return 0

    def _check_open(self):
        self.check_open()

    def _add(self, SubscriptionBase subscription not None):
        self.subscriptions.add(subscription)

    def _remove(self, SubscriptionBase subscription not None):
        return self.subscriptions.remove(subscription)

    def _all(self):
        return self.subscriptions.snapshot().items

    def _shut(self):
        # seq_cst: before the walk over the subscriptions; a subscribe that adds after that sees it
        return not self.shut.exchange(1, memory_order_seq_cst)

    @property
    def closed(self):
        """Whether the hub is closed."""
        return bool(self.shut.load(memory_order_seq_cst))  # seq_cst: as check_open

    cdef SubscriptionBase pass_round(self, object item, bint* taken):
        # Offers it to each in turn. Who took it; or the next one, whose policy decides; None if there is none.
        cdef Py_ssize_t left
        cdef PyObject* raw
        cdef SubscriptionBase subscription
        self.check_open()
        taken[0] = True
        # relaxed: a hint; each turn below is exact
        left = self.subscriptions.count.load(memory_order_relaxed)
        while left > 0:
            raw = self.subscriptions.step(True)
            if raw == NULL:
                break
            left -= 1
            subscription = <SubscriptionBase>steal(raw)
            if subscription.offer(<PyObject*>item) == DONE:
                return subscription
        # Others moved the turn meanwhile, so those rounds may have left one out: ask each once.
        for subscription in self.subscriptions._from_current():
            if subscription.offer(<PyObject*>item) == DONE:
                return subscription
        taken[0] = False
        raw = self.subscriptions.step(True)
        if raw != NULL:
            return <SubscriptionBase>steal(raw)
        self.check_open()  # nobody is there: perhaps because a close came in between
        return None

    cdef object not_taken(self, SubscriptionBase subscription):
        # Its policy had the last word.
        if subscription.overflow == DROP_INCOMING:
            return None
        raise queue.Full(f"no subscriber of {describe(self)} has room")

    def signal(self, item, timeout=None):
        """Delivers an item to the next subscriber in turn that has room; returns its subscription.

        If none has room, the overflow policy of the next one decides: "block" waits up to `timeout` seconds (None:
        without limit), then raises `queue.Full`, as "raise" does at once. None when nobody took it: no subscriber, or
        it was dropped. `Closed` when the hub is closed. Safe from any thread; holds no lock while it waits.
        """
        cdef int64_t deadline = NEVER
        cdef int result = SHUT
        cdef bint taken = False
        cdef SubscriptionBase subscription = None
        if timeout is not None:
            deadline = deadline_of(timeout)
        while result == SHUT:  # or it was unsubscribed meanwhile: the next one
            subscription = self.pass_round(item, &taken)
            if taken or subscription is None:
                return subscription
            result = subscription.deliver(<PyObject*>item, deadline)
        return subscription if result == DONE else self.not_taken(subscription)

    async def asignal(self, item):
        """`signal` for a task of asyncio or trio: "block" awaits room, without limit. A cancelled await delivered nothing."""
        cdef int result = SHUT
        cdef bint taken = False
        cdef SubscriptionBase subscription = None
        point = checkpoint()
        if point is not None:
            await point
        while result == SHUT:  # as signal
            subscription = self.pass_round(item, &taken)
            if taken or subscription is None:
                return subscription
            result = await subscription._deliver(item)
        return subscription if result == DONE else self.not_taken(subscription)

    cdef list offer_all(self, object item, Py_ssize_t* count):
        # To everyone that has room. Returns the others, or None if there is none.
        cdef Snapshot snapshot
        cdef PyObject* items
        cdef Py_ssize_t k
        cdef int result
        cdef list slow = None
        self.check_open()
        snapshot = self.subscriptions.snapshot()
        items = <PyObject*>snapshot.items  # which the snapshot keeps
        count[0] = 0
        for k in range(PyTuple_GET_SIZE(items)):
            result = (<SubscriptionBase>PyTuple_GET_ITEM(items, k)).offer(<PyObject*>item)
            if result == DONE:
                count[0] += 1
            elif result == NOT_NOW:
                if slow is None:
                    slow = []
                slow.append(<object>PyTuple_GET_ITEM(items, k))
        return slow

    cdef object not_all(self, Py_ssize_t count):
        error = queue.Full(f"not every subscriber of {describe(self)} had room: {count} took it")
        error.count = count
        raise error

    def broadcast(self, item, timeout=None):
        """Delivers an item to all that are subscribed at this instant, in ring order; returns how many took it.

        First everyone that has room, without waiting, then the slow ones by their policy: "block" waits, all of them
        together up to `timeout` seconds (None: without limit). When one with "block" had no room in time, or one
        with "raise" had none, it raises `queue.Full` after the others got theirs, with `count`, how many took it.
        `Closed` when the hub is closed. Safe from any thread; holds no lock.
        """
        cdef int64_t deadline = NEVER
        cdef Py_ssize_t count = 0
        cdef int result
        cdef bint full = False
        cdef SubscriptionBase subscription
        if timeout is not None:
            deadline = deadline_of(timeout)
        slow = self.offer_all(item, &count)
        if slow is None:
            return count
        for subscription in slow:
            result = subscription.deliver(<PyObject*>item, deadline)
            if result == DONE:
                count += 1
            elif result == NOT_NOW and subscription.overflow != DROP_INCOMING:
                full = True
        return self.not_all(count) if full else count

    async def abroadcast(self, item):
        """`broadcast` for a task of asyncio or trio: "block" awaits room, without limit.

        When the await is cancelled, those that took the item by then keep it.
        """
        cdef Py_ssize_t count = 0
        cdef int result
        cdef bint full = False
        cdef SubscriptionBase subscription
        point = checkpoint()
        if point is not None:
            await point
        slow = self.offer_all(item, &count)
        if slow is None:
            return count
        for subscription in slow:
            result = await subscription._deliver(item)
            if result == DONE:
                count += 1
            elif result == NOT_NOW and subscription.overflow != DROP_INCOMING:
                full = True
        return self.not_all(count) if full else count
