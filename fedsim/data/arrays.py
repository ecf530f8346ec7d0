"""Data sets as named arrays of a cache entry: ``train-x``, ``train-y``, ``test-domain``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedsim.data.cache import Array, Arrays, cached_arrays
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.images import channel_stats


def split_arrays(split: str, columns: Arrays) -> dict[str, Array]:
    """Return the columns of a split under their names in a cache entry."""
    return {f"{split}-{name}": column for name, column in columns.items()}


def divide(is_test: np.ndarray, **columns: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of both splits; `is_test` bool (n,) marks the rows of the test split."""
    rows = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}
    return {f"{s}-{name}": a[rows[s]] for s in rows for name, a in columns.items()}


def split_of(arrays: Mapping[str, np.ndarray], split: str) -> Split:
    """Return the split of the arrays ``SPLIT-x``, ``SPLIT-y`` and every other ``SPLIT-column``."""
    prefix = f"{split}-"
    names = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
    columns = {name.removeprefix("extra-"): arrays[f"{prefix}{name}"] for name in names}
    columns.pop("stats", None)  # of the images, not of samples
    return Split(columns.pop("x"), columns.pop("y"), columns)


def dataset_of(
    name: str,
    arrays: Mapping[str, np.ndarray],
    card: Card,
    vocabulary: Sequence[str] = (),
    stats_key: str | None = None,
) -> Dataset:
    """Return the data set of cached arrays, shapes and statistics of its card set from them.

    The array ``vocabulary``, if there is one, holds the words. Mean and std are in ``stats`` or
    ``train-stats`` float64 (2, C); with `stats_key`, the key of the arrays' entry, they are
    computed from the training images once; otherwise they stay those of the card.
    """
    train, test = split_of(arrays, "train"), split_of(arrays, "test")
    validation = split_of(arrays, "validation") if "validation-x" in arrays else None
    words = names_of(arrays["vocabulary"]) if "vocabulary" in arrays else tuple(vocabulary)
    stats = arrays.get("stats", arrays.get("train-stats"))
    changes: dict[str, Any] = {}
    if card.kind == "text":
        changes["input_shape"] = (train.x.shape[1], len(words))
    else:
        changes["input_shape"] = (train.x.shape[3], *train.x.shape[1:3])
        if stats is not None:
            changes["mean"], changes["std"] = map(tuple, stats.tolist())
        elif stats_key is not None:
            changes["mean"], changes["std"] = cached_stats(stats_key, train.x)
    if card.kind == "image-text":
        changes["text_shape"] = (train.extra["tokens"].shape[1], len(words))
    return Dataset(name, train, test, replace(card, **changes), validation, words)


def cached_stats(key: str, x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return `channel_stats` of `x`, computed once for the cache entry `key` that holds `x`."""

    def build() -> dict[str, np.ndarray]:
        mean, std = channel_stats(x)
        return {"mean": np.array(mean), "std": np.array(std)}

    stats = cached_arrays(f"{key}-stats", build)
    return tuple(stats["mean"].tolist()), tuple(stats["std"].tolist())


def pack_names(names: Sequence[str]) -> np.ndarray:
    """Return names or words as one uint8 array, for the cache; none may hold a line break."""
    return np.frombuffer("\n".join(names).encode(), np.uint8)


def names_of(packed: np.ndarray) -> tuple[str, ...]:
    """Return the names that `pack_names` packed, or those of an array of bytes (n,)."""
    if packed.dtype.kind == "S":
        return tuple(name.decode() for name in packed.tolist())
    return tuple(packed.tobytes().decode().split("\n"))
