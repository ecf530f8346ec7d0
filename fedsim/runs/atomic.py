"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

ASIDE = ".tmp-"
"""Prefix of a file that is being written beside its final name."""


def aside(path: Path) -> Path:
    """Return the name under which `path` is written before it is renamed (same suffix)."""
    return path.with_name(ASIDE + path.name)


def write_atomic(path: Path, data: bytes, *, fsync: bool = True) -> None:
    """Write `data` to `path` aside, then rename.

    With `fsync` file and folder are on the disk when this returns; without it the file
    survives the death of the process, not a power cut.

    Raises:
        OSError: nothing is left behind and an older `path` is untouched.
    """

    def write(target: Path) -> None:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if fsync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    replace_with(path, write)
    if fsync:
        sync_folder(path.parent)


def replace_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it; remove it if `write` fails."""
    target = aside(path)
    try:
        write(target)
        target.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make renames and deletions inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: OSError) -> str:
    """Return the sentence of an `OSError` without its number and file name."""
    return error.strerror or str(error)
