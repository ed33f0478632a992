# The sources of work that a run serves: in which one a worker looks for its next operation.
#
# A source that is linked is in one of three circular lists, its place, under the pool's lock:
#
#   READY   it may have work: workers look here, and nowhere else
#   QUIET   it had none when a worker looked: open, and waiting for what its reader, its thread or its ring brings
#   SPENT   it has ended and holds nothing more, or its stream was dropped: the next worker that looks removes it
#
# So the cost of a look does not grow with the number of open streams. A few sources without work stay READY
# (`keeps_empty`), so that a pool with few streams moves none about: a look passes over so many at most, and makes others
# QUIET, each once for each time that it was made READY.
#
# No work is overlooked in a QUIET source. What happens there is published by a thread that afterwards reads `place`, and if
# that is QUIET makes the source READY (PoolRun.announce), before it notifies the workers; a worker that makes it QUIET
# writes `place`, then looks once more. All four are sequentially consistent, so one of the two sees the other. It concerns
# whatever look_at() looks at: what was put, the end of the source, the drop of its stream, and, for an external source,
# room for its operations. Of items that are put into an external source's ring the RingWatcher learns: a source that
# becomes QUIET has it armed before that look, and where the watcher is woken it makes the source READY. (tests/models/
# test_model_source_list.py searches all interleavings.)
#
# The order. Workers take from sources in turn: `find` hands out the first one with work and makes the next one the first, for
# all workers together. In a run that is first_come there are no turns, and the lists stay in the order in which the
# sources came or became READY.
#
# The links are in the sources; the list owns each linked source by way of `kept`, a dict, which is written without the lock,
# before a source is linked and after it was unlinked.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from ringmill._core.pool.work_source cimport QUIET, READY, SPENT, UNLINKED, WorkSource


cdef class SourceList:
    """The sources of work that a run serves."""

    def __cinit__(self):
        self.kept = {}
        self.streams = {}
        self.keeps_empty = 8

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

    cdef void move(self, PyObject* source, uint64_t before, uint64_t place) noexcept nogil:
        # From that list to the end of another one; UNLINKED stands for none.
        cdef PyObject* first
        cdef PyObject* last
        if before != UNLINKED:
            self.lengths[before] -= 1
            if self.firsts[before] == source:
                self.firsts[before] = (<WorkSource>source).next if self.lengths[before] else NULL
            (<WorkSource>(<WorkSource>source).next).prev = (<WorkSource>source).prev
            (<WorkSource>(<WorkSource>source).prev).next = (<WorkSource>source).next
        (<WorkSource>source).place.store(place, memory_order_seq_cst)  # seq_cst: see the head
        if place == UNLINKED:
            return
        first = self.firsts[place]
        if first:
            last = (<WorkSource>first).prev
            (<WorkSource>source).next = first
            (<WorkSource>source).prev = last
            (<WorkSource>last).next = source
            (<WorkSource>first).prev = source
        else:
            (<WorkSource>source).next = (<WorkSource>source).prev = source
            self.firsts[place] = source
        self.lengths[place] += 1

    cdef void link(self, PyObject* source) noexcept:
        self.move(source, UNLINKED, READY)

    cdef bint unlink(self, PyObject* source) noexcept:
        # Whether it was linked.
        cdef uint64_t place = (<WorkSource>source).place.load(memory_order_relaxed)  # relaxed: written under the lock
        if place == UNLINKED:
            return False
        self.move(source, place, UNLINKED)
        return True

    cdef bint make_ready(self, PyObject* source) noexcept:
        # Something may have happened in it. Whether it was QUIET.
        if (<WorkSource>source).place.load(memory_order_relaxed) != QUIET:  # relaxed: written under the lock
            return False
        self.move(source, QUIET, READY)
        return True

    cdef void make_spent(self, PyObject* source) noexcept:
        # It is to be removed, by a worker.
        cdef uint64_t place = (<WorkSource>source).place.load(memory_order_relaxed)  # relaxed: written under the lock
        if place != UNLINKED and place != SPENT:
            self.move(source, place, SPENT)

    cdef uint64_t accepted(self) noexcept nogil:
        # How many operations the linked sources have accepted.
        cdef uint64_t count = 0
        cdef PyObject* at
        cdef Py_ssize_t k, place
        for place in range(QUIET, SPENT + 1):
            at = self.firsts[place]
            for k in range(self.lengths[place]):
                count += (<WorkSource>at).accepted()
                at = (<WorkSource>at).next
        return count

    cdef Py_ssize_t count_with_work(self, Py_ssize_t enough) noexcept:
        # How many sources have work, but not more than `enough`.
        cdef PyObject* at = self.firsts[READY]
        cdef PyObject* following
        cdef Py_ssize_t left = self.lengths[READY], count = 0
        while left and count < enough:
            left -= 1
            following = (<WorkSource>at).next
            count += self.look_at(at, False)
            at = following
        return count

    cdef PyObject* find(self, bint in_turn, bint watch) noexcept:
        # A source with work, borrowed; NULL: none. `in_turn`: the next one is first after this. `watch`: workers sleep, or
        # the caller is about to, so the watchers of external sources are armed.
        cdef PyObject* at = self.firsts[READY]
        cdef PyObject* following
        cdef Py_ssize_t left = self.lengths[READY]
        while left:
            left -= 1
            following = (<WorkSource>at).next
            if self.look_at(at, watch):
                if in_turn:
                    self.firsts[READY] = (<WorkSource>at).next
                return at
            at = following
        return NULL

    cdef bint look_at(self, PyObject* source, bint watch) noexcept:
        # Whether this source, which is READY, has work. If not, it may be QUIET or SPENT after this.
        cdef bint closed, spent, quiet = False
        while True:
            # seq_cst: pairs with PoolRun.drop
            spent = (<WorkSource>source).abandoned.load(memory_order_seq_cst)
            if spent:
                break
            if (<WorkSource>source).external:
                spent = (<WorkSource>source).ended()
                if spent:
                    break
                if watch or quiet:
                    (<WorkSource>source).watcher.arm(&(<WorkSource>source).pending.not_empty)
                if (<WorkSource>source).has_work():
                    break
            else:
                closed = (<WorkSource>source).is_closed()  # before the look: after it, nothing comes
                if (<WorkSource>source).has_work():
                    break
                spent = closed and source != self.inbox
                if spent:
                    break
            if quiet:
                self.move(source, READY, QUIET)
                return False
            if source == self.inbox or self.lengths[READY] <= self.keeps_empty:
                return False
            quiet = True
            (<WorkSource>source).place.store(QUIET, memory_order_seq_cst)  # seq_cst: before the second look; see the head
        if spent:
            self.move(source, READY, SPENT)
        elif quiet:
            (<WorkSource>source).place.store(READY, memory_order_seq_cst)  # seq_cst: as above
        return not spent
