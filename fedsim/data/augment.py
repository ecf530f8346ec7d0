"""Random augmentation of training images, in torch on whole batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.errors import check
from fedsim.maths.boxes import areas, clipped

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
_LEAST_INSIDE = 0.25  # share of its area that a box must keep inside the image


@dataclass
class Placement:
    """Geometry of n augmented images: x times `factor` plus `shift`, then mirrored or not.

    `factor` (n,), `shift` (n, 2) of x and y in pixels, `mirrored` bool (n,).
    """

    height: int
    width: int
    factor: Tensor
    shift: Tensor
    mirrored: Tensor

    @classmethod
    def same(cls, x: Tensor) -> Placement:
        """Return the placement of unchanged images (n, H, W, C)."""
        n, height, width = x.shape[:3]
        factor, shift = torch.ones(n, device=x.device), torch.zeros(n, 2, device=x.device)
        return cls(height, width, factor, shift, shift[:, 0] != 0)

    def boxes(self, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new boxes (n, K, 4), corners in pixels, and their labels (n, K).

        They are clipped at the border; a box with less than a quarter of its area inside, or less
        than a pixel in width or height, becomes zeros with the label -1.
        """
        moved = boxes * self.factor.view(-1, 1, 1) + self.shift.repeat(1, 2).unsqueeze(1)
        low, high = self.width - moved[..., 2], self.width - moved[..., 0]
        turned = torch.stack([low, moved[..., 1], high, moved[..., 3]], dim=2)
        moved = torch.where(self.mirrored.view(-1, 1, 1), turned, moved)
        inside = clipped(moved, self.height, self.width)
        sides = inside[..., 2:] - inside[..., :2]
        kept = (labels >= 0) & (sides >= 1).all(2)
        kept &= areas(inside) >= _LEAST_INSIDE * areas(moved)
        return inside * kept.unsqueeze(2), torch.where(kept, labels, -1)


@dataclass(frozen=True)
class Augmentation:
    """Augmentations of a batch of images, in this order; every image draws for itself.

    `scale` s: zoom by a factor from [1 - s, 1 + s], the smaller picture somewhere on black, or a
    window of the larger one (large-scale jitter, Ghiasi et al. 2021, arXiv:2012.07177). `crop`:
    shift by up to so many pixels each way, black comes in (He et al. 2015, section 4.2).
    `flip`: mirror left and right, every second image. `jitter` s: brightness, contrast and
    saturation, each times a factor from [1 - s, 1 + s]. `grayscale`: that share of images loses its
    colour. `blur`: that share is blurred over 5 x 5 pixels, standard deviation 1. `cutout`: a
    square of that side at a random centre becomes the mean of the data set, clipped at the border
    (DeVries, Taylor 2017, arXiv:1708.04552).

    Raises:
        InputError: a value out of its range.
    """

    crop: int = 0
    flip: bool = False
    jitter: float = 0.0
    grayscale: float = 0.0
    cutout: int = 0
    scale: float = 0.0
    blur: float = 0.0

    def __post_init__(self) -> None:
        check(self.crop >= 0, "augment.crop must be >= 0", self.crop)
        check(0 <= self.jitter < 1, "augment.jitter must be in [0, 1)", self.jitter)
        check(0 <= self.grayscale <= 1, "augment.grayscale must be in [0, 1]", self.grayscale)
        check(self.cutout >= 0, "augment.cutout must be >= 0", self.cutout)
        check(0 <= self.scale < 1, "augment.scale must be in [0, 1)", self.scale)
        check(0 <= self.blur <= 1, "augment.blur must be in [0, 1]", self.blur)

    def pixels(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return augmented images (n, H, W, C), float32 in 0..255; `x` may change."""
        return self.placed(x, rng)[0]

    def placed(self, x: Tensor, rng: torch.Generator) -> tuple[Tensor, Placement]:
        """Return the images of `pixels`, and the placement of each."""
        n, channels = len(x), x.shape[3]
        place = Placement.same(x)
        if self.scale:
            x = self._zoom(x, place, rng)
        if self.crop:
            x = _shift(x, self.crop, place, rng)
        if self.flip:
            place.mirrored = _uniform(n, rng, x) < 0.5
            x = torch.where(place.mirrored.view(n, 1, 1, 1), x.flip(2), x)
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
        if self.blur:
            soft = _uniform(n, rng, x) < self.blur
            x = torch.where(soft.view(n, 1, 1, 1), _blur(x), x)
        return x, place

    def _zoom(self, x: Tensor, place: Placement, rng: torch.Generator) -> Tensor:
        n, height, width = x.shape[:3]
        factor = 1 + self.scale * (2 * _uniform(n, rng, x) - 1)
        size = torch.tensor([width, height], dtype=x.dtype, device=x.device)
        free = size * (1 - factor).unsqueeze(1)  # below 0 where the picture is larger
        shift = free * torch.rand(n, 2, generator=rng).to(x.device)
        # A point p of the new image shows (p - shift) / factor; both in -1..1 over the image here.
        theta = torch.zeros(n, 2, 3, device=x.device)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / factor
        theta[:, :, 2] = (1 - 2 * shift / size) / factor.unsqueeze(1) - 1
        points = F.affine_grid(theta, [n, x.shape[3], height, width], align_corners=False)
        place.factor, place.shift = factor, shift
        planes = F.grid_sample(x.permute(0, 3, 1, 2), points, align_corners=False)
        return planes.permute(0, 2, 3, 1)

    def normalised(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return augmented images (n, C, H, W), whose means are 0."""
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


def _shift(x: Tensor, reach: int, place: Placement, rng: torch.Generator) -> Tensor:
    n, height, width, _ = x.shape
    down, right = (_integers(2 * reach + 1, n, rng, x) for _ in range(2))
    place.shift = place.shift + reach - torch.cat([right, down], dim=1)
    padded = F.pad(x, (0, 0, reach, reach, reach, reach))
    rows = down + _offsets(height, x)
    columns = right + _offsets(width, x)
    images = torch.arange(n, device=x.device).view(n, 1, 1)
    return padded[images, rows.view(n, height, 1), columns.view(n, 1, width)]


def _blur(x: Tensor) -> Tensor:
    """Return (n, H, W, C) convolved with (1 4 6 4 1) / 16 along rows and columns."""
    for axis in (1, 2):
        size = x.shape[axis]
        places = torch.arange(-2, size + 2, device=x.device).clamp(0, size - 1)
        wide = x.index_select(axis, places)
        a, b, c, d, e = (wide.narrow(axis, i, size) for i in range(5))
        x = (a + e + 4 * (b + d) + 6 * c) / 16
    return x


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
