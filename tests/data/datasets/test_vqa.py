from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data.datasets.vqa import vqa
from fedsim.errors import InputError
from tests.support.vqa import Asked, write

pytestmark = pytest.mark.usefixtures("no_files")

# (image, question, text, answer): answers yes 3, no 2, two 1, cat 1.
TRAIN: Asked = [
    (8, 80, "Is it red?", "yes"),
    (2, 21, "How many?", "two"),
    (2, 20, "Is it blue?", "no"),
    (8, 81, "Is it big?", "no"),
    (2, 22, "Is it  a cat?", "yes"),
    (8, 82, "What is it?", "cat"),
    (8, 83, "Is it old?", "yes"),
]
TEST: Asked = [(5, 50, "Is it red?", "no"), (5, 51, "What?", "dog"), (5, 52, "Who?", "two")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "data", "train2014", TRAIN)
    write(tmp_path / "data", "val2014", TEST)
    return tmp_path / "data"


def test_answers_are_classes(root: Path) -> None:
    dataset = vqa(root=str(root), size=(2, 3), length=4)
    assert dataset.card.classes == ("yes", "no", "cat", "two")  # equals sorted
    assert dataset.train.extra["question_id"].tolist() == [20, 21, 22, 80, 81, 82, 83]
    assert dataset.train.y.tolist() == [1, 3, 0, 0, 1, 2, 0]
    assert dataset.train.extra["group"].tolist() == [2, 2, 2, 8, 8, 8, 8]
    assert dataset.train.x.shape == (7, 2, 3, 3)
    assert dataset.train.x[:, 0, 0, 1].tolist() == [20, 20, 20, 80, 80, 80, 80]
    assert dataset.train.extra["text"].tolist()[:3] == [
        b"Is it blue?",
        b"How many?",
        b"Is it a cat?",
    ]
    assert [dataset.vocabulary[t] for t in dataset.train.extra["tokens"][1]] == [
        "how",
        "many",
        "?",
        "",
    ]
    # "dog" is no answer of training.
    assert dataset.test.extra["question_id"].tolist() == [50, 52]
    assert dataset.test.y.tolist() == [1, 3]
    assert "0 training and 1 test questions" in dataset.card.description
    assert dataset.card.text_shape == (4, len(dataset.vocabulary))
    assert isinstance(dataset.train.x, np.memmap)


def test_questions_with_rarer_answers_are_dropped_and_counted(root: Path) -> None:
    dataset = vqa(root=str(root), answers=2, size=(2, 2))
    assert dataset.card.classes == ("yes", "no")
    assert dataset.train.extra["question_id"].tolist() == [20, 22, 80, 81, 83]
    assert dataset.train.y.tolist() == [1, 0, 0, 1, 0]
    assert dataset.test.y.tolist() == [1]
    assert "2 training and 2 test questions" in dataset.card.description
    few = vqa(root=str(root), answers=2, size=(2, 2), limit=3)
    assert few.train.extra["question_id"].tolist() == [20, 22, 80]
    assert few.card.classes == ("yes", "no")


def test_missing_files_are_told(tmp_path: Path, root: Path) -> None:
    with pytest.raises(InputError) as caught:
        vqa()
    folder = tmp_path / "home/.fedsim/data/vqa"
    assert f"VQA v2 was not found in {folder}: get the v2 questions" in str(caught.value)
    assert "v2_mscoco_val2014_annotations.json" in str(caught.value)
    (root / "val2014").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"no folder .*val2014 or .*images/val2014: get"):
        vqa(root=str(root))
    (root / "images").mkdir()
    (tmp_path / "elsewhere").rename(root / "images" / "val2014")
    image = root / "images/val2014/COCO_val2014_000000000005.jpg"
    assert len(vqa(root=str(root), size=(2, 2)).test) == 2
    image.unlink()
    with pytest.raises(InputError, match=rf"1 of 1 images are missing, the first is {image}"):
        vqa(root=str(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["annotations"].pop(),
            r"the question 80 of .* has no answer of the same image",
        ),
        (lambda d: d["annotations"][0].update(image_id=3), r"the question 83 of .* has no answer"),
        (
            lambda d: d["annotations"][0].pop("multiple_choice_answer"),
            r"annotations\[0\] of .* must",
        ),
        (lambda d: d["questions"][2].update(question=None), r"questions\[2\] of .* 'question'"),
    ],
)
def test_damaged_files_are_named(root: Path, change: Callable[[Any], None], message: str) -> None:
    write(root, "train2014", TRAIN, change)
    with pytest.raises(InputError, match=message) as caught:
        vqa(root=str(root))
    assert str(root) in str(caught.value)


def test_a_cut_file_is_named(root: Path) -> None:
    path = root / "v2_mscoco_train2014_annotations.json"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=rf"{path} cannot be read as JSON"):
        vqa(root=str(root))


def test_no_test_question_left(root: Path) -> None:
    write(root, "val2014", [(5, 51, "What?", "dog")])
    with pytest.raises(InputError, match="the test split of vqa must have at least one pair"):
        vqa(root=str(root))


@pytest.mark.parametrize("option", ["answers", "limit", "length"])
def test_bad_options(option: str) -> None:
    with pytest.raises(InputError, match=rf"dataset\.{option} must be >= 1, got 0"):
        vqa(**{option: 0})
