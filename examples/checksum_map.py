"""Hashes the files named on the command line with SHA-256, as sha256sum does: the shortest form of checksum_tree.py.

    python examples/checksum_map.py src/*.py | sha256sum -c --quiet

One `process` that returns the result, and one `map` that reads the results in the order of the names. The first file
that cannot be read ends the program with its error. checksum_tree.py walks a tree, escapes odd names, goes on after
errors, and shows progress.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

from ringmill import Worker, WorkerPool


class Hasher(Worker[Any]):
    def process(self, path: str) -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    with WorkerPool(Hasher) as pool:  # as many as there are processors
        for path, digest in zip(sys.argv[1:], pool.map(sys.argv[1:]), strict=True):
            print(f"{digest}  {path}")
