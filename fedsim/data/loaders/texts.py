"""Labelled texts into the arrays of a text data set, and these into the data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedsim.data.cache import Built
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.tokens import build_vocabulary, encode, to_bytes
from fedsim.errors import check


@dataclass(frozen=True, eq=False)
class Texts:
    """n texts, their classes and further columns, each with n rows."""

    texts: Sequence[str]
    y: Sequence[int] | np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


def check_text_options(length: int, vocabulary: int, characters: int | None = None) -> None:
    """Raise `InputError` for options of that name which are out of range."""
    check(length >= 1, "dataset.length must be >= 1", length)
    check(vocabulary >= 3, "dataset.vocabulary must be >= 3", vocabulary)
    if characters is not None:
        check(characters >= 1, "dataset.characters must be >= 1", characters)


def text_arrays(parts: Mapping[str, Texts], length: int, vocabulary: int) -> Built:
    """Return the arrays of a text data set with the parts ``train``, ``test`` and no others.

    Tokens are numbers of the `vocabulary` most frequent words of the training texts.
    """
    entries = build_vocabulary(parts["train"].texts, vocabulary)
    arrays = {"vocabulary": pack_vocabulary(entries)}
    for part, some in parts.items():
        columns = {
            "x": encode(some.texts, entries, length),
            "y": np.asarray(some.y, np.int64),
            "text": to_bytes(some.texts),
            **some.columns,
        }
        arrays |= {f"{part}-{name}": column for name, column in columns.items()}
    return arrays


def text_dataset(name: str, arrays: Mapping[str, np.ndarray], card: Card) -> Dataset:
    """Return the data set of what `text_arrays` made; the card's input shape is set from it."""
    vocabulary = unpack_vocabulary(arrays["vocabulary"])
    card = replace(card, kind="text", input_shape=(arrays["train-x"].shape[1], len(vocabulary)))
    train, test = split_of(arrays, "train"), split_of(arrays, "test")
    return Dataset(name=name, train=train, test=test, card=card, vocabulary=vocabulary)


def split_of(arrays: Mapping[str, np.ndarray], part: str) -> Split:
    """Return the split of the arrays ``PART-x``, ``PART-y`` and all other ``PART-column``."""
    own = {n.partition("-")[2]: a for n, a in arrays.items() if n.startswith(f"{part}-")}
    return Split(own.pop("x"), own.pop("y"), own)


def pack_vocabulary(vocabulary: Sequence[str]) -> np.ndarray:
    """Return the words as one uint8 array, for the cache; no word holds a line break."""
    return np.frombuffer("\n".join(vocabulary).encode(), np.uint8)


def unpack_vocabulary(packed: np.ndarray) -> tuple[str, ...]:
    """Return the words that `pack_vocabulary` was given."""
    return tuple(packed.tobytes().decode().split("\n"))


def mark_fifth(strata: np.ndarray, key: int) -> np.ndarray:
    """Mark a fifth of each of the strata, int64 (n,), halves rounded up: bool (n,).

    The same `key` marks the same on any machine.
    """
    # The raw stream of a bit generator never changes between numpy versions; a Generator's may.
    keys = np.random.Philox(key=key).random_raw(len(strata))
    marked = np.zeros(len(strata), dtype=bool)
    order = np.lexsort((keys, strata))
    for members in np.split(order, np.flatnonzero(np.diff(strata[order])) + 1):
        marked[members[: (2 * len(members) + 5) // 10]] = True
    return marked
