"""The emoji of generated scenes: by group and vendor, with test emoji kept apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedsim.data.dataset import SPLITS, SplitName
from fedsim.data.sources import digest
from fedsim.data.synthetic.packaged_emoji import load_rgba
from fedsim.data.synthetic.photographs import photographs_digest
from fedsim.data.synthetic.scenes import VISIBLE, choose
from fedsim.errors import check, nearest

GROUPS = ("smileys", "animals", "food", "travel")
"""The default groups: four that look different."""

_SMALLEST, _LARGEST = 20, 48  # sides of a pasted emoji in a scene of 128 pixels

_LEAST_PIXELS = 64  # visible ones, of 1,024, that an emoji needs to be used

SOURCE = (
    "made here from the packaged emoji of "
    "four vendors and the sample photographs of scikit-learn and scikit-image"
)
LICENCE = (
    "that of the drawings used (Noto Apache-2.0, Twemoji CC-BY-4.0, OpenMoji CC-BY-SA-4.0, "
    "Fluent MIT) and of the photographs (CC-BY-2.0, CC0 and public domain)"
)


@dataclass(frozen=True, eq=False)
class EmojiPool:
    """The emoji to choose from, by class.

    `pictures` are all packaged ones, uint8 (m, 32, 32, 4); `rows` maps a split to the rows of each
    class, sorted. No base emoji is in both splits, in whatever vendor's drawing.
    """

    pictures: np.ndarray
    classes: tuple[str, ...]
    vendors: tuple[str, ...]
    rows: Mapping[SplitName, tuple[np.ndarray, ...]]

    @cached_property
    def is_full(self) -> np.ndarray:
        """Whether the visible part of a picture reaches over 60 % of its square, bool (m,)."""
        visible = self.pictures[..., 3] >= VISIBLE
        wide, high = (_extent(np.any(visible, axis=axis)) for axis in (1, 2))
        return wide * high >= 0.6 * visible.shape[1] * visible.shape[2]

    def pick(self, split: SplitName, label: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Return rows of `pictures` of the classes `label`, picked by uniform u of that shape."""
        counts = np.array([len(rows) for rows in self.rows[split]])
        starts = np.concatenate([[0], counts.cumsum()[:-1]])
        return np.concatenate(self.rows[split])[
            starts[label] + (u * counts[label]).astype(np.int64)
        ]


def emoji_pool(groups: Sequence[str] | None, vendors: Sequence[str] | None) -> EmojiPool:
    """Return the emoji of some groups, which become the classes, by some vendors.

    Raises:
        InputError: an unknown or repeated name, an empty list, or a group without an emoji of
            these vendors to train or test on.
    """
    emoji = load_rgba()
    classes = pick_names("dataset.groups", groups, emoji["groups"])
    artists = pick_names("dataset.vendors", vendors, emoji["vendors"])
    # A few thin drawings would vanish when made smaller.
    is_solid = (emoji["rgba"][..., 3] >= VISIBLE).sum((1, 2)) >= _LEAST_PIXELS
    usable = is_solid & np.isin(emoji["vendor"], [emoji["vendors"].index(v) for v in artists])
    rows: dict[SplitName, tuple[np.ndarray, ...]] = {}
    for split in SPLITS:
        kept = usable & (emoji["is_test"] == (split == "test"))
        by_group = [kept & (emoji["group"] == emoji["groups"].index(name)) for name in classes]
        rows[split] = tuple(map(np.flatnonzero, by_group))
        requirement = f"dataset.groups must be groups with {split} emoji by {', '.join(artists)}"
        for name, members in zip(classes, rows[split], strict=True):
            check(len(members) > 0, requirement, name)
    return EmojiPool(emoji["rgba"], classes, artists, rows)


def pick_names(option: str, names: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Return the names of an option in the order of `known`; all of these for None.

    Raises:
        InputError: an unknown or repeated name, or none at all.
    """
    if names is None:
        return tuple(known)
    for name in names:
        requirement = f"{option} must be of {', '.join(known)}"
        check(name in known, f"{requirement}{nearest(name, known)}", name)
    check(len(names) > 0, f"{option} must name at least one of {', '.join(known)}", list(names))
    check(len(set(names)) == len(names), f"{option} must name each once", list(names))
    return tuple(name for name in known if name in names)


def scene_key(pool: EmojiPool, *options: Any) -> str:
    """Return 16 hex digits of everything that generated scenes depend on."""
    text = json.dumps([pool.classes, pool.vendors, options], sort_keys=True)
    rows = [rows.astype("<i8").tobytes() for split in SPLITS for rows in pool.rows[split]]
    return digest(text, pool.pictures.tobytes(), *rows, photographs_digest())


def sides(u: np.ndarray, size: int, low: int = _SMALLEST, high: int = _LARGEST) -> np.ndarray:
    """Return sides of pasted emoji, int64, of `low` to `high` pixels for scenes of 128."""
    low, high = low * size // 128, high * size // 128
    return low + choose(u, high - low + 1)


def _extent(used: np.ndarray) -> np.ndarray:
    """Return the distance from the first to the last True in each row: (m,) of used bool (m, h)."""
    length = used.shape[1]
    extent = length - used.argmax(1) - used[:, ::-1].argmax(1)
    return np.where(used.any(1), extent, 0)
