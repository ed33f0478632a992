"""Worker pools and publish/subscribe hubs on lock-free rings."""

from ._core.hub.subscription_ring import SubscriptionRing
from ._core.platform.build import version as __version__
from ._core.ring.ring_buffer import RingBuffer
from .backoff import exponential
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
from .futures import PoolExecutor
from .hub import Hub, Subscription
from .operation import Operation, Outcome, Task
from .pool import PoolStats, WorkerPool, WorkerStats
from .stream import Results, Stream
from .worker import TaskWorker, Worker

__all__ = [
    "BrokenPool",
    "Closed",
    "Hub",
    "Operation",
    "OperationReused",
    "Outcome",
    "PoolExecutor",
    "PoolNotRunning",
    "PoolStats",
    "Reject",
    "Results",
    "RetriesExhausted",
    "Retry",
    "RingBuffer",
    "RingmillError",
    "Stream",
    "Subscription",
    "SubscriptionRing",
    "Task",
    "TaskWorker",
    "Unroutable",
    "Worker",
    "WorkerInitError",
    "WorkerPool",
    "WorkerStats",
    "__version__",
    "exponential",
]
