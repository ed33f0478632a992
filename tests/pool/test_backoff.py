"""exponential: the delays, their distribution, what the arguments may be, and a pool that uses it."""

from __future__ import annotations

import copy
import math
import os
import pickle
import random
import subprocess
import sys
import threading
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy
import pytest

import ringmill
from ringmill import Operation, Retry, Worker, WorkerPool, exponential
from tests.threads import run_threads

LONG = 30.0  # seconds; reached only by a test that fails


# The delays


def test_delays_double_from_the_first_up_to_the_cap() -> None:
    backoff = exponential(0.25, 3, jitter=False)
    assert [backoff(tries) for tries in range(1, 7)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]
    exact = exponential(0.1, 1e9, jitter=False)
    for tries in range(1, 30):
        assert exact(tries) == 0.1 * 2 ** (tries - 1)


@pytest.mark.parametrize("tries", [1023, 1024, 1025, 2000, 10**6, 2**31, 2**63, 2**64, 10**100])
@pytest.mark.parametrize("first", [5e-324, 0.1, 1.0, 30.0])
def test_many_tries_do_not_overflow(tries: int, first: float) -> None:
    exact = min(Fraction(30), Fraction(first) * 2 ** min(tries - 1, 5000))
    assert exponential(first, 30.0, jitter=False)(tries) == float(exact)
    assert 0 <= exponential(first, 30.0)(tries) < 30.0


def test_the_largest_float_is_a_cap() -> None:
    most = sys.float_info.max
    assert exponential(1, most, jitter=False)(10**6) == most
    assert 0 <= exponential(most, most)(10**6) < most


def test_no_delay_at_all() -> None:
    for jitter in (True, False):
        assert exponential(0, 0, jitter)(1) == exponential(0, 5, jitter)(10**6) == 0.0


def test_jitter_is_uniform_from_0_to_the_delay() -> None:
    """The largest distance from the uniform distribution (Kolmogorov-Smirnov): over 2.2 / sqrt(N) once in 10,000."""
    backoff, n = exponential(1.0, 5.0), 20_000
    for tries, full in ((1, 1.0), (3, 4.0), (9, 5.0)):
        drawn = sorted(backoff(tries) / full for _ in range(n))
        assert drawn[0] >= 0
        assert drawn[-1] < 1
        distance = max(max(abs(value - i / n), abs(value - (i + 1) / n)) for i, value in enumerate(drawn))
        assert distance < 3.0 / math.sqrt(n)
        assert len(set(drawn)) > n - 10


def test_the_extremes_of_the_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    backoff = exponential(1.0, 8.0)
    monkeypatch.setattr(os, "urandom", lambda size: b"\0" * size)
    assert backoff(3) == 0.0
    monkeypatch.setattr(os, "urandom", lambda size: b"\xff" * size)
    assert backoff(3) == math.nextafter(4.0, 0.0)


def test_the_program_s_own_random_numbers_are_left_alone() -> None:
    backoff = exponential(1, 8)
    random.seed(1)
    expected = random.random()
    random.seed(1)
    delays = [backoff(1) for _ in range(10)]
    assert random.random() == expected
    random.seed(1)
    assert [backoff(1) for _ in range(10)] != delays


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_processes_draw_other_numbers() -> None:
    """They would all come back to the server at the same moment."""
    code = """if True:
        import os
        from ringmill import exponential
        backoff = exponential(1, 8)
        backoff(1)
        pid = os.fork()
        print(*[backoff(1) for _ in range(5)], flush=True)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    parent, child = run.stdout.splitlines()
    assert not set(parent.split()) & set(child.split())


def test_threads_may_share_it() -> None:
    backoff = exponential(1.0, 64.0)
    barrier = threading.Barrier(4)

    def draw() -> list[float]:
        barrier.wait(LONG)
        return [backoff(tries) for tries in range(1, 8) for _ in range(500)]

    delays = run_threads(*[draw] * 4)
    drawn = [delay for each in delays for delay in each]
    assert len(set(drawn)) > len(drawn) - 10
    for each in delays:
        assert all(0 <= delay < 2.0**index for index in range(7) for delay in each[index * 500 : (index + 1) * 500])


# The object


def test_repr_shows_the_arguments() -> None:
    assert repr(exponential(0.5, 30)) == "exponential(0.5, 30.0, jitter=True)"
    assert repr(exponential(1, 2, jitter=False)) == "exponential(1.0, 2.0, jitter=False)"
    assert eval(repr(exponential(0.1, 2))) == exponential(0.1, 2)
    assert exponential(0.1, 2) != exponential(0.1, 2, jitter=False)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_can_be_copied_and_pickled(protocol: int) -> None:
    backoff = exponential(0.1, 30, jitter=False)
    for twin in (pickle.loads(pickle.dumps(backoff, protocol)), copy.copy(backoff), copy.deepcopy(backoff)):
        assert twin == backoff
        assert repr(twin) == repr(backoff)
        assert twin(3) == 0.4


def test_it_does_not_change() -> None:
    backoff: Any = exponential(0.1, 30)
    for name in ("first", "cap", "jitter", "other"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(backoff, name, 1.0)


# Arguments


@pytest.mark.parametrize(
    "number", [2, 2.0, Decimal(2), Fraction(2), numpy.float32(2), numpy.int8(2), numpy.float64(2), numpy.array(2.0)]
)
def test_seconds_may_be_any_real_number(number: Any) -> None:
    backoff = exponential(number, number, jitter=False)
    assert backoff(5) == 2.0
    assert type(backoff(1)) is float
    assert repr(backoff) == "exponential(2.0, 2.0, jitter=False)"


@pytest.mark.parametrize("name", ["first", "cap"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (True, TypeError),
        (numpy.True_, TypeError),
        ("1", TypeError),
        (None, TypeError),
        (1j, TypeError),
        (float("nan"), ValueError),
        (Decimal("NaN"), ValueError),
        (-0.1, ValueError),
        (-1, ValueError),
        (float("inf"), ValueError),
        (10**400, ValueError),
    ],
)
def test_bad_seconds(name: str, value: Any, error: type[Exception]) -> None:
    given: dict[str, Any] = {"first": 0.0, "cap": 1.0, name: value}
    with pytest.raises(error, match=f"^{name} must ") as caught:
        exponential(**given)
    assert repr(value)[:190] in str(caught.value)


def test_a_cap_below_the_first_delay() -> None:
    cap: Any = Decimal(1)
    with pytest.raises(ValueError, match=r"^cap must be at least first, which is 2; got Decimal\('1'\)$"):
        exponential(2, cap)


@pytest.mark.parametrize("jitter", [0, 1, None, "full", 0.5])
def test_bad_jitter(jitter: Any) -> None:
    with pytest.raises(TypeError, match=r"^jitter must be True or False, not ") as caught:
        exponential(1, 2, jitter)
    assert repr(jitter) in str(caught.value)


@pytest.mark.parametrize(
    ("tries", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)]
)
def test_bad_tries(tries: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^tries must be "):
        exponential(1, 2)(tries)
    assert exponential(1, 2, jitter=False)(numpy.int64(2)) == 2.0  # type: ignore[arg-type]


# In a pool


def test_a_pool_asks_it_for_the_delay_of_each_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    kind = type(exponential(0, 0))
    delay_of = kind.__call__

    def spy(self: Any, tries: int) -> float:
        asked.append(tries)
        return delay_of(self, tries)

    monkeypatch.setattr(kind, "__call__", spy)

    class Busy(Worker[Operation]):
        def process(self, op: Operation) -> None:
            raise Retry

    class Job(Operation): ...

    with WorkerPool(Busy, 2, backoff=exponential(0.0001, 0.001), max_tries=5) as pool:
        op = pool.do(Job())
        assert op.wait(LONG)
    assert (op.tries, asked) == (5, [1, 2, 3, 4])
    assert isinstance(op.error, ringmill.RetriesExhausted)
