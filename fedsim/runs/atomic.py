"""Atomic file replacement: write aside, then rename."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

ASIDE = ".tmp-"
"""Prefix of a file that is still being written, in the folder of its final name."""


def aside(path: Path) -> Path:
    """Return the temporary name of `path`; it keeps the suffix."""
    return path.with_name(ASIDE + path.name)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, all or nothing; file and folder survive a power cut afterwards.

    Raises:
        OSError: nothing is left behind and an older `path` is untouched.
    """
    replace_with(path, lambda target: write_synced(target, data))
    sync_folder(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Write `data` to `path` and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_with(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a file beside `path`, then rename that; remove it if `write` fails."""
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


def remove_files(folder: Path, is_ours: Callable[[str], object]) -> None:
    """Remove the files of `folder` with a name of ours, then the folder if it is empty."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if is_ours(entry.name):
                entry.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()
