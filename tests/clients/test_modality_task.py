"""A client's own task, by hand: rates and their drops, decay, the bound on gradients, losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.pairs import Scene

WHOLE = {"batch_size": 512, "pairs_batch_size": 512, "momentum": 0.0, "gamma": 0.0}
"""One step an epoch, on all private samples."""


def scene(**client: Any) -> Scene:
    return Scene(client={"optimiser": "sgd", "pairs_optimiser": "sgd", **WHOLE, **client})


def moved(played: Scene, client: int, round: int = 1) -> Tensor:
    """Return by how much a round moves a client's first model, which it starts from again."""
    played.states.clear()
    played.train(client, round=round)
    kept = played.states[client]["model"]
    return kept.flat - played.initial.only(set(kept).__contains__).flat


def test_the_rate_falls_to_a_tenth_after_each_round_named() -> None:
    played = scene(lr=0.4, lr_drops=[2, 3])
    first = moved(played, 0)
    assert float(first.norm()) > 1e-2
    for round, share in ((2, 1.0), (3, 0.1), (4, 0.01), (9, 0.01)):
        torch.testing.assert_close(moved(played, 0, round), share * first, rtol=1e-3, atol=1e-6)


def test_clients_with_pairs_have_a_rate_and_a_bound_of_their_own() -> None:
    """A gradient that is cut to norm 0.001 moves weights by 0.3 x 0.001; nothing decays."""
    played = scene(pairs_lr=0.3, pairs_clip_norm=0.001, weight_decay=0.5, lr=9.0, lr_drops=[1])
    for round in (1, 2):
        assert float(moved(played, 4, round).norm()) == pytest.approx(3e-4, rel=1e-2)


@pytest.mark.parametrize("client", [0, 2])
def test_clients_with_one_modality_decay_and_have_no_bound(client: int) -> None:
    played = scene(lr=0.2, weight_decay=0.5, pairs_clip_norm=0.001, pairs_lr=9.0)
    played.train(client)
    kept = played.states[client]["model"]
    context, view = played.context(client), played.data(client).train
    context.model.load(played.initial)
    kind = "image" if client == 0 else "text"
    part: Any = context.model.module.get_submodule(kind).train()
    tower, read = (part.image, view.inputs()) if client == 0 else (part.text, view.tokens())
    loss = F.cross_entropy(part.head(tower(read)), view.labels())
    named = dict(part.named_parameters())
    for (name, p), g in zip(
        named.items(), torch.autograd.grad(loss, list(named.values())), strict=True
    ):
        expected = p.detach() - 0.2 * (g + 0.5 * p.detach())
        torch.testing.assert_close(kept[f"{kind}.{name}"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("classifier", ["linear", "margin"])
def test_the_loss_is_that_of_the_classifier(classifier: str) -> None:
    """Of features that are not of norm 1."""
    played = scene(classifier=classifier)
    update = played.train(0)
    context, view = played.context(0), played.data(0).train
    context.model.load(played.initial)
    part: Any = context.model.module.get_submodule("image").train()
    with torch.no_grad():
        features, y = part.image(view.inputs()), view.labels()
        expected = F.cross_entropy(part.head(features), y)
        if classifier == "margin":
            weight = part.head.weight.clamp_min(0)
            own = F.cross_entropy(features @ weight.T - 4 * F.one_hot(y, len(weight)), y)
            classes = torch.arange(len(weight))
            expected = own + 0.5 * F.cross_entropy(weight @ weight.T, classes)
    assert update.metrics["train_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_pairs_are_told_apart_at_the_given_temperature() -> None:
    played = scene(retrieval_loss="infonce", temperature=0.3)
    update = played.train(4)
    context, view = played.context(4), played.data(4).train
    context.model.load(played.initial)
    part: Any = context.model.module.get_submodule("pairs").train()
    with torch.no_grad():
        logits = part.images(view.inputs()) @ part.texts(view.tokens()).T / 0.3
    both_ways = logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()
    assert update.metrics["train_loss"] == pytest.approx(-float(both_ways.mean()) / 2, rel=1e-5)
