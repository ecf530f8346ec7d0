"""Photographs that come inside installed packages: backgrounds without a download."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.data.images import read_image
from fedsim.errors import InputError

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")

_FILES: dict[Part, tuple[tuple[str, str], ...]] = {
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


def photograph_files(part: Part) -> list[Path]:
    """Return the photograph files of one part; no photograph is in both parts.

    Raises:
        InputError: scikit-image or scikit-learn is not installed, or lacks a file.
    """
    return [_package_file(package, name) for package, name in _FILES[part]]


def photographs(part: Part) -> list[np.ndarray]:
    """Return the photographs of one part, each uint8 (H, W, 3), 300..741 pixels a side.

    Raises:
        InputError: scikit-image or scikit-learn is not installed, or a file cannot be read.
    """
    return [read_image(path) for path in photograph_files(part)]


def photographs_digest() -> str:
    """Return 16 hex digits of the content of all photograph files."""
    digest = hashlib.sha256()
    for part in _FILES:
        for path in photograph_files(part):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _package_file(package: str, name: str) -> Path:
    # The package is looked up, not imported: only its files are wanted.
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"the photographs behind the scenes need the package {package}: "
            "pip install 'fedsim[data]'"
        )
    path = Path(found.submodule_search_locations[0]) / name
    if not path.is_file():
        raise InputError(
            f"the installed {package} lacks the photograph {path}: install the version that "
            "fedsim was tested with, pip install -c constraints.txt 'fedsim[data]'"
        )
    return path
