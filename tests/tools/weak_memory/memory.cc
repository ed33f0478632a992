// Memory. A location keeps all values that were written to it in this execution, in its modification order: each a
// message with a timestamp. A thread has a view: for each location the oldest timestamp that it may still read. A load
// picks any message that is not older; reading it makes the view so new there (coherence). A release store leaves the
// thread's view in its message, and an acquire load that reads the message takes it over. A store may come anywhere
// behind what the thread has seen, not only at the end. A read-modify-write reads a message and stands right behind it
// forever; it hands on what that message carried (release sequences). So a relaxed access is as weak as it may be, but
// for load buffering: no load reads what is written later, as C++ allows, and arm64 may do, where no order forbids it.
//
// Sequentially consistent accesses have a single order S, which agrees with what happens before what, and at each location
// with the modification order and with who reads what. Each gets a place in S: in the order in which they run here; or,
// if the execution has that drawn, anywhere where it agrees, so that one may take effect before an earlier load of its
// thread that is not acquire. The first is what a clock on the wall would see, and what histories are judged by. Nothing
// else follows from them; there are no fences, since the core has none. (C++20, [atomics.order]; the machine of views is
// that of Kang et al., "A Promising Semantics for Relaxed-Memory Concurrency", POPL 2017, without its promises.)
//
// Some variables that are not atomic, the items of a ring's slots and the scenarios' own, are watched by vector clocks,
// which travel with the views: two accesses, one of them a write, of which neither is ordered before the other, are a
// race. All others are memory as usual.
//
// A location is known by its address for the whole execution, so nothing that has atomics may be freed in one.
#include "internal.hpp"

namespace weak_memory {
namespace {

constexpr int LOCATIONS = 1024;

struct Message {
    double time;
    std::uint64_t value;
    View view;           // what an acquire load takes over
    bool followed = false;  // by a read-modify-write, which stands right behind it
};

struct Ordered {  // a seq_cst access: read or wrote a message of that time
    double place;  // in S
    double time;
    bool writes;
};

struct Location {
    const void* where;
    std::vector<Message> messages;  // in modification order
    std::vector<Ordered> ordered;
};

struct Plain {
    int writer = -1;
    std::uint32_t written = 0;
    std::uint32_t read[THREADS] = {};
};

std::unordered_map<const void*, int> numbers;
std::vector<Location> locations;
std::unordered_map<const void*, Plain> plains;
double last_place = 0;  // in S
int relaxed_site = -1;
char variables[128];

std::uint64_t read_raw(const void* where, int size) {
    std::uint64_t value = 0;
    std::memcpy(&value, where, std::size_t(size));  // little-endian, as all that this is run on
    return value;
}
void write_raw(void* where, int size, std::uint64_t value) { std::memcpy(where, &value, std::size_t(size)); }

bool acquires(int order) {
    return order == int(std::memory_order_acquire) || order == int(std::memory_order_acq_rel) ||
           order == int(std::memory_order_seq_cst);
}
bool releases(int order) {
    return order == int(std::memory_order_release) || order == int(std::memory_order_acq_rel) ||
           order == int(std::memory_order_seq_cst);
}
bool is_seq_cst(int order) { return order == int(std::memory_order_seq_cst); }

Location& location(const void* where, int size) {
    auto [at, is_new] = numbers.try_emplace(where, int(locations.size()));
    if (is_new) {
        if (locations.size() == LOCATIONS) find("more locations than there is room for");
        locations.push_back({where, {}, {}});
        locations.back().messages.push_back({0, read_raw(where, size), {}, false});
    }
    return locations[std::size_t(at->second)];
}
std::size_t number(const Location& at) { return std::size_t(&at - locations.data()); }

std::size_t oldest(Location& at) {
    // The first message that may be read.
    const double time = fibers[running].view.seen(number(at));
    std::size_t first = at.messages.size() - 1;
    while (first > 0 && at.messages[first - 1].time >= time) first--;
    return first;
}

constexpr double NONE = -1;

bool place_for(const Location& at, double reads, double writes, double& place) {
    // Finds a place in S for a seq_cst access that reads a message of that time, writes one, or both.
    double after = fibers[running].view.place, before = std::numeric_limits<double>::infinity();
    for (const Ordered& other : at.ordered) {
        bool first = false, second = false;
        if (reads != NONE) {
            first = other.writes ? other.time <= reads : other.time < reads;
            second = other.time > reads;
        }
        if (writes != NONE) {
            first = first || other.time < writes;
            second = other.time > writes;
        }
        if (first) after = std::max(after, other.place);
        else if (second) before = std::min(before, other.place);
    }
    if (std::isinf(before)) {
        const double end = last_place + 1;
        place = any_place && chance() < stale ? after + (end - after) * (0.01 + 0.98 * chance()) : end;
        return true;
    }
    place = after + (before - after) * (0.01 + 0.98 * chance());
    return any_place && before - after > 1e-9;
}

void put_in_order(Location& at, double reads, double writes, double place) {
    last_place = std::max(last_place, place);
    if (reads != NONE) at.ordered.push_back({place, reads, false});
    if (writes != NONE) at.ordered.push_back({place, writes, true});
    View& view = fibers[running].view;
    view.place = std::max(view.place, place);
}

std::size_t choose(Location& at) {
    Fiber& fiber = fibers[running];
    const std::size_t first = oldest(at), last = at.messages.size() - 1;
    if (fiber.fresh > 0) {
        fiber.fresh--;
        return last;
    }
    return first == last || chance() >= stale ? last : first + below(last - first + 1);
}

void see(Location& at, const Message& message, int order) {
    View& view = fibers[running].view;
    view.see(number(at), message.time);
    if (acquires(order)) view.join(message.view);
}

double time_behind(const Location& at, std::size_t behind) {
    // Of a message right behind that one.
    const double before = at.messages[behind].time;
    return behind + 1 == at.messages.size() ? before + 1 : (before + at.messages[behind + 1].time) / 2;
}

void insert(Location& at, void* where, int size, std::size_t behind, std::uint64_t value, int order, const View* carried) {
    // A new message right behind that one. `carried`: what a read-modify-write hands on. Its place in S is not in what it
    // carries: only who reads it by a seq_cst access comes behind it there.
    Fiber& fiber = fibers[running];
    const bool newest = behind + 1 == at.messages.size();
    Message message;
    message.time = time_behind(at, behind);
    message.value = value;
    fiber.view.see(number(at), message.time);
    if (releases(order)) message.view = fiber.view;
    if (carried) message.view.join(*carried);
    message.view.see(number(at), message.time);
    at.messages.insert(at.messages.begin() + std::ptrdiff_t(behind) + 1, message);
    if (newest) write_raw(where, size, value);
    if (releases(order)) fiber.view.clock[running]++;
}

void change(Location& at, void* where, int size, std::size_t chosen, std::uint64_t value, int order) {
    // A read-modify-write of that message, which no other follows yet.
    const Message message = at.messages[chosen];
    const double time = time_behind(at, chosen);
    double place = 0;
    if (is_seq_cst(order) && !place_for(at, message.time, time, place)) std::abort();  // the caller has asked
    see(at, message, order);
    at.messages[chosen].followed = true;
    insert(at, where, size, chosen, value, order, &message.view);
    if (is_seq_cst(order)) put_in_order(at, message.time, time, place);
}

bool can_change(const Location& at, std::size_t chosen, int order) {
    double place = 0;
    return !at.messages[chosen].followed &&
           (!is_seq_cst(order) || place_for(at, at.messages[chosen].time, time_behind(at, chosen), place));
}

std::uint64_t changed(int how, std::uint64_t value, std::uint64_t operand, int size) {
    std::uint64_t result = 0;
    switch (how) {
        case WM_EXCHANGE: result = operand; break;
        case WM_ADD: result = value + operand; break;
        case WM_SUB: result = value - operand; break;
        case WM_OR: result = value | operand; break;
        case WM_AND: result = value & operand; break;
        case WM_XOR: result = value ^ operand; break;
    }
    return size == 8 ? result : result & ((std::uint64_t(1) << 8 * size) - 1);
}

}  // namespace

void forget_memory(void) {
    numbers.clear();
    locations.clear();
    locations.reserve(LOCATIONS);  // references to them stay good
    plains.clear();
    last_place = 0;
}

}  // namespace weak_memory

using namespace weak_memory;

extern "C" {

std::uint64_t wm_load(const void* where, int size, int order) {
    if (running < 0) return read_raw(where, size);
    point();
    Location& at = location(where, size);
    std::size_t chosen = choose(at);
    double place = 0;
    if (is_seq_cst(order)) {
        if (!place_for(at, at.messages[chosen].time, NONE, place)) {
            chosen = at.messages.size() - 1;
            place_for(at, at.messages[chosen].time, NONE, place);
        }
        put_in_order(at, at.messages[chosen].time, NONE, place);
    }
    const Message message = at.messages[chosen];
    see(at, message, order);
    record("loads", where, message.value, order, chosen + 1 != at.messages.size());
    return message.value;
}

void wm_store(void* where, int size, std::uint64_t value, int order) {
    if (running < 0) return write_raw(where, size, value);
    point();
    Location& at = location(where, size);
    const std::size_t first = oldest(at), last = at.messages.size() - 1;
    std::size_t behind = last;
    double place = 0;
    if (first < last && chance() < stale / 2) {
        const std::size_t wanted = first + below(last - first + 1);
        if (!at.messages[wanted].followed) behind = wanted;
    }
    if (is_seq_cst(order) && !place_for(at, NONE, time_behind(at, behind), place)) {
        behind = last;
        place_for(at, NONE, time_behind(at, behind), place);
    }
    const double time = time_behind(at, behind);
    record("stores", where, value, order, behind != last);
    insert(at, where, size, behind, value, order, nullptr);
    if (is_seq_cst(order)) put_in_order(at, NONE, time, place);
}

std::uint64_t wm_change(void* where, int size, int how, std::uint64_t operand, int order) {
    if (running < 0) {
        const std::uint64_t then = read_raw(where, size);
        write_raw(where, size, changed(how, then, operand, size));
        return then;
    }
    point();
    Location& at = location(where, size);
    std::size_t chosen = choose(at);
    if (!can_change(at, chosen, order)) chosen = at.messages.size() - 1;
    const std::uint64_t then = at.messages[chosen].value, value = changed(how, then, operand, size);
    record("changes", where, value, order, chosen + 1 != at.messages.size());
    change(at, where, size, chosen, value, order);
    return then;
}

int wm_swap(void* where, int size, std::uint64_t* seen, std::uint64_t wanted, int order, int failed, int weak) {
    if (running < 0) {
        const std::uint64_t then = read_raw(where, size);
        const bool same = then == *seen;
        if (same) write_raw(where, size, wanted);
        *seen = then;
        return same;
    }
    point();
    Location& at = location(where, size);
    std::size_t chosen = choose(at);
    double place = 0;
    if (at.messages[chosen].value == *seen && !can_change(at, chosen, order)) chosen = at.messages.size() - 1;
    if (at.messages[chosen].value == *seen) {
        if (!weak || chance() >= 0.03) {
            record("swaps in", where, wanted, order, chosen + 1 != at.messages.size());
            change(at, where, size, chosen, wanted, order);
            return 1;
        }
    }
    if (is_seq_cst(failed)) {
        if (!place_for(at, at.messages[chosen].time, NONE, place)) {
            chosen = at.messages.size() - 1;
            if (at.messages[chosen].value == *seen && !weak) {  // a weak one fails all the same
                record("swaps in", where, wanted, order, false);
                change(at, where, size, chosen, wanted, order);
                return 1;
            }
            place_for(at, at.messages[chosen].time, NONE, place);
        }
        put_in_order(at, at.messages[chosen].time, NONE, place);
    }
    const Message message = at.messages[chosen];
    see(at, message, failed);
    record("fails to swap:", where, message.value, failed, chosen + 1 != at.messages.size());
    *seen = message.value;
    return 0;
}

void wm_touch(const void* where, int writes) {
    if (running < 0) return;
    Plain& plain = plains[where];
    const std::uint32_t* clock = fibers[running].view.clock;
    record(writes ? "writes" : "reads", where);
    if (plain.writer >= 0 && clock[plain.writer] < plain.written) find("a race on", where);
    if (writes) {
        for (int k = 0; k < threads; k++)
            if (clock[k] < plain.read[k]) find("a race on", where);
        plain.writer = running;
        plain.written = clock[running];
    } else {
        plain.read[running] = clock[running];
    }
}

void wm_relax(int site) { relaxed_site = site; }
int wm_order(int site, int order) { return site == relaxed_site ? int(std::memory_order_relaxed) : order; }

void wm_write_variable(int which) { wm_touch(&variables[which], 1); }
void wm_read_variable(int which) { wm_touch(&variables[which], 0); }
const void* wm_variable(int which) { return &variables[which]; }

}  // extern "C"
