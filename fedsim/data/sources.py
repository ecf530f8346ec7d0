"""Finding a user's raw files: where they are looked for, what they are, how far reading is."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def data_folders(name: str, root: str | None = None) -> list[Path]:
    """Return the folders to look for the files of data set `name` in, in this order.

    With `root` it is the only one; else ``$FEDSIM_DATA/<name>``, if set, and
    ``~/.fedsim/data/<name>``.
    """
    if root is not None:
        return [Path(root).expanduser()]
    folders = [Path.home() / ".fedsim" / "data" / name]
    if configured := os.environ.get("FEDSIM_DATA"):
        folders.insert(0, Path(configured).expanduser() / name)
    return folders


def fingerprint(paths: Iterable[Path]) -> str:
    """Return 16 hex digits that change when a file does: by path, size and time of change."""
    identity = []
    for path in sorted(paths):
        stat = path.stat()
        identity.append(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(identity).encode(errors="surrogateescape")).hexdigest()[:16]


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show a progress bar on stderr; silent where that is no terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(items, what, total=total, console=Console(stderr=True), transient=True)
