from typing_extensions import disjoint_base

from .operation import OperationBase

@disjoint_base
class RetryEntry:
    @property
    def operation(self) -> OperationBase: ...
    @property
    def tried_by(self) -> bytes | None: ...
    @property
    def rejected_by(self) -> bytes | None: ...

@disjoint_base
class RetryQueue: ...

@disjoint_base
class DelayHeap: ...
