"""CPython's own tests of queue.Queue, as they are installed with the interpreter, of RingBuffer.

They run as they are; what cannot be run is in LEFT_OUT. Skipped where the interpreter comes without its tests.
"""

from __future__ import annotations

import queue
import sys
import unittest
from typing import Any

import pytest

from ringmill import RingBuffer

try:
    from test import test_queue
except ImportError as error:
    pytest.skip(f"this interpreter comes without test.test_queue: {error}", allow_module_level=True)

#: Names of tests, and why each is left out.
LEFT_OUT = {
    "test_shrinking_queue": "assigns Queue.maxsize: a ring has the capacity that it was made with",
}

PLENTY = 1 << 16  # more than any of the tests puts in before it takes out; they mean "without bound"


class Queue(RingBuffer[Any]):
    """RingBuffer by the name that the tests look for. `maxsize=0` is no bound there, and none that is reached here."""

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize or PLENTY)


class RingBufferTest(test_queue.QueueTest, unittest.TestCase):  # type: ignore[misc]
    queue = queue

    def setUp(self) -> None:
        super().setUp()
        self.type2test = Queue


for name, reason in LEFT_OUT.items():
    assert hasattr(RingBufferTest, name)
    setattr(RingBufferTest, name, unittest.skip(reason)(lambda self: None))


def test_that_all_of_them_were_found() -> None:
    tests = [name for name in dir(RingBufferTest) if name.startswith("test")]
    assert {"test_basic", "test_nowait", "test_queue_join", "test_queue_task_done"} <= set(tests)
    if sys.version_info >= (3, 13):
        assert len([name for name in tests if "shutdown" in name]) >= 18
