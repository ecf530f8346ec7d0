"""A user's raw files: where to look for them, how to recognise a change, what to say if absent."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fedsim.errors import InputError

T = TypeVar("T")

FileNames = Mapping[str, Sequence[str]]
"""Key of a file -> the paths it may have below a folder, the preferred one first."""


def data_folders(name: str, root: str | None = None) -> list[Path]:
    """Return the folders to search for the files of data set `name`, in this order.

    With `root` it is the only one; else ``$FEDSIM_DATA/<name>``, if set, and
    ``~/.fedsim/data/<name>``.
    """
    if root is not None:
        return [Path(root).expanduser()]
    folders = [Path.home() / ".fedsim" / "data" / name]
    if configured := os.environ.get("FEDSIM_DATA"):
        folders.insert(0, Path(configured).expanduser() / name)
    return folders


def find_files(
    title: str, folders: Sequence[Path], names: FileNames, advice: str, home: Path | None = None
) -> dict[str, Path]:
    """Return the path of every file, all from the first folder that has any of them.

    `advice` says where `title` comes from, as an imperative that ends before "into FOLDER";
    `home` is that folder, by default the last one.

    Raises:
        InputError: no folder has any of the files, or the first that has some lacks others.
    """
    for folder in folders:
        paths = {
            key: next((folder / name for name in choices if (folder / name).is_file()), None)
            for key, choices in names.items()
        }
        present = {key: path for key, path in paths.items() if path is not None}
        if len(present) == len(names):
            return present
        if present:
            missing = ", ".join(_either(names[key]) for key in names if key not in present)
            raise InputError(f"{title} in {folder} is not complete: put {missing} there too")
    expected = ", ".join(map(_either, names.values()))
    raise not_found(title, folders, f"{advice} ({expected}) into {home or folders[-1]}")


def not_found(title: str, folders: Sequence[Path], advice: str) -> InputError:
    """Return the error for a data set that is in none of the folders."""
    return InputError(f"{title} was not found in {', '.join(map(str, folders))}: {advice}")


def _either(names: Sequence[str]) -> str:
    first, *others = names
    return f"{first} (or {', '.join(others)})" if others else first


@contextmanager
def refusing(message: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn `errors` of the block into an `InputError` of that message.

    ``{error}`` in the message is replaced by the error's own text.
    """
    try:
        yield
    except InputError:
        raise
    except errors as error:
        raise InputError(message.replace("{error}", str(error))) from error


def digest(*parts: str | bytes) -> str:
    """Return 16 hex digits of the parts in turn, for the key of a cache entry."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part if isinstance(part, bytes) else part.encode(errors="surrogateescape"))
    return whole.hexdigest()[:16]


def fingerprint(paths: Iterable[Path]) -> str:
    """Return 16 hex digits that change when a file does: by path, size and modification time."""
    identity = []
    for path in sorted(paths):
        stat = path.stat()
        identity.append(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}")
    return digest("\n".join(identity))


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yield the items under a progress bar on stderr; without a bar if that is no terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(items, title, total=total, console=Console(stderr=True), transient=True)
