"""PartialFed's client: starts a round from a mix of global and own layers, fixed or learned.

    Adaptive, before each round but a client's first, for some batches b:
        u_l <- sigmoid((a_l + logistic noise) / tau)       (Gumbel-softmax of two choices)
        a <- a - rate grad_a loss(u_l global_l + (1 - u_l) own_l for all l; b)
    then layer l is loaded from the global model where a_l >= 0, and kept elsewhere

How often gates and weights take turns is not stated where we could read it; here gates are learned
at the start of a round, the weights after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from fedsim.client import ClientContext, Tree, Update
from fedsim.config.ranges import Count, Positive
from fedsim.data.views import ClientData
from fedsim.params import Params
from fedsim.params.filters import batch_norm, under
from fedsim.training.local_sgd import LocalSGD

State = dict[str, Any]


class PartialFed(LocalSGD):
    """Local SGD from a partly loaded model, which is also the client's personal model.

    A layer is a module with tensors of its own; all its tensors share a gate.
    """

    stateful = True
    personal = True

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        loading: Literal["adaptive", "fixed"] = "adaptive"  # how layers to keep are chosen
        keep_layers: tuple[str, ...] = ("batch-norm",)  # fixed: names of layers, or batch-norm
        gate_steps: Count = 5  # adaptive: batches for the gates a round
        gate_lr: Positive = 1.0  # adaptive: rate of the gates
        temperature: Positive = 1.0  # adaptive: tau; small values make choices hard

    def init_state(self, ctx: ClientContext) -> State:
        count = len(_layers(ctx.initial))
        return {"gates": torch.zeros(count)} if self.config.loading == "adaptive" else {}

    def train(
        self,
        payload: Tree,
        state: State,
        data: ClientData,
        rng: torch.Generator,
        ctx: ClientContext,
    ) -> tuple[State, Update]:
        start: Params = payload["model"]
        kept = 0.0
        gates: State = {}
        if "own" in state:
            layers = _layers(start)
            if self.config.loading == "adaptive":
                gates = {"gates": self._learn(start, state, data, rng, ctx)}
                closed = [layer for layer, a in zip(layers, gates["gates"], strict=True) if a < 0]
                keeps = under(closed) if closed else lambda name: False
            else:
                keeps = self._fixed(ctx)
            own = state["own"].select(keeps)
            kept = len({name.rpartition(".")[0] for name in own}) / len(layers)
            start = start.merged(own)
        ctx.model.load(start)
        fit, metrics = self.fit(payload, state, data.train, rng, ctx)
        update = Update(self.update(fit), float(len(data.train)), metrics | {"kept_layers": kept})
        return {**state, **gates, "own": ctx.model.params()}, update

    def _fixed(self, ctx: ClientContext) -> Any:
        named = under([layer for layer in self.config.keep_layers if layer != "batch-norm"])
        norm = batch_norm(ctx.model.module) if "batch-norm" in self.config.keep_layers else None
        return lambda name: named(name) or (norm is not None and norm(name))

    def _learn(
        self,
        start: Params,
        state: State,
        data: ClientData,
        rng: torch.Generator,
        ctx: ClientContext,
    ) -> Tensor:
        """Return the gates (layers,) after some steps on the relaxed mix of both models."""
        config, device, module = self.config, ctx.device, ctx.model.module
        index = {layer: i for i, layer in enumerate(_layers(start))}
        # Gradients run through the mixed tensors; the resident model itself takes no part.
        ours = {n: state["own"][n].to(device) for n in start.layout.names}
        theirs = {n: start[n].to(device) for n in start.layout.names}
        ctx.model.load(start)
        module.eval()  # statistics are mixed like weights, and dropout would blur the choice
        statistics = {name for name, _ in module.named_buffers()}
        gates: Tensor = state["gates"].to(device, copy=True).requires_grad_()
        for x, y in data.train.batches(config.batch_size, rng, steps=config.gate_steps):
            noise = torch.rand(len(gates), generator=rng).clamp_(1e-6, 1 - 1e-6).logit()
            u = torch.sigmoid((gates + noise.to(device)) / config.temperature)
            mixed = {}
            for name, own in ours.items():
                share = u[index[name.rpartition(".")[0]]]
                if name in statistics:  # BatchNorm passes no gradient to its statistics
                    share = share.detach()
                mixed[name] = share * theirs[name] + (1 - share) * own
            loss = F.cross_entropy(functional_call(module, mixed, (x,)), y)
            (slope,) = torch.autograd.grad(loss, gates)
            with torch.no_grad():
                gates -= config.gate_lr * slope
        return gates.detach().cpu()

    def personal_model(self, payload: Tree, state: State, ctx: ClientContext) -> Params:
        own: Params = state["own"] if "own" in state else payload["model"]
        return own


def _layers(params: Params) -> list[str]:
    """Return the names of the modules that have tensors, in the model's order."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in params.layout.names))
