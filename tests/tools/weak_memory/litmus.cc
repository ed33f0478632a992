// The machine's own tests: the little programs by which memory models are told apart. Each is run many times; what its
// threads read is an outcome, and test_weak_memory.py knows which must be seen and which must not.
#include "machine.hpp"

namespace {

constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto acquire = std::memory_order_acquire;
constexpr auto release = std::memory_order_release;
constexpr auto seq_cst = std::memory_order_seq_cst;

std::atomic<std::uint64_t> x, y;
std::uint64_t r[4];
void* lock;

using Body = void (*)(void*);
struct Litmus {
    const char* name;
    std::vector<Body> threads;
    int registers;     // of r that are the outcome,
    bool final_state;  // and x and y, behind them
};

template <std::memory_order order> void store_x_load_y(void*) { x.store(1, order); r[0] = y.load(order == seq_cst ? seq_cst : relaxed); }
template <std::memory_order order> void store_y_load_x(void*) { y.store(1, order); r[1] = x.load(order == seq_cst ? seq_cst : relaxed); }
template <std::memory_order order> void message(void*) { x.store(1, relaxed); y.store(1, order); }
template <std::memory_order order> void receive(void*) { r[0] = y.load(order); r[1] = x.load(relaxed); }
template <std::memory_order order> void message_plain(void*) { wm_write_variable(0); y.store(1, order); }
template <std::memory_order order> void receive_plain(void*) { if ((r[0] = y.load(order)) != 0) wm_read_variable(0); }
void write_twice(void*) { x.store(1, relaxed); x.store(2, relaxed); }
void read_twice(void*) { r[0] = x.load(relaxed); r[1] = x.load(relaxed); }
void write_both(void*) { y.store(1, seq_cst); x.store(1, release); }
void load_x_relaxed_y_sc(void*) { r[0] = x.load(relaxed); r[1] = y.load(seq_cst); }
template <std::memory_order order> void write_x(void*) { x.store(1, order); }
template <std::memory_order order> void write_y(void*) { y.store(1, order); }
template <std::memory_order order> void read_xy(void*) { r[0] = x.load(order); r[1] = y.load(order); }
template <std::memory_order order> void read_yx(void*) { r[2] = y.load(order); r[3] = x.load(order); }
template <std::memory_order order> void write_x1_y2(void*) { x.store(1, order); y.store(2, order); }
template <std::memory_order order> void write_y1_x2(void*) { y.store(1, order); x.store(2, order); }
void change_relaxed(void*) { std::uint64_t seen = 1; if (y.compare_exchange_strong(seen, 2, relaxed, relaxed)) r[2] = 1; }
void store_over_relaxed(void*) { if (y.load(relaxed) == 1) y.store(2, relaxed); }
void receive_two(void*) { r[0] = y.load(acquire) == 2; r[1] = x.load(relaxed); }
void add(void*) { x.fetch_add(1, relaxed); }
void win(void*) { std::uint64_t seen = 0; if (x.compare_exchange_strong(seen, 1, relaxed, relaxed)) y.fetch_add(1, relaxed); }
void write_both_x(void*) { x.store(1, relaxed); x.store(2, relaxed); }
void fail_at_one_then_load(void*) {
    std::uint64_t seen = 1;
    if (!x.compare_exchange_weak(seen, 9, relaxed, relaxed) && seen == 1) { r[0] = 1; r[1] = x.load(relaxed); }
}
void fail_by_acquire_then_load(void*) {
    std::uint64_t seen = 1;
    if (!y.compare_exchange_weak(seen, 9, acquire, acquire) && seen == 1) { r[0] = 1; r[1] = x.load(relaxed); }
}
void load_then_store_y(void*) { r[0] = x.load(relaxed); y.store(1, relaxed); }
void load_then_store_x(void*) { r[1] = y.load(relaxed); x.store(1, relaxed); }
void lock_and_release(void*) { wm_acquire_lock(lock, -1); wm_write_variable(0); wm_release_lock(lock); }
void lock_and_keep(void*) { wm_acquire_lock(lock, -1); }
void wait_for_x(void*) { while (!x.load(relaxed)) wm_pause(); }

const Litmus all[] = {
    {"SB+rlx", {store_x_load_y<relaxed>, store_y_load_x<relaxed>}, 2, false},
    {"SB+rel", {store_x_load_y<release>, store_y_load_x<release>}, 2, false},
    {"SB+sc", {store_x_load_y<seq_cst>, store_y_load_x<seq_cst>}, 2, false},
    {"MP+rlx", {message<relaxed>, receive<relaxed>}, 2, false},
    {"MP+rel+rlx", {message<release>, receive<relaxed>}, 2, false},
    {"MP+rlx+acq", {message<relaxed>, receive<acquire>}, 2, false},
    {"MP+rel+acq", {message<release>, receive<acquire>}, 2, false},
    {"MP+sc", {message<seq_cst>, receive<seq_cst>}, 2, false},
    {"MP+plain+rel+acq", {message_plain<release>, receive_plain<acquire>}, 1, false},
    {"MP+plain+rlx", {message_plain<relaxed>, receive_plain<acquire>}, 1, false},
    {"MP+plain+rel+rlx", {message_plain<release>, receive_plain<relaxed>}, 1, false},
    {"CoRR", {write_twice, read_twice}, 2, false},
    {"R+rlx+sc", {write_both, load_x_relaxed_y_sc}, 2, false},
    {"IRIW+acq", {write_x<release>, write_y<release>, read_xy<acquire>, read_yx<acquire>}, 4, false},
    {"IRIW+sc", {write_x<seq_cst>, write_y<seq_cst>, read_xy<seq_cst>, read_yx<seq_cst>}, 4, false},
    {"2+2W+rlx", {write_x1_y2<relaxed>, write_y1_x2<relaxed>}, 0, true},
    {"2+2W+sc", {write_x1_y2<seq_cst>, write_y1_x2<seq_cst>}, 0, true},
    {"release sequence", {message<release>, change_relaxed, receive_two}, 2, false},
    {"release sequence, broken", {message<release>, store_over_relaxed, receive_two}, 2, false},
    {"fetch_add", {add, add, add}, 0, true},
    {"one wins", {win, win, win}, 0, true},
    {"failed swap, coherence", {write_both_x, fail_at_one_then_load}, 2, false},
    {"failed swap, acquire", {message<release>, fail_by_acquire_then_load}, 2, false},
    {"LB+rlx", {load_then_store_y, load_then_store_x}, 2, false},
    {"lock", {lock_and_release, lock_and_release, lock_and_release}, 0, false},
    {"deadlock", {lock_and_keep, lock_and_keep}, 0, false},
    {"visible in the end", {write_x<relaxed>, wait_for_x}, 0, true},
    {"livelock", {wait_for_x}, 0, false},
};

}  // namespace

extern "C" const char* wm_litmus(const char* name, std::uint64_t runs) {
    // All outcomes, in order, separated by blanks. One in which something was found is the finding, and the last: then
    // nothing more can be run in this process.
    static std::string text;
    std::set<std::string> outcomes;
    text.clear();
    if (!lock) lock = wm_allocate_lock();
    for (const Litmus& litmus : all) {
        if (std::strcmp(litmus.name, name) != 0) continue;
        for (std::uint64_t seed = 0; seed < runs; seed++) {
            x.store(0);
            y.store(0);
            std::fill(r, r + 4, 0);
            wm_begin(seed, seed % 2 == 0);
            for (const Body body : litmus.threads) wm_thread(body, nullptr);
            if (wm_run()) return wm_finding();
            std::string outcome;
            for (int k = 0; k < litmus.registers; k++) outcome += std::to_string(r[k]);
            if (litmus.final_state) outcome += std::to_string(x.load()) + std::to_string(y.load());
            outcomes.insert(outcome);
        }
        for (const std::string& outcome : outcomes) text += (text.empty() ? "" : " ") + outcome;
        return text.c_str();
    }
    return "there is no such litmus test";
}
