# The core's clock for Python code: std::chrono::steady_clock, as everywhere in the core.
#
# `time.monotonic` belongs to the program: a test suite that freezes it must not stop a pool.

from ringmill._core.platform.primitives cimport now_ns


def now():
    """The steady clock, in seconds from a point in the past that no one needs to know. Only differences mean anything."""
    return now_ns() / 1e9
