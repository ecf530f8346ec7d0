"""The idx format of MNIST and its relatives: arrays of unsigned bytes, gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from fedsim.errors import InputError, check


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read an idx file of unsigned bytes whose items have `shape`: uint8 (n, *shape), n >= 1.

    The format: two zero bytes, 8 for unsigned bytes, the number of dimensions, each dimension
    as a big-endian 32-bit number, then the values. A file ending in ``.gz`` is unpacked.

    Raises:
        InputError: a file that cannot be read, is cut short, or is of another format or shape.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read ({error}); replace it by an undamaged copy"
        ) from error
    header = 4 + 4 * (1 + len(shape))
    if len(data) < header or data[:4] != bytes((0, 0, 8, 1 + len(shape))):
        raise InputError(
            f"{path} is not an idx file of {1 + len(shape)} dimensions and unsigned bytes; "
            "replace it by the file of that name from its distribution"
        )
    n, *found = (int(v) for v in np.frombuffer(data[4:header], ">u4"))
    check(
        tuple(found) == shape,
        f"{path} must hold items of the shape {shape}; replace it by the file of that name from "
        "its distribution",
        tuple(found),
    )
    size = header + n * int(np.prod(shape))
    check(
        n >= 1 and len(data) == size,
        f"{path} must hold the {n} items that its header says (at least 1), {size} bytes; "
        "replace it by an undamaged copy",
        f"{len(data)} bytes",
    )
    return np.frombuffer(data, np.uint8, offset=header).reshape(n, *shape)


def read_idx_pair(
    images: Path, labels: Path, shape: tuple[int, ...], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read images uint8 (n, *shape) and their labels int64 (n,) in 0..num_classes-1.

    Raises:
        InputError: what `read_idx` refuses, another number of labels, a label out of range.
    """
    x, y = read_idx(images, shape), read_idx(labels, ())
    check(
        len(x) == len(y),
        f"{images} and {labels} must have as many images as labels; "
        "replace them by the files of one distribution",
        f"{len(x)} images and {len(y)} labels",
    )
    highest = int(y.max())
    check(
        highest < num_classes,
        f"labels must be in 0..{num_classes - 1} in {labels}; replace the file",
        highest,
    )
    return x, y.astype(np.int64)
