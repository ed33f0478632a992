#!/usr/bin/env bash
# Compiles the core with every warning an error; fails if a compiler finds something.
#
#   tests/tools/warnings.sh PYTHON [COMPILER]...      for example  tests/tools/warnings.sh python3.13t g++ aarch64-linux-gnu-g++
#
# For the headers of PYTHON, in the language of the standard alone (-Wpedantic): nothing that only GNU compilers know.
# COMPILER: g++ and clang++ unless given. A cross compiler compiles against PYTHON's own headers, those of another
# machine: that says that the code is in order for it, not that it runs there.
set -euo pipefail

if (($# < 1)); then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi
python=$(command -v "$1") || { echo "warnings.sh: no such interpreter: $1" >&2; exit 2; }
shift
(($#)) || set -- g++ clang++
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp -R "$root"/{pyproject.toml,setup.py,README.md,LICENSE,src} "$work"
find "$work/src" \( -name '*.so' -o -name '*.cpp' \) -delete
cd "$work"
"$python" -m venv venv
venv/bin/python - >requirements.txt <<'END'
import tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["build-system"]["requires"], sep="\n")
END
venv/bin/python -m pip install -q -r requirements.txt
venv/bin/python setup.py -q --version >/dev/null # which translates to C++
printf '#define RINGMILL_VERSION ""\n#define RINGMILL_FLAGS ""\n' >ringmill_build.h # as setup.py does
include=$(venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')

# Left out is what concerns generated code alone. missing-field-initializers: CPython's Py_tss_NEEDS_INIT names one of
# two fields. stringop-overflow: where memory ends while Cython slices the arguments of a __cinit__ that takes *args and
# **kwargs, it releases kwargs, NULL by then; on free-threaded builds GCC sees it. Clang does not know that one's name.
flags=(-std=c++17 -O2 -fPIC -Wall -Wextra -Wpedantic -Werror -I. -isystem "$include")
flags+=(-Wno-missing-field-initializers -Wno-stringop-overflow -Wno-unknown-warning-option)
failed=0
for compiler in "$@"; do
    "$compiler" --version | sed -n 1p
    for file in src/ringmill/_core/*/*.cpp; do
        "$compiler" "${flags[@]}" -c "$file" -o /dev/null || failed=1
    done
done
echo "warnings.sh: $(find src -name '*.cpp' | wc -l) files, $# compilers: $( ((failed)) && echo failed || echo clean)"
exit "$failed"
