"""Beginning, resuming and replacing runs, without losing foreign files."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedsim.errors import InputError, RunFailed
from fedsim.runs import checkpoint
from fedsim.runs.folder import RunFolder
from fedsim.runs.recorder import Recorder
from tests.support.folders import Manifest

CONFIG = "name: a\nrounds: 30\n"


class BrokenManifest:
    def save(self, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")


def begin(out: Path, force: bool = False) -> RunFolder:
    folder = RunFolder.create(out, "a", 0, force=force)
    folder.begin(CONFIG, {"python": "3"}, Manifest())
    return folder


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_create_writes_nothing_and_begin_makes_a_run(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "runs"
    with RunFolder.create(out, "a", 3) as folder:
        assert not (tmp_path / "deep").exists()
        assert folder.path == out / "a" / "seed-3"
        folder.begin(CONFIG, {"python": "3"}, Manifest())
        assert (folder.path / "config.yaml").read_text() == CONFIG
        assert (folder.path / "partition.npz").read_bytes() == b"manifest"
        assert (folder.path / "environment.json").read_text() == '{\n  "python": "3"\n}\n'
        assert folder.status == "running"
    parts = ["config.yaml", "environment.json", "lock", "partition.npz", "status.json"]
    assert names(folder.path) == parts


def test_an_existing_run_is_refused_with_its_state(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    recorder = Recorder(folder.path / "metrics.db")
    recorder.write_round(7, {})
    recorder.close()
    folder.close()
    with pytest.raises(InputError) as refused:
        RunFolder.create(tmp_path, "a", 0)
    assert str(refused.value) == (
        f"run folder {folder.path} already holds a run (round 7 of 30): continue it with "
        f"`fedsim resume {folder.path}`, or start anew with --force"
    )
    RunFolder.create(tmp_path, "a", 1)


def test_force_replaces_a_run_and_keeps_foreign_files(tmp_path: Path) -> None:
    with begin(tmp_path) as old:
        old.save_model({"w": torch.zeros(2)})
        old.logger().info("old")
        checkpoint.save(old.path, 5, 5)
        Recorder(old.path / "metrics.db").close()
        (old.path / "states").mkdir()
        (old.path / "states" / "round-1-0.states").write_bytes(b"x")
        (old.path / "notes.txt").write_text("mine")
        (old.path / "checkpoint" / "best.txt").write_text("mine")
    with RunFolder.create(tmp_path, "a", 0, force=True) as new:
        assert (old.path / "model.safetensors").exists()
        new.begin("name: b\n", {}, Manifest(b"new"))
        assert names(new.path) == [
            "checkpoint",
            "config.yaml",
            "environment.json",
            "lock",
            "notes.txt",
            "partition.npz",
            "status.json",
        ]
        assert names(new.path / "checkpoint") == ["best.txt"]
        assert (new.path / "partition.npz").read_bytes() == b"new"


def test_force_keeps_the_old_run_if_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    begin(tmp_path).close()
    folder = RunFolder.create(tmp_path, "a", 0, force=True)
    with pytest.raises(RunFailed, match=r"cannot write run folder .*: No space left on device"):
        folder.begin("name: b\n", {}, BrokenManifest())
    assert (folder.path / "config.yaml").read_text() == CONFIG
    assert not [n for n in names(folder.path) if n.startswith(".tmp")]
    RunFolder.open(folder.path)


def test_a_first_run_that_cannot_be_written_leaves_no_folder(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "a", 0)
    with pytest.raises(RunFailed):
        folder.begin(CONFIG, {}, BrokenManifest())
    assert not folder.path.exists()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml", "status.json"])
def test_foreign_files_are_never_touched(tmp_path: Path, force: bool, name: str) -> None:
    place = tmp_path / "a" / "seed-0"
    place.mkdir(parents=True)
    (place / name).write_text("mine")
    with pytest.raises(InputError, match=rf"holds files that are not of a run \({name}\); choose"):
        RunFolder.create(tmp_path, "a", 0, force=force)
    assert names(place) == [name]


def test_what_a_killed_begin_left_is_taken_over(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    folder.close()
    (folder.path / "config.yaml").unlink()
    (folder.path / ".tmp-config.yaml").write_text("half")
    with pytest.raises(InputError, match=r"it has no config\.yaml"):
        RunFolder.open(folder.path)
    begin(tmp_path).close()
    assert (folder.path / "config.yaml").read_text() == CONFIG
    for name in ("status.json", "environment.json", "partition.npz", "config.yaml"):
        (folder.path / name).unlink()
    (folder.path / ".tmp-status.json").write_text("half")
    begin(tmp_path).close()
    RunFolder.open(folder.path)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot create run folder .*: .*file is not a folder"):
        RunFolder.create(tmp_path / "file" / "runs", "a", 0)
    for name in ("../up", "", "/abs"):
        with pytest.raises(InputError, match="name must be usable as a folder's name, got"):
            RunFolder.create(tmp_path, name, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="is not writable"):
        RunFolder.create(tmp_path, "a", 0)


def test_open_says_what_is_missing(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    folder.close()
    with pytest.raises(
        InputError, match=r"there is no run folder .*seed-1\. Did you mean 'seed-0'"
    ):
        RunFolder.open(tmp_path / "a" / "seed-1")
    with pytest.raises(InputError, match=r"it contains the runs .*a/seed-0"):
        RunFolder.open(tmp_path)
    (folder.path / "partition.npz").unlink()
    with pytest.raises(InputError, match=r"seed-0 is not a run: it has no partition\.npz$"):
        RunFolder.open(folder.path)


def test_status(tmp_path: Path) -> None:
    with begin(tmp_path) as folder:
        reader = RunFolder.open(folder.path)
        assert reader.status == "running"
        folder.set_status("failed", "RunFailed: too few")
        assert (reader.status, reader.status_text) == ("failed", "RunFailed: too few")
        folder.set_status("running")
        assert (reader.status, reader.status_text) == ("running", None)
        with pytest.raises(ValueError, match="status must be one of"):
            folder.set_status("done")
    assert reader.status == "interrupted"


HOLDER = """
import sys, time
from pathlib import Path
from fedsim.runs.folder import RunFolder
class Manifest:
    def save(self, path): path.write_bytes(b"m")
folder = RunFolder.create(Path(sys.argv[1]), "a", 0)
folder.begin("rounds: 30", {}, Manifest())
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process at work in the run folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_lock_ends_with_the_process(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    path = tmp_path / "a" / "seed-0"
    message = rf"another run \(pid {holder.pid}\) is at work in {path}"
    folder = RunFolder.open(path)
    assert folder.status == "running"
    with pytest.raises(InputError, match=message), folder:
        pass
    with pytest.raises(InputError, match=message):
        RunFolder.create(tmp_path, "a", 0, force=True)
    with pytest.raises(InputError, match="already holds a run"):
        RunFolder.create(tmp_path, "a", 0)

    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert folder.status == "interrupted"
    with folder:
        assert (path / "lock").read_text() == str(os.getpid())
        with pytest.raises(InputError, match=rf"pid {os.getpid()}"):
            RunFolder.open(path).lock()
    with RunFolder.open(path):
        pass


def test_a_reader_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    folder.close()
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH);"
            "print('ready', flush=True); time.sleep(0.03)",
            str(folder.path / "lock"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    reader.stdout.readline()
    with RunFolder.open(folder.path):
        pass
    reader.wait()
    reader.stdout.close()


def test_model_is_written_by_name_and_logical_shape(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    tensors = {"conv": flat[:8].view(2, 2, 2, 1).permute(0, 3, 1, 2), "bias": flat[8:]}
    with begin(tmp_path) as folder:
        folder.save_model(tensors)
    loaded = safetensors.torch.load_file(folder.path / "model.safetensors")
    assert {k: v.shape for k, v in loaded.items()} == {"conv": (2, 1, 2, 2), "bias": (4,)}
    assert all(torch.equal(loaded[k], tensors[k]) for k in tensors)


def test_log_has_utc_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    with begin(tmp_path) as folder:
        logger = folder.logger()
        assert folder.logger() is logger
        logger.info("round %d", 1)
    assert (folder.path / "log.txt").read_text() == "1970-01-01T00:00:00Z INFO round 1\n"
    assert logger.handlers == []
    assert logger.name not in logging.root.manager.loggerDict
