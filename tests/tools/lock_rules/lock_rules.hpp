// Checks rule 7 of the core while the tests run: a thread that holds an internal lock (SpinLock's acquire and release in
// wait_queue.pxd) drops no reference, calls no function of the interpreter, allocates and frees nothing.
//
// tests/tools/lock_rules.sh has g++ include this file before the generated code. It then
//   - defines RINGMILL_LOCK_ACQUIRED and RINGMILL_LOCK_RELEASED, which wait_queue.pxd otherwise defines as nothing: they record
//     the locks that the calling thread holds;
//   - defines Py_DECREF and Py_XDECREF, in which Py_CLEAR, Py_SETREF and Cython's own macros end, as functions that report
//     a violation if the object is mortal and the thread holds a lock. It need not be the last reference: the rule
//     concerns each DECREF that could be;
//   - defines each function of Python's headers as a macro that reports a call under a lock (python_calls.hpp, which
//     __main__.py writes, with the list of the functions that are allowed);
//   - replaces the interpreter's allocators and C++'s operator new and delete by functions that report a use under a lock:
//     they also see what happens inside the interpreter, and in containers of the standard library.
//
// Inline variables of C++17 are one per process with g++ on Linux, also where many modules define them and each is loaded
// with RTLD_LOCAL (STB_GNU_UNIQUE). So a lock that one module acquires is seen in all.
//
// RINGMILL_LOCK_REPORT=FILE   reports are appended to FILE, one line each, and once for each stack; else they go to stderr
// RINGMILL_LOCK_ACTION        report: goes on; exit: ends the process with status 70 at its exit; abort: ends it at the
//                             first violation. The default is report if there is a FILE, else abort

#pragma once

#if !defined(__linux__) || !defined(__GNUC__) || defined(__clang__)
#error "the check of the lock rules needs g++ on Linux, where inline variables are one per process"
#endif

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h>

// What generated code includes later must be read before the functions become macros.
#include <compile.h>
#include <descrobject.h>
#include <frameobject.h>
#include <pythread.h>
#include <structmember.h>
#include <traceback.h>
#ifndef Py_BUILD_CORE
#define Py_BUILD_CORE 1
#include <internal/pycore_frame.h>
#undef Py_BUILD_CORE
#endif

#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace ringmill_lock_rules __attribute__((visibility("default"))) {

constexpr int MAX_HELD = 8;
constexpr int MAX_FRAMES = 48;
constexpr int COMPARED_FRAMES = 12;  // two reports with the same innermost frames are one
constexpr int MAX_REPORTS = 1 << 14;
constexpr int EXIT_STATUS = 70;

// The place that calls acquired(): in acquire(), and the place that calls that, if acquire() was not inlined there. For the
// second, all is compiled with frame pointers.
struct Callers {
    void* first;
    void* second;
};
#define RINGMILL_CALLERS {__builtin_return_address(0), __builtin_return_address(1)}

struct Held {
    int count;
    const void* locks[MAX_HELD];
    Callers acquired_at[MAX_HELD];
    bool reporting;               // what a report itself does is not reported
};

inline thread_local Held held;
inline std::atomic<std::uint64_t> reported[MAX_REPORTS] = {};  // hashes of the stacks

inline bool is_new(std::uint64_t hash) {
    hash |= 1;  // 0 is a free place
    for (int k = 0; k < MAX_REPORTS; k++) {
        std::atomic<std::uint64_t>& place = reported[(hash + k) % MAX_REPORTS];
        std::uint64_t there = 0;
        if (place.compare_exchange_strong(there, hash))
            return true;
        if (there == hash)
            return false;
    }
    return false;  // full
}

inline void exit_with_status() {
    std::fflush(nullptr);
    _exit(EXIT_STATUS);
}

struct Text {
    char data[16384];
    std::size_t length = 0;
    template <typename... Arguments> void add(const char* format, Arguments... arguments) {
        const std::size_t left = sizeof data - length;
        const int wanted = std::snprintf(data + length, left, format, arguments...);
        if (wanted > 0)
            length += static_cast<std::size_t>(wanted) < left ? wanted : left - 1;
    }
    void add_address(void* address) {  // FILE|OFFSET|SYMBOL
        Dl_info info;
        if (dladdr(address, &info) && info.dli_fname)
            add("%s|%#zx|%s", info.dli_fname, static_cast<char*>(address) - static_cast<char*>(info.dli_fbase),
                info.dli_sname ? info.dli_sname : "");
        else
            add("?|%p|", address);
    }
};

// One line: what was done, to what, FILE:LINE and function of the generated code, where the lock was acquired, the
// stack.
__attribute__((noinline, cold)) inline void report(
    const char* what, const char* subject, const char* file, int line, const char* function, Callers acquired_at) {
    if (held.reporting)
        return;
    held.reporting = true;
    const int error = errno;
    void* frames[MAX_FRAMES];
    const int count = backtrace(frames, MAX_FRAMES);
    std::uint64_t hash = 1469598103934665603u;
    for (int k = 1; k < count && k <= COMPARED_FRAMES; k++)
        hash = (hash ^ reinterpret_cast<std::uintptr_t>(frames[k])) * 1099511628211u;
    if (is_new(hash)) {
        Text text;
        text.add("%s\t%s\t%s:%d\t%s\t", what, subject, file, line, function);
        text.add_address(acquired_at.first);
        text.add(";");
        text.add_address(acquired_at.second);
        for (int k = 1; k < count; k++) {
            text.add(k == 1 ? "\t" : ";");
            text.add_address(frames[k]);
        }
        text.add("\n");
        if (text.length == sizeof text.data - 1)
            text.data[text.length - 1] = '\n';
        const char* path = std::getenv("RINGMILL_LOCK_REPORT");
        const int out = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666) : 2;
        if (write(out, text.data, text.length) < 0)
            std::abort();
        if (path)
            close(out);
        const char* action = std::getenv("RINGMILL_LOCK_ACTION");
        if (action ? std::strcmp(action, "abort") == 0 : !path) {
            if (!path)
                backtrace_symbols_fd(frames, count, 2);
            std::abort();
        }
        static std::atomic<bool> ends{false};
        if (action && std::strcmp(action, "exit") == 0 && !ends.exchange(true))
            std::atexit(exit_with_status);
    }
    errno = error;
    held.reporting = false;
}

__attribute__((noinline)) inline void acquired(const void* lock) {
    Held& mine = held;
    const Callers here = RINGMILL_CALLERS;
    for (int k = 0; k < mine.count && k < MAX_HELD; k++)
        if (mine.locks[k] == lock)
            report("acquires again what it holds", "", "", 0, "", mine.acquired_at[k]);
    if (mine.count < MAX_HELD) {
        mine.locks[mine.count] = lock;
        mine.acquired_at[mine.count] = here;
    }
    mine.count++;
}

__attribute__((noinline)) inline void released(const void* lock) {
    Held& mine = held;
    for (int k = mine.count - 1; k >= 0; k--)
        if (k >= MAX_HELD || mine.locks[k] == lock) {
            mine.count--;
            for (; k < mine.count && k + 1 < MAX_HELD; k++) {
                mine.locks[k] = mine.locks[k + 1];
                mine.acquired_at[k] = mine.acquired_at[k + 1];
            }
            return;
        }
    report("releases what it does not hold", "", "", 0, "", RINGMILL_CALLERS);
}

inline Callers last_acquired() {
    return held.acquired_at[(held.count < MAX_HELD ? held.count : MAX_HELD) - 1];
}

// ---------------------------------------------------------------------------------------------------------------------
// references

// The exceptions: for these objects a DECREF writes nothing, or never ends the object.
inline bool is_immortal(PyObject* object) {
#if PY_VERSION_HEX >= 0x030c0000
    return _Py_IsImmortal(object);
#else
    return object == Py_None || object == Py_True || object == Py_False || object == Py_Ellipsis;
#endif
}

inline void decref(PyObject* object, const char* file = __builtin_FILE(), int line = __builtin_LINE(),
                   const char* function = __builtin_FUNCTION()) {
    if (__builtin_expect(held.count != 0, 0) && !is_immortal(object))
        report("Py_DECREF", Py_TYPE(object)->tp_name, file, line, function, last_acquired());
    Py_DECREF(object);
}

inline void xdecref(PyObject* object, const char* file = __builtin_FILE(), int line = __builtin_LINE(),
                    const char* function = __builtin_FUNCTION()) {
    if (object)
        decref(object, file, line, function);
}

// ---------------------------------------------------------------------------------------------------------------------
// calls

inline void called(const char* name, const char* file = __builtin_FILE(), int line = __builtin_LINE(),
                   const char* function = __builtin_FUNCTION()) {
    if (__builtin_expect(held.count != 0, 0))
        report(name, "", file, line, function, last_acquired());
}

// ---------------------------------------------------------------------------------------------------------------------
// memory

struct Domain {
    PyMemAllocatorDomain number;
    const char* name;
    PyMemAllocatorEx real;
};

inline Domain domains[] = {
    {PYMEM_DOMAIN_RAW, "raw", {}},
    {PYMEM_DOMAIN_MEM, "mem", {}},
    {PYMEM_DOMAIN_OBJ, "object", {}},
};

inline void* checked_malloc(void* raw, std::size_t size) {
    Domain* domain = static_cast<Domain*>(raw);
    called("allocates");
    return domain->real.malloc(domain->real.ctx, size);
}

inline void* checked_calloc(void* raw, std::size_t count, std::size_t size) {
    Domain* domain = static_cast<Domain*>(raw);
    called("allocates");
    return domain->real.calloc(domain->real.ctx, count, size);
}

inline void* checked_realloc(void* raw, void* old, std::size_t size) {
    Domain* domain = static_cast<Domain*>(raw);
    called("reallocates");
    return domain->real.realloc(domain->real.ctx, old, size);
}

inline void checked_free(void* raw, void* old) {
    Domain* domain = static_cast<Domain*>(raw);
    if (old)
        called("frees");
    domain->real.free(domain->real.ctx, old);
}

inline bool replace_allocators() {
    for (Domain& domain : domains) {
        PyMem_GetAllocator(domain.number, &domain.real);
        PyMemAllocatorEx checked = {&domain, checked_malloc, checked_calloc, checked_realloc, checked_free};
        PyMem_SetAllocator(domain.number, &checked);
    }
    return true;
}

inline bool allocators_replaced = replace_allocators();  // by the first module that is loaded

}  // namespace ringmill_lock_rules

// Not inline: each module has its own, which its own containers call. What they allocate is malloc's, as elsewhere.
void* operator new(std::size_t size) {
    ringmill_lock_rules::called("operator new");
    if (void* made = std::malloc(size ? size : 1))
        return made;
    throw std::bad_alloc();
}

void operator delete(void* old) noexcept {
    if (old)
        ringmill_lock_rules::called("operator delete");
    std::free(old);
}

void operator delete(void* old, std::size_t) noexcept { operator delete(old); }

#define RINGMILL_LOCK_ACQUIRED(lock) ::ringmill_lock_rules::acquired(lock)
#define RINGMILL_LOCK_RELEASED(lock) ::ringmill_lock_rules::released(lock)

#undef Py_DECREF
#undef Py_XDECREF
#define Py_DECREF(object) ::ringmill_lock_rules::decref(_PyObject_CAST(object))
#define Py_XDECREF(object) ::ringmill_lock_rules::xdecref(_PyObject_CAST(object))

#include "python_calls.hpp"
