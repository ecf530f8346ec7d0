"""Random changes of training images, in torch on whole batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.errors import check

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Augmentation:
    """What is done to a batch of images, in this order; every image draws for itself.

    `crop`: shift by up to so many pixels each way, black comes in (He et al. 2015, section 4.2).
    `flip`: mirror left and right, every second image. `jitter` s: brightness, contrast and
    saturation, each times a factor from [1 - s, 1 + s]. `grayscale`: that share of images loses its
    colour. `cutout`: a square of that side at a random centre becomes the mean of the data set, cut
    off at the border (DeVries, Taylor 2017, arXiv:1708.04552).

    Raises:
        InputError: a value out of its range.
    """

    crop: int = 0
    flip: bool = False
    jitter: float = 0.0
    grayscale: float = 0.0
    cutout: int = 0

    def __post_init__(self) -> None:
        check(self.crop >= 0, "augment.crop must be >= 0", self.crop)
        check(0 <= self.jitter < 1, "augment.jitter must be in [0, 1)", self.jitter)
        check(0 <= self.grayscale <= 1, "augment.grayscale must be in [0, 1]", self.grayscale)
        check(self.cutout >= 0, "augment.cutout must be >= 0", self.cutout)

    def pixels(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return changed images (n, H, W, C), float32 in 0..255 as they came; `x` may change."""
        n, channels = len(x), x.shape[3]
        if self.crop:
            x = _shift(x, self.crop, rng)
        if self.flip:
            mirrored = _uniform(n, rng, x) < 0.5
            x = torch.where(mirrored.view(n, 1, 1, 1), x.flip(2), x)
        if self.jitter:
            brightness, contrast, saturation = (
                (1 + self.jitter * (2 * _uniform(n, rng, x) - 1)).view(n, 1, 1, 1) for _ in range(3)
            )
            x = (x * brightness).clamp_(0, 255)
            x = torch.lerp(_grey(x).mean((1, 2), keepdim=True), x, contrast).clamp_(0, 255)
            if channels == 3:
                x = torch.lerp(_grey(x), x, saturation).clamp_(0, 255)
        if self.grayscale and channels == 3:
            colourless = _uniform(n, rng, x) < self.grayscale
            x = torch.where(colourless.view(n, 1, 1, 1), _grey(x), x)
        return x

    def normalised(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return changed images (n, C, H, W), after their means were made 0."""
        if not self.cutout:
            return x
        n, _, height, width = x.shape
        outside = [
            (_offsets(extent, x) - _integers(extent, n, rng, x) - (self.cutout % 2 - 1) / 2).abs()
            >= self.cutout / 2
            for extent in (height, width)
        ]
        kept = outside[0].view(n, 1, height, 1) | outside[1].view(n, 1, 1, width)
        return x * kept


def _shift(x: Tensor, reach: int, rng: torch.Generator) -> Tensor:
    n, height, width, _ = x.shape
    down, right = (_integers(2 * reach + 1, n, rng, x) for _ in range(2))
    padded = F.pad(x, (0, 0, reach, reach, reach, reach))
    rows = down + _offsets(height, x)
    columns = right + _offsets(width, x)
    images = torch.arange(n, device=x.device).view(n, 1, 1)
    return padded[images, rows.view(n, height, 1), columns.view(n, 1, width)]


def _offsets(extent: int, like: Tensor) -> Tensor:
    return torch.arange(extent, device=like.device)


def _integers(stop: int, n: int, rng: torch.Generator, like: Tensor) -> Tensor:
    """Draw (n, 1) whole numbers below `stop`."""
    return torch.randint(stop, (n, 1), generator=rng).to(like.device)


def _uniform(n: int, rng: torch.Generator, like: Tensor) -> Tensor:
    return torch.rand(n, generator=rng).to(like.device)


def _grey(x: Tensor) -> Tensor:
    """Return the luminance of (n, H, W, C) with one channel."""
    if x.shape[3] == 1:
        return x
    return (x * torch.tensor(_LUMINANCE, device=x.device)).sum(3, keepdim=True)
