"""An ASGI server, starlette on uvicorn, that leaves what computes to a ringmill pool: it hashes passwords.

    pip install starlette uvicorn
    python examples/asgi_server.py [--port N] [--workers N]

The pool starts and ends with the application, in its lifespan. A request is one `await pool.acall(...)`: the event loop
serves other connections meanwhile, and a client that goes away before its item has begun cancels it. POST /hash returns
the PBKDF2 hash of the body. SIGTERM or Ctrl-C: no more connections are accepted, requests that were are answered, then
the pool ends, and the last line says how many. Exit status: 0.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ringmill import Worker, WorkerPool

ROUNDS = 20_000


class Hasher(Worker[bytes]):
    def process(self, password: bytes) -> str:
        return hashlib.pbkdf2_hmac("sha256", password, b"salt", ROUNDS).hex()  # lets other threads run


def make_application(workers: int) -> Starlette:
    pool = WorkerPool(Hasher, workers, name="hasher")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with pool:
            yield
        print(f"answered {pool.stats().succeeded}", flush=True)

    async def hash_password(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await pool.acall(await request.body()))

    return Starlette(routes=[Route("/hash", hash_password, methods=["POST"])], lifespan=lifespan)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="An ASGI server that hashes passwords on a WorkerPool.")
    parser.add_argument("--port", metavar="N", type=int, default=0, help="default: any that is free")
    parser.add_argument("--workers", metavar="N", type=int, default=4, help="default: %(default)s")
    options = parser.parse_args(arguments)

    # uvicorn ends gracefully, then raises the signal again for the handler that was there before: which ignores it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with socket.create_server(("127.0.0.1", options.port), backlog=1024) as listener:
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(make_application(options.workers), log_level="warning"))
        server.run(sockets=[listener])
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
