from typing import final

@final
class SourceList: ...
