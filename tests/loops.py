"""Event loops for tests: the same test runs under asyncio and under trio, by way of anyio."""

from __future__ import annotations

import asyncio
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
        self.thread = threading.Thread(target=self._run, args=(backend, main), daemon=True)
        self.thread.start()

    def _run(self, backend: str, main: Callable[[], Awaitable[Any]]) -> None:
        try:
            self._result = run_loop(backend, main)
        except BaseException as error:
            self._error = error

    def join(self) -> Any:
        self.thread.join()
        if self._error is not None:
            raise self._error
        return self._result


class StoppedLoop:
    """An asyncio loop whose tasks have come to their wait, and which then does not run, until `go_on` runs it again."""

    def __init__(self, *functions: Callable[[], Awaitable[Any]]) -> None:
        self.loop = asyncio.new_event_loop()
        self.tasks = [self.loop.create_task(_call(function)) for function in functions]
        self.loop.run_until_complete(let_others_run(10))

    def go_on(self) -> list[Any]:
        """Runs it until the tasks have ended, and closes it; returns their results, raises the first error."""
        try:
            return list(self.loop.run_until_complete(self._gather()))
        finally:
            self.loop.close()

    def end(self) -> None:
        """Cancels what waits, and closes the loop."""
        for task in self.tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.wait(self.tasks))
        self.loop.close()

    async def _gather(self) -> list[Any]:
        return await asyncio.gather(*self.tasks)


class BlockedLoop:
    """A loop on a thread of its own whose tasks have come to their wait, and which is then blocked in a call."""

    def __init__(self, backend: str, *functions: Callable[[], Awaitable[Any]]) -> None:
        self._release = threading.Event()
        self._cancel = False
        blocked = threading.Event()

        async def main() -> list[Any]:
            results: list[Any] = [None] * len(functions)

            async def run(index: int) -> None:
                results[index] = await functions[index]()

            async with anyio.create_task_group() as group:
                for index in range(len(functions)):
                    group.start_soon(run, index)
                await let_others_run(10)
                blocked.set()
                self._release.wait()
                if self._cancel:
                    group.cancel_scope.cancel()
            return results

        self._elsewhere = Elsewhere(backend, main)
        blocked.wait()

    def go_on(self) -> list[Any]:
        """Lets it run until the tasks have ended; returns their results, raises the first error."""
        self._release.set()
        return list(self._elsewhere.join())

    def end(self) -> None:
        """Cancels what waits, and ends the loop."""
        self._cancel = True
        self.go_on()


async def _call(function: Callable[[], Awaitable[Any]]) -> Any:
    return await function()


def make_idle_loop(kind: str, *functions: Callable[[], Awaitable[Any]]) -> StoppedLoop | BlockedLoop:
    """A loop that does not go on: "stopped", or that of a backend, blocked in a call."""
    return StoppedLoop(*functions) if kind == "stopped" else BlockedLoop(kind, *functions)
