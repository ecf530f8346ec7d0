"""Distances between two batches of vectors."""

from __future__ import annotations

import torch
from torch import Tensor

KERNELS = 5
"""Gaussian kernels that are summed; the discrepancy is below twice their number."""

_FLOOR = 1e-12  # of the bandwidth, for batches in which all rows coincide


def mmd(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of two batches, both (n, d); >= 0.

    mean K(a, a) + mean K(b, b) - mean K(a, b) - mean K(b, a), with K the sum of five Gaussians
    exp(-|x - y|^2 / (2^q s)), q = 0..4, and s a quarter of the mean squared distance between
    different rows of both batches together. The estimate is biased: rows meet themselves. It does
    not change under a common shift or scale, and s carries no gradient.

    Raises:
        ValueError: batches of different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"mmd needs batches of one shape, got {tuple(a.shape)}, {tuple(b.shape)}")
    n = len(a)
    rows = torch.cat([a, b])
    # Differences from the common mean: squares of large numbers would lose what is between rows.
    rows = rows - rows.mean(0).detach()
    squares = (rows * rows).sum(1)
    # -|x - y|^2, which rounding may leave above 0
    negative = torch.addmm(-squares[:, None], rows, rows.T, alpha=2).sub(squares).clamp_max(0)
    bandwidth = -negative.detach().sum() / (4 * n**2 - 2 * n) / 4
    # The widest Gaussian; each narrower one is the square of the one before.
    power = torch.exp(negative / (2 ** (KERNELS - 1) * bandwidth.clamp_min(_FLOOR)))
    kernel = power
    for _ in range(KERNELS - 1):
        power = power * power
        kernel = kernel + power
    signs = torch.ones(2 * n, device=rows.device, dtype=rows.dtype)
    signs[n:] = -1
    return torch.dot(signs, kernel @ signs) / n**2
