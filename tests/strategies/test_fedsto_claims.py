"""What semi-supervised clients are for: better on weathers of which the server has no labels."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fedsim import components
from fedsim.client import Update
from fedsim.data.views import View
from fedsim.evaluate.detection import DETECTION
from fedsim.params import FlatModel
from fedsim.strategy import ServerContext
from tests.strategies.played import Player

SCENES: dict[str, Any] = {
    "dataset": {
        "name": "emoji-scenes", "size": 64, "train": 300, "test": 120, "vendors": ["noto"],
        "groups": ["smileys"], "domains": ["clear", "fog", "night", "snow"],
        "strength": {"clear": 0.0, "fog": 1.0, "night": 0.6, "snow": 1.0},
        "augment": {"flip": True, "scale": 0.2, "crop": 4, "jitter": 0.1},
    },
    "partition": {
        "name": "server-labelled", "clients": 3, "server_domain": "clear",
        "within": {"name": "domain"}, "validation": 0.0, "test": 0.0,
    },
    "model": {"name": "detector", "width": 16},
    "strategy": {
        "name": "fedsto", "warm_up_rounds": 12, "stage1_rounds": 0, "ortho": "none",
        "lr": 0.05, "lr_decay": 0.95, "momentum": 0.9, "batch_size": 16,
    },
    "client": {
        "name": "fedsto", "batch_size": 16, "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4,
        "alpha": 0.99, "tau_high": 0.4, "lr_decay": 0.95,
    },
}  # fmt: skip
WARM_UP, ROUNDS, LAST = 12, 9, 3


@dataclass
class Course:
    """Means over the last rounds of mAP50 on clear scenes and on those of the clients."""

    clear: float
    shifted: float


def courses(seed: int) -> tuple[Course, Course]:
    """Return how the server does alone, and with its clients, from one warm-up on.

    The server makes the same steps in both.
    """
    player = Player(**copy.deepcopy(SCENES), seed=seed)
    worker, manifest = player.worker, player.manifest
    data, augment = worker.dataset, components.build_augment(player.experiment)
    strategy: Any = components.build_strategy(player.experiment)
    model = FlatModel(copy.deepcopy(worker.model.module))
    server = View(data.train, manifest.server, data.card, augment=augment)
    context = ServerContext(seed, 21, 3, 3, data.num_classes, model, data, server)
    strategy.bind(player.initial, context)
    start = strategy.state
    for _ in range(WARM_UP):
        start, _ = strategy.aggregate(start, [])
    found = []
    for together in (False, True):
        state, scores = start, []
        for round in range(WARM_UP + 1, WARM_UP + ROUNDS + 1):
            updates: list[Update] = []
            payload = strategy.configure(state, round, range(3))
            for client in range(3) if together else ():
                ctx = player.context(client, round)
                given = player.data(client), player.rng(client, round), ctx
                updates.append(player.client.train(payload, None, *given)[1])
            state, _ = strategy.aggregate(state, updates)
            if round > WARM_UP + ROUNDS - LAST:
                model.load(state.model)
                view = View(data.test, np.arange(len(data.test)), data.card)
                values = DETECTION.tally(model.module, view, data.num_classes).metrics()
                scores.append([values[f"mAP50/{d}"] for d in data.card.domains])
        clear, *shifted = np.mean(scores, axis=0)
        found.append(Course(float(clear), float(np.mean(shifted))))
    return found[0], found[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_clients_without_labels_help_on_their_own_weathers() -> None:
    """Over three seeds, against a server that makes the same steps alone."""
    pairs = [courses(seed) for seed in (0, 1, 2)]
    for alone, _ in pairs:  # the shift is there, else there is nothing to win
        assert alone.shifted < alone.clear - 0.1, pairs
    gains = [b.shifted - a.shifted for a, b in pairs]
    assert float(np.mean(gains)) > 0.01, pairs
    assert sum(gain > 0 for gain in gains) >= 2, pairs
    kept = [b.clear - a.clear for a, b in pairs]
    assert float(np.mean(kept)) > -0.08, pairs
