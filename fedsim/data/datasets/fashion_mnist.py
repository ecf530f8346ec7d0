"""Fashion-MNIST, 28x28 grey pictures of clothing, from the four files of its distribution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedsim.data.arrays import dataset_of, split_arrays
from fedsim.data.cache import Array, cached_arrays
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.loaders.idx import IDX_FILES, read_idx_split
from fedsim.data.sources import data_folders, find_files, fingerprint
from fedsim.errors import check

_CLASSES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"

_CARD = Card(
    title="Fashion-MNIST",
    source="Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747; github.com/zalandoresearch/fashion-mnist",
    licence="MIT",
    classes=tuple(_CLASSES.split(",")),
    input_shape=(1, 28, 28),
    mean=(0.2860,),
    std=(0.3530,),
    description="60,000 training and 10,000 test images of 10 kinds of clothing, as many of each.",
)

_SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts the files


def fashion_mnist(*, root: str | None = None, limit: int | None = None) -> Dataset:
    """Fashion-MNIST, 28x28 grey: 60,000 training and 10,000 test images of clothing.

    `root` is the folder with the four idx files, gzipped or not; without it, the usual folders
    are searched. `limit` keeps the first training images only.

    Raises:
        InputError: files that are missing, cut short or of another format; a bad `limit`.
    """
    files = _find(root)
    arrays = cached_arrays(f"fashion-mnist-1-{fingerprint(files.values())}", lambda: _build(files))
    dataset = dataset_of("fashion-mnist", arrays, _CARD)
    if limit is None:
        return dataset
    x, y = dataset.train.x, dataset.train.y
    check(1 <= limit <= len(x), f"dataset.limit must be in 1..{len(x)}", limit)
    return replace(dataset, train=Split(x[:limit], y[:limit]))


def _find(root: str | None) -> dict[str, Path]:
    folders = data_folders("fashion-mnist", root)
    return find_files(
        "Fashion-MNIST",
        folders if root is not None else [*folders, _SYSTEM],
        {key: (name, f"{name}.gz") for key, name in IDX_FILES.items()},
        "install Debian's package (apt-get install dataset-fashion-mnist), or put its four idx "
        "files",
        home=folders[-1],
    )


def _build(files: dict[str, Path]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for split in ("train", "test"):
        x, y = read_idx_split(files, split)
        arrays |= split_arrays(split, {"x": x, "y": y})
    return arrays
