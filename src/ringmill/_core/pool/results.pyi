from collections.abc import AsyncIterator, Awaitable, Iterator
from types import GenericAlias
from typing import Any, TypeVar, final

from .item_source import ItemSource
from .run import PoolRun
from .stream import Stream

R = TypeVar("R")

@final
class Results(Stream[R]):
    def __init__(
        self,
        core: PoolRun,
        source: ItemSource,
        *,
        iterator: Any = None,
        wraps: bool = False,
        draws: bool = False,
        resets: bool = False,
        awaits: bool = False,
    ) -> None: ...
    async def _anext(self) -> R: ...

class ReadyResult:
    def __await__(self) -> Iterator[Any]: ...
