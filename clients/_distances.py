"""Distances between two batches of vectors."""

from __future__ import annotations

from collections.abc import Sequence
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


class Discrepancy:
    """The discrepancy of pairs of batches, prepared for batches of the same sizes.

    `share` (p, n) tells rows from padding, the same for both batches of a pair: 1 / number of rows,
    and 0. `lengths` are the p numbers of rows.

    Written out, as autograd's record of some thirty small operations costs more than they do. With
    D_ij = |x_i - x_j|^2, c = (share, -share) and T_ij = sum_q K_q(D_ij) / (2^q s), the value is
    sum_ij c_i c_j K(D_ij) and its gradient 4 sum_j c_i c_j T_ij (x_j - x_i).
    """

    def __init__(self, share: Tensor, lengths: Sequence[int]) -> None:
        signs = torch.cat([share, -share], dim=1)
        self._signs = signs[:, :, None] * signs[:, None]
        both = torch.cat([share, share], dim=1)
        self._centre = both[:, None] / 2
        # From their centre, squared distances add up to 2 N times the squared norms of N rows: half
        # the widest Gaussian's bandwidth, of half the squared norms.
        factors = [2 ** (KERNELS - 1) / 4 * 2 * n / (2 * n - 1) for n in lengths]
        self._spread = both * share.new_tensor(factors)[:, None]

    def gradient(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values (p,) and their gradients by `a`, both (p, n, d); 0 in padding."""
        value, rows, slope = self.kernels(a, b, a.shape[1])
        gradient = rows[:, : a.shape[1]] * slope.sum(2, keepdim=True)
        return value, torch.baddbmm(gradient, slope, rows, beta=-1)

    def kernels(self, a: Tensor, b: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return values (p,), the rows x (p, 2n, d) less their centre and 4 c_i c_j T_ij.

        The latter are (p, count, 2n), of the first rows i.
        """
        rows = torch.cat([a, b], dim=1)
        # Less the common mean: squares of large numbers would lose what is between rows.
        rows = rows - torch.bmm(self._centre, rows)
        negative = torch.bmm(rows, rows.mT)
        halves = negative.diagonal(dim1=1, dim2=2) / 2
        # -D / 2, which rounding may leave above 0
        negative.sub_(halves[:, :, None]).sub_(halves[:, None]).clamp_max_(0)
        widest = (halves * self._spread).sum(1)[:, None, None].clamp_min_(_FLOOR)
        # The widest Gaussian; each narrower one is the square of the one before.
        power = torch.exp_(negative.div_(widest))
        squared = power.square()
        kernel, slope = power + squared, torch.add(power, squared, alpha=2)
        for q in range(2, KERNELS):
            squared = squared.square_()
            kernel.add_(squared)
            slope.add_(squared, alpha=2**q)
        value = kernel.mul_(self._signs).sum((1, 2))
        slope = torch.mul(slope[:, :count], self._signs[:, :count])
        return value, rows, slope.mul_(2 / widest)


class _Discrepancy(torch.autograd.Function):
    """The discrepancies of pairs of batches (p, n, d) without padding, with both gradients."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        pairs, n = a.shape[:2]
        discrepancy = Discrepancy(a.new_full((pairs, n), 1 / n), [n] * pairs)
        value, rows, slope = discrepancy.kernels(a, b, 2 * n)
        ctx.save_for_backward(rows, slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        rows, slope = ctx.saved_tensors
        gradient = torch.bmm(slope, rows) - rows * slope.sum(2, keepdim=True)
        first, second = (gradient * grad[:, None, None]).chunk(2, dim=1)
        return first, second
