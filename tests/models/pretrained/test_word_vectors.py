"""Word vectors from files, in the models that begin with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.components import build
from fedsim.data.dataset import Card
from fedsim.errors import InputError
from fedsim.models.text import text
from fedsim.models.text_gru import text_gru
from tests.support.runs import prepared

WORDS = ("", "<unk>", "dog", "café", "zebra", ".")
CARD = Card("t", "s", "l", ("x", "y"), (4, len(WORDS)), (), (), "d", kind="text", vocabulary=WORDS)
GLOVE = "the 9 9 9\ncafé 0.5 -1 1e-2\n. . 7 7 7\n. 1 2 3\ndog -0.25 4 8 \ndog 5 5 5\n"


def weight(model: Any, folder: Path, content: str, width: int = 3, card: Any = CARD) -> Any:
    """Return the word vectors of a model that begins with a file's."""
    (folder / "vectors.txt").write_text(content)
    torch.manual_seed(0)
    options = {"width": width, "vectors": str(folder / "vectors.txt")}
    module = model((4, len(WORDS)), 2, card, **options)
    return (module.body[0] if model is text else module.body).embedding.weight


@pytest.mark.parametrize("model", [text, text_gru])
@pytest.mark.parametrize("header", ["", "6 3\n"])
def test_rows_are_the_files_and_others_stay(model: Any, header: str, tmp_path: Path) -> None:
    """The file has three of four words, one twice, a word with a space, and no ``zebra``."""
    torch.manual_seed(0)
    plain = model((4, len(WORDS)), 2, CARD, width=3)
    expected = (plain.body[0] if model is text else plain.body).embedding.weight.detach().clone()
    expected[2] = torch.tensor([-0.25, 4, 8])
    expected[3] = torch.tensor([0.5, -1, 0.01])
    expected[5] = torch.tensor([1.0, 2, 3])
    assert weight(model, tmp_path, header + GLOVE).equal(expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dog 1 2\n", r"width must be that of the vectors in .*vectors\.txt \(2\), got 3"),
        ("2 4\ndog 1 2 3 4\n", r"width must be that of the vectors in .* \(4\), got 3"),
        ("the 1 2 3\ndog 1 2\n", r"damaged, .*vectors\.txt, line 2: 2 numbers, expected 3"),
        ("the 1 2 3\ndog 1 2 x\n", r"damaged, .*, line 2: could not convert .*'x'"),
        ("dog 1 2 nan\n", r"damaged, .*, line 1: numbers that are not finite"),
        ("the 1 2 3\n", r"vectors must be of words of the data set, .* has none of them"),
        ("", r"vectors must be of words of the data set"),
    ],
)
def test_damaged_files(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        weight(text, tmp_path, content)


def test_missing_files_and_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vectors must be a file .* got none\.txt: No such file"):
        text_gru((4, len(WORDS)), 2, CARD, vectors="none.txt")
    with pytest.raises(InputError, match=r"vectors must be a file .*: Is a directory"):
        text_gru((4, len(WORDS)), 2, CARD, vectors=str(tmp_path))
    with pytest.raises(InputError, match=r"vectors need the 6 words of the .*, got 0"):
        weight(text, tmp_path, GLOVE, card=None)


def test_towers_begin_with_them(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("face 1 2 3\n")
    tower = {"name": "text", "width": 3, "vectors": str(tmp_path / "v.txt")}
    experiment = prepared(
        dataset={"name": "emoji", "vendors": ["noto"]},
        model={"name": "image-text", "text": tower, "server_text": {**tower, "name": "text-gru"}},
    )
    dataset = build.build_dataset(experiment)
    module: Any = build.build_model(experiment, dataset.card)
    row = dataset.vocabulary.index("face")
    for found in (module.text.text.body[0], module.server.text.body):
        assert found.embedding.weight[row].tolist() == [1.0, 2.0, 3.0]
    wrong = prepared(
        dataset={"name": "emoji", "vendors": ["noto"]},
        model={"name": "image-text", "text": {**tower, "width": 4}},
    )
    with pytest.raises(InputError, match=r"model\.text: width must be that of the vectors"):
        build.build_model(wrong, dataset.card)
