"""Finding the files of a data set that was distributed as a few named files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsim.errors import InputError

Wanted = Mapping[str, Sequence[str]]
"""What is wanted: key -> the paths it may have below a folder, the preferred one first."""


def find_files(
    title: str, folders: Sequence[Path], wanted: Wanted, advice: str, home: Path | None = None
) -> dict[str, Path]:
    """Return the path of each of the wanted files, all of the first folder that has any.

    `advice` says where `title` comes from, as an imperative that ends before "into FOLDER";
    `home` is that folder, the last one unless given.

    Raises:
        InputError: no folder has any of the files, or the first that has some lacks others.
    """
    for folder in folders:
        found = {
            key: next((folder / name for name in names if (folder / name).is_file()), None)
            for key, names in wanted.items()
        }
        complete = {key: path for key, path in found.items() if path is not None}
        if len(complete) == len(wanted):
            return complete
        if complete:
            missing = [_either(wanted[key]) for key, path in found.items() if path is None]
            raise InputError(
                f"{title} in {folder} is not complete: put {', '.join(missing)} there too"
            )
    expected = ", ".join(_either(names) for names in wanted.values())
    raise InputError(
        f"{title} was not found in {', '.join(map(str, folders))}: {advice} ({expected}) "
        f"into {home or folders[-1]}"
    )


def _either(names: Sequence[str]) -> str:
    first, *others = names
    return f"{first} (or {', '.join(others)})" if others else first
