"""Small experiments with clients of images, of texts and of pairs, and a client played by hand."""

from __future__ import annotations

from typing import Any

import torch

from fedsim.api import prepare
from fedsim.client import ClientContext, Update
from fedsim.components import build
from fedsim.data.views import ClientData
from fedsim.engine.jobs import Block, ClientJob, WorkerSpec
from fedsim.engine.worker import Worker
from fedsim.params import FlatModel
from fedsim.rounds.setup import Parts, server_context
from fedsim.strategy import Payload
from tests.support.runs import prepared

DIM = 8
KINDS = {0: "image", 1: "image", 2: "text", 3: "text", 4: "pairs", 5: "pairs"}
"""The clients of `small` and the part of the model that each has."""

PUBLIC = 40

_ALIKE = {
    "image": {"name": "cnn", "channels": [4], "hidden": 8},
    "text": {"name": "text", "width": 6, "hidden": 8},
}


def small(**changes: Any) -> dict[str, Any]:
    """Return changes of the tiny experiment: emoji, 6 clients of three kinds, 40 public pairs.

    `client` and `strategy` are merged into what is there.
    """
    client = {
        "epochs": 1, "batch_size": 8, "pairs_batch_size": 8, "lr": 0.01, "pairs_lr": 0.01,
        "optimiser": "adam", "pairs_optimiser": "adam", **changes.pop("client", {}),
    }  # fmt: skip
    strategy = {"name": "creamfl", "lr": 0.01, "batch_size": 16, **changes.pop("strategy", {})}
    if strategy["name"] == "creamfl":
        client = {"public_batch_size": 16, **client}
    return {
        "rounds": 2,
        "dataset": {"name": "emoji", "vendors": ["noto"], "share": 0.12},
        "partition": {
            "name": "public", "clients": 6, "size": PUBLIC, "test": 0.2,
            "within": {"name": "modality", "images": 2, "texts": 2, "pairs": 2},
        },
        "model": {
            "name": "image-text", "dim": DIM, "fold": 100,
            "server_image": {"name": "cnn", "channels": [6], "hidden": 12},
            "server_text": {"name": "text-gru", "width": 6, "hidden": 4},
            "image": _ALIKE["image"], "text": _ALIKE["text"],
            "pairs_image": {"name": "cnn", "channels": [3], "hidden": 8},
            "pairs_text": {"name": "text", "width": 4, "hidden": 8},
        },
        "strategy": strategy,
        "client": client,
        "evaluation": {"every": 1},
        **changes,
    }  # fmt: skip


def batch_normed() -> dict[str, Any]:
    """Return the model of `small` with BatchNorm in every image tower: modes are told apart."""
    model: dict[str, Any] = small()["model"]
    images = ("server_image", "image", "pairs_image")
    return {**model, **{name: {**model[name], "norm": "batch"} for name in images}}


def alike() -> dict[str, Any]:
    """Return a model whose towers of one modality are alike."""
    towers = {f"{part}{m}": _ALIKE[m] for m in _ALIKE for part in ("", "server_", "pairs_")}
    return {"name": "image-text", "dim": DIM, **towers}


class Scene:
    """A strategy bound to its data, and its clients, played by hand.

    `experiment` is a whole experiment; without it, it is `small` with the `changes`.
    """

    def __init__(self, experiment: dict[str, Any] | None = None, **changes: Any) -> None:
        given = experiment is not None
        self.experiment = prepare(experiment) if given else prepared(**small(**changes))
        dataset = build.build_dataset(self.experiment)
        self.manifest = build.build_partition(self.experiment, dataset)
        self.worker = Worker(WorkerSpec(self.experiment, public=self.manifest.public_rows))
        self.client: Any = self.worker.client
        self.strategy: Any = build.build_strategy(self.experiment)
        model = FlatModel(build.build_model(self.experiment, dataset.card))
        parts = Parts(self.experiment, dataset, self.manifest, self.strategy, self.client, model)
        self.initial = model.params()
        self.ctx = server_context(parts)
        self.strategy.bind(self.initial.clone(), self.ctx)
        self.states: dict[int, Any] = {}

    def context(self, client: int, round: int = 1) -> ClientContext:
        return self.worker.context(Block(0, round, "train"), client)

    def data(self, client: int) -> ClientData:
        return self.worker.data(ClientJob(client, self.manifest.client(client)))

    def payload(self, client: int, round: int = 1) -> dict[str, Any]:
        made = self.strategy.configure(self.strategy.state, round, range(6))
        if isinstance(made, Payload):
            return {**made.shared, **made.own.get(client, {})}
        return dict(made)

    def train(self, client: int, payload: Any = None, round: int = 1) -> Update:
        """Train a client as a worker does, keep its state, return its update."""
        from fedsim import rng

        self.worker.restore_model()
        context = self.context(client, round)
        state = self.states.get(client, self.client.init_state(context))
        payload = self.payload(client, round) if payload is None else payload
        generator = rng.torch_generator(0, "client", round, client)
        data = self.data(client)
        self.states[client], update = self.client.train(payload, state, data, generator, context)
        update.client = client
        return update

    def round(self, clients: list[int] | None = None, round: int = 1) -> dict[str, float]:
        """Play a round of these clients; return the strategy's metrics."""
        updates = [self.train(c, round=round) for c in clients or list(KINDS)]
        self.strategy.state, metrics = self.strategy.aggregate(self.strategy.state, updates)
        return dict(metrics)


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    """Return random unit rows."""
    drawn = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)
