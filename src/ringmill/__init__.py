"""Worker pools and publish/subscribe hubs on lock-free rings."""

from ._core.ring_buffer import RingBuffer
from .errors import (
    BrokenPool,
    Closed,
    OperationReused,
    PoolNotRunning,
    Reject,
    RetriesExhausted,
    Retry,
    RingmillError,
    Unroutable,
    WorkerInitError,
)

__all__ = [
    "BrokenPool",
    "Closed",
    "OperationReused",
    "PoolNotRunning",
    "Reject",
    "RetriesExhausted",
    "Retry",
    "RingBuffer",
    "RingmillError",
    "Unroutable",
    "WorkerInitError",
]
