"""Runs rivals in turn, in one process, and prints every round.

    for each round:   run(A)  run(B)  run(C)      the order moves on by one each round
                        |       |       |
                      A / B / C of one round are neighbours in time: ratios are taken within a round

A side is called with a number of operations and does so many. Its first call warms up and is not counted. The ratio
that is printed is the median over the rounds of (time of the peer / time of the subject), so above 1 the subject, the
first side, is faster. Next to it is the ratio that is aimed at, where there is one: nothing depends on whether it
is reached. A peer that raises is left out. Garbage is collected before each call, and as usual during it.

A curve compares one side with itself: the time of one operation while there are N of something, for growing N. Its
points are run in turn, as rivals are, and its growth is the median over the rounds of (time with N / time with the
smallest N).

The interpreter adapts code to what it meets there (PEP 659), and functions that were made by one `def` have one code:
rivals would run it as another of them left it. So each side gets a copy of its own, as if no other had been there.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING or __package__:
    from .machine import environment, has_gil
    from .peers import missing, versions
else:  # run as a script
    from machine import environment, has_gil
    from peers import missing, versions

Side = Callable[[int], object]

POINT_SECONDS = 6.0  # of one point of a curve
FEWEST = 3  # operations of a round of a curve
RATIO = "peer time / subject time"  # the key of the ratios in the JSON


class Target(NamedTuple):
    """The ratio aimed at, with a GIL and without: None is no aim."""

    gil: float | None
    free_threaded: float | None


@dataclass
class Comparison:
    """The times of one comparison, in microseconds per operation: the first side is the subject."""

    topic: str
    title: str
    threads: str
    n: dict[str, int]
    rounds: dict[str, list[float]]
    targets: dict[str, float] = field(default_factory=dict)
    curve: tuple[str, str, int] | None = None  # the curve that it is a point of: its name, what x counts, x

    @property
    def subject(self) -> str:
        return next(iter(self.rounds))

    @property
    def medians(self) -> dict[str, float]:
        return {name: median(times) for name, times in self.rounds.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """By peer: its time over the subject's, the median of the rounds."""
        mine = self.rounds[self.subject]
        return {
            name: median(theirs / ours for theirs, ours in zip(times, mine, strict=True))
            for name, times in self.rounds.items()
            if name != self.subject
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "topic": self.topic,
            "title": self.title,
            "threads": self.threads,
            "n": self.n,
            "unit": "us per operation",
            "subject": self.subject,
            "rounds": self.rounds,
            "medians": self.medians,
            RATIO: self.ratios,
            "targets": self.targets,
            "curve": self.curve,
        }


Sample = Callable[[int], list[float]]  # does at most so many operations; returns the seconds of each


@dataclass
class Curve:
    """The time of one operation, in microseconds, by the number of others that there are: see Suite.curve."""

    topic: str
    title: str
    what: str  # what N counts
    limit: float  # the growth to stay below
    rounds: dict[int, list[float]]  # by N: the median of each round
    means: dict[int, list[float]]  # likewise: the mean, which also shows what is done once in many operations

    @property
    def medians(self) -> dict[int, float]:
        return {n: median(times) for n, times in self.rounds.items()}

    @property
    def growth(self) -> dict[int, float]:
        return growth_of(self.rounds)

    @property
    def growth_of_mean(self) -> dict[int, float]:
        return growth_of(self.means)

    def as_json(self) -> dict[str, Any]:
        return {
            "topic": self.topic,
            "title": self.title,
            "what": self.what,
            "limit": self.limit,
            "unit": "us per operation",
            "points": [
                {"n": n, "rounds": self.rounds[n], "means": self.means[n], "median": self.medians[n],
                 "growth": self.growth[n], "growth of the mean": self.growth_of_mean[n]}
                for n in self.rounds
            ],
        }  # fmt: skip


def growth_of(rounds: Mapping[int, list[float]]) -> dict[int, float]:
    """By N: the time over that with the smallest N, the median of the rounds that both have."""
    least = rounds[next(iter(rounds))]
    return {n: median(time / first for time, first in zip(times, least, strict=False)) for n, times in rounds.items()}


@dataclass
class Measure:
    """Quantities that are no rounds of time, such as memory: the first is the subject's."""

    topic: str
    title: str
    unit: str
    values: dict[str, float]
    target: str


@dataclass
class Suite:
    """What the command line asked for, and the results so far."""

    rounds: int
    share: int = 1  # each side does one of so many operations
    json: Path | None = None
    topic: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def tiny(self) -> bool:
        """Only to see that it runs: the numbers mean nothing."""
        return self.share >= 1000

    def scale(self, n: int, unit: int = 1) -> int:
        """How many operations a round has, in whole units: a tenth with --quick."""
        return max(1, n // self.share // unit) * unit

    def compare(
        self,
        title: str,
        n: int,
        threads: str,
        sides: Mapping[str, Side],
        *,
        targets: Mapping[str, tuple[float | None, float | None]] | None = None,
        fewer: Mapping[str, int] | None = None,
        unit: int = 1,
        own_clock: bool = False,
        rounds: int | None = None,
        curve: tuple[str, str, int] | None = None,
    ) -> Comparison:
        """Times the sides against each other, `n` operations a call. The first side is the subject.

        `fewer`: by side, do one of so many operations, in whole units of `unit`, since it is slow. `own_clock`: a side
        returns the seconds that count, instead of all that its call takes.
        """
        sides = {name: with_own_code(side) for name, side in sides.items()}
        counts = {name: max(1, n // (fewer or {}).get(name, 1) // unit) * unit for name in sides}
        times: dict[str, list[float]] = {name: [] for name in sides}
        names = list(sides)

        def once(name: str) -> float:
            gc.collect()
            begun = time.perf_counter()
            own = sides[name](counts[name])
            seconds = time.perf_counter() - begun
            if own_clock:
                assert isinstance(own, float)
                seconds = own
            return seconds / counts[name] * 1e6

        for number in range(-1, min(self.rounds, rounds or self.rounds)):  # the first warms up
            first = number % len(names)
            for name in names[first:] + names[:first]:
                if name not in times:
                    continue
                try:
                    seconds = once(name)
                except Exception as error:  # a peer's fault should not cost the others' results
                    if name == names[0]:
                        raise
                    del times[name]
                    self.skip(f"{name} in {title}, since it failed: {error!r}")
                else:
                    if number >= 0:
                        times[name].append(seconds)
        aims = {name: Target(*pair).gil if has_gil() else Target(*pair).free_threaded
                for name, pair in (targets or {}).items() if name in times}
        aimed = {name: aim for name, aim in aims.items() if aim is not None}
        counts = {name: counts[name] for name in times}
        result = Comparison(self.topic, title, threads, counts, times, aimed, curve)
        self.comparisons.append(result)
        show(result)
        return result

    def curve(
        self, title: str, what: str, points: Mapping[int, Sample], n: int, *, limit: float = 3.0, warm: bool = True
    ) -> Curve:
        """Times one operation while there are N others, for each N of `points`, the smallest first.

        `n`: how many operations a round has, at most. `limit`: the growth to stay below. `warm`: the first call of each
        point is not counted. A point whose rounds have taken POINT_SECONDS has no more of them.
        """
        result = Curve(self.topic, title, what, limit, {size: [] for size in points}, {size: [] for size in points})
        taken = dict.fromkeys(points, 0.0)
        sizes = list(points)
        for number in range(-1 if warm else 0, self.rounds):
            first = number % len(sizes)
            for size in sizes[first:] + sizes[:first]:
                if taken[size] > POINT_SECONDS and result.rounds[size]:
                    continue
                gc.collect()
                begun = time.perf_counter()
                times = points[size](n)
                taken[size] += time.perf_counter() - begun
                if number >= 0:
                    result.rounds[size].append(median(times) * 1e6)
                    result.means[size].append(sum(times) / len(times) * 1e6)
        self.curves.append(result)
        show_curve(result)
        return result

    def measure(self, title: str, unit: str, values: dict[str, float], target: str = "") -> None:
        """Keeps and prints what was measured in another way."""
        self.measures.append(Measure(self.topic, title, unit, values, target))
        print(f"\n{title}; {unit}" + (f"; the target: {target}" if target else ""))
        for name, value in values.items():
            print(f"{name:<36}{value:>12,.3f}", flush=True)

    def skip(self, what: str) -> None:
        self.skipped.append(what)
        print(f"\nskipped: {what}", flush=True)

    def as_json(self) -> dict[str, Any]:
        return {
            "environment": self.environment,
            "rounds": self.rounds,
            "share": f"1/{self.share}",
            "skipped": self.skipped,
            "comparisons": [result.as_json() for result in self.comparisons],
            "curves": [result.as_json() for result in self.curves],
            "measures": [vars(measure) for measure in self.measures],
        }

    def finish(self) -> None:
        if self.json is not None:
            self.json.write_text(json.dumps(self.as_json(), indent=1) + "\n")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a tenth of the operations, 3 rounds")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for the tests
    parser.add_argument("--rounds", type=positive, metavar="N", help="default: 7, or 3 with --quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds to this file as well")


def open_suite(options: argparse.Namespace) -> Suite:
    """Prints where, on what and without whom this runs."""
    rounds = options.rounds or (1 if options.tiny else 3 if options.quick else 7)
    share = 1000 if options.tiny else 10 if options.quick else 1
    suite = Suite(rounds, share, options.json, environment={**environment(), "peers": versions()})
    for key, value in suite.environment.items():
        print(f"{key + ':':10} {value}")
    for line in missing:
        suite.skip(line)
    return suite


def main(topic: str, description: str, run: Callable[[Suite], None], arguments: Sequence[str] | None = None) -> None:
    """The command line of one topic."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    suite = open_suite(parser.parse_args(arguments))
    suite.topic = topic
    run(suite)
    suite.finish()


def show(result: Comparison) -> None:
    sizes = [f"N = {result.n[result.subject]:,}"]
    sizes += [f"{name} {n:,}" for name, n in result.n.items() if n != result.n[result.subject]]
    print(f"\n{result.title}\n{'; '.join(sizes)}; T = {result.threads}; microseconds per operation; "
          f"ratios: the peer's time over {result.subject}'s")
    count = len(result.rounds[result.subject])
    labels = [f"{number}" for number in range(1, count + 1)]
    print(f"{'round':<28}" + "".join(f"{cell:>9}" for cell in [*labels, "median", "ratio", "target"]))
    for name, times in result.rounds.items():
        ratio = f"{result.ratios[name]:.2f}" if name in result.ratios else ""
        target = f"{result.targets[name]:.2f}" if name in result.targets else ""
        cells = [f"{value:.3f}" for value in [*times, result.medians[name]]]
        print(f"{name:<28}" + "".join(f"{cell:>9}" for cell in [*cells, ratio, target]))
    sys.stdout.flush()


def show_curve(result: Curve) -> None:
    print(f"\n{result.title}\nmicroseconds per operation, the median of each round, by N, {result.what}; growth over "
          f"N = {next(iter(result.rounds)):,}, to stay below {result.limit:g}; likewise of the mean")
    count = max(map(len, result.rounds.values()))
    labels = [f"{number}" for number in range(1, count + 1)]
    print(f"{'N':>10}" + "".join(f"{cell:>10}" for cell in [*labels, "median", "growth", "of mean"]))
    for n, times in result.rounds.items():
        cells = [f"{value:,.2f}" for value in times] + [""] * (count - len(times))
        cells += [f"{value:,.2f}" for value in (result.medians[n], result.growth[n], result.growth_of_mean[n])]
        print(f"{n:>10,}" + "".join(f"{cell:>10}" for cell in cells))
    sys.stdout.flush()


def one_by_one(
    action: Callable[[], object], n: int, *, before: Callable[[], object] | None = None, seconds: float = 0.3
) -> list[float]:
    """Times each of at most `n` calls; of fewer, when they have taken so many seconds.

    `before` is called before each, untimed.
    """
    times: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds
    while len(times) < n:
        if before is not None:
            before()
        begun = clock()
        action()
        now = clock()
        times.append(now - begun)
        if now > end and len(times) >= FEWEST:
            break
    return times


def with_own_code(side: Side) -> Side:
    """The same function with a copy of its code and of that of its inner functions, adapted to nothing yet."""

    def copy(code: CodeType) -> CodeType:
        consts = tuple(copy(item) if isinstance(item, CodeType) else item for item in code.co_consts)
        return code.replace(co_consts=consts)

    if not isinstance(side, FunctionType):
        return side
    own = FunctionType(copy(side.__code__), side.__globals__, side.__name__, side.__defaults__, side.__closure__)
    own.__kwdefaults__ = side.__kwdefaults__
    return own


def in_threads(*roles: Callable[[], object]) -> float:
    """Runs each role on a thread of its own; returns the seconds from the first to begin until the last has ended.

    The threads look at the clock themselves: with a GIL, this one may get its turn long after they began.
    """
    barrier = threading.Barrier(len(roles))
    begun: list[float] = []
    ended: list[float] = []
    errors: list[BaseException] = []

    def play(role: Callable[[], object]) -> None:
        barrier.wait()
        begun.append(time.perf_counter())
        try:
            role()
        except BaseException as error:  # raised again below, where it ends the benchmark
            errors.append(error)
        ended.append(time.perf_counter())

    threads = [threading.Thread(target=play, args=(role,)) for role in roles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return max(ended) - min(begun)
