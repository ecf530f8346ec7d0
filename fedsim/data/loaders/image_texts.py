"""Image files with texts into the arrays of an image-text data set, and these into the set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import get_args

import numpy as np

from fedsim.data.cache import Built, Stream
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.images import Fit, counting, read_image
from fedsim.data.loaders.texts import pack_vocabulary, split_of, unpack_vocabulary
from fedsim.data.sources import track
from fedsim.data.tokens import build_vocabulary, encode, to_bytes
from fedsim.errors import InputError, check

_CHUNK = 64  # images decoded at once


@dataclass(frozen=True)
class Pair:
    """An image file and a text; `group` is the image's number, `y` the class."""

    image: Path
    text: str
    group: int
    y: int = 0


@dataclass(frozen=True)
class Pictures:
    """How images and texts become arrays: `size` is (H, W), texts are cut at `length` tokens."""

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
class Part:
    """The pairs of one split and further columns of as many rows."""

    pairs: Sequence[Pair]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


def image_text_arrays(parts: Mapping[str, Part], how: Pictures, what: str) -> Built:
    """Return the arrays of an image-text data set; images are read while they are written.

    Pairs of one image that follow each other read it once. `what` names the progress bar.

    Raises:
        InputError: a part without pairs; an image that is missing, now, or cannot be read, when
            its turn comes.
    """
    entries = build_vocabulary((pair.text for pair in parts["train"].pairs), how.vocabulary)
    arrays: dict[str, np.ndarray | Stream] = {"vocabulary": pack_vocabulary(entries)}
    for name, part in parts.items():
        pairs = part.pairs
        check(len(pairs) >= 1, f"the {name} split of {what} must have at least one pair", 0)
        _check_files(pairs)
        texts = [pair.text.replace("\0", " ") for pair in pairs]
        stats = np.empty((2, 3))
        images = counting(track(_images(pairs, how), f"{what}, {name}", _num_pieces(pairs)), stats)
        columns: dict[str, np.ndarray | Stream] = {
            "x": Stream((len(pairs), *how.size, 3), np.uint8, images),
            "y": np.array([pair.y for pair in pairs], np.int64),
            "group": np.array([pair.group for pair in pairs], np.int64),
            "tokens": encode(texts, entries, how.length),
            "text": to_bytes(texts),
            **part.columns,
        }
        arrays |= {f"{name}-{column}": values for column, values in columns.items()}
        if name == "train":
            arrays["stats"] = stats  # filled in when the images have been written
    return arrays


def image_text_dataset(name: str, arrays: Mapping[str, np.ndarray], card: Card) -> Dataset:
    """Return the data set of what `image_text_arrays` made.

    The card's shapes, mean and std are set from the arrays.
    """
    vocabulary = unpack_vocabulary(arrays["vocabulary"])
    mean, std = (tuple(float(v) for v in row) for row in arrays["stats"])
    _, height, width, channels = arrays["train-x"].shape
    card = replace(
        card,
        kind="image-text",
        input_shape=(channels, height, width),
        mean=mean,
        std=std,
        text_shape=(arrays["train-tokens"].shape[1], len(vocabulary)),
    )
    validation: Split | None = None
    if "validation-x" in arrays:
        validation = split_of(arrays, "validation")
    return Dataset(
        name=name,
        train=split_of(arrays, "train"),
        test=split_of(arrays, "test"),
        validation=validation,
        card=card,
        vocabulary=vocabulary,
    )


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


def _runs(pairs: Sequence[Pair]) -> Iterator[tuple[Path, int]]:
    """Yield each image file with the number of pairs in a row that it has."""
    for path, run in groupby(pairs, key=lambda pair: pair.image):
        yield path, sum(1 for _ in run)


def _num_pieces(pairs: Sequence[Pair]) -> int:
    return -(-sum(1 for _ in _runs(pairs)) // _CHUNK)


def _images(pairs: Sequence[Pair], how: Pictures) -> Iterator[np.ndarray]:
    """Yield uint8 (k, H, W, 3), a row a pair."""

    def read(path: Path) -> np.ndarray:
        return read_image(path, how.size, 3, how.fit)

    runs = _runs(pairs)
    # Decoding releases Python's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while some := list(islice(runs, _CHUNK)):
            images = np.stack(list(pool.map(read, (path for path, _ in some))))
            yield np.repeat(images, [count for _, count in some], axis=0)
