"""examples/cheroot_server.py, run as a user runs it, with 200 clients."""

from __future__ import annotations

import os

import pytest

from tests.project.serving import CLIENTS, post, serve

pytest.importorskip("cheroot")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGTERM ends a process at once there")


def test_every_client_is_answered() -> None:
    assert len(serve("cheroot_server.py", post, stop_after=None)) == CLIENTS


@pytest.mark.parametrize("workers", ["1", "8"])
def test_requests_that_were_accepted_are_answered_after_sigterm(workers: str) -> None:
    assert len(serve("cheroot_server.py", post, "--workers", workers)) >= 20
