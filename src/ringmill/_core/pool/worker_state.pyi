from typing import Any, final

from .operation import OwnerPool

@final
class WorkerState:
    def __new__(cls, run: OwnerPool, worker: Any, index: int) -> WorkerState: ...
    @property
    def index(self) -> int: ...
    @property
    def name(self) -> str: ...
