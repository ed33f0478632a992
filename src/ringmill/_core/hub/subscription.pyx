# What every published item goes through: the publisher's loops, and what a full buffer does.
#
#   Hub --> SubscriptionRing --> Mailbox (a RingBuffer and a policy) <-- Subscription
#                                   weak reference ---------------------->
#
# A publisher offers the item to the mailboxes that have room without waiting, and delivers to the others by their policy; it
# walks the subscription ring's snapshot, and holds no lock at any time, so a slow subscriber delays nobody but the publisher
# that waits for it.
#
# drop_oldest: put, or take one off and count it as dropped, until the put succeeds. Puts and takes are the ring buffer's
# own, so each published item is exactly one of dropped, read and left, whoever publishes or reads meanwhile; a publisher's
# items stay in order, since they go in in order and leave from the front only. latest is drop_oldest with one slot.
#
# Unsubscribing removes the mailbox from the hub's ring and closes its ring buffer: what is in it stays readable; a put that
# comes later, or waits, is told so, and counts for nothing (broadcast) or goes to the next subscriber (signal).
#
# A subscription that is dropped ends likewise, in its tp_dealloc, which runs no Python code of ours and cannot be prevented
# by a subclass's __del__; when that has run and has not brought the object back, tp_dealloc follows. At that point the
# reference count is 0, so no weak reference gives the object out any more; a Cython __dealloc__ or __del__ would raise the
# count for the time of the call. signal makes a counted reference of the weak one before the item is put, so what it
# delivers and names is alive; while it waits for room it has none, so that the subscription can end meanwhile.
#
# The collector. A hub must not keep a subscription alive that is reachable only from its own items (an item that refers to
# the subscription). So Mailbox's traverse answers for the hub's references to it, as if they were the mailbox's own: those
# of the ring, of snapshots and of waiting publishers (Pin), which are counted. Such a mailbox then depends on its
# subscription alone. That holds unless a thread or task waits in the mailbox for items: then the ring's reference is shown,
# since a task that waits is often referred to only by what will wake it. A mailbox is never cleared by the collector, so
# those that still have it after the subscription is gone find a ring buffer that is closed. The counts err on the side of
# too few: they are raised after a reference is taken and lowered before it is dropped, by attached threads, which the
# collector does not stop in between.
#
# Free-threaded, an object that another thread drops lives until its maker attaches again (rule 14): the subscription, or
# what held it (a tuple of arguments, a closure). Often the maker is the very publisher that waits for room in it; so that
# one lets the interpreter do what is due from time to time, a few times a second.

import queue

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint64_t
from libcpp.atomic cimport atomic, memory_order_relaxed, memory_order_seq_cst

from ringmill._core.waiting.event_loop cimport await_for, checkpoint
from ringmill._core.platform.primitives cimport FREE_THREADED, now_ns, steal
from ringmill._core.ring.ring cimport DONE, NOT_NOW, SHUT, has_room, is_shut, put_count, size, try_get, try_put
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.hub.subscription_ring cimport Snapshot, SubscriptionRing
from ringmill._core.waiting.wait_queue cimport NEVER, deadline_of, epoch_now, notify, wait_for

from ringmill.errors import Closed, describe

cdef extern from *:
    """
    /* What a weak reference refers to, owned; or NULL. */
    [[maybe_unused]] static inline PyObject* ringmill_referent(PyObject* reference) {
        PyObject* found = NULL;
    #if PY_VERSION_HEX >= 0x030D0000
        PyWeakref_GetRef(reference, &found);
    #else
        found = PyWeakref_GET_OBJECT(reference); /* borrowed; None for an object whose reference count is 0 */
        found = found == Py_None ? NULL : Py_NewRef(found);
    #endif
        return found;
    }
    """
    PyObject* referent "ringmill_referent"(PyObject* reference) noexcept

cdef extern from "Python.h":
    object PyWeakref_NewRef(object referent, PyObject* callback)
    void PyObject_GC_UnTrack(void*) noexcept
    void PyErr_Fetch(PyObject**, PyObject**, PyObject**) noexcept
    void PyErr_Restore(PyObject*, PyObject*, PyObject*) noexcept
    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef void (*destructor)(PyObject*) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        destructor tp_dealloc

cdef atomic[uint64_t] last_id
# A function of the interpreter's, not of ours: calling it lets the interpreter do what is due on this thread.
cdef object run_pending = eval("lambda: None")
cdef int64_t FIRST_PENDING_NS = 20_000_000
cdef int64_t LAST_PENDING_NS = 320_000_000

cdef tuple POLICIES = ("block", "drop_oldest", "drop_incoming", "latest", "raise")  # by their numbers


cdef int number_of(overflow) except -1:
    cdef int number
    if not isinstance(overflow, str):
        raise TypeError(f"overflow must be a string, not {describe(overflow)}")
    for number in range(len(POLICIES)):
        if overflow == POLICIES[number]:
            return number
    raise ValueError(f"overflow must be one of {', '.join(POLICIES)}, got {describe(overflow)}")


def policy(overflow):
    """The name of an overflow policy, as a plain string. TypeError, ValueError for anything else."""
    return POLICIES[number_of(overflow)]


# ---------------------------------------------------------------------------------------------------------------
# the mailbox

@cython.no_gc_clear
cdef class Mailbox:
    def __cinit__(self, buffer, overflow):
        self.overflow = <Overflow>number_of(overflow)
        self.buffer = RingBuffer(1 if self.overflow == LATEST else buffer)

    cdef int offer(self, PyObject* item) noexcept:
        # Delivers if there is room: DONE. Borrows the item.
        cdef int result
        Py_INCREF(<object>item)  # the ring buffer's, if it gets there
        result = try_put(self.buffer.ring, item, NULL)
        if result == DONE:
            notify(&self.buffer.not_empty)
        else:
            Py_DECREF(<object>item)  # not the last: the caller has one
        return result

    cdef int deliver_now(self, PyObject* item) noexcept:
        # By a policy that does not wait. DONE; NOT_NOW: dropped, or no room; SHUT.
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
                Py_DECREF(<object>oldest)  # was the ring buffer's
            result = self.offer(item)
        return result


cdef bint is_waited_in(PyObject* mailbox) noexcept:
    # Whether a thread or task waits in it for an item. For the collector: nobody changes it meanwhile.
    # relaxed, both: see above; after a fork the queue's waiters are the parent's
    return (
        (<Mailbox>mailbox).buffer.not_empty.epoch.load(memory_order_relaxed) == epoch_now
        and (<Mailbox>mailbox).buffer.not_empty.word.load(memory_order_relaxed) >> 32 != 0
    )


cdef void hide(PyObject* mailbox) noexcept:
    # A reference that has just been taken. relaxed, like all of these two counts: only the collector reads them.
    (<Mailbox>mailbox).hidden.fetch_add(1, memory_order_relaxed)


cdef void drop_hidden(PyObject* mailbox) noexcept:
    (<Mailbox>mailbox).hidden.fetch_sub(1, memory_order_relaxed)
    Py_DECREF(<object>mailbox)  # was the caller's


cdef void forsake(PyObject* mailbox) noexcept:
    # The ring's reference is the caller's now.
    (<Mailbox>mailbox).links.fetch_sub(1, memory_order_relaxed)


cdef bint end_mailbox(SubscriptionRing ring, PyObject* mailbox) noexcept:
    # Ends its subscription. Whether it was in the ring. The caller keeps the mailbox.
    cdef bint linked = ring is not None and ring.take_out(mailbox)
    if linked:
        forsake(mailbox)
        Py_DECREF(<object>mailbox)  # was the ring's; not the last
    (<Mailbox>mailbox).buffer.close_ring()
    return linked


cdef class Recipients(Snapshot):
    def __dealloc__(self):
        cdef Py_ssize_t k
        for k in range(self.count):
            if self.mailboxes[k]:
                drop_hidden(self.mailboxes[k])
        PyMem_RawFree(self.mailboxes)


# ---------------------------------------------------------------------------------------------------------------
# delivering to one that has no room

cdef struct Delivery:
    PyObject* mailbox           # borrowed, like the next
    PyObject* item
    bint named                  # signal: the one that takes it is to be named
    PyObject* taker             # then, once it is taken: the subscription, owned

cdef int delivery_attempt(void* context) noexcept:
    cdef Delivery* delivery = <Delivery*>context
    cdef PyObject* taker = NULL
    cdef int result
    if delivery.named:
        taker = referent(<PyObject*>(<Mailbox>delivery.mailbox).reference)
        if taker == NULL:
            return SHUT
    result = (<Mailbox>delivery.mailbox).offer(delivery.item)
    if result == DONE:
        delivery.taker = taker
    elif taker:
        Py_DECREF(<object>taker)  # may be the last, which ends the subscription: the next attempt is told so
    return result

cdef int delivery_more(void* context) noexcept:
    return has_room((<Mailbox>(<Delivery*>context).mailbox).buffer.ring)


cdef class Pin:
    def __dealloc__(self):
        if self.mailbox:
            drop_hidden(self.mailbox)

    cdef int deliver(self, object item, int64_t deadline, PyObject** taker) except -1:
        # By the policy, waiting if that says so. DONE; NOT_NOW: dropped, or no room in time; SHUT. `taker`, unless NULL,
        # gets the subscription if DONE, owned.
        cdef PyObject* found = NULL
        cdef int result
        if (<Mailbox>self.mailbox).overflow == BLOCK:
            return self.wait_for_room(item, deadline, taker)
        if taker:
            found = referent(<PyObject*>(<Mailbox>self.mailbox).reference)
            if found == NULL:
                return SHUT
        result = (<Mailbox>self.mailbox).deliver_now(<PyObject*>item)
        if taker:
            if result == DONE:
                taker[0] = found
            else:
                Py_DECREF(<object>found)  # may be the last
        return result

    cdef int wait_for_room(self, object item, int64_t deadline, PyObject** taker) except -1:
        # No counted reference to the mailbox but the pin's: not even in a local variable.
        cdef Delivery delivery
        cdef int result
        cdef int64_t until = deadline, breath = FIRST_PENDING_NS
        cdef uint64_t count = put_count((<Mailbox>self.mailbox).buffer.ring)
        # relaxed, both: a guess at whether lingering pays, as RingBuffer's own
        cdef uint64_t moved = count - (<Mailbox>self.mailbox).buffer.putters_mark.load(memory_order_relaxed)
        (<Mailbox>self.mailbox).buffer.putters_mark.store(count, memory_order_relaxed)
        delivery.mailbox = self.mailbox
        delivery.item = <PyObject*>item
        delivery.named = taker != NULL
        delivery.taker = NULL
        while True:
            if FREE_THREADED:
                until = now_ns() + breath
                if deadline != NEVER and deadline < until:
                    until = deadline
            result = wait_for(
                &(<Mailbox>self.mailbox).buffer.not_full, delivery_attempt, delivery_more, &delivery, NULL, moved, until
            )
            if result or until == deadline:
                break
            run_pending()
            breath = min(2 * breath, LAST_PENDING_NS)
            moved = 0
        if result == DONE and taker:
            taker[0] = delivery.taker
        return result

    async def _deliver(self, item, bint named):
        # As deliver, without a deadline. `named`: gives the subscription if DONE.
        cdef Delivery delivery
        cdef PyObject* taker = NULL
        cdef int result
        if self.mailbox == NULL:
            raise TypeError("made by a hub only")
        if (<Mailbox>self.mailbox).overflow != BLOCK:
            result = self.deliver(item, NEVER, &taker if named else NULL)
            return steal(taker) if taker else result
        delivery.mailbox = self.mailbox
        delivery.item = <PyObject*>item
        delivery.named = named
        delivery.taker = NULL
        result = await await_for(
            &(<Mailbox>self.mailbox).buffer.not_full, delivery_attempt, delivery_more, &delivery, self
        )
        return steal(delivery.taker) if delivery.taker else result


cdef Pin pin_of(PyObject* mailbox):
    cdef Pin pin = Pin()
    Py_INCREF(<object>mailbox)  # the pin's
    hide(mailbox)
    pin.mailbox = mailbox
    return pin


# ---------------------------------------------------------------------------------------------------------------
# the subscriber's end

@cython.no_gc_clear
cdef class SubscriptionBase:
    def __cinit__(self, buffer, overflow, hub):  # no *args: what Cython makes of them crashes without memory
        if not isinstance(hub, HubBase):
            raise TypeError(f"hub must be a Hub, not {describe(hub)}: Hub.subscribe makes subscriptions")
        cdef Mailbox mailbox = Mailbox(buffer, overflow)
        mailbox.reference = PyWeakref_NewRef(self, NULL)
        self.id = last_id.fetch_add(1, memory_order_relaxed) + 1  # relaxed: only unique
        self.ring = (<HubBase>hub).subscriptions
        self.mailbox = mailbox

    cdef RingBuffer reader(self):
        if self.mailbox is None:  # __cinit__ failed, and a __del__ or a debugger found the object
            raise Closed("the subscription could not be made")
        return self.mailbox.buffer

    def get(self, timeout=None):
        """Takes the oldest item, waiting up to `timeout` seconds for one (None: without limit).

        Raises `queue.Empty` when none came in time, `Closed` when the subscription has ended and all was read. Safe
        from any thread; several share the items.
        """
        return self.reader().get(True, timeout)

    def get_nowait(self):
        """Takes the oldest item, or raises `queue.Empty` or `Closed`. Never blocks."""
        return self.reader().get_nowait()

    def get_many(self, max=None, timeout=None):
        """Waits for the first item, then takes what is there, up to `max`, as a list. Raises as `get`."""
        return self.reader().get_many(max, timeout)

    async def aget(self):
        """Takes the oldest item, awaiting one: `get` for a task of asyncio or trio. A cancelled await has taken none."""
        return await self.reader().aget()

    def __iter__(self):
        return self

    def __next__(self):
        if self.mailbox is None:  # as in reader
            raise StopIteration
        return self.mailbox.buffer.__next__()

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.mailbox is None:  # as in reader
            raise StopAsyncIteration
        return await self.mailbox.buffer.__anext__()

    def __contains__(self, item):
        raise TypeError(f"`in` is not supported by {type(self).__name__}: it would take items")

    def __len__(self):
        """How many items are ready to be read; a snapshot."""
        return 0 if self.mailbox is None else size(self.mailbox.buffer.ring)

    def __bool__(self):
        return True

    @property
    def buffer(self):
        """How many items the subscription holds: what `Hub.subscribe` was told; 1 with "latest"."""
        return 0 if self.mailbox is None else self.mailbox.buffer.capacity

    @property
    def overflow(self):
        """The overflow policy."""
        return POLICIES[BLOCK if self.mailbox is None else <int>self.mailbox.overflow]

    @property
    def closed(self):
        """Whether the subscription has ended. What was delivered before can be read."""
        return self.mailbox is None or is_shut(self.mailbox.buffer.ring)

    @property
    def dropped(self):
        """How many items the overflow policy has dropped; a snapshot that only grows."""
        # relaxed: a count
        return 0 if self.mailbox is None else self.mailbox.drops.load(memory_order_relaxed)

    def _end(self):
        if self.mailbox is not None:
            end_mailbox(self.ring, <PyObject*>self.mailbox)


# ---------------------------------------------------------------------------------------------------------------
# the publisher's end

@cython.no_gc_clear
cdef class HubBase:
    def __cinit__(self):  # whatever Hub is given: what Cython makes of *args crashes without memory
        cdef SubscriptionRing ring
        # relaxed, both: the hub is not published yet. Closed, unless all that follows succeeds.
        self.shut.store(1, memory_order_relaxed)
        ring = SubscriptionRing()
        ring.shown = is_waited_in
        ring.forsaken = forsake
        self.subscriptions = ring
        self.shut.store(0, memory_order_relaxed)

    def __del__(self):
        # A hub that is collected together with what waits for it. All others end in hub_dealloc.
        self.end_all()

    cdef void end_all(self) noexcept:
        # Nobody can publish any more: readers must not wait for it. No Python names: the interpreter may be ending.
        cdef PyObject* mailbox
        # seq_cst: before the walk over the subscriptions; a subscribe that adds after that sees it
        self.shut.store(1, memory_order_seq_cst)
        while self.subscriptions is not None:  # None: __cinit__ failed
            mailbox = self.subscriptions.take_first()
            if mailbox == NULL:
                return
            forsake(mailbox)
            (<Mailbox>mailbox).buffer.close_ring()
            Py_DECREF(<object>mailbox)  # was the ring's

    cdef int check_open(self) except -1:
        if self.shut.load(memory_order_seq_cst):  # seq_cst: pairs with end_all
            raise Closed(f"the hub is closed: {describe(self)}")
        return 0

    def _check_open(self):
        self.check_open()

    def _add(self, SubscriptionBase subscription not None):
        # Once; again, it does nothing.
        cdef PyObject* mailbox = <PyObject*>subscription.mailbox
        self.check_open()
        if subscription.mailbox is None or subscription.ring is not self.subscriptions:
            raise ValueError(f"subscription must be one of this hub, not {describe(subscription)}")
        # seq_cst: one of several calls adds it
        if subscription.added.exchange(1, memory_order_seq_cst):
            return
        try:
            self.subscriptions.append(mailbox)
        except MemoryError:
            subscription.added.store(0, memory_order_seq_cst)
            raise
        (<Mailbox>mailbox).links.fetch_add(1, memory_order_relaxed)  # relaxed: as hide
        if self.shut.load(memory_order_seq_cst) or is_shut(subscription.mailbox.buffer.ring):
            # Closed meanwhile, perhaps before close could see it. seq_cst: as in check_open
            end_mailbox(self.subscriptions, mailbox)
            self.check_open()

    def _remove(self, SubscriptionBase subscription not None):
        if subscription.mailbox is None or subscription.ring is not self.subscriptions:
            return False
        return end_mailbox(subscription.ring, <PyObject*>subscription.mailbox)

    def _close(self):
        self.end_all()

    def __len__(self):
        """How many subscriptions there are; a snapshot."""
        # relaxed: a snapshot
        return 0 if self.subscriptions is None else self.subscriptions.count.load(memory_order_relaxed)

    def __bool__(self):
        return True

    @property
    def closed(self):
        """Whether the hub is closed."""
        return bool(self.shut.load(memory_order_seq_cst))  # seq_cst: as check_open

    cdef Recipients recipients(self):
        # The subscriptions as they are now.
        cdef Recipients made = <Recipients>self.subscriptions.cached_snapshot()
        cdef Py_ssize_t count, k
        while made is None:
            count = self.subscriptions.count.load(memory_order_relaxed)  # relaxed: looked at again in record
            made = Recipients()
            made.mailboxes = <PyObject**>PyMem_RawCalloc(count + 1, sizeof(PyObject*))
            if made.mailboxes == NULL:
                raise MemoryError
            made.count = count  # before record publishes it
            if self.subscriptions.record(made, made.mailboxes, count):
                for k in range(count):
                    hide(made.mailboxes[k])
            else:
                made = None
        return made

    cdef PyObject* offer_to(self, PyObject* mailbox, PyObject* item) noexcept:
        # Delivers if there is room. Returns the subscription, owned; or NULL.
        cdef PyObject* taker = referent(<PyObject*>(<Mailbox>mailbox).reference)
        cdef int result = SHUT
        if taker:
            result = (<Mailbox>mailbox).offer(item)
            if result == DONE:
                return taker
            Py_DECREF(<object>taker)  # may be the last
        if result == SHUT:  # it has ended, or is about to
            end_mailbox(self.subscriptions, mailbox)
        return NULL

    cdef PyObject* pass_round(self, PyObject* item) except? NULL:
        # Offers it to each in turn. The subscription that took it, owned; or NULL.
        cdef Recipients recipients
        cdef PyObject* mailbox
        cdef PyObject* taker = NULL
        cdef Py_ssize_t left, k, start = -1
        # relaxed: a hint; each turn below is exact
        left = self.subscriptions.count.load(memory_order_relaxed)
        while left > 0 and taker == NULL:
            mailbox = self.subscriptions.step(True)
            if mailbox == NULL:
                break
            left -= 1
            taker = self.offer_to(mailbox, item)
            Py_DECREF(<object>mailbox)  # was ours
        if taker == NULL:
            # Others moved the turn meanwhile, so those rounds may have left one out: ask each once.
            while start < 0:
                recipients = self.recipients()
                start = self.subscriptions.place_of_current(recipients)
            for k in range(recipients.count):
                taker = self.offer_to(recipients.mailboxes[(start + k) % recipients.count], item)
                if taker:
                    break
        return taker

    cdef Pin next_in_turn(self):
        # None: there is none.
        cdef PyObject* mailbox = self.subscriptions.step(True)
        if mailbox == NULL:
            return None
        held = steal(mailbox)
        return pin_of(mailbox)

    cdef object not_taken(self, Pin pin):
        # Its policy had the last word.
        if (<Mailbox>pin.mailbox).overflow == DROP_INCOMING:
            return None
        raise queue.Full(f"no subscriber of {describe(self)} has room")

    def signal(self, item, timeout=None):
        """Delivers an item to the next subscriber in turn that has room; returns its subscription.

        If none has room, the overflow policy of the next one decides: "block" waits up to `timeout` seconds (None:
        without limit), then raises `queue.Full`, as "raise" does at once. None when nobody took it: no subscriber, or
        it was dropped. `Closed` when the hub is closed. Safe from any thread; holds no lock while it waits.
        """
        cdef int64_t deadline = NEVER
        cdef int result
        cdef PyObject* taker = NULL
        cdef Pin pin
        if timeout is not None:
            deadline = deadline_of(timeout)
        while True:
            self.check_open()
            taker = self.pass_round(<PyObject*>item)
            if taker:
                return steal(taker)
            pin = self.next_in_turn()
            if pin is None:
                self.check_open()  # nobody is there: perhaps because a close came in between
                return None
            result = pin.deliver(item, deadline, &taker)
            if result == DONE:
                return steal(taker)
            if result == NOT_NOW:
                return self.not_taken(pin)
            end_mailbox(self.subscriptions, pin.mailbox)  # it has ended meanwhile: the next one

    async def asignal(self, item):
        """`signal` for a task of asyncio or trio: "block" awaits room, without limit. A cancelled await delivered nothing."""
        cdef PyObject* taker
        cdef Pin pin
        point = checkpoint()
        if point is not None:
            await point
        while True:  # as signal
            self.check_open()
            taker = self.pass_round(<PyObject*>item)
            if taker:
                return steal(taker)
            pin = self.next_in_turn()
            if pin is None:
                self.check_open()
                return None
            result = await pin._deliver(item, True)
            if isinstance(result, SubscriptionBase):
                return result
            if result == NOT_NOW:
                return self.not_taken(pin)
            end_mailbox(self.subscriptions, pin.mailbox)

    cdef list offer_all(self, object item, Py_ssize_t* count):
        # To everyone that has room. Returns the others, or None if there is none.
        cdef Recipients recipients
        cdef Py_ssize_t k
        cdef int result
        cdef list slow = None
        self.check_open()
        recipients = self.recipients()
        count[0] = 0
        for k in range(recipients.count):
            result = (<Mailbox>recipients.mailboxes[k]).offer(<PyObject*>item)
            if result == DONE:
                count[0] += 1
            elif result == NOT_NOW:
                if slow is None:
                    slow = []
                slow.append(pin_of(recipients.mailboxes[k]))
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
        cdef Pin pin
        if timeout is not None:
            deadline = deadline_of(timeout)
        slow = self.offer_all(item, &count)
        if slow is None:
            return count
        for pin in slow:
            result = pin.deliver(item, deadline, NULL)
            if result == DONE:
                count += 1
            elif result == NOT_NOW and (<Mailbox>pin.mailbox).overflow != DROP_INCOMING:
                full = True
        return self.not_all(count) if full else count

    async def abroadcast(self, item):
        """`broadcast` for a task of asyncio or trio: "block" awaits room, without limit.

        When the await is cancelled, those that took the item by then keep it.
        """
        cdef Py_ssize_t count = 0
        cdef int result
        cdef bint full = False
        cdef Pin pin
        point = checkpoint()
        if point is not None:
            await point
        slow = self.offer_all(item, &count)
        if slow is None:
            return count
        for pin in slow:
            result = await pin._deliver(item, False)
            if result == DONE:
                count += 1
            elif result == NOT_NOW and (<Mailbox>pin.mailbox).overflow != DROP_INCOMING:
                full = True
        return self.not_all(count) if full else count


# ---------------------------------------------------------------------------------------------------------------
# the types' slots: what the collector is shown of a mailbox, and the end of a subscription and of a hub that are dropped

cdef PyTypeObject* mailbox_type = <PyTypeObject*>Mailbox
cdef traverseproc mailbox_base_traverse = mailbox_type.tp_traverse


cdef int mailbox_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef int status = mailbox_base_traverse(self, visit, arg)
    # relaxed, both: nobody changes them while the collector looks
    cdef Py_ssize_t left = (<Mailbox>self).hidden.load(memory_order_relaxed)
    if (<Mailbox>self).buffer is not None and not is_waited_in(self):
        left += (<Mailbox>self).links.load(memory_order_relaxed)
    while left > 0 and not status:
        status = visit(self, arg)
        left -= 1
    return status


mailbox_type.tp_traverse = mailbox_traverse


cdef PyTypeObject* subscription_type = <PyTypeObject*>SubscriptionBase
cdef destructor subscription_base_dealloc = subscription_type.tp_dealloc
cdef PyTypeObject* hub_type = <PyTypeObject*>HubBase
cdef destructor hub_base_dealloc = hub_type.tp_dealloc


cdef void subscription_dealloc(PyObject* self) noexcept:
    # The reference count is 0: no Python API gets the object itself. Closing may run Python code, a waiting task's loop.
    cdef PyObject* kind = NULL
    cdef PyObject* value = NULL
    cdef PyObject* trace = NULL
    PyObject_GC_UnTrack(self)
    if (<SubscriptionBase>self).mailbox is not None:
        PyErr_Fetch(&kind, &value, &trace)
        end_mailbox((<SubscriptionBase>self).ring, <PyObject*>(<SubscriptionBase>self).mailbox)
        PyErr_Restore(kind, value, trace)
    subscription_base_dealloc(self)


cdef void hub_dealloc(PyObject* self) noexcept:
    cdef PyObject* kind = NULL
    cdef PyObject* value = NULL
    cdef PyObject* trace = NULL
    PyObject_GC_UnTrack(self)
    PyErr_Fetch(&kind, &value, &trace)
    (<HubBase>self).end_all()
    PyErr_Restore(kind, value, trace)
    hub_base_dealloc(self)


subscription_type.tp_dealloc = subscription_dealloc
hub_type.tp_dealloc = hub_dealloc
