"""Sphinx: `python -m sphinx -W docs docs/_build/html`, where ringmill is installed with its docs extra.

Nothing is fetched: the names of Python's documentation that the pages link to are listed in python.inv, a plain text
inventory. A name that it lacks is shown without a link.
"""

import ast
import sys
from pathlib import Path

from sphinx.ext.napoleon import Config, GoogleDocstring

import ringmill

project = "ringmill"
author = "The ringmill authors"
copyright = "the ringmill authors"
release = version = ringmill.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

default_role = "py:obj"  # what docstrings put between single backticks: a link where it names something
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
python_maximum_signature_line_length = 80
intersphinx_mapping = {"python": ("https://docs.python.org/3/", "python.inv")}

html_theme = "furo"
html_title = f"ringmill {release}"
html_static_path = ["static"]
html_css_files = ["ringmill.css"]

PRIVATE_BASES = ("OperationBase", "PoolBase", "HubBase", "SubscriptionBase")


def setup(app):
    app.connect("autodoc-process-signature", add_signature)
    app.connect("autodoc-process-docstring", convert_sections)
    app.connect("autodoc-process-docstring", add_type)
    app.connect("autodoc-process-bases", hide_private_bases)
    return {"parallel_read_safe": True}


def add_signature(app, what, name, obj, options, signature, returns):
    """The types of compiled methods, which the methods themselves do not know."""
    function = declaration(name, obj) if what in ("method", "function") else None
    return None if function is None else spell(function)


def convert_sections(app, what, name, obj, options, lines):
    """Args, Returns, Raises. Not in the docstrings of properties: napoleon takes what precedes a colon for a type."""
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, Config(), app, what, name, obj, options).lines()


def add_type(app, what, name, obj, options, lines):
    """The type of a compiled property; and that a compiled method is a coroutine."""
    function = declaration(name, obj)
    if isinstance(function, ast.AsyncFunctionDef):
        lines[:0] = ["*Coroutine.*", ""]
    elif function is not None and function.returns is not None and what in ("attribute", "property"):
        lines += ["", f":type: {ast.unparse(function.returns)}", ""]


def hide_private_bases(app, name, obj, options, bases):
    """Names the public bases only."""
    bases[:] = [base for base in bases if getattr(base, "__name__", None) not in PRIVATE_BASES]


def declaration(name, obj):
    """Where the types of a compiled method or property are declared: in the public class, or in the core's stub."""
    owner = getattr(obj, "__objclass__", None)
    if owner is None or not owner.__module__.startswith("ringmill._core."):
        return None
    member = name.rpartition(".")[2]
    public = getattr(ringmill, name.split(".")[1])
    return find(Path(sys.modules[public.__module__].__file__), public.__name__, member) or find(
        Path(sys.modules[owner.__module__].__file__).parent / f"{owner.__module__.rpartition('.')[2]}.pyi",
        owner.__name__,
        member,
    )


def find(path, owner, member):
    """The function of that name in that class of the file; None where there is none, and in a compiled file."""
    if path.suffix not in (".py", ".pyi"):
        return None
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == owner:
            for function in ast.walk(node):
                if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and function.name == member:
                    return function
    return None


def spell(function):
    """Its arguments without `self`, and what it returns."""
    arguments = function.args
    (arguments.posonlyargs or arguments.args).pop(0)
    return f"({ast.unparse(arguments)})", None if function.returns is None else ast.unparse(function.returns)
