// A stand-in for std::atomic, threads, locks and the clock: a machine that orders memory no more than C++ promises.
//
// It is included before everything else where the core is compiled for these checks (`build.py`), and puts itself in the
// place of what the core uses. What it does is in memory.cc and threads.cc; only there is any state.
#pragma once

// What the standard library and CPython themselves make of std::atomic must be seen before the name changes.
#include <Python.h>
#include <bits/stdc++.h>

extern "C" {
std::uint64_t wm_load(const void* where, int size, int order);
void wm_store(void* where, int size, std::uint64_t value, int order);
enum WmChange { WM_EXCHANGE, WM_ADD, WM_SUB, WM_OR, WM_AND, WM_XOR };
std::uint64_t wm_change(void* where, int size, int change, std::uint64_t operand, int order);
int wm_swap(void* where, int size, std::uint64_t* seen, std::uint64_t wanted, int order, int failed, int weak);
void wm_touch(const void* where, int writes);  // not atomic: a race is a finding

int wm_order(int site, int order);  // that order; or relaxed, where it is the site that is being tried

void wm_pause(void);
std::int64_t wm_now(void);
void* wm_allocate_lock(void);
int wm_acquire_lock(void* lock, long long microseconds);  // below 0: without limit. 1: acquired
void wm_release_lock(void* lock);
unsigned long wm_ident(void);

// For execution.pyx.
void wm_relax(int site);                                 // in what follows; below 0: none
void wm_begin(std::uint64_t seed, int by_the_clock);     // forgets the last execution; whether S is the order of time
int wm_thread(void (*run)(void*), void* argument);
int wm_run(void);                                        // 0: all threads have ended; else nothing more can be run
const char* wm_finding(void);                            // what was found, in words,
const char* wm_story(void);                              // and what has happened, a line each
void wm_name(const void* where, const char* name);       // for both; `name` is copied
void wm_find(const char* what);                          // ends the execution with a finding
void wm_write_variable(int which);                       // some variables that are not atomic
void wm_read_variable(int which);
const void* wm_variable(int which);
}

namespace std {
template <typename T> class weak_atomic {
    T plain;  // the newest value; also before and after the threads run

public:
    weak_atomic() noexcept = default;
    constexpr weak_atomic(T value) noexcept : plain(value) {}
    weak_atomic(const weak_atomic&) = delete;
    weak_atomic& operator=(const weak_atomic&) = delete;
    using value_type = T;
    T load(memory_order order = memory_order_seq_cst) const noexcept { return T(wm_load(this, sizeof(T), int(order))); }
    void store(T value, memory_order order = memory_order_seq_cst) noexcept {
        wm_store(this, sizeof(T), std::uint64_t(value), int(order));
    }
    T exchange(T value, memory_order order = memory_order_seq_cst) noexcept { return change(WM_EXCHANGE, value, order); }
    T fetch_add(T value, memory_order order = memory_order_seq_cst) noexcept { return change(WM_ADD, value, order); }
    T fetch_sub(T value, memory_order order = memory_order_seq_cst) noexcept { return change(WM_SUB, value, order); }
    T fetch_or(T value, memory_order order = memory_order_seq_cst) noexcept { return change(WM_OR, value, order); }
    T fetch_and(T value, memory_order order = memory_order_seq_cst) noexcept { return change(WM_AND, value, order); }
    T fetch_xor(T value, memory_order order = memory_order_seq_cst) noexcept { return change(WM_XOR, value, order); }
    bool compare_exchange_weak(T& seen, T wanted, memory_order order, memory_order failed) noexcept {
        return swap(seen, wanted, order, failed, 1);
    }
    bool compare_exchange_strong(T& seen, T wanted, memory_order order, memory_order failed) noexcept {
        return swap(seen, wanted, order, failed, 0);
    }
    bool compare_exchange_strong(T& seen, T wanted) noexcept {
        return swap(seen, wanted, memory_order_seq_cst, memory_order_seq_cst, 0);
    }

private:
    T change(int how, T operand, memory_order order) noexcept {
        return T(wm_change(this, sizeof(T), how, std::uint64_t(operand), int(order)));
    }
    bool swap(T& seen, T wanted, memory_order order, memory_order failed, int weak) noexcept {
        std::uint64_t found = std::uint64_t(seen);
        const bool swapped = wm_swap(this, sizeof(T), &found, std::uint64_t(wanted), int(order), int(failed), weak) != 0;
        seen = T(found);
        return swapped;
    }
};

// A variable that is not atomic: its accesses by different threads must be ordered by variables that are.
template <typename T> class plain_variable {
    T value;

public:
    operator T() const noexcept { wm_touch(this, 0); return value; }
    plain_variable& operator=(T wanted) noexcept { wm_touch(this, 1); value = wanted; return *this; }
};
}  // namespace std

#define atomic weak_atomic

// What stands in the place of each order that is named, if the core was compiled to be tried with one relaxed.
[[maybe_unused]] static inline std::memory_order ringmill_order(int site, std::memory_order order) {
    return std::memory_order(wm_order(site, int(order)));
}

// What Cython makes of `with nogil`. There is one thread of the system's, which stays attached; what has been between the
// two on another thread has been there all the same.
#define PyEval_SaveThread() nullptr
#define PyEval_RestoreThread(saved) (void)(saved)
#define PyErr_CheckSignals() 0

#define PyThread_allocate_lock() wm_allocate_lock()
#define PyThread_acquire_lock(lock, wait) wm_acquire_lock(lock, (wait) ? -1 : 0)
#define PyThread_acquire_lock_timed(lock, microseconds, flag) \
    (wm_acquire_lock(lock, microseconds) ? PY_LOCK_ACQUIRED : PY_LOCK_FAILURE)
#define PyThread_release_lock(lock) wm_release_lock(lock)
#define PyThread_get_thread_ident() wm_ident()

// In the place of primitives.pxd's own.
#define RINGMILL_MACHINE
#define RINGMILL_FREE_THREADED 1
[[maybe_unused]] static inline void ringmill_pause(void) { wm_pause(); }
[[maybe_unused]] static inline void ringmill_yield(void) { wm_pause(); }
[[maybe_unused]] static inline void ringmill_sleep(std::int64_t) { wm_pause(); }
[[maybe_unused]] static inline std::int64_t ringmill_now(void) { return wm_now(); }
[[maybe_unused]] static inline PyObject* ringmill_steal(PyObject* owned) { return owned; }
[[maybe_unused]] static inline PyObject* ringmill_exchange(PyObject** place, PyObject* value) {
    PyObject* old = *place;
    *place = value;
    return old;
}
[[maybe_unused]] static inline void ringmill_have_raised(void) {
    if (PyErr_Occurred() == nullptr) PyErr_NoMemory();
}
