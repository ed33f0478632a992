# The counts of a run: how many operations were accepted, and what became of them. See accounting.pyx.

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from ringmill._core.pool.retry_queue cimport DelayHeap
from ringmill._core.pool.source_list cimport SourceList
from ringmill._core.pool.worker_table cimport WorkerTable
from ringmill._core.waiting.wait_queue cimport SpinLock

cdef struct Counts:
    uint64_t accepted
    uint64_t running
    uint64_t delayed
    uint64_t succeeded
    uint64_t failed
    uint64_t cancelled
    uint64_t tries
    uint64_t restarts

@cython.final
cdef class Accounting:
    cdef WorkerTable workers        # written once, like the next two
    cdef SourceList sources
    cdef DelayHeap delays
    # guarded by the pool's lock
    cdef uint64_t accepted_before   # by sources that are unlinked, and by those that submit without waiting
    cdef uint64_t cancelled
    cdef uint64_t failed            # without a worker: by breakage
    cdef Py_ssize_t runner          # the worker that all_ended looks at first

    cdef void count(self, Counts* counts, uint64_t* rows) noexcept nogil
    cdef bint all_ended(self, SpinLock* lock) noexcept nogil
    cdef object stats(self, SpinLock* lock)
