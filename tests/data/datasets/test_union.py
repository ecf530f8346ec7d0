"""Several data sets as one: what each row becomes, and who may have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.components import build
from fedsim.data.dataset import Dataset
from fedsim.data.images import read_image, resize_images
from fedsim.errors import InputError
from tests.support.runs import prepared, tiny

EMOJI = {"name": "emoji", "vendors": ["noto"]}
SETS: dict[str, Any] = {
    "pictures": {"name": "digits"},
    "pairs": EMOJI,
    "words": {"name": "text-csv", "root": "?"},
}


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "texts"
    folder.mkdir()
    for part, rows in (("train", 40), ("test", 10)):
        lines = [f"a {'red' if i % 2 else 'blue'} apple number {i},{i % 2}" for i in range(rows)]
        (folder / f"{part}.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    return {**SETS, "words": {"name": "text-csv", "root": str(folder)}}


def made(sets: dict[str, Any], **options: Any) -> Dataset:
    section = {"name": "union", "sets": sets, "size": [16, 16], "length": 6, **options}
    return build.build_dataset(prepared(dataset=section))


def test_rows_are_those_of_the_sets_in_turn(texts: dict[str, Any]) -> None:
    whole = made(texts)
    parts = {n: build.build_dataset(prepared(dataset=s)) for n, s in texts.items()}
    assert whole.card.domains == ("pictures", "pairs", "words")
    assert whole.card.kind == "image-text"
    assert whole.card.classes[:2] == ("pictures/0", "pictures/1")
    assert whole.card.classes[-2:] == ("words/0", "words/1")
    assert whole.num_classes == 10 + 8 + 2
    start, offset = 0, 0
    for number, (name, part) in enumerate(parts.items()):
        rows = slice(start, start + len(part.train))
        assert set(whole.train.extra["domain"][rows]) == {number}
        assert (whole.train.y[rows] == part.train.y + offset).all(), name
        start, offset = rows.stop, offset + part.num_classes
    assert start == len(whole.train)
    groups = whole.train.extra["group"]
    sizes = [len(set(groups[whole.train.extra["domain"] == d])) for d in range(3)]
    assert len(set(groups)) == sum(sizes)
    assert sizes == [len(parts["pictures"].train), len(parts["pairs"].train), 40]


def test_images_and_texts_of_the_sets(texts: dict[str, Any]) -> None:
    whole, split = made(texts), made(texts).train
    domain, tokens = split.extra["domain"], split.extra["tokens"]
    digits = build.build_dataset(prepared(dataset=texts["pictures"]))
    resized = resize_images(digits.train.x[:3], (16, 16))
    assert (split.x[:3] == resized).all()
    assert resized.shape == (3, 16, 16, 3)
    assert not tokens[domain == 0].any()
    assert not split.x[domain == 2].any()
    assert (tokens[domain == 1][:, 0] > 0).all()
    words = [whole.vocabulary[t] for t in tokens[domain == 2][1]]
    assert words == ["a", "red", "apple", "number", "1", ""]


def test_the_mean_is_that_of_the_images_alone(texts: dict[str, Any]) -> None:
    pictures = {"pictures": texts["pictures"]}
    alone, both = made(pictures), made({**pictures, "words": texts["words"]})
    assert both.card.mean == pytest.approx(alone.card.mean)
    assert both.card.std == pytest.approx(alone.card.std)
    two = made({"a": EMOJI, "b": EMOJI})
    assert two.card.mean == pytest.approx(made({"a": EMOJI}).card.mean)


def test_the_test_split_is_of_the_sets_named(texts: dict[str, Any]) -> None:
    assert set(made(texts, test=["pairs"]).test.extra["domain"]) == {1}
    assert set(made(texts).test.extra["domain"]) == {0, 1, 2}


def test_resizing_is_that_of_files(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (1, 9, 5, 3)).astype(np.uint8)
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    for fit in ("squash", "crop"):
        expected = read_image(tmp_path / "a.png", (6, 7), 3, fit)  # type: ignore[arg-type]
        assert (resize_images(pixels, (6, 7), fit)[0] == expected).all()  # type: ignore[arg-type]
    assert (resize_images(pixels, (9, 5)) == pixels).all()


def test_each_kind_of_client_has_a_set_of_its_own(texts: dict[str, Any], tmp_path: Path) -> None:
    partition = {
        "name": "public", "clients": 6, "size": 50, "domain": "pairs", "test": 0.2,
        "within": {
            "name": "modality", "images": 2, "texts": 2, "pairs": 2,
            "within": {
                "name": "domain", "numbers": {"pictures": 2, "words": 2, "pairs": 2},
                "within": {"name": "iid"},
                "within_of": {"pictures": {"name": "dirichlet", "alpha": 0.5}},
            },
        },
    }  # fmt: skip
    dataset = {"name": "union", "sets": texts, "size": [16, 16], "test": ["pairs"]}
    experiment = prepared(dataset=dataset, partition=partition)
    data = build.build_dataset(experiment)
    manifest = build.build_partition(experiment, data)
    domain = data.train.extra["domain"]
    assert set(domain[manifest.server]) == {1}
    owned = [set(domain[manifest.client(c).train]) for c in range(6)]
    assert owned == [{0}, {0}, {2}, {2}, {1}, {1}]
    assert manifest.modality.tolist() == [1, 1, 2, 2, 0, 0]
    sizes = [len(manifest.client(c).train) for c in range(6)]
    assert sizes[0] != sizes[1]
    assert sizes[2:4] == [14, 14]  # of 20 each, 4 for tests and 2 for validation
    part = {"name": "cnn", "channels": [3], "hidden": 6}
    run = fedsim.run(
        tiny(
            dataset=dataset,
            partition=partition,
            model={"name": "image-text", "dim": 4, "server_image": part, "image": part},
            strategy={"name": "creamfl"},
            client={"epochs": 1, "batch_size": 32, "lr": 0.01},
            rounds=1,
        ),
        out=tmp_path,
    )
    assert run.final["train/clients"] == 6
    assert "test/generic/recall_sum" in run.final
    assert "test/clients/personal/accuracy" in run.final


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sets": {}}, "dataset.sets must name at least one"),
        ({"sets": {"a": {"name": "digitz"}}}, "dataset.sets.a.name must be one of"),
        ({"sets": {"a": {"name": "emoji", "sise": 3}}}, "dataset.sets.a.sise is not an option"),
        ({"sets": {"a": "digits"}}, "dataset.sets.a must be a mapping with the name"),
        ({"sets": ["digits"]}, "dataset.sets must map names to a data set each"),
        ({"sets": {"a": {"name": "emoji", "vendors": []}}}, "dataset.sets.a.vendors must name"),
        ({"sets": {"a": EMOJI}, "test": ["b"]}, "dataset.test must be of a"),
        ({"sets": {"a": EMOJI}, "length": 0}, "dataset.length must be >= 1"),
        ({"sets": {"a": EMOJI}, "size": [0, 4]}, "dataset.size must be >= 1"),
        ({"sets": {"a": {"name": "emoji-scenes"}}}, "sets.a must be of images, texts or pairs"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        build.build_dataset(prepared(dataset={"name": "union", **options}))


@pytest.mark.parametrize(
    ("within", "text"),
    [
        ({"numbers": {"a": 3, "c": 3}}, "numbers must name domains of a, b"),
        ({"numbers": {"a": 3, "b": 4}}, "numbers must sum to 6, partition.clients, got 7"),
        ({"numbers": {"a": 6, "b": 0}}, "numbers must be >= 1"),
        ({"within_of": {"d": {"name": "iid"}}}, "within_of must name domains of a, b"),
        ({"within_of": {"a": {"name": "lid"}}}, "partition.within_of.a.name must be one of"),
    ],
)
def test_bad_numbers(within: dict[str, Any], text: str) -> None:
    dataset = {"name": "union", "sets": {"a": EMOJI, "b": EMOJI}}
    changes = {"dataset": dataset, "partition": {"name": "domain", "clients": 6, **within}}

    def divided() -> None:
        experiment = prepared(**changes)
        build.build_partition(experiment, build.build_dataset(experiment))

    with pytest.raises(InputError, match=text):
        divided()
