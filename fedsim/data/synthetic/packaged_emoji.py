"""The packaged emoji: 1,586 emoji by four vendors, with names and keywords."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.data.cache import cached_arrays
from fedsim.data.synthetic.emoji_source import GROUPS, VENDORS, Emoji
from fedsim.data.synthetic.sheets import packaged_digest, read_json, read_sheet

SIZE = 32
TEST_PART = 5
"""One emoji in so many of each group is a test emoji."""


def load_emoji() -> list[Emoji]:
    """Return the emoji, ordered by their code.

    Raises:
        InputError: a packaged file that is missing or was changed.
    """
    return [Emoji(**{**entry, "tags": tuple(entry["tags"])}) for entry in read_json("emoji.json")]


def load_rgba() -> dict[str, Any]:
    """Return the drawings, a row for each vendor and emoji, vendor after vendor.

    `rgba` uint8 (n, 32, 32, 4); `vendor`, `base` (the emoji), `group` and `subgroup` int64 (n,),
    numbers of `vendors`, `emoji`, `groups` and `subgroups`; `is_test` bool (n,), which is the same
    for all drawings of an emoji.

    Raises:
        InputError: a packaged file that is missing or was changed.
    """
    emoji = load_emoji()

    def read() -> Mapping[str, np.ndarray]:
        sheets = [read_sheet(f"emoji32-{v}.png", len(emoji), SIZE) for v in VENDORS]
        return {"rgba": np.concatenate(sheets)}

    pictures = cached_arrays(f"emoji-rgba-1-{packaged_digest()}", read)["rgba"]
    return {"rgba": pictures, **describe(emoji)}


def describe(emoji: Sequence[Emoji]) -> dict[str, Any]:
    """Return the columns of `load_rgba` without the pictures, for these emoji by all vendors."""
    groups = tuple(GROUPS.values())
    subgroups = tuple(sorted({e.subgroup for e in emoji}))
    columns = {
        "base": np.arange(len(emoji)),
        "group": np.array([groups.index(e.group) for e in emoji]),
        "subgroup": np.array([subgroups.index(e.subgroup) for e in emoji]),
        "is_test": _is_test(emoji),
    }
    tiled = {name: np.tile(column, len(VENDORS)) for name, column in columns.items()}
    return {
        **tiled,
        "vendor": np.repeat(np.arange(len(VENDORS)), len(emoji)),
        "emoji": tuple(emoji),
        "groups": groups,
        "subgroups": subgroups,
        "vendors": VENDORS,
    }


def _is_test(emoji: Sequence[Emoji]) -> np.ndarray:
    """Mark a fifth of each group, rounded: those with the smallest hash, a fixed random pick."""
    marks = np.zeros(len(emoji), bool)
    for group in GROUPS.values():
        members = _shuffled([i for i, e in enumerate(emoji) if e.group == group], emoji, "")
        marks[members[: (2 * len(members) + TEST_PART) // (2 * TEST_PART)]] = True
    return marks


def in_part(emoji: Sequence[Emoji], part: tuple[float, float]) -> np.ndarray:
    """Mark the emoji of a part in [0, 1], bool (n,): a range of each group and split.

    Within these they are ordered by another hash, and both ends are rounded to whole emoji, halves
    up: adjacent parts have no emoji in common and leave none out.
    """
    is_test, marks = _is_test(emoji), np.zeros(len(emoji), bool)
    for stratum in ((group, test) for group in GROUPS.values() for test in (False, True)):
        members = [i for i, e in enumerate(emoji) if (e.group, bool(is_test[i])) == stratum]
        low, high = (int(end * len(members) + 0.5) for end in part)
        marks[_shuffled(members, emoji, "part ")[low:high]] = True
    return marks


def _shuffled(members: list[int], emoji: Sequence[Emoji], prefix: str) -> list[int]:
    """Return the members in the order of hashes, which is random but fixed."""
    return sorted(
        members, key=lambda i: hashlib.sha256(f"{prefix}{emoji[i].hexcode}".encode()).digest()
    )
