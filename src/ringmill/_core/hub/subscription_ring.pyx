# SubscriptionRing: a circular list with a current position. Add at the end, remove by identity, step: O(1), from any
# thread.
#
# May use `waiting` (its spin lock and fork epoch) and `platform`.
# Longer than most files: the links, their hash table and their places change together, under one lock.
#
# The model is Go's container/ring, which only one goroutine may use. Here a spin lock guards the links (rule 7): under
# it nothing is allocated, no Python code runs and no reference is dropped; references given up by a change are dropped
# after the release. References taken under the lock are those of local variables, for which Cython adds no INCREF and
# DECREF.
#
# Readers do not walk the links. They walk an immutable snapshot, which is made on the first read after a change. It
# carries the version of the ring that it was made from; the latest snapshot is cached, and cache and version are read
# under the lock. So a reader has the list as it was at one moment, whatever changes meanwhile: the snapshot owns its
# items.
#
# remove finds an item's first occurrence in a hash table whose chains go through the links, so only the array of
# buckets is ever allocated: before the lock is taken, when there are more items than buckets. Without memory for a
# larger array, the ring goes on with the one it has, and the chains get longer.
#
# Ready items. In a hub's ring an item is a mailbox, and it is ready when it has room. `signal` takes the first ready
# item from the current position on, in a few steps however many are not ready: `places` numbers the links in ring
# order, and `ready` is the set of the places whose item may be ready (index_set.pxd). An item that is found not ready
# is passed over, by a publisher, until it is set ready again, by the thread that took something out of it.
#
#   pass_over, under the lock                        a thread that makes the item ready
#   1  passed_over = 1 (seq_cst)                     1  makes it ready: the claim of the buffer's head (seq_cst)
#   2  checks is_ready again (seq_cst loads):        2  reads passed_over (seq_cst)
#      if not, takes the place out of `ready`;       3  if it is 1: set_ready, under the lock, which puts the place
#      if it is, as set_ready                           into `ready`; passed_over = 0
#
# All four accesses of steps 1 and 2 are sequentially consistent, so either the second check sees that the item is ready
# or the other thread sees that it was passed over. As pass_over changes the set under the lock that it checks under, a
# search finds an item missing from `ready` only if it was not ready at some moment and every call that made it ready
# since then is still under way: a search never misses room of which its caller can know from a call that has returned.
# (A check after the unlock would leave `ready` wrong for a moment.) The set may be too large: a search that finds an
# item not ready passes it over. Each such vain try is paid for by the item that filled the mailbox since it was set
# ready. tests/models/test_model_passed_over.py searches all interleavings.
#
# A place is never used twice: when the last one is used, all links are numbered anew, in an array for about twice as
# many (allocated before the lock is taken). So that costs O(1) for each item added since the last time.
#
# Forks. A fork never finds the lock held or the links half changed: the forking thread is attached; it has the GIL, or,
# on a free-threaded build, the interpreter has stopped all other attached threads, which happens only in interpreter
# calls that may block, and there are none between the acquire and the release of this lock. The child initializes the
# lock anew before its first use all the same (rule 13), and no list or dict is used whose mutex it could inherit
# locked. A thread of the parent may have been between its steps 1 and 3, and is gone in the child: so all items count
# as ready there.

from types import GenericAlias

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport (
    atomic,
    memory_order_acquire,
    memory_order_relaxed,
    memory_order_release,
    memory_order_seq_cst,
)

from ringmill._core.hub.index_set cimport discard, first_from, init_set, insert, words_for
from ringmill._core.platform.gil_atomics cimport put32
from ringmill._core.platform.primitives cimport steal, yield_processor
from ringmill._core.waiting.wait_queue cimport acquire, epoch_now, release

from ringmill.arguments import describe

cdef extern from "Python.h":
    tuple PyTuple_New(Py_ssize_t size)
    ctypedef struct PyTupleObject:
        PyObject** ob_item
    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear

cdef enum:
    FEW_BITS = 3           # 1 << FEW_BITS == FEW
    MAKING = 0             # no epoch: the first is 1


cdef class Snapshot:
    pass


# ---------------------------------------------------------------------------------------------------------------
# which places are ready: these functions are called under the lock, or by its renewal after a fork

cdef inline void set_place_ready(SubscriptionRing ring, Link* link) noexcept:
    link.ready = True
    insert(&ring.places.ready, link.place)


cdef inline void set_place_unready(SubscriptionRing ring, Link* link) noexcept:
    link.ready = False
    discard(&ring.places.ready, link.place)


cdef void set_all_ready(SubscriptionRing ring) noexcept:
    cdef Link* link = ring.head
    if ring.places == NULL or link == NULL:
        return
    while True:
        set_place_ready(ring, link)
        link = link.next
        if link == ring.head:
            return


# ---------------------------------------------------------------------------------------------------------------
# the lock

cdef void renew(SubscriptionRing ring) noexcept:
    # After a fork: one thread of the child initializes the lock anew, the others wait until it has.
    cdef uint32_t seen = ring.epoch.load(memory_order_acquire)  # acquire: pairs with the release below
    while seen != epoch_now:
        # seq_cst, by default: exactly one thread claims the renewal
        if seen != MAKING and ring.epoch.compare_exchange_strong(seen, MAKING):
            ring.lock.held.store(0, memory_order_relaxed)  # relaxed: published by the release below
            set_all_ready(ring)
            ring.epoch.store(epoch_now, memory_order_release)  # release: the lock is whole
            return
        yield_processor()
        seen = ring.epoch.load(memory_order_acquire)  # acquire: as above


cdef inline void lock(SubscriptionRing ring) noexcept:
    if ring.epoch.load(memory_order_acquire) != epoch_now:  # acquire: as in renew
        renew(ring)
    acquire(&ring.lock)


cdef inline void unlock(SubscriptionRing ring) noexcept:
    release(&ring.lock)


# ---------------------------------------------------------------------------------------------------------------
# the links: these functions are called under the lock and only move pointers

cdef inline Link** slot_of(Link** buckets, int bits, PyObject* item) noexcept:
    # The address of the pointer to the item's first occurrence, or of the NULL where it would be.
    # Objects are 16 bytes apart at least; the multiplier is 2**64 divided by the golden ratio (Knuth, 6.4).
    cdef uint64_t mixed = (<uint64_t><size_t>item >> 4) * <uint64_t>0x9E3779B97F4A7C15
    cdef Link** place = &buckets[mixed >> (64 - bits)]
    while place[0] and place[0].item != item:
        place = &place[0].chained
    return place


cdef inline Link** find(SubscriptionRing ring, PyObject* item) noexcept:
    # relaxed, as every access to `bits` and `count` below: both are written under the lock, which the caller holds
    return slot_of(ring.buckets, ring.bits.load(memory_order_relaxed), item)


cdef Link** rehash(SubscriptionRing ring, Link** buckets, int bits) noexcept:
    # Moves all links to a larger table; returns the old one.
    cdef Link** old = ring.buckets
    cdef Link* link
    cdef Link* following
    cdef size_t k
    for k in range(<size_t>1 << ring.bits.load(memory_order_relaxed)):
        link = old[k]
        while link:
            following = link.chained
            link.chained = NULL
            slot_of(buckets, bits, link.item)[0] = link
            link = following
    ring.buckets = buckets
    ring.bits.store(bits, memory_order_relaxed)
    return old


cdef Places* new_places(size_t size) noexcept:
    # Called without the lock. NULL without memory.
    cdef Places* places = <Places*>PyMem_RawCalloc(1, sizeof(Places) + (size + words_for(size)) * sizeof(uint64_t))
    if places:
        places.size = size
        places.links = <Link**>(places + 1)
        init_set(&places.ready, size, <uint64_t*>(places.links + size))
    return places


cdef inline void give_place(SubscriptionRing ring, Link* link) noexcept:
    cdef Places* places = ring.places
    link.place = places.used
    places.links[link.place] = link
    if link.ready:
        insert(&places.ready, link.place)
    places.used += 1
    ring.free_places.store(places.size - places.used, memory_order_relaxed)  # relaxed, like every access: as `count`


cdef Places* renumber(SubscriptionRing ring, Places* places) noexcept:
    # Gives all links places in a new array, in ring order. Returns the old one.
    cdef Places* old = ring.places
    cdef Link* link = ring.head
    cdef Py_ssize_t k
    ring.places = places
    for k in range(ring.count.load(memory_order_relaxed)):
        give_place(ring, link)
        link = link.next
    return old


cdef bint has_place(SubscriptionRing ring, Places** places) noexcept:
    # Whether the ring has a place for one more link. If it has not, and `places` has, it is exchanged for the old one.
    if ring.is_ready == NULL or ring.free_places.load(memory_order_relaxed):
        return True
    if places[0] == NULL or places[0].size <= <size_t>ring.count.load(memory_order_relaxed):
        return False
    places[0] = renumber(ring, places[0])
    return True


cdef void link_up(SubscriptionRing ring, Link* link) noexcept:
    cdef Link** place = find(ring, link.item)
    cdef Link* first = place[0]
    if first == NULL:
        place[0] = first = link
    else:
        first.last_same.same = link
    first.last_same = link
    if ring.head == NULL:
        link.next = link.prev = link
        ring.head = ring.at = link
    else:
        link.next = ring.head
        link.prev = ring.head.prev
        ring.head.prev.next = link
        ring.head.prev = link
    if ring.is_ready:
        link.ready = True
        give_place(ring, link)
    ring.count.store(ring.count.load(memory_order_relaxed) + 1, memory_order_relaxed)
    ring.version += 1


cdef Link* first_ready(SubscriptionRing ring) noexcept:
    # The first link from the current one on that is ready; NULL if there is none.
    cdef Py_ssize_t place = first_from(&ring.places.ready, ring.at.place)
    if place < 0:
        place = first_from(&ring.places.ready, 0)
    return ring.places.links[place] if place >= 0 else NULL


cdef Link* unlink(SubscriptionRing ring, PyObject* item) noexcept:
    # Removes the item's first occurrence. The caller owns the link and its reference; NULL if the item is not there.
    cdef Link** place = find(ring, item)
    cdef Link* link = place[0]
    cdef Link* later
    if link == NULL:
        return NULL
    later = link.same
    if later == NULL:
        place[0] = link.chained
    else:
        later.last_same = link.last_same
        later.chained = link.chained
        place[0] = later
    if ring.is_ready:
        set_place_unready(ring, link)
    if ring.count.load(memory_order_relaxed) == 1:
        ring.head = ring.at = NULL
    else:
        link.prev.next = link.next
        link.next.prev = link.prev
        if ring.head == link:
            ring.head = link.next
        if ring.at == link:
            ring.at = link.next
    ring.count.store(ring.count.load(memory_order_relaxed) - 1, memory_order_relaxed)
    ring.version += 1
    return link


cdef inline PyObject* forget_cached(SubscriptionRing ring) noexcept:
    # Empties the cache, so that the snapshot does not keep removed items alive. The caller owns the reference.
    cdef PyObject* cached = ring.cached
    ring.cached = NULL
    return cached


@cython.trashcan(True)  # as RingBuffer
cdef class SubscriptionRing:
    """SubscriptionRing()
--

    A circular list with a current position, for taking turns.

    `add`, `remove`, `current`, `next`, `take`, `len()` and `in` are O(1), hold a lock for a few instructions and never
    block. Iteration and `do` walk an immutable snapshot, so the ring may change meanwhile; the first walk after a
    change is O(n). All may be called from any thread. Items are compared by identity and need not be hashable.

    >>> ring = SubscriptionRing()
    >>> for name in "abc":
    ...     ring.add(name)
    >>> ring.take(), ring.take(), ring.current
    ('a', 'b', 'c')
    >>> list(ring)
    ['c', 'a', 'b']
    """

    def __cinit__(self):
        self.buckets = self.few
        self.bits.store(FEW_BITS, memory_order_relaxed)  # relaxed: the ring is not published yet
        self.epoch.store(epoch_now, memory_order_relaxed)  # relaxed: as above

    def __init__(self):
        """See the class."""
        pass  # refuses arguments: items are added with add()

    def __dealloc__(self):
        cdef Link* link = self.head
        cdef Link* following
        cdef PyObject* cached = forget_cached(self)
        cdef Py_ssize_t k
        for k in range(self.count.load(memory_order_relaxed)):  # relaxed: no other thread has the ring any more
            following = link.next
            Py_DECREF(<object>link.item)  # was the ring's
            PyMem_RawFree(link)
            link = following
        if cached:
            Py_DECREF(<object>cached)  # was the ring's
        if self.buckets != self.few:
            PyMem_RawFree(self.buckets)
        PyMem_RawFree(self.places)

    __class_getitem__ = classmethod(GenericAlias)

    def add(self, item):
        """Adds an item at the end of the circle, which is just before its head.

        The item becomes the current one only if the ring was empty. Never blocks; may be called from any thread.

        Args:
            item: Any object. It may be in the ring several times.
        """
        self.append(<PyObject*>item)

    cdef int append(self, PyObject* item) except -1:
        cdef Link* link = <Link*>PyMem_RawCalloc(1, sizeof(Link))
        cdef Link** table = NULL
        cdef Places* places = NULL
        cdef bint placed = False
        cdef int bits = self.bits.load(memory_order_relaxed)  # relaxed, like `count`: a hint, checked again below
        if link == NULL:
            raise MemoryError
        if self.count.load(memory_order_relaxed) >= <Py_ssize_t>1 << bits:
            bits += 1
            table = <Link**>PyMem_RawCalloc(<size_t>1 << bits, sizeof(Link*))  # NULL: it goes on with the old table
        link.item = item
        Py_INCREF(<object>item)  # the ring's
        while not placed:
            # relaxed: hints, which has_place checks again
            if self.is_ready and not self.free_places.load(memory_order_relaxed):
                places = new_places(2 * <size_t>self.count.load(memory_order_relaxed) + FEW)
                if places == NULL:
                    PyMem_RawFree(link)
                    PyMem_RawFree(table)
                    Py_DECREF(<object>item)  # would have been the ring's; not the last: the caller has one
                    raise MemoryError
            lock(self)
            placed = has_place(self, &places)
            if placed:
                if table and bits > self.bits.load(memory_order_relaxed):  # relaxed: written under the lock
                    table = rehash(self, table, bits)
                link_up(self, link)
            unlock(self)
            PyMem_RawFree(places)  # the old ones; or the new ones, if other threads were faster
            places = NULL
        if table != self.few:
            PyMem_RawFree(table)  # the old table; or the new one, if another thread was faster
        return 0

    def remove(self, item):
        """Removes the first occurrence of an item, by identity.

        If it was the head or the current item, its successor takes that place. Never blocks; may be called from any
        thread.

        Args:
            item: The object to remove.

        Returns:
            Whether the item was in the ring.
        """
        if not self.take_out(<PyObject*>item):
            return False
        Py_DECREF(item)  # was the ring's
        return True

    cdef bint take_out(self, PyObject* item) noexcept:
        # As remove. The caller owns what was the ring's reference.
        cdef Link* link
        cdef PyObject* cached = NULL
        lock(self)
        link = unlink(self, item)
        if link:
            cached = forget_cached(self)
        unlock(self)
        if link == NULL:
            return False
        PyMem_RawFree(link)
        if cached:
            Py_DECREF(<object>cached)  # was the ring's
        return True

    cdef PyObject* take_first(self) noexcept:
        # Removes the item at the head. The caller owns its reference; NULL when the ring is empty.
        cdef Link* link = NULL
        cdef PyObject* item = NULL
        cdef PyObject* cached = NULL
        lock(self)
        if self.head:
            item = self.head.item
            link = unlink(self, item)  # this link: an item's first occurrence is the first one from the head
            cached = forget_cached(self)
        unlock(self)
        PyMem_RawFree(link)
        if cached:
            Py_DECREF(<object>cached)  # was the ring's
        return item

    cdef PyObject* step(self, bint before) noexcept:
        # Moves to the next position; returns the item that was current before, or that is current now. The caller owns
        # the reference; NULL when the ring is empty.
        cdef PyObject* item = NULL
        lock(self)
        if self.at:
            item = self.at.item
            self.at = self.at.next
            if not before:
                item = self.at.item
            Py_INCREF(<object>item)  # the caller's; the ring's own keeps it alive until here
        unlock(self)
        return item

    cdef PyObject* next_ready(self, Turn* turn, bint* ready) noexcept:
        # The first item from the current position on that may be ready; moves past it. If it proves not to be, the
        # caller passes it over and calls again. When there is none, `ready` is False: returns the item that was current
        # when the turn began, or is now if other threads have moved on since; moves past it. The caller owns the
        # reference; NULL when the ring is empty.
        cdef PyObject* item = NULL
        cdef Link* link
        lock(self)
        link = self.at
        if link == NULL:
            ready[0] = False
        else:
            if turn.start == NULL or turn.version != self.version:
                turn.start = link
                turn.moved_to = NULL
                turn.version = self.version
            if not link.ready:
                link = first_ready(self)
                if link == NULL:
                    link = turn.start if self.at == turn.moved_to else self.at
            ready[0] = link.ready
            self.at = turn.moved_to = link.next
            item = link.item
            Py_INCREF(<object>item)  # the caller's; the ring's own keeps it alive until here
        unlock(self)
        return item

    cdef void pass_over(self, PyObject* item, atomic[uint32_t]* passed_over) noexcept:
        # The item was found not ready: until set_ready, next_ready does not return it. See the head.
        cdef Link* link
        lock(self)
        link = find(self, item)[0]
        if link:
            # seq_cst: before the check; pairs with the load in made_room (subscription.pxd)
            put32(passed_over[0], 1, memory_order_seq_cst)
            if self.is_ready(item):
                set_place_ready(self, link)  # another thread may have passed it over before
                passed_over.store(0, memory_order_relaxed)  # relaxed: a reader of 1 only calls set_ready in vain
            else:
                set_place_unready(self, link)
        unlock(self)

    cdef void set_ready(self, PyObject* item, atomic[uint32_t]* passed_over) noexcept:
        # The item was made ready, and had been passed over.
        cdef Link* link
        lock(self)
        passed_over.store(0, memory_order_relaxed)  # relaxed: as in pass_over
        link = find(self, item)[0]
        if link:
            set_place_ready(self, link)
        unlock(self)

    @property
    def current(self):
        """The item at the current position; None when the ring is empty. A snapshot."""
        cdef PyObject* item = NULL
        lock(self)
        if self.at:
            item = self.at.item
            Py_INCREF(<object>item)  # the caller's
        unlock(self)
        return steal(item) if item else None

    def next(self):
        """Moves to the next position and returns the item there.

        Never blocks; may be called from any thread.

        Returns:
            The new current item; None when the ring is empty.
        """
        cdef PyObject* item = self.step(False)
        return steal(item) if item else None

    def take(self):
        """Returns the current item and moves to the next position, in one atomic step.

        Never blocks; may be called from any thread. Of several threads that take turns, each gets the next item.

        Returns:
            The item that was current; None when the ring is empty.
        """
        cdef PyObject* item = self.step(True)
        return steal(item) if item else None

    cdef Snapshot cached_snapshot(self):
        # The cached snapshot if the ring has not changed since; or None.
        cdef PyObject* cached
        lock(self)
        cached = self.cached
        if cached and (<Snapshot>cached).version == self.version:
            Py_INCREF(<object>cached)  # the caller's
        else:
            cached = NULL
        unlock(self)
        if cached:
            return <Snapshot>steal(cached)
        return None

    cdef bint record(self, Snapshot made, PyObject** into, Py_ssize_t count) noexcept:
        # Copies the items into `into`, with a reference each, and caches `made`. False: the ring does not have `count`
        # items.
        cdef PyObject* unwanted = <PyObject*>made
        cdef PyObject* item
        cdef Link* link
        cdef Py_ssize_t k
        cdef bint whole
        Py_INCREF(made)  # the ring's, if it is cached
        lock(self)
        whole = count == self.count.load(memory_order_relaxed)  # relaxed: written under the lock
        if whole:
            link = self.head
            for k in range(count):
                item = link.item  # a local variable: for other expressions Cython takes a reference and drops it
                Py_INCREF(<object>item)  # the snapshot's
                into[k] = item
                link.index = k
                link = link.next
            made.version = self.version
            unwanted = self.cached
            self.cached = <PyObject*>made
        unlock(self)
        if unwanted:
            Py_DECREF(<object>unwanted)  # was the ring's, or would have been
        return whole

    cdef Snapshot snapshot(self):
        cdef Snapshot made = self.cached_snapshot()
        cdef Py_ssize_t count
        while made is None:
            count = self.count.load(memory_order_relaxed)  # relaxed: record checks it again, under the lock
            made = Snapshot()
            made.items = PyTuple_New(count)
            if not self.record(made, (<PyTupleObject*>made.items).ob_item, count):
                made = None  # drops a tuple of NULLs, which no other code has seen
        return made

    cdef Py_ssize_t index_of_current(self, Snapshot made) noexcept:
        # The current item's index in the snapshot; -1 if the ring has changed since.
        cdef Py_ssize_t place = -1
        lock(self)
        if made.version == self.version:
            place = self.at.index if self.at else 0
        unlock(self)
        return place

    def _from_current(self):
        # The items from the current one on, as they were at one moment.
        cdef Snapshot made
        cdef Py_ssize_t start = -1
        while start < 0:
            made = self.snapshot()
            start = self.index_of_current(made)
        return made.items[start:] + made.items[:start] if start else made.items

    def do(self, fn):
        """Calls a function with each item once, from the current one on.

        Walks a snapshot, so the ring may change meanwhile; holds no lock during the calls. May be called from any
        thread.

        Args:
            fn: Called as `fn(item)`. An exception that it raises ends the walk.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, got {describe(fn)}")
        for item in self._from_current():
            fn(item)

    def __iter__(self):
        """Iterates over a snapshot of the items, each once, from the current one on."""
        return iter(self._from_current())

    def __len__(self):
        """The number of items; a snapshot."""
        return self.count.load(memory_order_relaxed)  # relaxed: a snapshot

    def __bool__(self):
        """Whether the ring has items; a snapshot."""
        return self.__len__() > 0

    def __contains__(self, item):
        """Whether the item is in the ring, by identity. O(1); a snapshot."""
        cdef bint found
        lock(self)
        found = find(self, <PyObject*>item)[0] != NULL
        unlock(self)
        return found

    def __repr__(self):
        return f"<{type(self).__name__} of {self.__len__()}, current {describe(self.current)}>"

    def __reduce__(self):
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied")


# ---------------------------------------------------------------------------------------------------------------
# garbage collection: Cython does not traverse the links and the cached snapshot (rule 11)

cdef PyTypeObject* ring_type = <PyTypeObject*>SubscriptionRing
cdef traverseproc base_traverse = ring_type.tp_traverse
cdef inquiry base_clear = ring_type.tp_clear


cdef int ring_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    # The collector runs with the GIL, or with all attached threads stopped: no thread holds the lock.
    cdef int status = base_traverse(self, visit, arg)
    cdef Link* link = (<SubscriptionRing>self).head
    cdef Py_ssize_t left = (<SubscriptionRing>self).count.load(memory_order_relaxed)  # relaxed: see above
    if not status and (<SubscriptionRing>self).cached:
        status = visit((<SubscriptionRing>self).cached, arg)
    while left and not status:
        if (<SubscriptionRing>self).is_shown == NULL or (<SubscriptionRing>self).is_shown(link.item):
            status = visit(link.item, arg)
        link = link.next
        left -= 1
    return status


cdef int ring_clear(PyObject* self) noexcept:
    cdef PyObject* item = (<SubscriptionRing>self).take_first()
    while item:
        if (<SubscriptionRing>self).before_drop:
            (<SubscriptionRing>self).before_drop(item)
        Py_DECREF(<object>item)  # was the ring's
        item = (<SubscriptionRing>self).take_first()
    return base_clear(self)


ring_type.tp_traverse = ring_traverse
ring_type.tp_clear = ring_clear
