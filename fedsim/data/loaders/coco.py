"""Detection sets in COCO's format: an annotation JSON and a folder of images.

The parts of the JSON that are read:

    categories   [{id, name}]
    images       [{id, file_name, width, height}], and any key that is to be the domain
    annotations  [{image_id, category_id, bbox: [x, y, width, height], iscrowd}]
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedsim.data.images import read_image
from fedsim.data.loaders.json_files import read_json
from fedsim.errors import InputError, check, nearest

_THREADS = 8  # decoding images leaves Python's lock
_CHUNK = 64  # images in memory at once
_GREY = 114  # beside an image that is not square


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
    found: dict[Any, CocoImage] = {}
    for i, entry in enumerate(_list(tree, "images", annotations)):
        where = f"{annotations}: images[{i}]"
        identity = _get(entry, "id", (int, str), where)
        check(identity not in found, f"{where}: ids of images must differ", identity)
        width, height = (_get(entry, key, (int, float), where) for key in ("width", "height"))
        right = _finite(width) and _finite(height) and min(width, height) >= 1
        check(right, f"{where}: sizes must be >= 1 and finite", (width, height))
        name = images / _get(entry, "file_name", (str,), where)
        value = entry.get(domain)
        found[identity] = CocoImage(
            name, int(width), int(height), None if value is None else str(value)
        )
    check(len(found) > 0, f"{annotations} must list images", 0)
    left_out: Counter[str] = Counter()
    for i, entry in enumerate(_list(tree, "annotations", annotations)):
        _add_box(found, names, kept, entry, f"{annotations}: annotations[{i}]", left_out)
    chosen = list(found.values())[:limit]
    without = [image.path.name for image in chosen if image.domain is None]
    check(
        len(without) in (0, len(chosen)),
        f"{annotations}: every image or none must have the key {domain!r}; without it",
        without[:3],
    )
    return CocoFile(annotations, kept, chosen, left_out)


def readable(images: Sequence[CocoImage]) -> list[CocoImage]:
    """Return the images whose files can be read and have the size stated; reads each file."""

    def works(image: CocoImage) -> bool:
        try:
            _read(image)
        except InputError:
            return False
        return True

    with ThreadPoolExecutor(_THREADS) as pool:
        kept = [fine for some in _chunks(images) for fine in pool.map(works, some)]
    return [image for image, keep in zip(images, kept, strict=True) if keep]


def letterboxed(images: Sequence[CocoImage], size: int) -> Iterator[np.ndarray]:
    """Yield the images in order, uint8 (b, size, size, 3): whole, in the middle of grey.

    Raises:
        InputError: a file that is missing, broken, or not of the size that the annotations state.
    """

    def one(image: CocoImage) -> np.ndarray:
        from PIL import Image

        _, left, top, width, height = _fit(image, size)
        pixels = Image.fromarray(_read(image))
        whole = np.full((size, size, 3), _GREY, np.uint8)
        resized = pixels.resize((width, height), Image.Resampling.BICUBIC)
        whole[top : top + height, left : left + width] = np.asarray(resized)
        return whole

    with ThreadPoolExecutor(_THREADS) as pool:
        for some in _chunks(images):
            yield np.stack(list(pool.map(one, some)))


def letterboxed_boxes(
    images: Sequence[CocoImage], size: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes float32 (n, most, 4) in pixels of `letterboxed` and labels int64 (n, most).

    The largest come first, in the file's order where equal; of more than `most` the smallest are
    left out, and the label -1 stands where there are fewer.
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
    found = (pixels.shape[1], pixels.shape[0])
    check(
        found == (image.width, image.height),
        f"{image.path} must have the width and height of its annotations, "
        f"{image.width} x {image.height}; replace the image or the annotations",
        found,
    )
    return pixels


def _chunks(images: Sequence[CocoImage]) -> Iterator[Sequence[CocoImage]]:
    # pool.map would hold all images that are read before they are asked for.
    return (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))


def num_chunks(count: int) -> int:
    """Return how many arrays `letterboxed` yields for `count` images."""
    return -(-count // _CHUNK)


def _categories(tree: dict[str, Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for i, entry in enumerate(_list(tree, "categories", path)):
        where = f"{path}: categories[{i}]"
        identity, name = _get(entry, "id", (int,), where), _get(entry, "name", (str,), where)
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
    entry: Any,
    where: str,
    left_out: Counter[str],
) -> None:
    image_id = _get(entry, "image_id", (int, str), where)
    check(image_id in images, f"{where}: image_id must be that of an image in the file", image_id)
    category = _get(entry, "category_id", (int,), where)
    check(category in names, f"{where}: category_id must be one of {sorted(names)}", category)
    bbox = _get(entry, "bbox", (list,), where)
    right = len(bbox) == 4 and all(map(_finite, bbox))
    check(right, f"{where}: bbox must be four finite numbers x, y, width, height", bbox)
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
    """Whether a value of JSON is a number that a float holds."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON's whole numbers have no bound
        return False


def _list(tree: dict[str, Any], key: str, path: Path) -> list[Any]:
    if not isinstance(tree.get(key), list):
        raise InputError(f"{path} must have a list {key!r} as COCO's files do")
    return cast(list[Any], tree[key])


def _get(entry: Any, key: str, types: tuple[type, ...], where: str) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, types) or isinstance(value, bool):
        words = " or ".join(kind.__name__ for kind in types)
        raise InputError(f"{where} must have {key!r} of the type {words}, got {value!r}")
    return value
