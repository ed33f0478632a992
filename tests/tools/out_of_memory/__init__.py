"""One public call, over and over, while one of its allocations fails: the first, the second, and so on.

`python -m tests.tools.out_of_memory CALL N` runs it with allocation k failing alone, and with the SPELL from k on
failing, for k below N, and prints the figures as JSON. A crash, a hang or a failed check ends the process with a
status. `python -m tests.tools.out_of_memory --long` does that with runs of 1 to 8 and of 100 failing allocations, and
with each path that an operation can take (shortage.py, sweep.py) as well. test_out_of_memory.py runs a sample; it has a
process of its own because the hooks of `_testcapi` are the process's.
"""

from tests.tools.out_of_memory import hubs, maps, operations, pools, rings  # the cases
from tests.tools.out_of_memory.trial import ALONE, CASES, FORKS

__all__ = ["ALONE", "CASES", "FORKS", "hubs", "maps", "operations", "pools", "rings"]
