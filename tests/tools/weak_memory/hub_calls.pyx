# Calls of a hub: HubBase's, and what Hub's subscribe, unsubscribe and close make of them.

import queue

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

from ringmill._core.ring.ring cimport DONE, has_room
from ringmill._core.ring_calls cimport number_of_item
from ringmill._core.fixture cimport wm_read_variable, wm_write_variable
from ringmill._core.hub.index_set cimport first_from
from ringmill._core.hub.subscription cimport HubBase, Mailbox, SubscriptionBase, made_room
from ringmill._core.hub.subscription_ring cimport Link, SubscriptionRing
from ringmill._core.waiting.wait_queue cimport NEVER

from ringmill.errors import Closed

cdef dict POLICIES = {"o": "drop_oldest", "n": "latest"}


cdef void open_hub(Fixture fixture, int subscriptions, set late, Py_ssize_t capacity, dict ways):
    fixture.hub = HubBase()
    fixture.subscriptions = []
    fixture.reads = [[] for _ in range(subscriptions)]
    for k in range(subscriptions):
        subscription = SubscriptionBase(capacity, POLICIES.get(ways.get(k), "block"), fixture.hub)
        fixture.subscriptions.append(subscription)
        if k not in late:
            fixture.hub._add(subscription)


cdef void leave(Fixture fixture, object subscription) noexcept:
    fixture.hub._remove(subscription)


cdef bint read_one(Fixture fixture, int which, bint block) noexcept:
    cdef SubscriptionBase subscription = fixture.subscriptions[which]
    cdef PyObject* item = NULL
    if subscription.mailbox.buffer.get_item(&item, NEVER, block) != DONE:
        return False
    made_room(subscription)
    number = number_of_item(fixture, item)
    Py_DECREF(<object>item)
    wm_read_variable(number)
    fixture.reads[which].append(number)
    return True


cdef void call_hub(Fixture fixture, Call* call) noexcept:
    cdef HubBase hub = fixture.hub
    if call.letter == b"M":
        while read_one(fixture, call.number, True):  # until the subscription has ended
            pass
    elif call.letter == b"V":
        read_one(fixture, call.number, False)
    elif call.letter == b"H" or call.letter == b"S":
        item = fixture.items[call.first_item]
        wm_write_variable(call.first_item)
        try:
            timeout = 0 if call.impatient else None
            count = hub.broadcast(item) if call.letter == b"H" else hub.signal(item, timeout) is not None
            fixture.delivered += count  # in a line of its own: others go on meanwhile
        except (Closed, queue.Full):
            pass
    elif call.letter == b"Y":
        try:
            hub._add(fixture.subscriptions[call.number])
        except Closed:
            fixture.subscriptions[call.number]._end()  # subscribe drops it
    elif call.letter == b"U":
        leave(fixture, fixture.subscriptions[call.number])
    elif call.letter == b"K":
        hub._close()


cdef str forgotten_room(SubscriptionRing ring):
    cdef Link* link = ring.head
    cdef Mailbox mailbox
    cdef bint ready
    for k in range(len(ring)):
        mailbox = <Mailbox>link.item
        ready = first_from(&ring.places.ready, link.place) == <Py_ssize_t>link.place
        if ready != link.ready:
            return f"the set and the link of subscription {k} disagree"
        if not ready and has_room(mailbox.buffer.ring):
            return f"subscription {k} has room and is passed over"
        if ready == bool(mailbox.passed_over.load()):
            return f"subscription {k} is {'not ' if ready else ''}passed over, but it is told otherwise"
        link = link.next
    return ""


cdef str complaint_of_hub(Fixture fixture):
    # What is wrong at rest: each delivery was read or dropped, or is left, each publisher's items came in order, and each
    # subscription with room can be found.
    total = sum([len(reads) for reads in fixture.reads]) + sum([each.dropped + len(each) for each in fixture.subscriptions])
    if fixture.delivered != total:
        return f"{fixture.delivered} were delivered, and {total} read or dropped, or are left"
    for reads in fixture.reads:
        names = [fixture.items[number] for number in reads]
        for publisher in {name[0] for name in names}:
            own = [name for name in names if name[0] == publisher]
            if own != sorted(set(own)):
                return f"a subscriber read {names}"
    return forgotten_room(fixture.hub.subscriptions)
