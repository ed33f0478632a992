# A circular list with a current position: add at the end, remove by identity, each O(1), from any thread.
#
# The model is Go's container/ring, which one goroutine may use. Here the links are under a short lock (rule 7 of the core):
# nothing is allocated under it, no Python code runs, and no reference is dropped; what a change gives up is dropped after
# the release. References that are taken under it are of local variables, for which Cython adds no INCREF and DECREF.
#
# Readers do not walk the links. They walk a snapshot, which is immutable and made anew on the first read after a change. It
# carries the version of the ring that it was made of; the last one made is cached, and both are read under the lock. So a
# reader has a list that was the ring's at one moment, whatever happens meanwhile: the snapshot owns its items.
#
# remove finds an item's first occurrence in a hash table whose chains go through the links, so that only the array of
# buckets is ever allocated: before the lock is taken, when there are more items than buckets. Where there is no memory for
# a larger array, the ring goes on with the one that it has, and the chains get longer.
#
# Forks. A fork never finds the lock held or the links half changed: the thread that forks is attached, and has the GIL, or,
# free-threaded, the interpreter has stopped the other attached threads, which it does only in calls of the interpreter that
# may block; between the acquire and the release of this lock there is none. The child makes the lock anew all the same
# before its first use (rule 13), and there is no list or dict whose mutex it might inherit locked.

from types import GenericAlias

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release

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
# the lock

cdef void renew(SubscriptionRing ring) noexcept:
    # After a fork: one thread of the child makes the lock anew, the others wait for that.
    cdef uint32_t seen = ring.epoch.load(memory_order_acquire)  # acquire: pairs with the release below
    while seen != epoch_now:
        # seq_cst, by default: one thread claims it
        if seen != MAKING and ring.epoch.compare_exchange_strong(seen, MAKING):
            ring.lock.held.store(0, memory_order_relaxed)  # relaxed: published by the release below
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
# the links: all of these are called under the lock, and only move pointers

cdef inline Link** place_of(Link** buckets, int bits, PyObject* item) noexcept:
    # Where the pointer to the item's first occurrence is, or would be.
    # Objects are 16 bytes apart at least; the multiplier is 2**64 divided by the golden ratio (Knuth, 6.4).
    cdef uint64_t mixed = (<uint64_t><size_t>item >> 4) * <uint64_t>0x9E3779B97F4A7C15
    cdef Link** place = &buckets[mixed >> (64 - bits)]
    while place[0] and place[0].item != item:
        place = &place[0].chained
    return place


cdef inline Link** find(SubscriptionRing ring, PyObject* item) noexcept:
    # relaxed, as all that follow of bits and count: written under the lock, which the caller has
    return place_of(ring.buckets, ring.bits.load(memory_order_relaxed), item)


cdef Link** rehash(SubscriptionRing ring, Link** buckets, int bits) noexcept:
    # Moves to a larger table; returns the old one.
    cdef Link** old = ring.buckets
    cdef Link* link
    cdef Link* following
    cdef size_t k
    for k in range(<size_t>1 << ring.bits.load(memory_order_relaxed)):
        link = old[k]
        while link:
            following = link.chained
            link.chained = NULL
            place_of(buckets, bits, link.item)[0] = link
            link = following
    ring.buckets = buckets
    ring.bits.store(bits, memory_order_relaxed)
    return old


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
    ring.count.store(ring.count.load(memory_order_relaxed) + 1, memory_order_relaxed)
    ring.version += 1


cdef Link* unlink(SubscriptionRing ring, PyObject* item) noexcept:
    # The link is the caller's then, with its reference; NULL: there is none.
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
    # The reference is the caller's then. What was removed is not kept alive by the last snapshot.
    cdef PyObject* cached = ring.cached
    ring.cached = NULL
    return cached


@cython.trashcan(True)  # as RingBuffer
cdef class SubscriptionRing:
    """A circular list with a current position, for taking turns.

    `add`, `remove`, `current`, `next`, `take` and `len` are O(1), under a short lock, and never block; all may be
    called from any thread. Iteration and `do` walk an immutable snapshot, so the ring may change meanwhile. Items
    are compared by identity and need not be hashable.

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
        pass  # takes no items: add() them

    def __dealloc__(self):
        cdef Link* link = self.head
        cdef Link* following
        cdef PyObject* cached = forget_cached(self)
        cdef Py_ssize_t k
        for k in range(self.count.load(memory_order_relaxed)):  # relaxed: nobody else has the ring any more
            following = link.next
            Py_DECREF(<object>link.item)  # was the ring's
            PyMem_RawFree(link)
            link = following
        if cached:
            Py_DECREF(<object>cached)  # was the ring's
        if self.buckets != self.few:
            PyMem_RawFree(self.buckets)

    __class_getitem__ = classmethod(GenericAlias)

    def add(self, item):
        """Adds an item at the end, that is before the head. It becomes current only if the ring was empty."""
        self.append(<PyObject*>item)

    cdef int append(self, PyObject* item) except -1:
        cdef Link* link = <Link*>PyMem_RawCalloc(1, sizeof(Link))
        cdef Link** table = NULL
        cdef int bits = self.bits.load(memory_order_relaxed)  # relaxed, like the count: a hint, looked at again below
        if link == NULL:
            raise MemoryError
        if self.count.load(memory_order_relaxed) >= <Py_ssize_t>1 << bits:
            bits += 1
            table = <Link**>PyMem_RawCalloc(<size_t>1 << bits, sizeof(Link*))  # NULL: not this time
        link.item = item
        Py_INCREF(<object>item)  # the ring's
        lock(self)
        if table and bits > self.bits.load(memory_order_relaxed):  # relaxed: written under the lock
            table = rehash(self, table, bits)
        link_up(self, link)
        unlock(self)
        if table != self.few:
            PyMem_RawFree(table)  # the old one; or ours, where another thread was faster
        return 0

    def remove(self, item):
        """Removes the first occurrence of an item, by identity; returns whether there was one.

        Where that was the head or the current one, its successor is that now.
        """
        if not self.take_out(<PyObject*>item):
            return False
        Py_DECREF(item)  # was the ring's
        return True

    cdef bint take_out(self, PyObject* item) noexcept:
        # As remove. The ring's reference is the caller's then.
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
        # Removes the item at the head, whose reference is the caller's then; NULL when the ring is empty.
        cdef Link* link = NULL
        cdef PyObject* item = NULL
        cdef PyObject* cached = NULL
        lock(self)
        if self.head:
            item = self.head.item
            link = unlink(self, item)  # that very link: the first occurrence is counted from the head
            cached = forget_cached(self)
        unlock(self)
        PyMem_RawFree(link)
        if cached:
            Py_DECREF(<object>cached)  # was the ring's
        return item

    cdef PyObject* step(self, bint before) noexcept:
        # Moves on; returns the current of before or after, with a reference for the caller; NULL when empty.
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

    @property
    def current(self):
        """The item at the current position; None when the ring is empty."""
        cdef PyObject* item = NULL
        lock(self)
        if self.at:
            item = self.at.item
            Py_INCREF(<object>item)  # the caller's
        unlock(self)
        return steal(item) if item else None

    def next(self):
        """Moves on and returns the new current item; None when the ring is empty."""
        cdef PyObject* item = self.step(False)
        return steal(item) if item else None

    def take(self):
        """Returns the current item and moves on, in one step; None when the ring is empty."""
        cdef PyObject* item = self.step(True)
        return steal(item) if item else None

    cdef Snapshot cached_snapshot(self):
        # The last one made, if it is of the ring as it is now; or None.
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
        # Copies the items, with a reference each, and caches what was made of them. False: there are not `count`.
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
                item = link.item  # a local variable: for any other expression Cython makes a reference, and drops it again
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
            count = self.count.load(memory_order_relaxed)  # relaxed: looked at again in record, under the lock
            made = Snapshot()
            made.items = PyTuple_New(count)
            if not self.record(made, (<PyTupleObject*>made.items).ob_item, count):
                made = None  # a tuple of NULLs, which nobody has seen, goes
        return made

    cdef Py_ssize_t place_of_current(self, Snapshot made) noexcept:
        # In the snapshot; -1 where the ring has changed since.
        cdef Py_ssize_t place = -1
        lock(self)
        if made.version == self.version:
            place = self.at.index if self.at else 0
        unlock(self)
        return place

    def _from_current(self):
        # The items, from the current on, as they were at one moment.
        cdef Snapshot made
        cdef Py_ssize_t start = -1
        while start < 0:
            made = self.snapshot()
            start = self.place_of_current(made)
        return made.items[start:] + made.items[:start] if start else made.items

    def do(self, fn):
        """Calls `fn(item)` for each item once, from the current one on. Walks a snapshot; the ring may change."""
        if not callable(fn):
            raise TypeError(f"fn must be callable, got {describe(fn)}")
        for item in self._from_current():
            fn(item)

    def __iter__(self):
        return iter(self._from_current())

    def __len__(self):
        """How many items there are; a snapshot."""
        return self.count.load(memory_order_relaxed)  # relaxed: a snapshot

    def __bool__(self):
        return self.__len__() > 0

    def __contains__(self, item):
        """Whether the item is there, by identity. O(1)."""
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
# the garbage collector: Cython knows nothing of the links and of the cached snapshot (rule 11)

cdef PyTypeObject* ring_type = <PyTypeObject*>SubscriptionRing
cdef traverseproc base_traverse = ring_type.tp_traverse
cdef inquiry base_clear = ring_type.tp_clear


cdef int ring_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    # The collector runs with all attached threads stopped, or with the GIL: nobody holds the lock.
    cdef int status = base_traverse(self, visit, arg)
    cdef Link* link = (<SubscriptionRing>self).head
    cdef Py_ssize_t left = (<SubscriptionRing>self).count.load(memory_order_relaxed)  # relaxed: see above
    if not status and (<SubscriptionRing>self).cached:
        status = visit((<SubscriptionRing>self).cached, arg)
    while left and not status:
        if (<SubscriptionRing>self).shown == NULL or (<SubscriptionRing>self).shown(link.item):
            status = visit(link.item, arg)
        link = link.next
        left -= 1
    return status


cdef int ring_clear(PyObject* self) noexcept:
    cdef PyObject* item = (<SubscriptionRing>self).take_first()
    while item:
        if (<SubscriptionRing>self).forsaken:
            (<SubscriptionRing>self).forsaken(item)
        Py_DECREF(<object>item)  # was the ring's
        item = (<SubscriptionRing>self).take_first()
    return base_clear(self)


ring_type.tp_traverse = ring_traverse
ring_type.tp_clear = ring_clear
