"""Residual networks for small images (He et al. 2016, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.errors import check
from fedsim.models.blocks.body_head import BodyHead, check_images

_Norm = Callable[[int], nn.Module]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, 1 x 1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: _Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    depth: int = 8,
    width: int = 16,
    norm: Literal["batch", "group", "none"] = "batch",
) -> nn.Module:
    """A CIFAR-style residual network of `depth` = 6n + 2 layers, `width` channels at first.

    Shortcuts that change the shape are 1 x 1 convolutions (option B of the paper). Group
    normalisation has 8 channels a group.

    Raises:
        InputError: a depth that is not 6n + 2, a width below 1 or not a multiple of 8 with
            group normalisation, or a data set of texts.
    """
    check_images("resnet", input_shape)
    check(depth >= 8 and depth % 6 == 2, "depth must be 6 n + 2 with n >= 1 (8, 14, 20 ...)", depth)
    check(width >= 1, "width must be >= 1", width)
    if norm == "group":
        check(width % 8 == 0, "width must be a multiple of 8 with group normalisation", width)
    norms: dict[str, _Norm] = {
        "batch": nn.BatchNorm2d,
        "group": lambda channels: nn.GroupNorm(channels // 8, channels),
        "none": lambda channels: nn.Identity(),
    }
    make = norms[norm]
    layers: list[nn.Module] = [
        nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False),
        make(width),
        nn.ReLU(inplace=True),
    ]
    inputs = width
    for stage in range(3):
        outputs = width * 2**stage
        for i in range((depth - 2) // 6):
            stride = 2 if stage > 0 and i == 0 else 1
            layers.append(ResidualBlock(inputs, outputs, stride, make))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return BodyHead(nn.Sequential(*layers), inputs, num_classes)
