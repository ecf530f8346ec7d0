"""FedDyn's client on unlabelled images (arXiv:2111.04263; see strategies/ssfl_feddyn)."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.fedsto import FedSTO
from fedsim.client import ClientContext, Tree
from fedsim.training.local_sgd import Fit, proximal


class SSFLFedDyn(FedSTO):
    """FedSTO's client with the gradient g - h_k + a (w - w_t); it keeps h_k."""

    stateful = True
    needs = FedSTO.needs | {"a"}

    def init_state(self, ctx: ClientContext) -> Tree:
        return {"h": torch.zeros(ctx.model.layout.parameter_size)}

    def gradient(self, fit: Fit, grads: list[Tensor]) -> list[Tensor]:
        if "h" not in fit.scratch:
            h = torch.zeros_like(fit.ctx.model.flat)
            h[: len(fit.state["h"])] = fit.state["h"].to(h.device)
            views = fit.ctx.model.layout.views(h)
            fit.scratch["h"] = [views[name] for name in fit.names]
            fit.scratch["start"] = [p.detach().clone() for p in fit.parameters]
        pulled = proximal(grads, fit.parameters, fit.scratch["start"], fit.payload["a"])
        return super().gradient(fit, list(torch._foreach_sub(pulled, fit.scratch["h"])))

    def keep(self, fit: Fit) -> Tree:
        size = len(fit.state["h"])
        change = self.sender(fit).params().flat[:size] - fit.payload["model"].flat[:size]
        return {"h": fit.state["h"] - fit.payload["a"] * change}
