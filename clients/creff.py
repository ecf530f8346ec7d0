"""CReFF's client: class-wise gradients of the retrained head, then local SGD (arXiv:2204.13399,
Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.client import ClientContext, Tree, Update
from fedsim.data.views import ClientData, View
from fedsim.training.local_sgd import LocalSGD

BATCH = 512
"""Samples whose features are computed at once."""


class CReFF(LocalSGD):
    """Local SGD; beside the model it sends a gradient (classes, d + 1) of each class it has."""

    needs = frozenset({"model", "weight", "bias"})
    sends = frozenset({"model", "gradients", "present"})

    def train(
        self, payload: Tree, state: Any, data: ClientData, rng: torch.Generator, ctx: ClientContext
    ) -> tuple[Any, Update]:
        ctx.model.load(payload["model"])
        gradients, present = _gradients(payload, data.train, ctx)
        state, update = super().train(payload, state, data, rng, ctx)
        update.tensors |= {"gradients": gradients, "present": present}
        return state, update

    def evaluate(
        self, payload: Tree, state: Any, data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        head = {"head.weight": payload["weight"], "head.bias": payload["bias"]}
        model = payload["model"].merged(head)
        return super().evaluate({**payload, "model": model}, state, data, ctx)


@torch.no_grad()
def _gradients(payload: Tree, view: View, ctx: ClientContext) -> tuple[Tensor, Tensor]:
    """Return the mean gradient of each class (classes, classes, d + 1), 0 where it has none.

    And which classes it has, float (classes,). Features are those of the global model.
    """
    classes = ctx.num_classes
    module: Any = ctx.model.module.eval()
    weight, bias = payload["weight"].to(ctx.device), payload["bias"].to(ctx.device)
    total = torch.zeros(classes, classes, weight.shape[1] + 1, device=ctx.device)
    sizes = torch.zeros(classes, device=ctx.device)
    for x, y in view.batches(BATCH):
        features = module.body(x)
        truth = F.one_hot(y, classes).float()
        error = F.softmax(F.linear(features, weight, bias), 1) - truth
        full = torch.cat([features, torch.ones(len(y), 1, device=ctx.device)], dim=1)
        total += torch.einsum("nc,nj,nd->cjd", truth, error, full)
        sizes += truth.sum(0)
    gradients = total / sizes.clamp_min(1).view(-1, 1, 1)
    return gradients.cpu(), (sizes > 0).float().cpu()
