"""Packaged data files: sheets of small pictures in one PNG, and checksums of all files."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import InputError

COLUMNS = 50
FOLDER = Path(str(files("fedsim.data") / "packaged"))
CHECKSUMS = "checksums.json"


def write_sheet(pictures: np.ndarray, path: Path) -> None:
    """Write pictures uint8 (n, H, W, C), C being 1 or 4, row by row in `COLUMNS` columns."""
    from PIL import Image

    n, height, width, channels = pictures.shape
    rows = -(-n // COLUMNS)
    sheet = np.zeros((rows * COLUMNS, height, width, channels), np.uint8)
    sheet[:n] = pictures
    sheet = sheet.reshape(rows, COLUMNS, height, width, channels).transpose(0, 2, 1, 3, 4)
    pixels = sheet.reshape(rows * height, COLUMNS * width, channels)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path, optimize=True)


def read_sheet(name: str, count: int, size: int) -> np.ndarray:
    """Return the first `count` pictures of a packaged sheet, uint8 (count, size, size, C).

    Raises:
        InputError: a file that is missing or was changed.
    """
    from PIL import Image

    check_file(name)
    with Image.open(FOLDER / name) as image:
        pixels = np.asarray(image)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    rows = pixels.shape[0] // size
    sheet = pixels.reshape(rows, size, COLUMNS, size, pixels.shape[2]).transpose(0, 2, 1, 3, 4)
    return sheet.reshape(rows * COLUMNS, size, size, -1)[:count]


def read_json(name: str) -> Any:
    """Return the content of a packaged JSON file.

    Raises:
        InputError: a file that is missing or was changed.
    """
    check_file(name)
    return json.loads((FOLDER / name).read_text())


def packaged_digest() -> str:
    """Return 12 hex digits that change when any packaged file does."""
    return hashlib.sha256((FOLDER / CHECKSUMS).read_bytes()).hexdigest()[:12]


def check_file(name: str) -> None:
    """Raise `InputError` unless a packaged file has its recorded sha256."""
    try:
        recorded = json.loads((FOLDER / CHECKSUMS).read_text())[name]
        actual = _sha256(FOLDER / name)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{FOLDER / name} cannot be read ({error!r}); install fedsim again"
        ) from error
    if actual != recorded:
        raise InputError(
            f"{FOLDER / name} is not the file that belongs to this version: its sha256 is "
            f"{actual[:12]}..., expected {recorded[:12]}...; install fedsim again"
        )


def write_checksums(folder: Path) -> None:
    """Record the sha256 of all data files of a folder and the folders in it."""
    paths = [p for p in folder.rglob("*") if p.suffix in (".png", ".json", ".safetensors")]
    sums = {p.relative_to(folder).as_posix(): _sha256(p) for p in paths if p.name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1, sort_keys=True) + "\n")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
