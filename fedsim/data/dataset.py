"""What a data set is: splits of uint8 images with labels, and a card that describes them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fedsim.errors import check


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split, usually memory-mapped and then read-only.

    `x` is uint8 (n, H, W, C); `y` is int64 (n,); every array of `extra` has n rows too.

    Raises:
        InputError: a wrong dtype, number of dimensions or number of rows.
    """

    x: np.ndarray
    y: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.x.dtype == np.uint8, "images must be uint8", str(self.x.dtype))
        check(self.x.ndim == 4, "images must have the shape (n, H, W, C)", self.x.shape)
        check(self.y.dtype == np.int64, "labels must be int64", str(self.y.dtype))
        for name, array in {"labels": self.y, **self.extra}.items():
            check(
                array.shape[:1] == self.x.shape[:1],
                f"{name} must have one row an image ({len(self.x)})",
                array.shape,
            )
        check(self.y.ndim == 1, "labels must have the shape (n,)", self.y.shape)

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Card:
    """What is known of a data set.

    `input_shape` is (C, H, W). `mean` and `std` are per channel, of ``x / 255`` over the
    training images.

    Raises:
        InputError: `mean` or `std` without one value a channel, or a `std` of 0.
    """

    title: str
    source: str
    licence: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: str

    def __post_init__(self) -> None:
        channels = self.input_shape[0]
        check(len(self.mean) == channels, f"mean must have {channels} values", self.mean)
        check(len(self.std) == channels, f"std must have {channels} values", self.std)
        check(all(s > 0 for s in self.std), "std must be > 0", self.std)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set: its splits and its card.

    Raises:
        InputError: images of another shape, or labels of other classes, than the card's.
    """

    name: str
    train: Split
    test: Split
    card: Card
    validation: Split | None = None

    def __post_init__(self) -> None:
        channels, height, width = self.card.input_shape
        for name in ("train", "test", "validation"):
            split: Split | None = getattr(self, name)
            if split is None:
                continue
            check(len(split) > 0, f"the {name} split of {self.name} must have images", 0)
            check(
                split.x.shape[1:] == (height, width, channels),
                f"{name} images of {self.name} must have the shape {(height, width, channels)}",
                split.x.shape[1:],
            )
            low, high = int(split.y.min()), int(split.y.max())
            check(
                low >= 0 and high < self.num_classes,
                f"{name} labels of {self.name} must be in 0..{self.num_classes - 1}",
                f"{low}..{high}",
            )

    @property
    def num_classes(self) -> int:
        return len(self.card.classes)
