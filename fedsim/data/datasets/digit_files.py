"""Images of digits from the files of their distributions; several sets make one, a domain each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.data.cache import Built, Stream, cached_arrays
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.images import read_image
from fedsim.data.loaders.decoding import cached_stats, image_rows
from fedsim.data.loaders.files import Wanted, find_files
from fedsim.data.loaders.idx import read_idx_pair
from fedsim.data.loaders.lists import read_list
from fedsim.data.loaders.matlab import read_h5, read_mat
from fedsim.data.sources import data_folders, fingerprint, track
from fedsim.errors import InputError, check

Files = Mapping[str, Path]
Pair = tuple[np.ndarray, np.ndarray]


def _card(title: str, source: str, licence: str, shape: tuple[int, ...], text: str) -> Card:
    # The mean and deviation are those of the files, computed at the first use.
    mean, std = (0.0,) * shape[0], (1.0,) * shape[0]
    return Card(title, source, licence, tuple("0123456789"), shape, mean, std, text)


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
    """A form that a set is distributed in: its files, and how a part of it is read."""

    files: Wanted
    read: Callable[[Files, str], Pair]


def _idx(files: Files, part: str) -> Pair:
    x, y = read_idx_pair(files[f"{part}-x"], files[f"{part}-y"], (28, 28), 10)
    return x[..., None], y


def _house_numbers(files: Files, part: str) -> Pair:
    """Read X (32, 32, 3, n) and y (n, 1), in which 10 stands for the digit 0."""
    path = files[part]
    x, y = read_mat(path, ["X", "y"])
    check(
        x.dtype == np.uint8 and x.ndim == 4 and x.shape[2] == 3,
        f"X of {path} must be of unsigned bytes (H, W, 3, n)",
        f"{x.dtype} {x.shape}",
    )
    labels = _digits(y, path)
    return np.ascontiguousarray(x.transpose(3, 0, 1, 2)), np.where(labels == 10, 0, labels)


def _usps(files: Files, part: str) -> Pair:
    """Read the values in [0, 1] (n, 256) and the digits (n,)."""
    path = files["all"]
    x, y = read_h5(path, [f"{part}/data", f"{part}/target"])
    right = x.ndim == 2 and x.shape[1] == 256
    check(right, f"{part}/data of {path} must have the shape (n, 256)", x.shape)
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    # Not written as `low < 0 or ...`, which is false of NaN.
    check(low >= 0 and high <= 1, f"{part}/data of {path} must be in [0, 1]", (low, high))
    return np.rint(x * 255).astype(np.uint8).reshape(-1, 16, 16, 1), _digits(y, path)


def _listed(files: Files, part: str) -> Pair:
    """Read the images that ``mnist_m_train_labels.txt`` lists, of the folder ``mnist_m_train``."""
    path = files[part]
    folder = path.with_name(f"mnist_m_{part}")
    names, labels = zip(*read_list(path), strict=True)
    paths = [folder / name for name in names]
    shape = (*read_image(paths[0]).shape[:2], 3)
    x = np.concatenate(list(image_rows(paths, shape, f"reading mnist-m {part}", resize=False)))
    return x, _digits(np.array(labels), path)


def _digits_five(images: str, labels: str) -> Callable[[Files, str], Pair]:
    """Read one file of the Digits-Five collection: images (n, H, W, 3), digits or one-hot rows."""

    def read(files: Files, part: str) -> Pair:
        path = files["all"]
        x, y = read_mat(path, [images.format(part), labels.format(part)])
        check(
            x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] == 3,
            f"{images.format(part)} of {path} must be of unsigned bytes (n, H, W, 3)",
            f"{x.dtype} {x.shape}",
        )
        one_hot = y.ndim == 2 and y.shape[1] == 10
        return np.ascontiguousarray(x), _digits(y.argmax(axis=1) if one_hot else y, path)

    return read


def _gzipped(name: str) -> tuple[str, ...]:
    return name, f"{name}.gz", f"raw/{name}", f"MNIST/raw/{name}"


_FORMS: dict[str, list[_Form]] = {
    "mnist": [
        _Form(
            {
                "train-x": _gzipped("train-images-idx3-ubyte"),
                "train-y": _gzipped("train-labels-idx1-ubyte"),
                "test-x": _gzipped("t10k-images-idx3-ubyte"),
                "test-y": _gzipped("t10k-labels-idx1-ubyte"),
            },
            _idx,
        )
    ],
    "svhn": [
        _Form(
            {p: (f"{p}_32x32.mat", f"svhn_{p}_32x32.mat") for p in ("train", "test")},
            _house_numbers,
        )
    ],
    "usps": [_Form({"all": ("usps.h5", "USPS.h5")}, _usps)],
    "mnist-m": [
        _Form(
            {
                p: (f"mnist_m_{p}_labels.txt", f"mnist_m/mnist_m_{p}_labels.txt")
                for p in ("train", "test")
            },
            _listed,
        ),
        _Form({"all": ("mnistm_with_label.mat",)}, _digits_five("{}", "label_{}")),
    ],
    "synth-digits": [
        _Form({p: (f"synth_{p}_32x32.mat",) for p in ("train", "test")}, _house_numbers),
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
    each set's name, or with the files themselves; without it, the usual folders are looked
    through. `size` is the height and width in pixels and `channels` 1 (grey) or 3: those of
    the files for one set, else 32 and 3.

    Raises:
        InputError: files that are missing, damaged or of another format; a label that is no
            digit; an unknown or repeated set; a `size` below 1.
    """
    names = (sets,) if isinstance(sets, str) else tuple(sets)
    for name in names:
        check(name in SETS, f"dataset.sets must be of {', '.join(SETS)}", name)
    right = len(names) == len(set(names)) > 0
    check(right, "dataset.sets must name at least one set, none twice", names)
    check(size is None or size >= 1, "dataset.size must be at least 1 pixel", size)
    check(channels in (None, 1, 3), "dataset.channels must be 1 or 3", channels)
    found = [_find(name, root) for name in names]
    keys = [
        f"digit-files-1-{name}-{fingerprint(_sources(files))}"
        for name, (_, files) in zip(names, found, strict=True)
    ]
    natives = [
        cached_arrays(key, lambda name=name, place=place: _build(name, *place))  # type: ignore[misc]
        for key, name, place in zip(keys, names, found, strict=True)
    ]
    height, width, depth = natives[0]["train-x"].shape[1:] if len(names) == 1 else (32, 32, 3)
    shape = (size or height, size or width, channels or depth)
    if len(names) == 1 and natives[0]["train-x"].shape[1:] == shape:
        key, arrays = keys[0], natives[0]
    else:
        digest = hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]
        key = f"digit-files-1-{len(names)}-{'x'.join(map(str, shape))}-{digest}"
        arrays = cached_arrays(key, lambda: _combine(natives, shape))
    mean, std = cached_stats(key, arrays["train-x"])
    card = replace(_joint(names), input_shape=(shape[2], *shape[:2]), mean=mean, std=std)

    def split(part: str) -> Split:
        extra = {"domain": arrays[f"{part}-domain"]} if len(names) > 1 else {}
        return Split(arrays[f"{part}-x"], arrays[f"{part}-y"], extra)

    return Dataset(name="digit-files", train=split("train"), test=split("test"), card=card)


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
    """Return the form that the set is there in, and its files."""
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
    """Return the files, and the folders of images beside lists, that change with their content."""
    images = [p.with_name(p.name.removesuffix("_labels.txt")) for p in files.values()]
    return [*files.values(), *(folder for folder in images if folder.is_dir())]


def _build(name: str, form: _Form, files: Files) -> dict[str, np.ndarray]:
    arrays = {}
    for part in ("train", "test"):
        x, y = form.read(files, part)
        where = ", ".join(map(str, files.values()))
        check(
            len(x) == len(y) > 0,
            f"{part} of {where} must have as many images as labels; replace the files",
            f"{len(x)} images and {len(y)} labels",
        )
        outside = y[(y < 0) | (y > 9)]
        if len(outside):
            raise InputError(
                f"labels of {name} must be digits in {where}; replace the file, got {outside[0]}"
            )
        arrays[f"{part}-x"], arrays[f"{part}-y"] = x, y
    return arrays


def _digits(values: np.ndarray, path: Path) -> np.ndarray:
    """Return labels of any shape and number type as int64 (n,)."""
    flat = values.reshape(-1)
    whole = bool(np.isfinite(flat).all()) and bool((flat == np.rint(flat)).all())
    check(whole, f"labels of {path} must be whole numbers; replace the file", str(flat[:5]))
    return flat.astype(np.int64)


def _combine(natives: list[dict[str, np.ndarray]], shape: tuple[int, int, int]) -> Built:
    arrays: dict[str, np.ndarray | Stream] = {}
    for part in ("train", "test"):
        x = [native[f"{part}-x"] for native in natives]
        sizes = [len(images) for images in x]
        arrays[f"{part}-x"] = Stream((sum(sizes), *shape), np.uint8, _resized(x, shape))
        arrays[f"{part}-y"] = np.concatenate([native[f"{part}-y"] for native in natives])
        arrays[f"{part}-domain"] = np.repeat(np.arange(len(x), dtype=np.int64), sizes)
    return arrays


def _resized(sets: list[np.ndarray], shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    from PIL import Image

    mode, size = ("L" if shape[2] == 1 else "RGB"), (shape[1], shape[0])
    blocks = [images[i : i + 1024] for images in sets for i in range(0, len(images), 1024)]
    for block in track(blocks, "resizing digits"):
        rows = np.empty((len(block), *shape), np.uint8)
        for row, pixels in zip(rows, block, strict=True):
            grey = pixels.shape[2] == 1
            image = Image.fromarray(pixels[..., 0] if grey else pixels).convert(mode)
            if image.size != size:
                image = image.resize(size, Image.Resampling.BICUBIC)
            row[:] = np.asarray(image).reshape(shape)
        yield rows
