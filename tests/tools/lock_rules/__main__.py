"""The Python parts of lock_rules.sh: the list of the interpreter's functions, and readable reports.

`python -m tests.tools.lock_rules flags DIRECTORY` writes python_calls.hpp into the directory, for the interpreter
that runs it, and prints the flags for the compiler. `python -m tests.tools.lock_rules report FILE` prints what
lock_rules.hpp has written to the file, with the lines of the .pyx files, and exits with 1 if there is a violation.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent

# What a thread may call while it holds an internal lock, and why. Everything else in Python's headers is reported.
ALLOWED = {
    "PyErr_Occurred": "reads the thread's own state",
    "PyThread_get_thread_ident": "reads the thread's own state",
    "PyThreadState_Get": "reads the thread's own state",
    "PyThreadState_GetUnchecked": "reads the thread's own state",
    "_PyThreadState_UncheckedGet": "reads the thread's own state",
    "Py_IsInitialized": "reads a flag",
    "Py_IsFinalizing": "reads a flag",
    "PyType_IsSubtype": "reads a type's bases, which it keeps while it lives; runs nothing, drops nothing",
}

FUNCTION = re.compile(r"PyAPI_FUNC\s*\(.*?\)+\s*(_?Py\w+)\s*\(", re.DOTALL)


def functions() -> list[str]:
    """The functions that Python's headers declare, of the version that runs this."""
    include = Path(sysconfig.get_path("include"))
    found = set()
    for header in [*include.glob("*.h"), *include.glob("cpython/*.h")]:
        found.update(FUNCTION.findall(header.read_text(encoding="utf-8", errors="replace")))
    if len(found) < 500:
        sys.exit(f"lock_rules: {include} declares {len(found)} functions; are its headers installed?")
    return sorted(found - set(ALLOWED))


def write_header(directory: Path) -> None:
    # A name that is a macro already ends in a function that has its own line here.
    lines = [
        f'#ifndef {name}\n#define {name}(...) (::ringmill_lock_rules::called("{name}"), {name}(__VA_ARGS__))\n#endif\n'
        for name in functions()
    ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "python_calls.hpp").write_text("".join(lines), encoding="utf-8")


def flags(directory: Path) -> list[str]:
    """The flags for g++; `directory` is the one that write_header was given."""
    frames = ["-O1", "-g", "-fno-omit-frame-pointer", "-Wno-frame-address"]
    return [*frames, f"-I{directory}", "-include", str(HERE / "lock_rules.hpp")]


# ---------------------------------------------------------------------------------------------------------------------
# reports


def plain(name: str) -> str:
    """The name in the .pyx file: ReadyQueue.post of
    __pyx_f_8ringmill_5_core_7waiting_10event_loop_10ReadyQueue_post.
    """
    name = name.partition("(")[0]
    found = re.match(r"__pyx_[a-z]+_(?=\d)", name)
    if not found:
        return re.sub(r"^__pyx_", "", name)
    parts = []
    rest = name[found.end() :]
    while number := re.match(r"\d+", rest):
        end = number.end() + int(number[0])
        if rest[end : end + 1] not in ("", "_"):
            break  # a method's own number, not the length of a name
        parts.append(rest[number.end() : end])
        rest = rest[end + 1 :]
    if parts[:2] == ["ringmill", "_core"]:
        del parts[:4]
    method = rest.lstrip("0123456789")
    return ".".join([*parts, method] if method else parts)


class Place(NamedTuple):
    """A statement of a .pyx file."""

    function: str
    line: str  # FILE:LINE
    statement: str  # empty where it is code that Cython adds


@cache
def source_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


@cache
def place_of(path: str, line: int) -> Place | None:
    """The statement that a line of generated code belongs to, by the comment that Cython writes before each statement.

    None if the function is not one of a .pyx file. Its name is read from the source, because addr2line names the outer
    function where one is inlined.
    """
    lines = source_lines(path)
    statement = ""
    at = f"{Path(path).name}:{line}"
    for k in range(min(line, len(lines)) - 1, -1, -1):
        if not statement and (found := re.match(r'\s*/\* "([^"]+)":(\d+)$', lines[k])):
            for text in lines[k + 1 : k + 12]:
                if "# <<<<<<<" in text:
                    at = f"{found[1]}:{found[2]}"
                    statement = text.partition("*")[2].partition("# <<<<<<<")[0].strip()
                    break
        elif found := re.match(r"(?:static|extern|PyMODINIT_FUNC)\b[^;=]*?\b(\w+)\s*\([^;]*$", lines[k]):
            return Place(plain(found[1]), at, statement) if found[1].startswith("__pyx_") else None
    return None


def inlined(addresses: Iterable[tuple[str, str]]) -> dict[tuple[str, str], list[tuple[str, int]]]:
    """The lines of generated code of each (module, offset): (file, line), of inlined functions first."""
    of_module = defaultdict(set)
    for module, offset in addresses:
        of_module[module].add(offset)
    found = {}
    for module, offsets in of_module.items():
        asked = sorted(offsets)
        # One byte back: a return address may belong to the next statement already.
        done = subprocess.run(
            ["addr2line", "-i", "-a", "-e", module, *(hex(int(offset, 16) - 1) for offset in asked)],
            capture_output=True,
            text=True,
            check=True,
        )
        chains: list[list[tuple[str, int]]] = []
        for text in done.stdout.splitlines():
            if text.startswith("0x"):
                chains.append([])
            else:
                path, _, number = text.partition(" (")[0].rpartition(":")
                chains[-1].append((path, int(number) if number.isdigit() else 0))
        found.update({(module, offset): chain for offset, chain in zip(asked, chains, strict=True)})
    return found


@cache
def is_checked(module: str) -> bool:
    """Whether a file was compiled with lock_rules.hpp."""
    try:
        return b"ringmill_lock_rules" in Path(module).read_bytes()
    except OSError:
        return False


Address = tuple[str, str, str]  # module, offset, symbol


def addresses(field: str) -> list[Address]:
    return [(*one.split("|"), "", "", "")[:3] for one in field.split(";")]


def parse(path: Path) -> Iterator[tuple[str, str, list[Address], list[Address]]]:
    # see report() in lock_rules.hpp
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        what, subject, _, _, acquired_at, stack = text.split("\t")
        yield what, subject, addresses(acquired_at), addresses(stack)


def report(path: Path) -> int:
    """Prints each statement of a .pyx file once, with the violations there; returns the number of statements."""
    records = list(parse(path)) if path.exists() else []
    known = inlined({(m, o) for _, _, locks, stack in records for m, o, _ in [*locks, *stack] if is_checked(m)})

    def places(frames: list[Address]) -> list[Place]:
        found = []
        for module, offset, _ in frames:
            found += [place_of(*line) for line in known.get((module, offset), ()) if line[0].endswith(".cpp")]
        # the functions that Cython adds to modules count for the statement that calls them
        return [place for place in found if place] or [Place("?", "?", "")]

    seen: dict[Place, tuple[set[str], set[str], set[str]]] = defaultdict(lambda: (set(), set(), set()))
    for what, subject, locks, stack in records:
        place, *callers = places(stack)
        actions, acquired, called = seen[place]
        actions.add(f"{what} of {subject}" if subject else what)
        acquired.add(next((at.line for at in places(locks) if at.function not in ("acquire", "_lock")), "?"))
        called.update([at.line for at in callers if at.statement][:1])
    for place, (actions, acquired, called) in sorted(seen.items(), key=lambda one: natural(one[0].line)):
        print(f"{place.line}  {place.function}")
        print(f"    {place.statement or '(code that Cython adds)'}")
        print(f"    {', '.join(sorted(actions))}")
        print(f"    lock acquired at {', '.join(sorted(acquired))}")
        if called:
            print(f"    called at {', '.join(sorted(called))}")
    return len(seen)


def natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def main() -> int:
    match sys.argv[1:]:
        case ["flags", directory]:
            write_header(Path(directory))
            print(*flags(Path(directory)))
        case ["report", path]:
            count = report(Path(path))
            print(f"{count} statements break the rules of internal locks")
            return 1 if count else 0
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
