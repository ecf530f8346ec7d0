"""FedDF's client: trains its part's encoder on its own task, and keeps its classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from clients._modality_task import OwnTask, State, TaskConfig, own_scores
from fedsim.client import Client, ClientContext, Heterogeneous, Tree, Update
from fedsim.data.views import ClientData


class FedDF(Heterogeneous, Client):
    """Sends its encoder, keeps its classifier and its optimiser's moments.

    ``personal/...`` are its scores with the server's encoder of its part and its own classifier.
    """

    stateful = True
    needs = frozenset({"encoder"})
    sends = frozenset({"encoder"})

    @dataclass(frozen=True)
    class Config(TaskConfig):
        pass

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
        task = OwnTask(self.config, state, data, rng, ctx)
        ctx.model.load(payload["encoder"])
        for _ in range(self.config.epochs):
            task.epoch()
        model, travels = task.model(), set(payload["encoder"])
        kept = {**task.kept(), "model": model.only(lambda name: name not in travels)}
        encoder = model.only(lambda name: name in travels)
        return kept, Update({"encoder": encoder}, float(len(data.train)), task.metrics())

    def evaluate(
        self, payload: Tree, state: State, data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        return own_scores(self.config, state, data, ctx, payload["encoder"])
