# The core's clock for Python code: std::chrono::steady_clock, as everywhere in the core.
#
# Not time.monotonic, which a test suite may freeze: that must not stop a pool.

from ringmill._core.platform.primitives cimport now_ns


def now():
    """Returns the time of the steady clock in seconds. Its zero is arbitrary: only differences have a meaning."""
    return now_ns() / 1e9
