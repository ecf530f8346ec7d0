"""Checkpoints survive torn files, full disks and killed processes."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.errors import RunFailed
from fedsim.runs import checkpoint


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "checkpoint"))


def load(folder: Path) -> tuple[int, Any, list[str]]:
    found = checkpoint.load_latest(folder)
    assert found is not None
    return found


def test_newest_two_are_kept(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path) is None
    for round in (1, 2, 9, 10):
        checkpoint.save(tmp_path, round, {"w": torch.full((3,), float(round))})
    assert files(tmp_path) == ["round-10.safetensors", "round-9.safetensors"]
    round, value, warnings = load(tmp_path)
    assert (round, value["w"].tolist(), warnings) == (10, [10.0, 10.0, 10.0], [])


def test_a_future_that_was_given_up_is_removed(tmp_path: Path) -> None:
    for round in (3, 4):
        checkpoint.save(tmp_path, round, round)
    checkpoint.path_of(tmp_path, 4).write_bytes(b"torn")
    assert load(tmp_path)[0] == 3
    checkpoint.save(tmp_path, 4, "again")
    checkpoint.save(tmp_path, 3, "back")
    assert files(tmp_path) == ["round-3.safetensors"]
    assert load(tmp_path)[1] == "back"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_one_is_named_and_passed_over(tmp_path: Path, damage: str) -> None:
    for round in (1, 2):
        checkpoint.save(tmp_path, round, {"w": torch.arange(100.0) + round})
    path = checkpoint.path_of(tmp_path, 2)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-10] ^= 4
    path.write_bytes(bytes({"truncated": data[:-50], "flipped": data, "empty": b""}[damage]))
    round, value, warnings = load(tmp_path)
    assert round == 1
    assert torch.equal(value["w"], torch.arange(100.0) + 1)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"checkpoint {path} is damaged and was skipped: its ") or (
        "it is truncated" in warnings[0]
    )


def test_all_damaged_fails_naming_them(tmp_path: Path) -> None:
    for round in (1, 2):
        checkpoint.save(tmp_path, round, 0)
        checkpoint.path_of(tmp_path, round).write_bytes(b"x")
    with pytest.raises(RunFailed, match=r"round-2\.safetensors is damaged.*round-1\.safetensors"):
        checkpoint.load_latest(tmp_path)


def test_one_whose_states_are_gone_is_skipped(tmp_path: Path) -> None:
    for round in (1, 2):
        checkpoint.save(tmp_path, round, round)

    def usable(value: int) -> None:
        if value == 2:
            raise RunFailed("client states x are missing")

    found = checkpoint.load_latest(tmp_path, usable)
    assert found is not None
    assert found[:2] == (1, 1)
    assert "round-2.safetensors cannot be used" in found[2][0]
    assert "client states x are missing" in found[2][0]


def test_what_cannot_be_saved_touches_nothing(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, 1)
    with pytest.raises(TypeError, match=r"checkpoint\['f'\]: builtin_function_or_method len"):
        checkpoint.save(tmp_path, 2, {"f": len})
    assert files(tmp_path) == ["round-1.safetensors"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("cannot mount a file system here")
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk(small_disk: Path) -> None:
    checkpoint.save(small_disk, 4, torch.zeros(5000))
    with pytest.raises(RunFailed) as failure:
        checkpoint.save(small_disk, 5, torch.zeros(20000))
    text = str(failure.value)
    assert text.startswith(f"cannot write checkpoint {checkpoint.path_of(small_disk, 5)}: No space")
    assert text.endswith("; the checkpoint of round 4 is kept")
    assert files(small_disk) == ["round-4.safetensors"]
    assert load(small_disk)[0] == 4


def test_file_size_limit(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(RunFailed, match=r"File too large.*; the checkpoint of round 1 is kept"):
            checkpoint.save(tmp_path, 2, torch.zeros(10000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert files(tmp_path) == ["round-1.safetensors"]


def test_disk_that_fails_to_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunFailed, match=r"Input/output error.*; there is no earlier one"):
        checkpoint.save(tmp_path, 1, 1)
    assert files(tmp_path) == []


WRITER = """
import os, sys, torch
from pathlib import Path
from fedsim.runs import checkpoint
os.fsync = lambda descriptor: None  # so that most of the time goes into writing
print("ready", flush=True)
for round in range(1, 100000):
    checkpoint.save(Path(sys.argv[1]), round, torch.full((20000,), float(round)))
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1)
    for _ in range(20):
        os.kill(process.pid, signal.SIGSTOP)
        found = checkpoint.load_latest(tmp_path)
        if found is not None:
            round, value, warnings = found
            assert warnings == []
            assert value.unique().tolist() == [round]
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.003)
    process.kill()
    process.wait()
    process.stdout.close()
    last = load(tmp_path)[0]
    checkpoint.save(tmp_path, last + 1, "after")
    assert load(tmp_path)[:2] == (last + 1, "after")


def test_remove_all_leaves_foreign_files(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, 1)
    (tmp_path / "checkpoint" / "notes.txt").write_text("mine")
    checkpoint.remove_all(tmp_path)
    assert files(tmp_path) == ["notes.txt"]
    (tmp_path / "checkpoint" / "notes.txt").unlink()
    checkpoint.remove_all(tmp_path)
    assert not (tmp_path / "checkpoint").exists()
