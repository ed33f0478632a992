# Nothing here is for Python: see waiter.pxd.
from typing_extensions import disjoint_base

@disjoint_base
class Sleeper: ...
