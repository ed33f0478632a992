"""The code blocks of each documentation page run, in order, in one namespace, and print what the page shows.

A `python` block runs. A `text` block that follows it is what it prints; one that prints must be followed by one. A
`sh` block is a command of SHELL, which something else runs. There are no other fences but Sphinx's directives.

Operations with fields have slots, in the example programs too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ringmill

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py"))
FENCE = re.compile(r"^(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)

SHELL = {
    "pip install ringmill": "by hand, once it is published",
    'pip install ".[examples]" && python examples/checksum_tree.py > SHA256SUMS': "test_example_checksum_tree.py",
    'pip install ".[test]" && python -m pytest': ".ci/run, which looks for this very line",
    "python -m benchmarks --quick": "test_benchmarks.py",
    "python -m benchmarks.report": "test_benchmarks.py",
    "python -m benchmarks ring_buffer pool hub executor --rounds 5 --json standard.json": "by hand, for the plots",
    "python -m benchmarks ring_buffer pool hub executor --rounds 5 --json free-threaded.json": "by hand, for the plots",
    "python -m benchmarks.report --from standard.json free-threaded.json --out docs/plots": "test_benchmarks.py",
    "python -m benchmarks map --rounds 5 --json standard.json": "by hand, for the plots",
    "python -m benchmarks map --rounds 5 --json free-threaded.json": "by hand, for the plots",
    "python benchmarks/bench_operation_cost.py --rounds 9": "test_benchmarks.py",
    "python -m ringmill": "test_build.py",
}

RUNNER = """
import contextlib, io, json, logging, sys
logging.getLogger("ringmill").addHandler(logging.NullHandler())  # pages show what is printed, not what is logged
namespace = {"__name__": "__main__"}
for line, code, shown in json.load(sys.stdin):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\\n" * (line - 1) + code, sys.argv[1], "exec"), namespace)
    if printed.getvalue().rstrip() != shown:
        sys.exit(f"{sys.argv[1]}:{line} printed:\\n{printed.getvalue()}but the page shows:\\n{shown}")
"""


class Block(NamedTuple):
    language: str
    line: int  # of its first line
    text: str
    gap: str  # what stands between it and the one before


def blocks(text: str) -> Iterator[Block]:
    end = 0
    for match in FENCE.finditer(text):
        start = match.start("text")
        yield Block(match["language"].strip(), text.count("\n", 0, start) + 1, match["text"], text[end : match.start()])
        end = match.end()


def programs(text: str) -> list[tuple[int, str, str]]:
    """Each python block, with its line and what it is said to print."""
    found: list[tuple[int, str, str]] = []
    before = ""
    for block in blocks(text):
        if block.language == "python":
            found.append((block.line, block.text, ""))
        elif block.language == "text":
            assert before == "python", f"line {block.line}: an output without a program"
            assert not block.gap.strip(), f"line {block.line}: an output must follow its program at once"
            line, code, _ = found[-1]
            found[-1] = (line, code, block.text.rstrip())
        elif block.language == "sh":
            for command in block.text.splitlines():
                assert command in SHELL, f"line {block.line}: nothing runs {command!r}"
        else:
            assert block.language.startswith("{"), f"line {block.line}: a block of {block.language or 'no language'}"
        before = block.language
    return found


def run(page: str, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", RUNNER, page],
        input=json.dumps(programs(text)), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_and_prints_what_the_page_shows(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    if not programs(text):
        return
    result = run(page, text)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", FENCE.sub("", text)):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


OPERATION = re.compile(r"^(?P<before>.*)\n *class (?P<name>\w+)\(Operation\):.*\n(?P<first>.*)", re.MULTILINE)


def without_slots(text: str) -> list[str]:
    """The classes of operations that have fields but are no dataclasses with slots. See docs/costs.md."""
    return [
        found["name"]
        for found in OPERATION.finditer(text)
        if found["first"].strip() != "pass" and not found["before"].endswith("@dataclass(slots=True)")
    ]


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES])
def test_operations_with_fields_have_slots(page: str) -> None:
    assert without_slots((ROOT / page).read_text(encoding="utf-8")) == []


def test_an_operation_without_slots_is_found_out() -> None:
    slow = "@dataclass\nclass Slow(Operation):\n    url: str\n"
    assert without_slots(f"{slow}\nclass Own(Operation):\n    def __init__(self):\n") == ["Slow", "Own"]
    assert without_slots(slow.replace("@dataclass", "@dataclass(slots=True)")) == []
    assert without_slots("\nclass Signal(Operation):\n    pass\n") == []


def test_the_reference_has_every_public_name() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"auto(?:class|function):: ringmill\.(\w+)", text))
    documented |= {*ringmill.errors.__all__, "__version__"}
    assert "automodule:: ringmill.errors" in text
    assert set(ringmill.__all__) - documented == set()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "but the page shows:\n2"),
        ("```python\nprint(1)\n```\n", "printed:\n1"),
        ("\n```python\nx = 1\n```\n\n```python\nx.y\n```\n", 'File "page.md", line 7'),
    ],
)
def test_a_page_that_lies_is_found_out(text: str, complaint: str) -> None:
    result = run("page.md", text)
    assert result.returncode == 1
    assert complaint in result.stderr


@pytest.mark.parametrize("text", ["```text\n1\n```\n", "```sh\nrm -r x\n```\n", "```\nx\n```\n", "```c\nx\n```\n"])
def test_a_block_that_nothing_checks_is_found_out(text: str) -> None:
    with pytest.raises(AssertionError, match="line 2"):
        programs(text)
