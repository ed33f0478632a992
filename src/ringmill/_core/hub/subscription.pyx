# Subscriptions and the publisher's side of a hub: how an item is delivered, and what a full buffer does.
#
#   Hub --> SubscriptionRing --> Mailbox (a RingBuffer and an overflow policy) <-- Subscription
#                                   weak reference ------------------------------>
#
# May use `ring`, `waiting` and `platform`. hub.py adds argument checks and the public classes.
# Longer than most files: a mailbox, its subscription and the hub end each other, in an order that is argued here.
#
# Delivery. A publisher first offers the item, without waiting, to the mailboxes that have room, then delivers to the
# others by their overflow policy. It walks a snapshot of the subscription ring and holds no lock, so a slow subscriber
# delays only the publisher that waits for it.
#
# signal does not try full mailboxes one after the other: the hub's ring keeps track of those that may have room
# (subscription_ring.pyx, "Ready items"). A publisher that finds a mailbox full passes it over; whoever takes an item
# from a subscription then checks whether it was passed over (made_room). That check follows each call that takes:
# items are taken in no other way, but for drop_oldest, which fills the place again at once.
#
# drop_oldest: put; if the buffer is full, take one item, count it as dropped, and put again until it succeeds. Puts and
# takes are the ring buffer's own, so each published item is exactly one of dropped, read, or still in the buffer,
# whatever other threads do meanwhile. A publisher's items stay in order, because they enter in order and leave only
# from the front. latest is drop_oldest with one slot.
#
# Unsubscribing removes the mailbox from the hub's ring and closes its ring buffer. What is in it stays readable. A put
# that comes later, or is waiting, fails; broadcast does not count it, signal goes on to the next subscriber.
#
# A subscription that is dropped ends in the same way, in its tp_dealloc. That runs no Python code of ringmill's, and a
# subclass's __del__ cannot prevent it (when __del__ has run and has not resurrected the object, tp_dealloc follows). At
# that point the reference count is 0, so no weak reference gives the object out any more; a Cython __dealloc__ or
# __del__ would raise the count during the call. signal turns the weak reference into a counted one before it puts the
# item, so the subscription that it returns is alive. While signal waits for room it holds no counted reference, so the
# subscription can end meanwhile.
#
# Garbage collection. A hub must not keep a subscription alive that is reachable only from its own items (an item that
# refers to the subscription). So the traverse of Mailbox visits the mailbox itself once for each reference that a hub
# holds to it, as if these references were its own: those of the ring (`links`), of snapshots and of waiting publishers
# (`hidden`). To the collector the mailbox then depends on its subscription alone. Exception: while a thread or task
# waits in the mailbox for items, the ring's reference is shown as the hub's, since a waiting task is often referred to
# only by what will wake it. The collector never clears a mailbox, so code that still has one after its subscription is
# gone finds a closed ring buffer. The counts may be too low and never too high: they are raised after a reference is
# taken and lowered before it is dropped, by attached threads, which the collector does not stop in between.
#
# Free-threaded builds: an object dropped by another thread lives until the thread that made it attaches again (rule
# 14). Often that thread is the very publisher that waits for room in the dropped subscription, so a waiting publisher
# lets the interpreter run its pending work a few times a second (run_pending).

import queue

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint64_t
from libcpp.atomic cimport atomic, memory_order_relaxed, memory_order_seq_cst

from ringmill._core.waiting.event_loop cimport await_for, checkpoint
from ringmill._core.platform.primitives cimport FREE_THREADED, now_ns, steal
from ringmill._core.ring.ring cimport (
    DONE,
    NOT_NOW,
    SHUT,
    get_at_once,
    has_room,
    is_shut,
    put_at_once,
    put_count,
    size,
    try_get,
    try_put,
)
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.hub.subscription_ring cimport Snapshot, SubscriptionRing, Turn
from ringmill._core.waiting.wait_queue cimport NEVER, deadline_of, epoch_now, notify, wait_for

from ringmill.errors import Closed, describe

cdef extern from *:
    """
    /* The object that a weak reference refers to, as an owned reference; or NULL. */
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
# A Python function: calling it makes the interpreter run this thread's pending work.
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
    """Returns an overflow policy's name as a plain string; TypeError or ValueError for anything else."""
    return POLICIES[number_of(overflow)]


# ---------------------------------------------------------------------------------------------------------------
# the mailbox

@cython.no_gc_clear
cdef class Mailbox:
    def __cinit__(self, buffer, overflow):
        self.overflow = <Overflow>number_of(overflow)
        self.buffer = RingBuffer(1 if self.overflow == LATEST else buffer)

    cdef int offer(self, PyObject* item) noexcept:
        # Puts the item if there is room: DONE. Borrows the item.
        cdef int result
        Py_INCREF(<object>item)  # the ring buffer's, if it gets there
        result = try_put(self.buffer.ring, item, NULL)
        if result == DONE:
            notify(&self.buffer.not_empty)
        else:
            Py_DECREF(<object>item)  # never the last reference: the caller has one
        return result

    cdef int deliver_now(self, PyObject* item) noexcept:
        # Delivers by a policy that does not wait. DONE; NOT_NOW: the item was dropped, or there is no room; SHUT:
        # closed.
        cdef PyObject* oldest = NULL
        cdef int result = self.offer(item)
        if result != NOT_NOW or self.overflow == RAISE:
            return result
        if self.overflow == DROP_INCOMING:
            self.drops.fetch_add(1, memory_order_relaxed)  # relaxed: a count
            return NOT_NOW
        while result == NOT_NOW:
            oldest = NULL
            if try_get(self.buffer.ring, &oldest, NULL) == DONE:
                self.drops.fetch_add(1, memory_order_relaxed)  # relaxed: a count
            result = self.offer(item)
            if oldest:
                # Was the ring buffer's. Not before the offer: what a __del__ publishes would find room here that the
                # hub's ring does not know of.
                Py_DECREF(<object>oldest)
        return result


cdef inline bint offer_at_once(PyObject* mailbox, PyObject* item) noexcept:
    # The common case of Mailbox.offer, without calls. False: full, closed, or another thread was faster; Mailbox.offer
    # tells which.
    Py_INCREF(<object>item)  # the ring buffer's, if it gets there
    if put_at_once((<Mailbox>mailbox).buffer.ring, item):
        notify(&(<Mailbox>mailbox).buffer.not_empty)
        return True
    Py_DECREF(<object>item)  # never the last reference: the caller has one
    return False


cdef bint is_waited_in(PyObject* mailbox) noexcept:
    # Whether a thread or task waits in the mailbox for an item. Called by the collector only, while no thread changes
    # it. relaxed, both: see above. After a fork the waiters in the queue are the parent's and do not count.
    return (
        (<Mailbox>mailbox).buffer.not_empty.epoch.load(memory_order_relaxed) == epoch_now
        and (<Mailbox>mailbox).buffer.not_empty.word.load(memory_order_relaxed) >> 32 != 0
    )


cdef bint has_room_in(PyObject* mailbox) noexcept:
    # Called under the lock of the hub's ring: two atomic loads.
    return has_room((<Mailbox>mailbox).buffer.ring)


cdef void hide(PyObject* mailbox) noexcept:
    # Counts a reference just taken. relaxed, as every access to `hidden` and `links`: only the collector reads them.
    (<Mailbox>mailbox).hidden.fetch_add(1, memory_order_relaxed)


cdef void drop_hidden(PyObject* mailbox) noexcept:
    (<Mailbox>mailbox).hidden.fetch_sub(1, memory_order_relaxed)
    Py_DECREF(<object>mailbox)  # was the caller's


cdef void uncount_link(PyObject* mailbox) noexcept:
    # The ring's reference is the caller's now.
    (<Mailbox>mailbox).links.fetch_sub(1, memory_order_relaxed)


cdef bint end_mailbox(SubscriptionRing ring, PyObject* mailbox) noexcept:
    # Ends the mailbox's subscription. Returns whether it was in the ring. The caller keeps its own reference.
    cdef bint linked = ring is not None and ring.take_out(mailbox)
    if linked:
        uncount_link(mailbox)
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
# delivery to a mailbox that has no room

cdef struct Delivery:
    PyObject* mailbox           # borrowed, like the next
    PyObject* item
    bint named                  # the caller wants the subscription (signal)
    PyObject* taker             # if `named`, after the delivery: the subscription, owned

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
        Py_DECREF(<object>taker)  # may be the last, which ends the subscription: the next attempt returns SHUT
    return result

cdef int delivery_more(void* context) noexcept:
    return has_room((<Mailbox>(<Delivery*>context).mailbox).buffer.ring)


cdef class Pin:
    def __dealloc__(self):
        if self.mailbox:
            drop_hidden(self.mailbox)

    cdef int deliver(self, object item, int64_t deadline, PyObject** taker) except -1:
        # Delivers by the overflow policy, waiting if that is "block". DONE; NOT_NOW: dropped, or no room in time; SHUT:
        # closed. If DONE and `taker` is not NULL, it receives the subscription, owned.
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
        # Holds no counted reference to the mailbox but the pin's, not even in a local variable.
        cdef Delivery delivery
        cdef int result
        cdef int64_t until = deadline, pending_interval = FIRST_PENDING_NS
        cdef uint64_t count = put_count((<Mailbox>self.mailbox).buffer.ring)
        # relaxed, both: a hint for the batching delay, as in RingBuffer
        cdef uint64_t moved = count - (<Mailbox>self.mailbox).buffer.putters_mark.load(memory_order_relaxed)
        (<Mailbox>self.mailbox).buffer.putters_mark.store(count, memory_order_relaxed)
        delivery.mailbox = self.mailbox
        delivery.item = <PyObject*>item
        delivery.named = taker != NULL
        delivery.taker = NULL
        while True:
            if FREE_THREADED:
                until = now_ns() + pending_interval
                if deadline != NEVER and deadline < until:
                    until = deadline
            result = wait_for(
                &(<Mailbox>self.mailbox).buffer.not_full, delivery_attempt, delivery_more, &delivery, NULL, moved, until
            )
            if result or until == deadline:
                break
            run_pending()
            pending_interval = min(2 * pending_interval, LAST_PENDING_NS)
            moved = 0
        if result == DONE and taker:
            taker[0] = delivery.taker
        return result

    async def _deliver(self, item, bint named):
        # `deliver` for a task, without a deadline. With `named`, returns the subscription if DONE.
        cdef Delivery delivery
        cdef PyObject* taker = NULL
        cdef int result
        if self.mailbox == NULL:
            raise TypeError("this Pin has no mailbox: only a hub makes Pins")
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


cdef Pin pin_of_next(PyObject* mailbox):
    # Takes the caller's reference; None for NULL.
    if mailbox == NULL:
        return None
    held = steal(mailbox)
    return pin_of(mailbox)


# ---------------------------------------------------------------------------------------------------------------
# the subscriber's side

@cython.no_gc_clear
cdef class SubscriptionBase:
    def __cinit__(self, buffer, overflow, hub):  # no *args: Cython's code for them crashes without memory
        if not isinstance(hub, HubBase):
            raise TypeError(f"hub must be a Hub, not {describe(hub)}: Hub.subscribe makes subscriptions")
        cdef Mailbox mailbox = Mailbox(buffer, overflow)
        mailbox.reference = PyWeakref_NewRef(self, NULL)
        self.number = last_id.fetch_add(1, memory_order_relaxed) + 1  # relaxed: only has to be unique
        self.ring = (<HubBase>hub).subscriptions
        self.mailbox = mailbox

    cdef RingBuffer reader(self):
        if self.mailbox is None:  # __cinit__ failed, and a __del__ or a debugger found the object
            raise Closed("the subscription could not be made")
        return self.mailbox.buffer

    @property
    def id(self):
        """The subscription's number, from 1; never used again in this process."""
        return self.number

    def get(self, timeout=None):
        """Takes the oldest item, waiting for one.

        Blocks while no item is there. May be called from any thread; each item goes to one caller.

        Args:
            timeout: Seconds to wait; None waits without limit.

        Returns:
            The item.

        Raises:
            queue.Empty: No item came in time.
            Closed: The subscription has ended and all its items have been read.
        """
        cdef int64_t deadline = NEVER
        cdef PyObject* item = NULL
        cdef int result
        if timeout is not None:
            deadline = deadline_of(timeout)
        result = self.reader().get_item(&item, deadline, True)
        if result == NOT_NOW:
            raise queue.Empty
        if result == SHUT:
            return self.mailbox.buffer.get_nowait()  # raises Closed
        made_room(self)
        return steal(item)

    def get_nowait(self):
        """Takes the oldest item without waiting.

        Never blocks; re-entrant; may be called from any thread.

        Returns:
            The item.

        Raises:
            queue.Empty: There is no item.
            Closed: The subscription has ended and all its items have been read.
        """
        cdef PyObject* taken
        if self.mailbox is not None and get_at_once(self.mailbox.buffer.ring, &taken):
            notify(&self.mailbox.buffer.not_full)
            item = steal(taken)
        else:
            item = self.reader().get_or_raise()
        made_room(self)
        return item

    def get_many(self, max=None, timeout=None):
        """Waits for the first item, then takes all that are there, up to `max`.

        Blocks while no item is there. May be called from any thread; each item goes to one caller.

        Args:
            max: The largest number of items to take, from 1; None takes all.
            timeout: Seconds to wait for the first item; None waits without limit.

        Returns:
            A list of at least one item, in order.

        Raises:
            queue.Empty: No item came in time.
            Closed: The subscription has ended and all its items have been read.
        """
        items = self.reader().get_many(max, timeout)
        made_room(self)
        return items

    async def aget(self):
        """Takes the oldest item, awaiting one: `get` for a task of asyncio or trio.

        A cancelled await has taken nothing, so no item is lost.

        Returns:
            The item.

        Raises:
            Closed: The subscription has ended and all its items have been read.
            RuntimeError: It has to wait, and no asyncio or trio loop runs on this thread.
        """
        item = await self.reader().aget()
        made_room(self)
        return item

    def __iter__(self):
        """Returns the subscription itself: a loop takes items until it has ended and all have been read."""
        return self

    def __next__(self):
        """Waits for the oldest item and takes it; StopIteration when the subscription has ended and all were read."""
        cdef PyObject* item = NULL
        if self.mailbox is None:  # as in reader
            raise StopIteration
        if self.mailbox.buffer.get_item(&item, NEVER, True) != DONE:
            raise StopIteration
        made_room(self)
        return steal(item)

    def __aiter__(self):
        """Returns the subscription itself: `async for` takes items until it has ended and all have been read."""
        return self

    async def __anext__(self):
        """Awaits and takes the oldest item; StopAsyncIteration when the subscription has ended and all were read."""
        if self.mailbox is None:  # as in reader
            raise StopAsyncIteration
        item = await self.mailbox.buffer.__anext__()
        made_room(self)
        return item

    def __contains__(self, item):
        """Not supported: a search would consume items."""
        raise TypeError(f"`in` is not supported by {type(self).__name__}: it would take items")

    def __len__(self):
        """The number of items that can be read now; a snapshot."""
        return 0 if self.mailbox is None else size(self.mailbox.buffer.ring)

    def __bool__(self):
        """Always True, also without items."""
        return True

    @property
    def buffer(self):
        """The number of items that the subscription can hold: the `buffer` of `Hub.subscribe`; 1 with "latest"."""
        return 0 if self.mailbox is None else self.mailbox.buffer.ring.capacity

    @property
    def overflow(self):
        """The overflow policy: "block", "drop_oldest", "drop_incoming", "latest" or "raise"."""
        return POLICIES[BLOCK if self.mailbox is None else <int>self.mailbox.overflow]

    @property
    def closed(self):
        """Whether the subscription has ended. Items delivered before can still be read."""
        return self.mailbox is None or is_shut(self.mailbox.buffer.ring)

    @property
    def dropped(self):
        """The number of items that the overflow policy has dropped; a snapshot that only grows."""
        # relaxed: a count
        return 0 if self.mailbox is None else self.mailbox.drops.load(memory_order_relaxed)

    def _end(self):
        if self.mailbox is not None:
            end_mailbox(self.ring, <PyObject*>self.mailbox)


# ---------------------------------------------------------------------------------------------------------------
# the publisher's side

@cython.no_gc_clear
cdef class HubBase:
    def __cinit__(self):  # ignores Hub's arguments; no *args: Cython's code for them crashes without memory
        cdef SubscriptionRing ring
        # relaxed, both: the hub is not published yet. It counts as closed unless all that follows succeeds.
        self.shut.store(1, memory_order_relaxed)
        ring = SubscriptionRing()
        ring.is_shown = is_waited_in
        ring.before_drop = uncount_link
        ring.is_ready = has_room_in
        self.subscriptions = ring
        self.shut.store(0, memory_order_relaxed)

    def __del__(self):
        # For a hub that is collected together with its waiting readers; every other hub ends in hub_dealloc.
        self.end_all()

    cdef void end_all(self) noexcept:
        # No publisher is left, so readers must not wait. Looks up no Python name: the interpreter may be ending.
        cdef PyObject* mailbox
        # seq_cst: set before the walk over the subscriptions, so that a subscribe that adds one after the walk sees it
        self.shut.store(1, memory_order_seq_cst)
        while self.subscriptions is not None:  # None: __cinit__ failed
            mailbox = self.subscriptions.take_first()
            if mailbox == NULL:
                return
            uncount_link(mailbox)
            (<Mailbox>mailbox).buffer.close_ring()
            Py_DECREF(<object>mailbox)  # was the ring's

    @cython.final
    cdef int check_open(self) except -1:
        if self.shut.load(memory_order_seq_cst):  # seq_cst: pairs with end_all
            raise Closed(f"the hub is closed: {describe(self)}")
        return 0

    def _check_open(self):
        self.check_open()

    def _add(self, SubscriptionBase subscription not None):
        # Adds a subscription; a second call does nothing.
        cdef PyObject* mailbox = <PyObject*>subscription.mailbox
        self.check_open()
        if subscription.mailbox is None or subscription.ring is not self.subscriptions:
            raise ValueError(f"subscription must be one of this hub's, got {describe(subscription)}")
        # seq_cst: only one of several calls adds it
        if subscription.added.exchange(1, memory_order_seq_cst):
            return
        try:
            self.subscriptions.append(mailbox)
        except MemoryError:
            subscription.added.store(0, memory_order_seq_cst)
            raise
        (<Mailbox>mailbox).links.fetch_add(1, memory_order_relaxed)  # relaxed: as hide
        if self.shut.load(memory_order_seq_cst) or is_shut(subscription.mailbox.buffer.ring):
            # The hub was closed meanwhile, perhaps before its walk could see this one. seq_cst: as in check_open
            end_mailbox(self.subscriptions, mailbox)
            self.check_open()

    def _remove(self, SubscriptionBase subscription not None):
        if subscription.mailbox is None or subscription.ring is not self.subscriptions:
            return False
        return end_mailbox(subscription.ring, <PyObject*>subscription.mailbox)

    def _close(self):
        self.end_all()

    def __len__(self):
        """The number of subscriptions; a snapshot."""
        # relaxed: a snapshot
        return 0 if self.subscriptions is None else self.subscriptions.count.load(memory_order_relaxed)

    def __bool__(self):
        """Always True, also without subscriptions."""
        return True

    @property
    def closed(self):
        """Whether the hub is closed. Once True, it stays True."""
        return bool(self.shut.load(memory_order_seq_cst))  # seq_cst: as check_open

    cdef Recipients recipients(self):
        # A snapshot of the subscriptions.
        cdef Recipients made = <Recipients>self.subscriptions.cached_snapshot()
        cdef Py_ssize_t count, k
        while made is None:
            count = self.subscriptions.count.load(memory_order_relaxed)  # relaxed: record checks it again
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

    @cython.final
    cdef PyObject* offer_to(self, PyObject* mailbox, PyObject* item) noexcept:
        # Delivers if there is room. Returns the subscription, owned; NULL if it did not take the item.
        cdef PyObject* taker = referent(<PyObject*>(<Mailbox>mailbox).reference)
        cdef int result = SHUT
        if taker:
            if offer_at_once(mailbox, item):
                return taker
            result = (<Mailbox>mailbox).offer(item)
            if result == DONE:
                return taker
            Py_DECREF(<object>taker)  # may be the last
        if result == SHUT:  # the subscription has ended, or is about to
            end_mailbox(self.subscriptions, mailbox)
        else:
            self.subscriptions.pass_over(mailbox, &(<Mailbox>mailbox).passed_over)
        return NULL

    @cython.final
    cdef PyObject* offer_in_turn(self, PyObject* item, PyObject** next_one) noexcept:
        # Delivers to the next subscription in turn that has room; returns it, owned. NULL: none has room; `next_one`
        # receives the mailbox of the next one, owned, or NULL if there is none.
        cdef PyObject* mailbox
        cdef PyObject* taker = NULL
        cdef bint ready = True
        cdef Turn turn
        turn.start = NULL
        next_one[0] = NULL
        while taker == NULL:
            mailbox = self.subscriptions.next_ready(&turn, &ready)
            if not ready:
                next_one[0] = mailbox
                break
            taker = self.offer_to(mailbox, item)
            Py_DECREF(<object>mailbox)  # the reference that next_ready returned
        return taker

    cdef object signal_result(self, Pin pin):
        # The result of signal when the overflow policy did not deliver the item.
        if (<Mailbox>pin.mailbox).overflow == DROP_INCOMING:
            return None
        raise queue.Full(f"no subscriber of {describe(self)} has room")

    def signal(self, item, timeout=None):
        """Delivers an item to the next subscription in turn that has room.

        If none has room, the overflow policy of the next one in turn decides. Blocks only if that policy is "block",
        and holds no lock while it waits. May be called from any thread.

        Args:
            item: Any object.
            timeout: Seconds to wait for room under the policy "block"; None waits without limit.

        Returns:
            The subscription that took the item. None if there is no subscription, or if the policy "drop_incoming"
            dropped the item.

        Raises:
            queue.Full: The policy is "block" and there was no room in time, or it is "raise" and there is no room.
            Closed: The hub is closed.
        """
        cdef int64_t deadline = NEVER
        cdef int result
        cdef PyObject* taker = NULL
        cdef PyObject* next_one
        cdef Pin pin
        if timeout is not None:
            deadline = deadline_of(timeout)
        while True:
            self.check_open()
            taker = self.offer_in_turn(<PyObject*>item, &next_one)
            if taker:
                return steal(taker)
            pin = pin_of_next(next_one)
            if pin is None:
                self.check_open()  # no subscription is left: perhaps because the hub was closed meanwhile
                return None
            result = pin.deliver(item, deadline, &taker)
            if result == DONE:
                return steal(taker)
            if result == NOT_NOW:
                return self.signal_result(pin)
            end_mailbox(self.subscriptions, pin.mailbox)  # the subscription has ended meanwhile: try the next one

    async def asignal(self, item):
        """Delivers an item to the next subscription in turn: `signal` for a task of asyncio or trio.

        The policy "block" awaits room, without limit. A cancelled await has delivered nothing.

        Args:
            item: Any object.

        Returns:
            As `signal`.

        Raises:
            queue.Full: The policy of the next subscription is "raise" and none has room.
            Closed: The hub is closed.
            RuntimeError: It has to wait, and no asyncio or trio loop runs on this thread.
        """
        cdef PyObject* taker
        cdef PyObject* next_one
        cdef Pin pin
        point = checkpoint()
        if point is not None:
            await point
        while True:  # as signal
            self.check_open()
            taker = self.offer_in_turn(<PyObject*>item, &next_one)
            if taker:
                return steal(taker)
            pin = pin_of_next(next_one)
            if pin is None:
                self.check_open()
                return None
            result = await pin._deliver(item, True)
            if isinstance(result, SubscriptionBase):
                return result
            if result == NOT_NOW:
                return self.signal_result(pin)
            end_mailbox(self.subscriptions, pin.mailbox)

    cdef list offer_all(self, object item, Py_ssize_t* count):
        # Delivers to every subscription that has room. Returns Pins of the others, or None if there are none.
        cdef Recipients recipients
        cdef Py_ssize_t k
        cdef int result
        cdef list slow = None
        self.check_open()
        recipients = self.recipients()
        count[0] = 0
        for k in range(recipients.count):
            if offer_at_once(recipients.mailboxes[k], <PyObject*>item):
                count[0] += 1
                continue
            result = (<Mailbox>recipients.mailboxes[k]).offer(<PyObject*>item)
            if result == DONE:
                count[0] += 1
            elif result == NOT_NOW:
                if slow is None:
                    slow = []
                slow.append(pin_of(recipients.mailboxes[k]))
        return slow

    cdef object raise_full(self, Py_ssize_t count):
        error = queue.Full(f"not every subscriber of {describe(self)} had room: {count} took the item")
        error.count = count
        raise error

    def broadcast(self, item, timeout=None):
        """Delivers an item to every subscription that exists at this moment, in ring order.

        It delivers first to all subscriptions that have room, without waiting, then to the others by their overflow
        policies. Blocks only for those with "block", and holds no lock. May be called from any thread.

        Args:
            item: Any object.
            timeout: Seconds to wait for room, for all subscriptions together; None waits without limit.

        Returns:
            The number of subscriptions that took the item.

        Raises:
            queue.Full: A subscription with "block" had no room in time, or one with "raise" had none. All others have
                been served first; the error's `count` is the number of subscriptions that took the item.
            Closed: The hub is closed.
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
        return self.raise_full(count) if full else count

    async def abroadcast(self, item):
        """Delivers an item to every subscription: `broadcast` for a task of asyncio or trio.

        The policy "block" awaits room, without limit. If the await is cancelled, the subscriptions that have taken the
        item by then keep it.

        Args:
            item: Any object.

        Returns:
            The number of subscriptions that took the item.

        Raises:
            queue.Full: A subscription with "raise" had no room; `count` as in `broadcast`.
            Closed: The hub is closed.
            RuntimeError: It has to wait, and no asyncio or trio loop runs on this thread.
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
        return self.raise_full(count) if full else count


# ---------------------------------------------------------------------------------------------------------------
# type slots: the traverse of Mailbox, and the dealloc of subscriptions and hubs (see the head)

cdef PyTypeObject* mailbox_type = <PyTypeObject*>Mailbox
cdef traverseproc mailbox_base_traverse = mailbox_type.tp_traverse


cdef int mailbox_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef int status = mailbox_base_traverse(self, visit, arg)
    # relaxed, both: no thread changes them while the collector runs
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
    # The reference count is 0, so the object itself is passed to no Python API. Closing may run Python code: the event
    # loop of a waiting task.
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
