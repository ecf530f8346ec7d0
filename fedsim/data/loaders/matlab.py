"""Arrays out of MATLAB and HDF5 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedsim.errors import InputError


def read_mat(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Return the named numeric arrays of a MATLAB file of version 4 to 7.

    Raises:
        InputError: a file that is missing, damaged or of version 7.3; an array that it lacks or
            that is not of numbers; scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise _not_installed("scipy") from error
    try:
        found = loadmat(path, variable_names=list(names))
    except NotImplementedError as error:
        raise InputError(
            f"{path} is a MATLAB file of version 7.3; save it again with -v7"
        ) from error
    except Exception as error:  # scipy raises whatever a damaged byte leads to
        raise InputError(
            f"{path} is not a MATLAB file that can be read ({error}); replace it by an undamaged "
            "copy"
        ) from error
    return [_numeric(path, name, found.get(name)) for name in names]


def read_h5(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Return the named numeric arrays (``train/data``) of an HDF5 file.

    Raises:
        InputError: a file that is missing or damaged; an array that it lacks or that is not of
            numbers; h5py is not installed.
    """
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError as error:
        raise _not_installed("h5py") from error
    try:
        with h5py.File(path, "r") as file:
            found = {n: file[n][()] for n in names if isinstance(file.get(n), h5py.Dataset)}
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(
            f"{path} is not an HDF5 file that can be read ({error}); replace it by an undamaged "
            "copy"
        ) from error
    return [_numeric(path, name, found.get(name)) for name in names]


def _numeric(path: Path, name: str, array: np.ndarray | None) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uif":
        raise InputError(
            f"{path} must hold an array {name!r} of numbers; replace it by the file from the source"
        )
    return array


def _not_installed(package: str) -> InputError:
    return InputError(f"reading this file needs {package}: pip install 'fedsim[data]'")
