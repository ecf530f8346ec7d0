from pathlib import Path

import numpy as np
import pytest

from fedsim.data.arrays import (
    cached_stats,
    dataset_of,
    divide,
    names_of,
    pack_names,
    split_arrays,
    split_of,
)
from fedsim.data.cache import cached_arrays
from fedsim.data.dataset import Card
from fedsim.data.tokens import to_bytes


def test_names_survive_the_cache() -> None:
    words = ("", "<unk>", "naïve", "世界", "!")
    packed = pack_names(words)
    assert packed.dtype == np.uint8
    assert names_of(packed) == words
    assert names_of(to_bytes(words)) == words


def test_columns_of_a_split() -> None:
    arrays = {
        "train-x": np.zeros((1, 2), np.int32),
        "train-y": np.zeros(1, np.int64),
        "train-extra-box_labels": np.zeros((1, 1), np.int64),
        "train-domain": np.zeros(1, np.int64),
        "train-stats": np.zeros((2, 3)),
        "test-x": np.zeros((3, 2), np.int32),
        "stats": np.zeros(2),
    }
    split = split_of(arrays, "train")
    assert (len(split), list(split.extra)) == (1, ["box_labels", "domain"])


def test_rows_are_divided_in_their_order() -> None:
    marks = np.array([True, False, True, False])
    arrays = divide(marks, x=np.arange(4), y=np.arange(4) * 10)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "train-x": [1, 3], "train-y": [10, 30], "test-x": [0, 2], "test-y": [0, 20],
    }  # fmt: skip


def images(*splits: str) -> dict[str, np.ndarray]:
    x, y = np.full((2, 4, 5, 3), 51, np.uint8), np.array([0, 1])
    arrays = {}
    for split in splits:
        arrays |= split_arrays(split, {"x": x, "y": y})
    return arrays  # type: ignore[return-value]


def test_a_card_is_measured_on_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    card, stats = Card("t", "s", "l", ("a", "b")), np.array([[0.1, 0.2, 0.3], [1, 2, 3]])
    dataset = dataset_of("mine", {**images("train", "test"), "stats": stats}, card)
    assert dataset.card.input_shape == (3, 4, 5)
    assert (dataset.card.mean, dataset.card.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert dataset.validation is None
    arrays = images("train", "validation", "test")
    dataset = dataset_of("mine", arrays, card, stats_key="mine")
    assert dataset.card.mean == pytest.approx((0.2,) * 3)
    assert dataset.card.std == (1.0,) * 3  # of channels that never vary
    assert dataset.validation is not None


def test_stats_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    x = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    assert cached_stats("toy", x) == ((0.5,), (0.5,))
    assert cached_stats("toy", x[:1]) == ((0.5,), (0.5,))
    assert set(cached_arrays("toy-stats", dict)) == {"mean", "std"}
