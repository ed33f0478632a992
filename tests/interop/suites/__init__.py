"""Runs test suites of other libraries twice: with the standard classes, and with ringmill in their place.

    python -m tests.interop.suites                  all of them
    python -m tests.interop.suites tornado anyio    some of them
    python -m tests.interop.suites --quick          a part of each: 3.5 minutes
    python -m tests.interop.suites --list           the names, and what is replaced in each
    python -m tests.interop.suites --standard-only  checks the suites themselves, without ringmill

The libraries, their tests and the requirements come from PyPI, each at a pinned version; CPython's own tests are those
of the interpreter that runs this, which must be able to import ringmill. `swap/ringmill_swap.py` puts ringmill in the
place of the standard classes before anything else is imported, and counts its uses.

A test differs if it passed in three of three runs with the standard class, and in none of three with ringmill. Each
suite runs once; the test files with tests that differ then run two more times. The exit status is 1 if a test differs
that is not in `libraries.EXPECTED`, if one of those passes, if a run with ringmill did not end, or if it did not use
ringmill.
"""
