"""A small experiment of pFedPG whose clients are played by hand."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedsim.client import Update
from fedsim.strategy import ServerContext
from strategies.pfedpg import PFedPG
from tests.support.played import Player

MODEL = {"name": "vit", "width": 16, "heads": 2, "layers": 2, "prompts": 3}
K, L = 3, 16


def player(**client: Any) -> Player:
    return Player(strategy={"name": "pfedpg"}, model=MODEL, client=client)


def bound(scene: Player, **options: Any) -> PFedPG:
    strategy = PFedPG(PFedPG.Config(**options))
    worker = scene.worker
    strategy.bind(scene.initial, ServerContext(0, 10, 8, 8, 10, worker.model, worker.dataset))
    return strategy


def train(scene: Player, prompts: Tensor, client: int, state: Any = None) -> tuple[Any, Update]:
    context = scene.context(client)
    state = scene.client.init_state(context) if state is None else state
    return scene.client.train(
        {"prompts": prompts}, state, scene.data(client), scene.rng(client), context
    )
