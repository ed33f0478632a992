"""Copies and pickles of operations are new; references that an operation holds are released."""

from __future__ import annotations

import copy
import pickle
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ringmill import Outcome
from tests.pool.operations import Data, Filled, Plain, Slotted, raising, run
from tests.threads import SHORT, run_threads, wait_until

# Pickles and copies arrive new


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("state", ["new", "succeeded", "failed", "cancelled"])
@pytest.mark.parametrize("make", [lambda: Filled(7, "x"), lambda: Data(7, ["x"]), lambda: Slotted(7, "x"), Plain])
def test_pickles_arrive_new(make: Callable[[], Any], state: str, protocol: int) -> None:
    op = make()
    if state == "cancelled":
        op.cancel()
    elif state != "new":
        run(op, raising(ValueError) if state == "failed" else None)
        assert op.error is None or state == "failed"
    for other in (pickle.loads(pickle.dumps(op, protocol)), copy.copy(op), copy.deepcopy(op)):
        assert type(other) is type(op)
        assert (other.outcome, other.error, other.tries) == (Outcome.PENDING, None, 0)
        for name in ("number", "name", "names", "other"):
            assert getattr(other, name, None) == getattr(op, name, None)
        assert not other.wait(0)
        assert run(other).outcome is Outcome.SUCCEEDED


def test_deep_copies_are_deep_and_shallow_ones_shallow() -> None:
    op = Data(1, ["x"])
    assert copy.copy(op).names is op.names
    deep = copy.deepcopy(op)
    assert deep.names == op.names
    assert deep.names is not op.names


# References


class Thing:
    """Something that can be weakly referenced."""


@pytest.mark.parametrize("process", [None, raising(ValueError)])  # a class: an error of ours would hold its traceback
def test_references_end_where_they_began(process: Callable[[Any], None] | None) -> None:
    thing = Thing()
    before = sys.getrefcount(thing)
    op = Filled(1)
    op.thing = thing  # type: ignore[attr-defined]
    run(op, process)
    reference = weakref.ref(op)
    assert op.wait(0)
    assert (op.error is None) == (process is None)
    run_threads(*[op.wait] * 4)
    copy.copy(op)
    op.reset()
    del op
    wait_until(lambda: reference() is None)
    assert sys.getrefcount(thing) == before


def test_timed_out_waiters_leave_nothing_behind() -> None:
    op = Plain()
    before = sys.getrefcount(op)
    for _ in range(100):
        assert not op.wait(1e-6)
    assert not any(run_threads(*[lambda: op.wait(SHORT)] * 8))
    wait_until(lambda: sys.getrefcount(op) == before)
    op.done()  # no task waits any more
    assert op.wait(0)
