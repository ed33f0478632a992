"""Hub and Subscription, publish/subscribe: `signal` reaches one subscriber, in turn; `broadcast` reaches all.

Checks arguments; the delivery is compiled, in _core/hub/subscription.pyx.

May import the compiled core.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from ._core.hub.subscription import HubBase, SubscriptionBase, policy
from ._core.ring.ring_buffer import MAX_CAPACITY
from .arguments import count, describe

__all__ = ["Hub", "Overflow", "Subscription"]

T = TypeVar("T")

Overflow: TypeAlias = Literal["block", "drop_oldest", "drop_incoming", "latest", "raise"]


class Subscription(SubscriptionBase, Generic[T]):
    """The buffer from which one subscriber of a hub reads. Made by `Hub.subscribe`.

    `get`, `get_nowait`, `get_many`, `aget` and iteration take the items in the order of delivery. Any number of threads
    and tasks may read one subscription; each item goes to one of them.

    The subscription ends by `close`, as a context manager, by `Hub.unsubscribe` or by `Hub.close`. Items delivered
    before stay readable; then iteration ends. **A subscription that is dropped ends too**: the hub does not keep it
    alive, except while a thread or task waits in it.

    Args:
        buffer: The number of items that it can hold, from 1.
        overflow: The overflow policy, as in `Hub`.
        hub: The hub.
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
        """Ends the subscription; items delivered before can still be read.

        Idempotent; never blocks; may be called from any thread.
        """
        self._end()

    def __enter__(self) -> Subscription[T]:
        """Returns the subscription itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Calls `close`."""
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        held = f"{len(self)} of {self.buffer}"
        return f"<Subscription {self.id} {state}, {self.overflow}, {held}, {self.dropped} dropped>"


class Hub(HubBase, Generic[T]):
    """Publish/subscribe on a circular list of subscriptions.

    Items from one publisher reach one subscriber in order. All methods may be called from any thread. As a context
    manager the hub closes at the end of the body. A hub that is dropped is closed.

    Args:
        buffer: The number of items that a subscription can hold, from 1, unless `subscribe` gives another one.
        overflow: What happens to an item for a subscription that is full, unless `subscribe` gives another policy:
            "block": the publisher waits for room; "drop_oldest": the oldest item in the buffer is dropped;
            "drop_incoming": the new item is dropped; "latest": only the newest item is kept; "raise": the publisher
            gets `queue.Full`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `buffer` is less than 1, or there is no such policy.

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
        """Adds a subscription at the end of the circle.

        Never blocks; may be called from any thread. Keep the subscription: it ends when it is dropped.

        Args:
            buffer: The number of items that it can hold, from 1; None: the hub's. With "latest" it is always 1.
            overflow: The overflow policy, as in `Hub`; None: the hub's.

        Returns:
            The new subscription.

        Raises:
            Closed: The hub is closed.
            ValueError: `buffer` is less than 1, or there is no such policy.
        """
        size = self._buffer if buffer is None else _buffer(buffer)
        name = self._overflow if overflow is None else policy(overflow)
        self._check_open()
        return Subscription(size, name, self)

    def unsubscribe(self, subscription: Subscription[T]) -> bool:
        """Ends a subscription; items delivered before can still be read. Other subscribers lose nothing.

        Idempotent; never blocks; may be called from any thread.

        Args:
            subscription: The subscription to end.

        Returns:
            Whether it was an open subscription of this hub.
        """
        if not isinstance(subscription, Subscription):
            raise TypeError(f"subscription must be a Subscription, not {describe(subscription)}")
        return self._remove(subscription)

    def close(self) -> None:
        """Ends all subscriptions; items delivered before can still be read. Later publishing raises `Closed`.

        Idempotent; never blocks; may be called from any thread.
        """
        self._close()

    def __enter__(self) -> Hub[T]:
        """Returns the hub itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Calls `close`."""
        self.close()

    def __repr__(self) -> str:
        return f"<Hub {'closed' if self.closed else 'open'}, {len(self)} subscriptions>"


def _buffer(value: Any) -> int:
    return count("buffer", value, 1, MAX_CAPACITY)
