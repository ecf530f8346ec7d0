"""Detection sets in COCO's format: an annotation JSON and a folder of images.

The entries of the JSON that are read:

    categories   [{id, name}]
    images       [{id, file_name, width, height}], and any key that is to be the domain
    annotations  [{image_id, category_id, bbox: [x, y, width, height], iscrowd}]
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.images import read_image
from fedsim.data.loaders.decoding import decode_rows, unreadable
from fedsim.data.loaders.json_files import Fields, entries, read_json
from fedsim.errors import check, nearest

_GREY = 114  # beside an image that is not square

_CATEGORY: Fields = {"id": int, "name": str}
_IMAGE: Fields = {"id": (int, str), "width": (int, float), "height": (int, float), "file_name": str}
_ANNOTATION: Fields = {"image_id": (int, str), "category_id": int, "bbox": list}


@dataclass(eq=False)
class CocoImage:
    """One image: its file, size in pixels, and boxes (x1, y1, x2, y2) in pixels with labels."""

    path: Path
    width: int
    height: int
    domain: str | None
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class CocoFile:
    """An annotation file: class names in the order of their ids, and the images in its order.

    `left_out` counts the boxes not kept: "crowd", "outside" and "class".
    """

    path: Path
    classes: tuple[str, ...]
    images: list[CocoImage]
    left_out: Counter[str]


def read_coco(
    annotations: Path,
    images: Path,
    domain: str = "domain",
    classes: Sequence[str] | None = None,
    limit: int | None = None,
) -> CocoFile:
    """Read an annotation file; `file_name` of its images is relative to the folder `images`.

    Images without boxes are kept. Left out are crowd regions (iscrowd 1), boxes of classes that
    `classes` does not name, and boxes of which less than a pixel in width or height lies inside
    the image; others are clipped to it. `domain` is the key of an image that holds its domain;
    images without it have none. `limit` keeps the first images only.

    Raises:
        InputError: not JSON or not of the format; an id that is used twice or refers to nothing; a
            box that is not four finite numbers; a domain that only some images have.
    """
    tree = read_json(annotations)
    names = _categories(tree, annotations)
    kept = _kept_classes(names, classes, annotations)
    by_id: dict[Any, CocoImage] = {}
    for i, entry in enumerate(entries(tree, "images", _IMAGE, annotations)):
        where, identity = f"{annotations}: images[{i}]", entry["id"]
        check(identity not in by_id, f"{where}: ids of images must differ", identity)
        width, height = entry["width"], entry["height"]
        valid = _finite(width) and _finite(height) and min(width, height) >= 1
        check(valid, f"{where}: sizes must be >= 1 and finite", (width, height))
        weather = None if entry.get(domain) is None else str(entry[domain])
        by_id[identity] = CocoImage(images / entry["file_name"], int(width), int(height), weather)
    check(len(by_id) > 0, f"{annotations} must list images", 0)
    left_out: Counter[str] = Counter()
    for i, entry in enumerate(entries(tree, "annotations", _ANNOTATION, annotations)):
        _add_box(by_id, names, kept, entry, f"{annotations}: annotations[{i}]", left_out)
    first = list(by_id.values())[:limit]
    without = [image.path.name for image in first if image.domain is None]
    check(
        len(without) in (0, len(first)),
        f"{annotations}: every image or none must have the key {domain!r}; without it",
        without[:3],
    )
    return CocoFile(annotations, kept, first, left_out)


def readable(images: Sequence[CocoImage]) -> list[CocoImage]:
    """Return the images whose files can be read and have the size stated; reads each file."""
    refused = set(unreadable(images, _read))
    return [image for i, image in enumerate(images) if i not in refused]


def letterbox(images: Sequence[CocoImage], size: int, title: str) -> Iterator[np.ndarray]:
    """Yield the images in order, uint8 (b, size, size, 3): whole, in the middle of grey.

    `title` is that of the progress bar.

    Raises:
        InputError: a file that is missing, broken, or not of the size that the annotations state.
    """

    def square_of(image: CocoImage) -> np.ndarray:
        from PIL import Image

        _, left, top, width, height = _fit(image, size)
        pixels = Image.fromarray(_read(image))
        square = np.full((size, size, 3), _GREY, np.uint8)
        resized = pixels.resize((width, height), Image.Resampling.BICUBIC)
        square[top : top + height, left : left + width] = np.asarray(resized)
        return square

    def name(image: CocoImage) -> str:
        return str(image.path)

    return decode_rows(images, square_of, name, (size, size, 3), title, len(images))


def letterbox_boxes(
    images: Sequence[CocoImage], size: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes float32 (n, most, 4) in pixels of `letterbox` and labels int64 (n, most).

    The largest come first, in the file's order where equal; of more than `most` the smallest are
    left out, and the label is -1 past an image's last box.
    """
    boxes = np.zeros((len(images), most, 4), np.float32)
    labels = np.full((len(images), most), -1, np.int64)
    for i, image in enumerate(images):
        if not image.boxes:
            continue
        scale, left, top, _, _ = _fit(image, size)
        corners = np.array(image.boxes) * np.tile(scale, 2) + (left, top, left, top)
        area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
        order = np.argsort(-area, kind="stable")[:most]
        boxes[i, : len(order)] = corners[order]
        labels[i, : len(order)] = np.array(image.labels)[order]
    return boxes, labels


def _fit(image: CocoImage, size: int) -> tuple[tuple[float, float], int, int, int, int]:
    """Return the scale of x and of y, and the left, top, width and height of the image inside."""
    longest = max(image.width, image.height)
    width, height = (
        max(1, (2 * side * size + longest) // (2 * longest)) for side in (image.width, image.height)
    )
    scale = (width / image.width, height / image.height)
    return scale, (size - width) // 2, (size - height) // 2, width, height


def _read(image: CocoImage) -> np.ndarray:
    pixels = read_image(image.path)
    size = (pixels.shape[1], pixels.shape[0])
    check(
        size == (image.width, image.height),
        f"{image.path} must have the width and height of its annotations, "
        f"{image.width} x {image.height}; replace the image or the annotations",
        size,
    )
    return pixels


def _categories(tree: dict[str, Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for i, entry in enumerate(entries(tree, "categories", _CATEGORY, path)):
        where, identity, name = f"{path}: categories[{i}]", entry["id"], entry["name"]
        check(identity not in names, f"{where}: ids of categories must differ", identity)
        check(name not in names.values(), f"{where}: names of categories must differ", name)
        names[identity] = name
    check(len(names) > 0, f"{path} must list categories", 0)
    return dict(sorted(names.items()))


def _kept_classes(
    names: dict[int, str], classes: Sequence[str] | None, path: Path
) -> tuple[str, ...]:
    known = tuple(names.values())
    if classes is None:
        return known
    for name in classes:
        requirement = f"dataset.classes must be categories of {path}"
        check(name in known, f"{requirement}{nearest(name, known)}", name)
    check(len(classes) > 0, "dataset.classes must name at least one category", list(classes))
    return tuple(name for name in known if name in classes)


def _add_box(
    images: dict[Any, CocoImage],
    names: dict[int, str],
    kept: tuple[str, ...],
    entry: dict[str, Any],
    where: str,
    left_out: Counter[str],
) -> None:
    image_id, category, bbox = entry["image_id"], entry["category_id"], entry["bbox"]
    check(image_id in images, f"{where}: image_id must be that of an image in the file", image_id)
    check(category in names, f"{where}: category_id must be one of {sorted(names)}", category)
    valid = len(bbox) == 4 and all(map(_finite, bbox))
    check(valid, f"{where}: bbox must be four finite numbers x, y, width, height", bbox)
    image = images[image_id]
    x, y, width, height = map(float, bbox)
    x1, x2 = (min(max(v, 0.0), image.width) for v in (x, x + width))
    y1, y2 = (min(max(v, 0.0), image.height) for v in (y, y + height))
    if entry.get("iscrowd"):
        left_out["crowd"] += 1
    elif names[category] not in kept:
        left_out["class"] += 1
    elif x2 - x1 < 1 or y2 - y1 < 1:
        left_out["outside"] += 1
    else:
        image.boxes.append((x1, y1, x2, y2))
        image.labels.append(kept.index(names[category]))


def _finite(value: Any) -> bool:
    """Whether a JSON value is a number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON's whole numbers have no bound
        return False
