// Threads are fibers of one system thread, which has the GIL; before each access another may go on. Who goes on is drawn:
// at each point with a probability that is drawn for the execution, or by priorities that change at a few points
// (Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", ASPLOS 2010). A thread that
// pauses waits for others: they come first, and what it reads next is mostly new, since stores become visible some time.
// If no thread can go on and not all have ended, that is a finding; if they never end, also.
//
// All that is drawn in an execution follows from its seed, which is printed with a finding. What the core keeps from one
// execution to the next (nodes for sleepers, guesses at how long to spin) does not, so a seed does not always repeat one.
#include "internal.hpp"

namespace weak_memory {

Fiber fibers[THREADS];
int threads = 0;
int running = -1;
double stale = 0;
bool any_place = false;

namespace {

constexpr std::size_t STACK = 256 * 1024;
constexpr long STEPS = 100'000;
constexpr long long FOR_EVER_US = 3'600'000'000;

struct Event {
    int who;
    const char* what;
    const void* where;
    std::uint64_t value;
    int order;
    bool stale;
};

ucontext_t outside;
std::unordered_map<const void*, std::string> names;
std::vector<Event> events;
std::string finding;
const void* found_at = nullptr;

std::uint64_t dice = 1;
std::int64_t now = 0;
std::uint64_t pace = 20'000;  // how far the clock goes on each time that it is read, at most
double keeps = 0;  // with that probability a pause is short: who searches comes to sleep while others still work
long steps = 0;
double switches = 0;  // with that probability another goes on at a point,
bool by_priority = false;  // unless this decides,
std::vector<long> changes;  // which falls to the lowest at these steps, the last first
double lowest = 0;
double early = 0;  // with that probability a wait's time is up though others could go on

std::uint64_t roll() {  // splitmix64
    std::uint64_t z = dice += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}
bool can_go(const Fiber& fiber) { return !fiber.ended && (!fiber.awaits || !fiber.awaits->held || fiber.impatient); }

int next_thread(void) {
    // -1: none. One that only waits for its time to be up goes on if no other can, or seldom.
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

void exchange_exceptions(Fiber& fiber) {
    PyThreadState* state = PyThreadState_Get();
    std::swap(state->current_exception, fiber.raised);
    std::swap(state->exc_info, fiber.handling);
}

void leave(void) { swapcontext(&fibers[running].context, &outside); }

void run_fiber(void) {
    Fiber& fiber = fibers[running];
    fiber.run(fiber.argument);
    fiber.ended = true;
    leave();
}

}  // namespace

double chance() { return double(roll() >> 11) / double(1ULL << 53); }
std::size_t below(std::size_t count) { return roll() % count; }

void record(const char* what, const void* where, std::uint64_t value, int order, bool old) {
    events.push_back({running, what, where, value, order, old});
}

void find(const std::string& what, const void* where) {
    finding = what;
    found_at = where;
    leave();  // for good: wm_run returns, and no thread comes back
    std::abort();
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

}  // namespace weak_memory

using namespace weak_memory;

extern "C" {

void wm_pause(void) {
    if (running < 0) return;
    if (++steps > STEPS) find("they never end");
    if (chance() < keeps) return;
    if (chance() < 0.8) fibers[running].fresh = 4;
    fibers[running].priority = --lowest;
    leave();
}

std::int64_t wm_now(void) {
    now += 1 + std::int64_t(roll() % pace);
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
        record("blocks on", lock);
        fiber.awaits = lock;
        fiber.impatient = microseconds > 0 && microseconds < FOR_EVER_US;
        leave();
        fiber.awaits = nullptr;
    }
    if (lock->held) {
        record("is out of time at", lock);
        now += 1000 * microseconds;
        fiber.priority = --lowest;  // it may be granted after all, before it says that it leaves
        leave();
        return 0;
    }
    record("locks", lock);
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
    record("unlocks", lock);
    if (!lock->held) find("a lock is released that no thread holds");
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
    forget_memory();
    events.clear();
    finding.clear();
    found_at = nullptr;
    const double often[] = {0.03, 0.1, 0.3, 0.6}, old[] = {0.0, 0.2, 0.5, 0.9};
    switches = often[below(4)];
    stale = old[below(4)];
    pace = below(2) ? 20'000 : 500'000;
    keeps = pace > 20'000 ? 0.97 : 0;
    early = below(2) ? 0.02 : 0.3;
    by_priority = below(2) == 0;
    lowest = 0;
    changes.clear();
    const std::size_t how_long[] = {50, 200, 800};
    const std::size_t horizon = how_long[below(3)];
    for (std::size_t k = below(4) + 1; k > 0; k--) changes.push_back(1 + long(below(horizon)));
    std::sort(changes.begin(), changes.end(), std::greater<long>());
    steps = 0;
    now = 0;
    any_place = !by_the_clock;
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
    for (int k = 0; k < threads; k++)
        if (!fibers[k].ended) finding = "blocked forever";
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

}  // extern "C"
