"""Models, one module a name. Every model is a `body` followed by a linear `head`.

A model's module holds a function of its own name, ``(input_shape, num_classes, *, options)``. It
returns a torch Module with the children `body` and `head` and ``forward = head(body(x))``, so that
methods that personalise or replace the head know it by name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BodyHead(nn.Module):
    """A feature extractor and a linear classifier.

    `body` maps (batch, C, H, W) to features (batch, d), `head` features to logits (batch, classes).
    """

    def __init__(self, body: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)
        logits: Tensor = self.head(features)
        return logits


def num_features(body: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Return d of the features (batch, d) that `body` makes of inputs of this shape."""
    training = body.training
    body.eval()
    with torch.no_grad():
        width = int(body(torch.zeros(1, *input_shape)).shape[1])
    body.train(training)
    return width
