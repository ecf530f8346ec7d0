"""On-disk cache of arrays, built once and memory-mapped by every process of the machine.

The folder is ``$FEDSIM_CACHE``, else ``~/.cache/fedsim``. An entry is a folder of ``.npy`` files
with a ``checksums.json``; it appears by one rename, so a killed builder leaves no half entry,
and only the holder of the entry's lock builds, so two builders at once are safe. An array larger
than memory is built as a `Stream`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fedsim.data.sources import refusing
from fedsim.errors import InputError

_CHECKSUMS = "checksums.json"
_HOLE = 1 << 16
"""Bytes, all zero, that are left out of a file that is being written."""


@dataclass(frozen=True)
class Stream:
    """An array that a builder yields piece by piece, as it may be larger than memory.

    `rows` yields arrays (k, ...) of `dtype`, k >= 0, that together are the array of `shape`;
    each is written before the next is requested. The arrays of an entry are written in the order
    of the builder's mapping, so a later array may be filled in while an earlier one is streamed.
    """

    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    rows: Iterable[np.ndarray]


Array = np.ndarray | Stream
Arrays = Mapping[str, Array]


def cache_folder() -> Path:
    """Return the folder of all cached arrays; it need not exist."""
    configured = os.environ.get("FEDSIM_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "fedsim"


def cached_arrays(key: str, build: Callable[[], Arrays]) -> dict[str, np.ndarray]:
    """Return the arrays of entry `key` as read-only memory maps, built by `build` if absent.

    `key` is a file name that must change whenever the content does. An entry whose file sizes
    differ from the recorded ones is built again.

    Raises:
        InputError: the folder cannot be read or written; and whatever `build` raises.
        ValueError: a `Stream` whose rows are not those of its shape and dtype.
    """
    root = cache_folder()
    advice = "set FEDSIM_CACHE to a folder that can be written and has space"
    with refusing(f"cannot use the data cache {root}: {{error}}; {advice}", OSError):
        if (arrays := _open(root / key)) is not None:
            return arrays
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{key}.lock"):
            if (arrays := _open(root / key)) is not None:  # built by another process meanwhile
                return arrays
            for leftover in root.glob(f".{key}.build-*"):  # of a builder that was killed
                shutil.rmtree(leftover)
            _build(root, key, build)
            arrays = _open(root / key)
    if arrays is None:
        raise InputError(f"the data cache {root / key} changed while it was opened; try again")
    return arrays


def verify(folder: Path) -> list[str]:
    """Return the names of the entry's files whose sha256 differs from the recorded one."""
    damaged = []
    for name, record in json.loads((folder / _CHECKSUMS).read_text()).items():
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != record["sha256"]:
                damaged.append(name)
    return damaged


def _open(folder: Path) -> dict[str, np.ndarray] | None:
    """Map the entry's arrays; None if it is absent or a file differs from its recorded size."""
    try:
        records = json.loads((folder / _CHECKSUMS).read_text())
        if any((folder / n).stat().st_size != r["bytes"] for n, r in records.items()):
            return None
        return {n.removesuffix(".npy"): np.load(folder / n, mmap_mode="r") for n in records}
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _build(root: Path, key: str, build: Callable[[], Arrays]) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{key}.build-", dir=root))
    try:
        records = {f"{n}.npy": _write(aside / f"{n}.npy", a) for n, a in build().items()}
        with open(aside / _CHECKSUMS, "w") as file:
            json.dump(records, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if damaged := verify(aside):
            raise OSError(f"{', '.join(damaged)} read back differently than written")
        if (root / key).exists():  # damaged: processes that have it mapped keep their pages
            (root / key).rename(root / f".{key}.build-damaged")
            shutil.rmtree(root / f".{key}.build-damaged")
        aside.chmod(0o755)  # mkdtemp's 0700 would hide a shared cache from other users
        aside.rename(root / key)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


class _HashingWriter:
    """Writes to a file and hashes the data as passed in, not as the disk holds it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        if len(data) >= _HOLE and data.count(0) == len(data):
            self.file.seek(len(data), os.SEEK_CUR)  # zeros that take no space on the disk
            return len(data)
        return self.file.write(data)


def _write(path: Path, array: np.ndarray | Stream) -> dict[str, str | int]:
    """Write one ``.npy`` through to the disk; return its record of the checksum file."""
    with open(path, "wb") as file:
        writer = _HashingWriter(file)
        if isinstance(array, Stream):
            _write_stream(writer, path.stem, array)
        else:
            np.lib.format.write_array(writer, np.ascontiguousarray(array), allow_pickle=False)
        file.truncate()  # a file that ends in a hole is as long as its data
        file.flush()
        os.fsync(file.fileno())
        return {"sha256": writer.hash.hexdigest(), "bytes": file.tell()}


def _write_stream(writer: _HashingWriter, name: str, stream: Stream) -> None:
    dtype, (total, *rest) = np.dtype(stream.dtype), stream.shape
    if dtype.hasobject:
        raise ValueError(f"stream {name} must not be of Python objects, got dtype {dtype}")
    descr, shape = np.lib.format.dtype_to_descr(dtype), tuple(map(int, stream.shape))
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(writer, header)
    written = 0
    for rows in stream.rows:
        if rows.dtype != dtype or list(rows.shape[1:]) != rest:
            raise ValueError(
                f"rows of stream {name} must be {dtype} of the shape (k, {str(rest)[1:-1]}), got "
                f"{rows.dtype} of {rows.shape}"
            )
        written += len(rows)
        if written > total:
            break
        writer.write(np.ascontiguousarray(rows).tobytes())
    if written != total:
        more = "or more " if written > total else ""
        raise ValueError(f"stream {name} must have {total} rows, got {written} {more}".rstrip())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`; the kernel releases it when the holder ends or is killed."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
