"""What a model's features look like, class by class: sums that add up over parts of the data.

With m_c the mean feature vector of class c and Sigma_c the covariance of its features:

    mean_norm/c   |m_c|
    mean_dims/c   (sum_j m_cj^2)^2 / sum_j m_cj^4: over how many features m_c spreads, 1..d
    noise/c       sqrt(tr Sigma_c): how far its features lie from m_c
    dims          (tr Sigma)^2 / tr Sigma^2 of all features: how many directions they use, 1..d
    dims_within   the same of their covariance around the means of their classes
    dims_means    the same of the covariance of the class means, each class weighing 1
    collapse      trace around the class means / trace of all; 0 where each class is a point

These quotients are participation ratios: k for k equal values and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """Sums over samples, fp64: counts (C,), features (C, d), squared norms (C,), products (d, d).

    Only the products are of all classes together.
    """

    count: Tensor
    first: Tensor
    square: Tensor
    second: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, num_classes: int) -> Moments:
        """Return the sums over features (n, d) with labels (n,), on the CPU."""
        z, y = features.detach().double().cpu(), labels.cpu()
        first = torch.zeros(num_classes, z.shape[1], dtype=torch.float64).index_add_(0, y, z)
        square = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, y, (z**2).sum(1))
        count = torch.bincount(y, minlength=num_classes).double()
        return cls(count, first, square, z.T @ z)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.first + other.first,
            self.square + other.square,
            self.second + other.second,
        )

    def metrics(self) -> dict[str, float]:
        """Return the quantities above; those of classes without samples are left out."""
        present = self.count > 0
        n = self.count[present]
        means = self.first[present] / n[:, None]
        energy = (means**2).sum(1)
        noise = (self.square[present] / n - energy).clamp(min=0).sqrt()
        spread = energy**2 / (means**4).sum(1)
        values: dict[str, float] = {}
        for i, c in enumerate(torch.nonzero(present).flatten().tolist()):
            values[f"mean_norm/{c}"] = float(energy[i].sqrt())
            values[f"mean_dims/{c}"] = float(spread[i]) if energy[i] > 0 else 0.0
            values[f"noise/{c}"] = float(noise[i])
        total = n.sum()
        mean = self.first.sum(0) / total
        whole = self.second / total - torch.outer(mean, mean)
        within = self.second / total - (means.T * (n / total)) @ means
        centred = means - means.mean(0)
        values["dims"] = _dims(whole)
        values["dims_within"] = _dims(within)
        values["dims_means"] = _dims(centred.T @ centred)
        trace = float(whole.trace())
        values["collapse"] = float(within.trace()) / trace if trace > 0 else 0.0
        return values


def _dims(covariance: Tensor) -> float:
    """Return (tr A)^2 / tr A^2 of a symmetric matrix; 0 of zeros."""
    squares = float((covariance**2).sum())
    return float(covariance.trace()) ** 2 / squares if squares > 0 else 0.0
