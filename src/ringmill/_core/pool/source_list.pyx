# The sources of work that a run serves: a circular list, in which workers look for the next one with work.
#
# The links are in the sources, under the pool's lock; the list owns each linked source by way of `kept`, a dict, which is
# written without the lock, before a source is linked and after it was unlinked.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libcpp.atomic cimport memory_order_acquire

from ringmill._core.pool.work_source cimport WorkSource


cdef class SourceList:
    """The sources of work that a run serves."""

    def __cinit__(self):
        self.kept = {}
        self.streams = {}

    cdef int keep(self, WorkSource source) except -1:
        # Owned from here on. If this raises, nothing has changed.
        self.kept[source] = None
        if source.ready is not None or source.carries_items:
            try:
                source.list_in(self.streams)
            except BaseException:
                self.kept.pop(source, None)
                raise
        return 0

    cdef int forget(self, WorkSource source, bint unlist) except -1:
        # `unlist`: it was never linked, so that no reader has it.
        self.kept.pop(source, None)
        if unlist:
            source.unlist()
        return 0

    cdef void link(self, PyObject* source) noexcept nogil:
        cdef PyObject* last
        if self.first:
            last = (<WorkSource>self.first).prev
            (<WorkSource>source).next = self.first
            (<WorkSource>source).prev = last
            (<WorkSource>last).next = source
            (<WorkSource>self.first).prev = source
        else:
            (<WorkSource>source).next = (<WorkSource>source).prev = source
            self.first = source
        (<WorkSource>source).linked = True
        self.length += 1

    cdef bint unlink(self, PyObject* source) noexcept nogil:
        # Whether it was linked.
        if not (<WorkSource>source).linked:
            return False
        (<WorkSource>source).linked = False
        self.length -= 1
        if self.first == source:
            self.first = (<WorkSource>source).next
        (<WorkSource>(<WorkSource>source).next).prev = (<WorkSource>source).prev
        (<WorkSource>(<WorkSource>source).prev).next = (<WorkSource>source).next
        if not self.length:
            self.first = NULL
        return True

    cdef uint64_t accepted(self) noexcept nogil:
        # How many operations the linked sources have accepted.
        cdef uint64_t count = 0
        cdef PyObject* at = self.first
        cdef Py_ssize_t k
        for k in range(self.length):
            count += (<WorkSource>at).accepted()
            at = (<WorkSource>at).next
        return count

    cdef Py_ssize_t count_with_work(self, Py_ssize_t enough) noexcept nogil:
        # How many of the linked sources have work, but not more than `enough`.
        cdef PyObject* at = self.first
        cdef Py_ssize_t k, count = 0
        for k in range(self.length):
            if count == enough:
                break
            count += (<WorkSource>at).has_work()
            at = (<WorkSource>at).next
        return count

    cdef PyObject* find(self, PyObject* after, PyObject* inbox, bint watch, PyObject** spent) noexcept:
        # A source with work, the next in turn after that one, borrowed; NULL: none. `spent`: instead of it, the first one on
        # the way that has ended and holds nothing more, borrowed. `watch`: workers sleep, or the caller is about to, so the
        # watchers of external sources are armed.
        cdef PyObject* at
        cdef Py_ssize_t left
        cdef bint closed
        spent[0] = NULL
        left = self.length
        at = (<WorkSource>after).next if after and (<WorkSource>after).linked else self.first
        while left:
            left -= 1
            if (<WorkSource>at).abandoned.load(memory_order_acquire):  # acquire: pairs with the stream's drop
                spent[0] = at
                break
            if (<WorkSource>at).external:
                if (<WorkSource>at).ended():
                    spent[0] = at
                    break
                if watch:
                    (<WorkSource>at).watcher.arm(&(<WorkSource>at).pending.not_empty)
                if (<WorkSource>at).has_work():
                    return at
            else:
                closed = (<WorkSource>at).is_closed()  # before the look: after it, nothing comes
                if (<WorkSource>at).has_work():
                    return at
                if closed and at != inbox:
                    spent[0] = at
                    break
            at = (<WorkSource>at).next
        return NULL
