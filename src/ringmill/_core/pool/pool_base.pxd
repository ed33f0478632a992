# PoolBase, the compiled base of WorkerPool. See pool_base.pyx.

from libc.stdint cimport uint64_t
from libcpp.atomic cimport atomic

from ringmill._core.pool.run cimport PoolRun
from ringmill._core.waiting.wait_queue cimport SpinLock

cdef class PoolBase:
    cdef object __weakref__
    cdef SpinLock _lock             # guards `_core`
    cdef PoolRun _core              # the current or the last run
    cdef object _lifecycle          # a lock that start() holds, so that one thread at a time starts the pool
    cdef atomic[uint64_t] _starter  # the thread that holds `_lifecycle`, or 0

    cdef PoolRun _running(self)
