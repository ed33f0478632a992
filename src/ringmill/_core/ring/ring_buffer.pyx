# RingBuffer: the bounded queue of Python objects that users see, on the lock-free ring of ring.pxd.
# Longer than most files: one class, with all the calls of `queue.Queue`, their awaitable twins, and their docstrings.
#
# May use `platform` and `waiting`. Waiting follows the protocol of wait_queue.pyx: each put is followed by
# notify(not_empty), each get by notify(not_full).
#
# Life of the C ring: `ring` is made in __init__, because a subclass may have an __init__ with other arguments, and
# freed in __dealloc__. Until __init__ has run (or if it never does), `ring` points to `unmade`, a ring shared by all
# such objects that is empty and closed: nothing can be put into it and nothing is found in it. So the common path needs
# no check; only the paths that handle a closed ring look whether it is `unmade`.
#
# Garbage collection: Cython does not traverse the slots (rule 11); the end of this file adds that.

import queue
from types import GenericAlias

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport memset, strcmp
from libc.stdint cimport uint64_t
from libcpp.atomic cimport (
    atomic,
    memory_order_acq_rel,
    memory_order_acquire,
    memory_order_relaxed,
    memory_order_seq_cst,
)

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
    set_stamp,
    shut,
    size,
    try_get,
    try_get_before,
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

# More slots than any address space holds: a ValueError, not a MemoryError.
MAX_CAPACITY = (1 << 47) // sizeof(Slot)


cdef Ring* allocate(Py_ssize_t capacity) noexcept:
    # A new ring, empty and open; NULL without memory.
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
        # relaxed: the ring becomes visible to other threads only with the object that owns it
        set_stamp(&ring.slots[index], index, memory_order_relaxed)
    return ring


cdef void deallocate(Ring* ring) noexcept:
    PyMem_RawFree(ring.slots)
    delete_ring(ring)


cdef Ring* unmade = allocate(1)  # the ring of every object that has not been initialized: see the head
if unmade == NULL:
    raise MemoryError
shut(unmade)


cdef inline uint64_t _since(atomic[uint64_t]* mark, uint64_t count) noexcept:
    # How far the count has moved since the last call. relaxed: only a hint, for the batching delay (spinning.pyx)
    cdef uint64_t last = mark.load(memory_order_relaxed)
    mark.store(count, memory_order_relaxed)
    return count - last


cdef struct ItemRequest:        # a put or a get that waits
    PyObject* ring
    PyObject* item

cdef int put_attempt(void* request) noexcept:
    return try_put((<RingBuffer>(<ItemRequest*>request).ring).ring, (<ItemRequest*>request).item, NULL)

cdef int put_counted(void* request) noexcept:
    # For a task, which may stay suspended without end: no reference that the collector cannot see is held meanwhile, so
    # the slot's reference is taken at each attempt.
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


# Tasks as queue.Queue counts them: each item put is an unfinished task until task_done() is called for it. The number
# of items ever put is known from the tail, so only task_done() needs a counter: unfinished = put_count - finished. Both
# only grow and finished never passes put_count, so a thread that reads finished and then an equal put_count knows that
# all were finished at the moment of the second read. Only a change of `finished` can make that true, so the thread that
# changes it checks and wakes the waiters. All these accesses are sequentially consistent, as wait_queue.pyx requires.

cdef inline bint all_finished(RingBuffer ring) noexcept:
    # seq_cst: a waiter's last check; must come before put_count, see above
    cdef uint64_t finished = ring.finished.load(memory_order_seq_cst)
    return put_count(ring.ring) == finished

cdef int join_attempt(void* ring) noexcept:
    return all_finished(<RingBuffer>ring)


@cython.trashcan(True)  # deallocates a long chain of nested rings without deep recursion
cdef class RingBuffer:
    """RingBuffer(capacity=..., *, maxsize=...)
--

    A bounded first-in first-out queue of Python objects: lock-free, many producers, many consumers, closable.

    Puts and gets are linearizable and may be called from any number of threads and event loops at once. `len()` and the
    other observations are snapshots, which may be out of date when they return. Any object may be an item, None
    included.

    `put_nowait`, `get_nowait`, `clear` and `close` never block and are re-entrant: they may be called from `__del__`,
    weakref callbacks, signal handlers and the garbage collector. A waiting thread spins for some microseconds at most, then
    uses no CPU; it never holds the GIL, and it wakes for KeyboardInterrupt.

    A subclass may have an `__init__` of its own, with any arguments, which must call `super().__init__(capacity)` once.
    Until it has, every method of the object raises RuntimeError.

    Args:
        capacity: The exact number of items that the ring can hold, from 1. Each costs 8 bytes, used or not; 16 on a
            free-threaded build.
        maxsize: `queue.Queue`'s name for `capacity`; give one of the two.

    Raises:
        TypeError: The capacity is missing, given twice, or not an integer.
        ValueError: The capacity is less than 1 (no ring is unbounded), or larger than any address space.
        MemoryError: The ring does not fit into memory.
        RuntimeError: `__init__` is called again: a ring that is in use keeps its capacity and its items.

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
        """See the class."""
        cdef Ring* ring
        if self.made.load(memory_order_relaxed):  # relaxed: the exchange decides
            _raise_made_twice(self)
        if capacity is ...:
            if maxsize is ...:
                raise TypeError("missing argument: capacity, or maxsize, which is another name for it")
            capacity = _checked_capacity("maxsize", maxsize)
        elif maxsize is not ...:
            raise TypeError("maxsize is another name for capacity: give one of them, not both")
        elif type(capacity) is not int or not 1 <= capacity <= MAX_CAPACITY:  # no Python code runs for an integer
            capacity = _checked_capacity("capacity", capacity)
        ring = allocate(capacity)
        if ring == NULL:
            raise MemoryError(f"a ring of {capacity} slots does not fit into memory")
        # acq_rel: if two threads initialize the object at once, only one of them does
        if exchange32(self.made, 1, memory_order_acq_rel):
            deallocate(ring)
            _raise_made_twice(self)
        self.ring = ring

    def __dealloc__(self):
        if self.ring == NULL or self.ring == unmade:
            return
        _drop_items(self, False)
        deallocate(self.ring)

    cdef int check_made(self) except -1:
        # For methods that do not fail on a closed ring anyway.
        if self.ring == unmade:
            raise RuntimeError(
                f"{type(self).__qualname__} has not been initialized: its __init__ must call super().__init__(capacity)"
            )
        return 0

    __class_getitem__ = classmethod(GenericAlias)

    # -----------------------------------------------------------------------------------------------------------
    # waiting

    cdef int put_item(self, PyObject* item, int64_t deadline, bint block) except -1:
        # Puts, waiting for room if `block`. DONE: the ring owns the caller's reference now; otherwise the caller keeps
        # it.
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
        # Takes an item, waiting for it if `block`. DONE: the caller owns the reference.
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
        # The rest of get_nowait, when the first look found nothing.
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
        # Counts one finished task, and wakes the waiters if it was the last. False: no task is unfinished.
        # acquire: pairs with the exchange: the thread that finished a task had seen its put, so the tail is at least as
        # new
        cdef uint64_t finished = self.finished.load(memory_order_acquire)
        while finished < put_count(self.ring):
            # seq_cst: publishes to waiters (wait_queue.pyx); acquire on failure: as the load above
            if swap64(self.finished, finished, finished + 1, memory_order_seq_cst, memory_order_acquire):
                # seq_cst: as in notify
                if all_finished(self) and self.all_finished.word.load(memory_order_seq_cst):
                    notify_all(&self.all_finished)
                return True
        return False

    # -----------------------------------------------------------------------------------------------------------
    # the Python interface

    def put(self, item, block=True, timeout=None):
        """Puts an item at the end, waiting for room.

        Blocks while the ring is full. May be called from any thread.

        Args:
            item: Any object.
            block: Whether to wait for room.
            timeout: Seconds to wait; None waits without limit. Ignored with `block=False`.

        Raises:
            queue.Full: There was no room in time. The item was not put.
            Closed: The ring is closed, or was closed while this call waited. The item was not put.
        """
        Py_INCREF(item)  # the slot's, if it gets there
        if timeout is None and put_at_once(self.ring, <PyObject*>item):  # without a `try`, which costs more than the rest
            notify(&self.not_empty)
            return
        self.put_or_wait(item, block, timeout)

    cdef int put_or_wait(self, object item, object block, object timeout) except -1:
        # The rest of put, when the first look found no room. Takes a reference that the caller has taken for the slot.
        cdef int64_t deadline = NEVER
        cdef int result
        try:
            if timeout is not None:
                deadline = deadline_of(timeout)
            result = self.put_item(<PyObject*>item, deadline, block)
        except BaseException:
            Py_DECREF(item)
            raise
        if result != DONE:
            Py_DECREF(item)
            _raise_put(self, result)
        return 0

    def put_nowait(self, item):
        """Puts an item at the end without waiting.

        Never blocks; re-entrant; may be called from any thread.

        Args:
            item: Any object.

        Raises:
            queue.Full: There is no room.
            Closed: The ring is closed.
        """
        cdef int result
        Py_INCREF(item)  # the slot's, if it gets there
        result = self.put_item(<PyObject*>item, NEVER, False)
        if result != DONE:
            Py_DECREF(item)
            _raise_put(self, result)

    def get(self, block=True, timeout=None):
        """Takes the oldest item, waiting for one.

        Blocks while the ring is empty. May be called from any thread.

        Args:
            block: Whether to wait for an item.
            timeout: Seconds to wait; None waits without limit. Ignored with `block=False`.

        Returns:
            The item.

        Raises:
            queue.Empty: No item came in time.
            Closed: The ring is closed and drained.
        """
        cdef PyObject* item = NULL
        if timeout is None and get_at_once(self.ring, &item):
            notify(&self.not_full)
            return steal(item)
        return self.get_or_wait(block, timeout)

    cdef object get_or_wait(self, object block, object timeout):
        # The rest of get, when the first look found nothing.
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
        """Takes the oldest item without waiting.

        Never blocks; re-entrant; may be called from any thread.

        Returns:
            The item.

        Raises:
            queue.Empty: There is no item.
            Closed: The ring is closed and drained.
        """
        cdef PyObject* item
        if get_at_once(self.ring, &item):
            notify(&self.not_full)
            return steal(item)
        return self.get_or_raise()

    def put_many(self, iterable, timeout=None):
        """Puts all items of an iterable, in order, waiting for room.

        Blocks until all are in. May be called from any thread. A list or tuple is put in batches of up to 128 items,
        each with one atomic claim; another iterable is drawn and put item by item. If the iterable raises, or
        KeyboardInterrupt arrives, the items that were put stay in the ring.

        Args:
            iterable: The items.
            timeout: Seconds for the whole call; None waits without limit.

        Returns:
            The number of items put.

        Raises:
            queue.Full: Not all items were put in time. The error's `count` is the number of items that were put, its
                `rest` the list of items that were drawn from the iterable and not put.
            Closed: The ring is closed, or was closed while this call waited. `count` and `rest` as above.
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
        # No other code has a reference to the tuple. Its references move to the ring and are replaced by NULL. The
        # collector may run in between and must not count them for the tuple as well, so the tuple is untracked.
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
            if result == NOT_NOW:  # wait until the next item alone is in, then go on
                result = self.put_item(owned[count], deadline, True)
                if result == DONE:
                    owned[count] = NULL
                    count += 1
            if result != DONE:
                _raise_put_many(self, result, count, [<object>owned[done] for done in range(count, total)])
        return count

    def get_many(self, max=None, timeout=None):
        """Waits for the first item, then takes all that are there, up to `max`.

        Blocks while the ring is empty. Takes no more items than were there when it began to take, so it ends even while
        other threads put. One atomic claim takes up to 128 items. May be called from any thread.

        Args:
            max: The largest number of items to take, from 1; None takes all.
            timeout: Seconds to wait for the first item; None waits without limit.

        Returns:
            A list of at least one item, in order.

        Raises:
            queue.Empty: No item came in time.
            Closed: The ring is closed and drained.
        """
        cdef int64_t deadline = deadline_of(timeout)
        cdef PyObject* item = NULL
        cdef int result
        cdef Py_ssize_t limit = self.ring.capacity
        if max is not None:
            max = checked_max(max)
            if max < limit:
                limit = max
        cdef Py_ssize_t length = size(self.ring)
        items = self._take(limit if limit < length else length, [])
        if items:
            return items
        items = [None]  # made before an item is taken: without memory for the list, the item would be lost
        result = self.get_item(&item, deadline, True)
        if result != DONE:
            _raise_get(self, result)
        items[0] = steal(item)
        length = size(self.ring)
        limit -= 1
        return self._take(limit if limit < length else length, items)

    cdef list _take(self, Py_ssize_t limit, list first):
        # Takes up to `limit` items without waiting. Returns a list of `first` and these. The list is made before the
        # claim, since nothing may fail after it; without memory for the list, `first` alone is returned.
        cdef Py_ssize_t done = 0, kept = len(first), k
        cdef PyObject* item
        cdef PyObject* items
        if limit == 0:
            return first
        items = PyList_New(kept + limit)
        if items == NULL:  # no try/except: Cython's code for it crashes without memory for a traceback
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
        """Puts an item at the end, awaiting room: `put` for a task of asyncio or trio.

        A cancelled await has put nothing. If there is room, asyncio's loop does not run in between; under trio each
        call is a checkpoint. Tasks of any loop and threads may use one ring together.

        Args:
            item: Any object.

        Raises:
            Closed: The ring is closed, or was closed during the await. The item was not put.
            RuntimeError: It has to wait, and no asyncio or trio loop runs on this thread.
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

        A cancelled await has taken nothing, so no item is lost. In all else as `aput`.

        Returns:
            The item.

        Raises:
            Closed: The ring is closed and drained.
            RuntimeError: It has to wait, and no asyncio or trio loop runs on this thread.
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
        """Returns the ring itself: `async for` takes items until the ring is closed and drained.

        Any number of tasks, of any loops, may iterate; each item goes to one of them.
        """
        return self

    async def __anext__(self):
        """Awaits and takes the oldest item; StopAsyncIteration when the ring is closed and drained."""
        cdef PyObject* item = NULL
        if not in_trio() and try_get(self.ring, &item, NULL) == DONE:  # the fast path; trio requires a checkpoint
            notify(&self.not_full)
            return steal(item)
        try:
            return await self.aget()
        except Closed:
            raise StopAsyncIteration from None

    def close(self):
        """Closes the ring: nothing more can be put, and what is in it can still be taken.

        Puts raise `Closed` from now on, those that are waiting included. Gets return the items that are left, then
        raise `Closed`. Idempotent; never blocks; re-entrant; may be called from any thread.
        """
        self.close_ring()

    def shutdown(self, immediate=False):
        """Closes the ring, by `queue.Queue`'s name for `close`.

        Never blocks; may be called from any thread.

        Args:
            immediate: Whether to drop the items that are left as well, as `clear` does.
        """
        self.close_ring()
        if immediate:
            _drop_items(self, True)
            notify_all(&self.not_empty)

    def clear(self):
        """Drops the items that are in the ring, oldest first, and counts them as finished for `join`.

        What is there when the call begins is dropped, except what other threads take in the meantime. An item that is
        put later stays, also if it takes the place of a dropped one; so the call ends while other threads put, and the
        ring need not be empty when it returns. For each item, in this order: its place is free, it is no longer an
        unfinished task, a waiting put goes on, and the ring's reference is dropped. A `join` returns once no task is
        unfinished; items that were taken and not yet reported by `task_done` are still waited for.

        Never blocks; re-entrant; may be called from any thread, and on a closed ring.

        Returns:
            The number of items dropped.
        """
        self.check_made()
        return _drop_items(self, True)

    def task_done(self):
        """Counts one item that was taken as finished, for `join`.

        Never blocks; may be called from any thread. Programs that do not call it pay nothing for it.

        Raises:
            ValueError: It was called more often than items were put.
        """
        if not self.finish():
            self.check_made()
            raise ValueError("task_done() called too many times")

    def join(self):
        """Blocks until `task_done` has been called for every item that was put. May be called from any thread."""
        self.check_made()
        if not all_finished(self):
            wait_for(&self.all_finished, join_attempt, join_attempt, <void*>self, NULL, 0, NEVER)

    @property
    def unfinished_tasks(self):
        """The number of items put for which `task_done` has not been called; a snapshot."""
        cdef uint64_t finished
        self.check_made()
        finished = self.finished.load(memory_order_seq_cst)  # seq_cst: as in all_finished
        return put_count(self.ring) - finished

    def __len__(self):
        """The number of items in the ring; a snapshot."""
        self.check_made()
        return size(self.ring)

    def __bool__(self):
        """Always True, also for an empty ring."""
        return True

    def qsize(self):
        """The number of items in the ring; a snapshot."""
        self.check_made()
        return size(self.ring)

    def empty(self):
        """Whether the ring has no items; a snapshot."""
        self.check_made()
        return not has_items(self.ring)

    def full(self):
        """Whether the ring has no room; a snapshot."""
        self.check_made()
        return <uint64_t>size(self.ring) == self.ring.capacity

    @property
    def capacity(self):
        """The number of items that the ring can hold."""
        self.check_made()
        return self.ring.capacity

    @property
    def maxsize(self):
        """The number of items that the ring can hold, by `queue.Queue`'s name for `capacity`."""
        self.check_made()
        return self.ring.capacity

    @property
    def closed(self):
        """Whether the ring is closed. Once True, it stays True; items may be left to take."""
        self.check_made()
        return is_shut(self.ring)

    @property
    def is_shutdown(self):
        """Whether the ring is closed, by `queue.Queue`'s name for `closed`."""
        self.check_made()
        return is_shut(self.ring)

    def __iter__(self):
        """Returns the ring itself: a loop takes items until the ring is closed and drained.

        Any number of threads may iterate; each item goes to one of them.
        """
        return self

    def __next__(self):
        """Waits for the oldest item and takes it; StopIteration when the ring is closed and drained."""
        cdef PyObject* item = NULL
        if self.get_item(&item, NEVER, True) != DONE:
            self.check_made()
            raise StopIteration
        return steal(item)

    def __contains__(self, item):
        """Not supported: a search would consume items."""
        raise TypeError("`in` would consume items of the ring: iterate the ring instead")

    def __repr__(self):
        if self.ring == unmade:
            return f"<{type(self).__name__}, not initialized>"
        state = "closed" if is_shut(self.ring) else "open"
        return f"<{type(self).__name__} {state}, {size(self.ring)} of {self.ring.capacity}>"

    def __reduce__(self):
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied: its waiters belong to this process")


cdef object _checked_capacity(str name, object value):
    number = check_count(name, value, None)
    if number < 1:
        raise ValueError(
            f"{name} must be from 1 to {MAX_CAPACITY}, got {describe(value)}: there is no unbounded ring"
        )
    return check_count(name, number, 1, MAX_CAPACITY)


cdef object checked_max(object value):
    # The `max` argument of get_many, which is not None.
    return value if type(value) is int and value >= 1 else check_count("max", value, 1, optional=True)


cdef tuple copy_of(tuple items):
    # tuple() of a tuple makes no copy, and a copy through a list leaks the tuple on CPython 3.11 and 3.12 when memory
    # is short.
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

cdef object _raise_made_twice(RingBuffer ring):
    raise RuntimeError(
        f"{type(ring).__qualname__}.__init__ was called on a ring that is initialized already: make another ring, or"
        " empty this one with clear()"
    )


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
# The fast path of put_nowait. Cython's code for an argument that may be given by keyword costs as much as the put
# itself, so the type's method table names this function instead: it tries once and leaves every other case to Cython's
# function.

ctypedef PyObject* (*Method)(PyObject*, PyObject**, Py_ssize_t, PyObject*) noexcept
ctypedef void (*Function)()  # the type to cast through: compilers warn of casts between other function types

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
    and method.ml_meth != <PyCFunction><Function>put_one  # replaced already by an import that failed later
):
    cython_put = <Method><Function>method.ml_meth
    method.ml_meth = <PyCFunction><Function>put_one


# ---------------------------------------------------------------------------------------------------------------
# garbage collection: Cython does not traverse the slots (rule 11)

cdef Py_ssize_t _drop_items(RingBuffer self, bint in_use) noexcept:
    # Takes and drops the items that are there now; returns their number. `in_use`: other threads use the ring, so they
    # are told. A DECREF may run any code, which finds the ring in a consistent state.
    cdef PyObject* item = NULL
    # seq_cst: every put that has returned is before this limit
    cdef uint64_t limit = without_closed(self.ring.tail.load(memory_order_seq_cst))
    cdef Py_ssize_t dropped = 0
    while try_get_before(self.ring, limit, &item):
        dropped += 1
        if in_use:
            self.finish()
            notify(&self.not_full)
        Py_DECREF(<object>item)  # the slot's reference, which try_get_before gave to this function
    return dropped


cdef PyTypeObject* ring_type = <PyTypeObject*>RingBuffer
cdef traverseproc base_traverse = ring_type.tp_traverse
cdef inquiry base_clear = ring_type.tp_clear


cdef int ring_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    # The collector runs with the GIL, or with all attached threads stopped: no slot is between its claim and its stamp.
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
    # Closed first: a publisher that waits for room in a subscription, which is garbage too, must not put an item into
    # the room that comes here. It is woken when the subscription ends (subscription.pyx).
    if (<RingBuffer>ring).ring != NULL:
        shut((<RingBuffer>ring).ring)
    _drop_items(<RingBuffer>ring, False)
    return base_clear(ring)


ring_type.tp_traverse = ring_traverse
ring_type.tp_clear = ring_clear
