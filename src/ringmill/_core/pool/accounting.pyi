from typing import final

from .retry_queue import DelayHeap
from .source_list import SourceList
from .worker_table import WorkerTable

@final
class Accounting:
    def __new__(cls, workers: WorkerTable, sources: SourceList, delays: DelayHeap) -> Accounting: ...
