#!/usr/bin/env bash
# Runs the stress tests and the soaks under ThreadSanitizer and fails if a report names ringmill.
#
#   tests/tools/tsan.sh PYTHON [ARGUMENT FOR PYTEST]...      for example  tests/tools/tsan.sh python3.13t tests/pool/test_wrap_ring.py
#
# PYTHON: a free-threaded CPython that was configured with --disable-gil --with-thread-sanitizer. With a GIL build
# ThreadSanitizer sees the lock in every switch of threads, and next to nothing else. The extensions are built with
# the same sanitizer, in a folder that is thrown away.
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

# Installing takes an hour under the sanitizer, translating minutes. So the environment's python3 does both: it needs pip,
# Cython and setuptools. What these tests need is all in Python.
packages="$work/packages"
python3 -m pip install -q --no-compile --target "$packages" --platform any --only-binary :all: \
    --python-version "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" \
    anyio attrs "hypothesis<6.156" pytest rich "setuptools>=80" tqdm trio
python3 setup.py -q --version >/dev/null

# The build runs under the sanitizer too, but nothing that it reports is ours.
export PYTHONPATH="$work/src:$packages" PYTHONDONTWRITEBYTECODE=1
export TSAN_OPTIONS="report_bugs=0"
RINGMILL_TRANSLATED=1 RINGMILL_CXXFLAGS="-fsanitize=thread -O1 -g" \
    "${still[@]}" "$python" setup.py -q build_ext --inplace

# Each process writes a file of its own. The tests' exit status stays what it is; reports are judged below.
export TSAN_OPTIONS="log_path=$work/report suppressions=$root/tests/tools/tsan.supp exitcode=0 history_size=7"
status=0
# Collecting all tests takes a quarter of an hour there.
(($#)) || set -- $(grep -rlE "mark\.stress" tests --include="test_*.py")
"${still[@]}" "$python" -m pytest -m stress -p no:cacheprovider "$@" || status=$?
"${still[@]}" "$python" tests/stress/soak_ring.py 30 || status=$?
"${still[@]}" "$python" tests/stress/soak_pool.py 60 || status=$?

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
