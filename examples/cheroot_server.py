"""A WSGI server, cheroot, whose requests are served by a ringmill pool: it hashes passwords.

    pip install cheroot
    python examples/cheroot_server.py [--port N] [--workers N]

cheroot hands each connection that has something to read to `server.requests`, a queue with threads: `Connections` puts
a pool there. The pool's queue is the limit on what waits: when it is full for ten seconds, cheroot answers 503. POST
returns the PBKDF2 hash of the body. SIGTERM or Ctrl-C: no more connections are accepted, requests that a worker has
are answered, and the last line says how many. Exit status: 0.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cheroot import wsgi

from ringmill import Operation, Worker, WorkerPool

FULL_SECONDS = 10.0
ROUNDS = 20_000

answered: list[int] = []  # the length of each password; appending is atomic


@dataclass(slots=True)
class Connection(Operation):
    """A connection on which a request has come."""

    connection: Any


class Server(Worker[Connection]):
    """Serves one request of a connection, then gives the connection back, or closes it."""

    def __init__(self, server: wsgi.Server) -> None:
        self.server = server

    def process(self, op: Connection) -> None:
        keep = False
        try:
            keep = op.connection.communicate()
        finally:
            if keep:
                self.server.put_conn(op.connection)
            else:
                op.connection.close()


class Connections:
    """What cheroot expects of `server.requests`: start, stop, put, and some counts."""

    def __init__(self, server: wsgi.Server, workers: int) -> None:
        self.pool = WorkerPool(lambda: Server(server), workers, name="cheroot")
        self.start = self.pool.start
        self.min = self.max = workers

    @property
    def idle(self) -> int:
        return self.max - self.pool.stats().running

    @property
    def qsize(self) -> int:
        return self.pool.stats().queued

    def put(self, connection: Any) -> None:
        self.pool.do(Connection(connection), FULL_SECONDS)  # raises queue.Full, as cheroot expects

    def stop(self, timeout: float | None = None) -> None:
        self.pool.shutdown()


def hash_password(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    password = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    body = hashlib.pbkdf2_hmac("sha256", password, b"salt", ROUNDS).hex().encode()  # lets other threads run
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    answered.append(len(password))
    return [body]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A WSGI server that hashes passwords on a WorkerPool.")
    parser.add_argument("--port", metavar="N", type=int, default=0, help="default: any that is free")
    parser.add_argument("--workers", metavar="N", type=int, default=8, help="default: %(default)s")
    options = parser.parse_args(arguments)

    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    server = wsgi.Server(("127.0.0.1", options.port), hash_password, request_queue_size=1024)
    server.requests = Connections(server, options.workers)
    server.prepare()
    print(f"listening on 127.0.0.1:{server.bind_addr[1]}", flush=True)
    serving = threading.Thread(target=server.serve)
    serving.start()
    stopping.wait()
    server.stop()
    serving.join()
    print(f"answered {len(answered)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
