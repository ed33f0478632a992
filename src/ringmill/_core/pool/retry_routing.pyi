from typing import Any, final

@final
class RetryRouting:
    def __new__(cls, workers: list[Any]) -> RetryRouting: ...
