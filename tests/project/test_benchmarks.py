"""The benchmarks run, at a thousandth of their size; their speed is not tested."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_scale, harness, plots, report
from benchmarks.__main__ import TOPICS
from benchmarks.__main__ import main as run_suite
from benchmarks.harness import Suite, one_by_one, open_suite
from benchmarks.scale_retries import Budget, Setup

HERE = Path(__file__).parents[2] / "benchmarks"


def tiny(topic: str) -> Suite:
    options = argparse.Namespace(quick=False, tiny=True, rounds=None, json=None)
    suite = open_suite(options)
    suite.topic = topic
    TOPICS[topic].run(suite)
    return suite


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_a_topic_runs(topic: str) -> None:
    suite = tiny(topic)
    assert suite.comparisons or suite.curves
    assert not [line for line in suite.skipped if "failed" in line]
    for result in suite.comparisons:
        assert result.topic == topic
        assert set(result.targets) <= set(result.ratios)
        assert {len(times) for times in result.rounds.values()} == {1}
    for curve in suite.curves:
        assert curve.topic == topic
        assert {len(times) for times in curve.rounds.values()} == {1}
        assert min(time for times in curve.rounds.values() for time in times) > 0


def test_each_topic_is_a_script_too() -> None:
    assert {path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py")} == set(TOPICS)
    script = HERE / "bench_subscription_ring.py"
    run = subprocess.run([sys.executable, script, "--tiny"], capture_output=True, text=True, check=True)
    assert "median" in run.stdout
    code = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path)"  # their imports, as a script's
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    subprocess.run([sys.executable, "-c", code, *HERE.glob("bench_*.py")], env=environment, check=True)


def test_a_topic_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_suite(["ring_bufer"])
    assert "subscription_ring" in capsys.readouterr().err


def test_a_peer_that_fails_is_left_out_and_ringmill_is_not() -> None:
    def fails(_: int) -> None:
        raise RuntimeError("broken")

    suite = Suite(rounds=2)
    sides = {"ours": lambda n: None, "theirs": fails}
    assert list(suite.compare("title", 10, "1 thread", sides, targets={"theirs": (1, 1)}).rounds) == ["ours"]
    assert "broken" in suite.skipped[0]
    with pytest.raises(RuntimeError, match="broken"):
        suite.compare("title", 10, "1 thread", {"ours": fails})


def small_run(python: str, ratio: float) -> dict[str, Any]:
    def comparison(title: str, curve: list[object] | None) -> dict[str, Any]:
        return {
            "topic": "growth" if curve else "pool", "title": title, "threads": "1 thread", "curve": curve,
            "n": {"ours": 10, "theirs": 10}, "unit": "us per operation", "subject": "ours",
            "rounds": {"ours": [1.0], "theirs": [ratio]}, "medians": {"ours": 1.0, "theirs": ratio},
            "peer time / subject time": {"theirs": ratio}, "targets": {} if curve else {"theirs": 2.0},
        }  # fmt: skip

    return {
        "environment": {"python": python, "commit": "abc"}, "rounds": 1, "share": "1/1", "skipped": [],
        "comparisons": [comparison("a | b", None), *(comparison(f"{n}", ["curve", "n", n]) for n in (10, 100))],
        "curves": [{
            "topic": "scale", "title": "retry", "what": "workers", "limit": 3.0, "unit": "us per operation",
            "points": [{"n": n, "rounds": [time], "means": [time], "median": time, "growth": time / 2.0,
                        "growth of the mean": 9.0} for n, time in ((0, 2.0), (1000, 2.0 * ratio))],
        }],
        "measures": [{"topic": "growth", "title": "memory", "unit": "KiB", "values": {"ours": 1.5}, "target": ""}],
    }  # fmt: skip


def test_a_report_is_written_from_json(tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    files[0].write_text(json.dumps(small_run("CPython 3.13.0, GIL on", 2.5)))
    files[1].write_text(json.dumps(small_run("CPython 3.13.0, GIL off", 0.5)))
    report.main(["--out", str(tmp_path / "out"), "--from", *map(str, files)])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| a \\| b | theirs | 2.50 | 2 | yes | 0.50 | 2 | no |" in text
    assert "| memory | ours | KiB | 1.50 | 1.50 |" in text
    assert "| retry | workers | 1,000 | 2.50 | 9.00 | yes | 1,000 | 1.00 | 9.00 | yes | 3 |" in text
    assert "| 1,000 | 5.00 | 2.50 | 9.00 | 1.00 | 0.50 | 9.00 |" in text


def test_a_report_says_which_curves_grow_too_much(tmp_path: Path) -> None:
    old = small_run("CPython 3.12.0, GIL on", 1)
    del old["curves"]  # as in files that were written before there were curves
    report.write(report.label_all([old, small_run("CPython 3.13.0, GIL on", 3.5)]), tmp_path)
    assert "| retry | workers | - | - | - |  | 1,000 | 3.50 | 9.00 | no | 3 |" in (tmp_path / "report.md").read_text()


def test_the_growth_of_a_curve_is_the_median_over_its_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    without = iter([[8.0], [1.0, 1.0, 4.0], [2.0], [4.0]])  # the first one warms up
    among = iter([[8.0], [3.0], [4.0], [40.0]])
    curve = Suite(rounds=3).curve("title", "others", {0: lambda _: next(without), 10: lambda _: next(among)}, 1)
    assert curve.rounds == {0: [1e6, 2e6, 4e6], 10: [3e6, 4e6, 40e6]}
    assert curve.growth == {0: 1.0, 10: 3.0}
    assert curve.growth_of_mean == {0: 1.0, 10: 2.0}
    assert "3.00" in capsys.readouterr().out


def test_a_slow_point_of_a_curve_has_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "POINT_SECONDS", 0.0)
    curve = Suite(rounds=3).curve("title", "others", {0: lambda _: [1.0], 10: lambda _: [2.0]}, 1)
    assert curve.rounds == {0: [1e6], 10: [2e6]}
    assert curve.growth == {0: 1.0, 10: 2.0}


def test_each_call_is_timed_by_itself_and_no_more_than_time_allows() -> None:
    calls: list[str] = []
    times = one_by_one(lambda: calls.append("timed"), 2, before=lambda: calls.append("before"))
    assert calls == ["before", "timed"] * 2
    assert len(times) == 2
    assert len(one_by_one(lambda: None, 100, seconds=0.0)) == harness.FEWEST


def test_a_set_up_that_takes_too_long_is_smaller(capsys: pytest.CaptureFixture[str]) -> None:
    ended: list[int] = []

    @contextmanager
    def make(size: int, _: Budget) -> Iterator[Setup]:
        added: list[int] = []
        reached = Budget(-1.0 if size > 5 else 60.0).fill(size, added.append, chunk=4)
        assert sum(added) == reached
        yield Setup(reached, {"row": lambda n: [float(reached + 1)] * n})
        ended.append(reached)

    suite = Suite(rounds=1)
    bench_scale.bench_among(suite, "others", [0, 3, 10, 100], make)
    assert [list(curve.rounds) for curve in suite.curves] == [[0, 3, 4]]
    assert suite.curves[0].growth == {0: 1.0, 3: 4.0, 4: 5.0}
    assert len(suite.skipped) == 1
    assert "there were 4" in suite.skipped[0]
    assert ended == [4, 3, 0]


def test_a_report_has_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.write(report.label_all([small_run("CPython 3.13.0, GIL on", 2.5)]), tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"targets.png", "pool.png", "growth.png", "scale.png"}


def test_the_plot_of_a_curve_has_its_points_and_the_limit() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    plots.grid(figure, "scale", report.label_all([small_run("CPython 3.13.0, GIL on", 2.5)]))
    points, limit = figure.axes[0].lines
    assert list(points.get_xydata().ravel()) == [1, 1.0, 1000, 2.5]  # none is drawn at 1
    assert set(limit.get_ydata()) == {3.0}
