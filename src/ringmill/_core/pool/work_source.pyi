from contextvars import Context
from typing import Any

from typing_extensions import disjoint_base

from ringmill._core.ring.ring_buffer import RingBuffer
from ringmill._core.waiting.wait_queue import Sleeper

@disjoint_base
class WorkSource:
    def __new__(
        cls,
        pending: RingBuffer[Any],
        ready: RingBuffer[Any] | None = None,
        *,
        ordered: bool = False,
        external: bool = False,
        resets: bool = False,
        permits: RingBuffer[Any] | None = None,
        context: Context | None = None,
    ) -> WorkSource: ...

@disjoint_base
class RingWatcher(Sleeper): ...
