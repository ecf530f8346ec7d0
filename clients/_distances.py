"""Kernel distance between two batches of vectors, with its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

KERNELS = 5
"""Gaussian kernels that are summed; the discrepancy is below twice their number."""

_FLOOR = 1e-12  # of the bandwidth, for batches in which all rows coincide


class Discrepancy:
    """The squared maximum mean discrepancy of pairs of batches of given sizes.

    mean K(a, a) + mean K(b, b) - mean K(a, b) - mean K(b, a), with K the sum of five Gaussians
    exp(-|x - y|^2 / (2^q s)), q = 0..4, and s a quarter of the mean squared distance between
    different rows of both batches together. The estimate is biased, as rows meet themselves, and
    >= 0. It does not change under a common shift or scale, and s carries no gradient.

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
        count = a.shape[1]
        # 4 c_i c_j T_ij of the rows i of `a`
        slope = torch.mul(slope[:, :count], self._signs[:, :count]).mul_(2 / widest)
        gradient = rows[:, :count] * slope.sum(2, keepdim=True)
        return value, torch.baddbmm(gradient, slope, rows, beta=-1)
