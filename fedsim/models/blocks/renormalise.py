"""Images as a data set normalises them, brought to the mean and deviation that weights expect."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.models.pretrained.statistics import Statistics


class Renormalise:
    """One factor and shift a channel, none before `expect` has found them needed.

    They are plain tensors, no buffers: not learnt, sent or averaged.
    """

    def __init__(self) -> None:
        self._affine: tuple[Tensor, Tensor] | None = None

    def expect(self, given: Statistics, wanted: Statistics) -> None:
        """Bring images normalised with `given` to `wanted`."""
        self._affine = None
        if given == wanted:
            return
        (mean, std), (m, s) = (
            (torch.tensor(pair[0]), torch.tensor(pair[1])) for pair in (given, wanted)
        )
        self._affine = (std / s).view(-1, 1, 1), ((mean - m) / s).view(-1, 1, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Return images (batch, C, H, W) as they are expected; the same ones if they are so."""
        if self._affine is None:
            return x
        scale, shift = (t.to(x.device) for t in self._affine)
        return torch.addcmul(shift, x, scale)

    def values(self) -> list[list[float]]:
        """Return the factors and shifts, an empty list without any."""
        return [] if self._affine is None else [t.flatten().tolist() for t in self._affine]
