"""examples/grpc_server.py, run as a user runs it, with 200 clients."""

from __future__ import annotations

import os

import pytest

from tests.project.serving import CLIENTS, NotServed, password, serve
from tests.threads import LONG

grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGTERM ends a process at once there")


def ask(port: int, number: int) -> bytes:
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            return bytes(channel.unary_unary("/passwords/Hash")(password(number), timeout=LONG))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise NotServed from error
            raise


def test_every_client_is_answered() -> None:
    assert len(serve("grpc_server.py", ask, stop_after=None)) == CLIENTS


@pytest.mark.parametrize("threads", ["1", "8"])
def test_calls_that_were_accepted_are_answered_after_sigterm(threads: str) -> None:
    assert len(serve("grpc_server.py", ask, "--threads", threads)) >= 20
