#!/usr/bin/env bash
# Runs the stress tests and the soaks under ThreadSanitizer and fails if a report names ringmill.
#
#   tests/tools/tsan.sh PYTHON [ARGUMENT FOR PYTEST]...      for example  tests/tools/tsan.sh python3.13t tests/pool/test_wrap_ring.py
#
# PYTHON: a free-threaded CPython that was configured with --disable-gil --with-thread-sanitizer. With a GIL build
# ThreadSanitizer sees the lock in every switch of threads, and next to nothing else. The extensions are built with
# the same sanitizer, in a virtual environment that is thrown away.
set -euo pipefail

if (($# < 1)); then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi
python=$(command -v "$1") || { echo "tsan.sh: no such interpreter: $1" >&2; exit 2; }
python=$(realpath -s "$python")
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
"$python" -c 'if True:
    import sys, sysconfig
    if "thread" not in (sysconfig.get_config_var("CONFIG_ARGS") or "") or sys._is_gil_enabled():
        sys.exit(f"tsan.sh: {sys.executable} was not configured with --disable-gil --with-thread-sanitizer")'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# ThreadSanitizer of older compilers does not start where addresses are randomized widely.
still=()
if command -v setarch >/dev/null && setarch -R true 2>/dev/null; then
    still=(setarch -R)
fi

cp -R "$root"/{pyproject.toml,setup.py,README.md,LICENSE,src,tests,examples,benchmarks,docs} "$work"
find "$work/src" \( -name '*.so' -o -name '*.cpp' \) -delete
cd "$work"

# Cython takes minutes under the sanitizer. If the environment's python3 has Cython and setuptools, it translates here,
# and the build below finds the result.
if python3 -c 'import setuptools, Cython; assert Cython.__version__ >= "3.3"' 2>/dev/null; then
    python3 setup.py -q --version >/dev/null
fi

# The build runs under the sanitizer too, but nothing that it reports is ours.
export TSAN_OPTIONS="report_bugs=0"
export PIP_NO_COMPILE=1  # of modules that are used once
"${still[@]}" "$python" -m venv venv
RINGMILL_CXXFLAGS="-fsanitize=thread -O1 -g" "${still[@]}" venv/bin/python -m pip install -q ".[test]"

# Each process writes a file of its own. The tests' exit status stays what it is; reports are judged below.
export TSAN_OPTIONS="log_path=$work/report suppressions=$root/tests/tools/tsan.supp exitcode=0 history_size=7"
status=0
"${still[@]}" venv/bin/python -m pytest -m stress -x -p no:cacheprovider "$@" || status=$?
"${still[@]}" venv/bin/python tests/stress/soak_ring.py 30 || status=$?
"${still[@]}" venv/bin/python tests/stress/soak_pool.py 60 || status=$?

# A report is a paragraph block between two lines of "=".
count=0
shopt -s nullglob
for file in "$work"/report.*; do
    if found=$(awk 'BEGIN { RS = "==================\n"; ORS = RS } /ringmill/' "$file") && [[ -n $found ]]; then
        printf '%s\n' "$found"
        count=$((count + $(grep -c '^WARNING: ThreadSanitizer' <<<"$found")))
    fi
done
echo "ThreadSanitizer: $count reports name ringmill; the tests ended with status $status"
if ((count > 0)); then
    exit 1
fi
exit "$status"
