"""What CreamFL is for, on real pairs: the modality gap closes, drift falls, and a corrupted client
weighs less (the settings of experiments/creamfl/emoji.yaml, four clients in every round).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from fedsim.client import Update
from fedsim.data.views import View
from fedsim.evaluate.retrieval import embedded
from tests.support.pairs import Scene, unit

FILE = Path(__file__).resolve().parents[2] / "experiments" / "creamfl" / "emoji.yaml"
PICTURES_ONLY = 0
CLIENTS = [PICTURES_ONLY, 1, 3, 6]  # pictures, pictures, texts, pairs
ROUNDS = 8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@lru_cache(maxsize=4)
def played(inter: bool, intra: bool, gamma: float = 2.0) -> tuple[Scene, list[Update], Any]:
    """Return a scene after all rounds, the last round's updates, and the state they answered to."""
    tree = yaml.safe_load(FILE.read_text())
    tree["client"] |= {"inter": inter, "intra": intra, "gamma": gamma}
    scene = Scene(experiment=tree)
    updates: list[Update] = []
    state = scene.strategy.state
    for round in range(1, ROUNDS + 1):
        state = scene.strategy.state
        updates = [scene.train(c, round=round) for c in CLIENTS]
        if round < ROUNDS:
            scene.strategy.state, _ = scene.strategy.aggregate(state, updates)
    return scene, updates, state


def within(queries: Tensor, items: Tensor, k: int) -> float:
    """Return the share of queries whose own item is among the k most similar."""
    similar = queries @ items.T
    ranks = (similar > similar.diagonal().unsqueeze(1)).sum(1)
    return float((ranks < k).double().mean())


def held_out(scene: Scene, state: Any) -> tuple[Tensor, Tensor]:
    """Return a picture client's vectors of test pictures, and the server's of their texts."""
    context = scene.context(PICTURES_ONLY)
    split = scene.worker.dataset.test
    # One picture an emoji: the other vendor's has the same text.
    rows = np.unique(split.extra["group"], return_index=True)[1]
    view = View(split, rows, scene.worker.dataset.card)
    context.model.load(scene.states[PICTURES_ONLY]["model"])
    pictures = embedded(context.model.module.get_submodule("image"), view, "image")
    context.model.load(scene.initial)
    context.model.load(state.ahead)
    return pictures, embedded(context.model.module.get_submodule("server"), view, "text")


def test_the_modality_gap_closes_with_inter_and_not_without() -> None:
    """Clients that never see a text find the texts of pictures, and not if left to themselves.

    With intra alone they find public ones at times, by the server's pictures, and no others. Chance
    is 10/500 among the public texts and 10/318 among those of unseen emoji.
    """

    def found(**terms: Any) -> tuple[float, float]:
        scene, updates, state = played(**terms)
        two = [within(u.tensors["local_img"], state.texts, 10) for u in updates[:2]]
        return sum(two) / 2, within(*held_out(scene, state), 10)

    public, unseen = found(inter=True, intra=True)
    public_intra, unseen_intra = found(inter=False, intra=True)
    public_alone, unseen_alone = found(inter=False, intra=False, gamma=0.0)
    assert public > 5 * 10 / 500 > 2.5 * 10 / 500 > public_alone
    assert public > 3 * public_intra
    assert unseen > 3 * 10 / 318 > 2 * 10 / 318 > max(unseen_intra, unseen_alone)


def test_drift_falls_with_contrast() -> None:
    """The clients' pictures lie nearer to the server's with intra alone, and with both terms."""

    def alignment(**terms: Any) -> float:
        _, updates, state = played(**terms)
        local = [u.tensors["local_img"] for u in updates if len(u.tensors["local_img"])]
        assert len(local) == 3
        return sum(float((rep * state.images).sum(1).mean()) for rep in local) / len(local)

    without = alignment(inter=False, intra=False, gamma=0.0)
    assert alignment(inter=False, intra=True) > without + 0.1
    assert alignment(inter=True, intra=True) > without + 0.2


def test_a_corrupted_client_is_weighed_down() -> None:
    scene, updates, state = played(inter=True, intra=True)
    noise = unit(len(state.images), state.images.shape[1], 99)
    broken = [
        Update({**u.tensors, "local_img": noise}, u.weight, client=u.client) if i == 1 else u
        for i, u in enumerate(updates)
    ]

    def ensemble(aggregation: str) -> Any:
        config = scene.strategy.Config(aggregation=aggregation)
        return type(scene.strategy)(config).ensemble("img", broken, state.images, state.texts)

    gca, mean = ensemble("gca"), ensemble("mean")
    weights = {c: gca.metrics[f"weight_img/{c}"] for c in (0, 1, 6)}
    assert weights[1] < 1 / 3
    assert weights[1] == min(weights.values())
    near = [float(F.cosine_similarity(e.mean, state.images, dim=1).mean()) for e in (gca, mean)]
    assert near[0] > near[1]
    assert torch.isfinite(gca.mean).all()
