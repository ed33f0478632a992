"""Names the compiled modules; everything else about the project is in pyproject.toml."""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

MODULES = [
    "spin",
    "waiter",
    "loop",
    "ring_buffer",
    "operation",
    "feed",
    "books",
    "redrive",
    "dispatch",
    "stream",
    "subscription_ring",
    "subscription",
]

# RINGMILL_CXXFLAGS adds flags of the caller's own, for example -fsanitize=thread (see CONTRIBUTING.md).
flags = ["/std:c++17"] if sys.platform == "win32" else ["-std=c++17"]
extra = os.environ.get("RINGMILL_CXXFLAGS", "").split()

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"ringmill._core.{name}",
                [f"src/ringmill/_core/{name}.pyx"],
                language="c++",
                extra_compile_args=flags + extra,
                extra_link_args=extra,
            )
            for name in MODULES
        ],
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
)
