"""APFL's client: trains the global model and, beside it, a local one that is mixed with it
(arXiv:2003.13461, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from fedsim.client import ClientContext, Tree, Update
from fedsim.config.ranges import Fraction
from fedsim.data.views import ClientData
from fedsim.params import Params
from fedsim.training.local_sgd import Fit, LocalSGD

State = dict[str, Any]


class APFL(LocalSGD):
    """Local SGD on w and on v, the latter at u = alpha v + (1 - alpha) w.

    The state is alpha and `own`, whose parameters are v and whose buffers (BatchNorm statistics)
    are those of the personal model u.
    """

    stateful = True
    personal = True

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        alpha: Fraction = 0.5  # the local model's share at the start
        adaptive: bool = True  # whether each step moves alpha along its gradient

    def init_state(self, ctx: ClientContext) -> State:
        return {"alpha": self.config.alpha}

    def train(
        self,
        payload: Tree,
        state: State,
        data: ClientData,
        rng: torch.Generator,
        ctx: ClientContext,
    ) -> tuple[State, Update]:
        own: Params = state.get("own", ctx.initial)
        parameters = set(ctx.model.parameter_names)
        # The hooks move alpha and the buffers in this copy; the state that came in stays.
        work = {
            "alpha": state["alpha"],
            "own": own,
            "buffers": {n: own[n].to(ctx.device, copy=True) for n in own if n not in parameters},
        }
        return super().train(payload, work, data, rng, ctx)

    def extra(self, payload: Tree, state: State, ctx: ClientContext) -> dict[str, Tensor]:
        names = ctx.model.parameter_names
        return {f"own.{n}": state["own"][n].to(ctx.device, copy=True) for n in names}

    def loss(self, fit: Fit, x: Tensor, y: Tensor) -> Tensor:
        """f(w) + f(u), written so that the second one's gradient in v is grad f(u) itself."""
        module, alpha = fit.ctx.model.module, fit.state["alpha"]
        w, v = _halves(fit.parameters)
        u = [
            b - b.detach() + torch.lerp(a.detach(), b.detach(), alpha)
            for a, b in zip(w, v, strict=True)
        ]
        mixed = dict(zip(fit.names[: len(w)], u, strict=True))
        personal = functional_call(module, {**mixed, **fit.state["buffers"]}, (x,))
        return self.criterion(fit, module(x), y) + self.criterion(fit, personal, y)

    def gradient(self, fit: Fit, grads: list[Tensor]) -> list[Tensor]:
        alpha = fit.state["alpha"]
        (w, v), (g_w, g_u) = _halves(fit.parameters), _halves(grads)
        if self.config.adaptive:
            slope = sum(float(torch.sum((b - a) * g)) for a, b, g in zip(w, v, g_u, strict=True))
            fit.state["alpha"] = min(1.0, max(0.0, alpha - fit.lr * slope))
        return [*g_w, *torch._foreach_mul(g_u, alpha)]

    def keep(self, fit: Fit) -> State:
        names = fit.names[: len(fit.names) // 2]
        _, v = _halves(fit.parameters)
        tensors = dict(zip(names, v, strict=True)) | fit.state["buffers"]
        own = fit.ctx.initial.merged({n: t.detach().cpu() for n, t in tensors.items()})
        return {"alpha": fit.state["alpha"], "own": own}

    def personal_model(self, payload: Tree, state: State, ctx: ClientContext) -> Params:
        generic: Params = payload["model"]
        if "own" not in state:
            return generic
        own, alpha = state["own"], state["alpha"]
        parameters = set(ctx.model.parameter_names)
        mixed: Params = own * alpha + generic * (1 - alpha)
        return mixed.merged(own.select(lambda name: name not in parameters))


def _halves(tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return those of the global and those of the local model."""
    half = len(tensors) // 2
    return tensors[:half], tensors[half:]
