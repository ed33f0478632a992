"""Sphinx: `python -m sphinx -W docs docs/_build/html`, where ringmill is installed with its docs extra."""

import ast
import importlib.util
import sys
from pathlib import Path

import ringmill

project = "ringmill"
author = "The ringmill authors"
copyright = "the ringmill authors"
release = version = ringmill.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
if importlib.util.find_spec("ringmill.futures") is None:
    exclude_patterns.append("api/futures.md")

default_role = "code"  # what docstrings put between single backticks
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"ringmill {release}"
html_static_path = ["static"]
html_css_files = ["ringmill.css"]


def setup(app):
    app.connect("autodoc-process-signature", add_types)
    return {"parallel_read_safe": True}


def add_types(app, what, name, obj, options, signature, returns):
    """The types of compiled methods are in the stubs only: takes them from there."""
    owner = getattr(obj, "__objclass__", None)
    if signature is None or owner is None or not owner.__module__.startswith("ringmill._core."):
        return None
    for node in ast.walk(stub(owner.__module__)):
        if isinstance(node, ast.ClassDef) and node.name == owner.__name__:
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and member.name == obj.__name__:
                    return spell(member)
    return None


def stub(module):
    path = Path(sys.modules[module].__file__)
    return ast.parse((path.parent / f"{module.rpartition('.')[2]}.pyi").read_text(encoding="utf-8"))


def spell(function):
    del function.args.args[0]  # self
    return f"({ast.unparse(function.args)})", ast.unparse(function.returns)
