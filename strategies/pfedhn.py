"""pFedHN: a hypernetwork makes each client's weights (Shamsian et al. 2021, ICML,
arXiv:2103.04628, Algorithm 1).

    server:   theta_n = h(v_n; phi)
    client n: theta~_n <- local SGD from theta_n;  send theta~_n
    server:   one step on  mean_n <h(v_n; phi), theta_n - theta~_n>  in phi and all v, the latter
              factor held fixed: (d theta_n / d phi)^T (theta_n - theta~_n)

h is a perceptron with an output for every weight, v_n a vector that is learnt for each client, and
both stay with the server. With a local head (the paper's pFedHN-PC) h makes all but the head.
BatchNorm statistics stay with the clients.

Differs from the authors' code, which draws one client a step: here a round's clients share one
step. By default the output begins at the model's initial weights, so that pre-trained ones are
kept, and weights do not decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.client import Metrics, Update
from fedsim.config.ranges import CheckedConfig, Count, NonNegativeInt, Positive, ProperFraction
from fedsim.errors import InputError
from fedsim.params import Params
from fedsim.params.filters import in_head
from fedsim.strategy import Payload, ServerContext, Strategy
from fedsim.training.optimisers import Name, Optimiser, OptimiserState

Weights = dict[str, Tensor]


@dataclass
class State:
    model: Params  # h at the mean of all v: what a client without a vector of its own would get
    weights: Weights  # embeddings (N, e), layers, out (size, hidden) and its bias (size,)
    moments: OptimiserState = field(default_factory=dict)


class PFedHN(Strategy):
    """A perceptron from a client's vector to its weights; it moves to where clients went."""

    client = "personal-sgd"

    @dataclass(frozen=True)
    class Config(CheckedConfig):
        head: Literal["generated", "local"] = "generated"  # local: pFedHN-PC
        lr: Positive = 0.01  # of the server's step
        embedding_lr: Positive | None = None  # of the clients' vectors; `lr` if null
        optimiser: Name = "sgd"
        momentum: ProperFraction = 0.9  # of sgd
        clip_norm: Positive | None = 50.0  # bound on the gradient's norm
        embedding: Count | None = None  # length of v; 1 + N // 4 if null
        hidden: Count = 100  # units of a hidden layer
        layers: NonNegativeInt = 3  # hidden layers after the first
        # initial: the output's bias is the initial model and its matrix zero; random: both as
        # torch's linear layers begin, as in the authors' code.
        start: Literal["initial", "random"] = "initial"

    def check(self, params: Params, ctx: ServerContext) -> None:
        if self._made(params).flat.numel() == 0:
            raise InputError(
                "strategy 'pfedhn' needs a model with weights to make: with head 'local' this one "
                "has none"
            )

    def _made(self, params: Params) -> Params:
        """Return the part of a model that the hypernetwork makes."""
        trained = set(params.layout.names[: params.layout.num_parameters])
        local = self.config.head == "local"
        return params.only(lambda name: name in trained and not (local and in_head(name)))

    def init(self, params: Params, ctx: ServerContext) -> State:
        config = self.config
        made = self._made(params)
        hidden, length = config.hidden, config.embedding or 1 + ctx.num_clients // 4
        generator = ctx.generator("pfedhn/init", 0)

        def linear(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
            bound = inputs**-0.5
            shapes: list[tuple[int, ...]] = [(outputs, inputs), (outputs,)]
            weight, bias = (
                (2 * torch.rand(shape, generator=generator) - 1) * bound for shape in shapes
            )
            return weight, bias

        weights = {"embeddings": torch.randn(ctx.num_clients, length, generator=generator)}
        for i in range(config.layers + 1):
            inputs = hidden if i else length
            weights[f"weight{i}"], weights[f"bias{i}"] = linear(hidden, inputs)
        if config.start == "random":
            weights["out"], weights["out_bias"] = linear(made.flat.numel(), hidden)
        else:
            weights["out"] = torch.zeros(made.flat.numel(), hidden)
            weights["out_bias"] = made.flat.clone()
        return State(self._common(made, weights), weights)

    def _common(self, made: Params, weights: Weights) -> Params:
        mean = weights["embeddings"].mean(0, keepdim=True)
        return made.replace(network(weights, mean)[0])

    def configure(self, state: State, round: int, cohort: Sequence[int]) -> Payload:
        flats = network(state.weights, state.weights["embeddings"][list(cohort)])
        own = {
            client: {"model": state.model.replace(flats[i].clone())}
            for i, client in enumerate(cohort)
        }
        return Payload({}, own)

    def aggregate(self, state: State, updates: Sequence[Update]) -> tuple[State, Metrics]:
        config = self.config
        clients = [self._sender(update) for update in updates]
        trained = torch.stack([update.tensors["model"].flat for update in updates])
        with torch.enable_grad():
            leaves = {name: w.clone().requires_grad_() for name, w in state.weights.items()}
            made = network(leaves, leaves["embeddings"][clients])
            g = made.detach() - trained
            surrogate = (made * g).sum() / len(clients)
            found = torch.autograd.grad(surrogate, list(leaves.values()))
        rate = config.embedding_lr
        optimiser = Optimiser(config.optimiser, config.momentum, clip_norm=config.clip_norm)
        weights, moments = optimiser.moved(
            state.weights,
            dict(zip(leaves, found, strict=True)),
            config.lr,
            state.moments,
            rates=None if rate is None else {"embeddings": rate},
        )
        metrics = {"weight_movement": float(g.norm(dim=1).mean())}
        return State(self._common(state.model, weights), weights, moments), metrics

    def _sender(self, update: Update) -> int:
        if update.client is None:
            raise ValueError("pfedhn needs to know whose update it is")
        return update.client

    def scored(self, state: State) -> Mapping[str, Params]:
        return {}  # no client is meant to use the common model


def network(weights: Weights, v: Tensor) -> Tensor:
    """Return the weights theta (n, size) that the hypernetwork makes of vectors v (n, e)."""
    x = F.linear(v, weights["weight0"], weights["bias0"])
    for i in range(1, sum(name.startswith("weight") for name in weights)):
        x = F.linear(F.relu(x), weights[f"weight{i}"], weights[f"bias{i}"])
    return F.linear(x, weights["out"], weights["out_bias"])
