from typing import Any, final

from .retry_queue import DelayHeap
from .source_list import SourceList

@final
class Accounting:
    def __new__(cls, workers: list[Any], sources: SourceList, delays: DelayHeap) -> Accounting: ...
