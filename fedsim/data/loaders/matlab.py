"""Arrays out of MATLAB and HDF5 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.sources import refusing
from fedsim.errors import InputError

_PACKAGE = "reading this file needs {}: pip install 'fedsim[data]'"
_DAMAGED = "{} is not {} file that can be read ({{error}}); replace it by an undamaged copy"


def read_mat(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Return the named numeric arrays of a MATLAB file of version 4 to 7.

    Raises:
        InputError: a file that is missing, damaged or of version 7.3; an array that it lacks or
            that is not of numbers; scipy is not installed.
    """
    with refusing(_PACKAGE.format("scipy"), ImportError):
        from scipy.io import loadmat
    newer = f"{path} is a MATLAB file of version 7.3; save it again with -v7"
    damaged = _DAMAGED.format(path, "a MATLAB")
    # scipy raises whatever a damaged byte leads to
    with refusing(damaged, Exception), refusing(newer, NotImplementedError):
        arrays = loadmat(path, variable_names=list(names))
    return [_numeric(path, name, arrays.get(name)) for name in names]


def read_h5(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Return the named numeric arrays (``train/data``) of an HDF5 file.

    Raises:
        InputError: a file that is missing or damaged; an array that it lacks or that is not of
            numbers; h5py is not installed.
    """
    with refusing(_PACKAGE.format("h5py"), ImportError):
        import h5py  # type: ignore[import-untyped]
    with (
        refusing(_DAMAGED.format(path, "an HDF5"), OSError, RuntimeError, KeyError),
        h5py.File(path, "r") as file,
    ):
        arrays = {n: file[n][()] for n in names if isinstance(file.get(n), h5py.Dataset)}
    return [_numeric(path, name, arrays.get(name)) for name in names]


def _numeric(path: Path, name: str, array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uif":
        raise InputError(
            f"{path} must hold an array {name!r} of numbers; replace it by the file from the source"
        )
    return array
