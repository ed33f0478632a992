"""Runs an example that is a server, with many clients, and ends it by SIGTERM while they wait."""

from __future__ import annotations

import hashlib
import http.client
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.threads import LONG, start_threads, wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
CLIENTS = 200
#: The example as it is, then a line that names the threads that are left; one that is ending may take a moment.
PROGRAM = """
import runpy, sys, threading, time
try:
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
except SystemExit as end:
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    deadline = time.monotonic() + 10
    for thread in others:
        thread.join(max(0, deadline - time.monotonic()))
    print("left", *(thread.name for thread in others if thread.is_alive()), flush=True)
    raise
"""


class NotServed(Exception):
    """The server did not take the request: no byte of an answer has come."""


def password(number: int) -> bytes:
    return f"password {number}".encode()


def expected(number: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password(number), b"salt", 20_000)


def post(port: int, number: int) -> bytes:
    """One client's request by HTTP, on a connection of its own; returns the hash."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
    try:
        connection.request("POST", "/hash", body=password(number))
        answer = connection.getresponse()
    except (ConnectionError, http.client.RemoteDisconnected) as error:
        raise NotServed from error
    try:
        assert answer.status == 200, answer.status
        return bytes.fromhex(answer.read().decode())
    finally:
        connection.close()


def serve(name: str, ask: Callable[[int, int], bytes], *arguments: str, stop_after: int | None = 20) -> list[int]:
    """Runs the example with all clients at once; SIGTERM comes when so many have their answers (None: all).

    Args:
        name: The file name of the example.
        ask: Called on a thread for each client, with the port and the client's number; returns the answer.
            Raises NotServed.

    Returns:
        The numbers of the clients that were answered.
    """
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM, EXAMPLES / name, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    answered: list[int] = []
    refused: list[int] = []
    lock = threading.Lock()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", line)
        assert match, (line, process.communicate(timeout=LONG))
        port = int(match[1])

        def client(number: int) -> None:
            try:
                answer = ask(port, number)
            except NotServed:
                with lock:
                    refused.append(number)
                return
            if answer != expected(number):
                others = [other for other in range(CLIENTS) if expected(other) == answer]
                raise AssertionError(f"client {number} got {answer!r}, which is the answer of {others}")
            with lock:
                answered.append(number)

        clients = start_threads(*(lambda number=number: client(number) for number in range(CLIENTS)))  # type: ignore[misc]
        wanted = CLIENTS if stop_after is None else stop_after
        wait_until(lambda: len(answered) >= wanted or bool(clients.errors))
        if clients.errors:
            raise clients.errors[0]
        process.send_signal(signal.SIGTERM)
        clients.join()
        out, err = process.communicate(timeout=LONG)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert (process.returncode, err) == (0, ""), (process.returncode, out, err)
    said, left = out.splitlines()
    assert said == f"answered {len(answered)}"  # whatever the server has begun has reached its client
    assert left == "left"
    assert len(answered) + len(refused) == CLIENTS
    return answered
