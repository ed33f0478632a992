"""The folder in which the suites run: a virtual environment, the unpacked sdists, and the way to ringmill."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import ringmill
from tests.interop.suites.libraries import Library

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"


def requirement(distribution: str) -> str:
    """The line of a distribution in requirements.txt: its name and its version."""
    for line in REQUIREMENTS.read_text().splitlines():
        if line.partition("==")[0] == distribution:
            return line
    raise LookupError(f"{distribution} is not in {REQUIREMENTS}")


class Environment:
    """Made at the first use, and kept in its folder for later ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        version = ".".join(map(str, sys.version_info[:2])) + getattr(sys, "abiflags", "")
        self.venv = folder / f"venv-{version}"
        self.python = self.venv / "bin" / "python"
        self.on_path = folder / "path"  # with ringmill, and nothing else, in it

    def make(self) -> None:
        """Installs what is missing.

        Raises:
            subprocess.CalledProcessError: pip failed; it has said why.
        """
        self.on_path.mkdir(parents=True, exist_ok=True)
        link = self.on_path / "ringmill"
        link.unlink(missing_ok=True)
        link.symlink_to(Path(ringmill.__file__).resolve().parent)
        done = self.venv / "requirements.txt"
        if not done.exists() or done.read_text() != REQUIREMENTS.read_text():
            venv.create(self.venv, with_pip=True, clear=True)
            self._pip("install", "-r", str(REQUIREMENTS))
            done.write_text(REQUIREMENTS.read_text())

    def _pip(self, command: str, *arguments: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(
            [self.python, "-m", "pip", "-qq", "--disable-pip-version-check", command, *arguments],
            check=True, env=environment,
        )

    def root(self, library: Library) -> Path:
        """The folder that `library.tests` are in, after the download of an sdist if need be.

        Raises:
            FileNotFoundError: The tests are not there, as CPython's are not with some interpreters.
        """
        if library.origin == "sdist":
            root = self._unpacked(requirement(library.distribution))
        elif library.origin == "wheel":
            root = Path(sysconfig.get_path("purelib", vars={"base": str(self.venv)}))
        else:
            root = Path(sysconfig.get_path("stdlib"))
        root = root.resolve()  # pytest names tests by their real paths
        for tests in library.tests:
            if not (root / tests).exists():
                raise FileNotFoundError(f"{library.name}: there is no {root / tests}")
        return root

    def _unpacked(self, pinned: str) -> Path:
        folder = self.folder / "sdists" / pinned
        if not folder.exists():
            downloads = self.folder / "downloads" / pinned
            # The requirements contain the build backends: pip asks them for the metadata, and builds nothing.
            self._pip(
                "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
                "--dest", str(downloads), pinned,
            )
            (archive,) = downloads.iterdir()
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        (root,) = folder.iterdir()
        return root
