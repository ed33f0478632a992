"""examples/checksum_tree.py, run as a user runs it: in a process of its own, on real files."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

CHECKSUM_TREE = Path(__file__).parents[2] / "examples" / "checksum_tree.py"
BUFFER_BYTES = 1 << 18  # of checksum_tree.py: sizes around it are of interest

posix_only = pytest.mark.skipif(os.name != "posix", reason="file names and signals of POSIX")
needs_sha256sum = pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")

ODD_NAMES = [
    b"a b",
    b" leading",
    b"trailing ",
    b"-dash",
    b"*star",
    b"tab\t",
    b"\x01control",
    b"new\nline",
    b"carriage\rreturn",
    b"back\\slash",
    b"\\",
    b"'quotes\"",
    "gr\u00fcn".encode(),
    b"d\\ir\n/inner\\\n\r",
]
UNDECODABLE_NAMES = [b"\xff\xfe raw", b"\xffdir/x", b"\xff\\\n"]


def checksum_tree(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, CHECKSUM_TREE, *arguments], cwd=cwd, capture_output=True, timeout=100, check=False
    )


def sha256sum(top: str | Path, cwd: Path | None = None) -> bytes:
    find = subprocess.run(["find", top, "-type", "f", "-print0"], cwd=cwd, capture_output=True, check=True)
    sums = subprocess.run(["xargs", "-0", "sha256sum"], cwd=cwd, input=find.stdout, capture_output=True, check=True)
    return sums.stdout


def lines(output: bytes) -> list[bytes]:
    return sorted(output.splitlines())


def write(top: Path, names: Iterable[bytes]) -> None:
    for number, name in enumerate(names):
        path = os.path.join(os.fsencode(top), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(name * (number * 100))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files around the size of the read buffer, an empty one, many small ones, in directories three deep."""
    top = tmp_path / "tree"
    (top / "b" / "c").mkdir(parents=True)
    (top / "empty directory").mkdir()
    for size in (0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 3 * BUFFER_BYTES):
        (top / "b" / f"{size} bytes").write_bytes(b"ringmill"[: size % 8] + bytes(size - size % 8))
    for number in range(300):
        (top / "b" / "c" / str(number)).write_text(str(number))
        (top / str(number)).write_text("x" * number)
    return top


def expected(top: Path) -> list[bytes]:
    """What the lines must be, without sha256sum; for plain names."""
    return sorted(
        hashlib.sha256(path.read_bytes()).hexdigest().encode() + b"  " + os.fsencode(path.as_posix())
        for path in top.rglob("*")
        if path.is_file()
    )


@pytest.mark.parametrize("arguments", [(), ("--workers", "1"), ("--workers", "9", "--ordered")])
def test_checksum_tree_prints_one_right_line_for_each_file(tree: Path, arguments: tuple[str, ...]) -> None:
    run = checksum_tree(*arguments, tree)
    assert run.returncode == 0, run.stderr
    assert lines(run.stdout) == expected(tree)
    assert b"606 files" in run.stderr
    assert b"could not be read: 0" in run.stderr


@needs_sha256sum
def test_checksum_tree_prints_what_sha256sum_prints(tree: Path) -> None:
    for top, cwd in [(tree, None), (".", tree), ("tree/", tree.parent), ("../tree/b", tree)]:
        run = checksum_tree(top, cwd=cwd)
        assert run.returncode == 0
        assert lines(run.stdout) == lines(sha256sum(top, cwd))


@needs_sha256sum
@posix_only
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_checksum_tree_writes_odd_names_as_sha256sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locale: str
) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    write(tmp_path, ODD_NAMES)
    if sys.platform != "darwin":  # whose file systems take UTF-8 only
        write(tmp_path, UNDECODABLE_NAMES)
    if b"\\r" not in sha256sum(".", tmp_path):
        (tmp_path / "carriage\rreturn").unlink()  # coreutils before 9.0 do not escape it
        shutil.rmtree(tmp_path / "d\\ir\n")
    run = checksum_tree(".", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert lines(run.stdout) == lines(sha256sum(".", tmp_path))
    check = subprocess.run(
        ["sha256sum", "-c", "--quiet"], cwd=tmp_path, input=run.stdout, capture_output=True, check=False
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


@posix_only
def test_checksum_tree_skips_what_is_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait forever
    run = checksum_tree(tmp_path)
    assert run.returncode == 0
    assert lines(run.stdout) == expected(tmp_path)[:1]
    assert b"skipped, as no regular files: 4" in run.stderr


@posix_only
def test_checksum_tree_reports_what_cannot_be_read_and_prints_the_rest(tree: Path) -> None:
    # Root may read anything, but a path that is too long is too long for root as well. The directory can still be
    # listed by its path, the file in it cannot be opened by its own.
    limit = os.pathconf(tree, "PC_PATH_MAX")
    long_path = str(tree)
    before = os.open(".", os.O_RDONLY)
    good = expected(tree)
    try:
        os.chdir(tree)
        while (room := limit - 100 - len(os.fsencode(long_path))) > 1:
            name = "d" * min(200, room - 1)
            os.mkdir(name)
            os.chdir(name)
            long_path += "/" + name
        Path("f" * 150).write_text("x")
        Path("s").write_text("x")  # just short enough
        os.mkdir("e" * 150)  # cannot be listed
    finally:
        os.fchdir(before)
        os.close(before)
    run = checksum_tree(tree)
    assert run.returncode == 1
    found = lines(run.stdout)
    assert [line for line in found if b"/ddd" not in line] == good
    assert [line.split(b"  ")[1] for line in found if b"/ddd" in line] == [os.fsencode(long_path) + b"/s"]
    assert run.stderr.count(b"File name too long") == 2
    assert b"f" * 150 in run.stderr
    assert b"e" * 150 in run.stderr
    assert b"607 files" in run.stderr
    assert b"could not be read: 2" in run.stderr


def test_checksum_tree_ordered_is_the_order_of_the_walk(tree: Path) -> None:
    runs = [checksum_tree("--ordered", "--workers", str(n), tree) for n in (1, 4, 16)]
    assert runs[0].stdout == runs[1].stdout == runs[2].stdout
    paths = [line.split(b"  ", 1)[1] for line in runs[0].stdout.splitlines()]
    top = os.fsencode(tree.as_posix())
    # A directory's own files by name, then its subdirectories by name.
    own, b, c = (
        sorted(os.fsencode(path.as_posix()) for path in directory.iterdir() if path.is_file())
        for directory in (tree, tree / "b", tree / "b" / "c")
    )
    assert paths == own + b + c
    assert paths[0].startswith(top)


def test_checksum_tree_of_an_empty_directory(tmp_path: Path) -> None:
    run = checksum_tree(tmp_path)
    assert run.returncode == 0
    assert run.stdout == b""
    assert run.stderr.startswith(b"0 files, 0 bytes")


@pytest.mark.parametrize("arguments", [("--workers", "0"), ("--workers", "many"), ("no such directory",), ("a", "b")])
def test_checksum_tree_refuses_bad_arguments(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run = checksum_tree(*arguments, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stdout == b""
    assert arguments[-1].encode() in run.stderr


@posix_only
def test_checksum_tree_ends_quietly_when_its_reader_leaves(tree: Path) -> None:
    for number in range(2000):  # more lines than a pipe holds, so that a write must fail
        (tree / f"more {number}").write_text("x")
    process = subprocess.Popen([sys.executable, CHECKSUM_TREE, tree], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_checksum_tree_says_when_it_cannot_write(tree: Path) -> None:
    with open("/dev/full", "wb") as full:
        run = subprocess.run([sys.executable, CHECKSUM_TREE, tree], stdout=full, stderr=subprocess.PIPE, check=False)
    assert run.returncode == 1
    assert b"write error: No space left on device" in run.stderr
    assert b"Traceback" not in run.stderr


@posix_only
def test_checksum_tree_interrupted_ends_with_130(tmp_path: Path) -> None:
    (tmp_path / "small").write_text("x")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)  # hours of hashing, no disk
    process = subprocess.Popen(
        [sys.executable, CHECKSUM_TREE, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert b"small" in process.stdout.readline()  # it is at work, and has nothing to do but the large one
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == b""
    assert err.startswith(b"checksum_tree: interrupted\n1 files, 1 bytes")
