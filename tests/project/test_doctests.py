"""The examples in the docstrings of the public names run, and every public name has a docstring."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

import ringmill

EXAMPLES = ["Hub", "Operation", "RingBuffer", "SubscriptionRing", "Task", "Worker", "WorkerPool", "exponential"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring_example(name: str) -> None:
    public: dict[str, Any] = {each: getattr(ringmill, each) for each in ringmill.__all__}
    test = doctest.DocTestParser().get_doctest(getattr(ringmill, name).__doc__, dict(public), name, None, None)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", ringmill.__all__)
def test_is_documented(name: str) -> None:
    assert getattr(ringmill, name).__doc__
