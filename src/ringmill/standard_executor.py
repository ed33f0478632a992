"""What ringmill takes from `concurrent.futures.thread`: ThreadPoolExecutor, its `submit`, what its work items need.

That module registers a function with `threading` when it is imported, which fails once the main thread has ended. So if
ringmill is imported then, by an exit hook, the registration is left out: no executor can be used any more.

May import nothing of ringmill.
"""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["BrokenThreadPool", "ThreadPoolExecutor", "original_submit", "run_arguments"]

try:
    import concurrent.futures.thread
except RuntimeError:
    # Not in the stub of `threading` (type: ignore); see at_exit.py
    _register: Any = threading._register_atexit  # type: ignore[attr-defined]
    threading._register_atexit = lambda *_args, **_kwargs: None  # type: ignore[attr-defined]
    try:
        import concurrent.futures.thread
    finally:
        threading._register_atexit = _register  # type: ignore[attr-defined]

from concurrent.futures.thread import BrokenThreadPool, ThreadPoolExecutor

#: ThreadPoolExecutor's own `submit`, also if a program has replaced it before ringmill was imported.
original_submit: Any = ThreadPoolExecutor.submit
while hasattr(original_submit, "__wrapped__"):
    original_submit = original_submit.__wrapped__

_context_class: Any = getattr(concurrent.futures.thread, "WorkerContext", None)
#: What `run` of a work item takes: from CPython 3.14 on, an object that calls the function.
run_arguments: tuple[Any, ...] = () if _context_class is None else (_context_class(None, ()),)
