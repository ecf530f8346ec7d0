"""Data sets: splits of labelled samples, and the card that describes them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from fedsim.errors import check

Kind = Literal["image", "text", "image-text", "detection"]

SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
"""The splits that every data set has."""

_COLUMNS: dict[str, tuple[str, int]] = {
    "domain": ("int64", 1),
    "owner": ("int64", 1),
    "group": ("int64", 1),
    "tokens": ("int32", 2),
    "text": ("bytes", 1),
    "boxes": ("float32", 3),
    "box_labels": ("int64", 2),
}
"""dtype and dimensions of the extra columns that the platform itself reads."""


@dataclass(frozen=True, eq=False)
class Split:
    """The samples of one split, a row each, usually memory-mapped and then read-only.

    `x` is uint8 (n, H, W, C) for images, int32 (n, L) for texts: token numbers, 0 past the end of
    a text. `y` is int64 (n,). Every array of `extra` has n rows too. The platform knows these
    columns; a data set may add others:

        domain      int64 (n,), an index of the card's domains
        owner       int64 (n,), the natural client a sample comes from, such as its writer
        group       int64 (n,), samples that belong together: near copies, frames of one film
        tokens      int32 (n, L), the text of an image-text pair, encoded like the `x` of a text
        text        bytes (n,) of dtype S, the text itself in UTF-8
        boxes       float32 (n, K, 4), the corners x1, y1, x2, y2 in pixels
        box_labels  int64 (n, K), the classes of the boxes, -1 past an image's last box

    In a detection set `y` is the class of an image's largest box, -1 without boxes.

    Raises:
        InputError: a wrong dtype, number of dimensions or number of rows.
    """

    x: np.ndarray
    y: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.x.dtype == np.uint8:
            check(self.x.ndim == 4, "images must have the shape (n, H, W, C)", self.x.shape)
        else:
            is_text = self.x.dtype == np.int32
            check(is_text, "samples must be uint8 images or int32 tokens", str(self.x.dtype))
            check(self.x.ndim == 2, "texts must have the shape (n, L)", self.x.shape)
        check(self.y.dtype == np.int64, "labels must be int64", str(self.y.dtype))
        for name, array in {"labels": self.y, **self.extra}.items():
            aligned = array.shape[:1] == self.x.shape[:1]
            check(aligned, f"{name} must have one row a sample ({len(self.x)})", array.shape)
        check(self.y.ndim == 1, "labels must have the shape (n,)", self.y.shape)
        for name, (dtype, dimensions) in _COLUMNS.items():
            if name in self.extra:
                kind, shape = self.extra[name].dtype, self.extra[name].shape
                actual = "bytes" if kind.kind == "S" else str(kind)
                check(actual == dtype, f"the column {name} must be {dtype}", actual)
                check(len(shape) == dimensions, f"{name} must have {dimensions} dimensions", shape)

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Card:
    """Description of a data set, known before its files are read.

    `input_shape` is (C, H, W) for images; for texts it is (L, V): L tokens of a vocabulary of V,
    of which 0 is the end of a text and 1 an unknown word. `text_shape` is the same for the texts of
    image-text pairs. `mean` and `std` are per channel, of ``x / 255`` over the training images,
    and empty for texts. Shape and statistics are empty while they depend on files not yet read; the
    card of a `Dataset` has them. `vocabulary` is copied from the data set; cards that differ in
    nothing else are equal.

    Raises:
        InputError: `mean` or `std` without one value a channel, a `std` of 0, an unknown kind.
    """

    title: str
    source: str
    licence: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    description: str = ""
    kind: Kind = "image"
    domains: tuple[str, ...] = ()
    text_shape: tuple[int, int] | None = None
    vocabulary: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        check(self.kind in get_args(Kind), f"kind must be one of {get_args(Kind)}", self.kind)
        if self.input_shape:
            dimensions = 2 if self.kind == "text" else 3
            fits = len(self.input_shape) == dimensions
            check(fits, f"input_shape must have {dimensions} numbers", self.input_shape)
        if self.mean or self.std:
            self.check_statistics()

    def check_statistics(self) -> None:
        """Raise `InputError` unless shape, mean and std are there and go together."""
        check(bool(self.input_shape), "a card must have an input_shape", self.input_shape)
        channels = 0 if self.kind == "text" else self.input_shape[0]
        check(len(self.mean) == channels, f"mean must have {channels} values", self.mean)
        check(len(self.std) == channels, f"std must have {channels} values", self.std)
        check(all(s > 0 for s in self.std), "std must be > 0", self.std)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set: its splits and its card.

    `vocabulary` lists the words of the tokens, V strings, if there are texts; the card copies it.

    Raises:
        InputError: samples of another shape, or labels of other classes, than the card's.
    """

    name: str
    train: Split
    test: Split
    card: Card
    validation: Split | None = None
    vocabulary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.vocabulary:
            object.__setattr__(self, "card", replace(self.card, vocabulary=self.vocabulary))
        self.card.check_statistics()
        for name in ("train", "test", "validation"):
            split: Split | None = getattr(self, name)
            if split is not None:
                self._check_split(name, split)

    def _check_split(self, name: str, split: Split) -> None:
        card = self.card
        check(len(split) > 0, f"the {name} split of {self.name} must have samples", 0)
        first, *others = card.input_shape
        shape, actual = (first,) if card.kind == "text" else (*others, first), split.x.shape[1:]
        check(actual == shape, f"{name} samples of {self.name} must have the shape {shape}", actual)
        lowest = -1 if card.kind == "detection" else 0
        self._check_range(f"{name} labels", split.y, lowest, self.num_classes)
        if "domain" in split.extra:
            self._check_range(f"{name} domains", split.extra["domain"], 0, len(card.domains))
        if "box_labels" in split.extra:
            self._check_range(f"{name} box labels", split.extra["box_labels"], -1, self.num_classes)

    def _check_range(self, what: str, values: np.ndarray, lowest: int, stop: int) -> None:
        low, high = int(values.min()), int(values.max())
        allowed = f"{what} of {self.name} must be in {lowest}..{stop - 1}"
        check(low >= lowest and high < stop, allowed, f"{low}..{high}")

    @property
    def num_classes(self) -> int:
        return len(self.card.classes)


@dataclass(frozen=True, eq=False)
class Samples:
    """The facts a partition divides samples by: n rows, in the split's order.

    `labels`, `domains` and `owners` are int64 (n,); the last two are None where the data set has
    none. `domain_names` are those of the card.
    """

    labels: np.ndarray
    num_classes: int
    domains: np.ndarray | None = None
    domain_names: tuple[str, ...] = ()
    owners: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, dataset: Dataset, rows: np.ndarray | None = None) -> Samples:
        """Return the samples of the training split, or those at its `rows` (k,)."""
        extra, names = dataset.train.extra, dataset.card.domains
        domains, owners = extra.get("domain"), extra.get("owner")
        samples = cls(dataset.train.y, dataset.num_classes, domains, names, owners)
        return samples if rows is None else samples.take(rows)

    def take(self, rows: np.ndarray) -> Samples:
        """Return the samples at `rows` (k,), in that order."""
        domains, owners = (
            None if column is None else column[rows] for column in (self.domains, self.owners)
        )
        return replace(self, labels=self.labels[rows], domains=domains, owners=owners)
