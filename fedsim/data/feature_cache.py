"""On-disk cache of a frozen network's features, a row a sample."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fedsim.data.cache import cache_folder
from fedsim.data.sources import refusing
from fedsim.errors import check


class FeatureCache:
    """Rows of features, one a sample of a split, computed on first use.

    `key` is a file name that identifies everything they depend on: the data set and its split, the
    network's weights, the layer. The array is float32 (rows, *shape), memory-mapped, and shared by
    all processes of the machine. Two that compute a row at once write the same bytes. `max_bytes`
    bounds the file: rows beyond it are recomputed on every use.

    Raises:
        InputError: a key that is no file name, or a folder that cannot be written.
    """

    def __init__(
        self, key: str, rows: int, shape: tuple[int, ...], max_bytes: int = 8 * 2**30
    ) -> None:
        check(re.fullmatch(r"[\w.+=-]{1,200}", key) is not None, "key must be a file name", key)
        check(rows >= 1, "rows must be >= 1", rows)
        row_bytes = 4 * int(np.prod(shape))
        self.kept = min(rows, max_bytes // row_bytes)
        folder = cache_folder() / "features"
        self._shape = shape
        if self.kept == 0:
            return
        advice = "set FEDSIM_CACHE to a folder that can be written and has space"
        with refusing(f"cannot use the feature cache {folder}: {{error}}; {advice}", OSError):
            folder.mkdir(parents=True, exist_ok=True)
            values, known = folder / f"{key}.f32", folder / f"{key}.known"
            if _size(known) > _size(values) // row_bytes:  # sized in the order of creation
                # Values were lost or cut and would read as zeros. A process at work keeps its file.
                known.unlink(missing_ok=True)
            self._values = self._open(values, np.float32, (self.kept, *shape))
            self._known = self._open(known, np.uint8, (self.kept,))

    @staticmethod
    def _open(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        # Full size from the start: what was never written reads as zeros and takes no space.
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
        return np.memmap(path, dtype=dtype, mode="r+", shape=shape)

    def get(self, rows: np.ndarray, compute: Callable[[np.ndarray], torch.Tensor]) -> torch.Tensor:
        """Return the features of `rows` int64 (k,) as a new tensor, float32 (k, *shape).

        ``compute(row)`` is called for those not cached yet, with one row at a time: the bits of a
        matrix product depend on what else is in the batch, and those of a cached row must not
        depend on the first caller.

        Raises:
            ValueError: `compute` returns another shape.
        """
        rows = np.asarray(rows, np.int64)
        out = np.empty((len(rows), *self._shape), np.float32)
        known = np.zeros(len(rows), bool)
        inside = np.flatnonzero(rows < self.kept)
        if len(inside):
            known[inside] = self._known[rows[inside]] == 1
            out[known] = self._values[rows[known]]
        for place in np.flatnonzero(~known):
            row = rows[place]
            features = compute(rows[place : place + 1]).detach().to("cpu", torch.float32).numpy()
            if features.shape != (1, *self._shape):
                raise ValueError(
                    f"features of a sample must have the shape {(1, *self._shape)}, got "
                    f"{features.shape}"
                )
            out[place] = features[0]
            if row < self.kept:
                self._values[row] = features[0]
                # Marked last: a process killed in between leaves rows that count as unknown.
                self._known[row] = 1
        return torch.from_numpy(out)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
