"""Photographs with captions, COCO's and Flickr30k's, from the user's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from fedsim.data.arrays import dataset_of
from fedsim.data.cache import Arrays, cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.images import Fit
from fedsim.data.loaders.captions_json import CaptionedImage, read_coco, read_karpathy
from fedsim.data.loaders.image_texts import Pair, Pairs, Pictures, image_folder, image_text_arrays
from fedsim.data.sources import data_folders, digest, find_files, fingerprint
from fedsim.errors import check

Rows = Literal["image", "caption"]


def _card(title: str, source: str, licence: str, text: str) -> Card:
    return Card(
        title,
        source,
        licence,
        classes=("image-text",),
        input_shape=(3, 64, 64),
        description=text,
        kind="image-text",
        text_shape=(32, 10_000),
    )


_COCO_SOURCE = (
    "Lin et al. 2014, arXiv:1405.0312; Chen et al. 2015, arXiv:1504.00325; cocodataset.org"
)
_COCO_LICENCE = "CC-BY-4.0 (annotations); each photograph its own, of Flickr's"
_SPLITS = "splits of Karpathy, Fei-Fei 2015, arXiv:1412.2306"

SETS = {
    "coco": _card(
        "COCO captions",
        _COCO_SOURCE,
        _COCO_LICENCE,
        "118,287 training images (2017) with five captions; the 5,000 validation images are the "
        "test split, as the captions of COCO's own test images are not public.",
    ),
    "coco-karpathy": _card(
        "COCO captions, Karpathy's splits",
        f"{_COCO_SOURCE}; {_SPLITS}",
        _COCO_LICENCE,
        "113,287 training (train and restval), 5,000 validation and 5,000 test images of 2014, "
        "with five captions.",
    ),
    "flickr30k": _card(
        "Flickr30k",
        f"Young et al. 2014, TACL 2; shannon.cs.illinois.edu/DenotationGraph; {_SPLITS}",
        "research and education only; each photograph its own, of Flickr's",
        "29,000 training, 1,014 validation and 1,000 test images with five captions.",
    ),
}


_COCO_ADVICE = (
    "get the images and captions of 2017, or of 2014, from cocodataset.org and put the folders "
    "annotations, train2017 and val2017"
)
_KARPATHY_ADVICE = "get Karpathy's splits (caption_datasets.zip) and put"


@dataclass(frozen=True)
class _Source:
    """The annotation files of a set, and the folder of images by split.

    `watched` are the folders whose change makes the cached images invalid.
    """

    files: Mapping[str, Path]
    folders: Mapping[str, Path]
    watched: Sequence[Path]

    @property
    def fingerprint(self) -> str:
        # A folder's time changes with its files; statting each of 100,000 would take long.
        return fingerprint([*self.files.values(), *self.watched])


def captions(
    *,
    set: Literal["coco", "coco-karpathy", "flickr30k"] = "coco",
    root: str | None = None,
    rows: Rows = "image",
    test_rows: Rows | None = None,
    size: tuple[int, int] = (64, 64),
    fit: Fit = "squash",
    length: int = 32,
    vocabulary: int = 10_000,
    limit: int | None = None,
) -> Dataset:
    """Image-caption pairs of COCO or Flickr30k, from the user's own files.

    `root` is the folder of the annotations and the images; without it, the usual folders are
    searched. With ``rows: image`` an image is one sample with its first caption, with ``rows:
    caption`` there is a sample for each caption and the image is repeated: five times the space.
    `test_rows` is that choice for validation and test splits, null for `rows`. Images are resized
    to `size` (H, W), `fit` by ``squash`` or ``crop``: 64 x 64 takes 12 kB a sample, 224 x 224 takes
    150 kB. Texts are cut at `length` tokens of the `vocabulary` most frequent words of the training
    captions. `limit` keeps the first so many images of each split.

    There are no classes: y is 0. Columns: `tokens`, `text` and `group`, the image's number, which
    the captions of an image share.

    Raises:
        InputError: files or images that are missing or damaged; a bad option.
    """
    check(set in SETS, f"dataset.set must be one of {', '.join(SETS)}", set)
    for name, value in (("rows", rows), ("test_rows", test_rows or rows)):
        check(value in get_args(Rows), f"dataset.{name} must be one of {get_args(Rows)}", value)
    check(limit is None or limit >= 1, "dataset.limit must be >= 1", limit)
    how = Pictures(size, fit, length, vocabulary)
    folders = data_folders(set, root)
    source = _find_coco(folders) if set == "coco" else _find_karpathy(set, folders)
    each = {"train": rows, "validation": test_rows or rows, "test": test_rows or rows}
    key = f"captions-1-{digest(f'{set}{each}{how}{limit}{source.fingerprint}')}"
    arrays = cached_arrays(key, lambda: _build(set, source, each, how, limit))
    card, without = SETS[set], int(arrays["without"].sum())
    if without:
        left_out = f"{card.description} {without} images without captions were left out."
        card = replace(card, description=left_out)
    return dataset_of(set, arrays, card)


def _find_coco(folders: Sequence[Path]) -> _Source:
    """Return the files of the year whose training captions are there, 2017 before 2014."""
    for folder in folders:
        for year in (2017, 2014):
            places = [folder / "annotations", folder]
            if any((place / f"captions_train{year}.json").is_file() for place in places):
                return _coco_of([folder], year)
    return _coco_of(folders, 2017)


def _coco_of(folders: Sequence[Path], year: int) -> _Source:
    names = {"train": f"train{year}", "test": f"val{year}"}
    annotations = {
        split: (f"annotations/captions_{name}.json", f"captions_{name}.json")
        for split, name in names.items()
    }
    files = find_files(SETS["coco"].title, folders, annotations, _COCO_ADVICE)
    base = folders[-1]
    images = {
        split: image_folder([base / name, base / "images" / name], _COCO_ADVICE)
        for split, name in names.items()
    }
    return _Source(files, images, list(images.values()))


def _find_karpathy(name: str, folders: Sequence[Path]) -> _Source:
    if name == "flickr30k":
        images, file = ["flickr30k-images", "flickr30k_images", "images"], "dataset_flickr30k.json"
        advice = f"{_KARPATHY_ADVICE} dataset_flickr30k.json and the folder flickr30k-images"
    else:
        images, file = ["train2014", "images/train2014"], "dataset_coco.json"
        advice = f"{_KARPATHY_ADVICE} dataset_coco.json and COCO's folders train2014 and val2014"
    files = find_files(SETS[name].title, folders, {"all": (file, f"annotations/{file}")}, advice)
    at = files["all"].parent
    base = at.parent if at.name == "annotations" else at
    folder = image_folder([base / image for image in images], advice)
    splits = ("train", "validation", "test")
    if name == "flickr30k":
        return _Source(files, dict.fromkeys(splits, folder), [folder])
    # COCO's images are named with their folder, train2014 or val2014.
    watched = [path for path in (folder, folder.with_name("val2014")) if path.is_dir()]
    return _Source(files, dict.fromkeys(splits, folder.parent), watched)


def _build(
    name: str, source: _Source, rows: Mapping[str, Rows], how: Pictures, limit: int | None
) -> Arrays:
    if name == "coco":
        images = {split: read_coco(path)[:limit] for split, path in source.files.items()}
    else:
        images = {s: i[:limit] for s, i in read_karpathy(source.files["all"]).items()}
    without = [sum(not image.captions for image in split) for split in images.values()]
    splits = {
        split: Pairs([p for image in images[split] for p in _pairs(image, folder, rows[split])])
        for split, folder in source.folders.items()
    }
    return {**image_text_arrays(splits, how, name), "without": np.array(without, np.int64)}


def _pairs(image: CaptionedImage, folder: Path, rows: Rows) -> list[Pair]:
    texts = image.captions[: 1 if rows == "image" else None]
    return [Pair(folder / image.file, text, image.number) for text in texts]
