"""Photographs inside installed packages: backgrounds without a download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from fedsim.data.dataset import SplitName
from fedsim.data.images import read_image
from fedsim.data.sources import digest
from fedsim.errors import InputError

_FILES: dict[SplitName, tuple[tuple[str, str], ...]] = {
    "train": (
        ("sklearn", "datasets/images/china.jpg"),
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/motorcycle_left.png"),
        ("skimage", "data/brick.png"),
        ("skimage", "data/gravel.png"),
    ),
    "test": (
        ("sklearn", "datasets/images/flower.jpg"),
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/rocket.jpg"),
        ("skimage", "data/camera.png"),
        ("skimage", "data/grass.png"),
    ),
}
"""Only files of the wheels themselves; scikit-image downloads its other samples."""


def photograph_files(split: SplitName) -> list[Path]:
    """Return the photograph files of one split; no photograph is in both.

    Raises:
        InputError: scikit-image or scikit-learn is not installed, or lacks a file.
    """
    return [_package_file(package, name) for package, name in _FILES[split]]


def photographs(split: SplitName) -> list[np.ndarray]:
    """Return the photographs of one split, each uint8 (H, W, 3), 300..741 pixels a side.

    Raises:
        InputError: scikit-image or scikit-learn is not installed, or a file cannot be read.
    """
    return [read_image(path) for path in photograph_files(split)]


def photographs_digest() -> str:
    """Return 16 hex digits of the content of all photograph files."""
    return digest(*(path.read_bytes() for split in _FILES for path in photograph_files(split)))


def _package_file(package: str, name: str) -> Path:
    # Looked up without an import: only the package's files are of use.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the photographs behind the scenes need the package {package}: "
            "pip install 'fedsim[data]'"
        )
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        raise InputError(
            f"the installed {package} lacks the photograph {path}: install the version that "
            "fedsim was tested with, pip install -c constraints.txt 'fedsim[data]'"
        )
    return path
