"""The test suites: where each comes from, which of its tests run, and what ringmill replaces there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Origin = Literal["sdist", "wheel", "cpython"]


@dataclass(frozen=True)
class Library:
    """One suite."""

    name: str
    tests: tuple[str, ...]  # files and folders, within the unpacked sdist, site-packages or the interpreter's library
    swap: str  # words of `swap/ringmill_swap.py`
    origin: Origin
    package: str = ""  # as requirements.txt names it; "": as `name`
    options: tuple[str, ...] = ()  # of pytest
    plugins: tuple[str, ...] = ()  # of pytest, by the names of their entry points
    quick: tuple[str, ...] = ()  # the tests for `--quick`; (): all

    @property
    def distribution(self) -> str:
        return self.package or self.name


LIBRARIES = [
    Library(
        "s3transfer", ("tests/unit", "tests/functional"), "executor", "sdist",
        quick=("tests/unit/test_futures.py", "tests/unit/test_tasks.py", "tests/functional/test_download.py"),
    ),
    Library(
        "asgiref", ("tests",), "executor", "sdist",
        plugins=("asyncio",),
    ),
    Library(
        "anyio", ("tests/test_to_thread.py", "tests/test_from_thread.py"), "executor queue", "sdist",
        plugins=("anyio", "pytest_mock"),
    ),
    Library(
        "tornado", ("tornado/test",), "executor", "wheel",
        options=("-o", "python_files=*_test.py"), plugins=("no:logging", "ringmill_tornado"),
        quick=tuple(f"tornado/test/{name}_test.py" for name in ("asyncio", "concurrent", "ioloop", "netutil", "wsgi")),
    ),
    Library(
        "dask", (
            "dask/tests/test_threaded.py", "dask/tests/test_local.py", "dask/tests/test_callbacks.py",
            "dask/tests/test_cache.py", "dask/tests/test_context.py", "dask/tests/test_delayed.py",
            "dask/tests/test_base.py", "dask/tests/test_system.py",
        ), "executor", "wheel",
    ),
    Library(
        "starlette", ("tests/test_concurrency.py", "tests/test_testclient.py"), "executor queue", "sdist",
        plugins=("anyio",),
    ),
    Library(
        "requests-futures", ("tests",), "executor", "sdist",
        plugins=("httpbin",),
    ),
    Library(
        "cheroot", tuple(
            f"cheroot/test/test_{name}.py" for name in ("conn", "core", "dispatch", "server", "wsgi")
        ), "executor queue", "wheel",
        plugins=("pytest_mock", "rerunfailures"),
        quick=("cheroot/test/test_server.py",),
    ),
    Library(
        "joblib", ("joblib/test/test_parallel.py", "joblib/test/test_config.py"), "joblib", "wheel",
        options=("-k", "(threading or sharedmem or hints) and not loky and not multiprocessing"),
    ),
    Library(
        "test_asyncio", tuple(
            f"test/test_asyncio/test_{name}.py"
            for name in ("events", "base_events", "threads", "futures", "runners")
        ), "executor", "cpython",
        quick=tuple(f"test/test_asyncio/test_{name}.py" for name in ("base_events", "threads", "futures", "runners")),
    ),
    Library(
        "test_logging", ("test/test_logging.py",), "queue", "cpython",
        options=("-k", "Queue or queue or ConfigDict"), plugins=("no:logging",),
    ),
    Library(
        "opentelemetry", ("tests",), "executor", "sdist", "opentelemetry-instrumentation-threading",
    ),
    Library(
        "opentelemetry-base", ("tests",), "names", "sdist", "opentelemetry-instrumentation-threading",
    ),
]

#: Libraries that would belong here.
LEFT_OUT = {
    "more-executors": "neither its sdists nor its wheels contain its tests",
}

#: Tests that differ by design: the name of the suite and of the test, and why.
EXPECTED: dict[tuple[str, str], str] = {}
