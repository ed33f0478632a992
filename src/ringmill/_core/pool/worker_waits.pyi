from typing import Any, final

@final
class WorkerWait: ...

@final
class WorkerWaits:
    def __new__(cls, workers: list[Any]) -> WorkerWaits: ...
