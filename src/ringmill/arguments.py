"""How arguments are checked, and how messages quote a user's objects: alike in Python and in the compiled core.

May import nothing of ringmill.
"""

from __future__ import annotations

import math
import operator
import threading
from typing import Any

__all__ = ["count", "describe", "seconds"]

#: How many characters of a `repr` a message quotes.
QUOTED = 200


def describe(value: object) -> str:
    """How a message quotes a user's object: its `repr`, at most 200 characters of it.

    Whatever that `repr` does, this returns: where it raises, the type and address are named instead. Only a
    KeyboardInterrupt on the main thread is raised, since it is meant for the program. Runs user code, so no lock may be
    held.
    """
    try:
        text = repr(value)
    except KeyboardInterrupt:  # caught by its type: an exception's class may have a `__class__` that raises
        if threading.get_ident() == threading.main_thread().ident:
            raise
        text = object.__repr__(value)
    except BaseException:
        text = object.__repr__(value)
    # A subclass of str may be returned, with methods of its own: str's are called.
    if str.__len__(text) <= QUOTED:
        return str.__str__(text)
    return str.__getitem__(text, slice(QUOTED - 3)) + "..."


def count(name: str, value: Any, least: int | None, most: int | None = None, *, optional: bool = False) -> int:
    """The integer that an argument gives: anything with `__index__`, but no bool.

    Args:
        name: The argument's, for the message.
        least: The least that is allowed; None is no limit.
        most: The most that is allowed, where `least` is given; None is no limit.
        optional: Whether None was allowed as well; only the message says so.
    """
    number = None
    problem = None
    try:
        if hasattr(type(value), "__index__") and not _is_bool(value):
            number = operator.index(value)
    except (MemoryError, RecursionError):  # no fault of the argument's
        raise
    except Exception as error:  # of an array of numpy's that is no scalar, or of what the user has written
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
    """The seconds that an argument gives: any int, float, Decimal, Fraction or real number of numpy's, but no bool.

    Infinity, and an integer too large for a float, is infinity: no limit.

    Args:
        name: The argument's, for the message.
        optional: Whether None was allowed as well; only the message says so.
        negative: Whether a negative number is allowed.
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
    except (MemoryError, RecursionError):  # no fault of the argument's
        raise
    except ValueError as error:  # a Decimal's signalling NaN, for instance
        problem = error
        wrong = ValueError
    except Exception as error:  # of what the user has written
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
    """What numpy calls the kind of its scalars and arrays: "b", "i", "u", "f" and others; None for other objects."""
    if isinstance(value, (int, float)):
        return None
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    return kind if isinstance(kind, str) and len(kind) == 1 else None
