#!/usr/bin/env bash
# Runs tests on a build whose internal locks record their holder; fails if a test does, or if a rule of locks is broken.
#
#   tests/tools/lock_rules.sh PYTHON [ARGUMENT FOR PYTEST]...      for example  tests/tools/lock_rules.sh python3.13t tests/pool/test_pool.py
#
# PYTHON: any CPython on Linux, with its headers; g++ and binutils. Without arguments all tests run but the models, which
# are plain Python. Each statement that drops a reference, calls the interpreter, allocates or frees while its thread
# holds an internal lock is printed once, as the line of its .pyx. How, and what is allowed: tests/tools/lock_rules.
set -euo pipefail

if (($# < 1)); then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi
python=$(command -v "$1") || { echo "lock_rules.sh: no such interpreter: $1" >&2; exit 2; }
python=$(realpath -s "$python")
shift
(($#)) || set -- -m "not model"
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp -R "$root"/{pyproject.toml,setup.py,LICENSE,src,tests,benchmarks,docs,examples} "$root"/*.md "$work"
find "$work/src" \( -name '*.so' -o -name '*.cpp' \) -delete
cd "$work"
"$python" -m venv venv
flags=$(venv/bin/python -m tests.tools.lock_rules flags "$work/headers")
RINGMILL_CXXFLAGS=$flags venv/bin/python -m pip install -q ".[test]"
grep -lq ringmill_lock_rules8acquired venv/lib/python3*/site-packages/ringmill/_core/waiting/wait_queue.*.so ||
    { echo "lock_rules.sh: acquire() of wait_queue.pxd does not record its lock" >&2; exit 1; }

# Each process appends to one file, and goes on.
status=0
RINGMILL_LOCK_REPORT=$work/report venv/bin/python -m pytest -p no:cacheprovider "$@" || status=$?

echo
venv/bin/python -m tests.tools.lock_rules report "$work/report" || exit 1
echo "lock_rules.sh: the tests ended with status $status"
exit "$status"
