"""Questions about emoji scenes, with the answers as classes: made on this machine."""

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
    check_size,
    emoji_pool,
    pick_names,
    scene_key,
    weather_strengths,
)
from fedsim.data.synthetic.photographs import PARTS, Part, photographs
from fedsim.data.synthetic.questions import MOST, QUESTIONS, Asked, Questions
from fedsim.data.synthetic.scenes import CHUNK, Backgrounds, Draws, pack_boxes, render
from fedsim.data.synthetic.weather import WEATHERS, apply_weather
from fedsim.data.tokens import build_vocabulary, encode, to_bytes, words
from fedsim.errors import check

_VERSION = 1
_HEAD = 1 + Backgrounds.draws  # uniform numbers for the weather's strength and the background


def scene_questions(
    *,
    train: int = 4000,
    test: int = 1000,
    questions: list[str] | None = None,
    domains: list[str] | None = None,
    strength: float | dict[str, float] = 0.7,
    groups: list[str] | None = None,
    vendors: list[str] | None = None,
    size: int = 128,
    seed: int = 0,
) -> Dataset:
    """Generated questions about emoji scenes: how many, is there, further left, largest, colour.

    Each of `train` and `test` scenes a domain has one question, its tokens; y is the answer, one
    of a closed list. `questions` are kinds of count, presence, left, largest, colour (default:
    all), `domains` weathers as in emoji-scenes (default: clear), with `strength`; `groups`,
    `vendors`, `size` and `seed` are as there.

    The question and the answer are drawn first, each answer that a question can have as often as
    the others, and the scene is made to fit: a question alone says nothing of its answer. Up to
    four emoji of 20-48 pixels (at size 128) stand in a quarter of the scene each, so that none
    hides another. Columns: `tokens`, `text`, `boxes`, `box_labels`, `domain` and `question`,
    int64, the number of the kind.

    Raises:
        InputError: a bad option, fewer than two groups, colour questions about groups without
            enough emoji of two colours, or scikit-image (extra `data`) is not installed.
    """
    check(train >= 1, "dataset.train must be >= 1", train)
    check(test >= 1, "dataset.test must be >= 1", test)
    check_size(size)
    kinds = pick_names("dataset.questions", questions, tuple(QUESTIONS))
    chosen = ["clear"] if domains is None else domains
    weathers = pick_names("dataset.domains", chosen, tuple(WEATHERS))
    strengths = weather_strengths(strength, weathers)
    pool = emoji_pool(GROUPS if groups is None else groups, vendors)
    check(len(pool.classes) >= 2, "dataset.groups must name at least 2 groups", list(pool.classes))
    key = scene_key(pool, train, test, strengths, kinds, size, seed)
    asker = Questions(pool, kinds, size)
    vocabulary = build_vocabulary(asker.texts())
    length = max(len(words(text)) for text in asker.texts())

    def build() -> Built:
        arrays: dict[str, np.ndarray | Stream] = {}
        for part, count in zip(PARTS, (train, test), strict=True):
            draws = [Draws(seed, f"scene-questions/{part}/{weather}") for weather in weathers]
            u = np.concatenate([some.uniform(count, _HEAD + Questions.draws) for some in draws])
            asked = asker.ask(part, u[:, _HEAD:])
            boxes = np.zeros((len(u), MOST, 4), np.float32)
            box_labels = np.full((len(u), MOST), -1, np.int64)
            made = _scenes(asker, asked, part, strengths, u[:, :_HEAD], boxes, box_labels, seed)
            chunks = track(made, f"scene-questions, {part}", -(-len(u) // CHUNK))
            stats = np.empty((2, 3))
            columns: dict[str, np.ndarray | Stream] = {
                "x": Stream((len(u), size, size, 3), np.uint8, counting(chunks, stats)),
                "y": asked.answer,
                "tokens": encode(asked.texts, vocabulary, length),
                "text": to_bytes(asked.texts),
                "boxes": boxes,
                "box_labels": box_labels,
                "question": asked.kind,
                "domain": np.repeat(np.arange(len(weathers), dtype=np.int64), count),
                "stats": stats,
            }
            arrays |= {f"{part}-{name}": column for name, column in columns.items()}
        return arrays

    arrays = cached_arrays(f"scene-questions-{_VERSION}-{key}", build)
    mean, std = (tuple(float(v) for v in row) for row in arrays["train-stats"])
    columns = ("tokens", "text", "boxes", "box_labels", "domain", "question")

    def split(part: Part) -> Split:
        extra = {name: arrays[f"{part}-{name}"] for name in columns}
        return Split(arrays[f"{part}-x"], arrays[f"{part}-y"], extra)

    return Dataset(
        name="scene-questions",
        train=split("train"),
        test=split("test"),
        card=Card(
            title="Questions about emoji scenes",
            source=f"generated by fedsim, not a published benchmark; scenes {SOURCE}",
            licence=LICENCE,
            classes=asker.answers,
            input_shape=(3, size, size),
            mean=mean,
            std=std,
            description=(
                f"Generated questions and scenes: {train} training and {test} test pairs a domain "
                f"of the kinds {', '.join(kinds)}; every answer to a question is as frequent."
            ),
            kind="image-text",
            domains=weathers,
            text_shape=(length, len(vocabulary)),
        ),
        vocabulary=vocabulary,
    )


def _scenes(
    asker: Questions,
    asked: Asked,
    part: Part,
    strengths: dict[str, float],
    u: np.ndarray,
    boxes: np.ndarray,
    box_labels: np.ndarray,
    seed: int,
) -> Iterator[np.ndarray]:
    """Yield the images, one domain after the other, and fill in their boxes."""
    backgrounds = Backgrounds(photographs(part), asker.size)
    count = len(u) // len(strengths)
    for number, (weather, strength) in enumerate(strengths.items()):
        start = number * count
        own = slice(start, start + count)
        effect = Draws(seed, f"scene-questions/{part}/{weather}/weather")
        own_strength = strength * (0.7 + 0.3 * u[:, 0])
        for scenes in render(asker.pool.pictures, asked.objects[own], backgrounds, u[own, 1:]):
            rows = slice(start, start + len(scenes.images))
            start = rows.stop
            boxes[rows], box_labels[rows] = pack_boxes(scenes, asked.labels[rows])
            yield apply_weather(scenes.images, weather, own_strength[rows], effect)
