# Nothing here is for Python but check_threads: see wait_queue.pxd.
from typing_extensions import disjoint_base

@disjoint_base
class Sleeper: ...

def check_threads() -> None: ...
