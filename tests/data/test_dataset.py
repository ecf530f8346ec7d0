import numpy as np
import pytest

from fedsim.data.dataset import Card, Dataset, Samples, Split
from fedsim.errors import InputError


def card(**changes: object) -> Card:
    fields: dict[str, object] = {
        "title": "t",
        "source": "s",
        "licence": "l",
        "classes": ("a", "b"),
        "input_shape": (1, 2, 3),
        "mean": (0.5,),
        "std": (0.25,),
        "description": "d",
    }
    return Card(**(fields | changes))  # type: ignore[arg-type]


def split(labels: list[int], shape: tuple[int, int, int] = (2, 3, 1)) -> Split:
    return Split(np.zeros((len(labels), *shape), np.uint8), np.array(labels, np.int64))


def test_dataset_counts_classes_and_samples() -> None:
    dataset = Dataset("toy", split([0, 1, 1]), split([0]), card())
    assert dataset.num_classes == 2
    assert (len(dataset.train), len(dataset.test), dataset.validation) == (3, 1, None)


def test_the_card_knows_the_words() -> None:
    """They are no part of what a card is compared or printed by."""
    plain = card()
    dataset = Dataset("toy", split([0, 1]), split([0]), plain, vocabulary=("", "<unk>", "dog"))
    assert dataset.card.vocabulary == dataset.vocabulary
    assert plain.vocabulary == ()
    assert (dataset.card, hash(dataset.card), repr(dataset.card)) == (
        plain, hash(plain), repr(plain),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((2, 1, 1, 1), np.float32), np.zeros(2, np.int64), "int32 tokens, got 'float32'"),
        (np.zeros((2, 1, 1), np.uint8), np.zeros(2, np.int64), r"\(n, H, W, C\)"),
        (np.zeros((2, 1, 1, 1), np.uint8), np.zeros(2, np.int32), "int64, got 'int32'"),
        (np.zeros((2, 1, 1, 1), np.uint8), np.zeros(3, np.int64), r"one row a sample \(2\)"),
        (np.zeros((2, 1, 1, 1), np.uint8), np.zeros((2, 1), np.int64), r"the shape \(n,\)"),
    ],
)
def test_split_refuses_wrong_arrays(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Split(x, y)


def test_split_refuses_extra_of_another_length() -> None:
    with pytest.raises(InputError, match="writer must have one row a sample"):
        Split(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(2, np.int64), {"writer": np.zeros(3)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.1, 0.2)}, "mean must have 1 values"),
        ({"std": ()}, "std must have 1 values"),
        ({"std": (0.0,)}, "std must be > 0"),
    ],
)
def test_card_refuses_wrong_statistics(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        card(**changes)


def test_a_card_is_measured_before_it_is_a_data_sets() -> None:
    without_shape = Card("t", "s", "l", ("a", "b"))
    with pytest.raises(InputError, match="must have an input_shape"):
        Dataset("toy", split([0, 1]), split([0]), without_shape)
    with pytest.raises(InputError, match="mean must have 1 values"):
        Dataset("toy", split([0, 1]), split([0]), card(mean=(), std=()))
    with pytest.raises(InputError, match="must have an input_shape"):
        Card("t", "s", "l", ("a", "b"), mean=(0.5,), std=(0.25,))


def test_samples_are_taken_with_all_they_have() -> None:
    samples = Samples(np.array([3, 1, 2]), 4, np.array([0, 1, 0]), ("x", "y"), None)
    part = samples.take(np.array([2, 0]))
    assert (part.labels.tolist(), part.owners) == ([2, 3], None)
    assert part.domains is not None
    assert part.domains.tolist() == [0, 0]
    assert (part.num_classes, part.domain_names) == (4, ("x", "y"))


def test_dataset_refuses_splits_unlike_its_card() -> None:
    with pytest.raises(InputError, match=r"test samples of toy must have the shape \(2, 3, 1\)"):
        Dataset("toy", split([0]), split([0], (3, 2, 1)), card())
    with pytest.raises(InputError, match=r"train labels of toy must be in 0\.\.1, got '0\.\.2'"):
        Dataset("toy", split([0, 2]), split([0]), card())
    with pytest.raises(InputError, match="validation split of toy must have samples"):
        Dataset("toy", split([0]), split([0]), card(), validation=split([]))
