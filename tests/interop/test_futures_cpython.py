"""CPython's own tests of ThreadPoolExecutor and Future, as they are installed with the interpreter, of PoolExecutor.

Each of its test classes for threads runs as it is, with PoolExecutor where ThreadPoolExecutor is, also in the scripts
that it starts. What cannot be run is in LEFT_OUT. Skipped where the interpreter comes without its tests.
"""

from __future__ import annotations

import importlib
import logging
import types
import unittest
from concurrent import futures
from typing import Any
from unittest import mock

import pytest

from ringmill import PoolExecutor
from ringmill.executor_calls import ExecutorState, PoolFuture, SubmittedCall

#: Names of tests, and why each is left out.
LEFT_OUT = {
    "test_exception_with_success": "notifies Future._condition, which ours does not have: it has only a lock there",
}

PACKAGE = "test.test_concurrent_futures"


def suites() -> list[types.ModuleType]:
    """The modules with tests of threads: a package from CPython 3.12 on, one module before."""
    package = importlib.import_module(PACKAGE)
    if not hasattr(package, "__path__"):
        return [package]
    names = ["test_as_completed", "test_future", "test_init", "test_shutdown", "test_thread_pool", "test_wait"]
    return [importlib.import_module(f"{PACKAGE}.{name}") for name in names]


class Standard:
    """Stands for the module `concurrent.futures`, with our executor in ThreadPoolExecutor's place."""

    ThreadPoolExecutor = PoolExecutor

    def __getattr__(self, name: str) -> Any:
        return getattr(futures, name)


class Future(PoolFuture[Any]):
    """Made without an executor, as the tests of Future make theirs."""

    def __init__(self) -> None:
        super().__init__(SubmittedCall(ExecutorState(None, ()), int, (), {}))


def create_future(state: str = "PENDING", exception: BaseException | None = None, result: Any = None) -> Future:
    future = Future()
    future._state, future._exception, future._result = state, exception, result
    return future


FUTURES = {
    "Future": Future,
    "create_future": create_future,
    "PENDING_FUTURE": create_future("PENDING"),
    "RUNNING_FUTURE": create_future("RUNNING"),
    "CANCELLED_FUTURE": create_future("CANCELLED"),
    "CANCELLED_AND_NOTIFIED_FUTURE": create_future("CANCELLED_AND_NOTIFIED"),
    "EXCEPTION_FUTURE": create_future("FINISHED", OSError()),
    "SUCCESSFUL_FUTURE": create_future("FINISHED", None, 42),
}


def ours(suite: types.ModuleType, test: type[unittest.TestCase]) -> type[unittest.TestCase]:
    """The test class with PoolExecutor and our futures wherever it names those of the standard library."""
    run_script = getattr(suite, "assert_python_ok", None)

    def assert_python_ok(*args: str, **kwargs: Any) -> Any:
        assert run_script is not None
        assert any("from concurrent.futures import" in arg for arg in args)
        adapted = [
            arg.replace("from concurrent.futures import", "from ringmill import").replace(
                "import ThreadPoolExecutor", "import PoolExecutor as ThreadPoolExecutor"
            )
            for arg in args
        ]
        return run_script(*adapted, **kwargs)

    def set_up(self: unittest.TestCase) -> None:
        for name, value in {**FUTURES, "futures": Standard(), "assert_python_ok": assert_python_ok}.items():
            if hasattr(suite, name):
                patch = mock.patch.object(suite, name, value)
                patch.start()
                self.addCleanup(patch.stop)
        assert logging.lastResort is not None  # which they look for on stderr, and which pytest's handlers displace
        logger = logging.getLogger("concurrent.futures")
        logger.addHandler(logging.lastResort)
        self.addCleanup(logger.removeHandler, logging.lastResort)
        test.setUp(self)

    left_out = {
        name: unittest.skip(reason)(lambda self: None) for name, reason in LEFT_OUT.items() if hasattr(test, name)
    }
    return type(
        test.__name__, (test,),
        {"executor_type": PoolExecutor, "setUp": set_up, "__module__": __name__, "__doc__": test.__doc__, **left_out},
    )


try:
    found = suites()
except ImportError as error:
    pytest.skip(f"this interpreter comes without {PACKAGE}: {error}", allow_module_level=True)

for suite in found:
    for name, kind in list(vars(suite).items()):
        is_test = isinstance(kind, type) and issubclass(kind, unittest.TestCase)
        if is_test and (name.startswith("ThreadPool") or name == "FutureTests"):
            globals()[name] = ours(suite, kind)


def test_that_all_of_them_were_found() -> None:
    """A suite that is laid out in another way must not pass unseen."""
    kinds = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, unittest.TestCase)]
    names = {kind.__name__ for kind in kinds}
    assert {
        "ThreadPoolAsCompletedTest", "ThreadPoolExecutorTest", "ThreadPoolFailingInitializerTest",
        "ThreadPoolInitializerTest", "ThreadPoolShutdownTest", "ThreadPoolWaitTests", "FutureTests",
    } <= names
    tests = {name for kind in kinds for name in dir(kind) if name.startswith("test")}
    assert len(tests) > 60
    assert set(LEFT_OUT) <= tests
