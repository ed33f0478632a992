from typing import Any, final

from .operation import OperationBase

@final
class ItemRecord(OperationBase):
    @property
    def item(self) -> Any: ...

def subject(op: Any) -> Any: ...
