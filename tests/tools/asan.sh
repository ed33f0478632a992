#!/usr/bin/env bash
# Runs the tests under AddressSanitizer and UndefinedBehaviorSanitizer; fails if a test does, or if there is a report.
#
#   tests/tools/asan.sh PYTHON [ARGUMENT FOR PYTEST]...      for example  tests/tools/asan.sh python3.13 tests/pool/test_pool.py
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
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp -R "$root"/{pyproject.toml,setup.py,LICENSE,src,tests,benchmarks,docs,examples} "$root"/*.md "$work"
find "$work/src" \( -name '*.so' -o -name '*.cpp' \) -delete
cd "$work"
"$python" -m venv venv
RINGMILL_CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -g" \
    venv/bin/python -m pip install -q ".[test]"

# Each process writes its report to a file of its own: pytest captures what goes to stderr.
export PYTHONMALLOC=malloc
export ASAN_OPTIONS="log_path=$work/report detect_leaks=0 abort_on_error=1"
export UBSAN_OPTIONS="log_path=$work/report print_stacktrace=1"
status=0
LD_PRELOAD="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)" \
    venv/bin/python -m pytest -p no:cacheprovider "$@" || status=$?

shopt -s nullglob
reports=("$work"/report.*)
((${#reports[@]})) && cat "${reports[@]}"
echo "asan.sh: ${#reports[@]} reports; the tests ended with status $status"
((${#reports[@]} == 0)) || exit 1
exit "$status"
