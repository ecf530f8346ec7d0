"""Distances between two batches of vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KERNELS = 5
"""Gaussian kernels that are summed; the discrepancy is below twice their number."""

_FLOOR = 1e-12  # of the bandwidth, for batches in which all rows coincide


def mmd(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of two batches, both (n, d); >= 0.

    mean K(a, a) + mean K(b, b) - mean K(a, b) - mean K(b, a), with K the sum of five Gaussians
    exp(-|x - y|^2 / (2^q s)), q = 0..4, and s a quarter of the mean squared distance between
    different rows of both batches together. The estimate is biased: rows meet themselves. It does
    not change under a common shift or scale, and s carries no gradient. Of (p, n, d) the result is
    (p,), a value a pair of batches.

    Raises:
        ValueError: batches of different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"mmd needs batches of one shape, got {tuple(a.shape)}, {tuple(b.shape)}")
    rows = torch.cat([a, b], dim=-2)
    # Differences from the common mean: squares of large numbers would lose what is between rows.
    rows = rows - rows.mean(-2, keepdim=True).detach()
    value: Tensor = _Discrepancy.apply(rows if a.dim() == 3 else rows[None])
    return value if a.dim() == 3 else value[0]


class _Discrepancy(torch.autograd.Function):
    """The discrepancy of the first and the second half of rows (p, 2n, d), with its gradient.

    Written out, as autograd's record of some thirty small operations costs more than they do. With
    D_ij = |x_i - x_j|^2, signs c_i = +-1 and T_ij = sum_q K_q(D_ij) / (2^q s), the value is
    sum_ij c_i c_j K(D_ij) / n^2 and its gradient -4/n^2 sum_j c_i c_j T_ij (x_i - x_j).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        n = rows.shape[1] // 2
        squares = rows.square().sum(2)
        # -D, which rounding may leave above 0
        negative = torch.baddbmm(squares[:, :, None], rows, rows.mT, beta=-1, alpha=2)
        negative.sub_(squares[:, None, :]).clamp_max_(0)
        widest = negative.sum((1, 2), keepdim=True)
        widest.mul_(-(2 ** (KERNELS - 1)) / (4 * n**2 - 2 * n) / 4).clamp_min_(_FLOOR)
        # The widest Gaussian; each narrower one is the square of the one before.
        power = torch.exp_(negative.div_(widest))
        kernel, slope = power.clone(), power.clone()
        for q in range(1, KERNELS):
            power = power.square_()
            kernel.add_(power)
            slope.add_(power, alpha=2**q)
        signs = rows.new_ones(2 * n)
        signs[n:] = -1
        ctx.save_for_backward(rows, slope, widest, signs)
        return (kernel @ signs) @ signs / n**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        rows, slope, widest, signs = ctx.saved_tensors
        n = rows.shape[1] // 2
        slope = slope * signs * signs[:, None]
        slope *= (grad * (4 / n**2))[:, None, None] / widest
        return torch.baddbmm(rows * slope.sum(2, keepdim=True), slope, rows, beta=-1)
