"""Emoji drawn by four vendors, with names and keywords: domains, image-text pairs, a small tail."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fedsim.data.arrays import dataset_of, divide
from fedsim.data.cache import cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.images import channel_stats
from fedsim.data.sources import data_folders, digest, fingerprint
from fedsim.data.synthetic.emoji_source import PACKAGES, VENDORS, Drawings, Emoji, package_files
from fedsim.data.synthetic.packaged_emoji import SIZE, describe, in_part, load_emoji, load_rgba
from fedsim.data.tokens import build_vocabulary, encode, to_bytes
from fedsim.errors import InputError, check, nearest

LENGTH = 24
"""Words kept of a text, which is the name followed by the keywords."""

_SMALLEST_SUBGROUP = 20


def emoji(
    *,
    size: int = 32,
    labels: Literal["group", "subgroup"] = "group",
    vendors: tuple[str, ...] = VENDORS,
    part: tuple[float, float] = (0.0, 1.0),
    root: str | None = None,
) -> Dataset:
    """Emoji, 32x32 colour on white: 6,344 drawings by 4 vendors (domains), 8 groups, captions.

    `labels` are the 8 groups, or the 29 subgroups with at least 20 emoji. A fifth of the emoji of
    each group is the test split: an emoji is in one split for all vendors (the column `group` is
    its number). `part` takes a range of the emoji of each group and split, in a fixed random order:
    [0, 0.6] and [0.6, 1] have no emoji in common, by whatever vendor. Sizes other than 32 are
    drawn at first use from the tarballs in `root`.

    Raises:
        InputError: an unknown vendor, a size outside 8..256, a part that is no range in [0, 1] or
            has no emoji, tarballs that are missing or damaged.
    """
    check(labels in ("group", "subgroup"), "dataset.labels must be 'group' or 'subgroup'", labels)
    check(8 <= size <= 256, "dataset.size must be in 8..256", size)
    check(len(vendors) > 0, "dataset.vendors must name at least one vendor", vendors)
    for vendor in vendors:
        requirement = f"dataset.vendors must be of {', '.join(VENDORS)}{nearest(vendor, VENDORS)}"
        check(vendor in VENDORS, requirement, vendor)
    check(len(set(vendors)) == len(vendors), "dataset.vendors must name each once", vendors)
    check(0 <= part[0] < part[1] <= 1, "dataset.part must be a range in [0, 1]", list(part))
    vendors = tuple(vendors)
    source = load_rgba() if size == SIZE else _draw(size, root)
    pictures, is_test = source["rgba"], source["is_test"]
    classes, y = source["groups"], source["group"]
    used = np.isin(source["vendor"], [VENDORS.index(v) for v in vendors])
    if labels == "subgroup":
        sizes = np.bincount(source["subgroup"][: len(source["emoji"])])
        kept = np.flatnonzero(sizes >= _SMALLEST_SUBGROUP)
        classes = tuple(source["subgroups"][i] for i in kept)
        used &= np.isin(source["subgroup"], kept)
        y = np.searchsorted(kept, source["subgroup"])
    used &= np.tile(in_part(source["emoji"], part), len(VENDORS))
    for purpose, rows in (("train", used & ~is_test), ("test", used & is_test)):
        check(bool(rows.any()), f"dataset.part must have emoji to {purpose} on", list(part))
    domain = np.array([vendors.index(v) if v in vendors else -1 for v in VENDORS])
    described: tuple[Emoji, ...] = source["emoji"]
    texts = [" ".join([e.label, *e.tags]) for e in described]
    known = [text for text, test in zip(texts, is_test[: len(texts)], strict=True) if not test]
    vocabulary = build_vocabulary(known, min_count=2)

    def build() -> dict[str, np.ndarray]:
        rows = np.flatnonzero(used)
        base = source["base"][rows]
        arrays = divide(
            is_test[rows],
            x=_on_white(pictures[rows]),
            y=y[rows].astype(np.int64),
            domain=domain[source["vendor"][rows]].astype(np.int64),
            group=base.astype(np.int64),
            tokens=encode(texts, vocabulary, LENGTH)[base],
            text=to_bytes(", ".join([e.label, *e.tags]) for e in described)[base],
        )
        return {**arrays, "stats": np.array(channel_stats(arrays["train-x"]))}

    identity = digest(repr((size, labels, vendors, vocabulary, part)), pictures.tobytes())
    card = Card(
        title="Emoji by four vendors, with names and keywords",
        source="Noto, Twemoji, OpenMoji, Fluent Emoji through Iconify; CLDR names by emojibase",
        licence="Noto Apache-2.0, Twemoji CC-BY-4.0, OpenMoji CC-BY-SA-4.0, Fluent MIT",
        classes=classes,
        description=(
            "Drawings of the same emoji in four styles, with captions. No emoji is in both splits. "
            "OpenMoji is the farthest style."
        ),
        kind="image-text",
        domains=vendors,
    )
    return dataset_of("emoji", cached_arrays(f"emoji-{size}-1-{identity}", build), card, vocabulary)


def _draw(size: int, root: str | None) -> dict[str, Any]:
    """Draw the emoji of `load_rgba` at another size."""
    folders = data_folders("emoji", root)
    folder = next((f for f in folders if f.is_dir()), folders[-1])
    files = package_files(folder)

    def render() -> dict[str, np.ndarray]:
        drawings = Drawings(folder)
        if drawings.emoji != load_emoji():
            raise InputError(
                f"the packages in {folder} hold other emoji than expected; use exactly "
                f"{', '.join(PACKAGES.values())}"
            )
        return {"rgba": np.concatenate([drawings.render(v, size) for v in VENDORS])}

    key = f"emoji-rgba-{size}-1-{fingerprint(files.values())}"
    return {"rgba": cached_arrays(key, render)["rgba"], **describe(load_emoji())}


def _on_white(rgba: np.ndarray) -> np.ndarray:
    """Lay pictures uint8 (n, H, W, 4) on white: uint8 (n, H, W, 3), halves rounded up."""
    alpha = rgba[..., 3:].astype(np.uint32)
    mixed = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((2 * mixed + 255) // 510).astype(np.uint8)
