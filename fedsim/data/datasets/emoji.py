"""Emoji as four vendors draw them, with their names and keywords: domains, pairs, a small tail."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fedsim.data.cache import cached_arrays
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.images import channel_stats
from fedsim.data.sources import data_folders, fingerprint
from fedsim.data.synthetic.emoji_source import PACKAGES, VENDORS, Drawings, Emoji, package_files
from fedsim.data.synthetic.packaged_emoji import SIZE, describe, in_part, load_emoji, load_rgba
from fedsim.data.tokens import build_vocabulary, encode, to_bytes
from fedsim.errors import InputError, check, nearest

LENGTH = 24
"""Words of a text that are kept: the name comes first, then the keywords."""

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
    its number). `part` takes a range of the emoji of each group and split, in an order of their
    own: [0, 0.6] and [0.6, 1] have no emoji in common, by whatever vendor. Other sizes than 32 are
    drawn at first use from the tarballs in `root`.

    Raises:
        InputError: an unknown vendor, a size outside 8..256, a part that is no range in [0, 1] or
            has no emoji, tarballs that are missing or damaged.
    """
    check(labels in ("group", "subgroup"), "dataset.labels must be 'group' or 'subgroup'", labels)
    check(8 <= size <= 256, "dataset.size must be in 8..256", size)
    check(len(vendors) > 0, "dataset.vendors must name at least one vendor", vendors)
    for vendor in vendors:
        known = f"dataset.vendors must be of {', '.join(VENDORS)}{nearest(vendor, VENDORS)}"
        check(vendor in VENDORS, known, vendor)
    check(len(set(vendors)) == len(vendors), "dataset.vendors must name each once", vendors)
    check(0 <= part[0] < part[1] <= 1, "dataset.part must be a range in [0, 1]", list(part))
    pictures, found = _packaged() if size == SIZE else _drawn(size, root)
    return _dataset(pictures, found, size, labels, tuple(vendors), part)


def _packaged() -> tuple[np.ndarray, dict[str, Any]]:
    found = load_rgba()
    return found.pop("rgba"), found


def _drawn(size: int, root: str | None) -> tuple[np.ndarray, dict[str, Any]]:
    folders = data_folders("emoji", root)
    folder = next((f for f in folders if f.is_dir()), folders[-1])
    files = package_files(folder)

    def draw() -> Mapping[str, np.ndarray]:
        drawings = Drawings(folder)
        if drawings.emoji != load_emoji():
            raise InputError(
                f"the packages in {folder} hold other emoji than expected; use exactly "
                f"{', '.join(PACKAGES.values())}"
            )
        return {"rgba": np.concatenate([drawings.render(v, size) for v in VENDORS])}

    key = f"emoji-rgba-{size}-1-{fingerprint(files.values())}"
    return cached_arrays(key, draw)["rgba"], describe(load_emoji())


def _dataset(
    pictures: np.ndarray,
    found: dict[str, Any],
    size: int,
    labels: str,
    vendors: tuple[str, ...],
    part: tuple[float, float],
) -> Dataset:
    names: tuple[str, ...] = found["groups"]
    y = found["group"]
    chosen = np.isin(found["vendor"], [VENDORS.index(v) for v in vendors])
    if labels == "subgroup":
        sizes = np.bincount(found["subgroup"][: len(found["emoji"])])
        kept = np.flatnonzero(sizes >= _SMALLEST_SUBGROUP)
        names = tuple(found["subgroups"][i] for i in kept)
        chosen &= np.isin(found["subgroup"], kept)
        y = np.searchsorted(kept, found["subgroup"])
    chosen &= np.tile(in_part(found["emoji"], part), len(VENDORS))
    for wanted in (False, True):
        check(
            bool((chosen & (found["is_test"] == wanted)).any()),
            f"dataset.part must have emoji to {'test' if wanted else 'train'} on",
            list(part),
        )
    domain = np.array([vendors.index(v) if v in vendors else -1 for v in VENDORS])[found["vendor"]]
    described: tuple[Emoji, ...] = found["emoji"]
    texts = [" ".join([e.label, *e.tags]) for e in described]
    is_test = found["is_test"][: len(texts)]
    known = [text for text, test in zip(texts, is_test, strict=True) if not test]
    vocabulary = build_vocabulary(known, min_count=2)
    tokens = encode(texts, vocabulary, LENGTH)
    raw = to_bytes(", ".join([e.label, *e.tags]) for e in described)

    def build() -> Mapping[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for split, wanted in (("train", False), ("test", True)):
            rows = np.flatnonzero(chosen & (found["is_test"] == wanted))
            base = found["base"][rows]
            arrays |= {
                f"{split}-x": _on_white(pictures[rows]),
                f"{split}-y": y[rows].astype(np.int64),
                f"{split}-domain": domain[rows].astype(np.int64),
                f"{split}-group": base.astype(np.int64),
                f"{split}-tokens": tokens[base],
                f"{split}-text": raw[base],
            }
        arrays["stats"] = np.stack([np.array(v) for v in channel_stats(arrays["train-x"])])
        return arrays

    identity = hashlib.sha256(repr((size, labels, vendors, vocabulary, part)).encode())
    identity.update(pictures.tobytes())
    arrays = cached_arrays(f"emoji-{size}-1-{identity.hexdigest()[:16]}", build)
    columns = ("domain", "group", "tokens", "text")
    train, test = (
        Split(arrays[f"{p}-x"], arrays[f"{p}-y"], {c: arrays[f"{p}-{c}"] for c in columns})
        for p in ("train", "test")
    )
    mean, std = arrays["stats"]
    card = Card(
        title="Emoji by four vendors, with names and keywords",
        source="Noto, Twemoji, OpenMoji, Fluent Emoji through Iconify; CLDR names by emojibase",
        licence="Noto Apache-2.0, Twemoji CC-BY-4.0, OpenMoji CC-BY-SA-4.0, Fluent MIT",
        classes=names,
        input_shape=(3, size, size),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        description=(
            "Drawings of the same emoji in four styles, with captions. No emoji is in both splits. "
            "OpenMoji is the farthest style."
        ),
        kind="image-text",
        domains=vendors,
        text_shape=(LENGTH, len(vocabulary)),
    )
    return Dataset("emoji", train, test, card, vocabulary=vocabulary)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    """Lay pictures uint8 (n, H, W, 4) on white: uint8 (n, H, W, 3), halves rounded up."""
    alpha = rgba[..., 3:].astype(np.uint32)
    mixed = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((2 * mixed + 255) // 510).astype(np.uint8)
