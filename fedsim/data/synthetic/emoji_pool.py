"""Which emoji a generated scene may show: groups, vendors, and those kept for testing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedsim.data.synthetic.photographs import PARTS, Part, photographs_digest
from fedsim.data.synthetic.scenes import VISIBLE, choose
from fedsim.errors import check, nearest

GROUPS = ("smileys", "animals", "food", "travel")
"""The groups shown unless others are asked for: four that differ in look."""

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

    `pictures` are all packaged ones, uint8 (m, 32, 32, 4); `rows` maps a part to the rows of each
    class, sorted. No base emoji is in both parts, in whatever vendor's drawing.
    """

    pictures: np.ndarray
    classes: tuple[str, ...]
    vendors: tuple[str, ...]
    rows: Mapping[Part, tuple[np.ndarray, ...]]

    @cached_property
    def is_full(self) -> np.ndarray:
        """Whether the visible part of a picture reaches over 60 % of its square, bool (m,)."""
        visible = self.pictures[..., 3] >= VISIBLE
        wide, high = (_extent(np.any(visible, axis=axis)) for axis in (1, 2))
        return wide * high >= 0.6 * visible.shape[1] * visible.shape[2]

    def pick(self, part: Part, label: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Return rows of `pictures` of the classes `label`, chosen by uniform u of that shape."""
        counts = np.array([len(rows) for rows in self.rows[part]])
        starts = np.concatenate([[0], counts.cumsum()[:-1]])
        return np.concatenate(self.rows[part])[starts[label] + (u * counts[label]).astype(np.int64)]


def emoji_pool(groups: Sequence[str] | None, vendors: Sequence[str] | None) -> EmojiPool:
    """Return the emoji of some groups, which become the classes, by some vendors.

    Raises:
        InputError: an unknown or repeated name, an empty list, or a group without an emoji of
            these vendors to train or test on.
    """
    emoji = _packaged()
    classes = pick_names("dataset.groups", groups, emoji["groups"])
    chosen = pick_names("dataset.vendors", vendors, emoji["vendors"])
    # A few thin drawings would vanish when made smaller.
    seen = (emoji["rgba"][..., 3] >= VISIBLE).sum((1, 2)) >= _LEAST_PIXELS
    by_vendor = seen & np.isin(emoji["vendor"], [emoji["vendors"].index(v) for v in chosen])
    rows: dict[Part, tuple[np.ndarray, ...]] = {}
    for part in PARTS:
        kept = by_vendor & (emoji["is_test"] == (part == "test"))
        rows[part] = tuple(
            np.flatnonzero(kept & (emoji["group"] == emoji["groups"].index(name)))
            for name in classes
        )
        for name, found in zip(classes, rows[part], strict=True):
            check(
                len(found) > 0,
                f"dataset.groups must be groups with {part} emoji by {', '.join(chosen)}",
                name,
            )
    return EmojiPool(emoji["rgba"], classes, chosen, rows)


def pick_names(option: str, wanted: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Return the names asked for, in the order of `known`; all of them for None.

    Raises:
        InputError: an unknown or repeated name, or none at all.
    """
    if wanted is None:
        return tuple(known)
    for name in wanted:
        requirement = f"{option} must be of {', '.join(known)}"
        check(name in known, f"{requirement}{nearest(name, known)}", name)
    check(len(wanted) > 0, f"{option} must name at least one of {', '.join(known)}", list(wanted))
    check(len(set(wanted)) == len(wanted), f"{option} must name each once", list(wanted))
    return tuple(name for name in known if name in wanted)


def check_size(size: int) -> None:
    """Raise `InputError` unless scenes can have `size` pixels on a side."""
    # The smallest photograph has 300 pixels on its shorter side; weather needs a multiple of 8.
    requirement = "dataset.size must be a multiple of 8 in 64..256"
    check(64 <= size <= 256 and size % 8 == 0, requirement, size)


def scene_key(pool: EmojiPool, *options: Any) -> str:
    """Return 16 hex digits of everything that generated scenes depend on."""
    text = json.dumps([pool.classes, pool.vendors, options], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(pool.pictures.tobytes())
    for part in PARTS:
        for rows in pool.rows[part]:
            digest.update(rows.astype("<i8").tobytes())
    digest.update(photographs_digest().encode())
    return digest.hexdigest()[:16]


def sides(u: np.ndarray, size: int, low: int = _SMALLEST, high: int = _LARGEST) -> np.ndarray:
    """Return sides of pasted emoji, int64, of `low` to `high` pixels for scenes of 128."""
    low, high = low * size // 128, high * size // 128
    return low + choose(u, high - low + 1)


def weather_strengths(
    strength: float | dict[str, float], weathers: tuple[str, ...]
) -> dict[str, float]:
    """Return the strength of each weather: the same for all, or as given by name.

    Raises:
        InputError: a strength outside [0, 1], of an unknown weather, or one that is missing.
    """
    by_domain = strength if isinstance(strength, dict) else dict.fromkeys(weathers, strength)
    if by_domain:
        pick_names("dataset.strength", list(by_domain), weathers)
    for value in by_domain.values():
        check(0 <= value <= 1, "dataset.strength must be in [0, 1]", value)
    missing = [name for name in weathers if name not in by_domain and name != "clear"]
    check(not missing, "dataset.strength by domain must give every domain's; missing", missing)
    return {name: float(by_domain.get(name, 0)) for name in weathers}


def _extent(used: np.ndarray) -> np.ndarray:
    """Return how far from the first to the last True in each row, int64 (m,), used bool (m, h)."""
    length = used.shape[1]
    extent = length - used.argmax(1) - used[:, ::-1].argmax(1)
    return np.where(used.any(1), extent, 0)


def _packaged() -> dict[str, Any]:
    from fedsim.data.synthetic.packaged_emoji import load_rgba

    return load_rgba()
