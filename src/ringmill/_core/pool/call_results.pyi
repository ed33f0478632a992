from collections.abc import Callable, Iterator
from typing import Any

from typing_extensions import disjoint_base

from .run import PoolRun

@disjoint_base
class CallResults:
    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...
    def __length_hint__(self) -> int: ...
    def close(self) -> None: ...

def map_calls(
    run: PoolRun,
    calls: Any,
    function: Callable[..., Any],
    iterables: tuple[Any, ...],
    timeout: float | None,
    buffersize: int | None,
    executor: Callable[[], Any],
    context: bool,
) -> Iterator[Any]: ...
