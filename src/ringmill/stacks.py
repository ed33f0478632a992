"""The stacks of other threads as text, for the log.

On a GIL build the frames of a running thread can be read, because each step of that is atomic. On a free-threaded build
they cannot: the thread goes on while its frames are read, and leaves them; CPython guards neither `f_back` nor
`f_lineno`, and following them crashes. There `faulthandler.dump_traceback` is used, which stops all threads while it
writes, from 3.13.2 on (CPython issue 128400); on older versions no stack is taken.

Imports nothing of ringmill.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable

__all__ = ["stacks_of"]

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # also if the GIL has been enabled at run time
STOPS_ALL = sys.version_info >= (3, 13, 2)  # whether faulthandler stops all threads while it writes

HEAD = re.compile(r"^(?:Current t|T)hread 0x([0-9a-fA-F]+)\b.*$", re.MULTILINE)


def stacks_of(idents: Iterable[int]) -> dict[int, str]:
    """Returns the stacks of these threads by thread identifier, the innermost call last.

    Threads that have ended, and those whose stack cannot be taken safely, are left out.
    """
    wanted = set(idents)
    if not FREE_THREADED:
        frames = sys._current_frames()
        return {ident: "".join(traceback.format_stack(frames[ident])) for ident in wanted if ident in frames}
    if not STOPS_ALL or not wanted:
        return {}
    try:
        return parse(_dump(), wanted)
    except (OSError, RuntimeError, ValueError):  # no file can be made
        return {}


def _dump() -> str:
    """Returns what faulthandler writes about all threads; it writes about a hundred of them at most."""
    import faulthandler
    import tempfile

    with tempfile.TemporaryFile() as file:  # not a pipe, which would be full before it is read
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode("utf-8", "backslashreplace")


def parse(dump: str, wanted: set[int]) -> dict[int, str]:
    """Returns the stacks of the wanted threads from faulthandler's output, which has the innermost call first."""
    stacks = {}
    heads = list(HEAD.finditer(dump))
    for head, end in zip(heads, [following.start() for following in heads[1:]] + [len(dump)], strict=True):
        ident = int(head[1], 16)
        if ident in wanted:
            lines = [line for line in dump[head.end() : end].splitlines() if line.strip()]
            stacks[ident] = "".join([f"{line}\n" for line in reversed(lines)])
    return stacks
