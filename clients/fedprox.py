"""FedProx's client: local SGD with a proximal term (arXiv:1812.06127, Algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.config.ranges import NonNegative
from fedsim.training.local_sgd import Fit, LocalSGD
from fedsim.training.sgd import add_proximal_term


class FedProx(LocalSGD):
    """Adds mu (w - w_t) to each gradient, w_t being the payload's model."""

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        mu: NonNegative = 0.01  # weight of the proximal term mu/2 |w - w_t|^2

    def gradient(self, fit: Fit, grads: list[Tensor]) -> list[Tensor]:
        return add_proximal_term(fit, grads, self.config.mu, fit.payload["model"])
