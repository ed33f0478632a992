"""The documentation names files that exist: the table of docs/architecture.md, and every path in any page.

The reference documents exceptions under the names by which they are imported, to which docstrings link.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ringmill

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
DOCS = sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *DOCS]
PATH = re.compile(r"(?<![\w/.-])(?:tests|src|examples|benchmarks|docs|\.ci|\.github)/[\w./*-]*\w")
TEST = re.compile(r"(?<![\w/])test_\w+\.py\b")
MADE = ("docs/_build",)  # made by a command of the page

pytestmark = pytest.mark.skipif(
    not (ROOT / "src").is_dir(), reason="the tests of a wheel run without the sources (tests/tools/wheel.sh)"
)

Row = tuple[str, str, str]


def rows() -> list[Row]:
    """Topic, file, test of each row of the table."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines if len(line) == 3]
    return [(topic, files, tests) for topic, files, tests in cells if files.startswith("`")]


def find_tests(name: str) -> list[Path]:
    return sorted((ROOT / "tests").rglob(name))


def test_the_table_answers_what_a_contributor_asks() -> None:
    topics = [topic.lower() for topic, _, _ in rows()]
    assert len(topics) >= 26
    assert len(set(topics)) == len(topics)
    for words in (
        "which worker gets a retried", "ctrl-c during shutdown", "full subscription drops", "task sleeps on a ring",
        "order of a stream is restored", "`max_restarts` is enforced",
    ):  # fmt: skip
        assert [topic for topic in topics if words in topic], words


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_the_files_of_a_row_exist(row: Row) -> None:
    topic, files, tests = row
    sources, names = re.findall(r"`([^`]+)`", files), re.findall(r"`([^`]+)`", tests)
    assert sources, topic
    assert names, topic
    for source in sources:
        assert (ROOT / "src" / "ringmill" / source).is_file(), f"{topic}: src/ringmill/{source}"
    for name in names:
        assert len(find_tests(name)) == 1, f"{topic}: {name} is found as {find_tests(name)}"


@pytest.mark.parametrize("page", PAGES)
def test_the_paths_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in PATH.findall(text):
        if not path.startswith(MADE):
            assert list(ROOT.glob(path)), f"{page} names {path}"
    for name in TEST.findall(text):
        assert find_tests(name), f"{page} names {name}"


def test_the_reference_has_every_exception_by_its_public_name() -> None:
    text = (ROOT / "docs" / "api" / "errors.md").read_text(encoding="utf-8")
    assert set(re.findall(r"autoexception:: ringmill\.(\w+)$", text, re.MULTILINE)) == set(ringmill.errors.__all__)
