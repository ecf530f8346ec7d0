"""ResNet-18 to -152 (He et al. 2016, arXiv:1512.03385, Table 1), optionally pretrained, with a stem
for small images.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.data.dataset import Card
from fedsim.errors import check
from fedsim.models.blocks.body_head import BodyHead, check_images
from fedsim.models.blocks.renormalise import Renormalise
from fedsim.models.pretrained.statistics import KNOWN, statistics
from fedsim.models.pretrained.torchvision_resnet import find_weights, load_weights, read_weights
from fedsim.models.resnet import ResidualBlock

_STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
_BOTTLENECKS = 50
"""The smallest depth with bottleneck blocks."""


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with a shortcut, 1 x 1 where the shape changes.

    The first two have a quarter of the outputs. The 3 x 3 convolution has the stride, as in
    torchvision ("ResNet v1.5"); in the paper the first has it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class Layers(nn.Sequential):
    """Layers in sequence, on images renormalised for their weights."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.renormalise = Renormalise()

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = super().forward(self.renormalise(x))
        return features


def resnet_imagenet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    card: Card | None = None,
    /,
    *,
    depth: Literal[18, 34, 50, 101, 152] = 18,
    width: int = 64,
    stem: Literal["small", "large"] = "small",
    weights: str | None = None,
    normalise: Literal["auto", "data", "imagenet"] = "auto",
) -> nn.Module:
    """ResNet-18 to -152: four stages of `width`, 2, 4 and 8 x `width` channels.

    From depth 50 on the blocks are bottlenecks, and the stages have four times as many channels
    at their ends. The stem is one 3 x 3 convolution for images of some 32 pixels (small), or 7 x 7
    with stride 2 and max-pooling (large).

    `weights` is a file of a state dict in torchvision's format, by ``torch.save`` or safetensors,
    or a folder of transformers' ResNet (``save_pretrained``); a path that does not exist is looked
    up in ``$FEDSIM_DATA/weights`` and ``~/.fedsim/data/weights``. The body starts from them, the
    head at random. Every worker reads the file on its own machine, and so does whoever loads the
    run's model, so it must be the same for all. Weights need ``stem: large``, a `width` of 64 and
    images with 3 channels.

    Images are normalised as the data set is (data) or with ImageNet's mean and deviation
    (imagenet); auto is data without weights, otherwise the statistics of preprocessor_config.json
    in their folder, or ImageNet's.

    Raises:
        InputError: another depth or stem, a width below 1, a data set of texts, or weights that are
            missing, unreadable, of another depth, or not for this stem, width or these images.
    """
    check_images("resnet-imagenet", input_shape)
    check(depth in _STAGES, f"depth must be one of {', '.join(map(str, _STAGES))}", depth)
    check(width >= 1, "width must be >= 1", width)
    check(stem in ("small", "large"), "stem must be 'small' or 'large'", stem)
    if weights is not None:
        check(stem == "large", "stem must be 'large' with weights", stem)
        check(width == 64, "width must be 64 with weights", width)
        check(input_shape[0] == 3, "weights need images with 3 channels", input_shape[0])
    place = None if weights is None else find_weights(weights)
    expected = statistics(place, normalise, input_shape[0])
    if expected is None and place is not None and normalise == "auto":
        expected = KNOWN["imagenet"]
    kernel, stride = (3, 1) if stem == "small" else (7, 2)
    layers: list[nn.Module] = [
        nn.Conv2d(input_shape[0], width, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    if stem == "large":
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    names = {"0": "conv1", "1": "bn1"}
    inputs = width
    for stage, blocks in enumerate(_STAGES[depth]):
        outputs = width * 2**stage * (4 if depth >= _BOTTLENECKS else 1)
        for i in range(blocks):
            stride = 2 if stage > 0 and i == 0 else 1
            names[str(len(layers))] = f"layer{stage + 1}.{i}"
            if depth >= _BOTTLENECKS:
                layers.append(Bottleneck(inputs, outputs, stride))
            else:
                layers.append(ResidualBlock(inputs, outputs, stride, nn.BatchNorm2d))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    body = Layers(*layers)
    if place is not None:
        theirs = {name: _torchvision_name(name, names) for name in body.state_dict()}
        load_weights(body, theirs, read_weights(place), f"a network of depth {depth}")
    if card is not None and expected is not None:
        body.renormalise.between((card.mean, card.std), expected)
    return BodyHead(body, inputs, num_classes)


def _torchvision_name(name: str, places: dict[str, str]) -> str:
    """Return ``layer1.0.bn2.weight`` for ``4.norm2.weight``, where ``4`` is at ``layer1.0``."""
    place, _, rest = name.partition(".")
    return f"{places[place]}.{rest.replace('norm', 'bn').replace('shortcut', 'downsample')}"
