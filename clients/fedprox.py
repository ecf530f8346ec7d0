"""FedProx's client: local SGD with a proximal term (arXiv:1812.06127, Algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.errors import check
from fedsim.training.local_sgd import Fit, LocalSGD


class FedProx(LocalSGD):
    """Adds mu (w - w_t) to each gradient, w_t being the payload's model."""

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        mu: float = 0.01  # weight of the proximal term mu/2 |w - w_t|^2, >= 0

        def __post_init__(self) -> None:
            super().__post_init__()
            check(0 <= self.mu < float("inf"), "mu must be >= 0 and finite", self.mu)

    def gradient(self, fit: Fit, grads: list[Tensor]) -> list[Tensor]:
        if self.config.mu == 0:
            return grads
        if "anchor" not in fit.scratch:
            model, device = fit.payload["model"], fit.ctx.device
            fit.scratch["anchor"] = [model[name].to(device) for name in fit.names]
        away = torch._foreach_sub(fit.parameters, fit.scratch["anchor"])
        return list(torch._foreach_add(grads, away, alpha=self.config.mu))
