"""Files that map each image to its user."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fedsim.data.loaders.lists import read_lines
from fedsim.data.sources import refusing
from fedsim.errors import InputError

_USERS = ("user_id", "user", "owner", "rights_holder")
_IMAGES = ("image_id", "path", "file_name", "image")


def read_owners(path: Path) -> dict[str, str]:
    """Return image -> user of a CSV or JSON file.

    A CSV file has a header with a column ``user_id`` (or user, owner, rights_holder) and one
    ``image_id`` (or path, file_name, image). A JSON file is a mapping image -> user, or has a list
    ``images`` of mappings with such keys, as COCO's and iNaturalist's do.

    Raises:
        InputError: a file that cannot be read or has another form.
    """
    text = "\n".join(read_lines(path))
    with refusing(f"{path} cannot be read: {{error}}", ValueError, RecursionError, csv.Error):
        if path.suffix == ".json":
            rows = json.loads(text)
        else:
            rows = list(csv.DictReader(text.split("\n")))
    if isinstance(rows, dict) and isinstance(rows.get("images"), list):
        rows = rows["images"]
    if isinstance(rows, dict):
        rows = [{"user": user, "image": image} for image, user in rows.items()]
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path} names no image; it must be a mapping or a list of images")
    return dict(_pair(path, row) for row in rows)


def owner_numbers(
    images: Sequence[str], owners: dict[str, str], path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the number of each image's user, int64 (n,), -1 for none, and the users, sorted.

    An image is known by its path or its name, with or without the suffix. `path` is the file
    that messages name.

    Raises:
        InputError: no image has a user.
    """
    user_of: list[str | None] = []
    for image in images:
        pure = PurePosixPath(image)
        names = (image, str(pure.with_suffix("")), pure.name, pure.stem)
        user_of.append(next((owners[name] for name in names if name in owners), None))
    users = sorted({user for user in user_of if user is not None})
    if not users:
        raise InputError(
            f"{path} names none of the training images: it has, for example, "
            f"{next(iter(owners))!r}, the first image is {images[0]!r}"
        )
    number = {None: -1} | {user: i for i, user in enumerate(users)}
    return np.array([number[user] for user in user_of], np.int64), tuple(users)


def _pair(path: Path, row: Any) -> tuple[str, str]:
    if isinstance(row, dict):
        user, image = (
            next((row[key] for key in keys if row.get(key) not in (None, "")), None)
            for keys in (_USERS, _IMAGES)
        )
        if isinstance(user, (str, int)) and isinstance(image, (str, int)):
            return str(image), str(user)
    raise InputError(
        f"{path} must name for each image a user ({', '.join(_USERS)}) and the image "
        f"({', '.join(_IMAGES)}), got {str(row)[:100]}"
    )
