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
    pairs = (a, b) if a.dim() == 3 else (a[None], b[None])
    value: Tensor = _Discrepancy.apply(*pairs)
    return value if a.dim() == 3 else value[0]


def mmd_gradient(a: Tensor, b: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return the discrepancies (p,) of pairs of batches, and their gradients by `a` (p, n, d).

    `a` and `b` are (p, n, d). `share` (p, n) tells rows from padding: 1 / number of rows and 0, the
    same for both batches of a pair; padding has no gradient.
    """
    value, rows, slope = _kernels(a, b, share)
    slope = slope[:, : a.shape[1]]
    gradient = rows[:, : a.shape[1]] * slope.sum(2, keepdim=True)
    return value, torch.baddbmm(gradient, slope, rows, beta=-1)


def _kernels(a: Tensor, b: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return values (p,), rows x (p, 2n, d) less a common one, and weights W (p, 2n, 2n).

    Written out, as autograd's record of some thirty small operations costs more than they do. With
    D_ij = |x_i - x_j|^2, c = (share, -share) and T_ij = sum_q K_q(D_ij) / (2^q s), the value is
    sum_ij c_i c_j K(D_ij) and its gradient sum_j W_ij (x_j - x_i), W_ij = 4 c_i c_j T_ij.
    """
    signs = torch.cat([share, -share], dim=1)
    rows = torch.cat([a, b], dim=1)
    # Differences from the common mean: squares of large numbers would lose what is between rows.
    rows = rows - torch.bmm(signs.abs()[:, None] / 2, rows)
    squares = rows.square().sum(2)
    # -D, which rounding may leave above 0
    negative = torch.baddbmm(squares[:, :, None], rows, rows.mT, beta=-1, alpha=2)
    negative.sub_(squares[:, None, :]).clamp_max_(0)
    # From the common mean, squared distances add up to 2 N times the squared norms of N rows.
    number = 2 * (share > 0).sum(1, dtype=share.dtype)
    spread = (squares * signs.abs()).sum(1) * number / (number - 1)
    widest = spread.mul_(2 ** (KERNELS - 1) / 4).clamp_min_(_FLOOR)[:, None, None]
    # The widest Gaussian; each narrower one is the square of the one before.
    power = torch.exp_(negative.div_(widest))
    kernel, slope = power.clone(), power.clone()
    for q in range(1, KERNELS):
        power = power.square_()
        kernel.add_(power)
        slope.add_(power, alpha=2**q)
    value = (kernel.mul_(signs[:, None]).sum(2) * signs).sum(1)
    return value, rows, slope.mul_(signs[:, None]).mul_(signs[:, :, None] * (4 / widest))


class _Discrepancy(torch.autograd.Function):
    """The discrepancies of pairs of batches (p, n, d) without padding, with both gradients."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        value, rows, slope = _kernels(a, b, a.new_full(a.shape[:2], 1 / a.shape[1]))
        ctx.save_for_backward(rows, slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        rows, slope = ctx.saved_tensors
        gradient = torch.bmm(slope, rows) - rows * slope.sum(2, keepdim=True)
        first, second = (gradient * grad[:, None, None]).chunk(2, dim=1)
        return first, second
