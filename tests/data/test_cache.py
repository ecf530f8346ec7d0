import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.cache import Stream, cache_folder, cached_arrays, verify
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


def test_stream_is_written_piece_by_piece(folder: Path) -> None:
    seen: list[int] = []

    def pieces() -> Iterator[np.ndarray]:
        for start, stop in ((0, 2), (2, 2), (2, 5)):
            seen.append(start)
            # Rows of a transposed array are not contiguous.
            yield np.arange(3 * start, 3 * stop, dtype=np.int16).reshape(3, -1, order="F").T

    def total() -> Iterator[np.ndarray]:
        yield np.array([sum(seen)])

    def build() -> dict[str, Stream]:
        return {"x": Stream((5, 3), np.int16, pieces()), "seen": Stream((1,), np.int64, total())}

    arrays = cached_arrays("toy", build)
    assert arrays["x"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14]]
    assert isinstance(arrays["x"], np.memmap)
    assert (arrays["x"].dtype, arrays["seen"].tolist()) == (np.int16, [4])
    assert verify(folder / "toy") == []
    # The same file, to the byte, as of an array in memory.
    cached_arrays("whole", lambda: {"x": np.arange(15, dtype=np.int16).reshape(5, 3)})
    assert (folder / "toy/x.npy").read_bytes() == (folder / "whole/x.npy").read_bytes()


def test_stream_without_rows(folder: Path) -> None:
    arrays = cached_arrays("toy", lambda: {"x": Stream((0, 2), "float32", iter(()))})
    assert (arrays["x"].shape, arrays["x"].dtype) == ((0, 2), np.float32)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([(2, 3)], r"stream x must have 4 rows, got 2$"),
        ([(2, 3), (3, 3), (9, 3)], r"stream x must have 4 rows, got 5 or more$"),
        ([(4, 2)], r"rows of stream x must be uint8 of the shape \(k, 3\), got uint8 of \(4, 2\)"),
    ],
)
def test_stream_of_wrong_rows_leaves_nothing(
    folder: Path, pieces: list[tuple[int, int]], message: str
) -> None:
    def build() -> dict[str, Stream]:
        return {"x": Stream((4, 3), np.uint8, (np.zeros(s, np.uint8) for s in pieces))}

    with pytest.raises(ValueError, match=message):
        cached_arrays("toy", build)
    assert entries(folder) == set()


@pytest.mark.parametrize(
    ("dtype", "message"),
    [(np.float64, "must be float64 .* got uint8"), (object, "must not be of Python objects")],
)
def test_stream_of_a_wrong_dtype(folder: Path, dtype: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cached_arrays("toy", lambda: {"x": Stream((1,), dtype, [np.zeros(1, np.uint8)])})
    assert entries(folder) == set()


def test_killed_stream_leaves_no_entry(folder: Path) -> None:
    killed = python(
        """
        from fedsim.data.cache import Stream
        def rows():
            yield np.zeros((1, 2))
            os.kill(os.getpid(), signal.SIGKILL)
        cached_arrays("toy", lambda: {"x": Stream((9, 2), float, rows())})
        """,
        folder,
    )
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "toy").exists()
    assert cached_arrays("toy", build)["y"].tolist() == [7, -1]
    assert entries(folder) == {"toy"}
