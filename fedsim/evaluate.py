"""Scoring a model on a view of data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fedsim.data.views import View


def counts(module: nn.Module, view: View, batch_size: int = 512) -> tuple[int, float, int]:
    """Return correct predictions, summed cross-entropy and samples over a view.

    The module is scored in evaluation mode and left in the mode it was in. The sum runs over
    batches in fp64, so it does not depend on how a caller cuts the data, only on `batch_size`.
    """
    training = module.training
    module.eval()
    correct, loss = 0, 0.0
    with torch.inference_mode():
        for x, y in view.batches(batch_size):
            logits = module(x)
            correct += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
    module.train(training)
    return correct, loss, len(view)


def accuracy_and_loss(module: nn.Module, view: View, batch_size: int = 512) -> tuple[float, float]:
    """Return the accuracy in [0, 1] and the mean cross-entropy over a view.

    Raises:
        ValueError: the view is empty.
    """
    if len(view) == 0:
        raise ValueError("a model cannot be scored on no samples")
    correct, loss, samples = counts(module, view, batch_size)
    return correct / samples, loss / samples
