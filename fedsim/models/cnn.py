"""Small convolutional networks, as in the first papers on federated averaging."""

from __future__ import annotations

from typing import Literal

from torch import nn

from fedsim.errors import check
from fedsim.models import BodyHead, num_features


def cnn(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    channels: tuple[int, ...] = (16, 32),
    kernel: int = 5,
    hidden: int = 64,
    padding: int = 0,
    pool: Literal["each", "last"] = "each",
    dropout: float = 0.0,
) -> nn.Module:
    """A convolutional network: convolutions, one hidden layer, a linear head.

    Every convolution is followed by ReLU and, with ``pool: each``, by 2 x 2 max-pooling; with
    ``pool: last`` only the last one is. Dropout stands before the hidden layer and before the head.

    Raises:
        InputError: an option out of range, or an image too small for the convolutions and pools.
    """
    check(len(channels) >= 1, "channels must name at least one convolution", channels)
    check(min(channels) >= 1, "channels must be >= 1", channels)
    check(kernel >= 1, "kernel must be >= 1", kernel)
    check(hidden >= 1, "hidden must be >= 1", hidden)
    check(padding >= 0, "padding must be >= 0", padding)
    check(0 <= dropout < 1, "dropout must be in [0, 1)", dropout)
    depth, height, width = input_shape
    layers: list[nn.Module] = []
    for i, out in enumerate(channels):
        pooled = pool == "each" or i == len(channels) - 1
        height, width = (side + 2 * padding - kernel + 1 for side in (height, width))
        if pooled:
            height, width = height // 2, width // 2
        check(
            min(height, width) >= 1,
            f"images of {input_shape[1]} x {input_shape[2]} pixels are too small for "
            f"{len(channels)} convolutions of kernel {kernel} with padding {padding} and pool "
            f"{pool!r}; the size left after convolution {i + 1} must be >= 1",
            min(height, width),
        )
        layers.append(nn.Conv2d(depth, out, kernel, padding=padding))
        # Max and ReLU commute, and the ReLU of a pooled map is a quarter of the work.
        layers += [nn.MaxPool2d(2), nn.ReLU(inplace=True)] if pooled else [nn.ReLU(inplace=True)]
        depth = out
    layers.append(nn.Flatten())
    if dropout:
        layers.append(nn.Dropout(dropout))
    layers += [nn.Linear(num_features(nn.Sequential(*layers), input_shape), hidden), nn.ReLU()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return BodyHead(nn.Sequential(*layers), hidden, num_classes)
