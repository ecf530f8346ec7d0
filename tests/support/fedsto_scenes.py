"""FedSTO on tiny scenes, played by hand or run."""

from __future__ import annotations

import copy
from typing import Any

from fedsim.client import Update
from fedsim.components import build
from fedsim.data.views import View
from fedsim.params import FlatModel, Params
from fedsim.params.filters import in_backbone
from fedsim.strategy import ServerContext
from tests.support.played import Player, changed
from tests.support.runs import SCENES, tiny

LOW = {"tau_low": 0.01, "tau_high": 0.03}
"""Thresholds between which an untrained detector's scores lie."""


def in_rest(name: str) -> bool:
    return not in_backbone(name)


class Scene:
    """The strategy and a client, played by hand in a stage."""

    def __init__(
        self, stage: int = 2, strategy: dict[str, Any] | None = None, **client: Any
    ) -> None:
        options = {"warm_up_rounds": 1, "stage1_rounds": 1, "batch_size": 8, **(strategy or {})}
        section = {"name": "fedsto", **options}
        given = {"epochs": 1, "batch_size": 2, "lr": 0.05, **LOW, **client}
        self.player = Player(**SCENES, strategy=section, client={"name": "fedsto", **given})
        worker, manifest = self.player.worker, self.player.manifest
        self.server = View(worker.dataset.train, manifest.server, worker.dataset.card)
        model = FlatModel(copy.deepcopy(worker.model.module))
        self.context = ServerContext(0, 9, 8, 8, 2, model, worker.dataset, self.server)
        self.strategy: Any = build.build_strategy(self.player.experiment)
        self.strategy.bind(changed(self.player.initial, 0.01), self.context)
        self.round = stage + 1
        self.w: Params = self.strategy.state.model
        self.payload = self.strategy.configure(self.strategy.state, self.round, range(8))

    def train(self, client: int = 0) -> Update:
        context = self.player.context(client, self.round)
        method, data = self.player.client, self.player.data(client)
        rng = self.player.rng(client, self.round)
        state, update = method.train(self.payload, None, data, rng, context)
        assert state is None
        return update

    def resident(self) -> Params:
        """Return what the client's model holds after training."""
        return self.player.worker.model.params()


def moved(before: Params, after: Params) -> set[str]:
    return {name for name in after if not before[name].equal(after[name])}


def sections(**options: Any) -> dict[str, Any]:
    """Return an experiment of four rounds: one of warm-up, one of stage 1, two of stage 2."""
    strategy = {
        "warm_up_rounds": 1,
        "stage1_rounds": 1,
        "batch_size": 8,
        **options.pop("strategy", {}),
    }
    client = {"epochs": 1, "batch_size": 4, "lr": 0.02, **LOW, **options.pop("client", {})}
    return tiny(
        **{
            **copy.deepcopy(SCENES), "rounds": 4, "strategy": {"name": "fedsto", **strategy},
            "client": {"name": "fedsto", **client}, **options,
        }
    )  # fmt: skip
