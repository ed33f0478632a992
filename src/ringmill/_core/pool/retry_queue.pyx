# Operations that wait for another try: in order (RetryQueue), or for the end of a delay (DelayHeap).
#
# Both are written under the lock of the pool that has them, and every method but `reserve` is called under it. So no
# method allocates, calls Python, or drops a reference (rule 7 of the core): the links of a queue are in its entries, the
# array of a heap grows in `reserve`, before the lock is taken, and an entry that leaves takes the reference with it, for
# the caller to drop after the unlock. What becomes of the entries is in retry_routing.pyx.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from ringmill._core.waiting.wait_queue cimport SpinLock, acquire, release

cdef extern from "Python.h":
    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef PyObject* (*newfunc)(PyTypeObject*, PyObject*, PyObject*) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear
        newfunc tp_new


cdef class RetryEntry:
    pass


cdef tuple no_arguments = ()
cdef PyTypeObject* entry_type = <PyTypeObject*>RetryEntry


cdef PyObject* new_entry(PyObject* operation, PyObject* source, uint64_t position) noexcept:
    # The caller owns it. NULL, with MemoryError set, where there is no memory: for callers that must not lose what they
    # have claimed, and cannot use `except` (Cython's code for that needs memory itself).
    cdef PyObject* entry = entry_type.tp_new(entry_type, <PyObject*>no_arguments, NULL)
    if entry != NULL:
        (<RetryEntry>entry).operation = <OperationBase>operation
        (<RetryEntry>entry).source = <WorkSource>source
        (<RetryEntry>entry).position = position
    return entry


# ---------------------------------------------------------------------------------------------------------------
# in order

cdef class RetryQueue:
    def __dealloc__(self):
        queue_drop(self)

    cdef void append(self, PyObject* entry) noexcept nogil:
        # Takes the caller's reference.
        (<RetryEntry>entry).prev = self.last
        (<RetryEntry>entry).next = NULL
        if self.last:
            (<RetryEntry>self.last).next = entry
        else:
            self.first = entry
        self.last = entry
        self.length += 1

    cdef void unlink(self, PyObject* entry) noexcept nogil:
        # The reference is the caller's then.
        cdef PyObject* prev = (<RetryEntry>entry).prev
        cdef PyObject* following = (<RetryEntry>entry).next
        if prev:
            (<RetryEntry>prev).next = following
        else:
            self.first = following
        if following:
            (<RetryEntry>following).prev = prev
        else:
            self.last = prev
        (<RetryEntry>entry).next = (<RetryEntry>entry).prev = NULL
        self.length -= 1


cdef int queue_drop(RetryQueue self) noexcept:
    # No other thread has the queue any more.
    cdef PyObject* entry
    while self.first:
        entry = self.first
        self.unlink(entry)
        Py_DECREF(<object>entry)  # was the queue's
    return 0


# ---------------------------------------------------------------------------------------------------------------
# delayed: a binary heap, in which each entry knows its index, so that one that is cancelled leaves at once

cdef class DelayHeap:
    def __dealloc__(self):
        heap_drop(self)
        PyMem_RawFree(self.entries)

    cdef int reserve(self, SpinLock* lock) except -1:
        # A place for one push, which cannot fail then. Called without the lock.
        cdef PyObject** larger
        cdef PyObject** old
        cdef Py_ssize_t wanted
        while True:
            acquire(lock)
            if self.length + self.reserved < self.capacity:
                self.reserved += 1
                release(lock)
                return 0
            wanted = 2 * (self.length + self.reserved) + 16
            release(lock)
            larger = <PyObject**>PyMem_RawMalloc(wanted * sizeof(PyObject*))
            if larger == NULL:
                raise MemoryError
            acquire(lock)
            old = larger
            if self.capacity < wanted:
                if self.length:  # otherwise `entries` may be NULL, which memcpy must not be given
                    memcpy(larger, self.entries, self.length * sizeof(PyObject*))
                old = self.entries
                self.entries = larger
                self.capacity = wanted
            release(lock)
            PyMem_RawFree(old)

    cdef void give_back(self) noexcept nogil:
        # A reserved place is not needed.
        self.reserved -= 1

    cdef void push(self, PyObject* entry, int64_t due_ns) noexcept nogil:
        # Takes the caller's reference, and a reserved place.
        self.reserved -= 1
        (<RetryEntry>entry).due_ns = due_ns
        self.length += 1
        self.place_up(entry, self.length - 1)

    cdef void remove(self, PyObject* entry) noexcept nogil:
        # The reference is the caller's then.
        cdef Py_ssize_t index = (<RetryEntry>entry).place
        cdef PyObject* last
        self.length -= 1
        last = self.entries[self.length]
        if last != entry:
            if index > 0 and (<RetryEntry>last).due_ns < (<RetryEntry>self.entries[(index - 1) // 2]).due_ns:
                self.place_up(last, index)
            else:
                self.place_down(last, index)

    cdef PyObject* earliest(self) noexcept nogil:
        # Borrowed; NULL: there is none.
        return self.entries[0] if self.length else NULL

    cdef void place_up(self, PyObject* entry, Py_ssize_t index) noexcept nogil:
        cdef PyObject* parent
        while index > 0:
            parent = self.entries[(index - 1) // 2]
            if (<RetryEntry>parent).due_ns <= (<RetryEntry>entry).due_ns:
                break
            self.entries[index] = parent
            (<RetryEntry>parent).place = index
            index = (index - 1) // 2
        self.entries[index] = entry
        (<RetryEntry>entry).place = index

    cdef void place_down(self, PyObject* entry, Py_ssize_t index) noexcept nogil:
        cdef Py_ssize_t child = 2 * index + 1
        cdef PyObject* least
        while child < self.length:
            if (
                child + 1 < self.length
                and (<RetryEntry>self.entries[child + 1]).due_ns < (<RetryEntry>self.entries[child]).due_ns
            ):
                child += 1
            least = self.entries[child]
            if (<RetryEntry>entry).due_ns <= (<RetryEntry>least).due_ns:
                break
            self.entries[index] = least
            (<RetryEntry>least).place = index
            index = child
            child = 2 * index + 1
        self.entries[index] = entry
        (<RetryEntry>entry).place = index


cdef int heap_drop(DelayHeap self) noexcept:
    # As queue_drop.
    while self.length:
        self.length -= 1
        Py_DECREF(<object>self.entries[self.length])  # was the heap's
    return 0


# ---------------------------------------------------------------------------------------------------------------
# the garbage collector: Cython does not know these references (rule 11). It runs with all attached threads stopped, or
# with the GIL, so no thread is between two steps under the lock.

cdef PyTypeObject* queue_type = <PyTypeObject*>RetryQueue
cdef PyTypeObject* heap_type = <PyTypeObject*>DelayHeap
cdef traverseproc queue_base_traverse = queue_type.tp_traverse
cdef traverseproc heap_base_traverse = heap_type.tp_traverse
cdef inquiry queue_base_clear = queue_type.tp_clear
cdef inquiry heap_base_clear = heap_type.tp_clear


cdef int queue_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef int status = queue_base_traverse(self, visit, arg)
    cdef PyObject* entry = (<RetryQueue>self).first
    while entry and not status:
        status = visit(entry, arg)
        entry = (<RetryEntry>entry).next
    return status


cdef int heap_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef int status = heap_base_traverse(self, visit, arg)
    cdef Py_ssize_t index
    for index in range((<DelayHeap>self).length):
        if status:
            break
        status = visit((<DelayHeap>self).entries[index], arg)
    return status


cdef int queue_clear(PyObject* self) noexcept:
    queue_drop(<RetryQueue>self)
    return queue_base_clear(self)


cdef int heap_clear(PyObject* self) noexcept:
    heap_drop(<DelayHeap>self)
    return heap_base_clear(self)


queue_type.tp_traverse = queue_traverse
queue_type.tp_clear = queue_clear
heap_type.tp_traverse = heap_traverse
heap_type.tp_clear = heap_clear
