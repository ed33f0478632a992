"""The lock-rules check reports what a thread must not do while it holds an internal lock, and nothing else.

The core itself is checked by `tests/tools/lock_rules.sh PYTHON`, which compiles it anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.tools.lock_rules.__main__ import flags, write_header

# The locks are recorded in one module and the rules broken in another, each a library of its own, as the core's are.
MODULE = """
static PyModuleDef definition = {{PyModuleDef_HEAD_INIT, "{name}", nullptr, -1, methods}};
PyMODINIT_FUNC PyInit_{name}() {{
  PyObject* module = PyModule_Create(&definition);
#ifdef Py_GIL_DISABLED
  PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
  {begin}
  return module;
}}
"""

HOLDER = """
static char locks[2];
static void acquire(int which) { RINGMILL_LOCK_ACQUIRED(locks + which); }
static void release(int which) { RINGMILL_LOCK_RELEASED(locks + which); }
static void (*functions[])(int) = {acquire, release};
static PyMethodDef methods[] = {{}};
"""

BREAKER = """
#include <atomic>
#include <thread>
#include <unordered_map>
static void (**functions)(int);
static void acquire(int which) { functions[0](which); }
static void release(int which) { functions[1](which); }
static std::unordered_map<long, long> numbers;
static PyObject* kept;
static PyObject* arguments;
static long number;
"""

# Each stands between an acquire and a release; and what the report says of it.
VIOLATIONS = {
    "decref": ("Py_INCREF(given); Py_DECREF(given);", "Py_DECREF of Thing"),
    "xdecref": ("Py_INCREF(given); Py_XDECREF(given);", "Py_DECREF of Thing"),
    "clear": ("Py_INCREF(given); kept = given; Py_CLEAR(kept);", "Py_DECREF of Thing"),
    "call": ("number += PyObject_IsTrue(given);", "PyObject_IsTrue"),
    "detach": ("Py_BEGIN_ALLOW_THREADS Py_END_ALLOW_THREADS", "PyEval_RestoreThread, PyEval_SaveThread"),
    "allocate": ("kept = Py_TYPE(given)->tp_alloc(Py_TYPE(given), 0);", "allocates"),
    "reallocate": (
        "kept = (PyObject*)PyMem_RawRealloc(PyMem_RawMalloc(8), 16);",
        "PyMem_RawMalloc, PyMem_RawRealloc, allocates, reallocates",
    ),
    "contain": ("numbers[++number] = 1;", "operator new"),
    "empty": ("numbers.clear();", "operator delete"),
    "second": ("acquire(1); release(0); number += PyObject_IsTrue(given); acquire(0); release(1);", "PyObject_IsTrue"),
    "again": ("acquire(0); release(0);", "acquires again what it holds"),
    "never": ("release(1);", "releases what it does not hold"),
}

HARMLESS = {
    "immortal": "Py_INCREF(Py_None); Py_DECREF(Py_None); Py_INCREF(Py_True); Py_DECREF(Py_True); Py_XDECREF(nullptr);",
    "incref": "Py_INCREF(given); kept = given;",
    "ask": "number += PyErr_Occurred() != nullptr;",
    "after": "release(0); Py_INCREF(given); Py_DECREF(given); PyMem_RawFree(PyMem_RawMalloc(8)); acquire(0);",
    # another thread holds the lock: only that one is bound
    "elsewhere": """
      release(0);
      std::atomic<int> step{0};
      std::thread other([&] {
        acquire(0);
        step = 1;
        while (step != 2) std::this_thread::yield();
        release(0);
      });
      while (step != 1) std::this_thread::yield();
      number += PyObject_IsTrue(given);
      PyMem_RawFree(PyMem_RawMalloc(8));
      Py_INCREF(given); Py_DECREF(given);
      step = 2;
      other.join();
      acquire(0);""",
}

# As Cython writes it: by such names and comments a report finds the function and the line of the .pyx.
FUNCTION = """
static PyObject* __pyx_pf_7breaker_{number}{name}(PyObject*, PyObject* given) {{
  /* "breaker.pyx":{number}
 * before
 *     {name} it             # <<<<<<<<<<<<<<
 * after
 */
  acquire(0);
  {body}
  release(0);
  Py_RETURN_NONE;
}}
"""

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import holder, breaker
class Thing: pass
for name in sys.argv[2:]:
    getattr(breaker, name)(Thing())
print("all done")
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    include = Path(sysconfig.get_path("include"))
    tools = all(map(shutil.which, ["g++", "addr2line"]))
    if sys.platform != "linux" or not tools or not (include / "Python.h").exists():
        pytest.skip("the check is compiled by g++ on Linux, with the interpreter's headers, and reads with binutils")
    folder = tmp_path_factory.mktemp("lock_rules")
    write_header(folder)
    bodies = {name: body for name, (body, _) in VIOLATIONS.items()} | HARMLESS
    breaker = BREAKER + "".join(
        FUNCTION.format(number=k, name=name, body=body) for k, (name, body) in enumerate(bodies.items(), 1)
    )
    table = "".join(f'{{"{name}", __pyx_pf_7breaker_{k}{name}, METH_O}},' for k, name in enumerate(bodies, 1))
    breaker += f"static PyMethodDef methods[] = {{{table} {{}}}};"
    export = 'PyModule_AddObject(module, "functions", PyCapsule_New(functions, "holder.functions", nullptr));'
    take = 'functions = (void (**)(int))PyCapsule_Import("holder.functions", 0);'
    texts = {
        "holder": HOLDER + MODULE.format(name="holder", begin=export),
        "breaker": breaker + MODULE.format(name="breaker", begin=take),
    }
    compilers = []
    for name, text in texts.items():
        source = folder / f"{name}.cpp"
        source.write_text(text)
        library = folder / f"{name}.so"
        command = ["g++", "-std=c++17", "-fPIC", "-shared", "-pthread", f"-I{include}", *flags(folder)]
        compilers.append(subprocess.Popen([*command, str(source), "-o", str(library)]))
    assert [compiler.wait(timeout=100) for compiler in compilers] == [0, 0]
    return folder


def run(modules: Path, *names: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("RINGMILL_LOCK_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(modules), *names],
        env=env | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def reported(file: Path) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "tests.tools.lock_rules", "report", str(file)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=60)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def test_each_violation_is_reported_once_and_by_its_line(modules: Path, tmp_path: Path) -> None:
    file = tmp_path / "report"
    done = run(modules, *VIOLATIONS, *VIOLATIONS, RINGMILL_LOCK_REPORT=str(file))
    assert (done.returncode, done.stdout) == (0, "all done\n"), done.stderr
    status, lines = reported(file)
    assert status == 1
    found = {lines[k]: lines[k + 1 : k + 3] for k in range(len(lines)) if lines[k].startswith("breaker.pyx:")}
    assert found == {
        f"breaker.pyx:{k}  breaker.{name}": [f"    {name} it", f"    {what}"]
        for k, (name, (_, what)) in enumerate(VIOLATIONS.items(), 1)
    }
    assert lines[-1] == f"{len(VIOLATIONS)} statements break the rules of internal locks"


def test_nothing_else_is_reported(modules: Path, tmp_path: Path) -> None:
    file = tmp_path / "report"
    done = run(modules, *HARMLESS, RINGMILL_LOCK_REPORT=str(file))
    assert (done.returncode, done.stdout) == (0, "all done\n"), done.stderr
    assert not file.exists()
    assert reported(file) == (0, ["0 statements break the rules of internal locks"])


def test_without_a_file_the_first_violation_ends_the_process(modules: Path) -> None:
    done = run(modules, "decref", "call")
    assert done.returncode < 0
    assert "Py_DECREF\tThing\t" in done.stderr
    assert "PyObject_IsTrue" not in done.stderr
    assert not done.stdout


def test_a_process_can_go_on_and_fail_at_its_exit(modules: Path, tmp_path: Path) -> None:
    done = run(modules, "decref", RINGMILL_LOCK_ACTION="exit", RINGMILL_LOCK_REPORT=str(tmp_path / "report"))
    assert (done.returncode, done.stdout) == (70, "all done\n"), done.stderr
    done = run(modules, "immortal", RINGMILL_LOCK_ACTION="exit", RINGMILL_LOCK_REPORT=str(tmp_path / "report"))
    assert (done.returncode, done.stdout) == (0, "all done\n"), done.stderr
