"""Three pools in a row: read files, count their words, add the counts to a database.

    python examples/pipeline.py [DIR] [--pattern GLOB] [--top N]

    names --> Reader x 4 --> Counter x 2 --> Writer x 1 --> this thread
              waits for      computes        a connection
              the disk                       of its own

`writers.map(counters.map(readers.map(names)))` draws the names as results are read: at most `BUFFER` items are in a
stage, so a tree of any size needs the same memory. Results come out in the order of the names. A file that cannot be
read or is not text is an item with an error in the first stage; errors="return" passes the exception on as an item, and
the other stages return it unchanged, so that it comes out in its place.

Without DIR it counts the words of the standard library of this Python. Prints the N most frequent words, and on stderr
what could not be read. Exit status: 0; 1 if a file could not be read; 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import re
import sqlite3
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ringmill import Worker, WorkerPool

BUFFER = 32
WORD = re.compile(r"[A-Za-z]{2,}")

Counted = tuple[Path, "Counter[str]"]


class FileError(Exception):
    """A file that could not be read."""


class Reader(Worker[Any]):
    """Reads one file at a time."""

    def process(self, path: Path) -> tuple[Path, str]:
        try:
            return path, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"{path}: {error}") from error


class WordCounter(Worker[Any]):
    """Counts the words of a text."""

    def process(self, read: tuple[Path, str] | BaseException) -> Counted | BaseException:
        if isinstance(read, BaseException):
            return read  # the error of a file: goes through
        path, text = read
        return path, Counter(word.lower() for word in WORD.findall(text))


class Writer(Worker[Any]):
    """Adds the counts of a file to the database, in one transaction."""

    def __init__(self, database: Path) -> None:
        self.database = database

    def init(self) -> None:
        self.connection = sqlite3.connect(self.database)
        self.connection.execute("CREATE TABLE words (word TEXT PRIMARY KEY, count INTEGER)")

    def process(self, counted: Counted | BaseException) -> int | BaseException:
        if isinstance(counted, BaseException):
            return counted
        _, counts = counted
        with self.connection:
            self.connection.executemany(
                "INSERT INTO words VALUES (?, ?) ON CONFLICT (word) DO UPDATE SET count = count + excluded.count",
                counts.items(),
            )
        return counts.total()

    def cleanup(self) -> None:
        self.connection.close()


def count_words(top: Path, pattern: str, database: Path) -> tuple[int, int, list[BaseException]]:
    """Fills the database; returns the number of files, the number of words, and the errors of files."""
    files = words = 0
    errors: list[BaseException] = []
    names = (path for path in sorted(top.glob(pattern)) if path.is_file())
    with (
        WorkerPool(Reader, 4, name="reader") as readers,
        WorkerPool(WordCounter, 2, name="counter") as counters,
        WorkerPool([Writer(database)], name="writer") as writers,
    ):
        read = readers.map(names, buffer=BUFFER, errors="return")
        counted = counters.map(read, buffer=BUFFER)
        for result in writers.map(counted, buffer=BUFFER):
            if isinstance(result, BaseException):
                errors.append(result)
            else:
                files += 1
                words += result
    return files, words, errors


def most_frequent(database: Path, count: int) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT word, count FROM words ORDER BY count DESC, word LIMIT ?"
        return connection.execute(query, (count,)).fetchall()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Counts the words of the files of a directory.")
    parser.add_argument(
        "dir", metavar="DIR", nargs="?", type=Path, default=Path(sysconfig.get_paths()["stdlib"]),
        help="the directory (default: the standard library of this Python, %(default)s)",
    )
    parser.add_argument("--pattern", metavar="GLOB", default="*.py", help="which files (default: %(default)s)")
    parser.add_argument(
        "--top", metavar="N", type=positive, default=10, help="how many words to print (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if not options.dir.is_dir():
        parser.error(f"DIR is not a directory: {str(options.dir)!r}")
    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory, "words.db")
        files, words, errors = count_words(options.dir, options.pattern, database)
        for word, count in most_frequent(database, options.top):
            print(f"{count:8} {word}")
    for error in errors:
        print(f"pipeline: {error}", file=sys.stderr)
    print(f"{files} files, {words} words; could not be read: {len(errors)}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
