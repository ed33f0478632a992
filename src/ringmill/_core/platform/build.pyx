# The facts of this build: the project's version, the compiler and its flags. setup.py writes ringmill_build.h.

cdef extern from *:
    """
    #include "ringmill_build.h"
    #define RINGMILL_TEXT(macro) RINGMILL_QUOTED(macro)
    #define RINGMILL_QUOTED(text) #text
    #if defined(__clang__)
    #define RINGMILL_COMPILER "Clang " __clang_version__
    #elif defined(__GNUC__)
    #define RINGMILL_COMPILER "GCC " __VERSION__
    #elif defined(_MSC_VER)
    #define RINGMILL_COMPILER "MSVC " RINGMILL_TEXT(_MSC_FULL_VER)
    #else
    #define RINGMILL_COMPILER "unknown"
    #endif
    """
    const char* _version "RINGMILL_VERSION"
    const char* _compiler "RINGMILL_COMPILER"
    const char* _flags "RINGMILL_FLAGS"

version = _version.decode()
compiler = _compiler.decode().strip()
flags = _flags.decode()
