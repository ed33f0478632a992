# What the threads of an execution do: the core's own code, compiled for the machine.
#
# A scenario is a line of text: the calls of each thread, the threads divided by |. A call is a letter, and a number if it
# needs one:
#
#   p g      put and get one item, or say "full", "empty" or "closed"           RingBuffer.put_nowait, get_nowait
#   P3 G3    put and get up to three at once, likewise                          try_put_many, try_get_many
#   b w      put and get one, waiting for room or an item                       RingBuffer.put_item, get_item
#   b? w?    the same, for a while                                              ... with a deadline
#   B3       put three, waiting for room                                        RingBuffer.put_many
#   x        close                                                              RingBuffer.close_ring
#   e f n    whether it is empty, or full; how many are there                   has_items, size
#   t        a task is done; one that it had taken                              RingBuffer.finish
#   j        wait until all tasks are done, then write to its own items again   RingBuffer.join
#   o        a task of a stopped loop waits for an item, from here on; once     begin_sleep, of a Sleeper
#
#   a0       submit operation 0: write its input, accept it, put it in the ring   accept
#   r        take one, waiting, and run it, unless it has been cancelled        begin, end, unplace
#   q0       cancel it, unless it has begun                                     try_cancel, tell
#   k0 k0?   wait until it is done, or for a while; if it is, read its output   OperationBase.wait
#   i0       the same without reading
#   z0       reset it, as soon as it can be                                     reset
#
#   W0       worker 0, until the pool ends; reads inputs, writes outputs        WorkerLoop
#   d0 D0    submit operation 0 to the pool, by its queue or its retry queue     PoolRun.do, submit
#            d0r: it is retried once; d0j: worker 0 rejects it; d0f: it fails
#   E2 R     submit the last two as a batch; read its stream to the end         PoolRun.execute, Stream.read
#   N        read the wrap that there is to the end                             Stream.read
#   m O A    read the map that there is to the end: of eight items, accepted     Results.take_next
#            as a whole, ordered (m) or not (O), or drawn (A)
#   F        read one of its results                                            the same
#   Q        drop it: what has not begun is cancelled                           Stream.__del__
#   J        drop the wrap, or the drawn map, that there is, and wait until a   the same
#            worker has removed its source
#   T        wait until a worker that looks has removed the source of the wrap   SourceList
#            that there is, which has ended
#   L        nothing: the pool keeps no source without work among those that    SourceList
#            workers look at
#   u0       put operation 0 into the ring that is wrapped                      RingBuffer.put
#   c0       cancel it                                                          PoolRun.cancel
#   v        check that the counters are consistent                             PoolRun.stats
#   s        accept no more operations, let the workers finish                  PoolRun.drain
#
#   H S S?   publish an item to all subscriptions of a hub, or to one;          HubBase.broadcast, signal
#            S?: to one that has room
#   M0       read subscription 0 until it ends; M0o: it drops the oldest,       RingBuffer.get_item
#            M0n: it keeps the newest only, otherwise it blocks
#   V0       take one item of subscription 0, if there is one                   the same
#   Y0 U0    subscribe it, which has not been till then; unsubscribe it         HubBase._add, _remove
#   K        close the hub                                                      HubBase._close
#
#   l        add one to a number under a SpinLock                               acquire, release
#
# Each item has a variable that is not atomic, which its putter writes before the put and its getter reads after the get:
# where the ring does not order the two, that is a race; as are slots that are read and written at once. Operations have
# one for their input and one for their output. Each item that was put must come out once, and in order. What the calls of
# a ring returned, and when, is a history: when, that is by the clock on the wall, so histories are of executions in which
# seq_cst accesses take effect in the order of time.

import sys

from libc.stdint cimport uint64_t
from libc.string cimport memset

from ringmill._core.hub_calls cimport call_hub, complaint_of_hub, open_hub
from ringmill._core.pool_calls cimport call_operation, call_pool, complaint, open_pool
from ringmill._core.ring.ring cimport DONE, SHUT
from ringmill._core.ring_calls cimport call_ring
from ringmill._core.fixture cimport (
    BATCH,
    CALLS,
    COUNTER,
    ITEMS,
    THREADS,
    Actor,
    Call,
    Entry,
    Fixture,
    wm_begin,
    wm_finding,
    wm_name,
    wm_read_variable,
    wm_run,
    wm_story,
    wm_thread,
    wm_write_variable,
)
from ringmill._core.waiting.wait_queue cimport acquire, release

cdef str OF_A_RING = "pgPGbwBxefntjo"
cdef str OF_OPERATIONS = "arqkiz"
cdef str OF_A_POOL = "WdDERNucvsmOAFQJTL"
cdef str OF_A_HUB = "HSMVYUK"
cdef str IN_HISTORIES = "pgPGbwBxefn"
cdef str WAYS = "frjon"
cdef dict maps = {"m": "ordered", "Q": "ordered", "O": "unordered", "A": "items drawn", "J": "items drawn"}

cdef Actor actors[THREADS]
cdef Entry history[2 * THREADS * CALLS]
cdef int history_length
cdef Fixture fixture


cdef void make(Actor* actor, Call* call, Entry* entry) noexcept:
    cdef int k
    letter = chr(call.letter)
    if letter in OF_A_RING:
        call_ring(fixture, call, entry)
        if letter == "j":
            for k in range(actor.calls):
                if actor.call[k].letter == b"b":
                    wm_write_variable(actor.call[k].first_item)
    elif letter in OF_OPERATIONS:
        call_operation(fixture, call)
    elif letter in OF_A_POOL:
        call_pool(fixture, actor.who, call)
    elif letter in OF_A_HUB:
        call_hub(fixture, call)
    elif letter == "l":
        acquire(&fixture.lock)
        wm_read_variable(COUNTER)
        fixture.counted += 1
        wm_write_variable(COUNTER)
        release(&fixture.lock)


cdef void act(void* argument) noexcept:
    # A thread: makes its calls, and records when each began and what it returned.
    global history_length
    cdef Actor* actor = <Actor*>argument
    cdef Entry entry
    cdef int k
    for k in range(actor.calls):
        memset(&entry, 0, sizeof(Entry))
        entry.who = actor.who
        entry.call = &actor.call[k]
        history[history_length] = entry
        history_length += 1
        make(actor, &actor.call[k], &entry)
        entry.returns = True
        history[history_length] = entry
        history_length += 1


# ---------------------------------------------------------------------------------------------------------------
# histories, in the words of tests/models/test_model_batch.py

cdef object begun(Entry* entry, str kind):
    cdef Call* call = entry.call
    if kind == "P":
        return tuple(fixture.items[call.first_item : call.first_item + call.number])
    if kind == "G":
        return call.number
    return fixture.items[call.first_item]


cdef object returned(Entry* entry, str kind):
    cdef int k
    if kind == "e" or kind == "f":
        return entry.result != 0
    if kind == "n":
        return entry.count
    result = "done" if entry.result == DONE else "closed" if entry.result == SHUT else "full" if kind in "pP" else "empty"
    if kind == "P":
        return result, entry.count
    if kind == "G":
        # It ends where there is no more; with some that is no failure.
        taken = tuple([fixture.items[entry.items[k]] for k in range(entry.count)])
        return ("done" if taken else result), taken
    if kind == "g" and entry.result == DONE:
        return fixture.items[entry.items[0]]
    return result


cdef tuple history_now():
    cdef Entry* entry
    cdef int k
    events = []
    for k in range(history_length):
        entry = &history[k]
        letter = chr(entry.call.letter)
        if letter not in IN_HISTORIES:
            continue
        kind = {"b": "p", "w": "g", "B": "P"}.get(letter, letter)
        who = chr(65 + entry.who)
        if entry.returns:
            events.append(("return", who, returned(entry, kind)))
        else:
            events.append(("call", who, kind, begun(entry, kind)))
    return tuple(events)


# ---------------------------------------------------------------------------------------------------------------
# executions

cdef tuple read_scenario(str scenario):
    # Writes `actors`. The names of their items; the ways of the operations; how many threads.
    cdef int who, k
    cdef Call* call
    items = []
    ways = {}
    threads = scenario.split("|")
    if len(threads) > THREADS:
        raise ValueError(scenario)
    for who, thread in enumerate(threads):
        words = thread.split()
        if len(words) > CALLS:
            raise ValueError(scenario)
        actors[who].who = who
        actors[who].calls = len(words)
        for k, word in enumerate(words):
            if word[0] not in OF_A_RING + OF_OPERATIONS + OF_A_POOL + OF_A_HUB + "l":
                raise ValueError(word)
            call = &actors[who].call[k]
            call.letter = ord(word[0])
            call.impatient = word.endswith("?")
            way = word[1:].lstrip("0123456789")
            digits = word[1 : len(word) - len(way)]
            call.number = int(digits) if digits else 1
            if way and way in WAYS:
                ways[call.number] = way
            call.first_item = len(items)
            if word[0] in IN_HISTORIES or word[0] in "HS":
                if call.number > BATCH:
                    raise ValueError(word)
                items += [f"{chr(65 + who)}{k}{n}" for n in range(call.number)]
    if len(items) > ITEMS:
        raise ValueError(scenario)
    return items, ways, len(threads)


cdef str conserved():
    # Each item that was put into the ring was taken once, or is left; those of one putter came to each getter in order.
    cdef Entry* entry
    cdef int k, j
    put = []
    got = {"left": list(fixture.ring.get_many()) if len(fixture.ring) else []}
    for k in range(history_length):
        entry = &history[k]
        letter = chr(entry.call.letter)
        if not entry.returns:
            continue
        if letter in "pb" and entry.result == DONE:
            put.append(fixture.items[entry.call.first_item])
        elif letter in "PB":
            put += fixture.items[entry.call.first_item : entry.call.first_item + entry.count]
        elif letter in "gw" and entry.result == DONE:
            got.setdefault(entry.who, []).append(fixture.items[entry.items[0]])
        elif letter == "G":
            got.setdefault(entry.who, []).extend([fixture.items[entry.items[j]] for j in range(entry.count)])
    if sorted(sum(got.values(), [])) != sorted(put):
        return f"{put} were put, and {got} came out"
    for taken in got.values():
        for putter in {name[0] for name in taken}:
            own = [name for name in taken if name[0] == putter]
            if own != sorted(own):
                return f"{taken} came out in this order"
    return ""


cdef str verdict(str scenario, list unraisable):
    # What is wrong at rest.
    if unraisable:
        return f"raised: {unraisable[0]!r}"
    if fixture.counted != scenario.count("l"):
        return f"the lock let {scenario.count('l')} calls count to {fixture.counted}"
    if fixture.core is None and fixture.hub is None and "r" not in scenario:
        lost = conserved()
        if lost:
            return lost
    return complaint(fixture) or (complaint_of_hub(fixture) if fixture.hub is not None else "")


def search(str scenario, int capacity, uint64_t first, int count):
    """Runs the executions of `count` seeds from `first` on. Returns (histories, None), or (those so far, a finding).

    A finding is (what, seed, story); nothing else can be run in this process after that.
    """
    global fixture, history_length
    cdef int threads, k
    cdef uint64_t seed
    cdef list unraisable = []
    sys.unraisablehook = lambda raised: unraisable.append(raised.exc_value)
    items, ways, threads = read_scenario(scenario)
    letters = {word[0] for word in scenario.replace("|", " ").split()}
    pool = letters & set(OF_A_POOL)
    stream = (
        "external" if "u" in letters else "drawn" if "N" in letters else maps.get(min(letters & maps.keys(), default=""), "")
    )
    read = [int(word[1:].rstrip(WAYS)) for word in scenario.replace("|", " ").split() if word[0] in "MV"]
    late = {int(word[1:]) for word in scenario.replace("|", " ").split() if word[0] == "Y"}
    histories = {}
    for seed in range(first, first + count):
        fixture = Fixture(items, capacity, ways)
        if pool:
            open_pool(fixture, scenario.count("W"), capacity, stream, "L" in letters)
        elif letters & set(OF_A_HUB):
            open_hub(fixture, max(read) + 1, late, capacity, ways)
        history_length = 0
        by_the_clock = seed % 2 == 0
        wm_begin(seed, by_the_clock)
        for k in range(threads):
            wm_thread(act, &actors[k])
        what = "something" if wm_run() else verdict(scenario, unraisable)
        if what != "something":
            fixture.end_idle()
        if what:
            fixture.name_all()
            if what == "something":
                what = wm_finding().decode()
            return histories, (what, seed, wm_story().decode())
        if by_the_clock:
            histories.setdefault(history_now(), seed)
    return histories, None


def story(scenario, capacity, seed):
    """One execution, told."""
    histories, finding = search(scenario, capacity, seed, 1)
    fixture.name_all()
    return finding or (next(iter(histories), ()), seed, wm_story().decode())
