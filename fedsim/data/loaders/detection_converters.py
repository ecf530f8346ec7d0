"""Converters of driving sets' label files into COCO's format.

    python -m fedsim.data.loaders.detection_converters bdd100k|cityscapes|soda10m SRC OUT

writes ``OUT/annotations/instances_train.json`` and ``instances_test.json`` (from the set's
validation split); images stay where they are and are named relative to OUT. Each image gets a
`domain`: its weather.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.loaders.json_files import check_fields, entries, read_any_json, read_json
from fedsim.data.sources import refusing, track
from fedsim.errors import InputError, check

_BDD = "pedestrian,rider,car,truck,bus,train,motorcycle,bicycle,traffic light,traffic sign"
_BDD_CLASSES = tuple(_BDD.split(","))
# Class names of the labels of 2018 that differ from those of 2020.
_BDD_OLD = {"person": "pedestrian", "bike": "bicycle", "motor": "motorcycle"}
_BDD_SIZE = (1280, 720)

_CITYSCAPES = "person rider car truck bus train motorcycle bicycle"
_CITYSCAPES_CLASSES = tuple(_CITYSCAPES.split())
_CITYSCAPES_NUMBERS = (24, 25, 26, 27, 28, 31, 32, 33)
"""Label numbers of the classes with instances that Cityscapes evaluates."""

Box = tuple[int, Sequence[float], bool]
"""A class number from 1, the x, y, width and height, and whether it is a crowd region."""

ImageBoxes = tuple[Path, dict[str, Any], list[Box]]
"""An image's file, further keys of its entry, and its boxes."""


def convert_bdd100k(source: Path, out: Path) -> dict[str, int]:
    """Convert BDD100K detection; return the number of images by split.

    `source` holds ``images/100k/train|val`` and either ``labels/det_20/det_train|val.json`` or
    ``labels/bdd100k_labels_images_train|val.json``. Classes are the ten that are evaluated;
    others, such as "other vehicle" or lanes, are left out. Labels marked as crowd become crowd
    regions. `domain` is the weather, of clear, partly cloudy, overcast, rainy, snowy, foggy and
    undefined; `scene` and `timeofday` are kept too. All images have 1280 x 720 pixels.

    Raises:
        InputError: missing files, or labels of another format.
    """
    return _write_splits(source, out, _BDD_CLASSES, _bdd_split)


def convert_cityscapes(source: Path, out: Path, beta: str = "0.02") -> dict[str, int]:
    """Convert Cityscapes and, if present, its foggy version; return the number of images.

    `source` holds ``leftImg8bit/SPLIT/CITY``, ``gtFine/SPLIT/CITY`` and maybe
    ``leftImg8bit_foggy/SPLIT/CITY``, of which the images of attenuation `beta` are taken (0.005,
    0.01 or 0.02). A box is drawn around the pixels of each instance in ``*_instanceIds.png``, so
    around its visible part; regions of several undistinguished ones become crowd regions.
    `domain` is clear or foggy, `city` is kept too.

    Raises:
        InputError: missing files, or an instance file that cannot be read.
    """
    return _write_splits(source, out, _CITYSCAPES_CLASSES, partial(_cityscapes_split, beta=beta))


def convert_soda10m(source: Path, out: Path) -> dict[str, int]:
    """Convert the labelled part of SODA10M; return the number of images by split.

    `source` holds ``labeled/annotations/instance_train|val.json``, which are in COCO's format, and
    ``labeled/train|val``, or is the folder ``labeled``. `domain` is the weather in small letters;
    `city`, `location` and `period` are kept.

    Raises:
        InputError: missing files, or annotations of another format.
    """
    labelled = source / "labeled" if (source / "labeled").is_dir() else source
    num_images = {}
    for split, name in _SPLITS.items():
        path = labelled / "annotations" / f"instance_{name}.json"
        tree = read_json(path)
        for image in entries(tree, "images", {"weather": str, "file_name": str}, path):
            file = labelled / name / image["file_name"]
            image |= {"file_name": os.path.relpath(file, out), "domain": image["weather"].lower()}
        _save(tree, out, split)
        num_images[split] = len(tree["images"])
    return num_images


_SPLITS = {"train": "train", "test": "val"}  # ours, and what the sets call it


def _write_splits(
    source: Path,
    out: Path,
    classes: Sequence[str],
    read: Callable[[Path, str], Iterator[ImageBoxes]],
) -> dict[str, int]:
    num_images = {}
    for split, name in _SPLITS.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for path, entry, boxes in track(read(source, name), f"{source.name}, {split}"):
            number = len(images) + 1
            images.append({"id": number, "file_name": os.path.relpath(path, out), **entry})
            for category, bbox, crowd in boxes:
                annotation = {"image_id": number, "category_id": category, "iscrowd": int(crowd)}
                numbers = {"bbox": [float(v) for v in bbox], "area": float(bbox[2] * bbox[3])}
                annotations.append({"id": len(annotations) + 1, **annotation, **numbers})
        categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
        _save({"images": images, "annotations": annotations, "categories": categories}, out, split)
        num_images[split] = len(images)
    return num_images


def _bdd_split(source: Path, name: str) -> Iterator[ImageBoxes]:
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
    frames = read_any_json(path)
    if not isinstance(frames, list):
        raise InputError(f"{path} must hold a list of frames as BDD100K's label files do")
    for i, frame in enumerate(frames):
        where = f"frame {i} of {path}"
        check_fields(frame, {"name": str, "attributes": dict}, where)
        attributes = frame["attributes"]
        check_fields(attributes, {"weather": str}, where)
        entry = {"width": _BDD_SIZE[0], "height": _BDD_SIZE[1], "domain": attributes["weather"]}
        entry |= {key: attributes.get(key) for key in ("scene", "timeofday")}
        boxes: list[Box] = []
        for label in frame.get("labels") or ():
            check_fields(label, {"category": str}, where)
            category = _BDD_OLD.get(label["category"], label["category"])
            if category not in _BDD_CLASSES or not label.get("box2d"):
                continue
            corners = dict.fromkeys(("x1", "y1", "x2", "y2"), (int, float))
            check_fields(label["box2d"], corners, f"box2d in {where}")
            x1, y1, x2, y2 = (label["box2d"][key] for key in corners)
            crowd = bool((label.get("attributes") or {}).get("crowd"))
            boxes.append((_BDD_CLASSES.index(category) + 1, (x1, y1, x2 - x1, y2 - y1), crowd))
        yield source / "images" / "100k" / name / frame["name"], entry, boxes


def _cityscapes_split(source: Path, name: str, beta: str) -> Iterator[ImageBoxes]:
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
        for domain, folder, end in (
            ("clear", "leftImg8bit", ""),
            ("foggy", "leftImg8bit_foggy", f"_beta_{beta}"),
        ):
            if domain == "foggy" and not (source / folder).is_dir():
                continue
            image = source / folder / name / city / f"{stem}_{folder}{end}.png"
            if not image.is_file():
                raise InputError(f"{image} is missing: {file} is about it; put it there")
            entry = {"width": width, "height": height, "domain": domain, "city": city}
            yield image, entry, boxes


def _instances(path: Path) -> tuple[list[Box], int, int]:
    """Return the boxes in an image of instance numbers, and its width and height."""
    from PIL import Image

    broken = f"{path} is no image that can be read ({{error}}); replace it"
    with refusing(broken, OSError, SyntaxError, ValueError), Image.open(path) as image:
        numbers = np.asarray(image, np.int32)
    check(numbers.ndim == 2, f"{path} must hold one number a pixel", numbers.shape)
    boxes: list[Box] = []
    for number in np.unique(numbers).tolist():
        # 26007 is the eighth car, 26 a group of cars.
        crowd = number < 1000
        label = number if crowd else number // 1000
        if label not in _CITYSCAPES_NUMBERS:
            continue
        mine = numbers == number
        columns, rows = np.flatnonzero(mine.any(0)), np.flatnonzero(mine.any(1))
        x, y = int(columns[0]), int(rows[0])
        bbox = (x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)
        boxes.append((_CITYSCAPES_NUMBERS.index(label) + 1, bbox, crowd))
    return boxes, numbers.shape[1], numbers.shape[0]


def _save(tree: dict[str, Any], out: Path, split: str) -> None:
    folder = out / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    # Under its name only when it is whole: a reader may be waiting for it.
    aside = folder / f".instances_{split}.json.part"
    aside.write_text(json.dumps(tree))
    aside.replace(folder / f"instances_{split}.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 after an `InputError`."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsim.data.loaders.detection_converters",
        description="Convert the label files of a driving set into COCO's format.",
    )
    parser.add_argument("set", choices=("bdd100k", "cityscapes", "soda10m"))
    parser.add_argument("source", type=Path, help="folder of the set as it was downloaded")
    parser.add_argument("out", type=Path, help="folder for the annotations")
    parser.add_argument(
        "--beta", default="0.02", help="attenuation of foggy Cityscapes: 0.005, 0.01 or 0.02"
    )
    options = parser.parse_args(arguments)
    convert = {"bdd100k": convert_bdd100k, "soda10m": convert_soda10m}.get(
        options.set, partial(convert_cityscapes, beta=options.beta)
    )
    try:
        num_images = convert(options.source, options.out)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write {options.out}: {error}", file=sys.stderr)
        return 2
    for split, count in num_images.items():
        print(f"{count} images in {options.out / 'annotations' / f'instances_{split}.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
