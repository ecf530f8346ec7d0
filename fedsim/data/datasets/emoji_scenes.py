"""Emoji on photographs in six kinds of weather: a generated detection set."""

from __future__ import annotations

import numpy as np

from fedsim.data.arrays import dataset_of, split_arrays
from fedsim.data.cache import Array, Arrays, cached_arrays
from fedsim.data.dataset import SPLITS, Card, Dataset, SplitName
from fedsim.data.synthetic.emoji_pool import LICENCE, SOURCE, EmojiPool, scene_key, sides
from fedsim.data.synthetic.scenes import Backgrounds, Draws, choose, scatter
from fedsim.data.synthetic.weather_scenes import Plan, scene_columns, scene_options
from fedsim.errors import check

_NAME = "emoji-scenes"
_VERSION = 1
_TRIES = 4  # places tried for an object before it is left out


def emoji_scenes(
    *,
    train: int = 500,
    test: int = 150,
    domains: list[str] | None = None,
    strength: float | dict[str, float] = 0.7,
    groups: list[str] | None = None,
    vendors: list[str] | None = None,
    objects: int = 4,
    size: int = 128,
    seed: int = 0,
) -> Dataset:
    """Emoji on photographs in fog, rain, night, snow: detection with a domain for each weather.

    `train` and `test` are scenes a domain. `domains` are of clear, fog, rain, night, overcast,
    snow (default: all). `strength` in 0..1, one for all or by domain, is the maximum of the
    weather's: each scene has 70-100 % of it, and a domain at 0 looks clear. `groups` of emoji are
    the classes (default: smileys, animals, food, travel), `vendors` those whose drawings are used
    (default: all). A scene of `size` pixels has 1 to `objects` emoji of 20-48 pixels on a side at
    size 128, in proportion at another.

    Boxes are tight around the visible pixels. Four places are tried for an emoji; its square may
    overlap an earlier one's by at most a quarter of the smaller of the two. It is left out where it
    fits nowhere or would leave an earlier one with less than half its pixels. Base emoji and
    photographs of test scenes are never in training scenes. A scene depends on seed, domain and its
    number, not on how many scenes there are.

    Raises:
        InputError: a bad option, or scikit-image (extra `data`) is not installed.
    """
    check(1 <= objects <= 8, "dataset.objects must be in 1..8", objects)
    pool, strengths = scene_options((train, test), size, domains, strength, groups, vendors)

    def build() -> Arrays:
        arrays: dict[str, Array] = {}
        for split, count in zip(SPLITS, (train, test), strict=True):
            plans = []
            for weather in strengths:
                draws = Draws(seed, f"{_NAME}/{split}/{weather}")
                plans.append(_plan(pool, split, draws, count, objects, size))
            columns = scene_columns(_NAME, split, pool.pictures, plans, strengths, size, seed)
            arrays |= split_arrays(split, columns)
        return arrays

    card = Card(
        title="Emoji scenes",
        source=SOURCE,
        licence=LICENCE,
        classes=pool.classes,
        description=(
            f"Generated: {train} training and {test} test scenes for each of "
            f"{', '.join(strengths)}; real drawings and photographs, synthetic weather."
        ),
        kind="detection",
        domains=tuple(strengths),
    )
    key = scene_key(pool, train, test, strengths, objects, size, seed)
    return dataset_of(_NAME, cached_arrays(f"{_NAME}-{_VERSION}-{key}", build), card)


def _plan(
    pool: EmojiPool, split: SplitName, draws: Draws, count: int, most: int, size: int
) -> Plan:
    head, per_object = 2 + Backgrounds.draws, 3 + 2 * _TRIES
    u = draws.uniform(count, head + most * per_object)
    each = u[:, head:].reshape(count, most, per_object)
    labels = choose(each[..., 0], len(pool.classes))
    picture = pool.pick(split, labels, each[..., 1])
    picture[np.arange(most) > choose(u[:, :1], most)] = -1
    places = each[..., 3:].reshape(count, most, _TRIES, 2)
    objects = scatter(picture, sides(each[..., 2], size), places, size)
    return Plan(objects, labels, crops=u[:, 2:head], strengths=u[:, 1])
