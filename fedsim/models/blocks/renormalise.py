"""Conversion of normalised images to the mean and deviation that weights were trained with."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.models.pretrained.statistics import Statistics


class Renormalise:
    """One factor and shift per channel; the identity until `between` sets others.

    They are plain tensors, not buffers: neither trained, sent nor averaged.
    """

    def __init__(self) -> None:
        self._affine: tuple[Tensor, Tensor] | None = None

    def between(self, source: Statistics, target: Statistics) -> None:
        """Convert images normalised with `source` into images normalised with `target`."""
        self._affine = None
        if source == target:
            return
        (mean, std), (m, s) = (map(torch.tensor, pair) for pair in (source, target))
        self._affine = (std / s).view(-1, 1, 1), ((mean - m) / s).view(-1, 1, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Return converted images (batch, C, H, W), the same tensor if there is nothing to do."""
        if self._affine is None:
            return x
        scale, shift = (t.to(x.device) for t in self._affine)
        return torch.addcmul(shift, x, scale)

    def values(self) -> list[list[float]]:
        """Return the factors and shifts, an empty list without any."""
        return [] if self._affine is None else [t.flatten().tolist() for t in self._affine]
