"""Stream and Results: what `execute` and `wrap`, and `map`, return; and the sources that they draw from.

Both classes are compiled, in _core/pool/stream.pyx and results.pyx, because all that is read goes through them.

May import `arguments` and the compiled core.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ._core.pool.results import Results
from ._core.pool.stream import Stream
from .arguments import describe

__all__ = ["Results", "Stream", "iterator_of"]


def iterator_of(source: Any, name: str = "source") -> Iterator[Any]:
    """Returns an iterator over a stream's source, an argument of that name. TypeError if it is not iterable."""
    try:
        return iter(source)
    except TypeError:
        given = describe(source)
        raise TypeError(f"{name} must be an iterable, an async iterable or a RingBuffer, got {given}") from None
