"""CIFAR-10 and CIFAR-100, 32x32 colour photographs, from the pickles of their distribution."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.data.arrays import dataset_of, split_arrays
from fedsim.data.cache import Array, Arrays, cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.loaders.npm import TARBALL_ERRORS
from fedsim.data.loaders.plain_pickle import loads
from fedsim.data.sources import FileNames, data_folders, find_files, fingerprint, refusing
from fedsim.errors import InputError, check

_SOURCE = (
    "Krizhevsky 2009, Learning multiple layers of features; www.cs.toronto.edu/~kriz/cifar.html"
)

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

_COARSE = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
household_furniture insects large_carnivores large_man-made_outdoor_things
large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""

COARSE = tuple(_COARSE.split())
"""Names of the column ``coarse`` of CIFAR-100."""


def _card(
    title: str, classes: str, mean: tuple[float, ...], std: tuple[float, ...], columns: str = ""
) -> Card:
    text = f"50,000 training and 10,000 test photographs, as many of each class{columns}."
    names = tuple(classes.split())
    return Card(title, _SOURCE, "none stated; see source", names, (3, 32, 32), mean, std, text)


SETS = {
    "cifar10": _card("CIFAR-10", _CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": _card(
        "CIFAR-100",
        _CIFAR100,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        "; the column `coarse` holds the 20 superclasses",
    ),
}


@dataclass(frozen=True)
class _Layout:
    """Distribution of a set: its folder and archive, and the md5 of each file by split."""

    folder: str
    archive: str
    files: Mapping[str, Mapping[str, str]]
    columns: Mapping[str, tuple[bytes, int]]  # column -> key of the pickle, number of values


_LAYOUTS = {
    "cifar10": _Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        files={
            "train": {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
        },
        columns={"y": (b"labels", 10)},
    ),
    "cifar100": _Layout(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        files={
            "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
            "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
        columns={"y": (b"fine_labels", 100), "coarse": (b"coarse_labels", len(COARSE))},
    ),
}


def cifar(
    *,
    set: Literal["cifar10", "cifar100"] = "cifar10",
    root: str | None = None,
    verify: bool = True,
) -> Dataset:
    """CIFAR-10 or CIFAR-100, 32x32 photographs, from the user's own files.

    `root` is the folder that holds the archive as downloaded (``cifar-10-python.tar.gz``,
    ``cifar-100-python.tar.gz``) or its unpacked files; without it, the usual folders are searched.
    CIFAR-100 has the extra column ``coarse`` int64 (n,), numbers of `COARSE`.
    With `verify` the files must have the published checksums.

    Raises:
        InputError: files that are missing, damaged, of another checksum or format; a label that
            is out of range; a pickle that would run code.
    """
    check(set in SETS, f"dataset.set must be one of {', '.join(SETS)}", set)
    folders = data_folders(set, root)
    files = _find(set, folders)
    key = f"cifar-1-{set}-{'v' if verify else 'u'}-{fingerprint(files.values())}"
    arrays = cached_arrays(key, lambda: _build(set, files, verify))
    return dataset_of(set, arrays, SETS[set])


def _find(name: str, folders: list[Path]) -> dict[str, Path]:
    """Return the archive alone, or the path of each file; unpacked files come first."""
    layout = _LAYOUTS[name]
    files = [file for sums in layout.files.values() for file in sums]
    names: FileNames = {file: (f"{layout.folder}/{file}", file) for file in files}
    for folder in folders:
        archive = folder / layout.archive
        unpacked = any((folder / path).is_file() for paths in names.values() for path in paths)
        if archive.is_file() and not unpacked:
            return {layout.archive: archive}
    return find_files(
        SETS[name].title,
        folders,
        names,
        f"download {layout.archive} (the Python version) from www.cs.toronto.edu/~kriz/cifar.html "
        "and put it, or what it holds",
    )


def _build(name: str, files: Mapping[str, Path], verify: bool) -> Arrays:
    layout = _LAYOUTS[name]
    arrays: dict[str, Array] = {}
    for split, sums in layout.files.items():
        pieces: dict[str, list[np.ndarray]] = {column: [] for column in ("x", *layout.columns)}
        for file, md5 in sums.items():
            data, where = _read(layout, files, file)
            # Not for security: these are the sums that the authors published.
            actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if verify and actual != md5:
                raise InputError(
                    f"{where} has the md5 checksum {actual}, not {md5} as published: replace it by "
                    "an undamaged copy, or set dataset.verify: false for files of your own making"
                )
            batch = _unpickle(data, where)
            images = _images(batch, where)
            pieces["x"].append(images)
            for column, (key, count) in layout.columns.items():
                labels = _labels(batch, key, count, where)
                check(
                    len(labels) == len(images),
                    f"{where} must have as many labels as images; replace the file",
                    f"{len(labels)} labels and {len(images)} images",
                )
                pieces[column].append(labels)
        arrays |= split_arrays(split, {c: np.concatenate(p) for c, p in pieces.items()})
    return arrays


def _read(layout: _Layout, files: Mapping[str, Path], file: str) -> tuple[bytes, str]:
    """Return the bytes of one file, from the archive if need be, and what to call it."""
    if file in files:
        with refusing(f"{files[file]} cannot be read: {{error}}", OSError):
            return files[file].read_bytes(), str(files[file])
    archive = files[layout.archive]
    member = f"{layout.folder}/{file}"
    absent = f"{archive} holds no {member}; replace it by the archive from the source"
    damaged = f"{archive} cannot be unpacked ({{error}}); replace it by an undamaged copy"
    with (
        refusing(absent, KeyError),
        refusing(damaged, *TARBALL_ERRORS),
        tarfile.open(archive) as opened,
    ):
        stream = opened.extractfile(member)
        if stream is None:
            raise KeyError(member)
        return stream.read(), f"{member} in {archive}"


def _unpickle(data: bytes, where: str) -> dict[Any, Any]:
    damaged = (
        f"{where} is not a pickle of arrays ({{error}}); replace it by the file from the source"
    )
    with refusing(damaged, pickle.UnpicklingError):
        batch = loads(data)
    check(isinstance(batch, dict), f"{where} must hold a dictionary", type(batch).__name__)
    # Files that were written again by Python 3 have strings as keys.
    return {key.encode() if isinstance(key, str) else key: value for key, value in batch.items()}


def _images(batch: Mapping[Any, Any], where: str) -> np.ndarray:
    """Return the images uint8 (n, 32, 32, 3); the file has plane after plane."""
    data = batch.get(b"data")
    is_array = isinstance(data, np.ndarray) and data.dtype == np.uint8 and len(data) > 0
    if data is None or not is_array or data.shape[1:] != (3072,):
        shown = getattr(data, "shape", type(data).__name__)
        raise InputError(f"{where} must hold data, unsigned bytes (n, 3072), got {shown}")
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _labels(batch: Mapping[Any, Any], key: bytes, count: int, where: str) -> np.ndarray:
    requirement = f"{where} must hold a list {key.decode()} of whole numbers"
    with refusing(requirement, KeyError, ValueError, TypeError, OverflowError):
        labels = np.array(batch[key], dtype=np.int64)
    for label in labels[(labels < 0) | (labels >= count)][:1]:
        requirement = f"{key.decode()} of {where} must be in 0..{count - 1}; replace the file"
        check(False, requirement, int(label))
    return labels
