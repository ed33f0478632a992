from collections.abc import Callable
from contextvars import Context
from typing import Any, final

from .work_source import WorkSource

@final
class ItemSource(WorkSource):
    def __new__(
        cls,
        pending: None = None,
        *,
        ordered: bool = False,
        context: Context | None = None,
    ) -> ItemSource: ...
    @property
    def function(self) -> Callable[..., Any] | None: ...
    def end_taken(self, position: int, cancelled: bool, result: Any, error: BaseException | None) -> None: ...
