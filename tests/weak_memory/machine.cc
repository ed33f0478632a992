// A machine on which small threads run as C++ allows them to run on any processor, one execution after the other, each
// by lot. It finds what x86 hides: an access whose memory order is too weak.
//
// Memory. A location keeps all values that were written to it in this execution, in its modification order: each a
// message with a timestamp. A thread has a view: for each location the oldest timestamp that it may still read. A load
// picks any message that is not older; reading it makes the view so new there (coherence). A release store leaves the
// thread's view in its message, and an acquire load that reads the message takes it over. A store may come anywhere
// behind what the thread has seen, not only at the end. A read-modify-write reads a message and stands right behind it
// for ever; it hands on what that message carried (release sequences). So a relaxed access is as weak as it may be, but
// for values out of thin air: nobody reads what is written later.
//
// Sequentially consistent accesses have a single order S, which agrees with what happens before what, and at each location
// with the modification order and with who reads what. Each gets a place in S: in the order in which they run here; or,
// if the execution has that drawn, anywhere where it agrees, so that one may take effect before an earlier load of its
// thread that is not acquire. The first is what a clock on the wall would see, and what histories are judged by. Nothing
// else follows from them; there are no fences, since the core has none. (C++20, [atomics.order]; the machine of views is
// that of Kang et al., "A Promising Semantics for Relaxed-Memory Concurrency", POPL 2017, without its promises.)
//
// Variables that are not atomic are watched by vector clocks, which travel with the views: two accesses, one of them a
// write, of which neither is ordered before the other, are a race.
//
// Threads are fibers of one system thread, which has the GIL; before each access another may go on. Who goes on is drawn: at each point with
// a probability that is drawn for the execution, or by priorities that change at a few points (Burckhardt et al., "A
// Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", ASPLOS 2010). A thread that pauses waits for
// others: they come first, and what it reads next is mostly new, since stores become visible some time. If nobody can go
// on and not all have ended, that is a finding; if they never end, also.
//
// An execution is a function of its seed, which is printed with a finding and repeats it.
#include "machine.hpp"
#undef atomic

#include <ucontext.h>

namespace {

constexpr int THREADS = 6;
constexpr int LOCATIONS = 1024;
constexpr std::size_t STACK = 256 * 1024;
constexpr long STEPS = 100'000;
constexpr long long FOR_EVER_US = 3'600'000'000;

char variables[128];

struct View {
    std::vector<double> times;          // for each location, the oldest timestamp that may be read; 0 where it ends
    std::uint32_t clock[THREADS] = {};  // how much of each thread has happened before
    double place = 0;                   // the last one in S that has happened before

    double seen(std::size_t location) const { return location < times.size() ? times[location] : 0; }
    void see(std::size_t location, double time) {
        if (times.size() <= location) times.resize(location + 1, 0);
        times[location] = std::max(times[location], time);
    }
    void join(const View& other) {
        if (times.size() < other.times.size()) times.resize(other.times.size(), 0);
        for (std::size_t k = 0; k < other.times.size(); k++) times[k] = std::max(times[k], other.times[k]);
        for (int k = 0; k < THREADS; k++) clock[k] = std::max(clock[k], other.clock[k]);
        place = std::max(place, other.place);
    }
};

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

struct Lock {
    bool held = false;
    View view;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    void (*run)(void*);
    void* argument;
    bool ended = true;
    Lock* awaits = nullptr;
    bool impatient = false;
    double priority = 0;
    int fresh = 0;  // so many of its next loads read what is newest
    View view;
    // What CPython keeps of exceptions for each of its threads: raised, and being handled.
    PyObject* raised = nullptr;
    _PyErr_StackItem handled = {};
    _PyErr_StackItem* handling = nullptr;
};

struct Event {
    int who;
    const char* what;
    const void* where;
    std::uint64_t value;
    int order;
    bool stale;
};

Fiber fibers[THREADS];
ucontext_t outside;
int threads = 0;
int running = -1;  // -1: outside
std::unordered_map<const void*, int> numbers;
std::vector<Location> locations;
std::unordered_map<const void*, Plain> plains;
std::unordered_map<const void*, std::string> names;
std::vector<Event> events;
std::string finding;
const void* found_at = nullptr;

std::uint64_t dice = 1;
std::int64_t now = 0;
long steps = 0, last_steps = 100;
double switches = 0, stale = 0, early = 0;
bool by_priority = false;
double lowest = 0;
std::vector<long> changes;
bool any_place = false;  // in S
double last_place = 0;

std::uint64_t roll() {  // splitmix64
    std::uint64_t z = dice += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}
double chance() { return double(roll() >> 11) / double(1ULL << 53); }
std::size_t below(std::size_t count) { return roll() % count; }

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

void exchange_exceptions(Fiber& fiber) {
    PyThreadState* state = PyThreadState_Get();
    std::swap(state->current_exception, fiber.raised);
    std::swap(state->exc_info, fiber.handling);
}

void leave(void) { swapcontext(&fibers[running].context, &outside); }

[[noreturn]] void find(const std::string& what, const void* where = nullptr) {
    finding = what;
    found_at = where;
    leave();  // for good: wm_run returns, and nobody comes back
    std::abort();
}

// -----------------------------------------------------------------------------------------------------------------
// whose turn it is

bool can_go(const Fiber& fiber) { return !fiber.ended && (!fiber.awaits || !fiber.awaits->held || fiber.impatient); }

int next_thread(void) {
    // -1: nobody. One that only waits for its time to be up goes on if nobody else can, or seldom.
    int able[THREADS], count = 0;
    int late[THREADS], count_late = 0;
    for (int k = 0; k < threads; k++) {
        if (!can_go(fibers[k])) continue;
        if (fibers[k].awaits && fibers[k].awaits->held) late[count_late++] = k;
        else able[count++] = k;
    }
    if (count_late && (!count || chance() < early)) return late[below(std::size_t(count_late))];
    if (!count) return -1;
    if (!by_priority) return able[below(std::size_t(count))];
    return *std::max_element(able, able + count, [](int a, int b) { return fibers[a].priority < fibers[b].priority; });
}

void point(void) {
    if (++steps > STEPS) find("they never end");
    bool change = false;
    if (by_priority) {
        while (!changes.empty() && changes.back() <= steps) {
            changes.pop_back();
            fibers[running].priority = --lowest;
            change = true;
        }
    } else {
        change = chance() < switches;
    }
    if (change) leave();
}

// -----------------------------------------------------------------------------------------------------------------
// memory

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

void record(const char* what, const void* where, std::uint64_t value, int order, bool old) {
    events.push_back({running, what, where, value, order, old});
}

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
    place = (after + before) / 2;
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
    // A read-modify-write of that message, which nobody follows yet.
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

void run_fiber(void) {
    Fiber& fiber = fibers[running];
    fiber.run(fiber.argument);
    fiber.ended = true;
    leave();
}

}  // namespace

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
        if (weak && chance() < 0.03) {
            record("fails to swap, for no reason,", where, *seen, failed, false);
            return 0;
        }
        record("swaps in", where, wanted, order, chosen + 1 != at.messages.size());
        change(at, where, size, chosen, wanted, order);
        return 1;
    }
    if (is_seq_cst(failed)) {
        if (!place_for(at, at.messages[chosen].time, NONE, place)) {
            chosen = at.messages.size() - 1;
            if (at.messages[chosen].value == *seen) {  // a weak one may fail all the same; a strong one succeeds
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
    record(writes ? "writes" : "reads", where, 0, -1, false);
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

void wm_pause(void) {
    if (running < 0) return;
    if (++steps > STEPS) find("they never end");
    if (chance() < 0.8) fibers[running].fresh = 4;
    fibers[running].priority = --lowest;
    leave();
}

std::int64_t wm_now(void) {
    now += 1 + std::int64_t(roll() % 20'000);
    return now;
}

unsigned long wm_ident(void) { return running < 0 ? 1 : 2 + static_cast<unsigned long>(running); }

void* wm_allocate_lock(void) { return new Lock(); }

int wm_acquire_lock(void* which, long long microseconds) {
    Lock* lock = static_cast<Lock*>(which);
    if (running < 0) {
        lock->held = true;
        return 1;
    }
    Fiber& fiber = fibers[running];
    point();
    if (lock->held && microseconds != 0) {
        record("blocks on", lock, 0, -1, false);
        fiber.awaits = lock;
        fiber.impatient = microseconds > 0 && microseconds < FOR_EVER_US;
        leave();
        fiber.awaits = nullptr;
    }
    if (lock->held) {
        record("is out of time at", lock, 0, -1, false);
        now += 1000 * microseconds;
        return 0;
    }
    record("locks", lock, 0, -1, false);
    lock->held = true;
    fiber.view.join(lock->view);
    return 1;
}

void wm_release_lock(void* which) {
    Lock* lock = static_cast<Lock*>(which);
    if (running < 0) {
        lock->held = false;
        return;
    }
    point();
    record("unlocks", lock, 0, -1, false);
    if (!lock->held) find("a lock is released that nobody holds");
    lock->held = false;
    lock->view.join(fibers[running].view);
    fibers[running].view.clock[running]++;
}

// -----------------------------------------------------------------------------------------------------------------
// an execution

void wm_name(const void* where, const char* name) { names[where] = name; }

void wm_begin(std::uint64_t seed, int by_the_clock) {
    dice = seed * 0x2545f4914f6cdd1dULL + 1;
    threads = 0;
    numbers.clear();
    locations.clear();
    locations.reserve(LOCATIONS);  // references to them stay good
    plains.clear();
    events.clear();
    finding.clear();
    found_at = nullptr;
    const double often[] = {0.03, 0.1, 0.3, 0.6}, old[] = {0.0, 0.2, 0.5, 0.9};
    switches = often[below(4)];
    stale = old[below(4)];
    early = below(2) ? 0.02 : 0.3;
    by_priority = below(2) == 0;
    lowest = 0;
    changes.clear();
    const int how_many = 1 + int(below(4));
    for (int k = 0; k < how_many; k++) changes.push_back(1 + long(below(std::size_t(last_steps) + 1)));
    std::sort(changes.begin(), changes.end(), std::greater<long>());
    steps = 0;
    any_place = !by_the_clock;
    last_place = 0;
}

int wm_thread(void (*run)(void*), void* argument) {
    Fiber& fiber = fibers[threads];
    if (!fiber.stack) fiber.stack = std::make_unique<char[]>(STACK);
    fiber.run = run;
    fiber.argument = argument;
    fiber.ended = false;
    fiber.awaits = nullptr;
    fiber.priority = 1 + chance();
    fiber.fresh = 0;
    fiber.view = View();
    fiber.view.clock[threads] = 1;
    fiber.raised = nullptr;
    fiber.handled = {};
    fiber.handling = &fiber.handled;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
    return threads++;
}

int wm_run(void) {
    for (int next; (next = next_thread()) >= 0;) {
        running = next;
        exchange_exceptions(fibers[next]);
        swapcontext(&outside, &fibers[next].context);
        exchange_exceptions(fibers[next]);
        running = -1;
        if (!finding.empty()) return 1;
    }
    last_steps = steps;
    for (int k = 0; k < threads; k++)
        if (!fibers[k].ended) finding = "blocked for ever";
    return !finding.empty();
}

const char* wm_finding(void) {
    // What has a name by now is named.
    static std::string text;
    text = finding + (found_at ? " " + (names.count(found_at) ? names[found_at] : std::string("a variable")) : "");
    return text.c_str();
}

const char* wm_story(void) {
    // Of a long one, its end.
    static std::string story;
    static const char* const orders[] = {"relaxed", "consume", "acquire", "release", "acq_rel", "seq_cst"};
    std::ostringstream out;
    const std::size_t first = events.size() > 400 ? events.size() - 400 : 0;
    for (std::size_t k = first; k < events.size(); k++) {
        const Event& event = events[k];
        out << "  " << char('A' + event.who) << " " << event.what << " ";
        if (names.count(event.where)) out << names[event.where];
        else if (event.where) out << event.where;
        if (event.order >= 0) out << " " << std::hex << event.value << std::dec << " (" << orders[event.order] << ")";
        if (event.stale) out << ", not the newest";
        out << "\n";
    }
    story = out.str();
    return story.c_str();
}

void wm_find(const char* what) {
    if (running >= 0) find(what);
}

void wm_write_variable(int which) { wm_touch(&variables[which], 1); }
void wm_read_variable(int which) { wm_touch(&variables[which], 0); }
const void* wm_variable(int which) { return &variables[which]; }

}  // extern "C"
