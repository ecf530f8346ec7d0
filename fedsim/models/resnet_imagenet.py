"""Residual networks of four stages (He et al. 2016, arXiv:1512.03385, Table 1), for small images
too.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from fedsim.errors import check
from fedsim.models import BodyHead, check_images
from fedsim.models.resnet import ResidualBlock

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def resnet_imagenet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    depth: Literal[18, 34] = 18,
    width: int = 64,
    stem: Literal["small", "large"] = "small",
) -> nn.Module:
    """ResNet-18 or -34: four stages of `width`, 2, 4 and 8 x `width` channels.

    The stem is one 3 x 3 convolution for images of some 32 pixels (small), or 7 x 7 with stride 2
    and max-pooling (large).

    Raises:
        InputError: another depth or stem, a width below 1, or a data set of texts.
    """
    check_images("resnet-imagenet", input_shape)
    check(depth in _STAGES, "depth must be 18 or 34", depth)
    check(width >= 1, "width must be >= 1", width)
    check(stem in ("small", "large"), "stem must be 'small' or 'large'", stem)
    kernel, stride = (3, 1) if stem == "small" else (7, 2)
    layers: list[nn.Module] = [
        nn.Conv2d(input_shape[0], width, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    if stem == "large":
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    inputs = width
    for stage, blocks in enumerate(_STAGES[depth]):
        outputs = width * 2**stage
        for i in range(blocks):
            stride = 2 if stage > 0 and i == 0 else 1
            layers.append(ResidualBlock(inputs, outputs, stride, nn.BatchNorm2d))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return BodyHead(nn.Sequential(*layers), inputs, num_classes)
