"""The programs of docs/coming-from.md, Side by side: both of each row run, and give the same result.

A row is run where the other library is installed, and skipped elsewhere:

    pip install joblib mpire pebble janus culsans celery

asyncio.Queue is the standard library's, so its rows always run. The programs of a section run in a process of its own.
Celery's tasks are called eagerly (`task_always_eager`), so they need no broker.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.project.test_docs import ROOT, blocks

PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
COMMON, *SECTIONS = re.split(r"^### ", PAGE.partition("\n## Side by side\n")[2], flags=re.MULTILINE)

#: How many rows each section has, so that none is left out because it could not be read.
ROWS = {"joblib": 6, "mpire": 6, "pebble": 6, "janus": 6, "culsans": 5, "asyncio.Queue": 7, "Celery": 7}

#: Each program prints a line of JSON: the `repr` of its result, or its traceback.
RUNNER = """
import ast, asyncio, faulthandler, inspect, json, logging, sys, traceback
faulthandler.dump_traceback_later(60, exit=True)
logging.disable()  # what other libraries log of the errors that the programs provoke
setup, programs = json.load(sys.stdin)
exec(setup, globals())  # mpire pickles functions, so they must be found in __main__
for program in programs:
    namespace = dict(globals())
    try:
        code = compile(program, program, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        async def main():
            await eval(code, namespace)
        asyncio.run(main()) if code.co_flags & inspect.CO_COROUTINE else exec(code, namespace)
        said = {"result": repr(namespace["result"])}
    except BaseException:
        said = {"error": traceback.format_exc()}
    print(json.dumps(said), flush=True)
"""


class Row(NamedTuple):
    section: str
    number: int
    theirs: str
    ours: str
    difference: str


def program(cell: str) -> str:
    """The lines of a cell, which has nothing but code."""
    lines = cell.split(" <br> ")
    assert all(re.fullmatch(r"`[^`]+`", line) for line in lines), f"not only code: {cell}"
    return "\n".join(line[1:-1] for line in lines)


def rows_of(section: str) -> list[Row]:
    name = section.partition("\n")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [Row(name, k, program(theirs), program(ours), text) for k, (theirs, ours, text) in enumerate(cells)]


ALL = [row for section in SECTIONS for row in rows_of(section)]
SETUPS = {section.partition("\n")[0]: next((block.text for block in blocks(section)), "") for section in SECTIONS}
SETUP = next(block.text for block in blocks(COMMON))


@functools.cache
def results(section: str) -> list[dict[str, str]]:
    """What the programs of a section printed, in the order of the rows: theirs, ours."""
    programs = [text for row in ALL if row.section == section for text in (row.theirs, row.ours)]
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", RUNNER],
        input=json.dumps([SETUP + SETUPS[section], programs]),
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    said = [json.loads(line) for line in done.stdout.splitlines()]
    missing = {"error": f"status {done.returncode}\n{done.stderr}"}
    return said + [missing] * (len(programs) - len(said))


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.section}-{row.number}") for row in ALL])
def test_both_programs_of_a_row_have_the_same_result(row: Row) -> None:
    library = row.section.partition(".")[0].lower()
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"not installed: {library}")
    if "new in Python 3.13" in row.difference and sys.version_info < (3, 13):
        pytest.skip("new in Python 3.13")
    theirs, ours = results(row.section)[2 * row.number :][:2]
    for text, said in ((row.theirs, theirs), (row.ours, ours)):
        assert "error" not in said, f"{text}\n{said['error']}"
    assert theirs == ours, f"{row.theirs}\n{row.ours}"


def test_each_row_was_read() -> None:
    assert {name: sum(row.section == name for row in ALL) for name in SETUPS} == ROWS
