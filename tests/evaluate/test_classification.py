import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.data.dataset import Card, Split
from fedsim.data.views import View
from fedsim.errors import InputError
from fedsim.evaluate.classification import (
    CLASSIFICATION,
    Counts,
    balanced_accuracy,
    counts,
    head_scores,
    macro_f1,
    shot_groups,
)
from fedsim.evaluate.detection import DETECTION
from fedsim.evaluate.scoring import score

CARD = Card("t", "s", "l", ("a", "b"), (1, 1, 2), (0.0,), (1.0,), "d")


def view(pixels: list[list[int]], labels: list[int]) -> View:
    x = np.array(pixels, np.uint8).reshape(len(labels), 1, 2, 1)
    return View(Split(x, np.array(labels, np.int64)), np.arange(len(labels)), CARD)


class Pixels(nn.Module):
    """The two pixels, in [0, 1], are the logits; in training mode they change places."""

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)
        return logits.flip(1) if self.training else logits


# Logits (1, 0), (0, 1), (1, 0): the first two are right, the third is wrong.
THREE = view([[255, 0], [0, 255], [255, 0]], [0, 1, 1])
RIGHT, WRONG = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))


def test_scores_by_hand() -> None:
    accuracy, loss = score(Pixels(), THREE).values()
    assert accuracy == pytest.approx(2 / 3)
    assert loss == pytest.approx((2 * RIGHT + WRONG) / 3, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 512])
def test_counts_are_sums_whatever_the_batch(batch_size: int) -> None:
    found = counts(Pixels(), THREE, 2, batch_size)
    assert found.correct.tolist() == [1, 1]
    assert found.samples.tolist() == [1, 2]
    assert found.loss == pytest.approx(2 * RIGHT + WRONG, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was(training: bool) -> None:
    module = Pixels().train(training)
    assert score(module, THREE)["accuracy"] == pytest.approx(2 / 3)
    assert module.training is training


def test_batch_norm_is_read_and_not_updated() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    score(module, THREE)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_no_samples_have_no_score() -> None:
    empty = View(THREE.split, np.array([], np.int64), CARD)
    assert counts(Pixels(), empty, 2).samples.tolist() == [0, 0]
    with pytest.raises(ValueError, match="no samples"):
        score(Pixels(), empty)


PROFILES = [
    # (class sizes, numbers of classes with many, medium and few samples), worked out by hand
    ([5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100], (4, 3, 3)),
    ([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], (3, 3, 4)),
    ([6000, 3884, 2515, 1628, 1054, 682, 442, 286, 185, 120], (4, 3, 3)),
    ([6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60], (3, 3, 4)),
]


@pytest.mark.parametrize(("sizes", "expected"), PROFILES)
def test_shots_by_cumulative_share(sizes: list[int], expected: tuple[int, int, int]) -> None:
    groups = shot_groups(np.array(sizes), "cumulative")
    assert tuple(map(len, groups)) == expected
    assert np.concatenate(groups).tolist() == list(range(10))  # from the largest down
    shuffled = np.random.default_rng(0).permutation(10)
    again = shot_groups(np.array(sizes)[shuffled], "cumulative")
    assert [set(shuffled[g]) for g in again] == [set(g) for g in groups]


def test_shots_by_count() -> None:
    groups = shot_groups(np.array([101, 100, 20, 19, 0]), "count")
    assert [g.tolist() for g in groups] == [[0], [1, 2], [3, 4]]


def test_macro_f1_and_balanced_accuracy_by_hand() -> None:
    """Of class 0 3 of 4 are right, of class 1 1 of 2; one of each is predicted to be of class 2.

    F1 is 2 * 3 / (4 + 3) and 2 * 1 / (2 + 1); of class 2, which only predictions have, it is 0.
    Class 3 neither samples nor predictions have.
    """
    confusion = np.array([[3, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert macro_f1(confusion) == pytest.approx((6 / 7 + 2 / 3 + 0) / 3)
    assert balanced_accuracy(confusion) == pytest.approx((3 / 4 + 1 / 2) / 2)


@pytest.mark.parametrize("batch_size", [1, 2, 512])
def test_the_confusion_matrix_is_kept_where_a_metric_asks_for_it(batch_size: int) -> None:
    """Of class 0 the one sample is right, of class 1 one of two is taken for class 0."""
    usual = counts(Pixels(), THREE, 2, batch_size)
    assert usual.confusion is None
    scorer = CLASSIFICATION.choosing(["balanced-accuracy", "macro-f1"])
    tally = scorer.tally(Pixels(), THREE, 2, batch_size)
    assert isinstance(tally, Counts)
    assert tally.confusion is not None
    assert tally.confusion.tolist() == [[1, 0], [1, 1]]  # true class by predicted class
    metrics = (tally + scorer.tally(Pixels(), THREE, 2)).metrics()  # twice the same
    assert list(metrics) == ["accuracy", "loss", "balanced-accuracy", "macro-f1"]
    assert metrics["balanced-accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert metrics["macro-f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert CLASSIFICATION.chosen == ()


def test_further_metrics_of_heads_on_one_body() -> None:
    module: Any = nn.Module()
    module.body = nn.Flatten()
    module.scorer = CLASSIFICATION.choosing(["balanced-accuracy"])
    eye, zeros = torch.eye(2), torch.zeros(2)
    scores = head_scores(module, {"a": (eye, zeros), "b": (-eye, zeros)}, THREE)
    assert scores["a/balanced-accuracy"] == pytest.approx(0.75)
    assert scores["b/balanced-accuracy"] == pytest.approx(0.25)  # right where a is wrong


def test_an_unknown_further_metric_is_refused() -> None:
    with pytest.raises(InputError, match=r"macro-f1, balanced-accuracy, got 'macro_f1'\. Did you "
                                         r"mean 'macro-f1'"):  # fmt: skip
        CLASSIFICATION.choosing(["macro_f1"])
    with pytest.raises(InputError, match=r"metrics of Detection, which are none, got 'macro-f1'\."):
        DETECTION.choosing(["macro-f1"])


def test_accuracy_by_shots_is_over_samples() -> None:
    found = Counts(np.array([9, 1, 0, 2]), np.array([10, 2, 0, 4]))
    groups = [np.array([0, 1]), np.array([2]), np.array([3])]
    # 10 of 12; no samples, so no value; 2 of 4
    assert found.by_shots(groups) == {"accuracy_many": 10 / 12, "accuracy_few": 0.5}
    both = found + Counts(np.array([1, 0, 0, 0]), np.array([1, 1, 0, 0]), 2.0)
    assert both.metrics() == {"accuracy": 13 / 18, "loss": 2.0 / 18}


def test_heads_on_one_body_are_whole_models() -> None:
    from fedsim.models.mlp import mlp

    torch.manual_seed(0)
    module = mlp((1, 2, 1), 2, hidden=(4,))
    own = module.head.weight.detach().clone(), module.head.bias.detach().clone()  # type: ignore[operator, union-attr]
    flipped = own[0].flip(0), own[1].flip(0)
    masked = own[0], torch.tensor([0.0, -torch.inf])
    found = head_scores(module, {"a": own, "b": flipped, "c": masked}, THREE, batch_size=2)
    accuracy, loss = score(module, THREE, batch_size=2).values()
    assert found["a/accuracy"] == accuracy
    assert found["a/loss"] == pytest.approx(loss, rel=1e-6)
    assert found["b/accuracy"] == pytest.approx(1 - accuracy)
    assert found["c/accuracy"] == pytest.approx(1 / 3)  # class 0 is right once in three
    assert found["c/loss"] == math.inf
    assert module.training


def test_balanced_accuracy_is_a_mean_over_classes() -> None:
    # 9 of 10, 1 of 2 and a class without samples.
    found = Counts(np.array([9, 1, 0]), np.array([10, 2, 0]))
    assert found.balanced() == pytest.approx((0.9 + 0.5) / 2)
    with pytest.raises(ValueError, match="no samples"):
        Counts(np.zeros(2, np.int64), np.zeros(2, np.int64)).balanced()


def test_options_are_chosen_on_validation_samples(tmp_path: Path) -> None:
    """Everything is scored on the clients' validation samples, and training is as ever."""
    import fedsim
    from fedsim.components.build import build_dataset
    from fedsim.data.partition import Manifest
    from fedsim.errors import InputError
    from tests.support.runs import model_bits, tiny

    partition = {"validation": 0.2, "test": "matched"}
    usual = fedsim.run(tiny(partition=partition, name="a"), out=tmp_path)
    run = fedsim.run(
        tiny(partition=partition, evaluation={"on": "validation"}, name="b"), out=tmp_path
    )
    assert model_bits(usual) == model_bits(run)
    assert "test" not in set(run.metrics["split"]) | set(run.clients["split"])
    assert "validation" not in set(usual.metrics["split"]) | set(usual.clients["split"])
    manifest, dataset = Manifest.load(run.path / "partition.npz"), build_dataset(run.config)
    right, size = np.zeros(10), np.zeros(10)
    own = run.client_values("validation", "generic/accuracy", last=True)["value"].tolist()
    for client in range(8):
        rows = manifest.client(client).validation
        held_out = View(dataset.train, rows, dataset.card)
        found = counts(run.model(), held_out, 10)
        assert own[client] == pytest.approx(found.correct.sum() / len(rows))
        right, size = right + found.correct, size + found.samples
    assert run.final["validation/generic/accuracy"] == pytest.approx(right.sum() / size.sum())
    assert run.final["validation/generic/accuracy_balanced"] == pytest.approx((right / size).mean())
    assert dict(run.summary())["generic accuracy"].strip().endswith("%")
    with pytest.raises(InputError, match=r"no client has validation samples; set partition\.valid"):
        fedsim.run(tiny(partition={"validation": 0.0}, evaluation={"on": "validation"}, name="c"),
                   out=tmp_path)  # fmt: skip


def test_moments_of_the_heads_inputs_are_of_all_batches() -> None:
    """The two pixels are the features: of class 0 (1, 0); of class 1 (0, 1) and (1, 0)."""
    module = nn.Sequential()
    module.add_module("body", nn.Flatten())
    module.add_module("head", nn.Linear(2, 2))
    for batch_size in (1, 2, 3):
        moments = counts(module, THREE, 2, batch_size, features=True).moments
        assert moments is not None
        assert moments.count.tolist() == [1, 2]
        assert moments.first.tolist() == [[1, 0], [1, 1]]
    assert not module.get_submodule("head")._forward_pre_hooks
