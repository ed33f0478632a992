"""Fixtures and hooks of all tests: a watchdog that prints all stacks, and a seed that is printed."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.threads import wait_until

WATCHDOG_SECONDS = 120.0

# While a test runs, pytest captures file descriptor 2 and would swallow the dump of a process that ends.
real_stderr = pytest.StashKey[int]()


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that takes longer than this is a hang: dump all stacks and end the process."""
    marker = request.node.get_closest_marker("watchdog")
    seconds = marker.args[0] if marker else WATCHDOG_SECONDS
    faulthandler.dump_traceback_later(seconds, exit=True, file=request.config.stash[real_stderr])
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def seed() -> int:
    """A new seed each run, printed (pytest shows it with a failure); RINGMILL_SEED=N repeats a run."""
    value = int(os.environ.get("RINGMILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"RINGMILL_SEED={value}")
    return value


@pytest.fixture(params=[0.005, 1e-6], ids=["interval-default", "interval-1us"])
def switch_interval(request: pytest.FixtureRequest) -> Iterator[float]:
    """On a GIL build a tiny switch interval makes the threads interleave finely."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(request.param)
    yield request.param
    sys.setswitchinterval(before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--leaks", action="store_true", help="each test three times more: does memory grow? (leaks.py)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "models":
            item.add_marker("model")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--leaks"):
        from tests.tools.leaks import Leaks

        config.pluginmanager.register(Leaks())
        # Hypothesis asks the collector who holds its random generators, and it does not look among the frozen.
        config.addinivalue_line("filterwarnings", "ignore:It looks like .register_random")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background by a shell without job control: the scripts that are interrupted would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[real_stderr] = os.dup(2)
    config.addinivalue_line("markers", "watchdog(seconds): a limit of this test's own for the stack-dumping watchdog")
    config.addinivalue_line("markers", "stress: long concurrent runs; also run under ThreadSanitizer (CONTRIBUTING.md)")
    config.addinivalue_line("markers", "model: searches a model, which is plain Python: the same on every interpreter")


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    """The test ends its pools, and their threads go with them; one that draws a source may end a moment later."""
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)
