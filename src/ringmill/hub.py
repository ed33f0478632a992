"""Hub, publish/subscribe: `signal` reaches one subscriber, in turn; `broadcast` reaches all.

May import the compiled core.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from ._core.ring.ring_buffer import MAX_CAPACITY
from ._core.hub.subscription import HubBase, SubscriptionBase, policy
from .arguments import count, describe

__all__ = ["Hub", "Overflow", "Subscription"]

T = TypeVar("T")

Overflow: TypeAlias = Literal["block", "drop_oldest", "drop_incoming", "latest", "raise"]


class Subscription(SubscriptionBase, Generic[T]):
    """One subscriber's end of a hub: a buffer to read from, made by `Hub.subscribe`.

    `get`, `get_nowait`, `get_many` and iteration take the items in the order of delivery. `id` is never used again.
    When the subscription ends, by `close`, `Hub.unsubscribe` or `Hub.close`, what was delivered before stays
    readable, then iteration ends. A context manager that closes it. A subscription that is dropped ends as well: the
    hub does not keep it alive, except while a thread or task waits in it.
    """

    def __init__(self, buffer: int, overflow: Overflow, hub: Hub[T]) -> None:
        hub._add(self)

    if TYPE_CHECKING:  # compiled

        @property
        def buffer(self) -> int: ...
        @property
        def overflow(self) -> Overflow: ...
        def get(self, timeout: float | None = None) -> T: ...
        def get_nowait(self) -> T: ...
        def get_many(self, max: int | None = None, timeout: float | None = None) -> list[T]: ...
        async def aget(self) -> T: ...
        def __iter__(self) -> Iterator[T]: ...
        def __next__(self) -> T: ...
        def __aiter__(self) -> AsyncIterator[T]: ...
        async def __anext__(self) -> T: ...

    def close(self) -> None:
        """Ends the subscription. Idempotent, never blocks, safe from any thread."""
        self._end()

    def __enter__(self) -> Subscription[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        held = f"{len(self)} of {self.buffer}"
        return f"<Subscription {self.id} {state}, {self.overflow}, {held}, {self.dropped} dropped>"


class Hub(HubBase, Generic[T]):
    """Publish/subscribe on a circular list of subscriptions.

    `buffer`: how many items a subscription holds, unless `subscribe` says otherwise. `overflow`: what happens to an
    item for a subscription that is full: "block" makes the publisher wait, "drop_oldest" makes room, "drop_incoming"
    drops the item, "latest" keeps the newest item only, "raise" raises `queue.Full` at the publisher. Items from one
    publisher reach one subscriber in order. `signal`, `broadcast` and their async twins are compiled
    (_core/subscription.pyx). All calls may be made from any thread.

    >>> hub = Hub(buffer=8)
    >>> left, right = hub.subscribe(), hub.subscribe()
    >>> hub.broadcast("to all")
    2
    >>> hub.signal("to one") is left
    True
    >>> hub.close()
    >>> list(left), list(right)
    (['to all', 'to one'], ['to all'])
    """

    _buffer: int = 256  # also for a subclass that does not call __init__
    _overflow: Overflow = "block"

    def __init__(self, *, buffer: int = 256, overflow: Overflow = "block") -> None:
        size, name = _buffer(buffer), policy(overflow)
        self._buffer = size
        self._overflow = name

    if TYPE_CHECKING:  # compiled

        def signal(self, item: T, timeout: float | None = None) -> Subscription[T] | None: ...
        def broadcast(self, item: T, timeout: float | None = None) -> int: ...
        async def asignal(self, item: T) -> Subscription[T] | None: ...
        async def abroadcast(self, item: T) -> int: ...

    def subscribe(self, buffer: int | None = None, overflow: Overflow | None = None) -> Subscription[T]:
        """Adds a subscription, at the end of the ring. Never blocks. `Closed` when the hub is closed."""
        size = self._buffer if buffer is None else _buffer(buffer)
        name = self._overflow if overflow is None else policy(overflow)
        self._check_open()
        return Subscription(size, name, self)

    def unsubscribe(self, subscription: Subscription[T]) -> bool:
        """Ends a subscription; returns whether it was one of this hub's that had not ended.

        What was delivered before stays readable; the others lose nothing. Idempotent, never blocks.
        """
        if not isinstance(subscription, Subscription):
            raise TypeError(f"subscription must be a Subscription, not {describe(subscription)}")
        return self._remove(subscription)

    def close(self) -> None:
        """Ends all subscriptions, after what was delivered; later calls raise `Closed`. Idempotent, never blocks.

        A hub that is dropped is closed.
        """
        self._close()

    def __enter__(self) -> Hub[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Hub {'closed' if self.closed else 'open'}, {len(self)} subscriptions>"


def _buffer(value: Any) -> int:
    return count("buffer", value, 1, MAX_CAPACITY)
