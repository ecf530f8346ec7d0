"""JSON annotation files: reading them, with their entries checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.data.sources import refusing
from fedsim.errors import InputError

Fields = Mapping[str, type | tuple[type, ...]]
"""Key of an entry -> the type, or the types, that its value may have."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        InputError: a file that is missing, cut short, not UTF-8, not JSON, or no object.
    """
    data = read_any_json(path)
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(data).__name__}; replace it")
    return data


def read_any_json(path: Path) -> Any:
    """Return the content of a JSON file, of any type.

    Raises:
        InputError: a file that is missing, cut short, not UTF-8, or not JSON.
    """
    advice = f"{path} cannot be read as JSON ({{error}}); put an undamaged copy there"
    with refusing(advice, OSError, ValueError, RecursionError):
        data = path.read_bytes()
        with refusing(f"{path} is not UTF-8 ({{error}}); replace it", UnicodeDecodeError):
            text = data.decode()
        return json.loads(text)


def entries(
    data: Mapping[str, Any], key: str, fields: Fields, where: Path | str
) -> list[dict[str, Any]]:
    """Return the list of objects ``data[key]``, each of which has the `fields`.

    `where` names the file, and the place in it, in messages.

    Raises:
        InputError: no such list; the first wrong entry is named.
    """
    values = data.get(key)
    if not isinstance(values, list):
        raise InputError(f"{where} must have a list {key!r}; is it the right file?")
    for number, entry in enumerate(values):
        check_fields(entry, fields, f"{key}[{number}] of {where}")
    return values


def check_fields(entry: Any, fields: Fields, where: str) -> None:
    """Raise `InputError` unless an object has the `fields`; a truth value is no number."""
    for name, kinds in fields.items():
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, kinds) or isinstance(value, bool):
            names = [kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
            raise InputError(
                f"{where} must have {name!r} of type {' or '.join(names)}, got {value!r}; is it "
                "the right file?"
            )
