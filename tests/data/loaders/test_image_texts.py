from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsim.data.arrays import dataset_of
from fedsim.data.cache import cached_arrays
from fedsim.data.dataset import Card
from fedsim.data.loaders import decoding
from fedsim.data.loaders.image_texts import (
    Pair,
    Pairs,
    Pictures,
    image_folder,
    image_text_arrays,
)
from fedsim.errors import InputError

HOW = Pictures((2, 3), "squash", 3, 5)
CARD = Card("t", "s", "l", ("no", "yes"), (3, 1, 1), (0,) * 3, (1,) * 3, "d", kind="image-text")


def picture(path: Path, *colour: int) -> Path:
    Image.new("RGB", (6, 4), colour).save(path)  # type: ignore[arg-type]
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))


def test_pairs_become_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    red, blue = picture(tmp_path / "r.png", 255, 0, 0), picture(tmp_path / "b.png", 0, 0, 51)
    monkeypatch.setattr(decoding, "_BLOCK", 1)
    decoded: Counter[str] = Counter()
    read_image = decoding.read_image

    def counted(path: Path, *options: object) -> np.ndarray:
        decoded[path.name] += 1
        return read_image(path, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "read_image", counted)
    pairs = [Pair(red, "a b c d", 7, 1), Pair(red, "a b", 7, 0), Pair(blue, "a", 9, 1)]
    splits = {
        "train": Pairs(pairs, {"mine": np.array([4, 5, 6])}),
        "validation": Pairs([Pair(blue, "b\0", 9, 0)]),
        "test": Pairs([Pair(red, "z", 7, 1)]),
    }
    arrays = cached_arrays("key", lambda: image_text_arrays(splits, HOW, "mine"))
    assert decoded == {"r.png": 2, "b.png": 2}  # once for the two pairs of the training split
    dataset = dataset_of("mine", arrays, CARD)
    assert dataset.train.x.shape == (3, 2, 3, 3)
    assert dataset.train.x[:, 1, 2].tolist() == [[255, 0, 0], [255, 0, 0], [0, 0, 51]]
    assert dataset.train.y.tolist() == [1, 0, 1]
    assert dataset.train.extra["group"].tolist() == [7, 7, 9]
    assert dataset.train.extra["mine"].tolist() == [4, 5, 6]
    # a 3, b 2, c and d 1: of five entries, two are not words
    assert dataset.vocabulary == ("", "<unk>", "a", "b", "c")
    assert dataset.train.extra["tokens"].tolist() == [[2, 3, 4], [2, 3, 0], [2, 0, 0]]
    assert dataset.test.extra["tokens"].tolist() == [[1, 0, 0]]
    assert dataset.train.extra["text"].tolist() == [b"a b c d", b"a b", b"a"]
    assert dataset.validation is not None
    assert dataset.validation.extra["text"].tolist() == [b"b "]
    assert (dataset.card.input_shape, dataset.card.text_shape) == ((3, 2, 3), (3, 5))
    # Red is 1, 1, 0; blue 0, 0, 0.2 of which the mean is 0.2 / 3.
    assert dataset.card.mean == pytest.approx((2 / 3, 0, 0.2 / 3))
    assert dataset.card.std == pytest.approx((2**0.5 / 3, 1, 0.2 * 2**0.5 / 3))


def test_missing_images_are_counted_before_any_is_read(tmp_path: Path) -> None:
    there = picture(tmp_path / "r.png", 1, 2, 3)
    pairs = [Pair(path, "a", 1) for path in (there, tmp_path / "x.png", tmp_path / "y.png")]
    with pytest.raises(InputError, match=r"2 of 3 images are missing, the first is .*x\.png"):
        image_text_arrays({"train": Pairs(pairs)}, HOW, "mine")
    with pytest.raises(InputError, match="the train split of mine must have at least one pair"):
        image_text_arrays({"train": Pairs([])}, HOW, "mine")


def test_an_unreadable_image_is_named_and_leaves_no_entry(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    Image.new("RGB", (64, 64), "red").save(bad)
    bad.write_bytes(bad.read_bytes()[:-200])
    splits = {
        "train": Pairs([Pair(picture(tmp_path / "r.png", 0, 0, 0), "a", 1), Pair(bad, "b", 2)])
    }
    with pytest.raises(InputError, match=r"bad\.jpg is no image that can be read"):
        cached_arrays("key", lambda: image_text_arrays(splits, HOW, "mine"))
    assert not (tmp_path / "cache" / "key").exists()


def test_folders_of_images(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    folders = [tmp_path / "a", tmp_path / "b"]
    assert image_folder(folders, "get it") == tmp_path / "b"
    with pytest.raises(InputError, match=rf"no folder {tmp_path / 'a'}: get it"):
        image_folder(folders[:1], "get it")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (((0, 4), "squash", 3, 5), r"dataset\.size"),
        (((4, 4), "squash", 0, 5), r"dataset\.length"),
        (((4, 4), "squash", 3, 2), r"dataset\.vocabulary"),
        (((4, 4), "stretch", 3, 5), r"dataset\.fit"),
    ],
)
def test_bad_options(options: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pictures(*options)
