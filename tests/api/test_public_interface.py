"""Every public name has a docstring in one form, and a signature that agrees with it."""

from __future__ import annotations

import enum
import inspect
import re
import types
from collections.abc import Iterator
from typing import Any

import pytest

import ringmill

#: Special methods that users call by a syntax, and that ringmill gives a meaning of its own.
#: (Not __bool__: Cython has no docstring for that slot.)
SYNTAX = {"__iter__", "__next__", "__aiter__", "__anext__", "__await__", "__len__", "__contains__", "__enter__",
          "__exit__", "__aenter__", "__aexit__"}  # fmt: skip
SECTIONS = ("Args", "Returns", "Raises", "Attributes")
CLASSES = [each for name in ringmill.__all__ if isinstance(each := getattr(ringmill, name), type)]
FUNCTIONS = [each for name in ringmill.__all__ if inspect.isfunction(each := getattr(ringmill, name))]


def is_own(owner: type) -> bool:
    return owner.__module__.partition(".")[0] == "ringmill"


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public attributes that ringmill's own classes define, by name, each with the object in the class's dict."""
    seen = set()
    for owner in cls.__mro__:
        if not is_own(owner):
            continue
        for name, value in vars(owner).items():
            if name not in seen and (not name.startswith("_") or name in SYNTAX):
                seen.add(name)
                yield name, value


def is_property(value: object) -> bool:
    return isinstance(value, (property, types.GetSetDescriptorType))


def is_data(cls: type, value: object) -> bool:
    """Whether it is a plain attribute, a slot or a member of an enumeration, which have no docstrings of their own."""
    return isinstance(value, (types.MemberDescriptorType, enum.Enum)) or not (callable(value) or is_property(value))


CALLABLES = [
    pytest.param(cls, name, id=f"{cls.__name__}.{name}")
    for cls in CLASSES
    for name, value in members(cls)
    if callable(value) and not is_data(cls, value)
]
PROPERTIES = [
    pytest.param(value, id=f"{cls.__name__}.{name}")
    for cls in CLASSES
    for name, value in members(cls)
    if is_property(value)
]


def sections(text: str) -> dict[str, dict[str, str]]:
    """The entries of each section of a docstring, by name of the section."""
    found: dict[str, dict[str, str]] = {}
    current = entry = None
    for line in text.splitlines():
        head = re.fullmatch(r"(\w+):", line)
        if head and head[1] in SECTIONS:
            current = found.setdefault(head[1], {})
        elif line and not line.startswith(" "):
            current = None
        elif current is not None and (item := re.fullmatch(r" {4}([\w.*]+): (.+)", line)):
            entry = item[1]
            current[entry] = item[2]
        elif current is not None and line.startswith("     ") and entry in current:
            current[entry] += " " + line.strip()
    return found


def check_docstring(text: str | None, parameters: set[str] | None) -> None:
    """One line that says what it does; then, after an empty line, the rest; each of Args is a parameter."""
    assert text
    lines = text.splitlines()
    assert lines[0].strip().endswith("."), lines[0]
    assert len(lines) == 1 or not lines[1], lines[:2]
    given = sections(text)
    assert list(given) == [name for name in SECTIONS if name in given], "sections in another order"
    assert all(given[name] for name in given if name != "Returns"), "an empty section"
    if parameters is not None:
        assert set(given.get("Args", {})) <= parameters


@pytest.mark.parametrize("cls", CLASSES)
def test_class(cls: type) -> None:
    made_by_builtin = not any("__init__" in vars(owner) for owner in cls.__mro__ if is_own(owner))
    if issubclass(cls, enum.Enum) or (issubclass(cls, Exception) and made_by_builtin):
        check_docstring(inspect.getdoc(cls), None)  # it has no signature, as a built-in exception
    else:
        check_docstring(inspect.getdoc(cls), set(inspect.signature(cls).parameters))
    assert "(" not in (cls.__doc__ or "").partition("\n")[0].partition(" ")[0], "the signature is part of the text"


def check_function(function: Any) -> None:
    """Its docstring has the form, and documents every parameter."""
    parameters = inspect.signature(function).parameters
    check_docstring(inspect.getdoc(function), set(parameters))
    documented = sections(inspect.getdoc(function) or "").get("Args", {})
    assert sorted(documented) == sorted([each for each in parameters if each != "self"])


@pytest.mark.parametrize(("cls", "name"), CALLABLES)
def test_callable(cls: type, name: str) -> None:
    function = getattr(cls, name)
    if name.startswith("_"):
        check_docstring(inspect.getdoc(function), set(inspect.signature(function).parameters))
    else:
        check_function(function)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function(function: Any) -> None:
    check_function(function)


@pytest.mark.parametrize("value", PROPERTIES)
def test_property(value: property) -> None:
    check_docstring(inspect.getdoc(value), None)


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (ringmill.RingBuffer, "(capacity=Ellipsis, *, maxsize=Ellipsis)"),
        (ringmill.RingBuffer.put, "(self, /, item, block=True, timeout=None)"),
        (ringmill.RingBuffer.put_nowait, "(self, /, item)"),
        (ringmill.RingBuffer.aput, "(self, /, item)"),
        (ringmill.RingBuffer.get_many, "(self, /, max=None, timeout=None)"),
        (ringmill.SubscriptionRing, "()"),
        (ringmill.SubscriptionRing.do, "(self, /, fn)"),
        (ringmill.Operation.wait, "(self, /, timeout=None)"),
        (ringmill.Hub.signal, "(self, /, item, timeout=None)"),
        (ringmill.Hub.abroadcast, "(self, /, item)"),
        (ringmill.Subscription.get_many, "(self, /, max=None, timeout=None)"),
        (ringmill.Stream.get, "(self, /, timeout=None)"),
        (ringmill.WorkerPool.do, "(self, /, op, timeout=None)"),
        (ringmill.WorkerPool.ado, "(self, /, op)"),
        (ringmill.WorkerPool.execute, "(self, /, ops)"),
    ],
)
def test_compiled_signature(function: Any, signature: str) -> None:
    assert str(inspect.signature(function)) == signature


def test_the_check_of_docstrings_finds_errors() -> None:
    good = "Puts an item.\n\nArgs:\n    item: Any object,\n        or none.\n\nRaises:\n    Closed: It is closed."
    check_docstring(good, {"item"})
    assert sections(good) == {"Args": {"item": "Any object, or none."}, "Raises": {"Closed": "It is closed."}}
    for bad in (None, "No full stop", "One line.\nAnother.", good.replace("item:", "other:"),
                "Puts.\n\nRaises:\n    Closed: It is.\n\nArgs:\n    item: One."):  # fmt: skip
        with pytest.raises(AssertionError):
            check_docstring(bad, {"item"})
