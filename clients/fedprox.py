"""FedProx's client: local SGD with a proximal term (arXiv:1812.06127, Algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.config.ranges import NonNegative
from fedsim.training.local_sgd import Fit, LocalSGD, proximal


class FedProx(LocalSGD):
    """Adds mu (w - w_t) to each gradient, w_t being the payload's model."""

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        mu: NonNegative = 0.01  # weight of the proximal term mu/2 |w - w_t|^2

    def gradient(self, fit: Fit, grads: list[Tensor]) -> list[Tensor]:
        if self.config.mu == 0:
            return grads
        if "anchor" not in fit.scratch:
            model, device = fit.payload["model"], fit.ctx.device
            fit.scratch["anchor"] = [model[name].to(device) for name in fit.names]
        return proximal(grads, fit.parameters, fit.scratch["anchor"], self.config.mu)
