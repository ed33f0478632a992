# A bounded queue of Python objects on the lock-free ring (ring.pxd): the face that users see, and how it waits.
#
# Sleeping and waking are wait_queue.pyx's: a put is followed by notify(not_empty), a get by notify(not_full). `ring` is made
# in __init__, since a subclass may have an __init__ of its own, and freed in __dealloc__; its references are traversed for
# the garbage collector at the end of this file. Until __init__ has been called, and where it never is, `ring` is one that
# all such objects share, empty and closed: nothing is put into it, nothing is found in it, and what puts and gets do with a
# closed ring, which is not the common case, is where they look whether it is that one.

import queue
from types import GenericAlias

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport memset, strcmp
from libc.stdint cimport uint64_t
from libcpp.atomic cimport atomic, memory_order_acq_rel, memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from ringmill._core.platform.gil_atomics cimport exchange32, swap64
from ringmill._core.ring.ring cimport (
    DONE,
    NOT_NOW,
    SHUT,
    Ring,
    Slot,
    after,
    delete_ring,
    get_at_once,
    get_count,
    has_items,
    has_room,
    is_shut,
    new_ring,
    put_at_once,
    put_count,
    shut,
    size,
    try_get,
    try_get_many,
    try_put,
    try_put_many,
    without_closed,
)
from ringmill._core.waiting.event_loop cimport await_for, checkpoint, in_trio
from ringmill._core.platform.primitives cimport steal
from ringmill._core.waiting.wait_queue cimport (
    NEVER,
    deadline_of,
    init_queue,
    notify,
    notify_all,
    visit_sleepers,
    visitproc,
    wait_for,
)

from ringmill.arguments import count as check_count, describe
from ringmill.errors import Closed

cdef object Full = queue.Full
cdef object Empty = queue.Empty

cdef extern from "Python.h":
    PyObject* PyList_New(Py_ssize_t size)
    tuple PyTuple_New(Py_ssize_t size)
    void PyErr_Clear()
    void PyObject_GC_UnTrack(object)
    ctypedef struct PyTupleObject:
        PyObject** ob_item
    void Py_SET_SIZE(PyObject* list, Py_ssize_t size)
    ctypedef struct PyListObject:
        PyObject** ob_item
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef PyObject* (*PyCFunction)(PyObject*, PyObject*) noexcept
    int METH_FASTCALL
    int METH_KEYWORDS
    ctypedef struct PyMethodDef:
        const char* ml_name
        PyCFunction ml_meth
        int ml_flags
    ctypedef struct PyTypeObject:
        PyMethodDef* tp_methods
        traverseproc tp_traverse
        inquiry tp_clear

# More slots than any address space holds are an error of the caller's, not a lack of memory.
MAX_CAPACITY = (1 << 47) // sizeof(Slot)


cdef Ring* allocate(Py_ssize_t capacity) noexcept:
    # A new ring, empty and open; NULL where there is no memory.
    cdef Ring* ring = new_ring()
    cdef uint64_t index
    if ring == NULL:
        return NULL
    ring.capacity = capacity
    while <uint64_t>1 << ring.lap_bits <= <uint64_t>capacity:
        ring.lap_bits += 1
    ring.one_lap = <uint64_t>1 << ring.lap_bits
    ring.slots = <Slot*>PyMem_RawMalloc(capacity * sizeof(Slot))
    if ring.slots == NULL:
        delete_ring(ring)
        return NULL
    ring.last = ring.slots + capacity - 1
    for index in range(<uint64_t>capacity):
        # relaxed: the ring is published to other threads by whoever hands the object over
        ring.slots[index].stamp.store(index, memory_order_relaxed)
    return ring


cdef void deallocate(Ring* ring) noexcept:
    PyMem_RawFree(ring.slots)
    delete_ring(ring)


cdef Ring* unmade = allocate(1)  # the ring of all that have not been initialized: see the head
if unmade == NULL:
    raise MemoryError
shut(unmade)


cdef inline uint64_t _since(atomic[uint64_t]* mark, uint64_t count) noexcept:
    # How many since the last call. relaxed: only a guess at whether lingering pays
    cdef uint64_t last = mark.load(memory_order_relaxed)
    mark.store(count, memory_order_relaxed)
    return count - last


cdef struct ItemRequest:               # what a waiting put or get wants
    PyObject* ring
    PyObject* item

cdef int put_attempt(void* request) noexcept:
    return try_put((<RingBuffer>(<ItemRequest*>request).ring).ring, (<ItemRequest*>request).item, NULL)

cdef int put_counted(void* request) noexcept:
    # For a task, which may be suspended for ever: it holds no reference for the slot meanwhile, that the collector knows
    # nothing of.
    cdef PyObject* item = (<ItemRequest*>request).item
    cdef int result
    Py_INCREF(<object>item)  # the slot's, if it gets there
    result = put_attempt(request)
    if result != DONE:
        Py_DECREF(<object>item)
    return result

cdef int put_more(void* request) noexcept:
    return has_room((<RingBuffer>(<ItemRequest*>request).ring).ring)

cdef int get_attempt(void* request) noexcept:
    return try_get((<RingBuffer>(<ItemRequest*>request).ring).ring, &(<ItemRequest*>request).item, NULL)

cdef int get_more(void* request) noexcept:
    return has_items((<RingBuffer>(<ItemRequest*>request).ring).ring)


# Tasks, as queue.Queue counts them: every item put is one, until task_done() is called for it. What was ever put is
# known from the tail, so only task_done() counts: unfinished = put_count - finished. Both only grow, and finished never
# passes put_count; so whoever reads finished, then an equal put_count, saw all finished at the moment of the second read.
# Only a change of `finished` can make that true, and whoever makes it looks, then wakes; the accesses are sequentially
# consistent, as wait_queue.pyx wants them.

cdef inline bint all_finished(RingBuffer ring) noexcept:
    # seq_cst: a sleeper's last look; before put_count, see above
    cdef uint64_t finished = ring.finished.load(memory_order_seq_cst)
    return put_count(ring.ring) == finished

cdef int join_attempt(void* ring) noexcept:
    return all_finished(<RingBuffer>ring)


@cython.trashcan(True)  # a long chain of rings in rings is dropped without as deep a recursion
cdef class RingBuffer:
    """A bounded first-in first-out queue of Python objects, lock-free, closable.

    Many threads may put and get at once. `capacity` is exact, any integer from 1 (items; not rounded). A put and a
    get are linearizable; `len` and the other observations are snapshots, which may be out of date when they return.
    An item costs 16 bytes of capacity, whether it is there or not. `maxsize` is another name for the argument `capacity`.
    A subclass may have an `__init__` of its own, which calls `super().__init__(capacity)`; a second call changes nothing.

    `put_nowait`, `get_nowait` and `close` never block and are re-entrant: they may be called from `__del__`, from
    weakref callbacks, signal handlers and the garbage collector. A thread that waits uses no CPU beyond a spin of
    some microseconds, does not hold the GIL, and wakes for KeyboardInterrupt.

    >>> ring = RingBuffer(2)
    >>> ring.put("a")
    >>> ring.put_many(["b"])
    1
    >>> ring.full()
    True
    >>> ring.close()
    >>> list(ring)
    ['a', 'b']
    """

    def __cinit__(self):  # takes no arguments, so that a subclass's __init__ may take any
        init_queue(&self.not_empty)
        init_queue(&self.not_full)
        init_queue(&self.all_finished)
        self.ring = unmade

    def __init__(self, capacity=..., *, maxsize=...):
        cdef Ring* ring
        if self.made.load(memory_order_relaxed):  # relaxed: the exchange decides
            return  # called again: the ring is in use, and stays as it is
        if capacity is ...:
            if maxsize is ...:
                raise TypeError("missing argument: capacity")
            capacity = check_count("maxsize", maxsize, 1, MAX_CAPACITY)
        elif maxsize is not ...:
            raise TypeError("maxsize is another name of capacity: give one of them")
        elif type(capacity) is not int or not 1 <= capacity <= MAX_CAPACITY:  # no Python code runs for an integer
            capacity = check_count("capacity", capacity, 1, MAX_CAPACITY)
        ring = allocate(capacity)
        if ring == NULL:
            raise MemoryError(f"a ring of {capacity} slots does not fit in memory")
        if exchange32(self.made, 1, memory_order_acq_rel):  # acq_rel: of two threads that initialize it, one does
            deallocate(ring)
            return
        self.capacity = capacity
        self.ring = ring

    def __dealloc__(self):
        if self.ring == NULL or self.ring == unmade:
            return
        _drop_items(self)
        deallocate(self.ring)

    cdef int check_made(self) except -1:
        # For all that does not raise at a closed ring by itself.
        if self.ring == unmade:
            raise RuntimeError(
                f"{type(self).__qualname__} has not been initialized: its __init__ must call super().__init__(capacity)"
            )
        return 0

    __class_getitem__ = classmethod(GenericAlias)

    # -----------------------------------------------------------------------------------------------------------
    # waiting

    cdef int put_item(self, PyObject* item, int64_t deadline, bint block) except -1:
        # Puts, waiting for room. The caller's reference goes to the ring if DONE, and stays the caller's otherwise.
        cdef ItemRequest request
        cdef int result = try_put(self.ring, item, NULL)
        if result == NOT_NOW and block:
            request.ring = <PyObject*>self
            request.item = item
            result = wait_for(
                &self.not_full, put_attempt, put_more, &request, NULL,
                _since(&self.putters_mark, put_count(self.ring)), deadline,
            )
        if result == DONE:
            notify(&self.not_empty)
        return result

    cdef int get_item(self, PyObject** item, int64_t deadline, bint block) except -1:
        # Takes one, waiting for it. The caller owns the reference if DONE.
        cdef ItemRequest request
        cdef int result = try_get(self.ring, item, NULL)
        if result == NOT_NOW and block:
            request.ring = <PyObject*>self
            result = wait_for(
                &self.not_empty, get_attempt, get_more, &request, NULL,
                _since(&self.getters_mark, get_count(self.ring)), deadline,
            )
            item[0] = request.item
        if result == DONE:
            notify(&self.not_full)
        return result

    cdef object get_or_raise(self):
        # What is left of get_nowait when one look was in vain.
        cdef PyObject* item = NULL
        cdef int result = self.get_item(&item, NEVER, False)
        if result == NOT_NOW:
            raise Empty  # not by _raise_get: one function more in the traceback costs 2,000 instructions
        if result == SHUT:
            _raise_get(self, result)
        return steal(item)

    cdef bint close_ring(self) except -1:
        cdef bint first
        self.check_made()
        first = shut(self.ring)
        notify_all(&self.not_empty)
        notify_all(&self.not_full)
        return first

    cdef bint finish(self) except -1:
        # One task more is finished; wakes who waits for the last. False: none is unfinished.
        # acquire: pairs with the exchange: whoever finished a task had seen its put, so the tail is not older than that
        cdef uint64_t finished = self.finished.load(memory_order_acquire)
        while finished < put_count(self.ring):
            # seq_cst: publishes to sleepers (wait_queue.pyx); acquire on failure: as the load above
            if swap64(self.finished, finished, finished + 1, memory_order_seq_cst, memory_order_acquire):
                # seq_cst: as in notify
                if all_finished(self) and self.all_finished.word.load(memory_order_seq_cst):
                    notify_all(&self.all_finished)
                return True
        return False

    # -----------------------------------------------------------------------------------------------------------
    # for Python

    def put(self, item, block=True, timeout=None):
        """Puts an item, waiting up to `timeout` seconds for room (None: without limit).

        Raises `queue.Full` when there is none in time, or at once with `block=False`; `Closed` when the ring is or
        gets closed. The item stays the caller's then. Safe from any thread.
        """
        cdef int64_t deadline = NEVER
        cdef int result
        if timeout is not None:
            deadline = deadline_of(timeout)
        Py_INCREF(item)  # the slot's, if it gets there
        try:
            result = self.put_item(<PyObject*>item, deadline, block)
        except BaseException:
            Py_DECREF(item)
            raise
        if result != DONE:
            Py_DECREF(item)
            _raise_put(self, result)

    def put_nowait(self, item):
        """Puts an item, or raises `queue.Full` or `Closed`. Never blocks; re-entrant; safe from any thread."""
        cdef int result
        Py_INCREF(item)  # the slot's, if it gets there
        result = self.put_item(<PyObject*>item, NEVER, False)
        if result != DONE:
            Py_DECREF(item)
            _raise_put(self, result)

    def get(self, block=True, timeout=None):
        """Takes the oldest item, waiting up to `timeout` seconds for one (None: without limit).

        Raises `queue.Empty` when there is none in time, or at once with `block=False`; `Closed` when the ring is
        closed and drained. Safe from any thread.
        """
        cdef int64_t deadline = NEVER
        cdef PyObject* item = NULL
        cdef int result
        if timeout is not None:
            deadline = deadline_of(timeout)
        result = self.get_item(&item, deadline, block)
        if result != DONE:
            _raise_get(self, result)
        return steal(item)

    def get_nowait(self):
        """Takes the oldest item, or raises `queue.Empty` or `Closed`. Never blocks; re-entrant; safe from any thread."""
        cdef PyObject* item
        if get_at_once(self.ring, &item):
            notify(&self.not_full)
            return steal(item)
        return self.get_or_raise()

    def put_many(self, iterable, timeout=None):
        """Puts all items of an iterable, in order, waiting for room; returns how many.

        A list or tuple costs one claim for up to 128 items; another iterable is drawn and put one by one. After
        `timeout` seconds in all it raises `queue.Full`, and `Closed` when the ring is or gets closed: both carry
        `count`, how many went in, and `rest`, a list of those that were drawn and did not. What an exception of the
        iterable's own, or KeyboardInterrupt, leaves in the ring stays there. Safe from any thread.
        """
        cdef int64_t deadline = deadline_of(timeout)
        cdef Py_ssize_t count = 0
        cdef int result
        if type(iterable) is list:
            return self._put_tuple(tuple(iterable), deadline)
        if type(iterable) is tuple:
            return self._put_tuple(copy_of(iterable), deadline)
        for item in iterable:
            Py_INCREF(item)  # the slot's, if it gets there
            try:
                result = self.put_item(<PyObject*>item, deadline, True)
            except BaseException:
                Py_DECREF(item)
                raise
            if result != DONE:
                Py_DECREF(item)
                _raise_put_many(self, result, count, [item])
            count += 1
        return count

    cdef object _put_tuple(self, tuple items, int64_t deadline):
        # The tuple is ours alone. Its references go to the ring, and NULL takes their place; the collector, which may
        # look in between, must not count them for the tuple as well.
        cdef Py_ssize_t total = len(items), count = 0, done
        cdef PyObject** owned = (<PyTupleObject*>items).ob_item
        cdef int result
        if total:
            PyObject_GC_UnTrack(items)
        while count < total:
            result = try_put_many(self.ring, owned + count, total - count, &done)
            if done:
                memset(owned + count, 0, done * sizeof(PyObject*))
                count += done
                notify(&self.not_empty)
            if result == NOT_NOW:  # wait with the next one alone, then go on
                result = self.put_item(owned[count], deadline, True)
                if result == DONE:
                    owned[count] = NULL
                    count += 1
            if result != DONE:
                _raise_put_many(self, result, count, [<object>owned[done] for done in range(count, total)])
        return count

    def get_many(self, max=None, timeout=None):
        """Waits for the first item, then takes what is there, up to `max`, as a list.

        Takes no more than was there when it began to take, so it ends even while others put. Raises `queue.Empty`
        when nothing came within `timeout` seconds (None: without limit), `Closed` when the ring is closed and
        drained. One claim for up to 128 items. Safe from any thread.
        """
        cdef int64_t deadline = deadline_of(timeout)
        cdef PyObject* item = NULL
        cdef int result
        cdef Py_ssize_t limit = self.capacity
        if max is not None:
            max = checked_max(max)
            if max < limit:
                limit = max
        cdef Py_ssize_t length = size(self.ring)
        items = self._take(limit if limit < length else length, [])
        if items:
            return items
        items = [None]  # made before anything is taken, which would be lost if there were no memory for it
        result = self.get_item(&item, deadline, True)
        if result != DONE:
            _raise_get(self, result)
        items[0] = steal(item)
        length = size(self.ring)
        limit -= 1
        return self._take(limit if limit < length else length, items)

    cdef list _take(self, Py_ssize_t limit, list first):
        # Up to `limit` items, without waiting, behind what was taken first: in a list made beforehand, since nothing may
        # fail after the claim. Where there is no memory for that, what was taken first is all.
        cdef Py_ssize_t done = 0, kept = len(first), k
        cdef PyObject* item
        cdef PyObject* items
        if limit == 0:
            return first
        items = PyList_New(kept + limit)
        if items == NULL:  # no except: what Cython makes of one crashes where a traceback cannot be made either
            if not kept:
                raise MemoryError
            PyErr_Clear()
            return first
        for k in range(kept):
            item = (<PyListObject*>first).ob_item[k]
            Py_INCREF(<object>item)  # the new list's
            (<PyListObject*>items).ob_item[k] = item
        try_get_many(self.ring, (<PyListObject*>items).ob_item + kept, limit, &done)
        Py_SET_SIZE(items, kept + done)
        if done:
            notify(&self.not_full)
        return <list>steal(items)

    async def aput(self, item):
        """Puts an item, awaiting room: `put` for a task of asyncio or trio.

        Raises `Closed` when the ring is or gets closed. A cancelled await has put nothing. Where there is room it does
        not yield to the loop (under trio it is a checkpoint all the same). RuntimeError outside of a loop, if it must
        wait. The other end may be other threads or loops.
        """
        cdef ItemRequest request
        cdef int result
        point = checkpoint()
        if point is not None:
            await point
        Py_INCREF(item)  # the slot's, if it gets there
        result = try_put(self.ring, <PyObject*>item, NULL)
        if result == NOT_NOW:
            Py_DECREF(item)
            request.ring = <PyObject*>self
            request.item = <PyObject*>item
            result = await await_for(&self.not_full, put_counted, put_more, &request, self)
            if result != DONE:
                _raise_put(self, result)
        elif result != DONE:
            Py_DECREF(item)
            _raise_put(self, result)
        notify(&self.not_empty)

    async def aget(self):
        """Takes the oldest item, awaiting one: `get` for a task of asyncio or trio.

        Raises `Closed` when the ring is closed and drained. A cancelled await has taken nothing, so no item is lost.
        Otherwise as `aput`.
        """
        cdef ItemRequest request
        cdef PyObject* item = NULL
        cdef int result
        point = checkpoint()
        if point is not None:
            await point
        result = try_get(self.ring, &item, NULL)
        if result == NOT_NOW:
            request.ring = <PyObject*>self
            result = await await_for(&self.not_empty, get_attempt, get_more, &request, self)
            item = request.item
        if result != DONE:
            _raise_get(self, result)
        notify(&self.not_full)
        return steal(item)

    def __aiter__(self):
        """Takes items until the ring is closed and drained. Several tasks, of several loops, may share the items."""
        return self

    async def __anext__(self):
        cdef PyObject* item = NULL
        if not in_trio() and try_get(self.ring, &item, NULL) == DONE:  # the short way; trio wants a checkpoint
            notify(&self.not_full)
            return steal(item)
        try:
            return await self.aget()
        except Closed:
            raise StopAsyncIteration from None

    def close(self):
        """Closes the ring. Puts fail with `Closed` from now on, blocked ones included, and keep their item; getters
        drain what is left, then get `Closed`. Idempotent, never blocks, re-entrant; safe from any thread."""
        self.close_ring()

    def shutdown(self, immediate=False):
        """`close` by `queue.Queue`'s name; `immediate=True` also drops what is left: tasks that are finished."""
        cdef Py_ssize_t dropped
        self.close_ring()
        if immediate:
            dropped = _drop_items(self)
            notify_all(&self.not_empty)
            while dropped and self.finish():
                dropped -= 1

    def task_done(self):
        """Says that an item that was taken has been dealt with, for `join`. Never blocks; safe from any thread.

        ValueError when it is called more often than items were put. Who does not use it pays nothing for it.
        """
        if not self.finish():
            self.check_made()
            raise ValueError("task_done() called too many times")

    def join(self):
        """Blocks until `task_done` has been called for every item that was put. Safe from any thread."""
        self.check_made()
        if not all_finished(self):
            wait_for(&self.all_finished, join_attempt, join_attempt, <void*>self, NULL, 0, NEVER)

    @property
    def unfinished_tasks(self):
        """For how many of the items that were put `task_done` has not been called; a snapshot."""
        cdef uint64_t finished
        self.check_made()
        finished = self.finished.load(memory_order_seq_cst)  # seq_cst: as in all_finished
        return put_count(self.ring) - finished

    def __len__(self):
        """How many items are there; a snapshot."""
        self.check_made()
        return size(self.ring)

    def __bool__(self):
        return True  # an empty ring is a ring

    def qsize(self):
        """How many items are there; a snapshot."""
        self.check_made()
        return size(self.ring)

    def empty(self):
        """Whether no item is there; a snapshot."""
        self.check_made()
        return not has_items(self.ring)

    def full(self):
        """Whether there is no room; a snapshot."""
        self.check_made()
        return size(self.ring) == self.capacity

    @property
    def maxsize(self):
        """The capacity, by `queue.Queue`'s name."""
        self.check_made()
        return self.capacity

    @property
    def closed(self):
        """Whether the ring is closed; once True, for ever."""
        self.check_made()
        return is_shut(self.ring)

    @property
    def is_shutdown(self):
        """`closed`, by `queue.Queue`'s name."""
        self.check_made()
        return is_shut(self.ring)

    def __iter__(self):
        """Takes items until the ring is closed and drained. Several threads may iterate and share the items."""
        return self

    def __next__(self):
        cdef PyObject* item = NULL
        if self.get_item(&item, NEVER, True) != DONE:
            self.check_made()
            raise StopIteration
        return steal(item)

    def __contains__(self, item):
        raise TypeError("`in` would consume the ring's items: iterate it instead")

    def __repr__(self):
        if self.ring == unmade:
            return f"<{type(self).__name__}, not initialized>"
        state = "closed" if is_shut(self.ring) else "open"
        return f"<{type(self).__name__} {state}, {size(self.ring)} of {self.capacity}>"

    def __reduce__(self):
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied: its waiters live in this process")


cdef object checked_max(object value):
    # The `max` of a get_many that was given one.
    return value if type(value) is int and value >= 1 else check_count("max", value, 1, optional=True)


cdef tuple copy_of(tuple items):
    # tuple() of a tuple makes no copy; by way of a list, CPython 3.11 and 3.12 leak the tuple where memory is short.
    cdef Py_ssize_t k, length = len(items)
    cdef tuple copy = PyTuple_New(length)
    cdef PyObject* item
    for k in range(length):
        item = (<PyTupleObject*>items).ob_item[k]
        Py_INCREF(<object>item)  # the copy's
        (<PyTupleObject*>copy).ob_item[k] = item
    return copy


# ---------------------------------------------------------------------------------------------------------------
# errors

cdef object _raise_put(RingBuffer ring, int result):
    if result == SHUT:
        ring.check_made()
        raise Closed(f"put on a closed ring: {describe(ring)}")
    raise Full


cdef object _raise_put_many(RingBuffer ring, int result, Py_ssize_t count, list rest):
    ring.check_made()
    error = Closed(f"put on a closed ring: {describe(ring)}") if result == SHUT else Full()
    error.count = count
    error.rest = rest
    raise error


cdef object _raise_get(RingBuffer ring, int result):
    if result == SHUT:
        ring.check_made()
        raise Closed(f"get from a ring that is closed and drained: {describe(ring)}")
    raise Empty


# ---------------------------------------------------------------------------------------------------------------
# put_nowait's short way in. What Cython compiles to take an argument that may be given by name costs as much as the put
# itself, so the type's table of methods names a function that looks once and leaves all else to Cython's.

ctypedef PyObject* (*Method)(PyObject*, PyObject**, Py_ssize_t, PyObject*) noexcept
ctypedef void (*Function)()  # any: compilers warn of a cast between two others

cdef Method cython_put

cdef PyObject* put_one(PyObject* self, PyObject** args, Py_ssize_t count, PyObject* names) noexcept:
    cdef PyObject* item
    if names == NULL and count == 1:
        item = args[0]
        Py_INCREF(<object>item)  # the slot's, if it gets there
        if put_at_once((<RingBuffer>self).ring, item):
            notify(&(<RingBuffer>self).not_empty)
            Py_INCREF(None)  # the caller's
            return <PyObject*>None
        Py_DECREF(<object>item)
    return cython_put(self, args, count, names)

cdef PyMethodDef* method = (<PyTypeObject*>RingBuffer).tp_methods
while method.ml_name != NULL and strcmp(method.ml_name, "put_nowait"):
    method += 1
if (
    method.ml_name != NULL
    and method.ml_flags == METH_FASTCALL | METH_KEYWORDS
    and method.ml_meth != <PyCFunction><Function>put_one  # by an import that failed after this
):
    cython_put = <Method><Function>method.ml_meth
    method.ml_meth = <PyCFunction><Function>put_one


# ---------------------------------------------------------------------------------------------------------------
# the garbage collector: Cython knows nothing of the slots (rule 11)

cdef Py_ssize_t _drop_items(RingBuffer self) noexcept:
    # Takes and releases what is there now, and counts it; each DECREF may run anything, which finds the ring whole.
    cdef PyObject* item = NULL
    cdef Py_ssize_t left = size(self.ring), dropped = 0
    while dropped < left and try_get(self.ring, &item, NULL) == DONE:
        dropped += 1
        Py_DECREF(<object>item)
    return dropped


cdef PyTypeObject* ring_type = <PyTypeObject*>RingBuffer
cdef traverseproc base_traverse = ring_type.tp_traverse
cdef inquiry base_clear = ring_type.tp_clear


cdef int ring_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    # The collector runs with all attached threads stopped, or with the GIL: no slot is between claim and stamp.
    cdef Ring* ring = (<RingBuffer>self).ring
    cdef uint64_t head, tail
    cdef int status = base_traverse(self, visit, arg)
    if not status:
        status = visit_sleepers(&(<RingBuffer>self).not_empty, visit, arg)
    if not status:
        status = visit_sleepers(&(<RingBuffer>self).not_full, visit, arg)
    if status or ring == NULL or ring.slots == NULL:
        return status
    head = ring.head.load(memory_order_relaxed)  # relaxed: see above
    tail = without_closed(ring.tail.load(memory_order_relaxed))  # relaxed: see above
    while head != tail:
        status = visit(ring.slots[head & (ring.one_lap - 1)].item, arg)
        if status:
            return status
        head = after(ring, head, 1)
    return 0


cdef int ring_clear(PyObject* ring) noexcept:
    _drop_items(<RingBuffer>ring)
    return base_clear(ring)


ring_type.tp_traverse = ring_traverse
ring_type.tp_clear = ring_clear
