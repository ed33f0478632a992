# IndexSet: a set of integers from 0 to size - 1, with "the first one from an index on" in a few word operations.
#
# May use nothing else of the core. Not atomic: its owner guards it by a lock. Called attached or detached.
#
# Level 0 has a bit for each integer. Each level above has a bit for each word of the level below, which is 1 if that
# word is not 0; the top level is one word. So with 64-bit words a set of size 64 ** n has n levels. Each level ends
# with a word that stays 0, so that a search may look just past its end.

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #ifndef RINGMILL_INDEX_SET
    #define RINGMILL_INDEX_SET
    #include <cstdint>
    #if defined(_MSC_VER)
    #include <intrin.h>
    #endif
    /* The number of the lowest 1 bit; the word is not 0. */
    [[maybe_unused]] static inline unsigned ringmill_lowest_bit(std::uint64_t word) {
    #if defined(_MSC_VER)
        unsigned long bit;
        _BitScanForward64(&bit, word);
        return (unsigned)bit;
    #else
        return (unsigned)__builtin_ctzll(word);
    #endif
    }
    #endif
    """
    unsigned lowest_bit "ringmill_lowest_bit"(uint64_t) noexcept nogil

cdef enum:
    WORD_BITS = 6               # a word has 1 << WORD_BITS bits
    WITHIN = (1 << WORD_BITS) - 1
    LEVELS = 8                  # enough for 2 ** 48 integers

cdef struct IndexSet:
    uint64_t* levels[LEVELS]    # from 0 up; memory of the owner's
    int height                  # the number of levels, at least 1

cdef inline size_t words_of(size_t bits) noexcept nogil:
    return ((bits + WITHIN) >> WORD_BITS) + 1  # and the last one, which stays 0

cdef inline size_t words_for(size_t size) noexcept nogil:
    # How many words a set of that size, at least 1, needs.
    cdef size_t total = words_of(size)
    while size > WITHIN + 1:
        size = words_of(size) - 1
        total += words_of(size)
    return total

cdef inline void init_set(IndexSet* indexes, size_t size, uint64_t* words) noexcept nogil:
    # An empty set in words_for(size) words that are 0.
    indexes.levels[0] = words
    indexes.height = 1
    while size > WITHIN + 1:
        words += words_of(size)
        size = words_of(size) - 1
        indexes.levels[indexes.height] = words
        indexes.height += 1

cdef inline void insert(IndexSet* indexes, size_t index) noexcept nogil:
    cdef int level
    cdef uint64_t* word
    cdef bint was_empty
    for level in range(indexes.height):
        word = &indexes.levels[level][index >> WORD_BITS]
        was_empty = word[0] == 0
        word[0] |= <uint64_t>1 << (index & WITHIN)
        if not was_empty:  # the levels above know
            return
        index >>= WORD_BITS

cdef inline void discard(IndexSet* indexes, size_t index) noexcept nogil:
    cdef int level
    cdef uint64_t* word
    for level in range(indexes.height):
        word = &indexes.levels[level][index >> WORD_BITS]
        word[0] &= ~(<uint64_t>1 << (index & WITHIN))
        if word[0]:  # the levels above still have a 1 for it
            return
        index >>= WORD_BITS

cdef inline Py_ssize_t first_from(IndexSet* indexes, size_t index) noexcept nogil:
    # The smallest integer of the set that is at least `index`, which is less than the size; -1 if there is none.
    cdef int level = 0
    cdef uint64_t found
    while level < indexes.height:
        found = indexes.levels[level][index >> WORD_BITS] >> (index & WITHIN)
        if found:
            index += lowest_bit(found)
            while level:
                level -= 1
                index = index << WORD_BITS | lowest_bit(indexes.levels[level][index])
            return <Py_ssize_t>index
        index = (index >> WORD_BITS) + 1  # the words after this one, which is a bit of the level above
        level += 1
    return -1
