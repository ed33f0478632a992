"""exponential: a ready `backoff`, with the "full jitter" of Marc Brooker, "Exponential Backoff And Jitter".

(AWS Architecture Blog, 2015: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.)

May import `arguments`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from .arguments import count, describe, finite_seconds

__all__ = ["ExponentialBackoff", "exponential"]


def exponential(first: float, cap: float, jitter: bool = True) -> ExponentialBackoff:
    """Makes a `backoff` for `WorkerPool`: delays that double from one retry to the next, up to a limit.

    The delay before retry n, from 1, is `min(cap, first * 2**(n - 1))` seconds; with `jitter`, a random number from 0
    to that. Operations that failed together, because a server was down for instance, are then not tried again together.
    The algorithm is "full jitter" of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    The random numbers come from the operating system: the delays do not depend on `random.seed`, draw nothing from the
    program's own generator, and differ in forked processes.

    Args:
        first: Seconds before the first retry.
        cap: The longest delay, in seconds; finite, and at least `first`.
        jitter: Whether the delay is a random number, uniformly distributed from 0 to the full delay.

    Returns:
        A function of the number of failed tries that returns the delay in seconds. It may be called from any thread,
        and be copied and pickled; its `repr` shows the arguments.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: `first` or `cap` is negative, infinite or NaN, or `cap` is less than `first`.

    >>> backoff = exponential(0.5, 30, jitter=False)
    >>> [backoff(tries) for tries in (1, 2, 3, 7, 10**6)]
    [0.5, 1.0, 2.0, 30.0, 30.0]
    >>> 0 <= exponential(0.5, 30)(3) <= 2
    True
    """
    least = finite_seconds("first", first)
    most = finite_seconds("cap", cap)
    if most < least:
        raise ValueError(f"cap must be at least first, which is {describe(first)}; got {describe(cap)}")
    if not isinstance(jitter, bool):
        raise TypeError(f"jitter must be True or False, not {describe(jitter)}")
    return ExponentialBackoff(least, most, jitter)


@dataclass(frozen=True, slots=True, repr=False)
class ExponentialBackoff:
    """What `exponential` returns: its arguments, checked. It never changes, so threads may share it."""

    first: float
    cap: float
    jitter: bool

    def __call__(self, tries: int) -> float:
        number = count("tries", tries, 1)
        try:
            delay = min(self.cap, math.ldexp(self.first, number - 1))
        except OverflowError:  # more than a float holds, so more than the cap
            delay = self.cap
        return delay * _random() if self.jitter else delay

    def __repr__(self) -> str:
        return f"exponential({self.first}, {self.cap}, jitter={self.jitter})"

    def __reduce__(self) -> tuple[Any, ...]:
        return exponential, (self.first, self.cap, self.jitter)


def _random() -> float:
    """A random number from 0 to 1, without 1, as `random.SystemRandom().random()` makes it.

    Not of `random`, whose import takes longer than that of ringmill's own Python modules.
    """
    return (int.from_bytes(os.urandom(7), "big") >> 3) * 2.0**-53
