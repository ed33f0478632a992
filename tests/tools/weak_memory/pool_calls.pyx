# Calls of operations, on a bare ring, and of a pool's core: what WorkerPool and its supervisor call.

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libcpp.atomic cimport memory_order_relaxed, memory_order_seq_cst

from ringmill._core.pool.item_source cimport ItemSource
from ringmill._core.pool.results cimport Results, new_results
from ringmill._core.pool.run cimport PoolRun
from ringmill._core.pool.worker_loop cimport WorkerLoop
from ringmill._core.pool.work_source cimport UNLINKED, WorkSource
from ringmill._core.platform.primitives cimport pause
from ringmill._core.pool.operation cimport (
    CANCELLED,
    RELEASED,
    SUCCEEDED,
    OperationBase,
    accept,
    begin,
    end,
    reset,
    unplace,
)
from ringmill._core.ring.ring cimport DONE
from ringmill._core.ring.ring_buffer cimport RingBuffer
from ringmill._core.fixture cimport INPUT, MAPPED, OPERATIONS, OUTPUT, wm_find, wm_read_variable, wm_write_variable
from ringmill._core.pool.stream cimport Stream
from ringmill._core.waiting.wait_queue cimport NEVER, notify

from ringmill._core.pool.worker_loop import new_run


cdef int number_of(Fixture fixture, object op) noexcept:
    cdef int k
    for k in range(OPERATIONS):
        if fixture.operations[k] is op:
            return k
    wm_find("an operation is none of ours")
    return -1


# ---------------------------------------------------------------------------------------------------------------
# operations

cdef void run_one(Fixture fixture) noexcept:
    cdef PyObject* item = NULL
    cdef int number
    cdef OperationBase op
    if fixture.ring.get_item(&item, NEVER, True) != DONE:
        wm_find("no operation comes out of the ring")
    op = <OperationBase>item
    Py_DECREF(op)
    number = number_of(fixture, op)
    if not begin(op):
        unplace(op)
        return
    wm_read_variable(INPUT + number)
    wm_write_variable(OUTPUT + number)
    fixture.ended[number] += 1
    end(op, SUCCEEDED, False)


cdef void call_operation(Fixture fixture, Call* call) noexcept:
    cdef OperationBase op
    if call.letter == b"r":
        run_one(fixture)
        return
    op = fixture.operations[call.number]
    if call.letter == b"a":
        wm_write_variable(INPUT + call.number)
        fixture.submitted[call.number] += 1
        if not accept(op, 1):
            wm_find("an operation that is new is not accepted")
        Py_INCREF(op)
        if fixture.ring.put_item(<PyObject*>op, NEVER, True) != DONE:
            wm_find("an operation does not go into the ring")
    elif call.letter == b"q":
        if op.try_cancel(1):
            wm_write_variable(OUTPUT + call.number)
            fixture.ended[call.number] += 1
            op.announce_done(CANCELLED, False)
    elif call.letter == b"z":
        while not reset(op):
            pause()
    elif op.wait(1e-5 if call.impatient else None) and call.letter == b"k":
        wm_read_variable(OUTPUT + call.number)


# ---------------------------------------------------------------------------------------------------------------
# pools

cdef void open_pool(Fixture fixture, int workers, Py_ssize_t capacity, str stream, bint moves_empty):
    # `moves_empty`: a source without work becomes QUIET at once, though there are few of them.
    global dropped
    cdef WorkSource source
    dropped = False
    fixture.core = new_run("a pool", [ItemCaller() for _ in range(workers)], capacity, False)
    if moves_empty:
        fixture.core.sources.keeps_empty = 0
    if stream in ("ordered", "unordered", "items drawn"):
        open_map(fixture, capacity, stream)
    elif stream == "drawn":
        source = WorkSource(RingBuffer(capacity), RingBuffer(capacity))
        fixture.core.add(source)
        fixture.stream = Stream(fixture.core, source, iterator=draw(fixture), wraps=True, draws=True)
    elif stream:
        source = WorkSource(fixture.ring, RingBuffer(capacity), external=True)
        fixture.core.add(source)
        fixture.stream = Stream(fixture.core, source, wraps=True)


cdef Fixture mapped = None          # whose items are run
cdef bint dropped = False           # its reader is gone: items that have not begun are cancelled, and none comes out
cdef list numbers = list(range(MAPPED))  # the items

cdef void open_map(Fixture fixture, Py_ssize_t capacity, str kind):
    global mapped
    cdef int k
    cdef ItemSource source
    mapped = fixture
    if kind == "items drawn":
        source = fixture.core.draw_items(capacity, True, run_item, False, False)
        fixture.stream = new_results(fixture.core, source, "raise", draw_items(fixture), False)
        return
    for k in range(MAPPED):
        submit_item(fixture, k)
    source = fixture.core.map_items(list(numbers), kind == "ordered", run_item, False, False)
    fixture.stream = new_results(fixture.core, source, "raise", None, False)


cdef void submit_item(Fixture fixture, int k) noexcept:
    wm_write_variable(INPUT + k)
    fixture.submitted[k] += 1
    fixture.streamed.add(k)


cdef class ItemCaller:
    # A worker whose pool runs a function in place of its `process`.
    def prepare_function(self, function):
        return function


def run_item(int number):
    """What the workers call with an item."""
    wm_read_variable(INPUT + number)
    wm_write_variable(OUTPUT + number)
    mapped.ended[number] += 1
    return numbers[number]


cdef class draw_items:
    # The source of a map that is drawn.
    cdef Fixture fixture
    cdef int next

    def __init__(self, Fixture fixture):
        self.fixture = fixture

    def __iter__(self):
        return self

    def __next__(self):
        if self.next == MAPPED:
            raise StopIteration
        submit_item(self.fixture, self.next)
        self.next += 1
        return numbers[self.next - 1]


cdef bint read_result(Fixture fixture, Results results) noexcept:
    # False: that was all.
    cdef PyObject* found = NULL
    cdef int result = results.take_next(&found, NEVER)
    if result != DONE:
        return False
    number = <object>found
    Py_DECREF(number)
    fixture.out[number] += 1
    wm_read_variable(OUTPUT + <int>number)
    return True


cdef class draw:
    # The source of a wrap: all operations; by whichever thread has the turn.
    cdef Fixture fixture
    cdef int next

    def __init__(self, Fixture fixture):
        self.fixture = fixture

    def __iter__(self):
        return self

    def __next__(self):
        if self.next == 2:
            raise StopIteration
        wm_write_variable(INPUT + self.next)
        self.fixture.submitted[self.next] += 1
        self.fixture.streamed.add(self.next)
        self.next += 1
        return self.fixture.operations[self.next - 1]


cdef void work(Fixture fixture, int index) noexcept:
    # A worker's loop, until the pool ends.
    cdef WorkerLoop worker_loop = fixture.core.worker_loops[index]
    cdef int number
    cdef object op
    me = bytes([k == index for k in range(len(fixture.core.worker_loops))])
    worker_loop.set_alive(True)
    while True:
        op = next(worker_loop, None)
        if op is None:
            break
        number = number_of(fixture, op)
        wm_read_variable(INPUT + number)
        way = fixture.ways.get(number)
        if way == "r" and fixture.retries[number] == 0:
            fixture.retries[number] += 1
            op = None
            worker_loop.put_back(me, None, 0.0)
        elif way == "j" and index == 0:
            op = None
            worker_loop.put_back(None, me, 0.0)
        else:
            wm_write_variable(OUTPUT + number)
            fixture.ended[number] += 1
            if way == "f":
                worker_loop.fail(ValueError(), True)
            op = None
    worker_loop.release_sources()
    worker_loop.set_alive(False)


cdef bint read_one(Fixture fixture, Stream stream) noexcept:
    # False: that was all.
    cdef PyObject* item = NULL
    cdef OperationBase op
    cdef int result
    result = stream.read(&item, NEVER, True)  # what it raises comes to search's hook
    if result != DONE:
        return False
    op = <OperationBase>item
    Py_DECREF(op)
    # relaxed: what is seen of it by the stream alone
    if not op.state.load(memory_order_relaxed) & RELEASED:
        wm_find("an operation comes out of its stream before done() was called")
    number = number_of(fixture, op)
    fixture.out[number] += 1
    wm_read_variable(OUTPUT + number)
    return True


cdef void call_pool(Fixture fixture, int who, Call* call) noexcept:
    global dropped
    cdef PoolRun core = fixture.core
    cdef Stream stream
    cdef OperationBase op = fixture.operations[call.number] if call.number < OPERATIONS else None
    if call.letter == b"W":
        work(fixture, call.number)
    elif call.letter == b"d" or call.letter == b"D":
        wm_write_variable(INPUT + call.number)
        fixture.submitted[call.number] += 1
        if call.letter == b"d":
            core.do(op, NEVER)
        else:
            core.submit(op)
    elif call.letter == b"E":  # the last so many operations
        ops = fixture.operations[OPERATIONS - call.number :]
        for k in range(OPERATIONS - call.number, OPERATIONS):
            wm_write_variable(INPUT + k)
            fixture.streamed.add(k)
            fixture.submitted[k] += 1
        fixture.streams[who] = Stream(core, core.execute(ops))
    elif call.letter == b"R":
        while read_one(fixture, <Stream>fixture.streams[who]):
            pass
    elif call.letter == b"N":
        while read_one(fixture, fixture.stream):
            pass
    elif call.letter == b"m" or call.letter == b"O" or call.letter == b"A":
        while read_result(fixture, <Results>fixture.stream):
            pass
    elif call.letter == b"F":
        read_result(fixture, <Results>fixture.stream)
    elif call.letter == b"Q":
        dropped = True
        core.drop(fixture.stream.source)
    elif call.letter == b"J":
        dropped = True
        core.drop(fixture.stream.source)
        await_removal(fixture, False)
    elif call.letter == b"T":
        dropped = True  # it is not read
        await_removal(fixture, True)
    elif call.letter == b"u":  # into the ring that is wrapped
        wm_write_variable(INPUT + call.number)
        fixture.submitted[call.number] += 1
        fixture.streamed.add(call.number)
        Py_INCREF(op)
        fixture.ring.put_item(<PyObject*>op, NEVER, True)
    elif call.letter == b"c":
        if core.cancel(op):
            fixture.ended[call.number] += 1
    elif call.letter == b"v":
        check_accounting(core.stats()[0])
    elif call.letter == b"s":
        core.drain()


cdef void await_removal(Fixture fixture, bint wakes) noexcept:
    # `wakes`: workers are told to look.
    while fixture.stream.source.place.load(memory_order_seq_cst) != UNLINKED:  # seq_cst: as announce
        if wakes:
            notify(&fixture.core.idle)
        pause()


cdef void check_accounting(dict counts) noexcept:
    rest = [counts[name] for name in ("queued", "running", "delayed", "succeeded", "failed", "cancelled")]
    if min(rest) < 0 or counts["accepted"] != sum(rest):
        wm_find("the counters are not consistent")


cdef str complaint(Fixture fixture):
    # What is wrong at rest.
    cdef int k, submitted = 0
    for k in range(MAPPED):
        submitted += fixture.submitted[k]
        if fixture.core is not None and dropped:
            if fixture.ended[k] > 1:
                return f"item {k} ended {fixture.ended[k]} times"
            continue
        if fixture.ended[k] != fixture.submitted[k]:
            return f"operation {k} was submitted {fixture.submitted[k]} times, and ended {fixture.ended[k]} times"
        if fixture.out[k] != (fixture.ended[k] if k in fixture.streamed else 0):
            return f"operation {k} ended {fixture.ended[k]} times, and came out {fixture.out[k]} times"
    if fixture.core is not None:
        total = fixture.core.stats()[0]
        if total["accepted"] != submitted or total["queued"] or total["running"] or total["delayed"]:
            return f"{submitted} were submitted, and the counters are {total}"
        fixture.core.finish()
        # relaxed: at rest
        if fixture.stream is not None and fixture.ring.not_empty.word.load(memory_order_relaxed):
            return "a watcher is left in the ring"
    return ""
