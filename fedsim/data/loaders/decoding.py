"""Image files decoded by several threads, a block of rows at a time, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from fedsim.data.images import Fit, read_image
from fedsim.data.sources import track
from fedsim.errors import InputError, check

T = TypeVar("T")

_BLOCK = 256  # images in memory at once, 37 MiB at 224x224x3, or fewer:
_BLOCK_BYTES = 2**26


def decode_rows(
    items: Iterable[T],
    read: Callable[[T], np.ndarray],
    name: Callable[[T], str],
    shape: tuple[int, ...],
    title: str,
    total: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield ``read(item)`` of all items in their order, as uint8 (k, *shape) for a `Stream`.

    `name` is what messages call an item, `title` that of the progress bar.

    Raises:
        InputError: whatever `read` raises, or an image of another shape.
    """
    remaining = iter(track(items, title, total))
    size = max(1, min(_BLOCK, _BLOCK_BYTES // int(np.prod(shape))))
    # The image library works outside of the interpreter's lock.
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        while block := list(islice(remaining, size)):
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
    title: str,
    fit: Fit = "squash",
    resize: bool = True,
) -> Iterator[np.ndarray]:
    """Yield the images of the files, resized to `shape` (H, W, C) if `resize`: uint8 (k, H, W, C).

    Raises:
        InputError: a file that is no image, or without `resize` one of another shape.
    """
    size, channels = (shape[:2] if resize else None), channel_number(shape[2])

    def read(path: Path) -> np.ndarray:
        return read_image(path, size, channels, fit)

    return decode_rows(paths, read, str, shape, title, len(paths))


def unreadable(items: Sequence[T], read: Callable[[T], object]) -> list[int]:
    """Return the positions of the items, such as image files, that `read` refuses."""

    def refused(item: T) -> np.ndarray:
        try:
            read(item)
        except InputError:
            return np.ones(1, np.uint8)
        return np.zeros(1, np.uint8)

    rows = decode_rows(items, refused, str, (1,), "looking for broken images", len(items))
    return np.flatnonzero(np.concatenate([np.empty((0, 1), np.uint8), *rows])).tolist()


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
