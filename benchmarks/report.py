"""Writes a report of the suite, in Markdown with plots: `python -m benchmarks.report [--out DIR]`.

It runs the suite first, with the options and topics of `python -m benchmarks`, and keeps its JSON next to the report;
`--from FILE ...` takes earlier JSON files instead, such as one of each build, and sets them side by side. Without
matplotlib, which the bench extra installs, there are no plots.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import __main__ as suite
from . import plots
from .harness import RATIO


class Run(NamedTuple):
    """One JSON file: what the report calls it, and what it says."""

    label: str
    data: dict[str, Any]


def label_all(data: Sequence[dict[str, Any]]) -> list[Run]:
    """By Python; by commit or number too where that does not tell them apart."""
    runs: list[Run] = []
    names = [each["environment"]["python"].replace("CPython ", "") for each in data]
    for number, (name, each) in enumerate(zip(names, data, strict=True), 1):
        commit = each["environment"]["commit"]
        twins = [other["environment"]["commit"] for twin, other in zip(names, data, strict=True) if twin == name]
        more = "" if len(twins) == 1 else f", {commit}" if twins.count(commit) == 1 else f", run {number}"
        runs.append(Run(name + more, each))
    return runs


def results(run: Run, kind: str) -> list[dict[str, Any]]:
    """Those of one kind; none in a file that was written before there was that kind."""
    return list(run.data.get(kind, []))


def titles(runs: Sequence[Run], kind: str) -> list[tuple[str, str]]:
    """The topics and titles of all runs, each once, in their order."""
    return list(dict.fromkeys((each["topic"], each["title"]) for run in runs for each in results(run, kind)))


def find(run: Run, kind: str, topic: str, title: str) -> dict[str, Any] | None:
    return next((each for each in results(run, kind) if (each["topic"], each["title"]) == (topic, title)), None)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def environments(runs: Sequence[Run]) -> Iterator[str]:
    keys = list(dict.fromkeys(key for run in runs for key in run.data["environment"]))
    rows = [[key, *(run.data["environment"].get(key, "") for run in runs)] for key in keys]
    rows.append(["rounds", *(str(run.data["rounds"]) for run in runs)])
    rows.append(["share of the operations", *(run.data["share"] for run in runs)])
    rows.append(["skipped", *("; ".join(run.data["skipped"]) or "nothing" for run in runs)])
    yield from table(["", *(run.label for run in runs)], rows)


def targets(runs: Sequence[Run]) -> Iterator[str]:
    rows = []
    for topic, title in titles(runs, "comparisons"):
        found = [find(run, "comparisons", topic, title) for run in runs]
        for peer in dict.fromkeys(peer for each in found if each for peer in each["targets"]):
            cells = []
            for each in found:
                ratio = each[RATIO].get(peer) if each else None
                aim = each["targets"].get(peer) if each else None
                cells += ["-" if ratio is None else f"{ratio:.2f}", "-" if aim is None else f"{aim:g}"]
                cells.append("" if ratio is None or aim is None else "yes" if ratio >= aim else "no")
            rows.append([title, peer, *cells])
    head = [cell for run in runs for cell in (f"{run.label}: ratio", "target", "reached")]
    yield from table(["what", "against", *head], rows)


def growth(runs: Sequence[Run]) -> Iterator[str]:
    """A row for each curve: its largest N, and how far it grows at most up to there."""
    rows = []
    for topic, title in titles(runs, "curves"):
        found = [find(run, "curves", topic, title) for run in runs]
        first = next(each for each in found if each)
        cells = []
        for each in found:
            if each is None:
                cells += ["-", "-", "-", ""]
                continue
            most = max(point["growth"] for point in each["points"])
            most_of_mean = max(point["growth of the mean"] for point in each["points"])
            cells += [f"{each['points'][-1]['n']:,}", f"{most:.2f}", f"{most_of_mean:.2f}"]
            cells.append("yes" if most < each["limit"] else "no")
        rows.append([title, first["what"], *cells, f"{first['limit']:g}"])
    if rows:
        yield from ("## Growth", "", "The longest time of one operation over that with the smallest N.", "")
        head = [cell for run in runs for cell in (f"{run.label}: N up to", "growth", "of the mean", "below the limit")]
        yield from table(["what", "N counts", *head, "limit"], rows)


def measures(runs: Sequence[Run]) -> Iterator[str]:
    rows = []
    for topic, title in titles(runs, "measures"):
        found = [find(run, "measures", topic, title) for run in runs]
        for side in dict.fromkeys(side for each in found if each for side in each["values"]):
            first = next(each for each in found if each)
            values = [f"{each['values'][side]:,.2f}" if each and side in each["values"] else "-" for each in found]
            rows.append([title, side, first["unit"], *values, first["target"]])
    yield from table(["what", "of", "unit", *(run.label for run in runs), "target"], rows)


def details(runs: Sequence[Run], topic: str) -> Iterator[str]:
    for of, title in titles(runs, "comparisons"):
        if of != topic:
            continue
        found = [find(run, "comparisons", topic, title) for run in runs]
        first = next(each for each in found if each)
        yield from (f"**{title}**, T = {first['threads']}, N = {first['n'][first['subject']]:,}", "")
        rows = []
        for side in dict.fromkeys(side for each in found if each for side in each["medians"]):
            cells = []
            for each in found:
                here = each is not None and side in each["medians"]
                cells.append(f"{each['medians'][side]:.3f}" if each and here else "-")
                cells.append(f"{each[RATIO][side]:.2f}" if each and side in each[RATIO] else "")
            rows.append([side, *cells])
        head = [cell for run in runs for cell in (f"{run.label}: us per operation", "ratio")]
        yield from table(["", *head], rows)


def curves(runs: Sequence[Run], topic: str) -> Iterator[str]:
    for of, title in titles(runs, "curves"):
        if of != topic:
            continue
        found = [find(run, "curves", topic, title) for run in runs]
        first = next(each for each in found if each)
        yield from (f"**{title}**, by N, {first['what']}", "")
        points = [{point["n"]: point for point in each["points"]} if each else {} for each in found]
        rows = []
        for n in sorted({n for each in points for n in each}):
            cells = []
            for each in points:
                point = each.get(n)
                cells.append(f"{point['median']:.2f}" if point else "-")
                cells.append(f"{point['growth']:.2f}" if point else "")
                cells.append(f"{point['growth of the mean']:.2f}" if point else "")
            rows.append([f"{n:,}", *cells])
        head = [cell for run in runs for cell in (f"{run.label}: us per operation", "growth", "of the mean")]
        yield from table(["N", *head], rows)


def write(runs: Sequence[Run], out: Path) -> Path:
    """Writes report.md and its plots into a directory, which it makes."""
    out.mkdir(parents=True, exist_ok=True)
    pictures = plots.draw_all(runs, out)

    def picture(name: str) -> Iterator[str]:
        if name in pictures:
            yield from (f"![{name}]({pictures[name]})", "")

    lines = [
        "# ringmill's benchmarks", "",
        "Ratios are the peer's time over ringmill's, the median of the rounds of one run: above 1, ringmill is faster. "
        "Compare ratios, not times of different runs. The JSON has every round.", "",
        *environments(runs), "## Targets", "", *targets(runs), *picture("targets"), *measures(runs), *growth(runs),
    ]
    for topic in dict.fromkeys(topic for topic, _ in titles(runs, "comparisons") + titles(runs, "curves")):
        lines += [f"## {topic}", "", *picture(topic), *details(runs, topic), *curves(runs, topic)]
    report = out / "report.md"
    report.write_text("\n".join(lines), encoding="utf-8")
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    suite.add_topics(parser)
    parser.add_argument("--out", type=Path, default="benchmark-report", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--from", type=Path, nargs="+", dest="files", metavar="FILE", help="take these JSON files")
    options = parser.parse_args(arguments)
    if options.files:
        data = [json.loads(file.read_text()) for file in options.files]
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        build = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
        options.json = options.json or options.out / f"{sys.version_info.major}.{sys.version_info.minor}{build}.json"
        data = [suite.run(parser, options).as_json()]
    print(f"\nwritten: {write(label_all(data), options.out)}")


if __name__ == "__main__":
    main()
