"""What a data set is: splits of samples with labels, and a card that describes them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from fedsim.errors import check

Kind = Literal["image", "text", "image-text", "detection"]

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
    """The samples of one split, one a row, usually memory-mapped and then read-only.

    `x` is uint8 (n, H, W, C) for images, int32 (n, L) for texts: numbers of tokens, 0 where a
    text has ended. `y` is int64 (n,). Every array of `extra` has n rows too. These columns have a
    meaning, the others are a data set's own:

        domain      int64 (n,), a number of the card's domains
        owner       int64 (n,), the natural client a sample comes from, such as its writer
        group       int64 (n,), samples that belong together: near copies, frames of one film
        tokens      int32 (n, L), the text of an image-text pair as `x` of a text
        text        bytes (n,) of dtype S, the text itself in UTF-8
        boxes       float32 (n, K, 4), the corners x1, y1, x2, y2 in pixels
        box_labels  int64 (n, K), the classes of the boxes, -1 where an image has no further box

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
            right = self.x.dtype == np.int32
            check(right, "samples must be uint8 images or int32 tokens", str(self.x.dtype))
            check(self.x.ndim == 2, "texts must have the shape (n, L)", self.x.shape)
        check(self.y.dtype == np.int64, "labels must be int64", str(self.y.dtype))
        for name, array in {"labels": self.y, **self.extra}.items():
            check(
                array.shape[:1] == self.x.shape[:1],
                f"{name} must have one row a sample ({len(self.x)})",
                array.shape,
            )
        check(self.y.ndim == 1, "labels must have the shape (n,)", self.y.shape)
        for name, (dtype, dimensions) in _COLUMNS.items():
            if name in self.extra:
                column = self.extra[name]
                found = "bytes" if column.dtype.kind == "S" else str(column.dtype)
                check(found == dtype, f"the column {name} must be {dtype}", found)
                shape = column.shape
                check(len(shape) == dimensions, f"{name} must have {dimensions} dimensions", shape)

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Card:
    """What is known of a data set.

    `input_shape` is (C, H, W) for images; for texts it is (L, V): L tokens of a vocabulary of V,
    of which 0 is the end of a text and 1 an unknown word. `text_shape` is the same for the texts of
    image-text pairs. `mean` and `std` are per channel, of ``x / 255`` over the training images,
    and empty for texts. `vocabulary` is the data set's, which enters it here; cards that differ in
    it alone are equal.

    Raises:
        InputError: `mean` or `std` without one value a channel, a `std` of 0, an unknown kind.
    """

    title: str
    source: str
    licence: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: str
    kind: Kind = "image"
    domains: tuple[str, ...] = ()
    text_shape: tuple[int, int] | None = None
    vocabulary: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        check(self.kind in get_args(Kind), f"kind must be one of {get_args(Kind)}", self.kind)
        dimensions, channels = (2, 0) if self.kind == "text" else (3, self.input_shape[0])
        shape = self.input_shape
        check(len(shape) == dimensions, f"input_shape must have {dimensions} numbers", shape)
        check(len(self.mean) == channels, f"mean must have {channels} values", self.mean)
        check(len(self.std) == channels, f"std must have {channels} values", self.std)
        check(all(s > 0 for s in self.std), "std must be > 0", self.std)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set: its splits and its card.

    `vocabulary` are the words of the tokens, V strings, where it has texts; the card has them too.

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
        for name in ("train", "test", "validation"):
            split: Split | None = getattr(self, name)
            if split is not None:
                self._check_split(name, split)

    def _check_split(self, name: str, split: Split) -> None:
        card = self.card
        check(len(split) > 0, f"the {name} split of {self.name} must have samples", 0)
        if card.kind == "text":
            shape: tuple[int, ...] = card.input_shape[:1]
        else:
            shape = (*card.input_shape[1:], card.input_shape[0])
        check(
            split.x.shape[1:] == shape,
            f"{name} samples of {self.name} must have the shape {shape}",
            split.x.shape[1:],
        )
        lowest = -1 if card.kind == "detection" else 0
        self._check_range(f"{name} labels", split.y, lowest, self.num_classes)
        if "domain" in split.extra:
            self._check_range(f"{name} domains", split.extra["domain"], 0, len(card.domains))
        if "box_labels" in split.extra:
            self._check_range(f"{name} box labels", split.extra["box_labels"], -1, self.num_classes)

    def _check_range(self, what: str, values: np.ndarray, lowest: int, stop: int) -> None:
        low, high = int(values.min()), int(values.max())
        check(
            low >= lowest and high < stop,
            f"{what} of {self.name} must be in {lowest}..{stop - 1}",
            f"{low}..{high}",
        )

    @property
    def num_classes(self) -> int:
        return len(self.card.classes)


@dataclass(frozen=True, eq=False)
class Samples:
    """What a partition may know of the samples it divides: n rows, in the split's order.

    `labels`, `domains` and `owners` are int64 (n,); the last two are None where the data set has
    none. `domain_names` are the data set's.
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
        """Return what is known of the training split's `rows` (k,), or of all its samples."""
        split = dataset.train

        def column(array: np.ndarray | None) -> np.ndarray | None:
            return array if array is None or rows is None else array[rows]

        return cls(
            split.y if rows is None else split.y[rows],
            dataset.num_classes,
            column(split.extra.get("domain")),
            dataset.card.domains,
            column(split.extra.get("owner")),
        )
