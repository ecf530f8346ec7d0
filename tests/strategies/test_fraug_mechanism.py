"""What FRAug's networks come to do on real domains of digits (arXiv:2205.14900, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.client import Update
from fedsim.models.blocks.conditional import generator_network, transformation_network
from fedsim.strategy import ServerContext
from strategies.fraug import FRAug
from tests.support.discrepancy import mmd
from tests.support.played import Player

ROUNDS, CLIENTS = 24, range(5)


@dataclass
class Features:
    """Of a client's training images: real v, g's v_hat for their labels, and v_tilde."""

    head: torch.nn.Linear
    labels: Tensor
    v: Tensor
    hat: Tensor
    tilde: Tensor


@torch.no_grad()
def after_training(lam_r: float) -> list[Features]:
    """Train five clients, a domain each; return the features of each client's own model."""
    player = Player(
        dataset={"name": "digit-domains", "share": 0.05},
        partition={"name": "domain", "clients": 5, "test": "domain"},
        model={"name": "cnn", "channels": [16, 32, 32], "kernel": 3, "padding": 1, "norm": "batch"},
        strategy={"name": "fraug"},
        client={"steps": 10, "batch_size": 32, "lr": 0.02, "momentum": 0.5, "lam_r": lam_r},
    )
    strategy = FRAug(FRAug.Config(gamma=3 / ROUNDS))
    worker = player.worker
    strategy.bind(player.initial, ServerContext(0, ROUNDS, 5, 5, 10, worker.model, worker.dataset))
    states: dict[int, Any] = {client: {} for client in CLIENTS}
    payload: dict[str, Any] = {}
    for round in range(1, ROUNDS + 1):
        payload = dict(strategy.configure(strategy.state, round, CLIENTS))
        updates: list[Update] = []
        for client in CLIENTS:
            with torch.enable_grad():
                states[client], update = player.client.train(
                    payload,
                    states[client],
                    player.data(client),
                    player.rng(client, round),
                    player.context(client, round),
                )
            updates.append(update)
        strategy.state, _ = strategy.aggregate(strategy.state, updates)
    found = []
    for client in CLIENTS:
        context = player.context(client, ROUNDS + 1)
        personal = player.client.personal_model(payload, states[client], context)
        module: Any = player.module(personal).eval().requires_grad_(False)
        dim = module.head.in_features
        g, r = (build(dim, dim // 2, 10) for build in (generator_network, transformation_network))
        for network, params in ((g, payload["generator"]), (r, states[client]["rtnet"])):
            network.load_state_dict(dict(params))
            network.eval()
        view = player.data(client).train
        v, y = module.body(view.inputs()), view.labels()
        noise = torch.rand(len(y), dim // 2, generator=torch.Generator().manual_seed(client))
        hat = g(noise, y)
        found.append(Features(module.head, y, v, hat, v + r(hat, y)))
    return found


@pytest.fixture(scope="module")
def clients() -> list[Features]:
    return after_training(lam_r=1.0)


@pytest.mark.slow
def test_every_head_classifies_what_the_generator_makes(clients: list[Features]) -> None:
    for c in clients:
        assert float((c.head(c.hat).argmax(1) == c.labels).float().mean()) > 0.9


@pytest.mark.slow
def test_synthetic_features_are_nearer_than_generated_ones(clients: list[Features]) -> None:
    for c in clients:
        assert float(mmd(c.tilde, c.v)) < float(mmd(c.hat, c.v))


@pytest.mark.slow
def test_it_is_the_distance_in_rtnets_loss_that_keeps_them_near(clients: list[Features]) -> None:
    """By a tenth at least at every client, and by a quarter in the mean."""
    pulled = torch.stack([mmd(c.tilde, c.v) for c in clients])
    free = torch.stack([mmd(c.tilde, c.v) for c in after_training(lam_r=0.0)])
    assert bool((pulled < 0.9 * free).all())
    assert float(pulled.mean()) < 0.75 * float(free.mean())


@pytest.mark.slow
def test_synthetic_features_are_harder_than_real_ones(clients: list[Features]) -> None:
    for c in clients:
        assert float(mean_entropy(c.head(c.tilde))) > float(mean_entropy(c.head(c.v)))


@pytest.mark.slow
def test_synthetic_features_show_whose_they_are_and_generated_ones_do_not(
    clients: list[Features],
) -> None:
    """To a classifier by the nearest domain mean of real features, those of other images."""
    means = torch.stack([c.v[::2].mean(0) for c in clients])

    def recognised(features: list[Tensor]) -> float:
        rates = [
            float((torch.cdist(own[1::2], means).argmin(1) == domain).float().mean())
            for domain, own in enumerate(features)
        ]
        return sum(rates) / len(rates)

    generated = recognised([c.hat for c in clients])
    assert generated < 0.25  # one domain in five, whatever it names
    assert recognised([c.tilde for c in clients]) > generated + 0.1


def mean_entropy(logits: Tensor) -> Tensor:
    """Return the mean Shannon entropy in nats of softmax(logits), logits (batch, C)."""
    return torch.distributions.Categorical(logits=logits).entropy().mean()
