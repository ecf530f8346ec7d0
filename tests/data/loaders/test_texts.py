from dataclasses import replace

import numpy as np
import pytest

from fedsim.data.dataset import Card
from fedsim.data.loaders.texts import (
    Texts,
    check_text_options,
    mark_fifth,
    pack_vocabulary,
    split_of,
    text_arrays,
    text_dataset,
    unpack_vocabulary,
)
from fedsim.errors import InputError

CARD = Card("t", "s", "l", ("no", "yes"), (1, 3), (), (), "d", kind="text")


def test_a_vocabulary_survives_the_cache() -> None:
    words = ("", "<unk>", "naïve", "世界", "!")
    packed = pack_vocabulary(words)
    assert packed.dtype == np.uint8
    assert unpack_vocabulary(packed) == words


def test_texts_become_a_data_set() -> None:
    parts = {
        "train": Texts(["b a b", "b c"], [1, 0], {"owner": np.array([4, 5])}),
        "test": Texts(["d a", ""], [0, 1], {"owner": np.array([6, 6])}),
    }
    arrays = text_arrays(parts, length=2, vocabulary=4)
    dataset = text_dataset("mine", arrays, CARD)  # type: ignore[arg-type]
    assert dataset.vocabulary == ("", "<unk>", "b", "a")
    assert dataset.card == replace(CARD, input_shape=(2, 4))
    assert dataset.train.x.tolist() == [[2, 3], [2, 1]]
    assert dataset.test.x.tolist() == [[1, 3], [1, 0]]
    assert dataset.train.y.tolist() == [1, 0]
    assert dataset.test.extra["owner"].tolist() == [6, 6]
    assert dataset.test.extra["text"].tolist() == [b"d a", b""]


def test_columns_of_a_part() -> None:
    arrays = {
        "train-x": np.zeros((1, 2), np.int32),
        "train-y": np.zeros(1, np.int64),
        "train-box_labels": np.zeros((1, 1), np.int64),
        "test-x": np.zeros((3, 2), np.int32),
        "stats": np.zeros(2),
    }
    split = split_of(arrays, "train")
    assert (len(split), list(split.extra)) == (1, ["box_labels"])


def test_a_fifth_of_each_stratum_is_marked() -> None:
    strata = np.array([3] * 10 + [1] * 2 + [0] * 3 + [3] * 2 + [7] * 1)
    marked = mark_fifth(strata, key=1)
    # 12/5 = 2.4, 2/5 = 0.4, 3/5 = 0.6 and 1/5
    assert {s: int(marked[strata == s].sum()) for s in (0, 1, 3, 7)} == {0: 1, 1: 0, 3: 2, 7: 0}
    assert mark_fifth(np.zeros(10, np.int64), key=1961).nonzero()[0].tolist() == [0, 7]
    assert not np.array_equal(mark_fifth(np.zeros(99), 1), mark_fifth(np.zeros(99), 2))


@pytest.mark.parametrize("wrong", ["length", "vocabulary", "characters"])
def test_options_out_of_range(wrong: str) -> None:
    options = {"length": 1, "vocabulary": 3, "characters": 1}
    check_text_options(**options)
    with pytest.raises(InputError, match=rf"dataset\.{wrong} must be >= "):
        check_text_options(**{**options, wrong: options[wrong] - 1})
