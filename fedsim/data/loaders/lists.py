"""List files: the path of an image and the number of its class on each line."""

from __future__ import annotations

from pathlib import Path

from fedsim.data.sources import refusing
from fedsim.errors import InputError


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    try:
        with refusing(f"{path} cannot be read: {{error}}", OSError):
            return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}); save it in that encoding"
        ) from error


def read_list(path: Path, first: int = 0) -> list[tuple[str, int]]:
    """Return (image path, class counted from 0) of each line ``path number``.

    `first` is the number that the file gives the first class. Empty lines do not count.

    Raises:
        InputError: a line of another form, a number below `first`, no line at all.
    """
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        image, _, label = line.strip().rpartition(" ")
        if not image or not label.isdecimal() or int(label) < first:
            raise InputError(
                f"line {number} of {path} must be an image's path and the number of its class, "
                f"at least {first}, got {line!r}"
            )
        rows.append((image.strip(), int(label) - first))
    if not rows:
        raise InputError(f"{path} lists no image; replace it by the file from the source")
    return rows
