from typing import final

@final
class WorkerTable: ...
