from typing import final

from .worker_table import WorkerTable

@final
class WorkerWait: ...

@final
class WorkerWaits:
    def __new__(cls, workers: WorkerTable) -> WorkerWaits: ...
