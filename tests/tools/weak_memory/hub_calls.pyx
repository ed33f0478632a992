# Calls of a hub: HubBase's, and what Hub's subscribe, unsubscribe and close make of them.

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

from ringmill._core.ring.ring cimport DONE
from ringmill._core.ring_calls cimport number_of_item
from ringmill._core.fixture cimport wm_read_variable, wm_write_variable
from ringmill._core.hub.subscription cimport HubBase, SubscriptionBase
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


cdef void read_all(Fixture fixture, int which) noexcept:
    # Until the subscription has ended.
    cdef SubscriptionBase subscription = fixture.subscriptions[which]
    cdef PyObject* item = NULL
    while subscription.mailbox.buffer.get_item(&item, NEVER, True) == DONE:
        number = number_of_item(fixture, item)
        Py_DECREF(<object>item)
        wm_read_variable(number)
        fixture.reads[which].append(number)


cdef void call_hub(Fixture fixture, Call* call) noexcept:
    cdef HubBase hub = fixture.hub
    if call.letter == b"M":
        read_all(fixture, call.number)
    elif call.letter == b"H" or call.letter == b"S":
        item = fixture.items[call.first_item]
        wm_write_variable(call.first_item)
        try:
            count = hub.broadcast(item) if call.letter == b"H" else hub.signal(item) is not None
            fixture.delivered += count  # in a line of its own: others go on meanwhile
        except Closed:
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


cdef str complaint_of_hub(Fixture fixture):
    # What is wrong at rest: each delivery was read or dropped, and each publisher's items came in order.
    total = sum([len(reads) for reads in fixture.reads]) + sum([each.dropped for each in fixture.subscriptions])
    if fixture.delivered != total:
        return f"{fixture.delivered} were delivered, and {total} read or dropped"
    for reads in fixture.reads:
        names = [fixture.items[number] for number in reads]
        for publisher in {name[0] for name in names}:
            own = [name for name in names if name[0] == publisher]
            if own != sorted(set(own)):
                return f"a subscriber read {names}"
    return ""
