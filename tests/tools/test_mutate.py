"""What mutate.py names exists, and docs/correctness.md explains mutants that it makes.

Otherwise a mutant would silently not be made, or not be checked.
"""

from __future__ import annotations

import re

from tests.tools import mutate


def test_each_re_check_that_is_dropped_is_there() -> None:
    assert len(mutate.checks()) == len(mutate.DROPPED)  # each asserts that its text is there, once


def test_the_memory_orders_are_found() -> None:
    found = {mutant.file for mutant in mutate.orders()}
    expected = {"ring/ring.pxd", "waiting/wait_queue.pxd", "waiting/wait_queue.pyx", "pool/operation.pxd"}
    assert expected | {"pool/accounting.pyx", "pool/retry_routing.pyx"} <= found


def test_the_tests_and_files_exist() -> None:
    for test in [*mutate.RING, *mutate.POOL, *mutate.HUB, mutate.SOAK_RING[0], mutate.SOAK_POOL[0]]:
        assert (mutate.ROOT / test).is_file(), test
    for file in [*mutate.CHECKS, *mutate.WEAK, *mutate.BUILT, *[file for file, _, _ in mutate.DROPPED.values()]]:
        assert (mutate.ROOT / mutate.CORE / file).is_file(), file


def test_the_survivors_that_are_explained_are_made() -> None:
    page = (mutate.ROOT / "docs/correctness.md").read_text()
    section = page.split("## Mutants that survive\n")[1].split("\n## ")[0]
    assert re.findall(r"makes (\d+) mutants", section) == [str(len(mutate.DROPPED))]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section, re.M)
    explained = [name for names, _ in rows if names != "mutant" for name in names.split("; ")]
    assert explained
    assert set(explained) <= set(mutate.DROPPED)
    models = "".join(path.read_text() for path in (mutate.ROOT / "tests/models").glob("test_*.py"))
    for rule in re.findall(r"`([a-z_]+)`", "".join(reason for _, reason in rows)):
        assert re.search(rf"\b{rule}: bool\b", models), rule
