"""The end of the program while memory is short: that is no KeyboardInterrupt, so no work is cancelled and no thread is
left running.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from ringmill._core.pool.operation import complete


def test_the_lack_of_memory_counts_as_no_keyboard_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hooked: reported.append(hooked.exc_type))
    seen: list[int] = []
    errors: list[BaseException] = [MemoryError(), KeyboardInterrupt(), MemoryError()]

    def step(keyboard_interrupts: int) -> None:
        seen.append(keyboard_interrupts)
        if errors:
            raise errors.pop(0)

    complete(step, 0)
    assert seen == [0, 0, 1, 1]
    assert reported == [MemoryError, KeyboardInterrupt, MemoryError]
