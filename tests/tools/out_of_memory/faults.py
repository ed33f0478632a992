"""What CPython and Cython do wrong themselves where memory is short, each without ringmill.

`python tests/tools/out_of_memory/faults.py NAME` prints which allocations show it, or crashes. What was found, on
CPython 3.11.7, 3.12.1, 3.13.0, 3.14.10 and 3.15.2:

| name | fault | versions |
|---|---|---|
| spread | `[*t]`, `list(t)`, `list.extend(t)` leak a list or tuple t | CPython 3.11.7, 3.12.1 |
| generator | the call of a generator for which there is no memory crashes, later | CPython 3.12.1, 3.13.0 |
| function | a function is made: where there is no memory, its code loses a reference | CPython 3.12.1, 3.13.0 |
| hooks | a thread that frees without the GIL while `_testcapi` swaps the allocators crashes | CPython 3.11.7 |
| start | Thread.start waits forever: its thread died before it said that it runs | all |
| kept | Thread.start that raises keeps the thread, and what it was to call, forever | 3.12.1, 3.13.0 |
| keywords | an object of a Python subclass of an extension type, made with keywords, crashes | Cython 3.3.1 |
| raised | a function that raises loses the exception where there is no memory for a frame object | 3.12.1, 3.13.0 |
| future | asyncio's Future.set_result finds no memory: it is done, and its callback is not called | 3.12.1, 3.13.0 |
| variable | ContextVar.set crashes where two allocations in a row fail: its token's, and the next | 3.11.7 to 3.13.0 |

`start` is excused, and `function` made harmless (__main__.py); the hooks are put in once (trial.py). The others are
avoided: compiled code has an exception where one was lost (primitives.pxd), copies are made by hand, lists stand for
generators, setup.py turns that code of Cython's off, and allocations fail one by one only where a variable is set
(trial.alone). For `keywords`, compile `cdef class Base: pass` as faults_base.pyx.
"""

from __future__ import annotations

import _testcapi
import asyncio
import faulthandler
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

LIMIT = 30  # allocations


def fails(k: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Makes the call while allocation k fails."""
    gc.collect()  # no free list helps out
    _testcapi.set_nomemory(k, k + 1)
    try:
        function(*args, **kwargs)
    except (MemoryError, RuntimeError):  # RuntimeError: threading's, "can't start new thread"
        pass
    finally:
        _testcapi.remove_mem_hooks()


def spread(k: int) -> bool:
    things = (object(), object())
    before = sys.getrefcount(things)
    fails(k, lambda: [*things])
    return sys.getrefcount(things) > before


GENERATOR = """
import _testcapi, gc

def has_none(things):
    return any(thing is None for thing in things)

has_none(T := (1, 2))
gc.collect()
try:
    _testcapi.set_nomemory({k}, {k} + 1)
    has_none(T)
except MemoryError:
    pass
finally:
    _testcapi.remove_mem_hooks()
has_none([object(), {{}}, [], ()])  # what was freed twice is given to two
has_none([object(), {{}}, [], ()])
"""


def generator(k: int) -> bool:
    return subprocess.run([sys.executable, "-c", GENERATOR.format(k=k)]).returncode != 0


def function(k: int) -> bool:
    def outer(x: object) -> Callable[[], object]:
        return lambda: x

    inner = outer(None).__code__
    before = sys.getrefcount(inner)
    fails(k, outer, None)
    lost = sys.getrefcount(inner) < before
    KEPT.append(inner if lost else None)
    return lost


KEPT: list[Any] = []
HOOKS = """
import _testcapi, faulthandler
for _ in range(3000):
    faulthandler.dump_traceback_later(60)  # a new thread: the first that it does is to free, without the GIL
    for _ in range(200):
        _testcapi.set_nomemory(1 << 30, 1 << 30)
        _testcapi.remove_mem_hooks()
"""


def hooks(k: int) -> bool:
    """Not by allocation: in thirty processes."""
    return subprocess.run([sys.executable, "-c", HOOKS]).returncode != 0


def start(k: int) -> bool:
    child = os.fork()
    if child == 0:
        os.close(2)
        faulthandler.dump_traceback_later(1, exit=True, file=os.open(os.devnull, os.O_WRONLY))
        fails(k, threading.Thread(target=int).start)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def kept(k: int) -> bool:
    child = os.fork()  # it may wait forever as well: see start
    if child == 0:
        os.close(2)
        faulthandler.dump_traceback_later(1, exit=True, file=os.open(os.devnull, os.O_WRONLY))
        thread = threading.Thread(target=int)
        reference = weakref.ref(thread)
        fails(k, thread.start)
        if thread.is_alive():
            thread.join()
        del thread
        threading._limbo.clear()  # type: ignore[attr-defined]
        gc.collect()
        os._exit(2 if reference() is not None else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


def keywords(k: int) -> bool:
    from faults_base import Base  # type: ignore[import-not-found]

    class Sub(Base):  # type: ignore[misc]
        def __init__(self, **kwargs: Any) -> None:
            pass

    sorted(range(1000), key=lambda i: (i, -i))  # something lies on the stack
    fails(k, Sub, a=1, b=2, c=3, d=4, e=5)
    return False


def raised(k: int) -> bool:
    def raises() -> None:
        raise ValueError

    gc.collect()
    _testcapi.set_nomemory(k, k + 1)
    try:
        raises()
    except SystemError as error:
        return str(error) == "error return without exception set"
    except (MemoryError, ValueError):
        pass
    finally:
        _testcapi.remove_mem_hooks()
    return False


def future(k: int) -> bool:
    loop = asyncio.new_event_loop()
    made = loop.create_future()
    called: list[object] = []
    made.add_done_callback(called.append)
    fails(k, made.set_result, None)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    return made.done() and not called


VARIABLE = """
import _testcapi, contextvars
variable, value = contextvars.ContextVar("variable"), object()
_testcapi.set_nomemory({k}, {k} + 2)
try:
    variable.set(value)
except MemoryError:
    pass
"""


def variable(k: int) -> bool:
    return subprocess.run([sys.executable, "-c", VARIABLE.format(k=k)]).returncode != 0


if __name__ == "__main__":
    shows = {
        "spread": spread, "generator": generator, "function": function, "hooks": hooks, "start": start, "kept": kept,
        "keywords": keywords, "variable": variable, "raised": raised, "future": future,
    }[sys.argv[1]]
    for _ in range(2):
        shows(1 << 20)  # what is made once, is made
    print([k for k in range(LIMIT) if shows(k)])
