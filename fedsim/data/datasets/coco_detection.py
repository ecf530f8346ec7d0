"""Detection sets from the user's files in COCO's format: COCO itself, or a driving set."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.data.cache import Built, Stream, cached_arrays
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.images import counting
from fedsim.data.loaders.coco import (
    CocoFile,
    letterboxed,
    letterboxed_boxes,
    num_chunks,
    read_coco,
    readable,
)
from fedsim.data.sources import data_folders, fingerprint, track
from fedsim.data.synthetic.photographs import PARTS, Part
from fedsim.data.synthetic.scenes import label_of_largest
from fedsim.data.tokens import to_bytes
from fedsim.errors import InputError, check, nearest

_VERSION = 1


@dataclass(frozen=True)
class _Known:
    """What is said of a set, and how one gets its files."""

    title: str
    source: str
    licence: str
    description: str
    get: str


_CONVERTED = "annotations/instances_{part}.json"
_SETS: dict[str, _Known] = {
    "coco": _Known(
        title="Detection set in COCO's format",
        source="the user's files; COCO itself: Lin et al. 2014, arXiv:1405.0312, cocodataset.org",
        licence="that of the files; COCO: annotations CC-BY-4.0, images by Flickr's terms of use",
        description="Boxes of everyday objects, or of whatever the annotations name.",
        get=(
            "get train2017, val2017 and annotations_trainval2017 from cocodataset.org, or give "
            "dataset.root and the paths of your own files"
        ),
    ),
    "bdd100k": _Known(
        title="BDD100K detection",
        source="Yu et al. 2020, arXiv:1805.04687; bdd-data.berkeley.edu",
        licence="BDD100K licence: research and other non-commercial use; see its site",
        description="Driving scenes of 10 classes; the domain is the weather. Test: validation.",
        get=(
            "get the 100k images and the detection labels from bdd-data.berkeley.edu, then run "
            "python -m fedsim.data.loaders.detection_converters bdd100k SRC {folder}"
        ),
    ),
    "cityscapes": _Known(
        title="Cityscapes detection, clear and foggy",
        source=(
            "Cordts et al. 2016, arXiv:1604.01685; fog: Sakaridis et al. 2018, arXiv:1708.07819; "
            "cityscapes-dataset.com"
        ),
        licence="Cityscapes licence: non-commercial use, no redistribution; see its site",
        description=(
            "Street scenes of 8 classes; boxes around the visible part of each instance; the "
            "domain is clear or foggy. Test: validation."
        ),
        get=(
            "get leftImg8bit, gtFine and leftImg8bit_foggy (optional) from cityscapes-dataset.com, "
            "then run python -m fedsim.data.loaders.detection_converters cityscapes SRC {folder}"
        ),
    ),
    "soda10m": _Known(
        title="SODA10M, labelled part",
        source="Han et al. 2021, arXiv:2106.11118; soda-2d.github.io",
        licence="CC-BY-NC-SA-4.0 as its site says; see there",
        description="Driving scenes of 6 classes; the domain is the weather. Test: validation.",
        get=(
            "get the labelled part (SSLAD-2D) from soda-2d.github.io, then run "
            "python -m fedsim.data.loaders.detection_converters soda10m SRC {folder}"
        ),
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

    `root` is the folder of the files, else the usual folders are looked through. Paths in it are
    those of COCO 2017, ``annotations/instances_train2017.json`` with ``train2017``, and val2017
    for testing; for a `set` that was converted they are ``annotations/instances_train.json`` and
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
    given: dict[Part, tuple[str | None, str | None]] = {
        "train": (train_annotations, train_images),
        "test": (test_annotations, test_images),
    }
    paths = _find(set, root, given)

    def build() -> Built:
        files = {
            part: read_coco(annotations, images, domain, classes, limit)
            for part, (annotations, images) in paths.items()
        }
        _check_alike(files)
        for part, file in files.items():
            _keep_domains(file, domains, per_domain if part == "train" else None)
        if broken == "skip":
            for file in files.values():
                working = readable(file.images)
                check(len(working) > 0, f"an image of {file.path} must be readable", 0)
                file.left_out["image"] = len(file.images) - len(working)
                file.images[:] = working
        present = sorted({im.domain for f in files.values() for im in f.images if im.domain})
        most = max((len(im.boxes) for f in files.values() for im in f.images), default=0)
        most = min(max(most, 1), max_boxes)
        built: dict[str, np.ndarray | Stream] = {
            "classes": to_bytes(files["train"].classes),
            "domains": to_bytes(present),
            "left-out": np.array(
                [
                    sum(f.left_out[reason] for f in files.values())
                    for reason in ("crowd", "outside", "image")
                ]
            ),
        }
        for part, file in files.items():
            columns = _columns(part, file, size, most, present)
            built |= {f"{part}-{name}": column for name, column in columns.items()}
        return built

    options = [size, classes, domain, max_boxes, limit, broken]
    if domains is not None or per_domain is not None:
        options += [domains, per_domain]
    content = fingerprint(path for pair in paths.values() for path in pair)
    digest = hashlib.sha256(json.dumps([content, options]).encode()).hexdigest()[:16]
    arrays = cached_arrays(f"coco-detection-{_VERSION}-{digest}", build)
    mean, std = (tuple(float(v) for v in row) for row in arrays["train-stats"])
    crowd, outside, unreadable = arrays["left-out"].tolist()
    return Dataset(
        name="coco-detection",
        train=_split(arrays, "train"),
        test=_split(arrays, "test"),
        card=Card(
            title=known.title,
            source=known.source,
            licence=known.licence,
            classes=tuple(name.decode() for name in arrays["classes"]),
            input_shape=(3, size, size),
            mean=mean,
            std=std,
            description=(
                f"{known.description} Left out: {crowd} crowd regions, {outside} boxes outside "
                f"their image, {unreadable} unreadable images."
            ),
            kind="detection",
            domains=tuple(name.decode() for name in arrays["domains"]),
        ),
    )


def _split(arrays: dict[str, np.ndarray], part: Part) -> Split:
    columns = ("boxes", "box_labels", "domain")
    extra = {name: arrays[f"{part}-{name}"] for name in columns if f"{part}-{name}" in arrays}
    return Split(arrays[f"{part}-x"], arrays[f"{part}-y"], extra)


def _columns(
    part: Part, file: CocoFile, size: int, most: int, domains: list[str]
) -> dict[str, np.ndarray | Stream]:
    n, stats = len(file.images), np.empty((2, 3))
    boxes, labels = letterboxed_boxes(file.images, size, most)
    images = track(letterboxed(file.images, size), f"coco-detection, {part}", num_chunks(n))
    columns: dict[str, np.ndarray | Stream] = {
        "x": Stream((n, size, size, 3), np.uint8, counting(images, stats)),
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
    set: str | None, root: str | None, given: dict[Part, tuple[str | None, str | None]]
) -> dict[Part, tuple[Path, Path]]:
    """Return the annotation file and the image folder of each part, of the first folder with all.

    Raises:
        InputError: no folder has all of them.
    """
    folders = data_folders(set or "coco", root)
    for folder in folders:
        paths: dict[Part, tuple[Path, Path]] = {}
        for part in PARTS:
            annotations, images = given[part]
            year = {"train": "train2017", "test": "val2017"}[part]
            usual = "." if set else year
            file = _CONVERTED.format(part=part if set else year)
            paths[part] = (folder / (annotations or file), folder / (images or usual))
        missing = [str(path) for pair in paths.values() for path in pair if not path.exists()]
        if not missing:
            return paths
        if folder == folders[0]:
            first_missing = missing
    known = _SETS[set or "coco"]
    raise InputError(
        f"{known.title} was not found in {', '.join(map(str, folders))}: "
        f"{', '.join(first_missing)} missing; {known.get.format(folder=folders[0])}"
    )


def _keep_domains(file: CocoFile, wanted: list[str] | None, most: int | None) -> None:
    """Leave out images of other domains, and those beyond the first of each (in place).

    Raises:
        InputError: a file without domains, or a domain that no image of it has.
    """
    if wanted is None and most is None:
        return
    known = sorted({image.domain for image in file.images if image.domain is not None})
    check(
        len(known) > 0, f"dataset.domains and per_domain need images with domains, {file.path}", 0
    )
    for name in wanted or ():
        requirement = f"dataset.domains must be domains of {file.path}, of {', '.join(known)}"
        check(name in known, f"{requirement}{nearest(name, known)}", name)
    counts: Counter[str | None] = Counter()
    kept = []
    for image in file.images:
        counts[image.domain] += 1
        if (wanted is None or image.domain in wanted) and counts[image.domain] <= (
            most or math.inf
        ):
            kept.append(image)
    check(len(kept) > 0, f"dataset.domains must leave images of {file.path}", wanted)
    file.images[:] = kept


def _check_alike(files: dict[Part, CocoFile]) -> None:
    train, test = files["train"], files["test"]
    check(
        train.classes == test.classes,
        f"{train.path} and {test.path} must have the same categories {list(train.classes)}; "
        "convert both alike or name the common ones in dataset.classes",
        list(test.classes),
    )
    some = {bool(file.images[0].domain) for file in files.values()}
    check(len(some) == 1, f"{train.path} and {test.path} must both have domains or neither", some)
