# Read-modify-writes for attached threads; all of the core's are done by attached threads (rule 1).
#
# On a free-threaded build these are the atomic operations of their names. On a GIL build an attached thread holds the
# GIL, so no other attached thread runs between the load and the store, and a locked instruction (6 ns on x86) would
# gain nothing: there they are a load and a store. The store is a release, for the few words that detached threads read
# (a waiter's hint, an operation's state). The accesses of attached threads are ordered by the GIL.

from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport atomic, memory_order

cdef extern from *:
    """
    #ifndef RINGMILL_ATTACHED
    #define RINGMILL_ATTACHED
    #include <atomic>
    #include <cstdint>
    namespace ringmill {
    using std::memory_order;
    template <typename T> using Word = std::atomic<T>;
    template <typename T> using Value = typename std::atomic<T>::value_type;
    #ifdef Py_GIL_DISABLED
    template <typename T> inline void put(Word<T>& word, Value<T> wanted, memory_order order) {
        word.store(wanted, order);
    }
    template <typename T> inline T exchange(Word<T>& word, Value<T> wanted, memory_order order) {
        return word.exchange(wanted, order);
    }
    template <typename T> inline T fetch_or(Word<T>& word, Value<T> bits, memory_order order) {
        return word.fetch_or(bits, order);
    }
    template <typename T>
    inline bool swap(Word<T>& word, T& seen, Value<T> wanted, memory_order order, memory_order failed) {
        return word.compare_exchange_weak(seen, wanted, order, failed);
    }
    #else
    template <typename T> inline void put(Word<T>& word, Value<T> wanted, memory_order) {
        word.store(wanted, std::memory_order_release);
    }
    template <typename T> inline T exchange(Word<T>& word, Value<T> wanted, memory_order) {
        const T then = word.load(std::memory_order_relaxed);
        word.store(wanted, std::memory_order_release);
        return then;
    }
    template <typename T> inline T fetch_or(Word<T>& word, Value<T> bits, memory_order) {
        const T then = word.load(std::memory_order_relaxed);
        word.store(then | bits, std::memory_order_release);
        return then;
    }
    template <typename T>
    inline bool swap(Word<T>& word, T& seen, Value<T> wanted, memory_order, memory_order) {
        const T then = word.load(std::memory_order_relaxed);
        if (then != seen) {
            seen = then;
            return false;
        }
        word.store(wanted, std::memory_order_release);
        return true;
    }
    #endif
    }
    #endif
    """
    void put32 "ringmill::put"(atomic[uint32_t]& word, uint32_t wanted, memory_order) noexcept nogil
    void put64 "ringmill::put"(atomic[uint64_t]& word, uint64_t wanted, memory_order) noexcept nogil
    uint32_t exchange32 "ringmill::exchange"(atomic[uint32_t]& word, uint32_t wanted, memory_order) noexcept nogil
    uint64_t exchange64 "ringmill::exchange"(atomic[uint64_t]& word, uint64_t wanted, memory_order) noexcept nogil
    uint64_t fetch_or64 "ringmill::fetch_or"(atomic[uint64_t]& word, uint64_t bits, memory_order) noexcept nogil
    # Weak compare-exchange: if it fails, `seen` receives the word's value.
    bint swap64 "ringmill::swap"(
        atomic[uint64_t]& word, uint64_t& seen, uint64_t wanted, memory_order, memory_order failed
    ) noexcept nogil
