import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.cache import cache_folder, cached_arrays, verify
from fedsim.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build() -> dict[str, np.ndarray]:
    return {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "y": np.array([7, -1])}


def never() -> dict[str, np.ndarray]:
    raise AssertionError("must not be built")


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def python(code: str, folder: Path) -> "subprocess.Popen[str]":
    prelude = """
    import os, signal, sys, time
    import numpy as np
    from fedsim.data.cache import cached_arrays
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        env={**os.environ, "FEDSIM_CACHE": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_folder_is_home_cache_unless_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FEDSIM_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "fedsim"
    monkeypatch.setenv("FEDSIM_CACHE", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"


def test_arrays_are_built_once_and_mapped_read_only(folder: Path) -> None:
    first = cached_arrays("toy", build)
    second = cached_arrays("toy", never)
    for arrays in (first, second):
        assert isinstance(arrays["x"], np.memmap)
        assert arrays["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert arrays["y"].tolist() == [7, -1]
        assert arrays["x"].dtype == np.uint8
        assert not arrays["x"].flags.writeable
    assert entries(folder) == {"toy"}


def test_checksums_are_those_of_the_files(folder: Path) -> None:
    cached_arrays("toy", build)
    records = json.loads((folder / "toy" / "checksums.json").read_text())
    data = (folder / "toy" / "x.npy").read_bytes()
    assert records["x.npy"] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert set(records) == {"x.npy", "y.npy"}


def test_verify_finds_a_changed_byte(folder: Path) -> None:
    cached_arrays("toy", build)
    assert verify(folder / "toy") == []
    path = folder / "toy" / "y.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert verify(folder / "toy") == ["y.npy"]


@pytest.mark.parametrize("damage", ["cut", "gone", "no checksums", "torn checksums"])
def test_damaged_entry_is_built_again(folder: Path, damage: str) -> None:
    cached_arrays("toy", build)
    x, checksums = folder / "toy" / "x.npy", folder / "toy" / "checksums.json"
    if damage == "cut":
        x.write_bytes(x.read_bytes()[:-1])
    elif damage == "gone":
        x.unlink()
    elif damage == "no checksums":
        checksums.unlink()
    else:
        checksums.write_text(checksums.read_text()[:20])
    assert cached_arrays("toy", build)["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert entries(folder) == {"toy"}
    assert verify(folder / "toy") == []


def test_failing_builder_leaves_nothing(folder: Path) -> None:
    def fail() -> dict[str, np.ndarray]:
        raise InputError("corrupt source")

    with pytest.raises(InputError, match="corrupt source"):
        cached_arrays("toy", fail)
    assert entries(folder) == set()


def test_killed_builder_leaves_no_entry_and_the_next_one_cleans_up(folder: Path) -> None:
    killed = python(
        """
        def build():
            yield_first = np.zeros(1000)
            class Kill(dict):
                def items(self):
                    yield "x", yield_first
                    os.kill(os.getpid(), signal.SIGKILL)
            return Kill()
        cached_arrays("toy", build)
        """,
        folder,
    )
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = entries(folder)
    assert leftover.startswith(".toy.build-")
    assert (folder / leftover / "x.npy").exists()
    assert cached_arrays("toy", build)["y"].tolist() == [7, -1]
    assert entries(folder) == {"toy"}


def test_two_builders_at_once_build_once(folder: Path) -> None:
    code = """
    def build():
        print("built", flush=True)
        time.sleep(1)
        return {"x": np.arange(5)}
    print(cached_arrays("toy", build)["x"].sum())
    """
    processes = [python(code, folder) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(outputs) == [["10"], ["built", "10"]]
    assert entries(folder) == {"toy"}


def test_unusable_folder_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"cannot use the data cache .*; set FEDSIM_CACHE"):
        cached_arrays("toy", build)
