"""Emoji on photographs in six kinds of weather: a detection set made on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedsim.data.cache import Built, Stream, cached_arrays
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.images import counting
from fedsim.data.sources import track
from fedsim.data.synthetic.emoji_pool import (
    GROUPS,
    LICENCE,
    SOURCE,
    EmojiPool,
    check_size,
    emoji_pool,
    pick_names,
    scene_key,
    sides,
    weather_strengths,
)
from fedsim.data.synthetic.photographs import PARTS, Part, photographs
from fedsim.data.synthetic.scenes import (
    CHUNK,
    Backgrounds,
    Draws,
    Scenes,
    choose,
    label_of_largest,
    pack_boxes,
    render,
    scatter,
)
from fedsim.data.synthetic.weather import WEATHERS, apply_weather
from fedsim.errors import check

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
    snow (default: all). `strength` in 0..1, one for all or by domain, is the strongest the weather
    gets: each scene has 70-100 % of it, and at 0 the domain looks as clear does. `groups` of
    emoji are the classes (default: smileys, animals, food, travel), `vendors` those whose drawings
    are used (default: all). A scene of `size` pixels has 1 to `objects` emoji of 20-48 pixels on
    a side at size 128, in proportion at another.

    Boxes are tight around the pixels that can be seen. An emoji is placed so that its square
    shares at most a quarter of the smaller of two with an earlier one's, four places are tried,
    and it is left out where it fits nowhere or would leave an earlier one with less than half its
    pixels. Base emoji and photographs of test scenes are never in training scenes. A scene
    depends on seed, domain and its number, not on how many scenes there are.

    Raises:
        InputError: a bad option, or scikit-image (extra `data`) is not installed.
    """
    check(train >= 1, "dataset.train must be >= 1", train)
    check(test >= 1, "dataset.test must be >= 1", test)
    check(1 <= objects <= 8, "dataset.objects must be in 1..8", objects)
    check_size(size)
    weathers = pick_names("dataset.domains", domains, tuple(WEATHERS))
    strengths = weather_strengths(strength, weathers)
    pool = emoji_pool(GROUPS if groups is None else groups, vendors)

    def build() -> Built:
        arrays: dict[str, np.ndarray | Stream] = {}
        for part, count in zip(PARTS, (train, test), strict=True):
            made = _scenes(pool, part, strengths, count, objects, size, seed)
            arrays |= {
                f"{part}-{name}": array
                for name, array in _columns(
                    made, part, count * len(weathers), objects, size
                ).items()
            }
            arrays[f"{part}-domain"] = np.repeat(np.arange(len(weathers), dtype=np.int64), count)
        return arrays

    key = scene_key(pool, train, test, strengths, objects, size, seed)
    arrays = cached_arrays(f"emoji-scenes-{_VERSION}-{key}", build)
    mean, std = (tuple(float(v) for v in row) for row in arrays["train-stats"])

    def split(part: Part) -> Split:
        extra = {name: arrays[f"{part}-{name}"] for name in ("boxes", "box_labels", "domain")}
        return Split(arrays[f"{part}-x"], arrays[f"{part}-y"], extra)

    return Dataset(
        name="emoji-scenes",
        train=split("train"),
        test=split("test"),
        card=Card(
            title="Emoji scenes",
            source=SOURCE,
            licence=LICENCE,
            classes=pool.classes,
            input_shape=(3, size, size),
            mean=mean,
            std=std,
            description=(
                f"Generated: {train} training and {test} test scenes for each of "
                f"{', '.join(weathers)}; real drawings and photographs, synthetic weather."
            ),
            kind="detection",
            domains=weathers,
        ),
    )


def _scenes(
    pool: EmojiPool,
    part: Part,
    strengths: dict[str, float],
    count: int,
    most: int,
    size: int,
    seed: int,
) -> Iterator[tuple[Scenes, np.ndarray]]:
    """Yield a part's scenes with the labels of their objects, int64 (b, K), by domain."""
    backgrounds = Backgrounds(photographs(part), size)
    for weather, strength in strengths.items():
        yield from _domain(pool, part, weather, strength, backgrounds, count, most, seed)


def _domain(
    pool: EmojiPool,
    part: Part,
    weather: str,
    strength: float,
    backgrounds: Backgrounds,
    count: int,
    most: int,
    seed: int,
) -> Iterator[tuple[Scenes, np.ndarray]]:
    draws = Draws(seed, f"emoji-scenes/{part}/{weather}")
    head, per_object = 2 + Backgrounds.draws, 3 + 2 * _TRIES
    u = draws.uniform(count, head + most * per_object)
    own = u[:, head:].reshape(count, most, per_object)
    labels = choose(own[..., 0], len(pool.classes))
    picture = pool.pick(part, labels, own[..., 1])
    picture[np.arange(most) > choose(u[:, :1], most)] = -1
    size = backgrounds.size
    places = own[..., 3:].reshape(count, most, _TRIES, 2)
    placed = scatter(picture, sides(own[..., 2], size), places, size)
    effect = Draws(seed, f"emoji-scenes/{part}/{weather}/weather")
    own_strength = strength * (0.7 + 0.3 * u[:, 1])
    start = 0
    for scenes in render(pool.pictures, placed, backgrounds, u[:, 2:head]):
        rows = slice(start, start + len(scenes.images))
        start = rows.stop
        images = apply_weather(scenes.images, weather, own_strength[rows], effect)
        yield Scenes(images, scenes.boxes, scenes.shown), labels[rows]


def _columns(
    made: Iterator[tuple[Scenes, np.ndarray]], part: Part, total: int, most: int, size: int
) -> dict[str, np.ndarray | Stream]:
    """Return the columns of a part; all others are filled while the images are streamed."""
    y, stats = np.empty(total, np.int64), np.empty((2, 3))
    boxes = np.zeros((total, most, 4), np.float32)
    box_labels = np.full((total, most), -1, np.int64)

    def images() -> Iterator[np.ndarray]:
        start = 0
        for some, labels in made:
            rows = slice(start, start + len(labels))
            start = rows.stop
            boxes[rows], box_labels[rows] = pack_boxes(some, labels)
            y[rows] = label_of_largest(boxes[rows], box_labels[rows])
            yield some.images

    chunks = track(images(), f"emoji-scenes, {part}", -(-total // CHUNK))
    x = Stream((total, size, size, 3), np.uint8, counting(chunks, stats))
    return {"x": x, "y": y, "boxes": boxes, "box_labels": box_labels, "stats": stats}
