"""Ditto's client: FedAvg's update, then proximal steps on a model of its own (arXiv:2012.04221,
Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from clients.fedprox import FedProx
from fedsim import rng as streams
from fedsim.client import ClientContext, Tree, Update
from fedsim.config.ranges import Count, NonNegative
from fedsim.data.views import ClientData
from fedsim.params import Params
from fedsim.training.local_sgd import LocalSGD

State = dict[str, Params]


class Ditto(LocalSGD):
    """Keeps v_k, which starts from the initial weights; what it sends is FedAvg's update."""

    stateful = True
    personal = True

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        lam: NonNegative = 0.1  # lambda, pull of the personal model to the global one
        personal_epochs: Count | None = None  # epochs on the personal model; `epochs` if null

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        shared = {f.name: getattr(self.config, f.name) for f in fields(LocalSGD.Config)}
        self._proximal = FedProx(FedProx.Config(**shared, mu=self.config.lam))

    def init_state(self, ctx: ClientContext) -> State:
        return {}

    def train(
        self,
        payload: Tree,
        state: State,
        data: ClientData,
        rng: torch.Generator,
        ctx: ClientContext,
    ) -> tuple[State, Update]:
        _, update = super().train(payload, state, data, rng, ctx)
        # A stream of its own, so that the global model's training is FedAvg's to the bit.
        own_rng = streams.torch_generator(ctx.seed, "client/personal", ctx.round, ctx.client_id)
        ctx.model.load(state.get("own", ctx.initial))
        epochs = self.config.personal_epochs
        self._proximal.fit(payload, state, data.train, own_rng, ctx, epochs=epochs)
        return {"own": ctx.model.params()}, update

    def personal_model(self, payload: Tree, state: State, ctx: ClientContext) -> Params:
        return state["own"] if "own" in state else payload["model"]
