"""What a case is made of: a Trial makes one call while its allocations fail, and watches what must be gone afterwards.

A case is a function that makes what the call needs, makes the call by `trial(function, ...)`, and checks what it
left. Whatever it makes by `trial.thing()` must be gone when the case is over.
"""

from __future__ import annotations

import _testcapi
import gc
import weakref
from collections.abc import Callable
from typing import Any

# A shortage without end is CPython's to lose: in 3.13 a `with` whose code lies beyond 256 bytes of its function needs
# an integer to enter its exception handler, and tries again and again while it gets none.
SPELL = 100
# What CPython itself raises, in Python code, where a frame object could not be made for a traceback.
CPYTHONS_OWN = "error return without exception set"
FAILED = object()  # what a call gives that raised MemoryError
# Which allocations fail when none shall. The hooks of _testcapi are never taken out: a thread that starts or ends frees
# without the GIL, and where the allocators are swapped meanwhile, it crashes (faults.py: hooks). A tuple, so that
# `set_nomemory(*NONE)` itself allocates nothing.
NONE = (1 << 30, 1 << 30)


class Thing:
    """An item that is watched."""


class Trial:
    """One case: which allocations fail, what came of it, and the things that must be gone at its end."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.failed = False
        self.refs: list[weakref.ref[Any]] = []

    def thing(self) -> Any:
        thing = Thing()
        self.watch(thing)
        return thing

    def watch(self, thing: Any) -> Any:
        self.refs.append(weakref.ref(thing))
        return thing

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Makes the call while the allocations fail. Returns what it returns; FAILED if it raised MemoryError."""
        gc.collect()  # clears the free lists, so that the k-th allocation is the same one, whatever came before
        _testcapi.set_nomemory(self.start, self.stop)
        try:
            return function(*args, **kwargs)
        except MemoryError:
            self.failed = True
            return FAILED
        except SystemError as error:
            _testcapi.set_nomemory(*NONE)
            if str(error) != CPYTHONS_OWN:
                raise
            self.failed = True
            return FAILED
        finally:
            _testcapi.set_nomemory(*NONE)

    def raising(self, *expected: type[BaseException], call: Callable[[], Any], or_not: bool = False) -> Any:
        """The same for a call that is to raise one of those (None then), if it has the memory to; or may, `or_not`."""
        try:
            result = self(call)
        except expected:
            return None
        assert or_not or result is FAILED, result
        return result


CASES: dict[str, Callable[[Trial], None]] = {}
FORKS: set[str] = set()  # cases that start threads: each runs in a process of its own
ALONE: set[str] = set()  # cases in which allocations fail one by one only


def case(function: Callable[[Trial], None]) -> Callable[[Trial], None]:
    CASES[function.__name__] = function
    return function


def alone(function: Callable[[Trial], None]) -> Callable[[Trial], None]:
    """Threads run Python code meanwhile: in a spell, a thread cannot even call the function that would report it. Or a
    context variable is set: in a spell, that crashes (faults.py: variable).
    """
    ALONE.add(function.__name__)
    return function


def forks(function: Callable[[Trial], None]) -> Callable[[Trial], None]:
    FORKS.add(function.__name__)
    return case(function)
