"""What threads are doing: their stacks, as text, for the log.

With a GIL the frames of a running thread can be read: each step of that is whole. On a free-threaded build they cannot. The
thread goes on while its frames are read, and leaves them; CPython guards neither `f_back` nor `f_lineno`, and following them
crashes. There `faulthandler.dump_traceback` is used, which stops all threads while it writes. It does so from 3.13.2 on (see
CPython's issue 128400); before, no stack is taken.

Imports nothing of ringmill.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable

__all__ = ["stacks_of"]

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # also where the GIL has been enabled again
STOPS_ALL = sys.version_info >= (3, 13, 2)  # whether faulthandler does, while it writes

HEAD = re.compile(r"^(?:Current t|T)hread 0x([0-9a-fA-F]+)\b.*$", re.MULTILINE)


def stacks_of(idents: Iterable[int]) -> dict[int, str]:
    """The stack of each of these threads, the innermost call last, without those that have none or that it cannot have."""
    wanted = set(idents)
    if not FREE_THREADED:
        frames = sys._current_frames()
        return {ident: "".join(traceback.format_stack(frames[ident])) for ident in wanted if ident in frames}
    if not STOPS_ALL or not wanted:
        return {}
    try:
        return parse(_dump(), wanted)
    except (OSError, RuntimeError, ValueError):  # no file can be made here
        return {}


def _dump() -> str:
    """What faulthandler writes of all threads, of which it takes a hundred at most."""
    import faulthandler
    import tempfile

    with tempfile.TemporaryFile() as file:  # no pipe, which would be full before it is read
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode("utf-8", "backslashreplace")


def parse(dump: str, wanted: set[int]) -> dict[int, str]:
    """The stacks of the wanted threads, from what faulthandler writes: the innermost call first."""
    stacks = {}
    heads = list(HEAD.finditer(dump))
    for head, end in zip(heads, [following.start() for following in heads[1:]] + [len(dump)], strict=True):
        ident = int(head[1], 16)
        if ident in wanted:
            lines = [line for line in dump[head.end() : end].splitlines() if line.strip()]
            stacks[ident] = "".join([f"{line}\n" for line in reversed(lines)])
    return stacks
