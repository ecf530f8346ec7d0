"""What FRAug's networks come to do on real domains of digits (arXiv:2205.14900, section 3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedsim.client import Update
from fedsim.maths.conditional import generator_network, transformation_network
from fedsim.maths.distances import mmd
from fedsim.strategy import ServerContext
from strategies.fraug import FRAug
from tests.strategies.played import Player

ROUNDS = 60


@pytest.fixture(scope="module")
def scene() -> dict[str, Any]:
    """Features v, g's output v_hat and v_tilde of each client after some rounds."""
    player = Player(
        dataset={"name": "digit-domains", "share": 0.05},
        partition={"name": "domain", "clients": 5, "test": "domain"},
        model={"name": "cnn", "channels": [16, 32, 32], "kernel": 3, "padding": 1, "norm": "batch"},
        strategy={"name": "fraug"},
        client={"steps": 10, "batch_size": 32, "lr": 0.02, "momentum": 0.5},
    )
    strategy = FRAug(FRAug.Config(gamma=3 / ROUNDS))
    worker = player.worker
    strategy.bind(player.initial, ServerContext(0, ROUNDS, 5, 5, 10, worker.model, worker.dataset))
    states: dict[int, Any] = {client: {} for client in range(5)}
    payload: dict[str, Any] = {}
    for round in range(1, ROUNDS + 1):
        payload = dict(strategy.configure(strategy.state, round, range(5)))
        updates: list[Update] = []
        for client in range(5):
            states[client], update = player.client.train(
                payload,
                states[client],
                player.data(client),
                player.rng(client, round),
                player.context(client, round),
            )
            updates.append(update)
        strategy.state, _ = strategy.aggregate(strategy.state, updates)
    found: dict[str, list[Any]] = {"v": [], "hat": [], "tilde": [], "labels": [], "logits": []}
    for client in range(5):
        context = player.context(client, ROUNDS + 1)
        dim = context.initial["head.weight"].shape[1]
        g, r = (build(dim, dim // 2, 10) for build in (generator_network, transformation_network))
        for network, params in ((g, payload["generator"]), (r, states[client]["rtnet"])):
            network.load_state_dict(dict(params))
            network.eval()
        context.model.load(player.client.personal_model(payload, states[client], context))
        module: Any = context.model.module.eval()
        view = player.data(client).train
        with torch.no_grad():
            x, y = view.inputs()[:128], view.labels()[:128]
            v = module.body(x)
            noise = torch.rand(len(y), dim // 2, generator=torch.Generator().manual_seed(client))
            hat = g(noise, y)
            tilde = v + r(hat, y)
            found["logits"].append([module.head(e) for e in (v, hat, tilde)])
        for name, value in (("v", v), ("hat", hat), ("tilde", tilde), ("labels", y)):
            found[name].append(value)
    return found


@pytest.mark.slow
def test_every_head_classifies_what_the_generator_makes(scene: dict[str, Any]) -> None:
    for (_, logits, _), labels in zip(scene["logits"], scene["labels"], strict=True):
        assert float((logits.argmax(1) == labels).float().mean()) > 0.9


@pytest.mark.slow
def test_synthetic_features_are_nearer_than_generated_ones(scene: dict[str, Any]) -> None:
    for v, hat, tilde in zip(scene["v"], scene["hat"], scene["tilde"], strict=True):
        assert float(mmd(tilde, v)) < float(mmd(hat, v))


@pytest.mark.slow
def test_synthetic_features_are_harder_than_real_ones(scene: dict[str, Any]) -> None:
    for real, _, synthetic in scene["logits"]:
        assert float(mean_entropy(synthetic)) > float(mean_entropy(real))


def mean_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the mean Shannon entropy in nats of softmax(logits), logits (batch, C)."""
    return torch.distributions.Categorical(logits=logits).entropy().mean()
