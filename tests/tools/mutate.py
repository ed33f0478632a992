"""Breaks the core in one place at a time, and runs checks that should notice it.

`python tests/tools/mutate.py [--what orders|checks] [--tsan PYTHON | --weak] [--only TEXT] [--sample N] [--seed S]
[--list]` in an environment that has ringmill's test requirements, setuptools and Cython; `--copy FOLDER` keeps the
private copy and what is built there. A mutant is a memory order made relaxed, each use of one that is not, or one of
the re-checks below dropped. It is built in a private copy, only what changed, and runs the tests named below.

A mutant that compiles to the same machine code as the core itself cannot be seen by any run on this machine, and is
not run. With `--tsan` the tests run under that interpreter, of the same version, built with ThreadSanitizer, in an
environment with the same requirements: the sanitizer knows the orders as they are written, and what it reports of
ringmill kills the mutant too. With `--weak` it is compiled for the machine of tests/tools/weak_memory instead, which
orders nothing more than is written, and runs there.

Prints killed / made and the survivors, which docs/correctness.md explains.
"""

# ruff: noqa: E501  # the texts stand as they do in the sources

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script

from tests.tools.weak_memory import scenarios
from tests.tools.weak_memory.build import build
from tests.tools.weak_memory.runner import Scenario, run

ROOT = Path(__file__).parents[2]
CORE = Path("src/ringmill/_core")
ORDER = re.compile(r"memory_order_(?:seq_cst|acq_rel|acquire|release)\b")
IMPORT = "\nfrom libcpp.atomic cimport memory_order_relaxed\n"
CALL_IMPORT = "\nfrom ringmill._core.order_at cimport order_at\n"
ORDER_AT = """from libcpp.atomic cimport memory_order
cdef extern from *:
    memory_order order_at "ringmill_order"(int site, memory_order order) noexcept nogil
"""
LIMIT = 150.0  # seconds for the checks of one mutant; a hang is a kill
SLOWER = 4  # and so many times that under ThreadSanitizer

RING = [
    "tests/ring/test_ring_buffer.py",
    "tests/waiting/test_wait_queue.py",
    "tests/stress/test_linearizability.py",
    "tests/ring/test_ring_buffer_concurrent.py",
]
POOL = [
    "tests/pool/test_operation.py",
    "tests/pool/test_operation_reset.py",
    "tests/pool/test_retry.py",
    "tests/pool/test_stream.py",
    "tests/pool/test_wrap_ring.py",
    "tests/pool/test_source_list.py",
    "tests/pool/test_shutdown.py",
    "tests/pool/test_pool_end_races.py",
]
HUB = [
    "tests/hub/test_hub.py",
    "tests/hub/test_hub_turns.py",
    "tests/hub/test_hub_concurrent.py",
    "tests/hub/test_subscription_ring_concurrent.py",
]
CHECKS = {
    "ring/ring.pxd": RING,
    "waiting/wait_queue.pxd": RING,
    "waiting/wait_queue.pyx": RING,
    "ring/ring_buffer.pyx": RING,
    "hub/subscription.pxd": HUB,
    "hub/subscription.pyx": HUB,
    "hub/subscription_ring.pyx": HUB,
}  # others: POOL

PYTEST = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header"]
SOAK_RING = ["tests/stress/soak_ring.py", "10"]
SOAK_POOL = ["tests/stress/soak_pool.py", "10"]

# What the machine of tests/tools/weak_memory runs, and the scenarios that run it.
WEAK: dict[str, list[Scenario]] = {
    "ring/ring.pxd": scenarios.RING + scenarios.WAITING + scenarios.POOLS,
    "waiting/wait_queue.pxd": scenarios.LOCK + scenarios.WAITING,
    **dict.fromkeys(["waiting/wait_queue.pyx", "platform/spinning.pyx", "ring/ring_buffer.pyx"], scenarios.WAITING + scenarios.POOLS),
    **dict.fromkeys(["pool/operation.pxd", "pool/operation.pyx"], scenarios.OPERATIONS + scenarios.POOLS),
    **dict.fromkeys(["pool/work_source.pxd", "pool/work_source.pyx", "pool/accounting.pyx", "pool/retry_routing.pyx", "pool/source_list.pyx",
                     "pool/run.pyx", "pool/worker_loop.pyx", "pool/stream.pyx"], scenarios.POOLS),
    **dict.fromkeys(["pool/item_source.pxd", "pool/item_source.pyx", "pool/results.pyx"], scenarios.MAPS),
    **dict.fromkeys(["hub/subscription.pxd", "hub/subscription.pyx", "hub/subscription_ring.pyx"], scenarios.HUBS),
}

# What is inlined everywhere, and built anew only where those checks use it.
BUILT = {"ring/ring.pxd": ["ring_buffer"]}

# The re-checks that are dropped: file, text, and the text that replaces it. Each text must be there once.
DROPPED = {
    "get: empty by the stamp alone": (
        "ring/ring.pxd", "            if without_closed(tail) == head:\n                return SHUT if says_closed(tail)",
        "            if True:\n                return SHUT if says_closed(tail)",
    ),
    "put: full by the stamp alone": (
        "ring/ring.pxd", " and ring.head.load(memory_order_seq_cst) + ring.one_lap == tail:\n            return NOT_NOW",
        ":\n            return NOT_NOW",
    ),
    "put: the closed bit is not checked": ("ring/ring.pxd", "    while not says_closed(tail):", "    while True:"),
    "put_many: a stale tail": (
        "ring/ring.pxd", "        if head > tail:\n            continue  # tail was stale: getters have passed it\n", "",
    ),
    "put_many: does not wait for the slot": (
        "ring/ring.pxd", "            while stamp_at_tail(ring, slot, tail, memory_order_acquire) != tail:\n                relax(&spins)\n", "",
    ),
    "get_many: does not wait for the slot": (
        "ring/ring.pxd", "            while stamp_at_head(ring, slot, head, memory_order_acquire) != head + 1:\n                relax(&spins)\n", "",
    ),
    "wait: no last check": (
        "waiting/wait_queue.pyx", "            result = attempt(context)  # the last look\n", "            result = 0\n",
    ),
    "wait: a searcher does not check for more": ("waiting/wait_queue.pyx", "rest = (searching or owes) and more(context)", "rest = False"),
    "wait: the duty to check ends with the search": (
        "waiting/wait_queue.pyx", "rest = (searching or owes) and more(context)", "rest = searching and more(context)",
    ),
    "wait: a search does not end": (
        "waiting/wait_queue.pyx", "        if searching:\n            end_search(q)\n", "",
    ),
    "grant: does not check for a searcher again": (
        "waiting/wait_queue.pyx", "        if not _word(q) & SEARCHERS:\n            node = _grant(q)", "        if True:\n            node = _grant(q)",
    ),
    "search: does not check for a searcher again under the lock": (
        "waiting/wait_queue.pyx", "    if _word(q) & SEARCHERS:\n        release(&q.lock)\n        return NOT_AT_ALL\n", "",
    ),
    "leave: a grant is not consumed": (
        "waiting/wait_queue.pyx", "        PyThread_acquire_lock(node.lock, 1)\n    return granted", "        pass\n    return granted",
    ),
    "leave: counts as the spinner still": (
        "waiting/wait_queue.pyx", "    if not FREE_THREADED and q.spinner == node:\n        q.spinner = NULL\n",
        "    if not FREE_THREADED and q.spinner == node:\n        pass\n",
    ),
    "grant: a thread is not granted while a task is first": (
        "waiting/wait_queue.pyx", "    cdef WaitNode* thread = q.spinner if _spins(q.spinner) else q.first\n",
        "    cdef WaitNode* thread = q.first if q.subqueues == NULL or q.first and q.first.since < q.subqueues.since else NULL\n",
    ),
    "fork: the queue is not reset": ("waiting/wait_queue.pyx", "    while seen != epoch_now:", "    while False:"),
    "operation: a waiter does not check again": (
        "pool/operation.pyx", "if fetch_or64(self.state, WAITED, memory_order_acq_rel) & RELEASED:",
        "if fetch_or64(self.state, WAITED, memory_order_acq_rel) & 0:",
    ),
    "operation: reset in its place": ("pool/operation.pyx", " or seen & PLACED:\n            return None", ":\n            return None"),
    "cancel: the orphan is not searched for": (
        "pool/run.pyx", "                if (<RetryEntry>entry).operation is op and ", "                if False and ",
    ),
    "cancel: emitted before done()": (
        "pool/run.pyx", "        if not ended and orphan:\n            self.orphans.append(orphan)",
        "        ended = True\n        if not ended and orphan:\n            self.orphans.append(orphan)",
    ),
    "retry: wakes no worker": ("pool/retry_routing.pyx", "        notify_matching(idle, is_taker, &taker)", "        pass"),
    "end: does not check that the sources have ended": (
        "pool/run.pyx", "            and self.sealed.load(memory_order_seq_cst)  # seq_cst: pairs with _close\n", "",
    ),
    "end: wakes no other worker when all operations have ended": (
        "pool/run.pyx", "            release(&self.lock)\n            notify_all(&self.idle)\n            notify_all(&self.leaving)\n            return True",
        "            release(&self.lock)\n            return True",
    ),
    "work source: the last operation to leave does not close it": (
        "pool/work_source.pxd", "    if <int64_t>(place + 1) == source.total.load(memory_order_seq_cst):", "    if False:",
    ),
    "work source: its end is not checked for operations that have all left": (
        "pool/work_source.pyx", "put_count(self.ready.ring) == count:\n            self.ready.close_ring()", "False:\n            self.ready.close_ring()",
    ),
    "work source: the end of a search does not arm the ring watcher": (
        "pool/run.pyx", "self.idle.word.load(memory_order_seq_cst) >> 32 != 0)", "False)",
    ),
    "work source: the ring is not checked after its watcher was armed": (
        "pool/source_list.pyx",
        "                if watch or quiet:\n                    (<WorkSource>source).watcher.arm(&(<WorkSource>source).pending.not_empty)\n"
        "                if (<WorkSource>source).has_work():\n                    break\n",
        "                if (<WorkSource>source).has_work():\n                    break\n"
        "                if watch or quiet:\n                    (<WorkSource>source).watcher.arm(&(<WorkSource>source).pending.not_empty)\n",
    ),
    "signal: a mailbox that is passed over is not checked again": (
        "hub/subscription_ring.pyx", "            if self.is_ready(item):", "            if False:",
    ),
    "signal: a check that finds room does not put the mailbox back": (
        "hub/subscription_ring.pyx", "                set_place_ready(self, link)  # another", "                pass  # another",
    ),
    "subscription: what was passed over is not put back": (
        "hub/subscription.pxd", "    if subscription.mailbox.passed_over.load(memory_order_seq_cst):", "    if False:",
    ),
}


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # its path within the core, as everywhere here
    text: str
    site: int = -1  # of an order: its number

    def write(self, copy: Path) -> None:
        (copy / CORE / self.file).write_text(self.text)


@dataclass(frozen=True)
class Site:
    """Where a memory order is named in code."""

    file: str
    line: int
    start: int
    end: int


def sites() -> list[Site]:
    found = []
    for path in sorted((ROOT / CORE).rglob("*.p[yx][xd]")):
        file = path.relative_to(ROOT / CORE).as_posix()
        for number, line in enumerate(path.read_text().splitlines(keepends=True)):
            code = line.split("#")[0]
            alone = re.fullmatch(r"\s+(memory_order_\w+,?\s*)+", code)  # a name that is imported, or the last arguments
            if re.match(r"\s*(from|cimport)\b", code) or (alone and number < 60):
                continue
            found += [Site(file, number, *match.span()) for match in ORDER.finditer(code)]
    return found


def orders() -> list[Mutant]:
    """Each memory order in code, relaxed."""
    found = []
    for number, site in enumerate(sites()):
        lines = (ROOT / CORE / site.file).read_text().splitlines(keepends=True)
        line = lines[site.line]
        order, code = line[site.start : site.end], line.split("#")[0].strip()
        lines[site.line] = line[: site.start] + "memory_order_relaxed" + line[site.end :]
        name = f"{site.file}:{site.line + 1} {order}: {code[:70]}"
        found.append(Mutant(name, site.file, "".join([*lines, IMPORT]), number))
    return found


def all_orders_at_once() -> dict[str, str]:
    """The core with a call in the place of each order that WEAK knows of, which says what it is: by file."""
    texts: dict[str, list[str]] = {}
    for number, site in reversed(list(enumerate(sites()))):  # from behind: the places of those before stay as they are
        if site.file in WEAK:
            lines = texts.setdefault(site.file, (ROOT / CORE / site.file).read_text().splitlines(keepends=True))
            line = lines[site.line]
            call = f"order_at({number}, {line[site.start : site.end]})"
            lines[site.line] = line[: site.start] + call + line[site.end :]
    return {file: "".join([*lines, CALL_IMPORT]) for file, lines in texts.items()} | {"order_at.pxd": ORDER_AT}


def checks() -> list[Mutant]:
    """Each re-check, dropped."""
    found = []
    for name, (file, old, new) in DROPPED.items():
        text = (ROOT / CORE / file).read_text()
        assert text.count(old) == 1, f"{name}: its text is {text.count(old)} times in {file}"
        found.append(Mutant(name, file, text.replace(old, new) + IMPORT))
    return found


@dataclass
class Bench:
    """Where mutants are built and run."""

    copy: Path
    tsan: str | None  # the interpreter with ThreadSanitizer
    original: list[str] = field(default_factory=list)  # the code of the core itself

    def build(self) -> bool:
        # Optimized, so that a change that means nothing on this machine makes no difference.
        flags = "-fsanitize=thread -O1" if self.tsan else "-O1"
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=self.copy, env=os.environ | {"RINGMILL_CXXFLAGS": flags, "CFLAGS": "-g0"},
            capture_output=True, text=True, check=False,
        )
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-2000:], sep="\n")
        return done.returncode == 0

    def code(self) -> list[str]:
        """What was built."""
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((self.copy / CORE).rglob("*.so"))]

    def checks(self, tests: list[str]) -> list[list[str]]:
        """The commands: those tests, and a soak; under ThreadSanitizer, where pytest takes long to start, one of them."""
        if tests is HUB:
            return [[*PYTEST, *(["-m", "stress"] if self.tsan else []), *tests]]
        soak = SOAK_RING if tests is RING else SOAK_POOL
        return [soak] if self.tsan else [[*PYTEST, *tests], soak]

    def complaint(self, checks: list[list[str]]) -> str:
        """What the checks have to say: "" if they pass."""
        return next(filter(None, map(self.complains, checks)), "")

    def complains(self, check: list[str]) -> str:
        command = [self.tsan or sys.executable, *check]
        environment = os.environ | {"PYTHONPATH": str(self.copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        reports = self.copy / "reports"
        if self.tsan:
            shutil.rmtree(reports, ignore_errors=True)
            reports.mkdir()
            options = f"log_path={reports}/report suppressions={ROOT}/tests/tools/tsan.supp exitcode=0 history_size=7"
            environment |= {"TSAN_OPTIONS": options}
            command = ["setarch", "-R", *command]  # older sanitizers start only with fixed addresses
        process = subprocess.Popen(
            command, cwd=self.copy, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, start_new_session=True,
        )
        try:
            out, _ = process.communicate(timeout=LIMIT * (SLOWER if self.tsan else 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return "hangs"
        if process.returncode:
            failed = re.findall(r"^FAILED (\S+)", out, re.M)
            return failed[0] if failed else f"status {process.returncode}"
        for path in reports.glob("report.*"):
            for report in path.read_text(errors="replace").split("==================\n"):
                if "ringmill" in report:
                    frames = re.findall(r"#0 (\S+)", report)
                    return f"ThreadSanitizer: {', '.join(frames[:2])}"
        return ""

    def prepare(self, mutants: list[Mutant]) -> str:
        """Builds the core itself; what its checks have to say."""
        assert self.build(), "the core itself does not build"
        self.original = self.code()
        used = [tests for tests in (RING, POOL, HUB) if any(CHECKS.get(each.file, POOL) is tests for each in mutants)]
        return self.complaint([check for tests in used for check in self.checks(tests)])

    def judge(self, mutant: Mutant) -> str:
        if mutant.file in BUILT:
            built = [path for path in (self.copy / CORE).rglob("*.cpp") if path.stem not in BUILT[mutant.file]]
            for path in [*built, *(self.copy / CORE).rglob("*.so")]:  # after what they are made of
                if path.stem.split(".")[0] not in BUILT[mutant.file]:
                    path.touch()
        if not self.build():
            return "does not build"
        return SAME if self.code() == self.original else self.complaint(self.checks(CHECKS.get(mutant.file, POOL)))


@dataclass
class WeakBench:
    """The same, on a machine that orders memory no more than C++ promises: tests/tools/weak_memory.

    Built once for all orders: which of them is relaxed is said as it runs.
    """

    copy: Path
    seconds: float = 10.0

    def prepare(self, mutants: list[Mutant]) -> str:
        complaint = ""
        if any(mutant.site >= 0 for mutant in mutants):
            self.folder("orders").mkdir(exist_ok=True)
            build(self.folder("orders"), self.copy, instead=all_orders_at_once())
            complaint = run(self.folder("orders"), self.seconds).complaint
        if any(mutant.site < 0 for mutant in mutants):
            self.folder("checks").mkdir(exist_ok=True)
            build(self.folder("checks"), self.copy)
            complaint = complaint or run(self.folder("checks"), self.seconds).complaint
        return complaint

    def judge(self, mutant: Mutant) -> str:
        if mutant.site >= 0:
            return run(self.folder("orders"), self.seconds, WEAK[mutant.file], relaxed=mutant.site).complaint
        build(self.folder("checks"), self.copy)
        return run(self.folder("checks"), self.seconds, WEAK[mutant.file]).complaint

    def folder(self, what: str) -> Path:
        return self.copy / f"weak-{what}"


SAME = "the same code"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=["orders", "checks", "all"], default="all")
    parser.add_argument("--tsan", metavar="PYTHON", help="an interpreter with ThreadSanitizer, which runs the tests")
    parser.add_argument("--weak", action="store_true", help="on the machine of tests/tools/weak_memory, those in files that it runs")
    parser.add_argument("--only", default="", help="those that have this in their names; several: TEXT|TEXT")
    parser.add_argument("--sample", type=int, help="so many of them, chosen at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="only names them")
    parser.add_argument("--copy", help="a folder for the private copy, which stays; builds again only what changed")
    given = parser.parse_args()
    mutants = (checks() if given.what != "orders" else []) + (orders() if given.what != "checks" else [])
    mutants = [mutant for mutant in mutants if any(text in mutant.name for text in given.only.split("|"))]
    if given.weak:
        mutants = [mutant for mutant in mutants if mutant.file in WEAK]
    if given.sample:
        mutants = random.Random(given.seed).sample(mutants, min(given.sample, len(mutants)))
    if given.list:
        print(*[mutant.name for mutant in mutants], sep="\n")
        print(len(mutants), "mutants")
        return
    with contextlib.ExitStack() as stack:
        copy = Path(given.copy or stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("src", "tests", "examples", "benchmarks", "docs"):
            ignored = shutil.ignore_patterns("*.so", "*.cpp", "__pycache__", "_build")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored, dirs_exist_ok=True)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy2(ROOT / name, copy / name)
        bench: Bench | WeakBench = WeakBench(copy) if given.weak else Bench(copy, given.tsan)
        started = time.monotonic()
        for name in {mutant.file for mutant in mutants}:  # as each mutant has it, which makes a difference to Cython
            path = copy / CORE / name
            path.write_text(path.read_text() + IMPORT)
        complaint = bench.prepare(mutants)
        assert not complaint, f"the checks fail without any mutation: {complaint}"
        print(f"[{time.monotonic() - started:.0f} s] built, and the checks pass", flush=True)
        verdicts = []
        for mutant in mutants:
            unchanged = (copy / CORE / mutant.file).read_text()
            mutant.write(copy)
            verdict = bench.judge(mutant)
            verdicts.append((mutant.name, verdict))
            print(f"[{time.monotonic() - started:.0f} s] {mutant.name}: {verdict or 'SURVIVES'}", flush=True)
            (copy / CORE / mutant.file).write_text(unchanged)
    same = sum(verdict == SAME for _, verdict in verdicts)
    survivors = [name for name, verdict in verdicts if not verdict]
    print(f"killed {len(mutants) - same - len(survivors)} of {len(mutants)}; {same} are the same code")
    for name in survivors:
        print(f"survives: {name}")


if __name__ == "__main__":
    main()
