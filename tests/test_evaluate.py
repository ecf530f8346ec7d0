import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.data.dataset import Card, Split
from fedsim.data.views import View
from fedsim.evaluate import accuracy_and_loss, counts

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


def test_accuracy_and_loss_by_hand() -> None:
    accuracy, loss = accuracy_and_loss(Pixels(), THREE)
    assert accuracy == pytest.approx(2 / 3)
    assert loss == pytest.approx((2 * RIGHT + WRONG) / 3, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 512])
def test_counts_are_sums_whatever_the_batch(batch_size: int) -> None:
    correct, loss, samples = counts(Pixels(), THREE, batch_size)
    assert (correct, samples) == (2, 3)
    assert loss == pytest.approx(2 * RIGHT + WRONG, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was(training: bool) -> None:
    module = Pixels().train(training)
    assert accuracy_and_loss(module, THREE)[0] == pytest.approx(2 / 3)
    assert module.training is training


def test_batch_norm_is_read_and_not_updated() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    accuracy_and_loss(module, THREE)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_no_samples_have_no_score() -> None:
    empty = View(THREE.split, np.array([], np.int64), CARD)
    assert counts(Pixels(), empty) == (0, 0.0, 0)
    with pytest.raises(ValueError, match="no samples"):
        accuracy_and_loss(Pixels(), empty)
