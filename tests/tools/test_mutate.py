"""The texts that mutate.py replaces exist in the core; otherwise a mutant would silently not be made."""

from __future__ import annotations

from tests.tools import mutate


def test_each_re_check_that_is_dropped_is_there() -> None:
    assert len(mutate.checks()) == len(mutate.DROPPED)  # each asserts that its text is there, once


def test_the_memory_orders_are_found() -> None:
    found = {mutant.file for mutant in mutate.orders()}
    expected = {"ring/ring.pxd", "waiting/wait_queue.pxd", "waiting/wait_queue.pyx", "pool/operation.pxd"}
    assert expected | {"pool/accounting.pyx", "pool/retry_routing.pyx"} <= found
