# A circular list with a current position: add at the end, remove by identity, each O(1), from any thread.
#
# The model is Go's container/ring, which one goroutine may use; here the links are under a short lock, under which no
# Python code runs: references that a change gives up are dropped after the lock.
#
# Readers do not walk the links. They walk a snapshot, an immutable tuple, made anew on the first read after a change
# and kept in a one-item list: reading that is an atomic fetch of a reference on either build. A snapshot carries the
# version of the ring that it was made of. A reader that finds version and snapshot equal has a list that was the
# ring's at the moment of its look, whatever happens meanwhile: the tuple owns its items.

from types import GenericAlias

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from ringmill._core.machine cimport steal
from ringmill._core.waiter cimport acquire, release

from ringmill.arguments import describe

# The one item of a list, owned: atomic where the list may change beside us (PyList_GetItemRef is new in 3.13).
cdef extern from *:
    """
    #if PY_VERSION_HEX >= 0x030D0000
    #define ringmill_only_item(list) PyList_GetItemRef((list), 0)
    #else
    #define ringmill_only_item(list) Py_NewRef(PyList_GET_ITEM((list), 0))
    #endif
    """
    object only_item "ringmill_only_item"(PyObject* list)

cdef extern from "Python.h":
    tuple PyTuple_New(Py_ssize_t size)
    void PyTuple_SET_ITEM(PyObject* tuple, Py_ssize_t index, PyObject* item)
    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear


cdef class Snapshot:
    pass


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
        self.cell = [None]

    def __dealloc__(self):
        cdef Link* link = self.head
        cdef Link* following
        cdef Py_ssize_t k
        for k in range(self.count.load(memory_order_relaxed)):  # relaxed: nobody else has the ring any more
            following = link.next
            Py_DECREF(<object>link.item)  # was the ring's
            PyMem_RawFree(link)
            link = following

    __class_getitem__ = classmethod(GenericAlias)

    def add(self, item):
        """Adds an item at the end, that is before the head. It becomes current only if the ring was empty."""
        cdef Link* link = <Link*>PyMem_RawCalloc(1, sizeof(Link))
        cdef Link* first
        if link == NULL:
            raise MemoryError
        link.item = <PyObject*>item
        Py_INCREF(item)  # the ring's
        acquire(&self.lock)
        try:
            first = self.first[link.item]  # makes an entry of NULL where there is none
            if first == NULL:
                self.first[link.item] = link
                first = link
            else:
                first.last_same.same = link
            first.last_same = link
            if self.head == NULL:
                link.next = link.prev = link
                self.head = self.at = link
            else:
                link.next = self.head
                link.prev = self.head.prev
                self.head.prev.next = link
                self.head.prev = link
            # relaxed, here and below: written under the lock, and a hint to who reads it without
            self.count.store(self.count.load(memory_order_relaxed) + 1, memory_order_relaxed)
            self.version.fetch_add(1, memory_order_seq_cst)  # seq_cst: after the change, pairs with snapshot
        finally:
            release(&self.lock)

    def remove(self, item):
        """Removes the first occurrence of an item, by identity; returns whether there was one.

        Where that was the head or the current one, its successor is that now.
        """
        cdef Link* link
        acquire(&self.lock)
        link = self.unlink(<PyObject*>item)
        release(&self.lock)
        if link == NULL:
            return False
        PyMem_RawFree(link)
        self.cell[0] = None  # or the last snapshot would keep it alive
        Py_DECREF(item)  # was the ring's
        return True

    cdef Link* unlink(self, PyObject* item) noexcept:
        # Under the lock. The link is the caller's then, with its reference.
        cdef Link* link
        cdef Link* later
        if self.first.find(item) == self.first.end():
            return NULL
        link = self.first[item]
        later = link.same
        if later == NULL:
            self.first.erase(item)
        else:
            later.last_same = link.last_same
            self.first[item] = later
        if self.count.load(memory_order_relaxed) == 1:  # relaxed: as in add
            self.head = self.at = NULL
        else:
            link.prev.next = link.next
            link.next.prev = link.prev
            if self.head == link:
                self.head = link.next
            if self.at == link:
                self.at = link.next
        self.count.store(self.count.load(memory_order_relaxed) - 1, memory_order_relaxed)  # relaxed: as in add
        self.version.fetch_add(1, memory_order_seq_cst)  # seq_cst: as in add
        return link

    cdef PyObject* step(self, bint before) noexcept:
        # Moves on; returns the current of before or after, with a reference for the caller; NULL when empty.
        cdef PyObject* item = NULL
        acquire(&self.lock)
        if self.at:
            item = self.at.item
            self.at = self.at.next
            if not before:
                item = self.at.item
            Py_INCREF(<object>item)  # the caller's; the ring's own keeps it alive until here
        release(&self.lock)
        return item

    @property
    def current(self):
        """The item at the current position; None when the ring is empty."""
        cdef PyObject* item = NULL
        acquire(&self.lock)
        if self.at:
            item = self.at.item
            Py_INCREF(<object>item)  # the caller's
        release(&self.lock)
        return steal(item) if item else None

    def next(self):
        """Moves on and returns the new current item; None when the ring is empty."""
        cdef PyObject* item = self.step(False)
        return steal(item) if item else None

    def take(self):
        """Returns the current item and moves on, in one step; None when the ring is empty."""
        cdef PyObject* item = self.step(True)
        return steal(item) if item else None

    cdef Snapshot snapshot(self):
        cdef Snapshot made = only_item(<PyObject*>self.cell)
        cdef Link* link
        cdef Py_ssize_t count, k
        # seq_cst: at this look the ring was the snapshot
        while made is None or made.version != self.version.load(memory_order_seq_cst):
            count = self.count.load(memory_order_relaxed)  # relaxed: looked at again below, under the lock
            made = Snapshot()
            made.items = PyTuple_New(count)
            acquire(&self.lock)
            if count == self.count.load(memory_order_relaxed):  # relaxed: as in add
                link = self.head
                for k in range(count):
                    Py_INCREF(<object>link.item)  # the tuple's
                    PyTuple_SET_ITEM(<PyObject*>made.items, k, link.item)
                    link.index = k
                    link = link.next
                made.version = self.version.load(memory_order_relaxed)  # relaxed: written under the lock
                release(&self.lock)
                self.cell[0] = made
            else:
                release(&self.lock)
                made = None  # a tuple of NULLs, which nobody has seen, goes
        return made

    def _from_current(self):
        # The items, from the current on, as they were at one moment.
        cdef Snapshot made
        cdef Py_ssize_t start = 0
        cdef bint fresh
        while True:
            made = self.snapshot()
            acquire(&self.lock)
            fresh = made.version == self.version.load(memory_order_relaxed)  # relaxed: written under the lock
            if fresh and self.at:
                start = self.at.index
            release(&self.lock)
            if fresh:
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
        acquire(&self.lock)
        found = self.first.find(<PyObject*>item) != self.first.end()
        release(&self.lock)
        return found

    def __repr__(self):
        return f"<{type(self).__name__} of {self.__len__()}, current {describe(self.current)}>"

    def __reduce__(self):
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied")


# ---------------------------------------------------------------------------------------------------------------
# the garbage collector: Cython knows nothing of the links (rule 11)

cdef PyTypeObject* ring_type = <PyTypeObject*>SubscriptionRing
cdef traverseproc base_traverse = ring_type.tp_traverse
cdef inquiry base_clear = ring_type.tp_clear


cdef int ring_traverse(PyObject* ring, visitproc visit, void* arg) noexcept:
    # The collector runs with all attached threads stopped, or with the GIL: nobody holds the lock.
    cdef int status = base_traverse(ring, visit, arg)
    cdef Link* link = (<SubscriptionRing>ring).head
    cdef Py_ssize_t left = (<SubscriptionRing>ring).count.load(memory_order_relaxed)  # relaxed: see above
    while left and not status:
        status = visit(link.item, arg)
        link = link.next
        left -= 1
    return status


cdef int ring_clear(PyObject* ring) noexcept:
    cdef Link* link
    cdef PyObject* item
    while True:
        acquire(&(<SubscriptionRing>ring).lock)
        link = NULL
        if (<SubscriptionRing>ring).head:
            link = (<SubscriptionRing>ring).unlink((<SubscriptionRing>ring).head.item)
        release(&(<SubscriptionRing>ring).lock)
        if link == NULL:
            return base_clear(ring)
        item = link.item
        PyMem_RawFree(link)
        Py_DECREF(<object>item)  # was the ring's


ring_type.tp_traverse = ring_traverse
ring_type.tp_clear = ring_clear
