"""Hashes every regular file of a tree with SHA-256, on a pool of workers that each reuse one read buffer.

    python examples/checksum_tree.py DIR | sha256sum -c --quiet

prints nothing if all is well. The lines on stdout are those of `sha256sum`, in the order in which files finish, or,
with --ordered, in the order of the walk. A progress bar and a summary go to stderr. Symbolic links are not followed,
and links, sockets, pipes and devices are skipped and counted.

The walk is a generator that `WorkerPool.wrap` draws from no faster than lines are printed, so a tree of any size needs
the same memory. Exit status: 0; 1 if a file or directory could not be read, or stdout not written; 2 for bad
arguments; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ringmill import Operation, Worker, WorkerPool

BUFFER_BYTES = 1 << 18


@dataclass(slots=True)
class Checksum(Operation):
    """One file: the path goes in, the digest and the number of bytes come out."""

    path: str
    digest: str = ""
    size: int = 0


class Hasher(Worker[Checksum]):
    """Hashes one file at a time. `readinto` and SHA-256 let other threads run, so workers use several cores."""

    def __init__(self, stopping: threading.Event) -> None:
        self.stopping = stopping

    def init(self) -> None:
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)  # its slices are views: what was read is hashed without a copy

    def process(self, op: Checksum) -> None:
        sha256 = hashlib.sha256()
        size = 0
        with open(op.path, "rb", buffering=0) as file:
            while count := file.readinto(self.buffer):
                if self.stopping.is_set():  # a pool lets its workers finish what they began; a file may be huge
                    raise InterruptedError
                sha256.update(self.view[:count])
                size += count
        op.digest = sha256.hexdigest()
        op.size = size

    def cleanup(self) -> None:
        self.view.release()
        del self.view, self.buffer


@dataclass
class Tally:
    """What the summary says."""

    files: int = 0
    bytes: int = 0
    unread: int = 0
    skipped: int = 0

    def summary(self, seconds: float) -> str:
        rate = self.bytes / 1e6 / max(seconds, 1e-9)
        return (
            f"{self.files} files, {self.bytes} bytes, {seconds:.2f} s, {rate:.1f} MB/s; "
            f"could not be read: {self.unread}; skipped, as no regular files: {self.skipped}"
        )


def walk(top: str, tally: Tally, bar: tqdm) -> Iterator[Checksum]:
    """Yields a Checksum for each regular file, a directory's files in order of name before its subdirectories."""
    found = 0
    directories = [top]
    while directories:
        directory = directories.pop()
        try:
            with os.scandir(directory) as scan:
                entries = sorted(scan, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            report(directory, error, tally)
            continue
        subdirectories = []
        for entry in entries:
            try:
                is_directory, is_file = entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False)
            except OSError as error:  # some file systems do not list the type, so it had to be asked for
                report(entry.path, error, tally)
                continue
            if is_directory:
                subdirectories.append(entry.path)
            elif is_file:
                found += 1
                yield Checksum(entry.path)
            else:
                tally.skipped += 1
        directories += reversed(subdirectories)
    bar.total = found  # known only now, when the last files are still being hashed


def line(op: Checksum) -> bytes:
    """The line as sha256sum prints it: a name with one of three characters is escaped, and the line begins so."""
    name = os.fsencode(op.path)
    if os.name == "nt":
        name = name.replace(b"\\", b"/")
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    mark = b"\\" if escaped != name else b""
    return mark + op.digest.encode() + b"  " + escaped + b"\n"


def report(path: str, error: OSError, tally: Tally) -> None:
    tally.unread += 1
    tqdm.write(f"checksum_tree: {path!r}: {error.strerror or error}", file=sys.stderr)


def hash_tree(top: str, workers: int, ordered: bool, tally: Tally) -> None:
    """Prints the line of each file. Raises OSError if stdout, or stderr, cannot be written."""
    out = sys.stdout.buffer
    shares_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    stopping = threading.Event()
    with (
        tqdm(desc="hashing", unit=" files", disable=None) as bar,  # None: no bar if stderr is not a terminal
        WorkerPool(lambda: Hasher(stopping), workers, name="checksum") as pool,
        pool.wrap(walk(top, tally, bar), ordered=ordered) as stream,
    ):
        try:
            for op in stream:
                if isinstance(op.error, OSError):
                    report(op.path, op.error, tally)
                else:
                    op.check()  # any other error is a mistake in this program
                    if shares_terminal:
                        bar.clear()
                    tally.files += 1
                    tally.bytes += op.size
                    out.write(line(op))
                bar.update()
                if not stream.ready:  # nothing more to print yet: do not sit on what there is
                    out.flush()
            out.flush()
        except BaseException:
            stopping.set()
            raise


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Hashes every regular file of a tree with SHA-256 and prints lines as sha256sum does. "
        "Symbolic links and special files are skipped.",
    )
    parser.add_argument(
        "dir", metavar="DIR", nargs="?", default=sysconfig.get_paths()["stdlib"],
        help="the tree (default: the standard library of this Python, %(default)s)",
    )
    parser.add_argument(
        "--workers", metavar="N", type=positive, default=min(32, (os.cpu_count() or 1) + 2),
        help="how many threads read and hash (default: %(default)s)",
    )
    parser.add_argument("--ordered", action="store_true", help="print in the order of the walk, which is fixed")
    options = parser.parse_args(arguments)
    if not os.path.isdir(options.dir):
        parser.error(f"DIR is not a directory: {options.dir!r}")

    sys.dont_write_bytecode = True  # the tree may be the one that we run from: do not change it meanwhile
    tally = Tally()
    status = 0
    begun = time.perf_counter()
    try:
        hash_tree(options.dir, options.workers, options.ordered, tally)
    except KeyboardInterrupt:
        print("checksum_tree: interrupted", file=sys.stderr)
        status = 130
    except OSError as error:
        # The interpreter flushes stdout once more at exit; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141  # the reader of our output has closed it: as if by SIGPIPE
        print(f"checksum_tree: write error: {error.strerror or error}", file=sys.stderr)
        status = 1
    print(tally.summary(time.perf_counter() - begun), file=sys.stderr)
    return status or (1 if tally.unread else 0)


if __name__ == "__main__":
    sys.exit(main())
