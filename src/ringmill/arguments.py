"""Checks of arguments, and how messages quote a user's objects, for Python code and the compiled core.

Imports nothing of ringmill.
"""

from __future__ import annotations

import math
import operator
import threading
from typing import Any

__all__ = ["count", "describe", "finite_seconds", "seconds"]

#: How many characters of a `repr` a message quotes.
QUOTED = 200


def describe(value: object) -> str:
    """Returns at most 200 characters of an object's `repr`, for a message; if the `repr` raises, its type and address.

    Raises only a KeyboardInterrupt on the main thread, which is meant for the program. Runs user code, so no lock may
    be held.
    """
    try:
        text = repr(value)
    except KeyboardInterrupt:  # caught by its type: an exception's class may have a `__class__` that raises
        if threading.get_ident() == threading.main_thread().ident:
            raise
        text = object.__repr__(value)
    except BaseException:
        text = object.__repr__(value)
    # `text` may be of a subclass of str with methods of its own, so str's methods are called.
    if str.__len__(text) <= QUOTED:
        return str.__str__(text)
    return str.__getitem__(text, slice(QUOTED - 3)) + "..."


def count(name: str, value: Any, least: int | None, most: int | None = None, *, optional: bool = False) -> int:
    """Returns an argument as an integer.

    Args:
        name: The argument's name, for messages.
        value: Anything with `__index__`, except bool.
        least: The smallest value that is allowed; None: no limit.
        most: The largest value that is allowed, if `least` is given; None: no limit.
        optional: Whether the message should mention that None is allowed too.

    Raises:
        TypeError: The value is not an integer.
        ValueError: The value is out of range.
    """
    number = None
    problem = None
    try:
        if hasattr(type(value), "__index__") and not _is_bool(value):
            number = operator.index(value)
    except (MemoryError, RecursionError):  # the argument is not at fault
        raise
    except Exception as error:  # for example a numpy array that is not a scalar, or code of the user
        problem = error
    if number is None:
        raise TypeError(
            f"{name} must be an integer{' or None' if optional else ''}, not {describe(value)}"
        ) from problem
    if least is not None and (number < least or (most is not None and number > most)):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {allowed}, got {describe(value)}")
    return int(number)


def seconds(name: str, value: Any, *, optional: bool = False, negative: bool = False) -> float:
    """Returns an argument as a number of seconds. Infinity means no limit.

    Args:
        name: The argument's name, for messages.
        value: Any int, float, Decimal, Fraction or real number of numpy, except bool. An integer too large for a float
            counts as infinity.
        optional: Whether the message should mention that None is allowed too.
        negative: Whether a negative number is allowed.

    Raises:
        TypeError: The value is not a real number.
        ValueError: The value is NaN, or negative.
    """
    number = None
    problem: Exception | None = None
    wrong: type[Exception] = TypeError
    try:
        if _is_real(value):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf if value > 0 else -math.inf
    except (MemoryError, RecursionError):  # the argument is not at fault
        raise
    except ValueError as error:  # for example a Decimal's signalling NaN
        problem = error
        wrong = ValueError
    except Exception as error:  # raised by the user's class
        problem = error
    if number is None and wrong is TypeError:
        raise TypeError(
            f"{name} must be a number of seconds{' or None' if optional else ''}, not {describe(value)}"
        ) from problem
    if number is None or math.isnan(number):
        raise ValueError(f"{name} must be a number of seconds, got {describe(value)}") from problem
    if number < 0 and not negative:
        raise ValueError(f"{name} must not be negative, got {describe(value)}")
    return number


def finite_seconds(name: str, value: Any) -> float:
    """Returns an argument as a number of seconds that must not be infinite, such as a delay, which has to end.

    Args:
        name: The argument's name, for messages.
        value: As for `seconds`.

    Raises:
        TypeError: The value is not a real number.
        ValueError: The value is NaN, negative or infinite.
    """
    number = seconds(name, value)
    if number == math.inf:
        raise ValueError(f"{name} must be finite, got {describe(value)}")
    return number


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or _kind(value) == "b"


def _is_real(value: object) -> bool:
    if isinstance(value, (bool, str, bytes, bytearray)):
        return False
    kind = _kind(value)
    if kind is not None:
        return kind in "iuf" and not getattr(value, "ndim", 0)
    return hasattr(type(value), "__float__") or hasattr(type(value), "__index__")


def _kind(value: object) -> str | None:
    """Returns the `kind` of a numpy scalar or array: "b", "i", "u", "f" or another one; None for other objects."""
    if isinstance(value, (int, float)):
        return None
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    return kind if isinstance(kind, str) and len(kind) == 1 else None
