# Calls of a hub: HubBase's, and what Hub's subscribe, unsubscribe and close make of them.

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

from ringmill._core.ring.ring cimport DONE
from ringmill._core.ring_calls cimport number_of_item
from ringmill._core.stage cimport wm_read_variable, wm_write_variable
from ringmill._core.hub.subscription cimport HubBase, SubscriptionBase
from ringmill._core.waiting.wait_queue cimport NEVER

from ringmill.errors import Closed

cdef dict POLICIES = {"o": "drop_oldest", "n": "latest"}


cdef void open_hub(Stage stage, int subscriptions, set late, Py_ssize_t capacity, dict ways):
    stage.hub = HubBase()
    stage.subscriptions = []
    stage.reads = [[] for _ in range(subscriptions)]
    for k in range(subscriptions):
        subscription = SubscriptionBase(capacity, POLICIES.get(ways.get(k), "block"), stage.hub)
        stage.subscriptions.append(subscription)
        if k not in late:
            stage.hub._add(subscription)


cdef void leave(Stage stage, object subscription) noexcept:
    stage.hub._remove(subscription)


cdef void read_all(Stage stage, int which) noexcept:
    # Until the subscription has ended.
    cdef SubscriptionBase subscription = stage.subscriptions[which]
    cdef PyObject* item = NULL
    while subscription.mailbox.buffer.get_item(&item, NEVER, True) == DONE:
        number = number_of_item(stage, item)
        Py_DECREF(<object>item)
        wm_read_variable(number)
        stage.reads[which].append(number)


cdef void call_hub(Stage stage, Call* call) noexcept:
    cdef HubBase hub = stage.hub
    if call.letter == b"M":
        read_all(stage, call.number)
    elif call.letter == b"H" or call.letter == b"S":
        item = stage.items[call.first_item]
        wm_write_variable(call.first_item)
        try:
            count = hub.broadcast(item) if call.letter == b"H" else hub.signal(item) is not None
            stage.delivered += count  # in a line of its own: others go on meanwhile
        except Closed:
            pass
    elif call.letter == b"Y":
        try:
            hub._add(stage.subscriptions[call.number])
        except Closed:
            stage.subscriptions[call.number]._end()  # subscribe drops it
    elif call.letter == b"U":
        leave(stage, stage.subscriptions[call.number])
    elif call.letter == b"K":
        hub._close()


cdef str complaint_of_hub(Stage stage):
    # What is wrong at rest: each delivery was read or dropped, and each publisher's items came in order.
    total = sum([len(reads) for reads in stage.reads]) + sum([each.dropped for each in stage.subscriptions])
    if stage.delivered != total:
        return f"{stage.delivered} were delivered, and {total} read or dropped"
    for reads in stage.reads:
        names = [stage.items[number] for number in reads]
        for publisher in {name[0] for name in names}:
            own = [name for name in names if name[0] == publisher]
            if own != sorted(set(own)):
                return f"a subscriber read {names}"
    return ""
