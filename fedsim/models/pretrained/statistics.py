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
    """Return mean and deviation that a backbone expects, None for those of the data set.

    Raises:
        InputError: statistics for another number of channels.
    """
    if normalise == "data":
        return None
    if normalise == "auto":
        found = None if place is None else _recorded(place)
    else:
        found = KNOWN[normalise]
    if found is not None:
        text = f"normalise: {normalise!r} is of images with {len(found[0])} channels"
        check(len(found[0]) == len(found[1]) == channels, text, channels)
    return found


def write_statistics(folder: Path, found: Statistics) -> None:
    """Record what `statistics` reads, as transformers does."""
    values = {"image_mean": list(found[0]), "image_std": list(found[1]), "do_normalize": True}
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
        mean, std = values["image_mean"], values["image_std"]
        found = tuple(float(v) for v in mean), tuple(float(v) for v in std)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not say image_mean and image_std ({error!r}); set model.normalise"
        ) from error
    if not values.get("do_normalize", True):
        return (0.0,) * len(found[0]), (1.0,) * len(found[1])
    check(all(map(math.isfinite, found[0])), f"image_mean in {path} must be finite", mean)
    known = all(0 < value < math.inf for value in found[1])
    check(known, f"image_std in {path} must be > 0 and finite", std)
    return found
