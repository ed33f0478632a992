# The workers of a run, by number: a table that only grows, shared by the parts of the run that deal with workers.
#
# A worker's number is its place here, and is not used again after it has left. Everything but `reserve` is called under the
# pool's lock, where nothing may be allocated (rule 7 of the core): so `reserve` makes room before the lock is taken, and
# the array that a larger one replaces is freed after the unlock. No thread keeps a pointer into it beyond the lock.
#
# Beside the states lie flags, a byte for each worker, so that a question about all workers ("is one left that has not rejected
# this") is answered for eight of them at a time (retry_routing.pyx). A thread that changes what a flag depends on calls `mark`
# under the same lock.
#
# May use `worker_state` and `waiting` (the lock).

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t
from libc.string cimport memcpy
from libcpp.atomic cimport memory_order_relaxed

from ringmill._core.pool.worker_state cimport WorkerState
from ringmill._core.waiting.wait_queue cimport SpinLock, acquire, release


cdef class WorkerTable:
    """The workers of a run, by number."""

    def __cinit__(self):
        self.owned = []
        self.present.store(0, memory_order_relaxed)  # relaxed: published with the object

    def __dealloc__(self):
        PyMem_RawFree(self.states)

    cdef int reserve(self, list states, SpinLock* lock) except -1:
        # Owns the states from here on, and makes a place for each, so that `add` cannot fail. Called without the lock.
        cdef PyObject** larger
        cdef PyObject** old
        cdef Py_ssize_t wanted
        cdef Py_ssize_t places = len(states)
        self.owned += states
        while True:
            acquire(lock)
            if self.count + self.reserved + places <= self.capacity:
                self.reserved += places
                release(lock)
                return 0
            wanted = 2 * (self.count + self.reserved + places) + 6
            release(lock)
            larger = <PyObject**>PyMem_RawMalloc(wanted * (sizeof(PyObject*) + 1))
            if larger == NULL:
                raise MemoryError
            acquire(lock)
            old = larger
            if self.capacity < wanted:
                if self.count:  # otherwise `states` may be NULL, which memcpy must not be given
                    memcpy(larger, self.states, self.count * sizeof(PyObject*))
                    memcpy(larger + wanted, self.flags, self.count)
                old = self.states
                self.states = larger
                self.flags = <uint8_t*>(larger + wanted)
                self.capacity = wanted
            release(lock)
            PyMem_RawFree(old)

    cdef void give_back(self, Py_ssize_t places) noexcept nogil:
        # So many reserved places are not needed.
        self.reserved -= places

    cdef void add(self, PyObject* state, bint joins) noexcept:
        # Uses a reserved place. The worker takes operations from here on, when it is alive; or, if it does not join, its
        # number is used, and nothing more.
        (<WorkerState>state).index = self.count
        self.states[self.count] = state
        self.flags[self.count] = 0
        self.count += 1
        self.reserved -= 1
        (<WorkerState>state).joined = joins
        if joins:
            self.has_equals = self.has_equals or <PyObject*>(<WorkerState>state).equals != <PyObject*>None
            self.present.fetch_add(1, memory_order_relaxed)  # relaxed: written under the lock; read without it as a hint
        else:
            (<WorkerState>state).retired = True
        self.mark(state)

    cdef void mark(self, PyObject* state) noexcept nogil:
        # What the flags of a worker say may have changed.
        cdef Py_ssize_t index = (<WorkerState>state).index
        cdef uint8_t flags = 0
        if index >= self.count or self.states[index] != state:
            return  # it is not in the table yet
        if not (<WorkerState>state).retired:
            flags |= PRESENT
        if (<WorkerState>state).alive.load(memory_order_relaxed):  # relaxed: written under the lock
            flags |= ALIVE
        if (<WorkerState>state).first_wait == NULL:
            flags |= (flags & PRESENT) * WITHOUT_WAIT + (AVAILABLE if flags & ALIVE else 0)
        self.in_wait += (flags & 3 == PRESENT) - (self.flags[index] & 3 == PRESENT)
        self.flags[index] = flags
