"""pFedPG: the server generates prompts for each client (Yang et al. 2023, ICCV, arXiv:2308.15367).

    server:   P_n = P_base + softmax(d_n W_Q (P_base W_K)^T / sqrt(l_k)) P_base W_V W_O      (Eq. 3)
    client n: (P~_n, H_n) <- local SGD from (P_n, H_n), the backbone frozen;  send P~_n - P_n
    server:   one step on  S = mean_n <P_n(P_base, d_n, W), P_n - P~_n>,  the latter held fixed

The inner product's gradient is the vector-Jacobian product of Eq. 4 and 5. Its sign is that of
descent: P~_n - P_n already points down the client's loss, so P_n moves towards P~_n. Taken
literally the paper's text moves it away. Heads H_n, data and descriptors' owners stay apart: the
server never sees a head, a client never the generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedsim.client import Metrics, Update
from fedsim.config.ranges import CheckedConfig, Count, Positive, ProperFraction
from fedsim.errors import InputError
from fedsim.params import Params
from fedsim.strategy import Payload, ServerContext, Strategy
from fedsim.training.optimisers import Name, Optimiser, OptimiserState

PROMPTS = "body.prompts"

Weights = dict[str, Tensor]


@dataclass
class State:
    model: Params  # nothing: there is no generic model
    weights: Weights  # base (K, l), descriptors (N, rows, l), query, key, value, out
    moments: OptimiserState = field(default_factory=dict)


class PFedPG(Strategy):
    """Prompts by cross-attention of a client's descriptor over a shared basis."""

    sends = frozenset({"prompts"})
    needs = frozenset({"prompts"})

    @dataclass(frozen=True)
    class Config(CheckedConfig):
        lr: Positive = 0.001  # of the server's step
        optimiser: Name = "adam"  # the paper gives the rate only
        momentum: ProperFraction = 0.0  # of sgd
        clip_norm: Positive | None = 50.0  # bound on the gradient's norm, as pFedHN's code has it
        dim: Count | None = None  # l_k = l_v; min(512, l) if null
        descriptor_rows: Literal["one", "prompts"] = "one"  # rows of d_n: one for all K, or K

    def check(self, params: Params, ctx: ServerContext) -> None:
        if PROMPTS not in params or params[PROMPTS].dim() != 2:
            raise InputError(
                "strategy 'pfedpg' needs a model with shallow prompts, such as "
                "{name: vit, prompts: 10}"
            )

    def init(self, params: Params, ctx: ServerContext) -> State:
        self.check(params, ctx)
        base = params[PROMPTS].clone()
        count, width = base.shape
        dim = self.config.dim or min(512, width)
        rows = count if self.config.descriptor_rows == "prompts" else 1
        generator = ctx.generator("pfedpg/init", 0)

        def uniform(bound: float, *shape: int) -> Tensor:
            return (2 * torch.rand(shape, generator=generator) - 1) * bound

        return State(
            params.only(lambda name: False),
            {
                "base": base,
                "descriptors": uniform(1.0, ctx.num_clients, rows, width),
                # As torch's linear layers begin: uniform in +-1/sqrt(inputs).
                "query": uniform(width**-0.5, width, dim),
                "key": uniform(width**-0.5, width, dim),
                "value": uniform(width**-0.5, width, dim),
                "out": uniform(dim**-0.5, dim, width),
            },
        )

    def configure(self, state: State, round: int, cohort: Sequence[int]) -> Payload:
        prompts = generated(state.weights, list(cohort))
        own = {client: {"prompts": prompts[i].clone()} for i, client in enumerate(cohort)}
        return Payload({}, own)

    def aggregate(self, state: State, updates: Sequence[Update]) -> tuple[State, Metrics]:
        clients = [self._sender(update) for update in updates]
        moved = torch.stack([update.tensors["prompts"] for update in updates])
        gradients = surrogate_gradients(state.weights, clients, -moved)
        c = self.config
        optimiser = Optimiser(c.optimiser, c.momentum, clip_norm=c.clip_norm)
        weights, moments = optimiser.moved(state.weights, gradients, c.lr, state.moments)
        metrics = {"prompt_movement": float(moved.flatten(1).norm(dim=1).mean())}
        return State(state.model, weights, moments), metrics

    def _sender(self, update: Update) -> int:
        if update.client is None:
            raise ValueError("pfedpg needs to know whose update it is")
        return update.client


def generated(weights: Weights, clients: Sequence[int]) -> Tensor:
    """Return the prompts P_n of some clients, (clients, K, l)."""
    base, descriptors = weights["base"], weights["descriptors"][list(clients)]
    query, key = descriptors @ weights["query"], base @ weights["key"]
    attention = torch.softmax(query @ key.T / math.sqrt(key.shape[1]), dim=-1)
    return base + attention @ (base @ weights["value"]) @ weights["out"]


def surrogate_gradients(weights: Weights, clients: Sequence[int], g: Tensor) -> Weights:
    """Return the gradient of mean_n <P_n, g_n> in every weight, g (clients, K, l) held fixed."""
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    with torch.enable_grad():
        surrogate = (generated(leaves, clients) * g).sum() / len(clients)
    return dict(zip(leaves, torch.autograd.grad(surrogate, list(leaves.values())), strict=True))
