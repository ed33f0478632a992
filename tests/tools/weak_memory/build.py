"""Compiles the machine, and for it the core: a private copy of its sources, in which two lines are changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
CORE = Path("src/ringmill/_core")
MACHINE = [HERE / "memory.cc", HERE / "threads.cc"]
OWN_MODULES = ["fixture", "ring_calls", "pool_calls", "hub_calls", "execution"]

# Changes in the copy: file, text (found exactly once), replacement.
CHANGED = [
    # slots have stamps, which a GIL build does without
    (CORE / "ring/ring.pxd", "    #ifdef Py_GIL_DISABLED\n", "    #if 1\n"),
    # a slot's item is watched for races
    (CORE / "ring/ring.pxd", "        PyObject* item;\n", "        std::plain_variable<PyObject*> item;\n"),
    # locked instructions, which a GIL build does without
    (CORE / "platform/gil_atomics.pxd", "    #ifdef Py_GIL_DISABLED\n", "    #if 1\n"),
]


class BuildError(Exception):
    """The core does not compile."""


def build(folder: Path, source: Path = ROOT, instead: dict[str, str] | None = None) -> None:
    """Builds the core of `source` in `folder`; a second time, only what has changed since.

    `instead`: other texts of the core's files, by their paths within the core.
    """
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy2(source / name, folder / name)
    texts = {Path("src/ringmill/__init__.py"): ""}  # empty: only the core's modules are wanted
    needed = [source / "src/ringmill" / name for name in ("arguments.py", "errors.py", "standard_executor.py")]
    texts |= {path.relative_to(source): path.read_text() for path in [*needed, *_sources(source / CORE)]}
    # A repr of the core reads atomics, where the machine switches to another fiber: no Python frame may be active then.
    texts[Path("src/ringmill/arguments.py")] += "\n\ndescribe = repr\n"
    texts |= {CORE / path.name: path.read_text() for path in _sources(HERE) if path.suffix != ".py"}
    texts |= {CORE / name: text for name, text in (instead or {}).items()}
    for name, old, new in CHANGED:
        if texts[name].count(old) != 1:
            raise BuildError(f"{name}: {old.strip()!r} occurs {texts[name].count(old)} times")
        texts[name] = texts[name].replace(old, new)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
    setup = (folder / "setup.py").read_text()
    added = "".join(f'    "{name}",\n' for name in OWN_MODULES)
    (folder / "setup.py").write_text(setup.replace("MODULES = [\n", f"MODULES = [\n{added}", 1))
    compile_shared(folder / "libmachine.so", *MACHINE)
    ours = f"-include {HERE / 'machine.hpp'} -O1 -g0"
    _run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], folder, RINGMILL_CXXFLAGS=ours, CFLAGS="-g0")


def _sources(folder: Path) -> list[Path]:
    return [path for pattern in ("*.pyx", "*.pxd", "__init__.py") for path in folder.rglob(pattern)]


def compile_shared(output: Path, *sources: Path) -> None:
    """A shared library, of C++."""
    compiler = os.environ.get("CXX", "g++").split()
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    _run([*compiler, *flags, f"-I{sysconfig.get_path('include')}", "-o", str(output), *map(str, sources)], HERE)


def _run(command: list[str], folder: Path, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-5000:]}")
