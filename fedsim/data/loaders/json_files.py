"""JSON files of annotations: read, with their entries checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        InputError: a file that is missing, cut short, not UTF-8, not JSON, or no object.
    """
    try:
        data = json.loads(path.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}); replace it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({error}); replace it by an undamaged copy"
        ) from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(data).__name__}; replace it")
    return data


def entries(
    data: Mapping[str, Any], key: str, fields: Mapping[str, type], where: Path | str
) -> list[dict[str, Any]]:
    """Return the list of objects ``data[key]``, each of which has `fields` of the types given.

    `where` names the file, and the place in it, in messages.

    Raises:
        InputError: it is no such list; the first wrong entry is named.
    """
    found = data.get(key)
    if not isinstance(found, list):
        raise InputError(f"{where} must have a list {key!r}; is it the right file?")
    for number, entry in enumerate(found):
        for name, kind in fields.items():
            value = entry.get(name) if isinstance(entry, dict) else None
            if not isinstance(value, kind):
                raise InputError(
                    f"{key}[{number}] of {where} must have a {name!r} of type {kind.__name__}, "
                    f"got {value!r}; is it the right file?"
                )
    return found
