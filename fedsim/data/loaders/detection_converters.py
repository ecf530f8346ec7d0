"""Label files of driving sets into COCO's format.

    python -m fedsim.data.loaders.detection_converters bdd100k|cityscapes|soda10m SRC OUT

writes ``OUT/annotations/instances_train.json`` and ``instances_test.json`` (from the set's
validation part); images stay where they are and are named relative to OUT. Each image gets a
`domain`: its weather.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.sources import track
from fedsim.errors import InputError, check

_BDD_CLASSES = (
    "pedestrian",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
    "traffic light",
    "traffic sign",
)
# The labels of 2018 call some classes otherwise than those of 2020.
_BDD_OLD = {"person": "pedestrian", "bike": "bicycle", "motor": "motorcycle"}
_BDD_SIZE = (1280, 720)

# Numbers of the classes with instances that Cityscapes evaluates.
_CITYSCAPES_CLASSES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}

Box = tuple[int, Sequence[float], bool]
"""A class number from 1, the x, y, width and height, and whether it is a crowd region."""


def convert_bdd100k(source: Path, out: Path) -> dict[str, int]:
    """Convert BDD100K detection; return the images written of each part.

    `source` holds ``images/100k/train|val`` and either ``labels/det_20/det_train|val.json`` or
    ``labels/bdd100k_labels_images_train|val.json``. Classes are the ten that are evaluated;
    others, such as "other vehicle" or lanes, are left out. Labels marked as crowd become crowd
    regions. `domain` is the weather, of clear, partly cloudy, overcast, rainy, snowy, foggy and
    undefined; `scene` and `timeofday` are kept too. All images have 1280 x 720 pixels.

    Raises:
        InputError: missing files, or labels of another format.
    """
    return _write_parts(source, out, _BDD_CLASSES, _bdd_part)


def convert_cityscapes(source: Path, out: Path, beta: str = "0.02") -> dict[str, int]:
    """Convert Cityscapes and, where it is there, its foggy version; return the images written.

    `source` holds ``leftImg8bit/PART/CITY``, ``gtFine/PART/CITY`` and maybe
    ``leftImg8bit_foggy/PART/CITY``, of which the images of attenuation `beta` are taken (0.005,
    0.01 or 0.02). A box is drawn around the pixels of each instance in ``*_instanceIds.png``, so
    around its visible part; regions of several that were not told apart become crowd regions.
    `domain` is clear or foggy, `city` is kept too.

    Raises:
        InputError: missing files, or an instance file that cannot be read.
    """

    def part(source: Path, name: str) -> Iterator[tuple[Path, dict[str, Any], list[Box]]]:
        return _cityscapes_part(source, name, beta)

    return _write_parts(source, out, tuple(_CITYSCAPES_CLASSES.values()), part)


def convert_soda10m(source: Path, out: Path) -> dict[str, int]:
    """Convert the labelled part of SODA10M; return the images written of each part.

    `source` holds ``labeled/annotations/instance_train|val.json``, which are in COCO's format, and
    ``labeled/train|val``, or is the folder ``labeled``. `domain` is the weather in small letters;
    `city`, `location` and `period` are kept.

    Raises:
        InputError: missing files, or annotations of another format.
    """
    labelled = source / "labeled" if (source / "labeled").is_dir() else source
    written = {}
    for part, name in _PARTS.items():
        path = labelled / "annotations" / f"instance_{name}.json"
        tree = _load(path)
        if not isinstance(tree, dict) or not isinstance(tree.get("images"), list):
            raise InputError(f"{path} must be in COCO's format, with a list 'images'")
        for i, image in enumerate(tree["images"]):
            where = f"{path}: images[{i}]"
            weather = str(_field(image, "weather", where)).lower()
            file = labelled / name / str(_field(image, "file_name", where))
            image |= {"file_name": os.path.relpath(file, out), "domain": weather}
        _save(tree, out, part)
        written[part] = len(tree["images"])
    return written


_PARTS = {"train": "train", "test": "val"}  # ours, and what the sets call it


def _write_parts(
    source: Path,
    out: Path,
    classes: Sequence[str],
    read: Callable[[Path, str], Iterator[tuple[Path, dict[str, Any], list[Box]]]],
) -> dict[str, int]:
    written = {}
    for part, name in _PARTS.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for path, entry, boxes in track(read(source, name), f"{source.name}, {part}"):
            number = len(images) + 1
            images.append({"id": number, "file_name": os.path.relpath(path, out), **entry})
            for category, bbox, crowd in boxes:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category,
                        "bbox": [float(v) for v in bbox],
                        "area": float(bbox[2] * bbox[3]),
                        "iscrowd": int(crowd),
                    }
                )
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
        _save({"images": images, "annotations": annotations, "categories": categories}, out, part)
        written[part] = len(images)
    return written


def _bdd_part(source: Path, name: str) -> Iterator[tuple[Path, dict[str, Any], list[Box]]]:
    candidates = [
        source / "labels" / "det_20" / f"det_{name}.json",
        source / "labels" / f"bdd100k_labels_images_{name}.json",
    ]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise InputError(
            f"BDD100K labels were not found: put {candidates[0]} or {candidates[1]} there, from "
            "bdd-data.berkeley.edu"
        )
    frames = _load(path)
    if not isinstance(frames, list):
        raise InputError(f"{path} must hold a list of frames as BDD100K's label files do")
    for i, frame in enumerate(frames):
        where = f"{path}: frame {i}"
        image = source / "images" / "100k" / name / str(_field(frame, "name", where))
        attributes = _field(frame, "attributes", where)
        entry = {
            "width": _BDD_SIZE[0],
            "height": _BDD_SIZE[1],
            "domain": str(_field(attributes, "weather", where)),
            "scene": attributes.get("scene"),
            "timeofday": attributes.get("timeofday"),
        }
        boxes: list[Box] = []
        for label in frame.get("labels") or ():
            category = str(_field(label, "category", where))
            category = _BDD_OLD.get(category, category)
            if category not in _BDD_CLASSES or not label.get("box2d"):
                continue
            corners = [_field(label["box2d"], key, where) for key in ("x1", "y1", "x2", "y2")]
            numbers = all(isinstance(v, int | float) for v in corners)
            check(numbers, f"{where}: box2d must hold numbers", corners)
            x1, y1, x2, y2 = corners
            crowd = bool((label.get("attributes") or {}).get("crowd"))
            boxes.append((_BDD_CLASSES.index(category) + 1, (x1, y1, x2 - x1, y2 - y1), crowd))
        yield image, entry, boxes


def _cityscapes_part(
    source: Path, name: str, beta: str
) -> Iterator[tuple[Path, dict[str, Any], list[Box]]]:
    truth = source / "gtFine" / name
    files = sorted(truth.glob("*/*_gtFine_instanceIds.png"))
    if not files:
        raise InputError(
            f"no {truth}/CITY/*_gtFine_instanceIds.png was found: put gtFine and leftImg8bit from "
            f"cityscapes-dataset.com into {source}"
        )
    for file in files:
        boxes, width, height = _instances(file)
        city, stem = file.parent.name, file.name.removesuffix("_gtFine_instanceIds.png")
        folders = {"clear": "leftImg8bit", "foggy": "leftImg8bit_foggy"}
        ends = {"clear": "_leftImg8bit.png", "foggy": f"_leftImg8bit_foggy_beta_{beta}.png"}
        for domain, folder in folders.items():
            image = source / folder / name / city / f"{stem}{ends[domain]}"
            if domain == "foggy" and not (source / folder).is_dir():
                continue
            if not image.is_file():
                raise InputError(f"{image} is missing: {file} is about it; put it there")
            entry = {"width": width, "height": height, "domain": domain, "city": city}
            yield image, entry, boxes


def _instances(path: Path) -> tuple[list[Box], int, int]:
    """Return the boxes in an image of instance numbers, and its width and height."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            numbers = np.asarray(opened, np.int32)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} is no image that can be read ({error}); replace it") from error
    check(numbers.ndim == 2, f"{path} must hold one number a pixel", numbers.shape)
    categories = list(_CITYSCAPES_CLASSES)
    boxes: list[Box] = []
    for number in np.unique(numbers).tolist():
        # 26007 is the eighth car, 26 a group of cars.
        crowd = number < 1000
        label = number if crowd else number // 1000
        if label not in _CITYSCAPES_CLASSES:
            continue
        mine = numbers == number
        columns, rows = np.flatnonzero(mine.any(0)), np.flatnonzero(mine.any(1))
        x, y = int(columns[0]), int(rows[0])
        bbox = (x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)
        boxes.append((categories.index(label) + 1, bbox, crowd))
    return boxes, numbers.shape[1], numbers.shape[0]


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error}; put the set's label file there"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} is not JSON in UTF-8 ({error}); replace it by an undamaged copy"
        ) from error


def _field(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict) or entry.get(key) is None:
        raise InputError(f"{where} must have {key!r}, as the set's label files do")
    return entry[key]


def _save(tree: dict[str, Any], out: Path, part: str) -> None:
    folder = out / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    # Under its name only when it is whole: a reader may be waiting for it.
    aside = folder / f".instances_{part}.json.part"
    aside.write_text(json.dumps(tree))
    aside.replace(folder / f"instances_{part}.json")


CONVERTERS: dict[str, Callable[[Path, Path], dict[str, int]]] = {
    "bdd100k": convert_bdd100k,
    "cityscapes": convert_cityscapes,
    "soda10m": convert_soda10m,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 after an `InputError`."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsim.data.loaders.detection_converters",
        description="Convert the label files of a driving set into COCO's format.",
    )
    parser.add_argument("set", choices=sorted(CONVERTERS))
    parser.add_argument("source", type=Path, help="folder of the set as it was downloaded")
    parser.add_argument("out", type=Path, help="folder for the annotations")
    parser.add_argument(
        "--beta", default="0.02", help="attenuation of foggy Cityscapes: 0.005, 0.01 or 0.02"
    )
    options = parser.parse_args(arguments)
    try:
        if options.set == "cityscapes":
            written = convert_cityscapes(options.source, options.out, options.beta)
        else:
            written = CONVERTERS[options.set](options.source, options.out)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write {options.out}: {error}", file=sys.stderr)
        return 2
    for part, count in written.items():
        print(f"{count} images in {options.out / 'annotations' / f'instances_{part}.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
