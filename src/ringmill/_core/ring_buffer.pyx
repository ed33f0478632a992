# A bounded lock-free FIFO queue of Python objects: many producers, many consumers, closable.
#
# The algorithm is that of crossbeam's array channel (which credits Dmitry Vyukov's bounded MPMC queue), with exact
# capacity, ordered operations in place of its fences, and claims of several slots at once.
#
# A word (head, tail, or a slot's stamp) is a lap in its upper bits and an index in its lower bits; one_lap is the
# power of two above the capacity. The tail's top bit says closed. A slot's stamp tells whose turn it is:
#
#   stamp == tail            the slot is free for the put at `tail`
#   stamp == head + 1        it holds the item for the get at `head`
#   anything else            another thread is between its claim and its publication, or our word is stale
#
#   put: read the stamp (acquire); claim by compare-exchange of tail (seq_cst); write; stamp = tail + 1 (release)
#   get: read the stamp (acquire); claim by compare-exchange of head (seq_cst); read; stamp = head + one_lap (release)
#
# A put takes effect at its claim of tail, a get at its claim of head, so the order of the positions is the order of
# the queue. Empty: stamp == head and then tail == head (seq_cst load). Neither cursor goes back and head never passes
# tail, so both had that value at one moment, in which the ring was empty. Full likewise: head + one_lap == tail. A
# slot claimed but not published is neither: who meets one waits for it, a few instructions of another thread's.
#
# Closing sets the bit in the tail word, so a claim of tail after it fails; a claim before it is an item that getters
# drain. After the bit is set tail stands still, so a getter that finds closed and empty is right for ever.
#
# Owners: the caller of a put owns a reference and gives it to the slot by the claim; the getter whose claim takes the
# slot owns it from then on. Between a claim and its stamp there is no Python API, hence no signal handler, no
# collector, no detaching: on a GIL build nobody ever sees a claimed slot, on a free-threaded build the collector
# stops attached threads elsewhere. Sleeping and waking: waiter.pyx; each put is followed by notify(not_empty), each
# get by notify(not_full).

import operator
import queue
from types import GenericAlias

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_acquire, memory_order_relaxed, memory_order_release, memory_order_seq_cst

from ringmill._core.waiter cimport (
    NEVER,
    deadline_of,
    init_queue,
    notify,
    notify_all,
    pause,
    steal,
    wait_for,
    yield_processor,
)

from ringmill.errors import Closed

cdef object Full = queue.Full
cdef object Empty = queue.Empty

cdef extern from "Python.h":
    object PyList_New(Py_ssize_t size)
    PyObject* PyTuple_GET_ITEM(PyObject* tuple, Py_ssize_t index)
    void Py_SET_SIZE(PyObject* list, Py_ssize_t size)
    ctypedef struct PyListObject:
        PyObject** ob_item
    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear

cdef extern from *:
    """
    #include <new>
    static inline RingmillCursors* ringmill_new_cursors(void) { return new (std::nothrow) RingmillCursors(); }
    static inline void ringmill_delete_cursors(RingmillCursors* c) { delete c; }
    """
    Cursors* new_cursors "ringmill_new_cursors"() noexcept
    void delete_cursors "ringmill_delete_cursors"(Cursors*) noexcept

cdef uint64_t CLOSED = <uint64_t>1 << 63
cdef enum:
    BATCH = 128                 # slots that one claim takes at most: bounds how long others wait for one of them
# More slots than any address space holds are an error of the caller's, not a lack of memory.
MAX_CAPACITY = (1 << 47) // sizeof(Slot)


cdef inline void relax(int* spins) noexcept nogil:
    # Waits for a thread that is between a claim and its publication.
    spins[0] += 1
    if spins[0] < 64:
        pause()
    else:
        yield_processor()


cdef struct Wish:               # what a waiting put or get wants
    PyObject* ring
    PyObject* item

cdef int put_attempt(void* wish) noexcept:
    return (<RingBuffer>(<Wish*>wish).ring).try_put((<Wish*>wish).item, NULL)

cdef int put_more(void* wish) noexcept:
    return (<RingBuffer>(<Wish*>wish).ring).has_room()

cdef int get_attempt(void* wish) noexcept:
    return (<RingBuffer>(<Wish*>wish).ring).try_get(&(<Wish*>wish).item, NULL)

cdef int get_more(void* wish) noexcept:
    return (<RingBuffer>(<Wish*>wish).ring).has_items()


@cython.trashcan(True)  # a long chain of rings in rings is dropped without as deep a recursion
cdef class RingBuffer:
    """A bounded first-in first-out queue of Python objects, lock-free, closable.

    Many threads may put and get at once. `capacity` is exact, any integer from 1 (items; not rounded). A put and a
    get are linearizable; `len` and the other observations are snapshots, which may be out of date when they return.
    An item costs 16 bytes of capacity, whether it is there or not.

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

    def __cinit__(self, capacity, *args, **kwargs):
        cdef uint64_t index
        if isinstance(capacity, float) or not hasattr(type(capacity), "__index__"):
            raise TypeError(f"capacity must be an integer, not {capacity!r}")
        capacity = operator.index(capacity)
        if not 1 <= capacity <= MAX_CAPACITY:
            raise ValueError(f"capacity must be from 1 to {MAX_CAPACITY}, got {capacity!r}")
        self.capacity = capacity
        self.one_lap = 2
        while self.one_lap <= <uint64_t>self.capacity:
            self.one_lap *= 2
        init_queue(&self.not_empty)
        init_queue(&self.not_full)
        self.cursors = new_cursors()
        self.slots = <Slot*>PyMem_RawMalloc(self.capacity * sizeof(Slot))
        if self.cursors == NULL or self.slots == NULL:
            raise MemoryError(f"a ring of {capacity!r} slots does not fit in memory")
        for index in range(<uint64_t>self.capacity):
            # relaxed: the ring is published to other threads by whoever hands the object over
            self.slots[index].stamp.store(index, memory_order_relaxed)

    def __init__(self, capacity):
        pass  # everything is written once, in __cinit__

    def __dealloc__(self):
        if self.cursors and self.slots:
            _drop_items(self)
        delete_cursors(self.cursors)
        PyMem_RawFree(self.slots)

    __class_getitem__ = classmethod(GenericAlias)

    # -----------------------------------------------------------------------------------------------------------
    # the ring itself

    cdef inline uint64_t _after(self, uint64_t word, uint64_t count) noexcept nogil:
        # The word `count` (at most the capacity) positions further.
        cdef uint64_t index = (word & (self.one_lap - 1)) + count
        if index < <uint64_t>self.capacity:
            return word + count
        return (word & ~(self.one_lap - 1)) + self.one_lap + (index - <uint64_t>self.capacity)

    cdef inline uint64_t _between(self, uint64_t head, uint64_t tail) noexcept nogil:
        # How many positions from head to tail; tail is not behind head, and not more than a lap ahead.
        cdef uint64_t mask = self.one_lap - 1
        cdef uint64_t count = (tail & mask) - (head & mask)  # modulo 2**64 where the index wrapped
        return count if (tail & ~mask) == (head & ~mask) else count + <uint64_t>self.capacity

    cdef inline uint64_t _position(self, uint64_t word) noexcept nogil:
        # How many came before: lap * capacity + index.
        return (word & ~CLOSED) // self.one_lap * <uint64_t>self.capacity + (word & (self.one_lap - 1))

    cdef Result try_put(self, PyObject* item, uint64_t* position) noexcept nogil:
        # The caller's reference goes to the slot if DONE. `position`, unless NULL, gets how many were put before.
        cdef uint64_t tail = self.cursors.tail.load(memory_order_acquire)  # acquire: not older than a close before us
        cdef uint64_t stamp
        cdef Slot* slot
        cdef int spins = 0
        while not tail & CLOSED:
            slot = &self.slots[tail & (self.one_lap - 1)]
            stamp = slot.stamp.load(memory_order_acquire)  # acquire: pairs with the release in try_get
            if stamp == tail:
                # seq_cst: the claim, which also publishes to sleepers (waiter.pyx); relaxed on failure: we look again
                if self.cursors.tail.compare_exchange_weak(
                    tail, self._after(tail, 1), memory_order_seq_cst, memory_order_relaxed
                ):
                    slot.item = item  # the slot owns the reference now
                    slot.stamp.store(tail + 1, memory_order_release)  # release: the item; pairs with try_get
                    if position:
                        position[0] = self._position(tail)
                    return DONE
                continue
            # seq_cst: full is decided on both cursors; pairs with the claim in try_get
            if stamp + self.one_lap == tail + 1:
                if self.cursors.head.load(memory_order_seq_cst) + self.one_lap == tail:
                    return NOT_NOW
            relax(&spins)
            tail = self.cursors.tail.load(memory_order_acquire)  # acquire: as above
        return SHUT

    cdef Result try_get(self, PyObject** item, uint64_t* position) noexcept nogil:
        # The slot's reference goes to the caller if DONE. `position` as in try_put.
        cdef uint64_t head = self.cursors.head.load(memory_order_acquire)  # acquire: not older than our last get
        cdef uint64_t stamp, tail
        cdef Slot* slot
        cdef int spins = 0
        while True:
            slot = &self.slots[head & (self.one_lap - 1)]
            stamp = slot.stamp.load(memory_order_acquire)  # acquire: pairs with the release in try_put
            if stamp == head + 1:
                # seq_cst: the claim, which also publishes to sleepers (waiter.pyx); relaxed on failure: we look again
                if self.cursors.head.compare_exchange_weak(
                    head, self._after(head, 1), memory_order_seq_cst, memory_order_relaxed
                ):
                    item[0] = slot.item  # the caller owns the reference now
                    slot.stamp.store(head + self.one_lap, memory_order_release)  # release: the read; pairs with try_put
                    if position:
                        position[0] = self._position(head)
                    return DONE
                continue
            if stamp == head:
                # seq_cst: empty is decided on both cursors; pairs with the claim in try_put
                tail = self.cursors.tail.load(memory_order_seq_cst)
                if tail & ~CLOSED == head:
                    return SHUT if tail & CLOSED else NOT_NOW
            relax(&spins)
            head = self.cursors.head.load(memory_order_acquire)  # acquire: as above

    cdef Result try_put_many(self, PyObject** items, Py_ssize_t count, Py_ssize_t* done) noexcept nogil:
        # Puts as many as there is room for. The first `done` of the caller's references are the slots' then.
        cdef uint64_t tail, head, room, claimed, k
        cdef Slot* slot
        cdef int spins = 0
        done[0] = 0
        while done[0] < count:
            tail = self.cursors.tail.load(memory_order_acquire)  # acquire: as in try_put
            if tail & CLOSED:
                return SHUT
            head = self.cursors.head.load(memory_order_seq_cst)  # seq_cst: as in try_put, for full
            if head > tail:
                continue  # tail was stale: getters have passed it
            room = <uint64_t>self.capacity - self._between(head, tail)
            if room == 0:
                return NOT_NOW
            claimed = min(room, <uint64_t>(count - done[0]), <uint64_t>BATCH)
            # seq_cst and relaxed: as in try_put
            if not self.cursors.tail.compare_exchange_weak(
                tail, self._after(tail, claimed), memory_order_seq_cst, memory_order_relaxed
            ):
                continue
            for k in range(claimed):
                slot = &self.slots[tail & (self.one_lap - 1)]
                # acquire: pairs with the release in try_get; its getter has claimed it, and is about to leave
                while slot.stamp.load(memory_order_acquire) != tail:
                    relax(&spins)
                slot.item = items[done[0]]  # the slot owns the reference now
                slot.stamp.store(tail + 1, memory_order_release)  # release: the item; pairs with try_get
                done[0] += 1
                tail = self._after(tail, 1)
        return DONE

    cdef Result try_get_many(self, PyObject** items, Py_ssize_t count, Py_ssize_t* done) noexcept nogil:
        # Takes up to `count`, and no more than the tail it first saw. `done` references are the caller's then.
        cdef uint64_t head, tail, limit, claimed, k
        cdef Slot* slot
        cdef int spins = 0
        done[0] = 0
        limit = self.cursors.tail.load(memory_order_seq_cst)  # seq_cst: as in try_get, for empty
        while done[0] < count:
            head = self.cursors.head.load(memory_order_seq_cst)  # seq_cst: empty is decided on both
            tail = limit & ~CLOSED
            if head >= tail:
                if done[0]:
                    return DONE
                limit = self.cursors.tail.load(memory_order_seq_cst)  # seq_cst: as in try_get, for empty
                if limit & ~CLOSED == head:
                    return SHUT if limit & CLOSED else NOT_NOW
                continue  # others have passed the tail that we saw
            claimed = min(self._between(head, tail), <uint64_t>(count - done[0]), <uint64_t>BATCH)
            # seq_cst and relaxed: as in try_get
            if not self.cursors.head.compare_exchange_weak(
                head, self._after(head, claimed), memory_order_seq_cst, memory_order_relaxed
            ):
                continue
            for k in range(claimed):
                slot = &self.slots[head & (self.one_lap - 1)]
                # acquire: pairs with the release in try_put; its putter has claimed it, and is about to publish
                while slot.stamp.load(memory_order_acquire) != head + 1:
                    relax(&spins)
                items[done[0]] = slot.item  # the caller owns the reference now
                slot.stamp.store(head + self.one_lap, memory_order_release)  # release: the read; pairs with try_put
                done[0] += 1
                head = self._after(head, 1)
        return DONE

    cdef void prefill(self, PyObject** items) noexcept nogil:
        # Fills a new ring that nobody else knows yet to its capacity, and closes it. The references go to the slots.
        cdef uint64_t index
        for index in range(<uint64_t>self.capacity):
            self.slots[index].item = items[index]
            self.slots[index].stamp.store(index + 1, memory_order_relaxed)  # relaxed: the ring is not published yet
        self.cursors.tail.store(self.one_lap | CLOSED, memory_order_relaxed)  # relaxed: the same

    cdef bint shut(self) noexcept nogil:
        # seq_cst: as any claim of the tail. True for the first.
        return not self.cursors.tail.fetch_or(CLOSED, memory_order_seq_cst) & CLOSED

    cdef uint64_t put_count(self) noexcept nogil:
        # How many were ever put. seq_cst: read by those who ask whether all has been put that will be.
        return self._position(self.cursors.tail.load(memory_order_seq_cst))

    cdef uint64_t get_count(self) noexcept nogil:
        # How many were ever taken. seq_cst: as put_count.
        return self._position(self.cursors.head.load(memory_order_seq_cst))

    cdef Py_ssize_t length(self) noexcept nogil:
        cdef uint64_t head, tail
        while True:
            # seq_cst: tail stood still while head was read, so both were true at once
            tail = self.cursors.tail.load(memory_order_seq_cst)
            head = self.cursors.head.load(memory_order_seq_cst)
            if self.cursors.tail.load(memory_order_seq_cst) == tail:
                return self._between(head, tail & ~CLOSED)

    cdef bint is_shut(self) noexcept nogil:
        return self.cursors.tail.load(memory_order_seq_cst) & CLOSED != 0  # seq_cst: a sleeper's last look

    cdef bint has_items(self) noexcept nogil:
        # seq_cst: a sleeper's last look (waiter.pyx)
        return self.cursors.head.load(memory_order_seq_cst) != self.cursors.tail.load(memory_order_seq_cst) & ~CLOSED

    cdef bint has_room(self) noexcept nogil:
        # seq_cst: a sleeper's last look. Tail first: head only grows, so room is never missed.
        cdef uint64_t tail = self.cursors.tail.load(memory_order_seq_cst)
        return self.cursors.head.load(memory_order_seq_cst) + self.one_lap != tail & ~CLOSED

    # -----------------------------------------------------------------------------------------------------------
    # waiting

    cdef int put_item(self, PyObject* item, int64_t deadline, bint block) except -1:
        # Puts, waiting for room. The caller's reference goes to the ring if DONE, and stays the caller's otherwise.
        cdef Wish wish
        cdef int result = self.try_put(item, NULL)
        if result == NOT_NOW and block:
            wish.ring = <PyObject*>self
            wish.item = item
            result = wait_for(&self.not_full, put_attempt, put_more, &wish, NULL, deadline)
        if result == DONE:
            notify(&self.not_empty)
        return result

    cdef int get_item(self, PyObject** item, int64_t deadline, bint block) except -1:
        # Takes one, waiting for it. The caller owns the reference if DONE.
        cdef Wish wish
        cdef int result = self.try_get(item, NULL)
        if result == NOT_NOW and block:
            wish.ring = <PyObject*>self
            result = wait_for(&self.not_empty, get_attempt, get_more, &wish, NULL, deadline)
            item[0] = wish.item
        if result == DONE:
            notify(&self.not_full)
        return result

    cdef bint close_ring(self) except -1:
        cdef bint first = self.shut()
        notify_all(&self.not_empty)
        notify_all(&self.not_full)
        return first

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
        result = self.try_put(<PyObject*>item, NULL)
        if result != DONE:
            Py_DECREF(item)
            _raise_put(self, result)
        notify(&self.not_empty)

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
        cdef PyObject* item = NULL
        cdef int result = self.try_get(&item, NULL)
        if result != DONE:
            _raise_get(self, result)
        notify(&self.not_full)
        return steal(item)

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
        if type(iterable) is list or type(iterable) is tuple:
            return self._put_tuple(tuple(iterable), deadline)
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
        cdef Py_ssize_t total = len(items), count = 0, done, k, chunk
        cdef PyObject* borrowed[128]
        cdef int result
        while count < total:
            chunk = min(total - count, BATCH)
            for k in range(chunk):
                borrowed[k] = PyTuple_GET_ITEM(<PyObject*>items, count + k)
                Py_INCREF(<object>borrowed[k])  # the slot's, if it gets there
            result = self.try_put_many(borrowed, chunk, &done)
            for k in range(done, chunk):
                Py_DECREF(<object>borrowed[k])  # the tuple still owns one
            count += done
            if done:
                notify(&self.not_empty)
            if result == NOT_NOW:
                # No room for more: wait with the next one alone, then go on in chunks.
                Py_INCREF(<object>borrowed[done])  # the slot's, if it gets there
                try:
                    result = self.put_item(borrowed[done], deadline, True)
                except BaseException:
                    Py_DECREF(<object>borrowed[done])
                    raise
                if result == DONE:
                    count += 1
                else:
                    Py_DECREF(<object>borrowed[done])
            if result != DONE:
                _raise_put_many(self, result, count, list(items[count:]))
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
            if isinstance(max, float) or not hasattr(type(max), "__index__"):
                raise TypeError(f"max must be an integer or None, not {max!r}")
            max = operator.index(max)
            if max < 1:
                raise ValueError(f"max must be at least 1, got {max!r}")
            if max < limit:
                limit = max
        cdef Py_ssize_t length = self.length()
        items = self._take(limit if limit < length else length)
        if items:
            return items
        result = self.get_item(&item, deadline, True)
        if result != DONE:
            _raise_get(self, result)
        items = [steal(item)]
        length = self.length()
        limit -= 1
        if limit and length:
            items += self._take(limit if limit < length else length)
        return items

    cdef list _take(self, Py_ssize_t limit):
        # Up to `limit` items, without waiting, in a list made beforehand: nothing can fail after the claim.
        cdef Py_ssize_t done = 0, part = 0
        cdef int result
        if limit == 0:
            return []
        items = PyList_New(limit)
        result = self.try_get_many((<PyListObject*>items).ob_item, limit, &done)
        Py_SET_SIZE(<PyObject*>items, done)
        if done:
            notify(&self.not_full)
        return items

    def close(self):
        """Closes the ring. Puts fail with `Closed` from now on, blocked ones included, and keep their item; getters
        drain what is left, then get `Closed`. Idempotent, never blocks, re-entrant; safe from any thread."""
        self.close_ring()

    def shutdown(self, immediate=False):
        """`close` by `queue.Queue`'s name; `immediate=True` also drops what is left."""
        self.close_ring()
        if immediate:
            _drop_items(self)
            notify_all(&self.not_empty)

    def __len__(self):
        """How many items are there; a snapshot."""
        return self.length()

    def __bool__(self):
        return True  # an empty ring is a ring

    def qsize(self):
        """How many items are there; a snapshot."""
        return self.length()

    def empty(self):
        """Whether no item is there; a snapshot."""
        return not self.has_items()

    def full(self):
        """Whether there is no room; a snapshot."""
        return self.length() == self.capacity

    @property
    def closed(self):
        """Whether the ring is closed; once True, for ever."""
        return self.is_shut()

    def __iter__(self):
        """Takes items until the ring is closed and drained. Several threads may iterate and share the items."""
        return self

    def __next__(self):
        cdef PyObject* item = NULL
        if self.get_item(&item, NEVER, True) != DONE:
            raise StopIteration
        return steal(item)

    def __repr__(self):
        state = "closed" if self.is_shut() else "open"
        return f"<{type(self).__name__} {state}, {self.length()} of {self.capacity}>"

    def __reduce__(self):
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied: its waiters live in this process")


# ---------------------------------------------------------------------------------------------------------------
# errors

cdef object _raise_put(RingBuffer ring, int result):
    if result == SHUT:
        raise Closed(f"put on a closed ring: {ring!r}")
    raise Full


cdef object _raise_put_many(RingBuffer ring, int result, Py_ssize_t count, list rest):
    error = Closed(f"put on a closed ring: {ring!r}") if result == SHUT else Full()
    error.count = count
    error.rest = rest
    raise error


cdef object _raise_get(RingBuffer ring, int result):
    if result == SHUT:
        raise Closed(f"get from a ring that is closed and drained: {ring!r}")
    raise Empty


# ---------------------------------------------------------------------------------------------------------------
# the garbage collector: Cython knows nothing of the slots (rule 11)

cdef void _drop_items(RingBuffer self) noexcept:
    # Takes and releases what is there now; each DECREF may run anything, which finds the ring whole.
    cdef PyObject* item = NULL
    cdef Py_ssize_t left = self.length()
    while left > 0 and self.try_get(&item, NULL) == DONE:
        Py_DECREF(<object>item)
        left -= 1


cdef PyTypeObject* ring_type = <PyTypeObject*>RingBuffer
cdef traverseproc base_traverse = ring_type.tp_traverse
cdef inquiry base_clear = ring_type.tp_clear


cdef int ring_traverse(PyObject* ring, visitproc visit, void* arg) noexcept:
    # The collector runs with all attached threads stopped, or with the GIL: no slot is between claim and stamp.
    cdef uint64_t head, tail
    cdef int status = base_traverse(ring, visit, arg)
    if status or (<RingBuffer>ring).cursors == NULL or (<RingBuffer>ring).slots == NULL:
        return status
    head = (<RingBuffer>ring).cursors.head.load(memory_order_relaxed)  # relaxed: see above
    tail = (<RingBuffer>ring).cursors.tail.load(memory_order_relaxed) & ~CLOSED  # relaxed: see above
    while head != tail:
        status = visit((<RingBuffer>ring).slots[head & ((<RingBuffer>ring).one_lap - 1)].item, arg)
        if status:
            return status
        head = (<RingBuffer>ring)._after(head, 1)
    return 0


cdef int ring_clear(PyObject* ring) noexcept:
    _drop_items(<RingBuffer>ring)
    return base_clear(ring)


ring_type.tp_traverse = ring_traverse
ring_type.tp_clear = ring_clear
