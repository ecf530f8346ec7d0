"""Captions of images in COCO's annotation files and in the files of Karpathy's splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsim.data.loaders.json_files import entries, read_json
from fedsim.errors import InputError


@dataclass(frozen=True)
class CaptionedImage:
    """An image: its file below a folder of images, its number, its captions in their order."""

    file: str
    number: int
    captions: tuple[str, ...]


def read_coco(path: Path) -> list[CaptionedImage]:
    """Return the images of a ``captions_*.json`` of COCO, in its order.

    The file has ``images`` with ``id`` and ``file_name`` and ``annotations`` with ``image_id`` and
    ``caption``.

    Raises:
        InputError: not such a file, an image twice, or a caption of an image that is not listed.
    """
    data = read_json(path)
    images = entries(data, "images", {"id": int, "file_name": str}, path)
    captions: dict[int, list[str]] = {image["id"]: [] for image in images}
    if len(captions) < len(images):
        raise InputError(f"{path} lists an image twice; replace it")
    fields = {"image_id": int, "caption": str}
    for number, annotation in enumerate(entries(data, "annotations", fields, path)):
        image = annotation["image_id"]
        if image not in captions:
            raise InputError(
                f"annotations[{number}] of {path} is of the image {image}, which is not among its "
                "images; replace the file"
            )
        captions[image].append(" ".join(annotation["caption"].split()))
    return [CaptionedImage(i["file_name"], i["id"], tuple(captions[i["id"]])) for i in images]


_KARPATHY = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def read_karpathy(path: Path) -> dict[str, list[CaptionedImage]]:
    """Return train, validation and test images of a ``dataset_*.json`` of Karpathy's splits.

    The file has ``images`` with ``filename``, ``split`` and ``sentences`` with ``raw``; COCO's
    also have ``filepath``, the folder, and ``cocoid``. Of its splits, ``restval`` (validation
    images left over) counts as train, as in the literature.

    Raises:
        InputError: not such a file, another split, or none of one of them.
    """
    data = read_json(path)
    splits: dict[str, list[CaptionedImage]] = {"train": [], "validation": [], "test": []}
    fields = {"filename": str, "split": str, "sentences": list}
    for number, image in enumerate(entries(data, "images", fields, path)):
        where = f"{path}, images[{number}]"
        if image["split"] not in _KARPATHY:
            raise InputError(
                f"the split of {where} must be one of {', '.join(_KARPATHY)}, got "
                f"{image['split']!r}; replace the file"
            )
        sentences = entries(image, "sentences", {"raw": str}, where)
        captions = tuple(" ".join(sentence["raw"].split()) for sentence in sentences)
        file = "/".join(image[key] for key in ("filepath", "filename") if key in image)
        captioned = CaptionedImage(file, _number(image, number, where), captions)
        splits[_KARPATHY[image["split"]]].append(captioned)
    for split, images in splits.items():
        if not images:
            raise InputError(f"{path} has no {split} images; is it the whole file?")
    return splits


def _number(image: Mapping[str, object], default: int, where: str) -> int:
    """Return the number by which COCO, or else the file, knows an image."""
    for key in ("cocoid", "imgid"):
        if key in image:
            value = image[key]
            if not isinstance(value, int):
                raise InputError(f"{key!r} of {where} must be a whole number, got {value!r}")
            return value
    return default
