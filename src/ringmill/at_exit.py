"""The exit of the interpreter: running pools finish their accepted work before the program's own exit hooks run.

`threading` calls the functions registered with its `_register_atexit` when the main thread has ended, before it joins
the non-daemon threads, and so before `atexit`, `weakref.finalize` and `TemporaryDirectory`. `concurrent.futures` uses
it too. It is private, the only private name of the standard library that ringmill depends on. The functions are called
in reverse order, so this module registers after `concurrent.futures.thread`, and once more after
`concurrent.futures.process`: the pools end first, and their operations may use executors until then.

If the name is missing, or if an exception of another such function kept this one from being called, `atexit` calls the
hook: after the hooks that were registered after the import of ringmill, otherwise with the same effect.

An exception that left the hook would skip the older hooks and the joining of non-daemon threads, so none does. The hook
waits for events of the runs: on CPython 3.11 an interrupted Thread.join cannot be repeated.

May import `standard_executor`, `supervisor` and the compiled core.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import weakref
from collections.abc import Callable

from . import standard_executor  # noqa: F401  # see the end of this file
from ._core.pool.operation import complete, take_keyboard_interrupt
from .supervisor import Supervisor

_register: Callable[[Callable[[], None]], object] | None = getattr(threading, "_register_atexit", None)
_begun = False  # no pool may be started any more
_ended = False  # the hook has run to its end
_registered_after_processes = False
_runs: dict[int, weakref.ref[Supervisor]] = {}  # the runs that were started; some have ended, or were collected


def has_begun() -> bool:
    """Returns whether the main thread has ended, so that no pool may be started."""
    return _begun


def add(run: Supervisor) -> bool:
    """Registers a run to be finished when the main thread ends. False: it has ended, so the caller must end the run."""
    global _registered_after_processes
    for key, reference in list(_runs.items()):
        if reference() is None:
            _runs.pop(key, None)
    reference = weakref.ref(run)
    _runs[id(reference)] = reference  # that of the run might be used again, and the other one be forgotten for this
    if not _registered_after_processes and "concurrent.futures.process" in sys.modules:
        _registered_after_processes = True
        _register_hook()
    return not _begun  # read after the run was added; _finish uses the other order, so one sees the other


def after_fork_in_child() -> None:
    """Forgets the parent's runs. A new dict, since a thread of the parent may have been changing the old one."""
    global _runs
    _runs = {}


def _register_hook() -> None:
    global _begun
    if _register is not None:
        try:
            _register(_at_exit)
        except RuntimeError:  # too late
            _begun = True


def _at_exit() -> None:
    if not _ended:
        complete(_finish, 1 if _ended_by_keyboard_interrupt() else 0)


def _ended_by_keyboard_interrupt() -> bool:
    """Returns whether a KeyboardInterrupt ended the program. In an interactive session it ends a statement only."""
    return not hasattr(sys, "ps1") and issubclass(getattr(sys, "last_type", None) or object, KeyboardInterrupt)


def _finish(keyboard_interrupts: int) -> None:
    """Finishes all runs: after one KeyboardInterrupt only the work that has begun; after a second it does not wait.

    Called again, with one more, each time it raises that or another exception: see `complete`.
    """
    global _begun, _ended
    _begun = True
    runs = [run for reference in list(_runs.values()) if (run := reference()) is not None]
    runs = [run for run in runs if not run.core.is_inherited and not run.given_up]
    for run in runs:
        run.stop_accepting()
    if keyboard_interrupts:
        for run in runs:
            with contextlib.suppress(MemoryError):  # all are cancelled; the list of them is not needed here
                run.core.cancel_pending()
    kept = take_keyboard_interrupt()
    if kept is not None:
        raise kept
    for run in runs:
        if keyboard_interrupts < 2:
            run.join(None)
        else:
            run.given_up = True
    _ended = True


_register_hook()  # after that of concurrent.futures.thread, which the import of standard_executor has registered
atexit.register(_at_exit)
