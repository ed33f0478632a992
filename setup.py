"""Names the compiled modules; everything else about the project is in pyproject.toml."""

import json
import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODULES = [
    "platform.build",
    "platform.clock",
    "platform.spinning",
    "waiting.wait_queue",
    "waiting.event_loop",
    "ring.ring_buffer",
    "pool.operation",
    "pool.context",
    "pool.work_source",
    "pool.item_record",
    "pool.item_source",
    "pool.retry_queue",
    "pool.worker_state",
    "pool.worker_table",
    "pool.worker_waits",
    "pool.source_list",
    "pool.accounting",
    "pool.retry_routing",
    "pool.start_gate",
    "pool.run_threads",
    "pool.run",
    "pool.worker_loop",
    "pool.stream",
    "pool.results",
    "pool.call_results",
    "pool.pool_base",
    "hub.subscription_ring",
    "hub.subscription",
]


class RecordedBuild(build_ext):
    """Compiles the version and the compiler's flags into _core.build, from where `python -m ringmill` prints them.

    As many compilers run at once as there are processors.
    """

    def finalize_options(self):
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count()

    def build_extension(self, ext):
        if ext.name == "ringmill._core.platform.build":
            self.write_record(ext)
        super().build_extension(ext)

    def write_record(self, ext):
        compiler = self.compiler
        if compiler.compiler_type == "msvc":
            if not compiler.initialized:
                compiler.initialize()
            own = compiler.compile_options
        else:
            own = compiler.compiler_so_cxx
        # What names a path says something about the machine that built it, and nothing about the result.
        named = [flag for flag in [*own, *ext.extra_compile_args] if flag[0] in "-/" and not set("/\\") & set(flag[1:])]
        record = (
            f"#define RINGMILL_VERSION {json.dumps(self.distribution.get_version())}\n"
            f"#define RINGMILL_FLAGS {json.dumps(' '.join(named))}\n"
        )
        header = Path(self.build_temp) / "ringmill_build.h"
        header.parent.mkdir(parents=True, exist_ok=True)
        if not header.exists() or header.read_text(encoding="utf-8") != record:
            header.write_text(record, encoding="utf-8")
        ext.include_dirs.append(str(header.parent))
        ext.depends.append(str(header))


# RINGMILL_CXXFLAGS adds flags of the caller's own, for example -fsanitize=thread (see CONTRIBUTING.md).
flags = ["/std:c++17"] if sys.platform == "win32" else ["-std=c++17"]
extra = os.environ.get("RINGMILL_CXXFLAGS", "").split()
# RINGMILL_TRANSLATED=1: Cython has run, and the C++ files are there. For an interpreter that would take too long for that.
translated = os.environ.get("RINGMILL_TRANSLATED") == "1"


def extensions():
    suffix = ".cpp" if translated else ".pyx"
    return [
        Extension(
            f"ringmill._core.{name}",
            [f"src/ringmill/_core/{name.replace('.', '/')}{suffix}"],
            language="c++",
            # Cython 3.3 calls tp_new of a Python subclass by way of code that crashes where there is no memory for
            # the names of its keywords: it releases values that it has not stored yet.
            define_macros=[("CYTHON_VECTORCALL_TPNEW", "0")],
            extra_compile_args=flags + extra,
            extra_link_args=extra,
        )
        for name in MODULES
    ]


def translate(modules):
    from Cython.Build import cythonize

    return cythonize(
        modules,
        nthreads=0 if sys.platform == "win32" else 2,
        compiler_directives={
            "language_level": 3,
            "freethreading_compatible": True,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "binding": False,
            "embedsignature": True,
            "embedsignature.format": "clinic",
            "auto_pickle": False,
        },
    )


setup(
    cmdclass={"build_ext": RecordedBuild},
    ext_modules=extensions() if translated else translate(extensions()),
)
