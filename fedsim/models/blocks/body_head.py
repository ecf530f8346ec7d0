"""Base class of models with a body and a linear head, and checks of input shapes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsim.errors import check


class BodyHead(nn.Module):
    """A feature extractor and a linear classifier.

    `body` maps images (batch, C, H, W), or the int64 tokens (batch, L) of texts, to features
    (batch, d); `head` maps features to logits (batch, classes).
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
    """Return the width d of the features (batch, d) of inputs of this shape."""
    training = body.training
    body.eval()
    with torch.no_grad():
        width = int(body(torch.zeros(1, *input_shape)).shape[1])
    body.train(training)
    return width


def check_images(model: str, input_shape: tuple[int, ...]) -> None:
    """Raise `InputError` unless the inputs are images (C, H, W); `model` is the model's name."""
    check(
        len(input_shape) == 3,
        f"model {model!r} needs a data set of images (C, H, W); use a model of texts, such as "
        "'text', for texts (L, V)",
        tuple(input_shape),
    )


def check_texts(model: str, input_shape: tuple[int, ...]) -> None:
    """Raise `InputError` unless the inputs are texts (L, V); `model` is the model's name."""
    check(
        len(input_shape) == 2,
        f"model {model!r} needs a data set of texts, with inputs (L, V), L tokens of a vocabulary "
        "of V; use a model of images, such as 'cnn', for images (C, H, W)",
        tuple(input_shape),
    )
