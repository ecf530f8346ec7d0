"""A compact anchor-free one-stage detector: `backbone`, `neck` and `head`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.errors import check
from fedsim.evaluate.detection import DETECTION
from fedsim.evaluate.scorer import Scorer
from fedsim.maths.boxes import clipped, gathered, suppressed
from fedsim.maths.detection_loss import Grid, Targets, Weights, detection_loss, grid
from fedsim.models.blocks.body_head import check_images

FINEST = 8
"""The stride of the finest level in pixels; it doubles from level to level."""

_RARE = -3.0  # logit of an untrained detector's objectness: nearly every cell is background
_MOMENTUM = 0.03  # of BatchNorm's statistics, YOLOv5's: batches of detectors are small
_LARGEST = 4.0  # bound on the logarithm of a side over two strides


@dataclass
class Detections:
    """Detected boxes of n images, best first; rows without a box are zeros with the label -1.

    `boxes` (n, k, 4) in pixels, clipped to the image; `labels` int64 (n, k); `scores`
    (n, k), the objectness times the probability of the class; `objectness` (n, k).
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    objectness: Tensor


class Detector(nn.Module):
    """Predicts for every cell a box, whether there is an object, and its class.

    `forward` maps images (batch, 3, H, W) to raw values (batch, A, 5 + classes): for each of the A
    cells of all levels four numbers of the box, and the logits of objectness and classes. A cell of
    stride s with the corner c predicts the centre c + s (2 sigmoid(t) - 0.5), so up to half a cell
    outside it, and the sides 2 s exp(t).

    `targets`, `loss`, `detect` and `scorer` follow `fedsim.params.protocol`.
    """

    targets: ClassVar[tuple[str, ...]] = ("boxes", "box_labels")
    scorer: ClassVar[Scorer] = DETECTION

    def __init__(
        self, shape: tuple[int, int, int], classes: int, width: int, levels: int, weights: Weights
    ) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        deep = max(2, levels)  # a second level gives the cells of the first their surroundings
        self.levels, self.weights = levels, weights
        self.backbone = Backbone(channels, width, deep)
        self.neck = Neck(self.backbone.widths, 2 * width, levels)
        self.head = Head(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.neck(self.backbone(x))
        return torch.cat([self.head(m).flatten(2) for m in maps], dim=2).transpose(1, 2)

    def cells(self, device: torch.device) -> Grid:
        """Return the cells of all levels."""
        strides = [FINEST * 2**level for level in range(self.levels)]
        return grid(tuple((self.height // s, self.width // s, s) for s in strides), device)

    def boxes(self, raw: Tensor) -> Tensor:
        """Return the boxes (batch, A, 4) in pixels that raw values encode."""
        cells = self.cells(raw.device)
        stride = cells.strides.unsqueeze(1)
        centre = cells.corners + stride * (2 * raw[..., :2].sigmoid() - 0.5)
        half = stride * raw[..., 2:4].clamp(max=_LARGEST).exp()
        return torch.cat([centre - half, centre + half], dim=2)

    def loss(self, raw: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of raw values for true boxes (batch, K, 4) and labels, -1 for no box."""
        return self.loss_of(raw, Targets.certain(boxes, labels))

    def loss_of(self, raw: Tensor, targets: Targets) -> Tensor:
        """Return the loss of raw values for targets, some of which may be uncertain."""
        predicted, cells = self.boxes(raw), self.cells(raw.device)
        return detection_loss(predicted, raw[..., 4], raw[..., 5:], targets, cells, self.weights)

    def detect(
        self, x: Tensor, *, least_score: float = 0.01, iou: float = 0.65, most: int = 300
    ) -> Detections:
        """Return the boxes detected in images (batch, C, H, W), in the module's current mode."""
        raw = self(x)
        boxes = clipped(self.boxes(raw), self.height, self.width)
        objectness = raw[..., 4].sigmoid()
        likely, labels = raw[..., 5:].sigmoid().max(2)
        scores = objectness * likely
        places = suppressed(boxes, scores, labels, iou=iou, least_score=least_score, most=most)
        return Detections(
            gathered(boxes, places),
            gathered(labels, places, -1),
            gathered(scores, places),
            gathered(objectness, places),
        )


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=_MOMENTUM),
        nn.SiLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = _convolution(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.convolution(x)
        return added


class Backbone(nn.Module):
    """Maps images to features at the strides 8, 16, ... of `deep` stages."""

    def __init__(self, channels: int, width: int, deep: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(channels, width // 2, 3, 2), _convolution(width // 2, width, 3, 2)
        )
        self.widths = [width * 2 ** (i + 1) for i in range(deep)]
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(w // 2, w, 3, 2), _Residual(w)) for w in self.widths
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Neck(nn.Module):
    """Carries deep features up to finer levels (Lin et al. 2017, arXiv:1612.03144)."""

    def __init__(self, widths: list[int], width: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.lateral = nn.ModuleList(_convolution(w, width, 1) for w in widths)
        self.joined = nn.ModuleList(_convolution(2 * width, width, 3) for _ in widths[1:])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        flat = [side(m) for side, m in zip(self.lateral, maps, strict=True)]
        deep = flat.pop()
        levels = [deep]
        for fine, join in zip(reversed(flat), reversed(self.joined), strict=True):
            up = F.interpolate(deep, scale_factor=2.0, mode="nearest")
            deep = join(torch.cat([fine, up], dim=1))
            levels.insert(0, deep)
        return levels[: self.levels]


class Head(nn.Module):
    """Predicts the raw values (batch, 5 + classes, h, w) of one level; shared by all."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.features = _convolution(width, width, 3)
        self.predict = nn.Conv2d(width, 5 + classes, 1)
        assert self.predict.bias is not None
        with torch.no_grad():
            self.predict.bias.zero_()[4] = _RARE

    def forward(self, x: Tensor) -> Tensor:
        raw: Tensor = self.predict(self.features(x))
        return raw


def detector(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 24,
    levels: int = 1,
    box_weight: float = 0.05,
    objectness_weight: float = 0.7,
    class_weight: float = 0.3,
) -> nn.Module:
    """Anchor-free one-stage detector of backbone, neck and head, with BatchNorm.

    Predicts at strides 8, 16, ... on `levels` levels; a box belongs to the level whose stride is at
    least a quarter of the root of its area. There are `width` channels at stride 4, and twice as
    many from level to level. The weights of the loss's terms default to YOLOv5's
    (`fedsim.maths.detection_loss`).

    Raises:
        InputError: images whose sides are no multiple of the coarsest stride, or a bad option.
    """
    check_images("detector", input_shape)
    check(4 <= width <= 512, "model.width must be in 4..512", width)
    check(1 <= levels <= 4, "model.levels must be in 1..4", levels)
    terms = {"box": box_weight, "objectness": objectness_weight, "class": class_weight}
    for name, value in terms.items():
        check(0 <= value < float("inf"), f"model.{name}_weight must be >= 0 and finite", value)
    stride = FINEST * 2 ** (max(2, levels) - 1)
    _, height, breadth = input_shape
    check(
        height % stride == 0 and breadth % stride == 0,
        f"model 'detector' with {levels} levels needs images whose sides are multiples of {stride}",
        (height, breadth),
    )
    weights = Weights(box_weight, objectness_weight, class_weight)
    return Detector(input_shape, num_classes, width, levels, weights)
