"""All paths: see shortage.py."""

from tests.tools.out_of_memory import paths_ending, paths_outside, paths_processing, paths_submitting  # the paths
from tests.tools.out_of_memory.shortage import PATHS

__all__ = ["PATHS", "paths_ending", "paths_outside", "paths_processing", "paths_submitting"]
