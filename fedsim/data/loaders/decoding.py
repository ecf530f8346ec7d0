"""Image files decoded by several threads, a block of rows at a time, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from fedsim.data.cache import cached_arrays
from fedsim.data.images import Fit, channel_stats, read_image
from fedsim.data.sources import track
from fedsim.errors import InputError, check

T = TypeVar("T")

_BLOCK = 256  # images in memory at once: 37 MiB at 224x224x3


def decode_rows(
    items: Iterable[T],
    read: Callable[[T], np.ndarray],
    name: Callable[[T], str],
    shape: tuple[int, ...],
    what: str,
    total: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield ``read(item)`` of all items in their order, as uint8 (k, *shape) for a `Stream`.

    `name` is what messages call an item, `what` the progress bar.

    Raises:
        InputError: what `read` raises, or an image of another shape.
    """
    remaining = iter(track(items, what, total))
    # The image library works outside of the interpreter's lock.
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        while block := list(islice(remaining, _BLOCK)):
            rows = np.empty((len(block), *shape), np.uint8)
            for row, item, image in zip(rows, block, pool.map(read, block), strict=True):
                check(
                    image.shape == shape,
                    f"{name(item)} must have the shape {shape} as the images before it; set "
                    "dataset.size to have all resized",
                    image.shape,
                )
                row[:] = image
            yield rows


def image_rows(
    paths: Sequence[Path],
    shape: tuple[int, int, int],
    what: str,
    fit: Fit = "squash",
    resize: bool = True,
) -> Iterator[np.ndarray]:
    """Yield the images of the files, resized to `shape` (H, W, C) if `resize`: uint8 (k, H, W, C).

    Raises:
        InputError: a file that is no image, or without `resize` one of another shape.
    """
    size, channels = (shape[:2] if resize else None), channel_number(shape[2])
    return decode_rows(
        paths,
        lambda path: read_image(path, size, channels, fit),
        str,
        shape,
        what,
        len(paths),
    )


def unreadable(paths: Sequence[Path]) -> list[int]:
    """Return the positions of the files that are no image that can be decoded."""

    def broken(path: Path) -> np.ndarray:
        try:
            read_image(path)
        except InputError:
            return np.ones(1, np.uint8)
        return np.zeros(1, np.uint8)

    flags = list(decode_rows(paths, broken, str, (1,), "looking for broken images", len(paths)))
    return np.flatnonzero(np.concatenate(flags)).tolist() if flags else []


def cached_stats(key: str, x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return `channel_stats` of `x`, computed once for the cache entry `key` that `x` is of."""

    def build() -> dict[str, np.ndarray]:
        mean, std = channel_stats(x)
        return {"mean": np.array(mean), "std": np.array(std)}

    stats = cached_arrays(f"{key}-stats", build)
    return tuple(stats["mean"].tolist()), tuple(stats["std"].tolist())


def channel_number(number: int) -> Literal[1, 3]:
    """Return a number of channels, 1 or 3, as that type.

    Raises:
        InputError: another number.
    """
    if number == 1:
        return 1
    if number == 3:
        return 3
    raise InputError(f"dataset.channels must be 1 or 3, got {number!r}")
