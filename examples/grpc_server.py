"""A gRPC server whose calls run on a ringmill PoolExecutor: it hashes passwords, which computes for a while.

    pip install grpcio
    python examples/grpc_server.py [--port N] [--threads N]

`grpc.server` takes a `concurrent.futures.ThreadPoolExecutor`, which PoolExecutor is. The one method, /passwords/Hash,
takes bytes and returns their PBKDF2 hash; it needs no protoc. SIGTERM or Ctrl-C: no more calls are accepted, those that
were are answered, and the last line says how many. Exit status: 0.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
import threading
from collections.abc import Sequence

import grpc

from ringmill import PoolExecutor

GRACE_SECONDS = 60.0
ROUNDS = 20_000

answered: list[int] = []  # the length of each password; appending is atomic


def hash_password(password: bytes, context: grpc.ServicerContext) -> bytes:
    digest = hashlib.pbkdf2_hmac("sha256", password, b"salt", ROUNDS)  # lets other threads run
    answered.append(len(password))
    return digest


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A gRPC server that hashes passwords on a PoolExecutor.")
    parser.add_argument("--port", metavar="N", type=int, default=0, help="default: any that is free")
    parser.add_argument("--threads", metavar="N", type=int, default=8, help="default: %(default)s")
    options = parser.parse_args(arguments)

    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    with PoolExecutor(options.threads, "grpc") as executor:
        server = grpc.server(executor)
        method = grpc.unary_unary_rpc_method_handler(hash_password)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("passwords", {"Hash": method})])
        port = server.add_insecure_port(f"127.0.0.1:{options.port}")
        server.start()
        print(f"listening on 127.0.0.1:{port}", flush=True)
        stopping.wait()
        server.stop(GRACE_SECONDS).wait()
    print(f"answered {len(answered)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
