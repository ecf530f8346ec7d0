"""Models for tests."""

from __future__ import annotations

import torch
from torch import nn

from fedsim.models.blocks.body_head import BodyHead


def dropout_and_batch_norm(
    input_shape: tuple[int, int, int], num_classes: int, *, width: int = 64, dropout: float = 0.3
) -> nn.Module:
    """A convolution with batch normalisation and a hidden layer with dropout."""
    channels, height, rows = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * (height // 2) * (rows // 2), width),
        nn.Dropout(dropout),
        nn.ReLU(),
        nn.Linear(width, num_classes),
    )


def normed(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A convolution with BatchNorm, and a linear head."""
    channels, height, width = input_shape
    body = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
    )
    return BodyHead(body, 4 * (height // 2) * (width // 2), num_classes)


def with_a_spare(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A linear head, and a parameter that the output does not depend on."""
    channels, height, width = input_shape
    module = BodyHead(nn.Flatten(), channels * height * width, num_classes)
    module.spare = nn.Parameter(torch.ones(3))
    return module
