from collections.abc import Iterator
from typing import Any, TypeVar, final

from typing_extensions import disjoint_base

from .item_source import ItemSource
from .run import PoolRun
from .stream import Stream

R = TypeVar("R")

@final
class Results(Stream[R]):
    def __new__(
        cls,
        core: PoolRun,
        source: ItemSource,
        *,
        iterator: Any = None,
        wraps: bool = False,
        draws: bool = False,
        resets: bool = False,
        awaits: bool = False,
    ) -> Results[Any]: ...
    @property
    def total(self) -> int | None: ...
    def get(self, timeout: float | None = None) -> R: ...
    def get_many(self, max: int | None = None, timeout: float | None = None) -> list[R]: ...
    async def aget(self) -> R: ...
    def __next__(self) -> R: ...
    async def __anext__(self) -> R: ...
    async def _anext(self) -> R: ...

@disjoint_base
class ReadyResult:
    def __await__(self) -> Iterator[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...
