from typing import final

from .worker_table import WorkerTable

@final
class RetryRouting:
    def __new__(cls, workers: WorkerTable) -> RetryRouting: ...
