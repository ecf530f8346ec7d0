"""The client of FedAvg over towers: trains the shared towers of its modalities on its own task, and
keeps its classifier and the scalars of its loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from clients._modality_task import OwnTask, State, TaskConfig, own_scores, part_name
from fedsim.client import Client, ClientContext, Heterogeneous, Tree, Update
from fedsim.data.views import ClientData
from fedsim.params import Params


class MultimodalFedAvg(Heterogeneous, Client):
    """Sends its towers by modality, nothing of a modality that it lacks.

    ``personal/...`` are its scores with the server's towers and what it keeps.
    """

    stateful = True
    needs = frozenset({"image", "text"})
    sends = frozenset({"image", "text"})

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
        for towers in shared(payload, data, ctx):
            ctx.model.load(towers)
        for _ in range(self.config.epochs):
            task.epoch()
        model = task.model()
        tensors: Tree = {m: model.inside(f"{task.name}.{m}") for m in ("image", "text")}
        # What is shared is not kept: the next round begins from the server's. Moments are, as in
        # the methods that it is compared with.
        travels = set(tensors["image"].put_under(f"{task.name}.image")) | set(
            tensors["text"].put_under(f"{task.name}.text")
        )
        kept = {**task.kept(), "model": model.only(lambda name: name not in travels)}
        return kept, Update(tensors, float(len(data.train)), task.metrics())

    def evaluate(
        self, payload: Tree, state: State, data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        return own_scores(self.config, state, data, ctx, *shared(payload, data, ctx))


def shared(payload: Tree, data: ClientData, ctx: ClientContext) -> list[Params]:
    """Return the server's towers under the names that they have in the client's part."""
    name = part_name(data, ctx)
    return [payload[m].put_under(f"{name}.{m}") for m in ("image", "text") if len(payload[m])]
