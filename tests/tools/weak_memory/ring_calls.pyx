# Calls of a ring: what RingBuffer's methods do, without what makes exceptions of results.

from queue import Empty, Full

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t

from ringmill._core.platform.primitives cimport now_ns
from ringmill._core.ring.ring cimport (
    DONE,
    NOT_NOW,
    SHUT,
    has_items,
    size,
    try_get_many,
    try_put_many,
)
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.fixture cimport BATCH, wm_find, wm_read_variable, wm_write_variable
from ringmill._core.waiting.wait_queue cimport NEVER, notify

from ringmill.errors import Closed

cdef enum:
    WHILE_NS = 1_000_000        # how long an impatient call waits: some steps of the machine's clock


cdef int number_of_item(Fixture fixture, PyObject* item) noexcept:
    cdef int k
    for k in range(len(fixture.items)):
        if <PyObject*>fixture.items[k] == item:
            return k
    wm_find("an item is none that was put")
    return -1


cdef int took(Fixture fixture, PyObject* item) noexcept:
    # Its reference was ours.
    cdef int number = number_of_item(fixture, item)
    Py_DECREF(<object>item)
    wm_read_variable(number)
    return number


cdef int64_t deadline_for(Call* call) noexcept:
    return now_ns() + WHILE_NS if call.impatient else NEVER


cdef int put_one(Fixture fixture, Call* call) noexcept:
    cdef RingBuffer ring = fixture.ring
    cdef int result
    item = fixture.items[call.first_item]
    wm_write_variable(call.first_item)
    if call.letter == b"b":
        Py_INCREF(item)
        result = ring.put_item(<PyObject*>item, deadline_for(call), True)
        if result != DONE:
            Py_DECREF(item)
        return result
    try:
        ring.put_nowait(item)
    except Full:
        return NOT_NOW
    except Closed:
        return SHUT
    return DONE


cdef int get_one(Fixture fixture, Call* call, PyObject** item) noexcept:
    cdef RingBuffer ring = fixture.ring
    if call.letter == b"w":
        return ring.get_item(item, deadline_for(call), True)
    try:
        taken = ring.get_nowait()
    except Empty:
        return NOT_NOW
    except Closed:
        return SHUT
    Py_INCREF(taken)  # the caller's
    item[0] = <PyObject*>taken
    return DONE


cdef void put_some(Fixture fixture, Call* call, Entry* entry) noexcept:
    cdef RingBuffer ring = fixture.ring
    cdef PyObject* owned[BATCH]
    cdef Py_ssize_t done = 0
    cdef int k
    for k in range(call.number):
        item = fixture.items[call.first_item + k]
        wm_write_variable(call.first_item + k)
        Py_INCREF(item)
        owned[k] = <PyObject*>item
    entry.result = try_put_many(ring.ring, owned, call.number, &done)
    if done:
        notify(&ring.not_empty)
    entry.count = <int>done
    for k in range(entry.count, call.number):
        Py_DECREF(<object>owned[k])


cdef void get_some(Fixture fixture, Call* call, Entry* entry) noexcept:
    cdef RingBuffer ring = fixture.ring
    cdef PyObject* owned[BATCH]
    cdef Py_ssize_t done = 0
    cdef int k
    entry.result = try_get_many(ring.ring, owned, call.number, &done)
    if done:
        notify(&ring.not_full)
    entry.count = <int>done
    for k in range(entry.count):
        entry.items[k] = took(fixture, owned[k])


cdef void call_ring(Fixture fixture, Call* call, Entry* entry) noexcept:
    cdef RingBuffer ring = fixture.ring
    cdef PyObject* item = NULL
    cdef int k
    if call.letter == b"p" or call.letter == b"b":
        entry.result = put_one(fixture, call)
    elif call.letter == b"g" or call.letter == b"w":
        entry.result = get_one(fixture, call, &item)
        if entry.result == DONE:
            entry.items[0] = took(fixture, item)
    elif call.letter == b"P":
        put_some(fixture, call, entry)
    elif call.letter == b"G":
        get_some(fixture, call, entry)
    elif call.letter == b"B":
        for k in range(call.number):
            wm_write_variable(call.first_item + k)
        entry.count = <int>ring.put_many(tuple(fixture.items[call.first_item : call.first_item + call.number]))
        entry.result = DONE
    elif call.letter == b"x":
        ring.close_ring()
        entry.result = DONE
    elif call.letter == b"e":
        entry.result = not has_items(ring.ring)
    elif call.letter == b"f":
        entry.result = size(ring.ring) == ring.capacity
    elif call.letter == b"n":
        entry.count = <int>size(ring.ring)
    elif call.letter == b"t":
        if not ring.finish():
            wm_find("a task cannot be done")
    elif call.letter == b"j":
        ring.join()
    elif call.letter == b"o":
        fixture.let_idle_wait()
