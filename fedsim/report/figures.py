"""Writing pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.errors import InputError
from fedsim.runs.files import reason, replace_with

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")


def check_target(path: Path) -> None:
    """Raise `InputError` if a picture can not be written to `path` at all."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"a picture's name must end in {', '.join(FORMATS)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")


def write_figure(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all; its format follows from the name.

    Raises:
        InputError: an unknown format, or a file that can not be written.
    """
    check_target(path)
    # Without a date the same picture is the same file.
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    metadata = undated.get(path.suffix.lower())
    try:
        replace_with(path, lambda target: figure.savefig(target, metadata=metadata))
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from error
