"""Orthogonality penalty on the filters of layers (SRIP: Bansal et al. 2018, arXiv:1810.09102).

    R = sum over layers [ sigma(M M^T - I) + sigma(M^T M - I) ]        two-sided
    R = sum over layers sigma of the smaller of the two matrices        the shorter side

M is a weight as a matrix (out, in * kh * kw), sigma the largest absolute eigenvalue. Two-sided, a
layer whose M is not square has one term of at least 1, without a gradient where it is 1: `floor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Sides = Literal["shorter", "both"]


@dataclass
class Orthogonality:
    """The penalty R of several weights, by name, computed by power iteration.

    Each call continues from the vectors of the previous one, for `iterations` steps with the square
    of the matrix, without gradient. The value never exceeds the true R.
    """

    sides: Sides = "shorter"
    iterations: int = 3
    vectors: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return R, a scalar, of weights (out, in, ...); ignore those of one dimension."""
        total = torch.zeros(())
        for name, weight in weights.items():
            if weight.ndim < 2:
                continue
            matrix = weight.flatten(1)
            wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            total = total.to(weight.device) + self._norm(f"{name}/shorter", wide)
            if self.sides == "both":
                total = total + self._norm(f"{name}/longer", wide.T)
        return total

    def floor(self, weights: Mapping[str, Tensor]) -> int:
        """Return a lower bound of R for weights of these shapes."""
        if self.sides == "shorter":
            return 0
        matrices = [w.flatten(1) for w in weights.values() if w.ndim > 1]
        return sum(m.shape[0] != m.shape[1] for m in matrices)

    def _norm(self, key: str, matrix: Tensor) -> Tensor:
        """Return |S v| with S = M M^T - I and v an estimate of its leading eigenvector."""
        m = matrix.detach()
        v = self.vectors.get(key)
        if v is None:
            draw = torch.Generator().manual_seed(len(matrix))
            v = torch.randn(len(matrix), generator=draw).to(m.device, m.dtype)
        for _ in range(self.iterations):
            v = _times(m, _times(m, v))
            v = v / torch.linalg.vector_norm(v).clamp_min(1e-12)
        self.vectors[key] = v
        return _length(_times(matrix, v))


def _times(m: Tensor, v: Tensor) -> Tensor:
    return m @ (m.T @ v) - v


def _length(v: Tensor) -> Tensor:
    # The slope of the root is infinite at 0; orthogonal filters get the slope 0 instead.
    square = v.square().sum()
    return torch.where(square > 0, square, 1.0).sqrt() * (square > 0)
