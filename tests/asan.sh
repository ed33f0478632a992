#!/usr/bin/env bash
# Runs the tests under AddressSanitizer and UndefinedBehaviorSanitizer; fails where a test does or one of them reports.
#
#   tests/asan.sh PYTHON [ARGUMENT FOR PYTEST]...      for example  tests/asan.sh python3.13 tests/test_pool.py
#
# PYTHON: any CPython on Linux. Its objects come from malloc here, where the sanitizer sees each; leaks are not looked
# for: an interpreter that ends leaves a good deal behind, and the tests count references themselves.
set -euo pipefail

if (($# < 1)); then
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 2
fi
python=$(command -v "$1") || { echo "asan.sh: no such interpreter: $1" >&2; exit 2; }
shift
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp -R "$root"/{pyproject.toml,setup.py,LICENSE,src,tests,benchmarks,docs,examples} "$root"/*.md "$work"
find "$work/src" \( -name '*.so' -o -name '*.cpp' \) -delete
cd "$work"
"$python" -m venv venv
RINGMILL_CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -g" \
    venv/bin/python -m pip install -q ".[test]"

export PYTHONMALLOC=malloc
export ASAN_OPTIONS="detect_leaks=0:abort_on_error=1"
export UBSAN_OPTIONS="print_stacktrace=1"
export LD_PRELOAD="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)"
venv/bin/python -m pytest -p no:cacheprovider "$@"
