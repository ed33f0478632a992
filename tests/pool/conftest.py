"""A fixture of the tests of `shutdown`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pool.shutting_down import Gate


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()
