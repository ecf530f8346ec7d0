"""The idx format of MNIST and its relatives: arrays of unsigned bytes, gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedsim.data.sources import refusing
from fedsim.errors import InputError, check

IDX_FILES = {
    "train-x": "train-images-idx3-ubyte",
    "train-y": "train-labels-idx1-ubyte",
    "test-x": "t10k-images-idx3-ubyte",
    "test-y": "t10k-labels-idx1-ubyte",
}
"""The files of a distribution in the form of MNIST's."""


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read an idx file of unsigned bytes whose items have `shape`: uint8 (n, *shape), n >= 1.

    The format: two zero bytes, 8 for unsigned bytes, the number of dimensions, each dimension
    as a big-endian 32-bit number, then the values. A file ending in ``.gz`` is unpacked.

    Raises:
        InputError: a file that cannot be read, is cut short, or is of another format or shape.
    """
    advice = f"{path} cannot be read ({{error}}); replace it by an undamaged copy"
    with refusing(advice, OSError, EOFError, zlib.error):
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    official = "replace it by the file of that name from its distribution"
    header = 4 + 4 * (1 + len(shape))
    if len(data) < header or data[:4] != bytes((0, 0, 8, 1 + len(shape))):
        raise InputError(
            f"{path} is not an idx file of {1 + len(shape)} dimensions and unsigned bytes; "
            f"{official}"
        )
    n, *items = np.frombuffer(data[4:header], ">u4").tolist()
    fits = tuple(items) == shape
    check(fits, f"{path} must hold items of the shape {shape}; {official}", tuple(items))
    size = header + n * int(np.prod(shape))
    check(
        n >= 1 and len(data) == size,
        f"{path} must hold the {n} items that its header says (at least 1), {size} bytes; "
        "replace it by an undamaged copy",
        f"{len(data)} bytes",
    )
    return np.frombuffer(data, np.uint8, offset=header).reshape(n, *shape)


def read_idx_split(files: Mapping[str, Path], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a split of `IDX_FILES`: images uint8 (n, 28, 28, 1), labels int64 (n,) in 0..9.

    Raises:
        InputError: what `read_idx` refuses, another number of labels, a label out of range.
    """
    images, labels = files[f"{split}-x"], files[f"{split}-y"]
    x, y = read_idx(images, (28, 28)), read_idx(labels, ())
    check(
        len(x) == len(y),
        f"{images} and {labels} must have as many images as labels; "
        "replace them by the files of one distribution",
        f"{len(x)} images and {len(y)} labels",
    )
    highest = int(y.max())
    check(highest <= 9, f"labels must be in 0..9 in {labels}; replace the file", highest)
    return x[..., None], y.astype(np.int64)
