"""Labelled texts as the arrays of a text data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsim.data.arrays import pack_names, split_arrays
from fedsim.data.cache import Array
from fedsim.data.tokens import build_vocabulary, encode, to_bytes
from fedsim.errors import check


@dataclass(frozen=True, eq=False)
class Texts:
    """n texts, their classes and further columns, each with n rows."""

    texts: Sequence[str]
    y: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def take(self, rows: np.ndarray) -> Texts:
        """Return the texts at `rows` int64 (k,)."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Texts([self.texts[i] for i in rows], self.y[rows], columns)

    def divide(self, is_test: np.ndarray) -> dict[str, Texts]:
        """Return the training and test splits, the latter marked by bool (n,)."""
        rows = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}
        return {split: self.take(indices) for split, indices in rows.items()}


def check_text_options(length: int, vocabulary: int, characters: int = 1) -> None:
    """Raise `InputError` for a data set's options of these names that are out of range."""
    check(length >= 1, "dataset.length must be >= 1", length)
    check(vocabulary >= 3, "dataset.vocabulary must be >= 3", vocabulary)
    check(characters >= 1, "dataset.characters must be >= 1", characters)


def text_arrays(splits: Mapping[str, Texts], length: int, vocabulary: int) -> dict[str, Array]:
    """Return the arrays of a text data set for `dataset_of`.

    Tokens are numbers of the `vocabulary` most frequent words of the training texts.
    """
    words = build_vocabulary(splits["train"].texts, vocabulary)
    arrays: dict[str, Array] = {"vocabulary": pack_names(words)}
    for name, split in splits.items():
        columns = {
            "x": encode(split.texts, words, length),
            "y": np.asarray(split.y, np.int64),
            "text": to_bytes(split.texts),
            **split.columns,
        }
        arrays |= split_arrays(name, columns)
    return arrays
