from contextvars import Context
from typing import Any

from typing_extensions import disjoint_base

from .ring_buffer import RingBuffer
from .waiter import Sleeper

@disjoint_base
class Feed:
    def __new__(
        cls,
        pending: RingBuffer[Any],
        ready: RingBuffer[Any] | None = None,
        *,
        ordered: bool = False,
        foreign: bool = False,
        resets: bool = False,
        tickets: RingBuffer[Any] | None = None,
        context: Context | None = None,
    ) -> Feed: ...

@disjoint_base
class Bell(Sleeper): ...
