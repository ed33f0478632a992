// A machine on which small threads run as C++ allows them to run on any processor, one execution after the other, each
// at random. It finds what x86 hides: an access whose memory order is too weak. Memory is in memory.cc, threads are in
// threads.cc; here is what they share.
#pragma once

#include "machine.hpp"
#undef atomic

#include <ucontext.h>

namespace weak_memory {

constexpr int THREADS = 6;

// What a thread has seen, and what it hands on by releasing.
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

extern Fiber fibers[THREADS];
extern int threads;  // how many there are in this execution
extern int running;  // which one; -1: none, but what surrounds the executions
extern double stale;  // with that probability a load looks for something older than the newest
extern bool any_place;  // in S; else in the order of time

void forget_memory(void);  // of the last execution

double chance(void);  // from 0 to 1
std::size_t below(std::size_t count);
void point(void);  // another thread may go on
[[noreturn]] void find(const std::string& what, const void* where = nullptr);
void record(const char* what, const void* where, std::uint64_t value = 0, int order = -1, bool old = false);

}  // namespace weak_memory
