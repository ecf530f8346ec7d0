"""Image files with texts as the arrays of an image-text data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import get_args

import numpy as np

from fedsim.data.arrays import pack_names, split_arrays
from fedsim.data.cache import Array, Stream
from fedsim.data.images import Fit, counting
from fedsim.data.loaders.decoding import image_rows
from fedsim.data.tokens import build_vocabulary, encode, to_bytes
from fedsim.errors import InputError, check


@dataclass(frozen=True)
class Pair:
    """An image file and a text; `group` is the image's number, `y` the class."""

    image: Path
    text: str
    group: int
    y: int = 0


@dataclass(frozen=True)
class Pictures:
    """Conversion into arrays: images of `size` (H, W), texts cut at `length` tokens."""

    size: tuple[int, int]
    fit: Fit
    length: int
    vocabulary: int

    def __post_init__(self) -> None:
        check(self.fit in get_args(Fit), f"dataset.fit must be one of {get_args(Fit)}", self.fit)
        check(min(self.size) >= 1, "dataset.size must be >= 1", self.size)
        check(self.length >= 1, "dataset.length must be >= 1", self.length)
        check(self.vocabulary >= 3, "dataset.vocabulary must be >= 3", self.vocabulary)


@dataclass(eq=False)
class Pairs:
    """The pairs of one split and further columns of as many rows."""

    pairs: Sequence[Pair]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


def image_text_arrays(splits: Mapping[str, Pairs], how: Pictures, title: str) -> dict[str, Array]:
    """Return the arrays of an image-text data set for `dataset_of`; images are read as streams.

    Consecutive pairs of one image read it once. `title` is that of the progress bar.

    Raises:
        InputError: a split without pairs; an image that is missing, now, or cannot be read, when
            its turn comes.
    """
    words = build_vocabulary((pair.text for pair in splits["train"].pairs), how.vocabulary)
    arrays: dict[str, Array] = {"vocabulary": pack_names(words)}
    for name, split in splits.items():
        pairs = split.pairs
        check(len(pairs) >= 1, f"the {name} split of {title} must have at least one pair", 0)
        _check_files(pairs)
        texts = [pair.text.replace("\0", " ") for pair in pairs]
        stats = np.empty((2, 3))
        images = counting(_images(pairs, how, f"{title}, {name}"), stats)
        columns: dict[str, Array] = {
            "x": Stream((len(pairs), *how.size, 3), np.uint8, images),
            "y": np.array([pair.y for pair in pairs], np.int64),
            "group": np.array([pair.group for pair in pairs], np.int64),
            "tokens": encode(texts, words, how.length),
            "text": to_bytes(texts),
            **split.columns,
        }
        arrays |= split_arrays(name, columns)
        if name == "train":
            arrays["stats"] = stats  # filled in when the images have been written
    return arrays


def image_folder(folders: Sequence[Path], advice: str) -> Path:
    """Return the first of the folders that exists.

    Raises:
        InputError: none does; `advice` says what to put there, as an imperative.
    """
    for folder in folders:
        if folder.is_dir():
            return folder
    raise InputError(f"no folder {' or '.join(map(str, folders))}: {advice}")


def _check_files(pairs: Sequence[Pair]) -> None:
    paths = dict.fromkeys(pair.image for pair in pairs)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} images are missing, the first is {missing[0]}; put "
            "them there, or set dataset.limit to what is there"
        )


def _images(pairs: Sequence[Pair], how: Pictures, title: str) -> Iterator[np.ndarray]:
    """Yield uint8 (k, H, W, 3), a row a pair."""
    runs = [(path, sum(1 for _ in run)) for path, run in groupby(pair.image for pair in pairs)]
    repeats, start = np.array([count for _, count in runs]), 0
    for images in image_rows([path for path, _ in runs], (*how.size, 3), title, how.fit):
        yield np.repeat(images, repeats[start : start + len(images)], axis=0)
        start += len(images)
