"""Generated data sets of emoji scenes: common options, and the columns of a split.

The scenes of a split come weather after weather, each weather being a domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.data.cache import Array, Stream
from fedsim.data.dataset import SplitName
from fedsim.data.images import counting
from fedsim.data.sources import track
from fedsim.data.synthetic.emoji_pool import GROUPS, EmojiPool, emoji_pool, pick_names
from fedsim.data.synthetic.photographs import photographs
from fedsim.data.synthetic.scenes import (
    CHUNK,
    Backgrounds,
    Draws,
    Objects,
    label_of_largest,
    pack_boxes,
    render,
)
from fedsim.data.synthetic.weather import WEATHERS, apply_weather
from fedsim.errors import check


@dataclass(frozen=True, eq=False)
class Plan:
    """n scenes of one weather: their objects, (n, K) with the labels int64 (n, K), and draws.

    `crops` (n, 5) choose the backgrounds, `strengths` (n,) the strength of the weather; both are
    uniform in [0, 1).
    """

    objects: Objects
    labels: np.ndarray
    crops: np.ndarray
    strengths: np.ndarray


def scene_options(
    counts: tuple[int, int],
    size: int,
    domains: Sequence[str] | None,
    strength: float | dict[str, float],
    groups: Sequence[str] | None,
    vendors: Sequence[str] | None,
) -> tuple[EmojiPool, dict[str, float]]:
    """Return the emoji to use, and each weather with its strength.

    `counts` are training and test scenes a domain; `strength` is one for all weathers or by name.

    Raises:
        InputError: an option out of range; a name that is unknown or repeated; a strength of an
            unknown weather, or one that is missing.
    """
    for option, count in zip(("train", "test"), counts, strict=True):
        check(count >= 1, f"dataset.{option} must be >= 1", count)
    # The smallest photograph has 300 pixels on its shorter side; weather needs a multiple of 8.
    requirement = "dataset.size must be a multiple of 8 in 64..256"
    check(64 <= size <= 256 and size % 8 == 0, requirement, size)
    weathers = pick_names("dataset.domains", domains, tuple(WEATHERS))
    by_domain = strength if isinstance(strength, dict) else dict.fromkeys(weathers, strength)
    if by_domain:
        pick_names("dataset.strength", list(by_domain), weathers)
    for value in by_domain.values():
        check(0 <= value <= 1, "dataset.strength must be in [0, 1]", value)
    missing = [name for name in weathers if name not in by_domain and name != "clear"]
    check(not missing, "dataset.strength by domain must give every domain's; missing", missing)
    pool = emoji_pool(GROUPS if groups is None else groups, vendors)
    return pool, {name: float(by_domain.get(name, 0)) for name in weathers}


def scene_columns(
    name: str,
    split: SplitName,
    pictures: np.ndarray,
    plans: Sequence[Plan],
    weathers: dict[str, float],
    size: int,
    seed: int,
) -> dict[str, Array]:
    """Return the columns of a split of data set `name`: images, boxes, classes, domain, stats.

    A scene has 70-100 % of the strength of its weather. `y` is the class of the largest box. All
    columns are filled while the images ``x`` are streamed, so these must be written first.
    """
    total, most = sum(len(plan.labels) for plan in plans), plans[0].labels.shape[1]
    boxes = np.zeros((total, most, 4), np.float32)
    box_labels = np.full((total, most), -1, np.int64)
    y, stats = np.empty(total, np.int64), np.empty((2, 3))

    def images() -> Iterator[np.ndarray]:
        backgrounds, first = Backgrounds(photographs(split), size), 0
        for plan, (weather, strength) in zip(plans, weathers.items(), strict=True):
            effect = Draws(seed, f"{name}/{split}/{weather}/weather")
            strengths = strength * (0.7 + 0.3 * plan.strengths)
            start = 0
            for scenes in render(pictures, plan.objects, backgrounds, plan.crops):
                part = slice(start, start + len(scenes.images))
                rows = slice(first + part.start, first + part.stop)
                boxes[rows], box_labels[rows] = pack_boxes(scenes, plan.labels[part])
                y[rows] = label_of_largest(boxes[rows], box_labels[rows])
                yield apply_weather(scenes.images, weather, strengths[part], effect)
                start = part.stop
            first += start

    chunks = sum(-(-len(plan.labels) // CHUNK) for plan in plans)
    x = counting(track(images(), f"{name}, {split}", chunks), stats)
    return {
        "x": Stream((total, size, size, 3), np.uint8, x),
        "y": y,
        "boxes": boxes,
        "box_labels": box_labels,
        "stats": stats,
        "domain": np.repeat(np.arange(len(plans)), [len(plan.labels) for plan in plans]),
    }
