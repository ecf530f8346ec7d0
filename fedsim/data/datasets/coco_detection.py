"""Detection sets from the user's files in COCO's format: COCO itself, or a driving set."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fedsim.data.arrays import dataset_of, names_of, split_arrays
from fedsim.data.cache import Array, Arrays, Stream, cached_arrays
from fedsim.data.dataset import SPLITS, Card, Dataset
from fedsim.data.images import counting
from fedsim.data.loaders.coco import (
    CocoFile,
    letterbox,
    letterbox_boxes,
    read_coco,
    readable,
)
from fedsim.data.sources import data_folders, digest, fingerprint, not_found
from fedsim.data.synthetic.scenes import label_of_largest
from fedsim.data.tokens import to_bytes
from fedsim.errors import check, nearest

_VERSION = 1


class _DetectionSet(NamedTuple):
    """The card of a set, without its classes, and how to get its files."""

    card: Card
    get: str


def _known(title: str, source: str, licence: str, text: str, get: str) -> _DetectionSet:
    card = Card(title, source, licence, (), description=text, kind="detection")
    return _DetectionSet(card, get)


_CONVERT = "then run python -m fedsim.data.loaders.detection_converters {} SRC {{folder}}"
_SETS = {
    "coco": _known(
        "Detection set in COCO's format",
        "the user's files; COCO itself: Lin et al. 2014, arXiv:1405.0312, cocodataset.org",
        "that of the files; COCO: annotations CC-BY-4.0, images by Flickr's terms of use",
        "Boxes of everyday objects, or of whatever the annotations name.",
        "get train2017, val2017 and annotations_trainval2017 from cocodataset.org, or give "
        "dataset.root and the paths of your own files",
    ),
    "bdd100k": _known(
        "BDD100K detection",
        "Yu et al. 2020, arXiv:1805.04687; bdd-data.berkeley.edu",
        "BDD100K licence: research and other non-commercial use; see its site",
        "Driving scenes of 10 classes; the domain is the weather. Test: validation.",
        "get the 100k images and the detection labels from bdd-data.berkeley.edu, "
        + _CONVERT.format("bdd100k"),
    ),
    "cityscapes": _known(
        "Cityscapes detection, clear and foggy",
        "Cordts et al. 2016, arXiv:1604.01685; fog: Sakaridis et al. 2018, arXiv:1708.07819; "
        "cityscapes-dataset.com",
        "Cityscapes licence: non-commercial use, no redistribution; see its site",
        "Street scenes of 8 classes; boxes around the visible part of each instance; the "
        "domain is clear or foggy. Test: validation.",
        "get leftImg8bit, gtFine and leftImg8bit_foggy (optional) from cityscapes-dataset.com, "
        + _CONVERT.format("cityscapes"),
    ),
    "soda10m": _known(
        "SODA10M, labelled part",
        "Han et al. 2021, arXiv:2106.11118; soda-2d.github.io",
        "CC-BY-NC-SA-4.0 as its site says; see there",
        "Driving scenes of 6 classes; the domain is the weather. Test: validation.",
        "get the labelled part (SSLAD-2D) from soda-2d.github.io, " + _CONVERT.format("soda10m"),
    ),
}


def coco_detection(
    *,
    set: Literal["bdd100k", "cityscapes", "soda10m"] | None = None,
    root: str | None = None,
    train_annotations: str | None = None,
    train_images: str | None = None,
    test_annotations: str | None = None,
    test_images: str | None = None,
    size: int = 256,
    classes: list[str] | None = None,
    domain: str = "domain",
    domains: list[str] | None = None,
    per_domain: int | None = None,
    max_boxes: int = 100,
    limit: int | None = None,
    broken: Literal["refuse", "skip"] = "refuse",
) -> Dataset:
    """Detection from your files in COCO's format: COCO, BDD100K, Cityscapes, SODA10M.

    `root` is the folder of the files, else the usual folders are searched. Paths in it are those
    of COCO 2017, ``annotations/instances_train2017.json`` with ``train2017``, and val2017 for
    testing; for a converted `set` they are ``annotations/instances_train.json`` and
    ``instances_test.json`` with images relative to `root`. The four path options replace them.

    Images are resized to fit `size` x `size` with grey beside them, boxes along with them, at
    most `max_boxes`, the largest first. `classes` keeps some categories only, `domain` is the
    key of an image entry that becomes its domain, `domains` keeps the images of these only, and
    `per_domain` the first of each domain of the training file; `limit` keeps the first images of
    each file. Images without boxes are kept. Crowd regions are left out, and so are boxes less than
    a pixel wide or high inside the image; others are clipped to it; the card counts these. A broken
    or missing image file, or one whose size is not that of its annotations, is refused, or left out
    with `broken` skip, which reads every image twice. The result is cached: change the annotation
    file or empty the cache after changing images.

    Raises:
        InputError: missing files, annotations that are not of the format or refer to an unknown
            image or category, training and test categories that differ, a broken image.
    """
    check(32 <= size <= 2048, "dataset.size must be in 32..2048", size)
    check(max_boxes >= 1, "dataset.max_boxes must be >= 1", max_boxes)
    check(limit is None or limit >= 1, "dataset.limit must be >= 1", limit)
    check(per_domain is None or per_domain >= 1, "dataset.per_domain must be >= 1", per_domain)
    known = _SETS[set or "coco"]
    paths = _find(set, root, [(train_annotations, train_images), (test_annotations, test_images)])

    def build() -> Arrays:
        files = [read_coco(*place, domain, classes, limit) for place in paths]
        _check_alike(*files)
        for file, most in zip(files, (per_domain, None), strict=True):
            _keep_domains(file, domains, most)
        if broken == "skip":
            for file in files:
                whole = readable(file.images)
                check(len(whole) > 0, f"an image of {file.path} must be readable", 0)
                file.left_out["image"] = len(file.images) - len(whole)
                file.images[:] = whole
        images = [image for file in files for image in file.images]
        domain_names = sorted({image.domain for image in images if image.domain})
        most_boxes = min(max(1, *(len(image.boxes) for image in images)), max_boxes)
        left_out = sum((file.left_out for file in files), Counter[str]())
        arrays: dict[str, Array] = {
            "classes": to_bytes(files[0].classes),
            "domains": to_bytes(domain_names),
            "left-out": np.array([left_out[why] for why in ("crowd", "outside", "image")]),
        }
        for split, file in zip(SPLITS, files, strict=True):
            columns = _columns(f"coco-detection, {split}", file, size, most_boxes, domain_names)
            arrays |= split_arrays(split, columns)
        return arrays

    options = [size, classes, domain, max_boxes, limit, broken]
    if domains is not None or per_domain is not None:
        options += [domains, per_domain]
    content = fingerprint(path for place in paths for path in place)
    key = f"coco-detection-{_VERSION}-{digest(json.dumps([content, options]))}"
    arrays = cached_arrays(key, build)
    crowd, outside, unreadable = arrays["left-out"].tolist()
    card = replace(
        known.card,
        classes=names_of(arrays["classes"]),
        domains=names_of(arrays["domains"]),
        description=(
            f"{known.card.description} Left out: {crowd} crowd regions, {outside} boxes outside "
            f"their image, {unreadable} unreadable images."
        ),
    )
    return dataset_of("coco-detection", arrays, card)


def _columns(title: str, file: CocoFile, size: int, most: int, domains: list[str]) -> Arrays:
    n, stats = len(file.images), np.empty((2, 3))
    boxes, labels = letterbox_boxes(file.images, size, most)
    images = counting(letterbox(file.images, size, title), stats)
    columns: dict[str, Array] = {
        "x": Stream((n, size, size, 3), np.uint8, images),
        "y": label_of_largest(boxes, labels),
        "boxes": boxes,
        "box_labels": labels,
        "stats": stats,
    }
    if domains:
        numbers = [domains.index(image.domain) for image in file.images if image.domain]
        columns["domain"] = np.array(numbers, np.int64)
    return columns


def _find(
    set: str | None, root: str | None, options: list[tuple[str | None, str | None]]
) -> list[tuple[Path, Path]]:
    """Return the annotation file and the image folder of both splits, of one folder with all.

    `options` are the paths that replace the usual ones.

    Raises:
        InputError: no folder has all of them.
    """
    folders = data_folders(set or "coco", root)
    absent: list[list[Path]] = []
    for folder in folders:
        places = []
        for split, year, (labels, images) in zip(
            SPLITS, ("train2017", "val2017"), options, strict=True
        ):
            usual = f"annotations/instances_{split if set else year}.json"
            image_folder = images or ("." if set else year)
            places.append((folder / (labels or usual), folder / image_folder))
        absent.append([path for place in places for path in place if not path.exists()])
        if not absent[-1]:
            return places
    known = _SETS[set or "coco"]
    missing = ", ".join(map(str, absent[0]))
    advice = f"{missing} missing; {known.get.format(folder=folders[0])}"
    raise not_found(known.card.title, folders, advice)


def _keep_domains(file: CocoFile, names: list[str] | None, most: int | None) -> None:
    """Leave out images of other domains, and all but the first `most` of each (in place).

    Raises:
        InputError: a file without domains, or a domain that no image of it has.
    """
    if names is None and most is None:
        return
    known = sorted({image.domain for image in file.images if image.domain is not None})
    requirement = f"dataset.domains and per_domain need images with domains, {file.path}"
    check(len(known) > 0, requirement, 0)
    for name in names or ():
        requirement = f"dataset.domains must be domains of {file.path}, of {', '.join(known)}"
        check(name in known, f"{requirement}{nearest(name, known)}", name)
    counts: Counter[str | None] = Counter()
    kept = []
    for image in file.images:
        counts[image.domain] += 1
        is_early = most is None or counts[image.domain] <= most
        if is_early and (names is None or image.domain in names):
            kept.append(image)
    check(len(kept) > 0, f"dataset.domains must leave images of {file.path}", names)
    file.images[:] = kept


def _check_alike(train: CocoFile, test: CocoFile) -> None:
    check(
        train.classes == test.classes,
        f"{train.path} and {test.path} must have the same categories {list(train.classes)}; "
        "convert both alike or name the common ones in dataset.classes",
        list(test.classes),
    )
    both = {bool(file.images[0].domain) for file in (train, test)}
    check(len(both) == 1, f"{train.path} and {test.path} must both have domains or neither", both)
