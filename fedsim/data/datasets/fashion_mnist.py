"""Fashion-MNIST, 28x28 grey pictures of clothing, from the four files of its distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.data.cache import cached_arrays
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.loaders.files import find_files
from fedsim.data.loaders.idx import read_idx_pair
from fedsim.data.sources import data_folders, fingerprint
from fedsim.errors import check

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
    arrays = cached_arrays(f"fashion-mnist-1-{fingerprint(files.values())}", lambda: _build(files))
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
    own = data_folders("fashion-mnist", root)
    return find_files(
        "Fashion-MNIST",
        own if root is not None else [*own, _SYSTEM],
        {key: (name, f"{name}.gz") for key, name in _FILES.items()},
        "install Debian's package (apt-get install dataset-fashion-mnist), or put its four idx "
        "files",
        home=own[-1],
    )


def _build(files: dict[str, Path]) -> dict[str, np.ndarray]:
    arrays = {}
    for part in ("train", "test"):
        x, y = read_idx_pair(files[f"{part}-x"], files[f"{part}-y"], (28, 28), 10)
        arrays[f"{part}-x"], arrays[f"{part}-y"] = x[..., None], y
    return arrays
