"""Draws a report's plots: ratios as bars with their targets marked, and curves of growth."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .harness import RATIO

if TYPE_CHECKING:
    from .report import Run

COLORS = ("#3b6ea5", "#d98c3f", "#6a9a5b", "#8c6bb1")
BAND = 1.15  # the highest ratio of a curve over its lowest
AXIS = "time of the peer / time of ringmill"


def draw_all(runs: Sequence[Run], out: Path) -> dict[str, str]:
    """Draws what there is; returns the file of each plot by its name. None at all without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        print(f"no plots: {error}; the bench extra installs matplotlib")
        return {}
    files: dict[str, str] = {}

    def save(name: str, figure: Any) -> None:
        files[name] = f"{name}.png"
        figure.savefig(out / files[name], dpi=110, bbox_inches="tight")

    rows = [row for row in ratios(runs, None) if any(aim is not None for _, aim in row[1])]
    if rows:
        figure = Figure(figsize=(9, 1.2 + 0.26 * len(rows) * max(1, len(runs))))
        bars(figure.subplots(), rows, runs)
        save("targets", figure)
    for topic in dict.fromkeys(each["topic"] for run in runs for each in run.data["comparisons"]):
        curves = names_of_curves(runs, topic)
        if curves:
            figure = Figure(figsize=(9, 3.4 * len(curves)))
            axes = figure.subplots(len(curves), squeeze=False)
            for axis, name in zip(axes[:, 0], curves, strict=True):
                curve(axis, name, runs)
            figure.subplots_adjust(hspace=0.5)
        else:
            rows = ratios(runs, topic)
            figure = Figure(figsize=(9, 1.2 + 0.22 * len(rows) * max(1, len(runs))))
            bars(figure.subplots(), rows, runs)
        save(topic, figure)
    for topic in dict.fromkeys(each["topic"] for run in runs for each in run.data.get("curves", [])):
        figure = Figure()
        grid(figure, topic, runs)
        save(topic, figure)
    return files


Cells = list[tuple[float | None, float | None]]  # by run: the ratio and its target


def ratios(runs: Sequence[Run], topic: str | None) -> list[tuple[str, Cells]]:
    """A row for each comparison and peer."""
    rows: dict[tuple[str, str, str], Cells] = {}
    for number, run in enumerate(runs):
        for each in run.data["comparisons"]:
            if each["topic"] != topic and topic is not None:
                continue
            for peer, ratio in each[RATIO].items():
                row = rows.setdefault((each["topic"], each["title"], peer), [(None, None)] * len(runs))
                row[number] = (ratio, each["targets"].get(peer))
    return [(f"{title}\nagainst {peer}", row) for (_, title, peer), row in rows.items()]


def bars(axis: Any, rows: list[tuple[str, Cells]], runs: Sequence[Run]) -> None:
    """One bar for each row and run, from the line at 1; the target is a stroke across its bar."""
    height = 0.8 / len(runs)
    for number, run in enumerate(runs):
        for place, (_, cells) in enumerate(rows):
            ratio, aim = cells[number]
            y = place - 0.4 + (number + 0.5) * height
            label = run.label if place == 0 else None
            axis.barh(y, (ratio or 1) - 1, height * 0.9, left=1, color=COLORS[number % len(COLORS)], label=label)
            if ratio is not None:
                axis.text(1.01, y, f"{ratio:,.2f}", transform=axis.get_yaxis_transform(), va="center", fontsize=6,
                          color=COLORS[number % len(COLORS)])
            if aim is not None:
                axis.plot([aim, aim], [y - height / 2, y + height / 2], color="black", linewidth=1.8)
    axis.plot([], [], color="black", linewidth=1.8, label="target")
    axis.axvline(1, color="#888888", linewidth=0.8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.10g}")
    axis.margins(x=0.08)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(f"{AXIS} (log; right of 1, ringmill is faster)", fontsize=8)
    plain(axis)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=6.5)
    axis.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(runs) + 1)


def names_of_curves(runs: Sequence[Run], topic: str) -> list[str]:
    points = [each for run in runs for each in run.data["comparisons"] if each["topic"] == topic and each["curve"]]
    return list(dict.fromkeys(each["curve"][0] for each in points))


def curve(axis: Any, name: str, runs: Sequence[Run]) -> None:
    """The ratio against a size, with a thin line from the least to the most of the rounds, and the band of 15 %."""
    what = ""
    for number, run in enumerate(runs):
        points = [each for each in run.data["comparisons"] if each["curve"] and each["curve"][0] == name]
        color = COLORS[number % len(COLORS)]
        xs = [each["curve"][2] for each in points]
        for each in points:
            what = each["curve"][1]
            mine = each["rounds"][each["subject"]]
            peer = next(iter(each[RATIO]))
            of_rounds = [theirs / ours for theirs, ours in zip(each["rounds"][peer], mine, strict=True)]
            axis.vlines(each["curve"][2], min(of_rounds), max(of_rounds), color=color, linewidth=0.9, alpha=0.6)
        medians = [next(iter(each[RATIO].values())) for each in points]
        axis.plot(xs, medians, "o-", color=color, markersize=4, linewidth=1.3, label=run.label)
        if medians:
            middle = (min(medians) * max(medians)) ** 0.5
            axis.axhspan(middle / BAND**0.5, middle * BAND**0.5, color=color, alpha=0.1, linewidth=0,
                         label=f"{run.label}: the target, all within 15 %")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.10g}")
    axis.set_ylim(bottom=0)
    axis.set_title(name, fontsize=9, loc="left")
    axis.set_xlabel(f"{what} (log)", fontsize=8)
    axis.set_ylabel("time of the plain loop /\ntime of ringmill", fontsize=8)
    plain(axis)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


COLUMNS = 3  # of a grid of curves


def grid(figure: Any, topic: str, runs: Sequence[Run]) -> None:
    """A small plot for each curve: its growth against N, and the limit."""
    titles = list(dict.fromkeys(
        each["title"] for run in runs for each in run.data.get("curves", []) if each["topic"] == topic
    ))  # fmt: skip
    rows = -(-len(titles) // COLUMNS)
    figure.set_size_inches(10, 0.6 + 1.9 * rows)
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axis in axes[len(titles) :]:
        axis.set_visible(False)
    for axis, title in zip(axes, titles, strict=False):
        grown(axis, topic, title, runs)
    figure.subplots_adjust(hspace=0.75, wspace=0.25)


def grown(axis: Any, topic: str, title: str, runs: Sequence[Run]) -> None:
    for number, run in enumerate(runs):
        for each in run.data.get("curves", []):
            if (each["topic"], each["title"]) != (topic, title):
                continue
            xs = [max(1, point["n"]) for point in each["points"]]  # none is drawn at 1
            ys = [point["growth"] for point in each["points"]]
            axis.plot(xs, ys, "o-", color=COLORS[number % len(COLORS)], markersize=3, linewidth=1.1, label=run.label)
            axis.axhline(each["limit"], color="black", linewidth=0.9, linestyle=":")
            axis.set_xlabel(each["what"], fontsize=6)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.3)
    axis.set_ylim(top=max(10, axis.get_ylim()[1]))
    axis.yaxis.set_major_formatter(lambda y, _: f"{y:,.10g}")
    axis.set_title("\n".join(textwrap.wrap(title, 42)), fontsize=6.5, loc="left")
    plain(axis)
    axis.tick_params(labelsize=6)
    axis.legend(fontsize=5.5, frameon=False)


def plain(axis: Any) -> None:
    axis.tick_params(labelsize=7)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
