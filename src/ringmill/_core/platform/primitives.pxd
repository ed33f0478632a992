# What Cython has no words for: a pause instruction, a yield, a short sleep, the steady clock (PyTime_Monotonic is new
# in 3.13), and whether this is a free-threaded build. All may be called detached.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

cdef extern from *:
    """
    #ifndef RINGMILL_MACHINE
    #define RINGMILL_MACHINE
    #include <frameobject.h>
    #include <chrono>
    #include <cstdint>
    #include <thread>
    #if defined(_MSC_VER)
    #include <intrin.h>
    #endif
    [[maybe_unused]] static inline void ringmill_pause(void) {
    #if defined(_MSC_VER) && (defined(_M_ARM64) || defined(_M_ARM))
        __yield();
    #elif defined(_MSC_VER)
        _mm_pause();
    #elif defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ __volatile__("isb" ::: "memory");
    #endif
    }
    [[maybe_unused]] static inline void ringmill_yield(void) { std::this_thread::yield(); }
    [[maybe_unused]] static inline void ringmill_sleep(std::int64_t ns) {
        std::this_thread::sleep_for(std::chrono::nanoseconds(ns));
    }
    [[maybe_unused]] static inline std::int64_t ringmill_now(void) {
        using namespace std::chrono;
        return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
    }
    #ifdef Py_GIL_DISABLED
    #define RINGMILL_FREE_THREADED 1
    #else
    #define RINGMILL_FREE_THREADED 0
    #endif
    /* Converts an owned pointer to an object that Cython owns, without an INCREF and a DECREF. */
    [[maybe_unused]] static inline PyObject* ringmill_steal(PyObject* owned) { return owned; }
    /* Replaces an object field without the reference counting that Cython would add. */
    [[maybe_unused]] static inline PyObject* ringmill_exchange(PyObject** place, PyObject* value) {
        PyObject* old = *place;
        *place = value;
        return old;
    }
    /* Where memory lacks, Cython's code that adds a traceback leaves an exception without one, or none at all: CPython 3.12 and
       3.13 lose the exception where they find no memory for a frame object, so that a function in Python that raises
       returns NULL with none set. Cython's `except` and `finally` crash then. So these stand in the place of what Cython
       calls: an exception stays, or is a MemoryError, and has a traceback, if need be one that was made beforehand. */
    static inline PyObject* ringmill_make_traceback(void) {
        PyObject *type = NULL, *value = NULL, *trace = NULL;
        PyObject* globals = PyDict_New();
        PyCodeObject* code = PyCode_NewEmpty("ringmill", "(no memory for a traceback)", 1);
        PyFrameObject* frame = globals && code ? PyFrame_New(PyThreadState_Get(), code, globals, NULL) : NULL;
        if (frame != NULL) {
            PyErr_SetNone(PyExc_MemoryError);
            PyTraceBack_Here(frame);
        }
        PyErr_Fetch(&type, &value, &trace);
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(frame);
        Py_XDECREF(code);
        Py_XDECREF(globals);
        return trace;
    }
    [[maybe_unused]] static PyObject* const ringmill_spare_traceback = ringmill_make_traceback();  // when the module is loaded
    [[maybe_unused]] static inline void ringmill_have_raised(void) {
        if (PyErr_Occurred() == NULL) PyErr_NoMemory();
    }
    [[maybe_unused]] static inline void ringmill_have_traceback(void) {
        PyObject *type, *value, *trace;
        ringmill_have_raised();
        PyErr_Fetch(&type, &value, &trace);
        if (trace == NULL) Py_XINCREF(trace = ringmill_spare_traceback);
        PyErr_Restore(type, value, trace);
    }
    [[maybe_unused]] static inline int ringmill_add_traceback(PyFrameObject* frame) {
        ringmill_have_raised();
        int status = PyTraceBack_Here(frame);
        ringmill_have_traceback();
        return status;
    }
    [[maybe_unused]] static inline PyFrameObject* ringmill_new_frame(
        PyThreadState* state, PyCodeObject* code, PyObject* globals, PyObject* locals
    ) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        PyFrameObject* frame = PyFrame_New(state, code, globals, locals);
        if (type != NULL) PyErr_Restore(type, value, trace);  // and drops what PyFrame_New has raised
        if (frame == NULL) ringmill_have_traceback();
        return frame;
    }
    [[maybe_unused]] static inline PyCodeObject* ringmill_new_code(const char* file, const char* function, int line) {
        PyCodeObject* code = PyCode_NewEmpty(file, function, line);
        if (code == NULL) ringmill_have_traceback();
        return code;
    }
    #define PyFrame_New(state, code, globals, locals) ringmill_new_frame(state, code, globals, locals)
    #define PyCode_NewEmpty(file, function, line) ringmill_new_code(file, function, line)
    #define PyTraceBack_Here(frame) ringmill_add_traceback(frame)
    #endif
    """
    void pause "ringmill_pause"() noexcept nogil
    void yield_processor "ringmill_yield"() noexcept nogil
    void sleep_ns "ringmill_sleep"(int64_t) noexcept nogil
    int64_t now_ns "ringmill_now"() noexcept nogil
    object steal "ringmill_steal"(PyObject*)
    const bint FREE_THREADED "RINGMILL_FREE_THREADED"


cdef inline void relax(int* spins) noexcept nogil:
    # One step of waiting for a thread that has only a few instructions left to execute.
    spins[0] += 1
    if spins[0] < 64:
        pause()
    else:
        yield_processor()
