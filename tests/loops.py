"""Event loops for tests: the same test runs under asyncio and under trio, by way of anyio."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

BACKENDS = ("asyncio", "trio")


def run_loop(backend: str, main: Callable[[], Awaitable[Any]]) -> Any:
    """Runs an async function on a new loop of this thread."""
    return anyio.run(main, backend=backend)


async def together(*functions: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Runs async functions as tasks of this loop; returns their results, raises the first error."""
    results: list[Any] = [None] * len(functions)

    async def run(index: int, function: Callable[[], Awaitable[Any]]) -> None:
        results[index] = await function()

    async with anyio.create_task_group() as group:
        for index, function in enumerate(functions):
            group.start_soon(run, index, function)
    return results


async def let_others_run(times: int = 5) -> None:
    """Lets every other task of this loop come to its next wait."""
    for _ in range(times):
        await anyio.lowlevel.checkpoint()


class Elsewhere:
    """A loop on a thread of its own, in which one async function runs; `join` gives its result or raises its error."""

    def __init__(self, backend: str, main: Callable[[], Awaitable[Any]]) -> None:
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(backend, main), daemon=True)
        self._thread.start()

    def _run(self, backend: str, main: Callable[[], Awaitable[Any]]) -> None:
        try:
            self._result = run_loop(backend, main)
        except BaseException as error:
            self._error = error

    def join(self) -> Any:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result
