"""Digit images from the files of their distributions; of several sets, each is a domain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.data.arrays import dataset_of, split_arrays
from fedsim.data.cache import Array, Arrays, Stream, cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.images import read_image, resize_images
from fedsim.data.loaders.decoding import channel_number, image_rows
from fedsim.data.loaders.idx import IDX_FILES, read_idx_split
from fedsim.data.loaders.lists import read_list
from fedsim.data.loaders.matlab import read_h5, read_mat
from fedsim.data.sources import FileNames, data_folders, digest, find_files, fingerprint, track
from fedsim.errors import InputError, check

Files = Mapping[str, Path]
Pair = tuple[np.ndarray, np.ndarray]


def _card(title: str, source: str, licence: str, shape: tuple[int, ...], text: str) -> Card:
    return Card(title, source, licence, tuple("0123456789"), shape, description=text)


SETS = {
    "mnist": _card(
        "MNIST",
        "LeCun, Cortes, Burges 1998; yann.lecun.com/exdb/mnist",
        "CC-BY-SA-3.0",
        (1, 28, 28),
        "Handwritten digits, 60,000 for training and 10,000 for testing.",
    ),
    "svhn": _card(
        "SVHN, cropped digits",
        "Netzer et al. 2011; ufldl.stanford.edu/housenumbers",
        "for non-commercial use; see source",
        (3, 32, 32),
        "House numbers photographed in streets, 73,257 for training and 26,032 for testing.",
    ),
    "usps": _card(
        "USPS",
        "Hull 1994; usps.h5 as on kaggle.com/datasets/bistaumanga/usps-dataset",
        "none stated; see source",
        (1, 16, 16),
        "Digits scanned from envelopes, 7,291 for training and 2,007 for testing.",
    ),
    "mnist-m": _card(
        "MNIST-M",
        "Ganin et al. 2016, arXiv:1505.07818; yaroslav.ganin.net",
        "none stated; see source",
        (3, 32, 32),
        "MNIST blended with photographs; 59,001 for training and 9,001 for testing.",
    ),
    "synth-digits": _card(
        "SynthDigits",
        "Ganin, Lempitsky 2015, arXiv:1409.7495; yaroslav.ganin.net",
        "none stated; see source",
        (3, 32, 32),
        "Digits rendered from fonts, 479,400 for training and 9,553 for testing.",
    ),
}


@dataclass(frozen=True)
class _Form:
    """A form that a set is distributed in: its files, and the reader of a split."""

    files: FileNames
    read: Callable[[Files, str], Pair]


def _house_numbers(files: Files, split: str) -> Pair:
    """Read X (32, 32, 3, n) and y (n, 1), in which 10 stands for the digit 0."""
    path = files[split]
    x, y = read_mat(path, ["X", "y"])
    is_images = x.dtype == np.uint8 and x.ndim == 4 and x.shape[2] == 3
    requirement = f"X of {path} must be of unsigned bytes (H, W, 3, n)"
    check(is_images, requirement, f"{x.dtype} {x.shape}")
    labels = _digits(y, path)
    return np.ascontiguousarray(x.transpose(3, 0, 1, 2)), np.where(labels == 10, 0, labels)


def _usps(files: Files, split: str) -> Pair:
    """Read the values in [0, 1] (n, 256) and the digits (n,)."""
    path = files["all"]
    x, y = read_h5(path, [f"{split}/data", f"{split}/target"])
    is_rows = x.ndim == 2 and x.shape[1] == 256
    check(is_rows, f"{split}/data of {path} must have the shape (n, 256)", x.shape)
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    # Not written as `low < 0 or ...`, which is false of NaN.
    check(low >= 0 and high <= 1, f"{split}/data of {path} must be in [0, 1]", (low, high))
    return np.rint(x * 255).astype(np.uint8).reshape(-1, 16, 16, 1), _digits(y, path)


def _listed(files: Files, split: str) -> Pair:
    """Read the images that ``mnist_m_train_labels.txt`` lists, of the folder ``mnist_m_train``."""
    path = files[split]
    folder = path.with_name(f"mnist_m_{split}")
    names, labels = zip(*read_list(path), strict=True)
    paths = [folder / name for name in names]
    shape = (*read_image(paths[0]).shape[:2], 3)
    x = np.concatenate(list(image_rows(paths, shape, f"reading mnist-m {split}", resize=False)))
    return x, _digits(np.array(labels), path)


def _digits_five(images: str, labels: str) -> Callable[[Files, str], Pair]:
    """Read one file of the Digits-Five collection: images (n, H, W, 3), digits or one-hot rows."""

    def read(files: Files, split: str) -> Pair:
        path = files["all"]
        x, y = read_mat(path, [images.format(split), labels.format(split)])
        is_images = x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] == 3
        requirement = f"{images.format(split)} of {path} must be of unsigned bytes (n, H, W, 3)"
        check(is_images, requirement, f"{x.dtype} {x.shape}")
        one_hot = y.ndim == 2 and y.shape[1] == 10
        return np.ascontiguousarray(x), _digits(y.argmax(axis=1) if one_hot else y, path)

    return read


def _named(pattern: str, *others: str) -> FileNames:
    """Return the file names of each split, ``{}`` in the patterns standing for it."""
    return {s: [p.format(s) for p in (pattern, *others)] for s in ("train", "test")}


_IDX_NAMES = {
    key: [name, f"{name}.gz", f"raw/{name}", f"MNIST/raw/{name}"] for key, name in IDX_FILES.items()
}
_FORMS: dict[str, list[_Form]] = {
    "mnist": [_Form(_IDX_NAMES, read_idx_split)],
    "svhn": [_Form(_named("{}_32x32.mat", "svhn_{}_32x32.mat"), _house_numbers)],
    "usps": [_Form({"all": ("usps.h5", "USPS.h5")}, _usps)],
    "mnist-m": [
        _Form(_named("mnist_m_{}_labels.txt", "mnist_m/mnist_m_{}_labels.txt"), _listed),
        _Form({"all": ("mnistm_with_label.mat",)}, _digits_five("{}", "label_{}")),
    ],
    "synth-digits": [
        _Form(_named("synth_{}_32x32.mat"), _house_numbers),
        _Form({"all": ("syn_number.mat",)}, _digits_five("{}_data", "{}_label")),
    ],
}


def digit_files(
    *,
    sets: str | tuple[str, ...] = "mnist",
    root: str | None = None,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
) -> Dataset:
    """MNIST, SVHN, USPS, MNIST-M or SynthDigits from the user's files; several are one domain each.

    `sets` are one or several of ``mnist``, ``svhn``, ``usps``, ``mnist-m``, ``synth-digits``;
    several get a column ``domain`` with their position. `root` is the folder with a folder of
    each set's name, or with the files themselves; without it, the usual folders are searched.
    `size` is the height and width in pixels and `channels` 1 (grey) or 3: those of
    the files for one set, else 32 and 3.

    Raises:
        InputError: files that are missing, damaged or of another format; a label that is no
            digit; an unknown or repeated set; a `size` below 1.
    """
    names = (sets,) if isinstance(sets, str) else tuple(sets)
    for name in names:
        check(name in SETS, f"dataset.sets must be of {', '.join(SETS)}", name)
    unique = len(names) == len(set(names)) > 0
    check(unique, "dataset.sets must name at least one set, none twice", names)
    check(size is None or size >= 1, "dataset.size must be at least 1 pixel", size)
    check(channels in (None, 1, 3), "dataset.channels must be 1 or 3", channels)
    keys, natives = [], []
    for name in names:
        form, files = _find(name, root)
        keys.append(f"digit-files-1-{name}-{fingerprint(_sources(files))}")
        natives.append(cached_arrays(keys[-1], partial(_build, name, form, files)))
    native = natives[0]["train-x"].shape[1:]
    height, width, depth = native if len(names) == 1 else (32, 32, 3)
    shape = (size or height, size or width, channels or depth)
    key, arrays = keys[0], natives[0]
    if len(names) > 1 or native != shape:
        key = f"digit-files-1-{len(names)}-{'x'.join(map(str, shape))}-{digest(' '.join(keys))}"
        arrays = cached_arrays(key, lambda: _combine(natives, shape))
    if len(names) == 1:
        arrays = {n: a for n, a in arrays.items() if not n.endswith("-domain")}
    return dataset_of("digit-files", arrays, _joint(names), stats_key=key)


def _joint(names: tuple[str, ...]) -> Card:
    cards = [SETS[name] for name in names]
    if len(cards) == 1:
        return cards[0]
    return replace(
        cards[0],
        title=", ".join(card.title for card in cards),
        source="; ".join(card.source for card in cards),
        licence="; ".join(f"{card.title}: {card.licence}" for card in cards),
        description=" ".join(f"{card.title}: {card.description}" for card in cards),
        domains=names,
    )


def _find(name: str, root: str | None) -> tuple[_Form, dict[str, Path]]:
    """Return the form of the set that is present, and its files."""
    folders = data_folders(name, root)
    if root is not None:
        folders = [folders[0] / name, folders[0]]
    forms = _FORMS[name]
    for folder in folders:
        for form in forms:
            if any((folder / p).is_file() for paths in form.files.values() for p in paths):
                return form, find_files(SETS[name].title, [folder], form.files, "")
    others = "".join(
        f", or {', '.join(paths[0] for paths in form.files.values())}" for form in forms[1:]
    )
    advice = f"get it from {SETS[name].source.split('; ')[-1]}{others} and put its files"
    return forms[0], find_files(SETS[name].title, folders, forms[0].files, advice, home=folders[0])


def _sources(files: Files) -> list[Path]:
    """Return the files, and the folders of images beside list files, which change with content."""
    images = [p.with_name(p.name.removesuffix("_labels.txt")) for p in files.values()]
    return [*files.values(), *(folder for folder in images if folder.is_dir())]


def _build(name: str, form: _Form, files: Files) -> Arrays:
    arrays: dict[str, Array] = {}
    where = ", ".join(map(str, files.values()))
    for split in ("train", "test"):
        x, y = form.read(files, split)
        check(
            len(x) == len(y) > 0,
            f"{split} of {where} must have as many images as labels; replace the files",
            f"{len(x)} images and {len(y)} labels",
        )
        for label in y[(y < 0) | (y > 9)][:1]:
            raise InputError(
                f"labels of {name} must be digits in {where}; replace the file, got {label}"
            )
        arrays |= split_arrays(split, {"x": x, "y": y})
    return arrays


def _digits(values: np.ndarray, path: Path) -> np.ndarray:
    """Return labels of any shape and number type as int64 (n,)."""
    flat = values.reshape(-1)
    whole = bool(np.isfinite(flat).all()) and bool((flat == np.rint(flat)).all())
    check(whole, f"labels of {path} must be whole numbers; replace the file", str(flat[:5]))
    return flat.astype(np.int64)


def _combine(natives: list[dict[str, np.ndarray]], shape: tuple[int, int, int]) -> Arrays:
    arrays: dict[str, Array] = {}
    for split in ("train", "test"):
        x = [native[f"{split}-x"] for native in natives]
        sizes = [len(images) for images in x]
        columns: dict[str, Array] = {
            "x": Stream((sum(sizes), *shape), np.uint8, _resize(x, shape)),
            "y": np.concatenate([native[f"{split}-y"] for native in natives]),
            "domain": np.repeat(np.arange(len(x), dtype=np.int64), sizes),
        }
        arrays |= split_arrays(split, columns)
    return arrays


def _resize(sets: list[np.ndarray], shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    blocks = [images[i : i + 1024] for images in sets for i in range(0, len(images), 1024)]
    for block in track(blocks, "resizing digits"):
        yield resize_images(block, shape[:2], "squash", channel_number(shape[2]))
