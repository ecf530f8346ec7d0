"""FedROD's client: two losses on one pass through the body (arXiv:2107.00778, Eq. 7 and 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fedsim.client import ClientContext, Tree
from fedsim.params import Params
from fedsim.training import losses
from fedsim.training.local_sgd import Fit, LocalSGD

State = dict[str, Tensor]
HEAD = ("head.weight", "head.bias")


class FedROD(LocalSGD):
    """Keeps phi_k, which starts at zero: the personal model starts as the generic one."""

    stateful = True
    personal = True

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        loss: losses.Name = "balanced-softmax"  # of the generic head

    def init_state(self, ctx: ClientContext) -> State:
        return {name: ctx.initial[name] * 0 for name in HEAD}

    def extra(self, payload: Tree, state: State, ctx: ClientContext) -> dict[str, Tensor]:
        return {f"own.{name}": state[name].to(ctx.device, copy=True) for name in HEAD}

    def loss(self, fit: Fit, x: Tensor, y: Tensor) -> Tensor:
        module: Any = fit.ctx.model.module
        features = module.body(x)
        generic = module.head(features)
        weight, bias = fit.parameters[-2:]
        personal = generic.detach() + F.linear(features.detach(), weight, bias)
        return self.criterion(fit, generic, y) + losses.cross_entropy(personal, y)

    def keep(self, fit: Fit) -> State:
        own = fit.parameters[-2:]
        return {name: t.detach().cpu() for name, t in zip(HEAD, own, strict=True)}

    def personal_model(self, payload: Tree, state: State, ctx: ClientContext) -> Params:
        model: Params = payload["model"]
        return model.merged({name: model[name] + state[name] for name in HEAD})
