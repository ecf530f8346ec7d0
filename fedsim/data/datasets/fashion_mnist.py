"""Fashion-MNIST, 28x28 grey pictures of clothing, from the four files of its distribution."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from fedsim.data.cache import cached_arrays
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.errors import InputError, check

_CARD = Card(
    title="Fashion-MNIST",
    source="Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747; github.com/zalandoresearch/fashion-mnist",
    licence="MIT",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    input_shape=(1, 28, 28),
    mean=(0.2860,),
    std=(0.3530,),
    description="60,000 training and 10,000 test images of 10 kinds of clothing, as many of each.",
)

_SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts the files

_FILES = {
    "train-x": "train-images-idx3-ubyte",
    "train-y": "train-labels-idx1-ubyte",
    "test-x": "t10k-images-idx3-ubyte",
    "test-y": "t10k-labels-idx1-ubyte",
}


def fashion_mnist(*, root: str | None = None, limit: int | None = None) -> Dataset:
    """Fashion-MNIST, 28x28 grey: 60,000 training and 10,000 test images of clothing.

    `root` is the folder with the four idx files, gzipped or not; without it, the usual folders
    are looked through. `limit` keeps the first training images only.

    Raises:
        InputError: files that are missing, cut short or of another format; a bad `limit`.
    """
    files = _find(root)
    arrays = cached_arrays(f"fashion-mnist-1-{_fingerprint(files)}", lambda: _build(files))
    x, y = arrays["train-x"], arrays["train-y"]
    if limit is not None:
        check(1 <= limit <= len(x), f"dataset.limit must be in 1..{len(x)}", limit)
        x, y = x[:limit], y[:limit]
    return Dataset(
        name="fashion-mnist",
        train=Split(x, y),
        test=Split(arrays["test-x"], arrays["test-y"]),
        card=_CARD,
    )


def _find(root: str | None) -> dict[str, Path]:
    """Return the path of each of the four files, all of the first folder that has any."""
    own = Path.home() / ".fedsim" / "data" / "fashion-mnist"
    if root is not None:
        folders = [Path(root).expanduser()]
    else:
        folders = [own, _SYSTEM]
        if data := os.environ.get("FEDSIM_DATA"):
            folders.insert(0, Path(data).expanduser() / "fashion-mnist")
    for folder in folders:
        found = {
            key: path
            for key, name in _FILES.items()
            for path in (folder / f"{name}.gz", folder / name)
            if path.is_file()
        }
        if len(found) == len(_FILES):
            return found
        if found:
            missing = [name for key, name in _FILES.items() if key not in found]
            raise InputError(
                f"Fashion-MNIST in {folder} is not complete: put {', '.join(missing)} "
                "(or the same with .gz) there too"
            )
    raise InputError(
        f"Fashion-MNIST was not found in {', '.join(map(str, folders))}: install Debian's package "
        "(apt-get install dataset-fashion-mnist), or put its four idx files "
        f"({', '.join(_FILES.values())}, each also with .gz) into {folders[0] if root else own}"
    )


def _fingerprint(files: dict[str, Path]) -> str:
    """Return a name for the content of the files, from their paths, sizes and times."""
    identity = []
    for key, path in sorted(files.items()):
        stat = path.stat()
        identity.append(f"{key}:{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]


def _build(files: dict[str, Path]) -> dict[str, np.ndarray]:
    arrays = {}
    for part in ("train", "test"):
        x = _read(files[f"{part}-x"], (28, 28))
        y = _read(files[f"{part}-y"], ())
        check(
            len(x) == len(y),
            f"{files[f'{part}-x']} and {files[f'{part}-y']} must have as many images as labels; "
            "replace them by the files of one distribution",
            f"{len(x)} images and {len(y)} labels",
        )
        highest = int(y.max())
        check(
            highest < 10,
            f"labels must be in 0..9 in {files[f'{part}-y']}; replace the file",
            highest,
        )
        arrays[f"{part}-x"] = x[..., None]
        arrays[f"{part}-y"] = y.astype(np.int64)
    return arrays


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read an idx file of unsigned bytes whose items have `shape`: uint8 (n, *shape).

    The format: two zero bytes, 8 for unsigned bytes, the number of dimensions, each dimension
    as a big-endian 32-bit number, then the values.
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
            "replace it by the file of that name from Fashion-MNIST"
        )
    n, *found = (int(v) for v in np.frombuffer(data[4:header], ">u4"))
    check(
        tuple(found) == shape,
        f"{path} must hold items of the shape {shape}; replace it by the file from Fashion-MNIST",
        tuple(found),
    )
    check(
        n >= 1 and len(data) == header + n * int(np.prod(shape)),
        f"{path} must hold the {n} items that its header says (at least 1), "
        f"{header + n * int(np.prod(shape))} bytes; replace it by an undamaged copy",
        f"{len(data)} bytes",
    )
    return np.frombuffer(data, np.uint8, offset=header).reshape(n, *shape)
