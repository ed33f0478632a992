"""Stream: what `WorkerPool.execute` and `wrap` return, and the sources that a wrap accepts.

The class is compiled, in _core/pool/stream.pyx, because every operation that is read goes through it.

May import `arguments` and the compiled core.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ._core.pool.stream import Stream
from .arguments import describe

__all__ = ["Stream", "iterator_of"]


def iterator_of(source: Any) -> Iterator[Any]:
    """Returns an iterator over a wrap's source. TypeError if it is not iterable."""
    try:
        return iter(source)
    except TypeError:
        raise TypeError(f"source must be an iterable or a RingBuffer, got {describe(source)}") from None
