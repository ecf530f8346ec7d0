"""Normalisation statistics that pretrained weights expect."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fedsim.errors import InputError, check

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, of images in 0..1."""

PREPROCESSOR = "preprocessor_config.json"

KNOWN = {
    "half": ((0.5,) * 3, (0.5,) * 3),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def statistics(place: str | Path | None, normalise: str, channels: int) -> Statistics | None:
    """Return the statistics that a backbone expects, None for those of the data set.

    Raises:
        InputError: statistics for another number of channels.
    """
    if normalise == "data":
        return None
    if normalise != "auto":
        expected: Statistics | None = KNOWN[normalise]
    else:
        expected = None if place is None else _recorded(place)
    if expected is not None:
        mean, std = expected
        text = f"normalise: {normalise!r} is of images with {len(mean)} channels"
        check(len(mean) == len(std) == channels, text, channels)
    return expected


def write_statistics(folder: Path, statistics: Statistics) -> None:
    """Write the file that `statistics` reads, in the format of transformers."""
    mean, std = map(list, statistics)
    values = {"image_mean": mean, "image_std": std, "do_normalize": True}
    (folder / PREPROCESSOR).write_text(json.dumps(values, indent=2) + "\n")


def _recorded(place: str | Path) -> Statistics | None:
    path: Any = Path(place) / PREPROCESSOR
    if isinstance(place, str):
        from transformers.utils import cached_file

        try:
            path = cached_file(place, PREPROCESSOR)
        except OSError:  # a model without one
            return None
    if path is None or not Path(path).is_file():
        return None
    try:
        values = json.loads(Path(path).read_text())
        mean, std = (tuple(map(float, values[key])) for key in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} lacks a valid image_mean and image_std ({error!r}); set model.normalise"
        ) from error
    if not values.get("do_normalize", True):
        return (0.0,) * len(mean), (1.0,) * len(std)
    check(all(map(math.isfinite, mean)), f"image_mean in {path} must be finite", list(mean))
    positive = all(0 < value < math.inf for value in std)
    check(positive, f"image_std in {path} must be > 0 and finite", list(std))
    return mean, std
