"""Writes rows into one SQLite file from a pool of writers, one of which is made to fail; each row gets in exactly once.

    python examples/sqlite_writers.py

Each writer opens a connection of its own in `init`, on its own thread, as sqlite3 wants it. The one with the bad disk
inserts its row, then fails before the commit and rolls back. `retry_on` makes that a retry: the pool hands the row to
a writer that has not had it. The lines on stdout say who retried what; at the end the rows are counted in the database.

Exit status: 0 if each row is in the table exactly once; 1 if not; 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ringmill import Operation, Outcome, Worker, WorkerPool

BUSY_SECONDS = 60.0  # SQLite lets one connection write at a time; the others wait for it up to so long


@dataclass(slots=True)
class Insert(Operation):
    """One row: key and text go in; the workers that failed to write it, and the one that wrote it, come out."""

    key: int
    text: str
    failed_by: list[str] = field(default_factory=list)
    written_by: str = ""


class Writer(Worker[Insert]):
    """Writes each row in a transaction of its own, over one connection."""

    retry_on = (sqlite3.OperationalError,)  # a disk error, or "database is locked"

    def __init__(self, name: str, path: Path, everybody: threading.Barrier) -> None:
        self.name = name
        self.path = path
        self.everybody = everybody
        self.is_first = True

    def init(self) -> None:
        self.connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        self.connection.execute("PRAGMA synchronous = OFF")  # a demonstration need not survive a power failure

    def process(self, op: Insert) -> None:
        if self.is_first:  # no worker begins before each has a row, so that the failing one surely gets some
            self.is_first = False
            self.everybody.wait()
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            with self.connection:  # commits, or rolls back and raises
                self.insert(op)
        except sqlite3.OperationalError:
            op.failed_by.append(self.name)
            raise
        op.written_by = self.name

    def insert(self, op: Insert) -> None:
        self.connection.execute("INSERT INTO rows (key, text, writer) VALUES (?, ?, ?)", (op.key, op.text, self.name))

    def cleanup(self) -> None:
        self.connection.close()


class FailingWriter(Writer):
    """Its disk is bad: it fails when the row is written and not yet committed."""

    def insert(self, op: Insert) -> None:
        super().insert(op)
        raise sqlite3.OperationalError("disk I/O error (made up)")


def write_rows(path: Path, rows: int, writers: int, failing: int) -> list[Insert]:
    """Writes the rows and prints who retried what. Returns the operations, as they finished."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE rows (key INTEGER, text TEXT, writer TEXT)")  # no UNIQUE that would help us

    everybody = threading.Barrier(writers)
    workers = [
        (FailingWriter if number < failing else Writer)(f"writer-{number}", path, everybody)
        for number in range(writers)
    ]
    done = []
    with WorkerPool(workers, name="sqlite") as pool:
        for op in pool.execute([Insert(key, f"row {key}") for key in range(rows)]):
            done.append(op)
            if op.failed_by:
                tried = ", ".join(op.failed_by)
                end = f"then {op.written_by} wrote it" if op.outcome is Outcome.SUCCEEDED else f"given up: {op.error}"
                print(f"row {op.key}: {tried} failed, {end}")
    return done


def check(path: Path, done: list[Insert]) -> str:
    """Compares the table with the operations. Returns what is wrong, or nothing."""
    with closing(sqlite3.connect(path)) as connection:
        table = connection.execute("SELECT key, text, writer FROM rows ORDER BY key").fetchall()
        [(total, different)] = connection.execute("SELECT COUNT(*), COUNT(DISTINCT key) FROM rows").fetchall()
    if (total, different) != (len(done), len(done)):
        return f"{len(done)} rows went in, {total} are in the table, {different} of them different"
    if table != sorted((op.key, op.text, op.written_by) for op in done):
        return "the rows in the table are not those that went in"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Writes rows into one SQLite file; one of the writers fails.")
    parser.add_argument("--rows", metavar="N", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--writers", metavar="N", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--failing", metavar="N", type=int, default=1, help="so many of them fail (default: 1)")
    parser.add_argument("--db", metavar="FILE", type=Path, help="a new file (default: a temporary one)")
    options = parser.parse_args(arguments)
    if not 1 <= options.writers <= options.rows:
        parser.error("--writers must be at least 1, and at most --rows")
    if not 0 <= options.failing <= options.writers:
        parser.error("--failing must be at least 0, and at most --writers")
    if options.db is not None and options.db.exists():
        parser.error(f"--db exists: {str(options.db)!r}")

    with tempfile.TemporaryDirectory() as directory:
        path = options.db or Path(directory, "rows.db")
        done = write_rows(path, options.rows, options.writers, options.failing)
        wrong = check(path, done)
    if wrong:
        print(f"sqlite_writers: {wrong}", file=sys.stderr)
        return 1
    written = Counter(op.written_by for op in done)
    shares = ", ".join(f"{name} wrote {count}" for name, count in sorted(written.items()))
    print(f"{len(done)} rows, each exactly once; {sum(bool(op.failed_by) for op in done)} were retried; {shares}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
