"""Follows a growing log file and fans its lines out to three subscribers, each with another overflow policy.

    python examples/fan_out.py [FILE [--lines N] [--idle SECONDS]]

                        +--> archive    "block"        misses nothing, so the follower waits for it
    FILE --> follower --+--> alerts     "drop_oldest"  keeps the newest that fit in its buffer, and reads slowly
             (the hub)  +--> dashboard  "latest"       samples: at each look it wants the newest line only

Without FILE it writes a log itself, in a temporary directory, on a thread of its own. It ends when it has seen N lines,
or when nothing was added for SECONDS, and prints what each subscriber saw and what was dropped for it. The two numbers
add up to the lines of the log, for each subscriber. Only whole lines are published; a file that shrinks (a log that was
rotated by truncation) is read from its start again. Exit status: 0; 1 if the file cannot be read; 2 for bad arguments;
130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ringmill import Hub, Subscription

POLL_SECONDS = 0.02
BLOCK_BYTES = 1 << 16


def follow(path: str, idle: float) -> Iterator[str]:
    """Yields each whole line of a file, also those that are added meanwhile; ends `idle` seconds after the last."""
    with open(path, "rb", buffering=0) as file:
        rest = b""
        deadline = time.monotonic() + idle
        while True:
            if block := file.read(BLOCK_BYTES):
                *lines, rest = (rest + block).split(b"\n")
                yield from (line.decode(errors="replace").rstrip("\r") for line in lines)
                deadline = time.monotonic() + idle
            elif os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)
                rest = b""
            elif time.monotonic() >= deadline:
                if rest:  # the last line of a log that does not end with a newline
                    yield rest.decode(errors="replace")
                return
            else:
                time.sleep(POLL_SECONDS)


def write_log(path: str, lines: int) -> None:
    """A service that logs in fits: bursts of lines, and pauses between them."""
    with open(path, "w", encoding="utf-8", newline="\n") as log:
        for number in range(1, lines + 1):
            level = "ERROR" if number % 10 == 0 else "INFO"
            log.write(f"{level} request {number} took {number % 7} ms\n")
            if number % 100 == 0:
                log.flush()
                time.sleep(POLL_SECONDS)


@dataclass
class Report:
    """What a subscriber has to say at the end."""

    seen: int = 0
    errors: int = 0
    last: str = ""

    def read(self, line: str) -> None:
        self.seen += 1
        self.errors += line.startswith("ERROR")
        self.last = line


def archive(subscription: Subscription[str]) -> Report:
    """Reads all there is, in batches, as something that writes to a disk would."""
    report = Report()
    for line in subscription:
        report.read(line)
        if len(subscription):
            for more in subscription.get_many():
                report.read(more)
    return report


def alerts(subscription: Subscription[str]) -> Report:
    """Each line costs it time, as sending a message would."""
    report = Report()
    for line in subscription:
        report.read(line)
        time.sleep(0.002)
    return report


def dashboard(subscription: Subscription[str]) -> Report:
    """Shows the newest line at each refresh."""
    report = Report()
    for line in subscription:
        report.read(line)
        time.sleep(0.05)
    return report


class Subscriber(threading.Thread):
    """A subscription and the thread that reads it."""

    def __init__(self, read: Callable[[Subscription[str]], Report], subscription: Subscription[str]) -> None:
        super().__init__(name=read.__name__)
        self.subscription = subscription
        self.read = read

    def run(self) -> None:
        self.report = self.read(self.subscription)

    def summary(self) -> str:
        report, subscription = self.report, self.subscription
        return (
            f"{self.name:<10}{subscription.overflow:<13}saw {report.seen}, dropped {subscription.dropped}, "
            f"errors {report.errors}, last: {report.last}"
        )


def fan_out(path: str, most: int | None, idle: float) -> tuple[int, list[Subscriber]]:
    """Publishes each line of a growing file; returns how many there were, and the subscribers, which have ended."""
    print(f"fan_out: following {path}", file=sys.stderr, flush=True)
    published = 0
    with Hub[str](buffer=64) as hub:
        subscribers = [
            Subscriber(archive, hub.subscribe()),
            Subscriber(alerts, hub.subscribe(buffer=8, overflow="drop_oldest")),
            Subscriber(dashboard, hub.subscribe(overflow="latest")),
        ]
        for subscriber in subscribers:
            subscriber.start()
        for line in follow(path, idle):
            hub.broadcast(line)
            published += 1
            if published == most:
                break
    # The hub is closed: each reads what it was given, then its loop ends.
    for subscriber in subscribers:
        subscriber.join()
    return published, subscribers


def fan_out_own_log(lines: int, idle: float) -> tuple[int, list[Subscriber]]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:  # Windows removes no open file
        path = os.path.join(directory, "service.log")
        open(path, "w").close()  # there is something to follow from the start
        writer = threading.Thread(target=write_log, args=(path, lines), name="service", daemon=True)
        writer.start()
        result = fan_out(path, lines, idle)
        writer.join()
        return result


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0, got {text}")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fans out the lines of a growing log file to three subscribers.")
    parser.add_argument("file", metavar="FILE", nargs="?", help="the log (default: one that this program writes)")
    parser.add_argument(
        "--lines", metavar="N", type=positive, help="end after so many lines (default: no limit; 1500 without FILE)"
    )
    parser.add_argument(
        "--idle", metavar="SECONDS", type=seconds, default=2.0,
        help="end when nothing was added for so long (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.file is not None and not os.path.isfile(options.file):
        parser.error(f"FILE is not a file: {options.file!r}")
    try:
        if options.file is None:
            published, subscribers = fan_out_own_log(options.lines or 1500, options.idle)
        else:
            published, subscribers = fan_out(options.file, options.lines, options.idle)
    except KeyboardInterrupt:
        print("fan_out: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"fan_out: {error.filename or options.file!r}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"published {published}")
    for subscriber in subscribers:
        print(subscriber.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
