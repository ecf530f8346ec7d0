from dataclasses import replace

import numpy as np
import pytest

from fedsim.data.arrays import dataset_of
from fedsim.data.dataset import Card
from fedsim.data.loaders.texts import Texts, check_text_options, text_arrays
from fedsim.errors import InputError

CARD = Card("t", "s", "l", ("no", "yes"), (1, 3), (), (), "d", kind="text")


def test_texts_become_a_data_set() -> None:
    splits = {
        "train": Texts(["b a b", "b c"], np.array([1, 0]), {"owner": np.array([4, 5])}),
        "test": Texts(["d a", ""], np.array([0, 1]), {"owner": np.array([6, 6])}),
    }
    arrays = text_arrays(splits, length=2, vocabulary=4)
    dataset = dataset_of("mine", arrays, CARD)  # type: ignore[arg-type]
    assert dataset.vocabulary == ("", "<unk>", "b", "a")
    assert dataset.card == replace(CARD, input_shape=(2, 4))
    assert dataset.train.x.tolist() == [[2, 3], [2, 1]]
    assert dataset.test.x.tolist() == [[1, 3], [1, 0]]
    assert dataset.train.y.tolist() == [1, 0]
    assert dataset.test.extra["owner"].tolist() == [6, 6]
    assert dataset.test.extra["text"].tolist() == [b"d a", b""]


def test_texts_are_divided_with_their_columns() -> None:
    whole = Texts(["a", "b", "c"], np.array([0, 1, 2]), {"owner": np.array([7, 8, 9])})
    splits = whole.divide(np.array([False, True, False]))
    assert [list(split.texts) for split in splits.values()] == [["a", "c"], ["b"]]
    assert splits["train"].y.tolist() == [0, 2]
    assert splits["test"].columns["owner"].tolist() == [8]


@pytest.mark.parametrize("wrong", ["length", "vocabulary", "characters"])
def test_options_out_of_range(wrong: str) -> None:
    options = {"length": 1, "vocabulary": 3, "characters": 1}
    check_text_options(**options)
    with pytest.raises(InputError, match=rf"dataset\.{wrong} must be >= "):
        check_text_options(**{**options, wrong: options[wrong] - 1})
